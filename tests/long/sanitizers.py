"""The compiled modules under sanitizers: faults of memory, undefined behaviour, races.

    python tests/long/sanitizers.py --fast                     the share of every change
    python tests/long/sanitizers.py --minutes 10 --seed 1      every level, and random histories

``memory`` is AddressSanitizer with UndefinedBehaviourSanitizer, both of gcc, loaded before a usual
interpreter: a read or write outside an array ends the process. ``threads`` is ThreadSanitizer. It
knows nothing of GNU's OpenMP, and warns there of races that are none; so LLVM's runtime, which has
an entry for each of GNU's, takes its place, and tells of its barriers by its tool Archer (Debian:
libomp-dev). Without that ``threads`` is not run, and the report says so.

Each first shows that it sees: faults that are put into a small library must be reported, and the
same library without them must not.
"""

import argparse
import glob
import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
FLAGS = {"memory": "address,undefined", "threads": "thread"}
LEVELS = ("base", "v3", "v4")

# What cannot hold in such a build.
LEFT_OUT = {
    "test_every_level_of_this_cpu_is_built": "the share of every change builds one level",
}

FAST = {
    "memory": (
        ["tests/kernels/test_kernels.py", "tests/kernels/test_groups.py"],
        ["tests/promises/test_refused.py", "tests/memory/test_arrays.py"],
        ["tests/promises/test_exactness.py", "-k", "tail or shapes and not stages"],
        ["tests/promises/test_everything.py", "-k", "not ctrl_c"],
        [
            "tests/checkpoint/test_checkpoint_container.py",
            "tests/checkpoint/test_checkpoint_formats.py",
            "-k", "not every_flipped",
        ],
    ),
    "threads": (
        ["tests/kernels/test_kernels.py", "-k", "threads"],
        ["tests/promises/test_exactness.py", "-k", "fifty and float32"],
        ["tests/promises/test_everything.py", "-k", "threads"],
    ),
}  # fmt: skip
LONG = {
    "memory": (
        [
            "tests/kernels/test_kernels.py", "tests/kernels/test_groups.py",
            "tests/kernels/test_dispatch.py",
        ],
        ["tests/core", "tests/memory/test_arrays.py", "tests/memory/test_formats.py"],
        ["tests/options", "tests/matrix", "tests/fields"],
        ["tests/optimizers", "tests/convert"],
        ["tests/promises", "--ignore=tests/promises/test_memory.py"],
        ["tests/checkpoint"],
    ),
    "threads": (
        ["tests/kernels/test_kernels.py", "-k", "threads"],
        ["tests/promises/test_exactness.py", "-k", "fifty or large or stages"],
        ["tests/promises/test_everything.py", "tests/promises/test_processes.py", "-k", "thread"],
        ["tests/promises/test_q8.py", "tests/promises/test_masters.py"],
        ["tests/promises/test_exactness_of_formats.py", "tests/options/test_clip.py"],
    ),
}  # fmt: skip

SEEDED = """
#include <stdlib.h>
static long shared;
static double data[1000];
static volatile int last = 2147483647;
static volatile int end = 15;
void overflow(int by) {
    volatile double *volatile x = malloc(16 * 8);
    x[end + by] = 1;
    free((void *)x);
}
void wrap(int by) { last = last - 1 + 1; last += by; last = 2147483647; }
void race(int by) {
    #pragma omp parallel num_threads(3)
    for (int i = 0; i < 1000; i++) { if (by) shared += i; }
}
void barriers(int by) {
    for (int turn = 0; turn < 20; turn++) {
        #pragma omp parallel num_threads(3)
        {
            #pragma omp for schedule(static)
            for (int i = 0; i < 1000; i++) data[i] += i + by;
            #pragma omp for schedule(static)
            for (int i = 0; i < 1000; i++) data[999 - i] += 1;
        }
        data[turn] = 0;
    }
}
void add(int by) { for (int i = 0; i < 1000000; i++) { __asm__("" ::: "memory"); shared += by; } }
"""
"""Functions that are faulty for by = 1, and not for by = 0; `barriers` is never faulty, and `add`
where two callers call it at a time."""

CALL = """
import ctypes, sys, threading
name, by, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
free, held = ctypes.CDLL(path), ctypes.PyDLL(path)
if name == "add":  # two callers: with the interpreter's lock released, or held
    library = free if by else held
    meet = threading.Barrier(2)
    callers = [threading.Thread(target=lambda: (meet.wait(), library.add(1))) for _ in range(2)]
    [x.start() for x in callers], [x.join() for x in callers]
else:
    getattr(free, name)(by)
"""

SHOWN = {
    "memory": {"overflow": "heap-buffer-overflow", "wrap": "signed integer overflow"},
    "threads": {"race": "data race", "add": "data race", "barriers": None},
}
"""Which report a function of SEEDED must cause; None for one that must never cause any."""


def of_gcc(name: str) -> str:
    """The full path of a library of gcc's; empty if there is none."""
    found = subprocess.check_output(["gcc", f"-print-file-name={name}"], text=True).strip()
    return found if os.path.isabs(found) else ""


def llvm() -> Path | None:
    """The folder with LLVM's OpenMP under GNU's name, and with Archer; None if there is none."""
    places = glob.glob("/usr/lib/llvm-*/lib/libarcher.so")
    folders = [Path(x).parent for x in places if Path(x).with_name("libgomp.so").exists()]
    return max(folders, key=lambda x: int(x.parent.name.removeprefix("llvm-")), default=None)


def lacking(kind: str) -> str:
    """What this machine lacks for a sanitizer; empty if nothing."""
    if not sys.platform.startswith("linux") or not shutil.which("gcc"):
        return "Linux with gcc"
    if not of_gcc("libasan.so" if kind == "memory" else "libtsan.so"):
        return "gcc's sanitizers"
    return "" if kind == "memory" or llvm() else "LLVM's OpenMP with Archer (libomp-dev)"


MARKS = ("ERROR: AddressSanitizer", ": runtime error: ", "WARNING: ThreadSanitizer")


def environment(kind: str, logs: str, site: Path | None = None) -> dict[str, str]:
    """Variables with which an interpreter runs instrumented modules, and reports into files."""
    common = f"log_path={logs}:halt_on_error={int(kind == 'memory')}"
    found = os.environ | {"PYTHONMALLOC": "malloc", "STEEPEST_SANITIZED": kind}
    if site is not None:
        found["PYTHONPATH"] = str(site)
    if kind == "memory":
        return found | {
            # C++'s library with it: its exceptions are asan's to watch, from the beginning.
            "LD_PRELOAD": f"{of_gcc('libasan.so')}:{of_gcc('libstdc++.so')}",
            "ASAN_OPTIONS": f"{common}:detect_leaks=0",
            "UBSAN_OPTIONS": f"{common}:print_stacktrace=1",
        }
    folder = llvm()
    return found | {
        "LD_PRELOAD": f"{of_gcc('libtsan.so')}:{folder}/libgomp.so",
        "OMP_TOOL_LIBRARIES": f"{folder}/libarcher.so",
        "TSAN_OPTIONS": f"{common}:ignore_noninstrumented_modules=1",
    }


def reports(logs: str) -> list[str]:
    """What was written to files, and to standard error, where UndefinedBehaviourSanitizer does."""
    texts = [Path(path).read_text(errors="replace") for path in sorted(glob.glob(f"{logs}.*"))]
    return [x for x in texts if any(mark in x for mark in MARKS)]


def watched(command: list[str], kind: str, logs: str, site: Path | None = None) -> int:
    """Runs a program to its end, for which ``reports(logs)`` then tells; its exit code."""
    number = len(glob.glob(f"{logs}.stderr*"))
    with open(f"{logs}.stderr{number}", "wb") as errors:
        return subprocess.run(
            command, cwd=ROOT, env=environment(kind, logs, site), stderr=errors, check=False
        ).returncode


def sensitivity(kind: str, work: Path) -> list[str]:
    """What the sanitizer fails to show of SEEDED, or shows where there is nothing."""
    source, library = work / f"seeded_{kind}.c", work / f"seeded_{kind}.so"
    source.write_text(SEEDED)
    flags = [f"-fsanitize={FLAGS[kind]}", "-fno-sanitize-recover=undefined", "-fopenmp"]
    command = ["gcc", "-O1", "-g", *flags, "-shared", "-fPIC", source, "-o", library]
    subprocess.run(command, check=True)
    wrong = []
    for name, expected in SHOWN[kind].items():
        for by in (0, 1):
            logs = str(work / f"seeded-{name}-{by}")
            watched([sys.executable, "-c", CALL, name, str(by), str(library)], kind, logs)
            found, wanted = reports(logs), expected if by else None
            if wanted is None and found:
                wrong.append(f"{name}({by}) has no fault, but:\n{found[0]}")
            if wanted is not None and not any(wanted in x for x in found):
                wrong.append(f"{name}({by}) was not reported as {wanted!r}: {found}")
    return wrong


def build(kind: str, work: Path, levels: tuple[str, ...]) -> Path:
    """A folder with the package, its compiled modules instrumented."""
    source, site = work / f"source-{kind}", work / f"site-{kind}"
    compiled = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", source / "src", ignore=compiled)
    for path in [*ROOT.glob("LICENSE*"), *map(ROOT.joinpath, BUILD_FILES)]:
        shutil.copy(path, source)
    settings = {
        "build-dir": work / f"build-{kind}",
        "cmake.define.STEEPEST_SANITIZE": FLAGS[kind],
        "cmake.define.STEEPEST_LEVELS": ";".join(levels),
    }
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site)]
    if all(find_spec(x) for x in ("scikit_build_core", "cython_cmake", "Cython")):
        command.append("--no-build-isolation")
    command += [f"-C{key}={value}" for key, value in settings.items()]
    subprocess.run([*command, str(source)], check=True)
    mark = b"__asan_init" if kind == "memory" else b"__tsan_init"
    modules = [path for path in site.rglob("*.so") if ".libs" not in path.parts]
    bare = [path.name for path in modules if mark not in path.read_bytes()]
    if bare or not modules:
        raise RuntimeError(f"modules that were built without {FLAGS[kind]}: {bare}")
    return site


BUILD_FILES = ("CMakeLists.txt", "pyproject.toml", "README.md")


def tested(site: Path, kind: str, chosen: list[str], work: Path) -> tuple[int, int, int]:
    """Runs tests: how many passed, how many did not, and pytest's exit code."""
    given = chosen.index("-k") if "-k" in chosen else len(chosen)
    selection = " and ".join([f"not {name}" for name in LEFT_OUT] + [
        f"({x})" for x in chosen[given + 1 :]
    ])  # fmt: skip
    result = work / "tests.xml"
    result.unlink(missing_ok=True)
    code = watched(
        [
            sys.executable, "-P", "-m", "pytest", "-q", "-n", "2", "-p", "no:faulthandler",
            "-p", "no:cacheprovider", "--capture=sys", "-m", "not exhaustive and not torch",
            f"--junitxml={result}", *chosen[:given], "-k", selection,
        ],
        kind, str(work / f"log-{kind}"), site,
    )  # fmt: skip
    cases = list(ElementTree.parse(result).iter("testcase")) if result.exists() else []
    bad = [x for x in cases if any(y.tag in ("failure", "error") for y in x)]
    good = [x for x in cases if not len(x)]
    return len(good), len(bad), code


def run(kind: str, work: Path, arguments: argparse.Namespace) -> tuple[list[str], bool]:
    """Lines for the report of one sanitizer, and whether it found anything."""
    if lack := lacking(kind):
        return [f"| {kind} | not run: this machine lacks {lack} | | |"], False
    if wrong := sensitivity(kind, work):
        print(*wrong, sep="\n")
        return [f"| {kind} | not run: it does not tell the seeded faults | | |"], True
    print(f"{kind}: the seeded faults are reported, and nothing else", flush=True)
    began = time.monotonic()
    site = build(kind, work, ("base",) if arguments.fast else LEVELS)
    built = time.monotonic()
    print(f"{kind}: built in {built - began:.0f} s", flush=True)
    passed = failed = 0
    for chosen in (FAST if arguments.fast else LONG)[kind]:
        good, bad, code = tested(site, kind, chosen, work)
        passed, failed = passed + good, failed + max(bad, int(code != 0))
    programs = sorted(Path(__file__).parent.glob("histories.py"))
    if not arguments.fast and kind == "memory":
        for program in programs:
            line = ["--minutes", str(arguments.minutes), "--seed", str(arguments.seed)]
            command = [sys.executable, "-P", str(program), *line]
            failed += int(watched(command, kind, str(work / f"log-{kind}"), site) != 0)
    found = reports(str(work / f"log-{kind}"))
    print(*found, sep="\n")
    print(f"{kind}: {passed} tests passed, {failed} did not, {len(found)} reports", flush=True)
    minutes = (time.monotonic() - began) / 60
    counts = f"{passed} passed, {failed} did not"
    return [f"| {kind} | {counts} | {len(found)} | {minutes:.1f} |"], bool(failed or found)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fast", action="store_true", help="the share of every change")
    parser.add_argument("--only", choices=tuple(FLAGS), help="one of both kinds")
    parser.add_argument("--minutes", type=float, default=10.0, help="of random histories")
    parser.add_argument("--seed", type=int, default=0, help="of random histories")
    parser.add_argument("--report", type=Path, help="a file for the report")
    arguments = parser.parse_args(argv)
    lines, bad = [], False
    with tempfile.TemporaryDirectory() as folder:
        for kind in [arguments.only] if arguments.only else FLAGS:
            rows, found = run(kind, Path(folder), arguments)
            lines, bad = lines + rows, bad or found
    given = " ".join(sys.argv[1:] if argv is None else argv)
    text = "\n".join([
        "# Sanitizers", "", f"`python tests/long/sanitizers.py {given}`".replace(" `", "`"), "",
        "Seeded faults are reported first, and the same code without them is not.", "",
        "| kind | tests | reports | minutes |", "|---|---|---|---|", *lines, "",
    ])  # fmt: skip
    print(text)
    if arguments.report:
        arguments.report.write_text(text, encoding="utf-8")
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
