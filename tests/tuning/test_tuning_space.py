import math

import numpy as np
import pytest

import steepest as st
from steepest.tuning.space import Space, choice, integer, log_uniform, uniform


def drawn(distribution, n=4000):
    rng = np.random.default_rng(1)
    return np.array([distribution.draw(rng) for _ in range(n)])


# Drawing. 4000 values: a share has a standard deviation of at most 0.008; four of them are allowed.


@pytest.mark.parametrize(
    ("distribution", "middle"),
    [
        (uniform(-1.0, 3.0), 1.0),
        (log_uniform(1e-4, 1.0), 1e-2),
        (integer(1, 100), 50.5),
        (integer(1, 1024, log=True), 22.5),  # √(0.5 · 1024.5): each has an interval around it
    ],
    ids=lambda x: repr(x) if not isinstance(x, float) else "",
)
def test_half_of_the_values_lie_below_the_middle(distribution, middle) -> None:
    values = drawn(distribution)
    assert distribution.low <= values.min() and values.max() <= distribution.high
    assert np.mean(values < middle) == pytest.approx(0.5, abs=4 * 0.008)


@pytest.mark.parametrize("log", [False, True])
def test_every_integer_can_come(log) -> None:
    assert sorted(set(drawn(integer(2, 6, log=log)).tolist())) == [2, 3, 4, 5, 6]


def test_small_integers_come_more_often_with_log() -> None:
    values = drawn(integer(1, 4, log=True))
    share = math.log(1.5 / 0.5) / math.log(4.5 / 0.5)  # of the interval around 1
    assert np.mean(values == 1) == pytest.approx(share, abs=4 * 0.008)


def test_every_choice_comes_as_often() -> None:
    values = drawn(choice(["a", "b"]))
    assert np.mean(values == "'a'") == pytest.approx(0.5, abs=4 * 0.008)


@pytest.mark.parametrize("kind", [uniform, log_uniform])
def test_values_are_plain_floats(kind) -> None:
    given = kind(np.float32(0.5), 2, points=3)
    assert [type(x) for x in (given.draw(np.random.default_rng(0)), *given.grid())] == [float] * 4
    assert given.grid()[0] == 0.5 and given.grid()[-1] == 2.0


# Grids


@pytest.mark.parametrize(
    ("distribution", "points"),
    [
        (uniform(0, 1, points=5), [0, 0.25, 0.5, 0.75, 1]),
        (integer(1, 10, points=4), [1, 4, 7, 10]),
        (integer(1, 3, points=10), [1, 2, 3]),
        (integer(1, 100, log=True, points=3), [1, 10, 100]),
        (choice([3, 1]), ["3", "1"]),
    ],
    ids=repr,
)
def test_the_points_of_a_grid(distribution, points) -> None:
    assert distribution.grid() == points


def test_the_ends_of_a_grid_by_ratio_are_exact() -> None:
    grid = log_uniform(1e-5, 0.3, points=7).grid()
    assert (grid[0], grid[-1]) == (1e-5, 0.3)
    ratios = np.diff(np.log(grid))
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-12)  # rounding of the logarithms


@pytest.mark.parametrize("given", [uniform(0, 1), log_uniform(1, 2), integer(1, 5)], ids=repr)
def test_a_grid_without_points_is_refused(given) -> None:
    with pytest.raises(ValueError, match=r"space\['x'\] = .*: a grid needs points=, or a list"):
        Space({"x": given}).grid()


# Labels


class Plain:
    pass


def test_any_objects_can_be_chosen_from() -> None:
    schedule = st.schedules.cosine(0.1, steps=10)
    values = [(0.9, 0.999), None, True, 1, 1.0, "1", [1, 2], schedule, np.tanh, st.Adam, Plain()]
    given = choice(values)
    assert list(given.labels) == [
        "(0.9, 0.999)", "None", "True", "1", "1.0", "'1'", "[1, 2]",
        "cosine(lr=0.1, steps=10, end=0.0)", "tanh", "Adam", "Plain",
    ]  # fmt: skip
    assert [given.decode(label) for label in given.labels] == values


def test_equal_labels_are_told_apart() -> None:
    first, second = Plain(), Plain()
    given = choice([first, second, "Plain #2", np.float64(2.5), 2.5])
    assert given.labels == ("Plain", "Plain #2", "'Plain #2'", "2.5", "2.5 #2")
    assert given.decode("Plain #2") is second


def test_long_labels_are_shortened() -> None:
    first, second = "x" * 100 + "a", "x" * 100 + "b"
    given = choice([first, second])
    assert [len(label) for label in given.labels] == [60, 63]
    assert [given.decode(label) for label in given.labels] == [first, second]


def test_labels_hold_no_addresses() -> None:
    assert choice([(Plain(), lambda: 0)]).labels == ("(Plain, <lambda>)",)


# Spaces


def test_the_grid_is_the_product_in_order() -> None:
    space = Space({"a": [1, 2], "b": uniform(0, 1, points=2)})
    assert [space.decode(p) for p in space.grid()] == [
        {"a": 1, "b": 0.0}, {"a": 1, "b": 1.0}, {"a": 2, "b": 0.0}, {"a": 2, "b": 1.0},
    ]  # fmt: skip


def test_a_candidate_depends_on_seed_and_number_alone() -> None:
    def space():
        return Space({"a": uniform(0, 1), "b": [1, 2, 3], "c": integer(1, 1000)})

    forwards = [space().draw(7, n) for n in range(20)]
    same = space()
    assert [same.draw(7, n) for n in reversed(range(20))] == forwards[::-1]
    assert len({str(x) for x in forwards}) == 20
    assert space().draw(8, 0) != forwards[0]


# What is refused


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: uniform(1, 1), ValueError, r"expected low < high; for a single value give \["),
        (lambda: uniform(0, math.inf), ValueError, "high = inf: expected a finite number"),
        (lambda: uniform(math.nan, 1), ValueError, "low = nan: expected a finite number"),
        (lambda: uniform("0", 1), TypeError, "low = '0': expected a finite number"),
        (lambda: uniform(False, 1), TypeError, "low = False: expected a finite number"),
        (lambda: uniform(0, 1, points=1), ValueError, "points = 1: expected 2 or more"),
        (lambda: uniform(0, 1, points=2.0), TypeError, "points = 2.0: expected an integer"),
        (lambda: log_uniform(0, 1), ValueError, "low = 0.0: expected more than 0"),
        (lambda: integer(1.0, 2), TypeError, "low = 1.0: expected an integer"),
        (lambda: integer(0, 2, log=True), ValueError, "low = 0: expected 1 or more with log"),
        (lambda: integer(1, 2, log=5), TypeError, "log = 5: expected True or False"),
        (lambda: choice([]), ValueError, "expected at least one value"),
        (lambda: choice("abc"), TypeError, "expected a list or tuple of values"),
        (lambda: Space({}), ValueError, "space is empty"),
        (lambda: Space([1]), TypeError, "space is a list; expected a dict"),
        (lambda: Space({1: [1]}), TypeError, "space has the name 1; expected a string"),
        (lambda: Space({"a": 0.1}), TypeError, r"space\['a'\] = 0.1: expected a list of values"),
        (lambda: Space({"a": "adam"}), TypeError, r"space\['a'\] = 'adam': expected a list"),
        (lambda: Space({"a": []}), ValueError, r"space\['a'\] = choice\(\[\]\): expected at least"),
    ],
)
def test_wrong_distributions_are_refused(make, error, message) -> None:
    with pytest.raises(error, match=message):
        make()
