"""Matrix rules far from 1: a step has its size whatever the gradient's, in either type."""

from functools import partial

import numpy as np
import pytest

import steepest as st
from steepest.matrix import scaled_sums

SHAPES = ((6, 4), (4, 6), (5, 5), (3, 2, 4))
RULES = {
    "muon": st.Muon,
    "normuon": st.NorMuon,
    "soap": st.SOAP,
    "soap, normalized": partial(st.SOAP, normalize_gradient=True, precondition_frequency=1),
    "shampoo": st.Shampoo,
    "shampoo, diagonal": partial(st.Shampoo, max_precondition_dim=4),
    "shampoo, adagrad's size": partial(st.Shampoo, grafting="adagrad", momentum=0.9),
    "psgdkron": st.PSGDKron,
    "galore": partial(st.GaLore, rank=3, update_proj_gap=2),
    "apollo": partial(st.APOLLO, rank=3),
    "apollo, one scale": partial(st.APOLLO, rank=1, scale_type="tensor"),
}


def steps(make, dtype, scales, shape):
    """What each step adds to a parameter, for gradients of these sizes."""
    rng = np.random.default_rng(3)
    w = np.zeros(shape, dtype)
    opt = make({"w": w}, lr=1.0, weight_decay=0.0, nonfinite="raise")
    found = []
    for scale in scales:
        w[...] = 0
        opt.step({"w": (rng.standard_normal(shape) * scale).astype(dtype)})
        found.append(w.astype(np.float64))
    return found


def lengths(found):
    return [float(np.linalg.norm(x)) for x in found]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scale", [1e5, 1e10, 1e15, 1e20, 1e30])
def test_large_gradients_in_single_precision(rule, shape, scale):
    single = steps(RULES[rule], np.float32, [scale] * 5, shape)
    double = steps(RULES[rule], np.float64, [scale] * 5, shape)
    # SOAP's basis is not unique where the gradients span less than the space.
    rtol = 0.5 if "soap" in rule else 1e-3
    np.testing.assert_allclose(lengths(single), lengths(double), rtol=rtol, atol=1e-12)
    if "soap" not in rule:
        np.testing.assert_allclose(single, double, rtol=0, atol=1e-3 * max(lengths(double)))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("scale", [1e160, 1e300])
def test_large_gradients_in_double_precision(rule, scale):
    for shape in SHAPES:
        found = steps(RULES[rule], np.float64, [scale] * 4, shape)
        usual = steps(RULES[rule], np.float64, [1e6] * 4, shape)
        rtol = 0.5 if "soap" in rule else 1e-3
        np.testing.assert_allclose(lengths(found), lengths(usual), rtol=rtol)


@pytest.mark.parametrize("rule", RULES)
def test_one_large_gradient_among_others(rule):
    scales = [1.0, 1e25, 1e25, 1.0, 1e12, *[1.0] * 40]
    single = lengths(steps(RULES[rule], np.float32, scales, (5, 5)))
    double = lengths(steps(RULES[rule], np.float64, scales, (5, 5)))
    np.testing.assert_allclose(single, double, rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("scale", [1e-10, 1e-30, 1e-40])
def test_small_gradients_are_finite(rule, scale):
    for shape in SHAPES:
        found = steps(RULES[rule], np.float32, [scale] * 5, shape)
        assert np.isfinite(found).all()
        assert max(np.abs(x).max() for x in found) < 30


@pytest.mark.parametrize("rule", RULES)
def test_nan_stays_where_it_was_brought(rule):
    """A gradient that is not finite is not mistaken for one out of range."""
    w = np.zeros((5, 5), np.float32)
    opt = RULES[rule]({"w": w}, lr=1.0)
    g = np.ones((5, 5), np.float32)
    g[0, 1] = np.nan
    with np.errstate(all="ignore"):
        opt.step({"w": g})
        opt.step({"w": np.full((5, 5), 1e30, np.float32)})
    for x in opt.state["w"].values():
        assert not scaled_sums.is_wide(x) or not np.isnan(x).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_statistic_is_wide_while_it_has_to_be(dtype):
    half = float(np.finfo(dtype).max) ** 0.5
    ordinary = np.array([1.0, 3.0], dtype)
    mean = {"squares": np.square, "combined": lambda x, y: dtype(0.5) * x + dtype(0.5) * y}
    once = scaled_sums.taken_in(np.zeros(2, dtype), ordinary, **mean)
    assert once.tolist() == [0.5, 4.5] and not scaled_sums.is_wide(once)
    x = scaled_sums.taken_in(once, ordinary * dtype(half) * dtype(4), **mean)
    assert scaled_sums.is_wide(x) and (x < 0).all()
    # The root of a float32 statistic is rounded to float32, as are the 60 steps below.
    np.testing.assert_allclose(scaled_sums.root(x) / dtype(half), [8**0.5, 72**0.5], rtol=1e-6)
    for _ in range(60):
        x = scaled_sums.taken_in(x, np.zeros(2, dtype), **mean)
    assert not scaled_sums.is_wide(x)
    np.testing.assert_allclose(
        scaled_sums.root(x) / dtype(half) * 2.0**30, [8**0.5, 72**0.5], rtol=1e-6
    )
