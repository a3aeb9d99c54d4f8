"""Rules that go by the rows and columns of matrices."""

import math

import numpy as np

from steepest.reference.measures import column_squares, row_squares, squares
from steepest.reference.types import Array, State


def adafactor(
    p: Array, g: Array, state: State, t: int, *,
    lr: float, beta2_decay: float, eps: tuple[float | None, float], d: float, beta1: float | None,
    form: str, relative_step: bool, warmup_init: bool, scale_parameter: bool, decay: float,
) -> None:  # fmt: skip
    """Adafactor."""
    if p.size == 0:
        return
    real = p.dtype.type
    paper = form == "paper"
    default = 1e-30 if paper else float(np.finfo(p.dtype).eps)
    least = default if eps[0] is None else eps[0]
    w = t**beta2_decay
    if "variance" in state:
        v = state["variance"]
        v[...] = real(1.0 - w) * v + real(w) * (g * g + real(least if paper else 0.0))
        size = np.sqrt(v)
        bound = real(0.0 if paper else least)
        direction = g / np.where(size < bound, bound, size)
    else:
        row, column = state["row_var"], state["col_var"]
        mean = averaged(row, row_squares(g), g.shape[-1], least if paper else 0.0, w, 1.0 - w)
        averaged(column, column_squares(g), g.shape[-2], least if paper else 0.0, w, 1.0 - w)
        low = mean if paper else np.where(mean < least, least, mean)
        scale = inverse_roots(row, low) * inverse_roots(column, 1.0)
        cap = real(math.inf if paper or least == 0 else 1.0 / least)
        direction = np.where(scale > cap, cap, scale) * g
    n = math.sqrt(p.size)
    size, ratio = math.sqrt(squares(p)) / n, math.sqrt(squares(direction)) / (n * d)
    alpha = lr
    if relative_step:
        alpha = min(1e-6 * t if warmup_init else lr, lr, 1.0 / math.sqrt(t))
    if scale_parameter:
        alpha = (size if size > eps[1] else eps[1]) * alpha
    step = alpha / ratio if ratio > 1 else alpha
    keep = 1.0 - decay * (alpha if paper else lr)
    if beta1 is None:
        p[...] = real(keep) * p - real(step) * direction
    else:
        m = state["exp_avg"]
        m[...] = real(beta1) * m + real(1.0 - beta1) * (real(step) * direction)
        p[...] = real(keep) * p - m


def averaged(
    state: Array, sums: Array, count: int, eps: float, fresh: float, old: float
) -> Array:
    """Takes in the means of sums over `count` squares, plus eps; returns the means of the states
    of each matrix, along the one of the last two axes that is not 1, added up in order."""
    each = state.astype(np.float64)
    state[...] = old * each + fresh * (sums.reshape(state.shape) / count + eps)
    axis = -1 if state.shape[-1] != 1 else -2
    together = np.cumsum(state.astype(np.float64), axis=axis)
    return np.take(together, [-1], axis=axis) / state.shape[axis]


def inverse_roots(state: Array, unit: Array | float) -> Array:
    """1 / √(state / unit)"""
    return (1.0 / np.sqrt(state.astype(np.float64) / unit)).astype(state.dtype)
