"""Rounds, ratios, and what a step allocates.

All rivals of a workload live in one process and take turns: in every round each does its steps
once, in an order that rotates and turns round, so that nobody always follows the same other. A
ratio compares two rivals within a round, where the machine was as fast for one as for the other;
the median of the rounds' ratios is reported, with quartiles.
"""

import ctypes
import gc
import math
import sys
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.cases import Workload
from bench.rivals import Reference, Rival, Steepest, rivals

Seconds = list[float | None]
"""The time of a step in each round; None where the rival sat out."""

_PAUSE = 0.01  # seconds in which the threads of the rival before give up waiting for work


@dataclass(frozen=True)
class Settings:
    """How to measure.

    The NumPy reference takes part in as many rounds as fit `budget` seconds, but at least two; all
    others in every round. A workload ends early, but not before three rounds, when its rounds have
    lasted `limit` seconds. `peers`: pytorch_optimizer and optax take part.
    """

    rounds: int = 15
    threads: int = 1
    budget: float = 10.0
    limit: float = math.inf
    peers: bool = False


def median(values: Sequence[float]) -> float:
    return float(np.median(values))


@dataclass(frozen=True)
class Ratio:
    """The median of per-round ratios, with the first and third quartile."""

    median: float
    low: float
    high: float


def ratio(over: Seconds, under: Seconds) -> Ratio:
    """How the times `over` relate to the times `under`, by the rounds in which both took part.

    >>> ratio([2.0, 3.0, None], [1.0, 2.0, 5.0])
    Ratio(median=1.75, low=1.625, high=1.875)
    """
    pairs = [a / b for a, b in zip(over, under, strict=True) if a is not None and b is not None]
    low, middle, high = (float(x) for x in np.percentile(pairs, (25, 50, 75)))
    return Ratio(middle, low, high)


def takes_part(turn: int, turns: int, rounds: int) -> bool:
    """Whether a rival with so many turns has one in this round; turns are evenly spread.

    >>> [takes_part(i, 3, 9) for i in range(9)]
    [True, False, False, True, False, False, True, False, False]
    """
    return -(-turn * turns // rounds) * rounds < (turn + 1) * turns


def order(turn: int, rivals: int) -> list[int]:
    """Who comes after whom in a round.

    >>> [order(turn, 3) for turn in range(3)]
    [[0, 1, 2], [1, 0, 2], [2, 0, 1]]
    """
    direction = -1 if turn % 2 else 1
    return [(turn + direction * place) % rivals for place in range(rivals)]


def timed(rival: Rival, steps: int) -> float:
    """The median time of so many steps, in seconds; new gradients are made in between."""
    times = []
    for _ in range(steps):
        rival.prepare()
        step = rival.step
        start = time.perf_counter_ns()
        step()
        times.append(time.perf_counter_ns() - start)
    return median(times) * 1e-9


def interleaved(found: Sequence[Rival], steps: int, settings: Settings) -> list[Seconds]:
    """The times of all rivals, in rounds of changing order, after a step that is not timed.

    Where steps are short, each turn begins with one more step that is not timed: it wakes the
    rival's threads and fetches its code.
    """
    turns = []
    for rival in found:
        seconds = timed(rival, 1) * steps
        slow = isinstance(rival, Reference) and seconds * settings.rounds > settings.budget
        fitting = int(settings.budget / seconds) if slow else settings.rounds
        turns.append(min(settings.rounds, max(2, fitting)))
    results: list[Seconds] = [[] for _ in found]
    start = time.perf_counter()
    for turn in range(settings.rounds):
        if turn >= 3 and time.perf_counter() - start > settings.limit:
            break
        for seconds_of_one in results:
            seconds_of_one.append(None)
        for who in order(turn, len(found)):
            if not takes_part(turn, turns[who], settings.rounds):
                continue
            time.sleep(_PAUSE)
            if steps > 1:
                timed(found[who], 1)
            results[who][turn] = timed(found[who], steps)
    return results


def measured(workload: Workload, settings: Settings, torch: Any | None) -> dict[str, Any]:
    """One workload's entry in the results."""
    found, absent = rivals(workload, settings.threads, torch, settings.peers)
    ours: Steepest = found[0]
    bytes_moved = ours.bytes_moved()
    gc.collect()
    gc.disable()
    try:
        times = interleaved(found, workload.case.steps, settings)
    finally:
        gc.enable()
    entry: dict[str, Any] = {
        "case": workload.case.name,
        "case_title": workload.case.title,
        "title": workload.title,
        "rule": workload.rule,
        "hyper": dict(workload.hyper),
        "clip": workload.clip,
        "schedule": workload.schedule,
        "tensors": len(workload.case.shapes),
        "parameters": workload.case.parameters,
        "parameter_bytes": 4 * workload.case.parameters,
        "bytes_moved": bytes_moved,
        "steps_per_round": workload.case.steps,
        "fresh_gradients": workload.case.fresh,
        "streams": workload.case.streams,
        "rivals": {},
        "absent": absent,
    }
    for rival, seconds in zip(found, times, strict=True):
        taken = [s for s in seconds if s is not None]
        to_ours = ratio(seconds, times[0])
        row: dict[str, Any] = {
            "seconds": seconds,
            "rounds": len(taken),
            "min": min(taken),
            "median": median(taken),
            "ratio": {"median": to_ours.median, "low": to_ours.low, "high": to_ours.high},
        }
        if workload.case.streams:
            row["gigabytes_per_second"] = bytes_moved / median(taken) * 1e-9
            row["allocated"] = allocated(rival)
        entry["rivals"][rival.name] = row
    return entry


# Memory


def allocated(rival: Rival) -> dict[str, int | None]:
    """The bytes that one more step needs beyond what is kept, at its peak.

    python: what Python and NumPy ask for, by tracemalloc. process: how far the resident memory
    rises, by the kernel's high-water mark, to a few megabytes, as an array may lie in huge pages of
    2 MB; None where the system does not tell (only Linux does).
    """
    rival.prepare()
    _return_free_memory()
    tracemalloc.start()
    try:
        traced = tracemalloc.get_traced_memory()[0]
        base = _reset_high_water_mark()
        rival.step()
        top = _status("VmHWM")
        python = tracemalloc.get_traced_memory()[1] - traced
    finally:
        tracemalloc.stop()
    process = None if base is None or top is None else max(0, top - base)
    return {"python": python, "process": process}


def peak(row: dict[str, int | None]) -> int:
    """The larger of what Python and what the system saw, in an entry made by ``allocated``."""
    return max(row["python"] or 0, row["process"] or 0)


def _return_free_memory() -> None:
    """glibc keeps what was freed; given back, it counts when it is taken again."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _reset_high_water_mark() -> int | None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _status("VmRSS")


def _status(key: str) -> int | None:
    """A size in /proc/self/status, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    [kilobytes] = [line.split()[1] for line in lines if line.startswith(key + ":")]
    return int(kilobytes) * 1024
