"""Runs that were stopped, in whatever way, go on to the same result, to the last bit."""

import builtins
import csv
import errno
import gc
import io
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from cases import brief

import steepest as st
from steepest import cli
from steepest.cli import result_pictures

SECONDS = ("seconds", "optimizer_seconds")
OPTIONS = ["--target", "y", "--hidden", "8", "--batch-size", "16", "--epochs", "5", "--quiet"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A table of 80 rows, 4 updates an epoch: y = 2 a - b."""
    a, b = np.random.default_rng(1).normal(size=(2, 80))
    path = tmp_path_factory.mktemp("data") / "line.csv"
    rows = zip(a, b, 2 * a - b, strict=True)
    path.write_text("a,b,y\n" + "".join(f"{x},{y},{z}\n" for x, y, z in rows))
    return path


@pytest.fixture
def table(shared):
    """The table, as it was whatever a test does with it."""
    content = shared.read_text()
    yield shared
    shared.write_text(content)


@pytest.fixture
def plain(monkeypatch):
    """Pictures take most of the time of such small runs."""
    monkeypatch.setattr(st.History, "plot", lambda self, path, title: path.touch())
    monkeypatch.setattr(result_pictures, "residuals", lambda *arguments: arguments[-1].touch())


@pytest.fixture
def whole(table, tmp_path, plain):
    """A function: what a run with these options comes to when nothing stops it."""

    def run(*options):
        if options not in WHOLE:
            assert begin(table, tmp_path / "whole", *options) == 0
            WHOLE[options] = outcome(tmp_path / "whole")
        return WHOLE[options]

    return run


WHOLE = {}


def begin(table, out, *options):
    return cli.main(["train", str(table), *OPTIONS, *options, "--out", str(out)])


def resume(out, *options):
    return cli.main(["train", "--quiet", "--resume", str(out), *options])


def outcome(out):
    """All that a run came to, but for the time it took and the process it was in."""
    with open(out / "history.csv", newline="") as file:
        rows = [{k: x for k, x in row.items() if k not in SECONDS} for row in csv.DictReader(file)]
    config = json.loads((out / "config.json").read_text())
    del config["steepest"]
    with np.load(out / "params.npz") as arrays:
        return rows, config, {name: x.tobytes() for name, x in arrays.items()}


def counted(monkeypatch, cls=st.AdamW):
    """A list that grows with every update from now."""
    step, taken = cls.step, []

    def counting(self, grads):
        taken.append(1)
        step(self, grads)

    monkeypatch.setattr(cls, "step", counting)
    return taken


def at_step(monkeypatch, n, failure, cls=st.AdamW):
    """Makes the n-th update from now raise."""
    step, count = cls.step, 0

    def failing(self, grads):
        nonlocal count
        count += 1
        if count == n:
            raise failure
        step(self, grads)

    monkeypatch.setattr(cls, "step", failing)


SORTS = [
    [],
    ["--optimizer", "sgd:momentum=0.9, nesterov=True", "--clip", "global_norm:0.5"],
    ["--accumulate", "2", "--ema", "0.9", "--checkpoint-every", "2"],
    ["--schedule", "plateau:patience=0", "--loss", "huber:delta=0.3", "--init", "orthogonal"],
    ["--patience", "1", "--lr", "0.3", "--checkpoint-every", "3"],
    ["--clip", "percentile:50, window=3", "--checkpoint-every", "1"],
]


@pytest.mark.parametrize("sort", SORTS, ids=" ".join)
@pytest.mark.parametrize("n", [1, 5, 7])
def test_an_interrupted_run_goes_on(table, tmp_path, monkeypatch, whole, sort, n) -> None:
    expected = whole(*sort)
    cls = st.SGD if "--optimizer" in sort else st.AdamW
    with monkeypatch.context() as patch:
        at_step(patch, n, KeyboardInterrupt(), cls)
        assert begin(table, tmp_path / "parts", *sort) == 130
    found = json.loads((tmp_path / "parts" / "config.json").read_text())
    assert found["stopped"] == "interrupted"
    taken = counted(monkeypatch, cls)
    assert resume(tmp_path / "parts") == 0
    each = 2 if "--accumulate" in sort else 4
    assert len(taken) == each * len(expected[0]) - (n - 1)  # none is made again
    assert outcome(tmp_path / "parts") == expected
    names = {path.name for path in (tmp_path / "parts").iterdir()}
    files = {"curves.png", "report.md", "residuals.png", "checkpoint.safetensors"}
    assert names == train_files() | files


def test_interrupted_again_and_again(table, tmp_path, monkeypatch, whole, capsys) -> None:
    """Every three updates, so some parts end within the epoch in which they began."""
    expected = whole()
    out = tmp_path / "parts"
    for part in range(10):
        with monkeypatch.context() as patch:
            at_step(patch, 4, KeyboardInterrupt())
            code = begin(table, out) if part == 0 else resume(out)
        if code == 0:
            break
        assert code == 130
    assert part == 6  # 20 updates, three in each of the parts 0 to 5
    assert outcome(out) == expected
    assert f"continue with  steepest train --resume {out}\n" in capsys.readouterr().err


def process(code, *arguments, **options):
    """A process that runs the command line after some code of the test's."""
    program = f"import sys, steepest as st\nfrom steepest import cli\n{textwrap.dedent(code)}\n"
    program += "sys.exit(cli.main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True, encoding="utf-8", check=False, timeout=120, **options,
    )  # fmt: skip


SIGNALLED = """
import os, signal
step, count = st.AdamW.step, 0
def signalled(self, grads):
    global count
    count += 1
    if count == 11:
        os.kill(os.getpid(), signal.{})
    step(self, grads)
st.AdamW.step = signalled
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_process_that_gets_a_signal(table, tmp_path, monkeypatch, whole, name) -> None:
    expected = whole()
    out = tmp_path / "parts"
    done = process(SIGNALLED.format(name), "train", table, *OPTIONS, "--out", out)
    files = {path.name for path in out.iterdir()}
    if name == "SIGINT":
        assert done.returncode == 130
        assert done.stderr.startswith("interrupted: what has been trained so far is kept")
        assert done.stderr.count("\n") == 1
        assert files == {*train_files(), "checkpoint.safetensors", "curves.png"}
    else:
        assert done.returncode == -getattr(signal, name)
        assert files == {"config.json", "history.csv", "checkpoint.safetensors"}
    with open(out / "history.csv", newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    taken = counted(monkeypatch)
    assert resume(out) == 0
    # Ctrl-C lets the eleventh end; who is killed goes on from the last whole epoch.
    assert len(taken) == 20 - (11 if name == "SIGINT" else 8)
    assert outcome(out) == expected


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
def test_ctrl_c_that_is_ignored_stays_ignored(table, tmp_path, whole) -> None:
    """A script that puts a run behind with ``&`` has the shell ignore Ctrl-C for it."""
    expected, out = whole(), tmp_path / "parts"
    ignoring = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    done = process(
        ignoring + SIGNALLED.format("SIGINT").strip(), "train", table, *OPTIONS, "--out", out
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert outcome(out) == expected


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
def test_tests_of_ctrl_c_pass_where_it_is_ignored() -> None:
    test = "training/test_shield_and_watch.py::test_a_shield_puts_ctrl_c_off"
    program = (
        "import signal, sys, pytest; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "sys.exit(pytest.main(['-q', '-n', '0', '-p', 'no:cacheprovider', sys.argv[1]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, test],
        cwd=Path(__file__).parents[1], capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def train_files():
    return {"params.npz", "history.csv", "config.json"}


def signals_at_call(n):
    """A profile function that sends Ctrl-C at the n-th call of a Python function of steepest.

    Of the package alone: a folder of that name may hold these tests, too, and no test runs on when
    Ctrl-C ends one of its own functions.
    """
    count, package = 0, os.path.dirname(st.__file__) + os.sep

    def profile(frame, event, argument):
        nonlocal count
        # A generator that is dropped half way is called to end it, and there Python loses what is
        # raised; a signal itself is never handled there.
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(package) and code.co_name != "<genexpr>":
            count += 1
            if count == n:
                signal.raise_signal(signal.SIGINT)

    return profile


MOMENTS = [*range(2, 100, 17), *range(100, 4000, 157)]


@pytest.mark.parametrize("n", brief(MOMENTS, MOMENTS[::6]))
def test_ctrl_c_at_any_moment(table, tmp_path, whole, capsys, n) -> None:
    """Before, while or after training: the exit code says so, and the run goes on."""
    expected = whole("--epochs", "3")
    capsys.readouterr()
    out = tmp_path / "parts"
    gc.collect()  # what other tests have left may have functions that are called when it is freed
    sys.setprofile(signals_at_call(n))
    try:
        code = begin(table, out, "--epochs", "3")
    finally:
        sys.setprofile(None)
    shown = capsys.readouterr()
    assert code == 130
    assert shown.err.startswith("interrupted") and shown.err.count("\n") == 1
    assert not [path for path in out.glob("*") if path.name.startswith(".")]
    assert begin(table, out, "--epochs", "3", "--resume") == 0
    assert outcome(out) == expected


# Disks that are full, folders that cannot be written


class Full:
    """Lets n - 1 attempts to write below a folder pass, and fails at the n-th."""

    def __init__(self, patch, folder, n) -> None:
        self.folder, self.left, self.failed = str(folder), n, False
        in_os = [(os, name) for name in ("open", "mkdir", "replace")]
        for module, name in [(builtins, "open"), (io, "open"), *in_os]:
            patch.setattr(module, name, self.limited(getattr(module, name), name))

    def limited(self, function, name):
        def limited(path, *arguments, **options):
            mode = arguments[0] if arguments else options.get("mode", "r")
            reading = name == "open" and mode in ("r", "rb", os.O_RDONLY)
            if str(path).startswith(self.folder) and not reading and not self.failed:
                self.left -= 1
                if self.left == 0:
                    self.failed = True
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(path, *arguments, **options)

        return limited


def test_a_disk_that_is_full_at_any_moment(table, tmp_path, monkeypatch, whole, capsys) -> None:
    expected = whole()
    capsys.readouterr()
    n = 0
    while True:
        n += 1
        out = tmp_path / f"parts-{n}"
        with monkeypatch.context() as patch:
            full = Full(patch, out, n)
            code = begin(table, out, "--checkpoint-every", "2", "--log", "jsonl")
        if not full.failed:
            break
        shown = capsys.readouterr().err
        if code == 0:  # zipfile opens its file once more
            assert outcome(out) == expected
            continue
        assert code == 2
        assert re.fullmatch(rf"steepest: error: .*{out}.* .*No space left on device.*\n", shown)
        assert not [path for path in out.glob("*") if path.name.startswith(".")]
        assert begin(table, out, "--resume") == 0
        assert outcome(out) == expected
    assert code == 0 and n > 30


SMALL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
@pytest.mark.parametrize("limit", brief([100, 2500, 3500], [2500]))
def test_files_that_cannot_grow(table, tmp_path, whole, limit) -> None:
    """Writing fails in the middle of a file: of config.json, of the checkpoint, of the log."""
    out = tmp_path / "parts"
    options = [*OPTIONS, "--epochs", "40", "--out", out]
    done = process(SMALL.format(limit), "train", table, *options)
    assert done.returncode == 2
    assert re.fullmatch(r"steepest: error: \S+ .*File too large.*\n", done.stderr), done.stderr
    assert begin(table, out, "--epochs", "40", "--resume") == 0
    assert outcome(out) == whole("--epochs", "40")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", [["list"], ["info"], ["train", "digits", "--epochs", "1"]])
def test_output_that_cannot_be_written(tmp_path, arguments) -> None:
    command = [sys.executable, "-m", "steepest.cli", *arguments]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, cwd=tmp_path, check=False
        )
    assert done.returncode == 2
    assert done.stderr == b"steepest: error: the output: No space left on device\n"


# What cannot go on


@pytest.fixture
def stopped(table, tmp_path, monkeypatch, plain):
    """The folder of a run that was interrupted in its third epoch."""
    with monkeypatch.context() as patch:
        at_step(patch, 10, KeyboardInterrupt())
        assert begin(table, tmp_path / "stopped") == 130
    return tmp_path / "stopped"


def refused(capsys, *arguments):
    """The message of a refusal, one line."""
    capsys.readouterr()
    assert cli.main(["train", *map(str, arguments)]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("steepest: error: ") and shown.count("\n") == 1
    return shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "4"], "--epochs 4: the run in OUT was begun with 5, and keeps its settings"),
        (["--lr", "0.1"], "--lr 0.1: the run in OUT was begun with 0.003"),
        (["--hidden", "9"], "--hidden (9,): the run in OUT was begun with (8,)"),
        (["--out", "elsewhere"], "--resume OUT --out elsewhere: a run continues in its own folder"),
    ],
)
def test_other_settings_are_refused(stopped, capsys, options, message) -> None:
    shown = refused(capsys, "--resume", stopped, *options)
    assert message.replace("OUT", str(stopped)) in shown


def test_equal_settings_and_a_moved_table_are_not(stopped, table, tmp_path) -> None:
    moved = tmp_path / "moved" / "line.csv"
    moved.parent.mkdir()
    table.rename(moved)
    assert cli.main(["train", str(moved), *OPTIONS, "--resume", "--out", str(stopped)]) == 0


def test_other_data_are_refused(stopped, table, capsys) -> None:
    table.write_text(table.read_text().replace("0.", "1.", 1))
    shown = refused(capsys, "--resume", stopped)
    assert f"{table} is not what the run in {stopped} began with" in shown


def test_missing_data_are_told(stopped, table, capsys) -> None:
    table.unlink()
    assert f"{table}: there is no such file" in refused(capsys, "--resume", stopped)


def test_a_damaged_checkpoint_is_told(stopped, capsys) -> None:
    path = stopped / "checkpoint.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert str(path) in refused(capsys, "--resume", stopped)
    assert path.read_bytes() == content
    path.unlink()
    assert resume(stopped) == 0  # from the start


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not the JSON of a run"),
        ("[]", "is not that of steepest train"),
        ('{"command": "tune"}', "is not that of steepest train"),
        ('{"command": "train", "stopped": ""}', "does not say what the run is made of"),
        ('{"command": "train"}', "does not say what the run is made of"),
        ('{"command": "train", "stopped": "interrupted", "settings": {"data": 1}}', "made of"),
    ],
)
def test_a_damaged_config_is_told(stopped, capsys, content, message) -> None:
    (stopped / "config.json").write_text(content)
    shown = refused(capsys, "--resume", stopped)
    assert str(stopped / "config.json") in shown and message in shown


def test_folders_without_a_run(tmp_path, capsys) -> None:
    assert "there is no run in this folder" in refused(capsys, "--resume", tmp_path / "none")
    (tmp_path / "file").write_text("")
    assert "has no config.json; there is no run" in refused(capsys, "--resume", tmp_path)
    assert "cannot be read: Not a dir" in refused(capsys, "--resume", tmp_path / "file")
    assert "--resume: which run? give its folder" in refused(capsys, "digits", "--resume")


def test_resume_begins_where_there_is_nothing(table, tmp_path, whole) -> None:
    assert begin(table, tmp_path / "new", "--resume") == 0
    assert outcome(tmp_path / "new") == whole()


def test_a_run_that_is_finished_stays_as_it_is(table, tmp_path, plain, capsys) -> None:
    out = tmp_path / "run"
    assert begin(table, out) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    capsys.readouterr()
    assert resume(out) == 0
    assert capsys.readouterr().out.startswith("finished   all 5 epochs are done; the parameters")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lr", "0.5"], "--lr 0.5: the run in OUT was begun with 0.003, and keeps its settings"),
        (["--epochs", "4"], "--epochs 4: the run in OUT was begun with 5"),
        (["--weight-decay", "0.5"], "--weight-decay 0.5: the run in OUT was begun with 1.0"),
        (["--ema", "0.5"], "--ema 0.5: the run in OUT was begun with None"),
        (["digits"], "--target is for CSV files; the digits need none"),
        (["other.csv"], "other.csv is not what the run in OUT began with"),
    ],
)
def test_other_settings_of_a_finished_run_are_refused(
    table, tmp_path, monkeypatch, capsys, plain, options, message
) -> None:
    out = tmp_path / "run"
    assert begin(table, out) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.csv").write_text(table.read_text().replace("0.", "1.", 1))
    shown = refused(capsys, *options, "--resume", out)
    assert message.replace("OUT", str(out)) in shown
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    table.unlink()  # to hear that it is finished, the data are not needed
    assert resume(out) == 0


def test_a_run_that_diverged_keeps_its_last_good_checkpoint(table, tmp_path, plain) -> None:
    out = tmp_path / "run"
    options = ["--optimizer", "sgd", "--lr", "60", "--schedule", "constant", "--clip", "value:1e9"]
    assert begin(table, out, *options, "--checkpoint-every", "1") == 1
    rows, config, _ = outcome(out)
    assert config["stopped"] == "nonfinite"
    saved = st.checkpoint.read(out / "checkpoint.safetensors")
    assert saved.extra["training"]["progress"]["epoch"] == len(rows) + 1
    assert resume(out) == 1


def test_without_checkpoints(table, tmp_path, monkeypatch, plain) -> None:
    out = tmp_path / "parts"
    with monkeypatch.context() as patch:
        at_step(patch, 10, KeyboardInterrupt())
        assert begin(table, out, "--checkpoint-every", "0") == 130
    assert {path.name for path in out.iterdir()} == train_files() | {"curves.png"}


def test_interrupted_at_once_after_resuming(stopped, monkeypatch) -> None:
    """What the first part wrote says more than nothing."""
    before = {path.name: path.read_bytes() for path in stopped.iterdir()}
    with monkeypatch.context() as patch:
        at_step(patch, 1, KeyboardInterrupt())
        assert resume(stopped) == 130
    after = {path.name: path.read_bytes() for path in stopped.iterdir()}
    for name in ("params.npz", "history.csv", "curves.png"):
        assert after[name] == before[name]


# More epochs


EXTENDED = [
    ["--schedule", "constant"],
    ["--schedule", "step:step_size=3", "--optimizer", "sgd:momentum=0.9", "--ema", "0.9"],
    ["--schedule", "plateau:patience=0", "--accumulate", "2", "--checkpoint-every", "2"],
]


@pytest.mark.parametrize("options", EXTENDED, ids=" ".join)
def test_an_extended_run_is_the_longer_one(table, tmp_path, plain, capsys, options) -> None:
    """To the last bit, where the schedule does not depend on the length of the run."""
    assert begin(table, tmp_path / "long", *options, "--epochs", "9") == 0
    assert begin(table, tmp_path / "run", *options) == 0
    capsys.readouterr()
    assert resume(tmp_path / "run", "--epochs", "9") == 0
    told = "extended   from 5 epochs to 9, as in a run of so many\n"
    assert told in capsys.readouterr().out
    assert outcome(tmp_path / "run") == outcome(tmp_path / "long")


def test_a_schedule_as_long_as_the_run_becomes_longer(table, tmp_path, monkeypatch, plain) -> None:
    """From the next update on; and the longer run can be interrupted, extended again, resumed."""
    for name in ("run", "parts"):
        assert begin(table, tmp_path / name) == 0
    assert begin(table, tmp_path / "long", "--epochs", "9") == 0
    short, *_ = outcome(tmp_path / "run")
    long, *_ = outcome(tmp_path / "long")
    assert resume(tmp_path / "run", "--epochs", "9") == 0
    rows, config, arrays = outcome(tmp_path / "run")
    assert rows[:5] == short
    assert [row["lr"] for row in rows[5:]] == [row["lr"] for row in long[5:]]
    assert rows[5]["lr"] != short[4]["lr"] and rows[5]["loss"] != long[5]["loss"]
    assert (config["epochs"], config["settings"]["epochs"], config["stopped"]) == (9, 9, "epochs")
    with monkeypatch.context() as patch:
        at_step(patch, 6, KeyboardInterrupt())
        assert resume(tmp_path / "parts", "--epochs", "9") == 130
    assert resume(tmp_path / "parts") == 0
    assert outcome(tmp_path / "parts") == (rows, config, arrays)
    assert resume(tmp_path / "parts", "--epochs", "9") == 0  # as it is
    assert resume(tmp_path / "parts", "--epochs", "10") == 0
    assert len(outcome(tmp_path / "parts")[0]) == 10


def test_an_interrupted_run_can_be_extended(stopped, table, tmp_path) -> None:
    assert resume(stopped, "--epochs", "7") == 0
    assert len(outcome(stopped)[0]) == 7


@pytest.mark.parametrize(
    ("options", "more", "message"),
    [
        (["--patience", "1", "--lr", "3"], [], "OUT ended before its 5 epochs: val_loss has not"),
        ([], ["--checkpoint-every", "0"], "0: a run is extended from its checkpoint"),
        (["--checkpoint-every", "0"], [], "from which the run would go on; train anew:  steepest"),
        ([], ["--lr", "0.5"], "--lr 0.5: the run in OUT was begun with 0.003"),
    ],
)
def test_runs_that_cannot_be_extended(table, tmp_path, plain, capsys, options, more, message):
    out = tmp_path / "run"
    assert begin(table, out, *options) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    shown = refused(capsys, "--resume", out, "--epochs", "9", *more)
    assert message.replace("OUT", str(out)) in shown
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_run_that_diverged_is_not_extended(table, tmp_path, plain, capsys) -> None:
    out = tmp_path / "run"
    assert begin(table, out, "--optimizer", "sgd", "--lr", "1e30") == 1
    assert "ended before its 5 epochs: " in refused(capsys, "--resume", out, "--epochs", "9")


# Logs


def test_logs(table, tmp_path, monkeypatch, plain) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(patch, 11, KeyboardInterrupt())
        assert begin(table, out, "--log", "jsonl", "--tensorboard") == 130
    assert resume(out, "--log", "jsonl", "--tensorboard") == 0
    with open(out / "history.csv", newline="") as file:
        rows = [{name: float(x) for name, x in row.items()} for row in csv.DictReader(file)]
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert lines == rows and [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
    assert any((out / "tensorboard").iterdir())
