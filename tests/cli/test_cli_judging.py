"""Baselines beside a result, hints, the report and the picture of the test part."""

import doctest
import json
import re
import shlex

import numpy as np
import pytest

import steepest as st
from steepest import cli, data
from steepest.cli import judging, result_pictures
from steepest.data import baselines


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A linear regression, and classes that a line separates."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(150, 3)).round(4)
    x = x[abs(x @ [1.0, -2.0, 0.5]) > 0.5]  # apart
    y = 100 * (x @ [1.0, -2.0, 0.5]).round(4)
    rows = [
        f"{a},{b},{c},{d},{'up' if d > 0 else 'do`wn'}" for (a, b, c), d in zip(x, y, strict=True)
    ]
    path = folder / "a table.csv"
    path.write_text("\n".join(["a,b,c,y,way", *rows, ""]))
    return path


@pytest.fixture
def plain(monkeypatch):
    """Pictures take most of the time of such small runs."""
    monkeypatch.setattr(st.History, "plot", lambda self, path, title: path.touch())
    monkeypatch.setattr(result_pictures, "residuals", lambda *arguments: arguments[-1].touch())


def train(path, out, *options):
    words = ["train", str(path), *options, "--quiet", "--out", str(out)]
    assert cli.main(words) == 0
    return json.loads((out / "config.json").read_text())


def test_examples() -> None:
    assert doctest.testmod(judging).failed == 0


def test_a_regression_that_is_worse_than_ridge(files, tmp_path, capsys, plain) -> None:
    options = ["--target", "y", "--ignore", "way", "--epochs", "2", "--hidden", "8"]
    config = train(files, tmp_path / "run", *options)
    ridge, mean = config["baselines"]["ridge regression"], config["baselines"]["mean"]
    assert ridge["test"]["r2"] > 0.99 > config["results"]["test"]["r2"] + 0.1
    assert abs(mean["train"]["r2"]) < 1e-6 and set(mean) == {"train", "validation", "test"}
    # In the unit of the target.
    dataset = data.table(files, "y", ignore=["way"])
    scale = float(dataset.scaling["y_scale"])
    found = baselines.linear(dataset).predict(dataset.test.x.astype(np.float64))
    rmse = scale * np.sqrt(np.mean((found - dataset.test.y) ** 2))
    assert ridge["test"]["rmse"] == pytest.approx(rmse)  # another order of roundings
    shown = capsys.readouterr().out
    assert f"\nbaseline   ridge regression: test r2 {ridge['test']['r2']:.4f}, rmse " in shown
    assert f"\n           mean: test r2 {mean['test']['r2']:.4f}, rmse " in shown
    [worse] = config["hints"]
    told = r"ridge regression is better on the test part, r2 1\.0000 against .*; try --hidden none;"
    assert re.match(told, worse)
    assert f"\nhint       {worse}\n" in shown


def test_a_linear_model_that_is_worse_is_told_to_train_longer(files, tmp_path, plain) -> None:
    options = ["--target", "y", "--ignore", "way", "--epochs", "9", "--hidden", "none"]
    options += ["--optimizer", "sgd", "--lr", "0.01", "--schedule", "constant"]
    config = train(files, tmp_path / "run", *options)
    worse, fell = config["hints"]
    assert "; give more --epochs, or another --lr;" in worse
    assert re.match(
        r"the validation loss was still falling: by \d\d % in the second half; giv", fell
    )


def test_a_baseline_that_fails_loses_no_run(files, tmp_path, plain, monkeypatch) -> None:
    def failing(dataset):
        raise np.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(baselines, "linear", failing)
    options = ["--target", "y", "--ignore", "way", "--epochs", "2", "--hidden", "none"]
    config = train(files, tmp_path / "run", *options)
    assert list(config["baselines"]) == ["mean"] and "r2" in config["results"]["test"]


def test_a_good_result_has_no_hint_and_a_report(files, tmp_path, capsys) -> None:
    options = ["--target", "way", "--ignore", "y", "--epochs", "60", "--hidden", "none"]
    options += ["--lr", "0.1"]
    config = train(files, tmp_path / "run", *options)
    assert config["hints"] == [] and "\nhint  " not in capsys.readouterr().out
    assert list(config["baselines"]) == ["logistic regression", "most frequent class"]
    text = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    accuracy = config["results"]["test"]["accuracy"]
    assert text.startswith(f"# a table: test accuracy {100 * accuracy:.2f} %\n")
    base = config["baselines"]["logistic regression"]["test"]["accuracy"]
    assert f"| logistic regression, test |  | {100 * base:.2f} % |\n" in text
    for name in re.findall(r"!\[.*\]\((.*)\)", text):
        assert (tmp_path / "run" / name).read_bytes().startswith(b"\x89PNG")
    # The command makes the run again.
    [command] = re.findall(r"^steepest (train .*)$", text, flags=re.MULTILINE)
    again = tmp_path / "again"
    assert cli.main([*shlex.split(command), "--quiet", "--out", str(again)]) == 0
    assert json.loads((again / "config.json").read_text())["results"] == config["results"]


def drawn(monkeypatch, tmp_path, draw, *arguments):
    """The figure that was saved."""
    figures = []
    import matplotlib.figure

    save = matplotlib.figure.Figure.savefig

    def saved(figure, path, **options):
        figures.append(figure)
        save(figure, path, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", saved)
    draw(*arguments, tmp_path / "a.png")
    return figures[0]


def test_a_confusion_matrix(tmp_path, monkeypatch) -> None:
    y, found = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 1, 0])
    names = ["red", "a name that is too long for an axis", "blue"]
    figure = drawn(monkeypatch, tmp_path, result_pictures.confusion, found, y, names, "t")
    [ax] = figure.axes
    assert ax.images[0].get_array().tolist() == [[2 / 3, 1 / 3, 0], [0, 1, 0], [1, 0, 0]]
    texts = [x.get_text() for x in ax.texts]
    assert texts == ["67 %", "2", "33 %", "1", "100 %", "2", "100 %", "1"]
    assert [x.get_text() for x in ax.get_yticklabels()] == ["red", "a name that is …", "blue"]


def test_many_classes_have_a_scale_in_percent_in_place_of_text(tmp_path, monkeypatch) -> None:
    y = np.arange(50)
    names = [str(i) for i in y]
    figure = drawn(monkeypatch, tmp_path, result_pictures.confusion, y, y, names, "t")
    ax, bar = figure.axes
    assert not ax.texts and not len(ax.get_xticks())
    assert bar.get_yticklabels()[-1].get_text().endswith("%")


def test_residuals(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(result_pictures, "MOST_DOTS", 2)
    found, y = np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.5, 2.0])
    figure = drawn(monkeypatch, tmp_path, result_pictures.residuals, found, y, "price", "t")
    left, right = figure.axes
    dots = left.collections[0].get_offsets().tolist()
    assert len(dots) == 2 and {tuple(x) for x in dots} < {(1.0, 1.0), (2.5, 2.0), (2.0, 3.0)}
    rest = right.collections[0].get_offsets().tolist()
    assert rest == [[predicted, true - predicted] for true, predicted in dots]
    assert left.get_xlabel() == "price, true"


def test_names_are_text_whatever_they_hold(tmp_path, monkeypatch) -> None:
    y = np.array([0, 1])
    figure = drawn(monkeypatch, tmp_path, result_pictures.confusion, y, y, ["$a_{", "中"], "$x^{")
    assert [x.get_text() for x in figure.axes[0].get_xticklabels()] == ["$a_{", "中"]
    huge = np.array([1e308, -1e308])
    drawn(monkeypatch, tmp_path, result_pictures.residuals, huge, huge, "price in $", "$x^{")
