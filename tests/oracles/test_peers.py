"""Gradients in parts: an optimizer that steps some of them uses the norms of all."""

import math
import sys

import numpy as np
import pytest

import steepest as st
from steepest.core.norms import joined


@pytest.mark.parametrize("order", [1.0, 2.0, 3.0, 7.5, math.inf])
def test_joined_norms_are_those_of_the_whole(order):
    """To 4 roundings: a quotient, a power, a root, a product."""
    g = np.random.default_rng(0).normal(size=60) * 10.0 ** np.arange(-30, 30)
    parts = [g[:20], g[20:25], g[25:25], g[25:]]
    norms = np.array([[np.linalg.norm(x, order) if x.size else 0.0] for x in parts])
    np.testing.assert_allclose(joined(norms, order), np.linalg.norm(g, order), rtol=1e-15)


@pytest.mark.parametrize("order", [2.5, 3.0])
def test_joined_norms_have_the_same_bits_whatever_numpy_and_the_processor(order):
    """NumPy's loop for powers has other bits where it uses AVX-512."""
    norms = np.random.default_rng(0).uniform(0.1, 1.0, (3, 300))
    for (a, b, c), found in zip(norms.T.tolist(), joined(norms, order).tolist(), strict=True):
        most = max(a, b, c)
        shares = [math.pow(x / most, order) for x in (a, b, c)]
        total = shares[0] + shares[1] + shares[2]
        assert found == most * math.pow(total, 1.0 / order)


@pytest.mark.parametrize("order", [1.0, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("norm", [0.0, 5e-324, 0.1, 1.7e308, math.inf, math.nan])
def test_the_norm_of_one_part_is_kept(order, norm):
    for place in range(3):
        norms = np.zeros((3, 1))
        norms[place] = norm
        np.testing.assert_array_equal(joined(norms, order), [norm])


def test_a_joined_norm_is_finite_where_all_parts_are():
    norms = np.array([[1.7e308, 1e-320, 1.0, 1.0], [1.7e308, 1e-320, math.inf, math.nan]])
    found = joined(norms, 2.0)
    assert found[0] == sys.float_info.max and 1e-320 < found[1] < 2e-320
    assert found[2] == math.inf and math.isnan(found[3])
    assert joined(norms, 1.0)[1] == 2e-320


class Other:
    """One other, whose gradients have these norms."""

    def __init__(self, *norms, ready=True):
        self.own, self.asked, self.is_ready = norms, 0, ready

    def norms(self, own):
        self.asked += 1
        return np.array([own, self.own])

    def ready(self):
        if not self.is_ready:
            raise RuntimeError("the other is not ready")


def test_a_global_norm_is_that_of_all_parts():
    w = {"a": np.zeros(1), "b": np.zeros(1)}
    opt = st.SGD(w, lr=1.0, clip=st.clip.global_norm(1.0))
    opt._peers = Other(12.0, 0.0, 12.0, 12.0)  # of all; of a; of b; of the part of the clip
    opt.step({"a": np.array([3.0]), "b": np.array([4.0])})
    np.testing.assert_allclose([w["a"][0], w["b"][0]], [-3 / 13, -4 / 13], rtol=1e-6)
    assert (opt.last_norm, opt.last_norms) == (13.0, {"a": 3.0, "b": math.hypot(4, 12)})


@pytest.mark.parametrize("policy", ["skip", "raise"])
def test_what_another_part_has_that_is_not_finite(policy):
    w = np.zeros(1)
    opt = st.SGD(w, lr=1.0, nonfinite=policy)
    opt._peers = Other(math.nan, math.nan)
    if policy == "skip":
        opt.step(np.ones(1))
        assert opt.skipped == 1
    else:
        with pytest.raises(FloatingPointError, match="parameter '0' has an infinite or NaN"):
            opt.step(np.ones(1))
    assert w[0] == 0 and opt.updates == 0


def test_a_norm_that_is_needed_later_is_that_of_all_parts():
    w = np.zeros(1)
    opt = st.SGD(w, lr=1.0, clip=st.clip.previous_norm(1.0))
    for step in (1, 2):
        opt._peers = Other(4.0, 4.0, 4.0)
        opt.step(np.array([3.0]))
        assert opt.clip_history == {opt.clip.key: [5.0]} and opt._peers.asked == 1
        np.testing.assert_allclose(w, -0.6 * step, rtol=1e-6)


@pytest.mark.parametrize("clip", [None, st.clip.norm(1.0)])
@pytest.mark.parametrize("make", [st.AdamW, st.Muon])
def test_nothing_is_changed_before_all_are_ready(clip, make):
    w = np.ones((2, 2))
    opt = make(w, clip=clip)
    state = repr(opt.state_dict())
    opt._peers = Other(*[1.0] * 3, ready=False)
    with pytest.raises(RuntimeError, match="not ready"):
        opt.step(np.ones((2, 2)))
    with pytest.raises(RuntimeError, match="not ready"):
        opt.load_state_dict(make(w, lr=0.5).state_dict())
    assert (w == 1).all() and repr(opt.state_dict()) == state
