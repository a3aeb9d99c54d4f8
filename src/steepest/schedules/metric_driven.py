"""Schedules that watch a metric: the only ones with a state.

`observe(metric)` takes one measurement, such as the validation loss of an epoch. What they
remember is in their attribute `state`, and `state_dict` gives it as numbers to be saved.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, Any, SupportsFloat

from steepest.fields import Choice
from steepest.schedules.base import Part, Schedule, at
from steepest.schedules.fields import Count, Factor, Inside, Length, Level

__all__ = ["State", "greedy", "plateau"]

Mode = Annotated[str, Choice(("min", "max"))]
Threshold = Annotated[str, Choice(("rel", "abs"))]


@dataclass
class State:
    """What a schedule remembers of its measurements.

    `level` is the learning rate, or the factor of the schedule inside; `best` the best metric, None
    before the first; `bad` and `good` count the last measurements without and with improvement;
    `cooldown` and `pause` the measurements still to be passed over after a cut and after a rise;
    `left` those at the lowest rate until everything begins again.
    """

    level: float
    best: float | None = None
    bad: int = 0
    good: int = 0
    cooldown: int = 0
    pause: int = 0
    left: int = 0


@dataclass(frozen=True, repr=False, eq=False)
class _Watching(Schedule):
    mode: Mode = field(default="min", kw_only=True)
    patience: Count = field(default=10, kw_only=True)
    threshold: Level = field(default=1e-4, kw_only=True)
    threshold_mode: Threshold = field(default="rel", kw_only=True)
    cooldown: Count = field(default=0, kw_only=True)
    eps: Level = field(default=1e-8, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.__dict__["_state"] = self.first_state()

    @property
    def state(self) -> State:
        """What is remembered of the measurements."""
        state: State = self.__dict__["_state"]
        return state

    @abstractmethod
    def first_state(self) -> State:
        """The state before the first measurement."""

    @abstractmethod
    def take(self, metric: float, state: State) -> None:
        """Changes the state by one measurement."""

    def observe(self, metric: SupportsFloat) -> None:
        """Takes one measurement. One that is not finite is no improvement.

        Raises TypeError for what is not a number.
        """
        try:
            if isinstance(metric, str):
                raise TypeError
            number = float(metric)
        except (TypeError, ValueError):
            name = type(self).__name__
            raise TypeError(f"{name}: metric = {metric!r}: expected a number") from None
        self.take(number, self.state)

    def better(self, metric: float, best: float | None) -> bool:
        """Whether a metric improves on the best one by more than the threshold."""
        if best is None or not math.isfinite(metric):
            return math.isfinite(metric)
        sign = 1.0 if self.mode == "max" else -1.0
        if self.threshold_mode == "abs":
            limit = best + sign * self.threshold
        else:  # a share of its size: away from 0 or towards it, as improving goes
            limit = best * (1.0 + (sign if best >= 0.0 else -sign) * self.threshold)
        return sign * metric > sign * limit

    def state_dict(self) -> dict[str, float]:
        """The state as numbers; there is no best where nothing has been measured."""
        return {name: x for name, x in asdict(self.state).items() if x is not None}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Takes over a state. Raises ValueError, changing nothing, where it is none."""
        names = {f.name for f in fields(State)}
        wrong = not names - {"best"} <= set(state) <= names or any(
            isinstance(x, bool) or not isinstance(x, (int, float)) or not math.isfinite(x)
            for x in state.values()
        )
        if wrong:
            raise ValueError(
                f"{type(self).__name__}: state = {dict(state)!r}: expected the finite numbers "
                f"{', '.join(f.name for f in fields(State))} of a state_dict"
            )
        kinds = {name: float if name in ("level", "best") else int for name in state}
        found = {name: kind(state[name]) for name, kind in kinds.items()}
        self.__dict__["_state"] = State(**found)  # type: ignore[arg-type]

    def __getstate__(self) -> dict[str, Any]:  # a copy goes its own way
        return self.__dict__ | {"_state": replace(self.state)}

    def __eq__(self, other: object) -> bool:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((type(self), *(getattr(self, f.name) for f in fields(self))))


@dataclass(frozen=True, repr=False, eq=False)
class plateau(_Watching):
    """Multiplies by factor when a metric has stopped improving.

        s(t)  = level                             for a number lr
        s(t)  = max(lr(t) level, min(lr(t), min_lr))   for a schedule lr
        level ← max(factor level, min_lr)    after more than `patience` measurements in a row
                                             without improvement

    `observe(metric)` takes a measurement; `fit` does so after each epoch. A metric improves when
    it is below (mode="min") or above ("max") the best one by more than `threshold`, a share of the
    best ("rel") or a difference ("abs"). After a cut, `cooldown` measurements are not counted as
    bad. A cut of the level by `eps` or less is not made.

    lr >= 0 or a schedule, whose level begins at 1 and has no lower limit of its own; factor inside
    (0, 1); patience >= 0 and cooldown >= 0 in measurements; threshold, min_lr and eps >= 0.
    Raises TypeError or ValueError for anything else.

    >>> lr = plateau(0.5, factor=0.5, patience=1)
    >>> for loss in (3.0, 2.0, 2.0, 2.0):
    ...     lr.observe(loss)
    >>> lr(0), lr.state.best
    (0.25, 2.0)
    >>> lr = plateau(0.5, factor=0.5, patience=1)
    >>> lr.load_state_dict({"level": 0.25, "best": 2.0, "bad": 0, "good": 0, "cooldown": 0,
    ...                     "pause": 0, "left": 0})
    >>> lr(0)
    0.25

    It may stand around other schedules, plateau(sequence(...)), but not inside them, as they are
    pure. Arguments, defaults and values as PyTorch's ReduceLROnPlateau, with two differences. A
    negative metric with threshold_mode="rel" has to improve by a share of its size; there, one
    that stays the same counts as improved for ever. A metric of -∞ is not taken for the best.
    """

    lr: Part
    factor: Inside = field(default=0.1, kw_only=True)
    min_lr: Level = field(default=0.0, kw_only=True)

    def check(self) -> None:
        if not isinstance(self.lr, Schedule) and self.lr < 0:
            raise ValueError(f"plateau: lr = {self.lr!r}: expected a schedule or a number >= 0")

    def first_state(self) -> State:
        return State(1.0 if isinstance(self.lr, Schedule) else self.lr)

    def take(self, metric: float, state: State) -> None:
        if self.better(metric, state.best):
            state.best, state.bad = metric, 0
        else:
            state.bad += 1
        if state.cooldown > 0:
            state.cooldown -= 1
            state.bad = 0
        if state.bad > self.patience:
            low = 0.0 if isinstance(self.lr, Schedule) else self.min_lr
            lower = max(state.level * self.factor, low)
            if state.level - lower > self.eps:
                state.level = lower
            state.cooldown, state.bad = self.cooldown, 0

    def value(self, t: int) -> float:
        if not isinstance(self.lr, Schedule):
            return self.state.level
        inside = at(self.lr, t)
        return max(inside * self.state.level, min(inside, self.min_lr))


@dataclass(frozen=True, repr=False, eq=False)
class greedy(_Watching):
    """Multiplies by factor when a metric stops improving, and divides by it while it improves.

        s(t)  = level
        level ← max(factor level, min_lr)    after more than `patience` measurements without,
        level ← min(level / factor, max_lr)  after more than `patience` with improvement, in a row

    `observe(metric)` takes a measurement. `mode`, `threshold`, `threshold_mode`, `cooldown` and
    `eps` are those of `plateau`; after a cut, `cooldown` measurements are passed over altogether,
    after a rise `pause`. At the lowest rate, the `reset_after`-th cut begins anew with lr and
    without a best metric.

    min_lr <= lr <= max_lr, factor inside (0, 1), patience, cooldown and pause >= 0 and
    reset_after >= 1 in measurements and whole. Raises TypeError or ValueError for anything else.

    >>> lr = greedy(0.5, factor=0.5, patience=1)
    >>> for loss in (4.0, 3.0, 2.0, 2.0):
    ...     lr.observe(loss)
    >>> lr(0), lr.state.bad
    (1.0, 1)

    Source: arXiv:2512.14527. Arguments, defaults and values as Hugging Face's GreedyLR, where
    pause is called warmup and reset_after reset_start; its smooth=True is left to the caller.
    """

    lr: Level
    factor: Inside = field(default=0.95, kw_only=True)
    threshold: Level = field(default=1e-6, kw_only=True)
    threshold_mode: Threshold = field(default="abs", kw_only=True)
    pause: Count = field(default=0, kw_only=True)
    min_lr: Level = field(default=1e-3, kw_only=True)
    max_lr: Factor = field(default=1.0, kw_only=True)
    reset_after: Length = field(default=500, kw_only=True)

    def check(self) -> None:
        if not self.min_lr <= self.lr <= self.max_lr:
            raise ValueError(
                f"greedy: lr = {self.lr!r}: expected a number from min_lr = {self.min_lr!r} to "
                f"max_lr = {self.max_lr!r}"
            )

    def first_state(self) -> State:
        return State(self.lr, left=self.reset_after)

    def take(self, metric: float, state: State) -> None:
        if state.cooldown > 0 or state.pause > 0:
            if state.cooldown > 0:
                state.cooldown -= 1
            else:
                state.pause -= 1
            state.bad = state.good = 0
            return
        if self.better(metric, state.best):
            state.best, state.bad = metric, 0
            state.good += 1
        else:
            state.good = 0
            state.bad += 1
        if state.good > self.patience:
            self.rise(state)
        elif state.bad > self.patience:
            self.cut(state)

    def rise(self, state: State) -> None:
        higher = min(state.level / self.factor, self.max_lr)
        if higher - state.level > self.eps:
            state.level = higher
        state.left, state.pause, state.good = self.reset_after, self.pause, 0

    def cut(self, state: State) -> None:
        lower = max(state.level * self.factor, self.min_lr)
        if state.level - lower > self.eps:
            state.level = lower
        if state.level <= self.min_lr:
            state.left -= 1
        if state.left <= 0:
            vars(state).update(asdict(self.first_state()))
        state.cooldown, state.bad = self.cooldown, 0

    def value(self, t: int) -> float:
        return self.state.level
