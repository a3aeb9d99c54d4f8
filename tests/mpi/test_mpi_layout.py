"""Which rank gets what."""

import numpy as np
import pytest

from steepest.mpi.layout import empty, layout


def arrays(*shapes):
    return [np.zeros(shape, np.float32) for shape in shapes]


SHAPES = [(7, 3), (), (5,), (0, 3), (1, 40), (2, 2, 9), (64,), (1, 1)]


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("step", [1, 2, 3])
def test_the_pieces_are_the_whole(ranks, step):
    params = [np.arange(np.prod(s, dtype=int), dtype=np.float32).reshape(s) for s in SHAPES]
    whole = [i % step > 0 for i in range(len(params))]
    for p, own, kept in zip(params, layout(params, whole, ranks), whole, strict=True):
        assert own and (len(own) == 1 or not kept)
        assert len({piece.rank for piece in own}) == len(own)
        flat = [piece.flat(p) for piece in own]
        assert [a for a, _ in flat] == [0, *(b for _, b in flat[:-1])] and flat[-1][1] == p.size
        for piece, (start, stop) in zip(own, flat, strict=True):
            part = piece.of(p)
            assert part.ndim == p.ndim and part.ravel().tolist() == p.ravel()[start:stop].tolist()
            assert p.size == 0 or np.shares_memory(part, p)


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_what_may_be_cut_fills_all_ranks_alike(ranks):
    params = arrays((1000, 10), (7,), (300, 10), (), (5000,), (20, 10))
    bytes_of = np.zeros(ranks)
    for p, own in zip(params, layout(params, [False] * 6, ranks), strict=True):
        for piece in own:
            bytes_of[piece.rank] += piece.of(p).nbytes
    assert bytes_of.sum() == sum(p.nbytes for p in params)
    assert np.ptp(bytes_of) <= 2 * 40  # of rows, to which it cuts


def test_parameters_of_16_bits_weigh_what_they_are_computed_in():
    params = [np.zeros(30, np.float32), np.zeros(30, np.float16)]
    pieces = layout(params, [False, False], 2)
    assert [[(x.rank, x.start, x.stop) for x in own] for own in pieces] == [
        [(0, 0, 30)], [(1, 0, 30)],
    ]  # fmt: skip


def test_whole_parameters_go_to_those_that_have_least():
    params = arrays((10,), (40,), (30,), (20,))
    pieces = layout(params, [True] * 4, 2)
    assert [own[0].rank for own in pieces] == [0, 0, 1, 1]
    assert all(own[0].whole for own in pieces)


def test_what_may_be_cut_makes_up_for_what_may_not():
    params = arrays((60,), (100,), (40,))
    pieces = layout(params, [True, False, False], 2)
    assert [[(x.rank, x.start, x.stop) for x in own] for own in pieces] == [
        [(0, 0, 60)], [(0, 0, 40), (1, 40, 100)], [(1, 0, 40)],
    ]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_an_empty_part_has_as_many_axes(shape):
    p = np.zeros(shape, np.float32)
    assert empty(p).size == 0 and empty(p).ndim == max(p.ndim, 1) and empty(p).dtype == p.dtype
