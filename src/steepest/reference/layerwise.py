"""Layer-wise rules: they need norms over the whole parameter."""

import math
from typing import Any

import numpy as np

from steepest.reference.adam import moments, one_minus_power
from steepest.reference.reductions import magnitudes, squares
from steepest.reference.stored import next_pass
from steepest.reference.types import Array, State


def rate(x: float, p: Array) -> Any:
    """A finite number in the type of p, where it is at most the type's largest."""
    largest = float(np.finfo(p.dtype).max)
    return p.dtype.type(largest if largest < x < math.inf else x)


def lamb(
    p: Array, g: Array, state: State, t: int, *,
    lr: float, betas: tuple[float, float], eps: float, bias_correction: bool,
    norm_bounds: tuple[float, float], adapt: bool, decay: float,
) -> None:  # fmt: skip
    """LAMB."""
    real = p.dtype.type
    b1, b2 = betas
    m, v = state["exp_avg"], state["exp_avg_sq"]
    moments(m, v, g, betas)
    scale = unbias = 1.0
    if bias_correction:
        scale = 1.0 / one_minus_power(b1, t)
        unbias = 1.0 / math.sqrt(one_minus_power(b2, t))

    def direction() -> Array:
        found: Array = real(scale) * m / (np.sqrt(v) * real(unbias) + real(eps)) + real(decay) * p
        return found

    length, taken = math.sqrt(squares(p)), math.sqrt(squares(direction()))
    next_pass(state, "exp_avg", "exp_avg_sq")
    length = norm_bounds[0] if length < norm_bounds[0] else length
    length = norm_bounds[1] if length > norm_bounds[1] else length
    ratio = length / taken if adapt and length != 0.0 and taken != 0.0 else 1.0
    p[...] = p - rate(lr * ratio, p) * direction()


def lars(
    p: Array, g: Array, state: State, t: int, *,
    lr: float, momentum: float, nesterov: bool, trust_coefficient: float, eps: float,
    trust_clip: bool, adapt: bool, decay: float,
) -> None:  # fmt: skip
    """LARS; LARC where the rate is clipped."""
    real = p.dtype.type
    length = math.sqrt(squares(p))
    slope = math.sqrt(squares(g)) + decay * length
    if adapt and length != 0.0 and slope != 0.0:
        ratio = trust_coefficient * length / (slope + eps)
        if not trust_clip:
            lr = lr * ratio
        elif not ratio > lr:
            lr = ratio
    step = rate(lr, p) * (g + real(decay) * p)
    if "momentum_buffer" in state:
        m = state["momentum_buffer"]
        m[...] = real(momentum) * m + step
        step = step + real(momentum) * m if nesterov else m
    p[...] = p - step


def novograd(
    p: Array, g: Array, state: State, t: int, *,
    lr: float, betas: tuple[float, float], eps: float, grad_averaging: bool, decay: float,
) -> None:  # fmt: skip
    """NovoGrad, whose v is one number."""
    real = p.dtype.type
    b1, b2 = betas
    m, v = state["exp_avg"], state["exp_avg_sq"]
    v[...] = squares(g) if t == 1 else b2 * float(v) + (1.0 - b2) * squares(g)
    divisor = math.sqrt(v) + eps
    inverse = 1.0 / divisor if divisor else 0.0
    fresh = 1.0 - b1 if grad_averaging and t > 1 else 1.0
    m[...] = real(b1) * m + real(fresh) * (real(inverse) * g + real(decay) * p)
    p[...] = p - real(lr) * m


def stableadamw(
    p: Array, g: Array, state: State, t: int, *,
    lr: float, betas: tuple[float, float], eps: float, clip_threshold: float, decay: float,
) -> None:  # fmt: skip
    """StableAdamW, whose betas grow from 0 so that its means are unbiased."""
    real = p.dtype.type
    m, v = state["exp_avg"], state["exp_avg_sq"]
    (b1, fresh1), (b2, fresh2) = (
        (b * one_minus_power(b, t - 1) / one_minus_power(b, t), (1.0 - b) / one_minus_power(b, t))
        for b in betas
    )
    m[...] = real(b1) * m + real(fresh1) * g
    v[...] = real(b2) * v + real(fresh2) * (g * g)
    least = real(eps * eps)
    rms = math.sqrt(magnitudes(g * g / np.where(v < least, least, v)) / max(p.size, 1))
    next_pass(state, "exp_avg", "exp_avg_sq")
    if not rms <= clip_threshold:
        lr = lr * (clip_threshold / rms)
    p[...] = real(1.0 - lr * decay) * p - real(lr) * m / (np.sqrt(v) + real(eps))


def fromage(p: Array, g: Array, state: State, t: int, *, lr: float) -> None:
    """Fromage."""
    real = p.dtype.type
    length, slope = math.sqrt(squares(p)), math.sqrt(squares(g))
    ratio = length / slope if length != 0.0 and slope != 0.0 else 1.0
    p[...] = real(1.0 / math.sqrt(1.0 + lr * lr)) * (p - rate(lr * ratio, p) * g)
