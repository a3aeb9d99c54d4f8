"""Names as in Python, the version, and the command line as a module."""

import csv
import subprocess
import sys

import numpy as np
import pytest

import steepest as st
from steepest import cli
from steepest.cli import syntax
from steepest.optimizers import RULES


@pytest.mark.parametrize("rule", RULES)
def test_optimizers_are_called_by_their_class_too(rule):
    name = RULES[rule].__name__
    assert syntax.call("--optimizer", name, RULES)[0] == rule
    assert syntax.call("--optimizer", f"{name}:weight_decay=0.5", RULES)[2] == {"weight_decay": 0.5}


def test_a_run_is_the_same_by_either_name(tmp_path, capsys):
    for k, name in enumerate(("adamw", "AdamW")):
        options = ["--optimizer", name, "--epochs", "1", "--quiet", "--out", str(tmp_path / str(k))]
        assert cli.main(["train", "digits", *options]) == 0
    capsys.readouterr()
    found = []
    for k in "01":
        with open(tmp_path / k / "history.csv", newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            found.append([{x: v for x, v in row.items() if "seconds" not in x} for row in rows])
        with np.load(tmp_path / k / "params.npz") as arrays:
            found[-1].append({name: x.tobytes() for name, x in arrays.items()})
    assert len(found[0]) == 2
    assert found[0] == found[1]


def test_the_list_of_some(capsys):
    assert cli.main(["list", "Lion", "adamw"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line and line[0] != " "] == ["lion", "adamw"]
    for wrong, told in (("adamx", "did you mean adam"), ("sgd:momentum=0.9", "the name alone")):
        assert cli.main(["list", wrong]) == 2
        assert told in capsys.readouterr().err


def test_the_version(capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out == f"steepest {st.__version__}\n"
    for module in ("steepest", "steepest.cli"):
        command = [sys.executable, "-m", module, "--version"]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert told == f"steepest {st.__version__}\n"
