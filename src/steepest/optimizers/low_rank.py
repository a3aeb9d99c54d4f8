"""Adam with moments in a space of low rank: GaLore and APOLLO."""

from collections.abc import Mapping
from typing import Annotated, Any

from steepest.core.hyper_parameters import (
    Betas,
    Choice,
    Count,
    Eps,
    Flag,
    FromOne,
    NotNegative,
    Rate,
    Seed,
    Weight,
)  # fmt: skip
from steepest.core.optimizer import KW_ONLY
from steepest.matrix import low_rank
from steepest.memory.arrays import Array
from steepest.optimizers.matrix_rule import MatrixRule, stream

__all__ = ["APOLLO", "GaLore"]

MANY = 2**62


class GaLore(MatrixRule):
    """GaLore: Adam in the space of a gradient's first singular vectors.

        P ← the first `rank` singular vectors of g on its shorter side, every update_proj_gap steps
        R = g P  or  Pᵀ g
        p ← (1 - lr · weight_decay) · p
        p ← p - lr · scale · Adam(R) Pᵀ  or  p - lr · scale · P Adam(R)

    Adam(R) is √(1 - β₂ᵗ) / (1 - β₁ᵗ) · m / (√v + eps), with moments of the shape of R; with
    correct_bias=False the roots are left away. P is renewed at steps 1, 1 + update_proj_gap and so
    on. proj_type says which side is projected: ``"std"`` the shorter, ``"reverse_std"`` the longer,
    ``"right"`` the columns, ``"left"`` the rows. What is not a matrix has Adam(g), not scaled. rank
    and update_proj_gap are whole numbers from 1; rank and proj_type cannot change later. Bits
    repeat on one machine; see docs/matrix-rules.md.

    Raises ValueError for hyper-parameters out of range, ``matrix.linalg.DecompositionError`` where
    singular vectors are not found; nothing is changed then.

    >>> import numpy as np, steepest as st
    >>> w = np.zeros((2, 2))
    >>> st.GaLore(w, lr=0.5, rank=1, scale=1.0).step(np.diag([4.0, 3.0]))
    >>> w.diagonal().round(3) + 0.0
    array([-0.5,  0. ])

    Zhao et al. 2024, arXiv:2403.03507, algorithm 2; formula and defaults as the authors' code, but
    for the decay, which they do after the step; scale as in the paper.
    """

    decay_mode = "decoupled"
    fixed = ("rank", "proj_type")

    lr: Rate = 1e-3
    betas: Betas = (0.9, 0.999)
    eps: Eps = 1e-6
    weight_decay: Weight = 0.0
    _: KW_ONLY
    rank: Count = 128
    update_proj_gap: Count = 200
    scale: NotNegative = 0.25
    proj_type: Annotated[str, Choice(low_rank.SIDES)] = "std"
    correct_bias: Flag = True

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    @staticmethod
    def shape_states(p: Array, h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("projector",) if p.ndim == 2 else ()

    @staticmethod
    def begun(shape: tuple[int, ...], dtype: Any, h: Mapping[str, Any]) -> dict[str, Array]:
        return low_rank.galore_states(shape, dtype, rank=h["rank"], proj_type=h["proj_type"])

    @staticmethod
    def direction(
        name: str, g: Array, state: Mapping[str, Array], t: int, h: Mapping[str, Any]
    ) -> tuple[Array, dict[str, Array]]:
        names = (
            "betas", "eps", "rank", "update_proj_gap", "scale", "proj_type", "correct_bias",
        )  # fmt: skip
        return low_rank.galore_direction(g, dict(state), t, **{key: h[key] for key in names})


class APOLLO(MatrixRule):
    """APOLLO: the gradient, its channels scaled as Adam would scale them in a random projection.

        R = g P  or  Pᵀ g,  P normal with variance 1 / rank, renewed every update_proj_gap steps
        s = ‖Adam(R)‖ / (‖R‖ + 1e-8)      for each channel, or once with scale_type="tensor"
        u = s · g,  made smaller so that ‖u‖ ≤ growth · (‖u‖ of the step before)
        p ← (1 - lr · weight_decay) · p - lr · √scale · u

    Adam(R) as in GaLore, with moments of the shape of R. A channel is a row where P is on the
    columns, else a column; P is on the shorter side, and proj_type as in GaLore. P is a function of
    seed, the parameter's name and its step, and is not stored. What is not a matrix has Adam(g),
    not scaled. growth is from 1; infinity is no limit. APOLLO-Mini is rank 1, scale_type
    ``"tensor"`` and scale 128. rank and update_proj_gap are whole numbers from 1; rank and
    proj_type cannot change later. Bits repeat on one machine; see docs/matrix-rules.md.

    Raises ValueError for hyper-parameters out of range.

    >>> import numpy as np, steepest as st
    >>> w = np.zeros((2, 2))
    >>> st.APOLLO(w, lr=0.5, rank=1, scale_type="tensor").step(np.diag([4.0, 3.0]))
    >>> w.diagonal().round(3)
    array([-0.778, -0.583])

    Zhu et al. 2024, arXiv:2412.05270, algorithm 1; formula and defaults as the authors' code, but
    for the decay, which they do after the step; the limit is that of Chen et al. 2024,
    arXiv:2410.01623.
    """

    decay_mode = "decoupled"
    fixed = ("rank", "proj_type")

    lr: Rate = 1e-3
    betas: Betas = (0.9, 0.999)
    eps: Eps = 1e-6
    weight_decay: Weight = 0.0
    _: KW_ONLY
    rank: Count = 128
    update_proj_gap: Count = 200
    scale: NotNegative = 1.0
    scale_type: Annotated[str, Choice(low_rank.SCALES)] = "channel"
    proj_type: Annotated[str, Choice(low_rank.SIDES)] = "std"
    growth: FromOne = 1.01
    correct_bias: Flag = True
    seed: Seed = 0

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    @staticmethod
    def shape_states(p: Array, h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("scaled_norm",) if p.ndim == 2 else ()

    @staticmethod
    def begun(shape: tuple[int, ...], dtype: Any, h: Mapping[str, Any]) -> dict[str, Array]:
        return low_rank.apollo_states(shape, dtype, rank=h["rank"], proj_type=h["proj_type"])

    @staticmethod
    def direction(
        name: str, g: Array, state: Mapping[str, Array], t: int, h: Mapping[str, Any]
    ) -> tuple[Array, dict[str, Array]]:
        names = (
            "betas", "eps", "rank", "update_proj_gap", "scale", "scale_type", "proj_type", "growth",
            "correct_bias", "seed",
        )  # fmt: skip
        own = {key: h[key] for key in names}
        return low_rank.apollo_direction(g, dict(state), t, stream=stream(name), **own)
