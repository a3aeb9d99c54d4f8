"""Gradient accumulation: the mean gradient of several micro-batches, in one pass each.

The mean is kept by the library's own gradient descent over a buffer per parameter: a step uphill
with decoupled decay 1 and the rate w / W, where W is the weight so far with w included, is

    mean ← (1 - w / W) · mean + w / W · g

so the buffers hold the mean after every ``add``, and nothing is left to do at the end.
"""

import math
from typing import Any

import numpy as np

from steepest import clip
from steepest.arrays import Array, gradient, layout, parameter, zeros_like
from steepest.kernels import dispatch, threads
from steepest.kernels.engine import Plan
from steepest.optimizers import structure
from steepest.optimizers.sgd import SGD
from steepest.optimizers.state import counters
from steepest.values import real

__all__ = ["Accumulator"]


class Accumulator:
    """The weighted mean of gradients over micro-batches.

        mean = Σᵢ wᵢ gᵢ / Σᵢ wᵢ

    With the mean gradients gᵢ of micro-batches of wᵢ samples this is the gradient of the whole
    batch, also where the micro-batches differ in size or fewer came than were planned.

    params: as an optimizer takes them; gradients have the same structure. One buffer per parameter
    is allocated here, and nothing later. norms: measure the Euclidean norm of every gradient
    (``last_norm``, ``norms``), by one more sweep that only reads.

    A gradient that is None counts as zero; it stays None where no micro-batch had one.

    >>> import numpy as np, steepest as st
    >>> w = np.zeros(2)
    >>> accumulator = st.Accumulator(w)
    >>> accumulator.add(np.array([1.0, 2.0]), weight=3)
    >>> accumulator.add(np.array([5.0, 2.0]), weight=1)
    >>> accumulator.count, accumulator.weight, accumulator.grads
    (2, 4.0, array([2., 2.]))
    >>> st.SGD(w, lr=0.5).step(accumulator.take())
    >>> w, accumulator.count
    (array([-1., -1.]), 0)
    """

    def __init__(self, params: Any, *, norms: bool = False) -> None:
        if structure.is_groups(params):
            params = [group["params"] for group in params]
        self._shape, self._names, leaves = structure.flatten(params)
        measured = clip.global_norm(math.inf) if norms else None
        self._buffers: list[Array] = [
            zeros_like(parameter(p, name)) for name, p in zip(self._names, leaves, strict=True)
        ]
        self._mean = SGD(
            dict(zip(self._names, self._buffers, strict=True)),
            lr=1.0,
            weight_decay=1.0,
            decay_mode="decoupled",
            maximize=True,
            clip=measured,
        )
        self._plan: Plan | None = None
        self._given = [False] * len(leaves)
        self.norms: list[float] = []
        """The norms of the gradients since the window began, where they are measured."""
        self.weights: list[float] = []
        """The weights of the gradients since the window began."""
        self._taken = False

    @property
    def count(self) -> int:
        """The number of micro-batches in the window, 0 after ``take``."""
        return 0 if self._taken else len(self.weights)

    @property
    def weight(self) -> float:
        """The sum of the weights in the window."""
        return 0.0 if self._taken else sum(self.weights)

    @property
    def last_norm(self) -> float | None:
        """The norm of the gradients added last; None where norms are not measured."""
        return self._mean.last_norm

    def add(self, grads: Any, weight: float = 1.0) -> None:
        """Takes in the gradients of one micro-batch; the first after ``take`` begins a new window.

        weight: finite and above 0, such as the number of samples. Raises TypeError or ValueError
        for what does not fit; the window is then as before.
        """
        weight = real("weight", weight, "a finite number above 0", lambda x: 0 < x < math.inf)
        flat = structure.take(self._shape, grads)
        if not self.count:
            self._begin(flat)
        share = weight / (sum(self.weights) + weight)
        given = [g is not None for g in flat]
        for i, buffer in enumerate(self._buffers):
            if flat[i] is None and self._given[i]:
                flat[i] = np.broadcast_to(buffer.dtype.type(0), buffer.shape)
        self._mean.param_groups[0]["lr"] = share
        self._mean.step(dict(zip(self._names, flat, strict=True)))
        self._given = [a or b for a, b in zip(self._given, given, strict=True)]
        self.weights.append(weight)
        if self.last_norm is not None:
            self.norms.append(self.last_norm)

    def _begin(self, flat: list[Any]) -> None:
        """Empties the buffers. What was taken from them is kept if the gradients do not fit."""
        for name, g, buffer in zip(self._names, flat, self._buffers, strict=True):
            if g is not None:
                gradient(g, buffer, name)
        for buffer in self._buffers:
            buffer[...] = 0  # not left to the factor 0 of the first step: 0 · NaN is NaN
        self._given = [False] * len(self._buffers)
        self.norms, self.weights, self._taken = [], [], False

    @property
    def grads(self) -> Any:
        """The mean so far, with the structure of ``params``: the buffers themselves.

        Raises ValueError before the first ``add``.
        """
        if not self.count:
            raise ValueError("no gradient has been added yet")
        pairs = zip(self._buffers, self._given, strict=True)
        return structure.tree(self._shape, iter([b if given else None for b, given in pairs]))

    def take(self) -> Any:
        """The mean, as ``grads``, and the end of this window.

        The arrays are the accumulator's own and hold the mean until the next ``add``.
        """
        grads = self.grads
        self._taken = True
        return grads

    def norm(self) -> float:
        """The Euclidean norm of the mean of the window, also just after ``take``: one sweep."""
        if self._plan is None:
            self._plan = Plan(dispatch.current, len(self._buffers), np.zeros((), np.int64))
            for b, step in zip(self._buffers, counters(len(self._buffers)), strict=True):
                self._plan.add(0, (b,), step, 0, layout((b,), b))
        self._plan.resolve(self._buffers, list(self._buffers))
        self._plan.rows()
        return self._plan.norms(threads.workers(self._plan.elements()))[0]
