"""Penalties: to the last bit as the reference, and what each of them is for."""

import math

import numpy as np
import pytest
from cases import (
    BY_RULE,
    DTYPES,
    LEVELS,
    brief,
    label,
    reference_hyper,
    same_bits,
    use_threads,
)  # fmt: skip
from layouts import SHAPES, laid_out

import steepest as st
from steepest import reference
from steepest.extension.testing import reference_step, shared_numbers
from steepest.kernels import dispatch
from steepest.optimizers import RULES
from steepest.options import regularize

R = st.regularize

EACH = [
    R.l1(0.03),
    R.l1(0.3, proximal=True),
    R.l2(0.2),
    R.decoupled(0.4),
    R.elastic_net(0.3, 0.25),
    R.elastic_net(0.7, 0.4, proximal=True),
    R.toward_initial(0.3),
    R.toward_initial(0.3, decoupled=True),
    R.group_lasso(0.2),
    R.group_lasso(0.2, axis=-1),
    R.group_lasso(0.2, axis=None),
    R.max_norm(0.7),
    R.max_norm(0.7, axis=-1),
    R.max_norm(0.7, axis=None),
    R.non_negative(),
    R.box(-0.3, 0.6),
    R.unit_norm(),
    R.unit_norm(axis=-1),
    R.unit_norm(axis=None),
    R.simplex(),
    R.simplex(2.5, axis=-1),
    R.simplex(1e-3, axis=None),
]
ALL = (
    R.l1(0.01), R.l1(0.02, proximal=True), R.l2(0.03), R.decoupled(0.04), R.elastic_net(0.05),
    R.toward_initial(0.06), R.toward_initial(0.07, decoupled=True), R.group_lasso(0.01, axis=-1),
    R.group_lasso(0.02), R.max_norm(2.0), R.max_norm(3.0, axis=None), R.box(-2.0, 2.0),
)  # fmt: skip
PROJECTIONS = [
    R.non_negative(), R.box(-0.5, math.inf), R.unit_norm(), R.unit_norm(None), R.simplex(),
    R.simplex(axis=None),
]  # fmt: skip


def run(rule, arguments, penalties, dtype, kind="C", shapes=SHAPES, steps=3, **options):
    """Steps parameters of all shapes, and each by the reference; compares the bits."""
    rng = np.random.default_rng(1)
    start = [np.asarray(rng.standard_normal(s), dtype) for s in shapes]
    params = [laid_out(x, kind) for x in start]
    twins = [x.copy() for x in start]
    opt = RULES[rule](params, **arguments, regularize=penalties, **options)
    states = [{k: x.copy() for k, x in s.items()} for s in opt.state.values()]
    hyper, shared = reference_hyper(opt), shared_numbers(opt)
    for t in range(1, steps + 1):
        grads = [np.asarray(rng.standard_normal(s), dtype) for s in shapes]
        opt.step([laid_out(g, kind) for g in grads])
        reference_step(opt, twins, grads, states, t, shared, **hyper)
    for p, twin, own, state in zip(params, twins, opt.state.values(), states, strict=True):
        same_bits(p, twin, f"{rule} {penalties} {p.shape}")
        for key in own.keys() - {"step"}:
            same_bits(own[key], state[key], f"state {key}")


@pytest.mark.parametrize("penalty", brief(EACH, EACH[::2]), ids=repr)
@pytest.mark.parametrize("dtype", brief(DTYPES, DTYPES[:1]), ids=label)
def test_each_equals_the_reference_on_every_level_layout_and_thread_count(penalty, dtype):
    for i, kind in enumerate(("C", "F", "reversed", "strided")):
        dispatch.use(LEVELS[i % len(LEVELS)])
        use_threads(1 + i % 3)
        run("sgd", {"lr": 0.1, "momentum": 0.9}, penalty, dtype, kind, ema=0.5)


@pytest.mark.parametrize(("rule", "arguments"), BY_RULE, ids=label)
def test_all_together_around_every_rule(rule, arguments):
    for dtype in DTYPES:
        run(rule, arguments, ALL, dtype, shapes=((), (0, 5), (30, 25), (5, 3, 7)), l1=0.01, ema=0.9)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.0, 1e300, 1e-300])
def test_special_values(value):
    for dtype in DTYPES:
        if dtype is np.float32 and abs(value) > 1e38 and math.isfinite(value):
            continue
        p = np.ones((4, 5), dtype)
        p[1, 2] = value
        p[2] = 0
        twin = p.copy()
        opt = st.SGD(p, lr=0.1, regularize=ALL)
        state = {"initial": p.copy()}
        with np.errstate(all="ignore"):
            opt.step(np.zeros_like(p))
            reference.step("sgd", twin, np.zeros_like(p), state, 1, **reference_hyper(opt))
        same_bits(p, twin)
        assert np.isfinite(p[3]).all()


@pytest.mark.parametrize("penalty", PROJECTIONS, ids=repr)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.0, 1e300, 1e-310, 1e-40])
def test_special_values_are_projected_as_by_the_reference(penalty, value):
    for dtype in DTYPES:
        if dtype is np.float32 and 1e38 < abs(value) < math.inf:
            continue
        p = np.full((5, 4), value, dtype)
        p[0] = -0.0
        p[1] = 0.25
        p[2, 1:] = -1.0
        p[3, 1:] = value * 0.5
        twin = p.copy()
        opt = st.SGD(p, lr=0.0, regularize=penalty)
        with np.errstate(all="ignore"):
            opt.step(np.zeros_like(p))
            reference.step("sgd", twin, np.zeros_like(p), {}, 1, **reference_hyper(opt))
        same_bits(p, twin)


def test_weights_may_be_schedules():
    def weight(t):
        return 0.3 / (t + 1)

    rng = np.random.default_rng(0)
    grads = rng.standard_normal((5, 3, 4))
    w, twin = np.ones((3, 4)), np.ones((3, 4))
    opt = st.Adam(w, lr=0.1, regularize=[R.group_lasso(weight), R.l1(weight, proximal=True)])
    fixed = st.Adam(twin, lr=0.1, regularize=[R.group_lasso(0.3), R.l1(0.3, proximal=True)])
    for t, g in enumerate(grads):
        fixed.param_groups[0]["regularize"] = (
            R.group_lasso(weight(t)), R.l1(weight(t), proximal=True)
        )  # fmt: skip
        opt.step(g)
        fixed.step(g)
    same_bits(w, twin)
    opt.param_groups[0]["regularize"] = R.box(-1.0, lambda t: t - 4)
    opt.step(g)
    assert w.max() <= 1.0
    opt.param_groups[0]["regularize"] = R.box(1.5, lambda t: t - 5)
    with pytest.raises(ValueError, match=r"box: low = 1.5, high = 1.0: expected low <= high"):
        opt.step(g)
    opt.param_groups[0]["regularize"] = R.l2(lambda t: math.nan)
    with pytest.raises(
        ValueError, match="l2: weight = nan: expected a finite number of at least 0"
    ):
        opt.step(g)


def test_weight_decay_has_penalties_of_the_same_bits():
    rng = np.random.default_rng(0)
    for mode, make in (("l2", R.l2), ("decoupled", R.decoupled)):
        w = rng.standard_normal(100)
        twin = w.copy()
        for _ in range(3):
            g = rng.standard_normal(100)
            st.Adam(w, lr=0.1, weight_decay=0.3, decay_mode=mode).step(g)
            st.Adam(twin, lr=0.1, regularize=make(0.3)).step(g)
        same_bits(w, twin)


# What they are for


def descend(penalty, steps=4000, lr=0.02):
    """Least squares with five of ten coefficients 0; the design is well conditioned."""
    rng = np.random.default_rng(0)
    x = np.linalg.qr(rng.standard_normal((60, 10)))[0] * math.sqrt(60)
    true = np.array([3.0, -2.0, 1.0, 0.5, -0.4, 0, 0, 0, 0, 0])
    y = x @ true + 0.1 * rng.standard_normal(60)
    w = np.zeros(10)
    opt = st.SGD(w, lr=lr, regularize=penalty)
    for _ in range(steps):
        opt.step(x.T @ (x @ w - y) / 60)
    return w, x, y


def test_proximal_l1_finds_the_lasso():
    """With xᵀx = n, the lasso is the soft threshold of least squares: zeros are exact."""
    w, x, y = descend(R.l1(0.2, proximal=True))
    free = x.T @ y / 60
    np.testing.assert_allclose(w, np.sign(free) * np.maximum(np.abs(free) - 0.2, 0), atol=1e-12)
    assert (w[5:] == 0).all()


def test_the_subgradient_makes_no_exact_zeros():
    w, _, _ = descend(R.l1(0.2))
    assert (w != 0).all() and np.abs(w[5:]).max() < 0.01  # lr * weight


def test_the_proximal_elastic_net_is_scikit_learns():
    linear_model = pytest.importorskip("sklearn.linear_model")
    w, x, y = descend(R.elastic_net(0.3, 0.6, proximal=True))
    model = linear_model.ElasticNet(alpha=0.3, l1_ratio=0.6, fit_intercept=False, tol=1e-12)
    np.testing.assert_allclose(w, model.fit(x, y).coef_, atol=1e-9)  # its tolerance


def test_the_group_lasso_makes_whole_rows_zero():
    rng = np.random.default_rng(0)
    x = np.linalg.qr(rng.standard_normal((80, 6)))[0] * math.sqrt(80)
    true = np.zeros((6, 3))
    true[:2] = rng.standard_normal((2, 3)) * 3
    y = x @ true + 0.05 * rng.standard_normal((80, 3))
    w = np.zeros((6, 3))
    opt = st.SGD(w, lr=0.05, regularize=R.group_lasso(0.3))
    for _ in range(2000):
        opt.step(x.T @ (x @ w - y) / 80)
    free = x.T @ y / 80
    length = np.linalg.norm(free, axis=1, keepdims=True)
    expected = free * np.maximum(0, 1 - 0.3 * math.sqrt(3) / length)
    np.testing.assert_allclose(w, expected, atol=1e-12)
    assert (w[2:] == 0).all() and (w[:2] != 0).all()


@pytest.mark.parametrize("axis", [0, 1, -1, None])
def test_max_norm_holds_the_norms(axis):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((7, 30))
    opt = st.AdamW(w, lr=0.3, regularize=R.max_norm(2.5, axis))
    for _ in range(20):
        opt.step(rng.standard_normal(w.shape))
        other = None if axis is None else 1 - axis % 2
        # One rounding per element after the division.
        assert (np.linalg.norm(w, axis=other) <= 2.5 * (1 + 4e-16)).all()


def test_max_norm_is_kept_in_the_average_too():
    w = np.array([[3.0, 4.0]])
    opt = st.SGD(w, lr=1.0, ema=0.0, regularize=R.max_norm(1.0))
    opt.step(np.zeros((1, 2)))
    same_bits(opt.state["0"]["ema"], w)


def test_toward_initial_returns_to_where_it_began():
    rng = np.random.default_rng(0)
    start = rng.standard_normal(20)
    for decoupled in (False, True):
        w = start.copy()
        opt = st.SGD(w, lr=0.1, regularize=R.toward_initial(0.5, decoupled))
        w += 1.0
        for _ in range(400):
            opt.step(np.zeros(20))
        np.testing.assert_allclose(w, start, rtol=1e-7)  # 0.95^400 = 1e-9


def test_the_initial_point_is_part_of_the_state():
    rng = np.random.default_rng(0)
    grads = rng.standard_normal((8, 6))
    w, part = np.ones(6), np.ones(6)
    opt = st.Adam(w, regularize=R.toward_initial(1.0))
    for g in grads:
        opt.step(g)
    first = st.Adam(part, regularize=R.toward_initial(1.0))
    for g in grads[:4]:
        first.step(g)
    resumed = st.Adam(part, regularize=R.toward_initial(1.0))
    resumed.load_state_dict(first.state_dict())
    for g in grads[4:]:
        resumed.step(g)
    same_bits(part, w)


@pytest.mark.parametrize("threads", [2, 3])
def test_units_along_different_axes_are_done_one_after_the_other(threads):
    """Rows by one thread and columns by another, at the same time, would be a race."""
    rng = np.random.default_rng(0)
    start = rng.standard_normal((700, 300))
    penalties = (R.group_lasso(5.0, axis=-1), R.group_lasso(5.0), R.max_norm(2.0, axis=-1))
    expected = start.copy()
    use_threads(1)
    st.SGD(expected, lr=0.1, regularize=penalties).step(np.zeros_like(start))
    for _ in range(5):
        w = start.copy()
        use_threads(threads)
        st.SGD(w, lr=0.1, regularize=penalties).step(np.zeros_like(start))
        same_bits(w, expected)


def projected(penalty, x):
    """What a step that moves nothing leaves of x."""
    w = x.copy()
    st.SGD(w, lr=0.0, regularize=penalty).step(np.zeros_like(w))
    return w


@pytest.mark.torch
@pytest.mark.parametrize("n", [1, 2, 9, 5000])
@pytest.mark.parametrize("size", [1e-3, 1.0, 100.0])
def test_projections_are_optaxs(n, size):
    projections = pytest.importorskip("optax.projections")
    import jax

    jax.config.update("jax_enable_x64", True)
    x = np.random.default_rng(n).standard_normal(n) * size
    each = [
        (R.non_negative(), projections.projection_non_negative(x)),
        (R.box(-0.3, 0.7), projections.projection_box(x, -0.3, 0.7)),
        (R.unit_norm(), projections.projection_l2_sphere(x)),
        (R.max_norm(0.4), projections.projection_l2_ball(x, 0.4)),
        (R.simplex(), projections.projection_simplex(x)),
        (R.simplex(2.5), projections.projection_simplex(x, 2.5)),
    ]
    for penalty, expected in each:
        # Sums in another order: theirs runs over all elements, which costs n roundings of them.
        near = {"rtol": 1e-12, "atol": 1e-15 * n * max(size, 1.0)}
        np.testing.assert_allclose(projected(penalty, x), np.asarray(expected), **near)


@pytest.mark.parametrize("total", [1.0, 1e-6, 1e6])
@pytest.mark.parametrize("draw", [
    lambda rng: rng.standard_normal(1000), lambda rng: rng.standard_normal(1000) + 1e9,
    lambda rng: 2.0 ** np.arange(-500, 500), lambda rng: np.zeros(1000),
    lambda rng: rng.choice([0.0, 1.0], 1000),
    lambda rng: -np.cumsum(1.0 / np.arange(1, 1001)),
], ids=["normal", "shifted", "powers", "zeros", "ties", "harmonic"])  # fmt: skip
def test_the_simplex_is_the_nearest_point(total, draw):
    """The conditions of Karush, Kuhn and Tucker: what is above 0 went down by one number, and what
    became 0 was not above that number."""
    x = draw(np.random.default_rng(0))
    p = projected(R.simplex(total), x)
    step = np.spacing(np.abs(x).max())  # which x itself is rounded by
    assert (p >= 0).all() and abs(math.fsum(p) - total) <= 1e-12 * total
    fall = (x - p)[p > 0]
    assert np.ptp(fall) <= 2 * max(step, np.spacing(total))
    assert (x[p == 0] <= fall.max() + 2 * step).all()


def test_a_unit_of_length_one_and_a_small_one():
    for dtype in DTYPES:
        least = np.finfo(dtype).smallest_subnormal
        w = projected(R.unit_norm(), np.array([[0.0, -5e-30], [least, 0], [0, 0]], dtype))
        same_bits(w, np.array([[0, -1], [1, 0], [0, 0]], dtype))


def test_a_matrix_of_distributions():
    """Exponentiated or not: mixture weights by projected gradient."""
    rng = np.random.default_rng(0)
    true = rng.dirichlet(np.ones(5), 4)
    w = np.full((4, 5), 0.2)
    opt = st.SGD(w, lr=0.2, ema=0.5, regularize=R.simplex())
    for _ in range(200):
        opt.step(w - true)
    np.testing.assert_allclose(w, true, atol=1e-14)
    np.testing.assert_allclose(opt.state["0"]["ema"].sum(axis=1), 1.0, rtol=1e-15 * 5)


def test_boxes_one_after_the_other():
    boxes = [(-1.0, 2.6), (0.0, 3.0), (-9.0, 2.0), (0.5, 7.0)]
    for n in range(1, 5):
        w = np.array([-5.0, -0.25, -0.0, 0.0, 0.75, 2.5, 9.0, np.nan])
        twin = w.copy()
        opt = st.SGD(w, lr=0.0, regularize=[R.box(*x) for x in boxes[:n]])
        opt.step(np.zeros(8))
        reference.step("sgd", twin, np.zeros(8), {}, 1, **reference_hyper(opt))
        same_bits(w, twin)


def test_elements_first_then_units():
    """Which for the non-negative is the projection onto both."""
    w = projected((R.unit_norm(), R.non_negative()), np.array([[3.0, 4.0, -12.0]]))
    same_bits(w, np.array([[0.6, 0.8, 0.0]]))


# By group and by name


def network(x):
    return {
        "body": [{"weight": x((3, 4)), "bias": x(4)}, {"weight": x((4, 4)), "bias": x(4)}],
        "norm": {"scale": x(4)},
        "head": {"weight": x((4, 2)), "bias": x(2)},
    }


def leaves(tree):
    return [
        x for part in (tree["body"][0], tree["body"][1], tree["norm"], tree["head"])
        for x in part.values()
    ]  # fmt: skip


def test_vectors_are_excluded_in_one_word():
    params = network(np.ones)
    opt = st.AdamW(
        params, lr=0.1, weight_decay=0.5, l1=0.1, regularize=R.l2(0.3), exclude="vectors"
    )
    opt.step(network(np.zeros))
    for p in leaves(params):
        assert (p == 1).all() if p.ndim < 2 else (p < 0.96).all()
    assert [g["param_names"][0] for g in opt.param_groups] == ["body.0.weight", "body.0.bias"]


def test_patterns_of_names():
    """Equal to one optimizer per part; gradients keep the structure of the parameters."""
    rng = np.random.default_rng(0)
    start = network(rng.standard_normal)
    params = network(np.zeros)
    for p, x in zip(leaves(params), leaves(start), strict=True):
        p[...] = x
    twins = [x.copy() for x in leaves(start)]
    opt = st.AdamW(
        params, lr=0.1, weight_decay=0.5, exclude=["*.bias", "norm.*"],
        overrides={"head.*": {"lr": 0.01, "betas": (0.5, 0.9)}, "*.1.weight": {"ema": 0.5}},
    )  # fmt: skip
    alone = []
    for twin, name in zip(twins, ["w", "b", "w", "b", "b", "hw", "hb"], strict=True):
        head = {"lr": 0.01, "betas": (0.5, 0.9)} if "h" in name else {"lr": 0.1}
        alone.append(st.AdamW(twin, weight_decay=0.5 if "w" in name else 0.0, **head))
    for _ in range(4):
        grads = network(rng.standard_normal)
        opt.step(grads)
        for single, g in zip(alone, leaves(grads), strict=True):
            single.step(g)
    for p, twin in zip(leaves(params), twins, strict=True):
        same_bits(p, twin)
    assert [name for name, s in opt.state.items() if "ema" in s] == ["body.1.weight"]
    assert opt.last_norms.keys() <= opt.state.keys()
    clone = st.AdamW(
        params, lr=0.1, weight_decay=0.5, exclude=["*.bias", "norm.*"],
        overrides={"head.*": {"lr": 0.01, "betas": (0.5, 0.9)}, "*.1.weight": {"ema": 0.5}},
    )  # fmt: skip
    clone.load_state_dict(opt.state_dict())
    assert clone.updates == 4


def test_overrides_in_groups():
    a, b = {"w": np.ones(2), "b": np.ones(2)}, {"w": np.ones(2), "b": np.ones(2)}
    opt = st.SGD(
        [{"params": {"x": a}}, {"params": {"y": b}, "lr": 0.5}], lr=1.0,
        overrides={"*.b": {"lr": 0.25}},
    )  # fmt: skip
    opt.step([{"x": {k: np.ones(2) for k in a}}, {"y": {k: np.ones(2) for k in b}}])
    assert [float(x[0]) for x in (a["w"], a["b"], b["w"], b["b"])] == [0.0, 0.75, 0.5, 0.75]
    assert len(opt.param_groups) == 4


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: R.l1(-1), ValueError, "l1: weight = -1: expected a finite number of at least 0"),
        (lambda: R.l2(math.inf), ValueError, "l2: weight = inf"),
        (lambda: R.l2("1"), TypeError, "l2: weight = '1': expected a finite number"),
        (lambda: R.l1(1, proximal=1), TypeError, "proximal = 1: expected True or False"),
        (lambda: R.elastic_net(1, 1.5), ValueError, r"ratio = 1.5: expected a number in \[0, 1\]"),
        (lambda: R.group_lasso(1, axis=0.5), TypeError, "axis = 0.5: expected the number of an"),
        (lambda: R.max_norm(1, axis=lambda t: 0), TypeError, "expected the number of an axis"),
        (lambda: R.max_norm(-1), ValueError, "max_norm: limit = -1"),
        (lambda: R.box(1, 0), ValueError, "box: low = 1.0, high = 0.0: expected low <= high"),
        (lambda: R.box(math.nan, 0), ValueError, "low = nan: expected a number, which may be inf"),
        (lambda: R.box("0", 1), TypeError, "low = '0': expected a number, which may be infinite"),
        (
            lambda: R.simplex(0),
            ValueError,
            "simplex: total = 0: expected a finite number greater than 0",
        ),
        (lambda: R.unit_norm("rows"), TypeError, "unit_norm: axis = 'rows': expected the number"),
    ],
)
def test_wrong_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_too_many_passes_over_units_are_refused():
    with pytest.raises(ValueError, match=r"use units 9 times \(adaptive, group_lasso, .*at most 8"):
        st.SGD(np.ones(3), clip=st.clip.adaptive(), regularize=[R.group_lasso(0.1)] * 8)


def test_numbers_beyond_double_are_refused():
    with pytest.raises(ValueError, match="expected a finite number of at least 0"):
        R.l2(10**400)


def test_penalties_are_values():
    assert R.l1(1) == R.l1(1.0) and hash(R.l1(1)) == hash(R.l1(1.0)) and R.l1(1) != R.l2(1)
    assert repr(R.group_lasso(0.5)) == "group_lasso(weight=0.5, axis=0)"
    assert list(regularize.PENALTIES) == sorted(regularize.PENALTIES, key=list(R.PENALTIES).index)
