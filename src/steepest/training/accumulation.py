"""Gradient accumulation: the mean gradient of several micro-batches, in one pass each.

The mean is computed by the library's own gradient descent on one buffer per parameter: a step
uphill with decoupled decay 1 and the rate w / W, where W is the sum of the weights including w, is

    mean ← (1 - w / W) · mean + w / W · g

so the buffers hold the mean after every ``add``, and nothing is left to do at the end.
"""

import math
from collections.abc import Callable
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from steepest.core import trees
from steepest.core.state import counters
from steepest.fields import Call, real
from steepest.kernels import dispatch, machine, threads
from steepest.kernels.engine import Plan
from steepest.memory.arrays import Array, layout, parameter, zeros_like
from steepest.optimizers.sgd import SGD

__all__ = ["Accumulator"]


class _Mean(SGD, registered=False):
    """Gradient descent whose step is planned here and committed by its accumulator."""

    def alone(self, work: Callable[[Any], None], given: Any) -> None:
        """Calls the function, in one thread at a time."""
        machine.alone(self._lock, work, given, "add() of this accumulator")

    def planned(self, flat: list[Any], rate: float, measured: bool) -> tuple[float | None, Call]:
        """The norm of the gradients, if it is to be measured, and the call that takes the step."""
        count = self._updates.item()
        self.param_groups[0]["lr"] = rate
        self._take_hyper(count)
        plan = self._resolved(flat)
        for row, (number, t, by_rows) in enumerate(plan.rows()):
            live = self._groups[number]
            live.program(plan, row, count, t, self._domains[number], by_rows)
        workers = threads.workers(plan.elements())
        norm = plan.norms(workers)[0] if measured else None
        plan.rescale(self._climbing(1.0))
        plan.factors(workers)
        return norm, (plan.commit, (workers,))


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
        if trees.is_groups(params):
            params = [group["params"] for group in params]
        self._shape, self._names, leaves = trees.flatten(params)
        self._buffers: list[Array] = [
            zeros_like(parameter(p, name)) for name, p in zip(self._names, leaves, strict=True)
        ]
        self._mean = _Mean(
            dict(zip(self._names, self._buffers, strict=True)),
            lr=1.0,
            weight_decay=1.0,
            decay_mode="decoupled",
            maximize=True,
        )
        self._measured = norms
        self._plan: Plan | None = None
        self._given = [False] * len(leaves)
        self.norms: list[float] = []
        """The norms of the gradients since the window began, where they are measured."""
        self.weights: list[float] = []
        """The weights of the gradients since the window began."""
        self.last_norm: float | None = None
        """The norm of the gradients added last; None where norms are not measured."""
        self._taken = False

    @property
    def count(self) -> int:
        """The number of micro-batches in the window, 0 after ``take``."""
        return 0 if self._taken else len(self.weights)

    @property
    def weight(self) -> float:
        """The sum of the weights in the window."""
        return 0.0 if self._taken else reduce(add, self.weights, 0.0)

    def add(self, grads: Any, weight: float = 1.0) -> None:
        """Takes in the gradients of one micro-batch; the first after ``take`` begins a new window.

        weight: finite and above 0, such as the number of samples. Raises TypeError or ValueError
        for what does not fit. After any exception, Ctrl-C too, the window is as before.
        """
        weight = real("weight", weight, "a finite number above 0", lambda x: 0 < x < math.inf)
        self._mean.alone(self._add, (grads, weight))

    def _add(self, given: tuple[Any, float]) -> None:
        grads, weight = given
        flat = trees.take(self._shape, grads)
        known, weights, norms = self._given, self.weights, self.norms
        emptied: list[Call] = []
        if not self.count:
            known, weights, norms = [False] * len(flat), [], []
            # Not left to the factor 0 of the first step: 0 · NaN is NaN.
            emptied = [(np.ndarray.__setitem__, (b, ..., 0)) for b in self._buffers]
        now = [a or g is not None for a, g in zip(known, flat, strict=True)]
        for i, buffer in enumerate(self._buffers):
            if flat[i] is None and known[i]:
                flat[i] = np.broadcast_to(buffer.dtype.type(0), buffer.shape)
        share = weight / (reduce(add, weights, 0.0) + weight)
        norm, step = self._mean.planned(flat, share, self._measured)
        new = {
            "_given": now,
            "weights": [*weights, weight],
            "norms": norms if norm is None else [*norms, norm],
            "last_norm": norm,
            "_taken": False,
        }
        machine.at_once([*emptied, step, (dict.update, (self.__dict__, new))])

    @property
    def grads(self) -> Any:
        """The mean so far, with the structure of ``params``: the buffers themselves.

        Raises ValueError before the first ``add``.
        """
        if not self.count:
            raise ValueError("no gradient has been added yet")
        pairs = zip(self._buffers, self._given, strict=True)
        return trees.tree(self._shape, iter([b if given else None for b, given in pairs]))

    def take(self) -> Any:
        """The mean, as ``grads``, and the end of this window.

        The arrays are the accumulator's own and hold the mean until the next ``add``.
        """
        grads = self.grads
        self._taken = True
        return grads

    @machine.in_default_mode
    def norm(self) -> float:
        """The Euclidean norm of the mean of the window, also just after ``take``: one sweep."""
        if self._plan is None or self._plan.resolve(self._buffers, list(self._buffers)) is None:
            self._plan = Plan(dispatch.current, len(self._buffers), np.zeros((), np.int64))
            for b, step in zip(self._buffers, counters(len(self._buffers)), strict=True):
                self._plan.add(0, (b,), step, 0, layout((b,), b))
            self._plan.resolve(self._buffers, list(self._buffers))
        self._plan.rows()
        return self._plan.norms(threads.workers(self._plan.elements()))[0]
