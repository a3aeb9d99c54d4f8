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

# What Python has prepared is copied: no loops to vectorise.
SOURCES = [name for name in dispatch.sources("base") if name not in ("prepared", "codecs")]
DIRECTIVES = ["boundscheck=False", "wraparound=False", "cdivision=True"]


def vectorised_lines(path, level, *, full=False):
    """How often the compiler vectorises the loop at each line of a .pyx file; `full`, by the widest
    vectors that the level has."""
    generated = path.with_suffix(".c")
    subprocess.run(
        [sys.executable, "-m", "cython", "-3", "--line-directives", "-I", str(ROOT / "src"),
         *(word for directive in DIRECTIVES for word in ("-X", directive)),
         str(path), "-o", str(generated)],
        check=True,
    )  # fmt: skip
    report = subprocess.run(
        ["gcc", *building.compile_args(level), "-DNDEBUG", "-fPIC", "-fopt-info-vec-optimized",
         "-I", sysconfig.get_path("include"), "-c", str(generated),
         "-o", str(path.with_suffix(".o"))],
        check=True, capture_output=True, text=True,
    ).stderr  # fmt: skip
    loops = rf"{path.name}:(\d+):\d+: optimized: loop vectorized using (\d+) byte vectors"
    found = [(int(line), int(width)) for line, width in re.findall(loops, report)]
    widest = max(width for _, width in found) if full else 0  # what is left over is done in shorter
    return Counter(line for line, width in found if width >= widest)


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != "linux", reason="asks gcc for x86-64")
@pytest.mark.parametrize("level", ["base", "v3", "v4"])
@pytest.mark.parametrize("source", SOURCES)
def test_every_loop_is_vectorised(source, level, tmp_path):
    path = tmp_path / f"{source}.pyx"
    path.write_text(with_stored_loops((KERNELS / f"{source}.pyx").read_text()))
    vectorised = vectorised_lines(path, level)
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


# How many loops become of one: copies are none, and what walks strides is none to vectorise.
VARIANTS = {"widen": 6, "narrow": 6, "gather": 0, "scatter": 0, "join": 4, "split_piece": 4,
            "add_compensation": 4, "add_piece": 1, "lack_piece": 1, "draw_piece": 4,
            "decode_master": 1, "encode_master": 1}  # fmt: skip


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != "linux", reason="asks gcc for x86-64")
@pytest.mark.parametrize("level", ["base", "v3", "v4"])
def test_loops_of_codecs_over_contiguous_arrays_are_vectorised(level, tmp_path):
    path = tmp_path / "codecs.pyx"
    path.write_text((KERNELS / "codecs.pyx").read_text())
    vectorised = vectorised_lines(path, level, full=True)
    name, scalar, loops = "", [], 0
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if found := re.match(r"cdef (?:inline )?\w+ (\w+)\(", line):
            name = found[1]
        if re.fullmatch(r"\s+for i in range\(n\):", line):
            loops += 1
            if vectorised[number] < VARIANTS.get(name, 2):
                scalar.append(f"{name}: {vectorised[number]} times")
    assert loops and not scalar, f"not vectorised as often as expected: {scalar}"
