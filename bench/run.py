"""Measures this library against its rivals and writes what came out as JSON.

    python bench/run.py [--quick] [--case NAME ...] [--rule NAME ...] [--threads N] [--rounds N]
                        [--peers] [--out FILE]

``bench/report.py`` makes tables and a picture of the file.
"""

import argparse
import functools
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: the directory above is the one to import from
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import bench  # noqa: F401  (first: it decides what OpenMP's threads do)
import steepest as st
from bench import machine
from bench.cases import CASES, Workload, cases, workloads
from bench.measure import Settings, measured
from bench.rivals import Steepest, load_torch, yardstick
from steepest.optimizers import RULES

RESULTS = Path(__file__).with_name("results.json")
FORMAT = 2
_QUICK = 25.0  # seconds of all rounds of a quick run; setting up and imports take about as long


def main(argv: Sequence[str] | None = None) -> int:
    purpose = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="bench/run.py", description=purpose)
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    parser.add_argument("--case", nargs="+", default=[], choices=CASES, metavar="NAME",
                        help=f"only these cases: {', '.join(CASES)}")  # fmt: skip
    parser.add_argument("--rule", nargs="+", default=[], choices=list(RULES), metavar="NAME",
                        help=f"only these rules: {', '.join(RULES)}")  # fmt: skip
    parser.add_argument("--threads", type=_count, help="threads of every rival")
    parser.add_argument("--rounds", type=_count, help="rounds (15; 5 if quick)")
    parser.add_argument("--peers", action="store_true",
                        help="also pytorch_optimizer and optax, where installed")  # fmt: skip
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"({RESULTS.name} beside run.py)")
    arguments = parser.parse_args(argv)

    torch = load_torch()
    st.set_num_threads(arguments.threads)
    threads = st.get_num_threads()
    if arguments.threads not in (None, threads):
        parser.error(f"--threads {arguments.threads}: this process may use {threads}")
    if torch is not None:
        torch.set_num_threads(threads)
    memory = int(0.8 * machine.available_memory())
    chosen = list(workloads(cases(memory, arguments.quick), arguments.case, arguments.rule))
    if torch is None:
        chosen = [workload for workload in chosen if "ns_dtype" not in workload.hyper]
    if not chosen:
        parser.error("no such rule in these cases: AdamW has most to itself; see bench/cases.py")
    if arguments.quick:
        limit = math.inf if arguments.rounds else _QUICK / len(chosen)
        settings = Settings(
            arguments.rounds or 5, threads, budget=0.4, limit=limit, peers=arguments.peers
        )
    else:
        settings = Settings(arguments.rounds or 15, threads, peers=arguments.peers)
    show = functools.partial(print, flush=True)
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.5:
        show(f"load average {os.getloadavg()[0]:.1f}: other work here disturbs the times")
    measure = None if arguments.quick else functools.partial(alone, settings=settings)
    results = run(chosen, settings, torch, quick=arguments.quick, show=show, measure=measure)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"written to {arguments.out}")
    return 0


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)


def alone(workload: Workload, settings: Settings) -> dict[str, Any]:
    """A workload's entry, measured in a process of its own.

    What ran before in a process decides whether the memory of large temporaries is new to it, which
    changes the times of rivals that need them by a factor of two.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(_in_child, workload, settings).result()


def _in_child(workload: Workload, settings: Settings) -> dict[str, Any]:
    torch = load_torch()
    st.set_num_threads(settings.threads)
    if torch is not None:
        torch.set_num_threads(settings.threads)
    return measured(workload, settings, torch)


def run(
    chosen: Iterable[Workload],
    settings: Settings,
    torch: Any | None,
    *,
    quick: bool = False,
    show: Callable[[str], object] = lambda line: None,
    measure: Callable[[Workload], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Measures the workloads one after the other; ``show`` gets a line about each."""
    measure = measure or functools.partial(measured, settings=settings, torch=torch)
    facts = machine.facts(settings.threads, torch)
    started, stolen = time.perf_counter(), machine.stolen()
    results = []
    for workload in chosen:
        entry = measure(workload)
        results.append(entry)
        show(summary(entry))
    now = machine.stolen()
    if stolen is not None and now is not None:
        facts["stolen"] = (now[0] - stolen[0]) / max(1, now[1] - stolen[1])
    return {
        "format": FORMAT,
        "quick": quick,
        "machine": facts,
        "settings": {
            "rounds": settings.rounds,
            "threads": settings.threads,
            "base": Steepest.name,
            "yardstick": yardstick(torch),
            "seconds": time.perf_counter() - started,
        },
        "results": results,
    }


def summary(entry: dict[str, Any]) -> str:
    """A workload in one line: our time, and the others' as multiples of it."""
    rows = entry["rivals"]
    parts = [f"{entry['title']}, {entry['case_title']}:"]
    parts.append(f"{rows[Steepest.name]['median'] * 1e3:.4g} ms")
    for name, row in rows.items():
        if name != Steepest.name:
            parts.append(f"{name} {row['ratio']['median']:.3g}x")
    return "  ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
