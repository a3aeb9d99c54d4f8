"""Rules that average the points they pass."""

import math

import numpy as np

from steepest.reference.adam import one_minus_power
from steepest.reference.types import Array, State


def asgd(
    p: Array, g: Array, state: State, t: int, *, lr: float, lambd: float, alpha: float, t0: float
) -> None:
    """Averaged SGD. The rates are those of torch.optim.ASGD, which computes them a step before."""
    real = p.dtype.type
    eta = lr / (1.0 + lambd * lr * (t - 1)) ** alpha
    mu = 1.0 / max(1.0, t - 1 - t0)
    ax = state["ax"]
    p[...] = real(1.0 - lambd * eta) * p - real(eta) * g
    ax[...] = p if mu == 1.0 else ax + real(mu) * (p - ax)


def share(state: State, t: int, lr: float, r: float, weight_lr_power: float) -> float:
    """The share of step t in the sum of the weights t^r · (largest lr so far)^weight_lr_power.

    Largest lr and sum are in the state here; an optimizer has them in its group.
    """
    largest = max(lr, float(state.get("lr_max", np.zeros(()))))
    weight = float(t) ** r * largest**weight_lr_power
    total = float(state.get("weight_sum", np.zeros(()))) + weight
    state["lr_max"], state["weight_sum"] = np.array(largest), np.array(total)
    return weight / total if total else 0.0


def average(p: Array, z: Array, step: Array, share: float, beta: float) -> None:
    """y and z after a step; y = (1 - beta) z + beta x, x the mean of all z."""
    real = p.dtype.type
    p[...] = (p + real(share) * (z - p)) - real(1.0 - beta * (1.0 - share)) * step
    z[...] = z - step


def schedulefreesgd(
    p: Array, g: Array, state: State, t: int, *,
    lr: float, momentum: float, r: float, weight_lr_power: float, keep: float,
) -> None:  # fmt: skip
    """Schedule-free SGD."""
    real = p.dtype.type
    step = real(lr) * g + real(1.0 - keep) * p
    average(p, state["z"], step, share(state, t, lr, r, weight_lr_power), momentum)


def schedulefreeadamw(
    p: Array, g: Array, state: State, t: int, *, lr: float, betas: tuple[float, float],
    eps: float, r: float, weight_lr_power: float, keep: float,
) -> None:  # fmt: skip
    """Schedule-free AdamW."""
    real = p.dtype.type
    b1, b2 = betas
    v = state["exp_avg_sq"]
    v[...] = real(b2) * v + real(1.0 - b2) * (g * g)
    unbias = 1.0 / math.sqrt(one_minus_power(b2, t))
    step = real(lr) * (g / (np.sqrt(v) * real(unbias) + real(eps))) + real(1.0 - keep) * p
    average(p, state["z"], step, share(state, t, lr, r, weight_lr_power), b1)
