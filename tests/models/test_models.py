import doctest
import math

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

import steepest as st
from steepest import models
from steepest.models import initializers, losses, networks
from steepest.models.networks import MLP, linear_regression, logistic_regression, softmax_regression


def plain_loss(net, params, x, y):
    """The loss written once more, for autograd, straight from its definition."""
    *hidden, last = params.values()
    for layer in hidden:
        z = x @ layer["weight"] + layer["bias"]
        x = anp.tanh(z) if net.activation == "tanh" else anp.maximum(z, 0)
    z = x @ last["weight"] + last["bias"]
    if net.objective == "cross_entropy":
        chosen = z[np.arange(len(y)), y]
        return anp.mean(anp.log(anp.sum(anp.exp(z), axis=1)) - chosen)
    if net.objective == "logistic":
        p = 1 / (1 + anp.exp(-z[:, 0]))
        return -anp.mean(y * anp.log(p) + (1 - y) * anp.log(1 - p))
    error = z[:, 0] - y
    if net.objective == "squared":
        return anp.mean(error**2)
    if net.objective == "absolute":
        return anp.mean(anp.abs(error))
    d = net.delta
    return anp.mean(
        anp.where(anp.abs(error) < d, error**2 / 2, d * anp.abs(error) - d**2 / 2),
    )


NETS = [
    MLP((5, 3), "classification"),
    MLP((5, 7, 3), "classification"),
    MLP((5, 7, 4, 3), "classification"),
    MLP((5, 6, 4, 3), "classification", activation="tanh"),
    MLP((5, 6, 1), "classification"),
    MLP((5, 1), "regression"),
    MLP((5, 6, 4, 1), "regression"),
    MLP((5, 6, 4, 1), "regression", activation="tanh"),
    MLP((5, 6, 1), "regression", "absolute"),
    MLP((5, 6, 1), "regression", "huber", 0.5),
    linear_regression(5),
    linear_regression(5, objective="huber", delta=2.0),
    logistic_regression(5),
    softmax_regression(5, 3),
]


def samples(net, seed=7, n=11):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 5))
    if net.task == "regression":
        return x, rng.normal(size=n)
    return x, rng.integers(max(2, net.sizes[-1]), size=n)


def perturbed(net):
    """Parameters in float64, none of them zero."""
    params = net.initial(3, np.float64)
    rng = np.random.default_rng(8)
    for layer in params.values():
        for array in layer.values():
            array += 0.3 * rng.normal(size=array.shape)
    return params


@pytest.mark.parametrize("net", NETS, ids=str)
def test_loss_and_gradients_against_autograd(net) -> None:
    params = perturbed(net)
    x, y = samples(net)
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


# Initial parameters


def test_seed_decides_the_parameters() -> None:
    net = NETS[2]

    def first(seed):
        return net.initial(seed)["layer1"]["weight"].tolist()

    assert first(1) == first(1)
    assert first(1) != first(2)


def test_the_initial_parameters_of_a_network_stay_what_they_were() -> None:
    """Results in the documents depend on them: He's for the hidden layers, Xavier's at the end."""
    params = MLP((5, 7, 3), "classification").initial(4)
    rng = np.random.default_rng(4)
    hidden = (rng.standard_normal((5, 7)) * np.sqrt(2.0 / 5)).astype(np.float32)
    limit = np.sqrt(6.0 / (7 + 3))
    last = rng.uniform(-limit, limit, (7, 3)).astype(np.float32)
    np.testing.assert_array_equal(params["layer1"]["weight"], hidden)
    np.testing.assert_array_equal(params["layer2"]["weight"], last)
    assert not params["layer1"]["bias"].any()


@pytest.mark.parametrize("name", sorted(initializers.INITIALIZERS.keys() - {"zeros"}))
def test_weights_by_name(name) -> None:
    make = initializers.INITIALIZERS[name]
    params = MLP((5, 7, 3), "classification", weights=name).initial(4, np.float64)
    rng = np.random.default_rng(4)
    np.testing.assert_array_equal(params["layer1"]["weight"], make(rng, (5, 7), np.float64))
    np.testing.assert_array_equal(params["layer2"]["weight"], make(rng, (7, 3), np.float64))


def test_weights_by_function_and_activation() -> None:
    def make(rng, shape, dtype):
        return initializers.constant(rng, shape, dtype, value=0.5)

    params = MLP((5, 7, 1), "regression", weights=make).initial(0)
    assert (params["layer2"]["weight"] == 0.5).all()
    default = MLP((5, 7, 1), "regression", activation="tanh").initial(0)
    named = MLP((5, 7, 1), "regression", weights="xavier_uniform").initial(0)
    np.testing.assert_array_equal(default["layer1"]["weight"], named["layer1"]["weight"])


# Predictions


def test_predictions() -> None:
    layer = {"weight": np.array([[1.0, -1.0], [0.0, 0.5]]), "bias": np.array([0.0, 0.25])}
    x = np.array([[1.0, 0.0], [-1.0, 0.0], [0.1, 0.0]])
    assert MLP((2, 2), "classification").predict({"a": layer}, x).tolist() == [0, 1, 1]
    column = {"weight": np.array([[2.0], [1.0]]), "bias": np.array([0.5])}
    assert linear_regression(2).predict({"a": column}, x).tolist() == [2.5, -1.5, 0.7]
    assert logistic_regression(2).predict({"a": column}, x).tolist() == [1, 0, 1]


@pytest.mark.parametrize("net", [n for n in NETS if n.task == "classification"], ids=str)
def test_probabilities(net) -> None:
    params, (x, y) = perturbed(net), samples(net, n=50)
    p = net.predict_proba(params, x)
    assert p.shape == (50, max(2, net.sizes[-1])) and (p > 0).all()
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-15)
    np.testing.assert_array_equal(p.argmax(axis=1), net.predict(params, x))
    np.testing.assert_allclose(models.log_loss(p, y), net.loss(params, x, y), rtol=1e-13)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_one_output_or_two_for_two_classes(scale) -> None:
    """Log-odds are the difference of the logits, also where one probability is 0."""
    w, x, y = np.array([[0.5], [-2.0]]), np.eye(2) * scale, np.array([0, 1])
    one = {"a": {"weight": w, "bias": np.zeros(1)}}
    two = {"a": {"weight": np.hstack([0 * w, w]), "bias": np.zeros(2)}}
    logistic, softmax = logistic_regression(2), softmax_regression(2, 2)
    np.testing.assert_allclose(
        logistic.predict_proba(one, x), softmax.predict_proba(two, x), rtol=1e-15
    )
    np.testing.assert_allclose(logistic.loss(one, x, y), softmax.loss(two, x, y), rtol=1e-15)


# Training


def test_linear_regression_finds_the_least_squares() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    y = x @ [1.0, -2.0, 0.5] + 0.7 + 0.1 * rng.normal(size=60)
    model = linear_regression(3)
    params = model.initial(0, np.float64)
    st.fit(
        model.loss, params, (x, y), st.SGD(params, lr=0.3),
        value_and_grad=model.value_and_grad, epochs=200,
    )  # fmt: skip
    expected = np.linalg.lstsq(np.hstack([x, np.ones((60, 1))]), y)[0]
    found = [*params["layer1"]["weight"][:, 0], *params["layer1"]["bias"]]
    # The error falls by more than 2 in each of 200 steps: what remains is rounding.
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_absolute_errors_find_the_median() -> None:
    model = linear_regression(1, objective="absolute")
    params = model.initial(0, np.float64)
    y = np.array([0.0, 1.0, 2.0, 3.0, 1000.0])
    lr = st.schedules.polynomial(1.0, steps=400, power=1.0)
    st.fit(
        model.loss, params, (np.zeros((5, 1)), y), st.SGD(params, lr=lr),
        value_and_grad=model.value_and_grad, epochs=400,
    )  # fmt: skip
    assert abs(params["layer1"]["bias"][0] - 2.0) < 0.01


def test_classifiers_separate() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(90, 2))
    y = np.arange(90) % 3
    x += 4 * np.array([[0, 1], [1, -1], [-1, -1]])[y]
    for model, labels in (
        (softmax_regression(2, 3), y),
        (logistic_regression(2), (y == 0).astype(int)),
        (MLP((2, 8, 3), "classification", activation="tanh", weights="orthogonal"), y),
    ):
        params = model.initial(0, np.float64)
        st.fit(
            model.loss, params, (x, labels), st.Adam(params, lr=0.1),
            value_and_grad=model.value_and_grad, epochs=30, batch_size=10,
        )  # fmt: skip
        assert models.accuracy(model.predict(params, x), labels) > 0.97


# Measures


def test_metrics() -> None:
    assert models.accuracy(np.array([1, 0, 2]), np.array([1, 1, 1])) == 1 / 3
    y = np.array([1.0, 2.0, 6.0])
    assert models.r_squared(y, y) == 1
    assert models.r_squared(np.full(3, 3.0), y) == 0
    assert math.isnan(models.r_squared(y, np.ones(3)))
    assert models.rmse(np.array([2.0, 2.0, 2.0]), y) == math.sqrt(17 / 3)
    assert models.mean_absolute_error(np.array([2.0, 2.0, 2.0]), y) == 5 / 3
    p = np.array([[0.25, 0.75], [1.0, 0.0]])
    np.testing.assert_allclose(models.log_loss(p, np.array([0, 0])), math.log(2), rtol=1e-15)
    assert models.log_loss(p, np.array([0, 1])) == math.inf


INTEGERS = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.int64]


@pytest.mark.parametrize("dtype", [*INTEGERS, np.float16, np.float32])
def test_measures_of_narrow_numbers_do_not_wrap_or_overflow(dtype) -> None:
    y, predicted = np.array([0, 100, 120], dtype), np.array([100, 100, 0], dtype)
    y_, predicted_ = y.astype(float), predicted.astype(float)
    for measure in (models.r_squared, models.rmse, models.mean_absolute_error):
        assert measure(predicted, y) == measure(predicted_, y_)
    assert models.mean_absolute_error(predicted, y) == 220 / 3
    np.testing.assert_allclose(models.r_squared(predicted, y), 1 - 24400 * 3 / 24800, rtol=1e-14)


def test_r_squared_beyond_the_squares_of_float16_and_float64() -> None:
    y, predicted = np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0])
    expected = models.r_squared(predicted, y)
    for unit in (2.0**-900, 2.0**900):
        assert models.r_squared(predicted * unit, y * unit) == expected
    large = np.array([-300, 300], np.float16)
    assert models.r_squared(large, large) == 1
    assert models.r_squared(-large, large) == -3


@pytest.mark.parametrize("value", [0.1, 0.7, 1e-300, 1e300, 123456.789])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_r_squared_of_a_constant_target_is_nan(value, dtype) -> None:
    with np.errstate(over="ignore"):
        y = np.full(10, value, dtype)
    if np.isfinite(y).all():
        assert math.isnan(models.r_squared(y + y, y))
    nearly = np.array([0.1 + 0.2, 0.3, 0.3])
    assert math.isnan(models.r_squared(nearly, nearly))


TEXT, NUMBERS, BYTES = np.array(["0", "1"]), np.array([0, 1]), np.array([b"0", b"1"])


@pytest.mark.parametrize(
    ("predicted", "y", "message"),
    [
        (TEXT, NUMBERS, "predicted holds text, y numbers: none would be equal; convert one"),
        (NUMBERS, TEXT, "predicted holds numbers, y text"),
        (TEXT.astype(object), NUMBERS, "predicted holds text, y numbers"),
        (TEXT, BYTES, "predicted holds text, y bytes"),
        (["0", "1"], [0, 1], "predicted holds text, y numbers"),
    ],
)
def test_accuracy_of_text_and_numbers_is_refused(predicted, y, message) -> None:
    with pytest.raises(TypeError, match=message):
        models.accuracy(predicted, y)


def test_accuracy_of_text() -> None:
    for y in (TEXT, TEXT.astype(object), ["0", "1"]):
        assert models.accuracy(TEXT, y) == 1
    assert models.accuracy(np.array([True, False]), NUMBERS) == 0


@pytest.mark.parametrize(
    "measure",
    [models.accuracy, models.r_squared, models.rmse, models.mean_absolute_error],
)
def test_measures_do_not_broadcast(measure) -> None:
    with pytest.raises(ValueError, match=r"prediction has shape \(3, 1\), target \(3,\)"):
        measure(np.zeros((3, 1)), np.zeros(3))


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((3, 1), "ranking"), "task = 'ranking': expected one of 'regression', 'classification'"),
        (((3,), "regression"), r"sizes = \(3,\): expected the numbers of inputs"),
        (((3, 0, 1), "regression"), r"sizes = \(3, 0, 1\): expected"),
        (((3, 2), "regression"), r"sizes = \(3, 2\) with objective 'squared': expected .* 1 out"),
        (((3, 2), "classification", "logistic"), "objective 'logistic': expected .* 1 output"),
        (((3, 1), "classification", "cross_entropy"), "expected one output per class, two or more"),
        (((3, 1), "regression", "logistic"), "objective of a regression = 'logistic': expected"),
        (((3, 2), "classification", "hinge"), "objective of a classification = 'hinge': expected"),
        (((3, 1), "regression", "squared", 2.0), "delta = 2.0: only objective 'huber' has one"),
        (((3, 1), "regression", "huber", 0), "delta = 0: expected a finite number > 0"),
        (((3, 1), "regression", None, 1.0, "gelu"), "activation = 'gelu': expected one of 'relu'"),
        (((3, 1), "regression", None, 1.0, "relu", "he"), "weights = 'he': expected one of"),
        (((3, 2, 1), "regression", None, 1.0, "relu", "zeros"), "weights 'zeros': a network"),
    ],
)
def test_what_does_not_go_together(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        MLP(*arguments)


def test_targets_are_not_broadcast() -> None:
    for model in (linear_regression(5), logistic_regression(5)):
        params = model.initial(0)
        for call in (model.loss, model.value_and_grad):
            with pytest.raises(ValueError, match=r"shape \(4,\), target \(4, 1\)"):
                call(params, np.ones((4, 5)), np.zeros((4, 1)))
    with pytest.raises(ValueError, match="class 3: expected numbers from 0 to 2"):
        softmax_regression(5, 3).loss(
            softmax_regression(5, 3).initial(0), np.ones((1, 5)), np.array([3])
        )


def test_a_regression_has_no_probabilities() -> None:
    model = linear_regression(5)
    with pytest.raises(ValueError, match="a regression has no classes; use predict"):
        model.predict_proba(model.initial(0), np.ones((1, 5)))


def test_every_objective_has_a_loss_and_a_gradient() -> None:
    named = {name for group in networks.OBJECTIVES.values() for name in group}
    assert named == losses.LOSSES.keys() == losses.GRADIENTS.keys()


def test_examples() -> None:
    assert doctest.testmod(networks).failed == 0
