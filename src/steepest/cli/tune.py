"""``steepest tune``: a search for the hyper-parameters with the lowest validation loss."""

import argparse
import math
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from steepest import tuning
from steepest.cli import arguments as options
from steepest.cli import folders, judging, pictures, runs, search_space
from steepest.cli.errors import UsageError
from steepest.cli.folders import CONFIG
from steepest.cli.search_settings import TRIALS, Search
from steepest.cli.settings import Settings, load
from steepest.core.information import info
from steepest.data.datasets import Dataset
from steepest.extras import require
from steepest.training.history import History
from steepest.tuning import METHODS, Tuned

DATABASE = "tuning.db"
SHOWN = 10  # trials in the table


def add(commands: Any) -> None:
    """Adds the command's parser."""
    parser = options.command(
        commands,
        "tune",
        help="search for the best learning rate and other hyper-parameters",
        description=(
            "Searches for the hyper-parameters with the lowest validation loss; each trial is a "
            "run of steepest train. Then trains the best once more and evaluates it on the test "
            "part. Writes tune.png, tune.csv, best.json, config.json, the record of the search "
            f"{DATABASE} and the folder best of that last run to a folder. The same command with "
            "the same --out, or --resume FOLDER, continues a search that was stopped."
        ),
        epilog=(
            "The default space: lr from 1/30 to 30 times that of steepest train, on a log scale; "
            f"{_listed(search_space.COMMON)}; and, where the optimizer has it, "
            f"{_listed(search_space.MOMENTA)}. "
            f"What is given as an option of its own is not searched. {options.SYNTAX}"
        ),
    )
    options.add_data(parser, nargs="?")
    options.add_optimizer(parser)
    _add_search(parser)
    options.add_training(parser)
    parser.add_argument(
        "--seed", type=options.count, help="of split, weights, order and candidates (default: 0)"
    )
    _add_record(parser)
    options.add_output(parser, "DATA-tune")
    parser.set_defaults(run=run, parser=parser)


def _add_search(parser: argparse.ArgumentParser) -> None:
    """What is searched, and how."""
    parser.add_argument(
        "--space",
        action="append",
        metavar="NAME=VALUES",
        help="what to search instead of the default space, such as 'lr=1e-4..1e-1 log', "
        "hidden=16..512, batch_size=16,32,64; can be given again",
    )
    parser.add_argument(
        "--grid",
        action="append",
        metavar="NAME=VALUES",
        help="the same; where there is no --space, the method is grid: all combinations of lists "
        "such as lr=1e-3,1e-2 and of ranges such as 'lr=1e-4..1e-1 log points=4'",
    )
    parser.add_argument(
        "--method",
        choices=METHODS,
        help="random; tpe, near the better ones; halving, which stops two thirds early; grid "
        "(default: tpe)",
    )
    parser.add_argument(
        "--trials", type=options.positive, help=f"in all (default: {TRIALS}; a grid has its own)"
    )
    parser.add_argument(
        "--timeout", type=options.above_zero, metavar="SECONDS", help="begin no trial after that"
    )
    parser.add_argument(
        "--no-prune",
        dest="prune",
        action="store_false",
        help="train every trial to its end (default: stop those worse than the median)",
    )
    parser.add_argument(
        "--min-epochs",
        type=options.positive,
        metavar="EPOCHS",
        help="that every trial gets (default: a tenth of --epochs)",
    )


def _add_record(parser: argparse.ArgumentParser) -> None:
    """Where the search is recorded."""
    parser.add_argument(
        "--storage",
        metavar="URL",
        help="a database that several searches share, such as sqlite:////tmp/all.db or "
        f"postgresql://... (default: {DATABASE} in the folder)",
    )
    parser.add_argument(
        "--study", metavar="NAME", help="of the search in the storage (default: of its settings)"
    )
    parser.add_argument(
        "--resume", type=Path, metavar="FOLDER", help="continue the search in this folder"
    )


def _listed(spaces: Mapping[str, str]) -> str:
    return "; ".join(f"{name}={text}" for name, text in spaces.items())


def run(arguments: argparse.Namespace) -> int:
    """Searches and returns the exit code."""
    require("optuna", "tune", "steepest tune")
    pictures.ready("steepest tune", "tune")
    given = vars(arguments)
    folder, record = _place(given)
    search = Search.given(given) if record is None else Search.resumed(folder, record, given)
    dataset = load(search.settings)
    if record is not None and record.get("digest") != dataset.digest:
        raise UsageError(f"{search.settings.data} is not what the search in {folder} began with")
    if record is None:
        search = search.filled(dataset)
    distributions = search.distributions()
    _check(search, dataset, distributions)
    if record is None:
        folder = folders.new(given.get("out"), f"{dataset.name}-tune")
    about = {"command": "tune", "search": search.to_json(), "digest": dataset.digest}
    folders.write_json(folder / CONFIG, about | {"steepest": info()})
    _describe(search, dataset)
    tuned = _tuned(search, dataset, folder, given)
    return _finish(search, dataset, folder, tuned)


def _place(given: Mapping[str, Any]) -> tuple[Path, dict[str, Any] | None]:
    """The folder, and what config.json says of the search that was begun there, if any."""
    out = given.get("resume", given.get("out"))
    record = None if out is None else folders.begun(out, "tune")
    if "resume" in given and record is None:
        raise UsageError(f"--resume {out}: there is no search in this folder")
    if record is None:
        options.require_data(given)
    return out or Path(), record


def _check(
    search: Search, dataset: Dataset, distributions: Mapping[str, tuning.Distribution]
) -> None:
    """Raises UsageError for what trials would fail of, so that nothing is written before."""
    rng = np.random.default_rng(0)
    usual = {name: x.decode(x.draw(rng)) for name, x in distributions.items()}
    for name, x in distributions.items():
        ends = getattr(x, "values", None) or (getattr(x, "low", None), getattr(x, "high", None))
        for value in ends:
            runs.prepare(search_space.candidate(search.settings, usual | {name: value}), dataset)
    if search.method == "grid":
        for name, x in distributions.items():
            if getattr(x, "points", 0) is None:
                raise UsageError(
                    f"{name}={search.space[name]}: a grid needs points=N after it, or a list A,B,C"
                )
        points = math.prod(len(x.grid()) for x in distributions.values())
        if search.trials not in (None, points):
            raise UsageError(
                f"--trials {search.trials}: the grid has {points} points; leave it out"
            )


def _describe(search: Search, dataset: Dataset) -> None:
    runs.describe(dataset)
    epochs = search.settings.epochs
    count = "" if search.trials is None else f"{search.trials} trials in all, "
    print(f"search     {search.method}, {count}{epochs} epochs at most")
    print(f"optimizer  {search.settings.optimizer}")
    for name, text in search.space.items():
        print(f"           {name} = {text}")
    print(flush=True)


def _tuned(search: Search, dataset: Dataset, folder: Path, given: Mapping[str, Any]) -> Tuned:
    """Searches. Raises UsageError where the database fails."""

    def objective(values: dict[str, Any], trial: tuning.Trial) -> History:
        run = runs.prepare(search_space.candidate(search.settings, values), dataset)
        run.train(callbacks=[trial.callback])
        if run.interrupted:
            raise KeyboardInterrupt
        return run.history

    optuna = require("optuna.exceptions", "tune", "steepest tune")
    sqlalchemy = require("sqlalchemy.exc", "tune", "steepest tune")
    storage = search.storage or str(folder / DATABASE)
    try:
        return tuning.tune(
            objective,
            search.distributions(),
            search.method,
            search.trials,
            seed=search.settings.seed,
            storage=storage,
            study=search.name(dataset),
            prune=search.prune,
            min_epochs=search.min_epochs,
            timeout=given.get("timeout"),
            progress=not given["quiet"],
        )
    except (optuna.OptunaError, sqlalchemy.SQLAlchemyError) as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        raise UsageError(f"the record of the search cannot be kept: {cause}") from None
    except tuning.StudyError as error:
        raise UsageError(str(error).replace("with study=", "with --study")) from None


def _finish(search: Search, dataset: Dataset, folder: Path, tuned: Tuned) -> int:
    """Writes and prints what was found, and trains the best; returns the exit code."""
    best = tuned.best_trial
    settings = None if best is None else search_space.candidate(search.settings, best.values)
    title = f"{dataset.name}: search by {search.method}"
    title += ", interrupted" * (tuned.stopped == "interrupted")
    written = _write(folder, tuned, settings, title)
    written += [CONFIG] if search.storage else [CONFIG, DATABASE]
    print(f"stopped    {tuned.message}\n")
    _print_table(tuned)
    code = 1
    if settings is not None:
        print(f"\nbest       {settings.command()}", flush=True)
        code = 0 if tuned.stopped != "interrupted" else 130
    if code == 0 and settings is not None:
        code = _evaluate(settings, dataset, folder / "best")
        written.append("best/")
    print(f"written to {folder}: {', '.join(written)}")
    if tuned.stopped == "interrupted" or code == 130:
        command = f"steepest tune --resume {shlex.quote(str(folder))}"
        print(f"interrupted: continue with  {command}", file=sys.stderr)
        return 130
    return code


def _write(folder: Path, tuned: Tuned, settings: Settings | None, title: str) -> list[str]:
    """Writes the files of the search, and returns their names."""
    written = []
    best = tuned.best_trial
    if best is not None and settings is not None:
        record = {
            "trial": best.number,
            "val_loss": best.loss,
            "values": best.values,
            "settings": settings.to_json(),
            "command": settings.command(),
        }
        folders.write_json(folder / "best.json", record)
        written.append("best.json")
    if any(trial.loss is not None and math.isfinite(trial.loss) for trial in tuned.trials):
        with folders.replacing(folder / "tune.png") as part:
            pictures.readable(tuned.plot(title=title)).savefig(part, dpi=120)
        written.append("tune.png")
    with folders.replacing(folder / "tune.csv") as part:
        tuned.to_csv(part)
    return [*written, "tune.csv"]


def _evaluate(settings: Settings, dataset: Dataset, folder: Path) -> int:
    """Trains once more with the best values, and evaluates the result on the test part."""
    trained = runs.prepare(settings, dataset)
    trained.train()
    folder.mkdir(exist_ok=True)
    judging.tell(trained, judging.write(folder, trained))
    return 130 if trained.interrupted else 0


def _print_table(tuned: Tuned) -> None:
    """The best trials, lowest loss first."""
    done = [trial for trial in tuned.trials if trial.state == "done" and trial.loss is not None]
    if not done:
        return
    best = sorted(done, key=lambda trial: trial.loss or 0.0)[:SHOWN]
    names = list(tuned.space)
    rows = [["trial", "val loss", *names]]
    for trial in best:
        values = [_shown(trial.values[name]) for name in names]
        rows.append([str(trial.number), runs.digits(trial.loss or 0.0), *values])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)))


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple) and all(isinstance(one, int) for one in value):
        return "-".join(map(str, value)) or "none"
    return "full" if value is None else str(value)
