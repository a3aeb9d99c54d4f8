"""A step over memory of others asks for none: counted at the C library's malloc, for every rule."""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from counted import COUNTER

PROGRAM = Path(__file__).parents[1] / "helpers" / "counted.py"
COMPILER = shutil.which("cc")

pytestmark = pytest.mark.skipif(
    COMPILER is None
    or platform.libc_ver()[0] != "glibc"
    or "libasan" in os.environ.get("LD_PRELOAD", "")
    or "libtsan" in os.environ.get("LD_PRELOAD", ""),
    reason="counts with a library of its own, which it compiles, in front of glibc",
)


def test_a_bound_step_asks_for_no_memory(tmp_path):
    library = tmp_path / "counter.so"
    command = [str(COMPILER), "-shared", "-fPIC", "-O1", "-x", "c", "-", "-o", str(library)]
    subprocess.run(command, input=COUNTER, text=True, check=True)
    ran = subprocess.run(
        [sys.executable, str(PROGRAM), str(library)],
        env=os.environ | {"LD_PRELOAD": str(library)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(ran.stdout)
    assert found.keys() == {"1", "2"}
    for threads, counts in found.items():
        (_, seen), _ = counts.pop("muon")
        assert seen > 10_000, "an array of NumPy's is seen"
        together = {rule: whole for rule, (whole, chunks) in counts.items() if chunks is None}
        each = {rule: both for rule, both in counts.items() if rule not in together}
        assert len(each) > 35
        # Once in a while the interpreter needs some for itself.
        assert not {
            rule: both
            for rule, both in each.items()
            if any(calls > 2 or largest > 4096 for calls, largest in both)
        }, threads
        for calls, largest in together.values():  # for the numbers that they keep of all
            assert calls <= 20 * 4
            assert largest <= 64
