"""The sign, averaged and further adaptive rules, in float64, against implementations by others.

The tolerance 1e-12 is for 100 steps of differently ordered roundings in float64; signs hide even
those.
"""

import numpy as np
import pytest
from cases import reference_hyper
from trajectories import (
    assert_close,
    gradients,
    optax_path,
    rosenbrock,
    slope,
    torch_path,
    trajectory,
)

import steepest as st
from steepest import reference
from steepest.optimizers import RULES
from steepest.reference.adaptive import cube_root

DESCENTS = {
    "rprop": ({}, 1000, 1e-2),
    "madgrad": ({"lr": 0.05}, 1000, 0.05),
    "ftrl": ({"lr": 0.5}, 3000, 0.05),
    "signsgd": ({"lr": 1e-3}, 3000, 0.1),
    "signum": ({"lr": 1e-3}, 3000, 1e-3),
    "schedulefreesgd": ({"lr": 1e-3}, 5000, 0.05),
    "schedulefreeadamw": ({"lr": 0.05}, 1000, 0.05),
    "asgd": ({"lr": 1e-3, "t0": 4000.0}, 5000, 0.05),
}


@pytest.mark.parametrize("rule", DESCENTS)
def test_descent_on_rosenbrocks_valley(rule):
    """From 24.2 at the customary start to below a given value."""
    arguments, steps, below = DESCENTS[rule]
    p = np.array([-1.2, 1.0])
    opt = RULES[rule](p, **arguments)
    for _ in range(steps):
        opt.step(slope(p))
    assert (
        rosenbrock(p if type(opt).averaged is st.Optimizer.averaged else opt.averaged()["0"])
        < below
    )


# Signs


@pytest.mark.torch
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("mode", ["l2", "decoupled"])
@pytest.mark.parametrize("rule", ["signsgd", "signum"])
def test_signs_equal_pytorch_optimizer(rule, mode, maximize):
    """Its SignSGD is Signum, and with momentum 0 SignSGD; decay comes before the step in both."""
    peer = pytest.importorskip("pytorch_optimizer").SignSGD
    grads, start = gradients()
    own = {"momentum": 0.87} if rule == "signum" else {}
    arguments = {"lr": 0.0137, "weight_decay": 0.0731}
    options = {"maximize": maximize, "decay_mode": mode}
    path = trajectory(rule, arguments | own, options, grads, start)
    other, _ = torch_path(
        lambda p: peer(
            p, **arguments, momentum=own.get("momentum", 0.0), weight_decouple=mode == "decoupled",
            maximize=maximize, foreach=False,
        ),
        grads, start,
    )  # fmt: skip
    assert_close(path, other)


@pytest.mark.torch
@pytest.mark.parametrize("rule", ["signsgd", "signum"])
def test_signs_equal_optax(rule):
    optax = pytest.importorskip("optax")
    grads, start = gradients()
    if rule == "signsgd":
        path = trajectory(rule, {"lr": 0.0137}, {}, grads, start)
        other = optax_path(optax.sign_sgd(0.0137), grads, start)
    else:
        path = trajectory(rule, {"lr": 0.0137, "momentum": 0.87}, {}, grads, start)
        other = optax_path(optax.signum(0.0137, beta=0.87), grads, start)
    assert_close(path, other)


@pytest.mark.parametrize("rule", ["signum"])
def test_a_momentum_of_one_is_refused(rule):
    with pytest.raises(ValueError, match=r"momentum = 1\.0: expected a number in \[0, 1\)"):
        RULES[rule](np.zeros(1), momentum=1.0)
    opt = RULES[rule](np.zeros(1), momentum=lambda t: 0.5 + 0.25 * t)
    opt.step(np.ones(1))
    opt.step(np.ones(1))
    with pytest.raises(ValueError, match=r"momentum = 1\.0"):
        opt.step(np.ones(1))
    assert opt.updates == 2


# Rprop


@pytest.mark.torch
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("lr", [0.0137, 0.0])
def test_rprop_equals_torch(lr, maximize):
    """lr = 0 too: the first step is then the least that step_sizes allows."""
    torch = pytest.importorskip("torch")
    grads, start = gradients()
    grads[5:8, :20] *= 1e-200  # products that underflow to 0
    arguments = {"lr": lr, "etas": (0.43, 1.31), "step_sizes": (1e-3, 0.9)}
    path = trajectory("rprop", arguments, {"maximize": maximize}, grads, start)
    other, _ = torch_path(
        lambda p: torch.optim.Rprop(p, **arguments, maximize=maximize, foreach=False), grads, start
    )
    np.testing.assert_array_equal(path, other)  # the same operations in the same order


# ASGD


@pytest.mark.torch
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("t0", [7.0, 0.0, 1e6])
def test_asgd_equals_torch(t0, maximize):
    """The point and the mean. (pytorch_optimizer's ASGD is another algorithm, arXiv:1910.09529.)"""
    torch = pytest.importorskip("torch")
    grads, start = gradients()
    arguments = {"lr": 0.0137, "lambd": 0.31, "alpha": 0.6, "t0": t0, "weight_decay": 0.0731}
    p = start.copy()
    opt = st.ASGD(p, **arguments, maximize=maximize)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # it keeps eta and mu in this type
    try:
        other, twin = torch_path(
            lambda p: torch.optim.ASGD(p, **arguments, maximize=maximize, foreach=False),
            grads, start,
        )  # fmt: skip
    finally:
        torch.set_default_dtype(default)
    assert_close(trajectory("asgd", arguments, {"maximize": maximize}, grads, start), other)
    for g in grads:
        opt.step(g)
    (state,) = twin.state.values()
    np.testing.assert_allclose(opt.averaged()["0"], state["ax"].numpy(), rtol=1e-12, atol=1e-14)


def test_the_mean_of_asgd_starts_at_the_parameter():
    w = {"a": np.array([1.0, 2.0]), "b": np.float32([3.0])}
    opt = st.ASGD(w)
    mean = opt.averaged()
    assert mean["a"].tolist() == [1.0, 2.0] and mean["b"].dtype == np.float32
    mean["a"][...] = 0.0
    assert opt.averaged()["a"].tolist() == [1.0, 2.0]


# Schedule-free rules

FREE = {
    "schedulefreesgd": {"momentum": 0.83, "r": 0.7, "weight_lr_power": 1.3, "weight_decay": 0.0731},
    "schedulefreeadamw": {
        "betas": (0.83, 0.9871), "eps": 3.1e-5, "r": 0.7, "weight_lr_power": 1.3,
        "weight_decay": 0.0731,
    },
}  # fmt: skip


def warm_up(t):
    """What the package makes of lr=0.0137, warmup_steps=10."""
    return 0.0137 * ((t + 1) / 10 if t < 10 else 1.0)


@pytest.mark.torch
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("rule", FREE)
def test_schedule_free_rules_equal_their_authors(rule, maximize):
    """y, z and x of schedulefree, which has no maximize: it is given the negative gradients."""
    package = pytest.importorskip("schedulefree")
    twin = {"schedulefreesgd": package.SGDScheduleFree}.get(rule, package.AdamWScheduleFree)
    grads, start = gradients()
    p = start.copy()
    opt = RULES[rule](p, lr=warm_up, **FREE[rule], maximize=maximize)
    state = {key: x.copy() for key, x in opt.state["0"].items()}
    h, q, path = reference_hyper(opt), start.copy(), []

    def make(params):
        made = twin(params, lr=0.0137, warmup_steps=10, **FREE[rule], foreach=False)
        made.train()
        return made

    other, peer = torch_path(make, -grads if maximize else grads, start)
    for t, g in enumerate(grads, 1):
        reference.step(rule, q, g, state, t, **h | {"lr": warm_up(t - 1)})
        path.append(q.copy())
        opt.step(g)
    assert_close(np.array(path), other)
    np.testing.assert_array_equal(p, q)  # also with a schedule the kernel has the reference's bits
    (parameter,) = peer.state
    np.testing.assert_allclose(state["z"], peer.state[parameter]["z"].numpy(), 1e-12, 1e-14)
    peer.eval()  # this puts x in place of y
    np.testing.assert_allclose(opt.averaged()["0"], parameter.detach().numpy(), 1e-12, 1e-14)
    np.testing.assert_array_equal(p, q)


def test_the_averaged_point_is_the_weighted_mean_of_z():
    """Written from the paper's equations 1 to 3: x is averaged, y interpolated."""
    rng = np.random.default_rng(1)
    w = rng.standard_normal(9)
    x, z, total = w.copy(), w.copy(), 0.0
    opt = st.ScheduleFreeSGD(w, lr=st.schedules.inverse_time(0.1, 0.3), momentum=0.8)
    for t in range(40):
        g = rng.standard_normal(9)
        lr = 0.1 / (1.0 + 0.3 * t)
        np.testing.assert_allclose(w, 0.2 * z + 0.8 * x, rtol=1e-11)
        opt.step(g)
        total += 0.01
        z = z - lr * g
        x = x + 0.01 / total * (z - x)
        np.testing.assert_allclose(opt.averaged()["0"], x, rtol=1e-11)
    assert opt.param_groups[0]["lr_max"] == 0.1


def test_decay_of_schedule_free_sgd_is_the_same_in_both_modes():
    grads, start = gradients()
    paths = [
        trajectory("schedulefreesgd", FREE["schedulefreesgd"], {"decay_mode": mode}, grads, start)
        for mode in ("l2", "decoupled")
    ]
    np.testing.assert_allclose(*paths, rtol=1e-11)  # lr times weight_decay is taken from 1


@pytest.mark.parametrize("rule", FREE)
def test_the_running_sum_is_atomic_and_resumes(rule, tmp_path):
    """With rates that nobody can compute again: changed by hand at every step."""
    rng = np.random.default_rng(2)
    grads = rng.standard_normal((20, 6))
    w = {"w": np.ones(6)}
    opt = RULES[rule](w, **FREE[rule], nonfinite="skip")
    spoiled = np.full(6, np.nan)

    def go_on(opt, start, stop):
        for t in range(start, stop):
            opt.param_groups[0]["lr"] = 0.01 * (1 + t * 7 % 5)
            opt.step({"w": grads[t]})

    go_on(opt, 0, 9)
    kept = {name: opt.param_groups[0][name] for name in ("lr_max", "weight_sum")}
    with pytest.raises(ValueError, match="shape"):
        opt.step({"w": np.ones(5)})
    opt.step({"w": spoiled})
    opt.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr = -1"):
        opt.step({"w": grads[0]})
    opt.param_groups[0]["lr"] = 0.01
    assert {name: opt.param_groups[0][name] for name in kept} == kept and opt.updates == 9
    st.save(tmp_path / "point", opt, w)
    v = {"w": np.zeros(6)}
    other = RULES[rule](v)
    st.load(tmp_path / "point", other, v)
    go_on(opt, 9, 20)
    go_on(other, 9, 20)
    np.testing.assert_array_equal(w["w"], v["w"])
    assert other.param_groups[0]["weight_sum"] == opt.param_groups[0]["weight_sum"] > 0.0


def test_an_interrupt_right_after_the_update_loses_nothing(monkeypatch):
    """The sum is taken over by the next call, as the counter says that the step is done."""
    w, v = np.ones(3), np.ones(3)
    opt, twin = st.ScheduleFreeSGD(w, lr=0.1), st.ScheduleFreeSGD(v, lr=0.1)
    stepping = st.Optimizer._step

    def interrupted(self, grads):
        stepping(self, grads)
        raise KeyboardInterrupt

    opt.step(np.ones(3))
    with monkeypatch.context() as patch:
        patch.setattr(st.Optimizer, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            opt.step(np.ones(3))
    opt.step(np.ones(3))
    for _ in range(3):
        twin.step(np.ones(3))
    np.testing.assert_array_equal(w, v)
    assert opt.state_dict()["param_groups"] == twin.state_dict()["param_groups"]


@pytest.mark.parametrize("bad", [None, -1.0, "1"])
def test_a_bad_sum_is_refused(bad):
    opt = st.ScheduleFreeSGD(np.ones(3))
    saved = opt.state_dict()
    saved["param_groups"][0]["weight_sum"] = bad
    with pytest.raises(ValueError, match="weight_sum of group 0"):
        opt.load_state_dict(saved)


def test_weights_count_updates_and_a_rate_of_zero_weighs_nothing():
    """A parameter without a gradient stays where it is, and so does its average."""
    a, b = np.ones(2), np.ones(2)
    opt = st.ScheduleFreeSGD({"a": a, "b": b}, lr=lambda t: 0.5 * (t > 0))
    opt.step({"a": np.ones(2), "b": np.ones(2)})
    assert opt.param_groups[0]["weight_sum"] == 0.0 and opt.averaged()["a"].tolist() == [1.0, 1.0]
    opt.step({"a": np.ones(2), "b": None})
    opt.step({"a": np.ones(2), "b": np.ones(2)})
    assert opt.param_groups[0]["weight_sum"] == 0.5
    np.testing.assert_allclose(opt.averaged()["a"], [0.25, 0.25])  # the mean of 0.5 and 0
    np.testing.assert_allclose(opt.averaged()["b"], [0.75, 0.75])  # the mean of 1 and 0.5
    opt.add_param_group({"params": {"c": np.ones(2)}, "lr": 0.1})
    assert opt.param_groups[1]["weight_sum"] == 0.0


# MADGRAD


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cube_roots(dtype):
    """Within one unit in the last place, but near the subnormals; specials are their own roots."""
    numbers = np.finfo(dtype)
    low, high = np.log2([1024 * numbers.smallest_normal, numbers.max])
    exponents = np.random.default_rng(0).uniform(low, high, 100_000)
    x = np.append(np.exp2(exponents), [1.0, 8.0, 27.0, numbers.max]).astype(dtype)
    root = cube_root(x)
    exact = np.cbrt(x.astype(np.longdouble))
    assert (np.abs(root - exact) < np.spacing(root)).all()
    special = np.array([0.0, np.inf, np.nan], dtype)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(cube_root(special), special)


@pytest.mark.torch
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("mode", ["l2", "decoupled"])
@pytest.mark.parametrize("momentum", [0.87, 0.0])
def test_madgrad_equals_pytorch_optimizer(momentum, mode, maximize):
    """Like the authors' code it adds eps to lr, which the paper does not: it is given lr - eps.
    Without momentum it has no x0, and finds it from p, s and v: no decay then, which it would take
    for a part of x0, and a wider tolerance."""
    peer = pytest.importorskip("pytorch_optimizer").MADGRAD
    grads, start = gradients()
    decay = 0.0731 if momentum else 0.0
    arguments = {"momentum": momentum, "eps": 3.1e-3, "weight_decay": decay}
    options = {"maximize": maximize, "decay_mode": mode}
    lr = 0.0137
    path = trajectory("madgrad", arguments | {"lr": lr}, options, grads, start)
    other, _ = torch_path(
        lambda p: peer(
            p, **arguments, lr=lr - arguments["eps"], weight_decouple=mode == "decoupled",
            maximize=maximize, foreach=False,
        ),
        grads, start,
    )  # fmt: skip
    assert_close(path, other, 1e-11)


@pytest.mark.torch
@pytest.mark.parametrize("momentum", [0.87, 0.0])
def test_madgrad_equals_optax(momentum):
    """It adds eps to lr too, and takes the root of t in single precision: hence the tolerance."""
    contrib = pytest.importorskip("optax.contrib")
    grads, start = gradients()
    path = trajectory(
        "madgrad", {"lr": 0.0137, "momentum": momentum, "eps": 1e-3}, {}, grads, start
    )
    other = optax_path(contrib.madgrad(0.0137 - 1e-3, momentum=momentum, eps=1e-3), grads, start)
    np.testing.assert_allclose(path, other, rtol=1e-5, atol=1e-6)


# FTRL

FTRL = {"lr": 0.137, "lambda1": 0.31, "lambda2": 0.17, "beta": 0.7}


@pytest.mark.parametrize("maximize", [False, True])
def test_ftrl_equals_the_formula_of_keras(maximize):
    """From the text of its documentation, with learning_rate_power = -0.5: its
    l2_regularization_strength is half of lambda2, and beta a part of it."""
    grads, start = gradients()
    arguments = FTRL | {"initial_accumulator_value": 0.07}
    path = trajectory("ftrl", arguments, {"maximize": maximize}, grads, start)
    lr, l1, l2 = 0.137, 0.31, 0.17 / 2 + 0.7 / (2 * 0.137)
    p, n, z, zeros = start.copy(), np.full(start.shape, 0.07), np.zeros(start.shape), 0
    for t, g in enumerate(-grads if maximize else grads):
        previous, n = n, n + g**2
        sigma = (n**0.5 - previous**0.5) / lr
        z = z + g - sigma * p
        quadratic = n**0.5 / lr + 2 * l2
        p = (np.clip(z, -l1, l1) - z) / quadratic
        zeros += int((p == 0.0).sum())
        np.testing.assert_allclose(path[t], p, rtol=1e-11, atol=1e-13)
    assert zeros > 100


@pytest.mark.torch
@pytest.mark.parametrize("maximize", [False, True])
def test_ftrl_equals_pytorch_optimizer(maximize):
    """Its names are lambda_1 and lambda_2, its accumulator starts at 0."""
    peer = pytest.importorskip("pytorch_optimizer").FTRL
    grads, start = gradients()
    arguments = FTRL | {"initial_accumulator_value": 0.0}
    path = trajectory("ftrl", arguments, {"maximize": maximize}, grads, start)
    other, _ = torch_path(
        lambda p: peer(
            p, lr=0.137, beta=0.7, lambda_1=0.31, lambda_2=0.17, maximize=maximize, foreach=False
        ),
        grads, start,
    )  # fmt: skip
    np.testing.assert_allclose(path, other, rtol=1e-11, atol=1e-13)


def test_ftrl_without_any_gradient_is_zero_and_with_a_rate_of_zero_still():
    w = np.array([1.0, -2.0])
    opt = st.FTRL(w, lr=lambda t: 0.5 * (t != 1), initial_accumulator_value=0.0)
    opt.step(np.array([0.0, 4.0]))
    assert w.tolist() == [0.0, -2.5]
    kept = {key: x.copy() for key, x in opt.state["0"].items()}
    opt.step(np.ones(2))
    assert w.tolist() == [0.0, -2.5] and opt.updates == 2
    for key in ("accumulator", "linear"):
        np.testing.assert_array_equal(opt.state["0"][key], kept[key])
