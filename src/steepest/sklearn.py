"""Classifier and Regressor: the models of ``steepest.models`` as estimators of scikit-learn.

They go wherever scikit-learn takes an estimator: into pipelines, searches and cross-validation.
Needs scikit-learn: ``pip install ".[sklearn]"``.

>>> from sklearn.datasets import load_iris
>>> from sklearn.model_selection import cross_val_score
>>> x, y = load_iris(return_X_y=True)
>>> classifier = Classifier(hidden=(16,), optimizer="lion", lr=0.01, epochs=50)
>>> bool(cross_val_score(classifier, x, y, cv=3).mean() > 0.9)
True
"""

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np

from steepest import training
from steepest.data.datasets import moments
from steepest.extras import require
from steepest.memory.arrays import Array
from steepest.models.initializers import Initializer
from steepest.models.networks import MLP, Activation, Objective, Params, Task
from steepest.optimizers import RULES, Optimizer
from steepest.schedules import Schedule
from steepest.training import batches

__all__ = ["Classifier", "Regressor"]

base: Any = require("sklearn.base", "sklearn", "steepest.sklearn")
multiclass: Any = require("sklearn.utils.multiclass", "sklearn", "steepest.sklearn")
utils: Any = require("sklearn.utils", "sklearn", "steepest.sklearn")
validation: Any = require("sklearn.utils.validation", "sklearn", "steepest.sklearn")


class Network(base.BaseEstimator):  # type: ignore[misc]
    """What classifier and regressor share: an ``MLP``, trained by any rule.

    hidden: units of each hidden layer; () for a linear model.
    optimizer: the name of a rule, as in ``steepest list``; or a function that makes an optimizer
        from parameters, such as ``st.Adam``.
    lr: the learning rate, a number or a schedule of the number of updates; None for the rule's own.
    options: further arguments of the rule, by name, as in {"weight_decay": 0.01}.
    epochs: passes over the data.
    batch_size: samples of an update; None for all.
    objective, delta, activation, weights: as for ``MLP``; by default two classes are told apart by
        a logistic loss, more by the cross-entropy.
    averaged: predict with what the optimizer's ``averaged()`` gives, the averages of a rule such as
        "schedulefreeadamw" or of an option such as {"ema": 0.99}.
    random_state: for initial weights and the order of samples: a seed, a RandomState or None.

    Inputs, and the targets of a regression, are shifted to mean 0 and scaled to standard deviation
    1, with those of the data given to ``fit``, or to the first ``partial_fit``. Everything is
    computed in float64.

    After fitting there are ``net_`` (the MLP), ``params_``, ``optimizer_``, ``scaling_`` (as that
    of ``models.TrainedModel``), ``n_iter_`` (the number of epochs) and ``n_features_in_``; after
    ``fit`` also ``history_``.
    """

    task: Task
    net_: MLP
    params_: Params
    scaling_: dict[str, Array]

    def __init__(
        self,
        hidden: tuple[int, ...] = (64,),
        *,
        optimizer: str | Callable[[Any], Optimizer] = "adamw",
        lr: float | Schedule | None = None,
        options: Mapping[str, Any] | None = None,
        epochs: int = 100,
        batch_size: int | None = 32,
        objective: Objective | None = None,
        delta: float = 1.0,
        activation: Activation = "relu",
        weights: str | Initializer | None = None,
        averaged: bool = False,
        random_state: Any = 0,
    ) -> None:
        self.hidden = hidden
        self.optimizer = optimizer
        self.lr = lr
        self.options = options
        self.epochs = epochs
        self.batch_size = batch_size
        self.objective = objective
        self.delta = delta
        self.activation = activation
        self.weights = weights
        self.averaged = averaged
        self.random_state = random_state

    @np.errstate(over="ignore", invalid="ignore")  # told as the reason why a training ends
    def fit(self, X: Any, y: Any) -> Self:
        """Trains from fresh parameters.

        X: shape (samples, features). y: shape (samples,).

        Raises ValueError for data that cannot be used, for arguments out of range, and where the
        training diverges; TypeError for arguments of the wrong type.
        """
        x, y = self._checked(X, y, reset=True)
        net = self._begin(x, y, None)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*; lower the learning rate", RuntimeWarning)
            self.history_ = training.fit(
                net.loss,
                self.params_,
                (self._scaled(x), self._targets(y)),
                self.optimizer_,
                value_and_grad=net.value_and_grad,
                epochs=self.epochs,
                batch_size=self.batch_size,
                seed=self._seed,
            )
        if self.history_.stopped == "nonfinite":
            raise ValueError(f"the training diverged: {self.history_.message}; give a smaller lr")
        self.n_iter_ = len(self.history_)
        self.net_ = net
        return self

    @np.errstate(over="ignore", invalid="ignore")
    def _more(self, X: Any, y: Any, classes: Any = None) -> Self:
        """One more epoch, on these data."""
        first = not hasattr(self, "net_")
        x, y = self._checked(X, y, reset=first)
        if first:
            self.net_ = self._begin(x, y, classes)
        data = self._scaled(x), self._targets(y)
        self.n_iter_ += 1
        for batch in batches(data, self.batch_size, seed=self._seed, epoch=self.n_iter_):
            value, grads = self.net_.value_and_grad(self.params_, *batch)
            if not math.isfinite(value):
                raise ValueError(f"the training diverged: the loss is {value}; give a smaller lr")
            self.optimizer_.step(grads)
        return self

    def _begin(self, x: Array, y: Array, classes: Any) -> MLP:
        """Scaling, fresh parameters and optimizer, and the network, which becomes ``net_`` once
        there is something to predict with."""
        self.__dict__.pop("net_", None)
        mean, scale = moments(x)
        self.scaling_ = {"x_mean": mean, "x_scale": scale}
        sizes = (x.shape[1], *self.hidden, self._outputs(y, classes))
        net = MLP(sizes, self.task, self.objective, self.delta, self.activation, self.weights)
        self._seed = int(utils.check_random_state(self.random_state).randint(2**31 - 1))
        self.params_ = net.initial(self._seed, np.float64)
        self.optimizer_ = self._optimizer()
        if self.averaged:
            self.optimizer_.averaged()  # raises where there are none
        self.n_iter_ = 0
        return net

    def _optimizer(self) -> Optimizer:
        """The optimizer that was asked for."""
        options = dict(self.options or {})
        if self.lr is not None:
            options["lr"] = self.lr
        options = copy.deepcopy(options)  # a schedule may have a state
        if not isinstance(self.optimizer, str):
            if options:
                raise ValueError("lr and options are for rules by name; give them in the function")
            return self.optimizer(self.params_)
        if self.optimizer not in RULES:
            raise ValueError(f"optimizer = {self.optimizer!r}: expected one of {', '.join(RULES)}")
        optimizer: Optimizer = RULES[self.optimizer](self.params_, **options)
        return optimizer

    def _checked(self, X: Any, y: Any, reset: bool) -> tuple[Array, Array]:
        x, y = validation.validate_data(
            self, X, y, dtype=np.float64, y_numeric=self.task == "regression", reset=reset
        )
        return x, y

    def _scaled(self, x: Array) -> Array:
        scaled: Array = (x - self.scaling_["x_mean"]) / self.scaling_["x_scale"]
        return scaled

    def _z(self, X: Any) -> Array:
        """The outputs of the last layer."""
        validation.check_is_fitted(self, "net_")
        x = validation.validate_data(self, X, dtype=np.float64, reset=False)
        params = self.params_
        if self.averaged:
            means = self.optimizer_.averaged()
            params = {
                layer: {name: means[f"{layer}.{name}"] for name in group}
                for layer, group in params.items()
            }
        return self.net_.activations(params, self._scaled(x))[-1]

    def _outputs(self, y: Array, classes: Any) -> int:
        """The number of outputs for these targets, the first, from which classes or scale come."""
        raise NotImplementedError

    def _targets(self, y: Array) -> Array:
        """The targets as the model takes them."""
        raise NotImplementedError


class Classifier(base.ClassifierMixin, Network):  # type: ignore[misc]
    """A network for classes of any type: numbers, true/false or text.

    Arguments are those of ``Network``; ``classes_`` has the classes, sorted.

    >>> x, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array(["no", "no", "yes", "yes"])
    >>> classifier = Classifier(hidden=(), optimizer="sgd", lr=0.5).fit(x, y)
    >>> classifier.predict([[-1.0], [5.0]])
    array(['no', 'yes'], dtype='<U3')
    >>> classifier.predict_proba([[1.5]]).round(2)
    array([[0.5, 0.5]])
    """

    task = "classification"

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> Self:
        """Trains one epoch on these data, going on from what there is.

        X, y: as for ``fit``. classes: all the classes that there will be, at the first call.

        Raises as ``fit``, and ValueError where the classes are not given at first, or are others
        later.
        """
        if not hasattr(self, "net_"):
            if classes is None:
                raise ValueError("classes is missing: the first partial_fit needs all of them")
        elif classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise ValueError(f"classes = {classes!r}: expected {self.classes_}, as before")
        return self._more(X, y, classes)

    def predict(self, X: Any) -> Array:
        """The class of each sample, of shape (samples,)."""
        z = self._z(X)
        found: Array = self.classes_[self.net_.predicted(z)]
        return found

    def predict_proba(self, X: Any) -> Array:
        """The probability of each class, of shape (samples, classes)."""
        z = self._z(X)
        return self.net_.probabilities(z)

    def _outputs(self, y: Array, classes: Any) -> int:
        multiclass.check_classification_targets(y)
        self.classes_ = np.unique(y if classes is None else classes)
        n = len(self.classes_)
        if n < 2:
            raise ValueError(f"there is one class, {self.classes_[0]!r}: expected two or more")
        return 1 if n == 2 and self.objective != "cross_entropy" else n

    def _targets(self, y: Array) -> Array:
        found = np.searchsorted(self.classes_, y).clip(max=len(self.classes_) - 1)
        unknown = y[self.classes_[found] != y]
        if len(unknown):
            raise ValueError(f"y holds {unknown[0]!r}, which is none of the classes")
        return found


class Regressor(base.RegressorMixin, Network):  # type: ignore[misc]
    """A network for values.

    Arguments are those of ``Network``.

    >>> x, y = np.arange(8.0)[:, None], 2 * np.arange(8.0) - 1
    >>> regressor = Regressor(hidden=(), optimizer="sgd", lr=0.1, batch_size=None).fit(x, y)
    >>> regressor.predict([[10.0]]).round(3)
    array([19.])
    """

    task = "regression"

    def partial_fit(self, X: Any, y: Any) -> Self:
        """Trains one epoch on these data, going on from what there is.

        X, y: as for ``fit``; raises as it does.
        """
        return self._more(X, y)

    def predict(self, X: Any) -> Array:
        """The value of each sample, of shape (samples,)."""
        z = self._z(X)
        value: Array = self.net_.predicted(z) * self.scaling_["y_scale"] + self.scaling_["y_mean"]
        return value

    def _outputs(self, y: Array, classes: Any) -> int:
        mean, scale = moments(y)
        self.scaling_ |= {"y_mean": mean, "y_scale": scale}
        return 1

    def _targets(self, y: Array) -> Array:
        targets: Array = (y - self.scaling_["y_mean"]) / self.scaling_["y_scale"]
        return targets
