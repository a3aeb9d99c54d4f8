"""Where memory ends, an optimizer, and a file, is as before or as after, and goes on."""

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import failing_memory
import pytest
from faults import ALLOCATOR, out_of_memory

LONG = ("load", "deepcopy", "add_param_group")
"""Here every fifth; ``tests/long/failures.py`` tries all of these, too."""
FEW = ("step schedule", "step lamb", "load_state_dict")
NAMES = failing_memory.STEPS
EVERY = [f"step {name}" for name in NAMES]
EVERY += ["load_state_dict", "add_param_group", "load", "save", "deepcopy", "digest", "functional"]


GENERATORS = """
import _testcapi
for n in range(1, 20):
    try:
        _testcapi.set_nomemory(n, n + 1)
        all(x for x in (1, 2, 3))
    except MemoryError:
        pass
    finally:
        _testcapi.remove_mem_hooks()
"""


@cache
def python_survives():
    """Whether this Python does not itself crash where there is no memory for a generator, as 3.13.5
    does, without any module of ours."""
    return subprocess.run([sys.executable, "-I", "-c", GENERATORS], check=False).returncode == 0


# What Python does where it cannot raise: in a callback, or while it frees something.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=() if x in FEW else pytest.mark.exhaustive) for x in EVERY]
)
def test_any_allocation_of_python_may_fail(name, tmp_path):
    pytest.importorskip("_testcapi", reason="this Python comes without its tests")
    if not python_survives():
        pytest.skip("this Python crashes by itself where there is no memory for a generator")
    stride = 5 if name in LONG else 1
    assert failing_memory.check(name, str(tmp_path), out_of_memory, stride) > 10


@pytest.mark.exhaustive
@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("gcc") is None,
    reason="preloads a library that gcc makes",
)
def test_any_allocation_of_numpy_and_of_the_kernels_may_fail(tmp_path):
    source, library = tmp_path / "allocator.c", tmp_path / "allocator.so"
    source.write_text(ALLOCATOR)
    command = ["gcc", "-O1", "-shared", "-fPIC", "-fno-builtin", source, "-o", library, "-ldl"]
    subprocess.run(command, check=True)
    script = Path(failing_memory.__file__)
    run = subprocess.run(
        [sys.executable, "-X", "faulthandler", script], text=True, capture_output=True, check=False,
        env=os.environ | {"LD_PRELOAD": str(library), "STEEPEST_NUM_THREADS": "2"},
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr[-3000:]
    counts = dict(line.rsplit(" ", 1) for line in run.stdout.splitlines())
    assert list(counts) == EVERY
    warm = {f"step {name}" for name, (_, options) in NAMES.items() if "steps" not in options}
    assert counts["functional"] == "0"
    for name in {*EVERY[: len(NAMES)], "load_state_dict", "load", "save"}:
        assert (counts[name] == "0") == (name in warm), counts  # a later step has what it needs
