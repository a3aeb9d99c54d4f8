"""``steepest compare``: optimizers and learning rates side by side, on the same task."""

import argparse
import csv
import dataclasses
import itertools
import json
import math
import operator
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from statistics import fmean
from typing import Any

from steepest.cli import arguments as options
from steepest.cli import defaults, folders, pictures, runs, syntax
from steepest.cli.errors import UsageError
from steepest.cli.folders import CONFIG
from steepest.cli.runs import Run
from steepest.cli.settings import Settings, load_each
from steepest.core.information import info
from steepest.data.datasets import Dataset
from steepest.extras import require
from steepest.training import Epoch

OUTCOMES = "outcomes.json"


def add(commands: Any) -> None:
    """Adds the command's parser."""
    parser = options.command(
        commands,
        "compare",
        help="optimizers and learning rates side by side",
        description=(
            "Trains the same network with every optimizer at every learning rate, from the same "
            "initial parameters and with the same batches: each run is the one that steepest "
            "train makes with these options and this --hidden. Prints a table, best first, and "
            "writes compare.png, compare.csv, curves.csv and config.json to a folder. A run that "
            f"diverges is shown as such, and the others continue. {OUTCOMES} is what --resume "
            "continues from."
        ),
        epilog=(
            f"{options.SYNTAX} In --optimizers a comma before a name begins the next optimizer, "
            "any other comma belongs to the arguments: 'sgd:momentum=0.9, nesterov=True, lion' "
            "are two. A semicolon always separates."
        ),
    )
    options.add_data(parser, nargs="?")
    parser.add_argument(
        "--optimizers",
        metavar="LIST",
        help="some of steepest list, such as 'sgd, adam, sgd:momentum=0.9'",
    )
    parser.add_argument(
        "--lrs",
        type=options.numbers,
        metavar="LIST",
        help="learning rates, such as 1e-3,1e-2; each optimizer runs with each "
        f"(default: {options.rates()}, else the rule's own)",
    )
    parser.add_argument(
        "--seeds",
        type=options.counts,
        metavar="LIST",
        help="of split, weights and order, such as 0,1,2; each combination runs with each, and "
        "table and picture show the means (default: 0)",
    )
    options.add_training(parser)
    parser.add_argument(
        "--resume",
        type=Path,
        nargs="?",
        const=None,
        metavar="FOLDER",
        help="make the runs that are missing in this folder, or in that of --out if there is one",
    )
    options.add_output(parser, "DATA-compare")
    parser.set_defaults(run=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Compares and returns the exit code."""
    pictures.ready("steepest compare")
    place, record = options.place(vars(arguments), "compare")
    base, optimizers, lrs, seeds = _asked(vars(arguments), place, record)
    datasets = load_each(base, seeds)
    digests = {str(seed): dataset.digest for seed, dataset in datasets.items()}
    if record is not None and record.get("digests") != digests:
        raise UsageError(f"{base.data} is not what the run in {place} began with")
    first_data = datasets[seeds[0]]
    plan = [
        defaults.filled(replace(base, optimizer=text, lr=lr, seed=seed), first_data, "--optimizers")
        for text, lr, seed in itertools.product(optimizers, lrs, seeds)
    ]
    for settings in reversed(plan):  # what cannot be made is told before anything is written
        first = runs.prepare(settings, datasets[settings.seed], "--optimizers")
    if record is not None and place is not None:
        folder, done = place, _done(place, plan)
    else:
        folder, done = folders.new(place, f"{first.dataset.name}-compare"), {}
    record = {
        "command": "compare",
        "settings": base.to_json(),
        "optimizers": optimizers,
        "lrs": None if lrs == [None] else lrs,
        "seeds": seeds,
        "digests": digests,
        "steepest": info(),
    }
    folders.write_json(folder / CONFIG, record)
    _describe(first, plan, len(done))
    outcomes: list[Outcome] = []
    try:
        with _bar(len(plan) * first.epochs, not arguments.quiet) as bar:
            for settings in plan:
                outcome = done.get(settings)
                if outcome is not None and bar is not None:
                    bar.update(bar.total // len(plan))
                outcomes.append(outcome or _outcome(settings, datasets[settings.seed], bar))
                if outcome is None:
                    _save(folder / OUTCOMES, outcomes)
                    _write_table(folder / "compare.csv", outcomes)
                if outcomes[-1].stopped == "interrupted":
                    break
    except KeyboardInterrupt:  # between two runs
        pass
    return _finish(folder, first.dataset.name, outcomes, len(plan))


def _asked(
    given: Mapping[str, Any], folder: Path | None, record: Mapping[str, Any] | None
) -> tuple[Settings, list[str], list[float | None], list[int]]:
    """What all runs share, optimizers, rates and seeds: of a new comparison, or of the one that
    goes on. Raises UsageError."""
    asked = Settings.given(given) | {key: given[key] for key in ("lrs", "seeds") if key in given}
    if "optimizers" in given:
        asked["optimizers"] = list(dict.fromkeys(syntax.several(given["optimizers"])))
    if record is None or folder is None:
        if "optimizers" not in asked:
            given["parser"].error("the following arguments are required: --optimizers")
        optimizers, lrs = asked.pop("optimizers"), asked.pop("lrs", [None])
        seeds = asked.pop("seeds", [Settings.seed])
        return Settings(**asked), optimizers, lrs, seeds
    try:
        saved = Settings.from_json(record.get("settings"))
        optimizers, seeds = list(record["optimizers"]), list(record["seeds"])
        lrs = list(record["lrs"] or [None])
    except (KeyError, TypeError, ValueError):
        raise UsageError(f"{folder / CONFIG} does not say what the runs are made of") from None
    data = asked.pop("data", saved.data)  # may have been moved
    begun = dataclasses.asdict(saved) | {"optimizers": optimizers, "lrs": lrs, "seeds": seeds}
    folders.agree(folder, asked, begun)
    return replace(saved, data=data), optimizers, lrs, seeds


def _save(path: Path, outcomes: "Sequence[Outcome]") -> None:
    """outcomes.json: all that the runs that are done came to."""
    done = [one for one in outcomes if one.stopped != "interrupted"]
    with folders.replacing(path) as part:
        part.write_text(json.dumps([one.to_json() for one in done]) + "\n", encoding="utf-8")


def _done(folder: Path, plan: Sequence[Settings]) -> "dict[Settings, Outcome]":
    """The outcomes of the runs that are done. Raises UsageError for a damaged file."""
    path = folder / OUTCOMES
    planned = {(one.optimizer, one.lr, one.seed): one for one in plan}
    try:
        saved = folders.read_json(path) if path.exists() else []
        found = {}
        for row in saved:
            settings = planned[row.pop("optimizer"), row.pop("lr"), row.pop("seed")]
            found[settings] = Outcome(settings=settings, **row)
            if not all(isinstance(x, dict) for x in [row["test"], *row["rows"]]):
                raise TypeError(f"rows = {row['rows']!r}: expected a list of dicts")
        return found
    except (AttributeError, KeyError, TypeError):
        raise UsageError(f"{path} is damaged; remove it, and all runs are made again") from None


def _describe(first: Run, plan: Sequence[Settings], done: int) -> None:
    runs.describe(first.dataset)
    runs.describe_network(first.net)
    n = len({(settings.optimizer, settings.lr) for settings in plan})
    seeds = f", {len(plan) // n} seeds" if len(plan) > n else ""
    print(f"runs       {n} combination{'s' * (n > 1)} of optimizer and learning rate{seeds}")
    if done:
        print(f"done       {done} of {len(plan)} runs")
    batch = first.batch_size or "full"
    print(f"training   {first.epochs} epochs at most, batch size {batch}\n", flush=True)


@dataclass(frozen=True)
class Outcome:
    """The result of one run: the row of the table, and the curve."""

    settings: Settings
    stopped: str
    rows: list[dict[str, float]]
    best_epoch: int | None
    untrained: float
    test: Mapping[str, float]

    @property
    def lowest(self) -> float:
        """The lowest validation loss; infinite where no epoch has ended."""
        return math.inf if self.best_epoch is None else self.rows[self.best_epoch - 1]["val_loss"]

    def to_json(self) -> dict[str, Any]:
        """As outcomes.json has it; numbers read back as the same floats, also NaN."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)[1:]}
        made = self.settings
        return {"optimizer": made.optimizer, "lr": made.lr, "seed": made.seed, **own}

    @property
    def row(self) -> dict[str, Any]:
        """The row of compare.csv; empty where no epoch has ended."""
        settings = self.settings
        shown = {"best_epoch": self.best_epoch, "val_loss": self.lowest}
        shown |= {f"test_{name}": value for name, value in self.test.items()}
        return {
            "optimizer": settings.optimizer,
            "lr": settings.lr,
            "seed": settings.seed,
            "stopped": "diverged" if self.stopped == "nonfinite" else self.stopped,
            "epochs": len(self.rows),
            **(shown if self.rows else dict.fromkeys(shown, "")),
            "seconds": self.spent("seconds"),
            "optimizer_seconds": self.spent("optimizer_seconds"),
        }

    def spent(self, column: str) -> float:
        """The seconds of all epochs that have ended."""
        return reduce(operator.add, (row[column] for row in self.rows), 0)


def _outcome(settings: Settings, dataset: Dataset, bar: Any) -> Outcome:
    """Runs one of the plan."""
    prepared: Run = runs.prepare(settings, dataset)
    untrained = prepared.net.loss(prepared.params, *dataset.validation)
    if bar is not None:
        bar.set_description(f"{settings.optimizer} {settings.lr:g}", refresh=False)

    def advance(epoch: Epoch) -> None:
        if bar is not None:
            bar.update()

    prepared.train(callbacks=[advance])
    if bar is not None:
        bar.update(prepared.epochs - len(prepared.history))
    return Outcome(
        settings=settings,
        stopped=prepared.stopped,
        rows=prepared.history.rows,
        best_epoch=prepared.history.best_epoch,
        untrained=untrained,
        test=prepared.results()["test"],
    )


@contextmanager
def _bar(total: int, show: bool) -> Iterator[Any]:
    if not show:
        yield None
        return
    tqdm = require("tqdm.auto", "train", "a progress bar").tqdm
    with tqdm(total=total, unit="epoch") as bar:
        yield bar


def _finish(folder: Path, name: str, outcomes: Sequence[Outcome], planned: int) -> int:
    """Writes and prints what there is; returns the exit code."""
    combinations = [
        list(group)
        for _, group in itertools.groupby(
            outcomes, key=lambda one: (one.settings.optimizer, one.settings.lr)
        )
    ]
    done = sum(one.stopped != "interrupted" for one in outcomes)
    note = f"interrupted: {done} of {planned} runs are done" if done < planned else ""
    written = [CONFIG]
    if outcomes:
        _write_table(folder / "compare.csv", outcomes)
        _write_curves(folder / "curves.csv", outcomes)
        written = ["compare.csv", "curves.csv", *written]
    if any(one.rows for one in outcomes):
        with folders.replacing(folder / "compare.png") as part:
            pictures.compare(_curves(combinations), name, note).savefig(part, dpi=150)
        written.insert(0, "compare.png")
    if (folder / OUTCOMES).exists():
        written.append(OUTCOMES)
    if outcomes:
        _print_table(combinations)
    print(f"\nwritten to {folder}: {', '.join(written)}")
    if note:
        command = f"steepest compare --resume {shlex.quote(str(folder))}"
        print(f"{note} and kept; continue with  {command}", file=sys.stderr)
        return 130
    return 1 if all(one.stopped == "nonfinite" for one in outcomes) else 0


def _write_table(path: Path, outcomes: Sequence[Outcome]) -> None:
    """compare.csv: a row per run."""
    _write_csv(path, [one.row for one in outcomes])


def _write_curves(path: Path, outcomes: Sequence[Outcome]) -> None:
    """curves.csv: a row per run and epoch; ``rate`` is the learning rate at its end."""
    rows = [
        {
            "optimizer": one.settings.optimizer,
            "lr": one.settings.lr,
            "seed": one.settings.seed,
            **{"rate" if name == "lr" else name: value for name, value in row.items()},
        }
        for one in outcomes
        for row in one.rows
    ]
    _write_csv(path, rows)


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = dict.fromkeys(name for row in rows for name in row)
    with folders.replacing(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _curves(combinations: Sequence[Sequence[Outcome]]) -> list[pictures.Curve]:
    return [
        pictures.Curve(
            optimizer=group[0].settings.optimizer,
            lr=float(group[0].settings.lr or 0.0),
            runs=[[row["val_loss"] for row in one.rows] for one in group],
            untrained=max(one.untrained for one in group),
            diverged=any(one.stopped == "nonfinite" for one in group),
            interrupted=any(one.stopped == "interrupted" for one in group),
        )
        for group in combinations
    ]


def _print_table(combinations: Sequence[Sequence[Outcome]]) -> None:
    """One line per combination, the lowest validation loss first, diverged ones last."""
    score = next(name for name in combinations[0][0].test if name != "loss")
    rows = [["optimizer", "lr", "val loss", "epoch", f"test {score}", "in optimizer"]]
    groups = sorted(combinations, key=_order)
    for group in groups:
        cells = [f"{group[0].settings.lr:g}", "-", "-", "-", ""]
        if all(one.rows for one in group):
            cells[1] = runs.digits(fmean(one.lowest for one in group))
            cells[2] = f"{fmean(one.best_epoch or 0 for one in group):.0f}"
            cells[3] = runs.percent(score, fmean(one.test[score] for one in group))
        cells[4] = f"{fmean(one.spent('optimizer_seconds') for one in group):.4f} s"
        rows.append([group[0].settings.optimizer, *cells])
    for line, state in zip(runs.aligned(rows, 0, 15), ["", *map(_state, groups)], strict=True):
        print(f"{line}  {state}".rstrip())


def _order(group: Sequence[Outcome]) -> tuple[bool, float]:
    whole = all(one.stopped not in ("nonfinite", "interrupted") for one in group)
    return not whole, fmean(one.lowest for one in group)


def _state(group: Sequence[Outcome]) -> str:
    """What is not as usual."""
    if any(one.stopped == "interrupted" for one in group):
        return "interrupted"
    diverged = [one for one in group if one.stopped == "nonfinite"]
    if len(group) == 1 and diverged:
        return f"diverged in epoch {len(group[0].rows) + 1}"
    return f"{len(diverged)} of {len(group)} diverged" if diverged else ""
