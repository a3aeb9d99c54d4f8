"""Rules that go by norms over a whole parameter: LAMB."""

import math
from collections.abc import Mapping
from typing import Any, Unpack

from steepest.kernels.scalars import one_minus_power
from steepest.optimizers.base import Number, Optimizer, Options

__all__ = ["LAMB"]


class LAMB(Optimizer):
    """LAMB: Adam's direction with decay, as long as the parameter is.

        m ← β₁ m + (1 - β₁) g
        v ← β₂ v + (1 - β₂) g²
        r ← m / (1 - β₁ᵗ) / (√v / √(1 - β₂ᵗ) + eps) + weight_decay · p
        p ← p - lr · ‖p‖ / ‖r‖ · r

    The norms are those of one parameter array; where one of them is 0, the ratio is 1. Raises
    ValueError for hyper-parameters out of range.

    >>> import numpy as np, steepest as st
    >>> w = np.array([3.0, -4.0])
    >>> st.LAMB(w, lr=0.5, eps=0.0).step(np.array([0.25, -8.0]))
    >>> w.round(4)
    array([ 1.2322, -2.2322])

    You et al. 2019, arXiv:1904.00962, algorithm 2; formula and defaults as optax.lamb.
    """

    decay_mode = "decoupled"
    needs = "layer-wise"
    own_decay = True

    def __init__(
        self,
        params: Any,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-6,
        weight_decay: Number = 0.0,
        **options: Unpack[Options],
    ) -> None:
        hyper = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, hyper, options)

    def states(self, h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def coefficients(self, h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        b1, b2 = h["betas"]
        scale = 1.0 / one_minus_power(b1, t)
        unbias = 1.0 / math.sqrt(one_minus_power(b2, t))
        moments = (b1, 1.0 - b1, b2, 1.0 - b2, scale, unbias)
        return "lamb", (*moments, h["eps"], h["decay"], h["lr"])
