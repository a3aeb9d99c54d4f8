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

    @property
    def mean(self) -> list[float]:
        """The mean over the seeds, as far as all of them go."""
        return [fmean(values) for values in zip(*self.runs, strict=False)]

    @property
    def range(self) -> tuple[list[float], list[float]]:
        """The lowest and the highest of the seeds."""
        columns = list(zip(*self.runs, strict=False))
        return [min(values) for values in columns], [max(values) for values in columns]


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


def compare(curves: Sequence[Curve], name: str) -> Any:
    """Validation loss by epoch: a colour per optimizer, a line style per learning rate.

    The line is the mean over the seeds; where there are few curves, the band around it goes from
    the lowest to the highest. A cross ends a curve that diverged. Returns the matplotlib Figure.
    """
    figure = _figure((9.6, 5.4))
    ax = figure.subplots()
    optimizers = list(dict.fromkeys(curve.optimizer for curve in curves))
    # Where each optimizer has one learning rate, that is said beside its name.
    lrs = [] if len(optimizers) == len(curves) else sorted({curve.lr for curve in curves})
    seeds = max(len(curve.runs) for curve in curves)
    limit = HEADROOM * max(curve.untrained for curve in curves)
    for curve in curves:
        style = _color(optimizers.index(curve.optimizer))
        style |= _dash(lrs.index(curve.lr) if lrs else 0)
        mean = curve.mean
        epochs = range(1, len(mean) + 1)
        if not mean:
            continue
        marker = {"marker": "o"} if len(mean) == 1 else {}
        ax.plot(epochs, mean, lw=1.8, markersize=4, markevery=0.1, **(style | marker))
        if seeds > 1 and len(curves) <= MOST_BANDS:
            ax.fill_between(epochs, *curve.range, color=style["color"], alpha=0.12, lw=0)
        if curve.diverged:
            end = min(mean[-1], limit)
            ax.plot(epochs[-1], end, "x", color=style["color"], ms=9, mew=2, clip_on=False)
    _scale(ax, [value for curve in curves for value in curve.mean], limit)
    ax.set_title(f"{name}: validation loss", fontsize=13, loc="left", pad=12)
    ax.set_xlabel("epoch")
    ax.set_ylabel(f"validation loss, mean of {seeds} seeds" if seeds > 1 else "validation loss")
    ax.margins(x=0.02)
    _finish(ax)
    _legends(figure, ax, curves, optimizers, lrs)
    return figure


def _scale(ax: Any, values: Sequence[float], limit: float) -> None:
    """A log axis for losses far apart, and no room for what flies off."""
    seen = [value for value in values if value <= limit]
    low, high = (min(seen), max(seen)) if seen else (limit / 10, limit)
    log = low > 0 and high > WIDE * low
    if log:
        ax.set_yscale("log")
        _plain_log(ax.yaxis, low, high)
    if len(seen) < len(values):
        ax.set_ylim(low / 1.15 if log else 0, limit)


def _plain_log(axis: Any, low: float, high: float) -> None:
    """Numbers such as 0.05 on a log axis, and enough of them."""
    ticker = require("matplotlib.ticker", "train", "the picture")
    decades = math.log10(high / low)
    subs = (1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)
    axis.set_major_locator(ticker.LogLocator(subs=subs))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())


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


def _legends(
    figure: Any, ax: Any, curves: Sequence[Curve], optimizers: Sequence[str], lrs: Sequence[float]
) -> None:
    """Outside, at the right: colours, line styles, and what left no whole curve."""
    line = require("matplotlib.lines", "train", "the picture").Line2D
    pairs = {curve.optimizer: curve.lr for curve in curves}
    names = optimizers if lrs else [f"{x}, lr {pairs[x]:g}" for x in optimizers]
    gap = line([], [], lw=0, label=" ")
    handles = [
        line([], [], lw=2.5, label=_wrapped(name), **_color(i)) for i, name in enumerate(names)
    ]
    if lrs:
        handles.append(gap)
        plain = {"color": "0.25", "lw": 1.8, "markersize": 4}
        handles += [
            line([], [], label=f"lr {lr:g}", **plain, **_dash(i)) for i, lr in enumerate(lrs)
        ]
    lost = [curve for curve in curves if curve.diverged]
    if lost:
        cross = {"lw": 0, "marker": "x"}
        handles += [gap, line([], [], ms=8, mew=2, color="0.25", label="diverged", **cross)]
    for curve in lost:
        name = _wrapped(f"{curve.optimizer}, lr {curve.lr:g}")
        handles.append(
            line([], [], label=name, **_color(optimizers.index(curve.optimizer)), **cross)
        )
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9.5)


def _wrapped(text: str) -> str:
    """In lines that leave room for the curves."""
    return "\n  ".join(textwrap.wrap(text, 24))


def _color(i: int) -> dict[str, Any]:
    return {"color": COLORS[i % len(COLORS)]}


def _dash(i: int) -> dict[str, Any]:
    """The style of the i-th learning rate: dashes first, then markers besides."""
    marker = MARKERS[(i // len(DASHES)) % len(MARKERS)]
    return {"linestyle": DASHES[i % len(DASHES)], "marker": marker}


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
