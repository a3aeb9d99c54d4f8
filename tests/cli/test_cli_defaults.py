"""What a run is made of where its options do not say."""

import doctest
import json
import warnings

import numpy as np
import pytest
from cases import brief

import steepest as st
from bench import defaults as bench
from steepest import cli
from steepest.cli import defaults, result_pictures, runs
from steepest.cli.settings import Settings, load
from steepest.models.networks import r_squared

LINE = ["--target", "y", "--quiet"]


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """A linear table with as many inputs as a network of its size goes wrong on."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 12))
    y = x @ rng.normal(size=12) + 0.3 * rng.normal(size=90)
    path = tmp_path_factory.mktemp("data") / "line.csv"
    header = ",".join([*(f"x{i}" for i in range(12)), "y"])
    np.savetxt(path, np.c_[x, y], delimiter=",", header=header, comments="")
    return path


def trained(line, out, *options):
    assert cli.main(["train", str(line), *LINE, *options, "--out", str(out)]) == 0
    return json.loads((out / "config.json").read_text())


def test_examples() -> None:
    assert doctest.testmod(defaults).failed == 0
    assert doctest.testmod(bench).failed == 0


def test_few_rows_get_as_many_updates_as_many(line, tmp_path) -> None:
    dataset = load(Settings(str(line), target="y"))
    for batch_size, accumulate, epochs in [
        (64, 1, 2000),
        (8, 1, 250),
        (8, 2, 500),
        (None, 1, 2000),
    ]:
        settings = Settings("", batch_size=batch_size, accumulate=accumulate)
        assert defaults.filled(settings, dataset).epochs == epochs
        assert defaults.filled(settings, dataset).hidden == (256,)


def test_what_is_given_is_kept(line) -> None:
    given = Settings("", epochs=3, hidden=(2,), lr=0.5, weight_decay=0.0)
    assert defaults.filled(given, load(Settings(str(line), target="y"))) == given
    with pytest.raises(ValueError, match=r"fill them in with defaults\.filled"):
        runs.prepare(Settings(""), load(Settings(str(line), target="y")))


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """Pictures take most of the time of such small runs."""
    monkeypatch.setattr(st.History, "plot", lambda self, path, title: path.touch())
    for name in ("residuals", "confusion"):
        monkeypatch.setattr(result_pictures, name, lambda *arguments: arguments[-1].touch())


@pytest.mark.parametrize("optimizer", brief(["adamw", "sgd"], ["adamw"]))
def test_a_linear_table_gets_a_linear_model(line, tmp_path, capsys, optimizer) -> None:
    options = ["--optimizer", optimizer, "--batch-size", "16", "--epochs", "150"]
    config = trained(line, tmp_path / "run", *options)
    assert config["network"] == [12, 1]
    assert config["results"]["test"]["r2"] > 0.95
    assert "\nchosen     linear, validation loss 0.0" in capsys.readouterr().out
    # The run is the one that its command makes.
    settings = Settings.from_json(config["settings"])
    words = settings.command().split()[1:]
    assert cli.main([*words, "--quiet", "--out", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert again["results"] == config["results"]


def test_xor_gets_a_network(tmp_path, capsys) -> None:
    x = np.random.default_rng(0).normal(size=(200, 2))
    path = tmp_path / "xor.csv"
    np.savetxt(path, np.c_[x, x.prod(axis=1) > 0], "%.6g", ",", header="a,b,y", comments="")
    config = trained(path, tmp_path / "run", "--epochs", "30", "--lr", "0.01")
    assert config["network"] == [2, 256, 2]
    assert "\nchosen     256 hidden units, validation loss 0." in capsys.readouterr().out


def test_many_rows_get_a_network_untried(line, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(defaults, "MOST_TRIED", 9)
    assert trained(line, tmp_path / "run", "--epochs", "2")["network"] == [12, 256, 1]
    assert "chosen" not in capsys.readouterr().out


def test_few_rows_get_a_linear_model_untried(line, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(defaults, "LEAST_TRIED", 99)
    assert trained(line, tmp_path / "run", "--epochs", "2")["network"] == [12, 1]
    assert "\nchosen     linear, with fewer than 99 samples" in capsys.readouterr().out


def test_ctrl_c_while_both_are_tried(line, tmp_path, monkeypatch, capsys) -> None:
    def interrupted(self, grads):
        raise KeyboardInterrupt

    monkeypatch.setattr(st.AdamW, "step", interrupted)
    out = tmp_path / "run"
    assert cli.main(["train", str(line), *LINE, "--epochs", "1", "--out", str(out)]) == 130
    assert capsys.readouterr().err == "interrupted\n" and not out.exists()


def test_a_run_of_former_defaults_goes_on(line, tmp_path) -> None:
    """Its settings have 60 epochs, 256 units and the rule's own rate and decay."""
    dataset = load(Settings(str(line), target="y"))
    former = Settings(str(line), target="y", epochs=60, hidden=(256,), optimizer="sgd")
    record = former.to_json()
    assert record["lr"] is None and record["weight_decay"] is None
    run = runs.prepare(Settings.from_json(record), dataset)
    assert (run.lr, run.epochs, run.net.sizes) == (0.1, 60, (12, 256, 1))
    adamw = runs.prepare(Settings.from_json(record | {"optimizer": "adamw"}), dataset)
    assert adamw.lr == 0.003 and adamw.optimizer.param_groups[0]["weight_decay"] == 0.01


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["iris", "diabetes", "make_regression, 40 inputs"])
def test_defaults_are_as_good_as_a_linear_model(name) -> None:
    """All tables: bench/defaults.py."""
    cells, whole = bench.row(name, 4)
    assert whole, cells


def test_scores_of_few_rows_are_those_of_all_together() -> None:
    parts = [(np.array([1.0, 2.0, 3.5]), np.array([1.0, 2.5, 3.0])), (np.ones(3), np.arange(3.0))]
    both = r_squared(np.array([1.0, 2.0, 3.5, 1, 1, 1]), np.array([1.0, 2.5, 3.0, 0, 1, 2]))
    assert bench.score("regression", parts) == both


def test_a_table_below_is_marked(monkeypatch) -> None:
    monkeypatch.setattr(bench, "VARIANTS", {"default": {"epochs": 1, "hidden": (), "lr": 1e-9}})
    with warnings.catch_warnings():
        cells, whole = bench.row("iris", 1)
    assert not whole and cells[-1].endswith(" **below**")
