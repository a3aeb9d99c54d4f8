"""Lookahead and tail averages: others' implementations, and what the options promise."""

import copy
import math
import pickle

import numpy as np
import pytest
from cases import DTYPES, label, reference_hyper, same_bits, use_threads
from layouts import SHAPES, laid_out

import steepest as st
from steepest import reference

A = st.average


def gradients(steps=60, n=17, seed=4):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((steps, n)), rng.standard_normal(n)


def path(make, grads, start):
    p = start.copy()
    opt = make(p)
    points = []
    for g in grads:
        opt.step(g)
        points.append(p.copy())
    return np.array(points), opt


# Bits


@pytest.mark.parametrize("dtype", DTYPES, ids=label)
@pytest.mark.parametrize("penalty", [None, st.regularize.max_norm(0.7)], ids=repr)
def test_equals_the_reference_on_every_layout_and_thread_count(dtype, penalty):
    """With stages of units, the averages come after those: in a sweep of their own."""
    for i, kind in enumerate(("C", "F", "reversed", "strided")):
        use_threads(1 + i % 3)
        rng = np.random.default_rng(1)
        start = [np.asarray(rng.standard_normal(s), dtype) for s in SHAPES]
        params, twins = [laid_out(x, kind) for x in start], [x.copy() for x in start]
        opt = st.Adam(
            params, lr=0.1, lookahead=A.lookahead(2, 0.3), average=A.tail(1, 2), ema=0.5,
            regularize=penalty, decay_mode="proximal", weight_decay=0.2,
        )  # fmt: skip
        states = [{k: x.copy() for k, x in s.items()} for s in opt.state.values()]
        for t in range(1, 6):
            grads = [np.asarray(rng.standard_normal(s), dtype) for s in SHAPES]
            opt.step([laid_out(g, kind) for g in grads])
            for p, g, state in zip(twins, grads, states, strict=True):
                reference.step("adam", p, g, state, t, **reference_hyper(opt))
        for p, twin, own, state in zip(params, twins, opt.state.values(), states, strict=True):
            same_bits(p, twin, str(p.shape))
            for key in own.keys() - {"step"}:
                same_bits(own[key], state[key], key)


def test_all_that_an_optimizer_can_hold_at_once():
    """Four states, four arrays of stages and the factors of units."""
    p = np.ones((3, 4))
    twin = p.copy()
    opt = st.Adan(
        p, lr=0.1, weight_decay=0.1, decay_mode="decoupled_after", l1=0.1, ema=0.9,
        lookahead=A.lookahead(1), average=A.tail(),
        clip=(st.clip.adaptive(0.1), st.clip.value(0.5)),
        regularize=[st.regularize.toward_initial(0.1), st.regularize.l2(0.1),
                    st.regularize.toward_initial(0.1, decoupled=True),
                    st.regularize.l1(0.1, proximal=True), st.regularize.max_norm(1.0)],
    )  # fmt: skip
    state = {k: x.copy() for k, x in opt.state["0"].items()}
    g = np.random.default_rng(0).standard_normal((3, 4))
    opt.step(g)
    reference.step("adan", twin, g, state, 1, **reference_hyper(opt))
    same_bits(p, twin)


# Lookahead


@pytest.mark.torch
def test_lookahead_equals_pytorch_optimizer():
    torch = pytest.importorskip("torch")
    peers = pytest.importorskip("pytorch_optimizer")
    grads, start = gradients()
    p = torch.nn.Parameter(torch.from_numpy(start.copy()))
    inner = torch.optim.AdamW([p], lr=0.1, betas=(0.8, 0.95), weight_decay=0.3)
    peer = peers.Lookahead(inner, k=4, alpha=0.3)
    ours, opt = path(
        lambda p: st.AdamW(
            p, lr=0.1, betas=(0.8, 0.95), weight_decay=0.3, lookahead=A.lookahead(4, 0.3)
        ), grads, start,
    )  # fmt: skip
    for t, g in enumerate(grads):
        p.grad = torch.from_numpy(g.copy())
        peer.step()
        np.testing.assert_allclose(ours[t], p.detach().numpy(), rtol=1e-12, atol=1e-14)
    slow = peer.state[p]["slow_params"].numpy()
    np.testing.assert_allclose(opt.state["0"]["slow"], slow, rtol=1e-12)


@pytest.mark.torch
def test_lookahead_equals_optax():
    jax = pytest.importorskip("jax")
    optax = pytest.importorskip("optax")
    grads, start = gradients()
    ours, opt = path(
        lambda p: st.SGD(p, lr=0.1, momentum=0.9, lookahead=A.lookahead(4, 0.3)), grads, start
    )
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        peer = optax.lookahead(optax.sgd(0.1, momentum=0.9), sync_period=4, slow_step_size=0.3)
        params = optax.LookaheadParams.init_synced(jax.numpy.asarray(start))
        state = peer.init(params)
        for t, g in enumerate(grads):
            updates, state = peer.update(jax.numpy.asarray(g), state, params)
            params = optax.apply_updates(params, updates)
            # p - slow cancels there and is added again: atol for what is nearly 0.
            np.testing.assert_allclose(ours[t], params.fast, rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(opt.state["0"]["slow"], params.slow, rtol=1e-11, atol=1e-13)
    finally:
        jax.config.update("jax_enable_x64", before)


def test_lookahead_with_alpha_one_changes_nothing_and_with_zero_comes_back():
    grads, start = gradients(12)
    plain, _ = path(lambda p: st.SGD(p, lr=0.125), grads, start)
    ones, opt = path(lambda p: st.SGD(p, lr=0.125, lookahead=A.lookahead(3, 1.0)), grads, start)
    # slow + (p - slow) is rounded twice
    np.testing.assert_allclose(ones, plain, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(opt.state["0"]["slow"], ones[-1])
    zeros, opt = path(lambda p: st.SGD(p, lr=0.125, lookahead=A.lookahead(3, 0.0)), grads, start)
    np.testing.assert_array_equal(zeros[2::3], np.tile(start, (4, 1)))


def test_steps_are_those_of_each_parameter():
    a, b = np.zeros(1), np.zeros(1)
    opt = st.SGD([a, b], lr=1.0, lookahead=A.lookahead(2), average=A.tail(1))
    seen = []
    for g in ([-1.0, -1.0], [None, -1.0], [-1.0, -1.0], [-1.0, None]):
        opt.step([None if x is None else np.array([x]) for x in g])
        seen.append((float(a[0]), float(b[0])))
    assert seen == [(1.0, 1.0), (1.0, 1.0), (1.0, 2.0), (2.0, 2.0)]
    assert [float(x[0]) for x in opt.averaged().values()] == [1.5, 1.5]


def test_alpha_may_be_a_schedule():
    grads, start = gradients(10)
    alphas = st.schedules.linear(0.9, 10)
    ours, opt = path(lambda p: st.Adam(p, lookahead=A.lookahead(2, alphas)), grads, start)
    twin, state = start.copy(), {"step": 0}
    h = reference_hyper(opt)
    state = {k: np.zeros(17) for k in ("exp_avg", "exp_avg_sq")} | {"slow": start.copy()}
    for t, g in enumerate(grads):
        fixed = h | {"lookahead": A.lookahead(2, alphas(t))}
        reference.step("adam", twin, g, state, t + 1, **fixed)
        same_bits(ours[t], twin)


def test_lookahead_holds_constraints():
    """A mean of two points of a convex set lies in it."""
    grads, start = gradients()
    ours, opt = path(
        lambda p: st.SGD(
            p, lr=1.0, regularize=st.regularize.max_norm(1.0), lookahead=A.lookahead(3)
        ), grads, start / 10,
    )  # fmt: skip
    assert np.linalg.norm(ours, axis=1).max() < 1 + 1e-12
    assert np.linalg.norm(opt.state["0"]["slow"]) < 0.999


# Averages


@pytest.mark.torch
@pytest.mark.parametrize(("start_at", "every"), [(0, 1), (7, 1), (5, 4)])
def test_tail_equals_torch(start_at, every):
    torch = pytest.importorskip("torch")
    from torch.optim.swa_utils import AveragedModel

    grads, start = gradients()
    w = start.copy()
    opt = st.Adam(w, lr=0.1, average=A.tail(start_at, every))
    model = torch.nn.ParameterList([torch.from_numpy(start.copy())])
    inner = torch.optim.Adam(model.parameters(), lr=0.1)
    peer = AveragedModel(model)
    for t, g in enumerate(grads, 1):
        opt.step(g)
        model[0].grad = torch.from_numpy(g.copy())
        inner.step()
        if t > start_at and (t - start_at) % every == 0:
            peer.update_parameters(model)
            expected = next(peer.parameters()).detach().numpy()
            np.testing.assert_allclose(opt.averaged()["0"], expected, rtol=1e-11, atol=1e-13)


@pytest.mark.torch
@pytest.mark.parametrize("warm", [False, True])
def test_ema_equals_torch(warm):
    """Torch's average begins as the parameters of its first update; ours as those at the start."""
    torch = pytest.importorskip("torch")
    from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

    grads, start = gradients()
    w = start.copy()
    rate = st.schedules.ema_warmup(0.7) if warm else 0.7
    opt = st.SGD(w, lr=0.1, ema=rate)
    model = torch.nn.ParameterList([torch.from_numpy(start.copy())])
    inner = torch.optim.SGD(model.parameters(), lr=0.1)

    def warmed(average, p, n):
        decay = min(0.7, (1 + int(n)) / (10 + int(n)))
        return average + (1 - decay) * (p - average)

    peer = AveragedModel(model, avg_fn=warmed if warm else get_ema_avg_fn(0.7))
    peer.update_parameters(model)
    for g in grads:
        opt.step(g)
        model[0].grad = torch.from_numpy(g.copy())
        inner.step()
        peer.update_parameters(model)
        expected = next(peer.parameters()).detach().numpy()
        np.testing.assert_allclose(opt.averaged()["0"], expected, rtol=1e-12, atol=1e-14)


def test_a_tail_is_the_mean_of_the_points():
    grads, start = gradients()
    points, opt = path(lambda p: st.RMSprop(p, average=A.tail(10, 5)), grads, start)
    # The mean of 10 points, each step of it rounded.
    np.testing.assert_allclose(opt.averaged()["0"], points[14::5].mean(0), rtol=1e-13, atol=1e-14)


def test_before_the_tail_the_average_is_the_parameter():
    w = np.array([3.0])
    opt = st.SGD(w, lr=1.0, average=A.tail(2, 2))
    seen = []
    for _ in range(6):
        seen.append(float(opt.averaged()["0"][0]))
        opt.step(np.ones(1))
    assert seen == [3.0, 2.0, 1.0, 0.0, -1.0, -1.0]
    assert opt.averaged()["0"].tolist() == [-2.0]
    assert opt.averaged()["0"] is not opt.state["0"]["average"]


def test_which_average_is_read():
    """The rule's own, else the tail's, else the moving one; each group has its own."""
    a, b = {"a": np.ones(1)}, {"b": np.ones(1)}
    opt = st.SGD([{"params": a, "average": A.tail()}, {"params": b}], lr=1.0, ema=0.5)
    for _ in range(2):
        opt.step([{"a": np.ones(1)}, {"b": np.ones(1)}])
    assert {k: float(x[0]) for k, x in opt.averaged().items()} == {"a": -0.5, "b": -0.25}
    asgd = st.ASGD(np.ones(1), lr=1.0, ema=0.5, t0=0.0)
    asgd.step(np.ones(1))
    assert asgd.averaged()["0"] == asgd.state["0"]["ax"] != asgd.state["0"]["ema"]
    opt.param_groups[1]["ema"] = None
    with pytest.raises(ValueError, match=r"group 1 keeps no averaged.* with ema=0\.999 or average"):
        opt.averaged()
    opt.param_groups[1]["ema"] = 0.5
    del opt.state["b"]["ema"]
    assert opt.averaged()["b"] == b["b"]


# Promises


def test_a_step_that_fails_at_the_time_of_an_average_changes_nothing():
    w = {"w": np.ones(3)}
    opt = st.SGD(w, lr=1.0, lookahead=A.lookahead(2), average=A.tail(), ema=0.5)
    opt.step({"w": np.ones(3)})
    before = {k: x.tobytes() for k, x in opt.state["w"].items()}, w["w"].tobytes()
    for bad in ({"w": np.ones(4)}, {"v": np.ones(3)}):
        with pytest.raises(ValueError, match="w"):
            opt.step(bad)
    opt.param_groups[0]["lookahead"] = A.lookahead(2, lambda t: 2.0)
    with pytest.raises(ValueError, match=r"lookahead: alpha = 2\.0: expected a number in \[0, 1\]"):
        opt.step({"w": np.ones(3)})
    assert ({k: x.tobytes() for k, x in opt.state["w"].items()}, w["w"].tobytes()) == before


@pytest.mark.parametrize("stop", [0, 1, 5, 9])
def test_resuming_from_a_file_gives_the_bits_of_going_on(stop, tmp_path):
    def make(params):
        return st.AdamW(
            params, lr=st.schedules.cosine(0.1, 10), peak_lr=0.1, weight_decay=0.3,
            decay_mode="corrected", lookahead=A.lookahead(3, st.schedules.linear(0.9, 10)),
            ema=st.schedules.ema_warmup(0.9),
            overrides={"b": {"average": A.tail(2, 2), "lookahead": None}},
        )  # fmt: skip

    rng = np.random.default_rng(0)
    grads = [{"a": rng.standard_normal(5), "b": rng.standard_normal(3)} for _ in range(12)]
    whole, part = ({"a": np.ones(5), "b": np.ones(3)} for _ in range(2))
    opt, first = make(whole), make(part)
    for g in grads:
        opt.step(g)
    for g in grads[:stop]:
        first.step(g)
    st.save(tmp_path / "run", first)
    fresh = {"a": np.zeros(5), "b": np.zeros(3)}
    second = make(fresh)
    st.load(tmp_path / "run", second)
    third = copy.deepcopy(second)
    fourth = pickle.loads(pickle.dumps(second))
    for each in (second, third, fourth):
        for g in grads[stop:]:
            each.step(g)
        found = {n: p for x in each.param_groups for n, p in zip(x["param_names"], x["params"],
                                                                 strict=True)}  # fmt: skip
        for key in whole:
            same_bits(found[key], whole[key], key)
            same_bits(each.averaged()[key], opt.averaged()[key], key)
    assert set(opt.state["a"]) == {"step", "exp_avg", "exp_avg_sq", "slow", "ema"}
    assert set(opt.state["b"]) == {"step", "exp_avg", "exp_avg_sq", "average", "ema"}


def test_options_switched_on_later_begin_then():
    w = np.array([4.0])
    opt = st.SGD(w, lr=1.0)
    opt.step(np.ones(1))
    opt.param_groups[0].update(lookahead=A.lookahead(2), average=A.tail(1))
    assert opt.averaged()["0"].tolist() == [3.0]
    opt.step(np.ones(1))
    assert w.tolist() == [2.5] == opt.averaged()["0"].tolist()


@pytest.mark.parametrize("rule", ["ScheduleFreeSGD", "ScheduleFreeAdamW"])
def test_lookahead_is_refused_where_the_average_hangs_on_the_parameter(rule):
    with pytest.raises(ValueError, match=f"lookahead = .*{rule.lower()} cannot be moved"):
        getattr(st, rule)(np.ones(1), lookahead=A.lookahead())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: A.lookahead(0), ValueError, "lookahead: k = 0: expected an integer of at least 1"),
        (lambda: A.lookahead(2.5), TypeError, r"k = 2\.5: expected an integer"),
        (lambda: A.lookahead(alpha=1.5), ValueError, r"alpha = 1\.5: expected a number in \[0, 1"),
        (lambda: A.lookahead(alpha=math.nan), ValueError, "alpha = nan"),
        (lambda: A.lookahead(k=lambda t: 5), TypeError, "expected an integer of at least 1"),
        (lambda: A.tail(-1), ValueError, "tail: start = -1: expected an integer of at least 0"),
        (lambda: A.tail(every=0), ValueError, "every = 0: expected an integer of at least 1"),
        (lambda: A.tail(True), TypeError, "start = True"),
        (
            lambda: st.SGD(np.ones(1), lookahead=5), TypeError,
            r"lookahead = 5: expected st\.average\.lookahead\(\.\.\.\) or None",
        ),
        (
            lambda: st.SGD(np.ones(1), average=A.lookahead()), TypeError,
            r"average = lookahead\(.*: expected st\.average\.tail\(\.\.\.\) or None",
        ),
        (
            lambda: st.SGD(np.ones(1)).averaged(), ValueError,
            r"average=st\.average\.tail\(start=1000\)",
        ),
    ],
)  # fmt: skip
def test_wrong_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_they_are_values():
    assert A.lookahead(5, 1) == A.lookahead(5, 1.0) != A.lookahead(4, 1.0)
    assert repr(A.tail(3)) == "tail(start=3, every=1)"
    assert A.lookahead(alpha=abs).variable and not A.tail().variable


# fit


@pytest.mark.parametrize(
    "make",
    [
        lambda p: st.SGD(p, lr=0.3, average=A.tail(3)),
        lambda p: st.ScheduleFreeSGD(p, lr=0.3),
        lambda p: st.ASGD(p, lr=0.3, t0=2.0),
    ],
)
def test_fit_evaluates_what_averaged_gives(make):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(60)
    y = 2 * x + rng.standard_normal(60)

    def loss(p, x, y):
        return float(np.mean((p["w"] * x + p["b"] - y) ** 2))

    def value_and_grad(p, x, y):
        rest = p["w"] * x + p["b"] - y
        grads = {"w": np.asarray(2 * np.mean(rest * x)), "b": np.asarray(2 * np.mean(rest))}
        return loss(p, x, y), grads

    p = {"b": np.zeros(()), "w": np.zeros(())}
    opt = make(p)
    seen = []
    history = st.fit(
        loss, p, (x[:40], y[:40]), opt, epochs=4, batch_size=8, validation=(x[40:], y[40:]),
        value_and_grad=value_and_grad, use_ema=True,
        callbacks=[lambda e: seen.append(loss(opt.averaged(), x[40:], y[40:]))],
    )  # fmt: skip
    assert history["val_loss"] == seen
    assert seen[-1] != loss(p, x[40:], y[40:])
