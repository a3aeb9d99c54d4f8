"""A kernel over arrays that are not the parameters of a step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from steepest.core.state import counters
from steepest.kernels import dispatch, threads
from steepest.kernels.engine import Plan
from steepest.memory import arrays
from steepest.memory.arrays import Array

__all__ = ["Norm", "take_in"]


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
        return plan.norms(threads.workers(plan.elements()))[0]
