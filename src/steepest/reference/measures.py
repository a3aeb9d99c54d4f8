"""Norms, with the summation tree that makes them independent of threads and vector width."""

import math
from collections.abc import Sequence

import numpy as np

from steepest.reference.types import Array

CHUNK = 4096
LANES = 32


def sum_squares(g: Array, scale: float = 1.0) -> float:
    """The sum of the squares in double, in C order.

    Chunks of 4096 elements; in each, element i goes to lane i mod 32; lanes are added in halves,
    chunks one after the other.
    """
    flat = scale * g.astype(np.float64).ravel()
    total = 0.0
    for start in range(0, flat.size, CHUNK):
        chunk = flat[start : start + CHUNK]
        padded = np.zeros(-(-chunk.size // LANES) * LANES)
        with np.errstate(over="ignore", under="ignore"):
            padded[: chunk.size] = chunk * chunk
        lanes = np.zeros(LANES)
        for row in padded.reshape(-1, LANES):
            lanes = lanes + row
        while lanes.size > 1:
            half = lanes.size // 2
            lanes = lanes[:half] + lanes[half:]
        total += float(lanes[0])
    return total


def norm(gradients: Sequence[Array]) -> tuple[float, list[float]]:
    """The Euclidean norm of all gradients together, and of each.

    Where squares would leave the range of double, everything is first scaled by a power of two.
    """
    squares = [sum_squares(g) for g in gradients]
    total = _fold(squares)
    exponent = 0
    if not 1e-280 < total < 1e300:
        largest = max((float(np.max(np.abs(g), initial=0)) for g in gradients), default=0.0)
        if math.isfinite(largest) and largest > 0:
            exponent = max(math.frexp(largest)[1], -1000)
            squares = [sum_squares(g, math.ldexp(1.0, -exponent)) for g in gradients]
            total = _fold(squares)
    return math.ldexp(math.sqrt(total), exponent), [
        math.ldexp(math.sqrt(square), exponent) for square in squares
    ]


def _fold(values: Sequence[float]) -> float:
    total = 0.0
    for value in values:
        total += value
    return total
