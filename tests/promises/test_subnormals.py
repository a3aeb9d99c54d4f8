"""Subnormal numbers: none is flushed, none makes a step infinite; what they cost is measured."""

import numpy as np
import pytest
import subnormals
from cases import BEST, CONFIGURATIONS, DTYPES, LEVELS, label

import steepest as st
from steepest.extension.testing import equals_reference
from steepest.kernels import dispatch
from steepest.optimizers import RULES

LAYERS = [(r, a) for r, a in CONFIGURATIONS if RULES[r].needs in ("layer-wise", "global")]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("level", LEVELS)
def test_nothing_is_flushed(level, dtype):
    """The smallest number there is moves a parameter, and is halved to the nearest even one."""
    dispatch.use(level)
    smallest = np.finfo(dtype).smallest_subnormal
    w = np.arange(40).astype(dtype) * smallest
    st.SGD(w, lr=1.0).step(np.full(40, smallest))
    np.testing.assert_array_equal(w, np.arange(-1, 39) * smallest)
    opt = st.SGD({"w": w}, lr=1.0, momentum=0.5)
    opt.step({"w": np.full(40, 3 * smallest)})
    opt.step({"w": np.zeros(40, dtype)})
    np.testing.assert_array_equal(opt.state["w"]["momentum_buffer"], 2 * smallest)


@pytest.mark.parametrize("size", [1e-45, 1e-43, 1e-40, 3e-39])
@pytest.mark.parametrize("rule", [r for r, c in RULES.items() if c.needs != "matrix"])
def test_vanishing_gradients_leave_parameters_finite(rule, size):
    """Beside them a ratio of norms is larger than float32's largest number, and infinity times a
    gradient of 0 is NaN."""
    for lr in (0.01, 1.0):
        w = np.array([[1.0, -2.0, 3.0], [4.0, 5.0, 6.0]], np.float32)
        opt = RULES[rule](w, lr=lr)
        for _ in range(20):
            with np.errstate(under="ignore"):
                opt.step((np.array([[1, 0, -2], [3, 4, 5]]) * size).astype(np.float32))
        assert np.isfinite(w).all()


@pytest.mark.parametrize(
    "arguments", [{"momentum": 0.0}, {}, {"nesterov": True}], ids=["plain", "momentum", "nesterov"]
)
def test_a_large_trust_coefficient_leaves_them_finite(arguments):
    w, g = np.array([100.0, -200.0], np.float32), np.array([0.0, 1e-45], np.float32)
    st.LARS(w, lr=10.0, trust_coefficient=1.0, eps=0.0, **arguments).step(g)
    assert w[0] == 100.0 and np.isfinite(w[1])


def vanishing(rng, n):
    """Gradients and parameters of all sizes, many of both below the normal numbers."""
    return rng.standard_normal(n) * 10.0 ** rng.uniform(-46, 0, n) * (rng.random(n) < 0.8)


def tiny(rng, n):
    """Numbers that are subnormal as float32; the first may be the whole length of the array."""
    x = np.round(rng.standard_normal(n) * 100) * 1e-45
    x[:1] = 1.0 if rng.random() < 0.5 else 1e-44
    return x


@pytest.mark.parametrize("draw", [vanishing, tiny], ids=lambda f: f.__name__)
@pytest.mark.parametrize(("rule", "arguments"), LAYERS, ids=label)
def test_norms_of_subnormal_numbers_have_the_bits_of_the_reference(rule, arguments, draw):
    for level in BEST:
        dispatch.use(level)
        for dtype in DTYPES:
            equals_reference(RULES[rule], arguments, dtype, (7, 331), 3, draw)


@pytest.mark.parametrize("rule", ["adamw", "muon"])
def test_what_a_step_costs_is_measured(rule, capsys):
    """The figures are for a report: how long it took is no matter of a test."""
    found = subnormals.measure(rule, "float32", steps=subnormals.PORTION)
    assert found.normal > 0 and found.worst > 0 and found.state > 0
    if rule == "adamw":
        assert found.subnormal == 16384, "the momentum was to be subnormal"
    assert subnormals.table([found])[-1].startswith(f"| `{rule}` | float32 |")
