"""Schedules made of schedules. Products and sums are in `base`, as they are operators."""

from bisect import bisect_right
from dataclasses import dataclass
from typing import Annotated

from steepest.fields import Range
from steepest.schedules.base import Part, Parts, Schedule, at
from steepest.schedules.fields import Lengths

__all__ = ["clip", "maximum", "minimum", "sequence", "shift"]


@dataclass(frozen=True, repr=False)
class sequence(Schedule):
    """One schedule after the other, each counting from its own start.

        s(t) = parts[n](t - milestones[n - 1]), n the number of milestones <= t

    Update `milestones[0]` is update 0 of the second part. Parts are schedules or finite numbers,
    one more than milestones; milestones >= 1 in updates, increasing. A `steps` of a part is the
    length of that part. Raises TypeError or ValueError for anything else.

    >>> from steepest.schedules import cosine, linear
    >>> lr = sequence((linear(0.0, steps=2, end=0.5), cosine(0.5, steps=4), 0.125), (2, 5))
    >>> [round(lr(t), 4) for t in range(7)]
    [0.0, 0.25, 0.5, 0.4268, 0.25, 0.125, 0.125]

    PyTorch's SequentialLR and optax's join_schedules.
    """

    parts: Parts
    milestones: Lengths

    def check(self) -> None:
        if len(self.parts) != len(self.milestones) + 1:
            raise ValueError(
                f"sequence: {len(self.parts)} parts and milestones = {self.milestones}: expected "
                "one part more than milestones"
            )

    def value(self, t: int) -> float:
        n = bisect_right(self.milestones, t)
        return at(self.parts[n], t - (self.milestones[n - 1] if n else 0))


@dataclass(frozen=True, repr=False)
class shift(Schedule):
    """A schedule some updates later, or earlier.

        s(t) = schedule(max(t - by, 0))

    With by > 0 the schedule waits at its first value, with by < 0 its first updates are left out.
    Raises TypeError or ValueError for anything else than a schedule and an integer.

    >>> from steepest.schedules import exponential
    >>> [shift(exponential(0.5, 0.5), 2)(t) for t in range(4)]
    [0.5, 0.5, 0.5, 0.25]
    >>> [shift(exponential(0.5, 0.5), -2)(t) for t in range(2)]
    [0.125, 0.0625]

    optax's transition_begin, for every schedule.
    """

    schedule: Part
    by: Annotated[int, Range(int)]

    def value(self, t: int) -> float:
        return at(self.schedule, max(t - self.by, 0))


@dataclass(frozen=True, repr=False)
class clip(Schedule):
    """A schedule kept within bounds.

        s(t) = min(max(schedule(t), low(t)), high(t))

    All three are schedules or finite numbers; numbers have low <= high. Raises TypeError or
    ValueError for anything else.

    >>> from steepest.schedules import exponential
    >>> lr = clip(exponential(0.5, 0.5), low=0.1, high=0.3)
    >>> [lr(t) for t in range(4)]
    [0.3, 0.25, 0.125, 0.1]

    For a bound on one side only, see `minimum` and `maximum`.
    """

    schedule: Part
    low: Part
    high: Part

    def check(self) -> None:
        numbers = not isinstance(self.low, Schedule) and not isinstance(self.high, Schedule)
        if numbers and self.low > self.high:  # type: ignore[operator]
            raise ValueError(f"clip: low = {self.low!r}: expected at most high = {self.high!r}")

    def value(self, t: int) -> float:
        return min(max(at(self.schedule, t), at(self.low, t)), at(self.high, t))


@dataclass(frozen=True, repr=False)
class minimum(Schedule):
    """The smallest of several schedules and numbers.

        s(t) = min(parts[0](t), parts[1](t), …)

    At least one part, each a finite number or a schedule. Raises TypeError or ValueError for
    anything else.

    >>> from steepest.schedules import inverse_sqrt
    >>> [minimum((0.25, inverse_sqrt(0.6)))(t) for t in (0, 3, 8)]
    [0.25, 0.25, 0.19999999999999998]
    """

    parts: Parts

    def value(self, t: int) -> float:
        return min(at(part, t) for part in self.parts)


@dataclass(frozen=True, repr=False)
class maximum(Schedule):
    """The largest of several schedules and numbers.

        s(t) = max(parts[0](t), parts[1](t), …)

    At least one part, each a finite number or a schedule. Raises TypeError or ValueError for
    anything else.

    >>> from steepest.schedules import exponential
    >>> [maximum((0.2, exponential(0.5, 0.5)))(t) for t in range(3)]
    [0.5, 0.25, 0.2]
    """

    parts: Parts

    def value(self, t: int) -> float:
        return max(at(part, t) for part in self.parts)
