"""What all schedules have in common; the formulas of the older ones."""

import copy
import doctest
import json
import math
import pickle
import pkgutil
from dataclasses import dataclass, fields
from importlib import import_module
from inspect import isabstract

import numpy as np
import pytest

import steepest as st
from steepest import schedules
from steepest.schedules import (
    SCHEDULES,
    Schedule,
    ademamix_alpha,
    ademamix_beta3,
    clip,
    constant,
    cosine,
    cosine_cycles,
    cosine_restarts,
    cyclic,
    ema_warmup,
    exponential,
    greedy,
    growing,
    interpolate,
    inverse_sqrt,
    inverse_time,
    linear,
    maximum,
    minimum,
    multi_step,
    noam,
    one_cycle,
    one_cycle_momentum,
    piecewise,
    plateau,
    polynomial,
    product,
    rex,
    rounded,
    sequence,
    shift,
    step,
    total,
    warmup_stable_decay,
)
from steepest.schedules.base import COMMON

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
# At least one of every class, with as many arguments off their defaults as go together.
MORE = [
    constant(0.3, warmup=20, warmup_from=0, warmup_start=0.1, warmup_shape="cosine"),
    warmup_stable_decay(0.3, 700, 200, end=0.1, shape="1-square", warmup=20),
    inverse_sqrt(0.3, timescale=70),
    noam(0.3, width=64, warmup=50),
    inverse_time(0.3, 0.7, period=70, staircase=True),
    exponential(0.3, 0.9, period=30, staircase=True, begin=100, end=0.15),
    multi_step(0.3, (30, 70, 70), gamma=0.4),
    piecewise((0.3, -0.1, 0.2), (100, 200)),
    interpolate((0.3, 0.1, 0.2), (100, 200), shape="cosine"),
    polynomial(0.3, 100, 0.05, 1.7, cycle=True),
    cosine(0.3, 600, 0.05, exponent=1.3, cycles=2.25),
    cosine_cycles(0.3, 600, 0.05, cycles=7),
    rex(0.3, 600, 0.05, beta=0.9),
    cyclic(0.9, 0.8, 70, 33, mode="triangular2"),
    cyclic(0.1, 0.8, 70, mode="exp_range", gamma=0.999),
    one_cycle(0.3, 600, pct_start=0.2, anneal_strategy="linear", div_factor=10, warmup=20),
    one_cycle(0.3, 600, final_div_factor=100, three_phase=True),
    one_cycle_momentum(600, 0.8, 0.9, pct_start=0.4, anneal_strategy="linear", three_phase=True),
    plateau(
        cosine(0.3, 600),
        factor=0.5,
        patience=2,
        min_lr=0.01,
        mode="max",
        cooldown=3,
        threshold=0.1,
        threshold_mode="abs",
        eps=0.001,
    ),
    greedy(
        0.3,
        factor=0.5,
        patience=2,
        pause=3,
        reset_after=7,
        mode="max",
        cooldown=3,
        min_lr=0.01,
        max_lr=0.4,
        threshold=0.1,
        threshold_mode="rel",
        eps=0.001,
    ),
    ademamix_alpha(5.0, 300),
    ademamix_beta3(0.9999, 300, start=0.8),
    ema_warmup(0.99),
    growing(8, 1.5, 50, 200),
    growing(200, 0.5, 50, 8),
    rounded(linear(8, 600, end=64), warmup=50),
    sequence((linear(0, 100, end=0.3), cosine(0.3, 500), 0.1), (100, 600), warmup=5),
    shift(cosine(0.3, 600), 70),
    shift(cosine(0.3, 600), -70),
    clip(exponential(0.3, 0.99), low=0.05, high=constant(0.2, warmup=100)),
    minimum((0.2, exponential(0.3, 0.99))),
    maximum((0.2, exponential(0.3, 0.99))),
    product((2, cosine(0.3, 600), step(1.0, 70))),
    total((1, product((-1, cosine(0.3, 600))))),
]
ALL = [schedule for schedule, _ in FORMULAS] + WARM + MORE


def name(schedule: Schedule) -> str:
    return repr(schedule)


def test_the_table_names_every_schedule() -> None:
    classes = [c for c in vars(schedules).values() if isinstance(c, type)]
    made = {c.__name__: c for c in classes if issubclass(c, Schedule) and not isabstract(c)}
    assert made == SCHEDULES
    assert set(SCHEDULES) == {type(s).__name__ for s in ALL}
    assert set(schedules.__all__) == {"SCHEDULES", "Schedule", *SCHEDULES}


def test_every_argument_is_tried() -> None:
    """Each field has, in some example, another value than its default."""
    for cls in SCHEDULES.values():
        examples = [s for s in ALL if type(s) is cls]
        for f in fields(cls):
            if f.name not in COMMON:
                assert any(getattr(s, f.name) != f.default for s in examples), (cls, f.name)


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
    whole = isinstance(schedule, (growing, rounded))
    assert {type(value) for value in in_order} == {int if whole else float}


@pytest.mark.parametrize("schedule", ALL, ids=name)
def test_far_away(schedule) -> None:
    """No loop over t, no overflow."""
    for t in (10**9, 10**9 + 1, 2**53 + 1, 10**18):
        assert math.isfinite(schedule(t))


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


def written(value):
    """A schedule as JSON has it: its name and its fields."""
    if isinstance(value, Schedule):
        return {
            type(value).__name__: {f.name: written(getattr(value, f.name)) for f in fields(value)}
        }
    return [written(x) for x in value] if isinstance(value, tuple) else value


def read(value):
    if isinstance(value, dict):
        ((kind, arguments),) = value.items()
        return SCHEDULES[kind](**{k: read(x) for k, x in arguments.items()})
    return tuple(read(x) for x in value) if isinstance(value, list) else value


@pytest.mark.parametrize("schedule", ALL, ids=name)
def test_name_and_fields_say_all(schedule) -> None:
    text = json.dumps(written(schedule), allow_nan=False)
    assert "null" not in text
    assert read(json.loads(text)) == schedule


@pytest.mark.parametrize("schedule", ALL, ids=name)
def test_in_an_optimizer(schedule) -> None:
    by_schedule, by_hand = np.ones(3), np.ones(3)
    first, second = st.SGD(by_schedule, lr=schedule), st.SGD(by_hand, lr=0.0)
    for t in range(4):
        second.param_groups[0]["lr"] = float(schedule(t))
        first.step(np.arange(3.0))
        second.step(np.arange(3.0))
    np.testing.assert_array_equal(by_schedule, by_hand)


def test_lists_and_arrays_become_tuples() -> None:
    assert multi_step(1, [30, 80]) == multi_step(1, np.array([30, 80])) == multi_step(1, (30, 80))
    assert piecewise(np.array([1, 2], np.float32), [3]).values == (1.0, 2.0)


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


def test_repr_has_what_is_not_the_default() -> None:
    assert repr(exponential(1, 0.5, begin=3)) == "exponential(lr=1.0, gamma=0.5, begin=3)"
    assert repr(constant(1, warmup=3, warmup_from=0)) == "constant(lr=1.0, warmup=3, warmup_from=0)"
    assert repr(noam(1, 512, warmup=4000)) == "noam(lr=1.0, width=512, warmup=4000)"
    assert repr(plateau(0.1, patience=3)) == "plateau(lr=0.1, patience=3)"
    assert (
        repr(sequence((constant(1), 0.5), (7,)))
        == "sequence(parts=(constant(lr=1.0), 0.5), milestones=(7,))"
    )


@pytest.mark.parametrize("cls", SCHEDULES.values())
def test_every_schedule_has_a_formula(cls) -> None:
    assert "s(t) " in cls.formula
    assert not cls.formula.startswith(" ")


def test_str_is_the_call_and_the_formula() -> None:
    assert str(exponential(1, 0.5)).splitlines() == [
        "exponential(lr=1.0, gamma=0.5)",
        "    s(t) = lr gammaᵘ",
        "    u    = max(t - begin, 0) / period, or its whole part with staircase",
    ]


@dataclass(frozen=True, repr=False)
class sawtooth(Schedule):
    """One of a user's own."""

    period: int

    def value(self, t: int) -> float:
        return t % self.period / self.period


def test_a_schedule_of_ones_own() -> None:
    own = sawtooth(4, warmup=2)
    assert [own(t) for t in range(7)] == [0.0, 0.0, 0.0, 0.25, 0.5, 0.75, 0.0]
    assert str(own) == repr(own) == "sawtooth(period=4, warmup=2)"
    assert sequence((own, 1.0), (3,))(2) == 0.0
    assert (own + 1)(3) == 1.25


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


@pytest.mark.parametrize(
    ("shape", "rise"),
    [
        ("linear", lambda x: x),
        ("cosine", lambda x: math.sin(math.pi * x / 2) ** 2),
        ("1-sqrt", lambda x: 1 - math.sqrt(1 - x)),
    ],
)
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("start", [0.0, 0.25])
def test_kinds_of_warm_up(shape, rise, first, start) -> None:
    warm = cosine(0.5, 120, warmup=20, warmup_from=first, warmup_start=start, warmup_shape=shape)
    expected = [0.5 * (start + (1 - start) * rise((t + first) / 20)) for t in range(20)]
    # Roundings of the parts, which are at most 0.5.
    np.testing.assert_allclose([warm(t) for t in range(20)], expected, rtol=0, atol=2e-16)
    assert [warm(t) for t in range(20, 130)] == [cosine(0.5, 100)(t) for t in range(110)]
    assert first or warm(0) == 0.5 * start


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


@pytest.mark.parametrize(
    "schedule",
    [
        exponential(1.0, 10.0),
        exponential(1e300, 2.0),
        product((1e300, 1e300)),
        total((1e308, 1e308)),
        total((exponential(1.0, 10.0), -1.0)),
        product((-1e300, 1e300)),
        rounded(exponential(1.0, 10.0)),
    ],
    ids=name,
)
def test_overflow(schedule) -> None:
    with pytest.raises(OverflowError, match=r"\w+\(.*\) is too large for a float at t = 400"):
        schedule(400)


def test_no_overflow_where_the_value_is_a_float() -> None:
    # 10**400 is none; the tolerance is that of a power, a few hundred ulp for this exponent.
    assert exponential(1e-300, 10.0)(400) == pytest.approx(1e100, rel=1e-12)
    assert multi_step(1e-300, (0,) * 400, 10.0)(0) == pytest.approx(1e100, rel=1e-12)
    assert exponential(0.0, 10.0)(400) == 0.0
    assert exponential(1.0, 10.0, end=5.0)(10**9) == 5.0
    assert growing(1, 10, 1, 1000)(10**9) == 1000
    assert exponential(1.0, 0.5)(10**9) == 0.0


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: constant(-0.1),
            ValueError,
            "constant: lr = -0.1: expected a finite number of at least 0",
        ),
        (lambda: constant(math.nan), ValueError, "constant: lr = nan: expected a finite number"),
        (lambda: constant(math.inf), ValueError, "constant: lr = inf: expected a finite number"),
        (lambda: constant("0.1"), TypeError, "constant: lr = '0.1': expected a finite number"),
        (lambda: constant(True), TypeError, "constant: lr = True: expected a finite number"),
        (lambda: constant(1j), TypeError, "constant: lr = 1j: expected a finite number"),
        (
            lambda: constant(1, warmup=-1),
            ValueError,
            "warmup = -1: expected an integer of at least 0",
        ),
        (
            lambda: constant(1, warmup=2.0),
            TypeError,
            "warmup = 2.0: expected an integer of at least 0",
        ),
        (
            lambda: inverse_time(1, -1),
            ValueError,
            "inverse_time: k = -1: expected .* of at least 0",
        ),
        (
            lambda: exponential(1, 0),
            ValueError,
            "exponential: gamma = 0: expected .* greater than 0",
        ),
        (lambda: step(1, 0), ValueError, "step: step_size = 0: expected an integer of at least 1"),
        (
            lambda: step(1, 5, -1),
            ValueError,
            "step: gamma = -1: expected a finite number greater than 0",
        ),
        (
            lambda: cosine(1, 1e4),
            TypeError,
            "cosine: steps = 10000.0: expected an integer of at least 1",
        ),
        (lambda: cosine(1, 0), ValueError, "cosine: steps = 0: expected an integer of at least 1"),
        (lambda: cosine(1, 9, -1), ValueError, "cosine: end = -1: expected .* of at least 0"),
        (lambda: cosine(1, 9, warmup=9), ValueError, "warmup = 9: expected less than steps = 9"),
        (lambda: linear(1, 9, warmup=9), ValueError, "linear: warmup = 9: expected less than"),
        (
            lambda: polynomial(1, 9, power=0),
            ValueError,
            "polynomial: power = 0: expected .* greater than 0",
        ),
        (
            lambda: cosine_restarts(1, 0),
            ValueError,
            "period = 0: expected an integer of at least 1",
        ),
        (
            lambda: cosine_restarts(1, 5, 1.5),
            TypeError,
            "mult = 1.5: expected an integer of at least 1",
        ),
        (
            lambda: constant(10**400),
            ValueError,
            "lr = 1000.*: expected a finite number of at least 0",
        ),
        (lambda: constant(1, warmup_from=0), ValueError, "warmup_from = 0: expected warmup >= 1"),
        (lambda: constant(1, warmup=2, warmup_from=2), ValueError, r"an integer in \[0, 1\]"),
        (lambda: constant(1, warmup=2, warmup_start=2), ValueError, r"a number in \[0, 1\]"),
        (
            lambda: constant(1, warmup=2, warmup_shape="log"),
            ValueError,
            "warmup_shape = 'log': expected one of 'linear', 'cosine', '1-sqrt'",
        ),
        (lambda: noam(1, 512), TypeError, "warmup"),
        (
            lambda: noam(1, 512, warmup=0),
            ValueError,
            "warmup = 0: expected an integer of at least 1",
        ),
        (lambda: noam(1, 512, warmup=9, warmup_from=0), ValueError, "noam: warmup_from = 0"),
        (
            lambda: inverse_sqrt(1, timescale=0),
            ValueError,
            "timescale = 0: expected .* greater than 0",
        ),
        (lambda: exponential(1, 0.5, end=2), ValueError, "end = 2.0: expected at most lr = 1.0"),
        (lambda: exponential(1, 2, end=0.5), ValueError, "end = 0.5: expected at least lr = 1.0"),
        (
            lambda: exponential(1, 2, staircase=2),
            TypeError,
            "staircase = 2: expected True or False",
        ),
        (lambda: multi_step(1, (5, 3)), ValueError, r"milestones = \(5, 3\): expected .* in order"),
        (lambda: multi_step(1, ()), ValueError, r"milestones = \(\): expected 1 or more"),
        (lambda: multi_step(1, (1.5,)), TypeError, r"milestones\[0\] = 1.5: expected an integer"),
        (lambda: multi_step(1, "12"), TypeError, "milestones = '12': expected a tuple"),
        (lambda: multi_step(1, 12), TypeError, "milestones = 12: expected a tuple"),
        (lambda: piecewise((1, 2), (3, 4)), ValueError, "one more than boundaries = "),
        (lambda: piecewise((1, math.nan), (3,)), ValueError, r"values\[1\] = nan"),
        (lambda: piecewise((1, -math.inf), (3,)), ValueError, r"values\[1\] = -inf"),
        (lambda: interpolate((1, 2, 3), (4, 4)), ValueError, "expected each larger than the last"),
        (
            lambda: interpolate((1, 2), (0,)),
            ValueError,
            r"boundaries\[0\] = 0: expected .* of at least 1",
        ),
        (lambda: cosine(1, 9, exponent=0), ValueError, "exponent = 0: expected .* greater than 0"),
        (
            lambda: cosine_cycles(1, 9, cycles=0),
            ValueError,
            "cycles = 0: expected .* of at least 1",
        ),
        (lambda: rex(1, 9, beta=1), ValueError, "rex: beta = 1.0: expected less than 1"),
        (lambda: rex(1, 9, warmup=9), ValueError, "rex: warmup = 9: expected less than steps"),
        (lambda: cyclic(0, 1, mode="saw"), ValueError, "mode = 'saw': expected one of"),
        (lambda: cyclic(0, 1, gamma=0.9), ValueError, "gamma = 0.9: expected mode='exp_range'"),
        (lambda: one_cycle(1, 9, pct_start=1.1), ValueError, r"pct_start = 1.1: .* \[0, 1\]"),
        (
            lambda: one_cycle(1, 9, pct_start=0.6, three_phase=True),
            ValueError,
            "one_cycle: pct_start = 0.6: expected at most 0.5 with three_phase",
        ),
        (lambda: one_cycle_momentum(9, warmup=9), ValueError, "one_cycle_momentum: warmup = 9"),
        (
            lambda: warmup_stable_decay(1, 9, 10),
            ValueError,
            "warmup . decay = 10: expected at most",
        ),
        (lambda: warmup_stable_decay(1, 9, 5, shape="x"), ValueError, "shape = 'x': expected one"),
        (lambda: constant(1, warmup=5).cooldown(4, 2), ValueError, "start = 4: .* from 5 to inf"),
        (
            lambda: warmup_stable_decay(1, 100, 10).cooldown(91, 2),
            ValueError,
            "start = 91: expected an update on the plateau, from 0 to 90",
        ),
        (lambda: plateau(-1), ValueError, "plateau: lr = -1.0: expected a schedule or a number"),
        (lambda: plateau(1, factor=1), ValueError, r"factor = 1: expected .* in \(0, 1\)"),
        (lambda: plateau(1, mode="up"), ValueError, "mode = 'up': expected one of 'min', 'max'"),
        (lambda: greedy(1e-4), ValueError, "lr = 0.0001: expected a number from min_lr = 0.001"),
        (lambda: ademamix_beta3(1, 9), ValueError, r"beta3 = 1: expected .* in \(0, 1\)"),
        (lambda: growing(8, 2, 5, 4), ValueError, "limit = 4: expected at least start = 8"),
        (lambda: growing(8, 0.5, 5, 9), ValueError, "limit = 9: expected at most start = 8"),
        (
            lambda: growing(8.0, 2, 5, 9),
            TypeError,
            "start = 8.0: expected an integer of at least 1",
        ),
        (lambda: sequence((1, 2), (3, 4)), ValueError, "2 parts and milestones = .* one part more"),
        (lambda: sequence((1, 2, 3), (4, 3)), ValueError, "expected each larger than the last"),
        (lambda: sequence((1, math.sin), (4,)), TypeError, r"parts\[1\] = .* subclass of Schedule"),
        (lambda: sequence((1, "x"), (4,)), TypeError, r"parts\[1\] = 'x': expected a finite"),
        (
            lambda: sequence((1, plateau(1)), (4,)),
            TypeError,
            r"outside: plateau\(sequence\(...\)\)",
        ),
        (lambda: 2 * plateau(1), TypeError, r"put this one outside: plateau\(product\(...\)\)"),
        (lambda: plateau(plateau(1)), TypeError, "without state"),
        (lambda: shift(constant(1), 1.5), TypeError, "by = 1.5: expected an integer"),
        (
            lambda: clip(constant(1), 2, 1),
            ValueError,
            "clip: low = 2.0: expected at most high = 1.0",
        ),
        (lambda: product(()), ValueError, r"parts = \(\): expected 1 or more"),
        (lambda: exponential(1), TypeError, "gamma"),
        (lambda: constant(1, 5), TypeError, "positional"),
    ],
)
def test_wrong_arguments(make, error, message) -> None:
    with pytest.raises(error, match=message):
        make()


MODULES = [m.name for m in pkgutil.iter_modules(schedules.__path__, "steepest.schedules.")]


@pytest.mark.parametrize("module", ["steepest.schedules", *MODULES])
def test_examples(module) -> None:
    assert doctest.testmod(import_module(module)).failed == 0
