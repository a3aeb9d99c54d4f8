"""QHAdam for steepest."""

from collections.abc import Mapping
from typing import Annotated, Any

from steepest.extension import (
    Betas,
    Eps,
    Number,
    Optimizer,
    Rate,
    Weight,
    one_minus_power,
    several,
    within,
)  # fmt: skip

__all__ = ["QHAdam"]


class QHAdam(Optimizer):
    """QHAdam: Adam whose moments are averaged with the gradient and its square of this step.

        m ← β₁ m + (1 - β₁) g
        v ← β₂ v + (1 - β₂) g²
        p ← p - lr · ((1 - ν₁) g + ν₁ m / (1 - β₁ᵗ)) / (√((1 - ν₂) g² + ν₂ v / (1 - β₂ᵗ)) + eps)

    With nus = (1, 1) it is Adam. Raises ValueError for hyper-parameters out of range; nus are from
    0 to 1.

    >>> import numpy as np, qhadam
    >>> w = np.array([1.0, -2.0])
    >>> qhadam.QHAdam(w, lr=0.5, eps=0.0).step(np.array([0.25, -8.0]))
    >>> w
    array([ 0.5, -1.5])

    Ma and Yarats 2018, arXiv:1810.06801, algorithm 2, with the defaults that section 4 recommends.
    """

    kernels = "qhadam.kernels"

    lr: Rate = 1e-3
    betas: Betas = (0.995, 0.999)
    nus: Annotated[tuple[Number, Number], several(2, within(0, 1))] = (0.7, 1.0)
    eps: Eps = 1e-8
    weight_decay: Weight = 0.0

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        (b1, b2), (nu1, nu2) = h["betas"], h["nus"]
        first = (b1, 1.0 - b1, 1.0 - nu1, nu1 / one_minus_power(b1, t))
        second = (b2, 1.0 - b2, 1.0 - nu2, nu2 / one_minus_power(b2, t))
        return "qhadam", (*first, *second, h["lr"], h["eps"])
