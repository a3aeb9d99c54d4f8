"""The mean, the majority and the linear models that results are compared with."""

import doctest

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, RidgeCV

from steepest.data import baselines, datasets


def table(columns, target, task=None):
    names = [*(f"x{i}" for i in range(columns.shape[1])), "y"]
    rows = [",".join(map(repr, row)) for row in np.c_[columns, target].tolist()]
    content = "\n".join([",".join(names), *rows, ""]).encode()
    return datasets.table("t.csv", "y", task=task, content=content)


@pytest.fixture(scope="module")
def line():
    x = np.random.default_rng(0).normal(size=(80, 3))
    return table(x, x @ [1.0, -2.0, 0.5] + 7)


def test_examples() -> None:
    assert doctest.testmod(baselines).failed == 0


def test_a_line_is_found_by_ridge_regression(line) -> None:
    found = baselines.linear(line)
    assert isinstance(found, RidgeCV)
    np.testing.assert_allclose(found.predict(line.test.x), line.test.y, atol=0.02)  # the penalty
    assert baselines.constant(line).value == pytest.approx(0, abs=1e-9)  # targets are scaled


def test_classes_get_a_logistic_regression_and_the_majority() -> None:
    x = np.random.default_rng(0).normal(size=(80, 2))
    found = table(x, (x[:, 0] > -0.5).astype(int))
    model = baselines.linear(found)
    assert isinstance(model, LogisticRegression)
    assert np.mean(model.predict(found.test.x) == found.test.y) > 0.8
    assert baselines.constant(found).predict(found.test.x).tolist() == [1] * len(found.test.y)


def test_of_many_rows_some_are_fitted(line, monkeypatch) -> None:
    monkeypatch.setattr(baselines, "MOST_ROWS", 20)
    few = baselines.linear(line).coef_
    own = RidgeCV(baselines.PENALTIES).fit(
        line.train.x[:20].astype(np.float64), line.train.y[:20].astype(np.float64)
    )
    assert np.array_equal(few, own.coef_)
