"""Packages of others are compiled as this one is."""

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import steepest as st
from steepest.extension import build as building

ROOT = Path(__file__).parents[2]
CMAKE = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")


def words(pattern):
    return re.search(pattern, CMAKE).group(1).split()


@pytest.fixture
def linux(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")


@pytest.mark.parametrize("level", ["base", "v3", "v4"])
@pytest.mark.parametrize("gcc", [True, False])
def test_the_flags_are_those_of_this_librarys_build(linux, monkeypatch, level, gcc):
    monkeypatch.setattr(building, "_is_gcc", lambda: gcc)
    expected = words(r"set\(numerics (-O3[^)]*)\)")
    if gcc:
        expected += words(r"list\(APPEND numerics ([^)]*)\)")
    if level != "base":
        expected += words(rf"set\(flags_{level} ([^)]*)\)")
    assert building.compile_args(level) == expected


def test_the_directives_are_those_of_this_librarys_build():
    given = dict(re.findall(r"-X (\w+)=(\w+)", CMAKE))
    assert {k: str(v) for k, v in building.DIRECTIVES.items()} == given | {"language_level": "3"}


@pytest.mark.parametrize(
    ("system", "machine", "levels"),
    [
        ("linux", "x86_64", ("base", "v3", "v4")),
        ("linux", "aarch64", ("base",)),
        ("darwin", "x86_64", ("base",)),
        ("win32", "AMD64", ("base",)),
    ],
)
def test_the_levels_of_a_platform(monkeypatch, system, machine, levels):
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert building.platform_levels() == levels
    assert (building.compile_args() == ["/fp:precise"]) == (system == "win32")
    with pytest.raises(ValueError, match="level 'v9': expected one of base"):
        building.compile_args("v9")


@pytest.mark.parametrize(
    ("told", "gcc"),
    [
        ("cc (Debian 12.2.0) 12.2.0\nCopyright (C) 2022 Free Software Foundation, Inc.", True),
        ("Debian clang version 16.0.6", False),
    ],
)
def test_the_compiler_is_asked_who_it_is(monkeypatch, tmp_path, told, gcc):
    (tmp_path / "cc.py").write_text(f"print({told!r})")
    monkeypatch.setenv("CC", f"{Path(sys.executable).as_posix()} {(tmp_path / 'cc.py').as_posix()}")
    assert building._is_gcc() is gcc


def test_a_compiler_that_is_not_there_is_not_gcc(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    assert not building._is_gcc()


def test_what_cython_includes_is_installed():
    kernels = Path(st.get_include(), "steepest", "kernels")
    for name in ("contract.pxd", "rules.pxd", "__init__.py"):
        assert (kernels / name).is_file()


SOURCE = """
from steepest.kernels.contract cimport real
from steepest.kernels.rules cimport rule

RULES = {}
"""


@pytest.mark.parametrize("levels", [True, False])
def test_one_extension_for_each_level(linux, monkeypatch, tmp_path, levels):
    pytest.importorskip("setuptools")
    pytest.importorskip("Cython")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.pyx").write_text(SOURCE)
    made = building.extensions("pkg.mine", "mine.pyx", levels=levels)
    made = building.extensions("pkg.mine", "mine.pyx", levels=levels)  # Cython remembers the first
    names = [f"pkg.mine_{level}" for level in ("base", "v3", "v4")] if levels else ["pkg.mine"]
    assert [extension.name for extension in made] == names
    for extension in made:
        level = extension.name.partition("_")[2] or "base"
        assert extension.extra_compile_args == building.compile_args(level)
        [generated] = extension.sources
        module = extension.name.rpartition(".")[2]
        assert f"PyInit_{module}(void)" in Path(generated).read_text(encoding="utf-8")
    assert len({extension.sources[0] for extension in made}) == len(made)


FORMER = """
from steepest.kernels.contract cimport (
    SURVEYS, Table, settle_function, survey_double, survey_float, table_double, tally_float,
)
from steepest.kernels.rules cimport rule, settlement, survey, tabled, tally

cdef void settle(const double *sums, double *own, double *h) noexcept nogil:
    h[0] = sums[0]

cdef void table(Table *x, double *row, double *column, Py_ssize_t first, Py_ssize_t last,
                const double *h) noexcept nogil:
    row[0] = 1.0

cdef settle_function kept = settle
cdef survey_float loop = NULL
cdef survey_double wide_loop = NULL
cdef tally_float terms = NULL
cdef table_double axes = table

TABLES = [settlement(kept), survey(loop, wide_loop, settle), SURVEYS]
"""


def test_names_that_packages_were_written_with_are_known(linux, monkeypatch, tmp_path):
    """A survey is a reduction now, and so on; see contract.pxd."""
    pytest.importorskip("setuptools")
    pytest.importorskip("Cython")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "former.pyx").write_text(FORMER)
    [made] = building.extensions("pkg.former", "former.pyx", levels=False)
    [generated] = made.sources
    include = sysconfig.get_path("include")
    command = ["gcc", "-fsyntax-only", "-Werror=incompatible-pointer-types", "-I", include]
    subprocess.run([*command, generated], check=True, capture_output=True)


def test_building_needs_no_more_than_its_two_packages():
    """Importing steepest.extension.build, as users of get_include do, imports neither."""
    code = "import sys, steepest; print('setuptools' in sys.modules, 'Cython' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
