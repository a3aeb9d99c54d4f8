"""What happened in a training run, as rows, as a file and as a picture."""

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from steepest.extras import require

__all__ = ["COLUMNS", "History", "Stopped"]

Stopped = Literal["", "epochs", "target", "patience", "callback", "nonfinite"]

# Columns of the history that a metric may not take the name of.
COLUMNS = (
    "epoch",
    "loss",
    "val_loss",
    "lr",
    "batch_size",
    "grad_norm",
    "noise_scale",
    "seconds",
    "optimizer_seconds",
)
LOSSES = ("loss", "val_loss")


@dataclass(repr=False)
class History:
    """What happened in a run: one row per finished epoch, and why it ended.

    Columns: ``epoch`` from 1, ``loss`` (mean over the epoch's samples, each taken just before the
    update it led to), ``val_loss`` where there is validation data, the metrics by name and as
    ``val_<name>``, ``lr`` of the first group at the last update, ``batch_size`` at the last update
    where it is a schedule, ``grad_norm`` (mean norm of all gradients before clipping, where the
    optimizer measures it), ``noise_scale`` in samples where it was asked for, ``seconds`` for the
    whole epoch and ``optimizer_seconds`` spent in ``optimizer.step``.

    ``stopped`` says what ended the run: ``"epochs"`` (all done), ``"target"``, ``"patience"``,
    ``"callback"`` or ``"nonfinite"``, empty while it continues; ``message`` describes it.
    ``best_epoch`` is the epoch with the lowest val_loss, or loss where there is no validation.

    >>> history = History([{"epoch": 1, "loss": 4.0}, {"epoch": 2, "loss": 1.0}])
    >>> history["loss"], len(history), history.columns
    ([4.0, 1.0], 2, ['epoch', 'loss'])
    >>> history
    History(2 epochs: loss 1)
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    stopped: Stopped = ""
    message: str = ""
    best_epoch: int | None = None

    def __repr__(self) -> str:
        """Its length, the last row's losses and metrics, and how it ended."""
        if not self.rows:
            told = ["no epochs"]
        else:
            epochs = f"{len(self)} epoch{'s' * (len(self) > 1)}"
            told = [f"{epochs}: {values(self.rows[-1])}"]
        if self.best_epoch is not None:
            told.append(f"best epoch {self.best_epoch}")
        if self.stopped:
            told.append(f"stopped by {self.stopped}")
        return f"History({'; '.join(told)})"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, column: str) -> list[float]:
        if column not in self.columns:
            raise KeyError(f"{column!r}: expected one of {', '.join(self.columns) or 'no columns'}")
        return [row.get(column, math.nan) for row in self.rows]

    @property
    def columns(self) -> list[str]:
        """The names of all columns, in order."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def to_csv(self, path: str | Path) -> None:
        """Writes one line per epoch, with a header; a number reads back as the same float."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)

    def plot(self, path: str | Path | None = None, title: str = "") -> Any:
        """Draws the curves, saves them where a path is given, and returns the matplotlib Figure.

        One panel for the loss, one for each metric, one for the learning rate, and one each for the
        batch size, the norm of the gradients and the noise scale if recorded. Needs no display.
        Raises MissingExtra without matplotlib, ValueError when no epoch has finished.
        """
        figure = _figure(self, title)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure


def values(row: Mapping[str, float]) -> str:
    """The losses and the metrics of a row.

    >>> values({"epoch": 1, "loss": 0.25, "lr": 0.1, "accuracy": 0.5, "seconds": 1.0})
    'loss 0.25, accuracy 0.5'
    """
    shown = {name: x for name, x in row.items() if name in LOSSES or name not in COLUMNS}
    return ", ".join(f"{name} {x:.4g}" for name, x in shown.items())


def _figure(history: History, title: str) -> Any:
    if not history.rows:
        raise ValueError("there is nothing to plot: no epoch has finished")
    matplotlib = require("matplotlib.figure", "train", "History.plot")
    ticker = require("matplotlib.ticker", "train", "History.plot")
    columns = history.columns
    metrics = [c for c in columns if c not in COLUMNS and not c.startswith("val_")]
    measured = [c for c in ("batch_size", "grad_norm", "noise_scale") if c in columns]
    panels = ["loss", *metrics, "lr", *measured]
    titles = {
        "loss": "Loss",
        "r2": "R²",
        "rmse": "RMSE",
        "lr": "Learning rate",
        "batch_size": "Batch size",
        "grad_norm": "Gradient norm before clipping",
        "noise_scale": "Gradient noise scale",
    }
    wide = 2 if len(panels) == 4 else min(len(panels), 3)
    tall = -(-len(panels) // wide)
    figure = matplotlib.Figure(figsize=(4.4 * wide, 3.4 * tall + 0.4), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    axes = figure.subplots(tall, wide, squeeze=False).ravel()
    for ax, panel in zip(axes, panels, strict=False):
        curves = {"training": panel, "validation": f"val_{panel}"}
        shown = {label: history[c] for label, c in curves.items() if c in columns}
        marker = "o" if len(history) == 1 else None
        for (label, values), color in zip(shown.items(), ("#1f5fa8", "#d95f02"), strict=False):
            ax.plot(history["epoch"], values, color=color, label=label, lw=1.8, marker=marker)
        if panel in ("loss", "grad_norm", "noise_scale"):
            seen = [v for values in shown.values() for v in values if math.isfinite(v)]
            if seen and min(seen) > 0 and max(seen) > 10 * min(seen):
                ax.set_yscale("log")
        if panel == "loss" and len(shown) > 1 and history.best_epoch is not None:
            ax.axvline(
                history.best_epoch, color="0.6", lw=1, ls=":", label="lowest validation loss"
            )
        if panel == "accuracy":
            ax.yaxis.set_major_formatter(ticker.PercentFormatter(1, symbol=" %"))
        ax.set_title(titles.get(panel, panel.capitalize()), fontsize=11)
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
        if len(shown) > 1:
            ax.legend(frameon=False, fontsize=9)
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    if title:
        figure.suptitle(title, fontsize=13, parse_math=False)
    return figure
