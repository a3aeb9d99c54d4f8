"""Norms and factorisations that neither overflow nor stop at what is not finite.

LAPACK's answer to NaN depends on the routine: an error, NaN, or a loop without end. Here a matrix
with an entry that is not finite has a factorisation full of NaN, and ``DecompositionError`` is left
for finite matrices. Eigenvalues are always computed in double precision.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[Any]


LEAK = 2.0**-10
"""What part of a result may come of rounding in directions that it has nothing of."""


class DecompositionError(ArithmeticError):
    """A factorisation of a matrix of finite numbers did not converge."""


def norm(x: Matrix) -> float:
    """The Frobenius norm: row by row in x's type, then in double; no square over- or underflows.

    >>> norm(np.full((2, 2), 3e30, np.float32)) == 2 * float(np.float32(3e30))
    True
    """
    if x.size == 0:
        return 0.0
    rows = x.reshape(-1, x.shape[-1]) if x.ndim > 1 else x.reshape(1, -1)
    with np.errstate(over="ignore", invalid="ignore"):
        total = float(np.vecdot(rows, rows).sum(dtype=np.float64))
    info = np.finfo(x.dtype)
    # Below tiny / eps² some squares have lost digits; above max they are infinite.
    if info.tiny / float(info.eps) ** 2 <= total < math.inf:
        return math.sqrt(total)
    largest = float(np.abs(x).max())
    if largest == 0.0 or not math.isfinite(largest):
        return largest if largest == 0.0 else math.nan
    power = math.frexp(largest)[1]
    scaled = np.ldexp(rows.astype(np.float64), -power)
    return math.ldexp(math.sqrt(float(np.vecdot(scaled, scaled).sum())), power)


def finite(x: Matrix) -> bool:
    """Whether all entries are finite."""
    return bool(np.isfinite(x).all())


def eigenbasis(a: Matrix, name: str) -> tuple[Matrix, Matrix]:
    """Eigenvalues, falling, and eigenvectors as columns, of a symmetric matrix, in double.

    The largest entry of each eigenvector is positive, so that neither LAPACK nor rounding chooses
    its sign. Raises DecompositionError.

    >>> eigenbasis(np.array([[1.0, 0.0], [0.0, 4.0]]), "a")[0]
    array([4., 1.])
    """
    if not finite(a):
        return np.full(len(a), math.nan), np.full(a.shape, math.nan)
    try:
        values, vectors = np.linalg.eigh(a.astype(np.float64))
    except np.linalg.LinAlgError as error:
        raise DecompositionError(f"the eigenvalues of {name} were not found: {error}") from error
    values, vectors = values[::-1], vectors[:, ::-1]
    if vectors.size:
        peaks = vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])]
        vectors = vectors * np.where(peaks < 0, -1.0, 1.0)
    return values, vectors


def orthonormal(a: Matrix, name: str) -> Matrix:
    """Q of a = QR, in a's type. Raises DecompositionError."""
    if not finite(a):
        return np.full_like(a, math.nan)
    try:
        return np.linalg.qr(a)[0]
    except np.linalg.LinAlgError as error:
        raise DecompositionError(f"the QR factors of {name} were not found: {error}") from error


def inverse_root(a: Matrix, order: int, floor: float, name: str) -> Matrix:
    """a to the power -1/order, for a symmetric a with no eigenvalue below floor, in a's type.

    Eigenvalues that rounding has put below the floor are raised to it; a floor of 0 means
    the rounding of the largest eigenvalue, as does one so far below it that what rounding has left
    in the directions of small eigenvalues would become larger than LEAK. Raises DecompositionError.

    >>> inverse_root(np.array([[16.0, 0.0], [0.0, 1.0]]), 4, 1e-6, "a")
    array([[0.5, 0. ],
           [0. , 1. ]])
    """
    values, vectors = eigenbasis(a, name)
    if values.size:
        info, largest = np.finfo(a.dtype), float(values[0])
        if floor == 0.0 or float(info.eps) * (max(largest, 0.0) / floor) ** (1.0 / order) > LEAK:
            floor = max(largest * len(a) * float(info.eps), float(info.tiny), floor)
    roots = np.maximum(values, floor) ** (-1.0 / order)
    return np.asarray((vectors * roots) @ vectors.T, a.dtype)


def solve_right(x: Matrix, r: Matrix) -> Matrix:
    """x r⁻¹ for an upper triangular r, by halves, so that most of the work is products.

    A zero on the diagonal gives what is not finite, and no error.

    >>> solve_right(np.array([[2.0, 5.0]]), np.array([[2.0, 1.0], [0.0, 4.0]]))
    array([[1., 1.]])
    """
    y = x.copy()
    with np.errstate(all="ignore"):
        _solve_right(y, r)
    return y


def _solve_right(y: Matrix, r: Matrix) -> None:
    n = len(r)
    if n <= 32:
        for j in range(n):
            y[:, j] -= y[:, :j] @ r[:j, j]
            y[:, j] /= r[j, j]
        return
    h = n // 2
    _solve_right(y[:, :h], r[:h, :h])
    y[:, h:] -= y[:, :h] @ r[:h, h:]
    _solve_right(y[:, h:], r[h:, h:])


def along(x: Matrix, axis: int, m: Matrix) -> Matrix:
    """The tensor x with each of its vectors v along an axis replaced by vᵀ m."""
    moved = np.tensordot(x, m, axes=([axis], [0]))
    return np.moveaxis(moved, -1, axis)


def gram(x: Matrix, axis: int) -> Matrix:
    """The matrix of inner products of the slices of x along an axis.

    >>> gram(np.array([[3.0, 4.0]]), 0)
    array([[25.]])
    """
    flat = np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)
    return np.asarray(flat @ flat.T)
