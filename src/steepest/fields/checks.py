"""Checks of fields: each stands in the type of a field, checks its value and says what it expects.

    lr: Annotated[float, Range(float, 0)]                        a finite number, at least 0
    steps: Annotated[int, Range(int, 1)]                         an integer, at least 1
    beta: Annotated[Number, Scheduled(Range(float, 0, 1, below=True))]    a number or a schedule
    mode: Annotated[str, Choice(("min", "max"))]

The checked value is what is stored: a NumPy number becomes Python's, a list a tuple. All messages
have one form, with an owner where there is one: ``cosine: steps = 0: expected an integer of at
least 1``.
"""

import math
import numbers
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any, get_type_hints

__all__ = [
    "Axis",
    "Check",
    "Choice",
    "Many",
    "Maybe",
    "Range",
    "Scheduled",
    "Truth",
    "checks_of",
    "scalar",
]


class Check(ABC):
    """What a field may be; its text says what it expects."""

    @abstractmethod
    def check(self, value: Any, owner: str, name: str) -> Any:
        """The value as it is stored. Raises TypeError or ValueError naming owner and field; an
        owner that is empty is left out."""

    def at(self, value: Any, count: int, owner: str, name: str) -> Any:
        """The value after `count` updates, checked: of a schedule, what it returns for them."""
        return self.check(value, owner, name)

    def lenient(self) -> "Check":
        """The same for numbers whose range is not ours to check, NaN among them."""
        return self

    def refusal(
        self, kind: type[Exception], value: Any, owner: str, name: str, expected: str = ""
    ) -> Exception:
        """The exception that says what was expected."""
        place = f"{owner}: {name}" if owner else name
        return kind(f"{place} = {value!r}: expected {expected or self}")


def checks_of(cls: type) -> Mapping[str, Check]:
    """The checks in the types of a class's fields, by name, those of its bases first.

    Of several in one type the last counts, so that a type can be narrowed. They are looked up once.
    """
    known: Mapping[str, Check] | None = cls.__dict__.get("_field_checks")
    if known is None:
        hints = get_type_hints(cls, include_extras=True)
        found = {
            name: [x for x in getattr(hint, "__metadata__", ()) if isinstance(x, Check)]
            for name, hint in hints.items()
        }
        known = MappingProxyType({name: checks[-1] for name, checks in found.items() if checks})
        cls._field_checks = known  # type: ignore[attr-defined]
    return known


_NO_NUMBER = re.compile("bool|complex|object|datetime|timedelta|[SUV]")
"""In the names of types that are not those of real numbers."""


def scalar(value: Any) -> float:
    """A number of any library as a float, also an array without axes; beyond double an infinity.

    Raises TypeError or ValueError for what is none, though float() makes one of it: text, an
    array's flag or complex number, arrays with axes.
    """
    if isinstance(value, (bool, str, bytes, bytearray, memoryview)):
        raise TypeError
    if getattr(value, "ndim", 0) or _NO_NUMBER.search(str(getattr(value, "dtype", ""))):
        raise TypeError
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


@dataclass(frozen=True)
class Range(Check):
    """Numbers of one kind from `low` to `high`, without `low` if `above` it, without `high` if
    `below` it, infinite only if not `finite`, and NaN only if `nan`.

    The kind is int or float, which take Python's numbers and those of NumPy, or a function that
    makes a float of more than that, as ``scalar`` does, and raises TypeError or ValueError.
    """

    kind: Callable[[Any], int | float]
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    finite: bool = True
    nan: bool = False

    def __str__(self) -> str:
        noun = "an integer" if self.kind is int else "a number"
        if self.low > -math.inf and self.high < math.inf:
            left, right = "(" if self.above else "[", ")" if self.below else "]"
            return f"{noun} in {left}{_text(self.low)}, {_text(self.high)}{right}"
        if self.kind is not int and self.finite:
            noun = "a finite number"
        if self.low > -math.inf:
            return f"{noun} {'greater than' if self.above else 'of at least'} {_text(self.low)}"
        if self.high < math.inf:
            return f"{noun} {'less than' if self.below else 'of at most'} {_text(self.high)}"
        if self.finite:
            return noun
        return f"{noun}, which may be infinite{' or NaN' if self.nan else ''}"

    def check(self, value: Any, owner: str, name: str) -> int | float:
        ready = type(value) is float and self.kind is not int
        x = value if ready else self.converted(value, owner, name)
        if not self.low <= x <= self.high:
            if not self.nan or x == x:
                raise self._out(x, value, owner, name)
        elif (
            (self.above and x == self.low)
            or (self.below and x == self.high)
            or (self.finite and (x == math.inf or x == -math.inf))
        ):
            raise self._out(x, value, owner, name)
        return x

    def _out(self, x: int | float, value: Any, owner: str, name: str) -> Exception:
        """What is out of range, without the digits of what is an infinity as a float."""
        given = x if x == math.inf or x == -math.inf else value
        return self.refusal(ValueError, given, owner, name)

    def lenient(self) -> "Range":
        return replace(
            self, low=-math.inf, high=math.inf, above=False, below=False, finite=False, nan=True
        )

    def converted(self, value: Any, owner: str, name: str) -> int | float:
        """The value as a number of the kind, whether or not it is in the range."""
        try:
            if self.kind is int or self.kind is float:
                abstract = numbers.Integral if self.kind is int else numbers.Real
                if isinstance(value, bool) or not isinstance(value, abstract):
                    raise TypeError
            return self.kind(value)
        except OverflowError:  # an integer beyond double
            raise self.refusal(ValueError, value, owner, name) from None
        except (TypeError, ValueError):
            raise self.refusal(TypeError, value, owner, name) from None


def _text(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


@dataclass(frozen=True)
class Choice(Check):
    """One of a few values, most often strings."""

    names: tuple[Any, ...]

    def __str__(self) -> str:
        return f"one of {', '.join(map(repr, self.names))}"

    def check(self, value: Any, owner: str, name: str) -> Any:
        for x in self.names:
            if value is x or value == x:
                return x
        raise self.refusal(ValueError, value, owner, name)


@dataclass(frozen=True)
class Truth(Check):
    """True or False; with `numbers`, also 1 and 0."""

    numbers: bool = False

    def __str__(self) -> str:
        return "True or False"

    def check(self, value: Any, owner: str, name: str) -> bool:
        kinds = (bool, int) if self.numbers else bool
        if not isinstance(value, kinds) or value not in (False, True):
            raise self.refusal(TypeError, value, owner, name)
        return bool(value)


@dataclass(frozen=True)
class Many(Check):
    """A tuple of at least `least` values, made from any list or array of them, or of `exactly` so
    many, made from a list; `increasing` if each must be larger than the last."""

    of: Check
    least: int = 1
    increasing: bool = False
    exactly: int | None = None

    def __str__(self) -> str:
        return "a tuple" if self.exactly is None else f"a tuple of {self.exactly}, each {self.of}"

    def check(self, value: Any, owner: str, name: str) -> tuple[Any, ...]:
        return self._checked(value, owner, name, self.of.check)

    def at(self, value: Any, count: int, owner: str, name: str) -> tuple[Any, ...]:
        return self._checked(value, owner, name, lambda x, *place: self.of.at(x, count, *place))

    def lenient(self) -> "Many":
        return replace(self, of=self.of.lenient())

    def _checked(
        self, value: Any, owner: str, name: str, check: Callable[[Any, str, str], Any]
    ) -> tuple[Any, ...]:
        kinds = Iterable if self.exactly is None else (tuple, list)
        if isinstance(value, str) or not isinstance(value, kinds):
            raise self.refusal(TypeError, value, owner, name)
        given = tuple(value)
        try:
            found = tuple(check(x, owner, name) for x in given)
        except (TypeError, ValueError):  # once more, to name the place
            found = tuple(check(x, owner, f"{name}[{i}]") for i, x in enumerate(given))
        if self.exactly is not None and len(found) != self.exactly:
            raise self.refusal(ValueError, found, owner, name)
        if len(found) < self.least:
            raise self.refusal(ValueError, found, owner, name, f"{self.least} or more")
        if self.increasing and any(b <= a for a, b in pairwise(found)):
            raise self.refusal(ValueError, found, owner, name, "each larger than the last")
        return found


@dataclass(frozen=True)
class Axis(Check):
    """The number of an axis, or None for the whole array."""

    def __str__(self) -> str:
        return "the number of an axis, or None for the whole array"

    def check(self, value: Any, owner: str, name: str) -> int | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise self.refusal(TypeError, value, owner, name)
        return int(value)


@dataclass(frozen=True)
class Maybe(Check):
    """None, or what another check takes."""

    of: Check

    def __str__(self) -> str:
        return f"{self.of}, or None"

    def check(self, value: Any, owner: str, name: str) -> Any:
        return None if value is None else _widened(self.of, value, owner, name, "or None")

    def at(self, value: Any, count: int, owner: str, name: str) -> Any:
        return None if value is None else self.of.at(value, count, owner, name)

    def lenient(self) -> "Maybe":
        return Maybe(self.of.lenient())


@dataclass(frozen=True)
class Scheduled(Check):
    """What another check takes, or a schedule of it: a function of the number of updates done.

    A schedule is stored as it is, and what it returns is checked when it is used. A field without
    this check is fixed.
    """

    of: Check

    def __str__(self) -> str:
        return f"{self.of}, or a schedule"

    def check(self, value: Any, owner: str, name: str) -> Any:
        return value if callable(value) else _widened(self.of, value, owner, name, "or a schedule")

    def at(self, value: Any, count: int, owner: str, name: str) -> Any:
        return self.of.check(value(count) if callable(value) else value, owner, name)

    def lenient(self) -> "Scheduled":
        return Scheduled(self.of.lenient())


def _widened(check: Check, value: Any, owner: str, name: str, also: str) -> Any:
    """What a check says of a value, where a value of the wrong type may also be something else."""
    try:
        return check.check(value, owner, name)
    except TypeError as error:
        raise TypeError(f"{error}, {also}") from None
