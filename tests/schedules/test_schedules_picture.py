"""Pictures of schedules."""

import sys

import pytest

from steepest.extras import MissingExtra
from steepest.schedules import (
    constant,
    cosine,
    growing,
    multi_step,
    piecewise,
    plateau,
    sequence,
    shift,
    step,
)
from steepest.schedules.picture import horizon


def curve(figure):
    (ax,) = figure.axes
    (line,) = ax.lines
    return ax, list(line.get_xdata()), list(line.get_ydata())


@pytest.mark.parametrize("steps", [1, 5, 300])
def test_the_curve_is_the_schedule(steps) -> None:
    lr = cosine(0.3, 100, warmup=10)
    ax, x, y = curve(lr.plot(steps=steps))
    assert x == list(range(steps))
    assert y == [lr(t) for t in x]
    assert ax.get_title() == repr(lr)


def test_a_long_curve_has_its_first_and_last_point() -> None:
    lr = step(0.3, 100_000)
    _, x, y = curve(lr.plot(steps=1_000_001))
    assert len(x) <= 2001
    assert (x[0], x[-1]) == (0, 1_000_000)
    assert y == [lr(t) for t in x]


def test_the_file_is_a_picture(tmp_path) -> None:
    figure = growing(32, 2, 100, 256).plot(tmp_path / "size.png")
    assert (tmp_path / "size.png").read_bytes().startswith(b"\x89PNG")
    assert curve(figure)[2][-1] == 256


@pytest.mark.parametrize(
    ("schedule", "length"),
    [
        (cosine(0.3, 100, warmup=10), 100),
        (constant(0.3), 1000),
        (constant(0.3, warmup=500), 1500),
        (step(0.3, 100), 600),
        (multi_step(0.3, (100, 400)), 502),
        (piecewise((1, 2), (400,)), 502),
        (sequence((constant(1, warmup=500), cosine(1, 9500)), (500,)), 10_000),
        (sequence((cosine(1, 9500), 0.1), (9500,)), 11_877),
        (2 * cosine(1, 9500), 9500),
        (shift(cosine(1, 9500), 5), 9500),
        (plateau(cosine(1, 9500)), 9500),
        (plateau(1.0), 1000),
    ],
    ids=repr,
)
def test_how_much_is_shown(schedule, length) -> None:
    assert horizon(schedule) == length
    assert max(curve(schedule.plot())[1]) == length - 1


@pytest.mark.parametrize("steps", [0, -3])
def test_nothing_to_draw(steps) -> None:
    with pytest.raises(ValueError, match=f"steps = {steps}: expected 1 or more updates"):
        constant(0.1).plot(steps=steps)


def test_without_matplotlib(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="matplotlib") as caught:
        constant(0.1).plot()
    assert isinstance(caught.value, MissingExtra)
