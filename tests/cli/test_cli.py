import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import A_RULE_OF_EACH_KIND, brief
from threadpoolctl import threadpool_info, threadpool_limits

import steepest as st
from steepest import cli, data
from steepest.cli import result_pictures, runs
from steepest.models.networks import MLP, accuracy, r_squared
from steepest.optimizers import RULES
from steepest.training import batches

WRITTEN = {"curves.png", "params.npz", "history.csv", "config.json", "checkpoint.safetensors"}
FILES = WRITTEN | {"report.md", "confusion.png"}


@pytest.fixture
def table(tmp_path):
    """A table of 120 rows: y = 2 a - b, and its sign as text."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 120))
    y = 2 * a - b
    path = tmp_path / "line.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "b", "y", "sign"])
        writer.writerows(zip(a, b, y, np.where(y > 0, "plus", "minus"), strict=True))
    return path


def network(folder):
    """The network that a run wrote, its parameters, and the rest of params.npz."""
    config = json.loads((folder / "config.json").read_text())
    with np.load(folder / "params.npz", allow_pickle=False) as file:
        arrays = dict(file)
    net = MLP(tuple(config["network"]), config["task"])
    params = net.initial(0)
    for layer, group in params.items():
        for name in group:
            group[name] = arrays.pop(f"{layer}.{name}")
    return config, net, params, arrays


# train digits


def test_digits(tmp_path, capsys) -> None:
    out = tmp_path / "run"
    assert cli.main(["train", "digits", "--epochs", "60", "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == FILES
    config, net, params, scaling = network(out)
    dataset = data.digits(seed=0)
    found = accuracy(net.predict(params, dataset.test.x), dataset.test.y)
    assert found == config["results"]["test"]["accuracy"]
    assert found >= 0.96
    np.testing.assert_array_equal(scaling["x_mean"], dataset.scaling["x_mean"])
    shown = capsys.readouterr()
    for part in ("train", "validation", "test"):
        assert f"{100 * config['results'][part]['accuracy']:.2f} %" in shown.out
        assert f"{config['results'][part]['loss']:.5f}" in shown.out
    assert "in the optimizer: 0.0" in shown.out
    assert "1200/1200" in shown.err
    with open(out / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(1, 61))
    best = min(rows, key=lambda row: float(row["val_loss"]))
    assert int(best["epoch"]) == config["best_epoch"]
    assert config["results"]["validation"]["loss"] == float(best["val_loss"])


@pytest.fixture
def plain(monkeypatch):
    """Pictures take most of the time of small runs."""
    monkeypatch.setattr(st.History, "plot", lambda self, path, title: path.touch())
    monkeypatch.setattr(result_pictures, "confusion", lambda *arguments: arguments[-1].touch())


@pytest.mark.parametrize("rule", brief(RULES, A_RULE_OF_EACH_KIND))
def test_every_rule_trains_the_digits(tmp_path, rule, plain) -> None:
    out = tmp_path / rule
    arguments = ["--optimizer", rule, "--epochs", "15", "--quiet", "--out", str(out)]
    arguments += ["--hidden", "256"]
    assert cli.main(["train", "digits", *arguments]) == 0
    config, *_ = network(out)
    # Every rule gets well beyond the 10 % of guessing, at its own learning rate.
    assert config["results"]["test"]["accuracy"] > 0.85
    assert config["optimizer"] == rule


def test_all_options(tmp_path, capsys) -> None:
    out = tmp_path / "run"
    arguments = [
        "train", "digits", "--out", str(out), "--quiet",
        "--optimizer", "sgd:momentum=0.8, nesterov=True",
        "--lr", "0.05", "--schedule", "cosine:end=0.01, warmup=10", "--epochs", "3",
        "--batch-size", "100", "--clip", "global-norm:0.7", "--weight-decay", "0.003",
        "--hidden", "30,20", "--seed", "7", "--patience", "2",
    ]  # fmt: skip
    assert cli.main(arguments) == 0
    config, net, params, _ = network(out)
    assert net.sizes == (64, 30, 20, 10)
    expected = {
        "optimizer": "sgd:momentum=0.8, nesterov=True",
        "lr": 0.05,
        "schedule": "cosine(lr=0.05, steps=39, end=0.01, warmup=10)",
        "epochs": 3,
        "batch_size": 100,
        "clip": "global-norm:0.7",
        "weight_decay": 0.003,
        "patience": 2,
        "seed": 7,
    }
    assert {name: config[name] for name in expected} == expected
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "SGD, lr cosine(lr=0.05" in shown.out

    # The same run by hand.
    dataset = data.digits(seed=7)
    mine = MLP((64, 30, 20, 10), "classification")
    p = mine.initial(7)
    optimizer = st.SGD(
        p,
        lr=st.schedules.cosine(0.05, 39, end=0.01, warmup=10),
        momentum=0.8,
        nesterov=True,
        weight_decay=0.003,
        clip=st.clip.global_norm(0.7),
    )
    with threadpool_limits(1, user_api="blas"):  # sums in the order of one thread, as there
        for epoch in (1, 2, 3):
            for batch in batches(dataset.train, 100, seed=7, epoch=epoch):
                optimizer.step(mine.value_and_grad(p, *batch)[1])
    assert config["best_epoch"] == 3
    for layer, group in p.items():
        for name, array in group.items():
            np.testing.assert_array_equal(params[layer][name], array)


def test_accumulation_averages_loss_and_initial_weights(table, tmp_path) -> None:
    out = tmp_path / "run"
    options = [
        "--target", "y", "--ignore", "sign", "--accumulate", "3", "--batch-size", "10", "--ema",
        "0.8", "--loss", "huber:delta=0.5", "--init", "orthogonal", "--hidden", "7",
        "--epochs", "4", "--seed", "2",
    ]  # fmt: skip
    assert cli.main(["train", str(table), *options, "--quiet", "--out", str(out)]) == 0
    config, _, params, _ = network(out)
    assert config["schedule"] == "cosine(lr=0.003, steps=12, end=0.0)"  # 84 rows, 3 updates each
    expected = {"accumulate": 3, "ema": 0.8, "loss": "huber", "init": "orthogonal"}
    assert {name: config[name] for name in expected} == expected

    # The same run by hand.
    dataset = data.table(table, "y", ignore=["sign"], seed=2)
    mine = MLP((2, 7, 1), "regression", "huber", 0.5, weights="orthogonal")
    p = mine.initial(2)
    optimizer = st.AdamW(p, lr=st.schedules.cosine(0.003, 12), ema=0.8, weight_decay=1.0)
    st.fit(
        mine.loss, p, dataset.train, optimizer, value_and_grad=mine.value_and_grad, epochs=4,
        batch_size=10, accumulate=3, use_ema=True, validation=dataset.validation, patience=4,
        seed=2,
    )  # fmt: skip
    for layer, group in p.items():
        for name, array in group.items():
            np.testing.assert_array_equal(params[layer][name], array)


def test_logistic_loss(table, tmp_path, capsys) -> None:
    out = tmp_path / "run"
    options = ["--target", "sign", "--ignore", "y", "--loss", "logistic", "--hidden", "none"]
    options += ["--init", "zeros", "--lr", "0.1", "--quiet", "--out", str(out)]
    assert cli.main(["train", str(table), *options]) == 0
    config = json.loads((out / "config.json").read_text())
    assert (config["network"], config["loss"]) == ([2, 1], "logistic")
    assert config["results"]["test"]["accuracy"] > 0.8


def test_default_folder_and_full_batch(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--epochs", "2", "--batch-size", "full", "--hidden", "none", "--quiet"]
    assert cli.main(["train", "digits", *arguments]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("digits-20")
    config, net, *_ = network(folder)
    assert (config["batch_size"], net.sizes) == (None, (64, 10))
    assert config["schedule"] == "cosine(lr=0.01, steps=2, end=0.0)"
    assert str(folder.relative_to(tmp_path)) in capsys.readouterr().out


@pytest.mark.skipif(
    not any(x["user_api"] == "blas" for x in threadpool_info()),
    reason="the threads of this BLAS cannot be set",
)
@pytest.mark.parametrize(("limit", "threads"), [(runs.SMALL_PRODUCT, {1}), (0, {2})])
def test_small_products_are_not_shared_among_threads(monkeypatch, tmp_path, limit, threads) -> None:
    found = set()
    step = st.AdamW.step

    def watched(self, grads):
        found.update(x["num_threads"] for x in threadpool_info() if x["user_api"] == "blas")
        step(self, grads)

    monkeypatch.setattr(runs, "SMALL_PRODUCT", limit)
    monkeypatch.setattr(st.AdamW, "step", watched)
    arguments = ["--epochs", "1", "--batch-size", "full", "--quiet", "--out", str(tmp_path / "run")]
    with threadpool_limits(2, user_api="blas"):
        assert cli.main(["train", "digits", *arguments]) == 0
    assert found == threads


# train FILE


def test_regression_table(table, tmp_path, capsys) -> None:
    out = tmp_path / "run"
    arguments = ["--target", "y", "--ignore", "sign", "--lr", "0.01", "--quiet", "--out", str(out)]
    assert cli.main(["train", str(table), *arguments]) == 0
    config, net, params, scaling = network(out)
    assert (config["task"], config["features"], config["classes"]) == ("regression", ["a", "b"], [])
    test = data.table(table, "y", ignore=["sign"]).test
    predicted = net.predict(params, test.x)
    results = config["results"]["test"]
    assert results["r2"] == r_squared(predicted, test.y)
    assert results["r2"] > 0.98
    # From raw numbers to raw predictions, with what the run wrote and nothing else.
    raw = test.x * scaling["x_scale"] + scaling["x_mean"]
    y = predicted * scaling["y_scale"] + scaling["y_mean"]
    error = np.sqrt(np.mean((y - (2 * raw[:, 0] - raw[:, 1])) ** 2))
    np.testing.assert_allclose(results["rmse"], error, rtol=1e-4)  # x is stored as float32
    shown = capsys.readouterr().out
    assert "regression ('y' holds 120 different numbers)" in shown
    assert "rmse" in shown


def test_classification_table(table, tmp_path, capsys) -> None:
    out = tmp_path / "run"
    arguments = ["--target", "sign", "--ignore", "y", "--lr", "0.01", "--quiet", "--out", str(out)]
    assert cli.main(["train", str(table), *arguments]) == 0
    config, *_ = network(out)
    assert (config["task"], config["classes"]) == ("classification", ["minus", "plus"])
    assert config["results"]["test"]["accuracy"] > 0.8  # 18 rows
    assert "classification ('sign' holds text), 2 classes" in capsys.readouterr().out


def test_separator(table, tmp_path) -> None:
    other = tmp_path / "tabs.csv"
    other.write_text(table.read_text().replace(",", "\t"))
    out = tmp_path / "run"
    arguments = ["--target", "y", "--ignore", "sign", "--separator", "tab", "--epochs", "1"]
    assert cli.main(["train", str(other), *arguments, "--quiet", "--out", str(out)]) == 0


# Errors

REGRESSION = ["TABLE", "--target", "y", "--ignore", "sign", "--loss"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits", "--target", "y"], "--target is for CSV files"),
        (["digits", "--task", "regression"], "--task is for CSV files"),
        (["digits", "--optimizer", "adamv"], "expected one of sgd, .*; did you mean adam"),
        (["digits", "--optimizer", "sgd:momentum=-1"], "momentum = -1: expected"),
        (["digits", "--optimizer", "sgd:speed=1"], "SGD has no argument 'speed'"),
        (["digits", "--optimizer", "sgd:momentum"], "expected sgd, or sgd:arguments written as in"),
        (["digits", "--optimizer", "sgd:momentum=open('x')"], "expected sgd, or sgd:arguments"),
        (["digits", "--clip", "norm:1) + (2"], "expected norm, or norm:arguments written as in"),
        (["digits", "--clip", "norm:1)(2"], "expected norm, or norm:arguments written as in"),
        (["digits", "--optimizer", "sgd:lr=1"], "give lr as --lr"),
        (["digits", "--optimizer", "sgd:weight_decay=1"], "give weight_decay as --weight-decay"),
        (["digits", "--optimizer", "sgd:ema=0.9"], "sgd:ema=0.9: give ema as --ema$"),
        (["digits", "--optimizer", "sgd:ema=0.9", "--ema", "0.5"], "give ema as --ema$"),
        (["digits", "--optimizer", "sgd:0.1"], "give lr as --lr, other arguments by name$"),
        (["digits", "--optimizer", "sgd:params=1"], "SGD has no argument 'params'"),
        (["digits", "--optimizer", "sgd:option=1"], "SGD has no argument 'option'"),
        (["digits", "--optimizer", "asgd:t0=5"], "t0 is for the averaged parameters, which need"),
        (["digits", "--optimizer", f"sgd:momentum={10**400}"], "momentum=10*: .*"),
        (["digits", "--schedule", "sequence:(1,), (2,)"], "expected one of constant, "),
        (["digits", "--init", "orthogon"], "expected one of zeros, .*; did you mean orthogonal?"),
        (["digits", "--init", "orthogonal:2"], "orthogonal takes no arguments"),
        (["digits", "--hidden", "9" * 18], r"--hidden 9{18}: |not enough memory"),
        (["digits", "--init", "zeros"], "a network with hidden layers would stay at 0"),
        (["digits", "--loss", "hubert"], "expected one of squared, .*; did you mean huber?"),
        (["digits", "--loss", "squared"], "--loss squared: objective of a classification = 'squ"),
        (["digits", "--loss", "logistic"], "it is for two classes, and there are 10"),
        (["digits", "--loss", "cross_entropy:1"], "give arguments by name"),
        (["digits", "--loss", "cross_entropy:delta=2"], "only objective 'huber' has one"),
        (
            ["digits", "--loss", "cross_entropy:weights='zeros'"],
            "only argument of a loss is huber:delta=0.5",
        ),
        (
            ["digits", "--loss", "cross_entropy:activation='tanh'"],
            "only argument of a loss is huber:delta=0.5",
        ),
        *[
            ([*REGRESSION, f"huber:delta={delta}"], r"delta = .*: expected a finite number > 0$")
            for delta in ("0", "-1", "'a'", "None", "[1]", "1e400")
        ],
        (["no such\nfile", "--target", "y"], "no such file: there is no such file"),
        (["digits", "--accumulate", "2", "--batch-size", "full"], "--accumulate 2 needs a --batch"),
        (["digits", "--schedule", "cosin"], "expected one of constant, .*; did you mean cosine?"),
        (
            ["digits", "--schedule", "exponential"],
            "needs gamma; write  --schedule exponential:GAMMA",
        ),
        (["digits", "--schedule", "noam"], "width and warmup; write .* noam:WIDTH, warmup=WARMUP"),
        (["digits", "--schedule", "noam:5"], "noam needs warmup; add  warmup=WARMUP"),
        (["digits", "--schedule", "noam:warmup=3"], "noam needs width; add  width=WIDTH"),
        (["digits", "--schedule", "constant:5"], "constant takes no argument by place; it takes w"),
        (
            ["digits", "--schedule", "cosine:make=1"],
            "cosine has no argument 'make'; it takes steps,",
        ),
        (["digits", "--schedule", "step:lr=1"], "give lr as --lr$"),
        (["digits", "--clip", "norm"], "norm needs max_norm; write  --clip norm:MAX_NORM$"),
        (
            ["digits", "--clip", "norm:1,2,3"],
            "norm takes 2 arguments by place; it takes max_norm, p$",
        ),
        (
            ["digits", "--clip", "norm:1, max_norm=2"],
            "norm has max_norm twice, by place and by name",
        ),
        (["digits", "--clip", "norm:text=1"], "norm has no argument 'text'; it takes max_norm, p$"),
        (["digits", "--schedule", "cosine:warmup=99999"], "warmup = 99999: expected less than"),
        (["digits", "--clip", "norms"], "expected one of value, norm, .*; did you mean norm?"),
        (["digits", "--clip", "norm:-1"], "max_norm = -1: expected"),
        (["none.csv", "--target", "y"], "none.csv: there is no such file; give a CSV file, or"),
        (["TABLE"], "--target COLUMN is missing"),
        (["TABLE", "--target", "z"], "has no column 'z'; it has 'a', 'b', 'y', 'sign'"),
        (["TABLE", "--target", "y", "--raw"], r"has text in column 'sign' \(such as '\w+'\)"),
        (["TABLE", "--target", "y", "--separator", "::"], "--separator '::': expected one char"),
        (["TABLE", "--target", "y", "--separator", "\n"], r"--separator '\\n': expected one char"),
        (["TABLE", "--target", "y", "--separator", "\r"], r"--separator '\\r': expected one char"),
        (["TABLE", "--target", "y", "--separator", '"'], "--separator '\"': expected one char"),
    ],
)
def test_errors_are_one_line_and_code_2(table, tmp_path, capsys, arguments, message) -> None:
    arguments = [str(table) if a == "TABLE" else a for a in arguments]
    out = tmp_path / "run"
    assert cli.main(["train", *arguments, "--out", str(out)]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("steepest: error: ")
    assert shown.err.count("\n") == 1
    assert re.search(message, shown.err)
    assert shown.out == ""
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["tarin"], "; did you mean train?; see  steepest --help"),
        (["train", "digits", "--optimiser", "adam"], "--optimiser adam; did you mean --optimizer?"),
        (
            ["train", "digits", "--lrr=1"],
            "unrecognized arguments: --lrr=1; did you mean --lr?; see",
        ),
        (["train", "--task", "regresion"], "; did you mean regression?; see"),
        (
            ["compare", "digits", "--optimisers", "adam"],
            "--optimisers adam; did you mean --optimizers?",
        ),
        (
            ["train", "digits", "--unheard", "1"],
            "unrecognized arguments: --unheard 1; see  steepest",
        ),
        (["train"], "required: DATA"),
        (["train", "digits", "--lr", "-1"], "'-1': expected a number, 0 or more"),
        (["train", "digits", "--lr", "fast"], "'fast': expected a number, 0 or more"),
        (["train", "digits", "--lr", "nan"], "'nan': expected a number, 0 or more"),
        (["train", "digits", "--epochs", "0"], "'0': expected an integer, 1 or more"),
        (["train", "digits", "--epochs", "1.5"], "'1.5': expected an integer, 1 or more"),
        (["train", "digits", "--batch-size", "half"], "'half': expected an integer, 1 or more, or"),
        (["train", "digits", "--hidden", "30,x"], "'x': expected integers, 1 or more, with"),
        (["train", "digits", "--ema", "1"], "'1': expected a number, from 0 to below 1"),
        (["train", "digits", "--ema", "-1"], "'-1': expected a number, from 0 to below 1"),
        (["tune", "digits", "--timeout", "-1"], "'-1': expected a number, more than 0"),
        (["train", "digits", "more\nwords"], "unrecognized arguments: more words"),
        (["train", "digits", "--accumulate", "0"], "'0': expected an integer, 1 or more"),
        (["train", "digits", "--epochs", "9" * 9999], "expected an integer below 10 to the 18"),
        (["train", "digits", "--log", "xml"], "invalid choice: 'xml'"),
        (["train", "digits", "--seed", "²"], "'²': expected an integer, 0 or more"),
        (["train", "digits", "--seed", "-1"], "'-1': expected an integer, 0 or more"),
    ],
)
def test_misspelt_commands(capsys, arguments, message) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    shown = capsys.readouterr().err
    assert re.fullmatch(
        r"steepest( train| tune| compare)?: error: .*; see  steepest( \w+)? --help\n", shown
    )
    assert message in shown


def test_a_used_folder_is_not_overwritten(tmp_path, capsys) -> None:
    (tmp_path / "config.json").write_text("mine")
    assert cli.main(["train", "digits", "--out", str(tmp_path)]) == 2
    assert "is not empty; give another one with --out" in capsys.readouterr().err
    assert (tmp_path / "config.json").read_text() == "mine"


def test_a_folder_that_cannot_be_made(tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(["train", "digits", "--out", str(tmp_path / "file")]) == 2
    assert "cannot be made: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "purpose"),
    [("matplotlib", "steepest train"), ("sklearn.datasets", "the digits"), ("tqdm.auto", "progr")],
)
def test_missing_packages(monkeypatch, tmp_path, capsys, module, purpose) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert cli.main(["train", "digits", "--out", str(tmp_path / "run")]) == 2
    shown = capsys.readouterr().err
    assert f"steepest: error: {purpose}" in shown
    assert "run  pip install " in shown and "steepest with its extra [train]" in shown


@pytest.mark.parametrize("command", ["train", "compare", "tune"])
def test_a_backend_that_matplotlib_does_not_know(tmp_path, command) -> None:
    options = ["--optimizers", "sgd"] if command == "compare" else []
    done = process(
        command, "digits", *options, "--out", str(tmp_path / "run"),
        env={**os.environ, "MPLBACKEND": "nonsense"},
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(
        f"steepest: error: MPLBACKEND=nonsense: steepest {command} cannot"
    )
    assert done.stderr.endswith("; unset it, since pictures in files need none\n")


def test_a_package_that_is_broken_is_told_in_a_line(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "matplotlib.py").write_text("import part_of_it\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    assert cli.main(["train", "digits", "--out", str(tmp_path / "run")]) == 2
    shown = capsys.readouterr().err
    assert shown == "steepest: error: a package cannot be imported: No module named 'part_of_it'\n"


# Runs that do not reach their end


def test_interrupt_saves_what_there_is(monkeypatch, tmp_path, capsys) -> None:
    steps = 0
    step = st.AdamW.step

    def interrupted(self, grads):
        nonlocal steps
        steps += 1
        if steps > 50:  # 20 updates an epoch: in the third
            raise KeyboardInterrupt
        step(self, grads)

    titles = []

    def plot(history, path, title):
        titles.append(title)
        path.touch()

    monkeypatch.setattr(st.History, "plot", plot)
    monkeypatch.setattr(st.AdamW, "step", interrupted)
    out = tmp_path / "run"
    assert cli.main(["train", "digits", "--hidden", "256", "--quiet", "--out", str(out)]) == 130
    assert [title.endswith(" %, interrupted after 2 epochs") for title in titles] == [True]
    assert {path.name for path in out.iterdir()} == WRITTEN
    config, net, params, _ = network(out)
    assert (config["stopped"], config["message"]) == ("interrupted", "interrupted after 2 epochs")
    test = data.digits().test
    found = accuracy(net.predict(params, test.x), test.y)
    assert found == config["results"]["test"]["accuracy"]
    assert found > 0.5
    assert "what has been trained so far is kept" in capsys.readouterr().err


def test_interrupt_in_the_first_epoch(monkeypatch, tmp_path) -> None:
    def interrupted(self, grads):
        raise KeyboardInterrupt

    monkeypatch.setattr(st.AdamW, "step", interrupted)
    out = tmp_path / "run"
    assert cli.main(["train", "digits", "--hidden", "9", "--quiet", "--out", str(out)]) == 130
    assert {path.name for path in out.iterdir()} == WRITTEN - {"curves.png"}


def test_interrupt_before_training(monkeypatch, tmp_path, capsys) -> None:
    def interrupted(**arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "digits", interrupted)
    assert cli.main(["train", "digits", "--out", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (MemoryError("Unable to allocate 5 TiB"), "not enough memory: Unable to allocate 5 TiB"),
        (MemoryError(), "not enough memory"),
        (PermissionError(13, "Permission denied", "/x/y"), "/x/y: Permission denied"),
        (OSError("strange"), "the output: strange"),
    ],
)
def test_failures_of_the_machine_are_one_line(monkeypatch, tmp_path, capsys, failure, message):
    def failing(**arguments):
        raise failure

    monkeypatch.setattr(data, "digits", failing)
    assert cli.main(["train", "digits", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == f"steepest: error: {message}\n"


@pytest.mark.skipif(sys.platform == "win32", reason="pipes break with another error on Windows")
def test_a_run_whose_reader_has_gone_is_kept(tmp_path) -> None:
    """As with ``| head -5``: what was trained is in the folder."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "steepest.cli", "train", "digits", "--epochs", "3", "--quiet"]
    run = subprocess.Popen(
        [*command, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with run:
        shown = [run.stdout.readline() for _ in range(6)]
        run.stdout.close()
        assert run.stderr.read() == b""
    assert shown[-1].startswith(b"training ")
    assert run.returncode == 0
    assert {path.name for path in out.iterdir()} == FILES


def test_divergence_is_told(tmp_path, capsys) -> None:
    out = tmp_path / "run"
    arguments = ["--optimizer", "sgd", "--lr", "1e30", "--quiet", "--out", str(out)]
    assert cli.main(["train", "digits", *arguments]) == 1
    shown = capsys.readouterr()
    assert "lower the learning rate, or clip the gradients" in shown.out
    assert shown.err == ""
    config, *_ = network(out)
    assert config["stopped"] == "nonfinite"
    assert np.isfinite(config["results"]["train"]["loss"])


def test_an_optimizer_that_raises_for_a_gradient_diverges(monkeypatch, tmp_path, capsys) -> None:
    def raising(self, grads):
        raise FloatingPointError("gradient of 'layer1.bias' is not finite")

    monkeypatch.setattr(st.SGD, "step", raising)
    arguments = ["--optimizer", "sgd:nonfinite='raise'", "--quiet", "--out", str(tmp_path / "run")]
    assert cli.main(["train", "digits", *arguments]) == 1
    shown = capsys.readouterr()
    assert "stopped    gradient of 'layer1.bias' is not finite\n" in shown.out
    assert shown.err == ""


# list and info


def test_list(capsys) -> None:
    assert cli.main(["list"]) == 0
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert [line.split()[0] for line in lines if line and line[0] != " "] == list(RULES)
    for cls in RULES.values():
        assert cls.__doc__.splitlines()[0] in shown
        for line in cls.formula.splitlines():
            assert line.strip() in shown


def test_list_tells_states_bytes_needs_and_source(capsys) -> None:
    assert cli.main(["list"]) == 0
    rules = {
        text.split()[0]: text for text in capsys.readouterr().out.split("\n\n") if text.strip()
    }
    assert list(rules) == list(RULES)
    assert "states: none\n" in rules["sgd"]
    assert "states: exp_avg, exp_avg_sq\n" in rules["adamw"]
    assert "bytes per parameter and step (float32): 28 (16 read, 12 written)\n" in rules["adamw"]
    assert "(float32): 32 (20 read, 12 written)\n" in rules["madgrad"]
    for rule, text in rules.items():
        assert f"needs: {RULES[rule].needs}\n" in text
        assert text.endswith(f"source: {RULES[rule].source}")


def listed(capsys, words) -> dict[str, str]:
    """What `steepest list` prints of each rule."""
    assert cli.main(["list", *words.split()]) == 0
    return {text.split()[0]: text for text in capsys.readouterr().out.split("\n\n") if text.strip()}


@pytest.mark.parametrize(
    ("words", "told", "adamw", "lion"),
    [
        (
            "", "float32",
            "16 (4 itself, 4 gradient, 8 states)", "12 (4 itself, 4 gradient, 4 states)",
        ),
        (
            "--dtype bfloat16", "bfloat16",
            "12 (2 itself, 2 gradient, 8 states)", "8 (2 itself, 2 gradient, 4 states)",
        ),
        (
            "--grad-dtype float16 --state-dtype bfloat16",
            "float32, gradient float16, states bfloat16",
            "10 (4 itself, 2 gradient, 4 states)", "8 (4 itself, 2 gradient, 2 states)",
        ),
        (
            "--dtype float16 --grad-dtype float32 --master float32",
            "float16, gradient float32, master float32",
            "18 (2 itself, 4 gradient, 12 states)", "14 (2 itself, 4 gradient, 8 states)",
        ),
        (
            "--dtype float64", "float64",
            "32 (8 itself, 8 gradient, 16 states)", "24 (8 itself, 8 gradient, 8 states)",
        ),
    ],
)  # fmt: skip
def test_list_tells_the_bytes_of_formats(words, told, adamw, lion, capsys) -> None:
    rules = listed(capsys, words)
    assert list(rules) == list(RULES)
    assert f"bytes per parameter ({told}): {adamw}\n" in rules["adamw"]
    assert f"bytes per parameter ({told}): {lion}\n" in rules["lion"]


def test_list_says_which_rules_have_no_such_formats(capsys) -> None:
    rules = listed(capsys, "--dtype bfloat16 --state-dtype exp_avg=bfloat16,exp_avg_sq=float32")
    told = "bfloat16, states exp_avg bfloat16, exp_avg_sq float32"
    assert f"bytes per parameter and step ({told}): 18 (10 read, 8 written)\n" in rules["adamw"]
    assert "not in these formats: state_dtype names 'exp_avg_sq'; the states of" in rules["lion"]
    assert "not in these formats: state_dtype = " in rules["muon"]
    assert cli.main(["list", "--markdown", "--state-dtype", "exp_avg=float16"]) == 0
    shown = capsys.readouterr().out
    assert "`exp_avg`<br>`exp_avg_sq` | 24 | element-wise" in shown and "Muon" not in shown


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--dtype float8", "format 'float8': expected one of float32, float64, bfloat16"),
        ("--state-dtype int8", "state_dtype = 'int8': expected one of float32"),
        ("--master split16", "master = 'split16' has no effect: no parameter is bfloat16"),
        ("--state-dtype nothing=float32", "state_dtype names 'nothing'"),
    ],
)
def test_list_of_formats_that_there_are_not(words, reason, capsys) -> None:
    assert cli.main(["list", *words.split()]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and reason in shown.err


def test_list_as_a_table_has_a_row_of_seven_cells_for_every_rule(capsys) -> None:
    assert cli.main(["list", "--markdown"]) == 0
    header, line, *rows = capsys.readouterr().out.splitlines()
    assert len(rows) == len(RULES)
    for row in (header, line, *rows):
        assert len(re.findall(r"(?<!\\)\|", row)) == 8
    [adam] = [row for row in rows if row.startswith("| `Adam` ")]
    assert adam.endswith(
        "| `exp_avg`<br>`exp_avg_sq` | 28 | element-wise | Kingma and Ba 2014, "
        "[arXiv:1412.6980](https://arxiv.org/abs/1412.6980) |"
    )


def test_info(capsys) -> None:
    assert cli.main(["info"]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["steepest"] == st.__version__
    assert shown["level"] == st.info()["level"]
    assert shown["threads"] == str(st.get_num_threads())
    assert set(shown) <= set(st.info())


def test_help_names_the_commands(capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for command in ("train", "predict", "export", "compare", "tune", "list", "info"):
        assert command in shown


@pytest.mark.parametrize(
    "command", ["train", "predict", "export", "compare", "tune", "list", "info"]
)
def test_the_page_has_every_option(capsys, command) -> None:
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*\w", capsys.readouterr().out))
    page = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text(encoding="utf-8")
    assert options - {"--help"} <= set(re.findall(r"--[a-z][a-z-]*\w", page))


def process(*arguments, **options):
    command = [sys.executable, "-m", "steepest.cli", *arguments]
    options = {"stdout": subprocess.PIPE, "env": {**os.environ, "PYTHONUTF8": "1"}} | options
    return subprocess.run(command, stderr=subprocess.PIPE, encoding="utf-8", check=False, **options)


def test_in_a_process_of_its_own() -> None:
    done = process("list")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nadamw " in done.stdout
    assert "β₁" in done.stdout
    done = process("train", "none.csv")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("steepest: error: none.csv: there is no such file")


def test_encoding_without_greek() -> None:
    done = process("list", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "m ? ?? m + (1 - ??) g" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="pipes break with another error on Windows")
def test_reader_that_stops_reading() -> None:
    read, write = os.pipe()
    os.close(read)
    done = process("list", stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
