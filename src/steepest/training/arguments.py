"""Checks of the arguments of ``fit``, ``find_lr`` and ``find_batch_size``."""

import copy
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from steepest.core.optimizer import Optimizer
from steepest.core.trees import flatten
from steepest.extras import require
from steepest.fields import count
from steepest.memory.arrays import Array, unmasked
from steepest.training.history import COLUMNS
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

    @np.errstate(under="ignore")  # as in the losses: autograd's part of them comes after
    def typed(params: Any, *batch: Array) -> Any:
        try:
            value, grads = value_and_grad(params, *batch)
        except (TypeError, ValueError, AttributeError) as error:
            if not _plain(loss, params, batch):
                raise
            raise TypeError(
                f"autograd cannot follow the loss ({error}); write it with autograd.numpy in place "
                "of numpy, and without math, float() and assignments to elements, or give "
                "value_and_grad"
            ) from error
        return value, _typed_as(params, grads)

    return typed


def _plain(loss: Function, params: Any, batch: tuple[Array, ...]) -> bool:
    """Whether a loss that failed under autograd is one of plain arrays."""
    if any(x.dtype.kind == "O" for x in batch):
        return False  # objects have no derivative, whatever the function
    try:
        scalar(loss(copy.deepcopy(params), *batch), "loss")
    except Exception:
        return False
    return True


def objects(data: Any, what: str) -> str:
    """What is to be said of arrays of Python objects among data; empty where there are none."""
    for i, x in enumerate(data if isinstance(data, (tuple, list)) else (data,)):
        found = np.asarray(x)
        if found.dtype.kind != "O" or found.ndim == 0:
            continue
        names = getattr(x, "columns", range(found.shape[1] if found.ndim > 1 else 1))
        columns = zip(names, found.reshape(len(found), -1).T, strict=False)
        for name, column in columns:
            for value in column:
                if isinstance(value, bool) or not isinstance(value, numbers.Real):
                    where = f"column {name!r} has" if found.ndim > 1 else "with"
                    return _objects(f"{what}[{i}]", f", {where} {value!r}")
        return _objects(f"{what}[{i}]", "")
    return ""


def _objects(what: str, where: str) -> str:
    return (
        f"{what} has dtype object{where}; expected numbers: convert it, as by  .astype(float), "
        "which accepts booleans and pandas' nullable types, too"
    )


def _typed_as(params: Any, grads: Any) -> Any:
    """The gradients in the types of the parameters: a mean in a loss makes float64 of float32."""
    if isinstance(params, Mapping):
        return {key: _typed_as(p, grads[key]) for key, p in params.items()}
    if isinstance(params, (list, tuple)):
        return [_typed_as(p, g) for p, g in zip(params, grads, strict=True)]
    return np.asarray(grads, dtype=np.asarray(params).dtype)


def scalar(value: Any, what: str) -> float:
    """A loss as a float. Raises ValueError for an array, TypeError for what is not real."""
    if np.ndim(value) != 0:
        raise ValueError(
            f"{what} has shape {np.shape(value)}; expected one number, such as the mean"
        )
    if isinstance(value, (str, bytes)) or np.iscomplexobj(value):
        raise TypeError(f"{what} = {value!r}; expected a real number")
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
            "the optimizer was made with other arrays than params; "
            "make it with these arrays, or give its class"
        )
    return stepped


def still_trained(params: Any, leaves: list[Array], optimizer: Optimizer) -> None:
    """Raises ValueError unless params and the optimizer still hold the arrays of the run."""
    _, names, now = flatten(params)
    known = set(map(id, leaves))
    strange = [name for name, x in zip(names, now, strict=True) if id(x) not in known]
    if strange or len(now) != len(leaves):
        which = f"parameter {strange[0]!r} was" if strange else "parameters were"
        raise ValueError(
            f"{which} replaced during the run, and the optimizer steps the old array; write into "
            "the array instead, as by  params['w'][...] = value"
        )
    stepped = [p for group in optimizer.param_groups for p in group["params"]]
    if list(map(id, stepped)) != list(map(id, leaves)):
        raise ValueError(
            "the optimizer's param_groups hold other arrays than when the run began; make another "
            "optimizer, and call fit again"
        )


def trained(grads: Any) -> Any:
    """Gradients as they are. Raises ValueError where every one is None: nothing would be done."""
    if not _any(grads):
        raise ValueError(
            "value_and_grad returned no gradient: every one is None, and nothing would be trained; "
            "give an array for each parameter that is to change"
        )
    return grads


def _any(grads: Any) -> bool:
    """Whether there is a gradient in a tree; names in pairs with gradients are none. What is empty
    is left to the optimizer."""
    if isinstance(grads, Mapping):
        grads = list(grads.values())
    if isinstance(grads, (list, tuple)):
        return not grads or any(map(_any, grads))
    return grads is not None and not isinstance(grads, str)


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


def size(value: Any, data: tuple[Array, ...]) -> Size | None:
    """A batch size: None, an integer from 1, or a schedule. Raises TypeError or ValueError."""
    if value is not None and not data:
        raise ValueError(f"batch_size = {value}: expected None for a loss without data")
    if value is None or callable(value):
        return value  # type: ignore[no-any-return]
    return count("batch_size", value, 1)
