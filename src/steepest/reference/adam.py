"""Adam and its relatives."""

import math
from decimal import Decimal, localcontext

import numpy as np

from steepest.reference.types import Array, State


def one_minus_power(beta: float, t: int) -> float:
    """1 - betaᵗ, rounded once: computed with 60 digits, in which 0⁰ is an error."""
    if t == 0:
        return 0.0
    with localcontext(prec=60, Emin=-(10**15), Emax=10**15):
        return float(1 - Decimal(beta) ** t)


def moments(m: Array, v: Array, g: Array, betas: tuple[float, float]) -> None:
    """The running means of the gradient and of its square."""
    real = g.dtype.type
    b1, b2 = betas
    m[...] = real(b1) * m + real(1.0 - b1) * g
    v[...] = real(b2) * v + real(1.0 - b2) * (g * g)


def adam(
    p: Array, g: Array, state: State, t: int, *,
    lr: float, betas: tuple[float, float], eps: float, amsgrad: bool, bias_correction: bool,
    convention: str = "torch",
) -> None:  # fmt: skip
    """Adam; AMSGrad divides by the largest v so far."""
    real = p.dtype.type
    m, v = state["exp_avg"], state["exp_avg_sq"]
    moments(m, v, g, betas)
    step, unbias = lr, 1.0
    if bias_correction:
        rest = one_minus_power(betas[1], t)
        step = lr / one_minus_power(betas[0], t)
        if convention == "keras":
            step *= math.sqrt(rest)
        elif convention == "optax" and amsgrad:
            v = real(1.0 / rest) * v
        else:
            unbias = 1.0 / math.sqrt(rest)
    if amsgrad:
        largest = state["max_exp_avg_sq"]
        largest[...] = np.where((largest > v) | np.isnan(largest), largest, v)
        v = largest
    p[...] = p - real(step) * m / (np.sqrt(v) * real(unbias) + real(eps))


def adamw(
    p: Array, g: Array, state: State, t: int, *,
    lr: float, betas: tuple[float, float], eps: float, amsgrad: bool, bias_correction: bool,
    convention: str = "torch",
) -> None:  # fmt: skip
    """Adam, after the stage ``decay`` has shrunk the parameter."""
    adam(
        p, g, state, t,
        lr=lr, betas=betas, eps=eps, amsgrad=amsgrad, bias_correction=bias_correction,
        convention=convention,
    )  # fmt: skip


def adamax(
    p: Array, g: Array, state: State, t: int, *,
    lr: float, betas: tuple[float, float], eps: float, convention: str = "torch",
) -> None:  # fmt: skip
    """Adamax."""
    real = p.dtype.type
    b1, b2 = betas
    m, u = state["exp_avg"], state["exp_inf"]
    m[...] = real(b1) * m + real(1.0 - b1) * g
    faded, now = real(b2) * u, np.abs(g)
    if convention != "keras":
        now = now + real(eps)
    u[...] = np.where((faded > now) | np.isnan(faded), faded, now)
    size = u + real(eps) if convention == "keras" else u
    p[...] = p - real(lr / one_minus_power(b1, t)) * m / size


def nadam(
    p: Array, g: Array, state: State, t: int, *,
    lr: float, betas: tuple[float, float], eps: float, momentum_decay: float,
    convention: str = "torch",
) -> None:  # fmt: skip
    """NAdam."""
    real = p.dtype.type
    m, v = state["exp_avg"], state["exp_avg_sq"]
    b1, b2 = betas
    decay = 1.0 if convention == "keras" else momentum_decay
    mu = [b1 * (1.0 - 0.5 * 0.96 ** (i * decay)) for i in range(1, t + 2)]
    product = math.prod(mu[:t])
    now = lr * (1.0 - mu[t - 1]) / (1.0 - product)
    ahead = lr * mu[t] / (1.0 - product * mu[t])
    unbias = 1.0 / math.sqrt(one_minus_power(b2, t))
    if convention == "optax":
        now = lr * (1.0 - b1) / one_minus_power(b1, t)
        ahead = lr * b1 / one_minus_power(b1, t + 1)
    elif convention == "paper":
        b1, unbias = mu[t - 1], unbias * math.sqrt(b2)
    moments(m, v, g, (b1, b2))
    p[...] = p - (real(now) * g + real(ahead) * m) / (np.sqrt(v) * real(unbias) + real(eps))


def radam(
    p: Array, g: Array, state: State, t: int, *,
    lr: float, betas: tuple[float, float], eps: float, convention: str = "torch",
) -> None:  # fmt: skip
    """RAdam."""
    real = p.dtype.type
    m, v = state["exp_avg"], state["exp_avg_sq"]
    moments(m, v, g, betas)
    step = lr / one_minus_power(betas[0], t)
    rest = one_minus_power(betas[1], t)
    longest = 2.0 / (1.0 - betas[1]) - 1.0
    length = longest - 2.0 * t * (1.0 - rest) / rest
    if length <= (4.0 if convention == "paper" else 5.0):
        p[...] = p - real(step) * m
        return
    rectified = math.sqrt(
        (length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length)
    )
    if convention == "optax":
        root = np.sqrt(v) * real(1.0 / math.sqrt(rest)) + real(eps)
        p[...] = p - real(step * rectified) * m / root
        return
    p[...] = p - real(step * rectified * math.sqrt(rest)) * m / (np.sqrt(v) + real(eps))
