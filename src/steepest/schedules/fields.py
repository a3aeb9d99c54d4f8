"""What the fields of a schedule may be: the types that check and convert their values.

A field's type carries its range, so that most schedules need no checks of their own:

    lr: Level        a finite number >= 0
    steps: Length    an integer >= 1

Every value is a number, a string, a truth value or a tuple of those, so a schedule can be written
down as its name and its fields.
"""

import math
import numbers
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Protocol

__all__ = [
    "Check",
    "Choice",
    "Count",
    "Factor",
    "Flag",
    "Inside",
    "Length",
    "Lengths",
    "Level",
    "Many",
    "Number",
    "Numbers",
    "Range",
    "Share",
]


class Check(Protocol):
    """Something that checks a value for a field, and says what it expects."""

    def check(self, value: Any, owner: str, name: str) -> Any:
        """The value as it is stored. Raises TypeError or ValueError naming owner and field."""


@dataclass(frozen=True)
class Range:
    """Finite numbers of one kind, from `low` to `high`; with `open`, the limits are excluded."""

    kind: Callable[[Any], int | float]
    low: float = -math.inf
    high: float = math.inf
    open: bool = False

    def __str__(self) -> str:
        noun = "an integer" if self.kind is int else "a finite number"
        if self.high < math.inf:
            left, right = "()" if self.open else "[]"
            return f"{noun} in {left}{self.low:g}, {self.high:g}{right}"
        if self.low > -math.inf:
            return f"{noun} {'>' if self.open else '>='} {self.low:g}"
        return noun

    def check(self, value: Any, owner: str, name: str) -> int | float:
        number = numbers.Integral if self.kind is int else numbers.Real
        if isinstance(value, bool) or not isinstance(value, number):
            raise TypeError(f"{owner}: {name} = {value!r}: expected {self}")
        try:
            converted = self.kind(value)
        except OverflowError:  # an integer beyond every float
            converted = math.inf
        outside = not self.low <= converted <= self.high or converted in (math.inf, -math.inf)
        if outside or (self.open and converted in (self.low, self.high)):
            raise ValueError(f"{owner}: {name} = {value!r}: expected {self}")
        return converted


@dataclass(frozen=True)
class Choice:
    """One of a few strings."""

    names: tuple[str, ...]

    def check(self, value: Any, owner: str, name: str) -> str:
        if value not in self.names:
            expected = ", ".join(map(repr, self.names))
            raise ValueError(f"{owner}: {name} = {value!r}: expected one of {expected}")
        return str(value)


@dataclass(frozen=True)
class Truth:
    """True or False."""

    def check(self, value: Any, owner: str, name: str) -> bool:
        if not isinstance(value, (bool, int)) or value not in (False, True):
            raise TypeError(f"{owner}: {name} = {value!r}: expected True or False")
        return bool(value)


@dataclass(frozen=True)
class Many:
    """A tuple of at least `least` values, made from any list or array of them."""

    of: Check
    least: int = 1
    increasing: bool = False

    def check(self, value: Any, owner: str, name: str) -> tuple[Any, ...]:
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise TypeError(f"{owner}: {name} = {value!r}: expected a tuple")
        found = tuple(self.of.check(x, owner, f"{name}[{i}]") for i, x in enumerate(value))
        if len(found) < self.least:
            raise ValueError(f"{owner}: {name} = {found!r}: expected {self.least} or more")
        if self.increasing and any(b <= a for a, b in pairwise(found)):
            raise ValueError(f"{owner}: {name} = {found!r}: expected each larger than the last")
        return found


Number = Annotated[float, Range(float)]
Level = Annotated[float, Range(float, 0)]
Factor = Annotated[float, Range(float, 0, open=True)]
Share = Annotated[float, Range(float, 0, 1)]
Inside = Annotated[float, Range(float, 0, 1, open=True)]
Count = Annotated[int, Range(int, 0)]
Length = Annotated[int, Range(int, 1)]
Flag = Annotated[bool, Truth()]
Numbers = Annotated[tuple[float, ...], Many(Range(float))]
Lengths = Annotated[tuple[int, ...], Many(Range(int, 1), increasing=True)]
