"""Muon and NorMuon: a momentum whose matrix is brought to singular values near 1.

Parameters of more than two axes are matrices of their first axis times all others, as the weights
of a convolution are applied.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import DTypeLike

from steepest.matrix.linalg import Matrix, norm
from steepest.matrix.newton_schulz import MARGIN, Triple, orthogonalize, schedule

Shape = tuple[int, ...]
States = dict[str, Matrix]
Coefficients = str | Sequence[float] | Sequence[Triple]


def as_matrix(shape: Shape) -> tuple[int, int]:
    """The rows and columns of a parameter of two or more axes. Raises ValueError for fewer.

    >>> as_matrix((64, 3, 7, 7))
    (64, 147)
    """
    if len(shape) < 2:
        raise ValueError(f"shape {shape}: expected two axes or more; use AdamW for vectors")
    return shape[0], math.prod(shape[1:])


def shape_factor(shape: Shape, adjust_lr_fn: str | None) -> float:
    """What the rate of a matrix of r rows and c columns is multiplied by.

    None and "original": √max(1, r/c). "match_rms_adamw": 0.2 √max(r, c), which gives updates the
    size of AdamW's, so that its rates and decay can be used. "spectral_unclamped": √(r/c), also
    where it is below 1. Raises ValueError for other names.

    >>> shape_factor((400, 100), "original"), shape_factor((400, 100), "match_rms_adamw")
    (2.0, 4.0)
    """
    rows, columns = as_matrix(shape)
    if adjust_lr_fn in (None, "original"):
        return math.sqrt(max(1.0, rows / columns)) if columns else 1.0
    if adjust_lr_fn == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    if adjust_lr_fn == "spectral_unclamped":
        return math.sqrt(rows / columns) if columns else 1.0
    raise ValueError(
        f"adjust_lr_fn = {adjust_lr_fn!r}: expected None, 'original', 'match_rms_adamw' or "
        "'spectral_unclamped'"
    )


def initial_states(shape: Shape, dtype: DTypeLike) -> States:
    """The momentum, zero."""
    as_matrix(shape)
    return {"momentum_buffer": np.zeros(shape, dtype)}


def direction(
    g: Matrix,
    state: States,
    t: int,
    *,
    momentum: float = 0.95,
    nesterov: bool = True,
    coefficients: Coefficients = "jordan",
    eps: float = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: str | None = None,
    iterate: Callable[..., Matrix] = orthogonalize,
) -> tuple[Matrix, States]:
    """Muon's direction.

        m ← momentum · m + (1 - momentum) · g
        u = momentum · m + (1 - momentum) · g  with nesterov, else m
        d = shape_factor · NS(u / max(‖u‖, eps))

    The iteration, NS, runs in g's type; torch.optim.Muon runs it in bfloat16. With "polar_express"
    the norm is made 2 % larger. Raises ValueError for a g of fewer than two axes.

    Jordan et al. 2024, kellerjordan.github.io/posts/muon; formula and defaults as torch.optim.Muon.
    """
    m, u = _momentum(g, state["momentum_buffer"], momentum, nesterov)
    factor = shape_factor(g.shape, adjust_lr_fn)
    d = _orthogonal(u, coefficients, eps, ns_steps, factor, iterate)
    return d.reshape(g.shape), {"momentum_buffer": m}


def normuon_states(shape: Shape, dtype: DTypeLike) -> States:
    """The momentum, and a mean square for each row; all zero."""
    rows, _ = as_matrix(shape)
    return {
        "momentum_buffer": np.zeros(shape, dtype),
        "second_momentum_buffer": np.zeros(rows, dtype),
    }


def normuon_direction(
    g: Matrix,
    state: States,
    t: int,
    *,
    momentum: float = 0.95,
    beta2: float = 0.95,
    nesterov: bool = True,
    coefficients: Coefficients = "jordan",
    eps: float = 1e-10,
    ns_eps: float = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: str | None = None,
    iterate: Callable[..., Matrix] = orthogonalize,
) -> tuple[Matrix, States]:
    """NorMuon's direction: Muon's, with the rows brought to like sizes.

        o = NS(u / max(‖u‖, ns_eps))                     u as in Muon
        vᵢ ← beta2 · vᵢ + (1 - beta2) · mean oᵢⱼ²        i the row
        ôᵢⱼ = oᵢⱼ / (√vᵢ + eps)
        d = factor · ô / (‖ô‖ + eps)

    factor is √max(1, r/c) ‖o‖, which keeps Muon's norm, as the authors' code has it; with
    adjust_lr_fn="spectral_unclamped" it is √(r/c) ‖o‖, which keeps that of Muon with the same, and
    with "match_rms_adamw" 0.2 √(r c), as in the paper's algorithm 1.

    Li et al. 2025, arXiv:2510.05491.
    """
    m, u = _momentum(g, state["momentum_buffer"], momentum, nesterov)
    factor = shape_factor(g.shape, adjust_lr_fn)
    o = _orthogonal(u, coefficients, ns_eps, ns_steps, 1.0, iterate)
    if o.size == 0:
        return o.reshape(g.shape), {"momentum_buffer": m}
    if adjust_lr_fn == "match_rms_adamw":
        target = 0.2 * math.sqrt(o.size)
    else:
        target = factor * norm(o)
    real = g.dtype.type
    means = np.vecdot(o, o) / real(o.shape[1])
    v = real(beta2) * state["second_momentum_buffer"] + real(1.0 - beta2) * means
    o /= (np.sqrt(v) + real(eps))[:, None]
    o *= real(target / (norm(o) + eps))
    return o.reshape(g.shape), {"momentum_buffer": m, "second_momentum_buffer": v}


def _momentum(g: Matrix, m: Matrix, momentum: float, nesterov: bool) -> tuple[Matrix, Matrix]:
    """The new momentum, and what is made orthogonal."""
    real = g.dtype.type
    fresh = real(1.0 - momentum) * g
    new = real(momentum) * m
    new += fresh
    if not nesterov:
        return new, new
    fresh += real(momentum) * new
    return new, fresh


def _orthogonal(
    u: Matrix,
    coefficients: Coefficients,
    eps: float,
    steps: int,
    scale: float,
    iterate: Callable[..., Matrix],
) -> Matrix:
    margin = MARGIN if coefficients == "polar_express" else 1.0
    triples = schedule(coefficients, steps)
    flat = u.reshape(as_matrix(u.shape))
    return iterate(flat, triples, eps, margin=margin, scale=scale)
