"""Every numeric argument of training, searching and measuring takes numbers alone, and says so."""

import math
import re

import numpy as np
import pytest
from scipy.optimize import minimize

import steepest as st
from steepest import data, models, training
from steepest.fields import real
from steepest.models import losses
from steepest.tuning import uniform

X = np.linspace(-1, 1, 8)
NO_NUMBERS = [
    True, False, np.True_, b"0.5", "0.5", np.complex64(1), 1j, np.array([0.5]), [0.5], object(),
]  # fmt: skip
NO_FINITE = [math.nan, np.float32("nan"), 10**400]


def value_and_grad(p, x):
    return ((p - x) ** 2).mean(), np.array(2 * (p - x).mean())


def loss(p, x):
    return value_and_grad(p, x)[0]


def fit(**options):
    p = np.zeros(())
    given = {"epochs": 2, "batch_size": 4, "validation": X, "value_and_grad": value_and_grad}
    return st.fit(loss, p, X, st.SGD(p, lr=0.1), **given | options)


def find_lr(**options):
    given = {"steps": 10, "value_and_grad": value_and_grad}
    return st.find_lr(loss, np.zeros(()), X, st.SGD, **given | options)


def find_batch_size(**options):
    given = {"value_and_grad": value_and_grad}
    return st.find_batch_size(loss, np.zeros(()), X, **given | options)


def tune(**options):
    given = {"trials": 1, "method": "random"}
    return st.tune(lambda values, trial: values["x"], {"x": uniform(0, 1)}, **given | options)


def scipy_steps(**options):
    return st.scipy_method(st.SGD, lr=0.1, **options)


def scipy_options(**options):
    method = st.scipy_method(st.SGD, lr=0.1, steps=1)
    return minimize(lambda x: x @ x, [1.0], jac=lambda x: 2 * x, method=method, options=options)


def noise_update(**options):
    given = {"small_sq": 7.0, "big_sq": 4.0, "small": 8, "big": 32}
    return st.NoiseScale().update(**given | options)


def add(**options):
    return st.Accumulator(np.zeros(2)).add(np.ones(2), **options)


def batches(**options):
    return list(training.batches((X,), **{"batch_size": 4} | options))


def huber(**options):
    return losses.huber([1.0], [2.0], **options)


def cross_entropy(**options):
    return losses.cross_entropy([[1.0, 2.0]], [1], **options)


def network(**options):
    return models.MLP((2, 1), "regression", "huber", **options)


def split(**options):
    return data.split(**{"n": 20} | options)


REALS = [
    (fit, "target"), (fit, "min_delta"), (find_lr, "low"), (find_lr, "high"),
    (find_lr, "smoothing"), (find_lr, "stop_factor"), (find_batch_size, "memory"),
    (tune, "timeout"), (scipy_options, "gtol"), (scipy_options, "ftol"), (scipy_options, "eps"),
    (st.NoiseScale, "decay"), (noise_update, "small_sq"), (noise_update, "big_sq"),
    (noise_update, "small"), (noise_update, "big"), (add, "weight"), (huber, "delta"),
    (cross_entropy, "smoothing"), (network, "delta"), (split, "fraction"),
]  # fmt: skip
COUNTS = [
    (fit, "epochs"), (fit, "batch_size"), (fit, "accumulate"), (fit, "patience"), (fit, "seed"),
    (fit, "checkpoint_every"), (find_lr, "steps"), (find_lr, "batch_size"), (find_lr, "seed"),
    (find_batch_size, "start"), (find_batch_size, "limit"), (find_batch_size, "seed"),
    (tune, "trials"), (tune, "seed"), (tune, "min_epochs"), (scipy_steps, "steps"),
    (scipy_options, "maxiter"), (batches, "batch_size"), (batches, "epoch"), (batches, "seed"),
    (batches, "start"), (split, "n"),
]  # fmt: skip


def named(table):
    return pytest.mark.parametrize(
        ("function", "name"), table, ids=[f"{f.__name__} {name}" for f, name in table]
    )


@named(REALS)
def test_what_is_no_real_number_is_refused(function, name) -> None:
    for value in NO_NUMBERS:
        with pytest.raises(TypeError, match=rf"^{name} = {re.escape(repr(value))}: expected "):
            function(**{name: value})
    for value in NO_FINITE:
        with pytest.raises(ValueError, match=rf"\b{name} = .*: expected "):
            function(**{name: value})


@named(COUNTS)
def test_what_is_no_count_is_refused(function, name) -> None:
    for value in [*NO_NUMBERS, math.nan, math.inf, 2.0, np.float32(2)]:
        with pytest.raises(TypeError, match=rf"^{name} = {re.escape(repr(value))}: expected an i"):
            function(**{name: value})
    with pytest.raises(ValueError, match=rf"\b{name} = -1: expected "):
        function(**{name: -1})


@pytest.mark.parametrize("sizes", [(2.0, 1), (True, 1), (math.nan, 1), ("2", 1), (2, b"1")])
def test_sizes_of_a_network_are_integers(sizes) -> None:
    with pytest.raises(ValueError, match=re.escape(f"sizes = {sizes}: expected the numbers of")):
        models.MLP(sizes, "regression")


def test_numbers_of_all_kinds_are_taken() -> None:
    for value in (0, 0.5, np.float32(0.5), np.float16(0.5), np.int8(1), np.array(0.5)):
        assert fit(target=value, min_delta=value).stopped
        assert add(weight=value or 1) is None
    for value in (2, np.int8(2), np.uint64(2), np.array(2)):
        assert len(fit(epochs=value, batch_size=value)) == 2
    assert fit(target=-math.inf).stopped == "epochs"
    assert fit(accumulate=2**70).stopped == "epochs"
    assert fit(batch_size=2**70).stopped == "epochs"


@pytest.mark.parametrize("value", ["0.5", b"0.5", 1j, np.complex64(1)])
def test_a_loss_is_a_real_number(value) -> None:
    def found(p, x):
        return value, np.array(1.0)

    expected = rf"loss = {re.escape(repr(value))}; expected a real number"
    for function in (fit, find_lr, find_batch_size):
        with pytest.raises(TypeError, match=expected):
            function(value_and_grad=found)
    with pytest.raises(TypeError, match=expected):
        st.tune(lambda values, trial: trial.report(value, 1), {"x": [1]}, "grid")
    with pytest.raises(TypeError, match="expected the loss, one number, or a History"):
        st.tune(lambda values, trial: value, {"x": [1]}, "grid")


def test_real() -> None:
    assert real("x", np.array(2, np.int64), "a number", lambda x: True) == 2.0
    with pytest.raises(ValueError, match=r"x = 2: expected a number below 1"):
        real("x", 2, "a number below 1", lambda x: x < 1)
