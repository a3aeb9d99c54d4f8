"""The two schedules that AdEMAMix comes with."""

import math
from dataclasses import dataclass

from steepest.schedules.base import Schedule
from steepest.schedules.fields import Inside, Length, Level

__all__ = ["ademamix_alpha", "ademamix_beta3"]


@dataclass(frozen=True, repr=False)
class ademamix_alpha(Schedule):
    """The weight of AdEMAMix's slow average: a straight rise from 0.

        s(t) = alpha min((t + 1) / steps, 1)

    alpha >= 0, steps >= 1 in updates: the length of the rise. Raises TypeError or ValueError for
    anything else.

    >>> alpha = ademamix_alpha(5.0, steps=4)
    >>> [alpha(t) for t in (0, 1, 3, 99)]
    [1.25, 2.5, 5.0, 5.0]

    Source: Pagliardini, Ablin and Grangier 2024, arXiv:2409.03137, with the paper's
    count of updates from 1. The same as constant(alpha, warmup=steps).
    """

    alpha: Level
    steps: Length

    def value(self, t: int) -> float:
        return self.alpha * min((t + 1) / self.steps, 1.0)


@dataclass(frozen=True, repr=False)
class ademamix_beta3(Schedule):
    """The decay of AdEMAMix's slow average: its half-life grows on a straight line.

        s(t) = exp(ln start · ln beta3 / ((1 - u) ln beta3 + u ln start))
        u    = min((t + 1) / steps, 1)

    from `start`, the β₁ of the optimizer, to beta3. Both are inside (0, 1); steps >= 1 in
    updates. Raises TypeError or ValueError for anything else.

    >>> beta3 = ademamix_beta3(0.9999, steps=1000)
    >>> [round(beta3(t), 6) for t in (0, 99, 499, 999, 10_000)]
    [0.949964, 0.999009, 0.9998, 0.9999, 0.9999]

    Source: Pagliardini, Ablin and Grangier 2024, arXiv:2409.03137, appendix A, with
    the paper's count of updates from 1. Their code adds 1e-8 to both before the logarithm.
    """

    beta3: Inside
    steps: Length
    start: Inside = 0.9

    def value(self, t: int) -> float:
        if t + 1 >= self.steps:
            return self.beta3
        u = (t + 1) / self.steps
        a, b = math.log(self.start), math.log(self.beta3)
        return math.exp(a * b / ((1.0 - u) * b + u * a))
