"""Frozen values with checked fields, each a number or a schedule: what clips and penalties are."""

import math
import numbers
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

__all__ = ["Check", "Number", "Value", "axis", "count", "flag", "number", "real", "whole"]

Number = float | Callable[[int], float]
Check = Callable[[Any], Any]
"""Returns the settled value of a field. Raises TypeError or ValueError saying what is expected."""


def number(
    low: float = 0.0, high: float = math.inf, *, above: bool = False, finite: bool = True
) -> Check:
    """A number from `low` (`above`: greater than it) to `high`; infinite only if not `finite`."""
    if high < math.inf:
        expected = f"a number in {'(' if above else '['}{low:g}, {high:g}]"
    else:
        expected = f"a number {'greater than' if above else 'of at least'} {low:g}"

    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (numbers.Real, float)):
            raise TypeError(f"expected {expected}")
        try:
            x = float(value)
        except OverflowError:  # an integer beyond double
            raise ValueError(f"expected {expected}") from None
        if not low <= x <= high or (above and x == low) or (finite and x == math.inf):
            raise ValueError(f"expected {expected}")
        return x

    return check


def whole(low: int) -> Check:
    """An integer of at least `low`."""

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise TypeError(f"expected an integer of at least {low}")
        if value < low:
            raise ValueError(f"expected an integer of at least {low}")
        return int(value)

    return check


def flag(value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError("expected True or False")
    return value


def real(name: str, value: Any, expected: str, holds: Callable[[float], bool]) -> float:
    """An argument as a float, also an array of one number without axes.

    Raises TypeError for what is no real number, ValueError where it does not hold what is expected.
    """
    settled = value.item() if getattr(value, "ndim", None) == 0 else value
    if isinstance(settled, bool) or not isinstance(settled, (numbers.Real, float)):
        raise TypeError(f"{name} = {value!r}: expected {expected}")
    try:
        x = float(settled)
        if holds(x):
            return x
    except OverflowError:  # an integer beyond double
        pass
    raise ValueError(f"{name} = {value!r}: expected {expected}")


def count(name: str, value: Any, low: int) -> int:
    """An argument as an integer not below `low`. Raises TypeError or ValueError."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} = {value!r}: expected an integer") from None
    if number < low:
        raise ValueError(f"{name} = {number}: expected {low} or more")
    return number


def axis(value: Any) -> int | None:
    """An axis, or None for the whole array."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, numbers.Integral)):
        raise TypeError("expected the number of an axis, or None for the whole array")
    return None if value is None else int(value)


@dataclass(frozen=True)
class Value:
    """A value that checks its fields by `checks`. Fields may be schedules, but for the `fixed`."""

    checks: ClassVar[Mapping[str, Check]] = {}
    fixed: ClassVar[frozenset[str]] = frozenset()
    in_state: ClassVar[frozenset[str]] = frozenset()
    """Fields that become part of an optimizer's state, and are saved there."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if not callable(value) or f.name in self.fixed:
                object.__setattr__(self, f.name, self._checked(f.name, value))

    def _checked(self, name: str, value: Any) -> Any:
        try:
            return self.checks[name](value)
        except (TypeError, ValueError) as error:
            message = f"{type(self).__name__}: {name} = {value!r}: {error}"
            raise type(error)(message) from None

    def at(self, name: str, count: int) -> float:
        """The value of a field after `count` updates."""
        value = getattr(self, name)
        if type(value) is float:
            return value
        return float(self._checked(name, value(count))) if callable(value) else float(value)

    @property
    def variable(self) -> bool:
        """Whether a field is a schedule."""
        return any(callable(getattr(self, f.name)) for f in fields(self))
