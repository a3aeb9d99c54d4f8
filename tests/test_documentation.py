"""What the documents show is true: their code runs, and their tables are the commands' output."""

import contextlib
import doctest
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from steepest import cli, reference, schedules

ROOT = Path(__file__).parents[1]


def printed(*arguments):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert cli.main(list(arguments)) == 0
    return out.getvalue()


def pages():
    """README and docs/, each as a parameter; those that import torch carry its mark."""
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        needs_torch = "import torch" in page.read_text(encoding="utf-8")
        yield pytest.param(page, id=page.stem, marks=[pytest.mark.torch] if needs_torch else [])


@pytest.mark.parametrize("page", list(pages()))
def test_the_examples_of_a_page(page, tmp_path, monkeypatch):
    """In an empty folder, where examples may write, with registries that they may add to."""
    if "import torch" in page.read_text(encoding="utf-8"):
        pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reference, "RULES", dict(reference.RULES))
    monkeypatch.setattr(schedules, "SCHEDULES", dict(schedules.SCHEDULES))
    failures, tests = doctest.testfile(str(page), module_relative=False)
    assert tests > 3 and failures == 0


def test_the_readmes_table_of_rules_is_the_commands():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = re.search(r"<!-- rules:begin -->\n(.*)<!-- rules:end -->", readme, re.DOTALL).group(1)
    assert table == printed("list", "--markdown"), (
        "write it with: steepest list --markdown, between the markers of README.md"
    )


def test_the_readme_names_the_two_commands():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert 'pip install ".[train]" && steepest train digits\n' in readme
    assert 'pip install ".[test]" && pytest\n' in readme


def worked_example():
    """The blocks of CONTRIBUTING's example: (the file each is appended to, its text)."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition("## Adding a rule\n")[2].partition("\n## ")[0]
    return re.findall(r"At the end of `([^`]+)`:\n\n```\w+\n(.*?)```", section, re.DOTALL)


def test_the_worked_example_touches_three_files():
    assert [Path(name).suffix for name, _ in worked_example()] == [".py", ".pyx", ".py"]
    assert len({name for name, _ in worked_example()}) == 3


@pytest.mark.exhaustive
def test_the_worked_example_works(tmp_path):
    """A copy of the sources with the example's three texts builds, and its rule is exact."""
    copy = tmp_path / "steepest"
    shutil.copytree(
        ROOT, copy,
        ignore=shutil.ignore_patterns("build", ".git", "dist", "runs", ".venv", "*cache*"),
    )  # fmt: skip
    for name, text in worked_example():
        with open(copy / name, "a", encoding="utf-8") as file:
            file.write("\n\n" + text)
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target"]
    subprocess.run([*install, str(site), str(copy)], check=True)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", "addsign", "tests/promises/test_exactness.py"],
        cwd=copy, env={"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"[1-9]\d* passed", result.stdout) and "failed" not in result.stdout
