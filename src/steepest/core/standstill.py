"""A warning where parameters of 16 bits stand still, because their updates are rounded away.

A parameter is looked at in a few of its steps, before and after, at its first elements. It stands
still if nearly all of those that have a gradient are what they were. One that does so at two looks
in a row, at a rate that has not grown between them, is told of, once for each optimizer. So rates
that warm up, or come to 0 at the end, are no reason.
"""

import inspect
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from steepest.core.group_program import GroupProgram
from steepest.kernels.engine import Plan
from steepest.memory import arrays, formats
from steepest.memory.arrays import Array

__all__ = ["Look", "Standstill", "rounds_away"]

_STEPS = frozenset({10, 100, 1000, 10_000})  # of a parameter's own count
_MOST = 4096  # elements that are looked at
_SHARE = 0.9  # of them: a parameter stands still if as many do


class Look(NamedTuple):
    """A parameter as it was before a step."""

    name: str
    t: int
    rate: float
    p: Array
    before: Array
    """Its first numbers."""
    pulled: Array
    """Which of these have a gradient and are not 0, where numbers are dense, and where masks and
    penalties hold them."""


class Standstill:
    """What was seen of an optimizer's parameters that may stand still."""

    def __init__(self) -> None:
        self.told = False
        self._rates: dict[str, float] = {}
        """The rates of those that stood still when they were looked at last."""

    def begin(
        self,
        plan: Plan,
        rows: Sequence[tuple[int, int, bool]],
        flat: Sequence[Any],
        rounded: Collection[int],
        places: Sequence[tuple[GroupProgram, str]],
    ) -> list[Look]:
        """The looks that are due in this step, at those of `rounded`."""
        looks: list[Look] = []
        if self.told:
            return looks
        for _, t, _ in rows:
            if t in _STEPS:
                break
        else:
            return looks
        for i, t in plan.steps():
            if i in rounded and t in _STEPS:
                program, name = places[i]
                rate, p = program.h.get("lr"), plan.arrays(i)[0]
                g = arrays.gradient(flat[i], p, name)
                before, pull = (formats.decoded(x.flat[:_MOST]) for x in (p, g))
                looks.append(
                    Look(
                        name, t, rate if isinstance(rate, float) else 1.0, p, before,
                        (pull != 0) & (before != 0),
                    )
                )  # fmt: skip
        return looks

    def end(self, looks: Sequence[Look], state: Mapping[str, Mapping[str, Any]]) -> None:
        """Looks again, after the step; warns with a UserWarning."""
        found = []
        for look in looks:
            if int(state[look.name]["step"]) < look.t:  # the step was skipped
                continue
            same = look.before == formats.decoded(look.p.flat[:_MOST])
            count = int(np.count_nonzero(look.pulled))
            share = int(np.count_nonzero(same & look.pulled)) / max(count, 1)
            last = self._rates.pop(look.name, 0.0)
            if share >= _SHARE and look.rate > 0.0:
                self._rates[look.name] = look.rate
                if look.rate <= last:
                    found.append((share, look))
        if found:
            self.told = True
            share, look = max(found, key=lambda pair: pair[0])
            self._warn(look, share, len(found) - 1)

    def _warn(self, look: Look, share: float, others: int) -> None:
        name = formats.of(look.p).name
        master = "split16" if name == "bfloat16" else "float32"
        also = f" (and {others} more)" if others else ""
        warnings.warn(
            f"parameter {look.name!r}{also} stands still: in step {look.t} {share:.0%} of its "
            f"elements that have a gradient did not move, because updates of less than half a unit "
            f'of {name} are rounded away. Train it with master="{master}", with '
            'rounding="stochastic", or with a larger learning rate',
            UserWarning,
            stacklevel=_calls_inside(),
        )


def rounds_away(program: GroupProgram, p: Array) -> bool:
    """Whether small updates of the parameter are lost, and nothing else keeps elements in place."""
    h = program.h
    free = {"box", "simplex"}.isdisjoint(h["terms"])
    rounds = not formats.borrowed(p) and not program.master_keys(p)
    return rounds and free and h.get("rounding") != "stochastic"


def _calls_inside() -> int:
    """How many calls there are from the caller of this package to the caller of this function."""
    frame, depth = inspect.currentframe(), 0
    while frame is not None and frame.f_globals.get("__name__", "").startswith("steepest."):
        frame, depth = frame.f_back, depth + 1
    return depth
