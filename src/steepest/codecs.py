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
    "decoded",
    "encoded",
    "from_bfloat16",
    "is_bfloat16",
    "joined",
    "split",
    "to_bfloat16",
]

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
