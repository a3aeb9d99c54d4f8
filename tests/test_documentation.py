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


def worked_example(what="rule"):
    """The blocks of CONTRIBUTING's example: (the file each is appended to, its text)."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition(f"## Adding a {what}\n")[2].partition("\n## ")[0]
    return re.findall(r"At the end of\s`([^`]+)`:\n\n```\w+\n(.*?)```", section, re.DOTALL)


def test_the_worked_example_touches_three_files():
    assert [Path(name).suffix for name, _ in worked_example()] == [".py", ".pyx", ".py"]
    assert len({name for name, _ in worked_example()}) == 3
    assert [Path(name).name for name, _ in worked_example("format")] == ["codecs.pyx", "formats.py"]


FORMAT = """
import numpy as np, steepest as st, steepest.reference
from steepest.kernels import dispatch
from steepest.memory import formats
from steepest.memory.formats import E5M2, decoded, encoded

rng = np.random.default_rng(0)
codes = np.arange(256, dtype=np.uint8).view(E5M2)
numbers = np.concatenate([
    rng.standard_normal(4000) * 10.0 ** rng.uniform(-7, 6, 4000),
    decoded(codes), (decoded(codes)[:123] + decoded(codes)[1:124]) / 2,
])
back = encoded(decoded(codes), E5M2)
assert np.array_equal(decoded(back), decoded(codes), equal_nan=True)
for level in dispatch.available():
    dispatch.use(level)
    for stride in 1, 3:
        for blocks in np.float32, np.float64:
            more = {"momentum": 0.5, "state_dtype": "float64"} if blocks is np.float64 else {}
            x = numbers.astype(blocks)
            p = np.zeros(stride * x.size, E5M2)[::stride]
            st.SGD(p, lr=1.0, **more).step(x)
            assert np.array_equal(decoded(p), decoded(encoded(-x, E5M2)), equal_nan=True)
    p, g = (encoded(rng.standard_normal(700), E5M2) for _ in range(2))
    twin = decoded(p)
    st.AdamW(p, lr=0.1, state_dtype="float8_e5m2").step(g)
    st.reference.step("adamw", twin, decoded(g), {
        "exp_avg": np.zeros(700, np.float32), "exp_avg_sq": np.zeros(700, np.float32)}, 1,
        lr=0.1, betas=(0.9, 0.999), eps=1e-8, amsgrad=False, bias_correction=True,
        convention="torch", weight_decay=0.01, decay_mode="decoupled")
    assert np.array_equal(decoded(p), decoded(encoded(twin, E5M2)))
print("exact")
"""


@pytest.mark.exhaustive
def test_the_worked_example_works(tmp_path):
    """A copy of the sources with the examples' texts builds, and rule and format are exact."""
    copy = tmp_path / "steepest"
    shutil.copytree(
        ROOT, copy,
        ignore=shutil.ignore_patterns("build", ".git", "dist", "runs", ".venv", "*cache*"),
    )  # fmt: skip
    for name, text in worked_example() + worked_example("format"):
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
    format_ = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORMAT],
        cwd=tmp_path, env={"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert format_.stdout == "exact\n", format_.stderr
