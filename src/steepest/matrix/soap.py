"""SOAP: Adam in the eigenbasis of Shampoo's statistics."""

from functools import partial

import numpy as np
from numpy.typing import DTypeLike

from steepest.matrix import adam_moments, scaled_sums
from steepest.matrix.linalg import Matrix, along, eigenbasis, gram, orthonormal

Shape = tuple[int, ...]
States = dict[str, Matrix]


def axes(shape: Shape, max_precondition_dim: int = 10000, precondition_1d: bool = False) -> Shape:
    """The axes that are rotated; no others have statistics.

    >>> axes((50_000, 512)), axes((512,)), axes((512,), precondition_1d=True)
    ((1,), (), (0,))
    """
    if len(shape) < 2 and not precondition_1d:
        return ()
    return tuple(k for k, n in enumerate(shape) if n <= max_precondition_dim)


def initial_states(
    shape: Shape,
    dtype: DTypeLike,
    *,
    max_precondition_dim: int = 10000,
    precondition_1d: bool = False,
) -> States:
    """Both moments, and for axis k the statistics ``"GG_k"`` and the basis ``"Q_k"``; all zero."""
    states = adam_moments.initial_states(shape, dtype)
    for k in axes(shape, max_precondition_dim, precondition_1d):
        states[f"GG_{k}"] = np.zeros((shape[k], shape[k]), dtype)
        states[f"Q_{k}"] = np.zeros((shape[k], shape[k]), dtype)
    return states


def direction(
    g: Matrix,
    state: States,
    t: int,
    *,
    betas: tuple[float, float] = (0.95, 0.95),
    shampoo_beta: float | None = None,
    eps: float = 1e-8,
    precondition_frequency: int = 10,
    max_precondition_dim: int = 10000,
    precondition_1d: bool = False,
    correct_bias: bool = True,
    normalize_gradient: bool = False,
) -> tuple[Matrix, States]:
    """SOAP's direction.

        m ← β₁ m + (1 - β₁) g
        v ← β₂ v + (1 - β₂) (Qᵀ g)²                   Qᵀ g: each axis k in the basis Q_k
        d = √(1 - β₂ᵗ') / (1 - β₁ᵗ') · Q (Qᵀ m / (√v + eps)),  t' = t - 1
        GG_k ← β GG_k + (1 - β) g₍ₖ₎ g₍ₖ₎ᵀ             g₍ₖ₎: axis k by all others
        Q_k ← QR(GG_k Q_k), its columns and v by falling eigenvalue, every precondition_frequency

    β is shampoo_beta, or β₂ if that is None. As in the authors' code the first step only starts
    GG_k and takes Q_k from its eigenvectors: d is 0. Axes longer than max_precondition_dim are not
    rotated, nor are vectors without precondition_1d: they have Adam's direction from the second
    step on. normalize_gradient divides Q (...) by its root mean square + eps. Raises
    DecompositionError.

    Vyas et al. 2024, arXiv:2409.11321, algorithm 3; defaults as the authors' code.
    """
    if g.size == 0:
        return np.zeros_like(g), {}
    rotated = axes(g.shape, max_precondition_dim, precondition_1d)
    beta = betas[1] if shampoo_beta is None else shampoo_beta
    with np.errstate(all="ignore"):
        new: States = {}
        d = np.zeros_like(g)
        if t > 1:
            d, new = _adam(g, state, rotated, betas, eps)
            if normalize_gradient:
                d /= np.sqrt(np.mean(d * d)) + g.dtype.type(eps)
            d *= g.dtype.type(adam_moments.correction(betas, t - 1, correct_bias))
        for k in rotated:
            mean = partial(adam_moments.average, beta=beta)
            new[f"GG_{k}"] = scaled_sums.taken_in(state[f"GG_{k}"], g, partial(gram, axis=k), mean)
        if t == 1:
            for k in rotated:
                vectors = eigenbasis(scaled_sums.unsigned(new[f"GG_{k}"]), f"GG_{k}")[1]
                new[f"Q_{k}"] = np.ascontiguousarray(vectors, g.dtype)
        elif (t - 1) % precondition_frequency == 0:
            for k in rotated:
                turned, order = _turned(scaled_sums.unsigned(new[f"GG_{k}"]), state[f"Q_{k}"], k)
                new[f"Q_{k}"] = turned
                new["exp_avg_sq"] = np.take(new["exp_avg_sq"], order, axis=k)
    return d, new


def _adam(
    g: Matrix,
    state: States,
    rotated: Shape,
    betas: tuple[float, float],
    eps: float,
) -> tuple[Matrix, States]:
    turned = g
    for k in rotated:
        turned = along(turned, k, state[f"Q_{k}"])
    m = adam_moments.average(state["exp_avg"], g, betas[0])
    v = adam_moments.squared(state["exp_avg_sq"], turned, betas[1])
    d = m
    for k in rotated:
        d = along(d, k, state[f"Q_{k}"])
    d = np.asarray(d / (scaled_sums.root(v) + g.dtype.type(eps)))
    for k in rotated:
        d = along(d, k, state[f"Q_{k}"].T)
    return np.asarray(d, order="C"), {"exp_avg": m, "exp_avg_sq": v}


def _turned(gg: Matrix, q: Matrix, k: int) -> tuple[Matrix, Matrix]:
    """One round of power iteration: the new basis, and the order its columns came in."""
    product = gg @ q
    values = np.einsum("ij,ij->j", q, product)
    order = np.argsort(-values, kind="stable")
    return orthonormal(product[:, order], f"GG_{k} Q_{k}"), order
