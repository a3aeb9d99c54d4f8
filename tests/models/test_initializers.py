import doctest
import math
from functools import partial

import numpy as np
import pytest

from steepest.models import initializers as init

SHAPE, KERNEL = (300, 200), (5, 3, 40, 100)  # fans (300, 200) and (600, 1500); 60 000 elements


def generator(seed=1):
    return np.random.default_rng(seed)


# The function and the variance it should have.
SPREADS = {
    "normal": (partial(init.normal, std=0.2), SHAPE, 0.04),
    "uniform": (partial(init.uniform, low=-0.3, high=0.3), SHAPE, 0.03),
    "xavier_uniform": (init.xavier_uniform, SHAPE, 2 / 500),
    "xavier_normal": (init.xavier_normal, SHAPE, 2 / 500),
    "xavier gain": (partial(init.xavier_normal, gain=5 / 3), SHAPE, 2 / 500 * 25 / 9),
    "xavier kernel": (init.xavier_uniform, KERNEL, 2 / 2100),
    "he_normal": (init.he_normal, SHAPE, 2 / 300),
    "he_uniform": (init.he_uniform, SHAPE, 2 / 300),
    "he out": (partial(init.he_normal, fan="out"), SHAPE, 2 / 200),
    "he leaky": (partial(init.he_uniform, slope=0.5), SHAPE, 2 / 300 / 1.25),
    "he kernel out": (partial(init.he_uniform, fan="out"), KERNEL, 2 / 1500),
    "lecun_normal": (init.lecun_normal, SHAPE, 1 / 300),
    "lecun_uniform": (init.lecun_uniform, KERNEL, 1 / 600),
    "orthogonal": (init.orthogonal, SHAPE, 1 / 300),
}


@pytest.mark.parametrize(("make", "shape", "variance"), SPREADS.values(), ids=SPREADS)
def test_mean_and_spread(make, shape, variance):
    weights = make(generator(), shape, np.float64)
    assert weights.shape == shape
    deviation = math.sqrt(variance)
    # 60 000 samples: the deviation is known to 0.3 %, the mean to deviation / 245.
    np.testing.assert_allclose(weights.std(), deviation, rtol=0.01)
    np.testing.assert_allclose(weights.mean(), 0, atol=deviation / 80)


@pytest.mark.parametrize(
    ("make", "limit"),
    [
        (init.xavier_uniform, math.sqrt(6 / 500)),
        (init.he_uniform, math.sqrt(6 / 300)),
        (init.lecun_uniform, math.sqrt(3 / 300)),
        (partial(init.uniform, low=-1, high=1), 1.0),
    ],
)
def test_uniform_weights_fill_their_range(make, limit):
    largest = np.abs(make(generator(), SHAPE, np.float64)).max()
    assert 0.999 * limit < largest <= limit


def test_normal_weights_are_not_truncated():
    weights = init.he_normal(generator(), SHAPE, np.float64)
    # Of 60 000 samples of a normal distribution, 2730 lie beyond 2 deviations, give or take 51.
    assert abs((np.abs(weights) > 2 * math.sqrt(2 / 300)).sum() - 2730) < 200


def test_a_mean():
    assert init.normal(generator(), 4, np.float64, std=0.0, mean=3.0).tolist() == [3.0] * 4


def test_those_that_draw_nothing():
    rng = generator()
    assert init.zeros(rng, (2, 1)).tolist() == [[0.0], [0.0]]
    assert init.constant(rng, 2, np.float64, value=0.1).tolist() == [0.1, 0.1]
    assert rng.random() == generator().random()


@pytest.mark.parametrize("make", init.INITIALIZERS.values(), ids=init.INITIALIZERS)
@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (3, 2, 5)], ids=str)
def test_types_and_seeds(make, shape):
    weights = make(generator(), shape)
    assert (weights.dtype, weights.shape) == (np.float32, shape)
    assert weights.flags.c_contiguous and weights.flags.writeable
    double = make(generator(), list(shape), np.float64)
    assert weights.tobytes() == double.astype(np.float32).tobytes()
    if make is not init.zeros:
        assert not np.array_equal(weights, make(generator(2), shape))


@pytest.mark.parametrize("shape", [(), 5, (5,), (0, 3), (3, 0)], ids=str)
def test_vectors_and_empty_arrays(shape):
    asked = (shape,) if isinstance(shape, int) else shape
    for make in (
        init.zeros,
        partial(init.constant, value=2.0),
        partial(init.normal, std=1.0),
        partial(init.uniform, low=0, high=1),
    ):
        assert make(generator(), shape).shape == asked
    if 0 in asked:
        for make in init.INITIALIZERS.values():
            assert make(generator(), shape).shape == asked


# Orthogonal

SHAPES = [(5, 3), (3, 5), (4, 4), (1, 6), (6, 1), (3, 3, 2, 7), (2, 2, 50)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "bound"), [(np.float32, 1e-6), (np.float64, 1e-12)])
@pytest.mark.parametrize("gain", [1.0, 0.5])
def test_orthogonality(shape, dtype, bound, gain):
    w = init.orthogonal(generator(), shape, dtype, gain=gain).reshape(-1, shape[-1])
    w = w.astype(np.float64) / gain
    product = w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T
    np.testing.assert_allclose(product, np.eye(len(product)), rtol=0, atol=bound)


@pytest.mark.parametrize("shape", [(2, 2), (2, 3)])
def test_orthogonal_matrices_have_no_preferred_sign(shape):
    """Without the correction of signs the first element would never be positive."""
    rng = generator()
    first = [init.orthogonal(rng, shape)[0, 0] for _ in range(400)]
    # cos of a random angle, or a coordinate on the sphere: deviation at most 0.71; 4 / √400 of it.
    assert abs(np.mean(first)) < 0.15


# Fans and gains


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((3, 7), (3, 7)), ((5, 3, 7), (15, 35)), ([2, 2, 3, 7], (12, 28)), ((0, 4), (0, 4))],
    ids=str,
)
def test_fans(shape, expected):
    assert init.fans(shape) == expected


@pytest.mark.torch
@pytest.mark.parametrize("shape", [(3, 7), (5, 3, 7), (2, 4, 3, 7), (2, 3, 4, 5, 6)], ids=str)
def test_fans_equal_torchs(shape):
    torch = pytest.importorskip("torch")
    *kernel, inputs, outputs = shape
    twin = torch.empty(outputs, inputs, *kernel)
    assert init.fans(shape) == torch.nn.init._calculate_fan_in_and_fan_out(twin)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["linear", "sigmoid", "tanh", "relu", "leaky_relu", "selu"])
def test_gains_equal_torchs(name):
    nn = pytest.importorskip("torch").nn
    assert init.gain(name) == nn.init.calculate_gain(name)
    if name == "leaky_relu":
        assert init.gain(name, slope=0.3) == nn.init.calculate_gain(name, 0.3)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("make", "name", "options"),
    [
        (partial(init.xavier_uniform, gain=2.0), "xavier_uniform_", {"gain": 2.0}),
        (init.xavier_normal, "xavier_normal_", {}),
        (init.he_uniform, "kaiming_uniform_", {}),
        (partial(init.he_normal, fan="out"), "kaiming_normal_", {"mode": "fan_out"}),
        (partial(init.he_normal, slope=0.7), "kaiming_normal_", {"a": 0.7}),
        (partial(init.orthogonal, gain=0.5), "orthogonal_", {"gain": 0.5}),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_spread_equals_torchs(make, name, options):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    twin = torch.empty(100, 40, 5, 3, dtype=torch.float64)
    getattr(torch.nn.init, name)(twin, **options)
    # Each deviation is known to 0.3 %.
    ours = make(generator(), KERNEL, np.float64)
    if name == "orthogonal_":  # which takes the axes of a kernel together with the inputs, as ours
        np.testing.assert_allclose((twin**2).sum(), 0.25 * 100, rtol=1e-12)
        np.testing.assert_allclose((ours**2).sum(), 0.25 * 100, rtol=1e-12)
    np.testing.assert_allclose(ours.std(), float(twin.std()), rtol=0.015)


# Errors


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda r: init.he_normal(r, 5), ValueError, r"shape \(5,\): expected \(inputs, outputs\)"),
        (lambda r: init.orthogonal(r, (5,)), ValueError, r"shape \(5,\): expected"),
        (lambda r: init.fans(()), ValueError, r"shape \(\): expected"),
        (lambda r: init.zeros(r, 5, np.int64), TypeError, "dtype = int64: expected a floating"),
        (lambda r: init.xavier_normal(r, (2, 2), complex), TypeError, "dtype = complex128"),
        (lambda r: init.he_normal(3, (2, 2)), TypeError, "rng = 3: expected a generator"),
        (lambda r: init.orthogonal(None, (2, 2)), TypeError, "rng = None: expected a generator"),
        (lambda r: init.normal(r, 3, std=-1.0), ValueError, "std = -1.0: expected"),
        (lambda r: init.normal(r, 3, std=math.nan), ValueError, "std = nan: expected"),
        (lambda r: init.uniform(r, 3, low=1, high=0), ValueError, "low = 1, high = 0: expected"),
        (lambda r: init.he_normal(r, (2, 2), fan="all"), ValueError, "fan = 'all': expected"),
        (lambda r: init.xavier_normal(r, (2, 2), gain=0.0), ValueError, "scale = 0.0: expected"),
        (
            lambda r: init.variance_scaling(r, (2, 2), scale=1, fan="in", distribution="beta"),
            ValueError,
            "distribution = 'beta': expected 'normal' or 'uniform'",
        ),
        (lambda r: init.gain("gelu"), ValueError, "nonlinearity = 'gelu': expected one of linear"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(generator())


def test_examples():
    assert doctest.testmod(init).failed == 0
