"""Gradient descent, with momentum, Nesterov's, and between: SGD, QHM."""

from collections.abc import Mapping
from typing import Any, ClassVar

from steepest.core.hyper_parameters import (
    AnyNumber,
    Convention,
    Factor,
    Flag,
    Momentum,
    PartOfOne,
    Rate,
    Weight,
)  # fmt: skip
from steepest.core.optimizer import KW_ONLY, Optimizer

__all__ = ["SGD", "QHM"]


class SGD(Optimizer):
    """Gradient descent: full-batch, stochastic or mini-batch, as the gradients are.

        v ← momentum · v + (1 - dampening) · g          (v = g at the first step)
        p ← p - lr · v                                  (nesterov: lr · (g + momentum · v))

    Without momentum v is g and no state is kept. ``dampening`` and ``nesterov`` need momentum, and
    exclude each other. Raises ValueError where they are given without effect or out of range.

    ``convention``: lr multiplies v as above in ``"torch"`` and ``"optax"``, which has no dampening.
    In ``"keras"`` and ``"paper"`` it is within v ← momentum · v + lr · g, and p ← p - v
    (nesterov: lr · g + momentum · v), so that a step keeps the lr of its time.

    >>> import numpy as np, steepest as st
    >>> w = np.array([1.0, -2.0])
    >>> opt = st.SGD(w, lr=0.5, momentum=0.5)
    >>> opt.step(w.copy()); opt.step(w.copy())
    >>> w
    array([0., 0.])

    Robbins and Monro 1951; momentum: Polyak 1964; Nesterov's form: Sutskever et al. 2013; formula
    and defaults as torch.optim.SGD.
    """

    conventions: ClassVar = {
        "torch": "lr multiplies the velocity; its first g is not dampened",
        "optax": "as torch, without dampening",
        "keras": "lr is within the velocity; no dampening",
        "paper": "as keras (Polyak 1964; Sutskever et al. 2013)",
    }

    lr: Rate = 1e-3
    momentum: Momentum = 0.0
    dampening: AnyNumber = 0.0
    weight_decay: Weight = 0.0
    nesterov: Flag = False
    _: KW_ONLY
    convention: Convention = "torch"

    @staticmethod
    def check(h: Mapping[str, Any]) -> None:
        if h["nesterov"] and (h["momentum"] == 0 or h["dampening"] != 0):
            raise ValueError("nesterov needs momentum > 0 and dampening = 0")
        if h["dampening"] != 0 and h["momentum"] == 0:
            raise ValueError("dampening has no effect without momentum; give momentum > 0")
        if h["dampening"] != 0 and h["convention"] != "torch":
            raise ValueError(f"convention = {h['convention']!r} has no dampening; leave it at 0")

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if h["momentum"] else ()

    coefficient_names: ClassVar = {
        "sgd": "lr",
        "momentum": "lr mu fresh",
        "nesterov": "lr mu fresh",
    }

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        if not h["states"]:
            return "sgd", (h["lr"],)
        rule = "nesterov" if h["nesterov"] else "momentum"
        if h["nesterov"] and h["dampening"] != 0.0:  # in a group of torch's, later
            raise ValueError("nesterov needs dampening = 0")
        if h["convention"] in ("keras", "paper"):
            return rule, (1.0, h["momentum"], h["lr"])
        fresh = 1.0 if t == 1 else 1.0 - h["dampening"]
        return rule, (h["lr"], h["momentum"], fresh)


class QHM(Optimizer):
    """Quasi-hyperbolic momentum: a mean of the gradient and of its running mean.

        m ← momentum · m + (1 - momentum) · g
        p ← p - lr · ((1 - nu) · g + nu · m)

    ``nu=0`` is plain gradient descent, ``nu=momentum`` Nesterov's. ``weight_decay`` enters the
    gradient. Raises ValueError for hyper-parameters out of range; momentum is below 1.

    >>> import numpy as np, steepest as st
    >>> w = np.array([1.0, -2.0])
    >>> st.QHM(w, lr=0.5, momentum=0.5, nu=0.5).step(np.array([1.0, -2.0]))
    >>> w
    array([ 0.625, -1.25 ])

    Ma and Yarats 2018, arXiv:1810.06801, equation 3; momentum and nu as there, lr for both forms of
    momentum that it joins.
    """

    lr: Rate = 0.1
    momentum: Factor = 0.999
    nu: PartOfOne = 0.7
    weight_decay: Weight = 0.0

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",)

    coefficient_names: ClassVar = {"qhm": "mu fresh plain mean"}

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        mu, nu = h["momentum"], h["nu"]
        return "qhm", (mu, 1.0 - mu, h["lr"] * (1.0 - nu), h["lr"] * nu)
