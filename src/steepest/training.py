"""Training: batches, the loop, its stopping rules, and the history of a run.

``fit`` minimises a loss written in NumPy. It reads like the loop one would write by hand:

    for epoch in 1 .. epochs:
        for batch in batches(data):
            value, gradients = value_and_grad(params, *batch)
            optimizer.step(gradients)
        measure, record, call the callbacks, decide whether to stop

Everything random comes from (seed, epoch), so the order of the samples in any epoch is the same
in every run and does not depend on the epochs before it.
"""

import csv
import math
import operator
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from steepest.arrays import Array
from steepest.extras import require
from steepest.optimizers.base import Optimizer
from steepest.optimizers.structure import flatten

__all__ = ["Callback", "Epoch", "History", "batches", "fit"]

Function = Callable[..., Any]
Stopped = Literal["", "epochs", "target", "patience", "callback", "nonfinite"]

# Columns of the history that a metric may not take the name of.
_COLUMNS = ("epoch", "loss", "val_loss", "lr", "grad_norm", "seconds", "optimizer_seconds")


@dataclass
class History:
    """What happened in a run: one row per finished epoch, and why it ended.

    Columns: ``epoch`` from 1, ``loss`` (mean over the epoch's samples, each taken just before the
    update it led to), ``val_loss`` where there is validation data, the metrics by name and as
    ``val_<name>``, ``lr`` of the first group at the last update, ``grad_norm`` (mean norm of all
    gradients before clipping, where the optimizer measures it), ``seconds`` for the whole epoch
    and ``optimizer_seconds`` spent in ``optimizer.step``.

    ``stopped`` says what ended the run: ``"epochs"`` (all done), ``"target"``, ``"patience"``,
    ``"callback"`` or ``"nonfinite"``, empty while it goes on; ``message`` says it in words.
    ``best_epoch`` is the epoch with the lowest val_loss, or loss where there is no validation.

    >>> history = History([{"epoch": 1, "loss": 4.0}, {"epoch": 2, "loss": 1.0}])
    >>> history["loss"], len(history), history.columns
    ([4.0, 1.0], 2, ['epoch', 'loss'])
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    stopped: Stopped = ""
    message: str = ""
    best_epoch: int | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, column: str) -> list[float]:
        if column not in self.columns:
            raise KeyError(f"{column!r}: expected one of {', '.join(self.columns) or 'no columns'}")
        return [row.get(column, math.nan) for row in self.rows]

    @property
    def columns(self) -> list[str]:
        """The names of all columns, in order."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def to_csv(self, path: str | Path) -> None:
        """Writes one line per epoch, with a header; a number reads back as the same float."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)

    def plot(self, path: str | Path | None = None, title: str = "") -> Any:
        """Draws the curves, saves them where a path is given, and returns the matplotlib Figure.

        One panel for the loss, one for each metric, one for the learning rate, and one for the
        norm of the gradients if it was measured. Needs no display. Raises MissingExtra without
        matplotlib, ValueError when no epoch has finished.
        """
        figure = _figure(self, title)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure


@dataclass(frozen=True)
class Epoch:
    """What a callback sees after an epoch.

    ``row`` is the epoch's row of the history, see ``History``. ``params``, ``optimizer`` and
    ``history`` are the live objects of the run.
    """

    epoch: int
    epochs: int
    row: dict[str, float]
    history: History
    params: Any
    optimizer: Optimizer

    @property
    def loss(self) -> float:
        """The mean training loss of this epoch."""
        return self.row["loss"]

    @property
    def val_loss(self) -> float | None:
        """The loss on the validation data, None where there is none."""
        return self.row.get("val_loss")

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of this epoch, those on validation data as ``val_<name>``."""
        return {name: value for name, value in self.row.items() if name not in _COLUMNS}


class Callback(Protocol):
    """A function called after each epoch; it ends the training by returning True."""

    def __call__(self, epoch: Epoch, /) -> bool | None: ...


def batches(
    data: Sequence[Array],
    batch_size: int | None = None,
    *,
    epoch: int = 1,
    seed: int = 0,
    shuffle: bool = True,
) -> Iterator[tuple[Array, ...]]:
    """Cuts arrays of the same length into batches, for one epoch.

    Every sample comes once; the last batch may be smaller. ``batch_size=None`` gives all of the
    data as one batch, in its own order. With ``shuffle`` the order is that of
    ``numpy.random.default_rng((seed, epoch)).permutation(n)``. Raises ValueError for arrays of
    different lengths or a batch size below 1.

    >>> import numpy as np
    >>> x = np.arange(5)
    >>> [b.tolist() for b, in batches((x,), 2, shuffle=False)]
    [[0, 1], [2, 3], [4]]
    >>> [b.tolist() for b, in batches((x,), 2, seed=1, epoch=3)]
    [[4, 3], [0, 1], [2]]
    """
    n = _length(data)
    if batch_size is None:
        yield tuple(data)
        return
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size}: expected 1 or more, or None for all samples")
    order = np.random.default_rng((seed, epoch)).permutation(n) if shuffle else None
    for start in range(0, n, batch_size):
        part = slice(start, start + batch_size)
        chosen = part if order is None else order[part]
        yield tuple(x[chosen] for x in data)


def fit(
    loss: Function,
    params: Any,
    data: Any,
    optimizer: Optimizer | Callable[[Any], Optimizer],
    *,
    epochs: int,
    batch_size: int | None = None,
    value_and_grad: Function | None = None,
    validation: Any = None,
    metrics: Mapping[str, Function] | None = None,
    target: float | None = None,
    patience: int | None = None,
    min_delta: float = 0.0,
    restore_best: bool = True,
    callbacks: Sequence[Callback] = (),
    seed: int = 0,
    shuffle: bool = True,
    progress: bool = False,
) -> History:
    """Minimises a loss over data, changing ``params`` in place.

    loss: function ``loss(params, *batch)`` that returns one number, the mean over the batch,
        written with ``autograd.numpy`` in place of ``numpy``.
    params: an array, or nested lists and dicts of arrays, as the loss takes them.
    data: a tuple of arrays with one entry per sample along the first axis, such as ``(x, y)``; or
        a single array; or ``()`` for a loss without data.
    optimizer: an optimizer made over these very arrays, or a function that makes one from
        ``params``, such as the class ``st.Adam``.
    epochs: passes over the data, at most.
    batch_size: None for full-batch descent, 1 for single samples, k for mini-batches.
    value_and_grad: function ``value_and_grad(params, *batch)`` that returns the loss and the
        gradients, these with the structure of ``params``. It takes the place of autograd; the
        loss is then only evaluated on validation data and may be plain NumPy.
    validation: data like ``data``, on which the loss is evaluated after each epoch.
    metrics: functions like the loss by name, evaluated on all of data and validation after each
        epoch; recorded, not optimised.
    target: stop once the monitored loss is this or less.
    patience: stop after this many epochs in a row in which the monitored loss did not fall by
        more than ``min_delta`` below its best.
    restore_best: after patience ran out on validation data, or all epochs are done with patience
        set, put back the parameters of the best epoch (the optimizer's state stays as it is).
    callbacks: functions called with an ``Epoch`` after each epoch; one that returns True stops.
    seed, shuffle: see ``batches``.
    progress: show a progress bar (tqdm) on the standard error.

    The monitored loss is val_loss where there is validation data, else the training loss.

    If the loss becomes infinite or NaN, the run stops with a RuntimeWarning, and the parameters go
    back to where an epoch last began with a finite loss. Any other exception, also Ctrl-C, leaves
    the parameters as the last whole update made them.

    Returns the History. Raises TypeError or ValueError for arguments that do not fit, and
    MissingExtra (an ImportError) without autograd when it is needed.

    >>> import numpy as np, steepest as st
    >>> x = np.linspace(-1, 1, 20)
    >>> p = {"w": np.zeros(()), "b": np.zeros(())}
    >>> def loss(p, x, y):
    ...     return ((p["w"] * x + p["b"] - y) ** 2).mean()
    >>> history = st.fit(loss, p, (x, 2 * x + 1), st.SGD(p, lr=0.3), epochs=200, target=1e-12)
    >>> history.stopped, round(float(p["w"]), 5), round(float(p["b"]), 5)
    ('target', 2.0, 1.0)
    """
    run = _Run(
        loss=loss,
        params=params,
        data=_arrays(data, "data"),
        validation=None if validation is None else _arrays(validation, "validation"),
        optimizer=optimizer if isinstance(optimizer, Optimizer) else optimizer(params),
        value_and_grad=value_and_grad or _autograd(loss),
        metrics=dict(metrics or {}),
        epochs=_count("epochs", epochs, 1),
        batch_size=None if batch_size is None else _count("batch_size", batch_size, 1),
        target=-math.inf if target is None else float(target),
        patience=None if patience is None else _count("patience", patience, 1),
        min_delta=float(min_delta),
        restore_best=restore_best,
        callbacks=tuple(callbacks),
        seed=_count("seed", seed, 0),
        shuffle=shuffle,
    )
    run.check()
    with _bar(run.epochs * run.updates_per_epoch, progress) as bar:
        return run.train(bar)


class _NonFinite(Exception):
    """The loss is infinite or NaN."""


@dataclass
class _Run:
    """One call of fit: its arguments, checked, and the loop."""

    loss: Function
    params: Any
    data: tuple[Array, ...]
    validation: tuple[Array, ...] | None
    optimizer: Optimizer
    value_and_grad: Function
    metrics: dict[str, Function]
    epochs: int
    batch_size: int | None
    target: float
    patience: int | None
    min_delta: float
    restore_best: bool
    callbacks: tuple[Callback, ...]
    seed: int
    shuffle: bool

    def check(self) -> None:
        """Raises TypeError or ValueError where the arguments do not go together."""
        _, names, self.leaves = flatten(self.params)
        for name, leaf in zip(names, self.leaves, strict=True):
            if not isinstance(leaf, np.ndarray):
                raise TypeError(
                    f"parameter {name!r} is a {type(leaf).__name__}; expected a NumPy array"
                )
        stepped = [p for group in self.optimizer.param_groups for p in group["params"]]
        if len(stepped) != len(self.leaves) or any(
            p is not leaf for p, leaf in zip(stepped, self.leaves, strict=True)
        ):
            raise ValueError(
                "the optimizer was made over other arrays than params; "
                "make it over these very arrays, or give its class"
            )
        if self.batch_size is not None and not self.data:
            raise ValueError(f"batch_size = {self.batch_size}: expected None for a loss without data")
        if self.min_delta < 0:
            raise ValueError(f"min_delta = {self.min_delta}: expected 0 or more")
        for name in self.metrics:
            if name in _COLUMNS or name.startswith("val_"):
                raise ValueError(f"metric {name!r}: expected a name that is no column of History")
        self.samples = _length(self.data) if self.data else 1
        self.updates_per_epoch = -(-self.samples // (self.batch_size or self.samples))

    def train(self, bar: Any) -> History:
        """The loop."""
        history = History()
        monitor = "loss" if self.validation is None else "val_loss"
        best, best_params, waited = math.inf, None, 0
        good = None
        for epoch in range(1, self.epochs + 1):
            begun = time.perf_counter()
            before = _Kept(self.leaves)
            bar.set_description(f"epoch {epoch}/{self.epochs}")
            try:
                row = {"epoch": float(epoch)} | self.sweep(epoch, before, bar)
                row |= self.measure()
            except _NonFinite as error:
                ...
        return history
