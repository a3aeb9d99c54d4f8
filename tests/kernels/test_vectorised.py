"""Every loop of every rule and operation is vectorised, for float and double, at every level, and
so are the loops over arrays as they are stored.

The compiler is asked, with the flags of all builds; its report names lines of the .pyx files.
"""

import re
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path

import pytest

from steepest.extension import build as building
from steepest.kernels import dispatch
from steepest.kernels.stored_loops import with_stored_loops

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "src/steepest/kernels/leveled"


LOOP = r"\s+for i in range\((?:n|GROUP)\):"

# What Python has prepared is copied, and what a codec walks has strides: no loops to vectorise.
SOURCES = [name for name in dispatch.sources("base") if name not in ("prepared", "codecs")]


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != "linux", reason="asks gcc for x86-64")
@pytest.mark.parametrize("level", ["base", "v3", "v4"])
@pytest.mark.parametrize("source", SOURCES)
def test_every_loop_is_vectorised(source, level, tmp_path):
    path = tmp_path / f"{source}.pyx"
    path.write_text(with_stored_loops((KERNELS / f"{source}.pyx").read_text()))
    generated = tmp_path / f"{source}.c"
    directives = ["boundscheck=False", "wraparound=False", "cdivision=True"]
    subprocess.run(
        [sys.executable, "-m", "cython", "-3", "--line-directives", "-I", str(ROOT / "src"),
         *(word for directive in directives for word in ("-X", directive)),
         str(path), "-o", str(generated)],
        check=True,
    )  # fmt: skip
    report = subprocess.run(
        ["gcc", *building.compile_args(level), "-DNDEBUG", "-fPIC", "-fopt-info-vec-optimized",
         "-I", sysconfig.get_path("include"), "-c", str(generated), "-o", str(tmp_path / "x.o")],
        check=True, capture_output=True, text=True,
    ).stderr  # fmt: skip
    vectorised = Counter()
    for line in re.findall(rf"{source}\.pyx:(\d+):\d+: optimized: loop vectorized", report):
        vectorised[int(line)] += 1
    lines = path.read_text().splitlines()
    loops = [n for n, line in enumerate(lines, 1) if re.fullmatch(LOOP, line)]
    assert loops
    own = lines.index("# Made by stored_loops.py.") if "STORED = {}" in lines else len(lines)
    # Where the type is asked for inside, each has its own loop; SSE2 compares no 64-bit integers.
    scalar = [
        n for n in loops
        if vectorised[n] < (1 if "memcpy" in lines[n] or n > own else 2)
        and not (level == "base" and "memcpy(&wide" in lines[n])
    ]  # fmt: skip
    assert not scalar, f"not vectorised for both types: lines {scalar} of {source}.pyx"
