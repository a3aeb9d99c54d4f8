"""Regularisation around the rule, given to any optimizer as ``regularize=``.

A penalty is a value; ``regularize`` takes one or several, as an option of the optimizer or of a
group. The usual three have shorter names: ``weight_decay=`` with ``decay_mode=``, and ``l1=``; they
add up with the penalties. Every weight is a number or a schedule.

>>> import numpy as np, steepest as st
>>> w = np.array([0.5, -0.004])
>>> st.SGD(w, lr=0.1, regularize=st.regularize.l1(0.1, proximal=True)).step(np.zeros(2))
>>> w
array([0.49, 0.  ])

A step has its operations in this order: gradient (filtered and clipped), + L2, toward the
initial point and L1; decoupled decay; the rule; decay after it; the proximal step of L1 and elastic
net; box and non-negative; group lasso; the largest norm, the unit norm, the simplex; the averages
(``lookahead``, ``average``, ``ema``). What follows the rule uses the learning rate ``lr`` itself,
not that of a single element, also with rules that scale elements.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from steepest.fields import Number, Range, Scheduled, Truth, Value
from steepest.options import average, decay
from steepest.options.operations import Operation, UnitOperation, Units

Weight = Annotated[Number, Scheduled(Range(float, 0))]
Bound = Annotated[Number, Scheduled(Range(float, finite=False))]
Flag = Annotated[bool, Truth()]


PENALTIES: dict[str, type["Penalty"]] = {}
"""Every penalty by its name."""


@dataclass(frozen=True)
class Penalty(Value, family=PENALTIES):
    """What is done to a parameter beside the rule."""

    by_units: ClassVar[bool] = False
    """Whether it works on units, as its term (number, axis) says; in the order of PENALTIES."""

    def terms(self, count: int) -> dict[str, Any]:
        """What the penalty adds to a step after `count` updates; see the function ``terms``."""
        return {type(self).__name__: self.at("weight", count)}


@dataclass(frozen=True)
class l1(Penalty):
    """The penalty weight · ‖p‖₁.

        g ← g + weight · sign(p)                     as a sub-gradient
        p ← sign(p) · max(|p| - lr · weight, 0)      proximal: after the rule

    The proximal form makes elements exactly 0. weight >= 0. Raises TypeError or ValueError for
    anything else. Tibshirani 1996; the proximal step is Daubechies et al. 2004, arXiv:math/0307152.

    >>> import numpy as np, steepest as st
    >>> w = np.array([1.0, 0.01])
    >>> st.SGD(w, lr=0.5, regularize=st.regularize.l1(0.1)).step(np.zeros(2))
    >>> w
    array([ 0.95, -0.04])
    """

    weight: Weight
    proximal: Flag = False

    def terms(self, count: int) -> dict[str, Any]:
        return {"proximal_l1" if self.proximal else "l1": self.at("weight", count)}


@dataclass(frozen=True)
class l2(Penalty):
    """The penalty weight/2 · ‖p‖², in the gradient: g ← g + weight · p.

    weight >= 0. Raises TypeError or ValueError for anything else. The same as ``weight_decay=``
    with ``decay_mode="l2"``.
    """

    weight: Weight


@dataclass(frozen=True)
class elastic_net(Penalty):
    """The penalty weight · (ratio · ‖p‖₁ + (1 - ratio)/2 · ‖p‖²).

        g ← g + weight · (ratio · sign(p) + (1 - ratio) · p)
        p ← sign(p) · max(|p| - lr · weight · ratio, 0) / (1 + lr · weight · (1 - ratio))   proximal

    weight >= 0, 0 <= ratio <= 1. Raises TypeError or ValueError for anything else. Zou and Hastie
    2005, parametrised as in scikit-learn.
    """

    weight: Weight
    ratio: Annotated[Number, Scheduled(Range(float, 0, 1))] = 0.5
    proximal: Flag = False

    def terms(self, count: int) -> dict[str, Any]:
        weight, ratio = self.at("weight", count), self.at("ratio", count)
        kind = "proximal_" if self.proximal else ""
        return {f"{kind}l1": weight * ratio, f"{kind}l2": weight * (1.0 - ratio)}


@dataclass(frozen=True)
class decoupled(Penalty):
    """Decoupled decay: p ← (1 - lr · weight) · p before the rule.

    weight >= 0. Raises TypeError or ValueError for anything else. The same as ``weight_decay=``
    with ``decay_mode="decoupled"``. Loshchilov and Hutter 2017, arXiv:1711.05101.
    """

    weight: Weight


@dataclass(frozen=True)
class toward_initial(Penalty):
    """Decay toward p₀, the parameter as it was when the optimizer was made, instead of toward 0.

        g ← g + weight · (p - p₀)
        p ← (1 - lr · weight) · p + lr · weight · p₀    decoupled: before the rule

    Keeps p₀ as state ``"initial"``. weight >= 0. Raises TypeError or ValueError for anything else.
    Li et al. 2018, arXiv:1802.01483 (L2-SP).

    >>> import numpy as np, steepest as st
    >>> w = np.array([2.0])
    >>> opt = st.SGD(w, lr=0.5, regularize=st.regularize.toward_initial(1.0))
    >>> w += 1.0
    >>> opt.step(np.zeros(1))
    >>> w
    array([2.5])
    """

    weight: Weight
    decoupled: Flag = False

    def terms(self, count: int) -> dict[str, Any]:
        return {"toward_decoupled" if self.decoupled else "toward": self.at("weight", count)}


@dataclass(frozen=True)
class group_lasso(Penalty):
    """The penalty weight · Σ √n ‖u‖₂ over the units u of n elements, by a proximal step.

        u ← u · max(0, 1 - lr · weight · √n / ‖u‖₂)    after the rule

    It makes whole units 0. The units are what lies at each index along `axis`: the rows of a
    matrix with axis 0 (the outputs of PyTorch's layers), its columns with -1; the whole array with
    None and where it has fewer than two dimensions. weight >= 0. Raises TypeError or ValueError
    for anything else. Yuan and Lin 2006, equation 2.2.

    >>> import numpy as np, steepest as st
    >>> w = np.array([[3.0, 4.0], [0.1, 0.1]])
    >>> st.SGD(w, lr=1.0, regularize=st.regularize.group_lasso(0.5)).step(np.zeros((2, 2)))
    >>> w.round(4)
    array([[2.5757, 3.4343],
           [0.    , 0.    ]])
    """

    weight: Weight
    axis: Units = 0
    by_units: ClassVar[bool] = True

    def terms(self, count: int) -> dict[str, Any]:
        return {"group_lasso": [(self.at("weight", count), self.axis)]}


@dataclass(frozen=True)
class max_norm(Penalty):
    """Holds the Euclidean norm of every unit of the parameter at or below a limit.

        u ← u · min(1, limit / ‖u‖₂)    after the rule

    Units are as in ``group_lasso``. limit >= 0. Raises TypeError or ValueError for anything else.
    Srebro et al. 2005; for networks Srivastava et al. 2014, section 5.1.

    >>> import numpy as np, steepest as st
    >>> w = np.array([[3.0, 4.0], [0.3, 0.4]])
    >>> st.SGD(w, lr=1.0, regularize=st.regularize.max_norm(1.0)).step(np.zeros((2, 2)))
    >>> w
    array([[0.6, 0.8],
           [0.3, 0.4]])
    """

    limit: Weight
    axis: Units = 0
    by_units: ClassVar[bool] = True

    def terms(self, count: int) -> dict[str, Any]:
        return {"max_norm": [(self.at("limit", count), self.axis)]}


@dataclass(frozen=True)
class non_negative(Penalty):
    """Sets elements below 0 to 0.

        p ← max(p, 0)    after the rule

    NaN stays NaN. The same as ``box(0, inf)``.

    >>> import numpy as np, steepest as st
    >>> w = np.array([1.0, 0.25])
    >>> st.SGD(w, lr=0.5, regularize=st.regularize.non_negative()).step(np.ones(2))
    >>> w
    array([0.5, 0. ])
    """

    def terms(self, count: int) -> dict[str, Any]:
        return {"box": [(0.0, math.inf)]}


@dataclass(frozen=True)
class box(Penalty):
    """Holds every element between two bounds.

        p ← min(max(p, low), high)    after the rule

    low <= high, rounded to the parameter's type; either may be infinite. NaN stays NaN. Raises
    TypeError or ValueError for anything else.

    >>> import numpy as np, steepest as st
    >>> w = np.array([1.0, 0.25, -1.0])
    >>> st.SGD(w, lr=0.5, regularize=st.regularize.box(-0.5, 0.25)).step(np.ones(3))
    >>> w
    array([ 0.25, -0.25, -0.5 ])
    """

    low: Bound
    high: Bound

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.low) and not callable(self.high):
            self.terms(0)

    def terms(self, count: int) -> dict[str, Any]:
        low, high = self.at("low", count), self.at("high", count)
        if low > high:
            raise ValueError(f"box: low = {low!r}, high = {high!r}: expected low <= high")
        return {"box": [(low, high)]}


@dataclass(frozen=True)
class unit_norm(Penalty):
    """Gives every unit of the parameter the Euclidean norm 1.

        u ← u / ‖u‖₂    after the rule

    Units are as in ``group_lasso``. A unit whose norm is 0, infinite or NaN stays as it is. Raises
    TypeError for anything else than an axis or None.

    >>> import numpy as np, steepest as st
    >>> w = np.array([[3.0, 4.0], [0.03, 0.04], [0.0, 0.0]])
    >>> st.SGD(w, lr=1.0, regularize=st.regularize.unit_norm()).step(np.zeros((3, 2)))
    >>> w
    array([[0.6, 0.8],
           [0.6, 0.8],
           [0. , 0. ]])
    """

    axis: Units = 0
    by_units: ClassVar[bool] = True

    def terms(self, count: int) -> dict[str, Any]:
        return {"unit_norm": [(0.0, self.axis)]}


@dataclass(frozen=True)
class simplex(Penalty):
    """Projects every unit of the parameter onto the simplex of a sum: to the nearest point whose
    elements are not negative and add up to it.

        u ← max(u - τ, 0), with the τ that makes the sum `total`    after the rule

    Units are as in ``group_lasso``: with axis 0, the rows of a matrix become distributions. A unit
    with an element that is not finite stays as it is. total > 0. Raises TypeError or ValueError for
    anything else. Michelot 1986, doi:10.1007/BF00938486.

    >>> import numpy as np, steepest as st
    >>> w = np.array([[0.5, 0.75, -1.0], [0.25, 0.25, 0.25]])
    >>> st.SGD(w, lr=1.0, regularize=st.regularize.simplex()).step(np.zeros((2, 3)))
    >>> w.round(4)
    array([[0.375 , 0.625 , 0.    ],
           [0.3333, 0.3333, 0.3333]])
    """

    total: Annotated[Number, Scheduled(Range(float, 0, above=True))] = 1.0
    axis: Units = 0
    by_units: ClassVar[bool] = True

    def terms(self, count: int) -> dict[str, Any]:
        return {"simplex": [(self.at("total", count), self.axis)]}


def checked(value: Any) -> tuple[Penalty, ...]:
    """One penalty, a sequence of them or None, as a tuple. Raises TypeError for anything else."""
    if value is None:
        return ()
    penalties = (value,) if isinstance(value, Penalty) else value
    if not isinstance(penalties, (tuple, list)) or not all(
        isinstance(penalty, Penalty) for penalty in penalties
    ):
        raise TypeError(
            f"regularize = {value!r}: expected penalties, such as st.regularize.l1(1e-4)"
        )
    return tuple(penalties)


def terms(penalties: Sequence[Penalty], count: int) -> dict[str, Any]:
    """What penalties come to after `count` updates: weights added up by kind (``"l1"``, ``"l2"``,
    ``"decoupled"``, ``"proximal_l1"``, ``"proximal_l2"``, ``"toward"``, ``"toward_decoupled"``),
    a list of (low, high) as ``"box"``, and lists of (number, axis) as ``"group_lasso"``,
    ``"max_norm"``, ``"unit_norm"`` and ``"simplex"``, in the order in which they work."""
    total: dict[str, Any] = {}
    for penalty in penalties:
        for key, value in penalty.terms(count).items():
            total[key] = total[key] + value if key in total else value
    return total


def arrays(h: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the arrays that these operations need."""
    held = any(isinstance(penalty, toward_initial) for penalty in h["regularize"])
    return (*average.arrays(h), "initial") if held else average.arrays(h)


@dataclass(frozen=True)
class Work:
    """What is done around the rule at a step, beside decoupled decay."""

    prologue: list[Operation]
    epilogue: list[Operation]
    units: list[UnitOperation]
    late: list[Operation]
    """Epilogue operations after those of units; empty where there are none."""
    axes: list[int | None]
    """The axis of the units of each unit operation."""


def _together(boxes: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The box that one box after the other comes to."""
    bottom, top = -math.inf, math.inf
    for low, high in boxes:
        bottom, top = min(max(bottom, low), high), min(max(top, low), high)
    return bottom, top


def work(h: Mapping[str, Any]) -> Work:
    """The operations before and after the rule, for the hyper-parameters h with their "terms", and
    whether the parameters are "masked"."""
    terms: Mapping[str, Any] = h["terms"]
    prologue: list[Operation] = []
    epilogue: list[Operation] = decay.epilogue(h, terms.get("decoupled", 0.0))
    weight = (h["weight_decay"] if h["decay_mode"] == "l2" else 0.0) + terms.get("l2", 0.0)
    if weight:
        prologue.append(("l2", (weight,), None))
    if "toward" in terms:
        prologue.append(("toward", (terms["toward"],), "initial"))
    weight = h["l1"] + terms.get("l1", 0.0)
    if weight:
        prologue.append(("l1", (weight,), None))
    if "toward_decoupled" in terms:
        drawn = h["lr"] * terms["toward_decoupled"]
        prologue.append(("pull", (1.0 - drawn, drawn), "initial"))
    prologue += decay.prologue(h)
    boxes = terms.get("box", [])
    if h["masked"]:
        prologue.append(("hide", (), "mask"))
        epilogue.append(("zero", (), "mask"))
    if "proximal_l1" in terms:
        lr = h["lr"]
        shrunk = 1.0 / (1.0 + lr * terms.get("proximal_l2", 0.0))
        epilogue.append(("soft_threshold", (lr * terms["proximal_l1"], shrunk), None))
    if boxes:
        epilogue.append(("box", _together(boxes), None))
    kinds = [kind for kind, penalty in PENALTIES.items() if penalty.by_units] if terms else []
    by_units = [(kind, *term) for kind in kinds for term in terms.get(kind, [])]
    units: list[UnitOperation] = [
        (kind, (h["lr"] * x if kind == "group_lasso" else x, 0.0)) for kind, x, _ in by_units
    ]
    late: list[Operation] = []
    if h["masked"] and (boxes or "simplex" in terms):  # which may have moved zeros
        (late if units else epilogue).append(("zero", (), "mask"))
    return Work(
        prologue=prologue,
        epilogue=epilogue,
        units=units,
        late=late,
        axes=[axis for _, _, axis in by_units],
    )


__all__ = ["PENALTIES", "Penalty", *PENALTIES]
