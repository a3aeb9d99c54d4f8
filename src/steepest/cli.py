"""The command line: ``steepest train``, ``steepest list``, ``steepest info``.

A command is a function that adds its parser; the parser's ``run`` default takes the parsed
arguments and returns the exit code: 0 done, 1 the training diverged, 2 an error of the user's,
with one line on the standard error, 130 interrupted.
"""

import argparse
import ast
import dataclasses
import difflib
import inspect
import io
import json
import math
import os
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from steepest import clip, data
from steepest.extras import MissingExtra, require
from steepest.history import History
from steepest.information import info
from steepest.models import MLP, Params, accuracy, r_squared
from steepest.optimizers import RULES, Optimizer
from steepest.schedules import SCHEDULES, Schedule
from steepest.training import Epoch, fit

__all__ = ["main"]

CLIPS = {"value": clip.value, "norm": clip.norm, "global_norm": clip.global_norm}

# Learning rates at which `steepest train digits` works well; other rules use their own default.
LEARNING_RATES = {"sgd": 0.1, "adamw": 0.003, "lion": 0.001}

# Multiplications of a forward pass up to which one thread does them.
SMALL_PRODUCT = 10**8


class UsageError(ValueError):
    """Arguments that cannot be used; the message says which and what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code; argparse's own errors raise SystemExit(2)."""
    parser = argparse.ArgumentParser(
        prog="steepest", description="Optimizers of machine learning, fused and fast on the CPU."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (_add_train, _add_list, _add_info):
        add(commands)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # formulas, where the encoding has no β
    arguments = parser.parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except (UsageError, data.DataError, MissingExtra) as error:
        print(f"steepest: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


# list and info


def _add_list(commands: Any) -> None:
    parser = commands.add_parser("list", help="the optimizers and their formulas")
    parser.add_argument("--markdown", action="store_true", help="as the table of the README")
    parser.set_defaults(run=_list)


def _list(arguments: argparse.Namespace) -> int:
    if arguments.markdown:
        print("| class | what it does | formula |\n|---|---|---|")
        for cls in RULES.values():
            formula = "<br>".join(
                f"`{' '.join(line.split())}`" for line in cls.formula.splitlines()
            )
            print(f"| `{cls.__name__}` | {_summary(cls)} | {formula} |")
        return 0
    width = max(map(len, RULES))
    for rule, cls in RULES.items():
        print(f"{rule:<{width}}  {_summary(cls)}")
        print(textwrap.indent(cls.formula, " " * (width + 4)), end="\n\n")
    return 0


def _summary(cls: type[Optimizer]) -> str:
    """The first line of a rule's documentation."""
    return inspect.cleandoc(cls.__doc__ or "").partition("\n")[0]


def _add_info(commands: Any) -> None:
    parser = commands.add_parser("info", help="version, instruction set, threads")
    parser.set_defaults(run=_info)


def _info(arguments: argparse.Namespace) -> int:
    facts = info()
    width = max(map(len, facts))
    for name, value in facts.items():
        shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
        print(f"{name:<{width}}  {shown}")
    return 0


# train


def _add_train(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        help="train a small network on the digits or on your own table",
        description=(
            "Trains a small network and writes curves.png, params.npz, history.csv and "
            "config.json to a folder. The parameters are those of the epoch with the lowest "
            "validation loss."
        ),
        epilog=(
            "OPTIMIZER, SCHEDULE and CLIP take further arguments after a colon, as in Python: "
            "--optimizer 'sgd:momentum=0.9, nesterov=True', --schedule step:step_size=200, "
            "--schedule 'cosine:warmup=50', --clip global_norm:1.0. Lengths of schedules are in "
            "updates; one called steps is by default the length of the run."
        ),
    )
    rates = ", ".join(f"{lr} for {rule}" for rule, lr in LEARNING_RATES.items())
    parser.add_argument("data", metavar="DATA", help="digits, or a CSV file with a header line")
    parser.add_argument("--target", metavar="COLUMN", help="the column to predict (CSV)")
    parser.add_argument(
        "--task",
        choices=["classification", "regression"],
        help="default: classification for a target of text, true/false, or at most "
        f"{data.MAX_INTEGER_CLASSES} different whole numbers; else regression",
    )
    parser.add_argument(
        "--ignore",
        metavar="COLUMN",
        action="append",
        default=[],
        help="a column to leave out; can be given again (CSV)",
    )
    parser.add_argument(
        "--separator", default=",", help="between the columns, such as ';' or tab (CSV; default ,)"
    )
    parser.add_argument(
        "--optimizer", default="adamw", help="one of steepest list (default: adamw)"
    )
    parser.add_argument(
        "--lr", type=_number, help=f"learning rate (default: {rates}, else the rule's own)"
    )
    parser.add_argument(
        "--schedule",
        default="cosine",
        help=f"of the learning rate: {', '.join(SCHEDULES)} (default: cosine)",
    )
    parser.add_argument("--epochs", type=_positive, default=60, help="(default: 60)")
    parser.add_argument(
        "--batch-size", type=_batch_size, default=64, help="samples, or full (default: 64)"
    )
    parser.add_argument("--clip", help=f"of the gradients: {', '.join(CLIPS)}, such as norm:1.0")
    parser.add_argument("--weight-decay", type=_number, help="(default: the rule's own)")
    parser.add_argument(
        "--hidden",
        type=_hidden,
        default=[256],
        metavar="UNITS",
        help="units of each hidden layer, such as 128,64, or none (default: 256)",
    )
    parser.add_argument(
        "--patience",
        type=_positive,
        metavar="EPOCHS",
        help="stop after so many epochs without a lower validation loss (default: never)",
    )
    parser.add_argument("--seed", type=_count, default=0, help="of split, weights and order")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="(default: runs/DATA-<date>-<time>)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=_train)


@dataclasses.dataclass
class _Trained:
    """A run, finished or not, and all that is written about it."""

    dataset: data.Dataset
    net: MLP
    params: Params
    optimizer: Optimizer
    settings: dict[str, Any]
    history: History = dataclasses.field(default_factory=History)
    interrupted: bool = False

    @property
    def rule(self) -> str:
        """The name of the optimizer's class."""
        return type(self.optimizer).__name__

    @property
    def score(self) -> str:
        """The name of the metric."""
        return "accuracy" if self.net.task == "classification" else "r2"

    def scored(self, params: Params, x: Any, y: Any) -> float:
        """The metric."""
        measure = accuracy if self.net.task == "classification" else r_squared
        return measure(self.net.predict(params, x), y)

    def results(self) -> dict[str, dict[str, float]]:
        """Loss and metric on each part of the data, with the parameters as they are."""
        found = {}
        for name, (x, y) in self.dataset.parts.items():
            found[name] = {
                "loss": self.net.loss(self.params, x, y),
                self.score: self.scored(self.params, x, y),
            }
            if self.net.task == "regression":
                error = self.net.predict(self.params, x) - y
                scale = float(self.dataset.scaling["y_scale"])
                found[name]["rmse"] = float(np.sqrt(np.mean(error**2))) * scale
        return found


def _train(arguments: argparse.Namespace) -> int:
    require("matplotlib", "train", "steepest train")
    dataset = _load(arguments)
    trained, options = _prepare(arguments, dataset)
    folder = _folder(arguments.out, dataset.name)
    _describe(trained, arguments.epochs)

    def remember(epoch: Epoch) -> None:
        trained.history = epoch.history

    try:
        with _blas_threads(trained), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # overflow: told as the stop's reason
            trained.history = fit(
                trained.net.loss,
                trained.params,
                dataset.train,
                trained.optimizer,
                value_and_grad=trained.net.value_and_grad,
                validation=dataset.validation,
                metrics={trained.score: trained.scored},
                callbacks=[remember],
                **options,
            )
    except KeyboardInterrupt:
        trained.interrupted = True
        trained.history.message = f"interrupted after {len(trained.history)} epochs"
    results = trained.results()
    _report(trained, results)
    _write(folder, trained, results)
    if trained.interrupted:
        print("interrupted: what has been trained so far is kept", file=sys.stderr)
        return 130
    return 1 if trained.history.stopped == "nonfinite" else 0


def _blas_threads(trained: _Trained) -> AbstractContextManager[Any]:
    """One thread for matrix products too small to gain from two: on a busy machine, threads that
    wait for each other make them ten times slower."""
    batch = trained.settings["batch_size"] or len(trained.dataset.train.y)
    if batch * trained.net.size > SMALL_PRODUCT:
        return nullcontext()
    control = require("threadpoolctl", "train", "steepest train")
    limits: AbstractContextManager[Any] = control.threadpool_limits(1, user_api="blas")
    return limits


def _load(arguments: argparse.Namespace) -> data.Dataset:
    if arguments.data == "digits":
        for name in ("target", "task", "ignore"):
            if getattr(arguments, name):
                raise UsageError(f"--{name} is for CSV files; the digits need none")
        return data.digits(seed=arguments.seed)
    separator = {"tab": "\t", "\\t": "\t"}.get(arguments.separator, arguments.separator)
    if len(separator) != 1:
        raise UsageError(f"--separator {arguments.separator!r}: expected one character, or tab")
    path = Path(arguments.data)
    if not path.exists():
        raise UsageError(f"{path}: there is no such file; give a CSV file, or the word digits")
    if arguments.target is None:
        raise UsageError("--target COLUMN is missing: which column is to be predicted?")
    return data.table(
        path,
        arguments.target,
        task=arguments.task,
        ignore=arguments.ignore,
        separator=separator,
        seed=arguments.seed,
    )


def _prepare(
    arguments: argparse.Namespace, dataset: data.Dataset
) -> tuple[_Trained, dict[str, Any]]:
    """Network, optimizer and the options of fit. Raises UsageError."""
    samples, inputs = dataset.train.x.shape
    net = MLP((inputs, *arguments.hidden, max(1, len(dataset.classes))), dataset.task)
    params = net.initial(arguments.seed)
    batch_size = arguments.batch_size and min(arguments.batch_size, samples)
    updates = arguments.epochs * (math.ceil(samples / batch_size) if batch_size else 1)

    rule, positional, options = _call("--optimizer", arguments.optimizer, RULES)
    for name in ("lr", "weight_decay", "clip"):
        if name in options:
            option = "--" + name.replace("_", "-")
            raise UsageError(f"--optimizer {arguments.optimizer}: give {name} as {option}")
    lr = arguments.lr if arguments.lr is not None else LEARNING_RATES.get(rule)
    if lr is None:
        lr = inspect.signature(RULES[rule]).parameters["lr"].default
    options["lr"] = schedule = _schedule(arguments.schedule, lr, updates)
    if arguments.weight_decay is not None:
        options["weight_decay"] = arguments.weight_decay
    if arguments.clip is not None:
        kind, limits, named = _call("--clip", arguments.clip, CLIPS)
        options["clip"] = _made("--clip", arguments.clip, CLIPS[kind], *limits, **named)
    optimizer = _made(
        "--optimizer", arguments.optimizer, RULES[rule], params, *positional, **options
    )
    settings = {
        "data": arguments.data,
        "target": arguments.target,
        "network": list(net.sizes),
        "optimizer": arguments.optimizer,
        "lr": lr,
        "schedule": repr(schedule),
        "epochs": arguments.epochs,
        "batch_size": batch_size,
        "clip": arguments.clip,
        "weight_decay": optimizer.param_groups[0]["weight_decay"],
        "patience": arguments.patience,
        "seed": arguments.seed,
    }
    run = {
        "epochs": arguments.epochs,
        "batch_size": batch_size,
        "patience": arguments.patience or arguments.epochs,
        "seed": arguments.seed,
        "progress": not arguments.quiet,
    }
    return _Trained(dataset, net, params, optimizer, settings), run


def _schedule(text: str, lr: float, updates: int) -> Schedule:
    name, positional, named = _call("--schedule", text, SCHEDULES)
    fields = [field.name for field in dataclasses.fields(SCHEDULES[name])]
    if "steps" in fields and not positional:
        named.setdefault("steps", updates)
    made: Schedule = _made("--schedule", text, SCHEDULES[name], lr, *positional, **named)
    return made


def _call(
    option: str, text: str, known: Mapping[str, Any]
) -> tuple[str, list[Any], dict[str, Any]]:
    """Takes ``name:arguments`` apart. Raises UsageError."""
    name, _, inside = text.partition(":")
    name = name.strip().replace("-", "_")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"{option} {text}: expected one of {', '.join(known)}{hint}")
    try:
        call: Any = ast.parse(f"f({inside})", mode="eval").body
        if ast.dump(getattr(call, "func", call)) != "Name(id='f', ctx=Load())":
            raise SyntaxError(inside)  # such as f(1) + (2)
        positional = [ast.literal_eval(x) for x in call.args]
        named = {str(x.arg): ast.literal_eval(x.value) for x in call.keywords}
    except (SyntaxError, ValueError):
        raise UsageError(
            f"{option} {text}: expected {name}, or {name}:arguments written as in Python"
        ) from None
    return name, positional, named


def _made(option: str, text: str, make: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """The object of that name. Raises UsageError for arguments that it does not take."""
    try:
        return make(*args, **named)
    except (TypeError, ValueError) as error:
        reason = str(error).replace(f"{make.__name__}.__init__()", make.__name__)
        raise UsageError(f"{option} {text}: {reason}") from None


def _folder(out: Path | None, name: str) -> Path:
    """The new folder of the run. Raises UsageError if it cannot be made or has files in it."""
    folder = out or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UsageError(f"folder {folder} is not empty; give another one with --out")
    except OSError as error:
        raise UsageError(f"folder {folder} cannot be made: {error.strerror}") from None
    return folder


def _describe(trained: _Trained, epochs: int) -> None:
    dataset, net = trained.dataset, trained.net
    sizes = ", ".join(f"{name} {len(part.y)}" for name, part in dataset.parts.items())
    print(f"data       {dataset.name}: {len(dataset.features)} inputs; samples: {sizes}")
    kinds = f", {len(dataset.classes)} classes" if dataset.classes else ""
    print(f"task       {dataset.task} ({dataset.reason}){kinds}")
    layers = " - ".join(map(str, net.sizes))
    print(f"network    {layers}, {net.size} parameters in float32")
    batch = trained.settings["batch_size"] or "full"
    print(f"optimizer  {trained.rule}, lr {trained.settings['schedule']}")
    print(f"training   {epochs} epochs at most, batch size {batch}", flush=True)


def _percent(score: str, value: float) -> str:
    return f"{100 * value:.2f} %" if score == "accuracy" else f"{value:.4f}"


def _report(trained: _Trained, results: Mapping[str, Mapping[str, float]]) -> None:
    history = trained.history
    print(f"stopped    {history.message}")
    columns = list(results["train"])
    print(f"\n{'':10}" + "".join(f"{name:>12}" for name in columns))
    for part, row in results.items():
        shown = (
            f"{value:.5f}" if name == "loss" else _percent(name, value)
            for name, value in row.items()
        )
        print(f"{part:10}" + "".join(f"{text:>12}" for text in shown))
    if len(history):
        total, inside = np.mean(history["seconds"]), np.mean(history["optimizer_seconds"])
        print(f"\nseconds per epoch: {total:.4f}, of these in the optimizer: {inside:.4f}")


def _write(folder: Path, trained: _Trained, results: Mapping[str, Mapping[str, float]]) -> None:
    """Writes the files of the run."""
    dataset, history = trained.dataset, trained.history
    arrays = {
        f"{layer}.{name}": array
        for layer, group in trained.params.items()
        for name, array in group.items()
    }
    np.savez(folder / "params.npz", **arrays, **dataset.scaling)  # type: ignore[arg-type]
    history.to_csv(folder / "history.csv")
    config = trained.settings | {
        "task": dataset.task,
        "features": dataset.features,
        "classes": dataset.classes,
        "samples": {name: len(part.y) for name, part in dataset.parts.items()},
        "stopped": "interrupted" if trained.interrupted else history.stopped,
        "message": history.message,
        "best_epoch": history.best_epoch,
        "results": {
            part: {name: _finite(value) for name, value in row.items()}
            for part, row in results.items()
        },
        "steepest": info(),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    written = ["params.npz", "history.csv", "config.json"]
    if len(history):
        score = _percent(trained.score, results["test"][trained.score])
        history.plot(
            folder / "curves.png",
            title=f"{dataset.name} with {trained.rule}: test {trained.score} {score}",
        )
        written.insert(0, "curves.png")
    print(f"written to {folder}: {', '.join(written)}")


def _finite(value: float) -> float | None:
    """The number, or None for what JSON has no word for."""
    return value if math.isfinite(value) else None


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number, 0 or more")
    return number


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected an integer, 0 or more")
    return int(text)


def _positive(text: str) -> int:
    number = _count(text)
    if number == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected an integer, 1 or more")
    return number


def _batch_size(text: str) -> int | None:
    return None if text == "full" else _positive(text)


def _hidden(text: str) -> list[int]:
    return [] if text == "none" else [_positive(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
