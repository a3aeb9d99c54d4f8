import copy
import doctest
import math

import numpy as np
import pytest
from faults import interrupted_at, lines_of

import steepest as st
from steepest.kernels import dispatch
from steepest.training import accumulation as accumulate
from steepest.training import fit
from steepest.training.accumulation import Accumulator

DTYPES = [np.float32, np.float64]


def tree(rng, dtype=np.float64):
    """Nested parameters with sizes around a vector's and beyond a block's."""
    return {
        "layers": [
            {"w": rng.normal(size=(7, 5)).astype(dtype), "b": rng.normal(size=3).astype(dtype)},
            {"w": rng.normal(size=(70, 50)).astype(dtype)},
        ],
        "scale": rng.normal(size=()).astype(dtype),
    }


def leaves(tree):
    first, second = tree["layers"]
    return [first["w"], first["b"], second["w"], tree["scale"]]


def written_out(gradients, weights):
    """The running mean as the head of the module has it, element by element in NumPy."""
    means = [np.zeros_like(x) for x in leaves(gradients[0])]
    total = 0.0
    for grads, weight in zip(gradients, weights, strict=True):
        share = weight / (total + weight)
        total += weight
        for i, g in enumerate(leaves(grads)):
            real = g.dtype.type
            means[i] = real(1.0 - share) * means[i] + real(share) * g
    return means


@pytest.mark.parametrize("weights", [[1], [3, 3, 3, 3], [8, 8, 5], [0.25, 4, 1e-3]], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("level", dispatch.available())
def test_mean(level, dtype, weights) -> None:
    dispatch.use(level)
    rng = np.random.default_rng(1)
    accumulator = Accumulator(tree(rng, dtype))
    for window in range(2):  # the second finds nothing of the first
        gradients = [tree(rng, dtype) for _ in weights]
        for grads, weight in zip(gradients, weights, strict=True):
            accumulator.add(grads, weight)
        assert (accumulator.count, accumulator.weight) == (len(weights), sum(weights)), window
        mean = leaves(accumulator.take())
        for x, y in zip(mean, written_out(gradients, weights), strict=True):
            assert x.dtype == dtype
            np.testing.assert_array_equal(x, y)
        for x, *gs in zip(mean, *map(leaves, gradients), strict=True):
            exact = np.average(np.array(gs, np.float64), axis=0, weights=weights)
            # Three roundings of the running mean for each gradient, each relative to the largest.
            atol = 3 * len(weights) * np.finfo(dtype).eps * np.abs(gs).max()
            np.testing.assert_allclose(x, exact, rtol=0, atol=atol)


@pytest.mark.parametrize("level", dispatch.available())
def test_norms(level) -> None:
    dispatch.use(level)
    rng = np.random.default_rng(2)
    accumulator = Accumulator(tree(rng), norms=True)
    for _ in range(2):
        gradients = [tree(rng) for _ in range(3)]
        for grads in gradients:
            accumulator.add(grads, 2)
            norm = math.sqrt(math.fsum(float(x) ** 2 for g in leaves(grads) for x in g.flat))
            # Fixed lanes in double and one square root against an exact sum.
            assert math.isclose(accumulator.last_norm, norm, rel_tol=1e-14)
        assert len(accumulator.norms) == 3
        mean = leaves(accumulator.take())
        norm = math.sqrt(math.fsum(float(x) ** 2 for g in mean for x in g.flat))
        assert math.isclose(accumulator.norm(), norm, rel_tol=1e-14)  # as above


def test_norms_are_only_measured_where_asked() -> None:
    accumulator = Accumulator(np.zeros(3))
    accumulator.add(np.ones(3))
    assert (accumulator.last_norm, accumulator.norms) == (None, [])
    assert accumulator.norm() == math.sqrt(3.0)


def test_the_buffers_are_the_same_in_every_window() -> None:
    w = np.zeros((4, 6), np.float32)[:, ::2]
    accumulator = Accumulator({"w": w})
    accumulator.add({"w": np.ones((4, 3), np.float32)})
    first = accumulator.take()["w"]
    accumulator.add({"w": np.full((4, 3), 5, np.float32)})
    assert accumulator.take()["w"] is first
    np.testing.assert_array_equal(first, np.full((4, 3), 5))
    assert not np.shares_memory(first, w)
    assert not w.any()


def test_none_counts_as_zero_and_stays_none_where_there_was_nothing() -> None:
    p = {"a": np.zeros(3), "b": np.zeros(3), "c": [np.zeros(2)], "d": np.zeros(())}
    accumulator = Accumulator(p)
    one = np.ones(3)
    accumulator.add({"a": one, "b": None, "c": None, "d": None}, weight=1)
    accumulator.add({"a": None, "b": 4 * one, "c": [None], "d": None}, weight=3)
    accumulator.add({"a": None, "b": None, "c": None, "d": np.array(8.0)}, weight=4)
    mean = accumulator.take()
    np.testing.assert_array_equal(mean["a"], one / 8)
    np.testing.assert_array_equal(mean["b"], 12 * one / 8)
    assert mean["c"] == [None]
    assert mean["d"] == 4.0
    accumulator.add(dict.fromkeys(p))
    assert accumulator.grads == {"a": None, "b": None, "c": [None], "d": None}
    opt = st.SGD(p, lr=1.0)
    opt.step(accumulator.take())
    assert not any(x.any() for x in (p["a"], p["b"], p["c"][0], p["d"]))


def test_what_is_not_finite_stays_in_its_window() -> None:
    accumulator = Accumulator(np.zeros(2))
    accumulator.add(np.array([np.nan, np.inf]))
    accumulator.add(np.array([1.0, 1.0]))
    np.testing.assert_array_equal(accumulator.take(), [np.nan, np.inf])
    accumulator.add(np.array([1.0, 2.0]))
    np.testing.assert_array_equal(accumulator.take(), [1.0, 2.0])


@pytest.mark.parametrize(
    ("grads", "weight", "error", "message"),
    [
        ([np.ones(3), np.ones(3)], 1, ValueError, r"'1' has shape \(3,\); expected .*\(2,\)"),
        ([np.ones(3), np.ones(2, np.int32)], 1, TypeError, "'1' has dtype int32"),
        ([np.ones(3)], 1, ValueError, "grads has 1 entries; expected 2"),
        ([np.ones(3), np.ones(2)], 0, ValueError, "weight = 0: expected a finite number above 0"),
        ([np.ones(3), np.ones(2)], math.inf, ValueError, "weight = inf"),
        ([np.ones(3), np.ones(2)], math.nan, ValueError, "weight = nan"),
    ],
)
def test_errors_leave_the_window_as_it_was(grads, weight, error, message) -> None:
    accumulator = Accumulator([np.zeros(3), np.zeros(2)], norms=True)
    with pytest.raises(ValueError, match="no gradient has been added yet"):
        accumulator.take()
    with pytest.raises(error, match=message):
        accumulator.add(grads, weight)
    assert (accumulator.count, accumulator.weight, accumulator.norms) == (0, 0.0, [])
    accumulator.add([np.full(3, 2.0), None], 2)
    with pytest.raises(error, match=message):
        accumulator.add(grads, weight)
    assert (accumulator.count, accumulator.weight) == (1, 2.0)
    mean = accumulator.take()
    with pytest.raises(error, match=message):
        accumulator.add(grads, weight)
    assert accumulator.norms == [math.sqrt(12.0)]
    np.testing.assert_array_equal(mean[0], [2, 2, 2])
    assert mean[1] is None


def window(accumulator):
    """All that an accumulator tells, and the mean that was taken last."""
    given = [x.tolist() for x in accumulator._buffers]
    told = (accumulator.count, accumulator.weight, accumulator.norms, accumulator.weights)
    return repr((told, accumulator.last_norm, accumulator._given, given))


@pytest.mark.parametrize("wrong", ["the mean itself", "a view of it", "a mask"])
@pytest.mark.parametrize("taken", [True, False])
def test_a_refused_gradient_leaves_the_mean_as_it_was(wrong, taken) -> None:
    accumulator = Accumulator([np.zeros(3), np.zeros(3)], norms=True)
    accumulator.add([np.full(3, 2.0), np.full(3, 3.0)], 2)
    mean = accumulator.take() if taken else accumulator.grads
    before = window(accumulator)
    bad = {
        "the mean itself": mean[1],
        "a view of it": mean[0][::-1],
        "a mask": np.ones(3, bool),
    }[wrong]
    with pytest.raises((TypeError, ValueError)):
        accumulator.add([np.ones(3), bad])
    assert window(accumulator) == before
    accumulator.add([np.ones(3), None], 2)
    np.testing.assert_array_equal(accumulator.grads[0], [1.0] * 3 if taken else [1.5] * 3)


@pytest.mark.parametrize("taken", [True, False])
def test_ctrl_c_at_any_line_leaves_the_old_or_the_new_window(taken) -> None:
    def made():
        accumulator = Accumulator([np.zeros(3), np.zeros(2)], norms=True)
        accumulator.add([np.full(3, 2.0), None], 2)
        if taken:
            accumulator.take()
        return accumulator

    def change(accumulator):
        accumulator.add([np.full(3, 4.0), np.full(2, 6.0)], 6)

    after, fresh = made(), made()
    change(after)
    lines = lines_of(lambda: change(fresh))
    assert lines > 50
    for n in range(1, lines + 1):
        accumulator = made()
        assert interrupted_at(n, lambda accumulator=accumulator: change(accumulator))
        assert window(accumulator) == window(made())
        change(accumulator)
        assert window(accumulator) == window(after)


def test_an_accumulator_can_be_copied() -> None:
    accumulator = Accumulator(np.zeros(3))
    accumulator.add(np.ones(3))
    other = copy.deepcopy(accumulator)
    other.add(np.full(3, 5.0), 3)
    assert accumulator.grads.tolist() == [1.0] * 3 and other.grads.tolist() == [4.0] * 3


def test_params_are_checked_as_an_optimizers() -> None:
    with pytest.raises(TypeError, match="parameter 'w' has dtype int64"):
        Accumulator({"w": np.zeros(3, np.int64)})
    with pytest.raises(ValueError, match="params is empty"):
        Accumulator([])


def test_groups() -> None:
    a, b = np.zeros(2), np.zeros(3)
    groups = [{"params": {"a": a}, "lr": 0.5}, {"params": {"b": b}, "lr": 0.25}]
    accumulator = Accumulator(groups)
    accumulator.add([{"a": np.ones(2)}, {"b": np.ones(3)}])
    st.SGD(groups).step(accumulator.take())
    assert (a.tolist(), b.tolist()) == ([-0.5] * 2, [-0.25] * 3)


# In fit


def problem(n=50):
    rng = np.random.default_rng(4)
    x = rng.normal(size=(n, 4))
    return x, np.tanh(x @ np.array([1.0, -1.0, 2.0, 0.5])) + 0.2 * rng.normal(size=n)


def loss(w, x, y):
    return ((np.tanh(x @ w) - y) ** 2).mean()


def value_and_grad(w, x, y):
    z = np.tanh(x @ w)
    return ((z - y) ** 2).mean(), 2 / len(x) * (x.T @ ((z - y) * (1 - z * z)))


@pytest.mark.parametrize(("small", "k"), [(4, 3), (5, 10), (1, 7), (50, 2)])
def test_accumulated_batches_are_the_large_batch(small, k) -> None:
    """Also where the last window of an epoch, or its last batch, is smaller than the others."""

    def run(batch_size, accumulate):
        w = np.zeros(4)
        opt = st.Adam(w, lr=0.02, clip=st.clip.global_norm(0.5))
        history = fit(
            loss, w, problem(), opt, epochs=4, batch_size=batch_size, accumulate=accumulate,
            value_and_grad=value_and_grad, seed=2,
        )  # fmt: skip
        return w, history, opt.updates

    (w, h, updates), (v, g, expected) = run(small, k), run(small * k, 1)
    assert updates == expected == 4 * math.ceil(50 / (small * k))
    # The same mean summed in another order, carried through at most 32 updates.
    np.testing.assert_allclose(w, v, rtol=1e-11)
    np.testing.assert_allclose(h["loss"], g["loss"], rtol=1e-11)
    np.testing.assert_allclose(h["grad_norm"], g["grad_norm"], rtol=1e-11)
    assert h["lr"] == g["lr"]


def test_accumulation_needs_batches() -> None:
    w = np.zeros(4)
    with pytest.raises(ValueError, match="accumulate = 2 needs a batch_size"):
        fit(loss, w, problem(), st.SGD(w), epochs=1, accumulate=2)
    with pytest.raises(ValueError, match="accumulate = 0: expected 1 or more"):
        fit(loss, w, problem(), st.SGD(w), epochs=1, accumulate=0)


def test_examples() -> None:
    assert doctest.testmod(accumulate).failed == 0
