import doctest
import math

import autograd
import numpy as np
import pytest

from steepest import models
from steepest.models import MLP, accuracy, he, r_squared, xavier


def plain_loss(net, params, x, y):
    """The loss written once more, for autograd, straight from its definition."""
    *hidden, last = params.values()
    for layer in hidden:
        x = np.maximum(x @ layer["weight"] + layer["bias"], 0)
    z = x @ last["weight"] + last["bias"]
    if net.task == "regression":
        return np.mean((z[:, 0] - y) ** 2)
    chosen = z[np.arange(len(y)), y]
    return np.mean(np.log(np.sum(np.exp(z), axis=1)) - chosen)


NETS = [
    MLP((5, 3), "classification"),
    MLP((5, 7, 3), "classification"),
    MLP((5, 7, 4, 3), "classification"),
    MLP((5, 1), "regression"),
    MLP((5, 6, 4, 1), "regression"),
]


@pytest.mark.parametrize("net", NETS, ids=str)
def test_loss_and_gradients_against_autograd(net) -> None:
    rng = np.random.default_rng(7)
    params = net.initial(3, np.float64)
    for layer in params.values():
        layer["bias"][:] = rng.normal(size=layer["bias"].shape)
    x = rng.normal(size=(11, 5))
    y = rng.integers(3, size=11) if net.task == "classification" else rng.normal(size=11)
    value, grads = net.value_and_grad(params, x, y)
    expected, expected_grads = autograd.value_and_grad(
        lambda params: plain_loss(net, params, x, y)
    )(params)
    # The same sums in another order: a few roundings of numbers of about 1.
    np.testing.assert_allclose(value, expected, rtol=1e-13)
    assert value == net.loss(params, x, y)
    assert list(grads) == list(params)
    for name, layer in params.items():
        for key in layer:
            np.testing.assert_allclose(
                grads[name][key], expected_grads[name][key], rtol=1e-11, atol=1e-14
            )


def test_large_outputs_do_not_overflow() -> None:
    net = MLP((1, 2), "classification")
    params = {"layer1": {"weight": np.array([[1e4, -1e4]]), "bias": np.zeros(2)}}
    value, grads = net.value_and_grad(params, np.array([[1.0]]), np.array([1]))
    assert value == 2e4
    np.testing.assert_array_equal(grads["layer1"]["bias"], [1.0, -1.0])


@pytest.mark.parametrize("net", NETS, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fresh_parameters_and_gradients_have_the_dtype(net, dtype) -> None:
    params = net.initial(0, dtype)
    x = np.ones((4, 5), np.float32)
    _, grads = net.value_and_grad(params, x, np.zeros(4, np.int64))
    arrays = [array for layer in params.values() for array in layer.values()]
    slopes = [array for layer in grads.values() for array in layer.values()]
    assert {array.dtype for array in arrays + slopes} == {np.dtype(dtype)}
    assert sum(array.size for array in arrays) == net.size
    assert [a.shape for a in arrays] == [a.shape for a in slopes]


def test_seed_decides_the_parameters() -> None:
    net = NETS[2]

    def first(seed):
        return net.initial(seed)["layer1"]["weight"].tolist()

    assert first(1) == first(1)
    assert first(1) != first(2)


@pytest.mark.parametrize(
    ("make", "deviation"),
    [(he, math.sqrt(2 / 300)), (xavier, math.sqrt(6 / 500) / math.sqrt(3))],
    ids=["he", "xavier"],
)
def test_spread_of_initial_weights(make, deviation) -> None:
    weights = make(np.random.default_rng(1), 300, 200, np.float64)
    assert weights.shape == (300, 200)
    # 60 000 samples: the deviation is known to 0.3 %, the mean to deviation / 245.
    np.testing.assert_allclose(weights.std(), deviation, rtol=0.01)
    np.testing.assert_allclose(weights.mean(), 0, atol=deviation / 80)


def test_xavier_stays_within_its_limit() -> None:
    weights = xavier(np.random.default_rng(1), 30, 20, np.float64)
    assert 0.99 * math.sqrt(6 / 50) < np.abs(weights).max() < math.sqrt(6 / 50)


def test_predictions() -> None:
    layer = {"weight": np.array([[1.0, -1.0], [0.0, 0.5]]), "bias": np.array([0.0, 0.25])}
    x = np.array([[1.0, 0.0], [-1.0, 0.0], [0.1, 0.0]])
    assert MLP((2, 2), "classification").predict({"a": layer}, x).tolist() == [0, 1, 1]
    column = {"weight": np.array([[2.0], [1.0]]), "bias": np.array([0.5])}
    assert MLP((2, 1), "regression").predict({"a": column}, x).tolist() == [2.5, -1.5, 0.7]


def test_metrics() -> None:
    assert accuracy(np.array([1, 0, 2]), np.array([1, 1, 1])) == 1 / 3
    y = np.array([1.0, 2.0, 6.0])
    assert r_squared(y, y) == 1
    assert r_squared(np.full(3, 3.0), y) == 0
    assert math.isnan(r_squared(y, np.ones(3)))


def test_examples() -> None:
    assert doctest.testmod(models).failed == 0
