"""What is installed, bundled, fetched and run: nothing that was not said."""

import ast
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import steepest as st
from steepest import cli

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "steepest"

# No network


NETWORK = ("socket", "ssl", "http", "urllib", "ftplib", "smtplib", "requests", "urllib3", "aiohttp")


def test_no_source_opens_a_connection():
    """By import; nor do data sets come from anywhere but the installed packages."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [x.name for x in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found = {name.partition(".")[0] for name in names if name != "urllib.parse"}
            assert not found & {*NETWORK}, path
    for path in (p for p in SOURCE.rglob("*") if p.suffix in (".py", ".pyx", ".pxd")):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\bfetch_\w+\(|urlopen|urlretrieve|create_connection", text), path


def test_the_build_fetches_nothing():
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    assert not re.search(r"FetchContent|ExternalProject|file\(DOWNLOAD|https?://", text)


GUARDED = """
import socket, sys

class Refused(socket.socket):
    def __new__(cls, *a, **k):
        raise SystemExit("a socket was made")

socket.socket = Refused
sys.addaudithook(lambda event, _: sys.exit(event) if event.startswith("socket.") else None)
import numpy as np, steepest as st
from steepest import cli
w = np.ones(300_000)
st.AdamW(w).step(np.ones(300_000))
st.save(sys.argv[1] + "/x", st.AdamW(w))
code = cli.main(["train", "digits", "--epochs", "1", "--quiet", "--out", sys.argv[1] + "/run"])
print(code)
"""


@pytest.mark.exhaustive
def test_a_step_a_file_and_a_training_run_make_no_socket(tmp_path):
    """An audit hook of the interpreter sees each; ``unshare -n`` has shown the same by hand."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", GUARDED, str(tmp_path)],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "0"


# No code of others


class Bomb:
    """An object that, when it is read as a pickle, makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_bomb_goes_off_where_pickles_are_read(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "gone off")))
    assert (tmp_path / "gone off").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("wrap", [bytes, lambda x: len(x).to_bytes(8, "little") + x])
def test_a_checkpoint_from_a_stranger_runs_no_code(tmp_path, protocol, wrap):
    (tmp_path / "x").write_bytes(wrap(pickle.dumps(Bomb(tmp_path / "gone off"), protocol)))
    for take in (st.checkpoint.read, lambda path: st.load(path, st.SGD(np.ones(2)))):
        with pytest.raises(st.checkpoint.CheckpointError):
            take(tmp_path / "x")
    assert not (tmp_path / "gone off").exists()


@pytest.fixture(scope="module")
def one_run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("run"))


def trained(folder):
    rows = [f"{i % 7 - 3},{i % 5},{i % 2}" for i in range(40)]
    (folder / "old.csv").write_text("\n".join(["a,b,target", *rows, ""]), encoding="utf-8")
    command = ["train", str(folder / "old.csv"), "--target", "target", "--epochs", "1", "--quiet"]
    assert cli.main([*command, "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.mark.exhaustive
def test_a_run_from_a_stranger_runs_no_code(tmp_path, capsys):
    """Pickles among its arrays are not read."""
    run = trained(tmp_path)
    with np.load(run / "params.npz") as file:
        arrays = dict(file)
    bomb = np.array([Bomb(tmp_path / "gone off")], object)
    for name in arrays:
        np.savez(run / "params.npz", **(arrays | {name: bomb}))
        assert cli.main(["predict", str(run), str(tmp_path / "old.csv")]) == 2
        assert "is damaged" in capsys.readouterr().err
    (run / "params.npz").write_bytes(pickle.dumps(Bomb(tmp_path / "gone off")))
    assert cli.main(["predict", str(run), str(tmp_path / "old.csv")]) == 2
    assert not (tmp_path / "gone off").exists()


FORMULAS = ["=1+1", "=cmd|' /C calc'!A0", "@SUM(1)", "+1+1", "__import__('os').system('true')",
            "{{7*7}}", "$(touch x)", "`touch x`", "!!python/object:os.system"]  # fmt: skip


@pytest.mark.parametrize("formula", FORMULAS)
def test_a_table_from_a_stranger_runs_no_code(tmp_path, capsys, monkeypatch, one_run, formula):
    """What a spreadsheet or a shell would compute is text, which no number is made of."""
    monkeypatch.chdir(tmp_path)
    quoted = '"' + formula.replace('"', '""') + '"'
    (tmp_path / "new.csv").write_text(f"a,b\n1,2\n{quoted},3\n", encoding="utf-8")
    before = sorted(tmp_path.iterdir())
    capsys.readouterr()
    assert cli.main(["predict", str(one_run), str(tmp_path / "new.csv")]) == 2
    said = capsys.readouterr()
    assert (
        said.err.startswith("steepest: error: ")
        and "row 2, column 'a'" in said.err
        and not said.out
    )
    assert sorted(tmp_path.iterdir()) == before


def test_no_source_evaluates_text_or_reads_pickles():
    """``pickle`` is for copies in memory alone, by the protocol of ``copy`` and of processes; the
    checks of optimizers load what they, or a child process of theirs, have just made."""
    own = SOURCE / "extension" / "conformance"
    risky = re.compile(
        r"pickle\.loads?\(|allow_pickle=True|marshal\.|shelve\.|yaml\.load|os\.system|shell=True|"
        r"weights_only=False"
    )
    for path in SOURCE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        found = {x.group() for x in risky.finditer(text)}
        assert found <= ({"pickle.loads("} if path.parent == own else set()), path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("eval", "exec", "compile", "__import__"), path


# What the workflows use


def test_actions_are_pinned_by_digest():
    """A tag may be moved to other code; a digest is the code. The tag is told beside it."""
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        lines = path.read_text(encoding="utf-8").splitlines()
        for line in (line for line in lines if "uses:" in line):
            assert re.search(r"uses: [\w-]+/[\w-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+$", line), line
        for line in (line for line in lines if "pipx run" in line):
            assert re.search(r"pipx run [\w-]+==\d", line), line
        assert "permissions:\n  contents: read" in "\n".join(lines)


# What is bundled


def bill(wheel: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "sbom.py"), str(wheel)],
        capture_output=True, text=True, check=False, env=os.environ | environment,
    )  # fmt: skip


def wheel(folder: Path, *libraries: str) -> Path:
    about = (
        "Metadata-Version: 2.4\nName: steepest\nVersion: 1.2.3\nLicense-Expression: Apache-2.0\n"
    )
    path = folder / "steepest-1.2.3-cp311-cp311-linux_x86_64.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("steepest-1.2.3.dist-info/METADATA", about + "Requires-Dist: numpy>=2.0\n")
        for name in ("steepest/kernels/machine.cpython-311-x86_64-linux-gnu.so", *libraries):
            file.writestr(name, name)
    return path


@pytest.mark.torch
def test_the_bill_of_materials_tells_what_is_bundled(tmp_path):
    pytest.importorskip("cyclonedx.validation.json")
    given = wheel(tmp_path, "steepest/.libs/libgomp.so.1")
    done = bill(given, SOURCE_DATE_EPOCH="1700000000")
    assert done.returncode == 0, done.stderr
    assert done.stdout == bill(given, SOURCE_DATE_EPOCH="1700000000").stdout
    [ours] = [x for x in json.loads(done.stdout)["components"] if x["name"] == given.name]
    [library] = ours["components"]
    assert library["name"] == "libgomp.so.1"
    assert library["licenses"] == [{"expression": "GPL-3.0-or-later WITH GCC-exception-3.1"}]


@pytest.mark.torch
@pytest.mark.parametrize("name", ["steepest.libs/libfoo-1.so.2", "steepest/.libs/libfoo.so"])
def test_a_library_of_an_unknown_licence_has_no_bill(tmp_path, name):
    pytest.importorskip("cyclonedx.validation.json")
    done = bill(wheel(tmp_path, name))
    assert done.returncode != 0 and "whose licence" in done.stderr


def test_the_licence_of_the_bundled_library_is_shipped():
    text = (ROOT / "LICENSE-libgomp").read_text(encoding="utf-8")
    assert "GCC RUNTIME LIBRARY EXCEPTION" in text and "GNU GENERAL PUBLIC LICENSE" in text
