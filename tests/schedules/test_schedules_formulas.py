"""The newer schedules against their formulas, written another way, and what must hold for all."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from steepest.schedules import (
    ademamix_alpha,
    ademamix_beta3,
    constant,
    cosine,
    cosine_cycles,
    cosine_restarts,
    cyclic,
    ema_warmup,
    exponential,
    growing,
    interpolate,
    inverse_sqrt,
    inverse_time,
    linear,
    multi_step,
    noam,
    one_cycle,
    one_cycle_momentum,
    piecewise,
    polynomial,
    rex,
    rounded,
    step,
    warmup_stable_decay,
)


def half_wave(x: float) -> float:
    """(1 + cos πx) / 2 without cancellation."""
    return math.cos(math.pi * x / 2) ** 2


def lerp(a: float, b: float, c: float) -> float:
    """a where c = 1, b where c = 0."""
    return b + (a - b) * c


def triangle(t: int, up: int, down: int) -> float:
    u = t % (up + down)
    return min(u / up, (up + down - u) / down)


FORMULAS = [
    (inverse_sqrt(0.3, timescale=70), lambda t: 0.3 * (1 + t / 70) ** -0.5),
    (
        noam(2.0, width=64, warmup=50),
        lambda t: 2 * 64**-0.5 * min((t + 1) ** -0.5, (t + 1) * 50**-1.5),
    ),
    (inverse_time(0.3, 0.7, period=70), lambda t: 0.3 / (1 + 0.7 * t / 70)),
    (inverse_time(0.3, 0.7, period=70, staircase=True), lambda t: 0.3 / (1 + 0.7 * (t // 70))),
    (exponential(0.3, 0.5, period=70), lambda t: 0.3 * 2 ** (-t / 70)),
    (exponential(0.3, 0.5, period=70, staircase=True), lambda t: 0.3 * 0.5 ** (t // 70)),
    (exponential(0.3, 0.99, begin=100), lambda t: 0.3 * 0.99 ** max(t - 100, 0)),
    (exponential(0.3, 0.99, end=0.1), lambda t: max(0.3 * 0.99**t, 0.1)),
    (exponential(0.1, 1.01, end=0.3), lambda t: min(0.1 * 1.01**t, 0.3)),
    (multi_step(0.3, (30, 80), 0.5), lambda t: 0.3 * 0.5 ** ((t >= 30) + (t >= 80))),
    (multi_step(0.3, (0, 80, 80), 0.5), lambda t: 0.3 * 0.5 ** (1 + 2 * (t >= 80))),
    (piecewise((0.3, -0.1, 0.2), (30, 80)), lambda t: [0.3, -0.1, 0.2][(t >= 30) + (t >= 80)]),
    (
        interpolate((0.3, -0.1, 0.2), (30, 80)),
        lambda t: np.interp(t, [0, 30, 80], [0.3, -0.1, 0.2]),
    ),
    (
        interpolate((0.3, 0.1), (300,), shape="cosine"),
        lambda t: lerp(0.3, 0.1, half_wave(min(t / 300, 1))),
    ),
    (
        polynomial(0.3, 70, 0.05, 1.7, cycle=True),
        lambda t: lerp(0.3, 0.05, (1 - t / (70 * max(math.ceil(t / 70), 1))) ** 1.7),
    ),
    (
        cosine(0.3, 600, 0.05, exponent=1.3),
        lambda t: lerp(0.3, 0.05, half_wave(min(t / 600, 1)) ** 1.3),
    ),
    (
        cosine(0.3, 600, 0.05, cycles=2.25),
        lambda t: lerp(0.3, 0.05, half_wave(4.5 * min(t / 600, 1))),
    ),
    (
        cosine_cycles(0.3, 600, 0.05, cycles=7),
        lambda t: lerp(0.3, 0.05, half_wave(float(Fraction(7 * t, 600) % 1))) if t < 600 else 0.05,
    ),
    (
        rex(0.3, 600, 0.05),
        lambda t: lerp(0.3, 0.05, (1 - t / 600) / (0.5 + (1 - t / 600) / 2)) if t < 600 else 0.05,
    ),
    (
        rex(0.3, 600, 0.05, beta=0.9),
        lambda t: lerp(0.3, 0.05, (1 - t / 600) / (0.1 + 0.9 * (1 - t / 600)) if t < 600 else 0),
    ),
    (rex(0.3, 600, 0.05, beta=0), lambda t: lerp(0.3, 0.05, 1 - min(t / 600, 1))),
    (cyclic(0.1, 0.7, 70, 33), lambda t: lerp(0.7, 0.1, triangle(t, 70, 33))),
    (cyclic(0.9, 0.8, 70), lambda t: lerp(0.8, 0.9, triangle(t, 70, 70))),
    (
        cyclic(0.1, 0.7, 70, 33, mode="triangular2"),
        lambda t: 0.1 + 0.6 * triangle(t, 70, 33) / 2 ** (t // 103),
    ),
    (
        cyclic(0.1, 0.7, 70, 33, mode="exp_range", gamma=0.99),
        lambda t: 0.1 + 0.6 * triangle(t, 70, 33) * 0.99**t,
    ),
    (
        one_cycle(0.3, 601, pct_start=0.5, anneal_strategy="linear", div_factor=5),
        lambda t: np.interp(t, [0, 299.5, 600], [0.06, 0.3, 6e-6]),
    ),
    (
        one_cycle(0.3, 600, pct_start=0.25, three_phase=True, anneal_strategy="linear"),
        lambda t: np.interp(t, [0, 149, 298, 599], [0.012, 0.3, 0.012, 1.2e-6]),
    ),
    (
        one_cycle_momentum(600, 0.8, 0.9, pct_start=0.25, anneal_strategy="linear"),
        lambda t: np.interp(t, [0, 149, 599], [0.9, 0.8, 0.9]),
    ),
    (
        warmup_stable_decay(0.3, 600, 200, 0.05, shape="linear"),
        lambda t: np.interp(t, [0, 400, 600], [0.3, 0.3, 0.05]),
    ),
    (
        warmup_stable_decay(0.3, 600, 200, 0.05, shape="cosine"),
        lambda t: lerp(0.3, 0.05, half_wave(np.clip((t - 400) / 200, 0, 1))),
    ),
    (
        warmup_stable_decay(0.3, 600, 200, 0.05),
        lambda t: lerp(0.3, 0.05, 1 - np.clip((t - 400) / 200, 0, 1) ** 0.5),
    ),
    (
        warmup_stable_decay(0.3, 600, 200, 0.05, shape="1-square"),
        lambda t: lerp(0.3, 0.05, 1 - np.clip((t - 400) / 200, 0, 1) ** 2),
    ),
    (ademamix_alpha(5.0, 300), lambda t: min((t + 1) * 5 / 300, 5)),
    (
        ademamix_beta3(0.9999, 300, start=0.8),  # a half-life on a straight line
        lambda t: 0.5 ** (1 / np.interp(t + 1, [0, 300], np.log(0.5) / np.log([0.8, 0.9999]))),
    ),
    (ema_warmup(0.97), lambda t: min((1 + (t + 1)) / (10 + (t + 1)), 0.97)),
    (growing(8, 2, 50, 200), lambda t: min(8 * 2 ** (t // 50), 200)),
    (growing(200, 0.5, 50, 8), lambda t: max(math.floor(200 * 0.5 ** (t // 50) + 0.5), 8)),
    (rounded(linear(8, 600, end=64)), lambda t: math.floor(8 + 56 * min(t / 600, 1) + 0.5)),
    (rounded(linear(0.4, 600)), lambda t: 1),
]


@pytest.mark.parametrize(("schedule", "formula"), FORMULAS, ids=lambda x: getattr(x, "__name__", x))
def test_formula(schedule, formula) -> None:
    ours, expected = ([f(t) for t in range(1001)] for f in (schedule, formula))
    # Operations grouped differently: a few ulp of the largest value.
    top = 0.0 if isinstance(schedule, (growing, rounded)) else max(map(abs, expected))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-15 * top)


def test_noam_is_the_papers_for_every_update() -> None:
    lr = noam(1.0, width=512, warmup=4000)
    expected = [512**-0.5 * min(n**-0.5, n * 4000**-1.5) for n in range(1, 10_001)]
    # Two roundings of a power against one of a root.
    np.testing.assert_allclose([lr(t) for t in range(10_000)], expected, rtol=6e-16)
    assert max(range(10_000), key=lr) == 3999
    assert lr(3999) == pytest.approx(1 / math.sqrt(512 * 4000), rel=3e-16)


@pytest.mark.parametrize("first", [0, 1, 5])
@pytest.mark.parametrize("shape", ["linear", "cosine", "1-sqrt", "1-square"])
@pytest.mark.parametrize("trunk", [constant(0.3, warmup=5, warmup_shape="cosine"),
                                   warmup_stable_decay(0.3, 900, 100, warmup=5)])  # fmt: skip
def test_a_branch_has_the_trunks_values_before_it(trunk, shape, first) -> None:
    start = 500 + first
    branch = trunk.cooldown(start, 100, end=0.01, shape=shape)
    assert [branch(t) for t in range(start + 1)] == [trunk(t) for t in range(start + 1)]
    falling = [branch(t) for t in range(start, start + 101)]
    assert falling == sorted(falling, reverse=True)
    assert len(set(falling)) == 101
    assert {branch(t) for t in (start + 100, start + 101, 10**9)} == {0.01}
    assert branch.steps == start + 100


def test_a_branch_at_either_end_of_the_plateau() -> None:
    trunk = warmup_stable_decay(0.3, 900, 100, warmup=5)
    assert trunk.cooldown(800, 100) == trunk
    early = trunk.cooldown(5, 100)
    assert [early(t) for t in (0, 4, 5)] == [trunk(t) for t in (0, 4, 5)]
    assert early(6) < 0.3


@pytest.mark.parametrize("beta3", [0.95, 0.99, 0.999, 0.9995, 0.9999, 0.99999])
def test_beta3_is_exact_at_its_end(beta3) -> None:
    schedule = ademamix_beta3(beta3, 300, start=0.7)
    assert {schedule(t) for t in (299, 300, 10**9)} == {beta3}
    assert schedule(298) < beta3


def test_one_cycle_is_exact_at_its_ends() -> None:
    lr, momentum = one_cycle(0.7, 1000, pct_start=0.25), one_cycle_momentum(1000, pct_start=0.25)
    assert [lr(t) for t in (0, 249, 999, 10**9)] == [0.7 / 25, 0.7, 0.7 / 25 / 1e4, 0.7 / 25 / 1e4]
    assert [momentum(t) for t in (0, 249, 999, 10**9)] == [0.95, 0.85, 0.95, 0.95]


@pytest.mark.parametrize("make", [one_cycle, lambda lr, n, **k: one_cycle_momentum(n, **k)])
@pytest.mark.parametrize("phases", [False, True])
@pytest.mark.parametrize("pct_start", [0.0, 0.1, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_one_cycle_of_few_steps(make, phases, pct_start, steps) -> None:
    """PyTorch divides by 0 where a phase has no length."""
    if not (phases and pct_start > 0.5):
        schedule = make(0.7, steps, pct_start=pct_start, three_phase=phases)
        assert all(0 < schedule(t) <= 0.95 for t in range(steps + 3))


def test_restarts_are_exact() -> None:
    """At the first update of each run the value is exactly the first, however far away."""
    assert {
        cosine_cycles(0.3, 840, cycles=k)(840 * j // k) for k in (2, 3, 7) for j in range(k)
    } == {0.3}
    lr = cosine_restarts(0.3, 7, mult=2)
    starts = [7 * (2**i - 1) for i in range(50)]
    assert {lr(t) for t in starts} == {0.3}
    assert max(lr(t - 1) for t in starts[1:]) < 0.3 / 10
    assert {cosine_restarts(0.3, 7)(7 * 10**k) for k in range(18)} == {0.3}
    assert {cyclic(0.1, 0.7, 3, 4)(7 * 10**k) for k in range(18)} == {0.1}


levels = st.floats(0, 1e300)
lengths = st.integers(1, 10**9)


@given(levels, levels, lengths, st.integers(0, 2 * 10**9), st.floats(0.01, 100), st.floats(0, 0.99))
@example(0.5, 2.0**52 + 2.0, 172140925, 1, 1.0, 0.0)
def test_falls_stay_between_their_ends(lr, end, steps, t, power, beta) -> None:
    for schedule in (
        linear(lr, steps, end),
        polynomial(lr, steps, end, power),
        cosine(lr, steps, end, exponent=power),
        cosine(lr, steps, end, cycles=power),
        cosine_cycles(lr, steps, end, cycles=7),
        rex(lr, steps, end, beta=beta),
        cosine_restarts(lr, steps, 3, end),
        interpolate((lr, end), (steps,), shape="cosine"),
        interpolate((lr, end), (steps,)),
        *(
            warmup_stable_decay(lr, 2 * steps, steps, end, shape=shape)
            for shape in ("linear", "cosine", "1-sqrt", "1-square")
        ),
    ):
        # lr c + end (1 - c) is rounded three times.
        assert min(lr, end) * (1 - 4e-16) <= schedule(t) <= max(lr, end) * (1 + 4e-16)
        assert schedule(0) == lr


@given(levels, st.floats(1e-300, 1e300), lengths, st.integers(0, 10**18))
def test_decays_never_overflow(lr, x, period, t) -> None:
    gamma = x if x < 1 else 1 / x
    for schedule in (
        inverse_sqrt(lr, timescale=x),
        inverse_time(lr, x, period=period),
        exponential(lr, gamma, period=period),
        step(lr, period, gamma),
        multi_step(lr, (1, period, 2 * period), gamma),
        cosine_restarts(lr, period, 2, gamma=gamma),
        noam(lr, 64, warmup=period),
    ):
        assert 0 <= schedule(t) <= lr
