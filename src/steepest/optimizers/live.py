"""What a group of parameters asks for at a step: hyper-parameters as numbers, stages, states."""

import math
from collections.abc import Mapping
from typing import Any

from steepest import arrays, average, decay, filters, regularize
from steepest.arrays import Array
from steepest.kernels.engine import SPARE_OPERAND, UNIT_STAGE_LIMIT
from steepest.optimizers.clipping import clips
from steepest.optimizers.hyper import variable

__all__ = ["LiveGroup", "stage_arrays"]

_Staged = tuple[str, tuple[float, ...], int]
"""A stage as the plan takes it: name, coefficients, the number of its own array or 0."""


def stage_arrays(h: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the arrays that stages need, besides the rule's states."""
    return regularize.arrays(h) + filters.arrays(h["filter"])


class LiveGroup:
    """What a live group asks for at a step; remembered while its hyper-parameters stay the same."""

    h: dict[str, Any]
    keep: float
    before: list[_Staged]
    after: list[_Staged]
    late: list[_Staged]
    bound: tuple[str, ...]
    taken: int
    units: list[regularize.UnitStage]
    sign: float
    _place: dict[str | None, int]
    """The operand number of each array."""
    _averages: bool
    """Whether the group has stages that go by a parameter's own count of steps."""
    _projects: bool
    """Whether a parameter is whole only after the stages of units."""

    def __init__(self, rule: Any, group: Mapping[str, Any], count: int) -> None:
        self.rule = rule
        """The optimizer whose rule the group goes by."""
        self.together = rule.needs == "global"
        """Whether all groups of this rule go by the same sums and numbers."""
        self.in_c_order = False
        """Whether arrays are walked in C order, which sums over them hang on."""
        self.shared: tuple[str, ...] = ()
        """The numbers that the rule keeps of the group."""
        self._kept: tuple[float, ...] = ()
        self._seen: tuple[Any, ...] = ()
        self._variable = False
        self.states: tuple[str, ...] = ()
        """The state arrays: those of the rule, then those of stages; see ``keys``."""
        self._shaping: tuple[Any, ...] | None = None
        """The values of the rule's ``fixed`` hyper-parameters, once there are some."""
        self.axes: tuple[int | None, ...] = ()
        """The axis of the units of each unit stage."""
        self.makes: tuple[str, ...] = ()
        """The arrays that the first unit stages make, of a number for each unit."""
        self.clip: Any = None
        self.masks: filters.mask | None = None
        """The filter that has masked last, whose masks are in the state."""
        self.other_masks = False
        """Unless it has taken the place of another since the plan was built."""
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
        self._check_fixed(h)
        if not rule.may_be_moved:
            decay.check_movable(rule.rule, given)
        if not rule.additive:
            decay.check_additive(rule.rule, given)
        decay.check_cautious(rule.rule, given, rule.additive)
        if rule.own_decay:
            decay.check_own(rule.rule, given)
        # A schedule may be 0 now and not later: what it needs is kept all along.
        h["states"] = rule.states(given)
        h["updates"] = count + 1
        self._given = given
        self.shared = rule.shared(given)
        h["terms"] = regularize.terms(h["regularize"], count)
        h["masked"] = filters.masks(h["filter"]) is not None
        self._seen = ()  # whatever ends this early, the next step looks again
        self._stage(h, count)
        self.h = h
        self.sign = -1.0 if h["maximize"] else 1.0
        self._variable = any(variable(x) for x in seen)
        self._seen = seen

    def _check_fixed(self, h: Mapping[str, Any]) -> None:
        """Raises ValueError where a hyper-parameter that gives states their shapes has changed."""
        shaping = tuple(h[key] for key in self.rule.fixed)
        if self._shaping is None:
            self._shaping = shaping
        for key, now, before in zip(self.rule.fixed, shaping, self._shaping, strict=True):
            if now != before:
                raise ValueError(
                    f"{key} = {now!r}: the group's states were made for {before!r}, which cannot "
                    "change; make a new optimizer, or add the parameters as a group with the other"
                )

    def keys(self, p: Array) -> tuple[str, ...]:
        """The state arrays of the parameter p: those of the rule, then those of stages."""
        own = self.rule.shape_states(p, self._given)
        return (*self.h["states"], *own, *self._around) if own else self.states

    def rule_keys(self, p: Array) -> tuple[str, ...]:
        """The state arrays that the rule has of the parameter p."""
        own: tuple[str, ...] = self.h["states"] + self.rule.shape_states(p, self._given)
        return own

    def of_rule(self, key: str) -> bool:
        """Whether a state array is the rule's, and not a stage's."""
        return key in self.h["states"] or key not in self._around

    def _stage(self, h: dict[str, Any], count: int) -> None:
        """Takes over the stages of filters, clips and penalties."""
        work = regularize.work(h)
        h["decay"] = work.decay
        around = filters.in_order(h["filter"], clips(h["clip"]))
        before = [stage for x in around for stage in x.stages(count)]
        making = [unit for x in around for unit in x.units(count)]
        makes = tuple(x.makes for x in around if x.makes)
        units = [stage for stage, _ in making] + work.units
        if len(units) > UNIT_STAGE_LIMIT:
            kinds = ", ".join(kind for kind, _ in units)
            raise ValueError(
                f"clip, filter and regularize go by units {len(units)} times ({kinds}); "
                f"expected at most {UNIT_STAGE_LIMIT} times"
            )
        self._around = stage_arrays(h)
        states = h["states"] + self._around
        axes = (*(axis for _, axis in making), *work.axes)
        masks = filters.masks(h["filter"])
        in_c_order = self.rule.needs != "element-wise" or any(x.in_c_order for x in h["filter"])
        now = (states, axes, makes, h["clip"], in_c_order)
        if now != (self.states, self.axes, self.makes, self.clip, self.in_c_order):
            self.stale = True  # before anything differs, so that Ctrl-C leaves no old plan
        if filters.renewed(self.masks, masks):
            self.stale = self.other_masks = True
        elif masks is not None and masks.masks is None:
            self.other_masks = False
        rule = self.rule
        self.bound = stage_arrays(h) if rule.prepares else states
        self.taken = 2 if rule.prepares else len(h["states"])
        operands = (*(("", "") if rule.prepares else ()), *self.bound, *makes)
        place = {name: 2 + i for i, name in enumerate(operands)}
        place |= {None: 0, "spare": SPARE_OPERAND}
        self.keep = 1.0 if rule.own_decay else work.keep
        self.before, self.after, self.late = (
            [(stage, numbers, place[own]) for stage, numbers, own in stages]
            for stages in (before + work.before, work.after, work.late)
        )
        self._place, self._projects = place, bool(work.units)
        self._averages = bool(average.arrays(h))
        self.units = units
        self.states, self.axes, self.makes, self.clip, self.in_c_order = now
        self.masks = masks or self.masks

    def program(self, plan: Any, row: int, count: int, t: int, domain: int) -> None:
        """Tells the plan what to do for the group's parameters at their t-th step."""
        rule, h = ("take", ()) if self.rule.prepares else self.rule.coefficients(self.h, t)
        after, late = self._closing(count, t)
        plan.program(
            row, rule, h, self.keep, self.before, after, self.units, late,
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
        if self.rule.prepares and self.of_rule(key):
            return arrays.like(x, self.rule.initial(key, p, self.h), name, key)
        return arrays.state(x, p, name, key)

    def _closing(self, count: int, t: int) -> tuple[list[_Staged], list[_Staged]]:
        """The stages after the rule and after those of units, at a parameter's t-th step."""
        if not self._averages:
            return self.after, self.late
        last = [
            (stage, numbers, self._place[own])
            for stage, numbers, own in average.stages(self.h, count, t)
        ]
        if self._projects:
            return self.after, self.late + last
        return self.after + last, self.late

    def check_axes(self, p: Array, name: str) -> None:
        """Raises ValueError where the rule is not for the parameter, or the parameter lacks an axis
        that a clip or penalty goes by."""
        self.rule.check_parameter(p, name)
        for axis in self.axes:
            try:
                arrays.units(p, axis)
            except ValueError as error:
                raise ValueError(f"parameter {name!r}: {error}") from None
