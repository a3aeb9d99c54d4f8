"""Schedules made of schedules, and their operators."""

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
    [lambda a, b: a + b, lambda a, b: a - b, lambda a, b: a * b],
    ids=["+", "-", "*"],
)
def test_operators_refuse_what_is_no_number(operator, other) -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        operator(S, other)
    with pytest.raises(TypeError, match="unsupported operand"):
        operator(other, S)


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
