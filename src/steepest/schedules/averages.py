"""A schedule for the rate of averaged parameters."""

from dataclasses import dataclass

from steepest.schedules.base import Schedule
from steepest.schedules.fields import Inside

__all__ = ["ema_warmup"]


@dataclass(frozen=True, repr=False)
class ema_warmup(Schedule):
    """The decay rate of a moving average that forgets its beginning: give it as ``ema=``.

        s(t) = min(rate, (t + 2) / (t + 11))

    The rate, inside (0, 1), is reached after about 9 / (1 - rate) updates; without that rise the
    first parameters, which are random, weigh as much as those of many updates. Raises TypeError or
    ValueError for anything else.

    >>> rate = ema_warmup(0.999)
    >>> [round(rate(t), 4) for t in (0, 9, 99, 8989, 10**6)]
    [0.1818, 0.55, 0.9182, 0.999, 0.999]

    Source: tf.train.ExponentialMovingAverage, as min(rate, (1 + n) / (10 + n)) with the number n
    of updates, counted from 1 here as in torch_ema and thinc.
    """

    rate: Inside

    def value(self, t: int) -> float:
        return min(self.rate, (t + 2) / (t + 11))
