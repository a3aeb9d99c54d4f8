"""Types of hyper-parameters: what each may be, as the checks of ``steepest.fields`` say it.

A hyper-parameter is a number, a flag, a tuple of numbers, or instead of any number a schedule: a
function of the number of updates done so far. Clips and penalties are values of their own. A rule
writes each as a field of its class, with a type of here, or with one of its own:

    lr: Rate = 1e-3
    nu: Annotated[Number, within(0, 1)] = 0.7
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from steepest.fields import Check, Choice, Many, Maybe, Range, Scheduled, Truth, Value, scalar

__all__ = [
    "AnyNumber", "Betas", "Bounds", "Check", "Choice", "Convention", "Count", "CountOrZero",
    "Dialect", "Eps", "Factor", "Flag", "FromOne", "Limit", "Made", "Many", "Maybe", "Momentum",
    "NotNegative", "Number", "OptionalFactor", "PartOfOne", "PerParameter", "Range", "Rate",
    "Schedule", "Scheduled", "Seed", "Start", "ThreeBetas", "TwoNumbers", "Weight",
    "range_of", "scalar", "several", "variable", "within",
]  # fmt: skip

Schedule = Callable[[int], float]
Number = float | Schedule
"""A number, or a schedule: a function of the number of updates done so far."""


def within(
    low: float, high: float = math.inf, *, below: bool = False, finite: bool = True
) -> Check:
    """A number from `low` to `high`, without that if `below` it, infinite only if not `finite`; or
    a schedule of such."""
    return Scheduled(Range(scalar, low, high, below=below, finite=finite))


def several(count: int, each: Check) -> Check:
    """A tuple of `count` numbers."""
    return Many(each, exactly=count)


class PerParameter(Scheduled):
    """A schedule that the rule calls itself, with the count of a parameter's own steps."""

    def at(self, value: Any, count: int, owner: str, name: str) -> Any:
        return self.check(value, owner, name)


@dataclass(frozen=True)
class Dialect(Check):
    """One of the conventions of a rule; each class has its own, which its name stands for."""

    names: tuple[str, ...] = ()
    rule: str = ""

    def check(self, value: Any, owner: str, name: str) -> Any:
        if value not in self.names:
            has = ", ".join(map(repr, self.names)) or "one form only; leave convention away"
            raise ValueError(f"convention = {value!r}: {self.rule} has {has}")
        return value


@dataclass(frozen=True)
class Made(Check):
    """What a function makes of the value, which raises TypeError or ValueError."""

    function: Callable[[Any], Any]

    def check(self, value: Any, owner: str, name: str) -> Any:
        return self.function(value)


def range_of(check: Check) -> Range | None:
    """The range of a number, or of each of several, that may be scheduled; None for anything
    else."""
    while isinstance(check, Maybe | Many):
        check = check.of
    if type(check) is not Scheduled or not isinstance(check.of, Range | Maybe):
        return None
    inner = check.of.of if isinstance(check.of, Maybe) else check.of
    return inner if isinstance(inner, Range) else None


def variable(value: Any) -> bool:
    """Whether a hyper-parameter may have another value at the next step though it is the same
    object: a schedule, a tuple with one, a list or an array that may be changed in place."""
    if isinstance(value, tuple):
        return any(variable(x) for x in value)
    if isinstance(value, Value):
        return value.variable
    return callable(value) or isinstance(value, (list, np.ndarray))


AnyNumber = Annotated[Number, within(-math.inf)]
NotNegative = Annotated[Number, within(0)]
Rate = NotNegative
Weight = NotNegative
Eps = NotNegative
Momentum = NotNegative
Factor = Annotated[Number, within(0, 1, below=True)]
"""The decay factor of a running mean, below 1."""
OptionalFactor = Annotated[Number | None, Maybe(within(0, 1, below=True))]
PartOfOne = Annotated[Number, within(0, 1)]
FromOne = Annotated[Number, within(1, finite=False)]
Limit = Annotated[Number, within(0, finite=False)]
"""A limit; infinity is none."""
Start = Annotated[float, within(0)]
"""What something begins with."""
TwoNumbers = Annotated[tuple[Number, Number], several(2, within(0))]
Betas = Annotated[tuple[Number, Number], several(2, within(0, 1, below=True))]
ThreeBetas = Annotated[tuple[Number, Number, Number], several(3, within(0, 1, below=True))]
Bounds = Annotated[tuple[Number, Number], several(2, within(0, finite=False))]
"""The lowest and the highest; infinity is none."""
Count = Annotated[int, Range(int, 1, 2**62)]
CountOrZero = Annotated[int, Range(int, 0, 2**62)]
Seed = Annotated[int, Range(int, 0, 2**64 - 1)]
Flag = Annotated[bool, Truth(numbers=True)]
Convention = Annotated[str, Dialect()]
"""One of the class's ``conventions``."""
