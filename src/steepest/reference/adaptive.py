"""Rules that divide by a running size of the gradient."""

import math
from typing import Any

import numpy as np

from steepest.reference.types import Array, State


def adagrad(
    p: Array, g: Array, state: State, t: int, *,
    lr: float, lr_decay: float, initial_accumulator_value: float, eps: float, eps_inside_sqrt: bool,
    convention: str = "torch",
) -> None:  # fmt: skip
    """Adagrad. The initial value is in the state already."""
    real = p.dtype.type
    s = state["sum"]
    rate = lr / (1.0 + (t - 1) * lr_decay)
    s[...] = s + g * g
    inside = eps_inside_sqrt or convention in ("optax", "keras")
    root = np.sqrt(s + real(eps)) if inside else np.sqrt(s) + real(eps)
    if convention == "optax":
        root = np.where(s == 0, real(1), root)
        g = np.where(s == 0, real(0), g)
    p[...] = p - real(rate) * g / root


def rmsprop(
    p: Array, g: Array, state: State, t: int, *,
    lr: float, alpha: float, eps: float, momentum: float, centered: bool, convention: str = "torch",
) -> None:  # fmt: skip
    """RMSprop."""
    real = p.dtype.type
    v = state["square_avg"]
    v[...] = real(alpha) * v + real(1.0 - alpha) * (g * g)
    size = v
    if centered:
        m = state["grad_avg"]
        m[...] = real(alpha) * m + real(1.0 - alpha) * g
        variance = v - m * m
        size = np.where((variance > 0) | np.isnan(variance), variance, real(0))
    torch = convention == "torch"
    root = np.sqrt(size) + real(eps) if torch else np.sqrt(size + real(eps))
    if "momentum_buffer" in state:
        u = state["momentum_buffer"]
        if torch:
            u[...] = real(momentum) * u + g / root
            p[...] = p - real(lr) * u
        else:
            u[...] = real(momentum) * u + real(lr) * g / root
            p[...] = p - u
    else:
        p[...] = p - real(lr) * g / root


def adadelta(
    p: Array, g: Array, state: State, t: int, *, lr: float, rho: float, eps: float
) -> None:
    """Adadelta."""
    real = p.dtype.type
    v, u = state["square_avg"], state["acc_delta"]
    v[...] = real(rho) * v + real(1.0 - rho) * (g * g)
    d = np.sqrt((u + real(eps)) / (v + real(eps))) * g
    u[...] = real(rho) * u + real(1.0 - rho) * (d * d)
    p[...] = p - real(lr) * d


def rprop(
    p: Array, g: Array, state: State, t: int, *,
    lr: float, etas: tuple[float, float], step_sizes: tuple[float, float],
) -> None:  # fmt: skip
    """Rprop. Step sizes of 0 are lr at the first step."""
    real = p.dtype.type
    minus, plus = map(real, etas)
    prev, size = state["prev"], state["step_size"]
    same = g * prev
    ratio = np.select([same > 0, same < 0, same == 0], [plus, minus, real(1)], same)
    scaled = np.where(size == 0, real(lr if t == 1 else 0.0), size) * ratio
    low, high = map(real, step_sizes)
    size[...] = np.where(scaled < low, low, np.where(scaled > high, high, scaled))
    prev[...] = np.where(same < 0, real(0), g)
    p[...] = p - np.sign(prev) * size


def cube_root(x: Array) -> Array:
    """The cube root of x >= 0: a third of the bits of x, then Halley's steps to it."""
    real, single = x.dtype.type, x.dtype == np.float32
    bits: Any = np.atleast_1d(x).view(np.uint32 if single else np.uint64)
    third = (bits >> 2) + (bits >> 4)
    for shift in (4, 8) if single else (4, 8, 16, 32):
        third = third + (third >> shift)
    third = third + third.dtype.type(0x2A5137A0 if single else 0x2A9F7893782DA1CE)
    y: Array = third.view(x.dtype).reshape(x.shape)
    for _ in range(2 if single else 3):
        half = y * real(0.5)
        cube, eighth = half * half * half, x * real(0.125)
        y = y - y * ((cube - eighth) / (cube + cube + eighth))
    return np.where(x > x * real(0.5), y, x)  # 0, infinity and NaN are their own roots


def madgrad(
    p: Array, g: Array, state: State, t: int, *,
    lr: float, momentum: float, eps: float, convention: str = "paper", keep: float,
) -> None:  # fmt: skip
    """MADGRAD."""
    real = p.dtype.type
    v, s = state["grad_sum_sq"], state["s"]
    if convention == "optax" and lr != 0.0:
        lr += eps
    rate = real(lr * math.sqrt(t))
    v[...] = v + rate * (g * g)
    s[...] = s + rate * g
    z = state["x0"] - s / (cube_root(v) + real(eps))
    p[...] = (p + real(1.0 - momentum) * (z - p)) - real(1.0 - keep) * p


def ftrl(
    p: Array, g: Array, state: State, t: int, *,
    lr: float, lambda1: float, lambda2: float, beta: float, initial_accumulator_value: float,
    convention: str = "paper",
) -> None:  # fmt: skip
    """FTRL-proximal. The initial value is in the state already; a rate of 0 changes nothing."""
    if lr == 0.0:
        return
    real = p.dtype.type
    v, z = state["accumulator"], state["linear"]
    before = np.sqrt(v)
    v[...] = v + g * g
    size = np.sqrt(v)
    z[...] = (z + g) - (size - before) * real(1.0 / lr) * p
    rest = np.abs(z) - real(lambda1)
    rest = np.where(rest < 0, real(0), rest)
    l2 = real(2.0 * lambda2 if convention == "keras" else lambda2)
    divisor = (real(beta) + size) * real(1.0 / lr) + l2
    p[...] = -(np.sign(z) * np.where(rest == 0, rest, rest / np.where(rest == 0, real(1), divisor)))
