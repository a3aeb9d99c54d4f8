"""How steps scale with threads, what huge pages do, where pages lie, and what a model predicts.

    python -m bench.scale [--rounds 9] [--size 50000000]

Prints what the system says of its processors, and tables in Markdown:

AdamW over one array, by threads: the median time of a step and the bytes it moves in a second, with
the model's time from the rate of one thread and of all.

The same with all threads, each with a part of its own and with smaller parts that are taken in
turn, on an idle machine and with another program on one of the processors.

The same with all threads, with huge pages for large arrays, which NumPy asks the system for, and
without (``NUMPY_MADVISE_HUGEPAGE=0``), each in processes of its own that take turns.

The memory nodes on which the pages of parameters, gradients and states lie, where the system tells.

What the model predicts for machines that are not here: a step of 1 000 000 000 parameters, from the
bytes that it moves and 80 % of the peak rate of the memory, which is a guess.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

import steepest as st
from steepest.kernels import threads

FORMATS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    # what: parameter, gradient, arguments
    "AdamW, float32": (np.float32, np.float32, {}),
    "AdamW, bfloat16 with split16, float32 states": ("bfloat16", "bfloat16", {"master": "split16"}),
    "AdamW, bfloat16 with split16, q8 states": (
        "bfloat16", "bfloat16", {"master": "split16", "state_dtype": "q8"},
    ),
}  # fmt: skip
MACHINES: dict[str, tuple[int, int, float]] = {
    # what: cores, memory nodes, peak of all nodes in GB/s
    "64 cores, 8 channels of DDR4-3200": (64, 1, 204.8),
    "192 cores, two sockets of 12 channels of DDR5-4800": (192, 2, 921.6),
    "the same, all pages on one node": (192, 1, 460.8),
}
"""Peaks are transfers a second x 8 bytes x channels, by the modules' standard."""
SHARE = 0.8
"""Of a peak, what streams reach: a guess, measured on none of these machines."""


def bytes_moved(opt: Any, grads: Mapping[str, Any]) -> int:
    """The bytes that a step reads and writes: gradients once, parameters and states both ways.

    Counters, and other arrays of one element, are left out.

    >>> w = {"w": np.zeros(1000, np.float32)}
    >>> bytes_moved(st.AdamW(w), w)
    28000
    """
    total = 0
    for group in opt.param_groups:
        for name, p in zip(group["param_names"], group["params"], strict=True):
            states = [x for x in opt.state[name].values() if x.size > 1]
            total += grads[name].nbytes + 2 * (p.nbytes + sum(x.nbytes for x in states))
    return total


def predicted(moved: float, threads: int, one: float, peak: float) -> float:
    """Seconds for so many bytes by threads of a rate each, which together do not exceed a peak.

    >>> predicted(100e9, 4, one=10e9, peak=30e9)
    3.3333333333333335
    """
    return moved / min(threads * one, peak)


def made(size: int, of_p: Any, of_g: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """An optimizer over one array, after a step, and its gradients."""
    rng = np.random.default_rng(0)
    p = rng.standard_normal(size, np.float32)
    g = rng.standard_normal(size, np.float32)
    short = {"dtype": "bfloat16"} if of_p == "bfloat16" else {}
    if short:
        p, g = ((x.view(np.uint32) >> 16).astype(np.uint16) for x in (p, g))
    opt = st.AdamW({"w": p}, lr=1e-4, **given, **short)
    opt.step({"w": g})
    return opt, {"w": g}


def median_step(opt: Any, grads: dict[str, Any], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        opt.step(grads)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def by_threads(size: int, rounds: int) -> None:
    opt, grads = made(size, *FORMATS["AdamW, float32"])
    moved, most = bytes_moved(opt, grads), st.info()["cpus"]
    counts = sorted({min(2**k, most) for k in range(most.bit_length() + 1)})
    times: dict[int, list[float]] = {n: [] for n in counts}
    for _ in range(rounds):
        for n in counts:
            st.set_num_threads(n)
            opt.step(grads)
            times[n].append(median_step(opt, grads, 1))
    st.set_num_threads(None)
    medians = {n: statistics.median(own) for n, own in times.items()}
    one, peak = moved / medians[1], max(moved / x for x in medians.values())
    print(f"\n| threads, {size} float32 | step | GB/s | the model |\n|---|---|---|---|")
    for n, x in medians.items():
        model = predicted(moved, n, one, peak)
        print(f"| {n} | {1e3 * x:.2f} ms | {moved / x / 1e9:.1f} | {1e3 * model:.2f} ms |")


def in_process(size: int, rounds: int, huge: str) -> tuple[float, int]:
    """The time of a step in a process of its own, and its huge pages in kB."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.scale", "--alone", str(size), "--rounds", str(rounds)],
        env=os.environ | {"NUMPY_MADVISE_HUGEPAGE": huge},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    seconds, pages = json.loads(done.stdout.splitlines()[-1])
    return seconds, pages


def alone(size: int, rounds: int) -> None:
    opt, grads = made(size, *FORMATS["AdamW, float32"])
    seconds = median_step(opt, grads, rounds)
    with open("/proc/self/smaps", encoding="utf-8") as lines:
        pages = sum(int(x.split()[1]) for x in lines if x.startswith("AnonHugePages:"))
    print(json.dumps([seconds, pages]))


def huge_pages(size: int, rounds: int) -> None:
    found: dict[str, list[tuple[float, int]]] = {"1": [], "0": []}
    for _ in range(5):
        for huge, runs in found.items():
            runs.append(in_process(size, rounds, huge))
    print("\n| huge pages | of them in use | step | ratio |\n|---|---|---|---|")
    base = [x for x, _ in found["1"]]
    for huge, name in (("1", "asked for, as NumPy does"), ("0", "not asked for")):
        own = [x for x, _ in found[huge]]
        ratio = statistics.median(x / y for x, y in zip(own, base, strict=True))
        size_of = statistics.median(pages for _, pages in found[huge]) / 1024
        print(
            f"| {name} | {size_of:.0f} MiB | {1e3 * statistics.median(own):.2f} ms | {ratio:.2f} |"
        )


@contextmanager
def other_program(cpu: int) -> Iterator[None]:
    """A program that computes all the time, on one processor."""
    code = f"import os\nos.sched_setaffinity(0, {{{cpu}}})\nprint(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        program.stdout.readline()
        try:
            yield
        finally:
            program.kill()


def in_turn(size: int, rounds: int) -> None:
    opt, grads = made(size, *FORMATS["AdamW, float32"])
    cpu = max(threads.limited_to())
    print("\n| parts for each thread | idle | a program on one processor |\n|---|---|---|")
    times: dict[int, list[list[float]]] = {1: [], threads.TURNS: []}
    for busy in (False, True):
        with other_program(cpu) if busy else nullcontext():
            for own in times.values():
                own.append([])
            for _ in range(rounds):
                for turns, own in times.items():
                    before = threads.team().take_turns(turns, 1)
                    own[-1].append(median_step(opt, grads, 1))
                    threads.team().take_turns(*before)
    for turns, own in times.items():
        print(f"| {turns} |", " | ".join(f"{1e3 * statistics.median(x):.2f} ms" for x in own), "|")
    ratios = [
        statistics.median(x / y for x, y in zip(own, base, strict=True))
        for own, base in zip(times[threads.TURNS], times[1], strict=True)
    ]
    print("| ratio |", " | ".join(f"{x:.2f}" for x in ratios), "|")


def where(size: int) -> None:
    opt, grads = made(size, *FORMATS["AdamW, float32"])
    opt.step(grads)
    told = st.info(opt)
    print("\n| array | pages on each memory node |\n|---|---|")
    for name, shares in told["pages"].items() or {"all": {}}.items():
        shown = ", ".join(f"{node}: {share:.1%}" for node, share in shares.items())
        print(f"| {name} | {shown or 'not told by this system'} |")
    print("| far from their threads |", "not known" if told["far"] is None else told["far"], "|")


def elsewhere(count: float = 1e9) -> None:
    print("\n| a step of 1 000 000 000 parameters | bytes each |", " | ".join(MACHINES), "|")
    print("|---" * (2 + len(MACHINES)) + "|")
    for name, kind in FORMATS.items():
        opt, grads = made(1 << 14, *kind)
        each = bytes_moved(opt, grads) / (1 << 14)
        times = [
            predicted(each * count, cores, math.inf, SHARE * peak * 1e9)
            for cores, _, peak in MACHINES.values()
        ]
        print(f"| {name} | {each:.2f} |", " | ".join(f"{1e3 * x:.0f} ms" for x in times), "|")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--size", type=int, default=50_000_000)
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        alone(given.alone, given.rounds)
        return
    facts = st.info()
    print({key: facts[key] for key in ("cpus", "cores", "sockets", "memory_nodes", "threads")})
    by_threads(given.size, given.rounds)
    if hasattr(os, "sched_setaffinity"):
        in_turn(given.size, given.rounds)
    if sys.platform.startswith("linux"):
        huge_pages(given.size, given.rounds)
    where(given.size)
    elsewhere()


if __name__ == "__main__":
    main()
