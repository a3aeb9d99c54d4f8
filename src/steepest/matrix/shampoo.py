"""Shampoo: a gradient multiplied along every axis by an inverse root of its statistics."""

import math
from functools import partial

import numpy as np
from numpy.typing import DTypeLike

from steepest.matrix import scaled_sums
from steepest.matrix.linalg import Matrix, along, gram, inverse_root, norm

Shape = tuple[int, ...]
States = dict[str, Matrix]
GRAFTING = (None, "sgd", "adagrad")


def full(shape: Shape, k: int, max_precondition_dim: int = 8192) -> bool:
    """Whether axis k has a full matrix; longer axes, and vectors, have a diagonal one.

    >>> full((50_000, 512), 0), full((50_000, 512), 1), full((512,), 0)
    (False, True, False)
    """
    return len(shape) > 1 and shape[k] <= max_precondition_dim


def initial_states(
    shape: Shape,
    dtype: DTypeLike,
    *,
    momentum: float = 0.0,
    matrix_eps: float = 1e-6,
    max_precondition_dim: int = 8192,
    grafting: str | None = None,
) -> States:
    """For axis k the statistics ``"L_k"``, matrix_eps times the identity, and their root
    ``"root_k"``; with momentum its buffer, with "adagrad" the sum of squares.

    A number is a vector of length 1, here and in its states.
    """
    shape = shape or (1,)
    states: States = {}
    if momentum:
        states["momentum_buffer"] = np.zeros(shape, dtype)
    if grafting == "adagrad":
        states["sum"] = np.zeros(shape, dtype)
    for k, n in enumerate(shape):
        one = np.eye(n, dtype=dtype) if full(shape, k, max_precondition_dim) else np.ones(n, dtype)
        states[f"L_{k}"] = one * one.dtype.type(matrix_eps)
        states[f"root_{k}"] = np.zeros_like(one)
    return states


def direction(
    g: Matrix,
    state: States,
    t: int,
    *,
    momentum: float = 0.0,
    preconditioning_compute_steps: int = 1,
    matrix_eps: float = 1e-6,
    max_precondition_dim: int = 8192,
    grafting: str | None = None,
) -> tuple[Matrix, States]:
    """Shampoo's direction, for a g of k axes; for a matrix L₀ is L and L₁ is R.

        Lᵢ ← Lᵢ + g₍ᵢ₎ g₍ᵢ₎ᵀ                          g₍ᵢ₎: axis i by all others
        d = g ×₀ L₀^(-1/2k) ... ×ₖ₋₁ Lₖ₋₁^(-1/2k)      a matrix: L^(-1/4) g R^(-1/4)
        m ← momentum · m + d,  d = m                   with momentum

    The roots are computed in double, at the first step and then at every
    preconditioning_compute_steps-th. An axis longer than max_precondition_dim has the diagonal of
    its matrix, as has a vector: that is Adagrad. grafting gives d the norm of "sgd"'s direction or
    of "adagrad"'s. Raises DecompositionError, and ValueError for another grafting.

    Gupta et al. 2018, arXiv:1802.09568, algorithms 1 and 2; grafting: Agarwal et al. 2020,
    arXiv:2002.11803.
    """
    if grafting not in GRAFTING:
        raise ValueError(f"grafting = {grafting!r}: expected None, 'sgd' or 'adagrad'")
    if g.size == 0:
        return np.zeros_like(g), {}
    shape, g = g.shape, g.reshape(g.shape or (1,))
    new: States = {}
    d = g
    renew = t == 1 or t % preconditioning_compute_steps == 0
    with np.errstate(all="ignore"):
        for k in range(g.ndim):
            whole = full(g.shape, k, max_precondition_dim)
            squares = partial(gram if whole else _squares, axis=k)
            statistics = scaled_sums.taken_in(state[f"L_{k}"], g, squares, np.add)
            new[f"L_{k}"] = statistics
            root = state[f"root_{k}"]
            if renew:
                root = _root(statistics, 2 * g.ndim, matrix_eps, f"L_{k}")
                new[f"root_{k}"] = root
            d = along(d, k, root) if whole else d * _expanded(root, k, g.ndim)
        d = np.ascontiguousarray(d, g.dtype)
        if grafting is not None:
            d = _grafted(d, g, state, new, grafting)
        if "momentum_buffer" in state:
            d = g.dtype.type(momentum) * state["momentum_buffer"] + d
            new["momentum_buffer"] = d
    return d.reshape(shape), new


def _squares(g: Matrix, axis: int) -> Matrix:
    """The diagonal of the matrix of inner products of the slices of g along an axis."""
    flat = np.moveaxis(g, axis, 0).reshape(g.shape[axis], -1)
    return np.asarray(np.vecdot(flat, flat))


def _root(statistics: Matrix, order: int, floor: float, name: str) -> Matrix:
    power = scaled_sums.power(statistics)
    if power:  # of what is so large the floor is but 0
        scale = statistics.dtype.type(2.0 ** (-power / order))
        return np.asarray(_root(scaled_sums.unsigned(statistics), order, 0.0, name) * scale)
    if statistics.ndim == 2:
        return inverse_root(statistics, order, floor, name)
    lowest = max(floor, float(np.finfo(statistics.dtype).tiny))
    root = np.maximum(statistics.astype(np.float64), lowest) ** (-1.0 / order)
    return root.astype(statistics.dtype)


def _expanded(root: Matrix, k: int, ndim: int) -> Matrix:
    """A vector as a factor of every slice along axis k."""
    return root.reshape([-1 if j == k else 1 for j in range(ndim)])


def _grafted(d: Matrix, g: Matrix, state: States, new: States, grafting: str) -> Matrix:
    model = g
    if grafting == "adagrad":
        new["sum"] = scaled_sums.taken_in(state["sum"], g, np.square, np.add)
        root = scaled_sums.root(new["sum"])
        # The squares of the smallest are 0; at its first step each is as long.
        model = np.where(g == 0, g, np.where(root == 0, np.sign(g), g / root))
    length = norm(d)
    if length == 0.0:
        return d
    ratio = norm(model) / length
    return d * g.dtype.type(ratio) if math.isfinite(ratio) else np.full_like(d, math.nan)
