"""A kernel over arrays that are not the parameters of a step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from steepest.core.state import counters
from steepest.kernels import dispatch, machine, threads
from steepest.kernels.engine import LARGE_STEP, Plan
from steepest.memory import arrays, formats
from steepest.memory.arrays import Array

__all__ = ["Norm", "Perturbation", "take_in"]


_Stages = list[tuple[str, tuple[float, ...], int]]

# What comes before a move: lists that stay the same objects are not looked at again.
_NONE: list[Any] = []
_KEPT: dict[tuple[float, bool], _Stages] = {
    (past, adaptive): [("keep", (past,), 2), *[("times_square", (), 0)] * adaptive]
    for past in (0.0, 1.0)
    for adaptive in (False, True)
}


def _planned(targets: Sequence[Array], groups: Sequence[int]) -> Plan:
    plan = Plan(dispatch.current, len(targets), np.zeros((), np.int64))
    for group, x, step in zip(groups, targets, counters(len(targets)), strict=True):
        plan.add(group, (x,), step, 0, arrays.layout((x,), x))
    return plan


def take_in(
    targets: Mapping[str, Array],
    given: list[Any],
    groups: Sequence[int],
    kernel: Callable[[int], tuple[str, tuple[float, ...]]],
    what: str,
    state: str,
) -> None:
    """Changes arrays by a kernel that takes in another array for each, or leaves it for None.

    `targets` are by the names of their parameters; `kernel` gives the name and the coefficients for
    the arrays of a group, of which `groups` has the number for each. `what` is that which is given,
    and `state` what the targets are, both for messages. It is all or nothing. Raises TypeError or
    ValueError for what does not fit or shares memory.
    """
    names, into = list(targets), list(targets.values())
    plan = _planned(into, groups)
    plan.guard(arrays.disjoint_bounds(list(targets.items())))
    for i in plan.resolve(into, given) or ():
        x = given[i] = arrays.gradient(given[i], into[i], names[i], what)
        if any(arrays.share_memory(x, target) for target in into):
            raise ValueError(
                f"{what} of parameter {names[i]!r} shares memory with a state {state!r}; "
                "give a copy"
            )
        plan.bind_gradient(i, x, arrays.layout((into[i],), x))
    for row, (group, _, _) in enumerate(plan.rows()):
        plan.program(row, *kernel(group), 1.0, [], [], [], [])
    plan.commit(threads.workers(plan.elements()))


class Perturbation:
    """Parameters that are moved along their gradients, and put back to the same bits.

    The way there keeps a copy of each, in arrays of its own; each way is one sweep.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Of all parameters of the groups; those that are maximized move against gradients."""
        self.params = [p for group in groups for p in group["params"]]
        self._names = names = [name for group in groups for name in group["param_names"]]
        self._signs = _signs(groups)
        self._climbs = [climbs for count, climbs in self._signs for _ in range(count)]
        self.away = False
        """Whether they are moved."""
        params = self.params
        own = [arrays.parameter(p, name) for p, name in zip(params, names, strict=True)]
        self._own, self._kernels = own, dispatch.current
        self._kept = [arrays.zeros_like(p, dtype=p.dtype) for p in own]
        self._there, self._back = self._plan(True), self._plan(False)
        self._there.guard(arrays.disjoint_bounds(list(zip(names, own, strict=True))))
        self._moved: list[Any] = [None] * len(own)
        """The copy of each that is moved."""
        self._selected, self._ready = self._there.selection, -1
        """What `_moved`, and what the way back is programmed for, were made for."""
        self._rows: list[tuple[int, int, bool]] = []

    def _plan(self, there: bool) -> Plan:
        plan = Plan(dispatch.current, len(self._own), np.zeros((), np.int64))
        each = zip(self._climbs, self._own, self._kept, self.params, counters(len(self._own)),
                   strict=True)  # fmt: skip
        for climbs, p, kept, owner, step in each:
            bound, blocks = (p, kept) if there else (p,), formats.computed(p)
            plan.add(int(climbs), bound, step, 0, arrays.layout(bound, p, blocks=blocks),
                     owner=owner)  # fmt: skip
        if not there:
            for i, (p, kept) in enumerate(zip(self._own, self._kept, strict=True)):
                layout = arrays.layout((p,), kept, blocks=formats.computed(p))
                plan.bind_gradient(i, kept, layout)
        return plan

    def bind(self, groups: Sequence[Mapping[str, Any]], grads: list[Any]) -> bool:
        """Takes gradients, or None for parameters that stay where they are. False where these are
        other groups or parameters by now, or lie elsewhere. Raises TypeError or ValueError for
        gradients that do not fit."""
        if self._kernels is not dispatch.current or _signs(groups) != self._signs:
            return False
        params = (
            groups[0]["params"]
            if len(groups) == 1
            else [p for group in groups for p in group["params"]]
        )
        plan = self._there
        stale = plan.resolve(params, grads)
        if stale is None:
            return False
        for i in stale:
            p = self._own[i]
            g = grads[i] = arrays.gradient(grads[i], p, self._names[i])
            if (
                g.size
                and plan.overlaps(*arrays.byte_bounds(g))
                and any(arrays.share_memory(g, x) for x in self._own)
            ):
                raise ValueError(
                    f"gradient of parameter {self._names[i]!r} shares memory with a parameter; "
                    "give a copy"
                )
            bound = (p, self._kept[i])
            plan.bind_gradient(i, g, arrays.layout(bound, g, blocks=formats.computed(p)))
        self._rows = plan.rows()
        if plan.selection != self._selected:
            pairs = zip(grads, self._kept, strict=True)
            self._moved = [None if g is None else kept for g, kept in pairs]
            self._selected = plan.selection
        return True

    @machine.in_default_mode
    def norm(self) -> float:
        """The norm of the gradients that were bound."""
        return self._there.norm(threads.workers(self._there.elements()))

    @machine.in_default_mode
    def move(self, scale: float, adaptive: bool) -> None:
        """Moves the parameters by that multiple of their gradients, or of p^2 times these."""
        plan = self._there
        before = _KEPT[_past(plan), adaptive]
        for row, (climbs, _, _) in enumerate(self._rows):
            rate = scale if climbs else -scale
            plan.program(row, "sgd", (rate,), 1.0, before, _NONE, _NONE, _NONE)
        workers = threads.workers(plan.elements())
        machine.at_once([(plan.commit, (workers,)), (setattr, (self, "away", True))])

    def before(self) -> list[tuple[Any, Array]] | None:
        """The parameters that are moved, with copies of what they were; None if none is."""
        if not self.away:
            return None
        pairs = zip(self.params, self._moved, strict=True)
        return [(p, kept.copy()) for p, kept in pairs if kept is not None]

    def replace(self, before: Array, now: Array) -> None:
        """Takes another array as the parameter that was moved."""
        self.params = [now if p is before else p for p in self.params]

    @machine.in_default_mode
    def restore(self) -> None:
        """Puts them back. Raises RuntimeError for one of another shape or dtype by now, when all
        others are back."""
        plan = self._back
        if self._ready != self._selected or not plan.still(self.params):
            if plan.resolve(self.params, list(self._moved)) != []:  # they lie elsewhere by now
                self._restore_each()
                return
            for row in range(len(plan.rows())):
                plan.program(row, "assign", (_past(plan),), 1.0, _NONE, _NONE, _NONE, _NONE)
            self._ready = self._selected
        workers = threads.workers(plan.elements())
        machine.at_once([(plan.commit, (workers,)), (setattr, (self, "away", False))])

    def _restore_each(self) -> None:
        """The same where they are now."""
        others = []
        for p, name, kept in zip(self.params, self._names, self._moved, strict=True):
            if kept is None:
                continue
            now = arrays.parameter(p, name)
            if (now.shape, now.dtype) == (kept.shape, kept.dtype):
                now[...] = kept
            else:
                others.append(f"{name!r} has shape {now.shape} and dtype {now.dtype}")
        self.away = False
        if others:
            raise RuntimeError(
                f"parameters changed while they were perturbed, and cannot be put back: {others[0]}"
            )


def _signs(groups: Sequence[Mapping[str, Any]]) -> list[tuple[int, bool]]:
    """For each group, how many parameters it has, and whether these are maximized."""
    return [(len(group["params"]), bool(group["maximize"])) for group in groups]


def _past(plan: Plan) -> float:
    """Whether a sweep is better written past the caches, as a coefficient."""
    return 1.0 if plan.elements() >= LARGE_STEP else 0.0


class Norm:
    """The Euclidean norm of all elements of some arrays."""

    def __init__(self, of: list[Array]) -> None:
        self._of = of
        self._plan: Plan | None = None

    def measure(self) -> float:
        """The norm as it is now: one sweep that only reads."""
        plan = self._plan
        if plan is None or plan.resolve(self._of, list(self._of)) is None:
            self._plan = plan = _planned(self._of, [0] * len(self._of))
            plan.resolve(self._of, list(self._of))
        plan.rows()
        return plan.norm(threads.workers(plan.elements()))
