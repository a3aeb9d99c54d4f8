"""What goes between ranks: gradients to the ranks that step with them, and parameters back.

Many arrays go in one message: a round takes a chunk of each rank's arrays, the same number of bytes
of each, packed one after the other. Every rank sends each other rank its part of the gradients. The
receiver adds them in the order of the ranks, so that the sum has the same bits whatever the MPI
library, the size of a message and the network. As many bytes travel as in a reduce-scatter.
Numbers of 16 bits travel as they are stored, and are added as float32.
"""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from steepest.kernels import machine
from steepest.memory import formats
from steepest.memory.arrays import Array
from steepest.mpi.layout import Piece
from steepest.mpi.process_group import ProcessGroup

__all__ = ["BUCKET", "Exchange", "check_bucket"]

BUCKET = 1 << 24
"""Bytes of a message buffer, of which there are two."""

_CHUNK = 1 << 14  # elements that are added up at a time, in cache


def check_bucket(given: Any) -> None:
    """Raises TypeError or ValueError for anything but a number of bytes that MPI can count."""
    if not 8 <= operator.index(given) < 2**31:
        raise ValueError(f"bucket_bytes = {given!r}: expected 8 to 2^31 - 1")


class _Span(NamedTuple):
    """Elements of an array, in C order, and where the piece begins that they are of."""

    number: int
    start: int
    stop: int
    first: int


class _Round(NamedTuple):
    dtype: Any
    computed: Any
    """The type in which numbers of this one are added."""
    spans: list[list[_Span]]
    """What goes to each rank, or comes from it."""
    counts: list[int]
    starts: list[int]


class Exchange:
    """The messages for a list of arrays of which each rank has pieces. Collective."""

    def __init__(
        self,
        ranks: ProcessGroup,
        arrays: Sequence[Array],
        pieces: Sequence[Sequence[Piece]],
        bucket_bytes: int,
    ) -> None:
        self._ranks = ranks
        self._rounds: list[_Round] = []
        for dtype, computed in dict.fromkeys((x.dtype, formats.computed(x)) for x in arrays):
            own: list[list[_Span]] = [[] for _ in range(ranks.size)]
            for i, x in enumerate(arrays):
                for piece in pieces[i] if x.dtype == dtype else ():
                    start, stop = piece.flat(x)
                    own[piece.rank].append(_Span(i, start, stop, start))
            chunk = max(1, bucket_bytes // (ranks.size * dtype.itemsize))
            self._rounds += _rounds(dtype, computed, own, chunk)
        here = ranks.rank
        most = max((sum(r.counts) * r.dtype.itemsize for r in self._rounds), default=0)
        mine = max((r.counts[here] * r.dtype.itemsize for r in self._rounds), default=0)
        self._all = np.zeros(most, np.uint8)  # allocated once: a step must not run out of memory
        self._own = np.zeros(mine * ranks.size, np.uint8)
        sums = [r.counts[here] for r in self._rounds if r.dtype != r.computed]
        self._sums = np.zeros(max(sums, default=0), np.float32)
        self._types = {2: ranks.mpi.INT16_T, 4: ranks.mpi.FLOAT, 8: ranks.mpi.DOUBLE}

    @machine.in_default_mode
    def mean(self, given: Sequence[Array | None], own: Sequence[Array | None]) -> None:
        """Puts the mean over the ranks of the arrays given into this rank's own pieces.

            mean = (((g₀ + g₁) + g₂) + ...) / n

        in the type in which arrays of their format are computed, which is that of the pieces. None
        counts as zeros. An array may be of a format whose numbers that of its place has as well.
        """
        size, here = self._ranks.size, self._ranks.rank
        flat, pieces = [_flat(x) for x in given], [_flat(x) for x in own]
        for r in self._rounds:
            sent = self._all[: sum(r.counts) * r.dtype.itemsize]
            numbers = sent.view(r.dtype)
            at = 0
            for spans in r.spans:
                for number, start, stop, _ in spans:
                    x = flat[number]
                    numbers[at : at + stop - start] = (
                        0 if x is None else formats.encoded(x[start:stop], r.dtype)
                    )
                    at += stop - start
            n, kind = r.counts[here], self._types[r.dtype.itemsize]
            got = self._own[: n * size * r.dtype.itemsize]
            self._ranks.comm.Alltoallv(
                [sent, r.counts, r.starts, kind],
                [got, [n] * size, [n * k for k in range(size)], kind],
            )
            parts = got.view(r.dtype).reshape(size, n)
            total = parts[0] if r.dtype == r.computed else self._sums[:n]
            _mean(parts, total)
            at = 0
            for number, start, stop, first in r.spans[here]:
                pieces[number][start - first : stop - first] = total[at : at + stop - start]
                at += stop - start

    def gather(self, arrays: Sequence[Array]) -> None:
        """Puts what each rank has into the arrays of all: this rank's own pieces of them are
        right, the others are written."""
        here = self._ranks.rank
        flat = [_flat(x) for x in arrays]
        for r in self._rounds:
            n, kind = r.counts[here], self._types[r.dtype.itemsize]
            sent = self._own[: n * r.dtype.itemsize]
            numbers = sent.view(r.dtype)
            at = 0
            for number, start, stop, _ in r.spans[here]:
                numbers[at : at + stop - start] = flat[number][start:stop]
                at += stop - start
            got = self._all[: sum(r.counts) * r.dtype.itemsize]
            self._ranks.comm.Allgatherv([sent, n, kind], [got, r.counts, r.starts, kind])
            numbers = got.view(r.dtype)
            for rank, spans in enumerate(r.spans):
                at = r.starts[rank]
                for number, start, stop, _ in spans if rank != here else ():
                    flat[number][start:stop] = numbers[at : at + stop - start]
                    at += stop - start


def _mean(parts: Array, out: Array) -> None:
    """out ← the mean of the rows, added in their order; out may be the first of them."""
    with np.errstate(all="ignore"):
        for first in range(0, out.size, _CHUNK):
            total = out[first : first + _CHUNK]
            rows = parts[:, first : first + _CHUNK]
            total[...] = formats.decoded(rows[0])
            for row in rows[1:]:
                total += formats.decoded(row)
            total /= len(parts)


def _flat(x: Array | None) -> Any:
    """The elements in C order, to be read and written by slices."""
    if x is None:
        return None
    return x.reshape(-1) if x.flags.c_contiguous else x.flat


def _rounds(dtype: Any, computed: Any, own: Sequence[Sequence[_Span]], chunk: int) -> list[_Round]:
    """Rounds in which every rank has at most a chunk of elements."""
    cut = [_chunks(spans, chunk) for spans in own]
    rounds = []
    for k in range(max(map(len, cut))):
        spans = [chunks[k] if k < len(chunks) else [] for chunks in cut]
        counts = [sum(s.stop - s.start for s in some) for some in spans]
        starts = [sum(counts[:i]) for i in range(len(counts))]
        rounds.append(_Round(dtype, computed, spans, counts, starts))
    return rounds


def _chunks(spans: Sequence[_Span], chunk: int) -> list[list[_Span]]:
    chunks: list[list[_Span]] = []
    room = 0
    for number, start, stop, first in spans:
        while start < stop:
            if not room:
                chunks.append([])
                room = chunk
            n = min(room, stop - start)
            chunks[-1].append(_Span(number, start, start + n, first))
            start += n
            room -= n
    return chunks
