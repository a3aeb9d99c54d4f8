"""The numbers that a rule keeps of a parameter, as 0-d float64 states side by side in memory."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from steepest.kernels import sources
from steepest.memory.arrays import Array

__all__ = ["new_scalars", "packed_scalars"]


def _side_by_side(values: list[float]) -> dict[int, Array]:
    together = np.array(values, np.float64)
    return {i: together[i : i + 1].reshape(()) for i in range(len(values))}


def new_scalars(program: Any) -> dict[str, Array]:
    """The numbers of a parameter as they begin."""
    keys = program.rule.scalars(program.h)
    views = _side_by_side([program.rule.initial_number(key, program.h) for key in keys])
    return {key: views[i] for i, key in enumerate(keys)}


def packed_scalars(state: Any, program: Any, name: str) -> Array | None:
    """The numbers of a parameter as one array, which the entries of its state are views of; None
    for a rule without. Raises ValueError for what is not a number."""
    keys = program.rule.scalars(program.h)
    if not keys:
        return None
    values = [_checked(state, key, program, name) for key in keys]
    first = values[0].base
    if (
        isinstance(first, np.ndarray)
        and first.shape == (len(keys),)
        and all(x.flags.writeable for x in (first, *values))
        and all(x.base is first for x in values)
        and [_address(x) - _address(first) for x in values] == [8 * i for i in range(len(keys))]
    ):
        return first
    views = _side_by_side([float(x) for x in values])
    for i, key in enumerate(keys):
        state[key] = views[i]
    return views[0].base


def _checked(state: Mapping[str, Any], key: str, program: Any, name: str) -> Array:
    x = state.get(key, program.rule.initial_number(key, program.h))
    try:
        number = np.asarray(() if x is None or np.iscomplexobj(x) else x, np.float64)
    except (TypeError, ValueError, OverflowError):
        number = np.empty(1)
    if number.shape != ():
        raise ValueError(f"state {key!r} of parameter {name!r} = {x!r}: expected one number")
    return number


def _address(x: Array) -> int:
    address: int = sources.start(x)
    return address
