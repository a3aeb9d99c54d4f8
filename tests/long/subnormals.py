"""What a step costs once its numbers have become subnormal: 100 000 steps with zero gradients.

The moments of a parameter whose gradient stays 0 decay into the subnormal numbers and, rounded to
the nearest, stay there: 0.9 of the four smallest ones is the four smallest ones. Some processors
are many times slower with such operands. This measures every rule, float32 and float64, with arrays
that fit the cache and one thread, so that arithmetic shows, not memory: after `WARM` steps with
normal gradients come the steps with zeros, and of each thousand the least time per step is divided
by that of a twin whose gradients stay normal. The bar is ``BAR`` normal steps. The last column is
for information: steps with parameters, states and gradients all subnormal.

``python tests/long/subnormals.py --report tests/long/reports/subnormals.md``
"""

import argparse
import inspect
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # which NumPy reads when it is imported

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from cases import hyper

import steepest as st
from steepest.optimizers import RULES

BAR = 2.0
WARM, STEPS, PORTION, BATCH = 100, 100_000, 1000, 100
TYPES = ("float32", "float64")


class Measured(NamedTuple):
    """Times are seconds of CPU per step; `worst` and `state` are multiples of `normal`."""

    rule: str
    dtype: str
    normal: float
    worst: float
    at: int
    state: float
    subnormal: int

    @property
    def within(self) -> bool:
        return self.worst <= BAR


def arguments(rule: str) -> dict[str, Any]:
    """Defaults, but for what makes parameters decay and every state take part."""
    names = inspect.signature(RULES[rule]).parameters
    given = hyper(rule, {"momentum": 0.87} if "momentum" in names else {})
    return {key: given[key] for key in ("lr", "weight_decay", "momentum") if key in given}


def shape(rule: str) -> tuple[int, ...]:
    return (16, 16) if RULES[rule].needs == "matrix" else (128, 128)


def timed(opt: Any, grads: Sequence[np.ndarray], count: int) -> float:
    """The least CPU time per step of batches of steps, so that other processes have no part."""
    least, k = float("inf"), len(grads)
    for _ in range(count // BATCH):
        began = time.thread_time()
        for t in range(BATCH):
            opt.step(grads[t % k])
        least = min(least, time.thread_time() - began)
    return least / BATCH


def measure(rule: str, dtype: str, steps: int = STEPS, seed: int = 0) -> Measured:
    """One rule, one type."""
    rng = np.random.default_rng(seed)
    of = shape(rule)

    def numbers() -> np.ndarray:
        return rng.standard_normal(of).astype(dtype)

    grads, zero = [numbers() for _ in range(8)], [np.zeros(of, dtype)]
    p, q, r = numbers(), numbers(), numbers()
    make: Any = RULES[rule]
    given = arguments(rule)
    opt, twin, tiny = make(p, **given), make(q, **given), make(r, **given)
    for o in (opt, twin, tiny):
        timed(o, grads, WARM)
    normal, portions, seen = [], [], 0
    for done in range(0, steps, PORTION):
        portions.append(timed(opt, zero, PORTION))
        normal.append(timed(twin, grads, 2 * BATCH))
        if done % (10 * PORTION) == 0:
            seen = max(seen, subnormal([p, *arrays(opt)]))
    usual = statistics.median(normal)
    worst = max(portions)
    state = everything(tiny, r, usual)
    return Measured(
        rule, dtype, usual, worst / usual, portions.index(worst) * PORTION, state,
        max(seen, subnormal([p, *arrays(opt)])),
    )  # fmt: skip


def everything(opt: Any, p: np.ndarray, usual: float) -> float:
    """A step with parameters, states and gradients subnormal, all set anew before each batch."""
    smallest = np.finfo(p.dtype).smallest_subnormal
    tiny = (np.arange(1, p.size + 1) % 4096 * smallest).reshape(p.shape).astype(p.dtype)
    times = []
    for _ in range(20):
        p[...] = tiny
        for x in arrays(opt):
            x[...] = tiny.ravel()[: x.size].reshape(x.shape)
        began = time.thread_time()
        for _ in range(BATCH // 4):
            opt.step(tiny)
        times.append((time.thread_time() - began) / (BATCH // 4))
    return min(times) / usual


def arrays(opt: Any) -> list[np.ndarray]:
    return [
        x for state in opt.state.values() for key, x in state.items()
        if isinstance(x, np.ndarray) and x.dtype.kind == "f" and x.size > 1
    ]  # fmt: skip


def subnormal(found: Sequence[np.ndarray]) -> int:
    """How many elements are subnormal."""
    return sum(int(((x != 0) & (abs(x) < np.finfo(x.dtype).tiny)).sum()) for x in found)


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(x.partition(":")[2].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def table(found: Sequence[Measured]) -> list[str]:
    lines = [
        "| rule | type | normal step, µs | worst thousand of zeros | at step | "
        "subnormal elements seen | all subnormal |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for m in found:
        mark = "" if m.within else " (!)"
        lines.append(
            f"| `{m.rule}` | {m.dtype} | {m.normal * 1e6:.1f} | {m.worst:.2f}{mark} | {m.at} | "
            f"{m.subnormal} | {m.state:.2f} |"
        )
    return lines


def report(found: Sequence[Measured], command: str, minutes: float) -> str:
    over = [m for m in found if not m.within]
    said = ", ".join(f"`{m.rule}` {m.dtype}" for m in over)
    return "\n".join([
        "# Steps with subnormal numbers",
        "",
        f"`{command}`, {minutes:.1f} minutes, on {processor()} at level {st.info()['level']}.",
        "",
        f"{len(found)} measurements; the bar is {BAR:g} normal steps. "
        + (f"Above it: {said}." if over else "None is above it.")
        + f" The dearest is {max(m.worst for m in found):.2f}; with all numbers subnormal, "
        + f"{max(m.state for m in found):.2f}.",
        "",
        *table(found),
        "",
    ])  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rules", nargs="*", default=list(RULES), help="which (default: all)")
    parser.add_argument("--types", nargs="*", default=TYPES, choices=TYPES)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path)
    asked = parser.parse_args(argv)
    began, found = time.monotonic(), []
    st.set_num_threads(1)
    with np.errstate(all="ignore"):
        for rule in asked.rules:
            for dtype in asked.types:
                if time.monotonic() - began > 60 * asked.minutes:
                    break
                found.append(measure(rule, dtype, asked.steps, asked.seed))
                print(table(found)[-1], flush=True)
    minutes = (time.monotonic() - began) / 60
    command = " ".join(["python tests/long/subnormals.py", *(argv or sys.argv[1:])])
    if asked.report:
        asked.report.write_text(report(found, command, minutes), encoding="utf-8")
    return 0 if all(m.within for m in found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
