"""The specification of how numbers are stored: each format's codec in plain NumPy.

The compiled codecs of ``kernels/leveled/codecs.pyx`` equal these to the last bit. Numbers are
decoded exactly, and encoded to the nearest that the format has, ties to even, once: a float64 goes
to 16 bits without a float32 between, where it might be rounded twice.

NumPy has no bfloat16. Its arrays here have the dtype `BFLOAT16`, whose one field holds the bits, or
that of the package ml_dtypes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

__all__ = [
    "BFLOAT16",
    "GROUP",
    "MASTERS",
    "Master",
    "decoded",
    "encoded",
    "from_bfloat16",
    "from_q8",
    "is_bfloat16",
    "is_short",
    "joined",
    "noise",
    "noise_base",
    "split",
    "stochastic",
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
    of one and the upper half odd. NaN is 0x7fc0."""
    bits = _bits(x if x.dtype == np.float32 else _to_odd(x))
    half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    upper = (bits + half) >> np.uint32(16)
    return np.asarray(upper.astype(np.uint16)).view(BFLOAT16)


def _bits(x: Array) -> Array:
    """The bits of float32, those of one NaN for all."""
    nan = np.isnan(x)
    return np.where(nan, np.uint32(0x7FC00000), np.asarray(x).view(np.uint32)).astype(np.uint32)


def joined(x: Array, remainder: Array) -> Array:
    """bfloat16 and a remainder, int16 or int8, as the float32 that they were split from."""
    bits = np.asarray(x.view(np.uint16).astype(np.uint32))
    bits <<= np.uint32(16)
    lower = np.asarray(remainder.astype(np.uint32))  # negative numbers modulo 2^32
    lower <<= np.uint32(16 - 8 * remainder.itemsize)
    bits += lower
    return bits.view(np.float32)


def split(x: Array) -> tuple[Array, Array]:
    """A float32 as the nearest bfloat16, ties away from 0, and what its bits lack, as int16. NaN is
    0x7fc0, without a remainder."""
    bits = _bits(x)
    upper = (bits + np.uint32(0x8000)) >> np.uint32(16)
    lower = bits & np.uint32(0xFFFF)
    high = np.asarray(upper.astype(np.uint16)).view(BFLOAT16)
    return high, np.asarray(lower.astype(np.uint16)).view(np.int16)


def to_24_bits(x: Array) -> Array:
    """The nearest float32 whose last eight bits are 0, ties to even. A NaN stays one."""
    bits = np.asarray(x).view(np.uint32)
    half = np.uint32(0x7F) + ((bits >> np.uint32(8)) & np.uint32(1))
    rounded = np.where(np.isnan(x), bits | np.uint32(0x400000), bits + half)
    return np.asarray(rounded & np.uint32(0xFFFFFF00)).view(np.float32)


def compensated(x: Array, compensation: Array) -> Array:
    """The sum of two arrays of one format of 16 bits, as float32. What 0 is added to stays what it
    is, -0 too."""
    near, rest = decoded(x, np.float32), decoded(compensation, np.float32)
    with np.errstate(invalid="ignore"):
        return np.where(rest == 0, near, near + rest)


def compensation(x: Array, near: Array) -> Array:
    """What float32 numbers have beyond their roundings, in the format of those; 0 where those are
    not finite."""
    rounded = decoded(near, np.float32)
    with np.errstate(invalid="ignore"):
        return encoded(np.where(np.isfinite(rounded), x - rounded, np.float32(0)), near.dtype)


@dataclass(frozen=True)
class Master:
    """A more precise parameter, kept in a state array beside a stored one of 16 bits.

    key: the name of the state. states: the dtype of its array, which is in C order, for each format
    of parameters that the master goes with; None is the parameter's own. joined: parameter and
    state as float32. split: float32 as a parameter of a dtype, and its state.

    The compiled codec is called ``name_format``, by its name in `MASTERS` and the parameter's
    format.
    """

    key: str
    states: Mapping[str, np.dtype[Any] | None]
    joined: Callable[[Array, Array], Array]
    split: Callable[[Array, np.dtype[Any]], tuple[Array, Array]]

    def of(self, dtype: np.dtype[Any]) -> bool:
        """Whether parameters of the dtype have one."""
        return _short_name(dtype) in self.states

    def state_type(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """The dtype of the state of such a parameter."""
        own = self.states[_short_name(dtype)]
        return dtype if own is None else own


def is_short(dtype: np.dtype[Any]) -> bool:
    """Whether it is one of 16 bits."""
    return is_bfloat16(dtype) or dtype == np.float16


def _short_name(dtype: np.dtype[Any]) -> str:
    return "bfloat16" if is_bfloat16(dtype) else dtype.name


def _split16(x: Array, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    high, low = split(x)
    return high.view(dtype), low


def _split8(x: Array, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    high, low = split(to_24_bits(x))
    return high.view(dtype), np.asarray((low >> 8).astype(np.int8))


def _itself(_: Array, x: Array) -> Array:
    return x


def _rounded(x: Array, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    return encoded(x, dtype), x


def _kahan(x: Array, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    near = encoded(x, dtype)
    exact = compensated(near, compensation(x, near))
    near = encoded(exact, dtype)  # another one where the compensation was rounded to half a unit
    return near, compensation(exact, near)


_INT16, _INT8, _FLOAT32 = np.dtype(np.int16), np.dtype(np.int8), np.dtype(np.float32)

MASTERS = {
    "split16": Master("remainder", {"bfloat16": _INT16}, joined, _split16),
    "split8": Master("remainder", {"bfloat16": _INT8}, joined, _split8),
    "kahan": Master("compensation", {"bfloat16": None, "float16": None}, compensated, _kahan),
    "float32": Master("master", {"bfloat16": _FLOAT32, "float16": _FLOAT32}, _itself, _rounded),
}
"""All masters by name."""


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
    """32 random bits for each of n elements, as uint32; the upper ones are the better ones."""
    x = np.arange(n, dtype=np.uint64).astype(np.uint32)
    x *= np.uint32(0x9E3779B9)
    x += np.uint32(base)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0xD35A2D97)
    return x


def stochastic(x: Array, dtype: np.dtype[Any], base: int) -> Array:
    """Numbers as a new array of a format of 16 bits, each rounded to one of its two neighbours: up,
    in magnitude, if the part of a unit that it is above the lower one exceeds a random number.

    That is 32 random bits, 16 of them above the others, for each element in C order; see `noise`.
    float64 is rounded to float32 before.
    """
    random = noise(base, x.size).reshape(x.shape)
    near = np.asarray(encoded(x, np.dtype(np.float32)))
    bits = near.view(np.uint32)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    dropped = np.uint32(16 if is_bfloat16(dtype) else 13)
    rounded = (magnitude + (random >> (np.uint32(32) - dropped))) >> dropped << dropped
    if not is_bfloat16(dtype):  # below 2^-14 its numbers are multiples of 2^-24
        small = magnitude < np.uint32(0x38800000)
        units = np.where(small, np.abs(near), np.float32(0)) * np.float32(2**24)
        whole = units.astype(np.int32)
        part = ((units - whole.astype(np.float32)) * np.float32(2**31)).astype(np.int32)
        whole = whole + ((random >> np.uint32(1)).astype(np.int32) < part)
        number = np.asarray(whole.astype(np.float32) * np.float32(2.0**-24))
        rounded = np.where(small, number.view(np.uint32), rounded)
    rounded = np.where(np.isnan(near), magnitude, rounded) | bits & np.uint32(0x80000000)
    return encoded(np.asarray(rounded).view(np.float32), dtype)


_SIGNED, _SQUARE = 20, 19
"""Bits of a float32 that 8-bit codes drop."""


def to_q8(x: Array, square: bool, random: Array | None = None) -> tuple[Array, Array]:
    """Numbers as (codes, scales) of 8 bits, in C order.

    A group of 128 neighbours has a scale: the exponent of its largest number, biased as float32's
    are, such that no rounding exceeds it; 16 at least. A code is the sign, 4 bits of exponent from
    15 below the scale up, and 3 of mantissa. With `square` it is of the square root of x, which is
    not negative: no sign, 4 bits of exponent, 4 of mantissa, and never 0. Infinities and NaN are
    codes where the scale is 255. `random` are 32 random bits for each element; as many as are
    dropped, the upper ones, are added. None rounds to nearest, ties away from 0.
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
        up = random >> (np.uint32(32) - dropped)
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
