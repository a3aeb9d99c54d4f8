"""plateau and greedy: what they do with measurements, and their state."""

import copy
import json
import math
import pickle

import numpy as np
import pytest

from steepest.schedules import constant, cosine, greedy, plateau, sequence


def seen(schedule, metrics):
    """The value after each measurement."""
    values = []
    for metric in metrics:
        schedule.observe(metric)
        values.append(schedule(0))
    return values


def test_a_cut_after_more_than_patience() -> None:
    lr = plateau(1.0, factor=0.5, patience=2)
    assert seen(lr, [3, 2, 2, 2, 2, 2, 2, 2]) == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25]
    assert (lr.state.level, lr.state.best, lr.state.bad) == (0.25, 2.0, 0)


def test_patience_0_cuts_at_once() -> None:
    assert seen(plateau(1.0, factor=0.5, patience=0), [1, 1, 0.5, 0.5]) == [1, 0.5, 0.5, 0.25]


def test_cooldown() -> None:
    lr = plateau(1.0, factor=0.5, patience=0, cooldown=2)
    assert seen(lr, [1, 1, 1, 1, 1, 1]) == [1, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_the_mode_is_the_direction() -> None:
    assert seen(plateau(1.0, factor=0.5, patience=0, mode="max"), [1, 2, 1, 3]) == [1, 1, 0.5, 0.5]


@pytest.mark.parametrize(
    ("arguments", "first", "enough"),
    [
        ({}, 2.0, 1.5),
        ({}, -2.0, -2.5),
        ({"mode": "max"}, 2.0, 2.5),
        ({"mode": "max"}, -2.0, -1.5),
        ({"threshold_mode": "abs"}, 2.0, 1.75),
        ({"threshold_mode": "abs"}, -2.0, -2.25),
        ({"threshold_mode": "abs", "mode": "max"}, -2.0, -1.75),
    ],
)
def test_threshold(arguments, first, enough) -> None:
    """All of these are exact in binary: at the threshold is not enough, one ulp more is."""
    lr = plateau(1.0, factor=0.5, patience=0, threshold=0.25, **arguments)
    assert seen(lr, [first, first, enough]) == [1.0, 0.5, 0.25]
    beyond = math.nextafter(enough, math.inf if arguments.get("mode") == "max" else -math.inf)
    assert seen(lr, [beyond]) == [0.25]
    assert lr.state.best == beyond


def test_the_lowest_rate_and_the_smallest_cut() -> None:
    low = plateau(1.0, factor=0.5, patience=0, min_lr=0.3)
    assert seen(low, [1, 1, 1, 1]) == [1, 0.5, 0.3, 0.3]
    small = plateau(1.0, factor=0.5, patience=0, eps=0.3)
    assert seen(small, [1, 1, 1, 1]) == [1, 0.5, 0.5, 0.5]
    just = plateau(1.0, factor=0.5, patience=0, eps=0.5)
    assert seen(just, [1, 1]) == [1, 1]
    below = plateau(0.1, factor=0.5, patience=0, min_lr=0.3)
    assert seen(below, [1, 1]) == [0.1, 0.1]


@pytest.mark.parametrize("metric", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_what_is_not_finite_is_no_improvement(metric, mode) -> None:
    lr = plateau(1.0, factor=0.5, patience=1, mode=mode)
    assert seen(lr, [metric, metric, 1.0, metric, metric]) == [1, 0.5, 0.5, 0.5, 0.25]
    assert lr.state.best == 1.0


def test_around_a_schedule() -> None:
    inside = sequence((constant(0.4, warmup=4), cosine(0.4, 100)), (10,))
    lr = plateau(inside, factor=0.5, patience=0, min_lr=0.15)
    assert [lr(t) for t in range(120)] == [inside(t) for t in range(120)]
    seen(lr, [1, 1, 1])
    assert lr.state.level == 0.25
    # A quarter of it, but no less than min_lr where it is not below that by itself.
    assert [lr(t) for t in range(120)] == [
        max(inside(t) / 4, min(inside(t), 0.15)) for t in range(120)
    ]


def test_a_warm_up_of_its_own() -> None:
    lr = plateau(1.0, factor=0.5, patience=0, warmup=4)
    seen(lr, [1, 1])
    assert [lr(t) for t in range(5)] == [0.125, 0.25, 0.375, 0.5, 0.5]


@pytest.mark.parametrize("metric", [np.float32(2), np.array(2.0), np.int64(2), 2, True])
def test_numbers_of_all_kinds(metric) -> None:
    lr = plateau(1.0)
    lr.observe(metric)
    assert lr.state.best == float(metric)
    assert type(lr.state.best) is float


@pytest.mark.parametrize("metric", ["2", None, [1.0], np.ones(2)])
def test_a_metric_that_is_no_number(metric) -> None:
    lr = plateau(1.0)
    with pytest.raises(TypeError, match=r"plateau: metric = .*: expected a number"):
        lr.observe(metric)
    assert lr == plateau(1.0)


MAKES = [
    lambda: plateau(1.0, factor=0.5, patience=1, cooldown=1),
    lambda: plateau(cosine(1.0, 100), factor=0.5, patience=1, cooldown=1),
    lambda: greedy(0.5, factor=0.5, patience=1, cooldown=1, pause=1, reset_after=2, min_lr=0.2),
]
METRICS = np.random.default_rng(5).normal(size=60).cumsum().tolist()


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("n", [0, 1, 7, 20, 40])
def test_a_saved_state_continues(make, n) -> None:
    through, first, second = make(), make(), make()
    expected = seen(through, METRICS)
    assert len(set(expected)) > 3
    assert seen(first, METRICS[:n]) == expected[:n]
    text = json.dumps(first.state_dict(), allow_nan=False)
    second.load_state_dict(json.loads(text))
    assert second == first
    assert seen(second, METRICS[n:]) == expected[n:]
    assert all(type(x) in (int, float) for x in first.state_dict().values())


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))]
)
def test_a_copy_has_the_state_and_goes_its_own_way(make, duplicate) -> None:
    one = make()
    seen(one, METRICS[:9])
    two = duplicate(one)
    assert two == one and hash(two) == hash(one)
    before = one.state_dict()
    seen(two, METRICS[9:30])
    assert one.state_dict() == before
    assert two != one and hash(two) == hash(one)
    assert one != make()


@pytest.mark.parametrize(
    "change",
    [
        {"level": None},
        {"level": "1"},
        {"level": math.nan},
        {"bad": True},
        {"more": 1},
        {"level": ...},
        {"left": ...},
    ],
)
def test_a_wrong_state_is_refused(change) -> None:
    lr = plateau(1.0)
    seen(lr, [1, 2])
    state = {k: v for k, v in (lr.state_dict() | change).items() if v is not ...}
    before = lr.state_dict()
    with pytest.raises(
        ValueError, match=r"plateau: state = .*: expected the finite numbers level,"
    ):
        lr.load_state_dict(state)
    assert lr.state_dict() == before


def test_repr_is_the_call_without_the_state() -> None:
    lr = plateau(1.0, patience=1)
    seen(lr, [1, 1, 1])
    assert eval(repr(lr)) == plateau(1.0, patience=1) != lr


def test_greedy_rises_and_falls() -> None:
    lr = greedy(0.5, factor=0.5, patience=1, min_lr=0.25, max_lr=2.0)
    assert seen(lr, [9, 8, 7, 6, 5, 5, 5, 5, 5]) == [0.5, 1, 1, 2, 2, 2, 1, 1, 0.5]


def test_greedy_pauses_and_begins_again() -> None:
    lr = greedy(0.5, factor=0.5, patience=0, min_lr=0.25, pause=1, reset_after=2)
    assert seen(lr, [9, 9, 9, 9]) == [1.0, 1.0, 0.5, 0.25]
    assert lr.state.left == 1
    assert seen(lr, [9]) == [0.5]
    assert lr.state.best is None and lr.state.left == 2


# Against the originals


def walks():
    """Metrics that improve, stay and get worse, all of them positive."""
    rng = np.random.default_rng(11)
    for _ in range(20):
        steps = rng.choice([-0.05, 0.0, 0.0, 1e-5, 0.02, -1e-4], size=300)
        yield np.exp(steps.cumsum()).tolist()


@pytest.mark.torch
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"factor": 0.5, "patience": 2},
        {"factor": 0.7, "patience": 0, "cooldown": 3, "min_lr": 0.01},
        {"factor": 0.5, "patience": 3, "mode": "max", "eps": 0.001},
        {"factor": 0.5, "patience": 3, "threshold": 0.03, "threshold_mode": "abs"},
        {"factor": 0.5, "patience": 3, "threshold": 0.03, "mode": "max"},
        {"factor": 0.9, "patience": 1, "threshold": 0.03, "threshold_mode": "abs", "mode": "max"},
    ],
    ids=str,
)
def test_plateau_against_torch(arguments) -> None:
    torch = pytest.importorskip("torch")
    for metrics in walks():
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **arguments)
        theirs = []
        for metric in metrics:
            scheduler.step(metric)
            theirs.append(optimizer.param_groups[0]["lr"])
        ours = plateau(0.3, **arguments)
        assert seen(ours, metrics) == theirs
        assert ours.state.best == scheduler.best
        assert ours.state.bad == scheduler.num_bad_epochs
        assert ours.state.cooldown == scheduler.cooldown_counter


@pytest.mark.torch
@pytest.mark.parametrize(("mode", "other"), [("min", -0.95), ("max", -1.05)])
def test_torch_never_cuts_on_a_negative_metric(mode, other) -> None:
    """The difference that the documentation names; pytorch/pytorch#47513."""
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    arguments = {"mode": mode, "factor": 0.5, "patience": 1, "threshold": 0.1}
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **arguments)
    ours = plateau(1.0, **arguments)
    for metric in (-1.0, other, -1.0, -1.0, -1.0, -1.0):
        theirs.step(metric)
        ours.observe(metric)
    assert optimizer.param_groups[0]["lr"] == 1.0
    assert ours(0) == 0.25


@pytest.mark.torch
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"patience": 2}, {}),
        ({"factor": 0.5, "patience": 1, "cooldown": 2, "warmup": 3}, {"pause": 3}),
        ({"factor": 0.5, "patience": 0, "min_lr": 0.1, "reset_start": 2}, {"reset_after": 2}),
        ({"factor": 0.5, "patience": 1, "threshold": 0.03, "threshold_mode": "rel"}, {}),
        ({"factor": 0.7, "patience": 1, "mode": "max", "eps": 0.01, "max_lr": 0.8}, {}),
    ],
    ids=str,
)
def test_greedy_against_hugging_face(theirs, ours) -> None:
    torch = pytest.importorskip("torch")
    optimization = pytest.importorskip("transformers.optimization")
    shared = {k: v for k, v in theirs.items() if k not in ("warmup", "reset_start")}
    for metrics in walks():
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
        scheduler = optimization.GreedyLR(optimizer, **theirs)
        expected = []
        for metric in metrics:
            scheduler.step(metric)
            expected.append(optimizer.param_groups[0]["lr"])
        assert seen(greedy(0.3, **shared, **ours), metrics) == expected
