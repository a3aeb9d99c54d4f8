"""Rules that change what Adam averages or divides by."""

import math

import numpy as np

from steepest.reference.adam import moments, one_minus_power
from steepest.reference.types import Array, State


def adabelief(
    p: Array, g: Array, state: State, t: int, *,
    lr: float, betas: tuple[float, float], eps: float,
) -> None:  # fmt: skip
    """AdaBelief."""
    real = p.dtype.type
    m, s = state["exp_avg"], state["exp_avg_var"]
    b1, b2 = betas
    m[...] = real(b1) * m + real(1.0 - b1) * g
    surprise = g - m
    s[...] = real(b2) * s + real(1.0 - b2) * (surprise * surprise) + real(eps)
    step = lr / one_minus_power(b1, t)
    unbias = 1.0 / math.sqrt(one_minus_power(b2, t))
    p[...] = p - real(step) * m / (np.sqrt(s) * real(unbias) + real(eps))


def yogi(
    p: Array, g: Array, state: State, t: int, *,
    lr: float, betas: tuple[float, float], eps: float, initial_accumulator_value: float,
    bias_correction: bool, convention: str = "paper",
) -> None:  # fmt: skip
    """Yogi; the optimizer has put initial_accumulator_value into v, and by convention into m."""
    real = p.dtype.type
    m, v = state["exp_avg"], state["exp_avg_sq"]
    b1, b2 = betas
    square = g * g
    m[...] = real(b1) * m + real(1.0 - b1) * g
    v[...] = v - real(1.0 - b2) * (np.sign(v - square) * square)
    step, unbias = lr, 1.0
    if bias_correction:
        step = lr / one_minus_power(b1, t)
        unbias = 1.0 / math.sqrt(one_minus_power(b2, t))
    p[...] = p - real(step) * m / (np.sqrt(v) * real(unbias) + real(eps))


def laprop(
    p: Array, g: Array, state: State, t: int, *,
    lr: float, betas: tuple[float, float], eps: float,
) -> None:  # fmt: skip
    """LaProp."""
    real = p.dtype.type
    m, v = state["exp_avg"], state["exp_avg_sq"]
    b1, b2 = betas
    v[...] = real(b2) * v + real(1.0 - b2) * (g * g)
    unbias = 1.0 / math.sqrt(one_minus_power(b2, t))
    m[...] = real(b1) * m + real(1.0 - b1) * g / (np.sqrt(v) * real(unbias) + real(eps))
    p[...] = p - real(lr / one_minus_power(b1, t)) * m


def adopt(
    p: Array, g: Array, state: State, t: int, *,
    lr: float, betas: tuple[float, float], eps: float, use_clipping: bool,
) -> None:  # fmt: skip
    """ADOPT."""
    real = p.dtype.type
    m, v = state["exp_avg"], state["exp_avg_sq"]
    b1, b2 = betas
    if t == 1:
        v[...] = g * g
        return
    x = g / np.maximum(np.sqrt(v), real(eps))
    if use_clipping:
        limit = real(math.sqrt(math.sqrt(t - 1)))
        x = np.where(x > limit, limit, np.where(x < -limit, -limit, x))
    m[...] = real(b1) * m + real(1.0 - b1) * x
    v[...] = real(b2) * v + real(1.0 - b2) * (g * g)
    p[...] = p - real(lr) * m


def ademamix(
    p: Array, g: Array, state: State, t: int, *,
    lr: float, betas: tuple[float, float, float], alpha: float, eps: float,
) -> None:  # fmt: skip
    """AdEMAMix."""
    real = p.dtype.type
    m, slow, v = state["exp_avg_fast"], state["exp_avg_slow"], state["exp_avg_sq"]
    b1, b2, b3 = betas
    moments(m, v, g, (b1, b2))
    slow[...] = real(b3) * slow + real(1.0 - b3) * g
    step = lr / one_minus_power(b1, t)
    unbias = 1.0 / math.sqrt(one_minus_power(b2, t))
    p[...] = p - (real(step) * m + real(lr * alpha) * slow) / (
        np.sqrt(v) * real(unbias) + real(eps)
    )


def adan(
    p: Array, g: Array, state: State, t: int, *,
    lr: float, betas: tuple[float, float, float], eps: float, convention: str = "paper",
) -> None:  # fmt: skip
    """Adan."""
    real = p.dtype.type
    m, d, v = state["exp_avg"], state["exp_avg_diff"], state["exp_avg_sq"]
    b1, b2, b3 = betas
    change = g - state["previous_grad"] if t > 1 else np.zeros_like(g)
    weight = 1.0 - b2 if convention == "optax" else b2
    ahead = g + real(weight) * change
    m[...] = real(b1) * m + real(1.0 - b1) * g
    d[...] = real(b2) * d + real(1.0 - b2) * change
    v[...] = real(b3) * v + real(1.0 - b3) * (ahead * ahead)
    state["previous_grad"][...] = g
    step = lr / one_minus_power(b1, t)
    step_ahead = lr * weight / one_minus_power(b2, t)
    unbias = 1.0 / math.sqrt(one_minus_power(b3, t))
    p[...] = p - (real(step) * m + real(step_ahead) * d) / (np.sqrt(v) * real(unbias) + real(eps))


# (arctan q - q) / q³ as a polynomial in q², the highest power first.
ARCTAN = (
    0.021135371536498415,
    -0.04348052083340628,
    0.056883491809884175,
    -0.06640233921673451,
    0.07689953495298942,
    -0.0909077307473686,
    0.11111106180452865,
    -0.14285714180976392,
    0.19999999998855109,
    -0.3333333333332844,
)
ARCTAN_SINGLE = (
    -0.06451928208121749,
    0.10743731490791084,
    -0.1426395559798464,
    0.19999540483648964,
    -0.3333333176116852,
)


def arctan2(y: Array, x: Array) -> Array:
    """arctan(y / x) for x >= 0, by + - * / and comparisons alone, as the kernel has it."""
    real = y.dtype.type
    size = np.abs(y)
    steep = size > x
    small, large = np.where(steep, x, size), np.where(steep, size, x)
    turned = small > real(0.41421356237309503) * large
    top, bottom = np.where(turned, small - large, small), np.where(turned, small + large, large)
    q = top / np.where(bottom == 0, real(2), bottom)
    z = q * q
    first, *others = ARCTAN_SINGLE if y.dtype == np.float32 else ARCTAN
    total = np.full_like(q, first)
    for coefficient in others:
        total = total * z + real(coefficient)
    angle = q + q * (z * total)
    angle = np.where(turned, angle + real(np.pi / 4), angle)
    angle = np.where(steep, real(np.pi / 2) - angle, angle)
    return np.where(y < 0, -angle, angle)


def adamatan2(
    p: Array, g: Array, state: State, t: int, *,
    lr: float, betas: tuple[float, float], a: float, b: float,
) -> None:  # fmt: skip
    """Adam-atan2."""
    real = p.dtype.type
    m, v = state["exp_avg"], state["exp_avg_sq"]
    moments(m, v, g, betas)
    y = real(1.0 / one_minus_power(betas[0], t)) * m
    x = real(b / math.sqrt(one_minus_power(betas[1], t))) * np.sqrt(v)
    p[...] = p - real(lr * a) * arctan2(y, x)


def sophia(
    p: Array, g: Array, state: State, t: int, *,
    lr: float, betas: tuple[float, float], rho: float, eps: float,
) -> None:  # fmt: skip
    """Sophia; what ``sophia_hessian`` does happens between the steps."""
    real = p.dtype.type
    m, h = state["exp_avg"], state["hessian"]
    m[...] = real(betas[0]) * m + real(1.0 - betas[0]) * g
    x = m / np.maximum(real(rho) * h, real(eps))
    x = np.where(x > real(1), real(1), np.where(x < real(-1), real(-1), x))
    p[...] = p - real(lr) * x


def sophia_hessian(h: Array, estimate: Array, betas: tuple[float, float]) -> None:
    """Sophia's running mean of estimates of the Hessian's diagonal."""
    real = h.dtype.type
    h[...] = real(betas[1]) * h + real(1.0 - betas[1]) * estimate


def grams(
    p: Array, g: Array, state: State, t: int, *,
    lr: float, betas: tuple[float, float], eps: float,
) -> None:  # fmt: skip
    """Grams: as far as Adam, in the direction of the gradient."""
    real = p.dtype.type
    m, v = state["exp_avg"], state["exp_avg_sq"]
    moments(m, v, g, betas)
    step = lr / one_minus_power(betas[0], t)
    unbias = 1.0 / math.sqrt(one_minus_power(betas[1], t))
    size = real(step) * np.abs(m) / (np.sqrt(v) * real(unbias) + real(eps))
    p[...] = p - np.sign(g) * size
