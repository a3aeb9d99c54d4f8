"""The Newton-Schulz iteration: a matrix with all singular values brought near 1, by products alone.

One step is X ← (aI + bA + cA²) X with A = XXᵀ, taken on the shorter side of X. Multiplications and
additions at n x n: A and A² are symmetric, and NumPy hands a product of a matrix and its own
transpose to SYRK, which computes half of it: n³ + n³ + 2n³ per step, where three plain products
take 6n³. All steps share two buffers of the size of X and two of A. The term aX costs no pass over
X: a is added to the diagonal of bA + cA².
"""

import math
from collections.abc import Sequence

import numpy as np

from steepest.matrix.linalg import Matrix, norm

Triple = tuple[float, float, float]

JORDAN: Triple = (3.4445, -4.775, 2.0315)
"""Steep at 0, where slow directions are; singular values end between about 0.7 and 1.2."""

POLAR_EXPRESS: tuple[Triple, ...] = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
"""The best polynomials for five steps on [1e-3, 1], with a margin of 2 % for rounding."""

MARGIN = 1.02
"""POLAR_EXPRESS needs singular values of at most 1 / MARGIN."""


def schedule(coefficients: str | Sequence[float] | Sequence[Triple], steps: int) -> list[Triple]:
    """One triple (a, b, c) per step; a list shorter than the steps repeats its last.

    coefficients is "jordan", "polar_express", one triple or a list of them. Raises ValueError.

    >>> schedule("jordan", 2)
    [(3.4445, -4.775, 2.0315), (3.4445, -4.775, 2.0315)]
    """
    if isinstance(coefficients, str):
        named: dict[str, tuple[Triple, ...]] = {
            "jordan": (JORDAN,),
            "polar_express": POLAR_EXPRESS,
        }
        if coefficients not in named:
            raise ValueError(f"coefficients = {coefficients!r}: expected one of {', '.join(named)}")
        triples = named[coefficients]
    else:
        table = np.asarray(coefficients, np.float64)
        if table.ndim == 1:
            table = table[None]
        if table.ndim != 2 or table.shape[1] != 3 or not len(table) or not np.isfinite(table).all():
            raise ValueError(
                f"coefficients = {coefficients!r}: expected three finite numbers, or a list of such"
            )
        triples = tuple((float(a), float(b), float(c)) for a, b, c in table)
    return [triples[min(k, len(triples) - 1)] for k in range(steps)]


def orthogonalize(
    g: Matrix, triples: Sequence[Triple], eps: float, *, margin: float = 1.0, scale: float = 1.0
) -> Matrix:
    """scale · NS(g / max(margin · ‖g‖, eps)): g = USVᵀ becomes nearly scale · UVᵀ.

    g is a matrix of float32 or float64 and is not written to; the iteration runs in its type. The
    norm is Frobenius's and overflows for no finite g. A g with an entry that is not finite gives
    nothing but NaN.

    >>> orthogonalize(np.diag([4.0, 3.0]), schedule("jordan", 5), 1e-7).round(3)
    array([[1.119, 0.   ],
           [0.   , 0.723]])

    Jordan et al. 2024, kellerjordan.github.io/posts/muon; Amsel et al. 2025, arXiv:2505.16932.
    """
    if g.size == 0:
        return np.zeros_like(g)
    length = norm(g)
    if not math.isfinite(length):
        return np.full_like(g, math.nan)
    x = divided(g, max(margin * length, eps))
    if not triples:
        return np.asarray(x * g.dtype.type(scale))
    wide = g.shape[0] <= g.shape[1]
    side = min(g.shape)
    y = np.empty_like(x)
    a2 = np.empty((side, side), x.dtype)
    a1 = np.empty_like(a2)
    for k, (a, b, c) in enumerate(triples):
        last = scale if k == len(triples) - 1 else 1.0
        np.matmul(x, x.T, out=a1) if wide else np.matmul(x.T, x, out=a1)
        np.matmul(a1, a1.T, out=a2)
        np.multiply(a1, b * last, out=a1)
        np.multiply(a2, c * last, out=a2)
        np.add(a2, a1, out=a2)
        a2.ravel()[:: side + 1] += a2.dtype.type(a * last)
        np.matmul(a2, x, out=y) if wide else np.matmul(x, a2, out=y)
        x, y = y, x
    return x


def divided(g: Matrix, length: float) -> Matrix:
    """g / length as a new array; length may be beyond g's type, or its inverse."""
    if length == 0.0:
        return np.zeros_like(g)
    if float(np.finfo(g.dtype).tiny) <= length <= float(np.finfo(g.dtype).max) / 4:
        return np.asarray(g / g.dtype.type(length))
    fraction, power = math.frexp(length)
    return np.asarray(np.ldexp(g, -power) / g.dtype.type(fraction))
