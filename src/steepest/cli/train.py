"""``steepest train``: one run, its curves, parameters and numbers in a folder."""

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from steepest.cli import arguments as options
from steepest.cli import defaults, extending, folders, judging, pictures, runs
from steepest.cli.errors import UsageError, reason
from steepest.cli.folders import CONFIG
from steepest.cli.runs import Run
from steepest.cli.settings import Settings, load
from steepest.training import Callback, Epoch, logs

HISTORY = "history.csv"
CHECKPOINT = "checkpoint.safetensors"
SAVES = 20  # of a run, unless asked for more


def add(commands: Any) -> None:
    """Adds the command's parser."""
    parser = options.command(
        commands,
        "train",
        help="train a small network on the digits or on your own table",
        description=(
            "Trains a small network and writes report.md, pictures, params.npz, history.csv and "
            "config.json to a folder. The parameters are those of the epoch with the lowest "
            f"validation loss. {CHECKPOINT} is what --resume continues from: an unfinished run to "
            "the same result, to the last bit, and a finished one to more --epochs."
        ),
        epilog=options.SYNTAX,
    )
    options.add_data(parser, nargs="?")
    options.add_optimizer(parser)
    options.add_training(parser)
    parser.add_argument("--seed", type=options.count, help="of split, weights and order")
    parser.add_argument(
        "--checkpoint-every",
        type=options.count,
        metavar="EPOCHS",
        help=f"save the run so often, 0 for never (default: {SAVES} times in a run)",
    )
    parser.add_argument(
        "--resume",
        type=Path,
        nargs="?",
        const=None,
        metavar="FOLDER",
        help="continue the run in this folder, or in that of --out if there is one; with more "
        "--epochs, also one that is finished",
    )
    parser.add_argument(
        "--log", choices=["jsonl"], help="write history.jsonl, too, a line after each epoch"
    )
    parser.add_argument(
        "--tensorboard", action="store_true", help="write the folder tensorboard, too"
    )
    options.add_output(parser, "DATA")
    parser.set_defaults(run=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Trains and returns the exit code."""
    pictures.ready("steepest train")
    given = vars(arguments)
    place, record = options.place(given, "train")
    settings = _settings(given, place, record)
    before = None if record is None else record.get("epochs")
    longer = before is not None and before != settings.epochs
    finished = record is not None and record.get("stopped", "") not in ("", "interrupted")
    finished = finished and not longer
    if not finished or "data" in given:
        dataset = load(settings)
        if record is not None and record.get("digest") != dataset.digest:
            raise UsageError(f"{settings.data} is not what the run in {place} began with")
    if record is not None and finished:
        print(f"finished   {record.get('message')}")
        return 1 if record["stopped"] == "nonfinite" else 0
    decided = ""
    if record is None:
        settings, decided = defaults.chosen(settings, dataset)
    trained = runs.prepare(settings, dataset)
    extended = ""
    if longer and place is not None:
        if given.get("checkpoint_every") == 0:
            raise UsageError("--checkpoint-every 0: a run is extended from its checkpoint")
        shorter = runs.prepare(dataclasses.replace(settings, epochs=before), dataset)
        extended = extending.extend(place / CHECKPOINT, shorter, trained)
    folder = place if record is not None and place is not None else folders.new(place, dataset.name)
    folders.write_json(folder / CONFIG, trained.record())
    _describe(trained, decided)
    if extended:
        print(f"extended   {extended}", flush=True)
    every = given.get("checkpoint_every", max(1, trained.epochs // SAVES))
    saving: dict[str, Any] = {}
    if every:
        saving = {"checkpoint": folder / CHECKPOINT, "checkpoint_every": every}
        saving["resume"] = record is not None
    callbacks = _callbacks(given, folder)
    trained.train(progress=not arguments.quiet, callbacks=callbacks, **saving)
    return _finish(folder, trained, resumed=record is not None)


def _settings(
    given: Mapping[str, Any], folder: Path | None, record: Mapping[str, Any] | None
) -> Settings:
    """The settings of a new run, or those of the one that goes on. Raises UsageError."""
    asked = Settings.given(given)
    if record is None or folder is None:
        return Settings(**asked)
    try:
        saved = Settings.from_json(record.get("settings"))
    except ValueError:
        raise UsageError(f"{folder / CONFIG} does not say what the run is made of") from None
    data = asked.pop("data", saved.data)  # may have been moved; the digest tells if it is the same
    epochs = extending.more_epochs(folder, record, asked)
    folders.agree(folder, asked, dataclasses.asdict(saved))
    return dataclasses.replace(saved, data=data, epochs=epochs or saved.epochs)


def _callbacks(given: Mapping[str, Any], folder: Path) -> list[Callback]:
    """What writes a row after each epoch."""
    found = [_log(logs.csv, folder / HISTORY)]
    if given.get("log") == "jsonl":
        found.append(_log(logs.jsonl, folder / "history.jsonl"))
    if given.get("tensorboard"):
        found.append(_log(logs.tensorboard, folder / "tensorboard"))
    return found


def _log(make: Callable[[Path], Callback], path: Path) -> Callback:
    """A log that says which file cannot be written."""
    log = make(path)

    def write(epoch: Epoch) -> None:
        try:
            log(epoch)
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {reason(error)}") from None

    return write


def _describe(trained: Run, decided: str) -> None:
    runs.describe(trained.dataset)
    runs.describe_network(trained.net)
    if decided:
        print(f"chosen     {decided}")
    print(f"optimizer  {trained.rule}, lr {trained.schedule!r}")
    batch = trained.batch_size or "full"
    print(f"training   {trained.epochs} epochs at most, batch size {batch}", flush=True)


def _finish(folder: Path, trained: Run, resumed: bool) -> int:
    """Writes and prints what came of the run; returns the exit code."""
    if trained.history.rows or not resumed:  # else what was written before says more
        verdict = judging.write(folder, trained)
        if trained.stopped not in ("interrupted", "nonfinite", "epochs"):
            with suppress(OSError):
                (folder / CHECKPOINT).unlink(missing_ok=True)
        judging.tell(trained, verdict)
        print(f"written to {folder}: {', '.join(verdict.files)}")
    if trained.interrupted:
        command = f"steepest train --resume {shlex.quote(str(folder))}"
        print(
            f"interrupted: what has been trained so far is kept; continue with  {command}",
            file=sys.stderr,
        )
        return 130
    return 1 if trained.diverged else 0
