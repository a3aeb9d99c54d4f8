"""Reductions: sums and norms, in the fixed order that makes them independent of the number of
threads and of the vector width."""

import math
import sys
from collections.abc import Sequence

import numpy as np

from steepest.reference.types import Array

CHUNK = 4096
LANES = 32


LARGEST = sys.float_info.max
LEAST = 2.0**-1000
"""The least magnitude whose inverse is a double for certain."""


def sum_powers(g: Array, order: float, scale: float = 1.0) -> float:
    """The sum of |scale · g|^order in double, in C order."""
    flat = scale * g.astype(np.float64).ravel()
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if order == 2.0:
            terms = flat * flat
        elif order == 1.0:
            terms = np.abs(flat)
        else:
            terms = np.array([math.pow(abs(x), order) for x in flat.tolist()])
        return added(terms)


def added(terms: Array) -> float:
    """The sum of doubles.

    Chunks of 4096; in each, the i-th goes to lane i mod 32; lanes are added in halves, chunks one
    after the other.
    """
    total = 0.0
    for start in range(0, terms.size, CHUNK):
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

    Where squares would leave the range of double, a gradient is first scaled by a power of two; for
    orders other than 1, 2 and infinity always, by its largest magnitude.
    """
    if order == math.inf:
        each = [largest(g) for g in gradients]
        return largest(np.array(each)), each
    order = min(order, 1e18)  # from there on the norm is the largest, but for rounding
    sums = [scaled_sum(g, order) for g in gradients]
    most = max((unit for s, unit in sums if s != 0), default=0 if order in (1.0, 2.0) else LEAST)
    together = 0.0
    for s, unit in sums:
        together += raised(s, unit, most, order)
    return rooted(together, most, order), [rooted(s, unit, order) for s, unit in sums]


def unit_norm(x: Array) -> float:
    """The Euclidean norm of an array by itself."""
    return norm([x])[0]


def scaled_sum(g: Array, order: float) -> tuple[float, float]:
    """A sum of powers, and the unit in which it is one: the exponent of a power of two for orders
    1 and 2, a magnitude for others."""
    exact = order in (1.0, 2.0)
    if exact:
        total = sum_powers(g, order)
        low = 1e-280 if order == 2.0 else -1.0
        if g.dtype == np.float32 or low < total < 1e300:
            return total, 0
    most = largest(g)
    if not (math.isfinite(most) and most > 0):
        return most, 0 if exact else LEAST
    if not exact:
        most = max(most, LEAST)
        return sum_powers(g, order, 1.0 / most), most
    exponent = max(math.frexp(most)[1], -1000)
    return sum_powers(g, order, math.ldexp(1.0, -exponent)), exponent


def largest(g: Array) -> float:
    """The largest magnitude; NaN if there is one."""
    return float(np.max(np.abs(g), initial=0))


def raised(total: float, unit: float, most: float, order: float) -> float:
    """A sum of powers in the unit `most`."""
    if total == 0 or not math.isfinite(total):
        return total
    if order in (1.0, 2.0):
        return math.ldexp(total, int(order) * int(unit - most))
    return total * math.pow(unit / most, order)


def rooted(total: float, unit: float, order: float) -> float:
    """The norm for a sum of powers; the largest double where it is finite but larger."""
    try:
        if order == 2.0:
            return math.ldexp(math.sqrt(total), int(unit))
        if order == 1.0:
            return math.ldexp(total, int(unit))
        norm = unit * math.pow(total, 1.0 / order)
    except OverflowError:
        return LARGEST
    return LARGEST if math.isinf(norm) and math.isfinite(total) else norm


BLOCK = 512


def total(terms: Array) -> float:
    """The sum of doubles, in C order, as the reduction passes of rules compute it.

    Blocks of 512 elements, in each of which element i goes to lane i mod 32 and lanes are added in
    halves; blocks one after the other within chunks of 4096 elements, chunks one after the other.
    """
    flat = np.asarray(terms, np.float64).ravel()
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        blocks = np.zeros(-(-flat.size // CHUNK) * CHUNK)
        blocks[: flat.size] = flat
        rows = blocks.reshape(-1, BLOCK // LANES, LANES)
        lanes = np.zeros((len(rows), LANES))
        for k in range(BLOCK // LANES):
            lanes = lanes + rows[:, k]
        while lanes.shape[1] > 1:
            half = lanes.shape[1] // 2
            lanes = lanes[:, :half] + lanes[:, half:]
        together = 0.0
        for chunk in lanes.reshape(-1, CHUNK // BLOCK):
            part = 0.0
            for block in chunk.tolist():
                part += block
            together += part
    return together


def squares(x: Array) -> float:
    """The sum of the squares of all elements."""
    wide = x.astype(np.float64)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return total(wide * wide)


def products(x: Array, y: Array) -> float:
    """The sum of the products of two arrays' elements."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return total(x.astype(np.float64) * y.astype(np.float64))


def magnitudes(x: Array) -> float:
    """The sum of the magnitudes of all elements."""
    return total(np.abs(x.astype(np.float64)))


GRAIN, DEPTH, MOST = 32768, 16, 64


def row_squares(x: Array) -> Array:
    """The sums of squares of all rows (along the last axis), each added up as by ``total``."""
    wide = x.astype(np.float64).reshape(-1, x.shape[-1])
    sums = np.zeros(len(wide))
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        wide = wide * wide
        for chunk in range(0, wide.shape[1], CHUNK):
            part = np.zeros(len(wide))
            for start in range(chunk, min(chunk + CHUNK, wide.shape[1]), BLOCK):
                block = wide[:, start : min(start + BLOCK, chunk + CHUNK)]
                lanes = np.zeros((len(wide), LANES))
                for i in range(0, block.shape[1], LANES):
                    some = block[:, i : i + LANES]
                    lanes[:, : some.shape[1]] += some
                while lanes.shape[1] > 1:
                    half = lanes.shape[1] // 2
                    lanes = lanes[:, :half] + lanes[:, half:]
                part = part + lanes[:, 0]
            sums = sums + part
    return sums.reshape(x.shape[:-1])


def column_squares(x: Array) -> Array:
    """The sums of squares of all columns of matrices (the last two axes).

    Rows are added one after the other in each tile of rows, and tiles one after the other. A matrix
    has tiles of at least 16 rows and 32768 elements, and 64 of them at most.
    """
    rows, columns = x.shape[-2:]
    height = max(DEPTH, -(-GRAIN // max(columns, 1)), -(-rows // MOST))
    wide = x.astype(np.float64)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        wide = wide * wide
        sums: Array = np.zeros((*x.shape[:-2], columns))
        for tile in range(0, rows, height):
            part = np.zeros_like(sums)
            for i in range(tile, min(tile + height, rows)):
                part = part + wide[..., i, :]
            sums = sums + part
    return sums


def quotient(x: float, y: float) -> float:
    """x / y for an x that is not negative, as IEEE 754 has it for a y of 0."""
    if y != 0.0:
        return x / y
    return math.inf if x > 0 else math.nan
