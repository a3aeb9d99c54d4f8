"""Given values at given updates."""

import math
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Annotated

from steepest.fields import Choice
from steepest.schedules.base import Schedule
from steepest.schedules.fields import Lengths, Numbers

__all__ = ["between", "interpolate", "piecewise"]


def between(a: float, b: float, u: float, shape: str) -> float:
    """From a to b, the share u of the way done, on a straight line or half a cosine wave."""
    if u <= 0.0 or u >= 1.0:
        return a if u <= 0.0 else b
    if shape == "linear":
        x = a + (b - a) * u
    else:
        x = b + (a - b) * ((1.0 + math.cos(math.pi * u)) / 2.0)
    return min(max(x, min(a, b)), max(a, b))  # a difference of far ends is rounded by their larger


@dataclass(frozen=True, repr=False)
class _Pieces(Schedule):
    values: Numbers
    boundaries: Lengths

    def check(self) -> None:
        if len(self.values) != len(self.boundaries) + 1:
            raise ValueError(
                f"{type(self).__name__}: values = {self.values}: expected one more than "
                f"boundaries = {self.boundaries}"
            )


@dataclass(frozen=True, repr=False)
class piecewise(_Pieces):
    """A constant value between each two boundaries.

        s(t) = values[n], n the number of boundaries <= t

    So update `boundaries[0]` is the first with `values[1]`. Values are any finite numbers, one
    more than boundaries; boundaries >= 1 in updates, increasing. Raises TypeError or ValueError
    for anything else.

    >>> lr = piecewise((0.3, 0.1, 0.01), boundaries=(100, 200))
    >>> [lr(t) for t in (0, 99, 100, 199, 200)]
    [0.3, 0.3, 0.1, 0.1, 0.01]

    PyTorch's ConstantLR(factor, total_iters=n) is piecewise((lr * factor, lr), (n,)). Keras' class
    of this kind changes one update later.
    """

    def value(self, t: int) -> float:
        return self.values[bisect_right(self.boundaries, t)]


@dataclass(frozen=True, repr=False)
class interpolate(_Pieces):
    """Goes through given values, on straight lines or half cosine waves, and stays at the last.

        s(t) = a + (b - a) u                    (linear)
               b + (a - b) (1 + cos(π u)) / 2   (cosine)

    where u is the share of the way from the last point, with value a, to the next, with value b.
    The first value is at t = 0, each other at its boundary. Values are any finite numbers, one
    more than boundaries; boundaries >= 1 in updates, increasing. Raises TypeError or ValueError
    for anything else.

    >>> lr = interpolate((0.0, 0.5, 0.25), boundaries=(10, 20))
    >>> [lr(t) for t in (0, 5, 10, 15, 20, 99)]
    [0.0, 0.25, 0.5, 0.375, 0.25, 0.25]

    optax's piecewise_interpolate_schedule, with values in place of factors.
    """

    shape: Annotated[str, Choice(("linear", "cosine"))] = field(default="linear", kw_only=True)

    def value(self, t: int) -> float:
        n = bisect_right(self.boundaries, t)
        if n == len(self.boundaries):
            return self.values[n]
        start = self.boundaries[n - 1] if n else 0
        u = (t - start) / (self.boundaries[n] - start)
        return between(self.values[n], self.values[n + 1], u, self.shape)
