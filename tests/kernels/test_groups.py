"""The conversions of groups of 8-bit states: those with vectors, at each level, and the loops of
other compilers give the same bytes.

That they are those of ``steepest.codecs`` is tested with all formats; here it is the C of
``groups.pxd``, which a build has in one form only.
"""

import ctypes
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from steepest import codecs
from steepest.extension import build as building
from steepest.kernels import dispatch

SOURCE = Path(__file__).parents[2] / "src/steepest/kernels/groups.pxd"
ENTRIES = """
void decode(const uint8_t *code, uint32_t lowest, float *to, int square) {
    steepest_decode(code, lowest, to, square);
}
void encode(const float *from, const uint32_t *random, uint32_t lowest, uint8_t *code, int square) {
    steepest_encode(from, random, lowest, code, square);
}
"""
CHOICE = "#define STEEPEST_VECTORS"


def compiled(folder, level, *, vectors):
    """The C of the file as a library."""
    text = SOURCE.read_text("utf-8").partition('cdef extern from *:\n    """\n')[2]
    text = text.partition('\n    """')[0]
    assert CHOICE in text
    path = folder / f"groups_{level}_{vectors}.c"
    path.write_text((text if vectors else text.replace(CHOICE, "")) + ENTRIES)
    command = ["gcc", *building.compile_args(level), "-shared", "-fPIC", str(path), "-o"]
    subprocess.run([*command, str(path.with_suffix(".so"))], check=True)
    return ctypes.CDLL(str(path.with_suffix(".so")))


def pointers(*arrays):
    return [x.ctypes.data_as(ctypes.c_void_p) for x in arrays]


def lowest(scale):
    return ctypes.c_uint32((scale - 15) << 23)


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != "linux", reason="asks gcc for x86-64")
@pytest.mark.parametrize("square", [False, True], ids=["signed", "square"])
@pytest.mark.parametrize(
    ("level", "vectors"),
    [("base", False), *((level, True) for level in dispatch.available())],
)
def test_each_form_has_the_bytes_of_the_specification(level, vectors, square, tmp_path):
    library = compiled(tmp_path, level, vectors=vectors)
    rng = np.random.default_rng(0)
    for scale in range(16, 256):
        codes = np.arange(256, dtype=np.uint8).reshape(2, codecs.GROUP)
        expected = codecs.from_q8(codes, np.full(2, scale, np.uint8), square)
        found = np.empty_like(expected)
        for row, x in zip(codes, found, strict=True):
            library.decode(*pointers(row), lowest(scale), *pointers(x), int(square))
        assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))

        size = np.ldexp(rng.uniform(0.5, 1, codecs.GROUP), rng.integers(-24, 2, codecs.GROUP))
        size[:8] = 0, 2**-16, 2**-15, 1, 0, 2.0**-149, 1, 0.5
        with np.errstate(over="ignore", under="ignore"):
            x = np.ldexp(size, scale - 127).astype(np.float32)
        x = np.where(np.isfinite(x), x, np.float32(np.nan))
        x = np.abs(x) if square else x * rng.choice(np.float32([-1, 1]), codecs.GROUP)
        random = rng.integers(2**32, size=codecs.GROUP, dtype=np.uint32)
        found = np.empty(codecs.GROUP, np.uint8)
        library.encode(*pointers(x, random), lowest(scale), *pointers(found), int(square))
        assert np.array_equal(found, specified(x, random, scale, square))


def specified(x, random, scale, square):
    """The codes of numbers or roots with a scale that is given: the upper bits, counted from those
    of the lowest, of what they are with random bits added below."""
    dropped = 19 if square else 20
    bits = x.view(np.uint32).astype(np.int64)
    up = (bits & 0x7FFFFFFF) + (random >> np.uint32(32 - dropped))
    k = (up >> dropped) - ((scale - 15) << 23 >> dropped)
    if square:
        return np.maximum(k, 1).astype(np.uint8)
    return (np.maximum(k, 0) | bits >> 24 & 0x80).astype(np.uint8)
