"""How other packages store states in 4 and 8 bits: codes, and a factor for each block of them.

    x = numbers[code] · factor        (or its square, where the root was stored)

Blocks are of consecutive numbers in C order; the last may be shorter. All is computed in single
precision, as those packages do. Formats of ours, which are stepped, are in ``steepest.codecs``;
these are only read and written.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from steepest.memory.arrays import Array

__all__ = [
    "BITSANDBYTES",
    "FLASHOPTIM",
    "TORCHAO_4BIT",
    "TORCHAO_8BIT",
    "TORCHAO_FP8",
    "Codec",
    "decoded",
    "dynamic_map",
    "e4m3",
    "packed",
]

_AT_ONCE = 1 << 20
"""How many numbers are encoded at a time: what is computed in between is larger than the codes."""


@dataclass(frozen=True)
class Codec:
    """One kind of codes.

    numbers: what each code stands for, relative to the factor. block: how many numbers share a
    factor. nearest: the codes of numbers of at most 1, or `top`. least: what factors are at least.
    top: what the largest number of a block, without its sign, becomes. ends: what else it may have
    become. root: whether the square roots of numbers are stored.
    """

    numbers: Array
    block: int
    nearest: Callable[[Array], Array]
    least: float = 0.0
    top: float = 1.0
    ends: tuple[float, ...] = ()
    root: bool = False

    def decoded(self, codes: Array, factors: Array) -> Array:
        """The numbers of codes, in their shape."""
        found = decoded(self.numbers, codes, factors, self.block)
        return found * found if self.root else found

    def encoded(self, x: Array) -> tuple[Array, Array]:
        """Codes in the shape of x, of float32 and finite, and the factors.

        What once was decoded gets the codes it had. Else the factor is the largest number of the
        block, over `top`, and each number gets the code that is nearest, as in its package.

        >>> codes, factors = BITSANDBYTES[True].encoded(np.array([0.5, -2, 4], np.float32))
        >>> codes, factors
        (array([192,  35, 255], dtype=uint8), array([4.], dtype=float32))
        >>> BITSANDBYTES[True].decoded(codes, factors)
        array([ 0.484375, -2.003125,  4.      ], dtype=float32)
        """
        flat = np.ascontiguousarray(np.sqrt(x) if self.root else x, np.float32).reshape(-1)
        blocks = -(-flat.size // self.block)
        codes = np.empty((blocks, self.block), np.uint8)
        factors = np.empty(blocks, np.float32)
        rows = max(1, _AT_ONCE // self.block)
        for first in range(0, blocks, rows):
            some = flat[first * self.block : (first + rows) * self.block]
            full = np.pad(some, (0, -some.size % self.block)).reshape(-1, self.block)
            codes[first : first + rows], factors[first : first + rows] = self._rows(full)
        return codes.reshape(-1)[: flat.size].reshape(x.shape), factors

    def _rows(self, x: Array) -> tuple[Array, Array]:
        """The codes and factors of whole blocks, a row each."""
        largest = np.abs(x).max(axis=1)
        factors = np.maximum(largest, np.float32(self.least)) / np.float32(self.top)
        codes = self._codes(x, factors)
        same = self._same(codes, x, factors)
        factors[same] = self._to_the_bit(codes[same], x[same], factors[same])
        left = np.flatnonzero(~same)
        for end in self.ends:
            others = largest / np.float32(end)
            # A few numbers of each block tell that most did not come of codes.
            some = x[left][:, :: self.block // 8]
            maybe = left[self._same(self._codes(some, others[left]), some, others[left])]
            again = self._codes(x[maybe], others[maybe])
            same = self._same(again, x[maybe], others[maybe])
            at = maybe[same]
            codes[at] = again[same]
            factors[at] = self._to_the_bit(codes[at], x[at], others[at])
            left = np.setdiff1d(left, at, assume_unique=True)
        return codes, factors

    def _codes(self, x: Array, factors: Array) -> Array:
        """The codes of blocks; where the factor is 0 all are the first."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            relative = np.where(factors[:, None] > 0, x / factors[:, None], -np.inf)
        return self.nearest(np.asarray(relative, np.float32)).astype(np.uint8)

    def _same(self, codes: Array, x: Array, factors: Array) -> Array:
        """Which blocks are the numbers of their codes; not to the last bit, since that of tables
        depends on the machine that made them."""
        found: Array = self.numbers[codes] * factors[:, None]
        found -= x
        return np.asarray((np.abs(found) <= np.float32(1e-6) * np.abs(x)).all(axis=1))

    def _to_the_bit(self, codes: Array, x: Array, factors: Array) -> Array:
        """The factors, or their neighbours where more numbers equal their codes'."""
        ends = np.float32(np.inf), np.float32(0)
        near = np.stack([factors, *(np.nextafter(factors, end) for end in ends)])
        equal = np.array([(self.numbers[codes] * f[:, None] == x).sum(axis=1) for f in near])
        found: Array = np.take_along_axis(near, equal.argmax(axis=0)[None], 0)[0]
        return found


def decoded(numbers: Array, codes: Array, factors: Array, block: int) -> Array:
    """numbers[code] · factor, in the shape of the codes."""
    spread = np.repeat(factors, block)[: codes.size]
    found: Array = numbers[codes.reshape(-1)] * spread
    return found.reshape(codes.shape)


def packed(codes: Array) -> Array:
    """Two codes of 4 bits in a byte, the first in the upper half."""
    flat = codes.reshape(-1)
    found: Array = flat[::2] << np.uint8(4) | flat[1::2]
    return found


# What codes stand for


def dynamic_map(bits: int, signed: bool) -> Array:
    """The numbers of dynamic codes, in order: between 0.1 and 1 the most, between 0.01 and 0.1 half
    as many, and so on; 0 and 1 themselves, but not -1.

    Dettmers 2015, arXiv:1511.04561; each is the middle of a part of its decade.

    >>> [round(float(x), 5) for x in dynamic_map(4, True)[[0, 1, 6, 7, 8, 14, 15]]]
    [-0.8875, -0.6625, -0.0055, 0.0, 0.0055, 0.8875, 1.0]
    """
    found = [np.array([0, 1], np.float32)]
    for i in range(bits - 1):
        parts = 2**i if signed else 2 ** (i + 1)
        middles = _decade(parts) * np.float32(10.0 ** (i - bits + 2))
        found += [middles, -middles] if signed else [middles]
    return np.sort(np.concatenate(found))


def _decade(parts: int) -> Array:
    """The middles of equal parts of [0.1, 1]; their ends are counted from the nearer side, with one
    rounding each, as PyTorch does where the processor can."""
    low, high, i = np.float32(0.1), np.float32(1), np.arange(parts + 1, dtype=np.float64)
    step = np.float64((high - low) / np.float32(parts))
    exact = np.where(i < (parts + 1) // 2, low + step * i, high - step * (parts - i))
    ends = exact.astype(np.float32)
    middles: Array = (ends[:-1] + ends[1:]) / np.float32(2)
    return middles


def e4m3() -> Array:
    """The numbers of the 256 codes of 4 bits of exponent and 3 of mantissa (OCP's E4M3, which has
    NaN and no infinity).

    >>> e4m3()[[0, 1, 0x38, 0x7E, 0xBC]].tolist()
    [0.0, 0.001953125, 1.0, 448.0, -1.5]
    """
    code = np.arange(128)
    exponent, mantissa = np.maximum(code >> 3, 1), (code & 7) + np.where(code >> 3, 8, 0)
    half = np.ldexp(mantissa.astype(np.float32), exponent - 10).astype(np.float32)
    half[127] = np.nan
    return np.concatenate([half, -half])


# Which code is nearest, as each package says it


def _half_down(numbers: Array) -> Callable[[Array], Array]:
    """The nearest of numbers in order; half way between two, the lower."""
    ends = (numbers[:-1] + numbers[1:]) / np.float32(2)
    return lambda x: np.searchsorted(ends, x, "left")


def _half_up(numbers: Array) -> Callable[[Array], Array]:
    """The nearest of numbers in order; half way between two, the upper."""

    def nearest(x: Array) -> Array:
        low = np.maximum(np.searchsorted(numbers, x, "right") - 1, 0)
        high = np.minimum(low + 1, numbers.size - 1)
        half = (numbers[high] - numbers[low]) * np.float32(0.5)
        return np.where(x - numbers[low] >= half, high, low)

    return nearest


def _nearest_e4m3(x: Array) -> Array:
    """Half way between two, the even one; beyond the largest, the largest."""
    numbers = e4m3()[:127]
    ends, size = (numbers[:-1] + numbers[1:]) / np.float32(2), np.abs(x)
    code = np.searchsorted(ends, size, "left")
    even = code + ((ends[np.minimum(code, 125)] == size) & (code % 2 == 1))
    return np.asarray(even + np.where(np.signbit(x), 128, 0))


def _nearest_softsign(x: Array) -> Array:
    """int8 of 127 · 2x / (1 + |x|), as uint8."""
    y = np.float32(2) * x / (np.float32(1) + np.abs(x))
    return np.floor(y * np.float32(127) + np.float32(0.5)).astype(np.int8).view(np.uint8)


def _softsigned() -> Array:
    y = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float32) / np.float32(127)
    found: Array = y / (np.float32(2) - np.abs(y))
    return found


def _nearest_linear(x: Array) -> Array:
    return np.asarray(np.floor(x * np.float32(255) + np.float32(0.5)))


_DYNAMIC = {signed: dynamic_map(8, signed) for signed in (True, False)}
_FOUR = {True: dynamic_map(4, True), False: (np.arange(16, dtype=np.float32) + 1) / np.float32(16)}
_LINEAR = np.arange(256, dtype=np.float32) / np.float32(255)
_E4M3 = Codec(e4m3(), 256, _nearest_e4m3, 1e-12, 448.0, (448.0,))


def _bottom(numbers: Array) -> tuple[float, ...]:
    """Signed codes have no -1: what -1 becomes is less, and the largest after decoding."""
    return (-float(numbers[0]),) if numbers[0] < 0 else ()


BITSANDBYTES = {
    signed: Codec(x, 256, _half_down(x), ends=_bottom(x)) for signed, x in _DYNAMIC.items()
}
"""By whether numbers have signs."""
TORCHAO_8BIT = {
    signed: Codec(x, 256, _half_up(x), 1e-12, ends=_bottom(x)) for signed, x in _DYNAMIC.items()
}
TORCHAO_4BIT = {
    signed: Codec(x, 128, _half_up(x), 1e-12, ends=_bottom(x)) for signed, x in _FOUR.items()
}
TORCHAO_FP8 = {True: _E4M3, False: _E4M3}
FLASHOPTIM = {
    True: Codec(_softsigned(), 32, _nearest_softsign, 1e-12),
    False: Codec(_LINEAR, 32, _nearest_linear, 1e-12, root=True),
}
"""The codes of signed numbers are those of int8."""
