"""Norms, with the summation tree that makes them independent of threads and vector width."""

import math
import sys
from collections.abc import Sequence

import numpy as np

from steepest.reference.types import Array

CHUNK = 4096
LANES = 32


LARGEST = sys.float_info.max


def sum_powers(g: Array, order: float, scale: float = 1.0) -> float:
    """The sum of |scale · g|^order in double, in C order.

    Chunks of 4096 elements; in each, element i goes to lane i mod 32; lanes are added in halves,
    chunks one after the other.
    """
    flat = scale * g.astype(np.float64).ravel()
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if order == 2.0:
            terms = flat * flat
        elif order == 1.0:
            terms = np.abs(flat)
        else:
            terms = np.array([math.pow(abs(x), order) for x in flat.tolist()])
        total = 0.0
        for start in range(0, flat.size, CHUNK):
            chunk = terms[start : start + CHUNK]
            padded = np.zeros(-(-chunk.size // LANES) * LANES)
            padded[: chunk.size] = chunk
            lanes = np.zeros(LANES)
            for row in padded.reshape(-1, LANES):
                lanes = lanes + row
            while lanes.size > 1:
                half = lanes.size // 2
                lanes = lanes[:half] + lanes[half:]
            total += float(lanes[0])
    return total


def norm(gradients: Sequence[Array], order: float = 2.0) -> tuple[float, list[float]]:
    """The norm of all gradients together, and of each.

    Where squares would leave the range of double, a gradient is first scaled by a power of two; so
    it is always for orders other than 1, 2 and infinity.
    """
    if order == math.inf:
        each = [largest(g) for g in gradients]
        return largest(np.array(each)), each
    sums, exponents = [], []
    for g in gradients:
        total, exponent = scaled_sum(g, order)
        sums.append(total)
        exponents.append(exponent)
    most = max((e for s, e in zip(sums, exponents, strict=True) if s != 0), default=0)
    together = 0.0
    for total, exponent in zip(sums, exponents, strict=True):
        together += raised(total, exponent - most, order)
    return representable(rooted(together, order), most), [
        representable(rooted(s, order), e) for s, e in zip(sums, exponents, strict=True)
    ]


def unit_norm(x: Array) -> float:
    """The Euclidean norm of an array by itself."""
    return norm([x])[0]


def scaled_sum(g: Array, order: float) -> tuple[float, int]:
    """A sum of powers and the exponent e for which it is that of g / 2^e."""
    if order in (1.0, 2.0):
        total = sum_powers(g, order)
        low = 1e-280 if order == 2.0 else -1.0
        if g.dtype == np.float32 or low < total < 1e300:
            return total, 0
    most = largest(g)
    if not (math.isfinite(most) and most > 0):
        return most, 0
    exponent = max(math.frexp(most)[1], -1000)
    return sum_powers(g, order, math.ldexp(1.0, -exponent)), exponent


def largest(g: Array) -> float:
    """The largest magnitude; NaN if there is one."""
    return float(np.max(np.abs(g), initial=0))


def raised(total: float, exponent: int, order: float) -> float:
    """The sum of powers for elements 2^exponent times as large."""
    if exponent == 0:
        return total
    if order in (1.0, 2.0):
        return math.ldexp(total, int(order) * exponent)
    return total * math.pow(2.0, order * exponent)


def rooted(total: float, order: float) -> float:
    """The norm for a sum of powers."""
    if order == 2.0:
        return math.sqrt(total)
    return total if order == 1.0 else math.pow(total, 1.0 / order)


def representable(x: float, exponent: int) -> float:
    """x 2^exponent; the largest double where that is finite but larger."""
    try:
        return math.ldexp(x, exponent)
    except OverflowError:
        return LARGEST
