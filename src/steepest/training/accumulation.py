"""Gradient accumulation: the mean gradient of several micro-batches, in one pass each.

The mean is computed by the library's own gradient descent on one buffer per parameter: a step
uphill with decoupled decay 1 and the rate w / W, where W is the sum of the weights including w, is

    mean ← (1 - w / W) · mean + w / W · g

so the buffers hold the mean after every ``add``, and nothing is left to do at the end.
"""

import math
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from steepest.core import internal, sweeps, trees
from steepest.fields import Call, real
from steepest.kernels import machine
from steepest.memory.arrays import Array, parameter, zeros_like
from steepest.optimizers.sgd import SGD

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
        if trees.is_groups(params):
            params = [group["params"] for group in params]
        self._shape, self._names, leaves = trees.flatten(params)
        self._buffers: list[Array] = [
            zeros_like(parameter(p, name)) for name, p in zip(self._names, leaves, strict=True)
        ]
        self._mean = SGD(
            dict(zip(self._names, self._buffers, strict=True)),
            lr=1.0,
            weight_decay=1.0,
            decay_mode="decoupled",
            maximize=True,
        )
        self._measured = norms
        self._norm = sweeps.Norm(self._buffers)
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
        internal.change_alone(self._mean, self._add, (grads, weight), "add() of this accumulator")

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
        self._mean.param_groups[0]["lr"] = share
        norm, step = internal.planned_step(self._mean, flat, self._measured)
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
        return self._norm.measure()
