"""Rules that step by the sign of a momentum."""

import numpy as np

from steepest.reference.types import Array, State


def lion(
    p: Array, g: Array, state: State, t: int, *, lr: float, betas: tuple[float, float]
) -> None:
    """Lion."""
    real = p.dtype.type
    b1, b2 = betas
    m = state["exp_avg"]
    direction = np.sign(real(b1) * m + real(1.0 - b1) * g)
    m[...] = real(b2) * m + real(1.0 - b2) * g
    p[...] = p - real(lr) * direction
