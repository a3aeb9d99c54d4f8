"""``steepest predict``: the predictions of a trained model for the rows of a table, as CSV."""

import argparse
import csv
import io
import sys
import warnings
from pathlib import Path
from typing import Any

from steepest.cli import arguments as options
from steepest.cli import folders
from steepest.cli.errors import UsageError
from steepest.cli.folders import CONFIG
from steepest.cli.settings import Settings, character
from steepest.data.inputs import inputs, place, untidy_inputs
from steepest.models.trained import RunError, SampleError, TrainedModel, load


def add(commands: Any) -> None:
    """Adds the command's parser."""
    parser = options.command(
        commands,
        "predict",
        help="predict the rows of a table with what steepest train has trained",
        description=(
            "Reads a CSV file with the input columns of a training run, in any order, and writes "
            "one with a row for each of its rows: the column class or, for a regression, value. "
            "Further columns are ignored, and so is the target."
        ),
    )
    parser.add_argument("folder", metavar="RUN", type=Path, help="the folder of a training run")
    parser.add_argument("file", metavar="FILE", type=Path, help="a CSV file with a header line")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write to this file (default: standard output)"
    )
    parser.add_argument(
        "--probabilities",
        action="store_true",
        default=False,
        help="write the probability of each class, too",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        default=False,
        help="refuse columns that were not in the table of the training",
    )
    parser.add_argument(
        "--separator",
        help="between the columns of both files, such as ';' or tab (default: as in training)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Predicts and returns the exit code."""
    path, out = arguments.file, getattr(arguments, "out", None)
    try:
        model = load(arguments.folder)
    except RunError as error:
        raise UsageError(str(error)) from None
    if arguments.probabilities and model.classes is None:
        raise UsageError(f"--probabilities: {arguments.folder} has a regression, without classes")
    settings, left_out = _settings(arguments.folder)
    given = getattr(arguments, "separator", None)
    separator = character(given or settings.separator or ",")
    if out is not None and out.exists() and path.exists() and out.samefile(path):
        raise UsageError(f"--out {out} is the file with the inputs; give another one")
    known = [*settings.ignore, *left_out, *([settings.target] if settings.target else [])]
    others = known if arguments.strict else None
    x: Any
    if model.encoder is None:
        x = inputs(path, model.columns, separator=separator, others=others, raw=settings.raw)
    else:
        asked = None if given is None else separator
        x = untidy_inputs(path, model.encoder, separator=asked, usual=separator, others=others)
    try:
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always", UserWarning)
            text = _text(model, x, separator, arguments.probabilities)
    except SampleError as error:
        raise UsageError(f"{place(path, error.row, error.column)} {error.reason}") from None
    for note in dict.fromkeys(str(one.message) for one in notes):
        print(f"steepest: {path}: {note}", file=sys.stderr)
    if out is None:
        _print(text)
        return 0
    with folders.replacing(out) as part:
        part.write_text(text, encoding="utf-8", newline="\n")
    print(f"written to {out}: {len(x)} predictions")
    return 0


def _settings(folder: Path) -> tuple[Settings, list[str]]:
    """The settings of the run, and the columns that it did not use. Raises UsageError."""
    record = folders.read_json(folder / CONFIG)
    try:
        return Settings.from_json(record.get("settings")), list(record.get("left_out", []))
    except ValueError as error:
        raise UsageError(
            f"{folder / CONFIG} has other settings than this version: {error}"
        ) from None


def _text(model: TrainedModel, x: Any, separator: str, probabilities: bool) -> str:
    """The table that is written. Raises SampleError."""
    found = model.predict(x)
    table = {"value" if model.classes is None else "class": found.tolist()}
    if probabilities and model.classes is not None:
        # As text, float32 has the fewest digits that tell it from others.
        columns = model.predict_proba(x).T
        for label, column in zip(model.classes, columns, strict=True):
            table[f"probability_{label}"] = list(map(str, column))
    written = io.StringIO()
    writer = csv.writer(written, delimiter=separator, lineterminator="\n")
    writer.writerow(table)
    writer.writerows(zip(*table.values(), strict=True))
    return written.getvalue()


def _print(text: str) -> None:
    """Writes to the standard output, if it has all characters. Raises UsageError."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError as error:
        lacking = text[error.start : error.end]
        raise UsageError(
            f"the output is in {encoding}, which lacks {lacking!a}; give --out FILE, which is "
            "written in UTF-8, or set PYTHONUTF8=1"
        ) from None
    sys.stdout.write(text)
