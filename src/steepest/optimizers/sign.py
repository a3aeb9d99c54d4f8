"""Rules that step by signs: SignSGD, Signum, Lion."""

from collections.abc import Mapping
from typing import Any, ClassVar

from steepest.core.hyper_parameters import Betas, Factor, Rate, Weight
from steepest.core.optimizer import Optimizer

__all__ = ["SignSGD", "Signum", "Lion"]


class SignSGD(Optimizer):
    """SignSGD: steps of one size, in the direction of the gradient's sign.

        p ← (1 - lr · weight_decay) · p
        p ← p - lr · sign(g)

    sign(0) is 0. Raises ValueError for hyper-parameters out of range.

    >>> import numpy as np, steepest as st
    >>> w = np.array([1.0, -2.0, 3.0])
    >>> st.SignSGD(w, lr=0.5).step(np.array([0.01, -8.0, 0.0]))
    >>> w
    array([ 0.5, -1.5,  3. ])

    Bernstein et al. 2018, arXiv:1802.04434, algorithm 1.
    """

    decay_mode = "decoupled"

    lr: Rate = 1e-4
    weight_decay: Weight = 0.0

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ()

    coefficient_names: ClassVar = {"signsgd": "lr"}

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        return "signsgd", (h["lr"],)


class Signum(Optimizer):
    """Signum: steps of one size, in the direction of the sign of the momentum.

        p ← (1 - lr · weight_decay) · p
        m ← momentum · m + (1 - momentum) · g
        p ← p - lr · sign(m)

    sign(0) is 0. Raises ValueError for hyper-parameters out of range; momentum is below 1.

    >>> import numpy as np, steepest as st
    >>> w = np.array([1.0, -2.0, 3.0])
    >>> opt = st.Signum(w, lr=0.5, momentum=0.75)
    >>> opt.step(np.array([0.01, -8.0, 0.0]))
    >>> opt.step(np.array([-0.01, 1.0, 1.0]))
    >>> w
    array([ 1. , -1. ,  2.5])

    Bernstein et al. 2018, arXiv:1802.04434, algorithm 2, with its defaults.
    """

    decay_mode = "decoupled"

    lr: Rate = 1e-4
    momentum: Factor = 0.9
    weight_decay: Weight = 0.0

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",)

    coefficient_names: ClassVar = {"signum": "lr mu fresh"}

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        return "signum", (h["lr"], h["momentum"], 1.0 - h["momentum"])


class Lion(Optimizer):
    """Lion: steps of one size, in the direction of the sign of an interpolated momentum.

        p ← (1 - lr · weight_decay) · p
        p ← p - lr · sign(β₁ m + (1 - β₁) g)
        m ← β₂ m + (1 - β₂) g

    sign(0) is 0. Raises ValueError for hyper-parameters out of range.

    >>> import numpy as np, steepest as st
    >>> w = np.array([1.0, -2.0, 3.0])
    >>> st.Lion(w, lr=0.5).step(np.array([0.01, -8.0, 0.0]))
    >>> w
    array([ 0.5, -1.5,  3. ])

    Chen et al. 2023, arXiv:2302.06675, algorithm 2, with the authors' defaults.
    """

    decay_mode = "decoupled"

    lr: Rate = 1e-4
    betas: Betas = (0.9, 0.99)
    weight_decay: Weight = 0.0

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg",)

    coefficient_names: ClassVar = {"lion": "lr b1 fresh1 b2 fresh2"}

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        b1, b2 = h["betas"]
        return "lion", (h["lr"], b1, 1.0 - b1, b2, 1.0 - b2)
