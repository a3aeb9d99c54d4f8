"""Losses: the mean over a batch of how far predictions are from targets.

They take NumPy arrays, and arrays that autograd follows: a loss can be called inside the function
given to ``st.fit``, and differentiated any number of times. What an array's operations are it says
itself (``__array_namespace__``), so this module needs nothing but NumPy.

Shapes are compared, never broadcast: predictions of shape (n, 1) minus targets of shape (n,) would
be an (n, n) table of all pairs, and train to the mean of the targets without a word.

``weight``, of one number per sample, makes each mean a weighted one, Σ w l / Σ w: an integer weight
counts a sample so many times, up to rounding.

Where NumPy is told to raise (``np.seterr``), overflow is an error here, too; what vanishes is not.

``GRADIENTS`` has the gradient of each with respect to the predictions, written out by hand.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from steepest.fields import real
from steepest.memory.arrays import Array, unmasked

__all__ = [
    "GRADIENTS",
    "LOSSES",
    "absolute",
    "check_delta",
    "cross_entropy",
    "huber",
    "logistic",
    "same_shape",
    "sigmoid",
    "softmax",
    "squared",
]

_tiny_is_zero = np.errstate(under="ignore")
"""For functions in which what is below the smallest number is rightly 0: no error, whatever the
caller has told NumPy to raise."""


@_tiny_is_zero
def squared(prediction: Any, target: Any, *, weight: Any = None) -> Any:
    """The mean squared error, mean (prediction - target)².

    prediction, target: arrays of one shape. weight: of that shape, too, 0 or more. Raises
    ValueError for different or empty shapes, and for weights that are negative or all 0.

    >>> float(squared([1.0, 2.0], [1.0, 4.0]))
    2.0
    >>> float(squared([1.0, 2.0], [1.0, 4.0], weight=[3, 1]))
    1.0
    """
    return _mean(_error(prediction, target) ** 2, weight)


@_tiny_is_zero
def absolute(prediction: Any, target: Any, *, weight: Any = None) -> Any:
    """The mean absolute error, mean |prediction - target|; its slope at 0 is taken as 0.

    Outliers pull less than with ``squared``: the best constant is the median. Raises ValueError as
    ``squared`` does.

    >>> float(absolute([1.0, 2.0], [1.0, 4.0]))
    1.0
    """
    error = _error(prediction, target)
    return _mean(_space(error).fabs(error), weight)


@_tiny_is_zero
def huber(prediction: Any, target: Any, *, delta: float = 1.0, weight: Any = None) -> Any:
    """Huber's loss: squared for small errors, absolute for large ones.

        mean of  e² / 2                where |e| <= delta,    e = prediction - target
                 delta (|e| - delta/2) elsewhere

    delta: where one becomes the other, > 0, in units of the target. Raises ValueError otherwise,
    and as ``squared``.

    >>> float(huber([0.5, 3.0], [0.0, 0.0]))
    1.3125

    Source: Huber 1964, "Robust estimation of a location parameter"; as torch.nn.HuberLoss.
    """
    check_delta(delta)
    error = _error(prediction, target)
    xp = _space(error)
    size = xp.fabs(error)
    small = size <= delta
    # An infinite error must not enter the branch that is not taken: 0 · ∞ would be its slope.
    inner = xp.where(small, error, 0.0)
    return _mean(xp.where(small, 0.5 * inner**2, delta * (size - 0.5 * delta)), weight)


@_tiny_is_zero
def logistic(logit: Any, label: Any, *, weight: Any = None) -> Any:
    """The logistic loss, or binary cross-entropy, of logits.

        mean log(1 + exp(-z)) where the label is 1,  mean log(1 + exp(z)) where it is 0

    logit: log-odds z of label 1, any finite size. label: 0 or 1 (or False, True), of the same
    shape, as is weight. Raises ValueError for other labels or shapes, and as ``squared``.

    >>> float(logistic([1000.0, -1000.0], [0, 0])), float(logistic([0.0], [1])) == math.log(2)
    (500.0, True)
    """
    z, sign = _signed(logit, label)
    xp = _space(z)
    return _mean(xp.logaddexp(0.0, sign * z), weight)


@_tiny_is_zero
def cross_entropy(logits: Any, classes: Any, *, smoothing: float = 0.0, weight: Any = None) -> Any:
    """The cross-entropy of the softmax of logits: mean -log softmax(logits)[class].

    logits: shape (samples, classes). classes: the number of each sample's class, from 0, integers
    of shape (samples,), as is weight. smoothing: the share of each label that is spread over all
    classes, from 0 (none) to less than 1:

        mean of  -(1 - smoothing) log p[class] - smoothing / k Σ log p

    Raises ValueError for other shapes or numbers, and as ``squared``; TypeError for classes that
    are not integers.

    >>> float(cross_entropy([[0.0, 0.0], [1e4, 0.0]], [1, 1])) == (math.log(2) + 1e4) / 2
    True

    Source of the smoothing: Szegedy et al. 2015, arXiv:1512.00567, section 7; as
    torch.nn.CrossEntropyLoss.
    """
    _check_smoothing(smoothing)
    z, classes = _classified(logits, classes)
    xp = _space(z)
    # The shift cancels, so it needs no derivative.
    shifted = z - _plain(z).max(axis=1, keepdims=True)
    total = xp.exp(shifted).sum(axis=1)
    chosen = shifted[np.arange(len(classes)), classes]
    if smoothing:
        chosen = (1 - smoothing) * chosen + smoothing * shifted.mean(axis=1)
    return _mean(xp.log(total) - chosen, weight)


LOSSES: dict[str, Callable[..., Any]] = {
    loss.__name__: loss for loss in (squared, absolute, huber, logistic, cross_entropy)
}
"""Every loss by name."""


# Gradients with respect to the first argument, of plain arrays.


@_tiny_is_zero
def _squared(prediction: Array, target: Array) -> Array:
    error = prediction - target
    slope: Array = 2 / error.size * error
    return slope


@_tiny_is_zero
def _absolute(prediction: Array, target: Array) -> Array:
    error = prediction - target
    slope: Array = np.sign(error) / error.size
    return slope


@_tiny_is_zero
def _huber(prediction: Array, target: Array, *, delta: float = 1.0) -> Array:
    error = prediction - target
    slope: Array = np.clip(error, -delta, delta) / error.size
    return slope


@_tiny_is_zero
def _logistic(logit: Array, label: Array) -> Array:
    z, sign = _signed(logit, label)
    slope: Array = sign * sigmoid(sign * z) / z.size
    return slope


@_tiny_is_zero
def _cross_entropy(logits: Array, classes: Array, *, smoothing: float = 0.0) -> Array:
    n, k = logits.shape
    slope = softmax(logits)
    slope[np.arange(n), classes] -= 1 - smoothing
    if smoothing:
        slope -= smoothing / k
    slope /= n
    return slope


GRADIENTS: dict[str, Callable[..., Array]] = {
    "squared": _squared,
    "absolute": _absolute,
    "huber": _huber,
    "logistic": _logistic,
    "cross_entropy": _cross_entropy,
}
"""The gradient of each loss with respect to its first argument, of checked NumPy arrays.

That of a weighted mean is this one times ``shares(weight, losses)``, sample by sample.
"""


def shares(weight: Any, of: Any) -> Array:
    """What a sample counts in a weighted mean, 1 on average: w n / Σ w, in the type of the losses.

    Raises ValueError unless the weights have their shape, are finite and 0 or more, and not all 0.

    >>> shares([3, 1], np.zeros(2))
    array([1.5, 0.5])
    """
    found = np.asarray(unmasked(weight, "weight"), np.float64)
    if found.shape != tuple(of.shape):
        raise ValueError(f"weight has shape {found.shape}: expected {tuple(of.shape)}")
    total = found.sum()
    if not (found >= 0).all() or not 0 < total < math.inf:
        raise ValueError("weight: expected finite numbers, 0 or more, and not all of them zero")
    each: Array = (found * (found.size / total)).astype(of.dtype)
    return each


@_tiny_is_zero
def sigmoid(z: Array) -> Array:
    """1 / (1 + exp(-z)), the probability for log-odds; small ones keep their digits.

    >>> sigmoid(np.array([0.0, 1000.0, -1000.0]))
    array([0.5, 1. , 0. ])
    """
    small = np.exp(-np.abs(z))
    probability: Array = np.where(z < 0, small, 1) / (1 + small)
    return probability


@_tiny_is_zero
def softmax(z: Array) -> Array:
    """exp(z) over its sum along the last axis: probabilities, whatever the size of z.

    >>> softmax(np.array([[1000.0, 1000.0, -1000.0]]))
    array([[0.5, 0.5, 0. ]])
    """
    likelihood = np.exp(z - z.max(axis=-1, keepdims=True))
    probability: Array = likelihood / likelihood.sum(axis=-1, keepdims=True)
    return probability


def same_shape(prediction: Any, target: Any) -> None:
    """Raises ValueError unless both have one shape, with at least one element.

    >>> same_shape(np.zeros((3, 1)), np.zeros(3))
    Traceback (most recent call last):
    ValueError: prediction has shape (3, 1), target (3,): expected the same; give prediction[:, 0]
    """
    a, b = tuple(prediction.shape), tuple(target.shape)
    if a == b:
        if 0 in a:
            raise ValueError(f"prediction and target have shape {a}: there is nothing to average")
        return
    hint = "give arrays with one target for each prediction"
    if a == (*b, 1):
        hint = f"give prediction[{':, ' * len(b)}0]"
    elif b == (*a, 1):
        hint = f"give target[{':, ' * len(a)}0]"
    raise ValueError(f"prediction has shape {a}, target {b}: expected the same; {hint}")


# Arguments


def _array(x: Any) -> Any:
    """Floats as they are, other numbers as float64: unsigned differences would wrap around.

    The cast does nothing to floats but in autograd, where it gives the gradient their type.
    """
    if not hasattr(x, "_value"):  # which those that autograd follows have
        unmasked(x, "an argument of a loss")
    if not hasattr(x, "__array_namespace__"):
        x = np.asarray(x)
    if x.dtype.kind == "f" and x.ndim == 0:  # in autograd perhaps a Python number
        return x
    return x.astype(x.dtype if x.dtype.kind == "f" else np.float64, copy=False)


def _space(x: Any) -> Any:
    """The module of functions for this kind of array."""
    return x.__array_namespace__()


def _plain(x: Any) -> Any:
    """The NumPy array inside those that autograd follows, one for each derivative."""
    while hasattr(x, "_value"):
        x = x._value
    return x


def _mean(found: Any, weight: Any) -> Any:
    """The mean of the losses of samples, weighted where there are weights."""
    return (found if weight is None else shares(weight, found) * found).mean()


def _error(prediction: Any, target: Any) -> Any:
    prediction, target = _array(prediction), _array(target)
    same_shape(prediction, target)
    return prediction - target


def _signed(logit: Any, label: Any) -> tuple[Any, Array]:
    """The logits, and -1 for label 1 and 1 for label 0, in their type."""
    z, label = _array(logit), np.asarray(unmasked(label, "label"))
    same_shape(z, label)
    positive = label == 1
    wrong = label[~(positive | (label == 0))]
    if wrong.size:
        raise ValueError(f"label {wrong[0]} is neither 0 nor 1; convert it, as by  label > 0")
    return z, np.where(positive, -1, 1).astype(z.dtype)


def _classified(logits: Any, classes: Any) -> tuple[Any, Array]:
    z, classes = _array(logits), np.asarray(unmasked(classes, "classes"))
    if z.ndim != 2 or classes.shape != z.shape[:1] or z.size == 0:
        raise ValueError(
            f"logits have shape {tuple(z.shape)}, classes {classes.shape}: "
            "expected (samples, classes) and (samples,)"
        )
    if classes.dtype.kind not in "iu":
        raise TypeError(
            f"classes have dtype {classes.dtype}; expected integers, as by  classes.astype(int)"
        )
    for number in (classes.min(), classes.max()):
        if not 0 <= number < z.shape[1]:
            raise ValueError(f"class {number}: expected numbers from 0 to {z.shape[1] - 1}")
    return z, classes


def check_delta(delta: Any) -> None:
    """Raises TypeError or ValueError unless it can be the ``delta`` of ``huber``."""
    real("delta", _plain(delta), "a finite number > 0", lambda x: 0 < x < math.inf)


def _check_smoothing(smoothing: Any) -> None:
    real("smoothing", _plain(smoothing), "a number >= 0 and < 1", lambda x: 0 <= x < 1)
