import csv
import doctest
import json
import math
import struct
import sys

import numpy as np
import pytest

import steepest as st
from steepest.extras import MissingExtra
from steepest.training import Epoch, fit, logs
from steepest.training.history import History


class Stop(Exception):
    pass


def run(log, epochs=4, stop_at=None, **arguments):
    """A run with numbers of many digits, ended by an exception in an epoch's gradient."""
    x = np.random.default_rng(0).normal(size=12)
    w, calls = np.ones(()), []

    def value_and_grad(w, x):
        calls.append(1)
        if len(calls) == stop_at:
            raise Stop
        return ((w - x) ** 2).mean(), np.array(2 * (w - x).mean())

    return fit(
        None, w, x, st.SGD(w, lr=0.1), epochs=epochs, callbacks=[log],
        value_and_grad=value_and_grad, metrics={"third, of w": lambda w, x: w / 3}, **arguments,
    )  # fmt: skip


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(file)
        ]


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def events(folder):
    """What TensorBoard shows: per tag, (step, value), after each purge only what follows it."""
    pb = pytest.importorskip("tensorboardX.proto.event_pb2")
    shown = {}
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = pb.Event.FromString(data[at + 12 : at + 12 + length])
            at += 12 + length + 4
            if event.HasField("session_log"):
                shown = {
                    tag: [(step, value) for step, value in points if step < event.step]
                    for tag, points in shown.items()
                }
            for value in event.summary.value:
                shown.setdefault(value.tag, []).append((event.step, value.simple_value))
    return shown


READERS = {"csv": read_csv, "jsonl": read_jsonl}


@pytest.mark.parametrize("kind", READERS)
def test_rows_read_back_equal_as_they_happen(tmp_path, kind) -> None:
    path, seen = tmp_path / "log", []
    log = getattr(logs, kind)(path)

    def logged(epoch: Epoch) -> None:
        log(epoch)
        seen.append(READERS[kind](path))

    history = run(logged)
    assert seen == [history.rows[:1], history.rows[:2], history.rows[:3], history.rows]
    assert [list(row) for row in seen[-1]] == [history.columns] * 4
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("stop_at", [2, 4])
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("kind", READERS)
def test_a_resumed_run_goes_on_in_its_log(tmp_path, kind, every, stop_at) -> None:
    """Also where the log is ahead of the checkpoint."""
    path = tmp_path / "log"
    saved = {"checkpoint": tmp_path / "run", "checkpoint_every": every, "epochs": 5}
    with pytest.raises(Stop):
        run(getattr(logs, kind)(path), stop_at=stop_at, **saved)
    assert [row["epoch"] for row in READERS[kind](path)] == list(range(1, stop_at))
    history = run(getattr(logs, kind)(path), resume=True, **saved)
    assert READERS[kind](path) == history.rows
    assert history["epoch"] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("kind", READERS)
def test_a_new_run_takes_an_old_logs_place(tmp_path, kind) -> None:
    log = getattr(logs, kind)(tmp_path / "log")
    run(log, epochs=4)
    history = run(log, epochs=2)
    assert READERS[kind](tmp_path / "log") == history.rows


def test_columns_that_come_and_go(tmp_path) -> None:
    rows = [{"epoch": 1, "loss": 0.1}, {"epoch": 2, "loss": 0.2, "a,b": 1e-300}, {"epoch": 3}]
    history = History()
    for kind, reader in READERS.items():
        history.rows = []
        log = getattr(logs, kind)(tmp_path / kind)
        for row in rows:
            history.rows.append(row)
            log(Epoch(int(row["epoch"]), 3, row, history, None, None))
        assert reader(tmp_path / kind) == rows
    text = (tmp_path / "csv").read_text()
    assert text == 'epoch,loss,"a,b"\n1,0.1,\n2,0.2,1e-300\n3,,\n'


@pytest.mark.parametrize("kind", READERS)
def test_values_that_are_not_finite(tmp_path, kind) -> None:
    row = {"epoch": 1, "a": math.nan, "b": math.inf, "c": -math.inf}
    log = getattr(logs, kind)(tmp_path / "log")
    log(Epoch(1, 1, row, History([row]), None, None))
    np.testing.assert_equal(READERS[kind](tmp_path / "log"), [row])


@pytest.mark.parametrize("kind", READERS)
def test_a_file_that_cannot_be_written(tmp_path, kind) -> None:
    with pytest.raises(FileNotFoundError):
        run(getattr(logs, kind)(tmp_path / "no" / "log"))


def test_tensorboard(tmp_path) -> None:
    pytest.importorskip("tensorboardX")
    folder, saved = tmp_path / "tb", {"checkpoint": tmp_path / "run", "checkpoint_every": 3}
    first = logs.tensorboard(folder)
    with pytest.raises(Stop):
        run(first, stop_at=3, **saved)
    assert [step for step, _ in events(folder)["loss"]] == [1, 2]  # before the file is closed
    first.close()
    second = logs.tensorboard(folder)
    history = run(second, resume=True, **saved)
    second.close()
    second.close()
    shown = events(folder)
    tags = {tag.replace("_", " ").replace(",", " ") for tag in shown}
    assert tags == {c.replace("_", " ").replace(",", " ") for c in history.columns} - {"epoch"}
    for column in ("loss", "lr", "seconds"):
        # TensorBoard's scalars are float32.
        assert shown[column] == list(
            zip([1, 2, 3, 4], np.float32(history[column]).tolist(), strict=True)
        )


def test_missing_tensorboardx(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX.event_file_writer", None)
    with pytest.raises(MissingExtra, match=r"pip install tensorboardX, or .* \[tensorboard\]"):
        logs.tensorboard(tmp_path)


def test_examples() -> None:
    assert doctest.testmod(logs).failed == 0
