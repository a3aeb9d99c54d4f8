"""Adam and its relatives: AdamW, Adamax, NAdam, RAdam."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from steepest.core.hyper_parameters import Betas, Convention, Eps, Flag, NotNegative, Rate, Weight
from steepest.core.optimizer import KW_ONLY, Argument, Optimizer
from steepest.kernels.scalars import one_minus_power

__all__ = ["Adam", "AdamW", "Adamax", "NAdam", "RAdam"]


_MOMENTUM_DECAY = 4e-3


def _moments(h: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """The coefficients of m ← β₁ m + (1 - β₁) g and v ← β₂ v + (1 - β₂) g²."""
    b1, b2 = h["betas"]
    return b1, 1.0 - b1, b2, 1.0 - b2


class _WithTorchsFlag(Optimizer, registered=False):
    """Rules whose PyTorch class has a flag ``decoupled_weight_decay``, here ``decay_mode``."""

    @staticmethod
    def translated(given: dict[str, Any]) -> dict[str, Any]:
        decoupled = given.pop("decoupled_weight_decay", None)
        if decoupled is None:
            return given
        if "decay_mode" in given:
            raise ValueError("give decoupled_weight_decay or decay_mode, not both")
        if not isinstance(decoupled, bool):
            raise TypeError(f"decoupled_weight_decay = {decoupled!r}: expected True or False")
        return given | {"decay_mode": "decoupled" if decoupled else "l2"}


class _AdamForm(_WithTorchsFlag, registered=False):
    """What Adam and AdamW share."""

    lr: Rate = 1e-3
    betas: Betas = (0.9, 0.999)
    eps: Eps = 1e-8
    weight_decay: Weight = 0.0
    amsgrad: Flag = False
    _: KW_ONLY
    bias_correction: Flag = True
    convention: Convention = "torch"

    squares = ("exp_avg_sq", "max_exp_avg_sq")

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        moments = ("exp_avg", "exp_avg_sq")
        return (*moments, "max_exp_avg_sq") if h["amsgrad"] else moments

    coefficient_names: ClassVar = {
        "adam": "b1 fresh1 b2 fresh2 step unbias eps",
        "amsgrad": "b1 fresh1 b2 fresh2 step unbias eps early",
    }

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        (b1, b2), step, unbias, early = h["betas"], h["lr"], 1.0, 1.0
        if h["bias_correction"]:
            step = h["lr"] / one_minus_power(b1, t)
            rest = one_minus_power(b2, t)
            if h["convention"] == "keras":
                step *= math.sqrt(rest)
            elif h["convention"] == "optax" and h["amsgrad"]:
                early = 1.0 / rest
            else:
                unbias = 1.0 / math.sqrt(rest)
        shared = (b1, 1.0 - b1, b2, 1.0 - b2, step, unbias, h["eps"])
        return ("amsgrad", (*shared, early)) if h["amsgrad"] else ("adam", shared)


class Adam(_AdamForm):
    """Adam: momentum divided by the root of the running mean square, both unbiased.

        m ← β₁ m + (1 - β₁) g
        v ← β₂ v + (1 - β₂) g²
        p ← p - lr / (1 - β₁ᵗ) · m / (√v / √(1 - β₂ᵗ) + eps)

    ``bias_correction=False`` leaves both divisors 1 - βᵗ away. ``amsgrad`` puts the largest v so
    far in place of v. ``weight_decay`` enters the gradient unless ``decoupled_weight_decay``.
    Raises ValueError for hyper-parameters out of range.

    ``convention``: ``"torch"`` and ``"paper"`` as above. ``"keras"`` adds eps before √v is
    unbiased, as the paper's ε̂: p ← p - lr √(1 - β₂ᵗ) / (1 - β₁ᵗ) · m / (√v + eps). ``"optax"``
    differs with ``amsgrad``, which takes the largest v / (1 - β₂ᵗ).

    >>> import numpy as np, steepest as st
    >>> w = np.array([1.0, -2.0])
    >>> st.Adam(w, lr=0.5, eps=0.0).step(np.array([0.25, -8.0]))
    >>> w
    array([ 0.5, -1.5])

    Kingma and Ba 2014, arXiv:1412.6980, algorithm 1; AMSGrad: Reddi et al. 2018, arXiv:1904.09237;
    formula and defaults as torch.optim.Adam.
    """

    conventions: ClassVar = {
        "torch": "m̂ / (√v̂ + eps); amsgrad: the largest v",
        "optax": "as torch; amsgrad: the largest v̂",
        "keras": "√(1 - β₂ᵗ) m̂ / (√v + eps)",
        "paper": "as torch",
    }

    _: KW_ONLY
    decoupled_weight_decay: Argument[bool | None] = None


class AdamW(_AdamForm):
    """Adam with decoupled weight decay.

        p ← (1 - lr · weight_decay) · p
        m ← β₁ m + (1 - β₁) g
        v ← β₂ v + (1 - β₂) g²
        p ← p - lr / (1 - β₁ᵗ) · m / (√v / √(1 - β₂ᵗ) + eps)

    ``amsgrad``, ``bias_correction`` and ``convention`` as in Adam, but for the paper's. Raises
    ValueError for hyper-parameters out of range.

    >>> import numpy as np, steepest as st
    >>> w = np.array([1.0, -2.0])
    >>> st.AdamW(w, lr=0.5, eps=0.0, weight_decay=0.5).step(np.array([0.25, -8.0]))
    >>> w
    array([ 0.25, -1.  ])

    Loshchilov and Hutter 2017, arXiv:1711.05101; formula and defaults as torch.optim.AdamW.
    """

    decay_mode = "decoupled"
    # Not the paper's, in which lr does not scale the decay.
    conventions: ClassVar = {k: Adam.conventions[k] for k in ("torch", "optax", "keras")}

    weight_decay: Weight = 1e-2


Adam.register(AdamW)  # which lacks a flag that Adam has, and is one all the same


class Adamax(Optimizer):
    """Adam with the largest magnitude in place of the root mean square.

        m ← β₁ m + (1 - β₁) g
        u ← max(β₂ u, |g| + eps)
        p ← p - lr / (1 - β₁ᵗ) · m / u

    Raises ValueError for hyper-parameters out of range.

    ``convention``: ``"torch"`` and ``"optax"`` as above; ``"keras"`` has u ← max(β₂ u, |g|) and
    divides by u + eps.

    >>> import numpy as np, steepest as st
    >>> w = np.array([1.0, -2.0])
    >>> st.Adamax(w, lr=0.5, eps=0.0).step(np.array([0.25, -8.0]))
    >>> w
    array([ 0.5, -1.5])

    Kingma and Ba 2014, arXiv:1412.6980, algorithm 2; eps and defaults as torch.optim.Adamax.
    """

    conventions: ClassVar = {
        "torch": "u ← max(β₂ u, |g| + eps)",
        "optax": "as torch",
        "keras": "u ← max(β₂ u, |g|); divides by u + eps",
    }

    lr: Rate = 2e-3
    betas: Betas = (0.9, 0.999)
    eps: Eps = 1e-8
    weight_decay: Weight = 0.0
    _: KW_ONLY
    convention: Convention = "torch"

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_inf")

    coefficient_names: ClassVar = {"adamax": "b1 fresh1 b2 step inside outside"}

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        b1, fresh1, b2, _ = _moments(h)
        eps = (0.0, h["eps"]) if h["convention"] == "keras" else (h["eps"], 0.0)
        return "adamax", (b1, fresh1, b2, h["lr"] / one_minus_power(b1, t), *eps)


class NAdam(_WithTorchsFlag):
    """Adam with Nesterov momentum.

        μₜ = β₁ (1 - 0.96^(t · momentum_decay) / 2)
        m ← β₁ m + (1 - β₁) g
        v ← β₂ v + (1 - β₂) g²
        p ← p - lr · (a g + b m) / (√v / √(1 - β₂ᵗ) + eps)
        a = (1 - μₜ) / (1 - μ₁…μₜ),  b = μₜ₊₁ / (1 - μ₁…μₜ₊₁)

    The products are functions of t and the present β₁ and momentum_decay; nothing is accumulated.
    Raises ValueError for hyper-parameters out of range.

    ``convention``: ``"torch"`` as above. ``"keras"`` has μₜ = β₁ (1 - 0.96ᵗ / 2), ``"optax"`` has
    μₜ = β₁; neither has a momentum_decay. ``"paper"`` has μₜ in place of β₁ in m, too, and
    √(β₂ v) in place of √v.

    >>> import numpy as np, steepest as st
    >>> w = np.array([1.0, -2.0])
    >>> st.NAdam(w, lr=0.5).step(np.array([0.25, -8.0]))
    >>> w.round(4)
    array([ 0.4718, -1.4718])

    Dozat 2016; formula, positional order and defaults as torch.optim.NAdam.
    """

    conventions: ClassVar = {
        "torch": "μₜ = β₁ (1 - 0.96^(t · momentum_decay) / 2)",
        "optax": "μₜ = β₁, without momentum_decay",
        "keras": "μₜ = β₁ (1 - 0.96ᵗ / 2), without momentum_decay",
        "paper": "μₜ as torch, and in m; v̂ is multiplied by β₂",
    }

    lr: Rate = 2e-3
    betas: Betas = (0.9, 0.999)
    eps: Eps = 1e-8
    weight_decay: Weight = 0.0
    momentum_decay: NotNegative = _MOMENTUM_DECAY
    decoupled_weight_decay: Argument[bool | None] = None
    _: KW_ONLY
    convention: Convention = "torch"

    @staticmethod
    def check(h: Mapping[str, Any]) -> None:
        unused = h["convention"] in ("optax", "keras")
        if unused and h["momentum_decay"] != _MOMENTUM_DECAY:
            raise ValueError(
                f"momentum_decay has no effect with convention = {h['convention']!r}; "
                f"leave it at {_MOMENTUM_DECAY}"
            )

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    coefficient_names: ClassVar = {"nadam": "b1 fresh1 b2 fresh2 now ahead unbias eps"}

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        b1, fresh1, b2, fresh2 = _moments(h)
        unbias = 1.0 / math.sqrt(one_minus_power(b2, t))
        if h["convention"] == "optax":
            now = h["lr"] * fresh1 / one_minus_power(b1, t)
            ahead = h["lr"] * b1 / one_minus_power(b1, t + 1)
            return "nadam", (b1, fresh1, b2, fresh2, now, ahead, unbias, h["eps"])
        decay = 1.0 if h["convention"] == "keras" else h["momentum_decay"]
        mu, mu_next, product = warming(b1, decay, t)
        now = h["lr"] * (1.0 - mu) / (1.0 - product)
        ahead = h["lr"] * mu_next / (1.0 - product * mu_next)
        if h["convention"] == "paper":
            b1, fresh1, unbias = mu, 1.0 - mu, unbias * math.sqrt(b2)
        return "nadam", (b1, fresh1, b2, fresh2, now, ahead, unbias, h["eps"])


def _warm(b1: float, decay: float, t: int) -> float:
    return b1 * (1.0 - 0.5 * math.pow(0.96, t * decay))


# The last product computed for each (β₁, momentum_decay): a step forward costs one factor.
_products: dict[tuple[float, float], tuple[int, float]] = {}


def warming(b1: float, decay: float, t: int) -> tuple[float, float, float]:
    """μₜ, μₜ₊₁ and μ₁ · … · μₜ, multiplied in that order whatever was computed before.

    Since μ grows with t, a product that a factor does not change stays as it is: that is 0, or the
    smallest number there is, to which it falls in some thousand steps.
    """
    done, product = _products.get((b1, decay), (0, 1.0))
    if done > t:
        done, product = 0, 1.0
    for i in range(done + 1, t + 1):
        before = product
        product *= _warm(b1, decay, i)
        if product == before:
            break
    if len(_products) > 64:
        _products.clear()
    _products[b1, decay] = t, product
    return _warm(b1, decay, t), _warm(b1, decay, t + 1), product


class RAdam(_WithTorchsFlag):
    """Adam whose rate is rectified while the variance of v is not yet known.

        m ← β₁ m + (1 - β₁) g
        v ← β₂ v + (1 - β₂) g²
        ρ = 2 / (1 - β₂) - 1,  ρₜ = ρ - 2 t β₂ᵗ / (1 - β₂ᵗ)
        p ← p - lr / (1 - β₁ᵗ) · m                                        (ρₜ ≤ 5)
        p ← p - lr r / (1 - β₁ᵗ) · m √(1 - β₂ᵗ) / (√v + eps)              (ρₜ > 5)
        r = √((ρₜ - 4)(ρₜ - 2) ρ / ((ρ - 4)(ρ - 2) ρₜ))

    Raises ValueError for hyper-parameters out of range.

    ``convention``: ``"torch"`` as above. ``"optax"`` adds eps to the unbiased root:
    lr r / (1 - β₁ᵗ) · m / (√v / √(1 - β₂ᵗ) + eps). ``"paper"`` has the threshold 4, and eps, which
    it lacks, as above.

    >>> import numpy as np, steepest as st
    >>> w = np.array([1.0, -2.0])
    >>> st.RAdam(w, lr=0.5).step(np.array([0.5, -8.0]))
    >>> w
    array([0.75, 2.  ])

    Liu et al. 2019, arXiv:1908.03265; the threshold 5 (4 in the paper), eps, positional order and
    defaults as torch.optim.RAdam.
    """

    conventions: ClassVar = {
        "torch": "r √(1 - β₂ᵗ) m̂ / (√v + eps) where ρₜ > 5",
        "optax": "r m̂ / (√v̂ + eps) where ρₜ > 5",
        "paper": "as torch, where ρₜ > 4",
    }

    lr: Rate = 1e-3
    betas: Betas = (0.9, 0.999)
    eps: Eps = 1e-8
    weight_decay: Weight = 0.0
    decoupled_weight_decay: Argument[bool | None] = None
    _: KW_ONLY
    convention: Convention = "torch"

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    coefficient_names: ClassVar = {
        "radam_early": "b1 fresh1 b2 fresh2 step",
        "radam": "b1 fresh1 b2 fresh2 step eps",
        "adam": "b1 fresh1 b2 fresh2 step unbias eps",
    }

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        b1, fresh1, b2, fresh2 = _moments(h)
        step = h["lr"] / one_minus_power(b1, t)
        rest = one_minus_power(b2, t)
        longest = 2.0 / fresh2 - 1.0
        length = longest - 2.0 * t * (1.0 - rest) / rest
        if length <= (4.0 if h["convention"] == "paper" else 5.0):
            return "radam_early", (b1, fresh1, b2, fresh2, step)
        rectified = math.sqrt(
            (length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length)
        )
        moments = (b1, fresh1, b2, fresh2)
        if h["convention"] == "optax":
            return "adam", (*moments, step * rectified, 1.0 / math.sqrt(rest), h["eps"])
        return "radam", (*moments, step * rectified * math.sqrt(rest), h["eps"])
