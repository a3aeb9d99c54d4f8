"""Rules with row and column reductions of matrices."""

import math

import numpy as np

from steepest.reference.adam import one_minus_power
from steepest.reference.reductions import column_squares, quotient, row_squares, squares
from steepest.reference.stored import next_pass
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
        bound = real(0.0 if paper else least)
        direction = adafactor_direction(g, v, bound)
    else:
        row, column = state["row_var"], state["col_var"]
        mean = averaged(row, row_squares(g), g.shape[-1], least if paper else 0.0, w, 1.0 - w)
        averaged(column, column_squares(g), g.shape[-2], least if paper else 0.0, w, 1.0 - w)
        low = mean if paper else np.where(mean < least, least, mean)
        scale = inverse_roots(row, low) * inverse_roots(column, 1.0)
        cap = real(math.inf if paper or least == 0 else 1.0 / least)
        direction = np.where(scale > cap, cap, scale) * g
    n = math.sqrt(p.size)
    size, ratio = math.sqrt(squares(p)) / n, quotient(math.sqrt(squares(direction)), n * d)
    alpha = lr
    if relative_step:
        alpha = min(1e-6 * t if warmup_init else lr, lr, 1.0 / math.sqrt(t))
    if scale_parameter:
        alpha = (size if size > eps[1] else eps[1]) * alpha
    step = alpha / ratio if ratio > 1 else alpha
    decay_factor = 1.0 - decay * (alpha if paper else lr)
    if "variance" in state:
        next_pass(state, "variance")
        direction = adafactor_direction(g, v, bound)
    if beta1 is None:
        p[...] = real(decay_factor) * p - real(step) * direction
    else:
        m = state["exp_avg"]
        m[...] = real(beta1) * m + real(1.0 - beta1) * (real(step) * direction)
        p[...] = real(decay_factor) * p - m


def adafactor_direction(g: Array, v: Array, bound: np.floating) -> Array:
    root = np.sqrt(v)
    direction: Array = g / np.where(root < bound, bound, root)
    return direction


def came(
    p: Array, g: Array, state: State, t: int, *,
    lr: float, betas: tuple[float, float, float], eps: tuple[float, float], clip_threshold: float,
) -> None:  # fmt: skip
    """CAME."""
    if p.size == 0:
        return
    real = p.dtype.type
    b1, b2, b3 = betas
    m = state["exp_avg"]
    if "exp_avg_sq" in state:
        v = state["exp_avg_sq"]
        v[...] = real(b2) * v + real(1.0 - b2) * (g * g + real(eps[0]))
        direction = g / np.sqrt(v)
    else:
        row, column = state["exp_avg_sq_row"], state["exp_avg_sq_col"]
        direction = came_scale(row, column, g, eps[0], 1.0 - b2, b2) * g
    ratio = quotient(math.sqrt(squares(direction)), math.sqrt(p.size) * clip_threshold)
    if "exp_avg_sq" in state:
        next_pass(state, "exp_avg_sq")
        direction = g / np.sqrt(v)
    direction = real(1.0 if ratio < 1 else 1.0 / ratio) * direction
    m[...] = real(b1) * m + real(1.0 - b1) * direction
    if "exp_avg_sq" in state:
        p[...] = p - real(lr) * m
    else:
        row, column = state["exp_avg_res_row"], state["exp_avg_res_col"]
        scale = came_scale(row, column, direction - m, eps[1], 1.0 - b3, b3)
        next_pass(state, "exp_avg")
        p[...] = p - real(lr) * (scale * m)


def came_scale(row: Array, column: Array, x: Array, eps: float, fresh: float, old: float) -> Array:
    """Takes the squares of x in; returns what makes x as large as their root for each element."""
    rows, columns = row[..., :, None], column[..., None, :]
    mean = averaged(rows, row_squares(x), x.shape[-1], eps, fresh, old)
    averaged(columns, column_squares(x), x.shape[-2], eps, fresh, old)
    return inverse_roots(rows, mean) * inverse_roots(columns, 1.0)


def sm3(
    p: Array, g: Array, state: State, t: int, *,
    lr: float, momentum: float, beta: float, eps: float,
) -> None:  # fmt: skip
    """SM3-II."""
    if p.size == 0:
        return
    real = p.dtype.type
    each = [state[f"accumulator_{k}"] for k in range(max(p.ndim, 1))]
    v = each[0]
    for other in each[1:]:
        v = np.minimum(v, other)
    v = real(beta) * v + real(1.0 - beta if beta < 1 else 1.0) * (g * g)
    for k, accumulator in enumerate(each):
        others = tuple(axis for axis in range(p.ndim) if axis != k)
        accumulator[...] = np.max(v, axis=others, keepdims=True) if others else v
    u = np.where(v == 0, real(0), g / np.sqrt(v + real(eps)))
    if "momentum_buffer" in state:
        m = state["momentum_buffer"]
        u = m[...] = real(momentum) * m + real(1.0 - momentum) * u
    p[...] = p - real(lr) * u


def adammini(
    p: Array, g: Array, state: State, t: int, *,
    lr: float, betas: tuple[float, float], eps: float, blocks: str,
) -> None:  # fmt: skip
    """Adam-mini."""
    if p.size == 0:
        return
    real = p.dtype.type
    b1, b2 = betas
    m, v = state["exp_avg"], state["exp_avg_sq"]
    each = g.reshape(len(g), -1) if blocks == "rows" and p.ndim > 1 else g.reshape(1, -1)
    mean = row_squares(each).reshape(v.shape) / each.shape[1]
    v[...] = b2 * v.astype(np.float64) + (1.0 - b2) * mean
    unbias = 1.0 / math.sqrt(one_minus_power(b2, t))
    scale = (1.0 / (np.sqrt(v.astype(np.float64)) * unbias + eps)).astype(p.dtype)
    m[...] = real(b1) * m + real(1.0 - b1) * g
    p[...] = p - real(lr / one_minus_power(b1, t)) * (m * scale)


def averaged(state: Array, sums: Array, count: int, eps: float, fresh: float, old: float) -> Array:
    """Takes in the means of sums over `count` squares, plus eps; returns the means of the states
    of each matrix, along the one of the last two axes that is not 1, added up in order."""
    each = state.astype(np.float64)
    state[...] = old * each + fresh * (sums.reshape(state.shape) / count + eps)
    axis = -1 if state.shape[-1] != 1 else -2
    together = np.cumsum(state.astype(np.float64), axis=axis)
    mean: Array = np.take(together, [-1], axis=axis) / state.shape[axis]
    return mean


def inverse_roots(state: Array, unit: Array | float) -> Array:
    """1 / √(state / unit)"""
    factor: Array = 1.0 / np.sqrt(state.astype(np.float64) / unit)
    return factor.astype(state.dtype)
