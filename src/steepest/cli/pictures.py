"""Pictures of many runs at once. They need matplotlib, and no display."""

import math
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from steepest.cli.errors import UsageError
from steepest.extras import require

# Okabe and Ito's colours, told apart by the colour-blind too; yellow is left out, black is last.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
DASHES: tuple[Any, ...] = (
    "solid",
    (0, (5, 1.5)),
    (0, (1, 1.2)),
    (0, (6, 1.5, 1, 1.5)),
    (0, (3, 3)),
    (0, (8, 1.5, 1, 1.5, 1, 1.5)),
)
MARKERS = ("", "o", "s", "^", "v", "D")

# What ends a curve that was not trained to its end.
CROSS: dict[str, Any] = {"lw": 0, "marker": "x", "mew": 2}
RING: dict[str, Any] = {"lw": 0, "marker": "o", "mew": 1.5, "mfc": "white"}

# The height of a line of text at the end of a curve, in inches.
LINE = 0.155

# A curve has at most so many marks.
MOST_MARKS = 10

# More curves than this have their names at their ends, in place of a legend of styles.
MOST_IN_LEGEND = 8

# Bands of more curves than this hide each other.
MOST_BANDS = 6

# Losses that are so many times apart are drawn on a log axis.
WIDE = 4.0

# Losses above so many times that of the untrained network are cut off.
HEADROOM = 3.0


@dataclass(frozen=True)
class Curve:
    """The validation loss of a combination, epoch by epoch; one list per seed."""

    optimizer: str
    lr: float
    runs: Sequence[Sequence[float]]
    untrained: float
    diverged: bool
    interrupted: bool = False

    @property
    def mean(self) -> list[float]:
        """The mean over the seeds, as far as all of them go."""
        return [fmean(values) for values in zip(*self.runs, strict=False)]

    @property
    def range(self) -> tuple[list[float], list[float]]:
        """The lowest and the highest of the seeds."""
        columns = list(zip(*self.runs, strict=False))
        return [min(values) for values in columns], [max(values) for values in columns]

    @property
    def label(self) -> str:
        """Its name in a line."""
        name = self.optimizer if len(self.optimizer) <= 40 else f"{self.optimizer[:39]}…"
        return f"{name}, lr {self.lr:g}"


class Styles:
    """How each curve looks: a colour per optimizer, a line style per learning rate.

    More optimizers than colours have other line styles where each has one rate, else markers.
    """

    def __init__(self, curves: Sequence[Curve]) -> None:
        self.optimizers = list(dict.fromkeys(curve.optimizer for curve in curves))
        # If each optimizer has one learning rate, it is written next to the name.
        several = len(self.optimizers) < len(curves)
        self.lrs = sorted({curve.lr for curve in curves}) if several else []

    def of(self, curve: Curve) -> dict[str, Any]:
        """Colour, dashes and marker of a curve."""
        lr = self.lrs.index(curve.lr) if self.lrs else 0
        return self.look(self.optimizers.index(curve.optimizer), lr)

    def look(self, optimizer: int, lr: int) -> dict[str, Any]:
        """Those of the optimizer and the learning rate with these numbers."""
        round_of_colors, color = divmod(optimizer, len(COLORS))
        rounds = math.ceil(len(self.optimizers) / len(COLORS))
        if self.lrs:
            round_of_dashes, dash = divmod(lr, len(DASHES))
            marker = round_of_dashes * rounds + round_of_colors
        else:
            marker, dash = divmod(round_of_colors, len(DASHES))
        return {
            "color": COLORS[color],
            "linestyle": DASHES[dash],
            "marker": MARKERS[marker % len(MARKERS)],
        }


def ready(purpose: str, extra: str = "train") -> None:
    """Imports matplotlib, before anything is trained. Raises MissingExtra or UsageError."""
    try:
        require("matplotlib", extra, purpose)
    except ValueError as error:
        backend = os.environ.get("MPLBACKEND")
        if backend is None:
            raise
        raise UsageError(
            f"MPLBACKEND={backend}: {purpose} cannot import matplotlib ({error}); unset it, since "
            "pictures in files need none"
        ) from None


def compare(curves: Sequence[Curve], name: str, note: str = "") -> Any:
    """Validation loss by epoch, each curve in its style, with a note in the title.

    The line is the mean over the seeds; where there are few curves, the band around it goes from
    the lowest to the highest. A cross ends a curve that diverged, a ring one that was interrupted.
    Returns the matplotlib Figure.
    """
    crowded = len(curves) > MOST_IN_LEGEND
    figure = _figure((9.6, max(5.4, 1.4 + LINE * len(curves)) if crowded else 5.4))
    ax = figure.subplots()
    styles = Styles(curves)
    seeds = max(len(curve.runs) for curve in curves)
    limit = HEADROOM * max(curve.untrained for curve in curves)
    for curve in curves:
        style = styles.of(curve)
        mean = curve.mean
        epochs = range(1, len(mean) + 1)
        if not mean:
            continue
        marker = {"marker": "o"} if len(mean) == 1 else {}
        # By number: by distance, there are places without end on a curve far off the picture.
        every = -(-len(mean) // MOST_MARKS)
        ax.plot(epochs, mean, lw=1.8, markersize=4, markevery=every, **(style | marker))
        if seeds > 1 and len(curves) <= MOST_BANDS:
            ax.fill_between(epochs, *curve.range, color=style["color"], alpha=0.12, lw=0)
        for ended, mark in ((curve.diverged, CROSS), (curve.interrupted, RING)):
            if ended:
                end = min(mean[-1], limit)
                ax.plot(epochs[-1], end, color=style["color"], ms=9, clip_on=False, **mark)
    _scale(ax, [value for curve in curves for value in curve.mean], limit)
    title = f"{name}: validation loss" + f" ({note})" * bool(note)
    ax.set_title(title, fontsize=13, loc="left", pad=12)
    ax.set_xlabel("epoch")
    ax.set_ylabel(f"validation loss, mean of {seeds} seeds" if seeds > 1 else "validation loss")
    ax.margins(x=0.02)
    _finish(ax)
    if crowded:
        _names_at_ends(figure, ax, [curve for curve in curves if curve.mean], styles, limit)
    _legends(figure, curves, styles, crowded)
    return figure


def _names_at_ends(
    figure: Any, ax: Any, curves: Sequence[Curve], styles: Styles, limit: float
) -> None:
    """The name of each curve at the right, as near to its end as the other names leave room."""
    place = ax.transData + ax.transAxes.inverted()
    ends = [(len(curve.mean), min(curve.mean[-1], limit)) for curve in curves]
    heights = [min(max(float(place.transform(end)[1]), 0.0), 1.0) for end in ends]
    room = LINE / (figure.get_size_inches()[1] - 1.2)
    stroke = {"arrowstyle": "-", "lw": 0.6, "shrinkA": 1, "shrinkB": 2, "relpos": (0.0, 0.5)}
    for curve, end, y in zip(curves, ends, apart(heights, room), strict=True):
        color = styles.of(curve)["color"]
        ax.annotate(
            curve.label,
            end,
            xytext=(1.04, y),
            textcoords="axes fraction",
            va="center",
            fontsize=8.5,
            color=color,
            annotation_clip=False,
            arrowprops=stroke | {"color": color},
        )


def apart(heights: Sequence[float], room: float) -> list[float]:
    """Heights with at least this room between two, in the same order, as near as they can be.

    They may leave 0 to 1 only where there are too many.

    >>> apart([0.5, 0.5, 0.9], 0.25)
    [0.375, 0.625, 0.9]
    """
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    # Of the heights less the room below each, neighbours out of order take their common mean.
    pools: list[list[float]] = []
    for n, i in enumerate(order):
        pools.append([heights[i] - n * room])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    means = [fmean(pool) for pool in pools for _ in pool]
    highest = 1.0 - (len(heights) - 1) * room
    found = [0.0] * len(heights)
    for n, i in enumerate(order):
        found[i] = max(min(means[n], highest), min(0.0, highest / 2)) + n * room
    return found


def _scale(ax: Any, values: Sequence[float], limit: float) -> None:
    """A log axis for losses of different sizes, without room for diverging curves."""
    seen = [value for value in values if value <= limit]
    low, high = (min(seen), max(seen)) if seen else (limit / 10, limit)
    log = low > 0 and high > WIDE * low
    if log:
        ax.set_yscale("log")
        _plain_log(ax.yaxis, low, high)
    if len(seen) < len(values):
        ax.set_ylim(low / 1.15 if log else 0, limit)


def _plain_log(axis: Any, low: float, high: float) -> None:
    """Numbers such as 0.05 on a log axis, and enough of them; such as 5e-5 where there are any so
    far from 1."""
    ticker = require("matplotlib.ticker", "train", "the picture")
    decades = math.log10(high / low)
    subs = (1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)
    axis.set_major_locator(ticker.LogLocator(subs=subs))
    far = low < 1e-4 or high >= 1e6
    axis.set_major_formatter(
        ticker.FuncFormatter(lambda value, _: _powers(value) if far else f"{value:g}")
    )
    axis.set_minor_formatter(ticker.NullFormatter())


def _powers(value: float) -> str:
    """A number by its power of ten.

    >>> _powers(5e-05), _powers(1.0), _powers(2e6)
    ('5e-5', '1e0', '2e6')
    """
    digits, power = f"{value:e}".split("e")
    return f"{float(digits):g}e{int(power)}"


def readable(figure: Any) -> Any:
    """The picture of a search, easier to read: losses on a log scale, few and plain numbers at the
    axes, the legend below. Returns the figure."""
    ticker = require("matplotlib.ticker", "train", "the picture")
    losses = [float(y) for dots in figure.axes[0].collections for _, y in dots.get_offsets()]
    low, high = min(losses), max(losses)
    for ax in figure.axes:
        if low > 0 and high > WIDE * low:
            ax.set_yscale("log")
            ax.set_ylim(low / 1.3, high * 1.3)
        for axis, (left, right) in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
            if axis.get_scale() == "log":
                _plain_log(axis, left, right)
            elif isinstance(axis.get_major_locator(), ticker.AutoLocator):
                axis.set_major_locator(ticker.MaxNLocator(5))
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.axes[0].get_legend().remove()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    return figure


def _legends(figure: Any, curves: Sequence[Curve], styles: Styles, crowded: bool) -> None:
    """Outside, at the right: colours, line styles, and what left no whole curve."""
    line = require("matplotlib.lines", "train", "the picture").Line2D
    gap = line([], [], lw=0, label=" ")
    handles = [] if crowded else _styles(curves, styles, line, gap)
    for mark, word, lost in (
        (CROSS, "diverged", [curve for curve in curves if curve.diverged]),
        (RING, "interrupted", [curve for curve in curves if curve.interrupted]),
    ):
        if lost:
            handles += [gap, line([], [], ms=8, color="0.25", label=word, **mark)]
        for curve in lost:
            name = _wrapped(f"{curve.optimizer}, lr {curve.lr:g}")
            handles.append(line([], [], color=styles.of(curve)["color"], label=name, **mark))
    if handles:
        figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9.5)


def _styles(curves: Sequence[Curve], styles: Styles, line: Any, gap: Any) -> list[Any]:
    """What the legend says of colours and line styles."""
    names = styles.optimizers if styles.lrs else [f"{x.optimizer}, lr {x.lr:g}" for x in curves]
    handles = [
        line([], [], lw=2.5, label=_wrapped(name), color=styles.look(i, 0)["color"])
        for i, name in enumerate(names)
    ]
    if styles.lrs:
        handles.append(gap)
    for i, lr in enumerate(styles.lrs):
        plain = styles.look(0, i) | {"color": "0.25", "lw": 1.8, "markersize": 4}
        handles.append(line([], [], label=f"lr {lr:g}", **plain))
    return handles


def _wrapped(text: str) -> str:
    """In lines that leave room for the curves."""
    return "\n  ".join(textwrap.wrap(text, 24))


def _figure(size: tuple[float, float]) -> Any:
    figure = require("matplotlib.figure", "train", "the picture").Figure(
        figsize=size, layout="constrained"
    )
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    return figure


def _finish(ax: Any) -> None:
    ticker = require("matplotlib.ticker", "train", "the picture")
    ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
