"""Rules by rows and columns, in float64, against implementations by others.

The tolerance 1e-12 is for 100 steps of differently ordered roundings in float64.
"""

import numpy as np
import pytest
from cases import reference_hyper
from trajectories import (
    assert_close,
    optax_path,
    rosenbrock,
    slope,
    torch_path,
)

import steepest as st
from steepest import reference
from steepest.optimizers import RULES

SHAPES = [(5,), (7, 4), (1, 6), (6, 1), (3, 4, 5), (2, 3, 3, 3)]


def path(opt, p, grads):
    """The parameter after each step of the reference, with this optimizer's hyper-parameters."""
    p = p.copy()
    state = {key: x.copy() for key, x in opt.state["0"].items()}
    found = []
    for t, g in enumerate(grads, 1):
        reference.step(opt.rule, p, g, state, t, **reference_hyper(opt))
        found.append(p.copy())
    return np.array(found)


def problem(shape):
    rng = np.random.default_rng(0)
    grads = rng.standard_normal((100, *shape)) * np.linspace(0.1, 3.0, 100).reshape(
        -1, *[1] * len(shape)
    )
    return rng.standard_normal(shape), grads


@pytest.mark.torch
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"lr": 0.3, "beta2_decay": -0.6, "eps": (0.4, 0.9), "d": 1.7, "weight_decay": 0.07},
    ],
)
def test_adafactor_is_torchs(shape, maximize, arguments):
    torch = pytest.importorskip("torch")
    start, grads = problem(shape)
    opt = st.Adafactor(start.copy(), maximize=maximize, **arguments)
    theirs, _ = torch_path(
        lambda p: torch.optim.Adafactor(p, maximize=maximize, **arguments), grads, start
    )
    assert_close(path(opt, start, grads), theirs)


@pytest.mark.torch
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_adafactors_state_is_torchs(shape):
    torch = pytest.importorskip("torch")
    start, grads = problem(shape)
    p = start.copy()
    opt = st.Adafactor(p)
    for g in grads:
        opt.step(g)
    _, theirs = torch_path(torch.optim.Adafactor, grads, start)
    (their_state,) = theirs.state_dict()["state"].values()
    assert opt.state["0"].keys() == their_state.keys()
    for key, x in their_state.items():
        assert opt.state["0"][key].shape == x.shape
        np.testing.assert_allclose(opt.state["0"][key], x.numpy(), rtol=1e-12)


@pytest.mark.torch
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {"relative_step": True, "lr": None}),
        ({"warmup_init": True}, {"relative_step": True, "lr": None, "warmup_init": True}),
        (
            {"lr": 0.3, "relative_step": False, "scale_parameter": False, "beta1": 0.8,
             "eps": (1e-3, 0.2), "d": 0.7, "beta2_decay": -0.6, "weight_decay": 0.07},
            {"lr": 0.3, "relative_step": False, "scale_parameter": False, "beta1": 0.8,
             "eps": (1e-3, 0.2), "clip_threshold": 0.7, "decay_rate": -0.6, "weight_decay": 0.07},
        ),
        (
            {"lr": 0.3, "relative_step": False, "eps": (1e-3, 0.9), "weight_decay": 0.07},
            {"lr": 0.3, "relative_step": False, "eps": (1e-3, 0.9), "weight_decay": 0.07},
        ),
    ],
)  # fmt: skip
def test_adafactors_paper_form_is_that_of_transformers(shape, maximize, ours, theirs):
    optimization = pytest.importorskip("transformers").optimization
    start, grads = problem(shape)
    opt = st.Adafactor(start.copy(), form="paper", maximize=maximize, **ours)
    other, _ = torch_path(
        lambda p: optimization.Adafactor(p, **theirs), -grads if maximize else grads, start
    )
    assert_close(path(opt, start, grads), other)


CAME = {
    "lr": 0.03, "betas": (0.8, 0.95, 0.97), "eps1": 1e-3, "eps2": 1e-2, "weight_decay": 0.07,
    "clip_threshold": 0.7,
}  # fmt: skip


@pytest.mark.torch
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("theirs", [{}, CAME])
def test_came_is_that_of_pytorch_optimizer(shape, maximize, theirs):
    peers = pytest.importorskip("pytorch_optimizer")
    ours = dict(theirs)
    if theirs:
        ours["eps"] = (ours.pop("eps1"), ours.pop("eps2"))
    start, grads = problem(shape)
    opt = st.CAME(start.copy(), maximize=maximize, **ours)
    other, _ = torch_path(lambda p: peers.CAME([*p], maximize=maximize, **theirs), grads, start)
    assert_close(path(opt, start, grads), other)


@pytest.mark.torch
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("arguments", [{}, {"lr": 0.3, "momentum": 0.8, "eps": 0.2}])
def test_sm3_is_that_of_pytorch_optimizer(shape, maximize, arguments):
    """Its ``beta=0`` is our 1. Otherwise its accumulators never become less, since it takes the
    larger of the old ones and the new; optax's, the next test's, and ours follow ν."""
    peers = pytest.importorskip("pytorch_optimizer")
    start, grads = problem(shape)
    opt = st.SM3(start.copy(), maximize=maximize, **{"momentum": 0.0} | arguments)
    other, _ = torch_path(lambda p: peers.SM3(p, maximize=maximize, **arguments), grads, start)
    assert_close(path(opt, start, grads), other)


@pytest.mark.torch
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("momentum", "beta", "eps"), [(0.9, 1.0, 1e-8), (0.7, 0.93, 0.2)])
def test_sm3_is_optaxs(shape, momentum, beta, eps):
    optax = pytest.importorskip("optax")
    start, grads = problem(shape)
    grads[:, 0] = 0.0  # where all squares are 0, both stand still
    opt = st.SM3(start.copy(), lr=0.3, momentum=momentum, beta=beta, eps=eps)
    transform = optax.chain(
        optax.scale_by_sm3(momentum, beta, eps), optax.scale_by_learning_rate(0.3)
    )
    assert_close(path(opt, start, grads), optax_path(transform, grads, start))


def adam_mini(p, grads, blocks, lr, betas, eps, weight_decay):
    """The authors' code (Adam_mini.step, neuron-wise and block-wise) as a formula."""
    p, m, v, found = p.copy(), np.zeros_like(p), 0.0, []
    axes = tuple(range(1, p.ndim)) if blocks == "rows" and p.ndim > 1 else tuple(range(p.ndim))
    b1, b2 = betas
    for t, g in enumerate(grads, 1):
        p *= 1 - lr * weight_decay
        m += (1 - b1) * (g - m)
        v = b2 * v + (1 - b2) * (g * g).mean(axis=axes, keepdims=True)
        h = np.sqrt(v) / np.sqrt(1 - b2**t) + eps
        p -= lr * m * (1 / (1 - b1**t) / h)
        found.append(p.copy())
    return np.array(found)


@pytest.mark.parametrize("shape", [(), *SHAPES], ids=str)
@pytest.mark.parametrize("blocks", ["rows", "arrays"])
def test_adam_mini_is_its_authors(shape, blocks):
    arguments = {"lr": 0.03, "betas": (0.8, 0.97), "eps": 0.2, "weight_decay": 0.07}
    start, grads = problem(shape)
    opt = st.AdamMini(start.copy(), blocks=blocks, **arguments)
    assert_close(path(opt, start, grads), adam_mini(start, grads, blocks, **arguments))


@pytest.mark.torch
@pytest.mark.parametrize(("name", "blocks"), [("q_proj", "rows"), ("down", "arrays")])
def test_adam_mini_is_that_of_pytorch_optimizer(name, blocks):
    """Which cuts matrices by their names, and computes in float32."""
    peers, torch = pytest.importorskip("pytorch_optimizer"), pytest.importorskip("torch")
    start, grads = problem((6, 6))
    start, grads = start.astype(np.float32), grads.astype(np.float32)
    model = torch.nn.Module()
    model.add_module(name, torch.nn.Linear(6, 6, bias=False))
    w = model.get_submodule(name).weight
    with torch.no_grad():
        w.copy_(torch.from_numpy(start))
    arguments = {"lr": 0.03, "betas": (0.8, 0.97), "eps": 0.2, "weight_decay": 0.07}
    peer = peers.AdamMini(model, num_embeds=6, num_heads=6, **arguments)
    opt = st.AdamMini(start.copy(), blocks=blocks, **arguments)
    for ours, g in zip(path(opt, start, grads), grads, strict=True):
        w.grad = torch.from_numpy(g.copy())
        peer.step()
        np.testing.assert_allclose(ours, w.detach().numpy(), rtol=1e-4, atol=1e-5)


DESCENTS = {
    "adafactor": ({"lr": 0.1}, 5000, 0.05),
    "came": ({"lr": 0.01}, 5000, 0.05),
    "sm3": ({"lr": 0.3}, 5000, 0.05),
    "adammini": ({"lr": 0.01}, 5000, 0.05),
}


@pytest.mark.parametrize("shape", [(2,), (1, 2), (2, 1)], ids=str)
@pytest.mark.parametrize("rule", DESCENTS)
def test_descent_on_rosenbrocks_valley(rule, shape):
    """From 24.2 at the customary start to below a given value."""
    arguments, steps, below = DESCENTS[rule]
    p = np.array([-1.2, 1.0]).reshape(shape)
    opt = RULES[rule](p, **arguments)
    for _ in range(steps):
        opt.step(slope(p.ravel()).reshape(shape))
    assert rosenbrock(p.ravel()) < below
