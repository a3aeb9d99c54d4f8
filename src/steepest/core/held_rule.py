"""A rule as an optimizer holds it: its class, and the defaults of the groups that it steps."""

import math
import operator
import sys
from collections.abc import Callable, Mapping
from typing import Any

from steepest.core.constructor import EMPTY
from steepest.core.hyper_parameters import Check, range_of
from steepest.core.rule import OWN, RULES, Rule

__all__ = ["HeldRule", "checked_defaults"]


class HeldRule:
    """A rule's class with defaults; everything that the class says of the rule, it says too."""

    def __init__(self, cls: type[Rule], defaults: dict[str, Any], strict: bool = True) -> None:
        self.cls = cls
        self.defaults = defaults
        self.rule = cls.rule
        self.hyper_names = tuple(cls.checks)
        """The names of the hyper-parameters, in order."""
        self.hyper_values = operator.itemgetter(*self.hyper_names)
        """What a group has for these."""
        self.judge(strict, strict)

    def judge(self, in_range: bool, checks: bool) -> None:
        """Whether numbers must lie in their ranges, and go together as ``check`` says: not what
        stands in torch's groups later."""
        self._in_range, self.checks_together = in_range, checks
        self._checks: Mapping[str, Check] = self.cls.checks if in_range else self.cls.lenient

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what Python looks for in an object
            raise AttributeError(name)
        return getattr(self.cls, name)

    def __reduce__(self) -> Any:
        return _held, (self.cls, self.defaults, self._in_range, self.checks_together)

    def checked(self, name: str, value: Any, count: int | None) -> Any:
        """The checked value of a hyper-parameter after `count` updates; None keeps schedules."""
        check = self._checks[name]
        return check.check(value, "", name) if count is None else check.at(value, count, "", name)

    def bounds(self, name: str) -> tuple[float, float]:
        """Between which numbers, the first allowed, one, or each of several, needs no further
        check; between none for what may be something else than numbers and schedules."""
        found = range_of(self._checks[name])
        if found is None or found.above:
            return math.inf, -math.inf
        return max(found.low, -sys.float_info.max), found.high

    def all_checked(self, hyper: Mapping[str, Any]) -> dict[str, Any]:
        """Checked hyper-parameters, schedules as they are."""
        found = {name: self.checked(name, value, None) for name, value in hyper.items()}
        if self.checks_together:
            self.cls.check(found)
        return found

    def group_names(self) -> tuple[str, ...]:
        """The keys that a group of this rule has a use for."""
        return (*self.hyper_names, *self.cls.shared(self.defaults))

    def at_steps(self) -> Callable[[Mapping[str, Any], int], tuple[str, tuple[float, ...]]]:
        """The function that gives the kernel and its coefficients for the t-th step."""
        return self._checked_coefficients if self.cls.checked_at_steps else self.cls.coefficients

    def _checked_coefficients(self, h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        if self.checks_together:
            self.cls.check(h)
        return self.cls.coefficients(h, t)


def _held(cls: type[Rule], defaults: dict[str, Any], in_range: bool, checks: bool) -> HeldRule:
    rule = HeldRule(cls, defaults)
    rule.judge(in_range, checks)
    return rule


def checked_defaults(cls: type[Rule], given: Mapping[str, Any]) -> dict[str, Any]:
    """A class's hyper-parameters as they are given, or by default, in order and checked."""
    chosen = {name: given.get(name, cls.fields[name].default) for name in cls.checks}
    missing = [name for name, x in chosen.items() if x is EMPTY]
    if missing:
        raise TypeError(f"{cls.__name__} needs {', '.join(missing)}")
    checked = {name: check.check(chosen[name], "", name) for name, check in cls.checks.items()}
    cls.check(checked)
    return checked


def other_rule(name: str, defaults: Mapping[str, Any], group: Mapping[str, Any]) -> HeldRule:
    """Another rule for groups to use: with its own defaults, and the options that all rules share
    as in `defaults`; `group` has what has no default. Raises ValueError for an unknown rule."""
    cls: type[Rule] | None = RULES.get(name, OWN.get(name))
    if cls is None:
        raise ValueError(f"rule {name!r} of a group: expected one of {', '.join([*RULES, *OWN])}")
    needed = {x.name: group[x.name] for x in cls.fields.values()
              if x.default is EMPTY and x.name in group}  # fmt: skip
    own = checked_defaults(cls, needed)
    shared = {x.name: defaults[x.name] for x in cls.fields.values() if x.option and x.check}
    return HeldRule(cls, own | shared | {key: own[key] for key in ("decay_mode", "peak_lr")})
