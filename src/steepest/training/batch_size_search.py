"""The search for a batch size: doubled until it exceeds the memory or the gradient noise scale."""

import copy
import math
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from steepest.fields import count, real
from steepest.memory.arrays import Array
from steepest.training.accumulation import Accumulator
from steepest.training.arguments import Function, autograd, samples, scalar, trained
from steepest.training.noise_scale import NoiseScale
from steepest.training.sampling import batches, length

# Batches per size: enough for the norm of their mean to stand out from its own noise.
_REPEATS = 8


@dataclass(frozen=True)
class Trial:
    """One batch size that was tried: the shortest time of a gradient, per sample; the noise scale,
    in samples; the most memory that a gradient took, in bytes, where it was measured."""

    size: int
    seconds_per_sample: float
    noise_scale: float
    memory: int | None


@dataclass(frozen=True, repr=False)
class BatchSize:
    """What ``find_batch_size`` found.

    ``size`` is the batch size to take, ``tried`` what was measured of each size that fitted, and
    ``stopped`` says what ended the search, ``message`` describes it.
    """

    size: int
    stopped: Literal["noise", "memory", "limit", "data"]
    message: str
    tried: tuple[Trial, ...]

    def __repr__(self) -> str:
        sizes = f"{len(self.tried)} sizes tried, up to {self.tried[-1].size}" if self.tried else ""
        told = [f"size {self.size}", *([sizes] if sizes else []), f"stopped by {self.stopped}"]
        return f"BatchSize({'; '.join([*told, self.message])})"

    @property
    def noise_scale(self) -> float:
        """The noise scale by the largest batches: the best estimate."""
        return self.tried[-1].noise_scale


def find_batch_size(
    loss: Function,
    params: Any,
    data: Any,
    *,
    value_and_grad: Function | None = None,
    start: int = 1,
    limit: int | None = None,
    memory: int | None = None,
    seed: int = 0,
) -> BatchSize:
    """The batch size beyond which more samples in a batch are hardly worth their time.

    Sizes are doubled from ``start``. For each, the gradients of up to eight batches and of all of
    them together are computed at the parameters given, and tell the noise scale (``NoiseScale``).
    The search ends at the first size above it ("noise"), at the last one that does not need more
    ``memory`` or raise MemoryError ("memory"), at ``limit`` ("limit"), or at the last one of which
    the data holds two batches ("data").

    loss, params, data, value_and_grad: as for ``fit``. Gradients are computed with a copy of the
    parameters; nothing of the caller's is changed.
    start, limit: the first size, and the largest allowed.
    memory: bytes that computing one gradient may allocate at its peak, by ``tracemalloc``. A size
    is tried before it is known not to fit.

    The noise scale grows as training goes on, often by a factor of ten and more: a search at
    trained parameters answers for the rest of the training.

    Raises ValueError for arguments that do not fit or a gradient that is not finite, MemoryError
    where not even the first size fits.

    >>> import numpy as np, steepest as st
    >>> x = np.random.default_rng(0).standard_normal((4096, 10))
    >>> y = x @ np.ones(10)
    >>> def loss(w, x, y):
    ...     return ((x @ w - y) ** 2).mean()
    >>> found = st.find_batch_size(loss, np.zeros(10), (x, y))
    >>> found.size, found.stopped, [trial.size for trial in found.tried]
    (16, 'noise', [1, 2, 4, 8, 16])

    McCandlish et al. 2018, arXiv:1812.06162.
    """
    own = copy.deepcopy(params)
    found = samples(data, "data")
    if not found:
        raise ValueError("a loss without data has no batches")
    first = count("start", start, 1)
    most = math.inf if limit is None else count("limit", limit, first)
    if length(found) < 2 * first:
        raise ValueError(f"start = {first}: the data has {length(found)} samples, not two batches")
    if memory is not None:
        real("memory", memory, "0 bytes or more, or None", lambda x: x >= 0)
    probe = _Probe(value_and_grad or autograd(loss), own, found, count("seed", seed, 0), memory)
    tried: list[Trial] = []
    size = first
    while True:
        try:
            tried.append(probe.trial(size))
        except MemoryError:
            if not tried:
                raise
            stopped, why = "memory", f"{size} samples need too much memory"
            break
        scale = tried[-1].noise_scale
        if size > scale:
            stopped, why = "noise", f"{size} is above the noise scale of {scale:.4g}"
        elif 2 * size > most:
            stopped, why = "limit", f"the limit is {limit}"
        elif 4 * size > length(found):
            stopped, why = "data", f"the data has only {length(found)} samples"
        else:
            size *= 2
            continue
        break
    return BatchSize(tried[-1].size, stopped, why, tuple(tried))  # type: ignore[arg-type]


@dataclass
class _Probe:
    value_and_grad: Function
    params: Any
    data: tuple[Array, ...]
    seed: int
    memory: int | None

    def __post_init__(self) -> None:
        self.accumulator = Accumulator(self.params, norms=True)

    def trial(self, size: int) -> Trial:
        """Measures one size. Raises MemoryError where it does not fit."""
        peak = None if self.memory is None else self._peak(size)
        if peak is not None and self.memory is not None and peak > self.memory:
            raise MemoryError(
                f"a gradient over {size} samples allocates {peak} bytes; memory = {self.memory}"
            )
        noise, window, times = NoiseScale(), self.accumulator, []
        for batch in self._batches(size):
            begun = time.perf_counter()
            value, grads = self.value_and_grad(self.params, *batch)
            times.append((time.perf_counter() - begun) / size)
            window.add(trained(grads), size)
            if not math.isfinite(scalar(value, "loss") + window.norms[-1]):
                raise ValueError(f"loss = {value}, gradient norm = {window.norms[-1]}: not finite")
        window.take()
        noise.observe(window.norms, window.weights, window.norm())
        return Trial(size, min(times), noise.value, peak)

    def _batches(self, size: int) -> Iterator[tuple[Array, ...]]:
        """Whole batches, all different: up to eight."""
        whole = length(self.data) // size
        return islice(batches(self.data, size, seed=self.seed), min(_REPEATS, whole))

    def _peak(self, size: int) -> int:
        """The most memory that is allocated at once while a gradient is computed, in bytes."""
        batch = next(self._batches(size))
        tracing = tracemalloc.is_tracing()
        if not tracing:
            tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            self.value_and_grad(self.params, *batch)
            return tracemalloc.get_traced_memory()[1] - before
        finally:
            if not tracing:
                tracemalloc.stop()
