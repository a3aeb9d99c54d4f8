"""The training loop, ``fit``, and the ``Epoch`` that its callbacks get."""

import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from steepest.core.optimizer import Optimizer
from steepest.extras import require
from steepest.fields import count, real
from steepest.optimizers.lbfgs import LBFGS
from steepest.training.arguments import (
    Function,
    NonFinite,
    autograd,
    leaves_of,
    named,
    objects,
    samples,
    size,
    still_trained,
)
from steepest.training.history import COLUMNS, History, values
from steepest.training.noise_scale import NoiseScale
from steepest.training.resuming import RunSaver
from steepest.training.run import Run
from steepest.training.sampling import Size
from steepest.training.stopping import Watch

_LOSS = "a number that a loss can reach, or None", lambda x: not math.isnan(x)
_SPAN = "0 or more", lambda x: 0 <= x < math.inf


@dataclass(frozen=True, repr=False)
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

    def __repr__(self) -> str:
        return f"Epoch({self.epoch} of {self.epochs}: {values(self.row)})"

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


def fit(
    loss: Function,
    params: Any,
    data: Any,
    optimizer: Optimizer | Callable[[Any], Optimizer],
    *,
    epochs: int,
    batch_size: Size | None = None,
    accumulate: int = 1,
    value_and_grad: Function | None = None,
    validation: Any = None,
    metrics: Mapping[str, Function] | None = None,
    use_ema: bool = False,
    target: float | None = None,
    patience: int | None = None,
    min_delta: float = 0.0,
    restore_best: bool = True,
    callbacks: Sequence[Callback] = (),
    noise_scale: bool | NoiseScale = False,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 1,
    resume: bool = False,
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
    optimizer: an optimizer made with these arrays, or a function that makes one from
        ``params``, such as the class ``st.Adam``.
    epochs: passes over the data, at most.
    batch_size: None for full-batch descent, 1 for single samples, k for mini-batches; or a schedule
        ``updates -> number``, rounded, for batches that grow where the rate would fall.
    accumulate: make each update with the mean gradient of this many batches, so with
        accumulate · batch_size samples in the memory of batch_size; see ``Accumulator``.
    value_and_grad: function ``value_and_grad(params, *batch)`` that returns the loss and the
        gradients, these with the structure of ``params``. It takes the place of autograd; the
        loss is then only evaluated on validation data and may be plain NumPy.
    validation: data like ``data``, on which the loss is evaluated after each epoch.
    metrics: functions like the loss by name, evaluated on all of data and validation after each
        epoch; recorded, not optimised.
    use_ema: evaluate validation loss and metrics with what the optimizer's ``averaged()`` gives:
        the averaged parameters of a rule that averages (ASGD, schedule-free), of ``average=`` or of
        ``ema=``. Training continues with the parameters themselves, which are in ``params`` at the
        end.
    target: stop once the monitored loss is this or less.
    patience: stop after this many epochs in a row in which the monitored loss did not fall by
        more than ``min_delta`` below its best.
    restore_best: where patience and validation are given, put back the parameters of the epoch
        with the lowest val_loss at the end (the optimizer's state stays as it is). With
        ``use_ema`` these are the averaged ones, which had that loss.
    callbacks: functions called with an ``Epoch`` after each epoch; one that returns True stops.
        They may write into the arrays of ``params``, not put others in their place.
    noise_scale: record the gradient noise scale, from the micro-batches of ``accumulate``; a
        ``NoiseScale`` says how it is smoothed.
    checkpoint: a file (safetensors) to which the run is saved at its start where there is none,
        after every ``checkpoint_every`` epochs, at its end and on Ctrl-C: parameters, optimizer,
        history and everything else that it needs to continue. See ``st.load`` for reading it.
    resume: continue from that file, with the bits of an uninterrupted run; begin at the start
        if there is no such file. Data, settings and hyper-parameters must be those that
        the saved run began with, else CheckpointError; ``epochs``, ``target`` and ``patience`` may
        differ.
    seed, shuffle: see ``batches``.
    progress: show a progress bar (tqdm) on the standard error.

    The monitored loss is val_loss where there is validation data, else the training loss. After
    each epoch it is given to every hyper-parameter with a method ``observe``, such as
    ``st.schedules.plateau``.

    If the loss becomes infinite or NaN, the run stops with a RuntimeWarning, and the parameters are
    reset to where an epoch last began with a finite loss; nothing is saved. After any other
    exception, also Ctrl-C, the parameters are those of the last update.

    Returns the History. Raises TypeError or ValueError for arguments that do not fit, MissingExtra
    (an ImportError) without autograd when it is needed, CheckpointError (a ValueError) for a
    file that is not of this run, and OSError where the file cannot be written.

    >>> import numpy as np, steepest as st
    >>> x = np.linspace(-1, 1, 20)
    >>> p = {"w": np.zeros(()), "b": np.zeros(())}
    >>> def loss(p, x, y):
    ...     return ((p["w"] * x + p["b"] - y) ** 2).mean()
    >>> history = st.fit(loss, p, (x, 2 * x + 1), st.SGD(p, lr=0.3), epochs=200, target=1e-12)
    >>> history.stopped, round(float(p["w"]), 5), round(float(p["b"]), 5)
    ('target', 2.0, 1.0)
    """
    made = _made(optimizer, params)
    found = samples(data, "data")
    run = Run(
        loss=loss,
        value_and_grad=value_and_grad or autograd(loss),
        params=params,
        leaves=leaves_of(params, made),
        data=found,
        validation=None if validation is None else samples(validation, "validation"),
        metrics=named(metrics or {}),
        optimizer=made,
        batch_size=size(batch_size, found),
        accumulate=count("accumulate", accumulate, 1),
        noise=NoiseScale() if noise_scale is True else noise_scale or None,
        use_ema=use_ema,
        keep_best=restore_best and patience is not None and validation is not None,
        seed=count("seed", seed, 0),
        shuffle=shuffle,
        watch=Watch(
            target=-math.inf if target is None else real("target", target, *_LOSS),
            patience=math.inf if patience is None else count("patience", patience, 1),
            min_delta=real("min_delta", min_delta, *_SPAN),
        ),
    )
    _check(run)
    epochs = count("epochs", epochs, 1)
    saver = RunSaver(run, checkpoint, count("checkpoint_every", checkpoint_every, 1))
    if resume:
        saver.resume()
    saver.begin()
    history = run.history
    with _bar(run, epochs, progress) as bar, run.shield.raised(), saver.rescuing():
        while not history.stopped and run.progress.epoch <= epochs:
            try:
                row = run.epoch(bar)
            except NonFinite as error:
                history.stopped = "nonfinite"
                history.message = f"{error}; lower the learning rate, or clip the gradients"
                run.replace(run.good)
                warnings.warn(history.message, RuntimeWarning, stacklevel=2)
                break
            except TypeError as error:
                reason = objects(data, "data") or objects(validation, "validation")
                if not reason:
                    raise
                raise TypeError(f"{reason} ({error})") from error
            run.finish(row)
            seen = Epoch(int(row["epoch"]), epochs, row, history, params, made)
            stopping = [callback for callback in callbacks if callback(seen)]
            still_trained(params, run.leaves, made)
            if stopping and not history.stopped:
                history.stopped = "callback"
                history.message = f"stopped by {_name(stopping[0])} after epoch {seen.epoch}"
            saver.after_epoch()
        saver.save()
        if not history.stopped:
            history.stopped, history.message = "epochs", f"all {epochs} epochs are done"
        if run.best:
            run.replace(run.best)
            which = "averaged parameters" if use_ema else "parameters"
            history.message += f"; the {which} are those of epoch {history.best_epoch}"
    return history


def _check(run: Run) -> None:
    """Raises ValueError for settings that do not go together, or would have no effect."""
    if run.accumulate > 1 and run.batch_size is None:
        raise ValueError(f"accumulate = {run.accumulate} needs a batch_size: None is all of data")
    if run.noise is not None and run.accumulate == 1:
        raise ValueError("noise_scale needs several micro-batches an update: give accumulate=2")
    if run.use_ema and not (run.metrics or run.validation is not None):
        raise ValueError("use_ema=True has no effect without validation or metrics")
    if run.use_ema:
        try:
            run.averaged()
        except ValueError as error:
            raise ValueError(f"use_ema=True: {error}") from None


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


@contextmanager
def _bar(run: Run, epochs: int, show: bool) -> Iterator[Any]:
    if not show:
        yield None
        return
    each, done = run.updates_per_epoch, run.progress
    total = None if each is None else epochs * each
    initial = 0 if each is None else (done.epoch - 1) * each
    tqdm = require("tqdm.auto", "train", "progress=True").tqdm
    with tqdm(total=total, initial=initial, unit="update") as bar:
        yield bar


def _made(optimizer: Any, params: Any) -> Optimizer:
    """The optimizer, made if it is a function that makes one."""
    given = isinstance(optimizer, (Optimizer, LBFGS))
    made: Optimizer | LBFGS = optimizer if given else optimizer(params)
    if isinstance(made, LBFGS):
        raise TypeError(
            "fit gives gradients to its optimizer, and LBFGS evaluates the function itself: "
            "call its step(function) in a loop"
        )
    return made
