"""The matrix rules through their classes, end to end, against torch and pytorch_optimizer.

The directions of all of them are compared with the papers' formulas and with these packages, with
every argument off its default, in test_matrix_*.py: muon, normuon, soap, shampoo, psgdkron, galore,
apollo.
"""

import math
from itertools import pairwise

import numpy as np
import pytest

import steepest as st
from steepest.matrix import random_numbers
from steepest.optimizers.matrix_rule import stream

SIZES = (7, 16, 9, 4)
STEPS = 20

pytestmark = pytest.mark.torch


def network(seed=0):
    rng = np.random.default_rng(seed)
    params = {}
    for k, (n, m) in enumerate(pairwise(SIZES)):
        params[f"w{k}"] = rng.standard_normal((m, n)) / math.sqrt(n)
        params[f"b{k}"] = 0.1 * rng.standard_normal(m)
    return params


def loss(torch, params, seed):
    """Of a small network on a batch of its own."""
    rng = np.random.default_rng(100 + seed)
    x = torch.from_numpy(rng.standard_normal((32, SIZES[0])))
    y = torch.from_numpy(rng.standard_normal((32, SIZES[-1])))
    for k in range(3):
        x = x @ params[f"w{k}"].T + params[f"b{k}"]
        x = torch.tanh(x) if k < 2 else x
    return ((x - y) ** 2).mean()


def trained(torch, make):
    """By optimizers of torch's kind; `make` gets the parameters by name."""
    params = {k: torch.nn.Parameter(torch.from_numpy(p)) for k, p in network().items()}
    optimizers = make(params)
    for seed in range(STEPS):
        for opt in optimizers:
            opt.zero_grad()
        loss(torch, params, seed).backward()
        for opt in optimizers:
            opt.step()
    return {k: p.detach().numpy() for k, p in params.items()}


def stepped(torch, make):
    """By an optimizer of this library, with torch's gradients at its own parameters."""
    params = network()
    shared = {k: torch.from_numpy(p).requires_grad_() for k, p in params.items()}
    opt = make(params)
    for seed in range(STEPS):
        grads = torch.autograd.grad(loss(torch, shared, seed), list(shared.values()))
        with torch.no_grad():
            opt.step({k: g.numpy() for k, g in zip(shared, grads, strict=True)})
    return params


def compare(found, expected, rtol, atol=0.0):
    start = network()
    for name, p in expected.items():
        assert np.abs(p - start[name]).max() > 1e-3, name
        np.testing.assert_allclose(found[name], p, rtol=rtol, atol=atol, err_msg=name)


def matrices(params):
    return [p for p in params.values() if p.ndim == 2]


def vectors(params):
    return [p for p in params.values() if p.ndim < 2]


@pytest.mark.parametrize("adjust", [None, "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_and_adamw_equal_torchs_two_optimizers(monkeypatch, adjust, nesterov):
    """With torch's iteration in float64; its own is in bfloat16, whatever the type."""
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("torch.optim._muon")

    def iteration(grad, ns_coefficients, ns_steps, eps):
        a, b, c = ns_coefficients
        x = grad.T if grad.size(0) > grad.size(1) else grad
        x = x / x.norm().clamp(min=eps)
        for _ in range(ns_steps):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x.T if grad.size(0) > grad.size(1) else x

    monkeypatch.setattr(module, "_zeropower_via_newtonschulz", iteration)
    muon = {"lr": 0.03, "weight_decay": 0.2, "momentum": 0.8, "nesterov": nesterov, "ns_steps": 4}
    muon |= {"ns_coefficients": (3.3, -4.6, 1.9), "eps": 1e-3, "adjust_lr_fn": adjust}
    adamw = {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1}
    expected = trained(
        torch,
        lambda p: [
            torch.optim.Muon(matrices(p), **muon),
            torch.optim.AdamW(vectors(p), **adamw, foreach=False),
        ],
    )
    found = stepped(torch, lambda p: st.Muon(p, **muon, adamw=adamw))
    compare(found, expected, rtol=1e-9)


def test_soap_equals_pytorch_optimizer():
    """Up to its first QR, which is in float32 whatever the type. Where the first statistics have no
    full rank their basis is any, so only axes that the batch fills are rotated; it decays after the
    update, so nothing decays here."""
    torch = pytest.importorskip("torch")
    peers = pytest.importorskip("pytorch_optimizer")
    hyper = {"lr": 0.01, "betas": (0.8, 0.9), "shampoo_beta": 0.7, "eps": 1e-3}
    hyper |= {"weight_decay": 0.0, "precondition_frequency": 100, "max_precondition_dim": 4}
    expected = trained(torch, lambda p: [peers.SOAP(list(p.values()), **hyper)])
    compare(stepped(torch, lambda p: st.SOAP(p, **hyper)), expected, rtol=1e-8, atol=1e-9)


def test_psgdkron_equals_pytorch_optimizer(monkeypatch):
    """With the same normal numbers, no balancing by chance, triangular systems in float64."""
    torch = pytest.importorskip("torch")
    peers = pytest.importorskip("pytorch_optimizer")
    psgd = pytest.importorskip("pytorch_optimizer.optimizer.psgd")
    drawn = ((name, t) for t in range(1, STEPS + 1) for name in network())

    def normal(x, dtype=None):
        name, t = next(drawn)
        shape = tuple(x.shape)
        return torch.from_numpy(random_numbers.normals(shape, np.dtype("f8"), 3, stream(name), t))

    def solve(x, a):
        flat = x.reshape(-1, x.size(-1))
        return torch.linalg.solve_triangular(a, flat, upper=True, left=False).reshape_as(x)

    monkeypatch.setattr(torch, "randn_like", normal)
    monkeypatch.setattr(psgd, "solve_triangular_right", solve)
    expected = trained(
        torch,
        lambda p: [
            peers.Kron(
                list(p.values()), lr=0.01, momentum=0.8, weight_decay=0.0, balance_prob=0.0,
                pre_conditioner_update_probability=1.0, precondition_dtype=torch.float64,
            )
        ],
    )  # fmt: skip
    found = stepped(
        torch,
        lambda p: st.PSGDKron(
            p, lr=0.01, momentum=0.8, preconditioner_update_probability=1.0, balance_interval=0,
            seed=3,
        ),
    )  # fmt: skip
    compare(found, expected, rtol=1e-9, atol=1e-11)
