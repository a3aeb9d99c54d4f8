"""Rules that go by norms over a whole parameter."""

import math

import numpy as np

from steepest.reference.adam import one_minus_power
from steepest.reference.measures import squares
from steepest.reference.types import Array, State


def lamb(
    p: Array, g: Array, state: State, t: int, *,
    lr: float, betas: tuple[float, float], eps: float, decay: float,
) -> None:  # fmt: skip
    """LAMB."""
    real = p.dtype.type
    b1, b2 = betas
    m, v = state["exp_avg"], state["exp_avg_sq"]
    m[...] = real(b1) * m + real(1.0 - b1) * g
    v[...] = real(b2) * v + real(1.0 - b2) * (g * g)
    scale = real(1.0 / one_minus_power(b1, t))
    unbias = real(1.0 / math.sqrt(one_minus_power(b2, t)))
    direction = scale * m / (np.sqrt(v) * unbias + real(eps)) + real(decay) * p
    length, taken = squares(p), squares(direction)
    ratio = math.sqrt(length) / math.sqrt(taken) if length > 0 and taken > 0 else 1.0
    p[...] = p - real(lr * ratio) * direction
