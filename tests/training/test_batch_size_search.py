import doctest
import math
import tracemalloc

import numpy as np
import pytest

import steepest as st
from steepest.training import batch_size_search, find_batch_size


def cloud(center=3.0, n=2**12, d=20, seed=0):
    """Samples around a center far or near the parameters: |G|² = center², tr(Σ) = d."""
    x = np.random.default_rng(seed).normal(size=(n, d))
    x[:, 0] += center
    return x


def loss(w, x):
    return 0.5 * ((w - x) ** 2).sum(axis=1).mean()


def value_and_grad(w, x):
    return loss(w, x), (w - x).mean(axis=0)


def found(center=3.0, **arguments):
    arguments = {"data": cloud(center), "value_and_grad": value_and_grad} | arguments
    return find_batch_size(loss, np.zeros(20), **arguments)


@pytest.mark.parametrize("center", [0.3, 1.0, 3.0])
def test_stops_above_the_noise_scale(center) -> None:
    result = found(center)
    scale = 20 / center**2
    assert result.stopped == "noise"
    assert result.tried[-2].noise_scale >= result.tried[-2].size
    assert result.size > result.noise_scale == result.tried[-1].noise_scale
    # Of the last estimate with m = 8 batches of b: tr(Σ) is known to √(2 / (20 · 7)) = 12 %, and
    # |G|² = c² to about √(4 c² / (8 b)) with b near 20 / c², so 16 %: five times both is a factor
    # of 2.5, and the sizes are powers of two.
    assert scale / 5 < result.size < 5 * scale
    assert [trial.size for trial in result.tried] == [2**i for i in range(len(result.tried))]
    assert all(trial.seconds_per_sample > 0 and trial.memory is None for trial in result.tried)
    assert result.message == f"{result.size} is above the noise scale of {result.noise_scale:.4g}"


def test_stops_at_the_limit() -> None:
    result = found(0.01, limit=100)
    assert (result.size, result.stopped, result.message) == (64, "limit", "the limit is 100")
    assert found(0.01, limit=64, start=64).size == 64


def test_stops_where_the_data_ends() -> None:
    # Centered, so that all gradients together are zero but for rounding, and noise is all there is.
    x = cloud(n=100)
    x -= x.mean(axis=0)
    result = found(data=x)
    assert (result.size, result.stopped) == (32, "data")
    assert [trial.size for trial in result.tried] == [1, 2, 4, 8, 16, 32]
    assert result.message == "the data has only 100 samples"


def test_stops_at_a_memory_limit() -> None:
    result = found(0.01, memory=200_000)
    # w - x and its square, 160 bytes a sample each: 512 samples fit, 1024 do not.
    assert (result.size, result.stopped) == (512, "memory")
    assert result.message == "1024 samples need too much memory"
    for trial in result.tried:
        assert trial.size * 160 <= trial.memory <= 200_000
    assert not tracemalloc.is_tracing()


def test_memory_is_measured_while_someone_else_traces() -> None:
    tracemalloc.start()
    try:
        assert found(0.01, memory=200_000).size == 512
        assert tracemalloc.is_tracing()
    finally:
        tracemalloc.stop()


def test_stops_at_a_memory_error() -> None:
    def hungry(w, x):
        if len(x) > 20:
            raise MemoryError("no more")
        return value_and_grad(w, x)

    result = found(0.01, value_and_grad=hungry)
    assert (result.size, result.stopped) == (16, "memory")
    with pytest.raises(MemoryError, match="no more"):
        found(0.01, value_and_grad=hungry, start=21)
    with pytest.raises(MemoryError, match=r"a gradient over 1 samples allocates .*; memory = 10"):
        found(0.01, memory=10)


def test_nothing_of_the_callers_is_changed() -> None:
    def careless(p, x):
        value, g = value_and_grad(p["w"], x)
        p["w"] += 100.0
        return value, {"w": g}

    p, x = {"w": np.zeros(20)}, cloud()
    before = x.copy()
    find_batch_size(None, p, x, value_and_grad=careless, limit=4)
    assert not p["w"].any()
    np.testing.assert_array_equal(x, before)


def test_with_autograd() -> None:
    a = find_batch_size(loss, np.zeros(20), cloud(), limit=16)
    b = found(limit=16)
    assert a.size == b.size
    # Autograd sums in another order.
    assert math.isclose(a.noise_scale, b.noise_scale, rel_tol=1e-9)


def test_the_seed_decides() -> None:
    def scales(seed):
        return [trial.noise_scale for trial in found(seed=seed).tried]

    assert scales(1) == scales(1)
    assert scales(1) != scales(2)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"data": ()}, ValueError, "a loss without data has no batches"),
        ({"start": 0}, ValueError, "start = 0: expected 1 or more"),
        ({"start": 8, "limit": 4}, ValueError, "limit = 4: expected 8 or more"),
        ({"start": 3000}, ValueError, "start = 3000: the data has 4096 samples, not two batches"),
        ({"seed": -1}, ValueError, "seed = -1"),
        ({"value_and_grad": lambda w, x: (math.nan, w)}, ValueError, "loss = nan.* not finite"),
        (
            {"value_and_grad": lambda w, x: (1.0, w + math.inf)},
            ValueError,
            "norm = inf: not finite",
        ),
        ({"value_and_grad": lambda w, x: (x, w)}, ValueError, "expected one number"),
    ],
)
def test_errors(change, error, message) -> None:
    with pytest.raises(error, match=message):
        found(**change)


def test_the_face_of_the_package() -> None:
    assert st.find_batch_size is find_batch_size


def test_examples() -> None:
    assert doctest.testmod(batch_size_search).failed == 0
