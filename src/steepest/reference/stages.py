"""What may happen to the gradient or the parameter around a rule."""

import numpy as np

from steepest.reference.types import Array


def scale(g: Array, factor: float) -> Array:
    real = g.dtype.type
    scaled: Array = real(factor) * g
    return scaled


def clip_value(g: Array, limit: float) -> Array:
    """Each element held in [-limit, limit]; NaN stays NaN."""
    real = g.dtype.type
    return np.where(g > real(limit), real(limit), np.where(g < -real(limit), -real(limit), g))


def l2(g: Array, p: Array, weight: float) -> Array:
    """The gradient of weight/2 · ‖p‖² added."""
    real = g.dtype.type
    added: Array = g + real(weight) * p
    return added


def l1(g: Array, p: Array, weight: float) -> Array:
    """A subgradient of weight · ‖p‖₁ added: 0 where p is 0."""
    real = g.dtype.type
    added: Array = g + real(weight) * np.sign(p)
    return added


def decay(p: Array, lr: float, weight_decay: float) -> None:
    """Decoupled decay."""
    p[...] = p.dtype.type(1.0 - lr * weight_decay) * p


def ema(shadow: Array, p: Array, rate: float) -> None:
    """The exponential moving average of the parameter."""
    real = p.dtype.type
    shadow[...] = real(rate) * shadow + real(1.0 - rate) * p
