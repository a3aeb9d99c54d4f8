"""Failing memory, and Ctrl-C, at every place of everything that changes an optimizer or a file:

    python tests/long/failures.py --report tests/long/reports/failures.md

Each allocation by Python fails once, then each by NumPy and by the compiled modules, which a
preloaded library lets fail (Linux with gcc); then each line is interrupted once. After each, an
optimizer or file is as before or as after, and goes on. About half an hour; the exit code is 1
where something was found.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HELPERS = Path(__file__).parents[1] / "helpers"
sys.path[:0] = [str(HELPERS)]

import failing_memory  # noqa: E402
from faults import ALLOCATOR, interrupted_at, out_of_memory  # noqa: E402


def by_compiled_modules(folder: str) -> dict[str, int]:
    """How many allocations of NumPy and of the kernels failed, by the name of the change."""
    source, library = Path(folder) / "allocator.c", Path(folder) / "allocator.so"
    source.write_text(ALLOCATOR, encoding="utf-8")
    command = ["gcc", "-O1", "-shared", "-fPIC", "-fno-builtin", source, "-o", library, "-ldl"]
    subprocess.run(command, check=True)
    run = subprocess.run(
        [sys.executable, HELPERS / "failing_memory.py"], text=True, stdout=subprocess.PIPE,
        env=os.environ | {"LD_PRELOAD": str(library)}, check=True,
    )  # fmt: skip
    return {name: int(n) for name, n in (x.rsplit(" ", 1) for x in run.stdout.splitlines())}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--report", type=Path)
    given = parser.parse_args(argv)
    began, wrong = time.monotonic(), []
    ways = {"allocations by Python": out_of_memory, "lines": interrupted_at}
    counts: dict[str, dict[str, int]] = {"allocations by NumPy and kernels": {}}
    with tempfile.TemporaryDirectory() as folder:
        for way, fails in ways.items():
            counts[way] = {}
            for name in failing_memory.changes(tempfile.mkdtemp(dir=folder)):
                try:
                    found = failing_memory.check(name, tempfile.mkdtemp(dir=folder), fails)
                except AssertionError as error:
                    wrong.append(str(error))
                    continue
                counts[way][name] = found
                print(way, name, found, flush=True)
        if sys.platform == "linux":
            counts["allocations by NumPy and kernels"] = by_compiled_modules(folder)
    names = list(counts["lines"])
    text = "\n".join([
        "# Failing memory and interrupts", "", "`python tests/long/failures.py`, "
        f"{(time.monotonic() - began) / 60:.0f} minutes: {len(wrong)} faults found.", "",
        f"| change | {' | '.join(counts)} |", "|---|" + "---:|" * len(counts),
        *(
            f"| {name} | {' | '.join(str(x.get(name, '')) for x in counts.values())} |"
            for name in names
        ),
        "", *wrong, "",
    ])  # fmt: skip
    print(text)
    if given.report:
        given.report.write_text(text, encoding="utf-8")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
