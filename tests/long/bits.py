"""The bits of 2000 steps of every rule and format, as anything varies that must not matter:

    python tests/long/bits.py --minutes 30 --seed 1 --report tests/long/reports/bits.md

Cases of ``tests/data/golden_2000.txt`` are run at a level, with a number of threads from 1 to 8,
and in a floating-point mode of the caller, all drawn, and their digests are compared with the
file. ``--every`` runs each case once at least. The exit code is 1 where a digest differs.
"""

import argparse
import platform
import random
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "helpers"), str(Path(__file__).parents[2])]

import golden  # noqa: E402
import numpy as np  # noqa: E402
from cases import use_threads  # noqa: E402
from float_modes import MODES  # noqa: E402

from steepest.kernels import dispatch, machine  # noqa: E402


def known() -> dict[tuple[str, str], str]:
    lines = golden.LONG_FILE.read_text(encoding="utf-8").splitlines()
    return {(rule, name): digest for rule, name, digest in (line.split(" ") for line in lines)}


def digest_in(mode: int, rule: str, name: str) -> str | None:
    """The digest of a case whose steps are taken in a floating-point mode of the caller's."""
    usual = machine.float_mode()
    found = golden.long_digest(
        rule, name, around=(lambda: machine.set_float_mode(usual | mode),
                            lambda: machine.set_float_mode(usual)),
    )  # fmt: skip
    machine.set_float_mode(usual)
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", action="store_true", help="each case once at least")
    parser.add_argument("--report", type=Path)
    given = parser.parse_args(argv)
    cases, draw, began = known(), random.Random(given.seed), time.monotonic()
    modes = {"default": 0} | MODES
    axes = (dispatch.available(), range(1, 9), [*modes])
    waiting, wrong, done, seen = [*cases], [], 0, set()
    draw.shuffle(waiting)
    while time.monotonic() - began < 60 * given.minutes or (given.every and done < len(cases)):
        if not waiting:
            waiting = draw.sample([*cases], len(cases))
        case = waiting.pop()
        level, threads, mode = (draw.choice([*axis]) for axis in axes)
        dispatch.use(level)
        use_threads(threads)
        if digest_in(modes[mode], *case) != cases[case]:
            wrong.append(f"{' '.join(case)}: level {level}, {threads} threads, mode {mode}")
            print(wrong[-1], flush=True)
        done += 1
        seen.add((level, threads, mode))
    minutes = (time.monotonic() - began) / 60
    python = f"Python {platform.python_version()}, NumPy {np.__version__}, {platform.machine()}"
    text = "\n".join([
        "# The bits of long runs", "",
        f"`python tests/long/bits.py --minutes {given.minutes:g} --seed {given.seed}`: {python}.",
        "",
        f"{done} runs of 2000 steps in {minutes:.0f} minutes, of {len(cases)} cases (rule and "
        f"format), in {len(seen)} of {len(axes[0]) * 8 * len(modes)} combinations of level, "
        f"threads and floating-point mode: {len(wrong)} digests differ.", "", *wrong, "",
    ])  # fmt: skip
    print(text)
    if given.report:
        given.report.write_text(text, encoding="utf-8")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
