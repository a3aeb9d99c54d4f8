"""The strong Wolfe line search by cubic interpolation, over numbers alone.

Along a direction of descent, φ(t) is the loss and φ'(t) its slope. A step t satisfies the strong
Wolfe conditions if

    φ(t) ≤ φ(0) + 1e-4 t φ'(0)      it falls enough
    |φ'(t)| ≤ 0.9 |φ'(0)|           it is flat enough

Steps grow until such a t lies between two of them, then the interval shrinks. The procedure is
that of PyTorch's ``strong_wolfe``, evaluation for evaluation, which goes back to Schmidt's minFunc
(Nocedal, Wright: Numerical Optimization, 2006, algorithms 3.5 and 3.6). It differs in one point: a
step whose loss or gradient is infinite or NaN counts as infinitely high, so that the search turns
back. PyTorch takes a NaN for a fall and goes on to longer steps.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from steepest.memory.arrays import Array

_FALL, _FLAT = 1e-4, 0.9


class Point(NamedTuple):
    """A step along the direction: its loss, its gradient, and its slope along the direction."""

    t: float
    f: float
    g: Array
    slope: float


class StrongWolfe:
    """One search.

    evaluate: the point of a step. start: that of t = 0, whose slope is negative. reach: max |d|;
    an interval in which no parameter moves by `tolerance` is not searched any more. trials: how
    many evaluations there may be after the first. drop: called with points not needed any more.
    """

    def __init__(
        self,
        evaluate: Callable[[float], Point],
        start: Point,
        reach: float,
        tolerance: float,
        trials: int,
        drop: Callable[[Point], None],
    ) -> None:
        self.evaluations = 0
        self._evaluate, self._start = evaluate, start
        self._reach, self._tolerance, self._trials = reach, tolerance, trials
        self._drop = drop

    def search(self, t: float) -> Point:
        """The step found, beginning with t; the lowest so far when there are no more trials."""
        bracket = self._bracket(t)
        return bracket[0] if len(bracket) == 1 else self._zoom(bracket)

    def _try(self, t: float) -> Point:
        self.evaluations += 1
        point = self._evaluate(t)
        slope = point.slope
        return point if math.isfinite(point.f + slope) else point._replace(f=math.inf)

    def _left(self) -> bool:
        return self.evaluations <= self._trials

    def _high(self, point: Point) -> bool:
        """Whether the point does not fall enough."""
        return point.f > self._start.f + _FALL * point.t * self._start.slope

    def _flat(self, point: Point) -> bool:
        return abs(point.slope) <= -_FLAT * self._start.slope

    def _bracket(self, t: float) -> list[Point]:
        """Two points with a step between them that satisfies the conditions; or such a step."""
        before, new = self._start, self._try(t)
        while self._left():
            # In the book the second comparison begins one point earlier; here it is PyTorch's.
            if self._high(new) or (self.evaluations > 2 and new.f >= before.f):
                return [before, new]
            if self._flat(new):
                self._release(before)
                return [new]
            if new.slope >= 0:
                return [before, new]
            low, high = new.t + 0.01 * (new.t - before.t), 10 * new.t
            t = cubic(before, new, low, high)
            self._release(before)
            before, new = new, self._try(t)
        self._release(before)
        return [self._start, new]

    def _zoom(self, bracket: list[Point]) -> Point:
        """The interval shrinks around the step; the lower of its ends is the best step so far."""
        low = 0 if bracket[0].f <= bracket[1].f else 1
        crept = done = False  # crept: the last trial lay close to an end
        while self._left() and not done:
            left, right = sorted((bracket[0].t, bracket[1].t))
            if (right - left) * self._reach < self._tolerance:
                break
            t = cubic(bracket[0], bracket[1], left, right)
            margin = 0.1 * (right - left)
            close = min(right - t, t - left) < margin
            if close and (crept or t >= right or t <= left):
                t = right - margin if abs(t - right) < abs(t - left) else left + margin
                close = False
            crept = close
            new = self._try(t)
            if self._high(new) or new.f >= bracket[low].f:
                self._release(bracket[1 - low])
                bracket[1 - low] = new
                low = 0 if bracket[0].f <= bracket[1].f else 1
                continue
            if self._flat(new):
                done = True
            elif new.slope * (bracket[1 - low].t - bracket[low].t) >= 0:
                bracket[low], bracket[1 - low] = bracket[1 - low], bracket[low]
            self._release(bracket[low])
            bracket[low] = new
        self._release(bracket[1 - low])
        return bracket[low]

    def _release(self, point: Point) -> None:
        if point is not self._start:
            self._drop(point)


def cubic(a: Point, b: Point, low: float, high: float) -> float:
    """Where the cubic through two points, with their slopes, has its minimum, within [low, high].

    The middle of [low, high] where it has none, or where a number is infinite or NaN.
    """
    left, right = (a, b) if a.t <= b.t else (b, a)
    width = right.t - left.t
    middle = (low + high) / 2
    if width == 0:
        return middle
    d1 = left.slope + right.slope - 3 * (left.f - right.f) / (left.t - right.t)
    square = d1 * d1 - left.slope * right.slope
    if not 0 <= square < math.inf:
        return middle
    d2 = math.sqrt(square)
    below = right.slope - left.slope + 2 * d2
    if below == 0:
        return middle
    t = right.t - width * ((right.slope + d2 - d1) / below)
    return min(max(t, low), high) if math.isfinite(t) else middle
