"""What a search has found, as records, as a file and as a picture."""

import csv
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from steepest.extras import require
from steepest.tuning.space import Distribution

__all__ = ["Record", "State", "Stopped", "Tuned"]

State = Literal["done", "pruned", "failed", "running"]
Stopped = Literal["trials", "timeout", "interrupted"]
PANELS = 8  # hyper-parameters shown in a picture; others are counted
WIDE = 24  # letters of categories that have room below a panel
COLORS = {"done": "#1f5fa8", "pruned": "#d95f02"}


@dataclass(frozen=True)
class Record:
    """One trial of a search.

    ``number`` is that of the candidate, from 0. ``state`` is ``"done"``; ``"pruned"``, stopped
    early because others were better, ``loss`` then is what it had reported last; ``"failed"``,
    with the reason in ``message``; or ``"running"``, in another process. ``seconds`` is how long
    it took, ``reports`` the losses it reported by epoch.
    """

    number: int
    values: dict[str, Any]
    loss: float | None
    state: State
    seconds: float | None = None
    reports: dict[int, float] = field(default_factory=dict)
    message: str = ""


@dataclass(frozen=True, repr=False)
class Tuned:
    """What a search has found.

    ``trials``: a ``Record`` of every trial, in order. ``stopped``: ``"trials"`` (all done),
    ``"timeout"`` or ``"interrupted"``; ``message`` says in words how the search went. ``space``:
    the distributions by name.

    >>> records = [Record(0, {"lr": 0.1}, 2.0, "done"), Record(1, {"lr": 0.3}, 1.0, "done")]
    >>> tuned = Tuned(records, {"lr": None})
    >>> tuned.best, tuned.best_loss, len(tuned)
    ({'lr': 0.3}, 1.0, 2)
    >>> tuned
    Tuned(2 trials: 2 done; lowest loss 1 in trial 1: lr=0.3; stopped by trials)
    """

    trials: list[Record]
    space: Mapping[str, Distribution | None]
    stopped: Stopped = "trials"
    message: str = ""

    def __repr__(self) -> str:
        """How many trials there are, by state, and the best one."""
        states = Counter(trial.state for trial in self.trials)
        counts = ", ".join(f"{n} {state}" for state, n in states.items())
        told = [f"{len(self)} trial{'s' * (len(self) != 1)}" + (f": {counts}" if counts else "")]
        best = self.best_trial
        if best is not None:
            values = ", ".join(f"{name}={_shown(value)}" for name, value in best.values.items())
            told.append(f"lowest loss {_loss(best):.4g} in trial {best.number}: {values}")
        return f"Tuned({'; '.join(told)}; stopped by {self.stopped})"

    def __len__(self) -> int:
        return len(self.trials)

    @property
    def best_trial(self) -> Record | None:
        """The trial that is done with the lowest loss, the first of equals; None if none is."""
        done = [t for t in self.trials if t.state == "done"]
        return min(done, key=_loss) if done else None

    @property
    def best(self) -> dict[str, Any]:
        """The values with the lowest loss. Raises ValueError if no trial is done."""
        return dict(self._best.values)

    @property
    def best_loss(self) -> float:
        """The lowest loss. Raises ValueError if no trial is done."""
        return _loss(self._best)

    @property
    def _best(self) -> Record:
        best = self.best_trial
        if best is None:
            raise ValueError(f"there is no best: {self.message or 'no trial is done'}")
        return best

    def to_csv(self, path: str | Path) -> None:
        """Writes one line per trial, with a header; a number reads back as the same float.

        The columns: trial, state, loss, seconds, the hyper-parameters, message. A hyper-parameter
        named like one of the others is written as ``space.<name>``.
        """
        own = ["trial", "state", "loss", "seconds"]
        names = [f"space.{n}" if n in (*own, "message") else n for n in self.space]
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([*own, *names, "message"])
            for t in self.trials:
                values = [t.values.get(name, "") for name in self.space]
                writer.writerow([t.number, t.state, t.loss, t.seconds, *values, t.message])

    def plot(self, path: str | Path | None = None, title: str = "") -> Any:
        """Draws the search, saves it where a path is given, and returns the matplotlib Figure.

        One panel for the losses by trial, with the lowest so far, and one for the loss against
        each hyper-parameter, of the first eight; the title counts them where there are more. Needs
        no display. Raises MissingExtra without matplotlib, ValueError when no trial has a finite
        loss.
        """
        figure = _figure(self, title)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else repr(value)


def _loss(record: Record) -> float:
    return math.inf if record.loss is None else record.loss


def _figure(tuned: Tuned, title: str) -> Any:
    shown = [t for t in tuned.trials if t.state in COLORS and math.isfinite(_loss(t))]
    if not shown:
        raise ValueError("there is nothing to plot: no trial has a finite loss")
    matplotlib = require("matplotlib.figure", "train", "Tuned.plot")
    names = list(tuned.space)[:PANELS]
    wide = min(len(names) + 1, 3)
    tall = -(-(len(names) + 1) // wide)
    figure = matplotlib.Figure(figsize=(4.4 * wide, 3.4 * tall + 0.4), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    axes = figure.subplots(tall, wide, squeeze=False).ravel()
    top = _top([_loss(t) for t in shown])
    losses = [min(_loss(t), top) for t in shown]
    log = min(losses) > 0 and max(losses) > 10 * min(losses)
    _draw_trials(axes[0], shown, top, [t.number for t in tuned.trials if t.state == "failed"])
    for ax, name in zip(axes[1:], names, strict=False):
        _draw_values(ax, name, tuned.space[name], shown, top, tuned.best_trial)
    for ax in axes[: len(names) + 1]:
        if log:
            ax.set_yscale("log")
        ax.set_ylabel("loss")
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[len(names) + 1 :]:
        ax.set_visible(False)
    if len(tuned.space) > PANELS:
        counted = f"{PANELS} of {len(tuned.space)} hyper-parameters"
        title = f"{title} ({counted})" if title else counted
    if title:
        figure.suptitle(title, fontsize=13)
    return figure


def _top(losses: Sequence[float]) -> float:
    """The highest loss with a place of its own: one that almost diverged would hide the others."""
    middle, low = statistics.median(losses), min(losses)
    return 100 * middle if low > 0 else middle + 10 * (middle - low)


def _scatter(ax: Any, xs: Sequence[Any], trials: Sequence[Record], top: float) -> None:
    for state, color in COLORS.items():
        points = [(x, _loss(t)) for x, t in zip(xs, trials, strict=True) if t.state == state]
        inside = [(x, y) for x, y in points if y <= top]
        above = [(x, top) for x, y in points if y > top]
        marker = "o" if state == "done" else "x"
        for chosen, shape, label in ((inside, marker, state), (above, "^", f"{state}, above")):
            if chosen:
                ax.scatter(*zip(*chosen, strict=True), s=22, color=color, marker=shape, label=label)


def _draw_trials(ax: Any, shown: Sequence[Record], top: float, failed: Sequence[int]) -> None:
    """Losses by trial, and the lowest so far."""
    ticker = require("matplotlib.ticker", "train", "Tuned.plot")
    _scatter(ax, [t.number for t in shown], shown, top)
    numbers: list[int] = []
    lowest: list[float] = []
    for t in shown:
        numbers.append(t.number)
        lowest.append(min(_loss(t) if t.state == "done" else math.inf, *lowest[-1:], math.inf))
    ax.plot(
        numbers,
        [min(x, top) for x in lowest],
        color="0.3",
        lw=1.4,
        drawstyle="steps-post",
        label="lowest so far",
    )
    for i, number in enumerate(failed):
        ax.axvline(number, color="0.6", lw=1, ls=":", label=None if i else "failed")
    ax.set_xlabel("trial")
    ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    ax.legend(frameon=False, fontsize=9)


def _draw_values(
    ax: Any,
    name: str,
    distribution: Distribution | None,
    shown: Sequence[Record],
    top: float,
    best: Record | None,
) -> None:
    """The loss against one hyper-parameter."""
    labels = getattr(distribution, "labels", None)
    values = [t.values[name] for t in shown]
    if labels is not None and distribution is not None:
        places = {label: i for i, label in enumerate(labels)}
        values = [_place(distribution, places, value) for value in values]
        words = [_short(x) for x in labels]
        size = 8 if len("".join(words)) > WIDE else None
        ax.set_xticks(range(len(labels)), words, fontsize=size)
        ax.set_xlim(-0.5, len(labels) - 0.5)
    elif distribution is not None and distribution.log:
        ax.set_xscale("log")
    _scatter(ax, values, shown, top)
    if best is not None and best in shown:
        x = values[shown.index(best)]
        ax.scatter([x], [_loss(best)], s=90, facecolors="none", edgecolors="0.2", linewidths=1.4)
    ax.set_xlabel(name)


def _place(distribution: Any, places: Mapping[str, int], value: Any) -> int:
    for label, place in places.items():
        if distribution.decode(label) is value:
            return place
    return -1


def _short(label: str, most: int = 14) -> str:
    text = label.strip("'")
    return text if len(text) <= most else text[: most - 1] + "…"
