"""ONNX files: onnxruntime predicts with them what the models do."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from sklearn.datasets import load_diabetes, load_iris

import steepest as st
from steepest import cli
from steepest.models import MLP, TrainedModel
from steepest.models.networks import ACTIVATIONS
from steepest.models.onnx_export import OPERATORS
from steepest.sklearn import Classifier, Regressor

onnxruntime = pytest.importorskip("onnxruntime")  # no Python 3.14 on Macs with Intel

NETS = [
    MLP((3, 1), "regression"),
    MLP((3, 8, 5, 1), "regression", "huber", 0.5),
    MLP((3, 1), "classification"),
    MLP((3, 8, 1), "classification"),
    MLP((3, 4), "classification"),
    MLP((3, 8, 5, 4), "classification"),
    MLP((3, 6, 2), "classification"),
    *(MLP((3, 8, 5, n), "classification", activation=name) for name in ACTIVATIONS for n in (1, 3)),
    *(MLP((3, 8, 1), "regression", activation=name) for name in ACTIVATIONS),
]
LABELS = {
    "text": ["a ü", "b", "", "日"],
    "objects": np.array(["no", "yes", "perhaps", "x"], object),
    "bool": [False, True],
    "int8": np.array([-3, 0, 5, 7], np.int8),
    "float32": np.array([0.1, 0.5, 2.0, 3.0], np.float32),
}


def model(net, dtype, labels="text"):
    """A model with all numbers other than 0 and 1."""
    rng = np.random.default_rng(len(net.sizes))
    params = net.initial(1, dtype)
    for layer in params.values():
        layer["bias"] += (rng.normal(size=layer["bias"].shape) / 10).astype(dtype)
    scaling = {"x_mean": np.array([1e6, -2.0, 0.1]), "x_scale": np.array([3.0, 0.2, 1e-3])}
    if net.task == "regression":
        scaling |= {"y_mean": np.array(-7.0), "y_scale": np.array(30.0)}
        return TrainedModel(net, params, ("a", "b", "ü"), None, scaling, "y")
    classes = np.asarray(LABELS[labels])[: max(2, net.sizes[-1])]
    return TrainedModel(net, params, ("a", "b", "ü"), classes, scaling)


def raw(made, n=200):
    x = np.random.default_rng(5).normal(size=(n, 3))
    return x * made.scaling["x_scale"] + made.scaling["x_mean"]


def agree(path, x, values, probabilities, tolerance):
    """Sums are added up in another order, exp and tanh have other roundings."""
    session = onnxruntime.InferenceSession(path)
    first, *others = session.run(None, {"x": x})
    if probabilities is None:
        spread = np.abs(values).max()
        np.testing.assert_allclose(first, values, rtol=tolerance, atol=tolerance * spread)
        assert others == [] and first.dtype == np.float64
        return session
    np.testing.assert_array_equal(first, values)
    assert others[0].dtype == probabilities.dtype
    np.testing.assert_allclose(others[0], probabilities, rtol=100 * tolerance, atol=tolerance)
    return session


def test_every_activation_has_an_operator() -> None:
    assert OPERATORS.keys() == ACTIVATIONS.keys()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("net", NETS, ids=str)
def test_predictions_are_the_models(net, dtype, tmp_path) -> None:
    made = model(net, dtype)
    made.to_onnx(tmp_path / "model.onnx")
    x = raw(made)
    # What TrainedModel computes in float32, an estimator does in the type of the parameters.
    inputs = ((x - made.scaling["x_mean"]) / made.scaling["x_scale"]).astype(dtype)
    z = net.activations(made.params, inputs)[-1]
    if net.task == "regression":
        expected, proba = net.predicted(z) * 30.0 - 7.0, None
    else:
        expected, proba = made.classes[net.predicted(z)], net.probabilities(z)
        assert len(set(expected)) > 1
    # onnxruntime adds up products in another order, and its exp is another one.
    tolerance = 4e-6 if dtype == np.float32 else 1e-14
    session = agree(tmp_path / "model.onnx", x, expected, proba, tolerance)
    if dtype == np.float32:
        agree(tmp_path / "model.onnx", x, made.predict(x), proba, tolerance)
    facts = session.get_modelmeta()
    assert facts.producer_name == "steepest"
    assert json.loads(facts.custom_metadata_map["inputs"]) == ["a", "b", "ü"]
    assert facts.custom_metadata_map["task"] == net.task
    assert facts.custom_metadata_map.get("target") == made.target


@pytest.mark.parametrize("labels", LABELS)
def test_labels_of_every_kind(labels, tmp_path) -> None:
    made = model(MLP((3, 2 if labels == "bool" else 4), "classification"), np.float32, labels)
    made.to_onnx(tmp_path / "model.onnx")
    x = raw(made)
    [found] = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(["label"], {"x": x})
    np.testing.assert_array_equal(found, made.predict(x))
    kinds = {"text": object, "objects": object, "int8": np.int64, "float32": np.float64}
    assert found.dtype == kinds.get(labels, bool)


def test_inputs_in_float32(tmp_path) -> None:
    """As float64 inputs of these values; one sample, and none."""
    made = model(NETS[1], np.float32)
    made.to_onnx(tmp_path / "narrow.onnx", dtype="float32")
    made.to_onnx(tmp_path / "wide.onnx")
    x = raw(made).astype(np.float32)
    narrow, wide = (
        onnxruntime.InferenceSession(tmp_path / f"{name}.onnx") for name in ("narrow", "wide")
    )
    for n in (200, 1, 0):
        [a] = narrow.run(None, {"x": x[:n]})
        [b] = wide.run(None, {"x": x[:n].astype(np.float64)})
        assert a.shape == (n,)
        np.testing.assert_array_equal(a, b)


def test_files_pass_onnxs_own_checks_and_have_no_other_operators(tmp_path) -> None:
    model(NETS[-1], np.float32).to_onnx(tmp_path / "model.onnx")
    found = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(found, full_check=True)
    assert [(x.domain, x.version) for x in found.opset_import] == [("", 17)]


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (np.array([b"a", b"b"]), {}, r"classes have dtype \|S1, such as .*b'a'.*: ONNX has labels"),
        (np.array([0, 2**63], np.uint64), {}, "classes have dtype uint64"),
        (np.array([1, "a"], object), {}, "classes have dtype object"),
        (np.array([0, 1]), {"dtype": "float16"}, "dtype = 'float16': expected 'float64' or 'float"),
    ],
)
def test_what_cannot_be_written(labels, options, message, tmp_path) -> None:
    made = model(MLP((3, 2), "classification"), np.float32)
    made = TrainedModel(made.net, made.params, made.columns, labels, made.scaling)
    with pytest.raises(ValueError, match=message):
        made.to_onnx(tmp_path / "model.onnx", **options)
    assert list(tmp_path.iterdir()) == []


def test_estimators(tmp_path) -> None:
    x, y = load_iris(return_X_y=True, as_frame=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    made = Classifier((8,), activation="tanh", epochs=20, options={"ema": 0.9}, averaged=True)
    with pytest.raises(ValueError, match="is not fitted"):
        made.to_onnx(tmp_path / "none.onnx")
    made.fit(x, names).to_onnx(tmp_path / "iris.onnx")
    session = agree(
        tmp_path / "iris.onnx", x.to_numpy(), made.predict(x), made.predict_proba(x), 1e-14
    )
    assert json.loads(session.get_modelmeta().custom_metadata_map["inputs"]) == list(x.columns)
    x, y = load_diabetes(return_X_y=True)
    regressor = Regressor(epochs=5).fit(x, y)
    regressor.to_onnx(tmp_path / "diabetes.onnx")
    session = agree(tmp_path / "diabetes.onnx", x, regressor.predict(x), None, 1e-14)
    assert json.loads(session.get_modelmeta().custom_metadata_map["inputs"])[9] == "x9"


# steepest export


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    x, y = load_iris(return_X_y=True, as_frame=True)
    x.assign(y=np.array(["a", "b", "c"])[y]).to_csv(folder / "iris.csv", index=False)
    words = f"train {folder}/iris.csv --target y --epochs 3 --hidden 4 --quiet --out {folder}/run"
    assert cli.main(words.split()) == 0
    return folder / "run"


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_command(run, dtype, tmp_path, capsys) -> None:
    capsys.readouterr()
    path = tmp_path / "model.onnx"
    assert cli.main(["export", str(run), "--onnx", str(path), "--dtype", dtype]) == 0
    expected = f"written to {path}: x (4 inputs, {dtype}) -> label, probabilities\n"
    assert capsys.readouterr().out == expected
    made = st.models.load(run)
    x = load_iris().data.astype(dtype)
    session = agree(path, x, made.predict(x), made.predict_proba(x), 4e-6)
    assert session.get_modelmeta().custom_metadata_map["target"] == "y"


def test_a_table_with_categories(tmp_path, capsys) -> None:
    """The file takes what ``inputs`` gives."""
    z = np.random.default_rng(0).normal(size=60)
    rows = [f"{x},{c},{x + 3 * (c == 'a')}" for x, c in zip(z, "abc" * 20, strict=True)]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["x,city,y", *rows]) + "\n")
    out = tmp_path / "run"
    words = f"train {table} --target y --epochs 3 --hidden 4 --quiet --out {out}"
    assert cli.main(words.split()) == 0
    path = tmp_path / "model.onnx"
    capsys.readouterr()
    assert cli.main(["export", str(out), "--onnx", str(path)]) == 0
    assert "inputs     x, city = a, city = b, city = c\n" in capsys.readouterr().out
    made = st.models.load(out)
    cells = {"city": ["c", "a"], "x": [0.5, -1.0]}
    inputs = made.inputs(cells)
    assert inputs.tolist() == [[0.5, 0.0, 0.0, 1.0], [-1.0, 1.0, 0.0, 0.0]]
    session = agree(path, inputs, made.predict(cells), None, 4e-6)
    names = json.loads(session.get_modelmeta().custom_metadata_map["inputs"])
    assert names == ["x", "city = a", "city = b", "city = c"]


def test_errors_of_the_command(run, tmp_path, capsys) -> None:
    for words, message in (
        ([str(tmp_path), "--onnx", "a"], f"steepest: error: {tmp_path}: there is no config.json"),
        ([str(run), "--onnx", str(tmp_path / "no" / "a")], "cannot be written: No such file"),
        ([str(run), "--onnx", "."], "steepest: error: . is a folder; give the name of a file"),
    ):
        assert cli.main(["export", *words]) == 2
        told = capsys.readouterr().err
        assert message in told and told.count("\n") == 1
    with pytest.raises(SystemExit):
        cli.main(["export", str(run)])
    assert "required: --onnx" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package(run) -> None:
    code = f"""
import sys
sys.modules["onnx"] = None
from steepest import cli
sys.exit(cli.main(["export", {str(run)!r}, "--onnx", "never.onnx"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "an ONNX file needs the package onnx: run  pip install onnx, or" in done.stderr
