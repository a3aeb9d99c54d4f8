"""A trial as the objective sees it, and the rules that end a hopeless one early."""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from steepest.training.arguments import scalar

__all__ = ["Pruned", "Trial", "beaten", "below_median", "is_rung"]

FACTOR = 3  # of the candidates at a rung of "halving", one in so many goes on
FULL = 5  # trials that are done before "tpe", "random" and "grid" stop any early


class Pruned(Exception):
    """Raised by ``Trial.report`` to end a trial that is worse than others were at that point."""


class Trial:
    """A running trial, as the objective sees it: a place to report losses to.

    ``number``: that of the candidate, from 0. ``values``: what the objective got.
    """

    def __init__(
        self, number: int, values: dict[str, Any], hopeless: Callable[[dict[int, float]], bool]
    ) -> None:
        self.number = number
        self.values = values
        self.reports: dict[int, float] = {}
        self._hopeless = hopeless

    def report(self, loss: float, epoch: int) -> None:
        """Tells the search the held-out loss after an epoch, from 1.

        Raises Pruned where the trial is worse than others were, FloatingPointError for a loss that
        is infinite or NaN, ValueError for an epoch that is not above the last one reported; the
        objective lets all of them pass.
        """
        epoch = operator.index(epoch)
        last = max(self.reports, default=0)
        if epoch <= last:
            raise ValueError(
                f"epoch = {epoch}: expected more than {last}, the last one reported; count on, "
                "where a trial trains several times"
            )
        number = scalar(loss, "loss")
        if not math.isfinite(number):
            raise FloatingPointError(f"loss = {number} in epoch {epoch}")
        self.reports[epoch] = number
        if self._hopeless(self.reports):
            raise Pruned(f"pruned after epoch {epoch}")

    def callback(self, epoch: Any) -> None:
        """A callback for ``st.fit``: reports val_loss, or loss where there is no validation."""
        loss = epoch.loss if epoch.val_loss is None else epoch.val_loss
        self.report(loss, epoch.epoch)


def is_rung(epoch: int, first: int) -> bool:
    """Whether an epoch is the first rung times a power of FACTOR.

    >>> [epoch for epoch in range(1, 60) if is_rung(epoch, 2)]
    [2, 6, 18, 54]
    """
    rung = first
    while rung < epoch:
        rung *= FACTOR
    return rung == epoch


def beaten(loss: float, others: Sequence[float]) -> bool:
    """Whether a loss is not among the best 1/FACTOR of all that came to this rung.

    Of fewer than FACTOR, the best one goes on.

    Source: Li et al. 2018, arXiv:1810.05934, algorithm 2, but that a trial stopped here stays so.

    >>> beaten(2.0, []), beaten(2.0, [1.0]), beaten(2.0, [1.0, 3.0, 4.0, 5.0, 6.0])
    (False, True, False)
    """
    better = sum(x < loss for x in others)
    return better >= max(1, (len(others) + 1) // FACTOR)


def below_median(reports: Mapping[int, float], done: Sequence[Mapping[int, float]]) -> bool:
    """Whether a trial's best loss is worse than the median of those done, at its last epoch.

    Source: Golovin et al. 2017, "Google Vizier: A Service for Black-Box Optimization", section
    3.2.2, with the losses of the others at that epoch, not their running means.

    >>> done = [{1: x} for x in (1.0, 2.0, 3.0, 4.0, 5.0)]
    >>> below_median({1: 3.0}, done), below_median({1: 3.5}, done), below_median({1: 9.0}, [])
    (False, True, False)
    """
    if len(done) < FULL:
        return False
    epoch = max(reports)
    others = [x[epoch] for x in done if epoch in x]
    return bool(others) and min(reports.values()) > float(np.median(others))
