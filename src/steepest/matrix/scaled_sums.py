"""Sums of squares beyond their type's range.

The square of 1e20 is infinite in float32, although its root is not. A statistic that comes near the
end of its type's range is stored as its negative divided by 2^160 (float64: by 2^1280), the *wide*
form. Since no sum of squares is negative, the sign of the first entry tells the form. Other
statistics are stored unchanged, and a wide one that has shrunk becomes an ordinary one again.
"""

import math
from collections.abc import Callable

import numpy as np

from steepest.matrix.linalg import Matrix, finite

__all__ = ["is_wide", "power", "root", "taken_in", "unsigned"]


def is_wide(x: Matrix) -> bool:
    """Whether a statistic is stored in the wide form."""
    first = x.flat[0] if x.size else 0.0
    return bool(first < 0 or (first == 0 and np.signbit(first)))


def unsigned(x: Matrix) -> Matrix:
    """The statistic, up to a power of two."""
    return -x if is_wide(x) else x


def power(x: Matrix) -> int:
    """The power of two that ``unsigned`` leaves out."""
    return _width(x) if is_wide(x) else 0


def root(x: Matrix) -> Matrix:
    """The root of each element of a statistic.

    >>> root(np.array([4.0, 9.0]))
    array([2., 3.])
    """
    if not is_wide(x):
        return np.asarray(np.sqrt(x))
    return np.asarray(np.ldexp(np.sqrt(-x), _width(x) // 2))


@np.errstate(all="ignore")
def taken_in(
    old: Matrix,
    g: Matrix,
    squares: Callable[[Matrix], Matrix],
    combined: Callable[[Matrix, Matrix], Matrix],
) -> Matrix:
    """The new statistic  combined(old, squares(g)),  both functions being linear in squares.

    >>> g = np.full(2, 1e30, np.float32)
    >>> new = taken_in(np.zeros(2, np.float32), g, np.square, np.add)
    >>> root(new) / g, root(taken_in(new, g, np.square, np.add)).round(-28) / g
    (array([1., 1.], dtype=float32), array([1.41, 1.41], dtype=float32))
    """
    limit = math.ldexp(1.0, np.finfo(g.dtype).maxexp - 28)
    wide = is_wide(old)
    if not wide:
        new = combined(old, squares(g))
        if _largest(new) < limit or not (finite(g) and finite(old)):
            return new
    width = _width(old)
    before = -old if wide else np.ldexp(old, -width)
    new = combined(before, squares(np.ldexp(g, -(width // 2))))
    if _largest(new) < math.ldexp(limit, -width - 10):
        return np.asarray(np.ldexp(new, width))
    return np.negative(new)


def _width(x: Matrix) -> int:
    return int(np.finfo(x.dtype).maxexp * 5 // 4)


def _largest(x: Matrix) -> float:
    return float(x.max()) if x.size else 0.0
