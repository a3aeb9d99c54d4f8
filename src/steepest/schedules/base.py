"""The base of all schedules, with warm-up and arithmetic.

A new schedule is a frozen dataclass with a `value` method. The types of its fields, from `fields`,
carry what they may be.
"""

import inspect
import math
import numbers
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, SupportsIndex

from steepest.fields import Check, Choice, Many, Range, checks_of
from steepest.schedules.fields import Count, Share

__all__ = ["Part", "Parts", "Schedule", "at", "geometric", "product", "total"]

# How a warm-up rises from 0 to 1 over its way x from 0 to 1.
RISES: dict[str, Callable[[float], float]] = {
    "linear": lambda x: x,
    "cosine": lambda x: (1.0 - math.cos(math.pi * x)) / 2.0,
    "1-sqrt": lambda x: 1.0 - math.sqrt(1.0 - x),
}
COMMON = ("warmup", "warmup_from", "warmup_start", "warmup_shape")


@dataclass(frozen=True, repr=False)
class Schedule(ABC):
    """A pure function of the number of updates done, with an optional warm-up in front.

    Schedules can be compared, hashed, copied and pickled. `repr` is the call that made one, with
    those keyword-only arguments that are not at their default; `str` adds the formula.

    `2 * s`, `s + t`, `s * t`, `1 - s`, `s / 2`, which is `s * 0.5`, and the like are schedules too.
    Up to four operations with numbers are done one after the other, as they are written. Of more
    on one schedule, `a * s + b` is made: so a learning rate may be multiplied at every step, as
    PyTorch's schedulers do, and stays as small as it was.

    Calling one with something that is not an integer raises TypeError, with a negative integer
    ValueError, and OverflowError where the value is too large for a float.
    """

    warmup: Count = field(default=0, kw_only=True)
    warmup_from: Annotated[int, Range(int, 0, 1)] = field(default=1, kw_only=True)
    warmup_start: Share = field(default=0.0, kw_only=True)
    warmup_shape: Annotated[str, Choice(tuple(RISES))] = field(default="linear", kw_only=True)

    formula: ClassVar[str] = ""
    """The formula, as the documentation has it."""

    __array_ufunc__ = None  # so that np.float64(2) * schedule comes here

    def __init_subclass__(cls) -> None:
        paragraphs = inspect.cleandoc(cls.__doc__ or "").split("\n\n")
        indented = len(paragraphs) > 1 and paragraphs[1].startswith(" ")
        cls.formula = inspect.cleandoc("\n" + paragraphs[1]) if indented else ""

    def __post_init__(self) -> None:
        for name, allowed in checks_of(type(self)).items():
            value = allowed.check(getattr(self, name), type(self).__name__, name)
            object.__setattr__(self, name, value)
        for f in fields(self):
            if f.name in COMMON[1:] and not self.warmup and getattr(self, f.name) != f.default:
                raise ValueError(
                    f"{type(self).__name__}: {f.name} = {getattr(self, f.name)!r}: "
                    "expected warmup >= 1 with it"
                )
        self.check()

    def check(self) -> None:
        """Raises ValueError where fields contradict each other."""

    @abstractmethod
    def value(self, t: int) -> float:
        """The value at update `t`, counted from the end of the warm-up."""

    def whole(self, t: int) -> float:
        """The value at update `t`, counted from the start of the warm-up."""
        if t >= self.warmup:
            return self.value(t - self.warmup)
        way = RISES[self.warmup_shape]((t + self.warmup_from) / self.warmup)
        return self.value(0) * (self.warmup_start + (1.0 - self.warmup_start) * way)

    def __call__(self, t: SupportsIndex) -> float:
        if type(t) is not int:
            try:
                t = operator.index(t)
            except TypeError:
                told = f"{self!r}: t = {t!r}: expected the number of updates done"
                raise TypeError(told) from None
        if t < 0:
            raise ValueError(f"{self!r}: t = {t}: expected the number of updates done, 0 or more")
        try:
            value = self.whole(t)
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise OverflowError(f"{self!r} is too large for a float at t = {t}")
        return value

    def __repr__(self) -> str:
        positional = [f for f in fields(self) if not f.kw_only]
        named = [f for f in fields(self) if f.kw_only and f.name not in COMMON]
        warmup = [f for f in fields(self) if f.name in COMMON]
        shown = positional + [
            f for f in named + warmup if f.default is MISSING or getattr(self, f.name) != f.default
        ]
        arguments = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in shown)
        return f"{type(self).__name__}({arguments})"

    def __str__(self) -> str:
        return "\n    ".join([repr(self), *self.formula.splitlines()])

    def plot(self, path: str | Path | None = None, steps: int | None = None) -> Any:
        """Draws the values at t = 0 .. steps - 1, saves the picture where a path is given, and
        returns the matplotlib Figure.

        Without `steps`, as many as the schedule has, or else enough to see its shape. Needs no
        display. Raises MissingExtra without matplotlib, ValueError for steps below 1.
        """
        from steepest.schedules.picture import draw

        figure = draw(self, steps)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure

    # Arithmetic

    def __add__(self, other: Any) -> "Schedule":
        return _short(total((self, other))) if _is_part(other) else NotImplemented

    def __radd__(self, other: Any) -> "Schedule":
        return _short(total((other, self))) if _is_part(other) else NotImplemented

    def __mul__(self, other: Any) -> "Schedule":
        return _short(product((self, other))) if _is_part(other) else NotImplemented

    def __rmul__(self, other: Any) -> "Schedule":
        return _short(product((other, self))) if _is_part(other) else NotImplemented

    def __truediv__(self, other: Any) -> "Schedule":
        return self * (1.0 / other) if _is_number(other) else NotImplemented

    def __neg__(self) -> "Schedule":
        return _short(product((-1.0, self)))

    def __sub__(self, other: Any) -> "Schedule":
        return self + -other if _is_part(other) else NotImplemented

    def __rsub__(self, other: Any) -> "Schedule":
        return other + -self if _is_part(other) else NotImplemented

    def __float__(self) -> float:
        raise TypeError(
            f"{self!r} is a schedule, whose value depends on the number of updates t: call it with "
            "t. What needs a number to go on from, as PyTorch's ReduceLROnPlateau does, goes with "
            "a number in its place; a schedule that watches a metric is schedules.plateau(...)"
        )


def _is_number(x: Any) -> bool:
    return isinstance(x, numbers.Real) and not isinstance(x, bool)


def _is_part(x: Any) -> bool:
    return isinstance(x, Schedule) or _is_number(x)


@dataclass(frozen=True)
class _Part(Check):
    """A number or a pure schedule."""

    def check(self, value: Any, owner: str, name: str) -> "float | Schedule":
        if not isinstance(value, Schedule):
            if callable(value):
                raise TypeError(
                    f"{owner}: {name} = {value!r}: expected a number or a schedule; make a "
                    "subclass of Schedule of it, a frozen dataclass with the method value(t)"
                )
            return Range(float).check(value, owner, name)
        if hasattr(value, "observe"):
            raise TypeError(
                f"{owner}: {name} = {value!r}: expected a schedule without state; put this one "
                f"outside: {type(value).__name__}({owner}(...))"
            )
        return value


Part = Annotated["float | Schedule", _Part()]
Parts = Annotated[tuple["float | Schedule", ...], Many(_Part())]


def at(part: "float | Schedule", t: int) -> float:
    """The value of a part at `t`: a number stays the same."""
    return part(t) if isinstance(part, Schedule) else part


def geometric(first: float, ratio: float, n: float) -> float:
    """first · ratioⁿ, infinite only where that is too large and not where ratioⁿ alone is."""
    try:
        return float(first * ratio**n)
    except OverflowError:
        try:
            third = ratio ** (n / 3)
        except OverflowError:
            return math.inf if first else 0.0
        return float(first * third * third * third)


@dataclass(frozen=True, repr=False)
class product(Schedule):
    """The product of schedules and numbers; `s * t` and `2 * s` make one.

        s(t) = parts[0](t) · parts[1](t) · …

    At least one part, each a finite number or a schedule. Raises TypeError or ValueError for
    anything else.

    >>> from steepest.schedules import exponential, step
    >>> lr = exponential(0.5, 0.5) * step(1.0, step_size=2, gamma=0.5)
    >>> [lr(t) for t in range(4)]
    [0.5, 0.25, 0.0625, 0.03125]
    >>> 2 * exponential(0.5, 0.5)
    product(parts=(2.0, exponential(lr=0.5, gamma=0.5)))

    What PyTorch's ChainedScheduler does with schedulers that multiply.
    """

    parts: Parts

    def value(self, t: int) -> float:
        return math.prod(at(part, t) for part in self.parts)


@dataclass(frozen=True, repr=False)
class total(Schedule):
    """The sum of schedules and numbers; `s + t`, `s - t` and `1 - s` make one.

        s(t) = parts[0](t) + parts[1](t) + …

    At least one part, each a finite number or a schedule. Raises TypeError or ValueError for
    anything else.

    >>> from steepest.schedules import exponential
    >>> momentum = 1 - exponential(0.5, 0.5)
    >>> [momentum(t) for t in range(4)]
    [0.5, 0.75, 0.875, 0.9375]
    >>> momentum
    total(parts=(1.0, product(parts=(-1.0, exponential(lr=0.5, gamma=0.5)))))
    """

    parts: Parts

    def value(self, t: int) -> float:
        value = at(self.parts[0], t)
        for part in self.parts[1:]:
            value += at(part, t)
        return value


_KEPT = 4
"""How many operations with numbers on a schedule are kept as they are written."""


class _Line(NamedTuple):
    """What a number or a schedule is: factor · schedule + offset, by so many operations."""

    factor: float
    schedule: Schedule | None
    offset: float
    operations: int


def _line(x: "float | Schedule") -> _Line:
    if not isinstance(x, Schedule):
        return _Line(0.0, None, x, 0)
    itself = _Line(1.0, x, 0.0, 0)
    if not isinstance(x, (product, total)) or x.warmup:
        return itself
    lines = [_line(part) for part in x.parts]
    found = [line.schedule for line in lines if line.schedule is not None]
    operations = len(lines) - 1 + sum(line.operations for line in lines)
    if isinstance(x, product):
        if len(found) != 1:
            return itself
        factor = math.prod(line.offset for line in lines if line.schedule is None)
        own = next(line for line in lines if line.schedule is not None)
        return _Line(factor * own.factor, own.schedule, factor * own.offset, operations)
    if not found or any(schedule != found[0] for schedule in found):
        return itself
    return _Line(
        math.fsum(line.factor for line in lines),
        found[0],
        math.fsum(line.offset for line in lines),
        operations,
    )


def _short(made: Schedule) -> Schedule:
    """The schedule, or an equal one if it has come about by many operations on one."""
    factor, schedule, offset, operations = _line(made)
    if operations <= _KEPT or schedule is None:
        return made
    scaled = schedule if factor == 1.0 else product((factor, schedule))
    return total((scaled, offset)) if offset else scaled
