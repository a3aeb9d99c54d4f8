"""The specification of how numbers are stored: each format's codec in plain NumPy.

The compiled codecs of ``kernels/leveled/codecs.pyx`` equal these to the last bit. Numbers are
decoded exactly, and encoded to the nearest that the format has, ties to even, once: a float64 goes
to 16 bits without a float32 between, where it might be rounded twice.

NumPy has no bfloat16. Its arrays here have the dtype `BFLOAT16`, whose one field holds the bits, or
that of the package ml_dtypes.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

__all__ = [
    "BFLOAT16",
    "GROUP",
    "decoded",
    "encoded",
    "from_bfloat16",
    "from_q8",
    "is_bfloat16",
    "joined",
    "noise",
    "noise_base",
    "split",
    "to_bfloat16",
    "to_q8",
]

GROUP = 128
"""How many neighbours, in C order, have one scale in states of 8 bits."""

BFLOAT16 = np.dtype([("bfloat16", np.uint16)])
"""bfloat16 for who has no ml_dtypes: ``bits.view(BFLOAT16)`` of uint16."""


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Whether it is `BFLOAT16`, or that of ml_dtypes."""
    return dtype == BFLOAT16 or dtype.name == "bfloat16"


def decoded(x: Array, dtype: Any) -> Array:
    """The numbers of an array of any format as a new array of float32 or float64."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return (from_bfloat16(x) if is_bfloat16(x.dtype) else x).astype(dtype)


def encoded(x: Array, dtype: np.dtype[Any]) -> Array:
    """Numbers of float32 or float64 as a new array of a format's dtype."""
    if is_bfloat16(dtype):
        return to_bfloat16(x).view(dtype)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return x.astype(dtype)


def from_bfloat16(x: Array) -> Array:
    """The upper halves of float32: the lower ones are 0."""
    bits = np.asarray(x.view(np.uint16).astype(np.uint32))
    bits <<= np.uint32(16)
    return bits.view(np.float32)


def to_bfloat16(x: Array) -> Array:
    """The upper half of a float32, one more where the lower half is more than half of one, or half
    of one and the upper half odd. A NaN stays one."""
    near = np.asarray(x if x.dtype == np.float32 else _to_odd(x))
    bits = near.view(np.uint32)
    half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    quiet = bits | np.uint32(0x400000)
    upper = np.where(np.isnan(near), quiet, bits + half) >> np.uint32(16)
    return np.asarray(upper.astype(np.uint16)).view(BFLOAT16)


def joined(x: Array, remainder: Array) -> Array:
    """bfloat16 and int16 as the float32 that they were split from."""
    bits = np.asarray(x.view(np.uint16).astype(np.uint32))
    bits <<= np.uint32(16)
    bits += remainder.astype(np.uint32)  # negative numbers modulo 2^32
    return bits.view(np.float32)


def split(x: Array) -> tuple[Array, Array]:
    """A float32 as the nearest bfloat16, ties away from 0, and what its bits lack, as int16. A NaN
    has no remainder."""
    bits = np.asarray(x).view(np.uint32)
    nan = np.isnan(x)
    upper = np.where(nan, bits | np.uint32(0x400000), bits + np.uint32(0x8000)) >> np.uint32(16)
    lower = np.where(nan, np.uint32(0), bits & np.uint32(0xFFFF))
    high = np.asarray(upper.astype(np.uint16)).view(BFLOAT16)
    return high, np.asarray(lower.astype(np.uint16)).view(np.int16)


def _to_odd(x: Array) -> Array:
    """float64 as float32: x itself if it is one, else the next one to it, towards 0, with its last
    bit set. Rounded once more, to fewer bits, that gives what x itself would."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        near = np.asarray(x.astype(np.float32))
    back = near.astype(np.float64)
    bits = near.view(np.uint32)
    bits -= np.abs(back) > np.abs(x)
    bits |= (back < x) | (back > x)
    return near


def noise_base(seed: int, number: int, t: int, lane: int) -> int:
    """Where the random numbers begin at the t-th step of a parameter, the optimizer's `number`-th:
    its own with `lane` 0, those of its states with 1."""
    x = seed
    for more in (number, t, lane):
        x = (x * 0x9E3779B97F4A7C15 + more) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        x ^= x >> 31
    return x >> 32


def noise(base: int, n: int) -> Array:
    """32 random bits for each of n elements, as uint32."""
    x = np.arange(n, dtype=np.uint64).astype(np.uint32)
    x *= np.uint32(0x9E3779B9)
    x += np.uint32(base)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0xD35A2D97)
    x ^= x >> np.uint32(15)
    return x


_SIGNED, _SQUARE = 20, 19
"""Bits of a float32 that 8-bit codes drop."""


def to_q8(x: Array, square: bool, random: Array | None = None) -> tuple[Array, Array]:
    """Numbers as (codes, scales) of 8 bits, in C order.

    A group of 128 neighbours has a scale: the exponent of its largest number, biased as float32's
    are, such that no rounding exceeds it; 16 at least. A code is the sign, 4 bits of exponent from
    15 below the scale up, and 3 of mantissa. With `square` it is of the square root of x, which is
    not negative: no sign, 4 bits of exponent, 4 of mantissa, and never 0. Infinities and NaN are
    codes where the scale is 255. `random` are 32 random bits for each element; as many as are
    dropped are added, the upper ones, or for squares the lower. None rounds to nearest, ties away
    from 0.
    """
    with np.errstate(all="ignore"):
        y = np.asarray(x, np.float32).reshape(-1)
        y = np.sqrt(y) if square else y
    dropped = np.uint32(_SQUARE if square else _SIGNED)
    bits = np.ascontiguousarray(y).view(np.uint32)
    sign, bits = bits >> np.uint32(24) & np.uint32(0x80), bits & np.uint32(0x7FFFFFFF)
    most = np.maximum.reduceat(bits, np.arange(0, bits.size, GROUP)) if bits.size else bits
    scale = (most + np.uint32((1 << dropped) - 1)) >> np.uint32(23)
    scale = np.clip(scale, 16, 255).astype(np.uint8)
    if random is None:
        up: Any = np.uint32(1 << dropped >> 1)
    else:
        up = random & np.uint32((1 << _SQUARE) - 1) if square else random >> np.uint32(32 - _SIGNED)
    k = ((bits + up) >> dropped).astype(np.int64)
    lowest = (scale.astype(np.int64) - 15) << np.int64(23 - dropped)
    k -= np.repeat(lowest, GROUP)[: k.size]
    code = np.maximum(k, 1) if square else np.maximum(k, 0) | sign
    code = np.where(np.isnan(y), 0xF8 if square else 0x7C, code)
    return code.astype(np.uint8).reshape(x.shape), scale


def from_q8(code: Array, scale: Array, square: bool) -> Array:
    """Codes and scales of 8 bits as float32."""
    each = code.reshape(-1).astype(np.uint32)
    k = each if square else each & np.uint32(0x7F)
    lowest = (scale.astype(np.uint32) - np.uint32(15)) << np.uint32(23)
    bits = (k << np.uint32(_SQUARE if square else _SIGNED)) + np.repeat(lowest, GROUP)[: k.size]
    bits = np.where(k > 0, bits, np.uint32(0)).astype(np.uint32)
    with np.errstate(all="ignore"):
        if square:
            y = bits.view(np.float32) * bits.view(np.float32)
        else:
            y = (bits | (each & np.uint32(0x80)) << np.uint32(24)).view(np.float32)
    return np.asarray(y).reshape(code.shape)
