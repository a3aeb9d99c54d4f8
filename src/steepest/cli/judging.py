"""What a result is worth: baselines beside it, and hints where it could be better."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from steepest.cli import folders, result_pictures, run_report, runs
from steepest.cli.runs import Results, Run, measured, percent
from steepest.data import baselines

# A network that is further below the linear model than this gets a hint.
WORSE = 0.02

# So does a validation loss that is lowest in the last tenth of the epochs, and lost this share of
# what it was after half of them.
FALLING = 0.1

# Above this accuracy or R² there is nothing to gain from it.
PERFECT = 0.995


def compared(trained: Run) -> dict[str, dict[str, dict[str, float]]]:
    """The metrics of the baselines on each part of the data, by their names.

    Without the linear model where it cannot be fitted: a run is worth more than what is beside it.
    """
    dataset = trained.dataset
    simple = "most frequent class" if dataset.classes else "mean"
    models: dict[str, Any] = {}
    with suppress(ValueError, ArithmeticError):  # LinAlgError is one of the first
        models[baselines.NAMES[dataset.task]] = baselines.linear(dataset)
    models[simple] = baselines.constant(dataset)
    return {
        name: {
            part: measured(dataset, model.predict(x.astype(np.float64)), y)
            for part, (x, y) in dataset.parts.items()
        }
        for name, model in models.items()
    }


def lines(others: Mapping[str, Results]) -> list[str]:
    """What is printed of the baselines."""
    found: list[str] = []
    for name, parts in others.items():
        shown = ", ".join(f"{key} {percent(key, x)}" for key, x in parts["test"].items())
        label = "baseline   " if not found else " " * 11
        found.append(f"{label}{name}: test {shown}")
    return found


def hints(trained: Run, results: Results, others: Mapping[str, Results]) -> list[str]:
    """What could make the result better, where it is worse than the linear model, or the loss was
    still falling at the end."""
    if trained.diverged:
        return []
    found = []
    name = next(iter(others))
    own, its = (x["test"][trained.score] for x in (results, others[name]))
    linear = len(trained.net.sizes) == 2
    if own < its - WORSE:
        advice = "give more --epochs, or another --lr" if linear else "try --hidden none"
        found.append(
            f"{name} is better on the test part, {trained.score} {percent(trained.score, its)} "
            f"against {percent(trained.score, own)}; {advice}; steepest tune searches"
        )
    fell = falling(trained.history.rows, trained.history.best_epoch)
    perfect = own > PERFECT
    if trained.stopped == "epochs" and fell > FALLING and not perfect:
        found.append(
            f"the validation loss was still falling: by {100 * fell:.0f} % in the second half; "
            "give more --epochs"
        )
    return found


def falling(rows: Sequence[Mapping[str, Any]], best: int | None) -> float:
    """The share by which the validation loss fell in the second half of the epochs; 0 where it was
    lowest before their last tenth.

    >>> losses = [4.0, 3.0, 2.0, 1.0]
    >>> falling([{"val_loss": x} for x in losses], 4), falling([{"val_loss": 1.0}] * 4, 2)
    (0.6666666666666666, 0.0)
    """
    if best is None or best <= 0.9 * len(rows) or len(rows) < 2:
        return 0.0
    half, lowest = rows[(len(rows) - 1) // 2]["val_loss"], rows[best - 1]["val_loss"]
    return float((half - lowest) / half) if half > 0 else 0.0


@dataclass(frozen=True)
class Verdict:
    """What a run came to, the baselines beside it, what could make it better, and its files."""

    results: Results
    others: Mapping[str, Results]
    hints: Sequence[str]
    files: Sequence[str]


def write(folder: Path, trained: Run) -> Verdict:
    """Evaluates a run that has ended and writes its files."""
    results = trained.results()
    others: dict[str, dict[str, dict[str, float]]] = {}
    told: list[str] = []
    if not trained.interrupted:
        others = compared(trained)
        told = hints(trained, results, others)
    files = runs.write(
        folder,
        trained,
        results,
        {"baselines": others, "hints": told},
        lambda: _shown(folder, trained, results, others, told),
    )
    return Verdict(results, others, told, files)


def tell(trained: Run, verdict: Verdict) -> None:
    """Prints what came of a run."""
    runs.report(trained, verdict.results)
    for line in [*lines(verdict.others), *(f"hint       {hint}" for hint in verdict.hints)]:
        print(line)


@np.errstate(over="ignore", invalid="ignore")
def _shown(
    folder: Path,
    trained: Run,
    results: Results,
    others: Mapping[str, Results],
    told: Sequence[str],
) -> list[str]:
    """Writes the picture of the test part and the report, and returns their names."""
    if trained.interrupted or not trained.history.rows:
        return []
    dataset = trained.dataset
    score = percent(trained.score, results["test"][trained.score])
    score = f"R² {score}" if trained.score == "r2" else f"{trained.score} {score}"
    title = f"{dataset.name}, test part: {score}"
    x, y = dataset.test
    found = trained.net.predict(trained.params, x)
    name = "confusion.png" if dataset.classes else "residuals.png"
    with folders.replacing(folder / name) as part:
        if dataset.classes:
            result_pictures.confusion(found, y, dataset.classes, title, part)
        else:
            scale, mean = (float(dataset.scaling[key]) for key in ("y_scale", "y_mean"))
            found, y = (values.astype(np.float64) * scale + mean for values in (found, y))
            target = trained.settings.target or "target"
            result_pictures.residuals(found, y, target, title, part)
    shown = "Confusion matrix" if dataset.classes else "Residuals"
    pictures = {"curves.png": "Curves", name: f"{shown} of the test part"}
    with folders.replacing(folder / run_report.NAME) as part:
        text = run_report.text(trained, results, others, told, pictures)
        part.write_text(text, encoding="utf-8")
    return [run_report.NAME, name]
