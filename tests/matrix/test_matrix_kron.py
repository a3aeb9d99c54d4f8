"""PSGD-Kron in float64 against pytorch_optimizer."""

import numpy as np
import pytest
from matrix_rules import CLOSE, gradients, path, start, torch_path

from steepest.matrix import kron, random_numbers


@pytest.mark.torch
@pytest.mark.parametrize("into", [True, False])
@pytest.mark.parametrize(
    ("shape", "shaping"),
    [
        ((6, 6), {}),
        ((9, 4), {}),
        ((4, 40), {"memory_save_mode": "one_diag"}),
        ((3, 4, 5), {"max_size_triangular": 4}),
        ((5, 5), {"memory_save_mode": "smart_one_diag"}),
        ((4, 5), {"memory_save_mode": "all_diag"}),
        ((7,), {"min_ndim_triangular": 1}),
        ((7,), {}),
        ((), {}),
    ],
    ids=str,
)
def test_psgdkron_equals_pytorch_optimizer(shape, shaping, into, monkeypatch):
    """The same normal numbers are given to it, and its draws for balancing are switched off. Its
    triangular systems are solved in float32 whatever the type, so that is where it is exact: the
    function is replaced by one in float64."""
    peers = pytest.importorskip("pytorch_optimizer")
    psgd = pytest.importorskip("pytorch_optimizer.optimizer.psgd")
    torch = pytest.importorskip("torch")
    count = iter(range(1, 100))

    def normal(x, dtype=None):
        v = random_numbers.normals(tuple(x.shape) or (1,), np.dtype("f8"), 3, 2, next(count))
        return torch.from_numpy(v.reshape(tuple(x.shape)))

    def solve(x, a):
        flat = x.reshape(-1, x.size(-1))
        return torch.linalg.solve_triangular(a, flat, upper=True, left=False).reshape_as(x)

    monkeypatch.setattr(torch, "randn_like", normal)
    monkeypatch.setattr(psgd, "solve_triangular_right", solve)
    grads = gradients(shape, 8)
    expected = torch_path(
        lambda p: peers.Kron(
            [p],
            lr=0.1,
            momentum=0.8,
            pre_conditioner_update_probability=1.0,
            momentum_into_precondition_update=into,
            precondition_dtype=torch.float64,
            balance_prob=0.0,
            **shaping,
        ),
        grads,
        start(shape),
    )
    found = path(
        kron.initial_states,
        kron.direction,
        grads,
        start(shape),
        0.1,
        shaping=shaping,
        momentum=0.8,
        preconditioner_update_probability=1.0,
        momentum_into_precondition_update=into,
        balance_interval=0,
        seed=3,
        stream=2,
    )
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_factors_are_renewed_as_often_as_the_probability_says():
    """As in pytorch_optimizer, a counter and no draw: 2 in 7 is every fourth step."""
    state, renewed = kron.initial_states((3, 3), np.float64), []
    for t, g in enumerate(gradients((3, 3), 13), 1):
        _, new = kron.direction(g, state, t, preconditioner_update_probability=2 / 7)
        renewed += [t] if "Q_0" in new else []
        state |= new
    assert renewed == [4, 8, 12]
    assert "Q_0" not in kron.direction(g, state, 1, preconditioner_update_probability=0.0)[1]


def test_factors_start_at_the_scale_given():
    state = kron.initial_states((3, 3), np.float64, precond_init_scale=4.0)
    np.testing.assert_allclose(state["Q_0"], 2 * np.eye(3))


def test_balanced_factors_have_the_same_product():
    rng = np.random.default_rng(0)
    factors = [100 * rng.standard_normal((3, 3)), rng.standard_normal(4), rng.standard_normal(2)]
    even = kron.balanced(factors)
    assert np.ptp([np.abs(q).max() for q in even]) < 1e-12
    product = np.einsum("ab,c,d->abcd", *factors)
    np.testing.assert_allclose(np.einsum("ab,c,d->abcd", *even), product, rtol=1e-12)


def test_a_bound_of_the_norm_is_below_it_and_near():
    for seed in range(20):
        a = np.random.default_rng(seed).standard_normal((9, 9))
        a = a @ a.T
        bound, true = kron.spectral_bound(a), np.linalg.norm(a, 2)
        assert 0.5 * true < bound <= true * (1 + 1e-12)
