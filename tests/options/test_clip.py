"""Norms to the last bit, right on extreme values, and clipping that equals PyTorch's."""

import math
import threading
from functools import partial

import numpy as np
import pytest
from cases import DTYPES, LEVELS, brief, reference_hyper, same_bits, use_threads
from faults import interrupted_at
from layouts import SHAPES, laid_out

import steepest as st
from steepest import reference
from steepest.kernels import dispatch
from steepest.kernels.engine import CHUNK_SIZE

SIZES = (0, 1, 31, 32, 33, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 50_021)


def measured(grads, order=2.0):
    """The norms that an optimizer measures, without moving anything."""
    opt = st.SGD([np.zeros_like(g) for g in grads], lr=0.0, clip=st.clip.norm(1.0, order))
    opt.step(grads)
    return opt.last_norm, list(opt.last_norms.values())


ORDERS = (2.0, 1.0, math.inf, 3.0, 0.5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ORDERS)
def test_norms_equal_the_reference_on_every_level_and_thread_count(dtype, order):
    rng = np.random.default_rng(0)
    grads = [(rng.standard_normal(n) * 10.0 ** rng.uniform(-9, 9)).astype(dtype) for n in SIZES]
    if dtype is np.float64 and order != 0.5:  # whose sums would leave double in any scale
        grads += [rng.standard_normal(5000) * 1e-200, rng.standard_normal(70) * 1e190]
    expected = reference.norm(grads, order)
    for level in LEVELS:
        dispatch.use(level)
        for threads in (1, 2, 3, 5):
            use_threads(threads)
            assert measured(grads, order) == expected


EXTREMES = {
    "large": lambda rng, n: rng.uniform(0.1, 1.0, n) * 1e306,
    "squares overflow": lambda rng, n: rng.standard_normal(n) * 1e200,
    "squares underflow": lambda rng, n: rng.standard_normal(n) * 1e-200,
    "subnormal": lambda rng, n: rng.standard_normal(n) * 1e-312,
    "wide": lambda rng, n: 10.0 ** rng.uniform(-300, 150, n),
    "zeros": lambda rng, n: np.zeros(n),
    "plain": lambda rng, n: rng.standard_normal(n),
}


def exact_norm(g, order=2.0):
    """The norm with correctly rounded sums, scaled so that squares stay in range."""
    largest = max(float(np.abs(g).max(initial=0.0)), 5e-324)
    if order == math.inf:
        return largest
    exponent = math.frexp(largest)[1]
    scaled = [math.ldexp(abs(float(x)), -exponent) for x in g]
    if order == 1.0:
        return math.ldexp(math.fsum(scaled), exponent)
    return math.ldexp(math.sqrt(math.fsum(x * x for x in scaled)), exponent)


@pytest.mark.parametrize("kind", EXTREMES)
@pytest.mark.parametrize("n", [1, 100, 9_001])
@pytest.mark.parametrize("order", [2.0, 1.0, math.inf])
def test_norms_are_right_on_extreme_values(kind, n, order):
    g = EXTREMES[kind](np.random.default_rng(n), n)
    if kind == "large" and order == 1.0:
        g /= n
    total, norms = measured([g], order)
    exact = exact_norm(g, order)
    assert math.isfinite(total) and norms == [total]
    # One rounding per square and a tree of additions in double: below 2 units in the last place.
    assert abs(total - exact) <= 2 * math.ulp(exact) or (kind == "zeros" and total == 0)
    assert reference.norm([g], order) == (total, norms)


@pytest.mark.parametrize("order", [2.0, 1.0, math.inf])
def test_every_tensor_has_a_norm_of_its_own_scale(order):
    """Together with squares that overflow, the norms of others keep all their digits."""
    rng = np.random.default_rng(0)
    grads = [rng.standard_normal(700) * scale for scale in (1e200, 1.0, 1e-200, 0.0, 1e-310)]
    total, norms = measured(grads, order)
    for g, norm in zip(grads, norms, strict=True):
        assert abs(norm - (exact := exact_norm(g, order))) <= 2 * math.ulp(exact) or not g.any()
    exact = exact_norm(np.concatenate(grads), order)
    assert abs(total - exact) <= 2 * math.ulp(exact)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [1e38, 1.7e308])
def test_finite_gradients_never_have_an_infinite_norm(order, size):
    g = np.full(100, size)
    total, norms = measured([g, g], order)
    assert total == reference.norm([g, g], order)[0]
    assert size <= norms[0] <= total < math.inf
    w = np.zeros(100)
    st.SGD(w, lr=1.0, clip=st.clip.global_norm(1.0, order)).step(g)
    assert np.isfinite(w).all() and (w < 0).all()


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
                "value": {"clip": st.clip.value(0.7)},
            }[kind]
            reference.step("adamw", p, grads[i], states[i], t, **hyper, **around)
    for p, twin in zip(params, twins, strict=True):
        same_bits(p, twin)


def clipped(clip, grads):
    """What clipping makes of gradients: with lr = 1, the step downwards from 0."""
    params = [np.zeros_like(g) for g in grads]
    st.SGD(params, lr=1.0, clip=clip).step(grads)
    return [-p for p in params]


@pytest.mark.torch
@pytest.mark.parametrize("limit", [0.03, 1.0, 100.0])
@pytest.mark.parametrize("order", [2.0, 1.0, math.inf, 3.0])
def test_clipping_equals_torch(limit, order):
    """Float64; the norms are summed in another order, hence rtol 1e-14."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    grads = [rng.standard_normal(n) for n in (5, 700, 1)]
    utils = torch.nn.utils
    for ours, theirs in (
        (st.clip.global_norm(limit, order), lambda ps: utils.clip_grad_norm_(ps, limit, order)),
        (
            st.clip.norm(limit, order),
            lambda ps: [utils.clip_grad_norm_([p], limit, order) for p in ps],
        ),
        (st.clip.value(limit), lambda ps: utils.clip_grad_value_(ps, limit)),
    ):
        twins = [torch.nn.Parameter(torch.zeros(g.shape, dtype=torch.float64)) for g in grads]
        for p, g in zip(twins, grads, strict=True):
            p.grad = torch.from_numpy(g.copy())
        theirs(twins)
        for g, twin in zip(clipped(ours, grads), twins, strict=True):
            np.testing.assert_allclose(g, twin.grad.numpy(), rtol=1e-14)


@pytest.mark.torch
@pytest.mark.parametrize("shape", [(7,), (5, 9), (3, 4, 5)])
def test_adaptive_clipping_equals_optax(shape):
    """In float32, optax's; it takes the last axis for the units of matrices."""
    optax = pytest.importorskip("optax")
    rng = np.random.default_rng(0)
    p, g = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    axis = -1
    if len(shape) == 3:
        p, g, axis = p[None], g[None], -1
    clip = optax.adaptive_grad_clip(0.3)
    expected, _ = clip.update(g, clip.init(p), p)
    w = p.copy()
    st.SGD(w, lr=1.0, clip=st.clip.adaptive(0.3, axis=axis)).step(g)
    np.testing.assert_allclose(p - w, expected, rtol=1e-4, atol=1e-6)  # p - (p - g) cancels


CLIPPED_AT = list(zip(LEVELS, (3, 1, 2), strict=False))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", brief([0, -1, 1, None], [0, None]))
@pytest.mark.parametrize("kind", brief(["C", "F", "reversed", "strided"], ["C", "strided"]))
@pytest.mark.parametrize(("level", "threads"), brief(CLIPPED_AT, CLIPPED_AT[-1:]))
def test_adaptive_clipping_equals_the_reference(dtype, axis, kind, level, threads):
    rng = np.random.default_rng(3)
    shapes = [s for s in SHAPES if axis is None or len(s) < 2 or axis < len(s)]
    start = [rng.standard_normal(s).astype(dtype) * 10.0 ** rng.integers(-5, 3) for s in shapes]
    grads = [[np.asarray(rng.standard_normal(s), dtype) for s in shapes] for _ in range(3)]
    dispatch.use(level)
    use_threads(threads)
    params = [laid_out(x.astype(dtype), kind) for x in start]
    twins = [p.copy() for p in params]
    clip = (st.clip.adaptive(0.2, eps=1e-2, axis=axis), st.clip.value(0.5))
    opt = st.Adam(params, lr=0.1, clip=clip, maximize=True)
    states = [{k: x.copy() for k, x in s.items()} for s in opt.state.values()]
    hyper = reference_hyper(opt)
    for t, gs in enumerate(grads, 1):
        opt.step([laid_out(g, kind) if t > 1 else g for g in gs])
        for p, g, state in zip(twins, gs, states, strict=True):
            reference.step("adam", p, g, state, t, **hyper)
    for p, twin in zip(params, twins, strict=True):
        same_bits(p, twin, f"{p.shape} {level} {threads}")


def test_adaptive_clipping_outside_the_range_of_squares():
    p, g = np.full((2, 40), 1e-170), np.full((2, 40), 1e100)
    p[1] = 1e160
    w = p.copy()
    st.SGD(w, lr=1.0, clip=st.clip.adaptive(0.1, eps=1e-165)).step(g)
    np.testing.assert_allclose(p[0] - w[0], 0.1 * 1e-165 / math.sqrt(40), rtol=1e-4)
    assert (p[1] == w[1]).all()  # 1e99, the limit, is far below one unit of 1e160


def test_an_axis_that_a_parameter_has_not_is_refused():
    with pytest.raises(ValueError, match=r"parameter 'w': axis = 2: an array of shape \(3, 4\)"):
        st.SGD({"w": np.zeros((3, 4))}, clip=st.clip.adaptive(axis=2))


def test_groups_are_clipped_by_their_own_norm():
    rng = np.random.default_rng(0)
    grads = [[rng.standard_normal(5), rng.standard_normal(3)], [rng.standard_normal(4) * 1e-3]]
    groups = [{"params": [np.zeros_like(g) for g in gs]} for gs in grads]
    opt = st.SGD(groups, lr=1.0, clip=st.clip.group_norm(0.1, 1.0))
    opt.step(grads)
    norm = sum(np.abs(g).sum() for g in grads[0])
    for group, gs, factor in zip(groups, grads, (0.1 / norm, 1.0), strict=True):
        for p, g in zip(group["params"], gs, strict=True):
            np.testing.assert_allclose(p, -factor * g, rtol=1e-5)  # the guard of 1e-6


def test_groups_with_other_clips_are_measured_by_themselves():
    rng = np.random.default_rng(0)
    grads = [rng.standard_normal(n) for n in (5, 4, 3)]
    params = [np.zeros_like(g) for g in grads]
    shared = st.clip.global_norm(0.5)
    groups = [
        {"params": params[0]},
        {"params": params[1], "clip": st.clip.global_norm(0.25, math.inf)},
        {"params": params[2], "clip": st.clip.global_norm(0.5)},
    ]
    opt = st.SGD(groups, lr=1.0, clip=shared)
    opt.step(grads)
    norm = math.hypot(*grads[0], *grads[2])
    np.testing.assert_allclose(params[0], -grads[0] * 0.5 / norm, rtol=1e-5)
    np.testing.assert_allclose(params[2], -grads[2] * 0.5 / norm, rtol=1e-5)
    np.testing.assert_allclose(params[1], -grads[1] * 0.25 / np.abs(grads[1]).max(), rtol=1e-5)
    assert opt.last_norm == reference.norm(grads)[0]
    opt.param_groups[1]["clip"] = None
    params[1][...] = 0
    opt.step(grads)
    np.testing.assert_array_equal(params[1], -grads[1])


def test_a_limit_may_be_a_schedule():
    g = np.array([3.0, 4.0])
    for make in (st.clip.norm, st.clip.global_norm, st.clip.group_norm, st.clip.value):
        w, twin = np.zeros(2), np.zeros(2)
        opt = st.SGD(w, clip=make(lambda t: 1.0 / (t + 1)))
        for t in range(3):
            opt.step(g)
            st.SGD(twin, clip=make(1.0 / (t + 1))).step(g)
        same_bits(w, twin)
    opt = st.SGD(w, clip=st.clip.norm(lambda t: -1.0))
    with pytest.raises(ValueError, match=r"norm: max_norm = -1\.0: expected a number greater"):
        opt.step(g)


# Clips with a memory


@pytest.mark.parametrize("q", [0.0, 10.0, 50.0, 73.0, 100.0])
@pytest.mark.parametrize("window", [1, 4, 50])
def test_the_percentile_is_numpys(q, window):
    rng = np.random.default_rng(0)
    w = np.zeros(6)
    opt = st.SGD(w, lr=1.0, clip=st.clip.percentile(q, window))
    norms = []
    for _ in range(12):
        g = rng.standard_normal(6) * 10.0 ** rng.uniform(-2, 2)
        before = w.copy()
        opt.step(g)
        norms.append(opt.last_norm)
        limit = np.percentile(norms[-window:], q)
        factor = min(1.0, limit / (norms[-1] + 1e-6))
        np.testing.assert_allclose(before - w, factor * g, rtol=1e-6, atol=1e-9)
    assert list(opt.clip_history.values()) == [norms[-window:]]


def test_the_previous_norm_is_measured_on_the_way():
    """The same norms, to the bit, as a sweep of its own measures."""
    rng = np.random.default_rng(0)
    sizes = (3, 700, 9_001)
    for dtype in DTYPES:
        params = [np.zeros(n, dtype) for n in sizes]
        twins = [np.zeros(n, dtype) for n in sizes]
        opt = st.Adam(params, clip=st.clip.previous_norm(0.7))
        twin = st.Adam(twins, clip=st.clip.global_norm(0.7))
        last = None
        for t in range(5):
            grads = [(rng.standard_normal(n) * (t + 1)).astype(dtype) for n in sizes]
            use_threads(1 + t % 3)
            opt.step(grads)
            total, norms = reference.norm(grads)
            assert opt.last_norm == total and list(opt.last_norms.values()) == norms
            twin.param_groups[0]["clip"] = st.clip.value(math.inf)
            factor = 0.7 / ((last or total) + 1e-6)
            twin.step([g * dtype(factor) for g in grads])
            last = total
        for p, q in zip(params, twins, strict=True):
            same_bits(p, q)


def test_the_previous_norm_beyond_the_range_of_squares():
    w = np.zeros(10)
    opt = st.SGD(w, lr=1.0, clip=st.clip.previous_norm(1.0))
    for size in (1e200, 1e200, 1e-200):
        opt.step(np.full(10, size))
        assert opt.last_norm == pytest.approx(size * math.sqrt(10), rel=1e-15)


def test_a_nonfinite_norm_is_not_remembered():
    w = np.zeros(1)
    for clip in (st.clip.previous_norm(1.0), st.clip.percentile(50)):
        opt = st.SGD(w, clip=clip)
        for g in (2.0, math.nan, math.inf):
            opt.step(np.array([g]))
        assert opt.clip_history[repr(clip)] == [2.0]


def test_a_spike_is_skipped_counted_and_reported():
    rng = np.random.default_rng(0)
    w = np.zeros(50)
    opt = st.Adam(w, clip=(st.clip.skip_spikes(4, window=20), st.clip.global_norm(1.0)))
    for t in range(60):
        before = w.copy(), {k: x.copy() for k, x in opt.state["0"].items()}
        opt.step(rng.standard_normal(50) * (100 if t in (5, 30, 55) else 1))
        left = t in (30, 55)  # at 5 too few norms are known
        assert left == bool((w == before[0]).all())
        assert left == bool(opt.state["0"]["step"] == before[1]["step"])
    assert opt.skipped == 2 and opt.updates == 58
    assert opt.last_skip.startswith("the norm ") and "standard deviations" in opt.last_skip


def test_a_lasting_change_of_scale_is_not_skipped_for_ever():
    rng = np.random.default_rng(0)
    opt = st.SGD(np.zeros(20), clip=st.clip.skip_spikes(6, window=16))
    for t in range(60):
        opt.step(rng.standard_normal(20) * (1 if t < 20 else 50))
    assert 0 < opt.skipped < 10


@pytest.mark.parametrize(
    "clip",
    [
        st.clip.percentile(30, 5),
        st.clip.previous_norm(0.5),
        (st.clip.skip_spikes(2, 4), st.clip.global_norm(0.5)),
    ],
)
def test_a_memory_is_part_of_the_state(clip):
    rng = np.random.default_rng(0)
    grads = rng.standard_normal((20, 5)) * 10.0 ** rng.uniform(-1, 1, (20, 1))
    whole, part = np.zeros(5), np.zeros(5)
    opt = st.Adam(whole, clip=clip)
    for g in grads:
        opt.step(g)
    first = st.Adam(part, clip=clip)
    for g in grads[:11]:
        first.step(g)
    resumed = st.Adam(part, clip=clip)
    resumed.load_state_dict(first.state_dict())
    for g in grads[11:]:
        resumed.step(g)
    same_bits(part, whole)
    assert resumed.clip_history == opt.clip_history and resumed.skipped == opt.skipped


@pytest.mark.parametrize("make", [st.clip.value, st.clip.norm, st.clip.global_norm])
@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan, True, "1", None])
def test_bad_limits_are_refused(make, limit):
    error = ValueError if type(limit) is float else TypeError
    with pytest.raises(error, match="expected a number greater than 0"):
        make(limit)


def test_norms_by_name_are_readable_afterwards():
    opt = st.SGD({"a": np.zeros(2), "b": np.zeros(1)}, clip=st.clip.norm(1.0))
    opt.step({"a": np.array([3.0, 4.0]), "b": np.array([12.0])})
    assert opt.last_norm == 13.0 and opt.last_norms == {"a": 5.0, "b": 12.0}


# What was wrong once


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("order", ORDERS)
def test_a_nonfinite_element_anywhere_makes_the_norm_so(bad, order):
    """NaN was lost where a later chunk, or a later gradient, was finite."""
    for place in (0, CHUNK_SIZE + 1, 2 * CHUNK_SIZE + 5):
        g = np.ones(3 * CHUNK_SIZE)
        g[place] = bad
        grads = [np.ones(3), g, np.ones(2)]
        total, norms = measured(grads, order)
        np.testing.assert_equal((total, norms), reference.norm(grads, order))
        assert not math.isfinite(total)
        opt = st.SGD([np.zeros_like(x) for x in grads], clip=st.clip.norm(1.0, order),
                     nonfinite="raise")  # fmt: skip
        with pytest.raises(FloatingPointError, match="parameter '1'"):
            opt.step(grads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", [0.001, 0.02, 50.0, 800.0, 3000.0, 1e9, 1e-310, 1e308])
def test_norms_of_orders_far_from_two(order, dtype):
    """The powers of elements below 1 vanished, and roots overflowed."""
    rng = np.random.default_rng(0)
    grads = [rng.standard_normal(n).astype(dtype) for n in (1, 70, 5000)]
    grads += [np.zeros(3, dtype), np.full(2, 1e-25, dtype), np.full(2, 1e25, dtype)]
    total, norms = measured(grads, order)
    assert (total, norms) == reference.norm(grads, order)
    for g, norm in zip(grads, norms, strict=True):
        # At least the largest, but for a rounding of the root; at most all n as large as it.
        most = float(np.abs(g).max())
        assert most * (1 - 1e-15) <= norm < math.inf
        if order >= 1:
            assert norm <= most * g.size ** (1 / order) * (1 + 1e-15)
    assert max(norms) * (1 - 1e-15) <= total < math.inf


def test_parts_of_a_group_are_measured_together():
    """`overrides` and `exclude` split a group; `group_norm` means the group as it was given."""
    rng = np.random.default_rng(0)
    grads = [{k: rng.standard_normal(3) for k in "abc"}, {"d": rng.standard_normal(3)}]
    params = [{k: np.zeros(3) for k in part} for part in grads]
    opt = st.SGD(
        [{"params": part} for part in params], lr=1.0, clip=st.clip.group_norm(0.1),
        overrides={"b": {"weight_decay": 0.1}, "c": {"clip": None}}, exclude=["a"],
    )  # fmt: skip
    assert len(opt.param_groups) == 4
    opt.step(grads)
    for names, part in (("ab", 0), ("d", 1)):
        norm = reference.norm([grads[part][k] for k in names])[0]
        for k in names:
            same_bits(params[part][k], -(0.1 / (norm + 1e-6) * grads[part][k]))
    same_bits(params[0]["c"], -grads[0]["c"])


@pytest.mark.parametrize("order", ORDERS)
def test_the_norm_of_some_gradients_is_that_of_these_alone(order):
    rng = np.random.default_rng(0)
    grads = [rng.standard_normal(n) * s for n, s in ((50, 1e180), (5000, 1.0), (7, 3.0), (9, 0.0))]
    params = [np.zeros_like(g) for g in grads]
    clip = st.clip.global_norm(0.1, order)
    opt = st.SGD([{"params": params[0]}, {"params": params[1:], "clip": clip}], lr=1.0)
    opt.step([grads[0], grads[1:]])
    factor = 0.1 / (reference.norm(grads[1:], order)[0] + 1e-6)
    for p, g in zip(params[1:], grads[1:], strict=True):
        same_bits(p, 0 - factor * g)


def test_the_guard_counts_at_the_limit_too():
    """PyTorch adds its 1e-6 before it compares."""
    for clip in (st.clip.norm(5.0), st.clip.global_norm(5.0), st.clip.previous_norm(5.0)):
        w = np.zeros(2)
        st.SGD(w, lr=1.0, clip=clip).step(np.array([3.0, 4.0]))
        same_bits(w, -(5.0 / (5.0 + 1e-6) * np.array([3.0, 4.0])))


@pytest.mark.parametrize("size", [1e160, 1.7e308])
def test_spikes_among_huge_norms(size):
    opt = st.SGD(np.zeros(1), lr=0.0, clip=st.clip.skip_spikes(2, window=4))
    for g in (size, size / 2, size, size / 3, 1.0):
        opt.step(np.array([g]))
    assert opt.updates + opt.skipped == 5


def test_a_skipped_step_is_no_previous_step():
    """A spike that is left out must not scale the next step down."""
    for clip in (st.clip.previous_norm(1.0), st.clip.percentile(100)):
        opt = st.SGD(np.zeros(1), clip=(st.clip.skip_spikes(window=2), clip))
        for g in (1.0, 1.0, 1e9):
            opt.step(np.array([g]))
        assert opt.skipped == 1 and 1e9 not in opt.clip_history[repr(clip)]
        assert 1e9 in opt.clip_history[repr(st.clip.skip_spikes(window=2))]
    opt = st.SGD([np.zeros(1), np.zeros(1)], nonfinite="skip",
                 overrides={"0": {"clip": st.clip.percentile()}})  # fmt: skip
    opt.step([np.ones(1), np.array([math.nan])])
    assert opt.skipped == 1 and opt.clip_history == {}


def test_an_interrupt_while_a_clip_was_shown_does_not_change_what_its_history_is_called():
    """A dataclass's `repr` marks what it is in the middle of; Ctrl-C may leave the mark."""
    clip = st.clip.percentile(50, window=4)
    cells = [cell.cell_contents for cell in type(clip).__repr__.__closure__]
    running = next(x for x in cells if isinstance(x, set))
    running.add((id(clip), threading.get_ident()))
    try:
        assert repr(clip) == "..."
        opt = st.SGD(np.zeros(1), clip=clip)
        opt.step(np.array([3.0]))
    finally:
        running.clear()
    assert opt.clip_history == {"percentile(q=50.0, window=4)": [3.0]}


@pytest.mark.parametrize(
    "clip", [st.clip.percentile(50), st.clip.previous_norm(1.0), st.clip.skip_spikes()]
)
def test_a_refused_step_leaves_no_history(clip):
    opt = st.SGD(np.zeros(2), clip=clip)
    for wrong in (np.ones(3), [np.ones(2)], np.ones(2, np.int32)):
        with pytest.raises((TypeError, ValueError)):
            opt.step(wrong)
    assert opt.clip_history == opt.state_dict()["clip_history"] == {}


@pytest.mark.parametrize(
    "change",
    [
        lambda opt: opt.load_state_dict(opt.state_dict()),
        lambda opt: opt.add_param_group({"params": {"more": np.ones(1)}}),
    ],
    ids=["load_state_dict", "add_param_group"],
)
@pytest.mark.parametrize("where", ["lr", "clip", "skip_spikes", "l1"])
def test_a_schedule_that_changes_the_optimizer_in_a_step_is_refused(change, where):
    turns = []

    def schedule(t):
        if turns:
            change(opt)
        return 1.0

    options = {
        "lr": {"lr": schedule},
        "clip": {"clip": st.clip.percentile(schedule)},
        "skip_spikes": {"clip": st.clip.skip_spikes(schedule, window=1)},
        "l1": {"regularize": st.regularize.l1(schedule)},
    }
    w = np.ones(2)
    opt = st.SGD({"w": w}, **{"lr": 0.1} | options[where])
    opt.step({"w": np.ones(2)})
    before = w.copy(), opt.state_dict()
    turns.append(1)
    with pytest.raises(RuntimeError, match="or this one further up, is inside step"):
        opt.step({"w": np.ones(2)})
    np.testing.assert_equal((w, opt.state_dict()), before)


def test_histories_have_the_same_name_in_every_process():
    """The repr of a function has an address."""
    clips = [st.clip.percentile(lambda t: 50.0), st.clip.percentile(lambda t: 60.0)]
    opt = st.SGD([{"params": np.zeros(1), "clip": c} for c in clips])
    opt.step([np.ones(1), np.full(1, 2.0)])
    name = repr(clips[0]).split(" at 0x")[0] + ">, window=100)"
    assert opt.clip_history == {name: [1.0], f"{name} (2)": [2.0]}


@pytest.mark.parametrize(
    "history", [None, [1.0], {"a": 3}, {"a": ["x"]}, {"a": [-1e-6]}, {"a": [math.nan]}]
)
def test_bad_histories_are_refused(history):
    opt = st.SGD(np.zeros(1), clip=st.clip.previous_norm(1.0))
    opt.step(np.ones(1))
    state, before = opt.state_dict(), dict(opt.clip_history)
    with pytest.raises((TypeError, ValueError), match="clip_history"):
        opt.load_state_dict(state | {"clip_history": history})
    assert opt.clip_history == before


def test_an_axis_chosen_later_is_refused_by_name():
    opt = st.SGD({"w": np.zeros((3, 4))})
    opt.step({"w": np.ones((3, 4))})
    opt.param_groups[0]["clip"] = st.clip.adaptive(axis=2)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"parameter 'w': axis = 2"):
            opt.step({"w": np.ones((3, 4))})
    with pytest.raises(ValueError, match=r"parameter 'w': axis = 2"):
        opt.load_state_dict(opt.state_dict())
    opt.param_groups[0]["clip"] = None
    opt.step({"w": np.ones((3, 4))})
    assert opt.updates == 2


@pytest.mark.parametrize("p", [1.0, 2.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_norm_before_adaptive_clipping(p, dtype):
    """The norms of units are those of the gradient times the factor, not of a rounded product."""
    rng = np.random.default_rng(0)
    w, g = (rng.standard_normal((60, 9)).astype(dtype) for _ in range(2))
    twin = w.copy()
    opt = st.SGD(w, lr=1.0, clip=(st.clip.global_norm(0.3, p), st.clip.adaptive(0.01)))
    opt.step(g)
    factor = 0.3 / (reference.norm([g], p)[0] + 1e-6)
    reference.step("sgd", twin, g, {}, 1, **reference_hyper(opt), factor=factor)
    same_bits(w, twin)


def test_a_schedule_that_raises_changes_nothing():
    def limit(t):
        if t == 1 and trouble:
            raise RuntimeError("no limit today")
        return 1.0

    c = st.clip
    spikes = partial(c.skip_spikes, window=1)
    for make in (c.norm, c.global_norm, c.previous_norm, c.value, c.adaptive, c.percentile, spikes):
        trouble = [1]
        w = np.ones(3)
        opt = st.Adam(w, clip=make(limit))
        opt.step(np.full(3, 0.1))
        before = w.copy(), opt.state_dict(), dict(opt.clip_history)
        with pytest.raises(RuntimeError, match="no limit"):
            opt.step(np.full(3, 0.1))
        after = w.copy(), opt.state_dict(), dict(opt.clip_history)
        np.testing.assert_equal(after, before)
        trouble.clear()
        opt.step(np.full(3, 0.1))
        assert opt.updates == 2


HISTORIES = [st.clip.previous_norm(0.5), st.clip.percentile(50)]


@pytest.mark.parametrize("clip", brief(HISTORIES, HISTORIES[:1]))
@pytest.mark.parametrize("change", brief([{}, {"ema": 0.5}, {"clip": st.clip.adaptive()}], [{}]))
def test_ctrl_c_at_any_line_leaves_the_old_or_the_new(clip, change):
    """Also between the step and what its clip remembers; the next step is right in any case."""
    finished, n = False, 1
    while not finished:
        w = np.ones((3, 2))
        opt = st.Adam(w, clip=clip)
        twin = st.Adam(np.ones((3, 2)), clip=clip)
        for t in (1.0, 2.0):
            opt.step(np.full((3, 2), t))
            twin.step(np.full((3, 2), t))
        opt.param_groups[0].update(change)
        twin.param_groups[0].update(change)
        finished = not interrupted_at(n, lambda opt=opt: opt.step(np.full((3, 2), 3.0)))
        if opt.updates == 3:
            twin.step(np.full((3, 2), 3.0))
        for g in (4.0, 5.0):
            same_bits(w, twin.param_groups[0]["params"][0])
            kept = {k: x for k, x in opt.clip_history.items() if x}
            assert kept == {k: x for k, x in twin.clip_history.items() if x}
            opt.step(np.full((3, 2), g))
            twin.step(np.full((3, 2), g))
        np.testing.assert_equal(opt.state_dict(), twin.state_dict())
        n += 1
    assert n > 20


def test_a_clip_that_comes_later_begins_with_the_norm_of_its_first_step():
    """Found by a mutant: the other clip, which has a norm to go by, is not enough."""
    a, b = np.zeros(2), np.zeros(2)
    opt = st.SGD({"a": a}, lr=1.0, clip=st.clip.previous_norm(1.0))
    opt.step({"a": np.array([3.0, 4.0])})
    opt.add_param_group({"params": {"b": b}, "clip": st.clip.previous_norm(0.5)})
    opt.step([{"a": np.zeros(2)}, {"b": np.array([6.0, 8.0])}])
    np.testing.assert_array_equal(b, -(0.5 / (10.0 + 1e-6)) * np.array([6.0, 8.0]))
