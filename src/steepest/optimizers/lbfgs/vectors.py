"""All parameters as one flat vector: rows of memory, and the vector work of quasi-Newton methods.

Numbers are of the type in which the parameters are computed, float32 for those of 16 bits; sums of
products are not: blocks of 4096 products are added by BLAS in that type, the blocks in double. That
costs no time, and in float32 it takes the error of a sum of 10 million squares from 2e-5 to 1e-9.
BLAS does not share out so short a block, so the bits are the same for any number of its threads.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from steepest.kernels import sources
from steepest.memory import formats
from steepest.memory.arrays import Array

_BLOCK = 4096  # elements that BLAS adds up
_CHUNK = 1 << 15  # elements that stay in cache between two operations on them
_LINE = 64  # bytes of a cache line: all rows start on one, so that BLAS treats them alike


class Rows:
    """Vectors of one length and type, handed out and used again.

    Those that `begin` is told to keep are not handed out until the next `begin`.
    """

    def __init__(self, length: int, dtype: np.dtype[Any]) -> None:
        self.length, self.dtype = length, dtype
        self._all: list[Array] = []
        self._free: list[Array] = []
        self._kept: set[int] = set()

    def begin(self, keep: Iterable[Array]) -> None:
        """All rows but these are free, whatever became of the work for which they were taken."""
        self._kept = {id(row) for row in keep}
        self._free = [row for row in self._all if id(row) not in self._kept]

    def take(self) -> Array:
        """A row, with anything in it."""
        if self._free:
            return self._free.pop()
        row = self._new()
        self._all.append(row)
        return row

    def give(self, row: Array) -> None:
        """Takes a row back."""
        if id(row) not in self._kept:
            self._free.append(row)

    def _new(self) -> Array:
        memory = np.empty(self.length * self.dtype.itemsize + _LINE, np.uint8)
        shift = -sources.start(memory) % _LINE
        return np.ndarray((self.length,), self.dtype, memory.data, shift)


def common_type(arrays: Sequence[Array]) -> np.dtype[Any]:
    """The type in which all the arrays are computed: float64 if one of them is, else float32."""
    return formats.wider([formats.computed(p) for p in arrays])


def parts(row: Array, arrays: Sequence[Array]) -> Iterator[Array]:
    """Views of the row's parts that stand for the arrays, each in its array's shape, C order."""
    first = 0
    for p in arrays:
        yield row[first : first + p.size].reshape(p.shape)
        first += p.size


def gather(arrays: Sequence[Array], row: Array) -> None:
    """Copies the numbers of the arrays into the row."""
    for part, p in zip(parts(row, arrays), arrays, strict=True):
        np.copyto(part, formats.decoded(p))


def scatter(row: Array, arrays: Sequence[Array]) -> None:
    """Copies the row into the arrays, each number rounded once to its array's format."""
    with np.errstate(over="ignore"):
        for part, p in zip(parts(row, arrays), arrays, strict=True):
            stored = part if formats.borrowed(p) else formats.encoded(part, p.dtype)
            np.copyto(p, stored, casting="same_kind")


def dot(x: Array, y: Array) -> float:
    """x · y.

    >>> ones = np.ones(10_000, np.float32)
    >>> dot(ones, ones)
    10000.0
    """
    whole = x.size // _BLOCK * _BLOCK
    with np.errstate(all="ignore"):
        total = float(np.dot(x[whole:], y[whole:]))
        if whole:
            blocks = np.vecdot(x[:whole].reshape(-1, _BLOCK), y[:whole].reshape(-1, _BLOCK))
            total += float(blocks.sum(dtype=np.float64))
    return total


def add_scaled(x: Array, factor: float, y: Array) -> None:
    """x ← x + factor · y, each product rounded."""
    scratch = np.empty(min(x.size, _CHUNK), x.dtype)
    with np.errstate(all="ignore"):
        for first in range(0, x.size, _CHUNK):
            piece = x[first : first + _CHUNK]
            product = scratch[: piece.size]
            np.multiply(y[first : first + _CHUNK], factor, out=product)
            np.add(piece, product, out=piece)


def difference(x: Array, y: Array, out: Array) -> Array:
    """out ← x - y."""
    with np.errstate(all="ignore"):
        np.subtract(x, y, out=out)
    return out


def scaled(x: Array, factor: float, out: Array) -> Array:
    """out ← factor · x."""
    with np.errstate(all="ignore"):
        np.multiply(x, factor, out=out)
    return out


def largest(x: Array) -> float:
    """max |x|; NaN if one is, 0 for an empty vector."""
    return max(-float(x.min()), float(x.max())) if x.size else 0.0


def total(x: Array) -> float:
    """Σ |x|."""
    pieces = (np.abs(x[first : first + _CHUNK]) for first in range(0, x.size, _CHUNK))
    with np.errstate(over="ignore"):
        return reduce(add, (float(piece.sum(dtype=np.float64)) for piece in pieces), 0.0)
