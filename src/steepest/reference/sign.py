"""Rules that step by the sign of the gradient or of a momentum."""

import numpy as np

from steepest.reference.types import Array, State


def signsgd(p: Array, g: Array, state: State, t: int, *, lr: float) -> None:
    """SignSGD."""
    p[...] = p - p.dtype.type(lr) * np.sign(g)


def signum(p: Array, g: Array, state: State, t: int, *, lr: float, momentum: float) -> None:
    """Signum."""
    real = p.dtype.type
    m = state["momentum_buffer"]
    m[...] = real(momentum) * m + real(1.0 - momentum) * g
    p[...] = p - real(lr) * np.sign(m)


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
