"""GaLore in float64 against pytorch_optimizer, APOLLO against the authors' formulas."""

import math

import numpy as np
import pytest
from matrix_rules import CLOSE, gradients, path, start, torch_path

from steepest.matrix import low_rank, random_numbers


@pytest.mark.torch
@pytest.mark.parametrize("projection", ["std", "reverse_std", "right", "left"])
@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (6, 6)], ids=str)
def test_galore_equals_pytorch_optimizer(shape, projection):
    """Between two projections: it factors in float32, so that its first projector, of a gradient of
    float32 in value, is given to it here; its signs are LAPACK's, which cancel as long as the
    projector stays. It renews at steps 200, 400 ..., the authors at 201, 401 ..."""
    peers = pytest.importorskip("pytorch_optimizer")
    torch = pytest.importorskip("torch")
    grads = gradients(shape, 8)
    hyper = {"betas": (0.8, 0.9), "eps": 1e-3}

    def make(p):
        group = {"params": [p], "rank": 3, "update_proj_gap": 100, "scale": 0.5}
        return peers.GaLore([group | {"projection_type": projection}], lr=0.1, **hyper)

    axis = low_rank.side(shape, projection)
    basis = low_rank.singular_vectors(grads[0], axis, 3)

    def put(t, state):
        if t == 1:
            from pytorch_optimizer.optimizer.utils.galore import GaLoreProjector

            projector = GaLoreProjector(3, 100, 0.5, projection)
            projector.ortho_matrix = torch.from_numpy((basis.T if axis else basis).copy())
            state["projector"] = projector

    expected = torch_path(make, grads, start(shape), before=put)
    found = path(
        low_rank.galore_states,
        low_rank.galore_direction,
        grads,
        start(shape),
        0.1,
        shaping={"rank": 3, "proj_type": projection},
        rank=3,
        proj_type=projection,
        update_proj_gap=100,
        scale=0.5,
        **hyper,
    )
    np.testing.assert_allclose(found, expected, **CLOSE)


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (6, 6)], ids=str)
def test_projectors_are_those_of_the_singular_value_decomposition(shape):
    g = gradients(shape, 1)[0]
    u, _, vt = np.linalg.svd(g, full_matrices=False)
    for axis, full in ((0, u), (1, vt.T)):
        p = low_rank.singular_vectors(g, axis, 3)
        np.testing.assert_allclose(p @ p.T, full[:, :3] @ full[:, :3].T, atol=1e-12)
        huge = low_rank.singular_vectors(np.ldexp(g, 900), axis, 3)
        assert (huge == p).all()


def test_projectors_are_renewed_as_the_authors_do():
    state, renewed = low_rank.galore_states((6, 4), np.float64, rank=2), []
    for t, g in enumerate(gradients((6, 4), 10), 1):
        _, new = low_rank.galore_direction(g, state, t, rank=2, update_proj_gap=4)
        renewed += [t] if "projector" in new else []
        state |= new
    assert renewed == [1, 5, 9]


@pytest.mark.parametrize("kind", ["channel", "tensor"])
@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (6, 6)], ids=str)
@pytest.mark.parametrize("correct_bias", [True, False])
def test_apollo_equals_the_authors_formulas(shape, kind, correct_bias):
    """pytorch_optimizer is no reference here: it scales the projected gradient and projects that
    back, so its update has the rank of the projection; the paper and the authors' code scale the
    gradient itself, which is what APOLLO is about."""
    grads, rank, gap, scale, lr = gradients(shape, 12), 3, 5, 2.0, 0.1
    grads = [g * (3.0 if t > 6 else 1.0) for t, g in enumerate(grads)]
    (b1, b2), eps, tall = (0.8, 0.9), 1e-3, shape[0] >= shape[1]
    m = v = 0.0
    p, last, expected = start(shape), None, []
    for t, g in enumerate(grads, 1):
        draw = (min(shape), rank)
        basis = random_numbers.normals(draw, np.dtype("f8"), 1, 4, (t - 1) // gap) / math.sqrt(rank)
        low = g @ basis if tall else basis.T @ g
        m, v = b1 * m + (1 - b1) * low, b2 * v + (1 - b2) * low**2
        d = m / (np.sqrt(v) + eps)
        if kind == "tensor":
            s = np.linalg.norm(d) / (np.linalg.norm(low) + 1e-8)
        else:
            along = 1 if tall else 0
            s = np.linalg.norm(d, axis=along) / (np.linalg.norm(low, axis=along) + 1e-8)
            s = s[:, None] if tall else s
        u = g * s
        length = np.linalg.norm(u)
        if last is not None:
            limiter = max(length / (last + 1e-8), 1.01) / 1.01
            u, length = u / limiter, length / limiter
        last = length
        rate = lr * math.sqrt(1 - b2**t) / (1 - b1**t) if correct_bias else lr
        p = p - rate * math.sqrt(scale) * u
        expected.append(p)
    found = path(
        low_rank.apollo_states,
        low_rank.apollo_direction,
        grads,
        start(shape),
        lr,
        shaping={"rank": rank},
        rank=rank,
        update_proj_gap=gap,
        scale=scale,
        scale_type=kind,
        betas=(b1, b2),
        eps=eps,
        correct_bias=correct_bias,
        seed=1,
        stream=4,
    )
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_growth_without_a_limit():
    grads = [np.full((4, 4), 0.01), np.ones((4, 4))]
    lengths = []
    for growth in (1.01, math.inf):
        state = low_rank.apollo_states((4, 4), np.float64)
        for t, g in enumerate(grads, 1):
            d, new = low_rank.apollo_direction(
                g, state, t, eps=1.0, correct_bias=False, growth=growth
            )
            state |= new
        lengths.append(np.linalg.norm(d))
    assert lengths[0] < lengths[1]


@pytest.mark.torch
@pytest.mark.parametrize("direction", [low_rank.galore_direction, low_rank.apollo_direction])
def test_what_is_no_matrix_has_adam_as_in_pytorch_optimizer(direction):
    peers = pytest.importorskip("pytorch_optimizer")
    grads, hyper = gradients((5,), 6), {"betas": (0.8, 0.9), "eps": 1e-3}
    theirs = peers.GaLore if direction is low_rank.galore_direction else peers.APOLLO
    expected = torch_path(lambda p: theirs([p], lr=0.1, foreach=False, **hyper), grads, start((5,)))
    found = path(low_rank.galore_states, direction, grads, start((5,)), 0.1, **hyper)
    np.testing.assert_allclose(found, expected, **CLOSE)
