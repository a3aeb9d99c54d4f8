"""A training run: data, network and optimizer made from its settings, and its results."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from steepest.checkpoint import CheckpointError
from steepest.cli import folders, syntax
from steepest.cli.errors import UsageError
from steepest.cli.folders import CONFIG
from steepest.cli.settings import Settings
from steepest.core.information import info
from steepest.data.datasets import Dataset
from steepest.extras import require
from steepest.memory.arrays import Array
from steepest.models.networks import MLP, Params, accuracy, r_squared
from steepest.optimizers import Optimizer
from steepest.schedules import Schedule
from steepest.training import Epoch, fit
from steepest.training.history import History

# Multiplications of a forward pass up to which one thread does them.
SMALL_PRODUCT = 10**8

Results = Mapping[str, Mapping[str, float]]


@dataclass
class Run:
    """A run, finished or not."""

    settings: Settings
    dataset: Dataset
    net: MLP
    params: Params
    optimizer: Optimizer
    lr: float
    schedule: Schedule
    batch_size: int | None
    epochs: int
    history: History = field(default_factory=History)
    interrupted: bool = False

    @property
    def rule(self) -> str:
        """The name of the optimizer's class."""
        return type(self.optimizer).__name__

    @property
    def score(self) -> str:
        """The name of the metric."""
        return "accuracy" if self.net.task == "classification" else "r2"

    @property
    def diverged(self) -> bool:
        """Whether the loss became infinite or NaN."""
        return self.history.stopped == "nonfinite"

    @property
    def stopped(self) -> str:
        """What ended the run, in a word; empty before it has ended."""
        return "interrupted" if self.interrupted else self.history.stopped

    def scored(self, params: Params, x: Any, y: Any) -> float:
        """The metric."""
        measure = accuracy if self.net.task == "classification" else r_squared
        return measure(self.net.predict(params, x), y)

    def train(self, **options: Any) -> None:
        """Trains, with further options of fit; Ctrl-C ends the training, not the program."""
        settings = self.settings
        callbacks = options.pop("callbacks", ())

        def remember(epoch: Epoch) -> None:
            self.history = epoch.history

        try:
            with self._blas_threads(), warnings.catch_warnings():
                # Overflow: told as the reason of the stop.
                warnings.simplefilter("ignore", RuntimeWarning)
                self.history = fit(
                    self.net.loss,
                    self.params,
                    self.dataset.train,
                    self.optimizer,
                    value_and_grad=self.net.value_and_grad,
                    validation=self.dataset.validation,
                    metrics={self.score: self.scored},
                    callbacks=[remember, *callbacks],
                    epochs=self.epochs,
                    batch_size=self.batch_size,
                    accumulate=settings.accumulate,
                    use_ema=settings.ema is not None,
                    patience=settings.patience or self.epochs,
                    seed=settings.seed,
                    **options,
                )
        except CheckpointError as error:
            raise UsageError(str(error)) from None
        except FloatingPointError as error:  # of an optimizer with nonfinite="raise"
            self.history.stopped, self.history.message = "nonfinite", str(error)
        except KeyboardInterrupt:
            self.interrupted = True
            self.history.message = f"interrupted after {len(self.history)} epochs"

    def _blas_threads(self) -> AbstractContextManager[Any]:
        """One thread for matrix products too small to gain from two: on a busy machine, threads
        that wait for each other make them ten times slower."""
        batch = self.batch_size or len(self.dataset.train.y)
        if batch * self.net.size > SMALL_PRODUCT:
            return nullcontext()
        control = require("threadpoolctl", "train", "steepest train")
        limits: AbstractContextManager[Any] = control.threadpool_limits(1, user_api="blas")
        return limits

    @np.errstate(over="ignore", invalid="ignore")  # as in training: BLAS may set flags for nothing
    def results(self) -> Results:
        """Loss and metric on each part of the data, with the parameters as they are."""
        found = {}
        for name, (x, y) in self.dataset.parts.items():
            predicted = self.net.predict(self.params, x)
            loss = {"loss": self.net.loss(self.params, x, y)}
            found[name] = loss | measured(self.dataset, predicted, y)
        return found

    def arrays(self) -> dict[str, Any]:
        """The parameters by name, what turns raw data into theirs, and the labels of classes."""
        named = {
            f"{layer}.{name}": array
            for layer, group in self.params.items()
            for name, array in group.items()
        }
        labels = {"classes": self.dataset.labels} if self.dataset.classes else {}
        return named | self.dataset.scaling | labels

    def record(self) -> dict[str, Any]:
        """What config.json says of a run, begun or done."""
        settings, dataset = self.settings, self.dataset
        return {
            "command": "train",
            "data": settings.data,
            "target": settings.target,
            "network": list(self.net.sizes),
            "optimizer": settings.optimizer,
            "lr": self.lr,
            "schedule": repr(self.schedule),
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "clip": settings.clip,
            "weight_decay": self.optimizer.param_groups[0]["weight_decay"],
            "loss": self.net.objective,
            "delta": self.net.delta,
            "init": settings.init,
            "accumulate": settings.accumulate,
            "ema": settings.ema,
            "patience": settings.patience,
            "seed": settings.seed,
            "task": dataset.task,
            "features": dataset.features,
            "columns": dataset.columns and dataset.columns.to_json(),
            "left_out": dataset.left_out,
            "classes": dataset.classes,
            "samples": {name: len(part.y) for name, part in dataset.parts.items()},
            "stopped": self.stopped,
            "message": self.history.message,
            "best_epoch": self.history.best_epoch,
            "settings": settings.to_json(),
            "digest": dataset.digest,
            "steepest": info(),
        }


def measured(dataset: Dataset, predicted: Array, y: Array) -> dict[str, float]:
    """The metrics of predictions: accuracy, or R² and the error in the unit of the target."""
    if dataset.task == "classification":
        return {"accuracy": accuracy(predicted, y)}
    error = float(np.sqrt(np.mean((predicted - y) ** 2)))
    return {
        "r2": r_squared(predicted, y),
        "rmse": error * float(dataset.scaling["y_scale"]),
    }


def prepare(settings: Settings, dataset: Dataset, option: str = "--optimizer") -> Run:
    """Network, fresh parameters and optimizer; ``option`` is what its errors are told of.

    Raises UsageError, and ValueError for settings that ``defaults`` has not filled in.
    """
    samples, inputs = dataset.train.x.shape
    epochs, hidden = settings.epochs, settings.hidden
    if epochs is None or hidden is None:
        raise ValueError("epochs and hidden are None: fill them in with defaults.filled")
    net = syntax.network(inputs, hidden, len(dataset.classes), settings.loss, settings.init)
    try:
        params = net.initial(settings.seed)
    except ValueError as error:  # more than an array can have
        raise UsageError(f"--hidden {','.join(map(str, hidden))}: {error}") from None
    batch_size = settings.batch_size and min(settings.batch_size, samples)
    if batch_size is None and settings.accumulate > 1:
        raise UsageError(f"--accumulate {settings.accumulate} needs a --batch-size other than full")
    each = batch_size * settings.accumulate if batch_size else samples
    updates = epochs * math.ceil(samples / each)
    lr = syntax.rate(settings.optimizer, settings.lr, option)
    schedule = syntax.schedule(settings.schedule, lr, updates)
    options: dict[str, Any] = {"lr": schedule}
    if settings.weight_decay is not None:
        options["weight_decay"] = settings.weight_decay
    if settings.ema is not None:
        options["ema"] = settings.ema
    if settings.clip is not None:
        options["clip"] = syntax.clipping(settings.clip)
    return Run(
        settings=settings,
        dataset=dataset,
        net=net,
        params=params,
        optimizer=syntax.optimizer(settings.optimizer, params, options, option),
        lr=lr,
        schedule=schedule,
        batch_size=batch_size,
        epochs=epochs,
    )


def report(trained: Run, results: Results) -> None:
    """Prints why a run ended, and what it came to."""
    history = trained.history
    print(f"stopped    {history.message}")
    columns = list(results["train"])
    rows = [["", *columns]]
    for part, row in results.items():
        cells = [digits(x) if name == "loss" else percent(name, x) for name, x in row.items()]
        rows.append([part, *cells])
    print("", *aligned(rows, 10, 12), sep="\n")
    if len(history):
        total, inside = np.mean(history["seconds"]), np.mean(history["optimizer_seconds"])
        print(f"\nseconds per epoch: {total:.4f}, of these in the optimizer: {inside:.4f}")


def write(
    folder: Path,
    trained: Run,
    results: Results,
    judged: Mapping[str, Any],
    others: Callable[[], list[str]],
) -> list[str]:
    """Writes the files of a run, config.json last, and returns their names; ``judged`` is what
    config.json says beside the results, ``others`` writes further files and names them."""
    history = trained.history
    written = ["params.npz", "history.csv", CONFIG]
    with folders.replacing(folder / "params.npz") as part:
        np.savez(part, **trained.arrays())
    with folders.replacing(folder / "history.csv") as part:
        history.to_csv(part)
    if len(history):
        score = percent(trained.score, results["test"][trained.score])
        name = trained.dataset.name
        title = f"{name} with {trained.rule}: test {trained.score} {score}"
        title += f", interrupted after {len(history)} epochs" * trained.interrupted
        with folders.replacing(folder / "curves.png") as part:
            history.plot(part, title=title)
        written.insert(0, "curves.png")
    written = [*others(), *written]
    folders.write_json(folder / CONFIG, trained.record() | {"results": results} | dict(judged))
    return written


def describe(dataset: Dataset) -> None:
    """Prints what is trained on."""
    sizes = ", ".join(f"{name} {len(part.y)}" for name, part in dataset.parts.items())
    print(f"data       {dataset.name}: {len(dataset.features)} inputs; samples: {sizes}")
    kinds = f", {len(dataset.classes)} classes" if dataset.classes else ""
    print(f"task       {dataset.task} ({dataset.reason}){kinds}")
    for line in dataset.decisions:
        print(f"table      {line}")


def describe_network(net: MLP) -> None:
    """Prints what is trained."""
    layers = " - ".join(map(str, net.sizes))
    print(f"network    {layers}, {net.size} parameters in float32")


def aligned(rows: Sequence[Sequence[str]], first: int, others: int) -> list[str]:
    """The lines of a table: its first column at the left, the others at the right, with these
    widths or wider ones, so that no two columns touch.

    >>> aligned([["", "loss"], ["test", "1.0000e+17"]], 6, 8)
    ['              loss', 'test    1.0000e+17']
    """
    lengths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths = [max(first, lengths[0]), *(max(others, length + 2) for length in lengths[1:])]
    return [
        row[0].ljust(widths[0])
        + "".join(x.rjust(n) for x, n in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]


def digits(loss: float) -> str:
    """A loss as it is shown.

    >>> digits(0.5), digits(1e17)
    ('0.50000', '1.0000e+17')
    """
    return f"{loss:.5f}" if loss < 1e5 else f"{loss:.4e}"


def percent(score: str, value: float) -> str:
    """A metric as it is shown.

    >>> percent("accuracy", 0.5), percent("r2", 0.5), percent("rmse", 1e17)
    ('50.00 %', '0.5000', '1.0000e+17')
    """
    if score == "accuracy":
        return f"{100 * value:.2f} %"
    return f"{value:.4f}" if abs(value) < 1e5 else f"{value:.4e}"
