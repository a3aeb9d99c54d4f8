"""Models for tables, in NumPy: linear, logistic and softmax regression, and small networks.

All of them are an ``MLP``: regression without a hidden layer is linear regression, classification
without one is logistic or softmax regression. Parameters are nested dicts of arrays, as any
optimizer takes them; ``model.loss`` and ``model.value_and_grad`` go into ``st.fit``.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from steepest.memory.arrays import Array
from steepest.models import losses
from steepest.models.initializers import INITIALIZERS, Initializer, he_normal, xavier_uniform

__all__ = [
    "MLP",
    "Activation",
    "Objective",
    "Params",
    "Task",
    "accuracy",
    "linear_regression",
    "log_loss",
    "logistic_regression",
    "mean_absolute_error",
    "r_squared",
    "rmse",
    "softmax_regression",
]

Task = Literal["classification", "regression"]
Objective = Literal["squared", "absolute", "huber", "logistic", "cross_entropy"]
Activation = Literal["relu", "tanh"]
Params = dict[str, dict[str, Array]]

OBJECTIVES: dict[Task, tuple[Objective, ...]] = {
    "regression": ("squared", "absolute", "huber"),
    "classification": ("logistic", "cross_entropy"),
}

# Units in the last place by which values that are meant to be equal may differ.
ROUNDING = 4

# Each activation, and its derivative as a function of its value.
ACTIVATIONS: dict[Activation, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "relu": (lambda z: np.maximum(z, 0), lambda h: h > 0),
    "tanh": (np.tanh, lambda h: 1 - h * h),
}


@dataclass(frozen=True)
class MLP:
    """A multilayer perceptron with ReLU or tanh between its layers.

        h ← max(h W + b, 0)    for each hidden layer; or tanh(h W + b)
        z = h W + b            at the end

    sizes: number of inputs, of each hidden layer's units, and of outputs: 1 for regression, one
        per class for classification, or 1 for two classes told apart by a logistic loss.
    task: "regression" or "classification".
    objective: the loss, by name (see ``steepest.losses``): "squared" (default), "absolute" or
        "huber" for regression; "cross_entropy" (default) for one output per class, "logistic"
        (default) for a single output.
    delta: of the Huber loss.
    activation: "relu" or "tanh".
    weights: initial weights, by name (see ``steepest.initializers``), or a function
        ``f(rng, shape, dtype)``; default: He's before a ReLU, Xavier's elsewhere.

    Targets have shape (samples,); classes are numbered from 0. Raises ValueError for what does not
    go together.

    >>> net = MLP((2, 3, 1), "regression")
    >>> params = net.initial(seed=0)
    >>> list(params), params["layer1"]["weight"].shape, net.size
    (['layer1', 'layer2'], (2, 3), 13)
    >>> value, grads = net.value_and_grad(params, np.ones((4, 2), np.float32), np.zeros(4))
    >>> round(value, 6), grads["layer2"]["bias"].shape
    (0.027995, (1,))
    """

    sizes: tuple[int, ...]
    task: Task
    objective: Objective | None = None
    delta: float = 1.0
    activation: Activation = "relu"
    weights: str | Initializer | None = None

    def __post_init__(self) -> None:
        _one_of("task", self.task, OBJECTIVES)
        _one_of("activation", self.activation, ACTIVATIONS)
        object.__setattr__(self, "sizes", tuple(self.sizes))
        whole = [hasattr(n, "__index__") and not isinstance(n, bool) for n in self.sizes]
        if len(self.sizes) < 2 or not all(whole) or min(self.sizes) < 1:
            raise ValueError(
                f"sizes = {self.sizes}: expected the numbers of inputs, of each hidden layer's "
                "units if any, and of outputs, all at least 1"
            )
        single = self.sizes[-1] == 1
        if self.objective is None:
            default = "logistic" if single else "cross_entropy"
            default = "squared" if self.task == "regression" else default
            object.__setattr__(self, "objective", default)
        _one_of(f"objective of a {self.task}", self.objective, OBJECTIVES[self.task])
        if single == (self.objective == "cross_entropy"):
            raise ValueError(
                f"sizes = {self.sizes} with objective {self.objective!r}: expected one output per "
                "class, two or more, for 'cross_entropy', and 1 output for the others"
            )
        losses.check_delta(self.delta)
        if self.objective != "huber" and self.delta != 1.0:
            raise ValueError(f"delta = {self.delta}: only objective 'huber' has one")
        if isinstance(self.weights, str):
            _one_of("weights", self.weights, INITIALIZERS)
        if self.weights == "zeros" and len(self.sizes) > 2:
            raise ValueError("weights 'zeros': a network with hidden layers would stay at 0")

    @property
    def size(self) -> int:
        """The number of parameters."""
        return sum((a + 1) * b for a, b in pairwise(self.sizes))

    def initial(self, seed: int, dtype: Any = np.float32) -> Params:
        """Fresh parameters: weights as asked for, biases zero."""
        rng = np.random.default_rng(seed)
        last = len(self.sizes) - 1
        params: Params = {}
        for i, (inputs, outputs) in enumerate(pairwise(self.sizes), 1):
            make = self._initializer(hidden=i < last)
            params[f"layer{i}"] = {
                "weight": make(rng, (inputs, outputs), dtype),
                "bias": np.zeros(outputs, dtype),
            }
        return params

    def _initializer(self, hidden: bool) -> Initializer:
        if self.weights is None:
            return he_normal if hidden and self.activation == "relu" else xavier_uniform
        return INITIALIZERS[self.weights] if isinstance(self.weights, str) else self.weights

    @np.errstate(under="ignore")
    def activations(self, params: Params, x: Array) -> list[Array]:
        """The input and the values after each layer, the output last."""
        activate, _ = ACTIVATIONS[self.activation]
        layers = list(params.values())
        values = [x]
        for layer in layers[:-1]:
            values.append(activate(values[-1] @ layer["weight"] + layer["bias"]))
        values.append(values[-1] @ layers[-1]["weight"] + layers[-1]["bias"])
        return values

    @np.errstate(under="ignore")
    def predict(self, params: Params, x: Array) -> Array:
        """The number of the likeliest class, or the estimated value, of each sample."""
        return self.predicted(self.activations(params, x)[-1])

    @np.errstate(under="ignore")
    def predict_proba(self, params: Params, x: Array) -> Array:
        """The probability of each class, of shape (samples, classes).

        Raises ValueError for a regression.
        """
        return self.probabilities(self.activations(params, x)[-1])

    def predicted(self, z: Array) -> Array:
        """What ``predict`` gives for these outputs of the last layer.

        >>> MLP((2, 3), "classification").predicted(np.array([[0.5, 2.0, -1.0]]))
        array([1])
        """
        if self.objective == "logistic":
            return (z[:, 0] > 0).astype(np.int64)
        return z.argmax(axis=1) if self.task == "classification" else z[:, 0]

    @np.errstate(under="ignore")
    def probabilities(self, z: Array) -> Array:
        """What ``predict_proba`` gives for these outputs of the last layer; raises as it does.

        >>> MLP((2, 1), "classification").probabilities(np.array([[0.0]]))
        array([[0.5, 0.5]])
        """
        if self.task == "regression":
            raise ValueError("a regression has no classes; use predict")
        if self.objective == "logistic":
            return losses.sigmoid(np.concatenate([-z, z], axis=1))
        return losses.softmax(z)

    @np.errstate(under="ignore")
    def loss(self, params: Params, x: Array, y: Array, weight: Array | None = None) -> float:
        """The mean loss over a batch, weighted by sample where there are weights.

        Raises ValueError or TypeError for unfit targets, ValueError for unfit weights.
        """
        z = self.activations(params, x)[-1]
        return float(self._judged(losses.LOSSES, z, y, weight=weight))

    @np.errstate(under="ignore")
    def value_and_grad(
        self, params: Params, x: Array, y: Array, weight: Array | None = None
    ) -> tuple[float, Params]:
        """The mean loss over a batch and its gradients, by back-propagation; raises as ``loss``."""
        _, derivative = ACTIVATIONS[self.activation]
        values = self.activations(params, x)
        z = values.pop()
        value = float(self._judged(losses.LOSSES, z, y, weight=weight))
        delta = self._judged(losses.GRADIENTS, z, y).reshape(z.shape)
        if weight is not None:
            delta = losses.shares(weight, z[:, 0])[:, None] * delta
        grads: Params = {}
        for name, layer in reversed(params.items()):
            h = values.pop()
            grads[name] = {"weight": h.T @ delta, "bias": delta.sum(axis=0)}
            if values:
                delta = (delta @ layer["weight"].T) * derivative(h)
        return value, {name: grads[name] for name in params}

    def _judged(
        self, judges: Mapping[str, Callable[..., Any]], z: Array, y: Array, **options: Any
    ) -> Any:
        """The loss of outputs z, or its gradient."""
        if self.objective != "cross_entropy":
            z = z[:, 0]
        if self.task == "regression":
            y = y.astype(z.dtype)
        if self.objective == "huber":
            options["delta"] = self.delta
        return judges[str(self.objective)](z, y, **options)


def linear_regression(
    inputs: int, *, objective: Objective = "squared", delta: float = 1.0, weights: str = "zeros"
) -> MLP:
    """A linear model of one number, ŷ = x · w + b: an ``MLP`` without a hidden layer.

    >>> model = linear_regression(1, objective="absolute")
    >>> x, y = np.array([[0.0], [1.0]]), np.array([0.0, -2.0])
    >>> params = model.initial(0, np.float64)
    >>> model.loss(params, x, y), model.value_and_grad(params, x, y)[1]["layer1"]["weight"]
    (1.0, array([[0.5]]))
    """
    return MLP((inputs, 1), "regression", objective, delta, weights=weights)


def logistic_regression(inputs: int, *, weights: str = "zeros") -> MLP:
    """Two classes, 0 and 1, by the log-odds of class 1, x · w + b.

    >>> model = logistic_regression(1)
    >>> params = {"layer1": {"weight": np.array([[2.0]]), "bias": np.array([-1.0])}}
    >>> x = np.array([[0.0], [0.5], [2.0]])
    >>> model.predict(params, x), model.predict_proba(params, x)[:, 1].round(3)
    (array([0, 0, 1]), array([0.269, 0.5  , 0.953]))
    """
    return MLP((inputs, 1), "classification", weights=weights)


def softmax_regression(inputs: int, classes: int, *, weights: str = "zeros") -> MLP:
    """Multinomial logistic regression: class probabilities softmax(x W + b).

    >>> model = softmax_regression(2, classes=3)
    >>> model.predict_proba(model.initial(0, np.float64), np.ones((1, 2))).round(3)
    array([[0.333, 0.333, 0.333]])
    """
    return MLP((inputs, classes), "classification", "cross_entropy", weights=weights)


def accuracy(predicted: Array, y: Array) -> float:
    """The share of samples whose class is right, from 0 to 1.

    This and the other measures compute in float64 at least, and raise ValueError for arrays of
    different shapes, or without samples. Raises TypeError where one holds text and the other does
    not: "1" is not 1.

    >>> accuracy(np.array([1, 2, 0, 0]), np.array([1, 2, 2, 0]))
    0.75
    """
    predicted, y = np.asarray(predicted), np.asarray(y)
    losses.same_shape(predicted, y)
    kinds = _kind(predicted), _kind(y)
    if kinds[0] != kinds[1]:
        raise TypeError(
            f"predicted holds {kinds[0]}, y {kinds[1]}: none would be equal; convert one of them, "
            "as by  y.astype(predicted.dtype)"
        )
    return float(np.mean(predicted == y))


@np.errstate(under="ignore")
def log_loss(probabilities: Array, y: Array) -> float:
    """The mean of -log p[y], of probabilities of shape (samples, classes); ∞ where one is 0.

    Each row is taken relative to its sum. Raises as ``losses.cross_entropy``.

    >>> round(log_loss(np.array([[0.5, 0.5], [0.2, 0.8]]), np.array([0, 1])), 6)
    0.458145
    """
    with np.errstate(divide="ignore"):
        return float(losses.cross_entropy(np.log(_wide(probabilities)), y))


def r_squared(predicted: Array, y: Array) -> float:
    """The share of the variance of y that is explained: 1 is perfect, 0 as good as the mean.

        R² = 1 - Σ (y - ŷ)² / Σ (y - mean y)²

    NaN where y is constant, or varies by no more than the rounding of its values.

    >>> r_squared(np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0]))
    0.5
    """
    predicted, y = _wide(predicted), _wide(y)
    losses.same_shape(predicted, y)
    if constant(y.reshape(-1)):
        return math.nan
    with np.errstate(over="ignore", under="ignore"):
        error, spread = y - predicted, y - np.mean(y)
        # Their squares are then within double; a power of two changes no digit.
        unit = 2.0 ** (math.frexp(float(np.max(np.abs(spread))))[1] - 1)
        return 1 - float(np.sum((error / unit) ** 2)) / float(np.sum((spread / unit) ** 2))


@np.errstate(under="ignore")
def rmse(predicted: Array, y: Array) -> float:
    """The root of the mean squared error, in the unit of y.

    >>> rmse(np.array([1.0, 2.0]), np.array([4.0, 6.0])) == math.sqrt(12.5)
    True
    """
    return math.sqrt(losses.squared(_wide(predicted), _wide(y)))


@np.errstate(under="ignore")
def mean_absolute_error(predicted: Array, y: Array) -> float:
    """The mean absolute error, in the unit of y.

    >>> mean_absolute_error(np.array([1.0, 2.0]), np.array([4.0, 6.0]))
    3.5
    """
    return float(losses.absolute(_wide(predicted), _wide(y)))


def constant(x: Array) -> Array:
    """Whether values differ, along the first axis, by no more than their rounding.

    >>> constant(np.array([[0.1 + 0.2, 1.0], [0.3, 2.0]]))
    array([ True, False])
    """
    low, high = x.min(axis=0), x.max(axis=0)
    rounding = ROUNDING * float(np.finfo(np.float64).eps)
    with np.errstate(all="ignore"):  # far apart, the difference may be beyond double
        same: Array = high - low <= rounding * np.maximum(np.abs(low), np.abs(high))
    return same


def _wide(x: Any) -> Array:
    """Numbers as float64, or wider floats as they are: narrow ones overflow, integers wrap."""
    x = np.asarray(x)
    wide: Array = x.astype(np.result_type(x.dtype, np.float64), copy=False)
    return wide


def _kind(x: Array) -> str:
    """What an array of labels holds, in a word."""
    if x.dtype.kind == "O" and all(isinstance(label, str) for label in x.flat):
        return "text"
    return {"U": "text", "T": "text", "S": "bytes"}.get(x.dtype.kind, "numbers")


def _one_of(name: str, value: Any, known: Any) -> None:
    if value not in known:
        raise ValueError(f"{name} = {value!r}: expected one of {', '.join(map(repr, known))}")
