"""QHAdam in NumPy: the order of its operations is the specification."""

import numpy as np

from steepest.reference import register
from steepest.reference.adam import one_minus_power
from steepest.reference.types import Array, State


@register
def qhadam(
    p: Array, g: Array, state: State, t: int, *, lr: float, betas: tuple[float, float],
    nus: tuple[float, float], eps: float,
) -> None:  # fmt: skip
    """QHAdam."""
    real = p.dtype.type
    (b1, b2), (nu1, nu2) = betas, nus
    m, v = state["exp_avg"], state["exp_avg_sq"]
    m[...] = real(b1) * m + real(1.0 - b1) * g
    v[...] = real(b2) * v + real(1.0 - b2) * (g * g)
    over = real(1.0 - nu1) * g + real(nu1 / one_minus_power(b1, t)) * m
    under = np.sqrt(real(1.0 - nu2) * (g * g) + real(nu2 / one_minus_power(b2, t)) * v)
    p[...] = p - real(lr) * over / (under + real(eps))
