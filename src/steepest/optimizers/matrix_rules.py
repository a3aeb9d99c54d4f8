"""Rules with a preconditioner for each axis of a parameter: SOAP, Shampoo, PSGDKron."""

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np

from steepest.core.hyper_parameters import (
    Betas,
    Choice,
    Count,
    CountOrZero,
    Eps,
    Factor,
    Flag,
    Maybe,
    Momentum,
    NotNegative,
    PerParameter,
    Range,
    Rate,
    Schedule,
    Seed,
    Weight,
    scalar,
    variable,
)  # fmt: skip
from steepest.core.optimizer import KW_ONLY
from steepest.matrix import kron, shampoo, soap
from steepest.memory.arrays import Array
from steepest.optimizers.matrix_rule import MatrixRule, stream

__all__ = ["SOAP", "PSGDKron", "Shampoo"]

MANY = 2**62


class SOAP(MatrixRule):
    """SOAP: Adam in the eigenbasis of Shampoo's statistics.

        p ← (1 - lr · weight_decay) · p                from the second step on
        m ← β₁ m + (1 - β₁) g
        v ← β₂ v + (1 - β₂) (Qᵀ g)²                    Qᵀ g: each axis k in the basis Q_k
        p ← p - lr · √(1 - β₂ᵗ') / (1 - β₁ᵗ') · Q (Qᵀ m / (√v + eps)),  t' = t - 1
        GG_k ← β GG_k + (1 - β) g₍ₖ₎ g₍ₖ₎ᵀ              g₍ₖ₎: axis k by all others
        Q_k ← QR(GG_k Q_k)  every precondition_frequency steps

    β is shampoo_beta, or β₂ where that is None. The first step of a parameter only starts GG_k and
    takes Q_k from its eigenvectors: p stays, and does not decay. Axes longer than
    max_precondition_dim are not rotated, nor are vectors without precondition_1d; what has no axis
    that is rotated has Adam's direction. normalize_gradient divides Q (...) by its root mean square
    + eps; correct_bias=False leaves the roots of the rate away. betas and shampoo_beta are in
    [0, 1), precondition_frequency is a whole number from 1. max_precondition_dim and
    precondition_1d cannot change later. Bits repeat on one machine; see docs/matrix-rules.md.

    Raises ValueError for hyper-parameters out of range, ``matrix.linalg.DecompositionError`` for
    statistics whose eigenvectors are not found; nothing is changed then.

    >>> import numpy as np, steepest as st
    >>> w = np.zeros((2, 2))
    >>> opt = st.SOAP(w, lr=0.5)
    >>> for _ in range(2):
    ...     opt.step(np.array([[4.0, 0.0], [3.0, 0.0]]))
    >>> w[:, 0].round(3)
    array([-0.4, -0.3])

    Vyas et al. 2024, arXiv:2409.11321, algorithm 3; formula and defaults as the authors' code, but
    for the decay, which they do after the step.
    """

    decay_mode = "decoupled"
    own_decay = True
    fixed = ("max_precondition_dim", "precondition_1d")

    lr: Rate = 3e-3
    betas: Betas = (0.95, 0.95)
    shampoo_beta: Annotated[float | None, Maybe(Range(scalar, 0, 1, below=True))] = None
    eps: Eps = 1e-8
    weight_decay: Weight = 0.01
    precondition_frequency: Count = 10
    max_precondition_dim: CountOrZero = 10000
    precondition_1d: Flag = False
    _: KW_ONLY
    correct_bias: Flag = True
    normalize_gradient: Flag = False

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    @staticmethod
    def shape_states(p: Array, h: Mapping[str, Any]) -> tuple[str, ...]:
        axes = soap.axes(p.shape, h["max_precondition_dim"], h["precondition_1d"])
        return tuple(f"{kind}_{k}" for k in axes for kind in ("GG", "Q"))

    @staticmethod
    def begun(shape: tuple[int, ...], dtype: Any, h: Mapping[str, Any]) -> dict[str, Array]:
        return soap.initial_states(
            shape,
            dtype,
            max_precondition_dim=h["max_precondition_dim"],
            precondition_1d=h["precondition_1d"],
        )

    @classmethod
    @np.errstate(all="ignore")
    def prepare(
        cls, name: str, p: Array, g: Array, state: dict[str, Array], t: int, h: Mapping[str, Any]
    ) -> None:
        if t > 1 and h["decay"]:
            p *= p.dtype.type(1.0 - h["lr"] * h["decay"])
        super().prepare(name, p, g, state, t, h)

    @staticmethod
    def direction(
        name: str, g: Array, state: Mapping[str, Array], t: int, h: Mapping[str, Any]
    ) -> tuple[Array, dict[str, Array]]:
        names = (
            "betas", "shampoo_beta", "eps", "precondition_frequency", "max_precondition_dim",
            "precondition_1d", "correct_bias", "normalize_gradient",
        )  # fmt: skip
        return soap.direction(g, dict(state), t, **{key: h[key] for key in names})


class Shampoo(MatrixRule):
    """Shampoo: the gradient multiplied along each axis by an inverse root of its statistics.

        Lᵢ ← Lᵢ + g₍ᵢ₎ g₍ᵢ₎ᵀ                           g₍ᵢ₎: axis i by all others; from matrix_eps I
        d = g ×₀ L₀^(-1/2k) ... ×ₖ₋₁ Lₖ₋₁^(-1/2k)       k axes; a matrix: L₀^(-1/4) g L₁^(-1/4)
        m ← momentum · m + d
        p ← p - lr · m

    The roots are computed in double, at the first step and then at every
    preconditioning_compute_steps-th, a whole number from 1. An axis longer than
    max_precondition_dim has the diagonal of its matrix, as has a vector: that is Adagrad. grafting
    gives d the norm of the direction of ``"sgd"`` or ``"adagrad"``. momentum 0 keeps no state m.
    weight_decay enters the gradient unless decay_mode says otherwise. max_precondition_dim cannot
    change later. Bits repeat on one machine; see docs/matrix-rules.md.

    Raises ValueError for hyper-parameters out of range, ``matrix.linalg.DecompositionError`` for
    statistics whose eigenvalues are not found; nothing is changed then.

    >>> import numpy as np, steepest as st
    >>> w = np.zeros((2, 2))
    >>> opt = st.Shampoo(w, lr=0.5, matrix_eps=0.0)
    >>> opt.step(np.diag([4.0, 3.0]))
    >>> w.diagonal().round(3)
    array([-0.5, -0.5])

    Gupta et al. 2018, arXiv:1802.09568, algorithms 1 and 2; grafting: Agarwal et al. 2020,
    arXiv:2002.11803.
    """

    fixed = ("max_precondition_dim",)

    lr: Rate = 1e-3
    momentum: Momentum = 0.0
    weight_decay: Weight = 0.0
    preconditioning_compute_steps: Count = 1
    matrix_eps: NotNegative = 1e-6
    _: KW_ONLY
    max_precondition_dim: CountOrZero = 8192
    grafting: Annotated[str | None, Choice(shampoo.GRAFTING)] = None

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        averaged = ("momentum_buffer",) if variable(h["momentum"]) or h["momentum"] else ()
        return (*averaged, "sum") if h["grafting"] == "adagrad" else averaged

    @staticmethod
    def shape_states(p: Array, h: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(f"{kind}_{k}" for k in range(max(p.ndim, 1)) for kind in ("L", "root"))

    @staticmethod
    def begun(shape: tuple[int, ...], dtype: Any, h: Mapping[str, Any]) -> dict[str, Array]:
        return shampoo.initial_states(
            shape,
            dtype,
            momentum=1.0,  # `states` says whether it is kept
            matrix_eps=h["matrix_eps"],
            max_precondition_dim=h["max_precondition_dim"],
            grafting=h["grafting"],
        )

    @staticmethod
    def direction(
        name: str, g: Array, state: Mapping[str, Array], t: int, h: Mapping[str, Any]
    ) -> tuple[Array, dict[str, Array]]:
        names = (
            "momentum", "preconditioning_compute_steps", "matrix_eps", "max_precondition_dim",
            "grafting",
        )  # fmt: skip
        return shampoo.direction(g, dict(state), t, **{key: h[key] for key in names})


class PSGDKron(MatrixRule):
    """PSGD-Kron: a preconditioner fitted to the gradients, one triangular factor for each axis.

        m ← momentum · m + (1 - momentum) · g,  m̂ = m / (1 - momentumᵗ)
        A = Q₀ ... Qₖ m̂,  B = v ×ⱼ Qⱼ⁻¹  with random normal v     Qⱼ on axis j, upper triangular
        Qⱼ ← Qⱼ - precond_lr / ‖A₍ⱼ₎A₍ⱼ₎ᵀ + B₍ⱼ₎B₍ⱼ₎ᵀ‖ · triu(A₍ⱼ₎A₍ⱼ₎ᵀ - B₍ⱼ₎B₍ⱼ₎ᵀ) Qⱼ
        p ← (1 - lr · weight_decay) · p - lr · d,  d = Q₀ᵀQ₀ ... QₖᵀQₖ m̂

    d is made smaller where its root mean square is above 1.1. Factors are renewed once 1 / q steps
    have passed, q being preconditioner_update_probability: a number in [0, 1], a function of the
    parameter's steps done, or None: 1 for 500 steps, falling to 0.03 in 4,000. They are balanced at
    every balance_interval-th step; 0 is never. Axes longer than max_size_triangular, parameters of
    fewer than min_ndim_triangular axes, and those that memory_save_mode says (``"one_diag"``,
    ``"smart_one_diag"``, ``"all_diag"``) have diagonal factors; these three cannot change later.
    With momentum_into_precondition_update=False A is made of g. v is a function of seed, the
    parameter's name and its step, so that a resumed run has the same. momentum is in [0, 1). Bits
    repeat on one machine; see docs/matrix-rules.md.

    Raises ValueError for hyper-parameters out of range.

    >>> import numpy as np, steepest as st
    >>> w = np.zeros((2, 2))
    >>> st.PSGDKron(w, lr=0.5).step(np.diag([0.5, 0.25]))
    >>> w.diagonal().round(2)
    array([-0.34, -0.14])

    Li 2015, arXiv:1512.04202; Pooladzandi and Li 2024, arXiv:2402.11858; formula and defaults as
    the package kron_torch, whose draws decide by chance when to balance, and which leaves vectors
    without decay, as exclude="vectors" does.
    """

    decay_mode = "decoupled"
    fixed = ("max_size_triangular", "min_ndim_triangular", "memory_save_mode")

    lr: Rate = 1e-3
    momentum: Factor = 0.9
    weight_decay: Weight = 0.0
    preconditioner_update_probability: Annotated[
        float | Schedule | None, Maybe(PerParameter(Range(scalar, 0, 1)))
    ] = None
    max_size_triangular: CountOrZero = 8192
    min_ndim_triangular: CountOrZero = 2
    memory_save_mode: Annotated[str | None, Choice(kron.MODES)] = None
    momentum_into_precondition_update: Flag = True
    precond_lr: NotNegative = 0.1
    precond_init_scale: NotNegative = 1.0
    _: KW_ONLY
    balance_interval: CountOrZero = 100
    seed: Seed = 0

    @staticmethod
    def idle(h: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
        found: dict[str, tuple[str, Any]] = {}
        if h["memory_save_mode"] == "all_diag":
            usual: dict[str, Any] = {"max_size_triangular": 8192, "min_ndim_triangular": 2}
            found |= {key: ("with memory_save_mode='all_diag'", x) for key, x in usual.items()}
        if h["momentum"] == 0:
            found["momentum_into_precondition_update"] = "without momentum", True
        if h["preconditioner_update_probability"] == 0:
            usual = {"precond_lr": 0.1, "balance_interval": 100, "seed": 0}
            usual |= {"momentum_into_precondition_update": True}
            without = "with preconditioner_update_probability=0"
            found |= {key: (without, x) for key, x in usual.items()}
        return found

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer", "waited")

    @staticmethod
    def shape_states(p: Array, h: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(f"Q_{k}" for k in range(max(p.ndim, 1)))

    @classmethod
    def begun(cls, shape: tuple[int, ...], dtype: Any, h: Mapping[str, Any]) -> dict[str, Array]:
        names = (*cls.fixed, "precond_init_scale")
        return kron.initial_states(shape, dtype, **{key: h[key] for key in names})

    @staticmethod
    def direction(
        name: str, g: Array, state: Mapping[str, Array], t: int, h: Mapping[str, Any]
    ) -> tuple[Array, dict[str, Array]]:
        names = (
            "momentum", "preconditioner_update_probability", "momentum_into_precondition_update",
            "precond_lr", "balance_interval", "seed",
        )  # fmt: skip
        own = {key: h[key] for key in names}
        return kron.direction(g, dict(state), t, stream=stream(name), **own)
