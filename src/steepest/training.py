"""Training: batches, the loop, and its stopping rules.

``fit`` minimises a loss written in NumPy. It reads like the loop one would write by hand:

    for epoch in 1 .. epochs:
        for batch in batches(data):
            value, gradients = value_and_grad(params, *batch)
            optimizer.step(gradients)
        measure, record, call the callbacks, decide whether to stop

Everything random comes from (seed, epoch), so the order of the samples in any epoch is the same
in every run and does not depend on the epochs before it.
"""

import math
import operator
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from steepest.arrays import Array
from steepest.extras import require
from steepest.history import COLUMNS, History, Stopped
from steepest.optimizers.base import Optimizer
from steepest.optimizers.structure import flatten

__all__ = ["Callback", "Epoch", "batches", "fit"]

Function = Callable[..., Any]


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
        return {name: value for name, value in self.row.items() if name not in COLUMNS}


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
    [[0, 4], [2, 3], [1]]
    """
    n = _length(data) if data else 0
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

    loss: function ``loss(params, *batch)`` that returns one number, the mean over the batch. It
        is written in NumPy and must not change its arguments; autograd makes its gradients.
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
    restore_best: where patience and validation are given, put back the parameters of the epoch
        with the lowest val_loss at the end (the optimizer's state stays as it is).
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
    made = optimizer if isinstance(optimizer, Optimizer) else optimizer(params)
    run = _Run(
        loss=loss,
        value_and_grad=value_and_grad or _autograd(loss),
        params=params,
        leaves=_leaves(params, made),
        data=_arrays(data, "data"),
        validation=None if validation is None else _arrays(validation, "validation"),
        metrics=_metrics(metrics or {}),
        optimizer=made,
        batch_size=None if batch_size is None else _count("batch_size", batch_size, 1),
        seed=_count("seed", seed, 0),
        shuffle=shuffle,
    )
    if min_delta < 0:
        raise ValueError(f"min_delta = {min_delta}: expected 0 or more")
    if batch_size is not None and not run.data:
        raise ValueError(f"batch_size = {batch_size}: expected None for a loss without data")
    watch = _Watch(
        target=-math.inf if target is None else float(target),
        patience=math.inf if patience is None else _count("patience", patience, 1),
        min_delta=float(min_delta),
    )
    keep_best = restore_best and patience is not None and validation is not None
    history = History()
    best: list[Array] = []
    epochs = _count("epochs", epochs, 1)
    with _bar(epochs * run.updates_per_epoch, progress) as bar:
        for epoch in range(1, epochs + 1):
            try:
                row = run.epoch(epoch, bar)
            except _NonFinite as error:
                _put(run.good, run.leaves)
                history.stopped = "nonfinite"
                history.message = f"{error}; lower the learning rate, or clip the gradients"
                warnings.warn(history.message, RuntimeWarning, stacklevel=2)
                break
            history.rows.append(row)
            history.stopped, history.message = watch.look(row)
            history.best_epoch = watch.best_epoch
            if keep_best and watch.best_epoch == epoch:
                best = [p.copy() for p in run.leaves]
            seen = Epoch(epoch, epochs, row, history, params, made)
            stopping = [callback for callback in callbacks if callback(seen)]
            if stopping and not history.stopped:
                history.stopped = "callback"
                history.message = f"stopped by {_name(stopping[0])} after epoch {epoch}"
            if history.stopped:
                break
        else:
            history.stopped, history.message = "epochs", f"all {epochs} epochs are done"
    if best:
        _put(best, run.leaves)
        history.message += f"; the parameters are those of epoch {history.best_epoch}"
    return history


class _NonFinite(Exception):
    """The loss is infinite or NaN."""


@dataclass
class _Run:
    """What an epoch needs: functions, parameters and data."""

    loss: Function
    value_and_grad: Function
    params: Any
    leaves: list[Array]
    data: tuple[Array, ...]
    validation: tuple[Array, ...] | None
    metrics: dict[str, Function]
    optimizer: Optimizer
    batch_size: int | None
    seed: int
    shuffle: bool
    good: list[Array] = field(default_factory=list)
    """The parameters when an epoch last began with a finite loss."""

    @property
    def updates_per_epoch(self) -> int:
        return 1 if self.batch_size is None else -(-_length(self.data) // self.batch_size)

    def epoch(self, epoch: int, bar: Any) -> dict[str, float]:
        """Trains for one epoch and returns its row. Raises _NonFinite."""
        begun = time.perf_counter()
        if bar is not None:
            bar.set_description(f"epoch {epoch}", refresh=False)
        swept, in_step = self.sweep(epoch, bar)
        row = {"epoch": epoch} | swept
        if self.validation is not None:
            row["val_loss"] = _finite(self.loss(self.params, *self.validation), "val_loss", epoch)
        for name, metric in self.metrics.items():
            row[name] = float(metric(self.params, *self.data))
            if self.validation is not None:
                row[f"val_{name}"] = float(metric(self.params, *self.validation))
        row |= {"seconds": time.perf_counter() - begun, "optimizer_seconds": in_step}
        if bar is not None:
            bar.set_postfix_str(
                ", ".join(f"{key} {row[key]:.4g}" for key in ("loss", "val_loss") if key in row),
                refresh=False,
            )
        return row

    def sweep(self, epoch: int, bar: Any) -> tuple[dict[str, float], float]:
        """One pass over the data, an update for each batch; a row and the optimizer's seconds."""
        optimizer = self.optimizer
        total, samples, in_step = 0.0, 0, 0.0
        norms: list[float] = []
        parts = batches(
            self.data, self.batch_size, epoch=epoch, seed=self.seed, shuffle=self.shuffle
        )
        for i, batch in enumerate(parts):
            value, grads = self.value_and_grad(self.params, *batch)
            value = _finite(value, "loss", epoch)
            if i == 0:
                self.good = [p.copy() for p in self.leaves]
            begun = time.perf_counter()
            optimizer.step(grads)
            in_step += time.perf_counter() - begun
            size = len(batch[0]) if batch else 1
            total += value * size
            samples += size
            if optimizer.last_norm is not None:
                norms.append(optimizer.last_norm)
            if bar is not None:
                bar.update()
        row = {"loss": total / samples, "lr": _learning_rate(optimizer)}
        if norms:
            row["grad_norm"] = sum(norms) / len(norms)
        return row, in_step


@dataclass
class _Watch:
    """The stopping rules that look at the monitored loss."""

    target: float
    patience: float
    min_delta: float
    best: float = math.inf
    best_epoch: int | None = None
    reference: float = math.inf
    waited: int = 0

    def look(self, row: Mapping[str, float]) -> tuple[Stopped, str]:
        """Whether to stop after this epoch, and why."""
        name = "val_loss" if "val_loss" in row else "loss"
        value, epoch = row[name], int(row["epoch"])
        if value < self.best:
            self.best, self.best_epoch = value, epoch
        self.waited += 1
        if value < self.reference - self.min_delta:
            self.reference, self.waited = value, 0
        if value <= self.target:
            return "target", f"{name} = {value:.4g} reached the target in epoch {epoch}"
        if self.waited >= self.patience:
            return "patience", f"{name} has not improved since epoch {epoch - self.waited}"
        return "", ""


def _autograd(loss: Function) -> Function:
    """Loss and gradients by the autograd package."""

    def checked(params: Any, *batch: Array) -> Any:
        value = loss(params, *batch)
        _scalar(getattr(value, "_value", value), "loss")
        return value

    autograd = require("autograd", "train", "a loss without value_and_grad")
    return autograd.value_and_grad(checked)  # type: ignore[no-any-return]


def _scalar(value: Any, what: str) -> float:
    if np.ndim(value) != 0:
        raise ValueError(
            f"{what} has shape {np.shape(value)}; expected one number, such as the mean"
        )
    return float(value)


def _finite(value: Any, what: str, epoch: int) -> float:
    number = _scalar(value, what)
    if not math.isfinite(number):
        raise _NonFinite(f"{what} = {number} in epoch {epoch}")
    return number


def _leaves(params: Any, optimizer: Optimizer) -> list[Array]:
    """The arrays of params. Raises TypeError or ValueError if they are not the optimizer's."""
    _, names, leaves = flatten(params)
    for name, leaf in zip(names, leaves, strict=True):
        if not isinstance(leaf, np.ndarray):
            raise TypeError(f"parameter {name!r} is a {type(leaf).__name__}; expected an array")
    stepped = [p for group in optimizer.param_groups for p in group["params"]]
    if [id(p) for p in stepped] != [id(p) for p in leaves]:
        raise ValueError(
            "the optimizer was made over other arrays than params; "
            "make it over these very arrays, or give its class"
        )
    return leaves


def _arrays(data: Any, what: str) -> tuple[Array, ...]:
    """Data as a tuple of arrays of one length. Raises TypeError or ValueError."""
    if hasattr(data, "__array__"):
        data = (data,)
    if not isinstance(data, (tuple, list)):
        raise TypeError(f"{what} is a {type(data).__name__}; expected a tuple of arrays")
    found = tuple(np.asarray(x) for x in data)
    for i, x in enumerate(found):
        if x.ndim == 0:
            raise TypeError(f"{what}[{i}] is one value; expected an array with one row per sample")
    if found and _length(found) == 0:
        raise ValueError(f"{what} has no samples")
    return found


def _length(data: Sequence[Array]) -> int:
    lengths = {len(x) for x in data}
    if len(lengths) != 1:
        shapes = ", ".join(str(x.shape) for x in data)
        raise ValueError(f"data has arrays of shapes {shapes}; expected equal first lengths")
    return lengths.pop()


def _metrics(metrics: Mapping[str, Function]) -> dict[str, Function]:
    for name in metrics:
        if name in COLUMNS or name.startswith("val_"):
            raise ValueError(f"metric {name!r}: the history has a column of that name; rename it")
    return dict(metrics)


def _count(name: str, value: Any, low: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} = {value!r}: expected an integer") from None
    if number < low:
        raise ValueError(f"{name} = {number}: expected {low} or more")
    return number


def _put(values: list[Array], leaves: list[Array]) -> None:
    for value, leaf in zip(values, leaves, strict=bool(values)):
        leaf[...] = value


def _learning_rate(optimizer: Optimizer) -> float:
    """The learning rate of the first group at the last update."""
    lr = optimizer.param_groups[0]["lr"]
    return float(lr(max(optimizer.updates - 1, 0)) if callable(lr) else lr)


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


@contextmanager
def _bar(total: int, show: bool) -> Iterator[Any]:
    if not show:
        yield None
        return
    with require("tqdm.auto", "train", "progress=True").tqdm(total=total, unit="update") as bar:
        yield bar
