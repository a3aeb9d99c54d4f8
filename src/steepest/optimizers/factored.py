"""Rules that use the rows and columns of matrices: Adafactor, CAME, SM3, Adam-mini."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from steepest.core.hyper_parameters import (
    Betas,
    Choice,
    Eps,
    Factor,
    Flag,
    Limit,
    Maybe,
    NotNegative,
    Number,
    OptionalFactor,
    PartOfOne,
    Rate,
    ThreeBetas,
    TwoNumbers,
    Weight,
    several,
    within,
)  # fmt: skip
from steepest.core.optimizer import KW_ONLY, Optimizer
from steepest.kernels.scalars import one_minus_power
from steepest.memory.arrays import Array, Matrices

__all__ = ["CAME", "SM3", "AdamMini", "Adafactor"]


class Adafactor(Optimizer):
    """Adafactor: RMSprop that keeps a row and a column of a matrix's second moments.

        r ← β r + (1 - β) · means of g² over rows;  c likewise over columns;  β = 1 - tᵏ
        u ← g / max(√(r c / max(mean r, eps₁)), eps₁)
        α ← max(eps₂, RMS(p)) · min(lr, 1/√t)
        p ← (1 - lr · weight_decay) · p - α · u / max(1, RMS(u) / d)

    with k = beta2_decay. A parameter of more than two dimensions is a batch of matrices over its
    last two; one of fewer keeps all its second moments. ``eps[0] = None`` is the type's own
    epsilon (1e-30 in the paper's form).

    ``form="paper"`` adds eps₁ to g² instead of bounding by it, and weight_decay is taken times α,
    as in Hugging Face Transformers. ``relative_step=False`` takes lr in place of min(lr, 1/√t), and
    ``warmup_init=True`` at most 1e-6 t; the paper's own steps are those of the default lr.
    ``scale_parameter=False`` leaves out max(eps₂, RMS(p)). `beta1` averages the steps. Raises
    ValueError for hyper-parameters out of range, or for ``warmup_init`` without ``relative_step``.

    >>> import numpy as np, steepest as st
    >>> w = np.array([[3.0, -4.0], [1.0, 0.0]])
    >>> st.Adafactor(w, lr=0.5).step(np.array([[0.25, -8.0], [0.5, 1.0]]))
    >>> w.round(4)
    array([[ 2.8261, -3.6141],
           [-1.4903, -0.3453]])

    Shazeer & Stern 2018, arXiv:1804.04235; form and defaults as torch.optim.Adafactor.
    """

    decay_mode = "decoupled"
    needs = "layer-wise"
    own_decay = True
    factors = 2
    squares = ("variance",)

    lr: Rate = 1e-2
    beta2_decay: Annotated[Number, within(-math.inf, 0, finite=False)] = -0.8
    eps: Annotated[tuple[Number | None, Number], several(2, Maybe(within(0)))] = (
        None,
        1e-3,
    )
    d: NotNegative = 1.0
    weight_decay: Weight = 0.0
    _: KW_ONLY
    beta1: OptionalFactor = None
    form: Annotated[Literal["torch", "paper"], Choice(("torch", "paper"))] = "torch"
    relative_step: Flag = True
    warmup_init: Flag = False
    scale_parameter: Flag = True

    @staticmethod
    def check(h: Mapping[str, Any]) -> None:
        if h["warmup_init"] and not h["relative_step"]:
            raise ValueError("warmup_init has no effect without relative_step")
        if h["eps"][1] is None:
            raise ValueError("eps = (.., None): expected a number; only the first may be None")
        if h["d"] == 0.0:
            raise ValueError("d = 0.0: expected a number above 0; nothing would ever move")

    @classmethod
    def states(cls, h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("variance", *cls.beside(h))

    @staticmethod
    def beside(h: Mapping[str, Any]) -> tuple[str, ...]:
        return () if h["beta1"] is None else ("exp_avg",)

    @staticmethod
    def matrices(p: Array, h: Mapping[str, Any]) -> Matrices | None:
        if p.ndim < 2:
            return None
        *batch, rows, columns = p.shape
        row, column = (*batch, rows, 1), (*batch, 1, columns)
        states = {"row_var": row, "col_var": column}
        return Matrices(math.prod(batch), rows, columns, (row, column), states)

    coefficient_names: ClassVar = dict.fromkeys(
        ("adafactor", "adafactor_momentum", "adafactor_vector", "adafactor_vector_momentum"),
        "old fresh eps1 paper eps2 rho d scale decay lr b1 fresh1",
    )

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        paper = h["form"] == "paper"
        lr, eps1 = h["lr"], h["eps"][0]
        if eps1 is None:
            eps1 = 1e-30 if paper else -1.0
        w = t ** h["beta2_decay"]
        rho = min(lr, 1.0 / math.sqrt(t)) if h["relative_step"] else lr
        if h["warmup_init"]:
            rho = min(rho, 1e-6 * t)
        moments = (1.0 - w, w, eps1, float(paper), h["eps"][1], rho, h["d"])
        b1 = h["beta1"]
        numbers = (
            *moments,
            float(h["scale_parameter"]),
            h["decay"],
            lr,
            b1 or 0.0,
            1.0 - (b1 or 0.0),
        )
        vector = "" if h["by_rows"] else "_vector"
        return f"adafactor{vector}" + ("" if b1 is None else "_momentum"), numbers


class CAME(Optimizer):
    """CAME: Adafactor with momentum, led by how far the steps agree with it.

        r, c ← β₂ r + (1 - β₂) · means of g² + eps₁ over rows, over columns
        u ← g / √(r c / mean r);  u ← u / max(1, RMS(u) / clip_threshold)
        m ← β₁ m + (1 - β₁) u
        R, C ← β₃ R + (1 - β₃) · means of (u - m)² + eps₂ over rows, over columns
        p ← p - lr · m / √(R C / mean R)

    A parameter of more than two dimensions is a batch of matrices over its last two; one of fewer
    keeps all its second moments, and p ← p - lr · m. Raises ValueError for hyper-parameters out of
    range.

    >>> import numpy as np, steepest as st
    >>> w = np.array([[3.0, -4.0], [1.0, 0.0]])
    >>> st.CAME(w, lr=0.01).step(np.array([[0.25, -8.0], [0.5, 1.0]]))
    >>> w.round(4)
    array([[ 2.9534, -3.5013],
           [ 0.8876, -0.0751]])

    Luo et al. 2023, arXiv:2307.02047, algorithm 2; defaults of the authors' code.
    """

    decay_mode = "decoupled"
    needs = "layer-wise"
    factors = 2
    squares = ("exp_avg_sq",)

    lr: Rate = 2e-4
    betas: ThreeBetas = (0.9, 0.999, 0.9999)
    eps: TwoNumbers = (1e-30, 1e-16)
    clip_threshold: Limit = 1.0
    weight_decay: Weight = 0.0

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    @staticmethod
    def beside(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg",)

    @staticmethod
    def matrices(p: Array, h: Mapping[str, Any]) -> Matrices | None:
        if p.ndim < 2:
            return None
        *batch, rows, columns = p.shape
        states = {
            "exp_avg_sq_row": (*batch, rows),
            "exp_avg_sq_col": (*batch, columns),
            "exp_avg_res_row": (*batch, rows),
            "exp_avg_res_col": (*batch, columns),
        }
        factors = ((*batch, rows, 1), (*batch, 1, columns))
        return Matrices(math.prod(batch), rows, columns, factors, states)

    coefficient_names: ClassVar = dict.fromkeys(
        ("came", "came_vector"), "b1 fresh1 b2 fresh2 b3 fresh3 eps1 eps2 threshold lr"
    )

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        moments = tuple(x for beta in h["betas"] for x in (beta, 1.0 - beta))
        numbers = (*moments, *h["eps"], h["clip_threshold"], h["lr"])
        return "came" if h["by_rows"] else "came_vector", numbers


class SM3(Optimizer):
    """SM3: Adagrad with an accumulator for each index of each dimension.

        ν ← beta · min(μ₀[i], μ₁[j], ...) + g²;  of beta < 1, (1 - beta) g²
        μ₀[i] ← max of ν over all elements with index i in dimension 0;  μ₁, ... likewise
        m ← momentum · m + (1 - momentum) · g / √(ν + eps), 0 where ν is 0
        p ← p - lr · m

    Raises ValueError for hyper-parameters out of range.

    >>> import numpy as np, steepest as st
    >>> w = np.array([[3.0, -4.0], [1.0, 0.0]])
    >>> opt = st.SM3(w, lr=0.5, momentum=0.0)
    >>> opt.step(np.array([[0.25, -8.0], [0.5, 1.0]]))
    >>> opt.step(np.array([[0.25, -8.0], [0.5, 1.0]]))
    >>> w.round(4)
    array([[ 2.2764, -3.1464],
           [ 0.1464, -0.8536]])
    >>> opt.state["0"]["accumulator_1"]
    array([[  0.5, 128. ]])

    Anil et al. 2019, arXiv:1901.11150, algorithm SM3-II; beta as in optax.sm3.
    """

    decay_mode = "decoupled"
    needs = "layer-wise"
    factors = 2
    squares = ("accumulator_0",)

    lr: Rate = 0.1
    momentum: Factor = 0.9
    beta: PartOfOne = 1.0
    eps: Eps = 1e-30
    weight_decay: Weight = 0.0

    @classmethod
    def states(cls, h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("accumulator_0", *cls.beside(h))

    @staticmethod
    def beside(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if h["momentum"] else ()

    @staticmethod
    def matrices(p: Array, h: Mapping[str, Any]) -> Matrices | None:
        if p.ndim < 2:
            return None
        ones = (1,) * p.ndim
        states = {f"accumulator_{k}": (*ones[:k], n, *ones[k + 1 :]) for k, n in enumerate(p.shape)}
        factors = ((*p.shape[:-1], 1), (*ones[1:], p.shape[-1]))
        return Matrices(1, math.prod(p.shape[:-1]), p.shape[-1], factors, states)

    coefficient_names: ClassVar = dict.fromkeys(
        ("sm3", "sm3_momentum", "sm3_vector", "sm3_vector_momentum"),
        "lr beta share eps mu fresh",
    )

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        beta, mu = h["beta"], h["momentum"]
        share = 1.0 - beta if beta < 1 else 1.0
        rule = ("sm3" if h["by_rows"] else "sm3_vector") + ("_momentum" if h["beside"] else "")
        return rule, (h["lr"], beta, share, h["eps"], mu, 1.0 - mu)


class AdamMini(Optimizer):
    """Adam-mini: Adam with one second moment for each row, or each array.

        m ← β₁ m + (1 - β₁) g
        v ← β₂ v + (1 - β₂) · mean of g² over the block
        p ← p - lr · m / (1 - β₁ᵗ) / (√v / √(1 - β₂ᵗ) + eps)

    ``blocks="rows"``: a block is what belongs to one index of the first dimension (a neuron's
    weights, a token's embedding), and an array of fewer than two dimensions as a whole.
    ``blocks="arrays"``: every array is one. A view makes blocks of several rows, as the authors
    have for the heads of queries and keys: ``q.reshape(heads, -1)``, for the gradient too. Raises
    ValueError for hyper-parameters out of range.

    >>> import numpy as np, steepest as st
    >>> w = np.array([[3.0, -4.0], [1.0, 0.0]])
    >>> st.AdamMini(w, lr=0.5).step(np.array([[0.25, -8.0], [0.5, 1.0]]))
    >>> w.round(4)
    array([[ 2.9779, -3.2932],
           [ 0.6838, -0.6325]])

    Zhang et al. 2024, arXiv:2406.16793; defaults of the authors' code.
    """

    decay_mode = "decoupled"
    needs = "layer-wise"
    factors = 1

    lr: Rate = 1e-3
    betas: Betas = (0.9, 0.999)
    eps: Eps = 1e-8
    weight_decay: Weight = 0.0
    _: KW_ONLY
    blocks: Annotated[Literal["rows", "arrays"], Choice(("rows", "arrays"))] = "rows"

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ()

    @staticmethod
    def beside(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg",)

    @staticmethod
    def matrices(p: Array, h: Mapping[str, Any]) -> Matrices:
        rows = p.shape[0] if h["blocks"] == "rows" and p.ndim > 1 else 1
        shape = (rows, *(1,) * (p.ndim - 1)) if p.ndim else ()
        return Matrices(1, rows, p.size // max(rows, 1), (shape,), {"exp_avg_sq": shape})

    coefficient_names: ClassVar = {"adammini": "b1 fresh1 b2 fresh2 unbias eps step"}

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        b1, b2 = h["betas"]
        unbias = 1.0 / math.sqrt(one_minus_power(b2, t))
        step = h["lr"] / one_minus_power(b1, t)
        return "adammini", (b1, 1.0 - b1, b2, 1.0 - b2, unbias, h["eps"], step)
