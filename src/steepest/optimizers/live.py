"""What a group of parameters asks for at a step: hyper-parameters as numbers, stages, states."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steepest import arrays, regularize
from steepest.arrays import Array
from steepest.kernels.engine import UNIT_STAGE_LIMIT
from steepest.optimizers.clipping import clips
from steepest.optimizers.hyper import variable

__all__ = ["LiveGroup"]


@dataclass(frozen=True)
class Operands:
    """The arrays of the group's parameters that have the parameter's shape, and the stages that go
    by their numbers; one for parameters that the rule takes by elements, one for those that it
    takes by rows and columns."""

    bound: tuple[str, ...]
    """The states: the rule's and then those of stages."""
    taken: int
    """How many arrays the rule itself takes."""
    before: list["_Staged"]
    after: list["_Staged"]
    late: list["_Staged"]


_Staged = tuple[str, tuple[float, ...], int]
"""A stage as the plan takes it: name, coefficients, the number of its own array or 0."""


class LiveGroup:
    """What a live group asks for at a step; remembered while its hyper-parameters stay the same."""

    h: dict[str, Any]
    keep: float
    by_elements: Operands
    by_rows: Operands
    units: list[regularize.UnitStage]
    sign: float

    def __init__(self, rule: Any, group: Mapping[str, Any], count: int) -> None:
        self.rule = rule
        """The optimizer whose rule the group goes by."""
        self.together = rule.needs == "global"
        """Whether all groups of this rule go by the same sums and numbers."""
        self.in_c_order = rule.needs != "element-wise"
        """Whether arrays are walked in C order, which sums over them hang on."""
        self.shared: tuple[str, ...] = ()
        """The numbers that the rule keeps of the group."""
        self._kept: tuple[float, ...] = ()
        self._seen: tuple[Any, ...] = ()
        self._variable = False
        self.states: tuple[str, ...] = ()
        """The state arrays that a parameter may have: those of the rule, then those of stages."""
        self.of_stages: tuple[str, ...] = ()
        """Those of stages."""
        self.axes: tuple[int | None, ...] = ()
        """The axis of the units of each unit stage."""
        self.makes_factors = False
        """Whether the first unit stage makes factors of the gradient."""
        self.clip: Any = None
        self.blocks: str | None = None
        """What shape the states of rows have, where a rule lets that be chosen."""
        self.stale = True
        """Whether the group has changed since the plan was built."""
        self.update(group, count)

    def update(self, group: Mapping[str, Any], count: int) -> None:
        """Evaluates and checks the group's hyper-parameters after `count` updates.

        Becomes `stale` if the plan is no longer right: for other arrays, units or clips.
        """
        rule = self.rule
        if "rule" in group and group["rule"] != rule.rule:
            raise ValueError(
                f"rule = {group['rule']!r}: the group was made for {rule.rule!r}; "
                "a group's rule cannot change"
            )
        if self.shared:
            self._kept = tuple(self.number(key, group.get(key)) for key in self.shared)
        seen = rule._hyper_values(group)
        try:
            if not self._variable and seen == self._seen:
                self.h["updates"] = count + 1
                return
        except ValueError:
            pass  # an array, which does not say whether it equals a number: `settle` will
        names = rule._hyper_names
        h = {name: rule._settle(name, x, count) for name, x in zip(names, seen, strict=True)}
        given = dict(zip(names, seen, strict=True))
        rule.check(given)
        # A schedule may be 0 now and not later: what it needs is kept all along.
        h["states"] = rule.states(given)
        h["beside"] = rule.beside(given)
        h["updates"] = count + 1
        self.shared = rule.shared(given)
        h["terms"] = regularize.terms(h["regularize"], count)
        self._seen = ()  # whatever ends this early, the next step looks again
        self._stage(h, count)
        self.h = h
        self.sign = -1.0 if h["maximize"] else 1.0
        self._variable = any(variable(x) for x in seen)
        self._seen = seen

    def _stage(self, h: dict[str, Any], count: int) -> None:
        """Takes over the stages of clips and penalties."""
        work = regularize.work(h)
        h["decay"] = work.decay
        before = [stage for clip in clips(h["clip"]) for stage in clip.stages(count)]
        making = [unit for clip in clips(h["clip"]) for unit in clip.units(count)]
        units = [stage for stage, _ in making] + work.units
        if len(units) > UNIT_STAGE_LIMIT:
            kinds = ", ".join(kind for kind, _ in units)
            raise ValueError(
                f"clip and regularize go by units {len(units)} times ({kinds}); "
                f"expected at most {UNIT_STAGE_LIMIT} times"
            )
        states = (*h["states"], *h["beside"], *work.arrays)
        axes = (*(axis for _, axis in making), *work.axes)
        now = (states, axes, bool(making), h["clip"], h.get("blocks"))
        if now != (self.states, self.axes, self.makes_factors, self.clip, self.blocks):
            self.stale = True  # before anything differs, so that Ctrl-C leaves no old plan
        rule = self.rule
        stages = (before + work.before, work.after, work.late)
        self.by_elements = (
            _operands(2, (), work.arrays, stages)
            if rule.prepares
            else _operands(0, h["states"], work.arrays, stages)
        )
        self.by_rows = _operands(rule.factors, h["beside"], work.arrays, stages)
        self.keep = 1.0 if rule.own_decay else work.keep
        self.units = units
        self.of_stages = work.arrays
        self.states, self.axes, self.makes_factors, self.clip, self.blocks = now

    def names(self, p: Array) -> tuple[str, ...]:
        """The state arrays of the parameter p: those of the rule, then those of stages."""
        matrices = self.rule.matrices(p, self.h)
        own = self.h["states"] if matrices is None else (*matrices.states, *self.h["beside"])
        return (*own, *self.of_stages)

    def program(self, plan: Any, row: int, t: int, domain: int, by_rows: bool) -> None:
        """Tells the plan what to do for the group's parameters at their t-th step; for those that
        the rule takes by elements, or for those that it takes by rows and columns."""
        x = self.by_rows if by_rows else self.by_elements
        self.h["by_rows"] = by_rows
        rule, h = ("take", ()) if self.rule.prepares else self.rule.coefficients(self.h, t)
        plan.program(
            row, rule, h, self.keep, x.before, x.after, self.units, x.late,
            domain, self.together, self._kept, self.rule.prepares,
        )  # fmt: skip

    def number(self, key: str, x: Any, group: int | None = None) -> float:
        """A number that the rule keeps of the group, checked."""
        low = self.rule._ranges.get(key, (-math.inf, math.inf, False))[0]
        if isinstance(x, (float, int)) and not x < low:  # what came of bad gradients may be NaN
            return float(x)
        where = "" if group is None else f" of group {group}"
        raise ValueError(f"{key}{where} = {x!r}: expected a number from {low:g}")

    def checked(self, x: Any, p: Array, name: str, key: str) -> Array:
        """x as a state array of the parameter p. Raises TypeError or ValueError if it is not."""
        if self.rule.prepares and key in self.h["states"]:
            return arrays.like(x, self.rule.initial(key, p, self.h), name, key)
        matrices = self.rule.matrices(p, self.h)
        if matrices is not None and key in matrices.states:
            return arrays.shaped(x, p.dtype, matrices.states[key], name, key)
        return arrays.state(x, p, name, key)

    def check_axes(self, p: Array, name: str) -> None:
        """Raises ValueError where the parameter lacks an axis that a clip or penalty goes by."""
        for axis in self.axes:
            try:
                arrays.units(p, axis)
            except ValueError as error:
                raise ValueError(f"parameter {name!r}: {error}") from None


def _operands(
    first: int, own: tuple[str, ...], of_stages: tuple[str, ...], stages: Any
) -> Operands:
    """The rule takes `first` arrays that are no states, and then its own; stages are (name,
    numbers, name of its own array or None)."""
    bound = (*own, *of_stages)
    place = {name: 2 + first + i for i, name in enumerate((*bound, "factors"))} | {None: 0}
    before, after, late = (
        [(stage, numbers, place[own]) for stage, numbers, own in some] for some in stages
    )
    return Operands(bound, first + len(own), before, after, late)
