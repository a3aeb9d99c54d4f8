"""A small network to train: initial values, forward pass, losses and their gradients, in NumPy.

Enough for the command line and for examples; parameters are nested dicts of arrays, as any
optimizer takes them.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from steepest.arrays import Array

__all__ = ["MLP", "Params", "Task", "accuracy", "he", "r_squared", "xavier"]

Task = Literal["classification", "regression"]
Params = dict[str, dict[str, Array]]


def xavier(rng: np.random.Generator, inputs: int, outputs: int, dtype: Any = np.float32) -> Array:
    """Random weights for a linear or tanh layer, of shape (inputs, outputs).

        W ~ Uniform(-a, a),    a = √(6 / (inputs + outputs))

    Source: Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward
    neural networks", equation 16.

    >>> xavier(np.random.default_rng(0), 2, 2).tolist()
    [[0.3354862630367279, -0.5639050602912903], [-1.1243805885314941, -1.184260606765747]]
    """
    limit = np.sqrt(6.0 / (inputs + outputs))
    weights: Array = rng.uniform(-limit, limit, (inputs, outputs)).astype(dtype)
    return weights


def he(rng: np.random.Generator, inputs: int, outputs: int, dtype: Any = np.float32) -> Array:
    """Random weights for a layer that a ReLU follows, of shape (inputs, outputs).

        W ~ Normal(0, 2 / inputs)

    Source: He et al. 2015, arXiv:1502.01852, equation 10.

    >>> he(np.random.default_rng(0), 2, 2).tolist()
    [[0.1257302165031433, -0.13210485875606537], [0.6404226422309875, 0.10490011423826218]]
    """
    weights: Array = rng.standard_normal((inputs, outputs)) * np.sqrt(2.0 / inputs)
    return weights.astype(dtype)


@dataclass(frozen=True)
class MLP:
    """A multilayer perceptron with ReLU between its layers.

        h ← max(h W + b, 0)    for each hidden layer
        z = h W + b            at the end

    sizes: number of inputs, of each hidden layer's units, and of outputs: one per class, or 1 for
    regression. The loss is the mean over the batch of the cross-entropy -log softmax(z)[y], with
    y the number of the class, or of the squared error (z - y)².

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

    @property
    def size(self) -> int:
        """The number of parameters."""
        return sum((a + 1) * b for a, b in pairwise(self.sizes))

    def initial(self, seed: int, dtype: Any = np.float32) -> Params:
        """Fresh parameters: He for hidden layers, Xavier for the last, biases zero."""
        rng = np.random.default_rng(seed)
        last = len(self.sizes) - 1
        params: Params = {}
        for i, (inputs, outputs) in enumerate(pairwise(self.sizes), 1):
            weights = xavier if i == last else he
            params[f"layer{i}"] = {
                "weight": weights(rng, inputs, outputs, dtype),
                "bias": np.zeros(outputs, dtype),
            }
        return params

    def activations(self, params: Params, x: Array) -> list[Array]:
        """The input and the values after each layer, the output last."""
        layers = list(params.values())
        values = [x]
        for layer in layers[:-1]:
            values.append(np.maximum(values[-1] @ layer["weight"] + layer["bias"], 0))
        values.append(values[-1] @ layers[-1]["weight"] + layers[-1]["bias"])
        return values

    def predict(self, params: Params, x: Array) -> Array:
        """The number of the likeliest class, or the estimated value, of each sample."""
        z = self.activations(params, x)[-1]
        return z.argmax(axis=1) if self.task == "classification" else z[:, 0]

    def loss(self, params: Params, x: Array, y: Array) -> float:
        """The mean loss over a batch."""
        return self._output_loss(self.activations(params, x)[-1], y)[0]

    def value_and_grad(self, params: Params, x: Array, y: Array) -> tuple[float, Params]:
        """The mean loss over a batch and its gradients, by back-propagation."""
        values = self.activations(params, x)
        loss, delta = self._output_loss(values.pop(), y)
        grads: Params = {}
        for name, layer in reversed(params.items()):
            h = values.pop()
            grads[name] = {"weight": h.T @ delta, "bias": delta.sum(axis=0)}
            delta = (delta @ layer["weight"].T) * (h > 0)
        return loss, {name: grads[name] for name in params}

    def _output_loss(self, z: Array, y: Array) -> tuple[float, Array]:
        """The mean loss, and its gradient with respect to the output z."""
        n = len(z)
        if self.task == "regression":
            error = z[:, 0] - y.astype(z.dtype)
            return float(np.mean(error**2)), (2 / n * error)[:, None]
        shifted = z - z.max(axis=1, keepdims=True)
        likelihood = np.exp(shifted)
        total = likelihood.sum(axis=1, keepdims=True)
        loss = np.mean(np.log(total[:, 0]) - shifted[np.arange(n), y])
        delta = likelihood / total
        delta[np.arange(n), y] -= 1
        return float(loss), delta / n


def accuracy(predicted: Array, y: Array) -> float:
    """The share of samples whose class is right, from 0 to 1.

    >>> accuracy(np.array([1, 2, 0, 0]), np.array([1, 2, 2, 0]))
    0.75
    """
    return float(np.mean(predicted == y))


def r_squared(predicted: Array, y: Array) -> float:
    """The share of the variance of y that is explained: 1 is perfect, 0 as good as the mean.

        R² = 1 - Σ (y - ŷ)² / Σ (y - mean y)²

    NaN where y is constant.

    >>> r_squared(np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0]))
    0.5
    """
    spread = float(np.sum((y - np.mean(y)) ** 2))
    return 1 - float(np.sum((y - predicted) ** 2)) / spread if spread else math.nan
