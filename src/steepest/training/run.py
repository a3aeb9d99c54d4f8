"""The state of a training run, and one epoch of it."""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from steepest.core.optimizer import Optimizer
from steepest.memory.arrays import Array
from steepest.training.accumulation import Accumulator
from steepest.training.arguments import Function, finite, trained
from steepest.training.history import History
from steepest.training.noise_scale import NoiseScale
from steepest.training.sampling import Size, batches, length, size_at
from steepest.training.stopping import Shield, Watch, monitored


@dataclass
class Progress:
    """How far the run is: ``position`` samples into ``epoch``, and that epoch's sums so far."""

    epoch: int = 1
    position: int = 0
    total: float = 0.0
    norms: float = 0.0
    measured: int = 0
    batch_size: int = 0
    seconds: float = 0.0
    optimizer_seconds: float = 0.0


@dataclass
class Run:
    """What an epoch needs, and what it changes."""

    loss: Function
    value_and_grad: Function
    params: Any
    leaves: list[Array]
    data: tuple[Array, ...]
    validation: tuple[Array, ...] | None
    metrics: dict[str, Function]
    optimizer: Optimizer
    batch_size: Size | None
    accumulate: int
    noise: NoiseScale | None
    use_ema: bool
    keep_best: bool
    seed: int
    shuffle: bool
    watch: Watch
    history: History = field(default_factory=History)
    progress: Progress = field(default_factory=Progress)
    good: list[Array] = field(default_factory=list)
    """The parameters when an epoch last began with a finite loss."""
    best: list[Array] = field(default_factory=list)
    """The parameters of the best epoch, as they were evaluated."""
    shield: Shield = field(default_factory=Shield)
    raw: list[Array] = field(default_factory=list)
    """The parameters while the averaged ones are in their place."""

    def __post_init__(self) -> None:
        self.accumulator = (
            Accumulator(self.params, norms=self.noise is not None) if self.accumulate > 1 else None
        )

    def epoch(self, bar: Any) -> dict[str, float]:
        """Trains to the end of the epoch and returns its row. Raises NonFinite."""
        if bar is not None:
            bar.set_description(f"epoch {self.progress.epoch}", refresh=False)
        for window in self.windows():
            self.update(*window)
            if bar is not None:
                bar.update()
        row = self.row()
        begun = time.perf_counter()
        row |= self.evaluated()
        row["seconds"] = self.progress.seconds + time.perf_counter() - begun
        row["optimizer_seconds"] = self.progress.optimizer_seconds
        if bar is not None:
            bar.set_postfix_str(
                ", ".join(f"{key} {row[key]:.4g}" for key in ("loss", "val_loss") if key in row),
                refresh=False,
            )
        return row

    def windows(self) -> Iterator[tuple[Any, float, int, float]]:
        """For each update left in the epoch: the mean gradient over ``accumulate`` batches, the sum
        of the loss over their samples, how many these are, and when the work on them began."""
        parts = batches(
            self.data,
            self.size,
            epoch=self.progress.epoch,
            seed=self.seed,
            shuffle=self.shuffle,
            start=self.progress.position,
        )
        while True:
            begun, grads, total, samples = time.perf_counter(), None, 0.0, 0
            for batch in islice(parts, min(self.accumulate, sys.maxsize)):
                value, grads = self.value_and_grad(self.params, *batch)
                count = len(batch[0]) if batch else 1
                total += finite(value, "loss", self.progress.epoch) * count
                samples += count
                if self.accumulator is not None:
                    self.accumulator.add(grads, count)
            if not samples:
                return
            mean = self.accumulator.take() if self.accumulator else grads
            yield trained(mean), total, samples, begun

    @property
    def size(self) -> Size | None:
        """The batch size for ``batches``; a schedule depends on the optimizer's count of updates,
        which stays the same within a window and at a skipped step."""
        schedule = self.batch_size
        if not callable(schedule):
            return schedule
        return lambda _: schedule(self.optimizer.updates)

    def update(self, grads: Any, total: float, samples: int, begun: float) -> None:
        """One step of the optimizer, and what the row of the epoch needs of it."""
        if self.progress.position == 0:
            self.good = [p.copy() for p in self.leaves]
        size = 0 if self.batch_size is None else size_at(self.batch_size, self.optimizer.updates)
        with self.shield:
            stepping = time.perf_counter()
            self.optimizer.step(grads)
            done = time.perf_counter()
            if self.noise is not None and self.accumulator is not None:
                window = self.accumulator
                self.noise.observe(window.norms, window.weights, window.norm())
            so_far, norm = self.progress, self.optimizer.last_norm
            so_far.position += samples
            so_far.total += total
            if norm is not None:
                so_far.norms += norm
                so_far.measured += 1
            so_far.batch_size = size
            so_far.optimizer_seconds += done - stepping
            so_far.seconds += time.perf_counter() - begun

    def row(self) -> dict[str, float]:
        """The row of an epoch whose updates are done, without its evaluation."""
        done = self.progress
        row = {"epoch": done.epoch, "loss": done.total / done.position}
        row["lr"] = _learning_rate(self.optimizer)
        if callable(self.batch_size):
            row["batch_size"] = done.batch_size
        if done.measured:
            row["grad_norm"] = done.norms / done.measured
        if self.noise is not None:
            row["noise_scale"] = self.noise.value
        return row

    def evaluated(self) -> dict[str, float]:
        """The loss on the validation data, and the metrics. Raises NonFinite."""
        if not self.use_ema:
            return self._evaluated()
        self.raw = [p.copy() for p in self.leaves]  # from here on, `back` undoes the exchange
        try:
            self.replace(self.averaged())
            return self._evaluated()
        finally:
            self.back()

    def _evaluated(self) -> dict[str, float]:
        row = {}
        if self.validation is not None:
            value = self.loss(self.params, *self.validation)
            row["val_loss"] = finite(value, "val_loss", self.progress.epoch)
        for name, metric in self.metrics.items():
            row[name] = float(metric(self.params, *self.data))
            if self.validation is not None:
                row[f"val_{name}"] = float(metric(self.params, *self.validation))
        return row

    def averaged(self) -> list[Array]:
        """The optimizer's averaged parameters, in the order of the leaves."""
        points, groups = self.optimizer.averaged(), self.optimizer.param_groups
        return [points[name] for group in groups for name in group["param_names"]]

    def back(self) -> None:
        """Puts the parameters back where the averaged ones are in their place."""
        if self.raw:
            self.replace(self.raw)
            self.raw = []

    def replace(self, values: list[Array]) -> None:
        """Copies values, where there are any, into the parameters."""
        with self.shield:
            for value, leaf in zip(values, self.leaves, strict=bool(values)):
                leaf[...] = value

    def finish(self, row: dict[str, float]) -> None:
        """Takes the epoch into the history, the stopping rules, the best and the plateaus."""
        with self.shield:
            self.history.rows.append(row)
            self.watch.look(row)
            self.history.stopped, self.history.message = self.watch.verdict(row)
            self.history.best_epoch = self.watch.best_epoch
            if self.keep_best and self.watch.best_epoch == row["epoch"]:
                self.best = [p.copy() for p in (self.averaged() if self.use_ema else self.leaves)]
            observers = {id(x): x for x in plateaus(self.optimizer).values()}
            for plateau in observers.values():
                plateau.observe(row[monitored(row)])
            self.progress = Progress(self.progress.epoch + 1)

    @property
    def updates_per_epoch(self) -> int | None:
        """None where a schedule decides."""
        if callable(self.batch_size):
            return None
        if self.batch_size is None:
            return 1
        return -(-length(self.data) // (self.batch_size * self.accumulate))


def plateaus(optimizer: Optimizer) -> dict[str, Any]:
    """The hyper-parameters that observe the monitored loss, by their place in the groups."""
    found = {}
    for number, group in enumerate(optimizer.param_groups):
        for name, value in group.items():
            if name in ("params", "param_names"):
                continue
            parts = value if isinstance(value, (tuple, list)) else (value,)
            for i, part in enumerate(parts):
                if hasattr(part, "observe"):
                    found[f"{number}.{name}.{i}"] = part
    return found


def _learning_rate(optimizer: Optimizer) -> float:
    """The learning rate of the first group at the last update."""
    lr = optimizer.param_groups[0]["lr"]
    return float(lr(max(optimizer.updates - 1, 0)) if callable(lr) else lr)
