"""An update whose parameters are stepped one after another, as their gradients come."""

import math
from typing import Any

from steepest.core.optimizer import Optimizer
from steepest.kernels import machine
from steepest.kernels.engine import Plan, joint_norm

__all__ = ["SplitUpdate"]


class SplitUpdate:
    """One update of an optimizer, in a step for each parameter.

    All of these use the hyper-parameters, the count of updates and the remembered norms that the
    first has found, and count as one. For rules and clips that take each parameter for itself.
    """

    def __init__(self, optimizer: Optimizer, factor: float) -> None:
        """`factor`: what gradients are multiplied with before all else. Raises what a step raises
        for hyper-parameters, parameters and states."""
        self._optimizer, self._factor = optimizer, factor
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
        self._measures: dict[float, dict[int, Any]] = {}
        """By orders: what was measured of each parameter."""
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
        optimizer._clipping.kept = {} if self.measures else None
        try:
            machine.alone(optimizer._lock, self._go, grads, "a backward pass that steps")
            if self.measures:
                self._remember(i)
        finally:
            optimizer._clipping.kept = None
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
        plan = optimizer._plan
        if optimizer._last_norms is not self._norms[1] and plan is not None:
            self._each[i] = optimizer._last_norms[i]
            kept = optimizer._clipping.kept or {2.0: plan.measures()}  # or on the way
            for order, found in kept.items():
                self._measures.setdefault(order, {}).update(found)

    def end(self) -> None:
        """After the last step: the norms of all gradients together."""
        optimizer = self._optimizer
        clipping = optimizer._clipping
        if any(self._each):
            norm = self._joint(clipping.orders[0], None)
            optimizer.last_norm, optimizer._last_norms = norm, self._each
        for domain in clipping.memories:
            norm = self._joint(2.0, None if domain.one else domain.members)
            if math.isfinite(norm):
                optimizer.clip_history[domain.key] = [norm]

    def _joint(self, order: float, members: list[int] | None) -> float:
        """The norm of all parameters, or some, together, in their order."""
        found = self._measures.get(order, {})
        numbers = sorted(found if members is None else found.keys() & set(members))
        return joint_norm([found[i] for i in numbers], order) * self._factor
