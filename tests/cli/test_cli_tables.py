"""From a real table to pictures and numbers, with nothing replaced."""

import csv
import json

import pytest

from steepest import cli


@pytest.fixture(params=["breast_cancer", "diabetes"])
def real(request, tmp_path):
    """A table of scikit-learn's as a CSV file: 569 rows of 2 classes, 442 rows of a quantity."""
    datasets = pytest.importorskip("sklearn.datasets")
    frame = getattr(datasets, f"load_{request.param}")(as_frame=True).frame
    frame.to_csv(tmp_path / f"{request.param}.csv", index=False)
    return tmp_path / f"{request.param}.csv"


def score(results):
    return results["test"].get("accuracy", results["test"].get("r2"))


# The mean, or the commonest class, would have 0.63 and 0. On the 66 rows of the diabetes' test part
# R² depends on the split by more than on anything else.
LEAST = {"breast_cancer": 0.95, "diabetes": 0.25}


def is_picture(path):
    content = path.read_bytes()
    return content.startswith(b"\x89PNG\r\n") and len(content) > 10_000


def test_train(real, tmp_path) -> None:
    out = tmp_path / "run"
    options = ["--hidden", "16", "--epochs", "40", "--quiet", "--out", str(out)]
    assert cli.main(["train", str(real), "--target", "target", *options]) == 0
    config = json.loads((out / "config.json").read_text())
    assert score(config["results"]) > LEAST[real.stem]
    assert is_picture(out / "curves.png")


def test_compare(real, tmp_path, capsys) -> None:
    out = tmp_path / "compared"
    options = ["--optimizers", "sgd, sgd:momentum=0.9, adamw", "--lrs", "1e-3,1e-2,1e-1,1e3"]
    options += ["--hidden", "16", "--epochs", "20", "--quiet", "--out", str(out)]
    assert cli.main(["compare", str(real), "--target", "target", *options]) == 0
    with open(out / "compare.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    metric = next(name for name in rows[0] if name in ("test_accuracy", "test_r2"))
    whole = [row for row in rows if row["stopped"] == "epochs"]
    assert len(rows) == 12
    assert {row["optimizer"] for row in whole} == {"sgd", "sgd:momentum=0.9", "adamw"}
    best = min(whole, key=lambda row: float(row["val_loss"]))
    assert float(best[metric]) > LEAST[real.stem]
    assert is_picture(out / "compare.png")


@pytest.mark.exhaustive
@pytest.mark.parametrize("method", ["random", "tpe"])
def test_tune(real, tmp_path, method) -> None:
    out = tmp_path / "tuned"
    options = ["--trials", "8", "--method", method, "--hidden", "16", "--epochs", "15", "--quiet"]
    assert cli.main(["tune", str(real), "--target", "target", *options, "--out", str(out)]) == 0
    config = json.loads((out / "best" / "config.json").read_text())
    assert score(config["results"]) > LEAST[real.stem]
    assert is_picture(out / "tune.png") and is_picture(out / "best" / "curves.png")
