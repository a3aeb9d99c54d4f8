"""Which rank has which part of the parameters.

A parameter that must stay whole goes to the rank with the fewest bytes so far, the largest first.
The others then fill all ranks up to the same number of bytes, in the order given. They are cut
along the first axis that is longer than 1, so that a part is a view with the parameter's axes,
whose elements are consecutive in C order. Bytes are those in the type in which a parameter is
computed, since its states have that type.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steepest.memory import formats
from steepest.memory.arrays import Array

__all__ = ["Piece", "empty", "layout"]


@dataclass(frozen=True)
class Piece:
    """The part of a parameter that a rank has: from one index to another along an axis."""

    rank: int
    axis: int
    start: int
    stop: int
    whole: bool

    def of(self, x: Array) -> Array:
        """The part of an array of the parameter's shape: a view, or the array itself."""
        if self.whole:
            return x
        part: Array = x[(slice(None),) * self.axis + (slice(self.start, self.stop),)]
        return part

    def flat(self, x: Array) -> tuple[int, int]:
        """Where the part begins and ends among the elements of x in C order."""
        if self.whole:
            return 0, x.size
        each = x.size // x.shape[self.axis]
        return self.start * each, self.stop * each


def empty(p: Array) -> Array:
    """An array without elements, for a rank that has no part of p. It has as many axes, because
    rules and options depend on that number."""
    return np.empty((0,) * max(p.ndim, 1), p.dtype)


def layout(params: Sequence[Array], whole: Sequence[bool], ranks: int) -> list[list[Piece]]:
    """The pieces of each parameter, in its order. `whole` says which must not be cut."""
    loads = [0] * ranks
    pieces: list[list[Piece]] = [[] for _ in params]
    cut: list[int] = []
    for i, p in enumerate(params):
        if not whole[i] and p.size > 1 and ranks > 1:
            cut.append(i)
    sizes = [p.size * formats.computed(p).itemsize for p in params]
    kept = sorted(set(range(len(params))) - set(cut), key=lambda i: (-sizes[i], i))
    for i in kept:
        rank = loads.index(min(loads))
        pieces[i].append(_all(params[i], rank))
        loads[rank] += sizes[i]
    level = _level(loads, sum(sizes[i] for i in cut))
    rooms = [max(0.0, level - load) for load in loads]
    rank = 0
    for i in cut:
        p = params[i]
        axis = next(k for k, n in enumerate(p.shape) if n > 1)
        length = p.shape[axis]
        each = sizes[i] / length
        start = 0
        while start < length:
            last = rank == ranks - 1
            count = length - start if last else min(length - start, round(rooms[rank] / each))
            if count > 0:
                whole_one = count == length
                pieces[i].append(
                    _all(p, rank) if whole_one else Piece(rank, axis, start, start + count, False)
                )
                rooms[rank] -= count * each
                start += count
            if start < length:  # what a rank has too much or too little, the next one makes up for
                rooms[rank + 1] += rooms[rank]
                rank += 1
    return pieces


def _all(p: Any, rank: int) -> Piece:
    return Piece(rank, 0, 0, p.shape[0] if p.ndim else 1, True)


def _level(loads: Sequence[int], more: int) -> float:
    """The load of the fullest of the ranks that get a share of `more`, once it is spread evenly."""
    low = sorted(loads)
    for k in range(1, len(low) + 1):
        level = (sum(low[:k]) + more) / k
        if k == len(low) or level <= low[k]:
            return level
    raise ValueError("no ranks")
