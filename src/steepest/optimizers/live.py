"""What a group of parameters asks for at a step: hyper-parameters as numbers, stages, states."""

from collections.abc import Mapping
from typing import Any

from steepest import arrays, filters, regularize
from steepest.arrays import Array
from steepest.kernels.engine import UNIT_STAGE_LIMIT
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
    units: list[regularize.UnitStage]
    sign: float

    def __init__(self, optimizer: Any, group: Mapping[str, Any], count: int) -> None:
        self._seen: tuple[Any, ...] = ()
        self._variable = False
        self.states: tuple[str, ...] = ()
        """The state arrays: those of the rule, then those of stages."""
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
        self.update(optimizer, group, count)

    def update(self, optimizer: Any, group: Mapping[str, Any], count: int) -> None:
        """Evaluates and checks the group's hyper-parameters after `count` updates.

        Becomes `stale` if the plan is no longer right: for other arrays, units or clips.
        """
        seen = optimizer._hyper_values(group)
        try:
            if not self._variable and seen == self._seen:
                return
        except ValueError:
            pass  # an array, which does not say whether it equals a number: `settle` will
        names = optimizer._hyper_names
        h = {name: optimizer._settle(name, x, count) for name, x in zip(names, seen, strict=True)}
        given = dict(zip(names, seen, strict=True))
        optimizer.check(given)
        # A schedule may be 0 now and not later: what it needs is kept all along.
        h["states"] = optimizer.states(given)
        h["terms"] = regularize.terms(h["regularize"], count)
        h["masked"] = filters.masks(h["filter"]) is not None
        self._seen = ()  # whatever ends this early, the next step looks again
        self._stage(h, count)
        self.h = h
        self.sign = -1.0 if h["maximize"] else 1.0
        self._variable = any(variable(x) for x in seen)
        self._seen = seen

    def _stage(self, h: Mapping[str, Any], count: int) -> None:
        """Takes over the stages of filters, clips and penalties."""
        work = regularize.work(h)
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
        states = h["states"] + stage_arrays(h)
        axes = (*(axis for _, axis in making), *work.axes)
        masks = filters.masks(h["filter"])
        now = (states, axes, makes, h["clip"])
        if now != (self.states, self.axes, self.makes, self.clip):
            self.stale = True  # before anything differs, so that Ctrl-C leaves no old plan
        if filters.renewed(self.masks, masks):
            self.stale = self.other_masks = True
        elif masks is not None and masks.masks is None:
            self.other_masks = False
        place = {name: 2 + i for i, name in enumerate((*states, *makes))} | {None: 0}
        self.keep = work.keep
        self.before, self.after, self.late = (
            [(stage, numbers, place[own]) for stage, numbers, own in stages]
            for stages in (before + work.before, work.after, work.late)
        )
        self.units = units
        self.states, self.axes, self.makes, self.clip = now
        self.masks = masks or self.masks

    def check_axes(self, p: Array, name: str) -> None:
        """Raises ValueError where the parameter lacks an axis that a clip or penalty goes by."""
        for axis in self.axes:
            try:
                arrays.units(p, axis)
            except ValueError as error:
                raise ValueError(f"parameter {name!r}: {error}") from None
