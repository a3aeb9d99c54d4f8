"""The options that several commands share, and the types of arguments.

An option that is not given is absent from the parsed arguments: its default is in Settings.
"""

import argparse
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from steepest.cli import folders
from steepest.cli.defaults import HIDDEN, LEAST_EPOCHS, UPDATES, WEIGHT_DECAYS
from steepest.cli.errors import UsageError
from steepest.cli.settings import Settings
from steepest.cli.syntax import LEARNING_RATES, RATES
from steepest.data.datasets import MAX_INTEGER_CLASSES
from steepest.fields import nearest
from steepest.models.initializers import INITIALIZERS
from steepest.models.losses import LOSSES
from steepest.options.clip import CLIPS

SYNTAX = (
    "OPTIMIZER, SCHEDULE, CLIP and LOSS take further arguments after a colon, as in Python: "
    "--optimizer 'sgd:momentum=0.9, nesterov=True', --schedule step:step_size=200, "
    "--schedule 'cosine:warmup=50', --clip global_norm:1.0, --loss huber:delta=0.5. Lengths of "
    "schedules are in updates; one called steps is by default the length of the run."
)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all others, with the nearest option or value."""

    words: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """What ``parse_args`` gives: words that are left over are an error, here of the command."""
        self.words = sys.argv[1:] if args is None else list(args)
        found, others = super().parse_known_args(args, namespace)
        if others:
            self.error(f"unrecognized arguments: {' '.join(others)}")
        return found, others

    def error(self, message: str) -> NoReturn:
        words = " ".join(message.split())
        hint = self._nearest_option() or _nearest_choice(words)
        self.exit(2, f"{self.prog}: error: {words}{hint}; see  {self.prog} --help\n")

    def _nearest_option(self) -> str:
        """What an option that there is not may have meant."""
        known = [name for action in self._actions for name in action.option_strings]
        for word in self.words:
            name = word.partition("=")[0]
            if word.startswith("--") and not any(option.startswith(name) for option in known):
                return nearest(name, known)
        return ""


def _nearest_choice(message: str) -> str:
    """What a value that there is not may have meant.

    >>> _nearest_choice("argument --task: invalid choice: 'regresion' (choose from 'regression')")
    '; did you mean regression?'
    """
    found = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
    return nearest(found[1], re.findall(r"[\w-]+", found[2])) if found else ""


def command(commands: Any, name: str, **texts: str) -> argparse.ArgumentParser:
    """A new parser whose options leave no trace where they are not given."""
    found: argparse.ArgumentParser = commands.add_parser(
        name, argument_default=argparse.SUPPRESS, **texts
    )
    return found


def add_data(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    """Which data, and which of its columns."""
    parser.add_argument(
        "data", metavar="DATA", nargs=nargs, help="digits, or a CSV file with a header line"
    )
    parser.add_argument("--target", metavar="COLUMN", help="the column to predict (CSV)")
    parser.add_argument(
        "--task",
        choices=["classification", "regression"],
        help="default: classification for a target of text, true/false, or at most "
        f"{MAX_INTEGER_CLASSES} different whole numbers; else regression",
    )
    parser.add_argument(
        "--ignore",
        metavar="COLUMN",
        action="append",
        help="a column to leave out; can be given again (CSV)",
    )
    parser.add_argument(
        "--separator", help="between the columns, such as ';' or tab (CSV; default: found)"
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="refuse what is not numbers without gaps, in UTF-8, in place of deciding what becomes "
        "of it (CSV)",
    )


def require_data(given: Mapping[str, Any]) -> None:
    """Ends as argparse does where there is no DATA, which only a resumed run can do without."""
    if "data" not in given:
        given["parser"].error("the following arguments are required: DATA")


def place(given: Mapping[str, Any], command: str) -> tuple[Path | None, dict[str, Any] | None]:
    """The folder that is asked for, and what config.json says of the run to go on with, if any.

    Raises UsageError for a folder without such a run; ends as argparse does where there is none and
    DATA is missing.
    """
    out = given.get("out")
    if "resume" not in given:
        require_data(given)
        return out, None
    folder = given["resume"] or out
    if folder is None:
        raise UsageError("--resume: which run? give its folder")
    if out not in (None, folder):
        raise UsageError(f"--resume {folder} --out {out}: a run continues in its own folder")
    record = folders.begun(folder, command)
    if record is None and given["resume"] is not None:
        raise UsageError(f"--resume {folder}: there is no run in this folder")
    if record is None:
        require_data(given)
    return folder, record


def add_optimizer(parser: argparse.ArgumentParser) -> None:
    """Which optimizer, at which rate."""
    parser.add_argument("--optimizer", help=f"one of steepest list (default: {Settings.optimizer})")
    parser.add_argument(
        "--lr", type=number, help=f"learning rate (default: {rates()}, else the rule's own)"
    )


def rates() -> str:
    """The learning rates that are not the rules' own defaults, as text."""
    return ", ".join(f"{lr} for {rule}" for rule, lr in LEARNING_RATES.items())


def decays() -> str:
    """The weight decays that are not the rules' own defaults, as text."""
    return ", ".join(
        f"{decay} for {rule} with hidden layers" for rule, decay in WEIGHT_DECAYS.items()
    )


def add_training(parser: argparse.ArgumentParser) -> None:
    """How a network is trained."""
    parser.add_argument(
        "--schedule",
        help=f"of the learning rate: {', '.join(RATES)} (default: {Settings.schedule})",
    )
    parser.add_argument(
        "--epochs",
        type=positive,
        help=f"(default: as many as make {UPDATES} updates, and {LEAST_EPOCHS} at least)",
    )
    parser.add_argument(
        "--batch-size",
        type=batch_size,
        help=f"samples, or full (default: {Settings.batch_size})",
    )
    parser.add_argument("--clip", help=f"of the gradients: {', '.join(CLIPS)}, such as norm:1.0")
    parser.add_argument(
        "--weight-decay", type=number, help=f"(default: {decays()}, else the rule's own)"
    )
    parser.add_argument(
        "--hidden",
        type=hidden,
        metavar="UNITS",
        help="units of each hidden layer, such as 128,64, or none for a linear model (default: "
        f"{HIDDEN[0]}; train takes a linear model where its validation loss is lower)",
    )
    parser.add_argument(
        "--init",
        help=f"initial weights: {', '.join(INITIALIZERS)} (default: he_normal before a ReLU, "
        "xavier_uniform at the end)",
    )
    parser.add_argument(
        "--loss",
        help=f"{', '.join(LOSSES)} (default: squared for a regression, cross_entropy for classes)",
    )
    parser.add_argument(
        "--accumulate",
        type=positive,
        metavar="K",
        help="make each update with the mean gradient of K batches (default: 1)",
    )
    parser.add_argument(
        "--ema",
        type=share,
        metavar="RATE",
        help="keep averaged parameters with this decay rate, such as 0.999, and evaluate and "
        "write those; asgd and the schedule-free rules have an average of their own, at any RATE",
    )
    parser.add_argument(
        "--patience",
        type=positive,
        metavar="EPOCHS",
        help="stop after so many epochs without a lower validation loss (default: never)",
    )


def add_output(parser: argparse.ArgumentParser, name: str) -> None:
    """Where to write, and how much to say."""
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help=f"(default: runs/{name}-<date>-<time>)"
    )
    parser.add_argument("--quiet", action="store_true", default=False, help="no progress bar")


def number(text: str) -> float:
    """A number, 0 or more."""
    return _number(text, lambda x: 0 <= x < math.inf, "0 or more")


def share(text: str) -> float:
    """A number from 0 to 1, this excluded."""
    return _number(text, lambda x: 0 <= x < 1, "from 0 to below 1")


def above_zero(text: str) -> float:
    """A number, more than 0."""
    return _number(text, lambda x: 0 < x < math.inf, "more than 0")


def _number(text: str, allowed: Callable[[float], bool], limits: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not allowed(found):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number, {limits}")
    return found


def count(text: str) -> int:
    """An integer, 0 or more."""
    return _integer(text, 0, "an integer, 0 or more")


def positive(text: str) -> int:
    """An integer, 1 or more."""
    return _integer(text, 1, "an integer, 1 or more")


def _integer(text: str, low: int, expected: str) -> int:
    digits = text.strip() if text.isascii() else ""
    if not digits.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}")
    if len(digits) > 18:
        raise argparse.ArgumentTypeError(f"{text[:18]}…: expected an integer below 10 to the 18")
    if int(digits) < low:
        raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}")
    return int(digits)


def batch_size(text: str) -> int | None:
    """A number of samples, or None for all."""
    return None if text == "full" else _integer(text, 1, "an integer, 1 or more, or full")


def hidden(text: str) -> tuple[int, ...]:
    """The units of each hidden layer."""
    expected = "integers, 1 or more, with commas between them, or none"
    return () if text == "none" else tuple(_integer(x, 1, expected) for x in text.split(","))


def numbers(text: str) -> list[float]:
    """Numbers with commas between them, each once."""
    return list(dict.fromkeys(number(part.strip()) for part in text.split(",")))


def counts(text: str) -> list[int]:
    """Integers with commas between them, each once."""
    return list(dict.fromkeys(count(part.strip()) for part in text.split(",")))
