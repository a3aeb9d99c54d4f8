"""``st.models.load``: what a run has trained, from its folder."""

import contextlib
import doctest
import io
import json
import pickle
import re
import shutil

import numpy as np
import pandas
import pytest

import steepest as st
from steepest import cli, data
from steepest.models import MLP, RunError, SampleError, TrainedModel, trained


def run(*words):
    """Exit code and output of a command."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = cli.main([*map(str, words), "--quiet"])
    return code, out.getvalue()


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Three inputs, and their sum, and its size as text."""
    path = tmp_path_factory.mktemp("data") / "table.csv"
    x = np.random.default_rng(3).normal([0, 50, -3], [1, 20, 0.1], (90, 3)).round(4)
    y = x @ [3.0, 0.1, -5.0]
    frame = pandas.DataFrame(x, columns=["a", "b", "c"])
    frame.assign(y=y, size=np.where(y > y.mean(), "large", "small")).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def folders(table):
    """Runs: name -> folder."""
    options = {
        "value": ["--target", "y", "--ignore", "size"],
        "huber": ["--target", "y", "--ignore", "size", "--loss", "huber:delta=0.5"],
        "class": ["--target", "size", "--ignore", "y", "--hidden", "7,5"],
    }
    for name, words in options.items():
        out = table.with_name(name)
        assert run("train", table, *words, "--epochs", "40", "--out", out)[0] == 0
    return {name: table.with_name(name) for name in options}


@pytest.fixture
def copy(folders, tmp_path):
    """A run on classes, to be damaged."""
    return shutil.copytree(folders["class"], tmp_path / "copy")


def columns(table):
    return pandas.read_csv(table)[["a", "b", "c"]]


# What is loaded


def test_a_regression(folders, table) -> None:
    model = st.models.load(folders["value"])
    dataset = data.table(table, "y", ignore=["size"])
    assert repr(model) == "TrainedModel(regression of 'y' by 3 inputs)"
    assert (model.columns, model.target, model.classes) == (("a", "b", "c"), "y", None)
    assert model.net.sizes == (3, 256, 1)
    assert model.params["layer1"]["weight"].dtype == np.float32
    for name, x in dataset.scaling.items():
        assert np.array_equal(model.scaling[name], x)
    found = model.predict(columns(table))
    assert (found.shape, found.dtype) == ((90,), np.float64)
    assert st.models.r_squared(found, pandas.read_csv(table)["y"].to_numpy()) > 0.5


def test_classes(folders, table) -> None:
    model = st.models.load(str(folders["class"]))
    assert repr(model) == "TrainedModel(classification of 'size' by 3 inputs, 2 classes)"
    assert model.classes.tolist() == ["large", "small"]
    assert list(model.params) == ["layer1", "layer2", "layer3"]
    found = model.predict_proba(columns(table))
    assert found.shape == (90, 2)
    assert np.array_equal(model.classes[found.argmax(axis=1)], model.predict(columns(table)))


def test_the_model_has_the_loss_of_the_run(folders, table) -> None:
    model = st.models.load(folders["huber"])
    assert (model.net.objective, model.net.delta) == ("huber", 0.5)
    results = json.loads((folders["huber"] / "config.json").read_text())["results"]
    part = data.table(table, "y", ignore=["size"]).test
    assert model.net.loss(model.params, *part) == results["test"]["loss"]


def test_every_kind_of_table_is_the_same(folders, table) -> None:
    model = st.models.load(folders["value"])
    frame = columns(table)
    x = frame.to_numpy()
    expected = model.predict(x)
    records = frame[["c", "b", "a"]].to_records(index=False)
    for same in (
        x.tolist(), np.asfortranarray(x), x[::-1][::-1], frame, frame[["b", "a", "c"]],
        pandas.read_csv(table), {name: frame[name].tolist() for name in "cab"}, records,
        np.array(records), frame.to_dict("series") | {"more": None},
    ):  # fmt: skip
        assert np.array_equal(model.predict(same), expected)
    whole = x.round().astype(np.int16)
    assert np.array_equal(model.predict(whole), model.predict(whole.astype(float)))
    assert model.predict(x[:0]).shape == (0,)
    assert st.models.load(folders["class"]).predict_proba(x[:0]).shape == (0, 2)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda x: x[:, :2], ValueError, r"x has shape \(90, 2\): expected \(samples, 3\), .* 'a'"),
        (lambda x: x[0], ValueError, r"shape \(3,\): .*; give x\[None\] for one sample"),
        (lambda x: x[..., None], ValueError, r"x has shape \(90, 3, 1\)"),
        (lambda x: [[1, 2, 3], [4]], ValueError, "x has rows of different lengths"),
        (lambda x: x + 1j, TypeError, "x has dtype complex128: expected numbers or true/false"),
        (lambda x: x.astype(str), TypeError, "x has dtype <U.*: expected numbers"),
        (lambda x: np.ma.masked_less(x, 0), TypeError, "x is a MaskedArray, whose mask"),
        (lambda x: {"a": x[:, 0], "c": x[:, 0]}, ValueError, "no column 'b'; it has 'a', 'c'"),
        (
            lambda x: {"a": x[:, 0], "b": x[1:, 0], "c": x[:, 0]},
            ValueError,
            r"x\['b'\] has shape \(89,\): expected one number for each sample, as many as 'a'",
        ),
        (lambda x: dict.fromkeys("abc", 1.0), ValueError, r"x\['a'\] has shape \(\): expected one"),
        (
            lambda x: pandas.DataFrame({"a": ["1"], "b": [2], "c": [3]}),
            TypeError,
            r"x\['a'\] has dtype object: expected numbers",
        ),
    ],
)
def test_inputs_that_cannot_be_used(folders, table, change, kind, message) -> None:
    model = st.models.load(folders["value"])
    with pytest.raises(kind, match=message):
        model.predict(change(columns(table).to_numpy()))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, r"x\[7, 'b'\] is nan, where a finite number is needed"),
        (-np.inf, r"x\[7, 'b'\] is -inf, where a finite number is needed"),
        (1e300, r"x\[7, 'b'\] is 1e\+300, which is too far from the numbers of the training"),
    ],
)
def test_numbers_without_a_prediction(folders, table, value, message) -> None:
    x = columns(table).to_numpy()
    x[7, 1] = value
    for name in ("value", "class"):
        with pytest.raises(SampleError, match=f"^{message}$") as caught:
            st.models.load(folders[name]).predict(x)
        assert (caught.value.row, caught.value.column) == (7, "b")
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_finite_numbers_that_make_infinite_ones(folders, table) -> None:
    model = st.models.load(folders["value"])
    x = columns(table).to_numpy()
    x[5] = model.scaling["x_mean"] + 3e38 * model.scaling["x_scale"]
    with np.errstate(all="raise"), pytest.raises(SampleError) as caught:
        model.predict(x)
    assert str(caught.value) == "x[5] has numbers that are too far from those of the training"
    assert (caught.value.row, caught.value.column) == (5, None)


def test_a_regression_has_no_probabilities(folders, table) -> None:
    with pytest.raises(ValueError, match="a regression has no classes; use predict"):
        st.models.load(folders["value"]).predict_proba(columns(table))


# Folders


def test_a_run_that_was_interrupted(table, tmp_path, monkeypatch) -> None:
    step = st.AdamW.step

    def interrupted(self, grads):
        step(self, grads)
        if self.updates == 5:
            raise KeyboardInterrupt

    words = ["train", table, "--target", "y", "--ignore", "size", "--epochs", "9"]
    words += ["--hidden", "256"]
    with monkeypatch.context() as patch:
        patch.setattr(st.AdamW, "step", interrupted)
        assert run(*words, "--out", tmp_path / "run")[0] == 130
    results = json.loads((tmp_path / "run" / "config.json").read_text())["results"]
    part = data.table(table, "y", ignore=["size"]).test
    model = st.models.load(tmp_path / "run")
    assert model.net.loss(model.params, *part) == results["test"]["loss"]
    before = model.predict(columns(table))
    assert run("train", "--resume", tmp_path / "run")[0] == 0
    assert run(*words, "--out", tmp_path / "whole")[0] == 0
    after, whole = (st.models.load(tmp_path / x).predict(columns(table)) for x in ("run", "whole"))
    assert np.array_equal(after, whole)
    assert not np.array_equal(after, before)


def test_the_folder_of_a_search_has_the_best_run_in_it(table, tmp_path) -> None:
    words = ["--target", "y", "--ignore", "size", "--grid", "lr=1e-3,1e-2", "--epochs", "2"]
    assert run("tune", table, *words, "--out", tmp_path / "tuned")[0] == 0
    best = tmp_path / "tuned" / "best"
    with pytest.raises(RunError, match=f"not that of steepest train; give {re.escape(str(best))}$"):
        st.models.load(tmp_path / "tuned")
    assert st.models.load(best).columns == ("a", "b", "c")


def test_a_run_that_diverged(table, tmp_path) -> None:
    """Its parameters are finite ones of an earlier epoch, or no model."""
    words = ["--target", "y", "--ignore", "size", "--optimizer", "sgd", "--lr", "1e30"]
    assert run("train", table, *words, "--out", tmp_path / "run")[0] == 1
    assert np.isfinite(st.models.load(tmp_path / "run").predict(columns(table))).all()


def rewritten(folder, **changes):
    """Changes arrays of params.npz; None takes one out."""
    with np.load(folder / "params.npz") as file:
        arrays = dict(file) | changes
    np.savez(folder / "params.npz", **{k: x for k, x in arrays.items() if x is not None})


def recorded(folder, **changes):
    """Changes what config.json says; None takes it out."""
    record = json.loads((folder / "config.json").read_text()) | changes
    record = {name: value for name, value in record.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "copy: there is no such folder; give the folder of a training run"),
        (lambda x: (x / "config.json").unlink(), "copy: there is no config.json in it; give"),
        (lambda x: (x / "config.json").write_text("{"), "config.json is not the JSON of a run"),
        (lambda x: (x / "config.json").write_bytes(b"\xff"), "config.json is not the JSON of a"),
        (lambda x: (x / "config.json").write_text("[]"), "config.json is not that of steepest t"),
        (lambda x: recorded(x, command="compare"), "config.json is not that of steepest train$"),
        (lambda x: recorded(x, features=None, task=None), "config.json lacks 'task', 'features'"),
        (lambda x: recorded(x, network=[3, 0]), "does not say what the run is made of: sizes"),
        (lambda x: recorded(x, network="3"), "does not say what the run is made of: sizes"),
        (lambda x: recorded(x, network=7), "does not say what the run is made of: "),
        (lambda x: recorded(x, features=["a", "b"]), r"features = \['a', 'b'\]: expected 3 names"),
        (lambda x: recorded(x, features=["a", "b", 3]), "expected 3 names"),
        (lambda x: recorded(x, task="regression"), "objective of a regression = 'cross_entropy'"),
        (lambda x: recorded(x, network=[3, 2]), "npz does not fit config.json: layer1.weight"),
        (lambda x: (x / "params.npz").unlink(), "the run is not done; finish it with  steepest tr"),
        (lambda x: (x / "params.npz").write_bytes(b"PK\3\4"), "params.npz is damaged; train again"),
        (lambda x: (x / "params.npz").write_bytes(b""), "params.npz is damaged; train again"),
        (lambda x: (x / "params.npz").write_bytes(b"text"), "params.npz is damaged; train again"),
        (lambda x: rewritten(x, classes=None), "params.npz lacks the array 'classes', as in runs"),
        (lambda x: rewritten(x, x_mean=np.zeros(4)), r"x_mean has shape \(4,\): expected \(3,\)"),
        (lambda x: rewritten(x, classes=np.arange(3)), r"classes has shape \(3,\): expected \(2,"),
        (lambda x: rewritten(x, x_scale=np.full(3, np.inf)), "not finite: the run diverged; train"),
        (lambda x: rewritten(x, x_scale=np.array(["1"] * 3)), "x_scale has dtype <U1: expected fl"),
    ],
)  # fmt: skip
def test_folders_that_cannot_be_used(copy, change, message) -> None:
    change(copy)
    with pytest.raises(RunError, match=message) as caught:
        st.models.load(copy)
    assert str(copy) in str(caught.value) and "\n" not in str(caught.value)


def test_every_damaged_byte_is_told_or_harmless(copy, table) -> None:
    """A zip archive has check sums of what is in it."""
    path = copy / "params.npz"
    whole = path.read_bytes()
    expected = st.models.load(copy).predict(columns(table))
    for i in range(0, len(whole), 37):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 0x55]) + whole[i + 1 :])
        with contextlib.suppress(RunError):  # noticed, or of no consequence
            assert np.array_equal(st.models.load(copy).predict(columns(table)), expected)
        path.write_bytes(whole[:i])
        with pytest.raises(RunError):
            st.models.load(copy)


def test_a_run_with_hubers_loss_of_an_earlier_version(folders, tmp_path) -> None:
    run = shutil.copytree(folders["huber"], tmp_path / "run")
    recorded(run, delta=None)
    with pytest.raises(RunError, match="lacks 'delta', as in runs of an earlier version; train"):
        st.models.load(run)
    recorded(run, loss="squared")
    assert st.models.load(run).net == MLP((3, 256, 1), "regression")


def test_what_is_not_a_folder(table) -> None:
    with pytest.raises(RunError, match="is not a folder; give that of a training run"):
        st.models.load(table)


def test_what_is_public() -> None:
    assert {"load", "TrainedModel", "MLP", "accuracy"} <= set(st.models.__all__)
    assert TrainedModel.__module__ == "steepest.models.trained"


def test_examples() -> None:
    found = doctest.testmod(trained)
    assert found.attempted > 10 and found.failed == 0
