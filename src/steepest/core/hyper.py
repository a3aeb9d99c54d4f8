"""Hyper-parameters: what they may be, and their values at a step.

A hyper-parameter is a number, a flag, a tuple of numbers, or instead of any number a schedule: a
function of the number of updates done so far. Clips and penalties are values of their own.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from steepest.fields import Value
from steepest.options import average, clip, decay, filters, regularize

Schedule = Callable[[int], float]
Number = float | Schedule
"""A number, or a schedule: a function of the number of updates done so far."""

Range = tuple[float, float, bool]

# The allowed range of every number, by name: (lowest, highest, whether the highest is allowed).
RANGES: dict[str, Range] = {
    "lr": (0.0, math.inf, False),
    "betas": (0.0, 1.0, False),
    "eps": (0.0, math.inf, False),
    "weight_decay": (0.0, math.inf, False),
    "peak_lr": (0.0, math.inf, False),
    "l1": (0.0, math.inf, False),
    "momentum": (0.0, math.inf, False),
    "dampening": (-math.inf, math.inf, False),
    "alpha": (0.0, 1.0, True),
    "rho": (0.0, 1.0, True),
    "lr_decay": (0.0, math.inf, False),
    "initial_accumulator_value": (0.0, math.inf, False),
    "momentum_decay": (0.0, math.inf, False),
    "a": (0.0, math.inf, False),
    "b": (0.0, math.inf, False),
    "ema": (0.0, 1.0, False),
    "etas": (0.0, math.inf, False),
    "step_sizes": (0.0, math.inf, False),
    "lambd": (0.0, math.inf, False),
    "t0": (0.0, math.inf, False),
    "r": (0.0, math.inf, False),
    "weight_lr_power": (0.0, math.inf, False),
    "beta": (0.0, math.inf, False),
    "lambda1": (0.0, math.inf, False),
    "lambda2": (0.0, math.inf, False),
    "norm_bounds": (0.0, math.inf, True),
    "trust_coefficient": (0.0, math.inf, False),
    "reps_rel": (0.0, math.inf, False),
    "init_estim_sq_dist": (0.0, math.inf, False),
    "beta3": (0.0, 1.0, False),
    "d0": (0.0, math.inf, False),
    "d_coef": (0.0, math.inf, False),
    "growth_rate": (1.0, math.inf, True),
    "beta1": (0.0, 1.0, False),
    "beta2_decay": (-math.inf, 0.0, True),
    "d": (0.0, math.inf, False),
    "clip_threshold": (0.0, math.inf, True),
}

ANY: Range = (-math.inf, math.inf, True)
"""The range of a number that is taken as it is, NaN too."""

COUNTS = {"betas": 2, "etas": 2, "step_sizes": 2, "norm_bounds": 2}
"""How many numbers there are, for hyper-parameters of several."""

OPTIONAL = ("ema", "peak_lr", "beta3", "init_estim_sq_dist")
"""Numbers that may be None, which leaves them to the rule or switches something off."""

CHOICES: dict[str, tuple[str, ...]] = {
    "decay_mode": decay.MODES,
    "convention": ("torch", "optax", "keras", "paper"),
    "form": ("torch", "paper"),
    "blocks": ("rows", "arrays"),
}
"""What a word may be; of the conventions, each rule has its own."""

VALUES: dict[str, Callable[[Any], Any]] = {
    "clip": clip.settled,
    "regularize": regularize.settled,
    "lookahead": average.settled(average.lookahead, "lookahead"),
    "average": average.settled(average.tail, "average"),
    "filter": filters.settled,
}


_NO_NUMBER = re.compile("bool|complex|object|datetime|timedelta|[SUV]")
"""In the names of types that are not those of real numbers."""


def _float(value: Any) -> float:
    """A number as a float, beyond double as infinity. Raises TypeError or ValueError for what is
    none, though float() makes one of it: text, an array's flag or complex number, arrays with axes.
    """
    if isinstance(value, (bool, str, bytes, bytearray, memoryview)):
        raise TypeError
    if getattr(value, "ndim", 0) or _NO_NUMBER.search(str(getattr(value, "dtype", ""))):
        raise TypeError
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _number(name: str, value: Any, allowed: Range) -> float:
    low, high, inclusive = allowed
    try:
        number = value if type(value) is float else _float(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"{name} = {value!r}: expected a number or a schedule, a function of the step count"
        ) from None
    if allowed is not ANY and not (low <= number < high or (inclusive and number == high)):
        end = "]" if inclusive else ")"
        raise ValueError(f"{name} = {number!r}: expected a number in [{low:g}, {high:g}{end}")
    return number


def settle(
    name: str,
    value: Any,
    count: int | None,
    ranges: Mapping[str, Range] = RANGES,
    counts: Mapping[str, int] = COUNTS,
    optional: frozenset[str] = frozenset(),
) -> Any:
    """The checked value of a hyper-parameter after `count` updates; None keeps schedules. What is
    `optional` may be None, or have None among its numbers.

    Raises TypeError or ValueError naming the hyper-parameter.
    """
    if name not in ranges:
        if name in VALUES:
            return VALUES[name](value)
        if name in CHOICES:
            if value not in CHOICES[name]:
                raise ValueError(f"{name} = {value!r}: expected one of {', '.join(CHOICES[name])}")
            return value
        if not isinstance(value, (bool, int)) or value not in (False, True):
            raise TypeError(f"{name} = {value!r}: expected True or False")
        return bool(value)
    length = counts.get(name)
    if isinstance(value, (tuple, list)):
        if length is None:
            raise TypeError(f"{name} = {value!r}: expected one number or schedule")
        if len(value) != length:
            raise ValueError(f"{name} = {value!r}: expected {length} numbers or schedules")
        return tuple(
            None if x is None and name in optional else _one(name, x, count, ranges[name])
            for x in value
        )
    if length is not None:
        raise TypeError(f"{name} = {value!r}: expected {length} numbers or schedules")
    if value is None and (name in OPTIONAL or name in optional) and length is None:
        return None
    return _one(name, value, count, ranges[name])


def _one(name: str, value: Any, count: int | None, allowed: Range) -> Any:
    if callable(value):
        return value if count is None else _number(name, value(count), allowed)
    return _number(name, value, allowed)


def variable(value: Any) -> bool:
    """Whether a hyper-parameter may have another value at the next step though it is the same
    object: a schedule, a tuple with one, a list or an array that may be changed in place."""
    if isinstance(value, tuple):
        return any(variable(x) for x in value)
    if isinstance(value, Value):
        return value.variable
    return callable(value) or isinstance(value, (list, np.ndarray))


def whole(low: int, high: int) -> Callable[[str, Any], int]:
    """A check for whole numbers from low to high."""

    def check(name: str, value: Any) -> int:
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
            raise TypeError(f"{name} = {value!r}: expected a whole number")
        if not low <= value <= high:
            raise ValueError(f"{name} = {value!r}: expected a whole number from {low} to {high}")
        return int(value)

    return check


def maybe(low: float, high: float, inclusive: bool, schedule: bool) -> Callable[[str, Any], Any]:
    """A check for None or a number in a range or, with `schedule`, a function of the step."""

    def check(name: str, value: Any) -> Any:
        if value is None or (schedule and callable(value)):
            return value
        return _number(name, value, (low, high, inclusive))

    return check


def one_of(*choices: Any) -> Callable[[str, Any], Any]:
    """A check for one of some values."""

    def check(name: str, value: Any) -> Any:
        if not any(value is x or value == x for x in choices):
            raise ValueError(f"{name} = {value!r}: expected one of {', '.join(map(repr, choices))}")
        return value

    return check
