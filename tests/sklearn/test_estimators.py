"""``steepest.sklearn``: scikit-learn's own checks, and what these say nothing of."""

import doctest
import math
import os
import pickle
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from cases import A_RULE_OF_EACH_KIND, brief
from sklearn.base import clone
from sklearn.datasets import (
    load_breast_cancer,
    load_diabetes,
    load_iris,
    load_wine,
    make_regression,
)
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

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
check_estimator({made}, expected_failed_checks=dict.fromkeys({failing}, "as MLPClassifier"))
"""

# What cannot be: partial fits with a part set aside, or where a weight depends on the sizes of all
# classes; parts of classes of which there is one sample; equal predictions of two fits of which the
# second goes on.
PARTIAL = ["check_fit_score_takes_y", "check_estimators_partial_fit_n_features",
           "check_n_features_in_after_fitting"]  # fmt: skip
FEW = ["check_dont_overwrite_parameters", "check_estimators_nan_inf", "check_dict_unchanged",
       "check_f_contiguous_array_estimator", "check_methods_sample_order_invariance",
       "check_methods_subset_invariance", "check_fit2d_1feature", "check_fit2d_predict1d",
       "check_sample_weight_equivalence_on_dense_data"]  # fmt: skip
FAILING = {
    "Classifier(early_stopping=True)": PARTIAL + FEW,
    "Regressor(early_stopping=True)": PARTIAL + FEW[-1:],
    "Classifier(warm_start=True)": ["check_supervised_y_2d"],
    "Classifier(class_weight='balanced')": PARTIAL,
}


@pytest.mark.parametrize(
    "made",
    brief(
        ["Classifier()", "Classifier(objective='cross_entropy')", "Regressor()", *FAILING],
        ["Classifier()"],
    ),
)
def test_all_checks_of_scikit_learn(made) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHECKS.format(made=made, failing=FAILING.get(made, []))],
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
        (Classifier(epochs=3, lr=0.01), iris, {"classes": [2, 1, 0]}),
        (Regressor(epochs=3, lr=0.01), diabetes, {}),
    ):
        parts = clone(made).partial_fit(*data, **first)
        parts.partial_fit(*data)
        # An estimator that was saved goes on.
        parts = pickle.loads(pickle.dumps(parts)).partial_fit(*data)
        assert equal(made.fit(*data), parts)
        assert parts.n_iter_ == made.n_iter_ == 3
        assert np.array_equal(made.predict(data[0]), parts.predict(data[0]))


def test_without_a_rate_one_that_falls(iris) -> None:
    x, y = iris
    made = Classifier(hidden=(), epochs=4).fit(x, y)  # 5 updates each
    group = made.optimizer_.param_groups[0]
    assert group["lr"] == st.schedules.cosine(0.03, steps=20, end=0.03 / 10)
    assert group["weight_decay"] == 0.01
    made = Classifier(epochs=4, batch_size=None, options={"weight_decay": 0.5}).fit(x, y)
    group = made.optimizer_.param_groups[0]
    assert group["lr"] == st.schedules.cosine(0.003, steps=4, end=0.003 / 10)
    assert group["weight_decay"] == 0.5
    group = Classifier().partial_fit(x, y, [0, 1, 2]).optimizer_.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.003, 1.0)
    group = Classifier(lr=0.25, epochs=1).fit(x, y).optimizer_.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.25, 0.01)
    group = Classifier(optimizer="adam", epochs=1).fit(x, y).optimizer_.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.001, 0.0)


TABLES = {
    "iris": (load_iris, Classifier), "wine": (load_wine, Classifier),
    "breast_cancer": (load_breast_cancer, Classifier), "diabetes": (load_diabetes, Regressor),
    "made": (partial(make_regression, 300, 10, n_informative=5, noise=10, random_state=0),
             Regressor),
}  # fmt: skip


@pytest.mark.parametrize("hidden", [(64,), ()], ids=["network", "linear"])
@pytest.mark.parametrize("table", brief(TABLES, ["iris", "made"]))
def test_the_defaults_come_to_what_the_linear_models_of_scikit_learn_do(table, hidden) -> None:
    load, kind = TABLES[table]
    x, y = load() if table == "made" else load(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    linear = LogisticRegression(max_iter=1000) if kind is Classifier else RidgeCV()
    baseline, own = (
        cross_val_score(each, x[order], y[order], cv=5).mean()
        for each in (make_pipeline(StandardScaler(), linear), kind(hidden))
    )
    assert own > baseline - 0.02


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


# Weights


@pytest.mark.parametrize(
    "made",
    [
        Classifier(batch_size=None),
        Classifier(batch_size=None, objective="cross_entropy", activation="tanh"),
        Classifier(batch_size=None, class_weight="balanced", hidden=()),
        Regressor(batch_size=None),
        Regressor(batch_size=None, objective="huber", delta=0.5),
        Regressor(batch_size=None, objective="absolute", hidden=()),
    ],
    ids=str,
)
def test_integer_weights_are_repeated_samples(made) -> None:
    """With all samples in a batch, up to the rounding of sums, which 20 updates enlarge."""
    rng = np.random.default_rng(0)
    x, weight = 10 + rng.normal(size=(40, 3)), rng.integers(0, 4, 40)
    x[:, 2] = 7.0
    y = x[:, 0] + rng.normal(size=40)
    if isinstance(made, Classifier):
        y = y > 10
    made.set_params(epochs=20, lr=0.01)
    weighted = clone(made).fit(x, y, weight)
    repeated = clone(made).fit(x.repeat(weight, axis=0), y.repeat(weight))
    for name, value in repeated.scaling_.items():
        assert np.allclose(weighted.scaling_[name], value, rtol=1e-14, atol=0)
    for a, b in zip(leaves(weighted), leaves(repeated), strict=True):
        assert np.allclose(a, b, rtol=1e-10, atol=1e-12)
    losses = [np.array(x.history_["loss"]) for x in (weighted, repeated)]
    assert np.allclose(*losses, rtol=1e-12, atol=0)
    plain = clone(made).fit(x, y)
    assert not np.allclose(leaves(plain)[0], leaves(weighted)[0], rtol=1e-3)


def test_a_weight_of_zero_leaves_out(iris, diabetes) -> None:
    """To the last bit, whatever the batches."""
    for kind, (x, y) in ((Classifier, iris), (Regressor, diabetes)):
        made = kind(epochs=3, lr=0.01)
        weight = np.where(np.arange(len(y)) % 3 == 0, 0.0, 1.5)
        some = weight > 0
        zero = clone(made).fit(x, y, weight)
        assert equal(zero, clone(made).fit(x[some], y[some], weight[some]))
        first = {} if isinstance(made, Regressor) else {"classes": np.unique(y)}
        parts = clone(made).partial_fit(x, y, sample_weight=weight, **first)
        parts.partial_fit(x, y, sample_weight=weight).partial_fit(x, y, sample_weight=weight)
        assert equal(zero, parts)
        # All the same is as none, up to the rounding of w n / sum of w.
        a, b = clone(made).fit(x, y), clone(made).fit(x, y, np.full(len(y), 0.3))
        assert np.allclose(leaves(a)[0], leaves(b)[0], rtol=1e-9)


def test_weights_of_classes(iris) -> None:
    x, y = iris
    made = Classifier(epochs=5, class_weight={2: 3.0, 0: 0.5})
    each = np.array([0.5, 1.0, 3.0])[y]
    assert equal(clone(made).fit(x, y), Classifier(epochs=5).fit(x, y, each))
    weight = np.random.default_rng(0).uniform(1, 2, len(y))
    assert equal(clone(made).fit(x, y, weight), Classifier(epochs=5).fit(x, y, weight * each))
    some = np.r_[:50, 50:60, 100:130]
    balanced = Classifier(epochs=5, class_weight="balanced").fit(x[some], y[some])
    each = (90 / (3 * np.array([50, 10, 30])))[y[some]]
    assert equal(balanced, Classifier(epochs=5).fit(x[some], y[some], each))
    made.set_params(epochs=2, lr=0.01)
    parts = clone(made).fit(x, y)
    assert equal(parts, made.partial_fit(x, y, [0, 1, 2]).partial_fit(x, y))


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.ones(149), r"sample_weight has shape \(149,\): expected \(150,\)"),
        (np.ones((150, 1)), r"sample_weight has shape \(150, 1\): expected \(150,\)"),
        (np.arange(150) - 2.0, r"sample_weight has -2\.0: expected 0 or more"),
        (np.full(150, np.nan), "Input sample_weight contains NaN"),
        (np.zeros(150), "sample_weight: all weights are zero"),
        (np.arange(150) < 50, "there is one class"),
        (np.full(150, 1e308), "not all of them zero|not finite"),
    ],
)
def test_weights_that_cannot_be_used(iris, weight, message) -> None:
    with pytest.raises(ValueError, match=message):
        Classifier(epochs=1).fit(*iris, sample_weight=weight)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("balancd", "class_weight = 'balancd': expected a mapping, 'balanced' or None"),
        (7, "class_weight = 7: expected"),
        ({0: -1.0}, r"class_weight\[0\] = -1.0: expected a finite number, 0 or more"),
        ({0: math.inf}, r"class_weight\[0\] = inf: expected"),
        ({"a": 1.0}, "class_weight has 'a', which is none of the classes"),
        ({0: 0, 1: 0, 2: 0}, "all weights are zero"),
    ],
)
def test_weights_of_classes_that_cannot_be_used(iris, weights, message) -> None:
    with pytest.raises(ValueError, match=message):
        Classifier(epochs=1, class_weight=weights).fit(*iris)
    with pytest.raises(ValueError, match="'balanced': partial_fit does not know"):
        Classifier(class_weight="balanced").partial_fit(*iris, classes=[0, 1, 2])


# Early stopping


@pytest.mark.parametrize("weighted", [False, True])
def test_early_stopping_is_that_of_fit(iris, weighted) -> None:
    x, y = iris
    weight = np.random.default_rng(0).integers(1, 4, 150) if weighted else None
    made = Classifier(
        (8,), lr=0.05, epochs=500, early_stopping=True, validation_fraction=0.2,
        n_iter_no_change=4, tol=0.02, random_state=6,
    )  # fmt: skip
    made.fit(x, y, weight)
    seed = int(np.random.RandomState(6).randint(2**31 - 1))
    given = (x, y, weight) if weighted else (x, y)
    halves = train_test_split(*given, test_size=0.2, stratify=y, random_state=seed)
    data, validation = halves[::2], halves[1::2]
    mean = np.average(data[0], axis=0, weights=data[2] if weighted else None)
    scale = np.sqrt(
        np.average((data[0] - mean) ** 2, axis=0, weights=data[2] if weighted else None)
    )
    net = MLP((4, 8, 3), "classification")
    params = net.initial(seed, np.float64)
    history = st.fit(
        net.loss, params, ((data[0] - mean) / scale, *data[1:]), st.AdamW(params, lr=0.05),
        validation=((validation[0] - mean) / scale, *validation[1:]), patience=4, min_delta=0.02,
        value_and_grad=net.value_and_grad, epochs=500, batch_size=32, seed=seed,
    )  # fmt: skip
    assert made.history_["val_loss"] == history["val_loss"]
    assert made.history_.stopped == "patience" and made.n_iter_ == len(history) < 500
    assert made.history_.best_epoch < made.n_iter_
    assert all(np.array_equal(made.params_[k][n], params[k][n]) for k in params for n in params[k])
    assert clone(made).set_params(tol=0.0).fit(x, y, weight).n_iter_ > made.n_iter_
    # The lowest loss is that of the parameters that are kept.
    kept = net.loss(made.params_, (validation[0] - mean) / scale, *validation[1:])
    assert kept == min(history["val_loss"])


def test_early_stopping_keeps_averages(diabetes) -> None:
    """What is predicted with are the averages of the best epoch, not those of the last one."""
    x, y = diabetes
    made = Regressor(
        (16,), optimizer="schedulefreeadamw", lr=0.05, averaged=True, epochs=60,
        early_stopping=True, n_iter_no_change=5,
    )  # fmt: skip
    made.fit(x, y)
    assert made.history_.stopped == "patience"
    _, x_aside, _, y_aside = train_test_split(x, y, test_size=0.1, random_state=made._seed)
    scale = made.scaling_
    error = (made.predict(x_aside) - y_aside) / scale["y_scale"]
    # Scaled and back: rounding.
    assert math.isclose((error**2).mean(), min(made.history_["val_loss"]), rel_tol=1e-12)
    with pytest.raises(ValueError, match="early_stopping = True: partial_fit has no data"):
        made.partial_fit(x, y)
    made.set_params(early_stopping=False).partial_fit(x, y)
    means = made.optimizer_.averaged()
    assert np.array_equal(
        made.predict(x),
        made.net_.predict(
            {k: {n: means[f"{k}.{n}"] for n in made.params_[k]} for k in made.params_},
            (x - scale["x_mean"]) / scale["x_scale"],
        ) * scale["y_scale"] + scale["y_mean"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_fraction": 0.0}, "early_stopping = True, validation_fraction = 0.0: "),
        ({"validation_fraction": 1.5}, "early_stopping = True, validation_fraction = 1.5: "),
        ({"validation_fraction": 0.01}, "validation_fraction = 0.01: .* number of classes = 3"),
        ({"n_iter_no_change": 0}, "n_iter_no_change = 0: expected"),
        ({"tol": -1.0}, "tol = -1.0: expected"),
    ],
)
def test_early_stopping_that_cannot_be(iris, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        Classifier(epochs=1, early_stopping=True, **options).fit(*iris)


# Warm start


def test_one_hidden_layer_may_be_a_number(iris) -> None:
    assert equal(Classifier(8, epochs=2).fit(*iris), Classifier((8,), epochs=2).fit(*iris))


def test_a_warm_start_goes_on_with_a_new_optimizer(iris, diabetes) -> None:
    for made, (x, y) in ((Classifier(epochs=2), iris), (Regressor(epochs=2), diabetes)):
        made.set_params(warm_start=True, optimizer="adam").fit(x[::2], y[::2])
        params = {k: {n: p.copy() for n, p in layer.items()} for k, layer in made.params_.items()}
        scaling, net = made.scaling_, made.net_
        made.fit(x, y)
        targets = (
            y if made.task == "classification" else (y - scaling["y_mean"]) / scaling["y_scale"]
        )
        st.fit(
            net.loss, params, ((x - scaling["x_mean"]) / scaling["x_scale"], targets),
            st.Adam(params), value_and_grad=net.value_and_grad, epochs=2, batch_size=32,
            seed=made._seed,
        )  # fmt: skip
        assert all(
            np.array_equal(made.params_[k][n], params[k][n]) for k in params for n in params[k]
        )
        assert made.n_iter_ == len(made.history_) == 2
        assert not equal(made, clone(made).fit(x, y))
        assert equal(clone(made).fit(x, y), clone(made).set_params(warm_start=False).fit(x, y))


def test_a_warm_start_that_cannot_be(iris) -> None:
    x, y = iris
    made = Classifier(epochs=1, warm_start=True).fit(x, y)
    with pytest.raises(ValueError, match=r"sizes \(4, 8, 3\), that of the fit before \(4, 64, 3\)"):
        made.set_params(hidden=(8,)).fit(x, y)
    made.set_params(hidden=(64,))
    with pytest.raises(ValueError, match=r"y has the classes \[0 1\], that of the fit before"):
        made.fit(x[:100], y[:100])
    with pytest.raises(ValueError, match="X has 3 features"):
        made.fit(x[:, :3], y)
    assert made.score(x, y) > 0.3  # as it was


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


def test_weights_reach_a_search_of_a_pipeline(iris) -> None:
    x, y = iris
    weight = np.random.default_rng(0).uniform(1, 2, len(y))
    made = make_pipeline(MinMaxScaler(), Classifier(epochs=3))
    made.fit(x, y, classifier__sample_weight=weight)
    alone = Classifier(epochs=3).fit(MinMaxScaler().fit_transform(x), y, weight)
    assert equal(made[-1], alone)
    again = pickle.loads(pickle.dumps(made))
    assert np.array_equal(again.predict_proba(x), made.predict_proba(x))


@pytest.mark.exhaustive
def test_in_several_processes(iris) -> None:
    """As in one."""
    made = Classifier(epochs=5, early_stopping=True, optimizer="lion", lr=1e-3)
    alone = cross_val_score(made, *iris, cv=4)
    assert np.array_equal(cross_val_score(made, *iris, cv=4, n_jobs=2), alone)
    search = GridSearchCV(made, {"lr": [1e-4, 1e-2], "warm_start": [True, False]}, cv=3, n_jobs=2)
    assert search.fit(*iris).best_params_["lr"] == 1e-2


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"optimizer": "adamv"}, ValueError, "optimizer 'adamv': there is no such rule; did"),
        ({"options": {"speed": 1}}, TypeError, "speed"),
        ({"optimizer": None}, TypeError, "optimizer = None: expected the name of a rule, or a fu"),
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
