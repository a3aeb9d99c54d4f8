"""The reference itself, in float64, against implementations by others, nothing at its default.

The tolerance 1e-12 is for 100 steps of differently ordered roundings in float64.
"""

import re
from pathlib import Path

import numpy as np
import pytest
from cases import CONFIGURATIONS, hyper, label
from trajectories import STEPS, gradients, trajectory

from steepest.optimizers import RULES

TORCH = ("sgd", "adagrad", "rmsprop", "adadelta", "adam", "adamw", "adamax", "nadam", "radam")

# The rules and forms that PyTorch does not have; each is tested against its paper below.
IN_TORCH = [
    (rule, arguments)
    for rule, arguments in CONFIGURATIONS
    if rule in TORCH
    and not arguments.get("eps_inside_sqrt")
    and arguments.get("bias_correction") is not False
    and "convention" not in arguments  # see test_oracles_conventions.py
]


def torch_name(rule):
    return RULES[rule].__name__


@pytest.mark.torch
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(("rule", "arguments"), IN_TORCH, ids=label)
def test_reference_equals_torch(rule, arguments, maximize):
    torch = pytest.importorskip("torch")
    twin = getattr(torch.optim, torch_name(rule))
    grads, start = gradients()
    path = trajectory(rule, arguments, {"maximize": maximize}, grads, start)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # NAdam keeps its product of momenta in this type
    try:
        p = torch.nn.Parameter(torch.from_numpy(start.copy()))
        opt = twin([p], **arguments, maximize=maximize, foreach=False)
        for t in range(STEPS):
            p.grad = torch.from_numpy(grads[t].copy())
            opt.step()
            np.testing.assert_allclose(
                path[t], p.detach().numpy(), rtol=1e-12, atol=1e-14, err_msg=f"step {t + 1}"
            )
    finally:
        torch.set_default_dtype(default)


def lion(p, g, state, lr, b1, b2, decay):
    """Algorithm 2 of arXiv:2302.06675, written from the paper."""
    m = state.setdefault("m", np.zeros_like(p))
    c = m * b1 + g * (1 - b1)
    update = np.where(c > 0, 1.0, np.where(c < 0, -1.0, 0.0)) + decay * p
    state["m"] = m * b2 + g * (1 - b2)
    return p - lr * update


def adam_uncorrected(p, g, state, lr, b1, b2, eps, decay):
    """Adam without the divisors of algorithm 1 in arXiv:1412.6980."""
    g = g + decay * p
    m = state["m"] = b1 * state.get("m", 0.0) + (1 - b1) * g
    v = state["v"] = b2 * state.get("v", 0.0) + (1 - b2) * g * g
    return p - lr * m / (v**0.5 + eps)


def adagrad_inside(p, g, state, lr, eps, lr_decay, start, decay):
    """Adagrad with eps under the root."""
    g = g + decay * p
    s = state["s"] = state.get("s", start) + g * g
    t = state["t"] = state.get("t", 0) + 1
    return p - lr / (1 + (t - 1) * lr_decay) * g / np.sqrt(s + eps)


def qhm(p, g, state, lr, mu, nu, decay):
    """Equation 3 of arXiv:1810.06801, with L2."""
    g = g + decay * p
    m = state["m"] = mu * state.get("m", 0) + (1 - mu) * g
    return p - lr * ((1 - nu) * g + nu * m)


INDEPENDENT = {
    "qhm": (
        qhm,
        {"momentum": 0.87, "nu": 0.37},
        lambda a: (a["lr"], a["momentum"], a["nu"], a["weight_decay"]),
    ),
    "lion": (lion, {}, lambda a: (a["lr"], *a["betas"], a["weight_decay"])),
    "adam": (
        adam_uncorrected,
        {"bias_correction": False},
        lambda a: (a["lr"], *a["betas"], a["eps"], a["weight_decay"]),
    ),
    "adagrad": (
        adagrad_inside,
        {"eps_inside_sqrt": True, "lr_decay": 0.013, "initial_accumulator_value": 0.07},
        lambda a: (a["lr"], a["eps"], 0.013, 0.07, a["weight_decay"]),
    ),
}


@pytest.mark.parametrize("rule", INDEPENDENT)
def test_reference_equals_the_paper(rule):
    """The forms that PyTorch does not have, written anew from their papers."""
    formula, variant, scalars = INDEPENDENT[rule]
    arguments = hyper(rule, variant)
    grads, start = gradients()
    path = trajectory(rule, arguments, {}, grads, start)
    p, state = start, {}
    for t in range(STEPS):
        p = formula(p, grads[t], state, *scalars(arguments))
        np.testing.assert_allclose(path[t], p, rtol=1e-12, atol=1e-14, err_msg=f"step {t + 1}")


@pytest.mark.torch
@pytest.mark.parametrize("maximize", [False, True])
def test_qhm_equals_pytorch_optimizer(maximize):
    peers = pytest.importorskip("pytorch_optimizer")
    import torch

    grads, start = gradients()
    arguments = hyper("qhm", {"momentum": 0.87, "nu": 0.37}) | {"maximize": maximize}
    path = trajectory("qhm", arguments, {}, grads, start)
    p = torch.nn.Parameter(torch.from_numpy(start.copy()))
    opt = peers.QHM([p], **arguments)
    for t in range(STEPS):
        p.grad = torch.from_numpy(grads[t].copy())
        opt.step()
        np.testing.assert_allclose(path[t], p.detach().numpy(), rtol=1e-12, atol=1e-14)


@pytest.mark.torch
def test_lion_equals_optax():
    optax = pytest.importorskip("optax")
    import jax

    jax.config.update("jax_enable_x64", True)
    grads, start = gradients()
    arguments = hyper("lion", {})
    path = trajectory("lion", arguments, {}, grads, start)
    b1, b2 = arguments["betas"]
    opt = optax.lion(arguments["lr"], b1=b1, b2=b2, weight_decay=arguments["weight_decay"])
    p = jax.numpy.asarray(start)
    state = opt.init(p)
    for t in range(STEPS):
        updates, state = opt.update(jax.numpy.asarray(grads[t]), state, p)
        p = optax.apply_updates(p, updates)
        np.testing.assert_allclose(path[t], np.asarray(p), rtol=1e-12, atol=1e-14)


def test_every_rule_has_an_oracle():
    """Here, or by its name in one of the files beside this one."""
    beside = "".join(p.read_text("utf-8") for p in Path(__file__).parent.glob("test_oracles_*.py"))
    here = {rule for rule, _ in IN_TORCH} | set(INDEPENDENT)
    assert here <= set(RULES)
    absent = [rule for rule in RULES if rule not in here]
    assert [rule for rule in absent if not re.search(rf"\b{rule}\b", beside)] == []
