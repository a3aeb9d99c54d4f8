"""Initial values of parameters: ``f(rng, shape, dtype=np.float32, ...) -> array``.

All random numbers come from the Generator given, are drawn and scaled in float64, and are rounded
to ``dtype`` once: float32 and float64 weights of one seed agree up to that rounding.

The random initializers of weights keep the spread of a signal from layer to layer. They know a
layer by its fans, the number of inputs that reach one output and of outputs that one input
reaches:

    (inputs, outputs)               dense: fan_in = inputs, fan_out = outputs
    (*kernel, inputs, outputs)      convolution: both times the number of the kernel's elements

This is the layout of ``x @ W``, and of Keras and JAX; PyTorch stores (outputs, inputs, *kernel), so
make the array here and move its axes: ``np.moveaxis(w, (-1, -2), (0, 1))``.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from steepest.memory.arrays import Array

__all__ = [
    "INITIALIZERS",
    "Initializer",
    "constant",
    "fans",
    "gain",
    "he_normal",
    "he_uniform",
    "lecun_normal",
    "lecun_uniform",
    "normal",
    "orthogonal",
    "uniform",
    "variance_scaling",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
]

Shape = int | Sequence[int]
Fan = Literal["in", "out", "mean"]
Distribution = Literal["normal", "uniform"]
Initializer = Callable[..., Array]


def zeros(rng: np.random.Generator, shape: Shape, dtype: Any = np.float32) -> Array:
    """Zeros: for biases, and for models without a hidden layer. Draws nothing from rng.

    >>> zeros(np.random.default_rng(0), 3)
    array([0., 0., 0.], dtype=float32)
    """
    return np.zeros(shape, _floating(dtype))


def constant(
    rng: np.random.Generator, shape: Shape, dtype: Any = np.float32, *, value: float
) -> Array:
    """One value everywhere. Draws nothing from rng.

    >>> constant(np.random.default_rng(0), (2, 2), np.float64, value=0.1)
    array([[0.1, 0.1],
           [0.1, 0.1]])
    """
    return np.full(shape, value, _floating(dtype))


def normal(
    rng: np.random.Generator,
    shape: Shape,
    dtype: Any = np.float32,
    *,
    std: float,
    mean: float = 0.0,
) -> Array:
    """Independent samples of Normal(mean, std²). Raises ValueError unless std >= 0.

    >>> normal(np.random.default_rng(0), 3, np.float64, std=0.01).round(6)
    array([ 0.001257, -0.001321,  0.006404])
    """
    _check(0 <= std < math.inf, f"std = {std!r}: expected a finite number >= 0")
    return _cast(mean + std * _checked(rng).standard_normal(shape), dtype)


def uniform(
    rng: np.random.Generator, shape: Shape, dtype: Any = np.float32, *, low: float, high: float
) -> Array:
    """Independent samples of Uniform(low, high). Raises ValueError unless low <= high.

    >>> uniform(np.random.default_rng(0), 3, np.float64, low=-1, high=1).round(6)
    array([ 0.273923, -0.460427, -0.918053])
    """
    _check(low <= high, f"low = {low!r}, high = {high!r}: expected low <= high")
    return _cast(_checked(rng).uniform(low, high, shape), dtype)


def variance_scaling(
    rng: np.random.Generator,
    shape: Shape,
    dtype: Any = np.float32,
    *,
    scale: float,
    fan: Fan,
    distribution: Distribution,
) -> Array:
    """Random weights with mean 0 and variance scale / fan: what Xavier, He and LeCun share.

        normal:   W ~ Normal(0, scale / fan)
        uniform:  W ~ Uniform(-a, a),  a = √(3 scale / fan)

    fan: "in", "out", or "mean", (fan_in + fan_out) / 2; see the head of this module. The normal
    distribution is not truncated. Raises ValueError for a shape with fewer than two axes, or a
    scale that is not positive.

    >>> rng = np.random.default_rng(0)
    >>> w = variance_scaling(rng, (100, 50), scale=2.0, fan="in", distribution="normal")
    >>> round(100 * float(w.var()), 3)
    1.982
    """
    _check(0 < scale < math.inf, f"scale = {scale!r}: expected a finite number > 0")
    fan_in, fan_out = fans(shape)
    sizes = {"in": fan_in, "out": fan_out, "mean": (fan_in + fan_out) / 2}
    _check(fan in sizes, f"fan = {fan!r}: expected 'in', 'out' or 'mean'")
    size = max(1, sizes[fan])  # an empty array has no fans
    if distribution == "normal":
        return _cast(_checked(rng).standard_normal(shape) * math.sqrt(scale / size), dtype)
    _check(
        distribution == "uniform",
        f"distribution = {distribution!r}: expected 'normal' or 'uniform'",
    )
    limit = math.sqrt(3 * scale / size)
    return _cast(_checked(rng).uniform(-limit, limit, shape), dtype)


def xavier_uniform(
    rng: np.random.Generator, shape: Shape, dtype: Any = np.float32, *, gain: float = 1.0
) -> Array:
    """Xavier's (Glorot's) weights, for a linear or tanh layer; see ``fans`` for the shape.

        W ~ Uniform(-a, a),  a = gain √(6 / (fan_in + fan_out))

    gain: see the function ``gain``. Raises ValueError as ``variance_scaling`` does.

    >>> xavier_uniform(np.random.default_rng(0), (2, 2)).tolist()
    [[0.3354862630367279, -0.5639050602912903], [-1.1243805885314941, -1.184260606765747]]

    Source: Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward
    neural networks", equation 16.
    """
    return variance_scaling(rng, shape, dtype, scale=gain**2, fan="mean", distribution="uniform")


def xavier_normal(
    rng: np.random.Generator, shape: Shape, dtype: Any = np.float32, *, gain: float = 1.0
) -> Array:
    """Xavier's weights, normally distributed: variance 2 gain² / (fan_in + fan_out).

    >>> xavier_normal(np.random.default_rng(0), (2, 2), np.float64).round(6).tolist()
    [[0.088905, -0.093412], [0.452847, 0.074176]]

    Source: Glorot and Bengio 2010, equation 12.
    """
    return variance_scaling(rng, shape, dtype, scale=gain**2, fan="mean", distribution="normal")


def he_normal(
    rng: np.random.Generator,
    shape: Shape,
    dtype: Any = np.float32,
    *,
    fan: Fan = "in",
    slope: float = 0.0,
) -> Array:
    """He's (Kaiming's) weights, for a layer that a ReLU follows.

        W ~ Normal(0, 2 / ((1 + slope²) fan))

    fan: "in" keeps the spread of the signal on the way forward, "out" that of the gradient on the
    way back. slope: that of a leaky ReLU below 0. Raises ValueError as ``variance_scaling`` does.

    >>> he_normal(np.random.default_rng(0), (2, 2)).tolist()
    [[0.1257302165031433, -0.13210485875606537], [0.6404226422309875, 0.10490011423826218]]

    Source: He et al. 2015, arXiv:1502.01852, equations 10, 14 and 15.
    """
    scale = 2 / (1 + slope**2)
    return variance_scaling(rng, shape, dtype, scale=scale, fan=fan, distribution="normal")


def he_uniform(
    rng: np.random.Generator,
    shape: Shape,
    dtype: Any = np.float32,
    *,
    fan: Fan = "in",
    slope: float = 0.0,
) -> Array:
    """He's weights, uniformly distributed within ±√(6 / ((1 + slope²) fan)); see ``he_normal``.

    >>> he_uniform(np.random.default_rng(0), (2, 2), np.float64).round(6).tolist()
    [[0.474449, -0.797482], [-1.590114, -1.674797]]
    """
    scale = 2 / (1 + slope**2)
    return variance_scaling(rng, shape, dtype, scale=scale, fan=fan, distribution="uniform")


def lecun_normal(rng: np.random.Generator, shape: Shape, dtype: Any = np.float32) -> Array:
    """LeCun's weights, for linear layers and SELU: W ~ Normal(0, 1 / fan_in).

    >>> lecun_normal(np.random.default_rng(0), (2, 2), np.float64).round(6).tolist()
    [[0.088905, -0.093412], [0.452847, 0.074176]]

    Source: LeCun et al. 1998, "Efficient BackProp", equation 16.
    """
    return variance_scaling(rng, shape, dtype, scale=1.0, fan="in", distribution="normal")


def lecun_uniform(rng: np.random.Generator, shape: Shape, dtype: Any = np.float32) -> Array:
    """LeCun's weights, uniformly distributed within ±√(3 / fan_in); see ``lecun_normal``.

    >>> lecun_uniform(np.random.default_rng(0), (2, 2), np.float64).round(6).tolist()
    [[0.335486, -0.563905], [-1.124381, -1.184261]]
    """
    return variance_scaling(rng, shape, dtype, scale=1.0, fan="in", distribution="uniform")


def orthogonal(
    rng: np.random.Generator, shape: Shape, dtype: Any = np.float32, *, gain: float = 1.0
) -> Array:
    """A random matrix with orthonormal columns, or rows where there are fewer of them, times gain.

        Q R = A with A ~ Normal(0, 1),    W = gain Q sign(diag R)

    The signs make W uniformly distributed over all such matrices. All axes but the last are taken
    together as the rows. Raises ValueError for a shape with fewer than two axes.

    >>> w = orthogonal(np.random.default_rng(0), (3, 2), np.float64)
    >>> np.allclose(w.T @ w, np.eye(2), rtol=0, atol=1e-15)
    True

    Source: Saxe et al. 2013, arXiv:1312.6120; the signs: Mezzadri 2006, arXiv:math-ph/0609050.
    """
    full = _axes(shape)
    rows, columns = math.prod(full[:-1]), full[-1]
    tall = max(rows, columns), min(rows, columns)
    q, r = np.linalg.qr(_checked(rng).standard_normal(tall))
    q = q * np.where(np.diag(r) < 0, -gain, gain)
    return _cast((q.T if rows < columns else q).reshape(full), dtype)


def fans(shape: Shape) -> tuple[int, int]:
    """(fan_in, fan_out) of weights of shape (inputs, outputs) or (*kernel, inputs, outputs).

    >>> fans((64, 10)), fans((3, 3, 16, 32))
    ((64, 10), (144, 288))
    """
    *kernel, inputs, outputs = _axes(shape)
    field = math.prod(kernel)
    return field * inputs, field * outputs


def gain(nonlinearity: str, slope: float = 0.01) -> float:
    """The factor of the weights in front of a nonlinearity, as ``torch.nn.init.calculate_gain``.

    nonlinearity: "linear", "sigmoid", "tanh", "relu", "leaky_relu" (with ``slope`` below 0) or
    "selu". Raises ValueError for others.

    >>> round(gain("tanh"), 6), round(gain("leaky_relu", slope=0.2), 6)
    (1.666667, 1.38675)
    """
    gains = {
        "linear": 1.0,
        "sigmoid": 1.0,
        "tanh": 5 / 3,
        "relu": math.sqrt(2),
        "leaky_relu": math.sqrt(2 / (1 + slope**2)),
        "selu": 3 / 4,
    }
    _check(
        nonlinearity in gains,
        f"nonlinearity = {nonlinearity!r}: expected one of {', '.join(gains)}",
    )
    return gains[nonlinearity]


INITIALIZERS: dict[str, Initializer] = {
    make.__name__: make
    for make in (
        zeros,
        xavier_uniform,
        xavier_normal,
        he_normal,
        he_uniform,
        lecun_normal,
        lecun_uniform,
        orthogonal,
    )
}
"""By name, the initializers that need nothing but a shape."""


def _axes(shape: Shape) -> tuple[int, ...]:
    full = (shape,) if isinstance(shape, int) else tuple(shape)
    _check(
        len(full) >= 2,
        f"shape {full}: expected (inputs, outputs) or (*kernel, inputs, outputs); "
        "give vectors to zeros, constant, normal or uniform",
    )
    return full


def _checked(rng: np.random.Generator) -> np.random.Generator:
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng = {rng!r}: expected a generator: np.random.default_rng(seed)")
    return rng


def _floating(dtype: Any) -> np.dtype[Any]:
    found: np.dtype[Any] = np.dtype(dtype)
    if found.kind != "f":
        raise TypeError(f"dtype = {found}: expected a floating-point type, such as float32")
    return found


def _cast(values: Array, dtype: Any) -> Array:
    """In C order, whatever the order of the values."""
    with np.errstate(under="ignore"):
        return np.ascontiguousarray(values, _floating(dtype)).reshape(np.shape(values))


def _check(true: bool, message: str) -> None:
    if not true:
        raise ValueError(message)
