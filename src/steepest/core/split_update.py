"""An update whose parameters are stepped one after another, as their gradients come."""

from typing import Any

import numpy as np

from steepest.core.norms import joined
from steepest.core.optimizer import Optimizer
from steepest.kernels import machine
from steepest.kernels.engine import Plan

__all__ = ["SplitUpdate"]


class SplitUpdate:
    """One update of an optimizer, in a step for each parameter.

    All of these use the hyper-parameters, the count of updates and the remembered norms that the
    first has found, and count as one. For rules and clips that take each parameter for itself.
    """

    def __init__(self, optimizer: Optimizer, factor: float) -> None:
        """`factor`: what gradients are multiplied with before all else. Raises what a step raises
        for hyper-parameters, parameters and states."""
        self._optimizer = optimizer
        optimizer._unscale = factor
        self._count = int(optimizer._updates)
        optimizer._take_hyper(self._count)
        if optimizer._plan is None:
            optimizer._built()
        clipping = optimizer._clipping
        self._norms = (optimizer.last_norm, optimizer._last_norms)
        self._history = optimizer.clip_history.copy()
        for domain in clipping.memories:
            self._history.setdefault(domain.key, [])
        self._each = [0.0] * len(optimizer._names)
        self._parts: dict[str, list[float]] = {d.key: [] for d in clipping.memories}
        self.waits = clipping.first_step(optimizer.clip_history)
        """Whether a clip needs all gradients this time, so that no parameter may go alone."""
        self.measures = bool(clipping.domains) or optimizer.nonfinite != "propagate"
        """Whether norms are measured, and ``end`` has to be called."""

    def step(self, i: int, grads: list[Any]) -> Plan | None:
        """Steps the i-th parameter in the order of the groups, the others' gradients being None;
        the plan that it used. Raises what a step raises; the parameter is as before then."""
        optimizer, updates = self._optimizer, self._optimizer._updates
        done = updates.item()
        updates[...] = self._count
        try:
            machine.alone(optimizer._lock, self._go, grads, "a backward pass that steps")
            if self.measures:
                self._remember(i)
        finally:
            updates[...] = max(done, updates.item())
            if self.measures:
                optimizer.last_norm, optimizer._last_norms = self._norms
                optimizer.clip_history.update(self._history)
        return optimizer._plan

    def _go(self, grads: list[Any]) -> None:
        self._optimizer._go(grads, self._count)

    def _remember(self, i: int) -> None:
        """Keeps the norms that a step has measured, each of one parameter."""
        optimizer = self._optimizer
        if optimizer._last_norms is not self._norms[1]:
            self._each[i] = optimizer._last_norms[i]
        for key, norms in self._parts.items():
            known = optimizer.clip_history.get(key)
            norms.append(known[-1] if known and known is not self._history[key] else np.inf)

    def end(self) -> None:
        """After the last step: the norms of all gradients together."""
        optimizer = self._optimizer
        order = optimizer._clipping.orders[0]
        if any(self._each):
            optimizer.last_norm, optimizer._last_norms = _joined(self._each, order), self._each
        for key, norms in self._parts.items():
            norm = _joined(norms, 2.0)
            if np.isfinite(norm):
                optimizer.clip_history[key] = [norm]


def _joined(norms: list[float], order: float) -> float:
    return float(joined(np.array(norms)[:, None], order)[0])
