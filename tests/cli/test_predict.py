"""``steepest predict``, compared with the run that trained the model and ``st.models.load``."""

import csv
import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pandas
import pytest
from sklearn import datasets

import steepest as st
from steepest import cli, data
from steepest.cli import result_pictures
from steepest.models import accuracy, r_squared, rmse

TABLES = ["iris", "wine", "diabetes", "digits"]


def written(folder, name):
    """One of scikit-learn's tables as CSV."""
    path = folder / f"{name}.csv"
    getattr(datasets, f"load_{name}")(as_frame=True).frame.to_csv(path, index=False)
    return path


def trained(table, target, *options):
    """The folder of a short run."""
    out = table.with_suffix("")
    words = ["train", str(table), "--target", target, "--epochs", "4", "--quiet"]
    words += ["--hidden", "256"]
    assert cli.main([*words, "--out", str(out), *options]) == 0
    return out


@pytest.fixture(scope="module", autouse=True)
def plain():
    """Pictures take most of the time of small runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(st.History, "plot", lambda self, path, title: path.touch())
        for name in ("residuals", "confusion"):
            patch.setattr(result_pictures, name, lambda *arguments: arguments[-1].touch())
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory, plain):
    """The tables of scikit-learn, and a run on each: name -> (table, folder)."""
    folder = tmp_path_factory.mktemp("runs")
    tables = {name: written(folder, name) for name in TABLES}
    return {name: (table, trained(table, "target")) for name, table in tables.items()}


def predicted(capsys, *words):
    """The rows that the command writes to the standard output, the header first."""
    capsys.readouterr()
    assert cli.main(["predict", *map(str, words)]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    return list(csv.reader(io.StringIO(shown.out)))


def refused(capsys, *words):
    """The one line that the command says."""
    capsys.readouterr()
    assert cli.main(["predict", *map(str, words)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.fullmatch(r"steepest: error: [^\n]+\n", shown.err)
    return shown.err


# What is predicted


@pytest.mark.parametrize("name", TABLES)
def test_predictions_are_those_of_the_api(runs, name, capsys) -> None:
    table, run = runs[name]
    frame = pandas.read_csv(table)
    model = st.models.load(run)
    header, *rows = predicted(capsys, run, table)
    assert header == ["value" if name == "diabetes" else "class"]
    found = model.predict(frame)
    assert [row[0] for row in rows] == list(map(str, found.tolist()))
    assert np.array_equal(np.array(rows, found.dtype)[:, 0], found)
    x = frame.drop(columns="target").to_numpy()
    assert np.array_equal(model.predict(x), found)


@pytest.mark.parametrize("name", TABLES)
def test_the_results_of_the_run_come_from_the_predictions(runs, name, tmp_path, capsys) -> None:
    """On the rows of each part, in the order of the run."""
    table, run = runs[name]
    config = json.loads((run / "config.json").read_text())
    dataset = data.table(table, "target")
    frame = pandas.read_csv(table)
    net = st.models.load(run)
    labels = frame["target"].to_numpy()
    indices = data.split(len(frame), None if name == "diabetes" else labels)
    for part, rows in zip(["train", "validation", "test"], indices, strict=True):
        some = tmp_path / f"{part}.csv"
        frame.iloc[rows].to_csv(some, index=False)
        found = np.array(predicted(capsys, run, some)[1:], float)[:, 0]
        within = net.net.predict(net.params, dataset.parts[part].x)
        results = config["results"][part]
        if name == "diabetes":
            scaling = dataset.scaling
            assert np.array_equal(found, within * scaling["y_scale"] + scaling["y_mean"])
            # The run measures scaled values: other roundings in double, of sums of some hundreds.
            assert r_squared(found, labels[rows]) == pytest.approx(results["r2"], rel=1e-9)
            assert rmse(found, labels[rows]) == pytest.approx(results["rmse"], rel=1e-9)
        else:
            assert np.array_equal(found, within)
            assert accuracy(found, labels[rows]) == results["accuracy"]


@pytest.mark.parametrize("name", ["iris", "wine", "digits"])
def test_probabilities(runs, name, capsys) -> None:
    table, run = runs[name]
    model = st.models.load(run)
    header, *rows = predicted(capsys, run, table, "--probabilities")
    assert header == ["class", *(f"probability_{label}" for label in model.classes)]
    cells = np.array([row[1:] for row in rows], np.float32)
    assert np.array_equal(cells, model.predict_proba(pandas.read_csv(table)))
    np.testing.assert_allclose(cells.sum(axis=1), 1, rtol=1e-5)  # roundings of float32
    assert [row[0] for row in rows] == [header[1 + i][12:] for i in cells.argmax(axis=1)]


def test_the_order_of_columns_and_further_ones_change_nothing(runs, tmp_path, capsys) -> None:
    table, run = runs["wine"]
    frame = pandas.read_csv(table)
    expected = predicted(capsys, run, table)
    other = tmp_path / "other.csv"
    columns = list(frame.columns.drop("target")[::-1])
    frame[columns].to_csv(other, index=False)
    assert predicted(capsys, run, other) == expected
    assert predicted(capsys, run, other, "--strict") == expected
    assert predicted(capsys, run, table, "--strict") == expected  # with the target
    frame.assign(note='a "word", more', target="?").to_csv(other)  # and a nameless one
    assert predicted(capsys, run, other) == expected
    assert "not know: 'Unnamed: 0', 'note'; remove" in refused(capsys, run, other, "--strict")


def test_columns_that_training_ignored_are_no_further_ones(tmp_path, capsys) -> None:
    table = written(tmp_path, "iris")
    run = trained(table, "target", "--ignore", "petal width (cm)")
    assert st.models.load(run).columns[-1] == "petal length (cm)"
    assert len(predicted(capsys, run, table, "--strict")) == 151


def test_digits_by_their_names_and_as_arrays(tmp_path, capsys) -> None:
    """The names of the pixels have commas."""
    run = tmp_path / "run"
    words = ["--epochs", "3", "--quiet", "--out", str(run)]
    assert cli.main(["train", "digits", *words]) == 0
    x = datasets.load_digits().data
    model = st.models.load(run)
    assert model.columns[:2] == ("pixel 0,0", "pixel 0,1")
    table = tmp_path / "table.csv"
    pandas.DataFrame(x, columns=model.columns).to_csv(table, index=False)
    found = predicted(capsys, run, table, "--strict")
    assert [int(row[0]) for row in found[1:]] == model.predict(x).tolist()


def labelled(folder, labels, name="labelled", separator=","):
    """A table of 60 rows whose column kind tells three groups of points apart."""
    rng = np.random.default_rng(0)
    groups = np.arange(60) % len(labels)
    a, b = (groups * np.array([[3.0], [-2.0]]) + rng.normal(size=(2, 60))).round(3)
    path = folder / f"{name}.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerow(["a", "b", "kind"])
        writer.writerows(zip(a, b, [labels[i] for i in groups], strict=True))
    return path


STRANGE = ["with, comma", 'with "quotes"', "with\nlines", "class", " β "]


def test_labels_with_commas_and_quotes(tmp_path, capsys) -> None:
    table = labelled(tmp_path, STRANGE)
    run = trained(table, "kind", "--lr", "0.05", "--epochs", "30")
    header, *rows = predicted(capsys, run, table, "--probabilities")
    assert sorted(header) == sorted(["class", *(f"probability_{label}" for label in STRANGE)])
    found = [row[0] for row in rows]
    assert found == st.models.load(run).predict(pandas.read_csv(table)).tolist()
    assert set(found) == set(STRANGE)


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (["0", "1", "5"], "i"),
        (["0.5", "1.0"], "f"),
        (["True", "False"], "b"),
        (["07", "7"], "U"),
        ([str(2**64 - 1), "3"], "u"),
    ],
)
def test_labels_are_as_they_were(tmp_path, capsys, labels, kind) -> None:
    table = labelled(tmp_path, labels)
    options = ["--lr", "0.05", "--epochs", "30", "--task", "classification"]
    run = trained(table, "kind", *options)
    model = st.models.load(run)
    assert model.classes.dtype.kind == kind
    found = predicted(capsys, run, table)
    assert sorted({row[0] for row in found[1:]}) == sorted(labels)
    # The target as pandas reads it, which keeps numbers and true/false, and as text.
    frame = pandas.read_csv(table, dtype={"kind": str} if kind == "U" else None)
    words = pandas.read_csv(table, dtype=str)["kind"]
    right = [row[0] == word for row, word in zip(found[1:], words, strict=True)]
    assert accuracy(model.predict(frame), frame["kind"].to_numpy()) == np.mean(right) > 0.8


def test_two_classes_by_the_logistic_loss(tmp_path, capsys) -> None:
    table = labelled(tmp_path, ["no", "yes"])
    run = trained(table, "kind", "--loss", "logistic")
    model = st.models.load(run)
    assert model.net.objective == "logistic"
    header, *rows = predicted(capsys, run, table, "--probabilities")
    assert header == ["class", "probability_no", "probability_yes"]
    for label, no, yes in rows:
        assert label == ("yes" if float(yes) > float(no) else "no")


def test_true_and_false_are_inputs(tmp_path, capsys) -> None:
    rows = [f"{x % 3 == 0},{x},{x * (1 + (x % 3 == 0))}" for x in range(40)]
    table = tmp_path / "flags.csv"
    table.write_text("\n".join(["flag,x,y", *rows]) + "\n")
    run = trained(table, "y")
    found = predicted(capsys, run, table)
    table.write_text(table.read_text().replace("True", "1").replace("False", "0"))
    assert predicted(capsys, run, table) == found
    table.write_text("x,flag\n3,True\n0,FALSE\n")
    some = predicted(capsys, run, table)
    # The BLAS may add up in another order for another number of rows, in float32; the flag itself
    # changes the value by more than a hundredth.
    assert float(some[1][0]) == pytest.approx(float(found[4][0]), rel=1e-5)
    assert float(some[2][0]) != pytest.approx(float(found[1][0]), rel=1e-2)


def test_the_separator_is_that_of_the_training(tmp_path, capsys) -> None:
    table = labelled(tmp_path, ["a;b", "c"], separator=";")
    run = trained(table, "kind", "--separator", ";")
    assert cli.main(["predict", str(run), str(table), "--probabilities"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert 'class;"probability_a;b";probability_c' in lines
    tabs = labelled(tmp_path, ["a;b", "c"], name="tabs", separator="\t")
    assert "give --separator '\\t'" in refused(capsys, run, tabs)
    assert len(predicted(capsys, run, tabs, "--separator", "tab")) == 61
    assert "expected one character" in refused(capsys, run, tabs, "--separator", "::")


# Where it is written


def test_a_file(runs, tmp_path, capsys) -> None:
    table, run = runs["iris"]
    expected = predicted(capsys, run, table)
    out = tmp_path / "out.csv"
    out.write_text("old")
    assert cli.main(["predict", str(run), str(table), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"written to {out}: 150 predictions\n"
    with open(out, newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == expected
    assert os.listdir(tmp_path) == ["out.csv"]


def test_files_that_are_kept(runs, tmp_path, capsys) -> None:
    table, run = runs["iris"]
    before = table.read_bytes()
    assert "is the file with the inputs" in refused(capsys, run, table, "--out", table)
    assert table.read_bytes() == before
    out = tmp_path / "none" / "out.csv"
    assert f"{out} cannot be written: No such file" in refused(capsys, run, table, "--out", out)
    out = tmp_path / "out.csv"
    out.write_text("old")
    assert "no column" in refused(capsys, run, runs["wine"][0], "--out", out)
    assert out.read_text() == "old"


def process(*words, encoding="utf-8", **options):
    return subprocess.run(
        [sys.executable, "-m", "steepest.cli", "predict", *map(str, words)],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
        **options,
    )


def test_from_a_pipe_to_a_pipe(runs, capsys) -> None:
    table, run = runs["iris"]
    done = process(run, "/dev/stdin", input=table.read_bytes())
    assert (done.returncode, done.stderr) == (0, b"")
    assert list(csv.reader(done.stdout.decode().splitlines())) == predicted(capsys, run, table)


def test_an_output_without_the_characters_of_a_class(tmp_path) -> None:
    table = labelled(tmp_path, ["α", "β"])
    run = trained(table, "kind")
    done = process(run, table, encoding="ascii")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"the output is in ascii, which lacks '\\u03b1" in done.stderr
    done = process(run, table)
    assert (done.returncode, done.stdout.decode()[:6]) == (0, "class\n")


# Errors


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "rows.csv is empty; expected a header line"),
        (["a,b"], "rows.csv has a header but no rows; there is nothing to predict"),
        (["a,c", "1,2"], "rows.csv has no column 'b'; it has 'a', 'c'"),
        (["a,B", "1,2"], "rows.csv has no column 'b'; .* did you mean 'B'[?] Case matters"),
        (["a;b", "1;2"], "rows.csv has one column, named 'a;b'; if ';' separates its columns"),
        (["a,b,a", "1,2,3"], "rows.csv has more than one column named 'a'"),
        (["b,a", "1,2", "3,x"], "rows.csv, row 2, column 'a': the value is 'x'; expected a finite"),
        (["b,a", "1,2", "3,"], "rows.csv, row 2, column 'a': the value is missing; expected"),
        (["b,a", "1,2", "NA,3", "x,x"], "rows.csv, row 2, column 'b': the value is missing"),
        (["b,a", "1,2", "3"], "rows.csv, row 2, column 'a': the value is missing"),
        (["b,a", "1,-inf"], "rows.csv, row 1, column 'a': the value is -inf; expected"),
        (["b,a", "x,inf"], "rows.csv, row 1, column 'a': the value is inf; expected|'b': .* 'x'"),
        (["b,a", '1,"1,5"'], "rows.csv, row 1, column 'a': the value is '1,5'; expected"),
        (["b,a", "1,2", "True,3"], "rows.csv, row 2, column 'b': the value is 'True'; expected"),
        (["b,a", "1,2,3,4"], "rows.csv is not a regular table"),
        (["b,a", "1,1e300"], r"rows.csv, row 1, column 'a': is 1e\+300, which is too far from"),
        (["b,a", "1,2", "3e38,3e38"], "rows.csv, row 2: has numbers that are too far from those"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, capsys, monkeypatch, rows, message) -> None:
    run = trained(labelled(tmp_path, ["x", "y"]), "kind")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text("".join(f"{row}\n" for row in rows))
    assert re.search(f"^steepest: error: (.*{message})", refused(capsys, run, "rows.csv"))


def test_what_is_no_table_or_no_run(runs, tmp_path, capsys) -> None:
    table, run = runs["diabetes"]
    assert "none.csv: there is no such file" in refused(capsys, run, tmp_path / "none.csv")
    (tmp_path / "packed.csv").write_bytes(b"\x1f\x8b\0")
    assert "compressed with gzip" in refused(capsys, run, tmp_path / "packed.csv")
    none = tmp_path / "none"
    assert f"{none}: there is no such folder; give" in refused(capsys, none, table)
    assert "there is no config.json in it" in refused(capsys, tmp_path, table)
    assert "is not a folder" in refused(capsys, table, table)
    assert "has a regression, without" in refused(capsys, run, table, "--probabilities")


def test_settings_of_another_version(runs, tmp_path, capsys) -> None:
    table, run = runs["iris"]
    for name in ("config.json", "params.npz"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    record = json.loads((tmp_path / "config.json").read_text())
    del record["settings"]["separator"]
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert "other settings than this version" in refused(capsys, tmp_path, table)
