import csv
import io
import json
import re
import shlex
import signal
import subprocess
import sys

import numpy as np
import optuna
import pytest

import steepest as st
from steepest import cli, tuning
from steepest.cli import pictures, result_pictures, runs
from steepest.cli.search_settings import Search
from steepest.cli.settings import Settings
from steepest.tuning.results import Record, Tuned

FILES = {"tune.png", "tune.csv", "best.json", "config.json", "tuning.db", "best"}
QUICK = ["--epochs", "3", "--hidden", "8", "--batch-size", "16", "--quiet"]
RATES = ["--space", "lr=1e-3..1e-1 log"]


class Blank:
    """A picture that takes no time."""

    def savefig(self, path, dpi) -> None:
        path.touch()


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A table of 80 rows, 4 updates an epoch: y = 2 a - b; and pictures that take no time."""
    monkeypatch.setattr(st.History, "plot", lambda self, path, title: path.touch())
    for name in ("residuals", "confusion"):
        monkeypatch.setattr(result_pictures, name, lambda *arguments: arguments[-1].touch())
    monkeypatch.setattr(Tuned, "plot", lambda self, title: Blank())
    monkeypatch.setattr(pictures, "readable", lambda figure: figure)
    a, b = np.random.default_rng(1).normal(size=(2, 80))
    path = tmp_path / "line.csv"
    rows = zip(a, b, 2 * a - b, strict=True)
    path.write_text("a,b,y\n" + "".join(f"{x},{y},{z}\n" for x, y, z in rows))
    return path


def tuned(table, out, *arguments, code=0):
    """The rows of tune.csv."""
    command = ["tune", str(table), "--target", "y", *QUICK, *arguments, "--out", str(out)]
    assert cli.main(command) == code
    return rows(out / "tune.csv")


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def values(found):
    """All that a search came to, but for the time it took."""
    return [{name: x for name, x in row.items() if name != "seconds"} for row in found]


def interrupt_at(monkeypatch, n):
    """Ctrl-C at the n-th update from now."""
    step, count = st.AdamW.step, 0

    def interrupted(self, grads):
        nonlocal count
        count += 1
        if count == n:
            raise KeyboardInterrupt
        step(self, grads)

    monkeypatch.setattr(st.AdamW, "step", interrupted)


def test_the_best_is_what_train_makes_of_it(table, tmp_path, capsys) -> None:
    out = tmp_path / "tuned"
    found = tuned(table, out, "--method", "random", "--trials", "6", *RATES)
    assert {path.name for path in out.iterdir()} == FILES
    assert len(found) == 6 and all(1e-3 <= float(row["lr"]) <= 1e-1 for row in found)
    best = json.loads((out / "best.json").read_text())
    lowest = min((row for row in found if row["state"] == "done"), key=lambda x: float(x["loss"]))
    assert (str(best["trial"]), str(best["val_loss"])) == (lowest["trial"], lowest["loss"])
    config = json.loads((out / "best" / "config.json").read_text())
    assert config["results"]["validation"]["loss"] == best["val_loss"]
    assert config["settings"] == best["settings"]
    shown = capsys.readouterr().out
    assert f"best       {best['command']}\n" in shown
    assert f"{config['results']['test']['loss']:.5f}" in shown

    program, *command = shlex.split(best["command"])
    assert program == "steepest"
    assert cli.main([*command, "--quiet", "--out", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert again["results"] == config["results"]


def test_the_default_space(table, tmp_path, capsys) -> None:
    options = ["--epochs", "2", "--trials", "3", "--quiet", "--optimizer", "sgd"]
    out = tmp_path / "tuned"
    assert cli.main(["tune", str(table), "--target", "y", *options, "--out", str(out)]) == 0
    (first, *_) = rows(out / "tune.csv")
    names = ["lr", "weight_decay", "batch_size", "hidden", "momentum"]
    assert list(first) == ["trial", "state", "loss", "seconds", *names, "message"]
    shown = capsys.readouterr().out
    assert "search     tpe, 3 trials in all, 2 epochs at most\n" in shown
    assert "           lr = 0.0033..3 log\n           weight_decay = 1e-6..1e-1 log\n" in shown


def test_what_is_given_is_not_searched(table, tmp_path) -> None:
    options = ["--optimizer", "adamw:betas=(0.8, 0.9)", "--lr", "0.01", "--trials", "2"]
    (first, *_) = tuned(table, tmp_path / "tuned", *options)
    assert list(first) == ["trial", "state", "loss", "seconds", "weight_decay", "message"]


def test_a_grid(table, tmp_path, capsys) -> None:
    options = ["--grid", "lr=1e-3,1e-2", "--grid", "clip=norm:0.1,norm:1", "--no-prune"]
    found = tuned(table, tmp_path / "tuned", *options)
    assert [(row["lr"], row["clip"]) for row in found] == [
        (lr, clip) for lr in ("0.001", "0.01") for clip in ("norm:0.1", "norm:1")
    ]
    assert [row["state"] for row in found] == ["done"] * 4
    shown = capsys.readouterr().out
    assert "search     grid, 3 epochs at most\n" in shown
    lines = shown[shown.index("\ntrial") :].splitlines()[2:6]
    losses = [float(line.split()[1]) for line in lines]
    assert losses == sorted(round(float(row["loss"]), 5) for row in found)


def test_a_grid_of_ranges(table, tmp_path) -> None:
    options = ["--method", "grid", "--space", "lr=1e-3..1e-1 log points=3", "--grid", "ema=0.5,0.9"]
    found = tuned(table, tmp_path / "tuned", *options)
    assert [float(row["lr"]) for row in found[::2]] == [1e-3, 1e-2, 1e-1]


def test_trials_that_diverge_or_are_worse_do_not_end_the_search(table, tmp_path) -> None:
    options = ["--optimizer", "sgd", "--grid", "lr=1e30,0.1,0.1,0.1,0.1,0.1,1e-9"]
    found = tuned(table, tmp_path / "tuned", *options)
    assert [row["state"] for row in found] == ["failed", *["done"] * 5, "pruned"]
    assert found[0]["message"].startswith("FloatingPointError: loss = ")


def test_no_trial_is_done(table, tmp_path, capsys) -> None:
    out = tmp_path / "tuned"
    tuned(table, out, "--optimizer", "sgd", "--grid", "lr=1e30,1e31", code=1)
    assert {path.name for path in out.iterdir()} == {"tune.csv", "config.json", "tuning.db"}
    assert "none is done, the last error: FloatingPointError" in capsys.readouterr().out


# Going on


@pytest.mark.parametrize(
    ("method", "again"), [("random", "out"), ("tpe", "resume"), ("halving", "out")]
)
def test_a_stopped_search_goes_on(table, tmp_path, monkeypatch, capsys, method, again) -> None:
    options = ["--method", method, "--trials", "5", *RATES, "--min-epochs", "1"]
    whole = tuned(table, tmp_path / "whole", *options)
    out = tmp_path / "parts"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 18)  # in the second trial
        capsys.readouterr()
        tuned(table, out, *options, code=130)
    shown = capsys.readouterr()
    assert shown.err == f"interrupted: continue with  steepest tune --resume {out}\n"
    assert {path.name for path in out.iterdir()} == FILES - {"best"}
    if again == "out":
        tuned(table, out, *options)
    else:
        assert cli.main(["tune", "--resume", str(out), "--quiet"]) == 0
    assert values(rows(out / "tune.csv")) == values(whole)
    assert {path.name for path in out.iterdir()} == FILES


def test_more_trials(table, tmp_path) -> None:
    whole = tuned(table, tmp_path / "whole", "--trials", "5", *RATES)
    out = tmp_path / "parts"
    assert values(tuned(table, out, "--trials", "3", *RATES)) == values(whole)[:3]
    assert cli.main(["tune", "--resume", str(out), "--trials", "5", "--quiet"]) == 0
    assert values(rows(out / "tune.csv")) == values(whole)


def test_interrupted_in_the_last_run(table, tmp_path, monkeypatch, capsys) -> None:
    out = tmp_path / "tuned"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 12 + 6)  # a trial has 12 updates
        tuned(table, out, "--trials", "1", *RATES, code=130)
    hint = f"interrupted: continue with  steepest tune --resume {out}\n"
    assert capsys.readouterr().err == hint
    assert cli.main(["tune", "--resume", str(out), "--quiet"]) == 0
    config = json.loads((out / "best" / "config.json").read_text())
    assert config["stopped"] == "epochs"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
def test_a_killed_search_goes_on(table, tmp_path) -> None:
    whole = tuned(table, tmp_path / "whole", "--trials", "4", "--no-prune", *RATES)
    out = tmp_path / "parts"
    code = """
import os, signal, sys, steepest as st
from steepest import cli
step, count = st.AdamW.step, 0
def signalled(self, grads):
    global count
    count += 1
    if count == 30:
        os.kill(os.getpid(), signal.SIGKILL)
    step(self, grads)
st.AdamW.step = signalled
cli.main(sys.argv[1:])
"""
    options = ["--target", "y", *QUICK, "--trials", "4", "--no-prune", *RATES, "--out", str(out)]
    command = [sys.executable, "-c", code, "tune", str(table), *options]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert values(tuned(table, out, *options)) == values(whole)


def test_two_searches_share_a_storage(table, tmp_path) -> None:
    storage = ["--storage", f"sqlite:///{tmp_path}/all.db"]
    first = tuned(table, tmp_path / "a", "--trials", "2", *RATES, *storage)
    second = tuned(table, tmp_path / "b", "--trials", "4", *RATES, *storage)
    assert second[:2] == first and len(second) == 4
    other = tuned(table, tmp_path / "c", "--trials", "1", *RATES, *storage, "--patience", "2")
    assert len(other) == 1  # other settings, another study
    assert not (tmp_path / "a" / "tuning.db").exists()


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--space", "speed=1..2"], "speed=1..2: expected NAME=VALUES with one of lr, "),
        (["--space", "hidden=1..2"], "hidden=1..2: hidden is given already; search it or fix it"),
        (["--space", "lr=2..1"], "lr=2..1: the range is empty; expected LOW..HIGH, with"),
        (["--space", "eps=-1..1"], "--optimizer adamw:eps=-1.0: eps = -1.0"),
        (["--grid", "schedule=cosine,sine"], "--schedule sine: expected one of"),
        (["--grid", "lr=1e-3..1e-1"], "lr=1e-3..1e-1: a grid needs points=N after it, or a"),
        (["--grid", "lr=1,2,3", "--trials", "2"], "--trials 2: the grid has 3 points; leave it"),
        (["--optimizer", "adamv"], "--optimizer adamv: expected one of"),
        (["--accumulate", "2", "--optimizer", "adam:lr=1"], "give lr as --lr"),
    ],
)
def test_errors_come_before_the_first_trial(table, tmp_path, capsys, options, message) -> None:
    out = tmp_path / "tuned"
    command = ["tune", str(table), "--target", "y", *QUICK, *options, "--out", str(out)]
    assert cli.main(command) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("steepest: error: ") and shown.err.count("\n") == 1
    assert message in shown.err
    assert shown.out == "" and not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "9"], "--epochs 9: the run in OUT was begun with 3, and keeps"),
        (["--method", "random"], "--method random: the run in OUT was begun with tpe"),
        (["--space", "lr=1..2"], "--space {'lr': '1..2'}: the run in OUT was begun with {'lr': '1"),
        (["--optimizer", "sgd"], "--optimizer sgd: the run in OUT was begun with adamw"),
        (["--no-prune"], "--prune False: the run in OUT was begun with True"),
    ],
)
def test_other_settings_are_refused(table, tmp_path, capsys, options, message) -> None:
    out = tmp_path / "tuned"
    tuned(table, out, "--trials", "1", *RATES)
    capsys.readouterr()
    assert cli.main(["tune", "--resume", str(out), *options]) == 2
    assert message.replace("OUT", str(out)) in capsys.readouterr().err


def test_other_data_are_refused(table, tmp_path, capsys) -> None:
    out = tmp_path / "tuned"
    tuned(table, out, "--trials", "1", *RATES)
    table.write_text(table.read_text().replace("0.", "1.", 1))
    assert cli.main(["tune", "--resume", str(out)]) == 2
    assert f"is not what the search in {out} began with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("aims", "has"), [(["maximize"], "maximizes"), (["minimize", "maximize"], "has 2 objectives")]
)
def test_a_study_with_other_aims_is_refused(table, tmp_path, capsys, aims, has) -> None:
    url = f"sqlite:///{tmp_path}/all.db"
    storage = optuna.storages.RDBStorage(url)
    optuna.create_study(study_name="mine", storage=storage, directions=aims)
    storage.remove_session()
    storage.engine.dispose()
    words = ["tune", str(table), "--target", "y", *QUICK, *RATES, "--out", str(tmp_path / "a")]
    assert cli.main([*words, "--storage", url, "--study", "mine"]) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert f"study 'mine' in {url} {has}, and a search minimizes one loss" in line
    assert line.endswith("give another name with --study")


def test_folders_without_a_search(table, tmp_path, capsys) -> None:
    assert cli.main(["tune", "--resume", str(tmp_path / "none")]) == 2
    assert "there is no search in this folder" in capsys.readouterr().err
    out = tmp_path / "run"
    train = ["train", str(table), "--target", "y", *QUICK]
    assert cli.main([*train, "--out", str(out)]) == 0
    assert cli.main(["tune", "--resume", str(out)]) == 2
    assert "is not that of steepest tune" in capsys.readouterr().err
    record = {"command": "tune", "search": {"settings": Settings("digits").to_json()}}
    (out / "config.json").write_text(json.dumps(record))
    assert cli.main(["tune", "--resume", str(out)]) == 2
    assert "is not that of a search" in capsys.readouterr().err


def test_misspelt_commands(capsys) -> None:
    for arguments, message in [
        (["tune"], "required: DATA"),
        (["tune", "digits", "--method", "guess"], "invalid choice: 'guess'"),
        (["tune", "digits", "--timeout", "0"], "'0': expected a number, more than 0"),
        (["tune", "digits", "--trials", "0"], "'0': expected an integer, 1 or more"),
    ]:
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert caught.value.code == 2
        assert message in capsys.readouterr().err


def test_a_database_that_cannot_be_used(table, tmp_path, capsys) -> None:
    for i, url in enumerate(["nothing://x", f"sqlite:///{tmp_path}/none/x.db"]):
        out = tmp_path / str(i)
        command = ["tune", str(table), "--target", "y", *QUICK, *RATES, "--trials", "1"]
        assert cli.main([*command, "--storage", url, "--out", str(out)]) == 2
        shown = capsys.readouterr().err
        assert re.fullmatch(r"steepest: error: .*cannot be (opened|kept).*\n", shown), shown


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_a_database_that_cannot_grow(table, tmp_path) -> None:
    code = """
import resource, sys
from steepest import cli, tuning
tune = tuning.tune
def limited(objective, *arguments, **options):
    def growing(values, trial):
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        return objective(values, trial)
    return tune(growing, *arguments, **options)
tuning.tune = limited
sys.exit(cli.main(sys.argv[1:]))
"""
    options = ["--target", "y", *QUICK, "--trials", "2", *RATES, "--out", str(tmp_path / "full")]
    command = [sys.executable, "-c", code, "tune", str(table), *options]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, timeout=120)
    assert done.returncode == 2
    assert re.fullmatch(r"steepest: error: the record of the search cannot .*\n", done.stderr)
    assert len(tuned(table, tmp_path / "full", *options)) == 2  # when there is room again


@pytest.mark.parametrize("missing", [["optuna"], ["optuna", "matplotlib"], ["matplotlib"]])
def test_missing_packages(monkeypatch, table, tmp_path, capsys, missing) -> None:
    """The extra that is named has all of them."""
    for package in missing:
        monkeypatch.setitem(sys.modules, package, None)
    assert cli.main(["tune", str(table), "--target", "y", "--out", str(tmp_path / "x")]) == 2
    shown = capsys.readouterr().err
    assert f"run  pip install {missing[0]}, or install steepest with its extra [tune]" in shown


def test_passwords_are_not_written_down(table, tmp_path) -> None:
    given = {"data": "digits", "storage": "mysql://me:secret@host/db", "space": ["lr=1,2"]}
    record = {"search": Search.given(given).to_json()}
    assert "secret" not in json.dumps(record)
    with pytest.raises(ValueError, match=r"the password of mysql://me:\*\*\*@host/db is not kept"):
        Search.resumed(tmp_path, record, {})
    again = Search.resumed(tmp_path, record, {"storage": given["storage"]})
    assert again == Search.given(given)


# The picture


def test_axes_tell_plain_numbers() -> None:
    space = {"lr": tuning.log_uniform(1e-4, 1e-1), "momentum": tuning.uniform(0.5, 0.9)}
    records = [
        Record(i, {"lr": 10.0**-i, "momentum": 0.5 + 0.1 * i}, 0.1 * 3**i, "done") for i in range(4)
    ]
    figure = pictures.readable(Tuned(records, space).plot())
    trials, lr, momentum = figure.axes
    assert {ax.get_yscale() for ax in figure.axes} == {"log"}
    figure.savefig(io.BytesIO())
    ticks = {text.get_text() for text in lr.get_xticklabels()}
    assert {"0.001", "0.01", "0.1"} <= ticks
    assert len(momentum.get_xticks()) <= 6
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["done", "lowest so far"]
    assert "0.2" in {text.get_text() for text in trials.get_yticklabels()}


def test_the_same_run_is_prepared_for_each_trial(table, tmp_path, monkeypatch) -> None:
    """Fresh parameters, all from the same seed."""
    seen = []
    prepare = runs.prepare

    def watched(*arguments):
        run = prepare(*arguments)
        seen.append(run.params["layer1"]["weight"].tobytes())
        return run

    monkeypatch.setattr(runs, "prepare", watched)
    tuned(table, tmp_path / "tuned", "--trials", "3", *RATES)
    assert len(seen) == 2 + 3 + 1 and len(set(seen)) == 1  # the ends of the range, trials, the best
