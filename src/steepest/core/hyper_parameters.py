"""Types of hyper-parameters: what each may be, and its value at a step.

A hyper-parameter is a number, a flag, a tuple of numbers, or instead of any number a schedule: a
function of the number of updates done so far. Clips and penalties are values of their own. A rule
writes each as a field of its class, with a type of here, or with one of its own:

    lr: Rate = 1e-3
    nu: Annotated[Number, Within(0, 1, closed=True)] = 0.7
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np

from steepest.fields import Value

__all__ = [
    "AnyNumber", "AsGiven", "Betas", "Bounds", "Check", "Convention", "Count", "CountOrZero",
    "Dialect", "Eps", "Factor", "Flag", "FromOne", "Limit", "Made", "Momentum", "NotNegative",
    "Number", "OneOf", "OptionalFactor", "PartOfOne", "Rate", "Schedule", "Seed", "Several",
    "Start", "ThreeBetas", "Truth", "TwoNumbers", "Weight", "Whole", "Within", "variable",
]  # fmt: skip

Schedule = Callable[[int], float]
Number = float | Schedule
"""A number, or a schedule: a function of the number of updates done so far."""

MANY = 2**62
"""More than any count."""

_NO_NUMBER = re.compile("bool|complex|object|datetime|timedelta|[SUV]")
"""In the names of types that are not those of real numbers."""


class Check(ABC):
    """What a hyper-parameter may be; stands in the type of its field."""

    @abstractmethod
    def settle(self, name: str, value: Any, count: int | None) -> Any:
        """The checked value after `count` updates; None keeps schedules.

        Raises TypeError or ValueError naming the hyper-parameter.
        """

    def check(self, value: Any, owner: str, name: str) -> Any:
        """The checked value, schedules as they are; `owner` is whose field it is."""
        return self.settle(name, value, None)

    def lenient(self) -> "Check":
        """The same for values whose range is the caller's business, NaN included."""
        return self

    def limits(self) -> tuple[float, float, bool] | None:
        """The range of a number or several: (lowest, highest, whether the highest is allowed)."""
        return None


@dataclass(frozen=True)
class Within(Check):
    """A number from `low` to `high`, itself allowed if `closed`, or a schedule of such; None too
    where it is `optional`. Unless it is `bounded`, any number will do."""

    low: float = -math.inf
    high: float = math.inf
    closed: bool = False
    optional: bool = False
    bounded: bool = True

    def settle(self, name: str, value: Any, count: int | None) -> Any:
        if type(value) is float and self.low <= value < self.high:
            return value
        if isinstance(value, (tuple, list)):
            raise TypeError(f"{name} = {value!r}: expected one number or schedule")
        return self.one(name, value, count)

    def one(self, name: str, value: Any, count: int | None) -> Any:
        """What stands alone, or among several: a number, a schedule or None."""
        if value is None and self.optional:
            return None
        if callable(value):
            return value if count is None else self.number(name, value(count))
        return self.number(name, value)

    def number(self, name: str, value: Any) -> float:
        try:
            x = value if type(value) is float else _float(value)
        except (TypeError, ValueError):
            raise TypeError(
                f"{name} = {value!r}: expected a number or a schedule, a function of the step count"
            ) from None
        low, high, closed = self.low, self.high, self.closed
        if self.bounded and not (low <= x < high or (closed and x == high)):
            end = "]" if closed else ")"
            raise ValueError(f"{name} = {x!r}: expected a number in [{low:g}, {high:g}{end}")
        return x

    def lenient(self) -> "Within":
        # No bound at all, so that the short way of `settle` does not ask for one.
        return replace(self, low=-math.inf, high=math.inf, bounded=False)

    def limits(self) -> tuple[float, float, bool]:
        return self.low, self.high, self.closed


@dataclass(frozen=True)
class Several(Check):
    """A tuple of `count` numbers, each of which may be a schedule."""

    count: int
    each: Within

    def settle(self, name: str, value: Any, count: int | None) -> Any:
        expected = f"expected {self.count} numbers or schedules"
        if not isinstance(value, (tuple, list)):
            raise TypeError(f"{name} = {value!r}: {expected}")
        if len(value) != self.count:
            raise ValueError(f"{name} = {value!r}: {expected}")
        return tuple(self.each.one(name, x, count) for x in value)

    def lenient(self) -> "Several":
        return replace(self, each=self.each.lenient())

    def limits(self) -> tuple[float, float, bool]:
        return self.each.limits()


@dataclass(frozen=True)
class AsGiven(Check):
    """A number in a range, or None; with `schedule` also a function, which the rule calls."""

    number: Within
    schedule: bool = False

    def settle(self, name: str, value: Any, count: int | None) -> Any:
        if value is None or (self.schedule and callable(value)):
            return value
        return self.number.number(name, value)


@dataclass(frozen=True)
class Whole(Check):
    """A whole number from `low` to `high`."""

    low: int
    high: int = MANY

    def settle(self, name: str, value: Any, count: int | None) -> int:
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
            raise TypeError(f"{name} = {value!r}: expected a whole number")
        if not self.low <= value <= self.high:
            raise ValueError(
                f"{name} = {value!r}: expected a whole number from {self.low} to {self.high}"
            )
        return int(value)


@dataclass(frozen=True)
class Truth(Check):
    """True or False."""

    def settle(self, name: str, value: Any, count: int | None) -> bool:
        if not isinstance(value, (bool, int)) or value not in (False, True):
            raise TypeError(f"{name} = {value!r}: expected True or False")
        return bool(value)


class OneOf(Check):
    """One of some values."""

    def __init__(self, *choices: Any) -> None:
        self.choices = choices

    def settle(self, name: str, value: Any, count: int | None) -> Any:
        if not any(value is x or value == x for x in self.choices):
            expected = ", ".join(map(repr, self.choices))
            raise ValueError(f"{name} = {value!r}: expected one of {expected}")
        return value


@dataclass(frozen=True)
class Dialect(Check):
    """One of the conventions of a rule; each class has its own, which its name stands for."""

    names: tuple[str, ...] = ()
    owner: str = ""

    def settle(self, name: str, value: Any, count: int | None) -> Any:
        if value not in self.names:
            has = ", ".join(map(repr, self.names)) or "one form only; leave convention away"
            raise ValueError(f"convention = {value!r}: {self.owner} has {has}")
        return value


@dataclass(frozen=True)
class Made(Check):
    """What a function makes of the value, which raises TypeError or ValueError."""

    function: Callable[[Any], Any]

    def settle(self, name: str, value: Any, count: int | None) -> Any:
        return self.function(value)


def variable(value: Any) -> bool:
    """Whether a hyper-parameter may have another value at the next step though it is the same
    object: a schedule, a tuple with one, a list or an array that may be changed in place."""
    if isinstance(value, tuple):
        return any(variable(x) for x in value)
    if isinstance(value, Value):
        return value.variable
    return callable(value) or isinstance(value, (list, np.ndarray))


def _float(value: Any) -> float:
    """A number as a float, beyond double as infinity. Raises TypeError or ValueError for what is
    none, though float() makes one of it: text, an array's flag or complex number, arrays with axes.
    """
    if isinstance(value, (bool, str, bytes, bytearray, memoryview)):
        raise TypeError
    if getattr(value, "ndim", 0) or _NO_NUMBER.search(str(getattr(value, "dtype", ""))):
        raise TypeError
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


AnyNumber = Annotated[Number, Within()]
NotNegative = Annotated[Number, Within(0.0)]
Rate = NotNegative
Weight = NotNegative
Eps = NotNegative
Momentum = NotNegative
Factor = Annotated[Number, Within(0.0, 1.0)]
"""The decay factor of a running mean, below 1."""
OptionalFactor = Annotated[Number | None, Within(0.0, 1.0, optional=True)]
PartOfOne = Annotated[Number, Within(0.0, 1.0, closed=True)]
FromOne = Annotated[Number, Within(1.0, closed=True)]
Limit = Annotated[Number, Within(0.0, closed=True)]
"""A limit; infinity is none."""
Start = Annotated[float, Within(0.0)]
"""What something begins with."""
Pair = tuple[Number, Number]
TwoNumbers = Annotated[Pair, Several(2, Within(0.0))]
Betas = Annotated[Pair, Several(2, Within(0.0, 1.0))]
ThreeBetas = Annotated[tuple[Number, Number, Number], Several(3, Within(0.0, 1.0))]
Bounds = Annotated[Pair, Several(2, Within(0.0, closed=True))]
"""The lowest and the highest; infinity is none."""
Count = Annotated[int, Whole(1)]
CountOrZero = Annotated[int, Whole(0)]
Seed = Annotated[int, Whole(0, 2**64 - 1)]
Flag = Annotated[bool, Truth()]
Convention = Annotated[str, Dialect()]
"""One of the class's ``conventions``."""
