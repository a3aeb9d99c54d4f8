"""What ``fit`` and its kin are given, checked: functions, arrays, counts and values of a loss."""

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from steepest.arrays import Array, unmasked
from steepest.extras import require
from steepest.history import COLUMNS
from steepest.optimizers.base import Optimizer
from steepest.optimizers.structure import flatten
from steepest.training.sampling import Size, length

Function = Callable[..., Any]


class NonFinite(Exception):
    """The loss is infinite or NaN."""


def autograd(loss: Function) -> Function:
    """Loss and gradients by the autograd package."""

    def checked(params: Any, *batch: Array) -> Any:
        value = loss(params, *batch)
        scalar(getattr(value, "_value", value), "loss")
        return value

    package = require("autograd", "train", "a loss without value_and_grad")
    value_and_grad = package.value_and_grad(checked)

    def typed(params: Any, *batch: Array) -> Any:
        value, grads = value_and_grad(params, *batch)
        return value, _typed_as(params, grads)

    return typed


def _typed_as(params: Any, grads: Any) -> Any:
    """The gradients in the types of the parameters: a mean in a loss makes float64 of float32."""
    if isinstance(params, Mapping):
        return {key: _typed_as(p, grads[key]) for key, p in params.items()}
    if isinstance(params, (list, tuple)):
        return [_typed_as(p, g) for p, g in zip(params, grads, strict=True)]
    return np.asarray(grads, dtype=np.asarray(params).dtype)


def scalar(value: Any, what: str) -> float:
    """A loss as a float. Raises ValueError for an array."""
    if np.ndim(value) != 0:
        raise ValueError(
            f"{what} has shape {np.shape(value)}; expected one number, such as the mean"
        )
    return float(value)


def finite(value: Any, what: str, epoch: int) -> float:
    """A loss as a finite float. Raises NonFinite, or ValueError for an array."""
    number = scalar(value, what)
    if not math.isfinite(number):
        raise NonFinite(f"{what} = {number} in epoch {epoch}")
    return number


def leaves_of(params: Any, optimizer: Optimizer) -> list[Array]:
    """The arrays of params, in the optimizer's order.

    Raises TypeError or ValueError if they are not the optimizer's.
    """
    _, names, leaves = flatten(params)
    for name, leaf in zip(names, leaves, strict=True):
        if not isinstance(leaf, np.ndarray):
            raise TypeError(f"parameter {name!r} is a {type(leaf).__name__}; expected an array")
    stepped = [p for group in optimizer.param_groups for p in group["params"]]
    if sorted(map(id, stepped)) != sorted(map(id, leaves)):
        raise ValueError(
            "the optimizer was made over other arrays than params; "
            "make it over these very arrays, or give its class"
        )
    return stepped


def samples(data: Any, what: str) -> tuple[Array, ...]:
    """Data as a tuple of arrays of one length. Raises TypeError or ValueError."""
    if hasattr(data, "__array__"):
        data = (data,)
    if not isinstance(data, (tuple, list)):
        raise TypeError(f"{what} is a {type(data).__name__}; expected a tuple of arrays")
    found = tuple(np.asarray(unmasked(x, f"{what}[{i}]")) for i, x in enumerate(data))
    for i, x in enumerate(found):
        if x.ndim == 0:
            raise TypeError(f"{what}[{i}] is one value; expected an array with one row per sample")
    if found and length(found) == 0:
        raise ValueError(f"{what} has no samples")
    return found


def named(metrics: Mapping[str, Function]) -> dict[str, Function]:
    """Metrics by name. Raises ValueError for the name of a column."""
    for name in metrics:
        if name in COLUMNS or name.startswith("val_"):
            raise ValueError(f"metric {name!r}: the history has a column of that name; rename it")
    return dict(metrics)


def count(name: str, value: Any, low: int) -> int:
    """An integer not below `low`. Raises TypeError or ValueError."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} = {value!r}: expected an integer") from None
    if number < low:
        raise ValueError(f"{name} = {number}: expected {low} or more")
    return number


def size(value: Any, data: tuple[Array, ...]) -> Size | None:
    """A batch size: None, an integer from 1, or a schedule. Raises TypeError or ValueError."""
    if value is not None and not data:
        raise ValueError(f"batch_size = {value}: expected None for a loss without data")
    if value is None or callable(value):
        return value  # type: ignore[no-any-return]
    return count("batch_size", value, 1)
