"""SOAP in float64 against the authors' formulas and pytorch_optimizer."""

import math

import numpy as np
import pytest
from matrix_rules import gradients, path, start, torch_path

from steepest.matrix import adam_moments, soap


def soap_written_down(grads, p, lr, betas, beta, eps, every, correct_bias):
    """The authors' code, in einsum, for a matrix."""
    (b1, b2), found = betas, []
    left = right = ql = qr = 0.0
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads):
        if t:
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * np.einsum("ia,ij,jb->ab", ql, g, qr) ** 2
            d = np.einsum("ia,ij,jb->ab", ql, m, qr) / (np.sqrt(v) + eps)
            d = np.einsum("ia,ab,jb->ij", ql, d, qr)
            rate = lr * math.sqrt(1 - b2**t) / (1 - b1**t) if correct_bias else lr
            p = p - rate * d
        left = beta * left + (1 - beta) * g @ g.T
        right = beta * right + (1 - beta) * g.T @ g
        if t == 0:
            ql, qr = np.linalg.eigh(left)[1][:, ::-1], np.linalg.eigh(right)[1][:, ::-1]
        elif t % every == 0:
            by = np.argsort(-np.diag(ql.T @ left @ ql))
            ql, v = np.linalg.qr((left @ ql)[:, by])[0], v[by]
            by = np.argsort(-np.diag(qr.T @ right @ qr))
            qr, v = np.linalg.qr((right @ qr)[:, by])[0], v[:, by]
        found.append(p)
    return np.array(found)


SOAP = [
    {"betas": (0.8, 0.9), "shampoo_beta": 0.7, "eps": 1e-3, "precondition_frequency": 2},
    {"betas": (0.9, 0.6), "shampoo_beta": None, "eps": 1e-2, "precondition_frequency": 3}
    | {"correct_bias": False},
]


@pytest.mark.parametrize("hyper", SOAP)
def test_soap_equals_the_authors_formulas(hyper):
    """On a square matrix of full rank: else the basis of the null space of the first statistics is
    any, and so are later directions."""
    grads = gradients((7, 7), 12)
    beta = hyper["shampoo_beta"] or hyper["betas"][1]
    expected = soap_written_down(
        grads,
        start((7, 7)),
        0.1,
        hyper["betas"],
        beta,
        hyper["eps"],
        hyper["precondition_frequency"],
        hyper.get("correct_bias", True),
    )
    found = path(soap.initial_states, soap.direction, grads, start((7, 7)), 0.1, **hyper)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.torch
@pytest.mark.parametrize("hyper", SOAP)
@pytest.mark.parametrize(
    ("shape", "shaping"),
    [
        ((7, 7), {}),
        ((3, 4, 5), {}),
        ((9, 4), {"max_precondition_dim": 5}),
        ((6,), {}),
        ((1,), {"precondition_1d": True}),
    ],
    ids=str,
)
def test_soap_equals_pytorch_optimizer(shape, shaping, hyper):
    """pytorch_optimizer factors in float32 whatever the type: 1e-4 after the first QR, exact
    before. It decays after the update and not at the first step; here nothing decays."""
    peers = pytest.importorskip("pytorch_optimizer")
    grads = gradients(shape, 8)

    def make(p):
        return peers.SOAP([p], lr=0.1, weight_decay=0.0, **hyper, **shaping)

    expected = torch_path(make, grads, start(shape))
    found = path(
        soap.initial_states,
        soap.direction,
        grads,
        start(shape),
        0.1,
        shaping=shaping,
        **hyper,
        **shaping,
    )
    first = hyper["precondition_frequency"] + 1
    np.testing.assert_allclose(found[:first], expected[:first], rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.torch
def test_soap_with_a_normalised_direction_equals_pytorch_optimizer():
    peers = pytest.importorskip("pytorch_optimizer")
    hyper = SOAP[0] | {"normalize_gradient": True, "precondition_frequency": 100}
    grads = gradients((6, 6), 8)
    expected = torch_path(
        lambda p: peers.SOAP([p], lr=0.1, weight_decay=0.0, **hyper), grads, start((6, 6))
    )
    found = path(soap.initial_states, soap.direction, grads, start((6, 6)), 0.1, **hyper)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-9)


def test_soap_on_a_vector_is_adam_one_step_late():
    grads = gradients((6,), 8)
    state, found = soap.initial_states((6,), np.float64), []
    for t, g in enumerate(grads, 1):
        d, new = soap.direction(g, state, t, betas=(0.8, 0.9), eps=1e-3)
        state |= new
        found.append(d)
    state = adam_moments.initial_states((6,), np.float64)
    for t, g in enumerate(grads[1:], 1):
        d, new = adam_moments.direction(g, state, t, betas=(0.8, 0.9), eps=1e-3)
        state |= new
        np.testing.assert_allclose(found[t], d, rtol=1e-14)
