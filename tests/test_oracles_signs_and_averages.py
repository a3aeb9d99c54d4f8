"""The sign, averaged and further adaptive rules, in float64, against implementations by others.

The tolerance 1e-12 is for 100 steps of differently ordered roundings in float64; signs hide even
those.
"""

import numpy as np
import pytest
from test_oracles import gradients, trajectory

import steepest as st
from steepest.optimizers import RULES


def torch_path(make, grads, start):
    """The parameter after each step of a torch optimizer, and the optimizer."""
    torch = pytest.importorskip("torch")
    p = torch.nn.Parameter(torch.from_numpy(start.copy()))
    opt = make([p])
    path = []
    for g in grads:
        p.grad = torch.from_numpy(g.copy())
        opt.step()
        path.append(p.detach().numpy().copy())
    return np.array(path), opt


def optax_path(transform, grads, start):
    """The parameter after each step of an optax transformation."""
    optax = pytest.importorskip("optax")
    import jax

    jax.config.update("jax_enable_x64", True)
    p = jax.numpy.asarray(start)
    state, path = transform.init(p), []
    for g in grads:
        updates, state = transform.update(jax.numpy.asarray(g), state, p)
        p = optax.apply_updates(p, updates)
        path.append(np.asarray(p))
    return np.array(path)


def assert_close(path, other, rtol=1e-12):
    for t, (p, q) in enumerate(zip(path, other, strict=True), 1):
        np.testing.assert_allclose(p, q, rtol=rtol, atol=1e-14, err_msg=f"step {t}")


def rosenbrock(p):
    x, y = p
    return 100.0 * (y - x * x) ** 2 + (1.0 - x) ** 2


def slope(p):
    x, y = p
    return np.array([-400.0 * x * (y - x * x) - 2.0 * (1.0 - x), 200.0 * (y - x * x)])


DESCENTS = {
    "rprop": ({}, 1000, 1e-2),
    "signsgd": ({"lr": 1e-3}, 3000, 0.1),
    "signum": ({"lr": 1e-3}, 3000, 1e-3),
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
    assert rosenbrock(opt.averaged()["0"] if hasattr(opt, "averaged") else p) < below


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
