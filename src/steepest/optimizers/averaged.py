"""Rules that average the points they pass: ASGD and the schedule-free rules."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from steepest.core import internal
from steepest.core.hyper_parameters import (
    Eps,
    NotNegative,
    Number,
    PartOfOne,
    Rate,
    Weight,
    several,
    within,
)  # fmt: skip
from steepest.core.optimizer import Optimizer
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

    lr: Rate = 1e-2
    lambd: NotNegative = 1e-4
    alpha: PartOfOne = 0.75
    t0: NotNegative = 1e6
    weight_decay: Weight = 0.0

    additive = False

    def averaged(self) -> dict[str, Array]:
        """The mean points by the names of their parameters: copies, no parameter is changed."""
        return {name: copy_of(state["ax"]) for name, state in self.state.items()}

    points = ("ax",)

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("ax",)

    @staticmethod
    def initial(key: str, p: Array, h: Mapping[str, Any]) -> Array:
        return copy_of(p)

    coefficient_names: ClassVar = {"asgd": "eta shrink mu"}

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        eta = h["lr"] / (1.0 + h["lambd"] * h["lr"] * (t - 1)) ** h["alpha"]
        return "asgd", (eta, 1.0 - h["lambd"] * eta, 1.0 / max(1.0, t - 1 - h["t0"]))


class _ScheduleFree(Optimizer, registered=False):
    """What the schedule-free rules share: x, and what its weights come from."""

    may_be_moved = additive = False  # x is computed from y and z
    positive = ("lr_max", "weight_sum")

    def averaged(self) -> dict[str, Array]:
        """The averaged points x by the names of their parameters: copies, nothing is changed."""
        points = {}
        internal.follow_tensors(self)
        for group in self.param_groups:
            weight = 1.0 - 1.0 / self.momentum_of(group)[1]
            for name, y in zip(group["param_names"], group["params"], strict=True):
                points[name] = copy_of(y)
                points[name] += y.dtype.type(weight) * (self.state[name]["z"] - y)
        return points

    @staticmethod
    @abstractmethod
    def momentum_of(h: Mapping[str, Any]) -> tuple[str, Any]:
        """The name and the value of what x is computed with."""

    @classmethod
    def check(cls, h: Mapping[str, Any]) -> None:
        name, beta = cls.momentum_of(h)
        if callable(beta):
            raise TypeError(f"{name} = {beta!r}: expected a number; the average depends on it")
        if not 0.0 < beta < 1.0:
            raise ValueError(f"{name} = {beta!r}: expected a number in (0, 1)")

    @staticmethod
    def initial(key: str, p: Array, h: Mapping[str, Any]) -> Array:
        return copy_of(p) if key == "z" else arrays.zeros_like(p)

    @staticmethod
    def shared(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("lr_max", "weight_sum")

    @classmethod
    def _averaging(cls, h: Mapping[str, Any]) -> tuple[float, float, float, float]:
        """What the share of a step in the average comes from."""
        weight = float(h["updates"]) ** h["r"]
        return h["lr"], weight, h["weight_lr_power"], cls.momentum_of(h)[1]


class ScheduleFreeSGD(_ScheduleFree):
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

    lr: Rate = 1.0
    momentum: Annotated[float, within(0)] = 0.9
    weight_decay: Weight = 0.0
    r: NotNegative = 0.0
    weight_lr_power: NotNegative = 2.0

    @staticmethod
    def momentum_of(h: Mapping[str, Any]) -> tuple[str, Any]:
        return "momentum", h["momentum"]

    points = ("z",)

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("z",)

    coefficient_names: ClassVar = {"schedulefreesgd": "lr weight power beta"}

    @classmethod
    def coefficients(cls, h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        return "schedulefreesgd", cls._averaging(h)


class ScheduleFreeAdamW(_ScheduleFree):
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

    lr: Rate = 2.5e-3
    betas: Annotated[tuple[float, Number], several(2, within(0, 1, below=True))] = (0.9, 0.999)
    eps: Eps = 1e-8
    weight_decay: Weight = 0.0
    r: NotNegative = 0.0
    weight_lr_power: NotNegative = 2.0

    @staticmethod
    def momentum_of(h: Mapping[str, Any]) -> tuple[str, Any]:
        return "betas[0]", h["betas"][0]

    points = ("z",)

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("z", "exp_avg_sq")

    coefficient_names: ClassVar = {"schedulefreeadamw": "lr weight power beta b2 fresh unbias eps"}

    @classmethod
    def coefficients(cls, h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        b2 = h["betas"][1]
        unbias = 1.0 / math.sqrt(one_minus_power(b2, t))
        return "schedulefreeadamw", (*cls._averaging(h), b2, 1.0 - b2, unbias, h["eps"])


ScheduleFreeSGD.register(ScheduleFreeAdamW)  # as all that is schedule-free always was
