"""What the documents show is true: their code runs, and their tables are the commands' output."""

import contextlib
import doctest
import io
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import steepest as st
from bench import report
from steepest import cli, reference, schedules
from steepest.optimizers import RULES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def printed(*arguments):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert cli.main(list(arguments)) == 0
    return out.getvalue()


def marks(text):
    """Of a test that runs code: what imports torch carries its mark."""
    return [pytest.mark.torch] if "import torch" in text else []


def pages():
    """The pages of docs/, each as a parameter."""
    for page in sorted((ROOT / "docs").glob("*.md")):
        yield pytest.param(page, id=page.stem, marks=marks(page.read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", list(pages()))
def test_the_examples_of_a_page(page, tmp_path, monkeypatch):
    """In an empty folder, where examples may write, with registries that they may add to."""
    text = page.read_text(encoding="utf-8")
    if marks(text):
        pytest.importorskip("torch")
    if "import onnxruntime" in text:
        pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reference, "RULES", dict(reference.RULES))
    monkeypatch.setattr(schedules, "SCHEDULES", dict(schedules.SCHEDULES))
    failures, tests = doctest.testfile(str(page), module_relative=False)
    assert tests == len(re.findall(r"^>>> ", text, re.MULTILINE)) and failures == 0


def test_tables_of_rules_are_the_commands():
    text = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8")
    table = re.search(r"<!-- rules:begin -->\n(.*)<!-- rules:end -->", text, re.DOTALL).group(1)
    assert table == printed("list", "--markdown"), (
        "write it with: steepest list --markdown, between the markers of docs/rules.md"
    )


def test_the_choice_guide_quotes_rows_of_the_measurements():
    found = (ROOT / "bench" / "convergence.md").read_text(encoding="utf-8")
    cells = [line.strip("|").split("|") for line in found.splitlines() if line.startswith("| ")][1:]
    digits = {row[0].strip(): (row[4].strip(), row[5].strip()) for row in cells}
    quoted = re.findall(
        r"^\| (\w+) \| ([\d.]+) \| ([\d.]+) \|$",
        (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8"), re.MULTILINE,
    )  # fmt: skip
    assert len(quoted) == 13
    assert [digits[name] for name, *_ in quoted] == [(one, two) for _, one, two in quoted]
    least = {name: float(two) for name, (_, two) in digits.items() if hasattr(st, name)}
    assert sorted(least, key=least.get)[:4] == ["PSGDKron", "SOAP", "NorMuon", "Muon"]


# The README


def blocks():
    """The README's blocks of code: (language, text)."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def run(code):
    """Runs code as a file of its own, and returns the lines that it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    return out.getvalue().splitlines()


def test_every_block_of_the_readme_is_run():
    """Here, by the next tests; the block without a language is run by .ci/run and a user."""
    assert [language for language, _ in blocks()] == ["", "python", "python", "sh"]
    install = ['pip install ".[train]" && steepest train digits', 'pip install ".[test]" && pytest']
    assert blocks()[0][1].splitlines() == install


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(code, marks=marks(code), id="torch" if marks(code) else "numpy")
        for language, code in blocks()
        if language == "python"
    ],
)
def test_the_readmes_code_prints_what_it_says(code):
    if marks(code):
        pytest.importorskip("torch")
    said = re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)
    assert said and run(code) == said
    if marks(code):  # "was": with the line that it replaces, the same
        theirs, count = re.subn(r"^from steepest.*# was: (.*)$", r"\1", code, flags=re.MULTILINE)
        assert count == 1 and "steepest" not in theirs and run(theirs) == said


def test_the_readmes_training_of_a_table_leaves_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [f"{50 + k},{1 + k % 5},{2 * (50 + k) + 15 * (k % 5)}" for k in range(120)]
    Path("houses.csv").write_text("\n".join(["area,rooms,price", *rows]) + "\n")
    [command] = [text for language, text in blocks() if language == "sh"]
    words = shlex.split(command)
    assert words[0] == "steepest"
    assert "rmse" in printed(*words[1:], "--epochs", "2", "--quiet")
    left = README.partition(command)[2].partition("\n\n")[2].partition("\n\n")[0]
    files = re.findall(r"`([\w.]+\.\w+)`", left)
    assert sorted(path.name for path in Path("houses").iterdir()) == sorted(files)


def test_the_readme_shows_rows_of_the_tables_of_docs():
    tables = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    shown = report.excerpt(tables, "bench/few.png")
    assert report.replaced(README, shown) == README, (
        "write it with: python bench/report.py --excerpt docs/benchmarks.md --write README.md "
        "--picture bench/few.png"
    )


def section(title):
    return README.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_the_readme_names_every_rule_once_in_the_order_of_the_library():
    named = re.findall(r"`(\w+)`", section("Names by family").partition("Beside them")[0])
    assert named == [cls.__name__ for cls in RULES.values()]
    assert f"**{len(RULES)} optimizer rules" in README
    matrix = sum(cls.needs == "matrix" for cls in RULES.values())
    assert matrix == 7 and "The seven matrix rules" in README


def test_the_readme_advises_what_there_is():
    names = re.findall(r"`(\w+)`", section("Which optimizer"))
    assert len(names) > 12 and all(hasattr(st, name) for name in names)


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


def anchors(text):
    """What a link may name in a page: its titles, as GitHub and PyPI write them."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob(".github/**/*.md")]


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda path: path.stem)
def test_links_between_files_lead_somewhere(page):
    prose = re.sub(
        r"^```.*?^```$|`[^`\n]+`", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if link.startswith(("https://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = page if not name else page.parent / name
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


# The examples of CONTRIBUTING


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
