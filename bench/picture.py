"""The results as a picture: every rival's time as a multiple of steepest's."""

from collections.abc import Iterable, Sequence
from typing import Any

from steepest.extras import require

# Colours that the colour-blind can tell apart (Okabe and Ito), and marks that need no colour.
_STYLES = {
    "stream": ("#999999", "|", "no-math stream of the same bytes"),
    "torch fused": ("#D55E00", "o", "torch fused"),
    "torch foreach": ("#0072B2", "s", "torch foreach"),
    "torch single": ("#56B4E9", "D", "torch single"),
    "steepest, constant": ("#E69F00", "<", "steepest at a constant rate"),
    "steepest.torch": ("#000000", "x", "steepest.torch"),
    "DeepSpeed": ("#CC79A7", "v", "DeepSpeedCPUAdam"),
    "NumPy": ("#009E73", "^", "NumPy reference"),
}


_BETWEEN = 3  # rows' heights that a panel takes besides its rows


def draw(results: dict[str, Any]) -> Any:
    """A matplotlib Figure: AdamW on every case and the rules with cases of their own at the left,
    every rule on one large tensor at the right.

    Raises MissingExtra, an ImportError, without matplotlib.
    """
    matplotlib = require("matplotlib.figure", "bench", "drawing the results")
    entries = results["results"]
    alone = [e for e in entries if e["clip"] is None]
    columns = [
        [
            ("AdamW", [(_case(e), e) for e in entries if e["rule"] == "adamw"]),
            ("Rules by layers, ResNet-50", _titled(e for e in alone if e["case"] == "layers")),
            ("Rules for matrices, one matrix", _titled(e for e in alone if e["case"] == "matrix")),
        ],
        [
            (
                "Every rule but those for matrices, one large tensor",
                _titled(e for e in alone if e["case"] == "large"),
            )
        ],
    ]
    columns = [[panel for panel in column if panel[1]] for column in columns]
    columns = [column for column in columns if column] or [[]]
    tall = [sum(len(rows) + _BETWEEN for _, rows in column) for column in columns]
    figure = matplotlib.Figure(
        figsize=(6.2 * len(columns), 1.2 + 0.3 * max(tall)), layout="constrained"
    )
    axes = []
    for cell, column, height in zip(
        figure.add_gridspec(1, len(columns)), columns, tall, strict=True
    ):
        heights = [len(rows) + _BETWEEN for _, rows in column]
        rest = [max(tall) - height] if max(tall) > height else []
        grid = cell.subgridspec(
            max(1, len(heights + rest)), 1, height_ratios=(heights + rest) or [1]
        )
        for place, (title, rows) in zip(grid, column, strict=False):
            axes.append(figure.add_subplot(place))
            _panel(axes[-1], title, rows)
    handles: dict[str, Any] = {}
    for ax in axes:
        handles |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    labels = [label for _, _, label in _STYLES.values() if label in handles]
    if labels:
        figure.legend(
            [handles[label] for label in labels], labels,
            loc="outside lower center", ncols=4, frameon=False,
        )  # fmt: skip
    figure.suptitle(
        "Time of one step as a multiple of steepest's: right of 1, steepest is faster",
        fontweight="bold",
    )
    return figure


def _titled(entries: Iterable[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    return [(entry["title"], entry) for entry in entries]


def _case(entry: dict[str, Any]) -> str:
    shown = str(entry["case_title"]).partition(": ")[0]
    shown += ", clipped" if entry["clip"] is not None else ""
    return shown + (f", {entry['schedule']}" if entry["schedule"] else "")


def _panel(ax: Any, title: str, rows: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """One line per workload; a mark at the median and a bar from quartile to quartile."""
    ticker = require("matplotlib.ticker", "bench", "drawing the results")
    for name, (colour, mark, label) in _STYLES.items():
        points = [
            (entry["rivals"][name]["ratio"], y)
            for y, (_, entry) in enumerate(rows)
            if name in entry["rivals"]
        ]
        if not points:
            continue
        middle = [ratio["median"] for ratio, _ in points]
        low = [ratio["median"] - ratio["low"] for ratio, _ in points]
        high = [ratio["high"] - ratio["median"] for ratio, _ in points]
        ax.errorbar(
            middle, [y for _, y in points], xerr=[low, high], label=label, color=colour,
            linestyle="none", marker=mark, markersize=13 if mark == "|" else 6.5,
            markeredgewidth=2 if mark in "|x" else 0.6,
            markeredgecolor=colour if mark in "|x" else "white", elinewidth=1.5,
        )  # fmt: skip
    ax.axvline(1.0, color="black", linewidth=1.2, zorder=1)
    ax.set_xscale("log")
    left, right = ax.get_xlim()
    ax.set_xlim(min(left, 0.3), max(right, 3.3))
    ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 3.0)))
    ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:g}×"))
    ax.xaxis.set_minor_locator(ticker.NullLocator())
    ax.set_yticks(range(len(rows)), [label for label, _ in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_title(title, fontsize=11)
    ax.grid(axis="x", color="#dddddd", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
