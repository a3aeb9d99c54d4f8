"""Stopping rules for the monitored loss, and protection of changes against Ctrl-C."""

import math
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from steepest.training.history import Stopped


def monitored(row: Mapping[str, float]) -> str:
    """The name of the monitored loss: val_loss where there is one, else loss."""
    return "val_loss" if "val_loss" in row else "loss"


@dataclass
class Watch:
    """The history of the monitored loss, and the stopping rules.

    ``reference`` is the last loss that counted as an improvement, ``waited`` the number of epochs
    since then.

    >>> watch = Watch(patience=2)
    >>> for epoch, loss in enumerate([3.0, 1.0, 2.0, 1.5], 1):
    ...     watch.look({"epoch": epoch, "loss": loss})
    >>> watch.verdict({"epoch": 4, "loss": 1.5})
    ('patience', 'loss has not improved since epoch 2')
    """

    target: float = -math.inf
    patience: float = math.inf
    min_delta: float = 0.0
    best: float = math.inf
    best_epoch: int | None = None
    reference: float = math.inf
    waited: int = 0

    def look(self, row: Mapping[str, float]) -> None:
        """Takes in the row of one more epoch."""
        value = row[monitored(row)]
        if value < self.best:
            self.best, self.best_epoch = value, int(row["epoch"])
        self.waited += 1
        if value < self.reference - self.min_delta:
            self.reference, self.waited = value, 0

    def verdict(self, row: Mapping[str, float]) -> tuple[Stopped, str]:
        """Whether to stop after the epoch that was looked at last, and why."""
        name, epoch = monitored(row), int(row["epoch"])
        if row[name] <= self.target:
            return "target", f"{name} = {row[name]:.4g} reached the target in epoch {epoch}"
        if self.waited >= self.patience:
            return "patience", f"{name} has not improved since epoch {epoch - self.waited}"
        return "", ""


class Shield:
    """Delays Ctrl-C inside ``with shield``, so that several changes happen together.

    ``raised`` has to be around it all: it takes the place of the usual reaction to Ctrl-C, once
    for a whole run. Only the main thread can, and only it is ever interrupted; elsewhere a shield
    does nothing.
    """

    def __init__(self) -> None:
        self._held = False
        self._pressed: list[tuple[Any, ...]] = []
        self._usual: Any = None

    @contextmanager
    def raised(self) -> Iterator[None]:
        self._usual = signal.getsignal(signal.SIGINT)
        main = threading.current_thread() is threading.main_thread()
        if not main or not callable(self._usual):
            yield
            return
        signal.signal(signal.SIGINT, self._press)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, self._usual)

    def _press(self, *arguments: Any) -> None:
        if self._held:
            self._pressed.append(arguments)
        else:
            self._usual(*arguments)

    def __enter__(self) -> None:
        self._held = True

    def __exit__(self, *_: object) -> None:
        self._held = False
        if self._pressed:
            self._usual(*self._pressed.pop())
