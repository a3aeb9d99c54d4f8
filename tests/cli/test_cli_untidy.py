"""Untidy tables from the command line: trained on, predicted, reported, refused with --raw."""

import csv
import io
import json
import shutil
import warnings

import numpy as np
import pandas
import pytest
import untidy_tables

import steepest as st
from steepest import cli
from steepest.cli import result_pictures
from steepest.cli.settings import Settings
from steepest.models import RunError, SampleError

READ = {
    "passengers": {},
    "flats": {"sep": ";", "encoding": "cp1252", "compression": "gzip"},
    "sales": {"sep": "\t", "encoding": "utf-16"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The tables, and a short run on each: name -> (table, folder)."""
    folder = tmp_path_factory.mktemp("untidy")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(st.History, "plot", lambda self, path, title: path.touch())
        for name in ("residuals", "confusion"):
            patch.setattr(result_pictures, name, lambda *arguments: arguments[-1].touch())
        for name, make in untidy_tables.TABLES.items():
            table, options = make(folder)
            words = ["train", str(table), *options, "--epochs", "6", "--hidden", "4", "--quiet"]
            assert cli.main([*words, "--out", str(folder / name)]) == 0
            found[name] = table, folder / name
    return found


def predicted(capsys, *words, told=""):
    """The rows that the command writes, the header first."""
    capsys.readouterr()
    assert cli.main(["predict", *map(str, words)]) == 0
    shown = capsys.readouterr()
    assert shown.err == told
    return list(csv.reader(io.StringIO(shown.out)))


def refused(capsys, *words):
    capsys.readouterr()
    assert cli.main([*map(str, words)]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1
    return shown.err


@pytest.mark.parametrize("name", untidy_tables.TABLES)
def test_predictions_are_those_of_the_api(runs, name, capsys) -> None:
    """To the last bit, and the run's results come from them."""
    table, run = runs[name]
    header, *rows = predicted(capsys, run, table)
    frame = pandas.read_csv(table, dtype=str if name != "passengers" else None, **READ[name])
    model = st.models.load(run)
    found = model.predict(frame)
    assert [row[0] for row in rows] == list(map(str, found.tolist()))
    assert header == ["class" if name == "passengers" else "value"] and len(rows) == len(frame)
    by_order = frame[list(model.columns)].to_numpy(object)
    assert np.array_equal(model.predict(by_order), found)


def test_what_was_decided_is_in_config_and_report(runs) -> None:
    _, run = runs["flats"]
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    assert [column["name"] for column in config["columns"]] == [
        "Stadt",
        "Fläche",
        "gebaut",
        "Balkon",
    ]
    assert config["left_out"] == ["Straße"] and config["settings"]["separator"] == ";"
    text = (run / "report.md").read_text(encoding="utf-8")
    assert "* column Stadt: 3 categories, one-hot\n* column Fläche: numbers as 1.234,5\n" in text
    model = st.models.load(run)
    assert repr(model) == "TrainedModel(regression of 'Preis' by 4 inputs)"
    assert model.columns == ("Stadt", "Fläche", "gebaut", "Balkon")


def test_unknown_values_and_absent_columns_are_told(runs, tmp_path, capsys) -> None:
    _, run = runs["flats"]
    path = tmp_path / "new.csv"
    path.write_text("gebaut;Stadt;Balkon\n01.02.1990;Ulm;ja\n;Köln;\n", encoding="utf-8")
    told = (
        f"steepest: {path}: column 'Stadt' has values that the training had not: 'Ulm'\n"
        f"steepest: {path}: there is no column 'Fläche'; it counts as missing\n"
    )
    rows = predicted(capsys, run, path, told=told)
    model = st.models.load(run)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = model.predict({"gebaut": ["01.02.1990", None], "Stadt": ["Ulm", "Köln"],
                               "Balkon": ["ja", None]})  # fmt: skip
    assert [row[0] for row in rows[1:]] == list(map(str, found.tolist()))
    with pytest.warns(UserWarning, match="'Stadt' has values that the training had not: 'Ulm'$"):
        model.predict(
            {"gebaut": ["01.02.1990"], "Stadt": ["Ulm"], "Balkon": ["ja"], "Fläche": ["1,5"]}
        )
    assert "has no column 'Fläche'" in refused(capsys, "predict", run, path, "--strict")
    path.write_text("gebaut;stadt;Balkon\n01.02.1990;Ulm;ja\n", encoding="utf-8")
    assert "did you mean 'stadt'? Case matters" in refused(capsys, "predict", run, path)
    path.write_text("gebaut,Balkon,Stadt\n01.02.1990,ja,Ulm\n", encoding="utf-8")
    assert predicted(capsys, run, path, told=told)[1] == rows[1]  # the separator is found
    assert "has no column 'Stadt'" in refused(capsys, "predict", run, path, "--separator", ";")
    path.write_text("a;b\n1;2\n", encoding="utf-8")
    assert "has no column 'Stadt'; it has 'a', 'b'" in refused(capsys, "predict", run, path)


def test_columns_that_were_left_out_are_no_further_ones(runs, capsys) -> None:
    for table, run in runs.values():
        predicted(capsys, run, table, "--strict")


def test_cells_that_are_no_numbers_are_told_with_their_place(runs, tmp_path, capsys) -> None:
    _, run = runs["flats"]
    path = tmp_path / "new.csv"
    text = "gebaut;Stadt;Fläche;Balkon\n01.02.1990;Bonn;{};ja\n{};Bonn;1,0;ja\n"
    path.write_text(text.format("groß", "01.02.1990"), encoding="utf-8")
    shown = refused(capsys, "predict", run, path)
    assert f"{path}, row 1, column 'Fläche': is 'groß', where a finite number is needed" in shown
    path.write_text(text.format("1,5", "1990"), encoding="utf-8")
    assert "row 2, column 'gebaut': is '1990', where a date as %d" in refused(
        capsys, "predict", run, path
    )
    model = st.models.load(run)
    cells = {"gebaut": ["01.02.1990"], "Stadt": ["Bonn"], "Fläche": ["groß"], "Balkon": ["ja"]}
    with pytest.raises(SampleError, match=r"x\[0, 'Fläche'\] is 'groß', where a finite number"):
        model.predict(cells)
    with pytest.raises(ValueError, match=r"x has shape \(1, 2\): expected \(samples, 4\)"):
        model.predict([["a", "b"]])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("passengers", "has missing values in column 'Age' (11 of 90 rows)"),
        ("flats", "is compressed with gzip; decompress it"),
        ("sales", "is not text in UTF-8"),
    ],
)
def test_raw_refuses(runs, capsys, name, message) -> None:
    table, _ = runs[name]
    _, options = untidy_tables.TABLES[name](table.parent)
    assert message in refused(capsys, "train", table, *options, "--raw", "--quiet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": [{"name": "a"}]}, "does not say how its columns are read"),
        ({"columns": 3}, "does not say how its columns are read"),
        ({"columns": []}, "its columns do not make its features"),
    ],
)
def test_a_damaged_encoder_is_told(runs, tmp_path, change, message) -> None:
    folder = shutil.copytree(runs["flats"][1], tmp_path / "run")
    record = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(record | change))
    with pytest.raises(RunError, match=message):
        st.models.load(folder)


def former(folder):
    """Makes config.json what an earlier version wrote, for a table of numbers."""
    path = folder / "config.json"
    record = json.loads(path.read_text())
    for name in ("columns", "left_out", "baselines", "hints"):
        record.pop(name, None)
    del record["settings"]["raw"]
    record["settings"] |= {"separator": ",", "lr": None, "weight_decay": None}
    path.write_text(json.dumps(record))


def test_a_former_run_goes_on_and_predicts(tmp_path, monkeypatch, capsys) -> None:
    x = np.random.default_rng(0).normal(size=(90, 3)).round(5)
    table = tmp_path / "line.csv"
    np.savetxt(table, np.c_[x, x @ [1.0, 2.0, 3.0]], "%.5f", ",", header="a,b,c,y", comments="")
    monkeypatch.setattr(st.History, "plot", lambda self, path, title: path.touch())
    monkeypatch.setattr(result_pictures, "residuals", lambda *arguments: arguments[-1].touch())
    # What a former version had by default, with Adam's own decay.
    options = ["--epochs", "4", "--hidden", "256", "--lr", "0.003", "--weight-decay", "0.01"]
    words = ["train", str(table), "--target", "y", "--raw", "--quiet", *options]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert cli.main([*words, "--out", str(whole)]) == 0
    step = st.AdamW.step

    def interrupted(self, grads):
        step(self, grads)
        if self.updates == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(st.AdamW, "step", interrupted)
        assert cli.main([*words, "--out", str(parts)]) == 130
    former(parts)
    assert cli.main(["train", "--resume", str(parts), "--quiet"]) == 0
    with np.load(whole / "params.npz") as a, np.load(parts / "params.npz") as b:
        assert all(np.array_equal(a[name], b[name]) for name in a)
    record = json.loads((parts / "config.json").read_text())
    assert Settings.from_json(record["settings"]).raw
    former(whole)
    rows = predicted(capsys, whole, table)
    found = st.models.load(whole).predict(pandas.read_csv(table))
    assert [row[0] for row in rows[1:]] == list(map(str, found.tolist()))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", untidy_tables.TABLES)
def test_the_defaults_learn(tmp_path, name) -> None:
    table, options = untidy_tables.TABLES[name](tmp_path)
    out = tmp_path / "run"
    assert cli.main(["train", str(table), *options, "--quiet", "--out", str(out)]) == 0
    record = json.loads((out / "config.json").read_text(encoding="utf-8"))
    score = "accuracy" if name == "passengers" else "r2"
    own = record["results"]["test"][score]
    [linear, simple] = [x["test"][score] for x in record["baselines"].values()]
    assert own > simple and own > linear - 0.15  # of 14 rows
