"""Checks of single numbers given to functions: what a function calls on its own arguments."""

import numbers
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["count", "real"]


def real(name: str, value: Any, expected: str, holds: Callable[[float], bool]) -> float:
    """An argument as a float, also an array of one number without axes.

    Raises TypeError for what is no real number, ValueError where it does not hold what is expected.
    """
    settled = value.item() if getattr(value, "ndim", None) == 0 else value
    if isinstance(settled, bool) or not isinstance(settled, (numbers.Real, float)):
        raise TypeError(f"{name} = {value!r}: expected {expected}")
    try:
        x = float(settled)
        if holds(x):
            return x
    except OverflowError:  # an integer beyond double
        pass
    raise ValueError(f"{name} = {value!r}: expected {expected}")


def count(name: str, value: Any, low: int) -> int:
    """An argument as an integer not below `low`. Raises TypeError or ValueError."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} = {value!r}: expected an integer") from None
    if number < low:
        raise ValueError(f"{name} = {number}: expected {low} or more")
    return number
