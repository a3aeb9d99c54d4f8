"""Rules that use norms over a whole parameter: LAMB, LARS, NovoGrad, StableAdamW, Fromage."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from steepest.core.hyper_parameters import (
    Betas,
    Bounds,
    Eps,
    Flag,
    Limit,
    Momentum,
    NotNegative,
    Rate,
    Weight,
)  # fmt: skip
from steepest.core.optimizer import KW_ONLY, Optimizer
from steepest.kernels.scalars import one_minus_power

__all__ = ["LAMB", "LARS", "NovoGrad", "StableAdamW", "Fromage"]


class LAMB(Optimizer):
    """LAMB: Adam's direction with decay, made as long as the parameter is.

        m ← β₁ m + (1 - β₁) g
        v ← β₂ v + (1 - β₂) g²
        r ← m / (1 - β₁ᵗ) / (√v / √(1 - β₂ᵗ) + eps) + weight_decay · p
        p ← p - lr · ‖p‖ / ‖r‖ · r

    The norms are those of one parameter array, ‖p‖ held within ``norm_bounds``, the paper's φ;
    where one of them is 0, such as that of a bias that starts at 0, the ratio is 1, as it is with
    ``adapt=False``, for which ``overrides`` can pick parameters: ``{"*.bias": {"adapt": False}}``.
    ``bias_correction=False`` leaves both divisors 1 - βᵗ away. One NaN in a gradient, or a norm
    beyond 1e154, makes NaN of the whole parameter. Raises ValueError for hyper-parameters out of
    range.

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

    lr: Rate = 1e-3
    betas: Betas = (0.9, 0.999)
    eps: Eps = 1e-6
    weight_decay: Weight = 0.0
    norm_bounds: Bounds = (0.0, math.inf)
    _: KW_ONLY
    bias_correction: Flag = True
    adapt: Flag = True

    @staticmethod
    def idle(h: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
        return {} if h["adapt"] else {"norm_bounds": ("with adapt=False", (0.0, math.inf))}

    @staticmethod
    def check(h: Mapping[str, Any]) -> None:
        low, high = h["norm_bounds"]
        if not (callable(low) or callable(high)) and low > high:
            raise ValueError(f"norm_bounds = {(low, high)}: expected the lower bound first")

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    coefficient_names: ClassVar = {
        "lamb": "b1 fresh1 b2 fresh2 scale unbias eps decay lr low high adapt"
    }

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        b1, b2 = h["betas"]
        scale = unbias = 1.0
        if h["bias_correction"]:
            scale = 1.0 / one_minus_power(b1, t)
            unbias = 1.0 / math.sqrt(one_minus_power(b2, t))
        moments = (b1, 1.0 - b1, b2, 1.0 - b2, scale, unbias)
        ratio = (*h["norm_bounds"], float(h["adapt"]))
        return "lamb", (*moments, h["eps"], h["decay"], h["lr"], *ratio)


class LARS(Optimizer):
    """LARS: momentum, with a rate for each parameter in proportion to its norm; and LARC.

        ratio = trust_coefficient · ‖p‖ / (‖g‖ + weight_decay · ‖p‖ + eps)
        v ← momentum · v + lr · ratio · (g + weight_decay · p)
        p ← p - v                                   (nesterov: v + momentum · v - momentum · v_old)

    The norms are those of one parameter array. Where p is 0, such as a bias at first, the ratio is
    1, as it is with ``adapt=False``, for which ``overrides`` can pick parameters:
    ``{"*.bias": {"adapt": False}}``. ``trust_clip`` takes the ratio itself for the rate, or lr
    where that is less, which is LARC. ``decay_mode="l2"`` takes ‖g + weight_decay · p‖ for the
    divisor, as optax does. A g whose norm is beyond 1e154 gives a ratio of 0, one NaN in it makes
    NaN of the whole parameter. Raises ValueError for hyper-parameters out of range, or nesterov
    without momentum.

    >>> import numpy as np, steepest as st
    >>> w = np.array([3.0, -4.0])
    >>> st.LARS(w, lr=0.5, trust_coefficient=0.1, eps=0.0).step(np.array([6.0, 8.0]))
    >>> w
    array([ 2.85, -4.2 ])

    You, Gitman and Ginsburg 2017, arXiv:1708.03888, algorithm 1, with lr inside v; eps and
    trust_clip as in timm and NVIDIA's LARC.
    """

    decay_mode = "decoupled"
    needs = "layer-wise"
    own_decay = True

    lr: Rate = 1.0
    momentum: Momentum = 0.9
    weight_decay: Weight = 0.0
    nesterov: Flag = False
    trust_coefficient: NotNegative = 1e-3
    eps: Eps = 1e-8
    _: KW_ONLY
    trust_clip: Flag = False
    adapt: Flag = True

    @staticmethod
    def idle(h: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
        usual = {"trust_coefficient": 1e-3, "eps": 1e-8, "trust_clip": False}
        return {} if h["adapt"] else {key: ("with adapt=False", x) for key, x in usual.items()}

    @staticmethod
    def check(h: Mapping[str, Any]) -> None:
        if h["nesterov"] and h["momentum"] == 0:
            raise ValueError("nesterov needs momentum > 0")

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if h["momentum"] else ()

    coefficient_names: ClassVar = dict.fromkeys(
        ("lars_plain", "lars", "lars_nesterov"), "lr decay mu trust eps adapt clip"
    )

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        rule = "lars_nesterov" if h["nesterov"] else "lars" if h["states"] else "lars_plain"
        trust = (h["trust_coefficient"], h["eps"], float(h["adapt"]), float(h["trust_clip"]))
        return rule, (h["lr"], h["decay"], h["momentum"], *trust)


class NovoGrad(Optimizer):
    """NovoGrad: momentum of gradients, each divided by a running norm of its whole parameter.

        v ← β₂ v + (1 - β₂) ‖g‖²                                 (v = ‖g‖² at the first step)
        m ← β₁ m + g / (√v + eps) + weight_decay · p
        p ← p - lr · m

    v is one number for each parameter array. ``grad_averaging`` adds (1 - β₁) times the new
    direction to m, except at the first step. A g whose norm is beyond 1e154 makes v infinite, and
    so all further steps, but for decay and momentum, 0; one NaN makes v NaN for good. Raises
    ValueError for hyper-parameters out of range.

    >>> import numpy as np, steepest as st
    >>> w = np.array([1.0, -2.0])
    >>> opt = st.NovoGrad(w, lr=0.5, eps=0.0)
    >>> opt.step(np.array([3.0, -4.0]))
    >>> w, opt.state["0"]["exp_avg_sq"]
    (array([ 0.7, -1.6]), array(25.))

    Ginsburg et al. 2019, arXiv:1905.11286, algorithm 1; betas, eps and grad_averaging as in
    NVIDIA's code.
    """

    decay_mode = "decoupled"
    needs = "layer-wise"
    own_decay = True

    lr: Rate = 1e-3
    betas: Betas = (0.95, 0.98)
    eps: Eps = 1e-8
    weight_decay: Weight = 0.0
    _: KW_ONLY
    grad_averaging: Flag = False

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg",)

    @staticmethod
    def scalars(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg_sq",)

    coefficient_names: ClassVar = {"novograd": "b1 share old fresh eps decay lr"}

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        b1, b2 = h["betas"]
        fresh = 1.0 - b1 if h["grad_averaging"] and t > 1 else 1.0
        norm = (b2, 1.0 - b2) if t > 1 else (0.0, 1.0)
        return "novograd", (b1, fresh, *norm, h["eps"], h["decay"], h["lr"])


class StableAdamW(Optimizer):
    """StableAdamW: AdamW whose rate shrinks where gradients are larger than v has them.

        m ← β₁' m + (1 - β₁') g
        v ← β₂' v + (1 - β₂') g²                                  (β' = β (1 - βᵗ⁻¹) / (1 - βᵗ))
        η ← lr / max(1, √mean(g² / max(v, eps²)) / clip_threshold)
        p ← p - η · (m / (√v + eps) + weight_decay · p)

    The mean is over one parameter array. With β' both m and v are unbiased as they stand. One NaN
    or infinity in a gradient makes NaN of the whole parameter, as does, where eps is 0, an element
    whose gradients have all been 0. Raises ValueError for hyper-parameters out of range.

    >>> import numpy as np, steepest as st
    >>> w = np.array([1.0, -2.0])
    >>> opt = st.StableAdamW(w, lr=0.5, weight_decay=0.0)
    >>> opt.step(np.array([0.25, -8.0])); opt.step(np.array([1.0, 800.0]))
    >>> w.round(4)
    array([ 0.1825, -1.7647])

    Wortsman et al. 2023, arXiv:2304.13013; defaults as in pytorch_optimizer.
    """

    decay_mode = "decoupled"
    needs = "layer-wise"
    own_decay = True

    lr: Rate = 1e-3
    betas: Betas = (0.9, 0.99)
    eps: Eps = 1e-8
    weight_decay: Weight = 1e-2
    clip_threshold: Limit = 1.0

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    coefficient_names: ClassVar = {
        "stableadamw": "old1 share1 old2 share2 lr eps least threshold decay"
    }

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        mixes = tuple(
            x
            for beta in h["betas"]
            for x in (
                beta * one_minus_power(beta, t - 1) / one_minus_power(beta, t),
                (1.0 - beta) / one_minus_power(beta, t),
            )
        )
        eps = h["eps"]
        return "stableadamw", (*mixes, h["lr"], eps, eps * eps, h["clip_threshold"], h["decay"])


class Fromage(Optimizer):
    """Fromage: each parameter turns by the same angle, whatever the length of its gradient.

        p ← (p - lr · ‖p‖ / ‖g‖ · g) / √(1 + lr²)

    The norms are those of one parameter array; where one of them is 0 their ratio is 1. The divisor
    holds ‖p‖ where it is for gradients at a right angle to p. One NaN in a gradient makes NaN of
    the whole parameter. Raises ValueError for hyper-parameters out of range.

    >>> import numpy as np, steepest as st
    >>> w = np.array([3.0, -4.0])
    >>> st.Fromage(w, lr=0.75).step(np.array([8.0, 6.0]))
    >>> w
    array([ 0., -5.])

    Bernstein et al. 2020, arXiv:2002.03432, algorithm 1.
    """

    decay_mode = "decoupled"
    needs = "layer-wise"

    lr: Rate = 1e-2
    weight_decay: Weight = 0.0

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ()

    coefficient_names: ClassVar = {"fromage": "lr left"}

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        return "fromage", (h["lr"], 1.0 / math.sqrt(1.0 + h["lr"] * h["lr"]))
