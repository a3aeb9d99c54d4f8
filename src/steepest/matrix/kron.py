"""PSGD-Kron: a preconditioner fitted to the gradients, one triangular factor for each axis."""

import math
from collections.abc import Callable
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import DTypeLike

from steepest.matrix.adam_moments import average
from steepest.matrix.linalg import Matrix, along, norm, solve_right
from steepest.matrix.random_numbers import normals

Shape = tuple[int, ...]
States = dict[str, Matrix]
Probability = float | Callable[[int], float] | None
MODES = (None, "one_diag", "smart_one_diag", "all_diag")
TINY = 2.0**-126


def probability(count: int) -> float:
    """How often factors are renewed: at every step at first, at 3 in 100 in the end.

    >>> probability(0), round(probability(1500), 4), probability(10_000)
    (1.0, 0.3679, 0.03)
    """
    return min(1.0, max(0.03, math.exp(-0.001 * (count - 500))))


def diagonal(
    shape: Shape,
    max_size_triangular: int = 8192,
    min_ndim_triangular: int = 2,
    memory_save_mode: str | None = None,
) -> tuple[bool, ...]:
    """Which axes have a diagonal factor. Raises ValueError for another memory_save_mode.

    >>> diagonal((512, 10_000)), diagonal((512, 64), memory_save_mode="one_diag")
    ((False, True), (True, False))
    """
    if memory_save_mode not in MODES:
        raise ValueError(
            f"memory_save_mode = {memory_save_mode!r}: expected None, 'one_diag', "
            "'smart_one_diag' or 'all_diag'"
        )
    saved = [memory_save_mode == "all_diag"] * len(shape)
    if memory_save_mode in ("one_diag", "smart_one_diag") and shape:
        sizes = sorted(shape)
        if memory_save_mode == "one_diag" or (len(shape) > 1 and sizes[-1] > sizes[-2]):
            saved[int(np.argsort(shape)[-1])] = True
    return tuple(
        n == 1 or n > max_size_triangular or len(shape) < min_ndim_triangular or save
        for n, save in zip(shape, saved, strict=True)
    )


def initial_states(
    shape: Shape,
    dtype: DTypeLike,
    *,
    max_size_triangular: int = 8192,
    min_ndim_triangular: int = 2,
    memory_save_mode: str | None = None,
    precond_init_scale: float = 1.0,
) -> States:
    """The momentum, zero; for axis k the factor ``"Q_k"``, a multiple of the identity or its
    diagonal; and ``"waited"``, the steps since factors were renewed. A number is a vector of
    length 1."""
    shape = shape or (1,)
    flat = diagonal(shape, max_size_triangular, min_ndim_triangular, memory_save_mode)
    scale = np.dtype(dtype).type(precond_init_scale ** (1.0 / len(shape)))
    states = {"momentum_buffer": np.zeros(shape, dtype), "waited": np.zeros(1, np.int64)}
    for k, n in enumerate(shape):
        states[f"Q_{k}"] = scale * (np.ones(n, dtype) if flat[k] else np.eye(n, dtype=dtype))
    return states


def direction(
    g: Matrix,
    state: States,
    t: int,
    *,
    momentum: float = 0.9,
    preconditioner_update_probability: Probability = None,
    momentum_into_precondition_update: bool = True,
    precond_lr: float = 0.1,
    balance_interval: int = 100,
    seed: int = 0,
    stream: int = 0,
) -> tuple[Matrix, States]:
    """PSGD-Kron's direction.

        m ← momentum · m + (1 - momentum) · g,  m̂ = m / (1 - momentumᵗ)
        A = Q₀ ... Qₖ m̂,  B = v ×ⱼ Qⱼ⁻¹  with random normal v    Qⱼ on axis j, upper triangular
        Qⱼ ← Qⱼ - precond_lr / ‖A₍ⱼ₎A₍ⱼ₎ᵀ + B₍ⱼ₎B₍ⱼ₎ᵀ‖ · triu(A₍ⱼ₎A₍ⱼ₎ᵀ - B₍ⱼ₎B₍ⱼ₎ᵀ) Qⱼ
        d = Q₀ᵀQ₀ ... QₖᵀQₖ m̂, made smaller if its root mean square is above 1.1

    ‖·‖ is a lower bound of the spectral norm. Factors are renewed once 1 / p steps have passed,
    p being preconditioner_update_probability: a number, a function of the steps done, or None for
    ``probability``. At every balance_interval-th step that renews them, they are first scaled to
    like size; 0 is never. v is a function of seed, stream (the parameter's index) and t. With
    momentum_into_precondition_update=False A is made of g.

    Li 2015, arXiv:1512.04202; Pooladzandi and Li 2024, arXiv:2402.11858; formula and defaults as
    the package kron_torch, whose draws decide by chance when to balance.
    """
    if g.size == 0:
        return np.zeros_like(g), {}
    shape, g = g.shape, g.reshape(g.shape or (1,))
    p = preconditioner_update_probability
    p = probability(t - 1) if p is None else p(t - 1) if callable(p) else p
    waited = int(state["waited"][0]) + 1
    renew = p > 0 and waited >= 1.0 / p
    factors = [state[f"Q_{k}"] for k in range(g.ndim)]
    with np.errstate(all="ignore"):
        m = average(state["momentum_buffer"], g, momentum)
        mean = m / g.dtype.type(-math.expm1(t * math.log(momentum)) if momentum else 1.0)
        if renew:
            if g.ndim > 1 and balance_interval and t % balance_interval == 0:
                factors = balanced(factors)
            v = normals(g.shape, g.dtype, seed, stream, t)
            pair = mean if momentum_into_precondition_update else g
            factors = fitted(factors, v, pair, precond_lr)
        d = mean
        for k, q in enumerate(factors):
            d = _times(_times(d, k, q, right=False), k, q, right=True)
        d = np.ascontiguousarray(d)
        d *= g.dtype.type(min(1.0, 1.1 / (norm(d) / math.sqrt(d.size) + 1e-6)))
    new = {"momentum_buffer": m, "waited": np.array([0 if renew else waited], np.int64)}
    if renew:
        new |= {f"Q_{k}": q for k, q in enumerate(factors)}
    return d.reshape(shape), new


def balanced(factors: list[Matrix]) -> list[Matrix]:
    """The factors scaled to the same largest entry; their product is the same."""
    sizes = [float(np.abs(q).max()) for q in factors]
    mean = math.nan
    if min(sizes) > 0:
        mean = math.exp(reduce(add, map(math.log, sizes)) / len(sizes))
    return [q * q.dtype.type(mean / s) for q, s in zip(factors, sizes, strict=True)]


def fitted(factors: list[Matrix], v: Matrix, g: Matrix, rate: float) -> list[Matrix]:
    """The factors after one step of fitting Q to the pair of a random v and a gradient."""
    a, b = g, v
    for k, q in enumerate(factors):
        a = _times(a, k, q, right=False)
        b = _divided(b, k, q)
    a, b = _in_range(a, b)
    new = []
    for k, q in enumerate(factors):
        axes = [j for j in range(g.ndim) if j != k]
        if q.ndim == 1:
            one = np.sum(a * a, axis=tuple(axes))
            two = np.sum(b * b, axis=tuple(axes))
            step = q.dtype.type(rate) * (one - two) * q
            new.append(q - step / (np.abs(one + two).max() + q.dtype.type(TINY)))
        else:
            one = np.tensordot(a, a, axes=(axes, axes))
            two = np.tensordot(b, b, axes=(axes, axes))
            step = np.triu(q.dtype.type(rate) * (one - two))
            step /= q.dtype.type(spectral_bound(one + two) + TINY)
            new.append(np.ascontiguousarray(q - step @ q))
    return new


def _in_range(a: Matrix, b: Matrix) -> tuple[Matrix, Matrix]:
    """Both over the same power of two, where their squares would be out of range: only the
    proportion of the two counts."""
    largest = max(float(np.abs(a).max()), float(np.abs(b).max()))
    limit = int(np.finfo(a.dtype).maxexp) // 2 - 14
    if not 2.0**limit < largest < math.inf:
        return a, b
    exponent = math.frexp(largest)[1]
    return np.ldexp(a, -exponent), np.ldexp(b, -exponent)


def spectral_bound(a: Matrix) -> float:
    """A cheap lower bound of the spectral norm of a symmetric matrix: one product with its
    longest row, after scaling.

    >>> spectral_bound(np.diag([3.0, 1.0]))
    3.0
    """
    largest = float(np.abs(a).max())
    if largest == 0.0 or not math.isfinite(largest):
        return largest
    scaled = a / a.dtype.type(largest)
    row = scaled[int(np.vecdot(scaled, scaled).argmax())]
    x = scaled @ row
    return largest * norm(scaled.T @ (x / a.dtype.type(norm(x))))


def _times(x: Matrix, k: int, q: Matrix, *, right: bool) -> Matrix:
    """Q or, with right, Qᵀ applied to the vectors along axis k."""
    if q.ndim == 1:
        return np.asarray(x * q.reshape([-1 if j == k else 1 for j in range(x.ndim)]))
    return along(x, k, q if right else q.T)


def _divided(x: Matrix, k: int, q: Matrix) -> Matrix:
    """Q⁻ᵀ applied to the vectors along axis k."""
    if q.ndim == 1:
        return np.asarray(x / q.reshape([-1 if j == k else 1 for j in range(x.ndim)]))
    moved = np.moveaxis(x, k, -1)
    return np.moveaxis(solve_right(moved.reshape(-1, len(q)), q).reshape(moved.shape), -1, k)
