"""The learning-rate range test: a short training with a growing rate, and what its loss says."""

import copy
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from steepest import schedules
from steepest.core.optimizer import Optimizer
from steepest.extras import require
from steepest.fields import count, real
from steepest.memory.arrays import Array
from steepest.training import batches
from steepest.training.arguments import autograd, samples, scalar, size, trained

__all__ = ["LRFound", "find_lr"]

Function = Callable[..., Any]

FALL = 0.01  # of the highest loss: a smaller fall says nothing
NOISE = 6  # standard deviations of the smoothed loss: neither does a smaller one than that


@dataclass(frozen=True, repr=False)
class LRFound:
    """The result of a range test.

    ``rates``, ``losses``, ``smoothed``: one entry per update: its learning rate, the loss right
    after it, on the next batch, and the running mean of that loss. ``steepest``: the rate at which
    the smoothed loss fell fastest. ``tenth``: a tenth of the rate at which it was lowest.
    ``diverged``: the rate at which the test was stopped, None if it ran to its end. ``message``
    describes the result. Where nothing was found, ``steepest`` and ``tenth`` are None.

    >>> found = LRFound([0.1, 1.0], [2.0, 1.0], [2.0, 1.5], 0.5, 0.25, None, "ran to its end")
    >>> found.lr
    0.25
    >>> found
    LRFound(lr 0.25; 2 updates from 0.1 to 1; ran to its end)
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    steepest: float | None
    tenth: float | None
    diverged: float | None
    message: str

    def __repr__(self) -> str:
        found = "no lr" if self.steepest is None else f"lr {self.lr:.3g}"
        n = len(self.rates)
        between = f" from {self.rates[0]:.3g} to {self.rates[-1]:.3g}" if n else ""
        return f"LRFound({found}; {n} updates{between}; {self.message})"

    @property
    def lr(self) -> float:
        """The suggested learning rate: the lower one of ``steepest`` and ``tenth``.

        Raises ValueError if nothing was found.
        """
        if self.steepest is None or self.tenth is None:
            raise ValueError(f"no learning rate was found: {self.message}")
        return min(self.steepest, self.tenth)

    def plot(self, path: str | Path | None = None, title: str = "") -> Any:
        """Draws the loss against the rate, saves it where a path is given, returns the Figure.

        Needs no display. Raises MissingExtra without matplotlib, ValueError where no loss is
        finite.
        """
        figure = _figure(self, title)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure


def find_lr(
    loss: Function,
    params: Any,
    data: Any,
    optimizer: Callable[..., Optimizer],
    *,
    low: float = 1e-6,
    high: float = 10.0,
    steps: int = 100,
    batch_size: int | None = None,
    value_and_grad: Function | None = None,
    seed: int = 0,
    smoothing: float | None = None,
    stop_factor: float = 4.0,
) -> LRFound:
    """Suggests a learning rate, from a short training in which it grows at every update.

        lr(t) = low (high / low)^(t / (steps - 1)),    t = 0 .. steps - 1

    loss, params, data, batch_size, value_and_grad, seed: as in ``st.fit``. The test works on a copy
        of ``params``; these stay as they are.
    optimizer: a function that makes one, called as ``optimizer(params, lr=schedule)``: a class, or
        ``lambda params, lr: st.SGD(params, lr=lr, momentum=0.9)``.
    low, high: the first and the last rate, 0 < low < high.
    steps: the number of updates, 10 or more. More of them cost more and are less noisy; the data
        is repeated as often as needed.
    smoothing: β of the running mean s ← β s + (1 - β) loss, shown as s / (1 - βᵗ), from 0 (none)
        to below 1. By default 0.8 for mini-batches; 0 for full batches, whose loss has no noise.
    stop_factor: stop once the smoothed loss is above this multiple (more than 1) of its lowest
        value, or the loss is infinite or NaN.

    Two rates are suggested: where the smoothed loss falls fastest against log(lr), and a tenth of
    the rate at which it is lowest; ``LRFound.lr`` is the lower one. Nothing is suggested where the
    smoothed loss falls by less than 1 %, or than six standard deviations of its noise, or is still
    falling at ``high``; the message then says which range to try.

    Raises TypeError or ValueError for arguments that do not fit, and MissingExtra (an ImportError)
    without autograd when it is needed.

    >>> import numpy as np, steepest as st
    >>> x = np.linspace(-1, 1, 20)
    >>> p = {"w": np.zeros(()), "b": np.zeros(())}
    >>> def loss(p, x, y):
    ...     return ((p["w"] * x + p["b"] - y) ** 2).mean()
    >>> found = st.find_lr(loss, p, (x, 2 * x + 1), st.SGD)
    >>> round(found.lr, 3), round(found.tenth, 3), p["w"]
    (0.064, 0.167, array(0.))

    Source: Smith 2015, arXiv:1506.01186, section 3.3, where the rate grows linearly; growth by a
    factor per update, the smoothing and the tenth are those that fastai made popular.
    """
    if smoothing is None:
        smoothing = 0.0 if batch_size is None else 0.8
    _check(optimizer, low, high, smoothing, stop_factor)
    steps, seed = count("steps", steps, 10), count("seed", seed, 0)
    arrays = samples(data if hasattr(data, "__array__") else tuple(data), "data")
    size(batch_size, arrays)
    schedule = schedules.exponential(low, gamma=(high / low) ** (1 / (steps - 1)))
    copied = copy.deepcopy(params)
    made = optimizer(copied, lr=schedule)
    if not callable(made.param_groups[0]["lr"]):
        raise ValueError(
            f"optimizer made one with lr = {made.param_groups[0]['lr']!r}; it must use the lr= it "
            "is given"
        )
    function = value_and_grad or autograd(loss)
    stream = _stream(arrays, batch_size, seed)
    seen = _Seen(smoothing, stop_factor)
    with warnings.catch_warnings(), np.errstate(under="ignore"):  # what vanishes does not diverge
        warnings.simplefilter("ignore", RuntimeWarning)  # overflow is what is looked for
        try:
            _, grads = function(copied, *next(stream))
            for t in range(steps):
                made.step(trained(grads))
                value, grads = function(copied, *next(stream))
                if seen.stop(schedule(t), scalar(value, "loss")):
                    break
        except FloatingPointError:  # as the optimizer, or NumPy, was told to raise
            seen.stop(schedule(len(seen.rates)), math.inf)
    return _found(seen, low, high)


def _check(optimizer: Any, low: float, high: float, smoothing: float, stop_factor: float) -> None:
    if isinstance(optimizer, Optimizer) or not callable(optimizer):
        raise TypeError(
            f"optimizer is {optimizer!r}; expected a class or function, called as "
            "optimizer(params, lr=schedule)"
        )
    for name, x in (("low", low), ("high", high)):
        real(name, x, "a number, with 0 < low < high", lambda x: True)
    if not 0 < low < high < math.inf:
        raise ValueError(f"low = {low!r}, high = {high!r}: expected 0 < low < high")
    real("smoothing", smoothing, "a number in [0, 1)", lambda x: 0 <= x < 1)
    real("stop_factor", stop_factor, "a number above 1", lambda x: 1 < x < math.inf)


def _stream(
    arrays: tuple[Array, ...], batch_size: int | None, seed: int
) -> Iterator[tuple[Array, ...]]:
    """Batches without end, epoch after epoch."""
    for epoch in itertools.count(1):
        yield from batches(arrays, batch_size, epoch=epoch, seed=seed)


class _Seen:
    """Rates and losses so far, and whether to stop."""

    def __init__(self, smoothing: float, stop_factor: float) -> None:
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.smoothed: list[float] = []
        self.diverged: float | None = None
        self.smoothing = smoothing
        self._stop_factor = stop_factor
        self._mean = 0.0

    def stop(self, rate: float, loss: float) -> bool:
        """Takes down the loss after an update; returns whether that was enough."""
        beta = self.smoothing
        self._mean = beta * self._mean + (1 - beta) * loss
        smoothed = self._mean / (1 - beta ** (len(self.rates) + 1))
        self.rates.append(rate)
        self.losses.append(loss)
        self.smoothed.append(smoothed)
        lowest = min(self.smoothed[_settled(beta) :], default=math.inf)
        limit = lowest + (self._stop_factor - 1) * abs(lowest)
        if not (math.isfinite(loss) and smoothed <= limit):
            self.diverged = rate
        return self.diverged is not None


def _found(seen: _Seen, low: float, high: float) -> LRFound:
    """The suggestions, from the losses up to the lowest one."""
    steepest: float | None = None
    tenth: float | None = None
    first = _settled(seen.smoothing)
    curve = np.array([x for x in seen.smoothed if math.isfinite(x)])[first:]
    lowest = int(np.argmin(curve)) if curve.size else 0
    highest = curve[: lowest + 1].max(initial=-math.inf)
    fall = highest - curve[lowest] if curve.size else 0.0
    if fall <= FALL * abs(highest):
        message = "the loss did not fall" + (
            f"; give a higher high than {high:g}"
            if seen.diverged is None
            else f", and diverged at {seen.diverged:.3g}; give a lower low than {low:g}"
        )
    elif fall <= NOISE * _noise(seen.losses, seen.smoothing):
        message = "the loss did not fall below its noise; give more steps or a larger batch_size"
    elif seen.diverged is None and lowest == len(curve) - 1:
        message = f"the loss was still falling at the end; give a higher high than {high:g}"
    else:
        # Above three quarters of the fall, noise may be steeper than the fall itself.
        above = np.flatnonzero(curve[: lowest + 1] >= curve[lowest] + 0.75 * fall)[-1]
        slopes = np.gradient(curve)  # the rates lie at equal distances of log(lr)
        steepest = seen.rates[int(first + above + np.argmin(slopes[above : lowest + 1]))]
        tenth = seen.rates[first + lowest] / 10
        message = f"steepest fall at {steepest:.3g}, a tenth of the minimum is {tenth:.3g}"
        if seen.diverged is not None:
            message += f", diverged at {seen.diverged:.3g}"
    return LRFound(seen.rates, seen.losses, seen.smoothed, steepest, tenth, seen.diverged, message)


def _settled(smoothing: float) -> int:
    """How many of the first running means are of too few losses to be looked at."""
    return math.ceil(math.log(0.25) / math.log(smoothing)) if smoothing > 0 else 0


def _noise(losses: Sequence[float], smoothing: float) -> float:
    """The standard deviation of the smoothed loss where the loss itself does not change.

    From the median of the differences of neighbours, which the fall and the end hardly move. A
    running mean of independent losses has √((1 - β) / (1 + β)) of their deviation.
    """
    steps = np.diff([x for x in losses if math.isfinite(x)])
    if not steps.size:
        return 0.0
    spread = 1.4826 * float(np.median(np.abs(steps - np.median(steps)))) / math.sqrt(2)
    return spread * math.sqrt((1 - smoothing) / (1 + smoothing))


def _figure(found: LRFound, title: str) -> Any:
    curve = [x for x in found.smoothed if math.isfinite(x)]
    if not curve:
        raise ValueError(f"there is nothing to plot: {found.message}")
    matplotlib = require("matplotlib.figure", "train", "LRFound.plot")
    figure = matplotlib.Figure(figsize=(6.4, 4.0), layout="constrained")
    ax = figure.subplots()
    ax.plot(found.rates, found.losses, color="#1f5fa8", alpha=0.35, lw=1, label="loss")
    ax.plot(found.rates[: len(curve)], curve, color="#1f5fa8", lw=1.8, label="smoothed")
    lines = {
        "steepest fall": (found.steepest, "#2a7f3f", "-"),
        "minimum / 10": (found.tenth, "#d95f02", "--"),
        "diverged": (found.diverged, "0.5", ":"),
    }
    for name, (rate, color, style) in lines.items():
        if rate is not None:
            ax.axvline(rate, color=color, ls=style, lw=1.4, label=f"{name}: {rate:.2g}")
    ax.set_xscale("log")
    _limit(ax, curve)
    ax.set_xlabel("learning rate")
    ax.set_ylabel("loss after the update")
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=13)
    return figure


def _limit(ax: Any, curve: Sequence[float]) -> None:
    """The axis shows the smoothed loss; a single loss may be huge where it diverges."""
    low, high = min(curve), max(curve)
    if low > 0 and high > 10 * low:
        ax.set_yscale("log")
        ax.set_ylim(low / 1.5, high * 1.5)
    else:
        room = 0.1 * (high - low) or 1.0
        ax.set_ylim(low - room, high + room)
