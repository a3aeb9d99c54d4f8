import copy
import doctest
import math
import pickle
from inspect import isabstract

import numpy as np
import pytest

from steepest import schedules
from steepest.schedules import (
    SCHEDULES,
    Schedule,
    constant,
    cosine,
    cosine_restarts,
    exponential,
    inverse_sqrt,
    inverse_time,
    linear,
    polynomial,
    step,
)

RUNS = [(0, 100), (100, 200), (300, 400), (700, 800)]


def wave(high: float, low: float, part: float) -> float:
    return low + (high - low) * (1 + math.cos(math.pi * part)) / 2


# A schedule, and what it must give at update u counted from the end of its warm-up.
FORMULAS = [
    (constant(0.3), lambda u: 0.3),
    (inverse_sqrt(0.3), lambda u: 0.3 / math.sqrt(u + 1)),
    (inverse_time(0.3, 0.07), lambda u: 0.3 / (1 + 0.07 * u)),
    (inverse_time(0.3, 0), lambda u: 0.3),
    (exponential(0.3, 0.97), lambda u: 0.3 * 0.97**u),
    (step(0.3, 70, 0.6), lambda u: 0.3 * 0.6 ** (u // 70)),
    (
        cosine(0.3, steps=600, end=0.05),
        lambda u: 0.05 + (0.3 - 0.05) * (1 + math.cos(math.pi * min(u, 600) / 600)) / 2,
    ),
    (linear(0.3, 600, 0.05), lambda u: 0.3 + (0.05 - 0.3) * min(u, 600) / 600),
    (linear(0.1, 600, 0.3), lambda u: 0.1 + (0.3 - 0.1) * min(u, 600) / 600),
    (
        polynomial(0.3, 600, 0.05, power=1.7),
        lambda u: 0.05 + (0.3 - 0.05) * (1 - min(u, 600) / 600) ** 1.7,
    ),
    (
        cosine_restarts(0.3, 70, end=0.05, gamma=0.9),
        lambda u: wave(0.3 * 0.9 ** (u // 70), 0.05, u % 70 / 70),
    ),
    (
        cosine_restarts(0.3, 100, mult=2, end=0.05),  # runs of 100, 200, 400, 800
        lambda u: wave(0.3, 0.05, *((u - s) / n for s, n in RUNS if s <= u < s + n)),
    ),
]
WARM = [
    constant(0.3, warmup=20),
    inverse_sqrt(0.3, warmup=20),
    inverse_time(0.3, 0.07, warmup=20),
    exponential(0.3, 0.97, warmup=20),
    step(0.3, 70, 0.6, warmup=20),
    linear(0.3, 620, 0.05, warmup=20),
    polynomial(0.3, 620, 0.05, 1.7, warmup=20),
    cosine(0.3, 620, 0.05, warmup=20),
    cosine_restarts(0.3, 70, 2, 0.05, 0.9, warmup=20),
]
ALL = [schedule for schedule, _ in FORMULAS] + WARM


def name(schedule: Schedule) -> str:
    return repr(schedule)


def test_the_table_names_every_schedule() -> None:
    classes = [c for c in vars(schedules).values() if isinstance(c, type)]
    made = {c.__name__: c for c in classes if issubclass(c, Schedule) and not isabstract(c)}
    assert made == SCHEDULES
    assert set(SCHEDULES) == {type(s).__name__ for s in WARM}
    assert set(schedules.__all__) == {"SCHEDULES", "Schedule", *SCHEDULES}


@pytest.mark.parametrize(("schedule", "formula"), FORMULAS, ids=lambda x: getattr(x, "__name__", x))
def test_formula(schedule, formula) -> None:
    expected = [formula(t) for t in range(1001)]
    # The formulas here and there group their operations differently: a few ulp of the first value.
    np.testing.assert_allclose(
        [schedule(t) for t in range(1001)], expected, rtol=4e-16, atol=4e-16 * 0.3
    )


@pytest.mark.parametrize("schedule", ALL, ids=name)
def test_random_access_is_iteration(schedule) -> None:
    in_order = [schedule(t) for t in range(800)]
    order = np.random.default_rng(3).permutation(800)
    at_random = {int(t): schedule(t) for t in order}
    assert [at_random[t] for t in range(800)] == in_order
    assert {type(value) for value in in_order} == {float}


@pytest.mark.parametrize("schedule", ALL, ids=name)
def test_copies(schedule) -> None:
    for twin in (
        copy.deepcopy(schedule),
        copy.copy(schedule),
        pickle.loads(pickle.dumps(schedule)),
        eval(repr(schedule), dict(SCHEDULES)),
    ):
        assert twin == schedule
        assert hash(twin) == hash(schedule)
        assert repr(twin) == repr(schedule)
        assert [twin(t) for t in (0, 7, 99)] == [schedule(t) for t in (0, 7, 99)]


def test_comparison() -> None:
    assert len(set(ALL)) == len(ALL)
    assert constant(0.1) != constant(0.1, warmup=1)
    assert exponential(0.1, 0.5) != inverse_time(0.1, 0.5)
    assert constant(1) == constant(np.float64(1.0))


def test_repr_is_the_call() -> None:
    assert repr(cosine(np.float32(0.5), np.int64(100))) == "cosine(lr=0.5, steps=100, end=0.0)"
    assert (
        repr(step(1, 10, warmup=np.int32(3))) == "step(lr=1.0, step_size=10, gamma=0.1, warmup=3)"
    )


def test_frozen() -> None:
    with pytest.raises(AttributeError):
        constant(0.1).lr = 0.2


@pytest.mark.parametrize("warm", WARM, ids=name)
def test_warm_up(warm) -> None:
    values = [warm(t) for t in range(21)]
    # Two roundings against one: at most one ulp.
    np.testing.assert_allclose(values[:20], [0.3 * k / 20 for k in range(1, 21)], rtol=2.3e-16)
    assert values[19] == 0.3
    assert values[20] == 0.3


@pytest.mark.parametrize(
    ("warm", "cold"),
    [
        (inverse_sqrt(0.3, warmup=20), inverse_sqrt(0.3)),
        (inverse_time(0.3, 0.07, warmup=20), inverse_time(0.3, 0.07)),
        (exponential(0.3, 0.97, warmup=20), exponential(0.3, 0.97)),
        (step(0.3, 70, 0.6, warmup=20), step(0.3, 70, 0.6)),
        (linear(0.3, 620, 0.05, warmup=20), linear(0.3, 600, 0.05)),
        (polynomial(0.3, 620, 0.05, 1.7, warmup=20), polynomial(0.3, 600, 0.05, 1.7)),
        (cosine(0.3, 620, 0.05, warmup=20), cosine(0.3, 600, 0.05)),
        (cosine_restarts(0.3, 70, 2, warmup=20), cosine_restarts(0.3, 70, 2)),
    ],
    ids=lambda s: type(s).__name__,
)
def test_the_schedule_begins_after_its_warm_up(warm, cold) -> None:
    assert [warm(t + 20) for t in range(800)] == [cold(t) for t in range(800)]


def test_warm_up_of_one_update_changes_only_the_offset() -> None:
    assert [exponential(0.8, 0.5, warmup=1)(t) for t in range(4)] == [0.8, 0.8, 0.4, 0.2]


def test_cosine_ends_exactly() -> None:
    schedule = cosine(0.3, 100, end=0.07, warmup=10)
    assert schedule(10) == 0.3
    assert schedule(99) > 0.07
    assert {schedule(t) for t in (100, 101, 199, 10**9)} == {0.07}


@pytest.mark.parametrize("t", [3, np.int32(3), np.uint8(3), np.int64(3)])
def test_integers_of_all_kinds(t) -> None:
    assert exponential(0.8, 0.5)(t) == 0.1


@pytest.mark.parametrize("t", [-1, np.int64(-5)])
def test_negative_t(t) -> None:
    with pytest.raises(ValueError, match=rf"constant\(lr=0.1\): t = {t}: expected .* 0 or more"):
        constant(0.1)(t)


@pytest.mark.parametrize("t", [1.0, "1", None, np.float64(1.0)])
def test_t_of_another_type(t) -> None:
    with pytest.raises(TypeError, match=r"constant\(lr=0.1\): t = .*: expected the number"):
        constant(0.1)(t)


@pytest.mark.parametrize("schedule", [exponential(1.0, 10.0), exponential(1e300, 2.0)], ids=name)
def test_overflow(schedule) -> None:
    with pytest.raises(OverflowError, match=r"exponential\(lr=.*\) is too large for a float"):
        schedule(400)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: constant(-0.1), ValueError, "constant: lr = -0.1: expected a finite number >= 0"),
        (lambda: constant(math.nan), ValueError, "constant: lr = nan: expected a finite number"),
        (lambda: constant(math.inf), ValueError, "constant: lr = inf: expected a finite number"),
        (lambda: constant("0.1"), TypeError, "constant: lr = '0.1': expected a finite number"),
        (lambda: constant(True), TypeError, "constant: lr = True: expected a finite number"),
        (lambda: constant(1j), TypeError, "constant: lr = 1j: expected a finite number"),
        (lambda: constant(1, warmup=-1), ValueError, "warmup = -1: expected an integer >= 0"),
        (lambda: constant(1, warmup=2.0), TypeError, "warmup = 2.0: expected an integer >= 0"),
        (lambda: inverse_time(1, -1), ValueError, "inverse_time: k = -1: expected .* >= 0"),
        (lambda: exponential(1, 0), ValueError, "exponential: gamma = 0: expected .* > 0"),
        (lambda: step(1, 0), ValueError, "step: step_size = 0: expected an integer >= 1"),
        (lambda: step(1, 5, -1), ValueError, "step: gamma = -1: expected a finite number > 0"),
        (lambda: cosine(1, 1e4), TypeError, "cosine: steps = 10000.0: expected an integer >= 1"),
        (lambda: cosine(1, 0), ValueError, "cosine: steps = 0: expected an integer >= 1"),
        (lambda: cosine(1, 9, -1), ValueError, "cosine: end = -1: expected .* >= 0"),
        (lambda: cosine(1, 9, warmup=9), ValueError, "warmup = 9: expected less than steps = 9"),
        (lambda: linear(1, 9, warmup=9), ValueError, "linear: warmup = 9: expected less than"),
        (lambda: polynomial(1, 9, power=0), ValueError, "polynomial: power = 0: expected .* > 0"),
        (lambda: cosine_restarts(1, 0), ValueError, "period = 0: expected an integer >= 1"),
        (lambda: cosine_restarts(1, 5, 1.5), TypeError, "mult = 1.5: expected an integer >= 1"),
        (lambda: exponential(1), TypeError, "gamma"),
        (lambda: constant(1, 5), TypeError, "positional"),
    ],
)
def test_wrong_arguments(make, error, message) -> None:
    with pytest.raises(error, match=message):
        make()


def test_examples() -> None:
    assert doctest.testmod(schedules).failed == 0


@pytest.mark.torch
@pytest.mark.parametrize(
    ("schedule", "make"),
    [
        (constant(0.3), lambda lr, o: lr.ConstantLR(o, factor=1.0)),
        (exponential(0.3, 0.97), lambda lr, o: lr.ExponentialLR(o, 0.97)),
        (step(0.3, 70, 0.6), lambda lr, o: lr.StepLR(o, 70, 0.6)),
        (cosine(0.3, 1000, 0.05), lambda lr, o: lr.CosineAnnealingLR(o, 1000, 0.05)),
        (linear(0.3, 900, 0.06), lambda lr, o: lr.LinearLR(o, 1.0, 0.2, 900)),
        (polynomial(0.3, 900, power=1.7), lambda lr, o: lr.PolynomialLR(o, 900, 1.7)),
        (
            cosine_restarts(0.3, 70, 2, 0.05),
            lambda lr, o: lr.CosineAnnealingWarmRestarts(o, 70, 2, 0.05),
        ),
        (inverse_time(0.3, 0.07), lambda lr, o: lr.LambdaLR(o, lambda t: 1 / (1 + 0.07 * t))),
        (
            constant(0.3, warmup=20),
            lambda lr, o: lr.LinearLR(o, start_factor=1 / 20, total_iters=19),
        ),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Schedule) else "",
)
def test_against_torch(schedule, make) -> None:
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    theirs = []
    for _ in range(1001):
        theirs.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    # Theirs is recursive: each of the 1000 updates adds a few roundings of 1.1e-16.
    np.testing.assert_allclose([schedule(t) for t in range(1001)], theirs, rtol=1e-12)
