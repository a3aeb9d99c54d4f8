"""Schedules that fall and rise: restarts, cycles, one cycle."""

import math
from dataclasses import dataclass, field
from typing import Annotated

from steepest.fields import Choice
from steepest.schedules.annealing import check_steps
from steepest.schedules.base import Schedule, geometric
from steepest.schedules.fields import Count, Factor, Flag, Length, Level, Number, Share
from steepest.schedules.piecewise import between

__all__ = ["cosine_restarts", "cyclic", "one_cycle", "one_cycle_momentum"]


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
        else:  # at most log₂(t) rounds, and no rounding
            while t >= start + n:
                run, start, n = run + 1, start + n, n * self.mult
        c = (1.0 + math.cos(math.pi * (t - start) / n)) / 2.0
        return geometric(self.lr, self.gamma, run) * c + self.end * (1.0 - c)


@dataclass(frozen=True, repr=False)
class cyclic(Schedule):
    """Goes up and down between two values on straight lines.

        s(t) = lr + (max_lr - lr) w h
        w    = u / up for u <= up, (up + down - u) / down after it
        h    = 1 (triangular), 2⁻ⁱ (triangular2), gammaᵗ (exp_range)

    for the u-th update of the i-th cycle, both from 0. `step_size_up` and `step_size_down` are
    the lengths of the two ways in updates; 0 for the second means as long as the first.
    lr and max_lr are any finite numbers. Where lr is the larger one the cycle begins with the
    fall: so is the momentum that belongs to a learning rate. gamma > 0 belongs to exp_range.
    Raises TypeError or ValueError for anything else.

    >>> lr = cyclic(0.25, max_lr=0.75, step_size_up=2, mode="triangular2")
    >>> [lr(t) for t in range(9)]
    [0.25, 0.5, 0.75, 0.5, 0.25, 0.375, 0.5, 0.375, 0.25]
    >>> momentum = cyclic(0.9, max_lr=0.8, step_size_up=2, mode="triangular2")
    >>> [round(momentum(t), 4) for t in range(5)]
    [0.9, 0.85, 0.8, 0.85, 0.9]

    Source: Smith 2015, arXiv:1506.01186. The values of PyTorch's CyclicLR with base_lr=lr, and of
    its momentum with lr=max_momentum and max_lr=base_momentum.
    """

    lr: Number
    max_lr: Number
    step_size_up: Length = 2000
    step_size_down: Count = 0
    mode: Annotated[str, Choice(("triangular", "triangular2", "exp_range"))] = field(
        default="triangular", kw_only=True
    )
    gamma: Factor = field(default=1.0, kw_only=True)

    def check(self) -> None:
        if self.gamma != 1.0 and self.mode != "exp_range":
            raise ValueError(
                f"cyclic: gamma = {self.gamma!r}: expected mode='exp_range' with it, not "
                f"{self.mode!r}"
            )

    def value(self, t: int) -> float:
        up = self.step_size_up
        down = self.step_size_down or up
        run, u = divmod(t, up + down)
        way = u / up if u <= up else (up + down - u) / down
        height = (self.max_lr - self.lr) * way
        if self.mode == "triangular2":
            height = geometric(height, 0.5, run)
        elif self.mode == "exp_range":
            height = geometric(height, self.gamma, t)
        return self.lr + height


Anneal = Annotated[str, Choice(("cos", "linear"))]


def _value(stations: list[float], t: int, n: int, pct_start: float, anneal_strategy: str) -> float:
    """The value at update t of n, on the way from one of two or three phases' ends to the next."""
    ends = [0.0, pct_start * n - 1.0, n - 1.0]
    if len(stations) == 4:
        ends.insert(2, 2.0 * pct_start * n - 2.0)
    k = next((k for k in range(1, len(ends)) if t <= ends[k]), len(ends) - 1)
    length = ends[k] - ends[k - 1]
    way = (t - ends[k - 1]) / length if length > 0.0 else 1.0
    return between(stations[k - 1], stations[k], way, anneal_strategy)


def _check_phases(schedule: "one_cycle | one_cycle_momentum") -> None:
    check_steps(schedule, schedule.steps)
    if schedule.three_phase and schedule.pct_start > 0.5:
        raise ValueError(
            f"{type(schedule).__name__}: pct_start = {schedule.pct_start!r}: expected at most 0.5 "
            "with three_phase, as the second phase is as long as the first"
        )


@dataclass(frozen=True, repr=False)
class one_cycle(Schedule):
    """Rises to lr, falls far below where it began, and stays there.

        s(t) = b + (a - b) (1 + cos(π u)) / 2   (cos)
               a + (b - a) u                    (linear)
        a, b = two neighbours of lr/div_factor, lr, lr/div_factor/final_div_factor

    where u is the share of the way from a to b that is done. The first phase ends at
    t = pct_start (steps - warmup) - 1, counted from the end of the warm-up, the last at the last
    update of the run. With `three_phase` the value returns to lr/div_factor in as many updates as
    it rose in, and falls from there. lr >= 0 is the largest value; steps >= 1; pct_start in [0, 1],
    with three phases at most 1/2; the factors are > 0. Raises TypeError or ValueError for anything
    else.

    >>> lr = one_cycle(0.5, steps=10, pct_start=0.5, anneal_strategy="linear")
    >>> [round(lr(t), 4) for t in (0, 2, 4, 9, 99)]
    [0.02, 0.26, 0.5, 0.0, 0.0]

    Source: Smith and Topin 2017, arXiv:1708.07120. Arguments, defaults and values of PyTorch's
    OneCycleLR with max_lr=lr and total_steps=steps; the momentum is `one_cycle_momentum`.
    """

    lr: Level
    steps: Length
    pct_start: Share = field(default=0.3, kw_only=True)
    anneal_strategy: Anneal = field(default="cos", kw_only=True)
    div_factor: Factor = field(default=25.0, kw_only=True)
    final_div_factor: Factor = field(default=1e4, kw_only=True)
    three_phase: Flag = field(default=False, kw_only=True)

    def check(self) -> None:
        _check_phases(self)

    def value(self, t: int) -> float:
        first = self.lr / self.div_factor
        stations = [first, self.lr, first / self.final_div_factor]
        if self.three_phase:
            stations.insert(2, first)
        n = self.steps - self.warmup
        return _value(stations, t, n, self.pct_start, self.anneal_strategy)


@dataclass(frozen=True, repr=False)
class one_cycle_momentum(Schedule):
    """The momentum, or β₁, that goes with `one_cycle`: it falls while the rate rises.

        s(t) = b + (a - b) (1 + cos(π u)) / 2   (cos)
               a + (b - a) u                    (linear)
        a, b = two neighbours of max_momentum, base_momentum, max_momentum

    with the phases of `one_cycle`; in the third of three phases it stays at max_momentum.
    Give both schedules the same steps, warmup, pct_start, anneal_strategy and three_phase. The
    momenta are any finite numbers. Raises TypeError or ValueError for anything else.

    >>> momentum = one_cycle_momentum(10, pct_start=0.5, anneal_strategy="linear")
    >>> [round(momentum(t), 4) for t in (0, 2, 4, 9, 99)]
    [0.95, 0.9, 0.85, 0.95, 0.95]

    Source: Smith and Topin 2017, arXiv:1708.07120. Arguments, defaults and values of the momentum
    of PyTorch's OneCycleLR. As β₁ of an Adam: `betas=(one_cycle_momentum(steps), 0.999)`.
    """

    steps: Length
    base_momentum: Number = 0.85
    max_momentum: Number = 0.95
    pct_start: Share = field(default=0.3, kw_only=True)
    anneal_strategy: Anneal = field(default="cos", kw_only=True)
    three_phase: Flag = field(default=False, kw_only=True)

    def check(self) -> None:
        _check_phases(self)

    def value(self, t: int) -> float:
        stations = [self.max_momentum, self.base_momentum, self.max_momentum]
        if self.three_phase:
            stations.append(self.max_momentum)
        n = self.steps - self.warmup
        return _value(stations, t, n, self.pct_start, self.anneal_strategy)
