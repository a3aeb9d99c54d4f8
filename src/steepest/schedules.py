"""Schedules: hyper-parameters as functions of the number of updates done so far.

A schedule is called with `t`, 0 at the first update, and answers with a float. It is pure: the
value depends on `t` and on how the schedule was made, on nothing else. So a resumed run continues
exactly, and any update can be looked up at any time. Every hyper-parameter of every optimizer
accepts one, and any other callable `t -> float` in its place.

>>> from steepest import schedules
>>> lr = schedules.cosine(1e-3, steps=10_000, warmup=500)
>>> lr(0), lr(499), lr(10_000)
(2e-06, 0.001, 0.0)

Warm-up is common to all. `warmup=w` puts `w` updates in front, on a straight line up to the
schedule's first value, and the schedule itself begins after them:

    value(t) = s(0) (t + 1)/w    for t < w
               s(t - w)          for t >= w

The first update is small but not zero, and update `w - 1` has the full first value. (Goyal et al.
2017, arXiv:1706.02677, section 2.2. Some libraries begin at 0, which wastes the first update.)

A new schedule is a frozen dataclass with a `value` method. The types of its fields carry their
allowed ranges, so that most schedules need no checks of their own.
"""

import math
import numbers
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, SupportsIndex, get_type_hints

__all__ = [
    "SCHEDULES",
    "Schedule",
    "constant",
    "cosine",
    "cosine_restarts",
    "exponential",
    "inverse_sqrt",
    "inverse_time",
    "linear",
    "polynomial",
    "step",
]


@dataclass(frozen=True)
class _Range:
    """The allowed values of a field: finite, of one kind, and from `low` upwards."""

    kind: Callable[[Any], int | float]
    low: int
    inclusive: bool = True

    def __str__(self) -> str:
        noun = "an integer" if self.kind is int else "a finite number"
        return f"{noun} {'>=' if self.inclusive else '>'} {self.low}"

    def check(self, value: Any, owner: str, name: str) -> int | float:
        number = numbers.Integral if self.kind is int else numbers.Real
        if isinstance(value, bool) or not isinstance(value, number):
            raise TypeError(f"{owner}: {name} = {value!r}: expected {self}")
        converted = self.kind(value)
        above = self.low <= converted if self.inclusive else self.low < converted
        if not (above and converted < math.inf):
            raise ValueError(f"{owner}: {name} = {value!r}: expected {self}")
        return converted


Level = Annotated[float, _Range(float, 0)]
Factor = Annotated[float, _Range(float, 0, inclusive=False)]
Count = Annotated[int, _Range(int, 0)]
Length = Annotated[int, _Range(int, 1)]


@dataclass(frozen=True, repr=False)
class Schedule(ABC):
    """A pure function of the number of updates done, with an optional warm-up in front.

    Schedules can be compared, hashed, copied and pickled, and print as the call that made them.

    Calling one with something that is not an integer raises TypeError, with a negative integer
    ValueError, and OverflowError where the value is too large for a float.
    """

    warmup: Count = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        for f in fields(self):
            for allowed in getattr(hints[f.name], "__metadata__", ()):
                value = allowed.check(getattr(self, f.name), type(self).__name__, f.name)
                object.__setattr__(self, f.name, value)
        self.check()

    def check(self) -> None:
        """Raises ValueError where fields contradict each other."""

    @abstractmethod
    def value(self, t: int) -> float:
        """The value at update `t`, counted from the end of the warm-up."""

    def __call__(self, t: SupportsIndex) -> float:
        try:
            t = operator.index(t)
        except TypeError:
            raise TypeError(f"{self!r}: t = {t!r}: expected the number of updates done") from None
        if t < 0:
            raise ValueError(f"{self!r}: t = {t}: expected the number of updates done, 0 or more")
        try:
            if t < self.warmup:
                value = self.value(0) * ((t + 1) / self.warmup)
            else:
                value = self.value(t - self.warmup)
        except OverflowError:
            value = math.inf
        if value == math.inf:
            raise OverflowError(f"{self!r} is too large for a float at t = {t}")
        return value

    def __repr__(self) -> str:
        shown = [f for f in fields(self) if f.name != "warmup"]
        if self.warmup:
            shown += [f for f in fields(self) if f.name == "warmup"]
        arguments = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in shown)
        return f"{type(self).__name__}({arguments})"


@dataclass(frozen=True, repr=False)
class constant(Schedule):
    """Always the same value; useful with a warm-up.

        s(t) = lr

    lr >= 0. Raises TypeError or ValueError for anything else.

    >>> lr = constant(0.1, warmup=4)
    >>> [lr(t) for t in (0, 1, 3, 4, 1000)]
    [0.025, 0.05, 0.1, 0.1, 0.1]
    """

    lr: Level

    def value(self, t: int) -> float:
        return self.lr


@dataclass(frozen=True, repr=False)
class inverse_sqrt(Schedule):
    """Decays with the square root of the number of updates.

        s(t) = lr / √(t + 1)

    lr >= 0. Raises TypeError or ValueError for anything else.

    >>> lr = inverse_sqrt(0.3)
    >>> [lr(t) for t in (0, 3, 8)]
    [0.3, 0.15, 0.09999999999999999]

    Source: Zinkevich 2003, "Online Convex Programming and Generalized Infinitesimal Gradient
    Ascent", theorem 1 (η_t = t^(-1/2), with t counted from 1). The schedule of that name for
    transformers (arXiv:1706.03762, equation 3) counts through its warm-up; here, as everywhere
    in this module, the count begins after it.
    """

    lr: Level

    def value(self, t: int) -> float:
        return self.lr / math.sqrt(t + 1)


@dataclass(frozen=True, repr=False)
class inverse_time(Schedule):
    """Decays with the number of updates.

        s(t) = lr / (1 + k t)

    lr >= 0, k >= 0 in 1/updates: after 1/k updates half of lr is left.
    Raises TypeError or ValueError for anything else.

    >>> lr = inverse_time(0.1, k=0.5)
    >>> [lr(t) for t in (0, 2, 8)]
    [0.1, 0.05, 0.02]

    Source: Robbins and Monro 1951, "A Stochastic Approximation Method", as commonly parametrised.
    """

    lr: Level
    k: Level

    def value(self, t: int) -> float:
        return self.lr / (1.0 + self.k * t)


@dataclass(frozen=True, repr=False)
class exponential(Schedule):
    """Multiplies by gamma at every update.

        s(t) = lr gammaᵗ

    lr >= 0, gamma > 0; a gamma above 1 grows. Raises TypeError or ValueError for anything else.

    >>> lr = exponential(0.1, gamma=0.5)
    >>> [lr(t) for t in range(4)]
    [0.1, 0.05, 0.025, 0.0125]

    The same values as PyTorch's ExponentialLR stepped once per update.
    """

    lr: Level
    gamma: Factor

    def value(self, t: int) -> float:
        return self.lr * self.gamma**t


@dataclass(frozen=True, repr=False)
class step(Schedule):
    """Multiplies by gamma after every `step_size` updates.

        s(t) = lr gamma^⌊t / step_size⌋

    lr >= 0, step_size >= 1 in updates, gamma > 0.
    Raises TypeError or ValueError for anything else.

    >>> lr = step(0.5, step_size=100, gamma=0.5)
    >>> [lr(t) for t in (0, 99, 100, 250)]
    [0.5, 0.5, 0.25, 0.125]

    The same values as PyTorch's StepLR stepped once per update.
    """

    lr: Level
    step_size: Length
    gamma: Factor = 0.1

    def value(self, t: int) -> float:
        return self.lr * self.gamma ** (t // self.step_size)


@dataclass(frozen=True, repr=False)
class _Falling(Schedule):
    """From lr to end in steps - warmup updates, then end; `share` says what is left of lr."""

    lr: Level
    steps: Length
    end: Level = 0.0

    def check(self) -> None:
        if self.warmup >= self.steps:
            raise ValueError(
                f"{type(self).__name__}: warmup = {self.warmup}: expected less than steps = "
                f"{self.steps}, which counts the warm-up too"
            )

    @abstractmethod
    def share(self, u: float) -> float:
        """The weight of lr, from 1 to 0, when the share u of the way is done; end has the rest."""

    def value(self, t: int) -> float:
        n = self.steps - self.warmup
        if t >= n:
            return self.end
        c = self.share(t / n)
        return self.lr * c + self.end * (1.0 - c)


@dataclass(frozen=True, repr=False)
class linear(_Falling):
    """Goes from lr to end on a straight line, then stays at end.

        s(t) = lr (1 - t/n) + end t/n    for t < n
               end                       for t >= n
        n    = steps - warmup

    `steps` is the length of the whole run in updates, warm-up included. lr >= 0, end >= 0,
    steps >= 1, warmup < steps. Raises TypeError or ValueError for anything else.

    >>> lr = linear(0.5, steps=10, warmup=2)
    >>> [lr(t) for t in (0, 1, 2, 6, 10)]
    [0.25, 0.5, 0.5, 0.25, 0.0]

    PyTorch's LinearLR from 1 to end/lr gives the same values.
    """

    def share(self, u: float) -> float:
        return 1.0 - u


@dataclass(frozen=True, repr=False)
class polynomial(_Falling):
    """Goes from lr to end along a power of the way that is left, then stays at end.

        c    = (1 - t/n)^power
        s(t) = lr c + end (1 - c)    for t < n
               end                   for t >= n
        n    = steps - warmup

    `steps` is the length of the whole run in updates, warm-up included. lr >= 0, end >= 0,
    power > 0, steps >= 1, warmup < steps. Raises TypeError or ValueError for anything else.

    >>> lr = polynomial(0.5, steps=4, power=2)
    >>> [lr(t) for t in (0, 1, 2, 3, 4)]
    [0.5, 0.28125, 0.125, 0.03125, 0.0]

    With end = 0 the values of PyTorch's PolynomialLR(total_iters=steps, power=power).
    """

    power: Factor = 1.0

    def share(self, u: float) -> float:
        return float((1.0 - u) ** self.power)


@dataclass(frozen=True, repr=False)
class cosine(_Falling):
    """Falls from lr to end along half a cosine wave, then stays at end.

        c    = (1 + cos(π t / n)) / 2
        s(t) = lr c + end (1 - c)    for t < n
               end                   for t >= n
        n    = steps - warmup

    `steps` is the length of the whole run in updates, warm-up included: the value reaches end at
    t = steps. lr >= 0, end >= 0, steps >= 1, warmup < steps. Raises TypeError or ValueError for
    anything else.

    >>> lr = cosine(0.5, steps=10, end=0.25, warmup=2)
    >>> [round(lr(t), 4) for t in (0, 1, 2, 6, 10, 99)]
    [0.25, 0.5, 0.5, 0.375, 0.25, 0.25]

    Source: Loshchilov and Hutter 2016, arXiv:1608.03983, equation 5, one period. PyTorch's
    CosineAnnealingLR agrees up to t = steps and rises again after it; this one does not.
    """

    def share(self, u: float) -> float:
        return (1.0 + math.cos(math.pi * u)) / 2.0


@dataclass(frozen=True, repr=False)
class cosine_restarts(Schedule):
    """Falls along half a cosine wave, jumps up again, and so on.

        c    = (1 + cos(π u / n)) / 2
        s(t) = lr gammaⁱ c + end (1 - c)
        n    = period multⁱ

    for the u-th update of the i-th run of the wave, both from 0. lr >= 0, period >= 1 and
    mult >= 1 in updates and whole, end >= 0, gamma > 0: the height of the next restart. Raises
    TypeError or ValueError for anything else.

    >>> lr = cosine_restarts(0.5, period=4, mult=2, gamma=0.5)
    >>> [round(lr(t), 4) for t in (0, 2, 3, 4, 8, 12)]
    [0.5, 0.25, 0.0732, 0.25, 0.125, 0.125]

    Source: Loshchilov and Hutter 2016, arXiv:1608.03983, equation 5. With gamma = 1 the values of
    PyTorch's CosineAnnealingWarmRestarts(T_0=period, T_mult=mult).
    """

    lr: Level
    period: Length
    mult: Length = 1
    end: Level = 0.0
    gamma: Factor = 1.0

    def value(self, t: int) -> float:
        run, start, n = 0, 0, self.period
        if self.mult == 1:
            run = t // n
            start = run * n
        else:
            while t >= start + n:
                run, start, n = run + 1, start + n, n * self.mult
        c = (1.0 + math.cos(math.pi * (t - start) / n)) / 2.0
        return self.lr * self.gamma**run * c + self.end * (1.0 - c)


SCHEDULES: dict[str, type[Schedule]] = {
    s.__name__: s
    for s in (
        constant,
        inverse_sqrt,
        inverse_time,
        exponential,
        step,
        linear,
        polynomial,
        cosine,
        cosine_restarts,
    )
}
