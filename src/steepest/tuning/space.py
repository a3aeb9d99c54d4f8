"""The search space: distributions of hyper-parameters, and grids of them.

A distribution works with *stored* values, which a database can keep: floats, integers, and for a
choice the labels of its values. ``decode`` turns a stored value into the one that the objective
gets, so that a choice may be between any objects: tuples, None, schedules, classes.
"""

import itertools
import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from steepest.fields import described

__all__ = ["Distribution", "Space", "choice", "integer", "log_uniform", "uniform"]

LABEL = 60  # characters of a label; the column of a database is short


class Distribution(ABC):
    """The values that one hyper-parameter may take."""

    log: bool = False
    """Whether ratios matter, not differences; also the axis of a plot."""

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> Any:
        """A random value, as stored."""

    @abstractmethod
    def grid(self) -> list[Any]:
        """The points of a grid, as stored. Raises ValueError if none were asked for."""

    @abstractmethod
    def optuna(self, distributions: Any) -> Any:
        """The distribution of stored values in Optuna's terms."""

    def decode(self, stored: Any) -> Any:
        """The value behind a stored value."""
        return stored


@dataclass(frozen=True)
class uniform(Distribution):
    """Real numbers, each as likely as any other.

        low + (high - low) u,    u ~ Uniform(0, 1)

    low < high, both finite. For a grid, ``points`` (2 or more) values at equal distances, the ends
    included. Raises TypeError or ValueError for anything else.

    >>> uniform(0.0, 1.0, points=3).grid()
    [0.0, 0.5, 1.0]
    >>> uniform(0.0, 1.0).draw(np.random.default_rng(0))
    0.6369616873214543
    """

    low: float
    high: float
    points: int | None = None

    def __post_init__(self) -> None:
        _check_range(self, numbers.Real, "a finite number")
        object.__setattr__(self, "low", float(self.low))
        object.__setattr__(self, "high", float(self.high))

    def draw(self, rng: np.random.Generator) -> float:
        return min(self.low + (self.high - self.low) * float(rng.random()), self.high)

    def grid(self) -> list[float]:
        return [float(x) for x in np.linspace(self.low, self.high, _points(self))]

    def optuna(self, distributions: Any) -> Any:
        return distributions.FloatDistribution(self.low, self.high, log=self.log)


class log_uniform(uniform):
    """Positive real numbers, each order of magnitude as likely as any other.

        low (high / low)ᵘ,    u ~ Uniform(0, 1)

    0 < low < high, both finite; for learning rates and weights of penalties. For a grid,
    ``points`` (2 or more) values at equal ratios. Raises TypeError or ValueError for anything
    else.

    >>> [round(x, 6) for x in log_uniform(1e-4, 1e-1, points=4).grid()]
    [0.0001, 0.001, 0.01, 0.1]
    >>> log_uniform(1e-4, 1e-1).draw(np.random.default_rng(0))
    0.0081448869730761
    """

    log = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low <= 0:
            raise ValueError(f"{self!r}: low = {self.low!r}: expected more than 0")

    def draw(self, rng: np.random.Generator) -> float:
        value = float(self.low * (self.high / self.low) ** rng.random())
        return min(max(value, self.low), self.high)

    def grid(self) -> list[float]:
        inner = np.geomspace(self.low, self.high, _points(self))[1:-1]
        return [self.low, *(float(x) for x in inner), self.high]


@dataclass(frozen=True)
class integer(Distribution):
    """Whole numbers from low to high, both included.

    Each is as likely as any other; with ``log``, each order of magnitude is, and low must be 1 or
    more. For a grid, ``points`` (2 or more) values spread like that, rounded, each once. Raises
    TypeError or ValueError for anything else.

    >>> integer(1, 256, log=True, points=5).grid(), integer(1, 3, points=9).grid()
    ([1, 4, 16, 64, 256], [1, 2, 3])
    >>> integer(1, 6).draw(np.random.default_rng(0))
    6
    """

    low: int
    high: int
    log: bool = False
    points: int | None = None

    def __post_init__(self) -> None:
        _check_range(self, numbers.Integral, "an integer")
        if not isinstance(self.log, bool):
            raise TypeError(f"{self!r}: log = {self.log!r}: expected True or False")
        if self.log and self.low < 1:
            raise ValueError(f"{self!r}: low = {self.low}: expected 1 or more with log")
        object.__setattr__(self, "low", int(self.low))
        object.__setattr__(self, "high", int(self.high))

    def draw(self, rng: np.random.Generator) -> int:
        if not self.log:
            return int(rng.integers(self.low, self.high, endpoint=True))
        low, high = self.low - 0.5, self.high + 0.5  # each integer has an interval of its own
        value = round(float(low * (high / low) ** rng.random()))
        return min(max(value, self.low), self.high)

    def grid(self) -> list[int]:
        spaced = np.geomspace if self.log else np.linspace
        return sorted({round(float(x)) for x in spaced(self.low, self.high, _points(self))})

    def optuna(self, distributions: Any) -> Any:
        return distributions.IntDistribution(self.low, self.high, log=self.log)


@dataclass(frozen=True)
class choice(Distribution):
    """One of the given values, each as likely as any other; a plain list says the same.

    The values may be any objects. A database keeps them by their labels, which say what they are
    as Python writes them; objects that Python writes with their address (functions, most classes
    of your own) are named by their type or name. Raises ValueError for no values, TypeError for
    something that is no sequence.

    >>> choice([(0.9, 0.999), None, np.tanh]).grid()
    ['(0.9, 0.999)', 'None', 'tanh']
    """

    values: Sequence[Any]
    labels: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        if isinstance(self.values, (str, bytes)) or not isinstance(self.values, Sequence):
            raise TypeError(f"choice({self.values!r}): expected a list or tuple of values")
        if not self.values:
            raise ValueError(f"choice({self.values!r}): expected at least one value")
        object.__setattr__(self, "values", tuple(self.values))
        object.__setattr__(self, "labels", _labels(self.values))

    def __repr__(self) -> str:
        return f"choice([{', '.join(self.labels)}])"

    def draw(self, rng: np.random.Generator) -> str:
        return self.labels[int(rng.integers(len(self.labels)))]

    def grid(self) -> list[str]:
        return list(self.labels)

    def optuna(self, distributions: Any) -> Any:
        return distributions.CategoricalDistribution(self.labels)

    def decode(self, stored: Any) -> Any:
        return self.values[self.labels.index(stored)]


class Space:
    """All hyper-parameters of a search by name, in their order.

    Raises TypeError or ValueError, naming the hyper-parameter, for anything but a dict from names
    to distributions or lists.

    >>> space = Space({"lr": log_uniform(1e-3, 1e-1, points=2), "batch_size": [8, None]})
    >>> [space.decode(point) for point in space.grid()][1:3]
    [{'lr': 0.001, 'batch_size': None}, {'lr': 0.1, 'batch_size': 8}]
    """

    def __init__(self, space: Mapping[str, Distribution | Sequence[Any]]) -> None:
        if not isinstance(space, Mapping):
            raise TypeError(f"space is a {type(space).__name__}; expected a dict of distributions")
        if not space:
            raise ValueError("space is empty; give at least one hyper-parameter")
        self.distributions: dict[str, Distribution] = {}
        for name, given in space.items():
            if not isinstance(name, str):
                raise TypeError(f"space has the name {name!r}; expected a string")
            self.distributions[name] = _distribution(name, given)

    def describe(self) -> dict[str, str]:
        """Every distribution in words, to compare with a stored one."""
        return {name: described(x) for name, x in self.distributions.items()}

    def draw(self, seed: int, number: int) -> dict[str, Any]:
        """The candidate of that number in a random search, as stored."""
        rng = np.random.default_rng((seed, number))
        return {name: x.draw(rng) for name, x in self.distributions.items()}

    def grid(self) -> list[dict[str, Any]]:
        """All points of the grid, as stored; the last hyper-parameter changes fastest."""
        axes = []
        for name, distribution in self.distributions.items():
            try:
                axes.append(distribution.grid())
            except ValueError as error:
                raise ValueError(f"space[{name!r}] = {error}") from None
        return [dict(zip(self.distributions, p, strict=True)) for p in itertools.product(*axes)]

    def decode(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """The values behind stored values."""
        return {name: x.decode(stored[name]) for name, x in self.distributions.items()}


def _distribution(name: str, given: Any) -> Distribution:
    if isinstance(given, Distribution):
        return given
    try:
        return choice(given)
    except TypeError:
        raise TypeError(
            f"space[{name!r}] = {given!r}: expected a list of values, or one of uniform, "
            "log_uniform, integer, choice of steepest.tuning"
        ) from None
    except ValueError as error:
        raise ValueError(f"space[{name!r}] = {error}") from None


def _check_range(given: Any, kind: Any, noun: str) -> None:
    for name in ("low", "high"):
        value = getattr(given, name)
        if isinstance(value, bool) or not isinstance(value, kind):
            raise TypeError(f"{given!r}: {name} = {value!r}: expected {noun}")
        if not math.isfinite(value):
            raise ValueError(f"{given!r}: {name} = {value!r}: expected {noun}")
    if not given.low < given.high:
        raise ValueError(f"{given!r}: expected low < high; for a single value give [value]")
    points = given.points
    if points is not None:
        if isinstance(points, bool) or not isinstance(points, numbers.Integral):
            raise TypeError(f"{given!r}: points = {points!r}: expected an integer")
        if points < 2:
            raise ValueError(f"{given!r}: points = {points}: expected 2 or more")


def _points(given: Any) -> int:
    if given.points is None:
        raise ValueError(f"{given!r}: a grid needs points=, or a list of values")
    return int(given.points)


def _labels(values: Sequence[Any]) -> tuple[str, ...]:
    """A short text for each value, the same in every process, all different."""
    labels: list[str] = []
    for value in values:
        text = _label(value)
        if len(text) > LABEL:
            text = text[: LABEL - 1] + "…"
        again = sum(x == text or x.startswith(text + " #") for x in labels)
        labels.append(f"{text} #{again + 1}" if again else text)
    return tuple(labels)


def _label(value: Any) -> str:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (list, tuple)):
        inside = ", ".join(map(_label, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    if callable(value) and hasattr(value, "__name__"):
        return str(value.__name__)
    text = repr(value)
    return type(value).__name__ if " at 0x" in text else text
