"""Norms to the last bit, right on extreme values, and clipping that equals PyTorch's."""

import math

import numpy as np
import pytest
from cases import DTYPES, LEVELS, same_bits, use_threads

import steepest as st
from steepest import reference
from steepest.kernels import dispatch
from steepest.kernels.engine import CHUNK_SIZE

SIZES = (0, 1, 31, 32, 33, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 50_021)


def measured(grads):
    """The norms that an optimizer measures, without moving anything."""
    opt = st.SGD([np.zeros_like(g) for g in grads], lr=0.0, clip=st.clip.norm(1.0))
    opt.step(grads)
    return opt.last_norm, list(opt.last_norms.values())


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_equal_the_reference_on_every_level_and_thread_count(dtype):
    rng = np.random.default_rng(0)
    grads = [(rng.standard_normal(n) * 10.0 ** rng.uniform(-9, 9)).astype(dtype) for n in SIZES]
    expected = reference.norm(grads)
    for level in LEVELS:
        dispatch.use(level)
        for threads in (1, 2, 3, 5):
            use_threads(threads)
            assert measured(grads) == expected


EXTREMES = {
    "large": lambda rng, n: rng.uniform(0.1, 1.0, n) * 1e306,
    "squares overflow": lambda rng, n: rng.standard_normal(n) * 1e200,
    "squares underflow": lambda rng, n: rng.standard_normal(n) * 1e-200,
    "subnormal": lambda rng, n: rng.standard_normal(n) * 1e-312,
    "wide": lambda rng, n: 10.0 ** rng.uniform(-300, 150, n),
    "zeros": lambda rng, n: np.zeros(n),
    "plain": lambda rng, n: rng.standard_normal(n),
}


def exact_norm(g):
    """The norm with correctly rounded sums, scaled so that squares stay in range."""
    largest = max(float(np.abs(g).max(initial=0.0)), 5e-324)
    exponent = math.frexp(largest)[1]
    scaled = [math.ldexp(float(x), -exponent) for x in g]
    return math.ldexp(math.sqrt(math.fsum(x * x for x in scaled)), exponent)


@pytest.mark.parametrize("kind", EXTREMES)
@pytest.mark.parametrize("n", [1, 100, 9_001])
def test_norms_are_right_on_extreme_values(kind, n):
    g = EXTREMES[kind](np.random.default_rng(n), n)
    total, norms = measured([g])
    exact = exact_norm(g)
    assert math.isfinite(total) and norms == [total]
    # One rounding per square and a tree of additions in double: below 2 units in the last place.
    assert abs(total - exact) <= 2 * math.ulp(exact)
    assert reference.norm([g]) == (total, norms)


def test_float32_norms_neither_overflow_nor_underflow():
    for size in (3e38, 1e-45):
        g = np.full(10_000, size, np.float32)
        total, _ = measured([g])
        assert abs(total - 100 * float(g[0])) <= 2 * math.ulp(total)


def test_the_norm_of_a_nonfinite_gradient():
    assert math.isnan(measured([np.array([1.0, np.nan])])[0])
    assert measured([np.array([1.0, -np.inf])])[0] == math.inf


def test_clipping_leaves_small_gradients_alone_to_the_bit():
    rng = np.random.default_rng(0)
    g = rng.standard_normal(1000)
    w, twin = np.zeros(1000), np.zeros(1000)
    st.SGD(w, lr=0.3, clip=st.clip.global_norm(1e6)).step(g)
    st.SGD(twin, lr=0.3).step(g)
    same_bits(w, twin)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["norm", "global_norm", "value"])
def test_clipped_steps_equal_the_reference(dtype, kind):
    rng = np.random.default_rng(1)
    sizes = (3, 700, 9_000)
    params = [rng.standard_normal(n).astype(dtype) for n in sizes]
    twins = [p.copy() for p in params]
    opt = st.AdamW(params, lr=0.1, clip=getattr(st.clip, kind)(0.7))
    states = [{k: x.copy() for k, x in opt.state[str(i)].items()} for i in range(3)]
    hyper = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2,
             "amsgrad": False, "bias_correction": True, "decay_mode": "decoupled"}  # fmt: skip
    for t in range(1, 6):
        grads = [rng.standard_normal(n).astype(dtype) * t * 0.01 for n in sizes]
        opt.step(grads)
        total, norms = reference.norm(grads)
        for i, p in enumerate(twins):
            around = {
                "norm": {"factor": min(1.0, 0.7 / (norms[i] + 1e-6))},
                "global_norm": {"factor": min(1.0, 0.7 / (total + 1e-6))},
                "value": {"clip_value": 0.7},
            }[kind]
            reference.step("adamw", p, grads[i], states[i], t, **hyper, **around)
    for p, twin in zip(params, twins, strict=True):
        same_bits(p, twin)


@pytest.mark.torch
@pytest.mark.parametrize("limit", [0.03, 1.0, 100.0])
def test_clipping_equals_torch(limit):
    """Float64; the norms are summed in another order, hence rtol 1e-14."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    grads = [rng.standard_normal(n) for n in (5, 700, 1)]
    for ours, theirs in (
        (st.clip.global_norm(limit), lambda ps: torch.nn.utils.clip_grad_norm_(ps, limit)),
        (st.clip.value(limit), lambda ps: torch.nn.utils.clip_grad_value_(ps, limit)),
    ):
        params = [np.zeros(g.shape) for g in grads]
        st.SGD(params, lr=1.0, clip=ours).step(grads)
        twins = [torch.nn.Parameter(torch.zeros(g.shape, dtype=torch.float64)) for g in grads]
        for p, g in zip(twins, grads, strict=True):
            p.grad = torch.from_numpy(g.copy())
        theirs(twins)
        for p, twin in zip(params, twins, strict=True):
            np.testing.assert_allclose(p, -twin.grad.numpy(), rtol=1e-14)


@pytest.mark.parametrize("make", [st.clip.value, st.clip.norm, st.clip.global_norm])
@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan, True, "1", None])
def test_bad_limits_are_refused(make, limit):
    with pytest.raises(ValueError, match="expected a number greater than 0"):
        make(limit)


def test_norms_by_name_are_readable_afterwards():
    opt = st.SGD({"a": np.zeros(2), "b": np.zeros(1)}, clip=st.clip.norm(1.0))
    opt.step({"a": np.array([3.0, 4.0]), "b": np.array([12.0])})
    assert opt.last_norm == 13.0 and opt.last_norms == {"a": 5.0, "b": 12.0}
