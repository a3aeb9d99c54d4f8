"""Adam's moments as the matrix rules use them: eps is added to √v before the bias correction."""

import math
from functools import partial

import numpy as np
from numpy.typing import DTypeLike

from steepest.matrix import scaled_sums
from steepest.matrix.linalg import Matrix

States = dict[str, Matrix]


def initial_states(shape: tuple[int, ...], dtype: DTypeLike) -> States:
    """Both moments, zero."""
    return {"exp_avg": np.zeros(shape, dtype), "exp_avg_sq": np.zeros(shape, dtype)}


def average(old: Matrix, new: Matrix, beta: float) -> Matrix:
    """beta · old + (1 - beta) · new, in their type."""
    real = old.dtype.type
    mean = np.asarray(real(beta) * old)
    mean += real(1.0 - beta) * new
    return mean


def squared(old: Matrix, g: Matrix, beta: float) -> Matrix:
    """beta · old + (1 - beta) · g², as ``scaled_sums`` keeps it."""
    return scaled_sums.taken_in(old, g, np.square, partial(average, beta=beta))


def correction(betas: tuple[float, float], t: int, correct_bias: bool = True) -> float:
    """√(1 - β₂ᵗ) / (1 - β₁ᵗ), or 1."""
    if not correct_bias:
        return 1.0
    first, second = (-math.expm1(t * math.log(b)) if b else 1.0 for b in betas)
    return math.sqrt(second) / first


def direction(
    g: Matrix,
    state: States,
    t: int,
    *,
    betas: tuple[float, float],
    eps: float,
    correct_bias: bool = True,
) -> tuple[Matrix, States]:
    """Adam's direction, with Kingma and Ba's ε-hat.

        m ← β₁ m + (1 - β₁) g
        v ← β₂ v + (1 - β₂) g²
        d = √(1 - β₂ᵗ) / (1 - β₁ᵗ) · m / (√v + eps)

    >>> state = initial_states((1,), np.float64)
    >>> direction(np.array([4.0]), state, 1, betas=(0.9, 0.99), eps=0.0)[0].round(12)
    array([1.])

    Kingma and Ba 2014, arXiv:1412.6980, end of section 2.
    """
    real = g.dtype.type
    with np.errstate(all="ignore"):
        m = average(state["exp_avg"], g, betas[0])
        v = squared(state["exp_avg_sq"], g, betas[1])
        d = np.asarray(m / (scaled_sums.root(v) + real(eps)))
        d *= real(correction(betas, t, correct_bias))
    return d, {"exp_avg": m, "exp_avg_sq": v}
