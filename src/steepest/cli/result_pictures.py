"""Pictures of what a trained model says of the test part: a confusion matrix, or residuals."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from steepest.data.csv_files import cut
from steepest.extras import require
from steepest.memory.arrays import Array

# Cells of more classes than the first have no text; the axes of more than the second no names.
MOST_WRITTEN, MOST_NAMED = 12, 40

# More samples than these are drawn as a random choice of so many.
MOST_DOTS = 5000

LARGEST = 1e300

BLUE, GRAY = "#1f5fa8", "0.35"

# Dollars in names are no formulas.
PLAIN: dict[str, Any] = {"parse_math": False}


def confusion(found: Array, y: Array, classes: Sequence[str], title: str, path: Path) -> None:
    """Draws how often each class was taken for which; the rows are the true ones.

    found, y: numbers of classes. Each cell has its share of the row in percent, and the number of
    samples.
    """
    k = len(classes)
    counts = np.bincount(y * k + found, minlength=k * k).reshape(k, k)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    matplotlib = require("matplotlib.figure", "train", "a picture")
    written = k <= MOST_WRITTEN
    side = 1.9 + (0.72 * k if written else min(0.16 * k, 6.0))
    figure = matplotlib.Figure(figsize=(max(side, 4.2) + 0.6, max(side, 3.4)), layout="constrained")
    ax = figure.subplots()
    image = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(k, k) if written else []:
        if counts[i, j]:
            color = "white" if shares[i, j] > 0.55 else "black"
            ax.text(
                j, i - 0.1, f"{100 * shares[i, j]:.0f} %", ha="center", va="center", color=color
            )
            ax.text(j, i + 0.26, counts[i, j], ha="center", va="center", color=color, fontsize=7)
    names = [cut(name, 16) for name in classes]
    long = max(map(len, names)) > 5
    if k <= MOST_NAMED:
        size = 9 if written else 6
        turned: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
        ax.set_xticks(range(k), names, fontsize=size, **PLAIN, **(turned if long else {}))
        ax.set_yticks(range(k), names, fontsize=size, **PLAIN)
    else:
        ax.set_xticks([])
        ax.set_yticks([])
    edges = np.arange(k + 1) - 0.5
    if written:
        ax.set_xticks(edges, minor=True)
        ax.set_yticks(edges, minor=True)
        ax.grid(which="minor", color="0.85", lw=0.6)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_visible(False)
    ax.set_xlabel("predicted class")
    ax.set_ylabel("true class")
    if not written:
        ticker = require("matplotlib.ticker", "train", "a picture")
        bar = figure.colorbar(image, ax=ax, shrink=0.8, format=ticker.PercentFormatter(1, 0))
        bar.set_label("share of the true class")
        bar.outline.set_visible(False)
    _save(figure, title, path)


@np.errstate(over="ignore", invalid="ignore")  # of values near the largest numbers
def residuals(found: Array, y: Array, target: str, title: str, path: Path) -> None:
    """Draws predictions against true values, and what is left of these, in the target's unit."""
    matplotlib = require("matplotlib.figure", "train", "a picture")
    if len(y) > MOST_DOTS:
        some = np.random.default_rng(0).choice(len(y), MOST_DOTS, replace=False)
        found, y = found[some], y[some]
    # Axes go no further.
    rest = (y - found).clip(-LARGEST, LARGEST)
    found, y = found.clip(-LARGEST, LARGEST), y.clip(-LARGEST, LARGEST)
    figure = matplotlib.Figure(figsize=(8.8, 4.0), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    left, right = figure.subplots(1, 2)
    alpha = float(np.clip(30 / len(y) ** 0.5, 0.15, 0.8))
    dots: dict[str, Any] = {"s": 18, "color": BLUE, "alpha": alpha, "lw": 0}
    low, high = min(found.min(), y.min()), max(found.max(), y.max())
    name = cut(target, 30)
    left.plot([low, high], [low, high], color=GRAY, lw=1)
    left.annotate(
        "predicted = true", (high, high), (0, 4), textcoords="offset points",
        ha="right", va="bottom", color=GRAY, fontsize=9,
    )  # fmt: skip
    left.scatter(y, found, **dots)
    left.set_xlabel(f"{name}, true", **PLAIN)
    left.set_ylabel(f"{name}, predicted", **PLAIN)
    left.set_title("Predictions", fontsize=11)
    right.axhline(0, color=GRAY, lw=1)
    right.scatter(found, rest, **dots)
    right.set_xlabel(f"{name}, predicted", **PLAIN)
    right.set_ylabel("true - predicted")
    right.set_title("Residuals", fontsize=11)
    for ax in (left, right):
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    _save(figure, title, path)


def _save(figure: Any, title: str, path: Path) -> None:
    """Writes a figure, also with characters that its font lacks."""
    figure.suptitle(title, fontsize=12, **PLAIN)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(path, dpi=130)
