"""Falls from a first value to a last one within the run."""

import math
from abc import abstractmethod
from dataclasses import dataclass, field

from steepest.schedules.base import Schedule
from steepest.schedules.fields import Factor, Flag, Length, Level, Share

__all__ = ["check_steps", "cosine", "cosine_cycles", "linear", "polynomial", "rex"]


def check_steps(schedule: Schedule, steps: int) -> None:
    """Raises ValueError where the warm-up leaves none of the run's steps."""
    if schedule.warmup >= steps:
        raise ValueError(
            f"{type(schedule).__name__}: warmup = {schedule.warmup}: expected less than steps = "
            f"{steps}, which counts the warm-up too"
        )


@dataclass(frozen=True, repr=False)
class _Falling(Schedule):
    """From lr to end in steps - warmup updates, then end; `share` says what is left of lr."""

    lr: Level
    steps: Length
    end: Level = 0.0

    def check(self) -> None:
        check_steps(self, self.steps)

    @abstractmethod
    def share(self, t: int, n: int) -> float:
        """The weight of lr after t of n updates; end has the rest."""

    def value(self, t: int) -> float:
        n = self.steps - self.warmup
        c = self.share(min(t, n), n)
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

    def share(self, t: int, n: int) -> float:
        return 1.0 - t / n


@dataclass(frozen=True, repr=False)
class polynomial(_Falling):
    """Goes from lr to end along a power of the way that is left, then stays at end.

        c    = (1 - t/n)^power
        s(t) = lr c + end (1 - c)    for t < n
               end                   for t >= n
        n    = steps - warmup

    With `cycle`, after every n updates the curve is made longer by n and the value jumps up to
    its place on it: the n of the formula is then n ⌈t/n⌉ instead.

    `steps` is the length of the whole run in updates, warm-up included. lr >= 0, end >= 0,
    power > 0, steps >= 1, warmup < steps. Raises TypeError or ValueError for anything else.

    >>> lr = polynomial(0.5, steps=4, power=2)
    >>> [lr(t) for t in (0, 1, 2, 3, 4)]
    [0.5, 0.28125, 0.125, 0.03125, 0.0]
    >>> lr = polynomial(0.5, steps=4, cycle=True)
    >>> [lr(t) for t in (3, 4, 5, 6, 8)]
    [0.125, 0.0, 0.1875, 0.125, 0.0]

    With end = 0 the values of PyTorch's PolynomialLR(total_iters=steps, power=power); cycle as in
    Keras.
    """

    power: Factor = 1.0
    cycle: Flag = field(default=False, kw_only=True)

    def share(self, t: int, n: int) -> float:
        return float((1.0 - t / n) ** self.power)

    def value(self, t: int) -> float:
        n = self.steps - self.warmup
        if not self.cycle or t <= n:
            return super().value(t)
        c = self.share(t, n * -(-t // n))
        return self.lr * c + self.end * (1.0 - c)


@dataclass(frozen=True, repr=False)
class cosine(_Falling):
    """Falls from lr to end along half a cosine wave, then stays at end.

        c    = ((1 + cos(2π cycles u)) / 2)^exponent
        s(t) = lr c + end (1 - c)
        u    = min(t / (steps - warmup), 1)

    `steps` is the length of the whole run in updates, warm-up included: the value reaches end at
    t = steps. `cycles` is the number of whole waves: with the usual 0.5 the value only falls, with
    1.5 it falls, rises and falls. lr >= 0, end >= 0, steps >= 1, warmup < steps, exponent > 0,
    cycles > 0. Raises TypeError or ValueError for anything else.

    >>> lr = cosine(0.5, steps=10, end=0.25, warmup=2)
    >>> [round(lr(t), 4) for t in (0, 1, 2, 6, 10, 99)]
    [0.25, 0.5, 0.5, 0.375, 0.25, 0.25]

    Source: Loshchilov and Hutter 2016, arXiv:1608.03983, equation 5, one period. PyTorch's
    CosineAnnealingLR agrees up to t = steps and rises again after it; this one does not.
    """

    exponent: Factor = field(default=1.0, kw_only=True)
    cycles: Factor = field(default=0.5, kw_only=True)

    def share(self, t: int, n: int) -> float:
        c = (1.0 + math.cos(math.pi * self.cycles * 2.0 * (t / n))) / 2.0
        return float(c**self.exponent)


@dataclass(frozen=True, repr=False)
class cosine_cycles(_Falling):
    """Falls along half a cosine wave several times within the run, and jumps up in between.

        c    = (1 + cos(π (cycles t mod n) / n)) / 2
        s(t) = lr c + end (1 - c)    for t < n
               end                   for t >= n
        n    = steps - warmup

    `steps` is the length of the whole run in updates, warm-up included. lr >= 0, end >= 0,
    steps >= 1, warmup < steps, cycles >= 1. Raises TypeError or ValueError for anything else.

    >>> lr = cosine_cycles(0.5, steps=8, cycles=2)
    >>> [round(lr(t), 4) for t in (0, 2, 3, 4, 6, 8)]
    [0.5, 0.25, 0.0732, 0.5, 0.25, 0.0]

    Hugging Face's cosine_with_restarts. For periods of a given length, or growing ones, see
    `cosine_restarts`.
    """

    cycles: Length = 1

    def share(self, t: int, n: int) -> float:
        if t == n:
            return 0.0
        return (1.0 + math.cos(math.pi * (self.cycles * t % n / n))) / 2.0


@dataclass(frozen=True, repr=False)
class rex(_Falling):
    """Falls slowly at first and ever faster towards the end.

        c    = (1 - u) / (1 - beta u)
        s(t) = lr c + end (1 - c)
        u    = min(t / (steps - warmup), 1)

    beta = 0 is a straight line, and the larger, the later the fall; it is below 1, and 1/2 in the
    paper. `steps` is the length of the whole run in updates, warm-up included. lr >= 0, end >= 0,
    steps >= 1, warmup < steps. Raises TypeError or ValueError for anything else.

    >>> lr = rex(0.5, steps=8)
    >>> [round(lr(t), 4) for t in (0, 4, 6, 7, 8)]
    [0.5, 0.3333, 0.2, 0.1111, 0.0]

    Source: Chen, Wolfe and Kyrillidis 2021, arXiv:2107.04197, where the formula reads
    (1 - u) / (1/2 + (1 - u)/2).
    """

    beta: Share = field(default=0.5, kw_only=True)

    def check(self) -> None:
        super().check()
        if self.beta == 1.0:
            raise ValueError("rex: beta = 1.0: expected less than 1; at 1 the value never falls")

    def share(self, t: int, n: int) -> float:
        u = t / n
        return (1.0 - u) / (1.0 - self.beta * u)
