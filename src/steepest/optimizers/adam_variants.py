"""Rules that change what Adam averages or divides by.

AdaBelief, Yogi, LaProp, ADOPT, AdEMAMix, Adan, AdamAtan2, Sophia, Grams.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from steepest.core import internal, sweeps
from steepest.core.hyper_parameters import (
    Betas,
    Convention,
    Eps,
    Flag,
    NotNegative,
    Rate,
    Start,
    ThreeBetas,
    Weight,
)  # fmt: skip
from steepest.core.optimizer import KW_ONLY, Optimizer
from steepest.kernels.scalars import one_minus_power
from steepest.memory import arrays
from steepest.memory.arrays import Array

__all__ = [
    "AdaBelief",
    "Yogi",
    "LaProp",
    "ADOPT",
    "AdEMAMix",
    "Adan",
    "AdamAtan2",
    "Sophia",
    "Grams",
]


def _mixes(h: Mapping[str, Any]) -> tuple[float, ...]:
    """β and 1 - β of each running mean."""
    return tuple(x for beta in h["betas"] for x in (beta, 1.0 - beta))


def _steps(h: Mapping[str, Any], t: int) -> tuple[float, float]:
    """The rate that unbiases m, and the factor that unbiases √v."""
    b1, b2 = h["betas"][:2]
    return h["lr"] / one_minus_power(b1, t), 1.0 / math.sqrt(one_minus_power(b2, t))


class AdaBelief(Optimizer):
    """AdaBelief: Adam, divided by how far gradients are from what m predicts.

        m ← β₁ m + (1 - β₁) g
        s ← β₂ s + (1 - β₂) (g - m)² + eps
        p ← p - lr / (1 - β₁ᵗ) · m / (√s / √(1 - β₂ᵗ) + eps)

    Decoupled weight decay. Raises ValueError for hyper-parameters out of range.

    >>> import numpy as np, steepest as st
    >>> w = np.array([1.0, -2.0])
    >>> st.AdaBelief(w, lr=0.5, betas=(0.75, 0.999)).step(np.array([0.25, -8.0]))
    >>> w.round(4)
    array([ 0.3333, -1.3333])

    Zhuang et al. 2020, arXiv:2010.07468, algorithm 2; eps is that of the authors' code (1e-8 in
    the paper), and stays in s as it does there.
    """

    decay_mode = "decoupled"

    lr: Rate = 1e-3
    betas: Betas = (0.9, 0.999)
    eps: Eps = 1e-16
    weight_decay: Weight = 0.0

    squares = ("exp_avg_var",)

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_var")

    coefficient_names: ClassVar = {"adabelief": "b1 fresh1 b2 fresh2 step unbias eps"}

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        return "adabelief", (*_mixes(h), *_steps(h, t), h["eps"])


class Yogi(Optimizer):
    """Yogi: Adam whose v moves toward g² by a step that v's own size does not enlarge.

        m ← β₁ m + (1 - β₁) g
        v ← v - (1 - β₂) sign(v - g²) g²
        p ← p - lr / (1 - β₁ᵗ) · m / (√v / √(1 - β₂ᵗ) + eps)

    v starts at ``initial_accumulator_value``. ``bias_correction=False`` leaves both divisors 1 - βᵗ
    away, as in the paper. Decoupled weight decay. Raises ValueError for hyper-parameters out of
    range.

    ``convention``: ``"paper"`` as above; ``"optax"`` starts m at initial_accumulator_value as well.

    >>> import numpy as np, steepest as st
    >>> w = np.array([1.0, -2.0])
    >>> st.Yogi(w, lr=0.5).step(np.array([0.25, -8.0]))
    >>> w.round(4)
    array([ 0.5059, -1.5001])

    Zaheer et al. 2018, "Adaptive methods for nonconvex optimization", algorithm 2; eps from its
    section 5; the bias correction, v's start and lr as in all implementations known, of which
    several start m at 1e-6 as well, where the paper and this one have 0.
    """

    decay_mode = "decoupled"
    conventions: ClassVar = {
        "paper": "m starts at 0",
        "optax": "m starts at initial_accumulator_value, as v",
    }

    lr: Rate = 1e-2
    betas: Betas = (0.9, 0.999)
    eps: Eps = 1e-3
    weight_decay: Weight = 0.0
    initial_accumulator_value: Start = 1e-6
    _: KW_ONLY
    bias_correction: Flag = True
    convention: Convention = "paper"

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    @staticmethod
    def initial(key: str, p: Array, h: Mapping[str, Any]) -> Array:
        state = arrays.zeros_like(p)
        started = key == "exp_avg_sq" or h["convention"] == "optax"
        if started and h["initial_accumulator_value"]:
            state[...] = h["initial_accumulator_value"]
        return state

    coefficient_names: ClassVar = {"yogi": "b1 fresh1 fresh2 step unbias eps"}

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        b1, b2 = h["betas"]
        steps = _steps(h, t) if h["bias_correction"] else (h["lr"], 1.0)
        return "yogi", (b1, 1.0 - b1, 1.0 - b2, *steps, h["eps"])


class LaProp(Optimizer):
    """LaProp: the momentum of gradients that were divided first, each by its time's √v.

        v ← β₂ v + (1 - β₂) g²
        m ← β₁ m + (1 - β₁) g / (√v / √(1 - β₂ᵗ) + eps)
        p ← p - lr / (1 - β₁ᵗ) · m

    Decoupled weight decay. Raises ValueError for hyper-parameters out of range.

    >>> import numpy as np, steepest as st
    >>> w = np.array([1.0, -2.0])
    >>> st.LaProp(w, lr=0.5, eps=0.0).step(np.array([0.25, -8.0]))
    >>> w
    array([ 0.5, -1.5])

    Ziyin, Wang and Ueda 2020, arXiv:2002.04839, algorithm 1; defaults as in the authors' code,
    which has lr inside m and decays after the step by weight_decay alone.
    """

    decay_mode = "decoupled"

    lr: Rate = 4e-4
    betas: Betas = (0.9, 0.999)
    eps: Eps = 1e-15
    weight_decay: Weight = 0.0

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    coefficient_names: ClassVar = {"laprop": "b1 fresh1 b2 fresh2 step unbias eps"}

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        return "laprop", (*_mixes(h), *_steps(h, t), h["eps"])


class ADOPT(Optimizer):
    """ADOPT: momentum of gradients divided by the √v of before, so that no β₂ diverges.

        x = g / max(√v, eps), held within ± (t - 1)^(1/4)
        m ← β₁ m + (1 - β₁) x
        p ← p - lr · m
        v ← β₂ v + (1 - β₂) g²

    The first step only sets v = g². ``use_clipping=False`` does not hold x. Weight decay enters the
    gradient, or with ``decay_mode="decoupled"`` shrinks p, at the first step too. Raises ValueError
    for hyper-parameters out of range.

    >>> import numpy as np, steepest as st
    >>> w = np.array([1.0, -2.0])
    >>> opt = st.ADOPT(w, lr=0.5, betas=(0.5, 0.5))
    >>> for g in [0.25, -8.0], [0.125, -80.0]:
    ...     opt.step(np.array(g))
    >>> w
    array([ 0.875, -1.75 ])

    Taniguchi et al. 2024, arXiv:2411.02853, algorithm 2, which counts from 0; defaults as in the
    authors' code.
    """

    lr: Rate = 1e-3
    betas: Betas = (0.9, 0.9999)
    eps: Eps = 1e-6
    weight_decay: Weight = 0.0
    _: KW_ONLY
    use_clipping: Flag = True

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    coefficient_names: ClassVar = {
        "adopt_first": "",
        "adopt": "b1 fresh1 b2 fresh2 lr eps limit",
    }

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        if t == 1:
            return "adopt_first", ()
        limit = math.sqrt(math.sqrt(t - 1)) if h["use_clipping"] else math.inf
        return "adopt", (*_mixes(h), h["lr"], h["eps"], limit)


class AdEMAMix(Optimizer):
    """AdEMAMix: Adam with a second, much slower momentum.

        m ← β₁ m + (1 - β₁) g
        l ← β₃ l + (1 - β₃) g
        v ← β₂ v + (1 - β₂) g²
        p ← p - lr · (m / (1 - β₁ᵗ) + alpha · l) / (√v / √(1 - β₂ᵗ) + eps)

    alpha >= 0. The paper lets alpha and β₃ rise: ``st.schedules.ademamix_alpha`` and
    ``ademamix_beta3`` in their places do. Decoupled weight decay. Raises ValueError for
    hyper-parameters out of range.

    >>> import numpy as np, steepest as st
    >>> w = np.array([1.0, -2.0])
    >>> opt = st.AdEMAMix(w, lr=0.5, betas=(0.9, 0.999, 0.75), alpha=2.0, eps=0.0)
    >>> opt.step(np.array([2.0, -8.0]))
    >>> w
    array([ 0.25, -1.25])
    >>> slow = st.schedules.ademamix_beta3(0.9999, steps=1000)
    >>> alpha = st.schedules.ademamix_alpha(5.0, steps=1000)
    >>> opt = st.AdEMAMix(w, betas=(0.9, 0.999, slow), alpha=alpha)

    Pagliardini, Ablin and Grangier 2024, arXiv:2409.03137, algorithm 1; alpha as in optax and
    bitsandbytes (2 in the authors' code, 4 to 10 in the paper).
    """

    decay_mode = "decoupled"

    lr: Rate = 1e-3
    betas: ThreeBetas = (0.9, 0.999, 0.9999)
    alpha: NotNegative = 5.0
    eps: Eps = 1e-8
    weight_decay: Weight = 0.0

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg_fast", "exp_avg_slow", "exp_avg_sq")

    coefficient_names: ClassVar = {
        "ademamix": "b1 fresh1 b2 fresh2 b3 fresh3 step slow unbias eps",
    }

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        step, unbias = _steps(h, t)
        return "ademamix", (*_mixes(h), step, h["lr"] * h["alpha"], unbias, h["eps"])


class Adan(Optimizer):
    """Adan: Nesterov momentum, by running means of the gradient and of its change.

        d = g - (the gradient before), 0 at the first step
        m ← β₁ m + (1 - β₁) g
        δ ← β₂ δ + (1 - β₂) d
        n ← β₃ n + (1 - β₃) (g + β₂ d)²
        p ← p - lr · (m / (1 - β₁ᵗ) + β₂ δ / (1 - β₂ᵗ)) / (√n / √(1 - β₃ᵗ) + eps)

    Keeps the gradient as state ``"previous_grad"``, scaled and clipped as it was. Decoupled weight
    decay, which is ``no_prox=True`` in the authors' code; the paper's division by
    1 + lr · weight_decay after the step is ``decay_mode="proximal"``.
    Raises ValueError for hyper-parameters out of range.

    ``convention``: ``"paper"`` as above; ``"optax"`` weighs d and δ by 1 - β₂ in place of β₂.

    >>> import numpy as np, steepest as st
    >>> w = np.array([1.0, -2.0])
    >>> st.Adan(w, lr=0.5, eps=0.0).step(np.array([0.25, -8.0]))
    >>> w
    array([ 0.5, -1.5])

    Xie et al. 2022, arXiv:2208.06677, algorithm 1, whose β are the 1 - β of here; defaults as in
    the authors' code.
    """

    decay_mode = "decoupled"
    conventions: ClassVar = {
        "paper": "g + β₂ d, and β₂ δ in the step",
        "optax": "g + (1 - β₂) d, and (1 - β₂) δ in the step",
    }

    lr: Rate = 1e-3
    betas: ThreeBetas = (0.98, 0.92, 0.99)
    eps: Eps = 1e-8
    weight_decay: Weight = 0.0
    _: KW_ONLY
    convention: Convention = "paper"

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_diff", "exp_avg_sq", "previous_grad")

    coefficient_names: ClassVar = {
        "adan": "b1 fresh1 b2 fresh2 b3 fresh3 step ahead unbias eps later weight",
    }

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        b1, b2, b3 = h["betas"]
        step = h["lr"] / one_minus_power(b1, t)
        weight = 1.0 - b2 if h["convention"] == "optax" else b2
        ahead = h["lr"] * weight / one_minus_power(b2, t)
        unbias = 1.0 / math.sqrt(one_minus_power(b3, t))
        return "adan", (*_mixes(h), step, ahead, unbias, h["eps"], float(t > 1), weight)


class AdamAtan2(Optimizer):
    """Adam-atan2: Adam with an arctangent in place of the division, hence without eps.

        m ← β₁ m + (1 - β₁) g
        v ← β₂ v + (1 - β₂) g²
        p ← p - lr · a · arctan(m / (1 - β₁ᵗ) / (b √v / √(1 - β₂ᵗ)))

    No element moves by more than lr · a · π/2, and the scale of the gradients does not matter;
    0 / 0 is 0. a >= 0, b >= 0. Decoupled weight decay. Raises ValueError for hyper-parameters out
    of range.

    >>> import numpy as np, steepest as st
    >>> w = np.array([1.0, -2.0, 3.0])
    >>> st.AdamAtan2(w, lr=0.5, a=1.0).step(np.array([1e-30, -8.0, 0.0]))
    >>> w.round(4)
    array([ 0.6073, -1.6073,  3.    ])

    Everett et al. 2024, arXiv:2407.05872; lr as Adam's; betas, a (4/π, rounded) and b as in
    lucidrains' package. The arctangent is computed by + - * / here: within 3 units of the last
    place.
    """

    decay_mode = "decoupled"

    lr: Rate = 1e-3
    betas: Betas = (0.9, 0.99)
    weight_decay: Weight = 0.0
    a: NotNegative = 1.27
    b: NotNegative = 1.0

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    coefficient_names: ClassVar = {"adamatan2": "b1 fresh1 b2 fresh2 step unbias1 unbias2"}

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        b1, b2 = h["betas"]
        unbias1 = 1.0 / one_minus_power(b1, t)
        unbias2 = h["b"] / math.sqrt(one_minus_power(b2, t))
        return "adamatan2", (*_mixes(h), h["lr"] * h["a"], unbias1, unbias2)


class Sophia(Optimizer):
    """Sophia: momentum divided by the curvature, and no element moves by more than lr.

        m ← β₁ m + (1 - β₁) g
        p ← p - lr · min(max(m / max(rho · h, eps), -1), 1)
        h ← β₂ h + (1 - β₂) ĥ    by ``update_hessian(ĥ)``, where ĥ estimates the Hessian's diagonal

    The estimate is the caller's, and comes before every tenth step or so: u · (Hessian · u) for a
    random u (Hutchinson), or the batch size times the squared mean gradient of labels drawn from
    the model (Gauss-Newton-Bartlett). Without one, h is 0 and this is SignSGD with momentum.
    rho >= 0. Decoupled weight decay. Raises ValueError for hyper-parameters out of range.

    >>> import numpy as np, steepest as st
    >>> w = np.array([1.0, 1.0])
    >>> curvature = np.array([10.0, 0.1])
    >>> opt = st.Sophia(w, lr=0.5, betas=(0.0, 0.0), rho=1.0, weight_decay=0.0)
    >>> opt.update_hessian(curvature)
    >>> opt.step(curvature * w)
    >>> w
    array([0.5, 0.5])

    Liu et al. 2023, arXiv:2305.14342, algorithm 3, whose γ is rho here, and whose eps; the other
    defaults are those of the authors' SophiaG.
    """

    decay_mode = "decoupled"
    read_only = ("hessian",)
    takes = ("update_hessian",)

    lr: Rate = 1e-4
    betas: Betas = (0.965, 0.99)
    rho: NotNegative = 0.04
    eps: Eps = 1e-12
    weight_decay: Weight = 0.1

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "hessian")

    coefficient_names: ClassVar = {
        "sophia": "b1 fresh1 lr rho eps",
        "sophia_hessian": "b2 fresh2",
    }

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        b1 = h["betas"][0]
        return "sophia", (b1, 1.0 - b1, h["lr"], h["rho"], h["eps"])

    def update_hessian(self, estimate: Any) -> None:
        """Takes an estimate of the Hessian's diagonal into its mean h: h ← β₂ h + (1 - β₂) ĥ.

        The estimate has the structure of ``params``; None leaves a parameter's h alone, and what
        it has for groups of other rules is not used. With
        ``maximize`` it is one of minus the objective, as all that the rule sees. It is all or
        nothing, like a step. Raises TypeError or ValueError for estimates that do not fit,
        RuntimeError while another thread steps this optimizer.
        """
        what = "update_hessian() or step() of this optimizer"
        internal.change_alone(self, self._update_hessian, estimate, what)

    def _update_hessian(self, estimate: Any) -> None:
        flat = internal.flattened(self, estimate, "estimate")
        internal.bring_up_to_date(self)
        state = internal.unmarked_state(self)
        means: dict[str, Array] = {}
        groups: list[int] = []
        each, estimates = iter(flat), []
        for number, group in enumerate(self.param_groups):
            own = [(name, next(each)) for name in group["param_names"]]
            if group.get("rule", self.rule) == self.rule:
                means |= {name: state[name]["hessian"] for name, _ in own}
                estimates += [x for _, x in own]
                groups += [number] * len(own)

        def mean(number: int) -> tuple[str, tuple[float, ...]]:
            group = self.param_groups[number]
            rule = internal.rule_of(self, group)
            b2 = rule.checked("betas", group["betas"], self.updates)[1]
            return "sophia_hessian", (b2, 1.0 - b2)

        sweeps.take_in(means, estimates, groups, mean, "estimate", "hessian")


class Grams(Optimizer):
    """Grams: steps as long as Adam's, in the direction of the gradient's sign.

        m ← β₁ m + (1 - β₁) g
        v ← β₂ v + (1 - β₂) g²
        p ← p - lr / (1 - β₁ᵗ) · sign(g) · |m| / (√v / √(1 - β₂ᵗ) + eps)

    sign(0) is 0. Decoupled weight decay. Raises ValueError for hyper-parameters out of range.

    >>> import numpy as np, steepest as st
    >>> w = np.array([1.0, -2.0])
    >>> opt = st.Grams(w, lr=0.5, betas=(0.5, 0.5), eps=0.0)
    >>> opt.step(np.array([4.0, -8.0])); opt.step(np.array([-1.0, 0.0]))
    >>> w.round(4)
    array([ 0.6361, -1.5   ])

    Cao et al. 2024, arXiv:2412.17107, algorithm 1.
    """

    decay_mode = "decoupled"

    lr: Rate = 1e-3
    betas: Betas = (0.9, 0.999)
    eps: Eps = 1e-6
    weight_decay: Weight = 0.0

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    coefficient_names: ClassVar = {"grams": "b1 fresh1 b2 fresh2 step unbias eps"}

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        return "grams", (*_mixes(h), *_steps(h, t), h["eps"])
