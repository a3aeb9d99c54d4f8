"""Norms and factorisations: no overflow, no exception for what is not finite."""

import math

import numpy as np
import pytest

from steepest.matrix import linalg, random_numbers

TYPES = [np.float32, np.float64]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("power", [-140, -60, 0, 60, 120])
def test_norms_of_any_size_have_no_lost_squares(dtype, power):
    """2⁻¹⁴⁰ is subnormal in float32, where few digits of x are left, but none of them is lost."""
    x = np.ldexp(np.random.default_rng(0).standard_normal((7, 9)).astype(dtype), power)
    expected = math.fsum(float(v) ** 2 for v in np.ldexp(x.astype(np.float64), -power).flat)
    # Sums of 9 squares in x's type, halved by the root: 5 roundings.
    assert linalg.norm(x) == pytest.approx(
        math.ldexp(math.sqrt(expected), power), rel=5 * float(np.finfo(dtype).eps)
    )


def test_norms_of_what_is_empty_zero_or_not_finite():
    assert linalg.norm(np.zeros((0, 3))) == linalg.norm(np.zeros((2, 3))) == 0.0
    for bad in (math.nan, math.inf, -math.inf):
        assert not math.isfinite(linalg.norm(np.array([[1.0, bad]])))


def test_a_basis_is_orthonormal_falling_and_of_settled_sign():
    a = np.random.default_rng(1).standard_normal((20, 20))
    values, vectors = linalg.eigenbasis(a @ a.T, "a")
    assert (np.diff(values) <= 0).all()
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(20), atol=1e-13)
    np.testing.assert_allclose(vectors * values @ vectors.T, a @ a.T, rtol=1e-12, atol=1e-12)
    assert (vectors[np.abs(vectors).argmax(axis=0), np.arange(20)] > 0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_has_factors_of_nan(bad):
    a = np.eye(3)
    a[0, 1] = bad
    assert np.isnan(linalg.eigenbasis(a, "a")[1]).all()
    assert np.isnan(linalg.orthonormal(a, "a")).all()
    assert np.isnan(linalg.inverse_root(a, 4, 1e-6, "a")).all()


@pytest.mark.parametrize(
    ("routine", "call"),
    [
        ("eigh", lambda: linalg.eigenbasis(np.eye(2), "GG_0")),
        ("eigh", lambda: linalg.inverse_root(np.eye(2), 4, 1e-6, "GG_0")),
        ("qr", lambda: linalg.orthonormal(np.eye(2), "GG_0")),
    ],
)
def test_a_factorisation_that_fails_names_its_matrix(monkeypatch, routine, call):
    def fails(a):
        raise np.linalg.LinAlgError("no convergence")

    monkeypatch.setattr(np.linalg, routine, fails)
    with pytest.raises(linalg.DecompositionError, match="GG_0"):
        call()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("order", [2, 4, 6])
def test_roots_undo_powers(dtype, order):
    """The bound is the rounding of the root to its type, order times over."""
    a = np.random.default_rng(2).standard_normal((9, 9))
    a = (a @ a.T + np.eye(9)).astype(dtype)
    root = linalg.inverse_root(a, order, 1e-6, "a")
    assert root.dtype == dtype
    power = np.linalg.matrix_power(root.astype(np.float64), order)
    error = np.linalg.norm(power @ a - np.eye(9)) / np.linalg.cond(a.astype(np.float64))
    assert error < 4 * order * np.finfo(dtype).eps


def test_roots_have_a_floor():
    zero = np.zeros((2, 2))
    np.testing.assert_allclose(linalg.inverse_root(zero, 4, 1e-8, "a"), 100 * np.eye(2))
    assert np.isfinite(linalg.inverse_root(np.diag([1.0, 0.0]), 4, 0.0, "a")).all()
    assert np.isfinite(linalg.inverse_root(np.zeros((2, 2), np.float32), 4, 0.0, "a")).all()


@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 100])
def test_triangular_systems(n):
    rng = np.random.default_rng(n)
    r = np.triu(rng.standard_normal((n, n))) / max(n, 1) + 2 * np.eye(n)
    x = rng.standard_normal((5, n))
    kept = x.copy()
    np.testing.assert_allclose(linalg.solve_right(x, r) @ r, x, rtol=1e-12, atol=1e-12)
    assert (x == kept).all()


def test_singular_triangular_systems_raise_nothing():
    assert not np.isfinite(linalg.solve_right(np.ones((1, 2)), np.zeros((2, 2)))).any()


def test_products_along_axes():
    rng = np.random.default_rng(3)
    x, m = rng.standard_normal((3, 4, 5)), rng.standard_normal((4, 6))
    assert np.allclose(linalg.along(x, 1, m), np.einsum("abc,bd->adc", x, m), rtol=1e-13)
    assert np.allclose(linalg.gram(x, 1), np.einsum("abc,adc->bd", x, x), rtol=1e-13)


def test_random_numbers_depend_on_each_count_and_on_nothing_else():
    def draw(dtype="f8", **count):
        counts = {"seed": 1, "stream": 2, "count": 3} | count
        return random_numbers.normals((4, 5), np.dtype(dtype), **counts)

    np.random.default_rng().standard_normal()
    assert (draw() == draw()).all()
    assert (draw("f4") == draw().astype("f4")).all()
    for other in ({"seed": 0}, {"stream": 3}, {"count": 4}, {"seed": -1}):
        assert not np.intersect1d(draw(**other), draw()).size  # nor a part of the same sequence


def test_random_numbers_are_standard_normal():
    """Mean and variance within five standard errors."""
    x = random_numbers.normals((200, 500), np.dtype("f8"), seed=0, stream=0, count=1)
    assert abs(x.mean()) < 5 / math.sqrt(x.size)
    assert abs(x.var() - 1) < 5 * math.sqrt(2 / x.size)
