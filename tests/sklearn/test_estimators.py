"""``steepest.sklearn``: scikit-learn's own checks, and what these say nothing of."""

import doctest
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from cases import A_RULE_OF_EACH_KIND, brief
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

import steepest as st
from steepest import sklearn as estimators
from steepest.models import MLP
from steepest.optimizers import RULES
from steepest.sklearn import Classifier, Regressor

CHECKS = """
import warnings
from sklearn.exceptions import SkipTestWarning
warnings.simplefilter("ignore")  # of the checks
warnings.simplefilter("error", SkipTestWarning)
from sklearn.utils.estimator_checks import check_estimator
from steepest.sklearn import Classifier, Regressor
check_estimator({made})
"""


@pytest.mark.parametrize(
    "made",
    brief(
        ["Classifier()", "Classifier(objective='cross_entropy')", "Regressor()"],
        ["Classifier()", "Regressor()"],
    ),
)
def test_all_checks_of_scikit_learn(made) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHECKS.format(made=made)],
        env=os.environ | {"SCIPY_ARRAY_API": "1"},  # else that check is skipped
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def iris():
    return load_iris(return_X_y=True)


@pytest.fixture(scope="module")
def diabetes():
    return load_diabetes(return_X_y=True)


def leaves(estimator):
    return [x for layer in estimator.params_.values() for x in layer.values()]


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


@pytest.mark.parametrize("rule", brief(RULES, A_RULE_OF_EACH_KIND))
def test_every_rule_trains(iris, rule) -> None:
    found = Classifier(hidden=(8,), optimizer=rule, epochs=10).fit(*iris)
    losses = found.history_["loss"]
    assert losses[-1] < losses[0]
    assert type(found.optimizer_) is RULES[rule]


def test_a_fit_is_the_one_by_hand(diabetes) -> None:
    x, y = diabetes
    options = {"weight_decay": 0.1, "clip": st.clip.global_norm(1.0)}
    lr = st.schedules.cosine(0.01, steps=50)
    made = Regressor(
        (7,), lr=lr, options=options, epochs=4, batch_size=50, objective="huber", delta=0.5,
        activation="tanh", weights="orthogonal", random_state=3,
    )  # fmt: skip
    made.fit(x, y)
    net = MLP((10, 7, 1), "regression", "huber", 0.5, "tanh", "orthogonal")
    seed = int(np.random.RandomState(3).randint(2**31 - 1))
    params = net.initial(seed, np.float64)
    scaled = (x - x.mean(axis=0)) / x.std(axis=0), (y - y.mean()) / y.std()
    st.fit(
        net.loss, params, scaled, st.AdamW(params, lr=lr, **options), batch_size=50, epochs=4,
        value_and_grad=net.value_and_grad, seed=seed,
    )  # fmt: skip
    assert made.net_ == net
    assert all(np.array_equal(made.params_[k][n], params[k][n]) for k in params for n in params[k])
    expected = net.predict(params, scaled[0]) * y.std() + y.mean()
    assert np.array_equal(made.predict(x), expected)


def test_a_fit_is_as_many_partial_ones(iris, diabetes) -> None:
    for made, data, first in (
        (Classifier(epochs=3), iris, {"classes": [2, 1, 0]}),
        (Regressor(epochs=3), diabetes, {}),
    ):
        parts = clone(made).partial_fit(*data, **first)
        parts.partial_fit(*data)
        # An estimator that was saved goes on.
        parts = pickle.loads(pickle.dumps(parts)).partial_fit(*data)
        assert equal(made.fit(*data), parts)
        assert parts.n_iter_ == made.n_iter_ == 3
        assert np.array_equal(made.predict(data[0]), parts.predict(data[0]))


def test_partial_fits_of_some_classes_at_a_time(iris) -> None:
    x, y = iris
    names = np.array(["a", "b", "c"])
    made = Classifier(hidden=(), lr=0.02)
    for _ in range(60):
        for label in range(3):
            made.partial_fit(x[y == label], names[y[y == label]], classes=["c", "a", "b"])
    assert made.classes_.tolist() == ["a", "b", "c"]
    assert set(made.predict(x)) == set(names)
    for classes, labels, message in (
        (["a", "b"], names[y], "classes = .*: expected .*'a' 'b' 'c'.*, as before"),
        (None, np.full(len(y), "d"), "y holds .*'d'.*, which is none of the classes"),
    ):
        before = pickle.dumps(made.params_)
        with pytest.raises(ValueError, match=message):
            made.partial_fit(x, labels, classes)
        assert pickle.dumps(made.params_) == before
    with pytest.raises(ValueError, match="the first partial_fit needs all of them"):
        Classifier().partial_fit(x, y)


@pytest.mark.parametrize(
    ("objective", "outputs"), [(None, 1), ("logistic", 1), ("cross_entropy", 2)]
)
def test_two_classes(iris, objective, outputs) -> None:
    x, y = iris[0][:100], iris[1][:100] == 1
    made = Classifier(objective=objective, epochs=20).fit(x, y)
    assert made.net_.sizes[-1] == outputs
    assert made.classes_.dtype == bool
    assert made.score(x, y) > 0.95
    assert np.array_equal(made.predict_proba(x)[:, 1] > 0.5, made.predict(x))


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adam", "options": {"ema": 0.9}},
        {"optimizer": "schedulefreeadamw"},
        {"optimizer": lambda params: st.SGD(params, lr=0.1, average=st.average.tail(start=20))},
    ],
)
def test_averaged_parameters(iris, options) -> None:
    x, y = iris
    made = Classifier(averaged=True, epochs=10, **options).fit(x, y)
    other = Classifier(epochs=10, **options).fit(x, y)
    assert equal(made, other)
    means = made.optimizer_.averaged()
    params = {layer: {n: means[f"{layer}.{n}"] for n in group}
              for layer, group in made.params_.items()}  # fmt: skip
    scaled = (x - x.mean(axis=0)) / x.std(axis=0)
    assert np.array_equal(made.predict_proba(x), made.net_.predict_proba(params, scaled))
    assert not np.array_equal(made.predict_proba(x), other.predict_proba(x))


def test_the_state_of_a_schedule_is_not_shared(iris) -> None:
    """A second fit begins as the first did."""
    lr = st.schedules.plateau(0.1, patience=0)
    made = Classifier(optimizer="sgd", lr=lr, epochs=3)
    before = pickle.dumps(lr)
    first = [x.copy() for x in leaves(made.fit(*iris))]
    made.optimizer_.param_groups[0]["lr"].observe(1.0)
    made.optimizer_.param_groups[0]["lr"].observe(2.0)
    assert pickle.dumps(lr) == before
    assert all(np.array_equal(a, b) for a, b in zip(first, leaves(made.fit(*iris)), strict=True))


def test_random_states(iris) -> None:
    a, b = (Classifier(epochs=1, random_state=seed).fit(*iris) for seed in (0, 1))
    assert not equal(a, b)
    assert equal(a, clone(a).fit(*iris))
    state = np.random.RandomState(0)
    c, d = (Classifier(epochs=1, random_state=state).fit(*iris) for _ in range(2))
    assert equal(a, c) and not equal(c, d)


def test_in_a_search_of_a_pipeline(diabetes) -> None:
    made = make_pipeline(MinMaxScaler(), Regressor(epochs=20))
    search = GridSearchCV(made, {"regressor__lr": [1e-6, 1e-2], "regressor__hidden": [(), (8,)]})
    search.fit(*diabetes)
    assert search.best_params_["regressor__lr"] == 1e-2
    assert search.best_score_ > 0.3


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"optimizer": "adamv"}, ValueError, "optimizer = 'adamv': expected one of sgd, "),
        ({"options": {"speed": 1}}, TypeError, "speed"),
        ({"optimizer": st.SGD, "lr": 0.1}, ValueError, "give them in the function"),
        ({"optimizer": st.SGD, "options": {"momentum": 0.1}}, ValueError, "give them in the func"),
        ({"averaged": True}, ValueError, "keeps no averaged parameters"),
        ({"lr": -1}, ValueError, "lr = -1: expected"),
        ({"epochs": 0}, ValueError, "epochs = 0: expected"),
        ({"batch_size": 0}, ValueError, "batch_size = 0: expected"),
        ({"hidden": (0,)}, ValueError, r"sizes = \(4, 0, 3\): expected"),
        ({"objective": "squared"}, ValueError, "objective of a classification = 'squared'"),
        ({"objective": "logistic"}, ValueError, "with objective 'logistic': expected one output"),
        ({"optimizer": "sgd", "lr": 1e300}, ValueError, "the training diverged: .*; give a small"),
    ],
)
def test_arguments_that_cannot_be_used(iris, options, kind, message) -> None:
    """An estimator that was fitted before is so no more."""
    made = Classifier(epochs=1).fit(*iris).set_params(**options)
    with pytest.raises(kind, match=message):
        made.fit(*iris)
    with pytest.raises(NotFittedError):
        made.predict(iris[0])


def test_a_partial_fit_that_diverges(iris) -> None:
    made = Classifier(optimizer="sgd", lr=1e300)
    with pytest.raises(ValueError, match=r"diverged: the loss is .*; give a smaller lr"):
        made.partial_fit(*iris, classes=[0, 1, 2])


def test_one_class(iris) -> None:
    with pytest.raises(ValueError, match=r"there is one class, .*: expected two or more"):
        Classifier().fit(iris[0], np.zeros(150, int))


def test_a_missing_package() -> None:
    code = "import sys; sys.modules['sklearn'] = None; import steepest.sklearn"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (
        "steepest.sklearn needs the package sklearn: run  pip install scikit-learn" in done.stderr
    )


def test_examples() -> None:
    found = doctest.testmod(estimators)
    assert found.attempted > 8 and found.failed == 0
