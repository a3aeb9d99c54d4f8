"""Many processes on few processors: what a step costs when each has its own threads.

    python tests/long/crowd.py --processes 8

One process steps alone, then several at once, in turns so that both meet the same machine. Each
has as many threads as there are processors, as it would by itself. What all do in a second, over
what one does alone, tells whether they stand in each other's way: threads that wait at a barrier,
awake, for one that has no processor would make it small. Prints; nothing is asserted.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = """
import sys, time
import numpy as np, steepest as st
seconds, n = float(sys.argv[1]), int(sys.argv[2])
w, g = np.ones(n, np.float32), np.full(n, 0.5, np.float32)
opt = st.AdamW(w)
opt.step(g)
print("ready", flush=True)
sys.stdin.readline()
steps, end = 0, time.monotonic() + seconds
while time.monotonic() < end:
    opt.step(g)
    steps += 1
print(steps, st.get_num_threads(), flush=True)
"""


def together(count: int, seconds: float, n: int) -> tuple[float, int]:
    """Steps a second of so many processes in all, and the threads of each."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(seconds), str(n)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(count)
    ]  # fmt: skip
    for x in processes:
        x.stdout.readline()
    began = time.monotonic()
    for x in processes:
        x.stdin.write("\n")
        x.stdin.flush()
    found = [x.stdout.readline().split() for x in processes]
    took = time.monotonic() - began
    for x in processes:
        x.communicate()
    return sum(int(steps) for steps, _ in found) / took, int(found[0][1])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--report", type=Path, help="a file for the report")
    arguments = parser.parse_args(argv)
    lines = []
    for n in (1_000, 300_000, 4_000_000):
        ratios, threads = [], 0
        for _ in range(arguments.turns):
            alone, threads = together(1, arguments.seconds, n)
            all_of_them, _ = together(arguments.processes, arguments.seconds, n)
            ratios.append(all_of_them / alone)
        lowest, middle = min(ratios), statistics.median(ratios)
        lines.append(f"| {n:,} | {threads} | {middle:.2f} | {lowest:.2f} |")
        print(lines[-1], flush=True)
    given = " ".join(sys.argv[1:] if argv is None else argv)
    text = "\n".join([
        "# Many processes at once", "",
        f"`python tests/long/crowd.py {given}`".replace(" `", "`"), "",
        f"AdamW in float32; {arguments.processes} processes, steps a second of all over those of "
        "one alone.", "",
        "| elements | threads of each | median | lowest |", "|---|---|---|---|", *lines, "",
    ])  # fmt: skip
    print(text)
    if arguments.report:
        arguments.report.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
