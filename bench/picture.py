"""The results as a picture: every rival's time as a multiple of steepest's."""

from collections.abc import Sequence
from typing import Any

from steepest.extras import require

# Colours that the colour-blind can tell apart (Okabe and Ito), and marks that need no colour.
_STYLES = {
    "stream": ("#999999", "|", "no-math stream of the same bytes"),
    "torch fused": ("#D55E00", "o", "torch fused"),
    "torch foreach": ("#0072B2", "s", "torch foreach"),
    "torch single": ("#56B4E9", "D", "torch single"),
    "steepest.torch": ("#000000", "x", "steepest.torch"),
    "DeepSpeed": ("#CC79A7", "v", "DeepSpeedCPUAdam"),
    "NumPy": ("#009E73", "^", "NumPy reference"),
}


def draw(results: dict[str, Any]) -> Any:
    """A matplotlib Figure: AdamW on every case at the left, every rule at the right.

    Raises MissingExtra, an ImportError, without matplotlib.
    """
    matplotlib = require("matplotlib.figure", "bench", "drawing the results")
    entries = results["results"]
    panels = [
        ("AdamW", [(_case(e), e) for e in entries if e["rule"] == "adamw"]),
        ("Every rule, one large tensor", [
            (e["title"], e) for e in entries if e["case"] == "large" and e["clip"] is None
        ]),
    ]  # fmt: skip
    panels = [(title, rows) for title, rows in panels if rows]
    height = 1.9 + 0.36 * max((len(rows) for _, rows in panels), default=1)
    figure = matplotlib.Figure(figsize=(6.2 * max(1, len(panels)), height), layout="constrained")
    axes = figure.subplots(1, max(1, len(panels)), squeeze=False)[0]
    for ax, (title, rows) in zip(axes, panels, strict=False):
        _panel(ax, title, rows)
    handles: dict[str, Any] = {}
    for ax in axes:
        handles |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    labels = [label for _, _, label in _STYLES.values() if label in handles]
    if labels:
        figure.legend(
            [handles[label] for label in labels], labels,
            loc="outside lower center", ncols=len(labels), frameon=False,
        )  # fmt: skip
    figure.suptitle(
        "Time of one step as a multiple of steepest's: right of 1, steepest is faster",
        fontweight="bold",
    )
    return figure


def _case(entry: dict[str, Any]) -> str:
    shown = str(entry["case_title"]).partition(": ")[0]
    return shown + (", clipped" if entry["clip"] is not None else "")


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
            markeredgewidth=2 if mark == "|" else 0.6,
            markeredgecolor=colour if mark == "|" else "white", elinewidth=1.5,
        )  # fmt: skip
    ax.axvline(1.0, color="black", linewidth=1.2, zorder=1)
    ax.set_xscale("log")
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
