"""Schedules of the batch size: whole numbers from 1 up."""

import math
from abc import abstractmethod
from dataclasses import dataclass

from steepest.schedules.base import Part, Schedule, at, geometric
from steepest.schedules.fields import Factor, Length

__all__ = ["growing", "rounded"]


@dataclass(frozen=True, repr=False)
class _Whole(Schedule):
    """Values rounded to whole numbers, half up, and at least 1; a warm-up too."""

    @abstractmethod
    def value(self, t: int) -> float:
        """The value before it is rounded."""

    def whole(self, t: int) -> int:
        return max(math.floor(super().whole(t) + 0.5), 1)


@dataclass(frozen=True, repr=False)
class growing(_Whole):
    """A batch size that grows by a factor after every so many updates.

        s(t) = ⌊min(start factor^⌊t / every⌋, limit) + 1/2⌋

    start, every and limit are integers >= 1, factor > 0. A factor below 1 shrinks, and limit is
    then the smallest size. Raises TypeError or ValueError for anything else.

    >>> size = growing(32, factor=2, every=1000, limit=256)
    >>> [size(t) for t in (0, 999, 1000, 2000, 3000, 4000)]
    [32, 32, 64, 128, 256, 256]

    Where a schedule would divide the learning rate by a factor, let the batch grow by it instead:
    Smith, Kindermans, Ying and Le 2017, arXiv:1711.00489. With every=1 and a factor a little above
    1 it is thinc's and spaCy's compounding(start, limit, factor).
    """

    start: Length
    factor: Factor
    every: Length
    limit: Length

    def check(self) -> None:
        if self.limit < self.start if self.factor >= 1.0 else self.limit > self.start:
            raise ValueError(
                f"growing: limit = {self.limit}: expected "
                f"{'at least' if self.factor >= 1.0 else 'at most'} start = {self.start} with "
                f"factor = {self.factor!r}"
            )

    def value(self, t: int) -> float:
        size = geometric(self.start, self.factor, t // self.every)
        return min(size, self.limit) if self.factor >= 1.0 else max(size, self.limit)


@dataclass(frozen=True, repr=False)
class rounded(_Whole):
    """Any schedule, rounded to whole numbers from 1 up.

        s(t) = max(⌊schedule(t) + 1/2⌋, 1)

    The schedule may be a number too. Raises TypeError or ValueError for anything else.

    >>> from steepest.schedules import linear, piecewise
    >>> size = rounded(piecewise((16, 64, 256), boundaries=(500, 1000)))
    >>> [size(t) for t in (0, 500, 1000)]
    [16, 64, 256]
    >>> size = rounded(linear(8, steps=100, end=64))
    >>> [size(t) for t in (0, 1, 50, 100)]
    [8, 9, 36, 64]
    """

    schedule: Part

    def value(self, t: int) -> float:
        return at(self.schedule, t)
