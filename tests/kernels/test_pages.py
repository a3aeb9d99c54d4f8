"""Where pages of memory lie, as Linux tells it."""

import sys

import numpy as np
import pytest

import steepest as st
from steepest.kernels import pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
MIB = 1 << 20


def nodes(x, every=1 << 16):
    """The nodes of some pages of an array; skips where the system does not say, as in a container
    that forbids to ask."""
    first = x.ctypes.data
    found = pages.nodes(range(first, first + x.nbytes, every))
    if found is None:
        pytest.skip("the system does not say")
    return found


def test_pages_are_found_where_they_lie():
    found = nodes(np.ones(MIB))
    assert len(found) == 8 * MIB >> 16
    assert min(found) >= 0


def test_pages_that_nobody_has_written_are_nowhere():
    assert min(nodes(np.empty(128 * MIB, np.uint8))) < 0


def test_nothing_is_asked_of_no_pages():
    assert pages.nodes([]) in ([], None)


def test_addresses_without_memory():
    assert nodes(np.ones(MIB))
    found = pages.nodes([0, 4096])
    assert found is None or max(found) < 0


def test_states_are_first_written_by_a_step():
    """And so by the threads whose parts they are, near which the system then puts their pages."""
    w = {"w": np.ones(1 << 24, np.float32)}
    opt = st.AdamW(w)
    states = [x for x in opt.state["w"].values() if x.size > 1]
    before = [nodes(x) for x in states]
    opt.step({"w": np.ones(1 << 24, np.float32)})
    for x, found in zip(states, before, strict=True):
        assert sum(node < 0 for node in found) > 0.9 * len(found)
        assert min(nodes(x)) >= 0
