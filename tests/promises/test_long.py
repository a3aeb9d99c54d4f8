"""The programs for minutes and hours: none is forgotten, each takes what all are called with."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "long"
PROGRAMS = sorted(x.stem for x in FOLDER.glob("*.py") if not x.stem.startswith("_"))


def all_of_them():
    spec = importlib.util.spec_from_file_location("long_programs", FOLDER / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_none_is_forgotten():
    assert sorted(all_of_them().PROGRAMS) == PROGRAMS
    page = (FOLDER.parents[1] / "docs" / "promises.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\b(\w+)\.py\b", page))
    assert named >= {*PROGRAMS} - {"crowd", "scoreboard"}


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform == "win32", reason="some set limits, which POSIX systems have")
@pytest.mark.parametrize("name", PROGRAMS)
def test_each_takes_the_options_that_it_is_given(name):
    if name == "torch_histories":
        pytest.importorskip("torch")
    command = [sys.executable, FOLDER / f"{name}.py", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for option in (*all_of_them().PROGRAMS[name], "report"):
        assert f"--{option}" in said


def test_each_runs_once_and_what_it_finds_is_told(monkeypatch, capsys):
    module, calls = all_of_them(), []

    def run(command, check):
        calls.append([str(x) for x in command[1:]])
        return subprocess.CompletedProcess(command, int("fuzz.py" in str(command[1])))

    monkeypatch.setattr(subprocess, "run", run)
    assert module.main(["--minutes", "2", "--seed", "12345678"]) == 1
    assert len(calls) == len(PROGRAMS)
    assert "found something: fuzz" in capsys.readouterr().out
    [bits] = [x for x in calls if x[0].endswith("bits.py")]
    assert bits[1:5] == ["--minutes", "2.0", "--seed", "12345678"]
    assert module.main(["--only", "bits"]) == 0
