"""Going on after an interruption: what of a run is saved, and how it is taken up again.

``checkpoint`` saves parameters, hyper-parameters (with what a plateau has seen) and the optimizer's
state. What the loop itself has to remember comes beside these: plain numbers as
``extra["training"]``, and arrays.
"""

import dataclasses
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from steepest import checkpoint
from steepest.arrays import Array
from steepest.training.run import Progress, Run

FORMAT = 1


class Keeper:
    """Saves a run after every ``every`` epochs and at its end. Without a path it does nothing.

    Raises OSError, before there is anything to lose, where the file cannot be.
    """

    def __init__(self, run: Run, path: str | os.PathLike[str] | None, every: int) -> None:
        self.run, self.every = run, every
        self.path = None if path is None else Path(path)
        self._saved: tuple[int, int] | None = None
        if self.path is not None and not self.path.absolute().parent.is_dir():
            raise FileNotFoundError(
                f"checkpoint = {str(path)!r}: the folder does not exist; make it first"
            )
        if self.path is not None and self.path.is_dir():
            raise IsADirectoryError(f"checkpoint = {str(path)!r} is a folder; give a file's path")

    def begin(self) -> None:
        """Saves the run's start, so that what cannot be saved is known at once.

        Not in the place of a file that is there already: that waits until an epoch is done.
        """
        if self.path is not None and self.path.exists():
            self._saved = self._place()
        else:
            self.save()

    def resume(self) -> None:
        """Takes up what the file holds; without a file the run begins at its start.

        Raises CheckpointError, and changes nothing, if the file is not of such a run.
        """
        if self.path is None:
            raise ValueError("resume=True needs the file to go on from: give checkpoint=path")
        if self.path.exists():
            found = checkpoint.read(self.path)
            self._agree(found.extra)
            good, best = (self._arrays(found.arrays, key) for key in ("good", "best"))
            checkpoint.load(self.path, self.run.optimizer, self.run.params)
            _take_up(self.run, found.extra["training"])
            self.run.good, self.run.best = good, best

    def after_epoch(self) -> None:
        """Saves where the number of finished epochs says so."""
        if (self.run.progress.epoch - 1) % self.every == 0:
            self.save()

    def save(self) -> None:
        """Saves the run unless it is saved already, or its loss is not finite.

        Raises OSError that says what is left.
        """
        if self.path is None or self._place() == self._saved:
            return
        if self.run.history.stopped == "nonfinite":
            return
        run, names = self.run, list(self.run.optimizer.state)
        arrays = {
            f"{key}.{name}": x
            for key, kept in (("good", run.good), ("best", run.best))
            for name, x in zip(names, kept, strict=bool(kept))
        }
        extra = {"training": _remembered(run)}
        try:
            checkpoint.save(self.path, run.optimizer, run.params, extra=extra, arrays=arrays)
        except OSError as error:
            left = "the one before is intact" if self.path.exists() else "there is none yet"
            raise OSError(
                error.errno,
                f"the checkpoint could not be written after {len(run.history)} epochs: "
                f"{error.strerror or error}; {left}, and the parameters are as the last update "
                "made them",
                str(self.path),
            ) from error
        self._saved = self._place()

    def _place(self) -> tuple[int, int]:
        return self.run.progress.epoch, self.run.progress.position

    @contextmanager
    def rescuing(self) -> Iterator[None]:
        """Puts the parameters in order after any exception, and saves the run after Ctrl-C."""
        try:
            try:
                yield
            finally:
                self.run.back()
        except KeyboardInterrupt as interrupt:
            try:
                self.save()
            except OSError as error:
                interrupt.add_note(str(error))  # the interruption is what the caller hears of
            raise

    def _agree(self, extra: dict[str, Any]) -> None:
        saved = extra.get("training")
        if not isinstance(saved, dict) or saved.get("format") != FORMAT:
            raise checkpoint.CheckpointError(
                f"{self.path} holds no run of fit that this version can go on with; "
                "load it with st.load, or give resume=False"
            )
        asked = _settings(self.run)
        for name, value in asked.items():
            if saved["settings"].get(name) != value:
                raise checkpoint.CheckpointError(
                    f"{self.path} is of a run with {name} = {saved['settings'].get(name)}; this "
                    f"one has {value}; give the same, or resume=False to begin anew"
                )

    def _arrays(self, found: dict[str, Array], key: str) -> list[Array]:
        names = [f"{key}.{name}" for name in self.run.optimizer.state]
        return [found[name] for name in names if name in found]


def _remembered(run: Run) -> dict[str, Any]:
    """What the loop remembers, as plain numbers and strings."""
    return {
        "format": FORMAT,
        "settings": _settings(run),
        "progress": dataclasses.asdict(run.progress),
        "rows": run.history.rows,
        "watch": dataclasses.asdict(run.watch),
        "noise": None if run.noise is None else run.noise.state_dict(),
    }


def _take_up(run: Run, saved: dict[str, Any]) -> None:
    """Makes the run remember what was saved, and judges it by the rules of today."""
    run.progress = Progress(**saved["progress"])
    run.history.rows = saved["rows"]
    for name in ("best", "best_epoch", "reference", "waited"):
        setattr(run.watch, name, saved["watch"][name])
    run.history.best_epoch = run.watch.best_epoch
    if run.history.rows:
        row = run.history.rows[-1]
        run.history.stopped, run.history.message = run.watch.verdict(row)
    if run.noise is not None:
        run.noise.load_state_dict(saved["noise"])


def _settings(run: Run) -> dict[str, Any]:
    """What two parts of one run must have in common, as plain values that tell it apart."""
    return {
        "data": [_trace(x) for x in run.data],
        "validation": None if run.validation is None else [_trace(x) for x in run.validation],
        "batch_size": _text(run.batch_size) if callable(run.batch_size) else run.batch_size,
        "accumulate": run.accumulate,
        "seed": run.seed,
        "shuffle": bool(run.shuffle),
        "noise_scale": run.noise is not None,
        "use_ema": run.use_ema,
        "min_delta": run.watch.min_delta,
        "restore_best with patience and validation": run.keep_best,
    }


def _trace(x: Array) -> str:
    """Type, shape, and a checksum of up to 64 samples spread over the data."""
    rows = x[np.linspace(0, len(x) - 1, min(len(x), 64)).astype(int)]
    text = repr(rows.tolist()).encode() if x.dtype.hasobject else rows.tobytes()
    return f"{x.dtype} {x.shape} {zlib.crc32(text):08x}"


def _text(schedule: Any) -> str:
    """A schedule in words: all of it where it is made of plain fields, else its name."""
    if dataclasses.is_dataclass(schedule):
        return repr(schedule)
    return f"function {getattr(schedule, '__qualname__', type(schedule).__qualname__)}"
