"""Rules with a size of step for each element: Adagrad, RMSprop, Adadelta, Rprop, MADGRAD, FTRL."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from steepest.core.hyper_parameters import (
    Convention,
    Eps,
    Factor,
    Flag,
    Momentum,
    NotNegative,
    PartOfOne,
    Rate,
    Start,
    TwoNumbers,
    Weight,
)  # fmt: skip
from steepest.core.optimizer import KW_ONLY, Optimizer
from steepest.memory import arrays
from steepest.memory.arrays import Array

__all__ = ["Adagrad", "RMSprop", "Adadelta", "Rprop", "MADGRAD", "FTRL"]


def _split(eps: float, inside: bool) -> tuple[float, float]:
    """What is added under the root, and what to it."""
    return (eps, 0.0) if inside else (0.0, eps)


class Adagrad(Optimizer):
    """Adagrad: each element's rate falls with the sum of its squared gradients.

        s ← s + g²
        p ← p - lr / (1 + (t - 1) · lr_decay) · g / (√s + eps)

    s starts at ``initial_accumulator_value``. With ``eps_inside_sqrt`` the denominator is
    √(s + eps), as in many texts; PyTorch, and the default here, have eps outside. Raises
    ValueError for hyper-parameters out of range.

    ``convention``: ``"torch"`` as above; ``"keras"`` divides by √(s + eps); ``"optax"`` does, and
    leaves p alone where s is 0, also for eps = 0; ``"paper"`` as above.

    >>> import numpy as np, steepest as st
    >>> w = np.array([1.0, -2.0])
    >>> st.Adagrad(w, lr=0.5).step(np.array([0.1, 10.0]))
    >>> w
    array([ 0.5, -2.5])

    Duchi, Hazan and Singer 2011; formula and defaults as torch.optim.Adagrad.
    """

    conventions: ClassVar = {
        "torch": "√s + eps",
        "optax": "√(s + eps), and no step where s is 0",
        "keras": "√(s + eps)",
        "paper": "as torch",
    }

    lr: Rate = 1e-2
    lr_decay: NotNegative = 0.0
    weight_decay: Weight = 0.0
    initial_accumulator_value: Start = 0.0
    eps: Eps = 1e-10
    _: KW_ONLY
    eps_inside_sqrt: Flag = False
    convention: Convention = "torch"

    @staticmethod
    def check(h: Mapping[str, Any]) -> None:
        if h["eps_inside_sqrt"] and h["convention"] != "torch":
            raise ValueError(
                f"give eps_inside_sqrt or convention = {h['convention']!r}, which says where eps is"
            )

    squares = ("sum",)

    @staticmethod
    def idle(h: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
        return {"eps_inside_sqrt": ("with eps=0", False)} if h["eps"] == 0 else {}

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("sum",)

    @staticmethod
    def initial(key: str, p: Array, h: Mapping[str, Any]) -> Array:
        accumulator = arrays.zeros_like(p)
        if h["initial_accumulator_value"]:
            accumulator[...] = h["initial_accumulator_value"]
        return accumulator

    coefficient_names: ClassVar = {
        "adagrad": "lr inside outside",
        "adagrad_or_still": "lr inside outside",
    }

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        inside = h["eps_inside_sqrt"] or h["convention"] in ("optax", "keras")
        rule = "adagrad_or_still" if h["convention"] == "optax" else "adagrad"
        return rule, (h["lr"] / (1.0 + (t - 1) * h["lr_decay"]), *_split(h["eps"], inside))


class RMSprop(Optimizer):
    """RMSprop: the gradient divided by the root of its running mean square.

        v ← alpha · v + (1 - alpha) · g²
        m ← alpha · m + (1 - alpha) · g                       (centered; else m = 0)
        u ← momentum · u + g / (√max(v - m², 0) + eps)
        p ← p - lr · u

    The states m and u are kept only when ``centered`` or ``momentum`` ask for them. Raises
    ValueError for hyper-parameters out of range.

    ``convention``: ``"torch"`` as above. The others have eps under the root and lr within u:
    u ← momentum · u + lr · g / √(max(v - m², 0) + eps) and p ← p - u.

    >>> import numpy as np, steepest as st
    >>> w = np.array([1.0, -2.0])
    >>> st.RMSprop(w, lr=0.5, alpha=0.75).step(np.array([0.5, 8.0]))
    >>> w.round(6)
    array([ 0., -3.])

    Hinton 2012, lecture 6e; centered: Graves 2013, arXiv:1308.0850; formula, positional order and
    defaults as torch.optim.RMSprop, which does not hold v - m² above zero.
    """

    conventions: ClassVar = {
        "torch": "√(v - m²) + eps; lr multiplies the momentum",
        "optax": "as keras",
        "keras": "√(v - m² + eps); lr is within the momentum",
        "paper": "as keras (Graves 2013, with centered=True)",
    }

    lr: Rate = 1e-2
    alpha: PartOfOne = 0.99
    eps: Eps = 1e-8
    weight_decay: Weight = 0.0
    momentum: Momentum = 0.0
    centered: Flag = False
    _: KW_ONLY
    convention: Convention = "torch"

    squares = ("square_avg",)

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        names = ["square_avg"]
        if h["centered"]:
            names.append("grad_avg")
        if callable(h["momentum"]) or h["momentum"] > 0.0:
            names.append("momentum_buffer")
        return tuple(names)

    coefficient_names: ClassVar = {
        "rmsprop": "lr alpha fresh inside outside",
        "rmsprop_centered": "lr alpha fresh inside outside",
        "rmsprop_momentum": "lr alpha fresh inside outside mu within",
        "rmsprop_centered_momentum": "lr alpha fresh inside outside mu within",
    }

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        rule, lr, alpha = "rmsprop", h["lr"], h["alpha"]
        other = h["convention"] != "torch"
        shared = (alpha, 1.0 - alpha, *_split(h["eps"], other))
        if h["centered"]:
            rule += "_centered"
        if "momentum_buffer" not in h["states"]:
            return rule, (lr, *shared)
        before, after = (lr, 1.0) if other else (1.0, lr)
        return rule + "_momentum", (after, *shared, h["momentum"], before)


class Adadelta(Optimizer):
    """Adadelta: RMSprop whose rate is the running size of its own updates.

        v ← rho · v + (1 - rho) · g²
        d ← √((u + eps) / (v + eps)) · g
        u ← rho · u + (1 - rho) · d²
        p ← p - lr · d

    Raises ValueError for hyper-parameters out of range.

    >>> import numpy as np, steepest as st
    >>> w = np.array([1.0, -2.0])
    >>> st.Adadelta(w, lr=1.0, eps=1e-2).step(np.array([3.0, -4.0]))
    >>> w.round(4)
    array([ 0.6855, -1.6848])

    Zeiler 2012, arXiv:1212.5701; formula and defaults as torch.optim.Adadelta.
    """

    lr: Rate = 1.0
    rho: PartOfOne = 0.9
    eps: Eps = 1e-6
    weight_decay: Weight = 0.0

    squares = ("square_avg", "acc_delta")

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("square_avg", "acc_delta")

    coefficient_names: ClassVar = {"adadelta": "lr rho fresh eps"}

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        return "adadelta", (h["lr"], h["rho"], 1.0 - h["rho"], h["eps"])


class Rprop(Optimizer):
    """Rprop: each element has a step size, which grows while the gradient keeps its sign.

        s ← clamp(η₊ · s where g · g₋ > 0, η₋ · s where g · g₋ < 0, else s)
        g ← 0 where g · g₋ < 0
        p ← p - sign(g) · s,  g₋ ← g

    η₋ and η₊ are ``etas``, the bounds of s are ``step_sizes``. s starts at the ``lr`` of the first
    step, unless the state has another than 0, and ``lr`` has no effect later. For gradients of all
    data, not of batches, whose signs are noise. Raises ValueError for hyper-parameters out of
    range: 0 < η₋ < 1 < η₊, the bounds in order.

    >>> import numpy as np, steepest as st
    >>> w = np.array([1.0, -2.0])
    >>> opt = st.Rprop(w, lr=0.5)
    >>> for _ in range(2):
    ...     opt.step(np.array([0.1, -8.0]))
    >>> w
    array([-0.1, -0.9])

    Riedmiller and Braun 1993; as in Igel and Hüsken 2000, iRprop-, there is no step where the sign
    changes. Formula and defaults as torch.optim.Rprop.
    """

    checked_at_steps = True

    lr: Rate = 1e-2
    etas: TwoNumbers = (0.5, 1.2)
    step_sizes: TwoNumbers = (1e-6, 50.0)
    weight_decay: Weight = 0.0

    @staticmethod
    def check(h: Mapping[str, Any]) -> None:
        minus, plus = h["etas"]
        if not (callable(minus) or 0.0 < minus < 1.0) or not (callable(plus) or plus > 1.0):
            raise ValueError(f"etas = {h['etas']!r}: expected 0 < η₋ < 1 < η₊")
        low, high = h["step_sizes"]
        if not (callable(low) or callable(high)) and low > high:
            raise ValueError(f"step_sizes = {h['step_sizes']!r}: expected the smaller one first")

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("prev", "step_size")

    coefficient_names: ClassVar = {"rprop": "minus plus least most first"}

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        return "rprop", (*h["etas"], *h["step_sizes"], h["lr"] if t == 1 else 0.0)


class MADGRAD(Optimizer):
    """MADGRAD: dual averaging from the starting point, divided by the cube root of squares.

        v ← v + lr √t · g²
        s ← s + lr √t · g
        z = x₀ - s / (∛v + eps)
        p ← p + (1 - momentum) · (z - p)

    x₀ is the parameter when its state was made. Decoupled weight_decay takes
    lr · weight_decay · p from the new parameter; the default adds it to the gradient. Raises
    ValueError for hyper-parameters out of range; momentum is below 1.

    ``convention``: ``"paper"`` as above; ``"optax"``, like the authors' code, has (lr + eps) √t
    where lr is not 0.

    >>> import numpy as np, steepest as st
    >>> w = np.array([1.0, -2.0])
    >>> st.MADGRAD(w, lr=0.125, momentum=0.0, eps=0.0).step(np.array([1.0, -8.0]))
    >>> w.round(6)
    array([ 0.75, -1.5 ])

    Defazio and Jelassi 2021, arXiv:2101.11075, algorithm 1. The authors' code adds eps to lr, which
    the paper does not.
    """

    read_only = ("x0",)
    conventions: ClassVar = {
        "paper": "lr √t",
        "optax": "(lr + eps) √t, as in the authors' code",
    }

    additive = False

    lr: Rate = 1e-2
    momentum: Factor = 0.9
    weight_decay: Weight = 0.0
    eps: Eps = 1e-6
    _: KW_ONLY
    convention: Convention = "paper"

    points = ("s", "x0")
    squares = ("grad_sum_sq",)

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("grad_sum_sq", "s", "x0")

    @staticmethod
    def initial(key: str, p: Array, h: Mapping[str, Any]) -> Array:
        fresh = arrays.zeros_like(p)
        if key == "x0":
            fresh[...] = p
        return fresh

    coefficient_names: ClassVar = {"madgrad": "rate fresh eps"}

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        lr = h["lr"]
        if h["convention"] == "optax" and lr != 0.0:
            lr += h["eps"]
        return "madgrad", (lr * math.sqrt(t), 1.0 - h["momentum"], h["eps"])


class FTRL(Optimizer):
    """FTRL-proximal: for sparse linear models; a parameter is 0 unless gradients insist.

        n ← n + g²
        z ← z + g - (√n - √n₋) / lr · p
        p ← 0                                                          where |z| ≤ lambda1
        p ← -(z - sign(z) · lambda1) / ((beta + √n) / lr + lambda2)    elsewhere

    n starts at ``initial_accumulator_value`` and z at 0, so the regularizers pull to 0, and the
    starting p, best 0, counts only as far as gradients carry it over. lambda1 is exact, unlike the
    option l1, which adds a subgradient. A step with lr = 0 changes nothing. Raises ValueError for
    hyper-parameters out of range.

    ``convention``: ``"paper"`` as above; ``"keras"`` adds 2 · lambda2 to the divisor.

    >>> import numpy as np, steepest as st
    >>> w = np.zeros(3)
    >>> opt = st.FTRL(w, lr=0.5, lambda1=1.0, initial_accumulator_value=0.0)
    >>> opt.step(np.array([4.0, -2.0, 0.5]))
    >>> w
    array([-0.375,  0.25 , -0.   ])

    McMahan et al. 2013, "Ad click prediction", algorithm 1; names of states, lr and initial value
    as in Keras, whose l2_regularization_strength is half of lambda2.
    """

    conventions: ClassVar = {
        "paper": "a penalty of lambda2 / 2 · p²",
        "keras": "a penalty of lambda2 · p²",
    }

    additive = False

    lr: Rate = 1e-3
    lambda1: NotNegative = 0.0
    lambda2: NotNegative = 0.0
    beta: NotNegative = 0.0
    initial_accumulator_value: Start = 0.1
    weight_decay: Weight = 0.0
    _: KW_ONLY
    convention: Convention = "paper"

    squares = ("accumulator",)
    points = ("linear",)

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("accumulator", "linear")

    @staticmethod
    def initial(key: str, p: Array, h: Mapping[str, Any]) -> Array:
        fresh = arrays.zeros_like(p)
        if key == "accumulator":
            fresh[...] = h["initial_accumulator_value"]
        return fresh

    coefficient_names: ClassVar = {
        "ftrl": "inverse beta l1 l2",
        "ftrl_still": "",
    }

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        if h["lr"] == 0.0:
            return "ftrl_still", ()
        lambda2 = 2.0 * h["lambda2"] if h["convention"] == "keras" else h["lambda2"]
        return "ftrl", (1.0 / h["lr"], h["beta"], h["lambda1"], lambda2)
