"""The parts into which a sweep is cut: every element is in one, parts are alike, and stay so."""

from itertools import pairwise

import numpy as np
import pytest
from cases import same_bits
from hypothesis import given, settings
from hypothesis import strategies as hs

import steepest as st
from steepest.kernels import dispatch, threads
from steepest.kernels.engine import CHUNK_SIZE, LARGE_STEP, Plan
from steepest.memory import arrays

VISIT = 64
"""What a parameter costs besides its elements."""
HUGE_PAGE = (1 << 21) // 4
"""Elements of float32 on it."""

sizes = hs.one_of(
    hs.integers(0, 5 * CHUNK_SIZE),
    hs.integers(0, 1 << 24),
    hs.integers(1 << 26, 1 << 29),
    hs.sampled_from([CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, HUGE_PAGE, 192 * HUGE_PAGE]),
)


def planned(lengths, absent=()):
    """A plan over parameters of so many elements, whose pages nobody touches; some of them have no
    gradient."""
    plan = Plan(dispatch.current, len(lengths), np.zeros((), np.int64))
    params = [np.empty(n, np.float32) for n in lengths]
    for x in params:
        plan.add(0, (x,), np.zeros((), np.int64), 0, arrays.layout((x,), x))
    stale = plan.resolve(params, [None if i in absent else x for i, x in enumerate(params)])
    assert stale is not None
    plan.rows()
    return plan


def ranges(plan, lengths, count):
    """For each part, the ranges of elements (entry, start, stop) that its worker goes over."""
    starts, entries = plan.parts(count)
    found = []
    for (i, start), (last, end) in pairwise(starts):
        own = []
        for k in range(i, min(last + 1, len(entries))):
            size = lengths[entries[k]]
            begin = start if k == i else 0
            stop = min(end, size) if k == last else size
            if begin < stop:
                own.append((entries[k], begin, stop))
        found.append(own)
    return found


@settings(max_examples=300, deadline=None)
@given(
    lengths=hs.lists(sizes, min_size=1, max_size=12),
    count=hs.integers(1, 192),
    absent=hs.sets(hs.integers(0, 11), max_size=6),
)
def test_every_element_is_in_one_part_and_parts_are_alike(lengths, count, absent):
    present = [i for i in range(len(lengths)) if i not in absent]
    parts = ranges(planned(lengths, absent), lengths, count)
    assert len(parts) == count
    met = dict.fromkeys(present, 0)
    for part in parts:
        for entry, start, stop in part:
            assert start == met[entry], "parts are in the order of the elements, without a gap"
            met[entry] = stop
    assert met == {i: lengths[i] for i in present}
    cost = sum(lengths[i] + VISIT for i in present)
    share = cost / count
    for part in parts:  # a cut is at most half a grain from where it would be best
        own = sum(stop - start for _, start, stop in part)
        own += VISIT * sum(1 for _, start, _ in part if not start)
        assert own <= share + max(CHUNK_SIZE, share / 64) + VISIT * (1 + len(part))


@settings(max_examples=100, deadline=None)
@given(lengths=hs.lists(sizes, min_size=1, max_size=6), count=hs.integers(1, 192))
def test_parts_end_at_chunks_and_at_pages_where_they_are_large(lengths, count):
    plan = planned(lengths)
    share = sum(n + VISIT for n in lengths) // count
    grain = CHUNK_SIZE
    while grain < HUGE_PAGE and 128 * grain <= share:
        grain *= 2
    cuts = [start for part in ranges(plan, lengths, count) for _, start, _ in part[:1] if start]
    assert all(cut % grain == 0 for cut in cuts)
    assert plan.parts(count) == plan.parts(count)


def test_large_parts_end_at_huge_pages():
    lengths = [1 << 28, 3 << 27]
    parts = ranges(planned(lengths), lengths, 8)
    cuts = [start for part in parts for _, start, _ in part[:1] if start]
    assert len(cuts) >= 6
    assert all(cut % HUGE_PAGE == 0 for cut in cuts)


def test_parts_of_nothing():
    assert ranges(planned([]), [], 3) == [[], [], []]
    with pytest.raises(ValueError, match="0 parts"):
        planned([1]).parts(0)


def test_the_parts_of_one_entry_are_those_of_a_plan_of_its_own():
    lengths = [100_000, 7, 2_000_000]
    plan = planned(lengths, absent={2})
    for i, n in enumerate(lengths):
        for count in (1, 3, 64):
            starts, entries = plan.parts(count, i)
            assert (starts, entries) == (planned([n]).parts(count)[0], [i])
    with pytest.raises(ValueError, match="entry 3"):
        plan.parts(2, 3)


def test_the_map_depends_on_sizes_alone():
    """Not on what the arrays hold, where they lie, or how often a step was taken."""
    lengths = [100_000, 7, 2_000_000]
    first, second = planned(lengths), planned(lengths)
    assert all(first.parts(n) == second.parts(n) for n in range(1, 193))


@pytest.mark.parametrize("workers", [2, 3, 64])
@pytest.mark.parametrize("size", [1 << 18, LARGE_STEP + 12345])
def test_parts_that_are_taken_in_turn_give_the_same_bits(workers, size):
    rng = np.random.default_rng(size)
    start = rng.standard_normal(size).astype(np.float32)
    gradients = [rng.standard_normal(size).astype(np.float32) for _ in range(3)]

    def stepped(turns):
        """The ends of a run with a clip, and with sums in the rule."""
        w = {"w": start.copy(), "v": start[: size // 3].copy()}
        opt = st.LAMB(w, lr=0.01, clip=st.clip.global_norm(1.0))
        with threads.forced(workers):
            before = threads.team().take_turns(turns, turns)
            try:
                for g in gradients:
                    opt.step({"w": g, "v": g[: size // 3]})
            finally:
                threads.team().take_turns(*before)
        return w["w"], w["v"], opt.digest()

    once, turned = stepped(1), stepped(8)
    same_bits(once[0], turned[0])
    same_bits(once[1], turned[1])
    assert once[2] == turned[2]


def test_workers_say_where_they_are():
    places = threads.team().places(3)
    assert len(places) == 3
    assert all(-1 <= cpu < 10_000 for cpu in places)
