"""Schedules made of schedules, and their operators."""

import pickle

import numpy as np
import pytest

from steepest.schedules import (
    clip,
    constant,
    cosine,
    exponential,
    linear,
    maximum,
    minimum,
    piecewise,
    product,
    sequence,
    shift,
    step,
    total,
)

S, T = exponential(0.3, 0.97), piecewise((0.2, -0.1), (50,))


@pytest.mark.parametrize(
    ("made", "value"),
    [
        (S * T, lambda t: S(t) * T(t)),
        (2 * S, lambda t: 2 * S(t)),
        (S * 2, lambda t: S(t) * 2),
        (S + T, lambda t: S(t) + T(t)),
        (S + 1, lambda t: S(t) + 1),
        (1 + S, lambda t: 1 + S(t)),
        (S - T, lambda t: S(t) - T(t)),
        (S - 1, lambda t: S(t) - 1),
        (1 - S, lambda t: 1 - S(t)),
        (-S, lambda t: -S(t)),
        (S / 2, lambda t: S(t) / 2),
        (S / np.float32(4), lambda t: S(t) / 4),
        (2 * (3 * (0.7 * S)), lambda t: 2 * (3 * (0.7 * S(t)))),
        ((0.3 - S) * 3 + 0.1, lambda t: (0.3 - S(t)) * 3 + 0.1),
        (S + S + S, lambda t: S(t) + S(t) + S(t)),
        (np.float64(2) * S, lambda t: 2 * S(t)),
        (np.float32(2) - S, lambda t: 2 - S(t)),
        (np.int64(2) + S, lambda t: 2 + S(t)),
        (sum([S, T, S]), lambda t: S(t) + T(t) + S(t)),
        (minimum((S, T, 0.1)), lambda t: min(S(t), T(t), 0.1)),
        (maximum((S, T, 0.1)), lambda t: max(S(t), T(t), 0.1)),
        (clip(S, 0.1, 0.2), lambda t: np.clip(S(t), 0.1, 0.2)),
        (clip(S, T, 0.2), lambda t: min(max(S(t), T(t)), 0.2)),
        (shift(S, 7), lambda t: S(max(t - 7, 0))),
        (shift(S, -7), lambda t: S(t + 7)),
        (
            sequence((S, T, 0.5), (30, 90)),
            lambda t: S(t) if t < 30 else 0.5 if t >= 90 else T(t - 30),
        ),
        (product((S, 2, T)), lambda t: S(t) * 2 * T(t)),
        (total((S, 2, T)), lambda t: S(t) + 2 + T(t)),
    ],
    ids=lambda x: str(getattr(x, "__name__", repr(x))),
)
def test_value(made, value) -> None:
    assert [made(t) for t in range(200)] == [value(t) for t in range(200)]


@pytest.mark.parametrize("other", [None, True, 1j, {}])
@pytest.mark.parametrize(
    "operator",
    [lambda a, b: a + b, lambda a, b: a - b, lambda a, b: a * b, lambda a, b: a / b],
    ids=["+", "-", "*", "/"],
)
def test_operators_refuse_what_is_no_number(operator, other) -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        operator(S, other)
    with pytest.raises(TypeError, match="unsupported operand"):
        operator(other, S)


def test_no_schedule_is_divided_by_nor_is_a_number() -> None:
    for wrong in (lambda: 1 / S, lambda: S / S):
        with pytest.raises(TypeError, match="unsupported operand"):
            wrong()
    with pytest.raises(ZeroDivisionError):
        S / 0
    with pytest.raises(TypeError, match="is a schedule, whose value depends on the number of"):
        float(S)


@pytest.mark.parametrize(
    ("work", "number"),
    [
        (lambda x, s: x * 0.99, lambda a, b: (a * 0.99, b * 0.99)),
        (lambda x, s: -1.001 * x, lambda a, b: (a * -1.001, b * -1.001)),
        (lambda x, s: x + 0.01, lambda a, b: (a, b + 0.01)),
        (lambda x, s: 0.5 - x, lambda a, b: (-a, 0.5 - b)),
        (lambda x, s: 0.95 * (x - 0.3) + 0.3, lambda a, b: (a * 0.95, 0.95 * (b - 0.3) + 0.3)),
        (lambda x, s: x * 0.9 + s * 0.1, lambda a, b: (a * 0.9 + 0.1, b * 0.9)),
        (lambda x, s: x + (s - 0.25) * 0.01, lambda a, b: (a + 0.01, b - 0.0025)),
    ],
)
@pytest.mark.parametrize("inside", [S, product((0.5, S), warmup=9), total((S, T)), S * T])
def test_a_schedule_stays_as_small_as_it_was_however_often_it_is_changed(
    work, number, inside
) -> None:
    """s = 0.99 s at every step, as PyTorch's schedulers do: a · s + b, and the right a and b."""
    schedule, a, b = inside, 1.0, 0.0
    longest = 0
    for _ in range(400):
        schedule = work(schedule, inside)
        a, b = number(a, b)
        longest = max(longest, len(repr(schedule)))
    assert longest < 500
    for t in (0, 7, 60):
        # 400 roundings of a and of b.
        scale = 400 * np.finfo(float).eps * (abs(a * inside(t)) + abs(b) + 1)
        assert abs(schedule(t) - (a * inside(t) + b)) <= scale
    assert pickle.loads(pickle.dumps(schedule)) == schedule


def test_what_comes_to_nothing_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="= inf: expected a finite number"):
        S * 1e200 * 1e200 * 1e200 * 1e200 * 1e200


def test_a_number_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match=r"product: parts\[1\] = inf: expected a finite number"):
        S * float("inf")


def test_parts_of_a_sequence_have_warm_ups_of_their_own() -> None:
    restart = sequence((cosine(0.3, 100, warmup=10), cosine(0.2, 50, warmup=5)), (100,), warmup=3)
    assert restart(3 + 9) == 0.3
    assert restart(3 + 100) == 0.2 * (1 / 5)
    assert restart(3 + 104) == 0.2
    assert restart(2) == 0.3 * (1 / 10)


def test_nesting() -> None:
    inner = sequence((linear(0, 10, end=1.0), 1.0), (10,))
    outer = shift(clip(0.3 * inner * step(1.0, 50), 0.001, 0.2) + 0.1, 5)
    assert [outer(t) for t in (0, 5, 10, 15, 65)] == [
        0.1 + 0.001,
        0.1 + 0.001,
        0.1 + 0.15,
        0.1 + 0.2,
        0.1 + 0.3 * 0.1,
    ]
    assert eval(repr(outer)) == outer
    assert constant(1.0) * outer != outer
