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
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral
from typing import Any, Literal, Self

import numpy as np

from steepest import schedules, training
from steepest.data.datasets import moments
from steepest.extras import require
from steepest.fields import count, real
from steepest.memory.arrays import Array
from steepest.models.initializers import Initializer
from steepest.models.networks import MLP, Activation, Objective, Params, Task
from steepest.models.trained import TrainedModel
from steepest.optimizers import Optimizer, by_name
from steepest.schedules import Schedule
from steepest.training import batches

__all__ = ["Classifier", "Regressor"]

base: Any = require("sklearn.base", "sklearn", "steepest.sklearn")
model_selection: Any = require("sklearn.model_selection", "sklearn", "steepest.sklearn")
multiclass: Any = require("sklearn.utils.multiclass", "sklearn", "steepest.sklearn")
utils: Any = require("sklearn.utils", "sklearn", "steepest.sklearn")
validation: Any = require("sklearn.utils.validation", "sklearn", "steepest.sklearn")


SPAN = "a finite number, 0 or more", lambda x: 0 <= x < math.inf

Samples = tuple[Array, Array, Array | None]
"""Inputs, targets and, where there are any, weights."""


def _weighty(x: Array, y: Array, weight: Array) -> Samples:
    """The samples with a weight above 0. Raises ValueError where there is none."""
    some = weight > 0
    if not some.any():
        raise ValueError("sample_weight: all weights are zero; there is nothing to train on")
    return (x, y, weight) if some.all() else (x[some], y[some], weight[some])


class Network(base.BaseEstimator):  # type: ignore[misc]
    """What classifier and regressor share: an ``MLP``, trained by any rule.

    hidden: units of each hidden layer, or of the only one; () for a linear model.
    optimizer: the name of a rule, as in ``steepest list``; or a function that makes an optimizer
        from parameters, such as ``st.Adam``.
    lr: the learning rate, a number or a schedule of the number of updates. None is the rule's own;
        for "adamw" it is 0.03 of a linear model and 0.003 of a network, constant in
        ``partial_fit``, while in ``fit`` it falls to a tenth along a cosine; and a network has
        weight_decay=1, unless ``options`` say otherwise.
    options: further arguments of the rule, by name, as in {"weight_decay": 0.01}.
    epochs: passes over the data.
    batch_size: samples of an update; None for all.
    objective, delta, activation, weights: as for ``MLP``; by default two classes are told apart by
        a logistic loss, more by the cross-entropy.
    averaged: predict with what the optimizer's ``averaged()`` gives, the averages of a rule such as
        "schedulefreeadamw" or of an option such as {"ema": 0.99}.
    early_stopping: set a part of the data aside, stop when the loss on it falls no more, and keep
        the parameters of the epoch in which it was lowest.
    validation_fraction: the share of the data that early stopping sets aside, of each class.
    n_iter_no_change: stop after so many epochs in a row without a loss lower by more than tol.
    tol: how much lower, at least.
    warm_start: ``fit`` begins with the parameters and the scaling of the fit before, where there is
        one; the optimizer, and its schedules, begin anew.
    random_state: for initial weights, the order of samples and the part that is set aside: a seed,
        a RandomState or None.

    Inputs, and the targets of a regression, are shifted to mean 0 and scaled to standard deviation
    1, with those of the data given to ``fit`` (of the part that is trained on), or to the first
    ``partial_fit``. Everything is computed in float64.

    ``sample_weight`` makes the loss of a batch a weighted mean, and so mean and deviation. A weight
    of 0 is the same as leaving the sample out. Integer weights are the same as repeating samples,
    up to rounding, where a batch has all of them: ``batch_size`` is None, or not less than their
    number. Smaller batches have so many samples, whatever their weights.

    After fitting there are ``net_`` (the MLP), ``params_``, ``optimizer_``, ``scaling_`` (as that
    of ``models.TrainedModel``), ``n_iter_`` (the number of epochs) and ``n_features_in_``; after
    ``fit`` also ``history_``.
    """

    task: Task
    net_: MLP
    params_: Params
    scaling_: dict[str, Array]
    classes_: Array

    def __init__(
        self,
        hidden: int | tuple[int, ...] = (64,),
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
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        warm_start: bool = False,
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
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.warm_start = warm_start
        self.random_state = random_state

    @np.errstate(over="ignore", invalid="ignore")  # told as the reason why a training ends
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Trains from fresh parameters, or, with ``warm_start``, from those of the fit before.

        X: shape (samples, features). y: shape (samples,). sample_weight: shape (samples,), 0 or
        more; None for equal weights.

        Raises ValueError for data that cannot be used, for arguments out of range, and where the
        training diverges; TypeError for arguments of the wrong type.
        """
        before = self.net_ if self.warm_start and hasattr(self, "net_") else None
        samples = self._checked(X, y, sample_weight, reset=before is None)
        labels = self._labels(samples[1])
        self._seed = int(utils.check_random_state(self.random_state).randint(2**31 - 1))
        training_part, aside = self._parts(samples) if self.early_stopping else (samples, None)
        if before is None:
            net = self._begin(*training_part, classes=labels, fitting=True)
        else:
            net = self._begin_again(before, labels, len(training_part[0]))
        stopping: dict[str, Any] = {}
        if aside is not None:
            stopping = {"validation": self._data(*aside), "use_ema": self.averaged}
            stopping["patience"] = count("n_iter_no_change", self.n_iter_no_change, 1)
            stopping["min_delta"] = real("tol", self.tol, *SPAN)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*; lower the learning rate", RuntimeWarning)
            self.history_ = training.fit(
                net.loss,
                self.params_,
                self._data(*training_part),
                self.optimizer_,
                value_and_grad=net.value_and_grad,
                epochs=self.epochs,
                batch_size=self.batch_size,
                seed=self._seed,
                **stopping,
            )
        if self.history_.stopped == "nonfinite":
            raise ValueError(f"the training diverged: {self.history_.message}; give a smaller lr")
        self._restored = aside is not None
        self.n_iter_ = len(self.history_)
        self.net_ = net
        return self

    @np.errstate(over="ignore", invalid="ignore")
    def _more(self, X: Any, y: Any, sample_weight: Any, classes: Any = None) -> Self:
        """One more epoch, on these data."""
        if self.early_stopping:
            raise ValueError("early_stopping = True: partial_fit has no data to set aside; use fit")
        first = not hasattr(self, "net_")
        samples = self._checked(X, y, sample_weight, reset=first)
        if first:
            self._seed = int(utils.check_random_state(self.random_state).randint(2**31 - 1))
            labels = self._labels(samples[1]) if classes is None else np.unique(classes)
            self.net_ = self._begin(*samples, classes=labels, fitting=False)
        data = self._data(*samples)
        self.n_iter_ += 1
        self._restored = False
        for batch in batches(data, self.batch_size, seed=self._seed, epoch=self.n_iter_):
            value, grads = self.net_.value_and_grad(self.params_, *batch)
            if not math.isfinite(value):
                raise ValueError(f"the training diverged: the loss is {value}; give a smaller lr")
            self.optimizer_.step(grads)
        return self

    def _begin(
        self, x: Array, y: Array, weight: Array | None, *, classes: Array | None, fitting: bool
    ) -> MLP:
        """Scaling, fresh parameters and optimizer, and the network, which becomes ``net_`` once
        there is something to predict with."""
        self.__dict__.pop("net_", None)
        mean, scale = moments(x, weight)
        self.scaling_ = {"x_mean": mean, "x_scale": scale}
        net = self._network(x.shape[1], self._outputs(y, weight, classes))
        self.params_ = net.initial(self._seed, np.float64)
        self._begin_optimizer(len(x) if fitting else None)
        return net

    def _begin_again(self, before: MLP, classes: Array | None, samples: int) -> MLP:
        """The network once more, with the parameters that there are. Raises ValueError where they
        do not fit it."""
        if classes is not None and not np.array_equal(classes, self.classes_):
            raise ValueError(
                f"warm_start = True: y has the classes {classes}, that of the fit before "
                f"{self.classes_}; give warm_start=False to begin anew"
            )
        net = self._network(before.sizes[0], before.sizes[-1])
        if net.sizes != before.sizes:
            raise ValueError(
                f"warm_start = True: the network has the sizes {net.sizes}, that of the fit before "
                f"{before.sizes}; give warm_start=False to begin anew"
            )
        del self.net_
        self._begin_optimizer(samples)
        return net

    def _network(self, inputs: int, outputs: int) -> MLP:
        hidden: Any = self.hidden  # perhaps an integer of NumPy
        sizes = (inputs, *(hidden if isinstance(hidden, Iterable) else [hidden]), outputs)
        return MLP(sizes, self.task, self.objective, self.delta, self.activation, self.weights)

    def _begin_optimizer(self, samples: int | None) -> None:
        """samples: of a ``fit``; None where it is not known how many updates there will be."""
        self.optimizer_ = self._optimizer(samples)
        if self.averaged:
            self.optimizer_.averaged()  # raises where there are none
        self.n_iter_ = 0

    def _parts(self, samples: Samples) -> tuple[Samples, Samples]:
        """The samples that are trained on, and those that early stopping sets aside."""
        x, y, weight = samples
        given = (x, y) if weight is None else (x, y, weight)
        try:
            halves = model_selection.train_test_split(
                *given,
                test_size=self.validation_fraction,
                stratify=y if self.task == "classification" else None,
                random_state=self._seed,
            )
        except ValueError as error:
            raise ValueError(
                f"early_stopping = True, validation_fraction = {self.validation_fraction}: {error}"
            ) from None
        training_part, aside = halves[::2], halves[1::2]
        if weight is None:
            return (*training_part, None), (*aside, None)
        return tuple(training_part), tuple(aside)

    def _optimizer(self, samples: int | None) -> Optimizer:
        """The optimizer that was asked for."""
        options = dict(self.options or {})
        if self.lr is not None:
            options["lr"] = self.lr
        if self.optimizer == "adamw" and "lr" not in options:
            options = self._defaults(samples) | options
        options = copy.deepcopy(options)  # a schedule may have a state
        if not isinstance(self.optimizer, str):
            if not callable(self.optimizer):
                raise TypeError(
                    f"optimizer = {self.optimizer!r}: expected the name of a rule, or a function"
                )
            if options:
                raise ValueError("lr and options are for rules by name; give them in the function")
            return self.optimizer(self.params_)
        return by_name(self.optimizer)(self.params_, **options)

    def _defaults(self, samples: int | None) -> dict[str, Any]:
        """With what AdamW does well on small tables; ``tests/sklearn`` compares it with the linear
        models of scikit-learn."""
        linear = isinstance(self.hidden, Iterable) and not tuple(self.hidden)
        rate = 0.03 if linear else 0.003
        chosen: dict[str, Any] = {"lr": rate} if linear else {"lr": rate, "weight_decay": 1.0}
        size: Any = samples if self.batch_size is None else self.batch_size
        given: Any = samples, size, self.epochs
        if all(isinstance(x, Integral) and int(x) > 0 for x in given):  # else the training tells
            steps = int(self.epochs) * math.ceil(int(samples or 0) / int(size))
            chosen["lr"] = schedules.cosine(rate, steps=steps, end=rate / 10)
        return chosen

    def _checked(self, X: Any, y: Any, sample_weight: Any, reset: bool) -> Samples:
        """Inputs, targets and weights, of the samples that have a weight."""
        x, y = validation.validate_data(
            self, X, y, dtype=np.float64, y_numeric=self.task == "regression", reset=reset
        )
        if sample_weight is None:
            return self._reweighted(x, y, None)
        weight = validation.check_array(
            sample_weight, dtype=np.float64, ensure_2d=False, input_name="sample_weight"
        )
        if weight.shape != y.shape:
            raise ValueError(f"sample_weight has shape {weight.shape}: expected {y.shape}")
        if (weight < 0).any():
            raise ValueError(f"sample_weight has {weight.min()}: expected 0 or more")
        return self._reweighted(*_weighty(x, y, weight))

    def _reweighted(self, x: Array, y: Array, weight: Array | None) -> Samples:
        """The samples with the weights of their classes, if any."""
        return x, y, weight

    def _data(self, x: Array, y: Array, weight: Array | None) -> tuple[Array, ...]:
        """The arguments of the loss."""
        data = self._scaled(x), self._targets(y)
        return data if weight is None else (*data, weight)

    def _scaled(self, x: Array) -> Array:
        scaled: Array = (x - self.scaling_["x_mean"]) / self.scaling_["x_scale"]
        return scaled

    def _z(self, X: Any) -> Array:
        """The outputs of the last layer."""
        validation.check_is_fitted(self, "net_")
        x = validation.validate_data(self, X, dtype=np.float64, reset=False)
        return self.net_.activations(self._at(), self._scaled(x))[-1]

    def _at(self) -> Params:
        """The parameters to predict with."""
        if not self.averaged or self._restored:  # which are averages, too
            return self.params_
        means = self.optimizer_.averaged()
        return {
            layer: {name: means[f"{layer}.{name}"] for name in group}
            for layer, group in self.params_.items()
        }

    def to_onnx(
        self, path: str | os.PathLike[str], *, dtype: Literal["float64", "float32"] = "float64"
    ) -> None:
        """Writes the model with its scaling as an ONNX file, as ``models.TrainedModel.to_onnx``.

        path: of the file. dtype: of its input.

        Raises as that does, and NotFittedError before a fit.
        """
        validation.check_is_fitted(self, "net_")
        numbered = [f"x{i}" for i in range(self.n_features_in_)]
        columns = tuple(map(str, getattr(self, "feature_names_in_", numbered)))
        classes = self.classes_ if self.task == "classification" else None
        model = TrainedModel(self.net_, self._at(), columns, classes, self.scaling_)
        model.to_onnx(path, dtype=dtype)

    def _labels(self, y: Array) -> Array | None:
        """The classes among these targets, None for a regression. Raises ValueError for targets of
        another kind."""
        return None

    def _outputs(self, y: Array, weight: Array | None, classes: Array | None) -> int:
        """The number of outputs for these targets, the first, from which classes or scale come."""
        raise NotImplementedError

    def _targets(self, y: Array) -> Array:
        """The targets as the model takes them."""
        raise NotImplementedError


class Classifier(base.ClassifierMixin, Network):  # type: ignore[misc]
    """A network for classes of any type: numbers, true/false or text.

    Arguments are those of ``Network``, and class_weight. ``classes_`` has the classes, sorted.

    class_weight: a weight for each class, as a mapping (1 for those that it lacks), or "balanced"
        for weights in inverse proportion to the numbers of samples; they multiply sample_weight.

    >>> x, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array(["no", "no", "yes", "yes"])
    >>> classifier = Classifier(hidden=(), optimizer="sgd", lr=0.5).fit(x, y)
    >>> classifier.predict([[-1.0], [5.0]])
    array(['no', 'yes'], dtype='<U3')
    >>> classifier.predict_proba([[1.5]]).round(2)
    array([[0.5, 0.5]])
    """

    task = "classification"

    def __init__(
        self,
        hidden: int | tuple[int, ...] = (64,),
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
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        warm_start: bool = False,
        class_weight: Mapping[Any, float] | str | None = None,
        random_state: Any = 0,
    ) -> None:
        super().__init__(
            hidden,
            optimizer=optimizer,
            lr=lr,
            options=options,
            epochs=epochs,
            batch_size=batch_size,
            objective=objective,
            delta=delta,
            activation=activation,
            weights=weights,
            averaged=averaged,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            n_iter_no_change=n_iter_no_change,
            tol=tol,
            warm_start=warm_start,
            random_state=random_state,
        )
        self.class_weight = class_weight

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Trains one epoch on these data, going on from what there is.

        X, y, sample_weight: as for ``fit``. classes: all the classes that there will be, at the
        first call.

        Raises as ``fit``, and ValueError where the classes are not given at first, or are others
        later, and for ``early_stopping`` and class_weight="balanced", which need all of the data.
        """
        if not hasattr(self, "net_"):
            if classes is None:
                raise ValueError("classes is missing: the first partial_fit needs all of them")
        elif classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise ValueError(f"classes = {classes!r}: expected {self.classes_}, as before")
        if self.class_weight == "balanced":
            raise ValueError(
                "class_weight = 'balanced': partial_fit does not know how many samples there will "
                "be of each class; give a mapping"
            )
        return self._more(X, y, sample_weight, classes)

    def predict(self, X: Any) -> Array:
        """The class of each sample, of shape (samples,)."""
        z = self._z(X)
        found: Array = self.classes_[self.net_.predicted(z)]
        return found

    def predict_proba(self, X: Any) -> Array:
        """The probability of each class, of shape (samples, classes)."""
        z = self._z(X)
        return self.net_.probabilities(z)

    def _reweighted(self, x: Array, y: Array, weight: Array | None) -> Samples:
        if self.class_weight is None:
            return x, y, weight
        multiclass.check_classification_targets(y)
        labels, numbers = np.unique(y, return_inverse=True)
        each = self._of_classes(labels, np.bincount(numbers, weight))[numbers]
        return _weighty(x, y, each if weight is None else each * weight)

    def _of_classes(self, labels: Array, counts: Array) -> Array:
        """The weight of each class."""
        if isinstance(self.class_weight, str) and self.class_weight == "balanced":
            balanced: Array = counts.sum() / (len(counts) * counts)
            return balanced
        if not isinstance(self.class_weight, Mapping):
            raise ValueError(
                f"class_weight = {self.class_weight!r}: expected a mapping, 'balanced' or None"
            )
        for label, value in self.class_weight.items():
            real(f"class_weight[{label!r}]", value, *SPAN)
        return np.array([float(self.class_weight.get(x, 1.0)) for x in labels.tolist()])

    def _labels(self, y: Array) -> Array | None:
        multiclass.check_classification_targets(y)
        labels: Array = np.unique(y)
        return labels

    def _outputs(self, y: Array, weight: Array | None, classes: Array | None) -> int:
        multiclass.check_classification_targets(y)
        self.classes_ = np.asarray(classes)
        n = len(self.classes_)
        if n < 2:
            raise ValueError(f"there is one class, {self.classes_[0]!r}: expected two or more")
        if isinstance(self.class_weight, Mapping):
            unknown = [label for label in self.class_weight if label not in self.classes_]
            if unknown:
                raise ValueError(f"class_weight has {unknown[0]!r}, which is none of the classes")
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

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Trains one epoch on these data, going on from what there is.

        X, y, sample_weight: as for ``fit``; raises as it does, and ValueError for
        ``early_stopping``, which needs all of the data.
        """
        return self._more(X, y, sample_weight)

    def predict(self, X: Any) -> Array:
        """The value of each sample, of shape (samples,)."""
        z = self._z(X)
        value: Array = self.net_.predicted(z) * self.scaling_["y_scale"] + self.scaling_["y_mean"]
        return value

    def _outputs(self, y: Array, weight: Array | None, classes: Array | None) -> int:
        mean, scale = moments(y, weight)
        self.scaling_ |= {"y_mean": mean, "y_scale": scale}
        return 1

    def _targets(self, y: Array) -> Array:
        targets: Array = (y - self.scaling_["y_mean"]) / self.scaling_["y_scale"]
        return targets
