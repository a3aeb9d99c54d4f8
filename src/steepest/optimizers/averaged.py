"""Rules that average the points they pass: ASGD and the schedule-free rules."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

from steepest.core.hyper import Range
from steepest.core.optimizer import Number, Optimizer, Options
from steepest.kernels.scalars import one_minus_power
from steepest.memory import arrays
from steepest.memory.arrays import Array

__all__ = ["ASGD", "ScheduleFreeSGD", "ScheduleFreeAdamW"]


def copy_of(p: Array) -> Array:
    copy = arrays.zeros_like(p)
    copy[...] = p
    return copy


class ASGD(Optimizer):
    """Averaged SGD: gradient descent, and the mean of the points it passes after step t0.

        η = lr / (1 + lambd · lr · (t - 1))^alpha
        p ← (1 - lambd · η) · p - η · g
        ax ← ax + (p - ax) / max(1, t - 1 - t0)

    The mean ax is state ``"ax"`` and is what ``averaged`` gives; up to step t0 + 2 it is p. η is a
    function of t and of the present lr. Raises ValueError for hyper-parameters out of range.

    >>> import numpy as np, steepest as st
    >>> w = np.array([8.0])
    >>> opt = st.ASGD(w, lr=1.0, lambd=0.0, t0=0.0)
    >>> for _ in range(4):
    ...     opt.step(np.array([1.0]))
    >>> w, opt.averaged()["0"]
    (array([4.]), array([5.]))

    Polyak and Juditsky 1992; Xu 2011, arXiv:1107.2490; formula and defaults as torch.optim.ASGD.
    """

    def __init__(
        self,
        params: Any,
        lr: Number = 1e-2,
        lambd: Number = 1e-4,
        alpha: Number = 0.75,
        t0: Number = 1e6,
        weight_decay: Number = 0.0,
        **options: Unpack[Options],
    ) -> None:
        hyper = {
            "lr": lr,
            "lambd": lambd,
            "alpha": alpha,
            "t0": t0,
            "weight_decay": weight_decay,
        }
        super().__init__(params, hyper, options)

    additive = False

    def averaged(self) -> dict[str, Array]:
        """The mean points by the names of their parameters: copies, no parameter is changed."""
        return {name: copy_of(state["ax"]) for name, state in self.state.items()}

    def states(self, h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("ax",)

    def initial(self, key: str, p: Array, h: Mapping[str, Any]) -> Array:
        return copy_of(p)

    def coefficients(self, h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        eta = h["lr"] / (1.0 + h["lambd"] * h["lr"] * (t - 1)) ** h["alpha"]
        return "asgd", (eta, 1.0 - h["lambd"] * eta, 1.0 / max(1.0, t - 1 - h["t0"]))


class ScheduleFreeSGD(Optimizer):
    """SGD without a falling rate: it averages the points it passes, weighted by their rates.

        d ← lr · g + lr · weight_decay · y
        c ← w / ∑w,  w = t^r · (largest lr so far)^weight_lr_power
        y ← y + c · (z - y) - (1 - momentum · (1 - c)) · d
        z ← z - d

    The parameter p is y, where gradients are taken. The mean of the z, which is the result, is
    x = y + (1 - 1 / momentum) (z - y): ``averaged`` computes it at any time and changes nothing.
    t counts all updates of the optimizer; the largest lr and the sum of w are in each of
    ``param_groups`` as ``"lr_max"`` and ``"weight_sum"``. For a warm-up give lr as a schedule. With
    ``decay_mode="l2"``, the default, weight_decay · y is added to g, which is the same here.

    Raises ValueError for hyper-parameters out of range, 0 < momentum < 1, and TypeError for a
    schedule in place of momentum: x could not be computed.

    >>> import numpy as np, steepest as st
    >>> w = np.array([8.0])
    >>> opt = st.ScheduleFreeSGD(w, lr=1.0, momentum=0.5)
    >>> for _ in range(3):
    ...     opt.step(np.array([1.0]))
    >>> w, opt.state["0"]["z"], opt.averaged()["0"]
    (array([5.5]), array([5.]), array([6.]))

    Defazio et al. 2024, arXiv:2405.15682; formula and defaults as the authors' package
    schedulefree.
    """

    ranges: ClassVar[Mapping[str, Range]] = {
        "lr_max": (0.0, math.inf, False),
        "weight_sum": (0.0, math.inf, False),
    }

    def __init__(
        self,
        params: Any,
        lr: Number = 1.0,
        momentum: float = 0.9,
        weight_decay: Number = 0.0,
        r: Number = 0.0,
        weight_lr_power: Number = 2.0,
        **options: Unpack[Options],
    ) -> None:
        hyper = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "r": r,
            "weight_lr_power": weight_lr_power,
        }
        super().__init__(params, hyper, options)

    may_be_moved = additive = False  # x is computed from y and z

    def averaged(self) -> dict[str, Array]:
        """The averaged points x by the names of their parameters: copies, nothing is changed."""
        points = {}
        for group in self.param_groups:
            weight = 1.0 - 1.0 / self._momentum(group)[1]
            for name, y in zip(group["param_names"], group["params"], strict=True):
                points[name] = copy_of(y)
                points[name] += y.dtype.type(weight) * (self.state[name]["z"] - y)
        return points

    def _momentum(self, h: Mapping[str, Any]) -> tuple[str, Any]:
        return "momentum", h["momentum"]

    def check(self, h: Mapping[str, Any]) -> None:
        name, beta = self._momentum(h)
        if callable(beta):
            raise TypeError(f"{name} = {beta!r}: expected a number; the average hangs on its value")
        if not 0.0 < beta < 1.0:
            raise ValueError(f"{name} = {beta!r}: expected a number in (0, 1)")

    def states(self, h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("z",)

    def initial(self, key: str, p: Array, h: Mapping[str, Any]) -> Array:
        return copy_of(p) if key == "z" else arrays.zeros_like(p)

    def shared(self, h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("lr_max", "weight_sum")

    def coefficients(self, h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        return "schedulefreesgd", self._averaging(h)

    def _averaging(self, h: Mapping[str, Any]) -> tuple[float, float, float, float]:
        """What the share of a step in the average comes from."""
        weight = float(h["updates"]) ** h["r"]
        return h["lr"], weight, h["weight_lr_power"], self._momentum(h)[1]


class ScheduleFreeAdamW(ScheduleFreeSGD):
    """AdamW without a falling rate: it averages the points it passes, weighted by their rates.

        v ← β₂ v + (1 - β₂) g²
        d ← lr · g / (√v / √(1 - β₂ᵗ) + eps) + lr · weight_decay · y
        c ← w / ∑w,  w = t^r · (largest lr so far)^weight_lr_power
        y ← y + c · (z - y) - (1 - β₁ (1 - c)) · d
        z ← z - d

    The parameter p is y, the averaged x = y + (1 - 1 / β₁) (z - y) is what ``averaged`` gives;
    all as in ScheduleFreeSGD. Raises ValueError for hyper-parameters out of range, 0 < β₁ < 1, and
    TypeError for a schedule in place of β₁.

    >>> import numpy as np, steepest as st
    >>> w = np.array([8.0, 8.0])
    >>> opt = st.ScheduleFreeAdamW(w, lr=1.0, betas=(0.5, 0.999), eps=0.0)
    >>> for _ in range(3):
    ...     opt.step(np.array([1.0, -4.0]))
    >>> opt.averaged()["0"].round(6)
    array([ 6., 10.])

    Defazio et al. 2024, arXiv:2405.15682; formula and defaults as the authors' package
    schedulefree, where w is without the factor 1 - β₂ᵗ that algorithm 1 has in its rate.
    """

    decay_mode = "decoupled"

    def __init__(
        self,
        params: Any,
        lr: Number = 2.5e-3,
        betas: tuple[float, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 0.0,
        r: Number = 0.0,
        weight_lr_power: Number = 2.0,
        **options: Unpack[Options],
    ) -> None:
        hyper = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "r": r,
            "weight_lr_power": weight_lr_power,
        }
        Optimizer.__init__(self, params, hyper, options)

    def _momentum(self, h: Mapping[str, Any]) -> tuple[str, Any]:
        return "betas[0]", h["betas"][0]

    def states(self, h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("z", "exp_avg_sq")

    def coefficients(self, h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        b2 = h["betas"][1]
        unbias = 1.0 / math.sqrt(one_minus_power(b2, t))
        return "schedulefreeadamw", (*self._averaging(h), b2, 1.0 - b2, unbias, h["eps"])
