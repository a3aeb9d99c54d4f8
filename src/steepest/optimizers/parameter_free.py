"""Rules that find their own rate from sums over all parameters.

DoG, LDoG, DoWG, Prodigy, DAdaptAdam.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from steepest.core.hyper_parameters import (
    Betas,
    Eps,
    Flag,
    FromOne,
    Maybe,
    NotNegative,
    OptionalFactor,
    Rate,
    Start,
    Weight,
    within,
)  # fmt: skip
from steepest.core.optimizer import KW_ONLY, Optimizer
from steepest.kernels.scalars import one_minus_power
from steepest.memory.arrays import Array
from steepest.optimizers.averaged import copy_of

__all__ = ["DoG", "LDoG", "DoWG", "Prodigy", "DAdaptAdam"]


class DoG(Optimizer):
    """DoG, distance over gradients: gradient descent that finds its own rate.

        r ← max(r, ‖p - x0‖),  r = reps_rel · (1 + ‖p‖) at first
        G ← G + ‖g‖²
        p ← p - lr · r / √(G + eps) · g

    The norms are those of all parameters together, x0 is where they began. r and G are in each of
    ``param_groups`` as ``"rbar"`` and ``"sum_squares"``; one NaN or infinity in a gradient stays in
    them for good (``nonfinite="skip"`` keeps it out). ``decay_mode="decoupled"`` shrinks p by the
    rate found, lr · r / √(G + eps), times weight_decay. The authors advise to evaluate an average
    of the parameters (``ema``). Raises ValueError for hyper-parameters out of range.

    >>> import numpy as np, steepest as st
    >>> w = np.array([1.0, -2.0])
    >>> opt = st.DoG(w, reps_rel=0.1, eps=0.0)
    >>> opt.step(np.array([3.0, -4.0]))
    >>> w.round(4), round(opt.param_groups[0]["rbar"], 4)
    (array([ 0.8058, -1.7411]), 0.3236)

    Ivgi et al. 2023, arXiv:2302.12022; defaults as the authors' package dog.
    """

    needs = "global"
    read_only = ("x0",)
    own_decay = True
    alike = ("reps_rel",)
    positive = ("rbar", "sum_squares")

    lr: Rate = 1.0
    reps_rel: NotNegative = 1e-6
    weight_decay: Weight = 0.0
    eps: Eps = 1e-8

    points = ("x0",)

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("x0",)

    @staticmethod
    def shared(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("rbar", "sum_squares")

    @staticmethod
    def initial(key: str, p: Array, h: Mapping[str, Any]) -> Array:
        return copy_of(p)

    coefficient_names: ClassVar = {"dog": "lr eps reps_rel decay"}

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        return "dog", (h["lr"], h["eps"], h["reps_rel"], h["decay"])


class LDoG(Optimizer):
    """LDoG, layer-wise DoG: DoG for each parameter by itself.

        r ← max(r, ‖p - x0‖),  r = reps_rel · (1 + ‖p‖) at first
        G ← G + ‖g‖²
        p ← p - lr · r / √(G + eps) · g

    The norms are those of one parameter array, whose numbers r and G are states, ``"rbar"`` and
    ``"sum_squares"``; one NaN or infinity in a gradient stays in them for good. The authors advise
    to evaluate an average of the parameters (``ema``). Raises ValueError for hyper-parameters out
    of range.

    >>> import numpy as np, steepest as st
    >>> w = np.array([1.0, -2.0])
    >>> opt = st.LDoG(w, reps_rel=0.1, eps=0.0)
    >>> opt.step(np.array([3.0, -4.0]))
    >>> w.round(4), opt.state["0"]["rbar"].round(4)
    (array([ 0.8058, -1.7411]), np.float64(0.3236))

    Ivgi et al. 2023, arXiv:2302.12022; defaults as the authors' package dog.
    """

    needs = "layer-wise"
    read_only = ("x0",)
    own_decay = True

    lr: Rate = 1.0
    reps_rel: NotNegative = 1e-6
    weight_decay: Weight = 0.0
    eps: Eps = 1e-8

    points = ("x0",)

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("x0",)

    @staticmethod
    def scalars(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("rbar", "sum_squares")

    @staticmethod
    def initial(key: str, p: Array, h: Mapping[str, Any]) -> Array:
        return copy_of(p)

    coefficient_names: ClassVar = {"ldog": "lr eps reps_rel decay"}

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        return "ldog", (h["lr"], h["eps"], h["reps_rel"], h["decay"])


class DoWG(Optimizer):
    """DoWG, distance over weighted gradients: DoG that lets older gradients count less.

        r² ← max(r², ‖p - x0‖²),  r² = init_estim_sq_dist at first
        v ← v + r² ‖g‖²
        p ← p - lr · r² / (√v + eps) · g

    The norms are those of all parameters together, x0 is where they began. r² is eps at first where
    ``init_estim_sq_dist`` is None. r² and v are in each of ``param_groups`` as ``"estim_sq_dist"``
    and ``"weighted_sq_norm_grads"``; one NaN or infinity in a gradient stays in them for good.
    ``decay_mode="decoupled"`` shrinks p by the rate found times weight_decay. Raises ValueError
    for hyper-parameters out of range.

    >>> import numpy as np, steepest as st
    >>> w = np.array([1.0, -2.0])
    >>> opt = st.DoWG(w, init_estim_sq_dist=0.25, eps=0.0)
    >>> opt.step(np.array([3.0, -4.0]))
    >>> w
    array([ 0.7, -1.6])

    Khaled, Mishchenko and Jin 2023, arXiv:2305.16284, algorithm 1; eps and defaults as optax.
    """

    needs = "global"
    read_only = ("x0",)
    own_decay = True
    alike = ("init_estim_sq_dist",)
    positive = ("estim_sq_dist", "weighted_sq_norm_grads")

    lr: Rate = 1.0
    init_estim_sq_dist: Annotated[float | None, Maybe(within(0))] = None
    weight_decay: Weight = 0.0
    eps: Eps = 1e-4

    points = ("x0",)

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("x0",)

    @staticmethod
    def shared(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("estim_sq_dist", "weighted_sq_norm_grads")

    @staticmethod
    def initial(key: str, p: Array, h: Mapping[str, Any]) -> Array:
        return copy_of(p)

    @staticmethod
    def initial_number(key: str, h: Mapping[str, Any]) -> float:
        if key != "estim_sq_dist":
            return 0.0
        given: float | None = h["init_estim_sq_dist"]
        eps: float = h["eps"]
        return eps if given is None else given

    coefficient_names: ClassVar = {"dowg": "lr eps decay"}

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        return "dowg", (h["lr"], h["eps"], h["decay"])


def _unbias(h: Mapping[str, Any], t: int) -> float:
    """What lr is multiplied with to unbias Adam's moments, if asked for."""
    if not h["use_bias_correction"]:
        return 1.0
    b1, b2 = h["betas"]
    return math.sqrt(one_minus_power(b2, t)) / one_minus_power(b1, t)


def _needs_d0(h: Mapping[str, Any]) -> None:
    if h["d0"] == 0:
        raise ValueError("d0 = 0.0: expected a number above 0, for d to grow from")


class Prodigy(Optimizer):
    """Prodigy: Adam that estimates d, the distance to the solution, and takes it for its rate.

        m ← β₁ m + (1 - β₁) d g
        v ← β₂ v + (1 - β₂) d² g²
        s ← β₃ s + lr d² / d0 · g,  n ← β₃ n + Σ lr d² / d0 · g (p0 - p)
        d ← max(d, d_coef · n / Σ |s|)
        p ← p - lr · d_old · (m / (√v + d eps) + weight_decay · p)

    The sums are over all parameters, p0 is where they began. d, its largest estimate and n are in
    each of ``param_groups`` as ``"d"``, ``"d_max"`` and ``"d_numerator"``, for all groups alike. lr
    is best left at 1, or a schedule of factors below 1; the gradients of a group with a smaller lr
    weigh less in the estimate, those of one with lr = 0 nothing. ``beta3`` is √β₂ unless given.
    ``growth_rate`` limits d from one step to the next, after its first rise above d0.
    ``safeguard_warmup`` leaves lr out of s, unless it is 0. ``use_bias_correction`` multiplies lr
    with √(1 - β₂ᵗ) / (1 - β₁ᵗ). As long as all gradients are 0, d stays; a NaN in a gradient ends
    the estimation, d stays as it is. Raises ValueError for hyper-parameters out of range.

    >>> import numpy as np, steepest as st
    >>> w = np.array([1.0, -2.0])
    >>> opt = st.Prodigy(w, d0=0.01)
    >>> for _ in range(50):
    ...     opt.step(w.copy())
    >>> w.round(3), round(opt.param_groups[0]["d"], 3)
    (array([-0.14 ,  0.055]), 0.799)

    Mishchenko and Defazio 2023, arXiv:2306.06101; formula and arguments as in the authors' package
    prodigyopt, ``decouple`` as ``decay_mode``.
    """

    decay_mode = "decoupled"
    needs = "global"
    read_only = ("p0",)
    own_decay = True
    alike = ("betas", "beta3", "d0", "d_coef", "growth_rate")
    positive = ("d", "d_max")

    lr: Rate = 1.0
    betas: Betas = (0.9, 0.999)
    beta3: OptionalFactor = None
    eps: Eps = 1e-8
    weight_decay: Weight = 0.0
    _: KW_ONLY
    use_bias_correction: Flag = False
    safeguard_warmup: Flag = False
    d0: Start = 1e-6
    d_coef: NotNegative = 1.0
    growth_rate: FromOne = math.inf

    @staticmethod
    def check(h: Mapping[str, Any]) -> None:
        _needs_d0(h)

    points = ("p0",)

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", "s", "p0")

    @staticmethod
    def shared(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("d", "d_max", "d_numerator")

    @classmethod
    def initial(cls, key: str, p: Array, h: Mapping[str, Any]) -> Array:
        return copy_of(p) if key == "p0" else super().initial(key, p, h)

    @staticmethod
    def initial_number(key: str, h: Mapping[str, Any]) -> float:
        return 0.0 if key == "d_numerator" else h["d0"]

    coefficient_names: ClassVar = {
        "prodigy": "b1 fresh1 b2 fresh2 b3 rate eps decay d0 d_coef growth_rate safeguard"
    }

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        b1, b2 = h["betas"]
        b3 = math.sqrt(b2) if h["beta3"] is None else h["beta3"]
        mixes = (b1, 1.0 - b1, b2, 1.0 - b2, b3)
        _needs_d0(h)
        estimate = (h["d0"], h["d_coef"], h["growth_rate"], float(h["safeguard_warmup"]))
        return "prodigy", (*mixes, h["lr"] * _unbias(h, t), h["eps"], h["decay"], *estimate)


class DAdaptAdam(Optimizer):
    """D-Adapted Adam: Adam that estimates d, the distance to the solution, for its rate.

        n ← √β₂ n + (1 - √β₂) Σ lr d g s / (√v + eps)
        m ← β₁ m + (1 - β₁) lr d g
        v ← β₂ v + (1 - β₂) g²
        s ← √β₂ s + (1 - √β₂) lr d g
        d ← max(d, min(n / ((1 - √β₂) Σ |s|), d · growth_rate)),  d = d0 at first
        p ← p - m / (√v + eps) - lr · d_old · weight_decay · p

    The sums are over all parameters. d and n are in each of ``param_groups`` as ``"d"`` and
    ``"numerator_weighted"``, for all groups alike. lr is best left at 1, or a schedule of factors
    below 1; groups should not differ in it, other than by 0. ``use_bias_correction`` multiplies lr
    with √(1 - β₂ᵗ) / (1 - β₁ᵗ). As long as all gradients are 0, d stays; a NaN in a gradient ends
    the estimation, d stays as it is. Raises ValueError for hyper-parameters out of range.

    >>> import numpy as np, steepest as st
    >>> w = np.array([1.0, -2.0])
    >>> opt = st.DAdaptAdam(w, d0=0.01)
    >>> for _ in range(50):
    ...     opt.step(w.copy())
    >>> w.round(3), round(opt.param_groups[0]["d"], 3)
    (array([0.097, 0.045]), 5.518)

    Defazio and Mishchenko 2023, arXiv:2301.07733; formula and arguments as in the authors' package
    dadaptation, ``decouple`` as ``decay_mode``.
    """

    needs = "global"
    own_decay = True
    alike = ("betas", "d0", "growth_rate")
    positive = ("d",)

    lr: Rate = 1.0
    betas: Betas = (0.9, 0.999)
    eps: Eps = 1e-8
    weight_decay: Weight = 0.0
    _: KW_ONLY
    use_bias_correction: Flag = False
    d0: Start = 1e-6
    growth_rate: FromOne = math.inf

    @staticmethod
    def check(h: Mapping[str, Any]) -> None:
        _needs_d0(h)

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", "s")

    @staticmethod
    def shared(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("d", "numerator_weighted")

    @staticmethod
    def initial_number(key: str, h: Mapping[str, Any]) -> float:
        return h["d0"] if key == "d" else 0.0

    coefficient_names: ClassVar = {
        "dadaptadam": "b1 fresh1 b2 fresh2 b3 fresh3 rate eps decay growth_rate"
    }

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        b1, b2 = h["betas"]
        b3 = math.sqrt(b2)
        mixes = (b1, 1.0 - b1, b2, 1.0 - b2, b3, 1.0 - b3)
        rest = (h["eps"], h["decay"], h["growth_rate"])
        return "dadaptadam", (*mixes, h["lr"] * _unbias(h, t), *rest)
