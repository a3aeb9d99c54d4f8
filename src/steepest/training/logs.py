"""Logs: callbacks for ``fit`` that write one row per epoch, as it happens.

A log holds one run. It begins with the rows that the run's history has already, so a resumed run
goes on in its log without a gap and without doubled epochs, whatever was written before the
interruption; a new run takes an old log's place.
"""

import json
import os
import time
import weakref
from abc import ABC, abstractmethod
from csv import writer
from io import StringIO
from pathlib import Path
from typing import Any

from steepest.extras import require
from steepest.training import Epoch
from steepest.training.history import History

__all__ = ["csv", "jsonl", "tensorboard"]


class _File(ABC):
    """Rows in a text file: all of them at the first epoch and when a column is new, else one."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._history: History | None = None
        self._columns: list[str] = []

    def __call__(self, epoch: Epoch) -> None:
        history, columns = epoch.history, epoch.history.columns
        if history is self._history and columns == self._columns:
            with open(self.path, "a", newline="", encoding="utf-8") as file:
                file.write(self._line(epoch.row))
            return
        self._history, self._columns = history, columns
        whole = self.path.with_name(self.path.name + ".new")
        with open(whole, "w", newline="", encoding="utf-8") as file:
            file.write(self._head())
            file.writelines(self._line(row) for row in history.rows)
        os.replace(whole, self.path)

    def _head(self) -> str:
        return ""

    @abstractmethod
    def _line(self, row: dict[str, float]) -> str:
        """A row as a line of the file."""


class csv(_File):
    """Writes a line per epoch to a CSV file, with a header.

    A float is written with as many digits as make it read back equal; a column that an epoch lacks
    is left empty. Each line is in the file before the next epoch begins. Raises OSError where the
    file cannot be written.

    >>> import tempfile, numpy as np, steepest as st
    >>> from pathlib import Path
    >>> path = Path(tempfile.mkdtemp(), "log.csv")
    >>> w = np.ones(1)
    >>> history = st.fit(lambda w: (w**2).sum(), w, (), st.SGD(w, lr=0.25), epochs=2,
    ...                  callbacks=[st.logs.csv(path)])
    >>> [line.split(",")[:3] for line in path.read_text().splitlines()]
    [['epoch', 'loss', 'lr'], ['1', '1.0', '0.25'], ['2', '0.25', '0.25']]
    """

    def _head(self) -> str:
        return _joined(self._columns)

    def _line(self, row: dict[str, float]) -> str:
        return _joined([row.get(column, "") for column in self._columns])


def _joined(values: list[Any]) -> str:
    line = StringIO()
    writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()


class jsonl(_File):
    """Writes a line per epoch to a file of JSON Lines: an object with the row's columns.

    Floats read back equal; NaN and infinity are written as Python's ``json`` writes and reads them.
    Each line is in the file before the next epoch begins. Raises OSError where the file cannot be
    written.

    >>> import json, tempfile, numpy as np, steepest as st
    >>> from pathlib import Path
    >>> path = Path(tempfile.mkdtemp(), "log.jsonl")
    >>> w = np.ones(1)
    >>> history = st.fit(lambda w: (w**2).sum(), w, (), st.SGD(w, lr=0.25), epochs=2,
    ...                  callbacks=[st.logs.jsonl(path)])
    >>> [json.loads(line) for line in path.read_text().splitlines()] == history.rows
    True
    """

    def _line(self, row: dict[str, float]) -> str:
        return json.dumps(row) + "\n"


class tensorboard:
    """Writes each column as a scalar for TensorBoard, with the epoch as its step.

    folder: where the event files lie; one folder is one run. It is made if it is not there. Each
    log begins an event file of its own, which hides what older ones in the folder hold. TensorBoard
    keeps scalars in single precision. Each epoch is on the disk before the next begins. Raises
    MissingExtra without tensorboardX, OSError where the file cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        purpose = "st.logs.tensorboard"
        self._files = require("tensorboardX.event_file_writer", "tensorboard", purpose)
        self._summary = require("tensorboardX.summary", "tensorboard", purpose)
        self._events = require("tensorboardX.proto.event_pb2", "tensorboard", purpose)
        self.folder = Path(folder)
        self._history: History | None = None
        self._writer: Any = None
        self._closing: Any = None

    def __call__(self, epoch: Epoch) -> None:
        rows = [epoch.row]
        if epoch.history is not self._history:
            self._begin()
            self._history, rows = epoch.history, epoch.history.rows
        for row in rows:
            for name, value in row.items():
                if name != "epoch":
                    self._write(int(row["epoch"]), summary=self._summary.scalar(name, value))
        self._writer.flush()

    def _begin(self) -> None:
        self.close()
        self.folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files in the order of their names, whole seconds first.
        suffix = f".{time.time_ns()}"
        self._writer = self._files.EventsWriter(str(self.folder / "events"), suffix)
        self._closing = weakref.finalize(self, self._writer.close)
        start = self._events.SessionLog(status=self._events.SessionLog.START)
        self._write(0, session_log=start)  # hides what came before, from step 0 on

    def _write(self, step: int, **what: Any) -> None:
        self._writer.write_event(self._events.Event(wall_time=time.time(), step=step, **what))

    def close(self) -> None:
        """Ends the event file; done anyway when the log is no longer used or the process ends."""
        if self._closing is not None:
            self._closing()
            self._writer = self._closing = self._history = None
