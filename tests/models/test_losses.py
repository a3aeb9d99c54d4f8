import doctest
import math
import sys

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

import steepest as st
from steepest.models import losses

INF = math.inf
ROOT = math.sqrt(5)

ERRORS = [0.3, -0.7, 2.0, -2.0, 0.0, 5.5, -1e-8, 1e5, -1e150, 1e-300]
LOGITS = [0.3, -0.7, 0.0, 36.0, -36.0, 40.0, -40.0, 700.0, -700.0, 1e3, -1e3, 1e150]
TABLE = [
    [0.1, -0.2, 3.0],
    [0.0, 0.0, 0.0],
    [1e3, -1e3, 1e3],
    [700.0, 0.0, -700.0],
    [-1e3, -1e3, -2e3],
    [1e150, 1.0, 0.0],
    [-INF, 1.0, 2.0],
]


def arrays(name):
    """Arguments that a loss must stand."""
    if name == "logistic":
        z = np.array(LOGITS)
        return np.tile(z, 2), np.repeat([0, 1], len(z))
    if name == "cross_entropy":
        return np.array(TABLE), np.array([2, 0, 0, 1, 1, 0, 1])
    error = np.array(ERRORS)
    target = np.where(np.abs(error) > 10, 0.0, 1.5)
    return error + target, target


# A loss, its options, and what PyTorch calls them.
CASES = [
    ("squared", {}, "mse_loss", {}),
    ("absolute", {}, "l1_loss", {}),
    ("huber", {"delta": 1.0}, "huber_loss", {"delta": 1.0}),
    ("huber", {"delta": 2.0}, "huber_loss", {"delta": 2.0}),
    ("huber", {"delta": 0.2}, "huber_loss", {"delta": 0.2}),
    ("logistic", {}, "binary_cross_entropy_with_logits", {}),
    ("cross_entropy", {}, "cross_entropy", {}),
    ("cross_entropy", {"smoothing": 0.3}, "cross_entropy", {"label_smoothing": 0.3}),
]
IDS = ["-".join([name, *map(str, options.values())]) for name, options, *_ in CASES]
cases = pytest.mark.parametrize(("name", "options", "twin", "twins"), CASES, ids=IDS)


def finite(name, options):
    """Arguments for a finite loss: smoothing makes a forbidden class infinitely unlikely."""
    prediction, target = arrays(name)
    if "smoothing" in options:
        prediction, target = prediction[:-1], target[:-1]
    return prediction, target


@cases
def test_gradients_by_hand_equal_autograds(name, options, twin, twins):
    prediction, target = finite(name, options)
    value, slope = autograd.value_and_grad(losses.LOSSES[name])(prediction, target, **options)
    assert math.isfinite(value) and np.isfinite(slope).all()
    assert value == losses.LOSSES[name](prediction, target, **options)
    by_hand = losses.GRADIENTS[name](prediction, target, **options)
    # exp(z - log(1 + exp(z))) loses 1e-16 · |z| of its digits; a label's 1 - p loses 1e-16.
    np.testing.assert_allclose(by_hand, slope, rtol=2e-13, atol=1e-16)


@pytest.mark.torch
@cases
def test_values_and_gradients_equal_torchs(name, options, twin, twins):
    torch = pytest.importorskip("torch")
    prediction, target = finite(name, options)
    z = torch.tensor(prediction, requires_grad=True)
    y = torch.tensor(target.astype(float) if name == "logistic" else target)
    expected = getattr(torch.nn.functional, twin)(z, y, **twins)
    expected.backward()
    value, slope = autograd.value_and_grad(losses.LOSSES[name])(prediction, target, **options)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-14)
    for found in (slope, losses.GRADIENTS[name](prediction, target, **options)):
        # PyTorch takes the label from a probability: near 1, what is left is off by 1e-16.
        np.testing.assert_allclose(found, z.grad.numpy(), rtol=1e-12, atol=1e-16)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["squared", "absolute", "huber"])
def test_infinite_errors_have_the_slopes_of_torch(name):
    torch = pytest.importorskip("torch")
    prediction, target = np.array([INF, -INF, 0.5]), np.array([0.0, 1.0, 0.0])
    z = torch.tensor(prediction, requires_grad=True)
    twin = {"squared": "mse_loss", "absolute": "l1_loss", "huber": "huber_loss"}[name]
    getattr(torch.nn.functional, twin)(z, torch.tensor(target)).backward()
    slope = autograd.grad(losses.LOSSES[name])(prediction, target)
    np.testing.assert_array_equal(slope, z.grad.numpy())
    np.testing.assert_array_equal(losses.GRADIENTS[name](prediction, target), z.grad.numpy())


def test_small_probabilities_keep_their_digits():
    """Taking the label from a probability, as PyTorch does, gives 0 here."""
    z = np.array([40.0, -40.0])
    for slope in (losses.GRADIENTS["logistic"], autograd.grad(losses.logistic)):
        small = math.exp(-40) / (1 + math.exp(-40)) / 2
        np.testing.assert_allclose(slope(z, np.array([1, 0])), [-small, small], rtol=1e-14)


# What they are, by their definitions


def test_values():
    a, b = np.array([[1.0, 2.0], [3.0, -4.0]]), np.array([[1.0, 0.0], [3.5, 0.0]])
    assert losses.squared(a, b) == (0 + 4 + 0.25 + 16) / 4
    assert losses.absolute(a, b) == (0 + 2 + 0.5 + 4) / 4
    assert losses.huber(a, b, delta=2.0) == (0 + 2 + 0.125 + 2 * (4 - 1)) / 4
    z, y = np.array([0.5, -1.5]), np.array([True, False])
    expected = (math.log(1 + math.exp(-0.5)) + math.log(1 + math.exp(-1.5))) / 2
    np.testing.assert_allclose(losses.logistic(z, y), expected, rtol=1e-15)
    p = losses.softmax(a)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-15)
    expected = -(math.log(p[0, 1]) + math.log(p[1, 0])) / 2
    np.testing.assert_allclose(losses.cross_entropy(a, [1, 0]), expected, rtol=1e-15)


def test_two_classes_by_either_loss():
    z, y = np.array([0.5, -1.5, 30.0]), np.array([1, 1, 0], np.uint8)
    both = losses.cross_entropy(np.stack([0 * z, z], axis=1), y)
    np.testing.assert_allclose(losses.logistic(z, y), both, rtol=1e-15)


def test_second_derivatives():
    e, t = np.array([0.5, -3.0]), np.zeros(2)
    hessians = {name: autograd.hessian(losses.LOSSES[name])(e, t) for name in ("squared", "huber")}
    assert hessians["squared"].tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert hessians["huber"].tolist() == [[0.5, 0.0], [0.0, 0.0]]
    p = losses.sigmoid(e)
    hessian = autograd.hessian(losses.logistic)(e, np.array([0, 1]))
    np.testing.assert_allclose(hessian, np.diag(p * (1 - p)) / 2, rtol=1e-14)
    p = losses.softmax(e)
    hessian = autograd.hessian(lambda z: losses.cross_entropy(z[None], [1]))(e)
    np.testing.assert_allclose(hessian, np.diag(p) - np.outer(p, p), rtol=1e-14, atol=1e-16)


def test_regression_losses_can_be_differentiated_by_the_target():
    for name in ("squared", "absolute", "huber"):
        prediction, target = arrays(name)
        slope = autograd.grad(losses.LOSSES[name], 1)(prediction, target)
        # Twice the error over n, rounded in another order.
        by_hand = losses.GRADIENTS[name](prediction, target)
        np.testing.assert_allclose(slope, -by_hand, rtol=4e-16)


@cases
def test_types_are_kept(name, options, twin, twins):
    prediction, target = (np.array([[0.5, 1.0]] * 3), np.array([1, 0, 0]))
    if name != "cross_entropy":
        prediction = prediction[:, 0]
    prediction = prediction.astype(np.float32)
    target = target if name in ("logistic", "cross_entropy") else target.astype(np.float32)
    value, slope = autograd.value_and_grad(losses.LOSSES[name])(prediction, target, **options)
    by_hand = losses.GRADIENTS[name](prediction, target, **options)
    assert value.dtype == slope.dtype == np.float32
    assert by_hand.dtype == np.float32


def test_unsigned_integers_do_not_wrap_around():
    a, b = np.array([1], np.uint8), np.array([3], np.uint8)
    assert losses.squared(a, b) == 4
    assert losses.logistic(np.array([0.0]), np.array([1], np.uint8)) == math.log(2)


def test_no_other_package_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "autograd", None)
    for name, loss in losses.LOSSES.items():
        assert math.isfinite(loss(*arrays(name)))


def test_within_fit():
    """By autograd through the loss, and by a gradient written out: the same parameters."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3))
    y = (x @ [1.0, -2.0, 0.5] + 0.3 * rng.normal(size=40) > 0).astype(int)
    a, b = np.zeros(3), np.zeros(3)

    def loss(w, x, y):
        return losses.logistic(x @ w, y)

    def value_and_grad(w, x, y):
        return loss(w, x, y), x.T @ losses.GRADIENTS["logistic"](x @ w, y)

    st.fit(loss, a, (x, y), st.Adam(a, lr=0.1), epochs=50, batch_size=8)
    history = st.fit(
        loss, b, (x, y), st.Adam(b, lr=0.1), epochs=50, batch_size=8, value_and_grad=value_and_grad
    )
    assert history["loss"][-1] < 0.2
    # 250 steps of roundings in another order.
    np.testing.assert_allclose(a, b, rtol=1e-10)


def test_on_scalars():
    assert losses.squared(3.0, 1.0) == 4.0
    assert autograd.grad(lambda x: losses.huber(x, 0.0))(3.0) == 1.0
    assert autograd.grad(lambda x: losses.logistic(anp.sin(x), 1))(0.0) == -0.5


# Errors


@pytest.mark.parametrize("name", ["squared", "absolute", "huber", "logistic"])
@pytest.mark.parametrize(
    ("prediction", "target", "hint"),
    [
        ((4, 1), (4,), r"shape \(4, 1\), target \(4,\): .*; give prediction\[:, 0\]"),
        ((4,), (4, 1), r"shape \(4,\), target \(4, 1\): .*; give target\[:, 0\]"),
        ((4, 3, 1), (4, 3), r"give prediction\[:, :, 0\]"),
        ((4,), (), "give arrays with one target for each prediction"),
        ((4,), (3,), "give arrays with one target for each prediction"),
        ((0,), (0,), r"shape \(0,\): there is nothing to average"),
    ],
)
def test_shapes_that_differ_are_refused(name, prediction, target, hint):
    prediction, target = np.zeros(prediction), np.zeros(target)
    loss = losses.LOSSES[name]
    with pytest.raises(ValueError, match=hint):
        loss(prediction, target)
    with pytest.raises(ValueError, match=hint):
        autograd.grad(loss)(prediction, target)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda z: losses.logistic(z[:, 0], [1, -1]), ValueError, "label -1 is neither 0 nor 1"),
        (lambda z: losses.logistic(z[:, 0], [1, 0.5]), ValueError, r"label 0.5 is neither 0 nor 1"),
        (lambda z: losses.cross_entropy(z[:, 0], [1, 0]), ValueError, r"logits have shape \(2,\)"),
        (lambda z: losses.cross_entropy(z, [[1], [0]]), ValueError, r"classes \(2, 1\): expected"),
        (lambda z: losses.cross_entropy(z, [1]), ValueError, r"classes \(1,\): expected"),
        (lambda z: losses.cross_entropy(z[:0], [1][:0]), ValueError, r"shape \(0, 3\)"),
        (lambda z: losses.cross_entropy(z, [0, 3]), ValueError, "class 3: .* from 0 to 2"),
        (lambda z: losses.cross_entropy(z, [-1, 0]), ValueError, "class -1: .* from 0 to 2"),
        (lambda z: losses.cross_entropy(z, [1.0, 0.0]), TypeError, "dtype float64; .* integers"),
        (lambda z: losses.cross_entropy(z, [0, 1], smoothing=1.0), ValueError, "smoothing = 1.0"),
        (lambda z: losses.cross_entropy(z, [0, 1], smoothing=-0.1), ValueError, "smoothing = -0.1"),
        (lambda z: losses.huber(z, z, delta=0.0), ValueError, "delta = 0.0: expected"),
        (lambda z: losses.huber(z, z, delta="a"), TypeError, "delta = 'a': expected"),
        (lambda z: losses.huber(z, z, delta=math.nan), ValueError, "delta = nan: expected"),
        (lambda z: losses.huber(z, z, delta=INF), ValueError, "delta = inf: expected"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(np.zeros((2, 3)))


def test_examples():
    assert doctest.testmod(losses).failed == 0
