"""Shampoo in float64 against the paper's algorithm and pytorch_optimizer."""

import numpy as np
import pytest
from matrix_rules import gradients, path, start, torch_path

from steepest.matrix import shampoo


def shampoo_written_down(grads, p, lr, eps):
    """The paper's algorithm 2, with roots by a general matrix function."""
    from scipy.linalg import fractional_matrix_power as power

    sums, found = [eps * np.eye(n) for n in p.shape], []
    for g in grads:
        d = g
        for k in range(g.ndim):
            flat = np.moveaxis(g, k, 0).reshape(g.shape[k], -1)
            sums[k] = sums[k] + flat @ flat.T
            root = power(sums[k], -1 / (2 * g.ndim)).real
            d = np.moveaxis(np.tensordot(root, d, axes=([1], [k])), 0, k)
        p = p - lr * d
        found.append(p)
    return np.array(found)


@pytest.mark.parametrize(
    "shape", [(6, 6), (9, 4), (4, 9), (3, 4, 5), (1, 5), (2, 2, 3, 2)], ids=str
)
def test_shampoo_equals_the_paper(shape):
    """scipy's matrix power is by Schur and Padé: some 1e-9 on matrices of condition 1e5."""
    grads = gradients(shape, 5)
    expected = shampoo_written_down(grads, start(shape), 0.1, 1e-3)
    found = path(
        shampoo.initial_states,
        shampoo.direction,
        grads,
        start(shape),
        0.1,
        shaping={"matrix_eps": 1e-3},
        matrix_eps=1e-3,
    )
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.torch
@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9)], ids=str)
def test_shampoo_equals_pytorch_optimizer(shape):
    """Of its dialect only this much is the paper's: without momentum, which it mixes into the
    gradient before it is multiplied, with a root at every step, as its roots are 0 until the first
    they are due at, and for matrices."""
    peers = pytest.importorskip("pytorch_optimizer")
    grads = gradients(shape, 8)
    expected = torch_path(
        lambda p: peers.Shampoo([p], lr=0.1, matrix_eps=1e-2), grads, start(shape)
    )
    found = path(
        shampoo.initial_states,
        shampoo.direction,
        grads,
        start(shape),
        0.1,
        shaping={"matrix_eps": 1e-2},
        matrix_eps=1e-2,
    )
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)


def test_roots_are_renewed_at_the_first_step_and_at_every_so_many():
    state, renewed = shampoo.initial_states((4, 3), np.float64), []
    for t, g in enumerate(gradients((4, 3), 9), 1):
        _, new = shampoo.direction(g, state, t, preconditioning_compute_steps=4)
        renewed += [t] if "root_0" in new else []
        state |= new
    assert renewed == [1, 4, 8]


def test_shampoo_of_vectors_and_long_axes_takes_diagonals():
    grads = gradients((5,), 6)
    found = path(
        shampoo.initial_states,
        shampoo.direction,
        grads,
        start((5,)),
        0.1,
        shaping={"matrix_eps": 1e-3},
        matrix_eps=1e-3,
    )
    total, p = 1e-3, start((5,))
    for g, x in zip(grads, found, strict=True):
        total = total + g * g
        p = p - 0.1 * g / np.sqrt(total)
        np.testing.assert_allclose(x, p, rtol=1e-13)
    g = gradients((6, 3), 1)[0]
    state = shampoo.initial_states((6, 3), np.float64, max_precondition_dim=4, matrix_eps=1e-3)
    d, _ = shampoo.direction(g, state, 1, max_precondition_dim=4, matrix_eps=1e-3)
    rows = (1e-3 + (g * g).sum(axis=1)) ** -0.25
    values, vectors = np.linalg.eigh(1e-3 * np.eye(3) + g.T @ g)
    expected = rows[:, None] * (g @ (vectors * values**-0.25) @ vectors.T)
    np.testing.assert_allclose(d, expected, rtol=1e-12)


@pytest.mark.parametrize("grafting", ["sgd", "adagrad"])
def test_grafting_gives_the_norm_of_the_other_rule(grafting):
    state, total = shampoo.initial_states((5, 4), np.float64, grafting=grafting), 0.0
    plain = shampoo.initial_states((5, 4), np.float64)
    for t, g in enumerate(gradients((5, 4), 5), 1):
        d, new = shampoo.direction(g, state, t, grafting=grafting)
        e, other = shampoo.direction(g, plain, t)
        state, plain, total = state | new, plain | other, total + g * g
        model = g if grafting == "sgd" else g / np.sqrt(total)
        expected = e * np.linalg.norm(model) / np.linalg.norm(e)
        np.testing.assert_allclose(d, expected, rtol=1e-12)
