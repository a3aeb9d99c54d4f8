"""A copy of the package to spoil: its texts can be changed, its modules compiled, its tests run."""

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "steepest"
_SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
_START = """
import sys
sys.meta_path[:] = [x for x in sys.meta_path if "editable" not in repr(type(x)).lower()]
sys.path.insert(0, FOLDER)
import steepest
assert steepest.__file__.startswith(FOLDER), steepest.__file__
"""
_TESTS = _START + "import pytest; sys.exit(pytest.main(ARGUMENTS))"
_CODE = _START + "sys.path[:0] = ['tests/helpers', '.']\n"
_WITH_LEVELS = "tests/kernels/test_kernels.py::test_every_level_of_this_cpu_is_built"
_OPTIONS = ("-n", "0", "-q", "-x", "--no-header", "-p", "no:cacheprovider",
            "--deselect", _WITH_LEVELS)  # fmt: skip
_MEMORY = 12 << 30


@dataclass(frozen=True)
class Run:
    """How a run of tests ended."""

    code: int | None
    """None where it took too long."""
    seconds: float
    text: str

    @property
    def passed(self) -> bool:
        return self.code == 0

    @property
    def failed(self) -> bool:
        """Whether a test failed, or the process died or hung; not: that there was no such test."""
        return self.code not in (0, 4, 5)


class PackageCopy:
    """The package's texts in a folder, with its compiled modules beside them.

    levels: whose compiled modules to take along; all where it is None.
    """

    def __init__(self, folder: Path, levels: Sequence[str] | None = None) -> None:
        self.folder, self.levels = folder, levels
        package = folder / "steepest"
        shutil.copytree(SOURCE, package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        spec = importlib.util.find_spec("steepest.kernels.machine")
        compiled = Path(spec.origin).parents[1]
        for path in compiled.rglob(f"*{_SUFFIX}"):
            place = package / path.relative_to(compiled)
            level = path.name.removesuffix(_SUFFIX).rpartition("_")[2]
            if path.parent.name != "leveled" or levels is None or level in levels:
                place.symlink_to(path)
        self._build = folder / "build"
        self._build.mkdir()

    def read(self, file: str) -> str:
        return (self.folder / "steepest" / file).read_text(encoding="utf-8")

    def write(self, file: str, text: str) -> None:
        """Puts a text in the place of a file's, and forgets what was compiled of that."""
        path = self.folder / "steepest" / file
        path.write_text(text, encoding="utf-8")
        for made in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
            made.unlink()

    def changed(self, file: str, old: str, new: str) -> None:
        """Puts `new` in the place of `old`, which must be there once."""
        text = self.read(file)
        if text.count(old) != 1:
            raise ValueError(f"{file} has {old!r} {text.count(old)} times")
        self.write(file, text.replace(old, new))

    def run(self, tests: Iterable[str], seconds: float = 600, **environment: str) -> Run:
        """The outcome of pytest, ended at the first failure, at the limit of time, or of memory."""
        code = _TESTS.replace("FOLDER", repr(str(self.folder)))
        code = code.replace("ARGUMENTS", repr([*_OPTIONS, *tests]))
        return self._run([sys.executable, "-P", "-c", code], seconds, environment)

    def run_code(self, code: str, seconds: float = 600, **environment: str) -> Run:
        """The outcome of code in an interpreter that has this copy and the tests' helpers."""
        begun = _CODE.replace("FOLDER", repr(str(self.folder)))
        return self._run([sys.executable, "-P", "-c", begun + code], seconds, environment)

    def _run(self, command: list[str], seconds: float, environment: Mapping[str, str]) -> Run:
        started = time.monotonic()
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(self.folder)} | environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            start_new_session=True, preexec_fn=_limited if os.name == "posix" else None,
        )  # fmt: skip
        try:
            text, _ = process.communicate(timeout=seconds)
            code: int | None = process.returncode
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        if code is None:
            text, _ = process.communicate()
        return Run(code, time.monotonic() - started, text)

    def place(self, module: str, level: str | None = None) -> Path:
        """Where a compiled module lies."""
        name = f"{module}{f'_{level}' if level else ''}{_SUFFIX}"
        return self.folder / "steepest" / "kernels" / name

    def built(self, module: str, level: str | None = None, loops: bool = True) -> bytes | str:
        """Compiles a module (``leveled/adam``, ``engine/plan``) of this copy, and puts it in place.

        Returns the object code, or what the compiler said where it failed. Without optimization
        for speed, which changes no bit of a result. loops: with a rule's loops over arrays of other
        formats, which take as long again.
        """
        source = self.folder / "steepest" / "kernels" / f"{module}.pyx"
        name = module.replace("/", "_") + (f"_{level}" if level else "")
        if level and loops:
            made = self._build / module
            made.parent.mkdir(exist_ok=True)
            made = made.with_suffix(".pyx")
            loops = self.folder / "steepest" / "kernels" / "stored_loops.py"
            said = _called([sys.executable, loops, source, made])
            source = made
            if said:
                return said
        dotted = module.replace("/", ".") + (f"_{level}" if level else "")
        c, o = self._build / f"{name}.c", self._build / f"{name}.o"
        cmake = (ROOT / "CMakeLists.txt").read_text()
        cython = re.search(r"CYTHON_ARGS --shared=\S+([^)]*)\)", cmake)[1].split()
        numerics = re.search(r"set\(numerics -O3 ([^)]*)\)", cmake)[1].split()
        levels = dict(re.findall(r"set\(flags_(\w+) ([^)]*)\)", cmake))
        parallel = ["-fopenmp"] if module == "team" else []
        optimized = ["-O1" if level in (None, "base") else "-O3"]
        for command in (
            [sys.executable, "-m", "cython", "-I", self.folder, "--module-name",
             f"steepest.kernels.{dotted}", "--shared=steepest._cyutility", *cython, source,
             "-o", c],
            ["cc", "-c", "-fPIC", "-fvisibility=hidden", "-DNDEBUG", *optimized, *numerics,
             *parallel, *levels.get(level or "", "").split(),
             f"-I{sysconfig.get_paths()['include']}", c, "-o", o],
        ):  # fmt: skip
            said = _called(command)
            if said:
                return said
        place = self.place(module, level)
        place.unlink(missing_ok=True)
        return _called(["cc", "-shared", *parallel, o, "-o", place]) or o.read_bytes()


def _called(command: list[str | Path]) -> str:
    """What a command that failed said."""
    done = subprocess.run(
        [str(x) for x in command], capture_output=True, text=True, check=False, cwd=ROOT
    )
    return (done.stdout + done.stderr or "failed") if done.returncode else ""


def _limited() -> None:
    import resource  # which POSIX systems have

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
