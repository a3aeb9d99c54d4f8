import functools
import math

import numpy as np
import pytest

import steepest as st
from steepest.training.lr_finder import LRFound, find_lr

CURVATURE = 10.0
LIMIT = 2 / CURVATURE  # gradient descent on a quadratic diverges above it


def bowl(p):
    return 0.5 * CURVATURE * float(np.sum(p * p))


def bowl_and_grad(p):
    return bowl(p), CURVATURE * p


def found(optimizer=st.SGD, start=3.0, **options):
    return find_lr(bowl, np.full(4, start), (), optimizer, value_and_grad=bowl_and_grad, **options)


def line(p, x, y):
    return ((p["layer"]["w"] * x + p["b"] - y) ** 2).mean()


def line_and_grad(p, x, y):
    error = p["layer"]["w"] * x + p["b"] - y
    grads = {"layer": {"w": np.array(2 * (error * x).mean())}, "b": np.array(2 * error.mean())}
    return (error**2).mean(), grads


def points(n=200):
    rng = np.random.default_rng(5)
    x = rng.uniform(-1, 1, n)
    return x, 2 * x + 1 + 0.1 * rng.standard_normal(n)


def start():
    return {"layer": {"w": np.zeros(())}, "b": np.zeros(())}


# What it finds


@pytest.mark.parametrize("steps", [50, 100, 300])
def test_the_suggestion_lies_below_the_stability_limit(steps) -> None:
    """By a factor from 5 to 100: the updates before it count, too, and more steps are more."""
    result = found(steps=steps)
    assert LIMIT / 100 < result.lr < LIMIT / 5
    assert result.lr == min(result.steepest, result.tenth)


@pytest.mark.parametrize("steps", [50, 100, 300])
def test_the_minimum_is_at_the_stability_limit(steps) -> None:
    """Without noise the loss falls up to the limit and rises above it: within one update."""
    growth = (10 / 1e-6) ** (1 / (steps - 1))
    assert LIMIT / growth <= 10 * found(steps=steps).tenth <= LIMIT * growth


@pytest.mark.parametrize("steps", [50, 100, 300])
def test_divergence_is_seen_just_above_the_stability_limit(steps) -> None:
    """It takes a few updates above the limit until the loss has grown by stop_factor."""
    assert LIMIT < found(steps=steps).diverged < 2 * LIMIT


@pytest.mark.parametrize(
    "optimizer",
    [st.SGD, st.Adam, st.RMSprop, functools.partial(st.SGD, momentum=0.9)],
    ids=["sgd", "adam", "rmsprop", "momentum"],
)
def test_training_with_the_suggestion_converges(optimizer) -> None:
    x, y = points()
    result = find_lr(line, start(), (x, y), optimizer, value_and_grad=line_and_grad, batch_size=20)
    p = start()
    st.fit(
        line, p, (x, y), optimizer(p, lr=result.lr), epochs=100, batch_size=20,
        value_and_grad=line_and_grad,
    )  # fmt: skip
    assert line(start(), x, y) > 2
    assert line(p, x, y) < 2 * 0.1**2  # of which the noise of the data is one half


def test_the_rates_grow_by_a_factor() -> None:
    result = found(low=1e-3, high=0.1, steps=11)
    # Powers are rounded: a relative error of a few units in the last place.
    np.testing.assert_allclose(result.rates, np.geomspace(1e-3, 0.1, 11), rtol=1e-13)
    assert result.rates[0] == 1e-3


def test_a_loss_stands_with_the_rate_that_led_to_it() -> None:
    result = found(low=1e-3, high=0.01, steps=11)
    p, expected = 3.0, []
    for rate in result.rates:
        p -= rate * (CURVATURE * p)
        expected.append(bowl(np.full(4, p)))
    assert result.losses == expected


def test_the_smoothed_loss_is_an_unbiased_running_mean() -> None:
    result = found(smoothing=0.5, low=1e-3, high=0.1, steps=10)
    for k in range(10):
        weights = 0.5 ** np.arange(k, -1, -1)
        expected = np.average(result.losses[: k + 1], weights=weights)
        assert result.smoothed[k] == pytest.approx(expected, rel=1e-13)  # another order of sums


def test_full_batches_are_not_smoothed_and_mini_batches_are() -> None:
    x, y = points()
    full = find_lr(line, start(), (x, y), st.SGD, value_and_grad=line_and_grad)
    small = find_lr(line, start(), (x, y), st.SGD, value_and_grad=line_and_grad, batch_size=20)
    assert full.smoothed == full.losses
    assert small.smoothed[1:] != small.losses[1:]


def test_stop_factor_says_when_to_stop() -> None:
    early, late = found(stop_factor=1.5), found(stop_factor=1e6)
    assert early.diverged < late.diverged
    assert late.smoothed[-1] > 1e6 * min(late.smoothed) >= max(late.smoothed[-2:-1])


def test_a_loss_below_zero_stops_too() -> None:
    def value_and_grad(p):
        return bowl(p) - 50, CURVATURE * p

    result = find_lr(bowl, np.full(4, 3.0), (), st.SGD, value_and_grad=value_and_grad)
    assert LIMIT < result.diverged < 100 * LIMIT and result.lr < LIMIT


def test_gradients_are_made_where_none_are_given() -> None:
    x, y = points()
    by_hand = find_lr(line, start(), (x, y), st.SGD, value_and_grad=line_and_grad)
    made = find_lr(line, start(), (x, y), st.SGD)
    assert made.lr == by_hand.lr


# What it leaves alone


@pytest.mark.parametrize("batch_size", [None, 7])
def test_parameters_and_data_stay_as_they_are(batch_size) -> None:
    x, y = points()
    p = start()
    before = [a.tobytes() for a in (p["layer"]["w"], p["b"], x, y)]
    arrays = p["layer"]["w"], p["b"]
    find_lr(line, p, (x, y), st.Adam, value_and_grad=line_and_grad, batch_size=batch_size)
    assert [a.tobytes() for a in (*arrays, x, y)] == before
    assert (p["layer"]["w"], p["b"]) == arrays


def test_an_optimizer_of_the_caller_stays_as_it_is() -> None:
    p = np.full(4, 3.0)
    mine = st.Adam(p, lr=0.1)
    mine.step(np.ones(4))
    before = p.tobytes(), mine.state["0"]["exp_avg"].tobytes(), mine.updates
    find_lr(bowl, p, (), st.Adam, value_and_grad=bowl_and_grad)
    assert (p.tobytes(), mine.state["0"]["exp_avg"].tobytes(), mine.updates) == before


def test_the_same_seed_gives_the_same_answer() -> None:
    x, y = points()
    test = functools.partial(
        find_lr, line, start(), (x, y), st.SGD, value_and_grad=line_and_grad, batch_size=20
    )
    assert test(seed=3) == test(seed=3)
    assert test(seed=3).losses != test(seed=4).losses


def test_a_single_array_is_data() -> None:
    def value_and_grad(p, x):
        return float(np.mean((p - x) ** 2)), np.array(2 * np.mean(p - x))

    x = np.linspace(1, 3, 50)
    result = find_lr(bowl, np.zeros(()), x, st.SGD, value_and_grad=value_and_grad, batch_size=10)
    assert result.lr < 1  # the limit of a square with curvature 2


# Where nothing is found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"high": 1e-5}, "the loss did not fall; give a higher high than 1e-05"),
        ({"high": 0.01}, "the loss was still falling at the end; give a higher high than 0.01"),
        ({"low": 1.0}, "the loss did not fall, and diverged at 1.02; give a lower low than 1"),
        ({"start": 0.0}, "the loss did not fall; give a higher high than 10"),
    ],
    ids=["too low", "falling", "too high", "at the minimum"],
)
def test_nothing_found_is_said(options, message) -> None:
    result = found(**options)
    assert result.message == message
    assert (result.steepest, result.tenth) == (None, None)
    with pytest.raises(ValueError, match=f"no learning rate was found: {message}"):
        _ = result.lr


def test_noise_is_not_taken_for_a_fall() -> None:
    """At such rates nothing is learned; small batches differ by more than that."""
    x, y = points()
    result = find_lr(
        line, start(), (x, y), st.SGD, high=1e-4, batch_size=5, value_and_grad=line_and_grad
    )
    assert result.steepest is None
    assert result.message.startswith("the loss did not fall below its noise; give more steps")


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_not_taken_for_the_steepest_fall(seed) -> None:
    """Full batches say 0.06; noise at the lowest rates may be steeper than the fall."""
    x, y = points()
    result = find_lr(
        line, start(), (x, y), st.SGD, seed=seed, batch_size=20, value_and_grad=line_and_grad
    )
    assert 0.06 / 10 < result.lr < 0.06 * 10


def nonfinite_from(update, value):
    calls = [0]

    def value_and_grad(p):
        calls[0] += 1
        if calls[0] > update:
            return value, CURVATURE * p
        return bowl_and_grad(p)

    return value_and_grad


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_ends_the_test(value) -> None:
    result = find_lr(
        bowl, np.full(4, 3.0), (), st.SGD, value_and_grad=nonfinite_from(80, value), low=1e-4,
        high=0.1,
    )  # fmt: skip
    assert result.diverged == result.rates[79] == result.rates[-1]
    assert result.lr < 0.1


def test_gradients_that_are_not_finite_end_the_test() -> None:
    def value_and_grad(p):
        value, grads = bowl_and_grad(p)
        return value, grads if value > 1e-3 else np.full(4, np.nan)

    def optimizer(p, lr):
        return st.SGD(p, lr=lr, nonfinite="raise")

    result = find_lr(bowl, np.full(4, 3.0), (), optimizer, value_and_grad=value_and_grad)
    assert result.diverged is not None and result.losses[-1] == math.inf
    assert result.lr < result.diverged < LIMIT


def test_a_loss_that_is_not_finite_from_the_first_update_on() -> None:
    result = find_lr(bowl, np.full(4, 3.0), (), st.SGD, value_and_grad=nonfinite_from(1, math.nan))
    assert result.message.startswith("the loss did not fall, and diverged at 1e-06")
    with pytest.raises(ValueError, match="nothing to plot"):
        result.plot()


# The picture


@pytest.mark.parametrize("options", [{}, {"high": 0.01}, {"stop_factor": 1e300}])
def test_the_picture_is_written(options, tmp_path) -> None:
    figure = found(**options).plot(tmp_path / "lr.png", title="a bowl")
    assert (tmp_path / "lr.png").read_bytes().startswith(b"\x89PNG")
    assert figure.axes[0].get_xscale() == "log"


def test_the_picture_shows_the_suggestions() -> None:
    result = found()
    labels = [text.get_text() for text in result.plot().axes[0].get_legend().get_texts()]
    assert labels == [
        "loss",
        "smoothed",
        f"steepest fall: {result.steepest:.2g}",
        f"minimum / 10: {result.tenth:.2g}",
        f"diverged: {result.diverged:.2g}",
    ]


def test_the_result_can_be_made_by_hand() -> None:
    result = LRFound([0.1, 1.0], [2.0, 1.0], [2.0, 1.5], 0.25, 0.5, None, "")
    assert result.lr == 0.25


# What it refuses


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"low": 0.0}, ValueError, r"low = 0.0, high = 10.0: expected 0 < low < high"),
        ({"low": 1.0, "high": 1.0}, ValueError, "expected 0 < low < high"),
        ({"high": math.inf}, ValueError, "expected 0 < low < high"),
        ({"low": math.nan}, ValueError, "expected 0 < low < high"),
        ({"steps": 9}, ValueError, "steps = 9: expected 10 or more"),
        ({"steps": 20.0}, TypeError, "integer"),
        ({"smoothing": 1.0}, ValueError, r"smoothing = 1.0: expected a number in \[0, 1\)"),
        ({"smoothing": -0.1}, ValueError, "smoothing = -0.1"),
        ({"stop_factor": 1.0}, ValueError, "stop_factor = 1.0: expected a number above 1"),
        ({"optimizer": "adam"}, TypeError, "optimizer is 'adam'; expected a class or function"),
        (
            {"optimizer": lambda p, lr: st.SGD(p, lr=0.1)},
            ValueError,
            "optimizer made one with lr = 0.1; it must use the lr= it is given",
        ),
    ],
)
def test_wrong_arguments_are_refused(options, error, message) -> None:
    with pytest.raises(error, match=message):
        found(**options)


def test_an_optimizer_in_use_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a class or function"):
        found(optimizer=st.SGD(np.zeros(4), lr=0.1))
