"""A constant value, and the falls that end it."""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from steepest.fields import Choice
from steepest.schedules.base import COMMON, Schedule
from steepest.schedules.fields import Length, Level

__all__ = ["constant", "warmup_stable_decay"]

# What is left of a fall when the share u of its way is done.
FALLS: dict[str, Callable[[float], float]] = {
    "linear": lambda u: 1.0 - u,
    "cosine": lambda u: (1.0 + math.cos(math.pi * u)) / 2.0,
    "1-sqrt": lambda u: 1.0 - math.sqrt(u),
    "1-square": lambda u: 1.0 - u * u,
}
Fall = Annotated[str, Choice(tuple(FALLS))]


@dataclass(frozen=True, repr=False)
class _Stable(Schedule):
    """Stays at lr after the warm-up, until `plateau_end`."""

    lr: Level

    @abstractmethod
    def plateau_end(self) -> float:
        """The first update that may have another value."""

    def cooldown(
        self, start: int, length: int, *, end: float = 0.0, shape: str = "1-sqrt"
    ) -> "warmup_stable_decay":
        """The schedule that leaves the plateau at update `start` and falls for `length` updates.

        Its values before `start` are the same to the last bit: a run that was saved on the plateau
        can be finished at any time, and as often as one likes. `end` and `shape` are those of
        `warmup_stable_decay`. Raises ValueError where `start` is not on the plateau.

        >>> trunk = constant(0.5, warmup=100)
        >>> branch = trunk.cooldown(900, 100, shape="linear")
        >>> [branch(t) for t in (0, 899, 900, 950, 1000)] == [trunk(0), 0.5, 0.5, 0.25, 0.0]
        True
        """
        if not self.warmup <= start <= self.plateau_end():
            raise ValueError(
                f"{self!r}: start = {start}: expected an update on the plateau, from "
                f"{self.warmup} to {self.plateau_end()}"
            )
        warmup: dict[str, Any] = {name: getattr(self, name) for name in COMMON}
        return warmup_stable_decay(self.lr, start + length, length, end, shape=shape, **warmup)


@dataclass(frozen=True, repr=False)
class constant(_Stable):
    """Always the same value; useful with a warm-up, and as the trunk of cool-downs.

        s(t) = lr

    lr >= 0. Raises TypeError or ValueError for anything else.

    >>> lr = constant(0.1, warmup=4)
    >>> [lr(t) for t in (0, 1, 3, 4, 1000)]
    [0.025, 0.05, 0.1, 0.1, 0.1]
    """

    def plateau_end(self) -> float:
        return math.inf

    def value(self, t: int) -> float:
        return self.lr


@dataclass(frozen=True, repr=False)
class warmup_stable_decay(_Stable):
    """Stays at lr, and falls to end in the last `decay` updates of the run.

        u    = clip((t - (steps - decay)) / decay, 0, 1)
        c    = 1 - u (linear), (1 + cos(π u)) / 2 (cosine), 1 - √u (1-sqrt), 1 - u² (1-square)
        s(t) = lr c + end (1 - c)

    with t counted from the start of the run. `steps` is the length of the whole run in updates,
    warm-up included; lr >= 0, end >= 0, decay >= 1, warmup + decay <= steps; `shape` is one of
    the four. Raises TypeError or ValueError for anything else.

    >>> lr = warmup_stable_decay(0.5, steps=1000, decay=100, warmup=50, shape="linear")
    >>> [lr(t) for t in (0, 49, 900, 950, 1000)]
    [0.01, 0.5, 0.5, 0.25, 0.0]

    The plateau can be left earlier, at any update and more than once: see `cooldown`.

    >>> lr.cooldown(500, 100)
    warmup_stable_decay(lr=0.5, steps=600, decay=100, end=0.0, warmup=50)

    Source: Hu et al. 2024, arXiv:2404.06395; the shapes: Hägele et al. 2024,
    arXiv:2405.18392, which finds 1-sqrt the best.
    """

    steps: Length
    decay: Length
    end: Level = 0.0
    shape: Fall = field(default="1-sqrt", kw_only=True)

    def check(self) -> None:
        if self.warmup + self.decay > self.steps:
            raise ValueError(
                f"warmup_stable_decay: warmup + decay = {self.warmup + self.decay}: expected at "
                f"most steps = {self.steps}, which counts both"
            )

    def plateau_end(self) -> float:
        return self.steps - self.decay

    def value(self, t: int) -> float:
        late = t - (self.steps - self.warmup - self.decay)
        if late <= 0:
            return self.lr
        c = FALLS[self.shape](min(late, self.decay) / self.decay)
        return self.lr * c + self.end * (1.0 - c)
