"""Resuming after an interruption: what is saved of a run, and how it is restored.

``checkpoint`` saves parameters, hyper-parameters (with the state of plateaus) and the optimizer's
state. The state of the loop itself is saved with them: plain numbers as ``extra["training"]``, and
arrays.
"""

import copy
import dataclasses
import hashlib
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from steepest import checkpoint
from steepest.fields import count, described, real
from steepest.memory.arrays import Array
from steepest.training.run import Progress, Run

FORMAT = 1
LATER = ("SHA-256 of data", "SHA-256 of validation", "decay of noise_scale", "nonfinite")
"""Settings that a file of an older version lacks."""
_ANY = "a number", lambda x: True
CHUNK = 1 << 22  # bytes of data that are hashed at a time


class RunSaver:
    """Saves a run after every ``every`` epochs and at its end. Without a path it does nothing.

    Raises OSError, before training begins, if the file cannot be written there.
    """

    def __init__(self, run: Run, path: str | os.PathLike[str] | None, every: int) -> None:
        self.run, self.every = run, every
        self.path = None if path is None else Path(path)
        self._saved: tuple[int, int] | None = None
        # As the run begins: callbacks may change them later.
        self._settings = {} if path is None else _settings(run)
        self._hyper = [] if path is None else _hyper(run.optimizer.param_groups)
        if self.path is not None and not self.path.absolute().parent.is_dir():
            raise FileNotFoundError(
                f"checkpoint = {str(path)!r}: the folder does not exist; make it first"
            )
        if self.path is not None and self.path.is_dir():
            raise IsADirectoryError(f"checkpoint = {str(path)!r} is a folder; give a file's path")

    def begin(self) -> None:
        """Saves the run's start, so that what cannot be saved is known at once.

        An existing file is not replaced before an epoch is done.
        """
        if self.path is not None and self.path.exists():
            self._saved = self._place()
        else:
            self.save()

    def resume(self) -> None:
        """Restores the run from the file; without a file the run begins at its start.

        Raises CheckpointError, and changes nothing, if the file is not of this run.
        """
        if self.path is None:
            raise ValueError("resume=True needs the file to resume from: give checkpoint=path")
        if self.path.exists():
            found = checkpoint.read(self.path)
            self._agree(found.extra)
            self._agree_on_hyper(found)
            saved = found.extra["training"]
            try:
                _check_memory(self.run, saved)
                good, best = (self._arrays(found.arrays, key) for key in ("good", "best"))
            except (KeyError, TypeError, ValueError) as error:
                reason = f"it lacks {error}" if isinstance(error, KeyError) else error
                raise checkpoint.CheckpointError(
                    f"{self.path} does not hold a run that can be resumed: {reason}"
                ) from error
            checkpoint.load(self.path, self.run.optimizer, self.run.params)
            _restore(self.run, saved)
            self.run.good, self.run.best = good, best

    def after_epoch(self) -> None:
        """Saves the run if this epoch is one of every ``every``."""
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
        extra = {"training": _remembered(run, self._settings, self._hyper)}
        try:
            checkpoint.save(self.path, run.optimizer, run.params, extra=extra, arrays=arrays)
        except OSError as error:
            left = "the one before is intact" if self.path.exists() else "there is none yet"
            raise OSError(
                error.errno,
                f"the checkpoint could not be written after {len(run.history)} epochs: "
                f"{error.strerror or error}; {left}, and the parameters are those after the "
                "last update",
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
                interrupt.add_note(str(error))  # the caller gets the interruption
            raise

    def _agree(self, extra: dict[str, Any]) -> None:
        saved: Any = extra.get("training")
        whole = (
            isinstance(saved, dict)
            and saved.get("format") == FORMAT
            and isinstance(saved.get("settings"), dict)
            and _are_dicts(saved.get("hyper", []))
        )
        if not whole:
            raise checkpoint.CheckpointError(
                f"{self.path} does not hold a run of fit that this version can resume; "
                "load it with st.load, or give resume=False"
            )
        for name, value in self._settings.items():
            before = saved["settings"].get(name, value if name in LATER else None)
            if before != value:
                raise checkpoint.CheckpointError(
                    f"{self.path} is of a run with {name} = {before}; this one has {value}; give "
                    "the same, or resume=False to begin anew"
                )

    def _agree_on_hyper(self, found: checkpoint.Checkpoint) -> None:
        """Raises CheckpointError unless the optimizer's hyper-parameters are those that the run
        began with, or has now."""
        asked, now = self._hyper, _hyper(found.state_dict["param_groups"])
        begun = found.extra["training"].get("hyper", asked)  # an older file lacks them
        if found.state_dict["rule"] != self.run.optimizer.rule:
            return  # `load` raises for it
        self._hyper = begun
        for number, (before, here) in enumerate(zip(begun, asked, strict=False)):
            for name, value in here.items():
                if asked != now and before.get(name, value) != value:
                    raise checkpoint.CheckpointError(
                        f"{self.path} is of a run with {name} = {before[name]} in group {number}; "
                        f"this one has {value}; give the same, or resume=False to begin anew, or "
                        "load the file with st.load, change the optimizer's param_groups, and call "
                        "fit without resume"
                    )

    def _arrays(self, found: dict[str, Array], key: str) -> list[Array]:
        """Kept parameters, or none. Raises KeyError or ValueError unless they are all there."""
        names = [f"{key}.{name}" for name in self.run.optimizer.state]
        kept = [found[name] for name in names] if any(name in found for name in names) else []
        for name, x, leaf in zip(names, kept, self.run.leaves, strict=False):
            if (x.shape, x.dtype) != (leaf.shape, leaf.dtype):
                raise ValueError(
                    f"array {name!r} has shape {x.shape} and dtype {x.dtype}; expected "
                    f"{leaf.shape} and {leaf.dtype}"
                )
        return kept


def _are_dicts(x: Any) -> bool:
    return isinstance(x, list) and all(isinstance(one, dict) for one in x)


def _check_memory(run: Run, saved: dict[str, Any]) -> None:
    """Raises KeyError, TypeError or ValueError unless ``_restore`` can restore what was saved."""
    for name in ("progress", "watch"):
        if not isinstance(saved[name], dict):
            raise TypeError(f"{name} = {saved[name]!r}: expected a dict")
    progress, watch, rows = Progress(**saved["progress"]), saved["watch"], saved["rows"]
    for f in dataclasses.fields(Progress):
        value = getattr(progress, f.name)
        if isinstance(f.default, int):
            count(f.name, value, f.default)
        else:
            real(f.name, value, *_ANY)
    if not _are_dicts(rows):
        raise TypeError(f"rows = {rows!r}: expected a list of dicts")
    for row in rows:
        count("epoch", row["epoch"], 1)
        for name, value in row.items():
            real(name, value, *_ANY)
    for name in ("best", "reference"):
        real(name, watch[name], *_ANY)
    count("waited", watch["waited"], 0)
    if watch["best_epoch"] is not None:
        count("best_epoch", watch["best_epoch"], 1)
    if rows:
        run.watch.verdict(rows[-1])
    if run.noise is not None:
        copy.copy(run.noise).load_state_dict(saved["noise"])


def _remembered(run: Run, settings: dict[str, Any], hyper: list[dict[str, str]]) -> dict[str, Any]:
    """The state of the loop, as plain numbers and strings."""
    return {
        "format": FORMAT,
        "settings": settings,
        "hyper": hyper,
        "progress": dataclasses.asdict(run.progress),
        "rows": run.history.rows,
        "watch": dataclasses.asdict(run.watch),
        "noise": None if run.noise is None else run.noise.state_dict(),
    }


def _restore(run: Run, saved: dict[str, Any]) -> None:
    """Restores the state of the loop, and applies the stopping rules of this call to it."""
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
    """What a run and its continuation must have in common, as plain values."""
    return {
        "data": [_trace(x) for x in run.data],
        "validation": None if run.validation is None else [_trace(x) for x in run.validation],
        "SHA-256 of data": [_digest(x) for x in run.data],
        "SHA-256 of validation": [_digest(x) for x in run.validation or ()],
        "batch_size": _text(run.batch_size) if callable(run.batch_size) else run.batch_size,
        "accumulate": run.accumulate,
        "seed": run.seed,
        "shuffle": bool(run.shuffle),
        "noise_scale": run.noise is not None,
        "decay of noise_scale": None if run.noise is None else run.noise.decay,
        "use_ema": run.use_ema,
        "min_delta": run.watch.min_delta,
        "restore_best with patience and validation": run.keep_best,
        "nonfinite": run.optimizer.nonfinite,
    }


def _hyper(groups: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The hyper-parameters of each group, in words."""
    return [
        {key: _words(x) for key, x in group.items() if key not in ("params", "param_names")}
        for group in groups
    ]


def _words(value: Any) -> str:
    """A hyper-parameter in words: the same in every process, and without what it was not given, so
    that a later version with more to give says the same."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        return f"array {value.dtype} {value.shape} {zlib.crc32(_bytes(value)):08x}"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_words(x)}' for key, x in sorted(value.items()))}}}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_words, value))})"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = [(f, getattr(value, f.name)) for f in dataclasses.fields(value) if f.init]
        given = [f"{f.name}={_words(x)}" for f, x in pairs if _words(x) != _words(f.default)]
        return f"{type(value).__name__}({', '.join(given)})"
    return _text(value) if callable(value) else repr(value)


def _trace(x: Array) -> str:
    """Type, shape, and a checksum of up to 64 samples spread over the data."""
    rows = x[np.linspace(0, len(x) - 1, min(len(x), 64)).astype(int)]
    return f"{x.dtype} {x.shape} {zlib.crc32(_bytes(rows)):08x}"


def _digest(x: Array) -> str:
    """The SHA-256 of all samples, taken piece by piece: they may be larger than memory."""
    found = hashlib.sha256()
    rows = max(1, CHUNK * len(x) // max(1, x.nbytes))
    for start in range(0, len(x), rows):
        found.update(_bytes(x[start : start + rows]))
    return found.hexdigest()


def _bytes(x: Array) -> bytes:
    return repr(x.tolist()).encode() if x.dtype.hasobject else x.tobytes()


def _text(schedule: Any) -> str:
    """A schedule in words: all of it where it is made of plain fields, else its name."""
    if dataclasses.is_dataclass(schedule) and " at 0x" not in (text := described(schedule)):
        return text
    return f"function {getattr(schedule, '__qualname__', type(schedule).__qualname__)}"
