"""Decays without an end: by a power, by a factor, at milestones."""

import math
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Annotated

from steepest.fields import Many, Range
from steepest.schedules.base import COMMON, Schedule, geometric
from steepest.schedules.fields import Count, Factor, Flag, Length, Level

__all__ = ["exponential", "inverse_sqrt", "inverse_time", "multi_step", "noam", "step"]


@dataclass(frozen=True, repr=False)
class inverse_sqrt(Schedule):
    """Decays with the square root of the number of updates.

        s(t) = lr / √((t + timescale) / timescale)

    lr >= 0, timescale > 0 in updates: after three of it, half of lr is left.
    Raises TypeError or ValueError for anything else.

    >>> lr = inverse_sqrt(0.3)
    >>> [lr(t) for t in (0, 3, 8)]
    [0.3, 0.15, 0.09999999999999999]

    Source: Zinkevich 2003, "Online Convex Programming and Generalized Infinitesimal Gradient
    Ascent", theorem 1 (η_t = t^(-1/2), with t counted from 1). The schedule of that name for
    transformers counts through its warm-up: `noam`.
    """

    lr: Level
    timescale: Factor = field(default=1.0, kw_only=True)

    def value(self, t: int) -> float:
        return self.lr / math.sqrt((t + self.timescale) / self.timescale)


@dataclass(frozen=True, repr=False)
class noam(Schedule):
    """The schedule of the first transformers: a straight rise, then the inverse square root.

        s(t) = lr / √width · min(1 / √n, n / warmup^(3/2))
        n    = t + 1

    The count goes on through the warm-up. The largest value, at t = warmup - 1, is
    lr / √(width · warmup). lr >= 0 is a factor, 1 in the paper; width >= 1 is the model's, and
    warmup >= 1 in updates. Raises TypeError or ValueError for anything else.

    >>> lr = noam(1.0, width=16, warmup=4)
    >>> [lr(t) for t in (0, 1, 3, 15)]
    [0.03125, 0.0625, 0.125, 0.0625]

    Source: Vaswani et al. 2017, arXiv:1706.03762, equation 3.
    """

    lr: Level
    width: Length
    warmup: Length = field(kw_only=True)

    def check(self) -> None:
        for name in COMMON[1:]:
            if getattr(self, name) != getattr(Schedule, name):
                raise ValueError(
                    f"noam: {name} = {getattr(self, name)!r}: expected none: the warm-up of this "
                    "schedule is given by its formula"
                )

    def value(self, t: int) -> float:
        return self.whole(t + self.warmup)

    def whole(self, t: int) -> float:
        n, w = t + 1, self.warmup
        share = n / (w * math.sqrt(w)) if n < w else 1.0 / math.sqrt(n)
        return self.lr / math.sqrt(self.width) * share


@dataclass(frozen=True, repr=False)
class inverse_time(Schedule):
    """Decays with the number of updates.

        s(t) = lr / (1 + k u)
        u    = t / period, or ⌊t / period⌋ with staircase

    lr >= 0, k >= 0: after period / k updates half of lr is left; period >= 1 in updates.
    Raises TypeError or ValueError for anything else.

    >>> lr = inverse_time(0.1, k=0.5)
    >>> [lr(t) for t in (0, 2, 8)]
    [0.1, 0.05, 0.02]

    Source: Robbins and Monro 1951, "A Stochastic Approximation Method", as commonly parametrised.
    """

    lr: Level
    k: Level
    period: Length = field(default=1, kw_only=True)
    staircase: Flag = field(default=False, kw_only=True)

    def value(self, t: int) -> float:
        u = t // self.period if self.staircase else t / self.period
        return self.lr / (1.0 + self.k * u)


@dataclass(frozen=True, repr=False)
class exponential(Schedule):
    """Multiplies by gamma in every period, by default at every update.

        s(t) = lr gammaᵘ
        u    = max(t - begin, 0) / period, or its whole part with staircase

    and never passes `end`, where that is not 0: the lowest value with gamma < 1, the highest with
    gamma > 1. lr >= 0, gamma > 0, period >= 1 and begin >= 0 in updates.
    Raises TypeError or ValueError for anything else.

    >>> lr = exponential(0.1, gamma=0.5)
    >>> [lr(t) for t in range(4)]
    [0.1, 0.05, 0.025, 0.0125]
    >>> lr = exponential(0.5, gamma=0.5, period=10, staircase=True, end=0.1)
    >>> [lr(t) for t in (0, 9, 10, 20, 30)]
    [0.5, 0.5, 0.25, 0.125, 0.1]

    The same values as PyTorch's ExponentialLR stepped once per update, and as optax's
    exponential_decay(lr, period, gamma, begin, staircase, end).
    """

    lr: Level
    gamma: Factor
    period: Length = field(default=1, kw_only=True)
    staircase: Flag = field(default=False, kw_only=True)
    begin: Count = field(default=0, kw_only=True)
    end: Level = field(default=0.0, kw_only=True)

    def check(self) -> None:
        if self.end and (self.end > self.lr if self.gamma < 1.0 else self.end < self.lr):
            side = "at most" if self.gamma < 1.0 else "at least"
            raise ValueError(
                f"exponential: end = {self.end!r}: expected {side} lr = {self.lr!r} with gamma = "
                f"{self.gamma!r}"
            )

    def value(self, t: int) -> float:
        t = max(t - self.begin, 0)
        u = t // self.period if self.staircase else t / self.period
        value = geometric(self.lr, self.gamma, u)
        if not self.end:
            return value
        return max(value, self.end) if self.gamma < 1.0 else min(value, self.end)


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
        return geometric(self.lr, self.gamma, t // self.step_size)


@dataclass(frozen=True, repr=False)
class multi_step(Schedule):
    """Multiplies by gamma at each milestone.

        s(t) = lr gammaⁿ, n the number of milestones <= t

    lr >= 0, milestones >= 0 in updates and in order, one that comes twice counting twice;
    gamma > 0. Raises TypeError or ValueError for anything else.

    >>> lr = multi_step(0.5, milestones=(30, 80), gamma=0.5)
    >>> [lr(t) for t in (0, 29, 30, 80)]
    [0.5, 0.5, 0.25, 0.125]

    The same values as PyTorch's MultiStepLR stepped once per update.
    """

    lr: Level
    milestones: Annotated[tuple[int, ...], Many(Range(int, 0))]
    gamma: Factor = 0.1

    def check(self) -> None:
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError(f"multi_step: milestones = {self.milestones}: expected them in order")

    def value(self, t: int) -> float:
        return geometric(self.lr, self.gamma, bisect_right(self.milestones, t))
