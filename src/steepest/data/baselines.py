"""What a result is to be compared with: the mean or the majority, and a linear model.

The models are scikit-learn's, of the same scaled inputs and the same training part as the network.
"""

import warnings
from typing import Any

import numpy as np

from steepest.data.datasets import Dataset
from steepest.extras import require
from steepest.memory.arrays import Array

__all__ = ["NAMES", "Constant", "constant", "linear"]

# The linear model of each task.
NAMES = {"classification": "logistic regression", "regression": "ridge regression"}

# The penalties among which leave-one-out chooses.
PENALTIES = tuple(10.0 ** (k / 2) for k in range(-6, 9))

# With more rows of the training part, a linear model is fitted to so many of them.
MOST_ROWS = 50_000

# Fewer numbers than these are left to one thread.
SMALL = 10**6


class Constant:
    """A model that says the same of every sample.

    >>> Constant(2).predict(np.zeros((3, 4)))
    array([2, 2, 2])
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def predict(self, x: Array) -> Array:
        """The value, once for each sample."""
        return np.full(len(x), self.value)


def constant(dataset: Dataset) -> Constant:
    """The most frequent class of the training part, or its mean.

    >>> from steepest.data.datasets import digits
    >>> constant(digits()).value
    3
    """
    y = dataset.train.y
    if dataset.task == "classification":
        return Constant(int(np.bincount(y).argmax()))
    return Constant(float(y.mean()))


def linear(dataset: Dataset) -> Any:
    """Ridge regression, its penalty by leave-one-out, or logistic regression; fitted.

    Its ``predict`` takes scaled inputs and gives numbers of classes, or scaled targets. With more
    than 50 000 rows it is fitted to the first of them, which are in random order. Raises
    MissingExtra without scikit-learn.

    >>> from steepest.data.datasets import digits
    >>> found = digits()
    >>> float(np.mean(linear(found).predict(found.test.x) == found.test.y)) > 0.9
    True
    """
    models = require("sklearn.linear_model", "train", "a baseline")
    control = require("threadpoolctl", "train", "a baseline")
    x, y = dataset.train.x[:MOST_ROWS].astype(np.float64), dataset.train.y[:MOST_ROWS]
    threads = 1 if x.size < SMALL else None  # they wait for each other longer than they compute
    limits = control.threadpool_limits(threads, user_api="blas")
    with limits, warnings.catch_warnings(), np.errstate(all="ignore"):
        # Not wholly converged, or with an input that is a copy of another: good enough to compare.
        warnings.simplefilter("ignore")
        if dataset.task == "regression":
            return models.RidgeCV(PENALTIES).fit(x, y)
        return models.LogisticRegression(max_iter=1000).fit(x, y)
