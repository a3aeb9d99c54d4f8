"""GaLore and APOLLO: Adam with moments of a low-rank projection of the gradient.

A gradient of r rows and c columns is projected on its shorter side to at most ``rank``, so that the
moments have rank · max(r, c) numbers each. Parameters that are not matrices get Adam's direction.
"""

import math

import numpy as np
from numpy.typing import DTypeLike

from steepest.matrix import adam_moments
from steepest.matrix.linalg import Matrix, eigenbasis, finite, norm
from steepest.matrix.random_numbers import normals

Shape = tuple[int, ...]
States = dict[str, Matrix]
SIDES = ("std", "reverse_std", "right", "left")
SCALES = ("channel", "tensor")


def side(shape: Shape, proj_type: str = "std") -> int:
    """The axis of a matrix that is projected: the shorter with "std", the longer with
    "reverse_std", the last with "right", the first with "left". Raises ValueError for others.

    >>> side((8, 4)), side((4, 8)), side((8, 4), "left")
    (1, 0, 0)
    """
    if proj_type not in SIDES:
        raise ValueError(f"proj_type = {proj_type!r}: expected one of {', '.join(SIDES)}")
    if proj_type in ("right", "left"):
        return 1 if proj_type == "right" else 0
    return int((shape[0] >= shape[1]) == (proj_type == "std"))


def low_shape(shape: Shape, rank: int, proj_type: str = "std") -> Shape:
    """The shape of the moments.

    >>> low_shape((512, 64), 16), low_shape((64,), 16)
    ((512, 16), (64,))
    """
    if len(shape) != 2:
        return shape
    short = min(rank, *shape)
    return (shape[0], short) if side(shape, proj_type) else (short, shape[1])


def galore_states(
    shape: Shape, dtype: DTypeLike, *, rank: int = 128, proj_type: str = "std"
) -> States:
    """Both moments in the low-rank space and, for a matrix, the ``"projector"``; all zero."""
    low = low_shape(shape, rank, proj_type)
    states = adam_moments.initial_states(low, dtype)
    if len(shape) == 2:
        axis = side(shape, proj_type)
        states["projector"] = np.zeros((shape[axis], low[axis]), dtype)
    return states


def galore_direction(
    g: Matrix,
    state: States,
    t: int,
    *,
    rank: int = 128,
    update_proj_gap: int = 200,
    scale: float = 0.25,
    proj_type: str = "std",
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    correct_bias: bool = True,
) -> tuple[Matrix, States]:
    """GaLore's direction.

        P ← the first `rank` singular vectors of g on its shorter side, every update_proj_gap steps
        R = g P  or  Pᵀ g
        d = scale · Adam(R) Pᵀ  or  scale · P Adam(R)

    P is renewed at steps 1, 1 + update_proj_gap and so on; its columns are eigenvectors of gᵀg or
    ggᵀ, found in double, with a positive largest entry. Raises DecompositionError.

    Zhao et al. 2024, arXiv:2403.03507, algorithm 2; ε-hat and defaults as the authors' code, where
    scale is given by group, 0.25 in the paper.
    """
    if g.size == 0:
        return np.zeros_like(g), {}
    if g.ndim != 2:
        return adam_moments.direction(g, state, t, betas=betas, eps=eps, correct_bias=correct_bias)
    axis = side(g.shape, proj_type)
    projector, new = state["projector"], {}
    with np.errstate(all="ignore"):
        if (t - 1) % update_proj_gap == 0:
            new["projector"] = projector = singular_vectors(g, axis, projector.shape[1])
        low = _project(g, axis, projector)
        d, moments = adam_moments.direction(
            low, state, t, betas=betas, eps=eps, correct_bias=correct_bias
        )
        d = (d @ projector.T if axis else projector @ d) * g.dtype.type(scale)
    return d, new | moments


def singular_vectors(g: Matrix, axis: int, rank: int) -> Matrix:
    """The first singular vectors of a matrix on one side, as columns. Raises DecompositionError.

    >>> singular_vectors(np.array([[0.0, 2.0], [0.0, 0.0]]), 1, 1)
    array([[0.],
           [1.]])
    """
    largest = float(np.abs(g).max())
    wide = g.astype(np.float64)
    if 0.0 < largest < math.inf:
        wide = np.ldexp(wide, -math.frexp(largest)[1])
    square = wide.T @ wide if axis else wide @ wide.T
    vectors = eigenbasis(square, "the gradient's squares")[1]
    return np.ascontiguousarray(vectors[:, :rank], g.dtype)


def apollo_states(
    shape: Shape, dtype: DTypeLike, *, rank: int = 128, proj_type: str = "std"
) -> States:
    """Both moments in the low-rank space, zero, and for a matrix the norm of the last direction,
    ``"scaled_norm"``, in double."""
    states = adam_moments.initial_states(low_shape(shape, rank, proj_type), dtype)
    if len(shape) == 2:
        states["scaled_norm"] = np.zeros(1)
    return states


def apollo_direction(
    g: Matrix,
    state: States,
    t: int,
    *,
    rank: int = 128,
    update_proj_gap: int = 200,
    scale: float = 1.0,
    scale_type: str = "channel",
    proj_type: str = "std",
    growth: float = 1.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    correct_bias: bool = True,
    seed: int = 0,
    stream: int = 0,
) -> tuple[Matrix, States]:
    """APOLLO's direction: g itself, with its channels scaled as Adam would in a random projection.

        R = g P  or  Pᵀ g,  P normal with variance 1 / rank, renewed every update_proj_gap steps
        s = ‖Adam(R)‖ / (‖R‖ + 1e-8)        for each channel, or once with scale_type="tensor"
        u = s · g,  made smaller so that ‖u‖ ≤ growth · (‖u‖ of the step before)
        d = √scale · u

    A channel is a row if P is on the columns, else a column. growth limits from the second step
    on; math.inf is no limit. P is a function of seed, stream (the parameter's index) and t and is
    not stored. APOLLO-Mini is rank 1, scale_type="tensor" and scale 128. Raises ValueError for
    another scale_type.

    Zhu et al. 2024, arXiv:2412.05270, algorithm 1; ε-hat and defaults as the authors' code. The
    limit is Fira's (arXiv:2410.01623).
    """
    if scale_type not in SCALES:
        raise ValueError(f"scale_type = {scale_type!r}: expected one of {', '.join(SCALES)}")
    if g.size == 0:
        return np.zeros_like(g), {}
    if g.ndim != 2:
        return adam_moments.direction(g, state, t, betas=betas, eps=eps, correct_bias=correct_bias)
    axis = side(g.shape, proj_type)
    short = min(rank, *g.shape)
    period = (t - 1) // update_proj_gap
    p = normals((g.shape[axis], short), g.dtype, seed, stream, period)
    p /= g.dtype.type(math.sqrt(short))
    with np.errstate(all="ignore"):
        low = _project(g, axis, p)
        # The bias correction is part of the rate: the limit below is on the update without it.
        d, new = adam_moments.direction(low, state, t, betas=betas, eps=eps, correct_bias=False)
        u = g * _ratio(d, low, axis, scale_type)
        length, last = norm(u), float(state["scaled_norm"][0])
        limit = max(length / (last + 1e-8), growth) / growth if t > 1 and growth < math.inf else 1.0
        factor = math.sqrt(scale) * adam_moments.correction(betas, t, correct_bias) / limit
        u *= g.dtype.type(factor)
    return u, new | {"scaled_norm": np.array([length / limit])}


def _ratio(d: Matrix, low: Matrix, axis: int, scale_type: str) -> Matrix:
    if scale_type == "tensor":
        return np.asarray(norm(d) / (norm(low) + 1e-8), d.dtype)
    above, below = (_lengths(x, axis) for x in (d, low))
    return np.asarray(above / (below + d.dtype.type(1e-8)))


def _lengths(x: Matrix, axis: int) -> Matrix:
    """The norms along an axis."""
    lengths = np.sqrt(np.sum(x * x, axis=axis, keepdims=True))
    if finite(lengths) or not finite(x):
        return np.asarray(lengths)
    exponent = math.frexp(float(np.abs(x).max()))[1]
    return np.ldexp(_lengths(np.ldexp(x, -exponent), axis), exponent)


def _project(g: Matrix, axis: int, p: Matrix) -> Matrix:
    return g @ p if axis else p.T @ g
