"""A million small steps in one process: memory stays flat, counts and bits stay right.

Two runs of the same steps: rates by a schedule and others that are written to groups, a weight
decay that changes, missing gradients, a clip by the norm of all, an average, a group of another
rule that comes later. One run is straight. The other, on the way, is resumed from state dicts in a
new optimizer, saved to files and loaded, copied, pickled, and asked for state dicts that nobody
uses. At each of `MARKS` places both must have the same digest; the counts must be those that
follow from the steps; and after its first tenth a run must not grow by more than `ROOM` bytes.

``python tests/long/soak.py --report tests/long/reports/soak.md``
"""

import argparse
import copy
import gc
import hashlib
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import steepest as st

STEPS, MARKS = 1_000_000, 20
ROOM = 1 << 20
TABLE = 61


class Mark(NamedTuple):
    """What was measured on the way: bytes are those of the process, 0 where they are not told."""

    step: int
    resident: int
    digest: str


class Run:
    """One of the two runs."""

    def __init__(self, steps: int, seed: int, folder: Path) -> None:
        self.steps, self.file = steps, folder / "soak.safetensors"
        rng = np.random.default_rng(seed)
        shapes = {"matrix": (6, 5), "vector": (17,), "late": (4, 3)}

        def drawn() -> dict[str, np.ndarray]:
            return {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}

        self.params, self.table = drawn(), [drawn() for _ in range(TABLE)]
        self.late = self.params.pop("late")
        self.opt = self.made()
        self.expected = {"matrix": 0, "vector": 0, "late": 0}
        self.events = 0

    def made(self, late: bool = False) -> Any:
        """A new optimizer of the parameters as they are."""
        opt = st.AdamW(
            [{"params": {"matrix": self.params["matrix"]}},
             {"params": {"vector": self.params["vector"]}, "lr": 0.01}],
            lr=st.schedules.cosine(0.01, steps=self.steps, warmup=self.steps // 100),
            weight_decay=0.01, clip=st.clip.global_norm(3.0), ema=0.99,
        )  # fmt: skip
        if late:
            self.add_late(opt)
        return opt

    def add_late(self, opt: Any) -> None:
        opt.add_param_group({"params": {"late": self.late}, "rule": "lion", "lr": 1e-4})

    @property
    def arrays(self) -> list[np.ndarray]:
        late = [self.late] if len(self.opt.param_groups) == 3 else []
        return [*self.params.values(), *late]

    def step(self, t: int) -> None:
        """Step t, from 1: what is written to groups before it, and the gradients."""
        opt, g = self.opt, self.table[t % TABLE]
        if t % 1000 == 0:
            opt.param_groups[0]["weight_decay"] = (0.01, 0.02, 0.0)[t // 1000 % 3]
        if t % 777 == 0:
            opt.param_groups[1]["lr"] = 0.01 / (1 + t // 777 % 10)
        if t == self.steps // 10:
            self.add_late(opt)
        matrix = g["matrix"] + self.params["matrix"]
        vector = None if t % 13 == 5 else g["vector"] + self.params["vector"]
        grads = [{"matrix": matrix}, {"vector": vector}]
        if t >= self.steps // 10:
            grads.append({"late": g["late"]})
            self.expected["late"] += 1
        self.expected["matrix"] += 1
        self.expected["vector"] += vector is not None
        opt.step(grads)

    # What the second run does besides; each takes the place of the optimizer

    def by_dict(self) -> None:
        held = self.opt.state_dict()
        self.take(self.made(len(held["param_groups"]) == 3))
        self.opt.load_state_dict(held)

    def by_file(self) -> None:
        named = self.params | ({"late": self.late} if len(self.opt.param_groups) == 3 else {})
        st.save(self.file, self.opt, named)
        before = [p.copy() for p in self.arrays]
        for p in self.arrays:
            p[...] = 0
        self.take(self.made(len(named) == 3))
        st.load(self.file, self.opt, named)
        assert all((p == q).all() for p, q in zip(self.arrays, before, strict=True))

    def by_copy(self) -> None:
        self.follow(copy.deepcopy(self.opt))

    def by_pickle(self) -> None:
        self.follow(pickle.loads(pickle.dumps(self.opt)))

    def unused(self) -> None:
        for _ in range(3):
            self.opt.state_dict()
            self.opt.averaged()

    def take(self, opt: Any) -> None:
        self.opt = opt

    def follow(self, opt: Any) -> None:
        """Goes on with a copy, and with its parameters."""
        self.opt = opt
        held = {
            name: p
            for group in opt.param_groups
            for name, p in zip(group["param_names"], group["params"], strict=True)
        }
        self.late = held.pop("late", self.late)
        self.params = held

    def event(self, number: int) -> None:
        ways: tuple[Callable[[], None], ...] = (
            self.by_dict, self.unused, self.by_file, self.by_copy, self.by_pickle
        )  # fmt: skip
        ways[number % len(ways)]()
        self.events += 1

    # What is looked at

    def digest(self) -> str:
        """Of all parameters, states and counts."""
        total = hashlib.sha256(str(self.opt.updates).encode())
        for group in self.opt.param_groups:
            for name, p in zip(group["param_names"], group["params"], strict=True):
                for key, x in {"p": p, **dict(sorted(self.opt.state[name].items()))}.items():
                    total.update(f"{name} {key} {x.dtype} {x.shape}".encode() + x.tobytes())
        return total.hexdigest()[:16]

    def wrong_counts(self, t: int) -> list[str]:
        found = [] if self.opt.updates == t else [f"updates are {self.opt.updates} after {t} steps"]
        for name, state in self.opt.state.items():
            if int(state["step"]) != self.expected[name]:
                found.append(f"step of {name} is {state['step']}; expected {self.expected[name]}")
        return found


def marks(
    run: Run, every: int | None, until: float = float("inf")
) -> Iterator[tuple[Mark, list[str]]]:
    """Goes through the steps, with an event after each `every` of them; yields what it sees."""
    for t in range(1, run.steps + 1):
        run.step(t)
        if every and t % every == 0:
            run.event(t // every)
        if t % (run.steps // MARKS) == 0:
            gc.collect()
            yield Mark(t, resident(), run.digest()), run.wrong_counts(t)
            if time.monotonic() > until:
                return


def resident() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


class Soaked(NamedTuple):
    """Both runs, and what is wrong with them."""

    straight: list[Mark]
    eventful: list[Mark]
    events: int
    wrong: list[str]


def soak(
    steps: int = STEPS, seed: int = 0, every: int = 500, minutes: float = float("inf")
) -> Soaked:
    """Both runs."""
    wrong: list[str] = []
    found: list[list[Mark]] = []
    with tempfile.TemporaryDirectory() as folder:
        runs = [Run(steps, seed, Path(folder)) for _ in range(2)]
        until = time.monotonic() + 30 * minutes
        for run, gap in zip(runs, (None, every), strict=True):
            seen: list[Mark] = []
            for mark, said in marks(run, gap, until):
                seen.append(mark)
                wrong += said
            found.append(seen)
            until += 30 * minutes
            first = seen[min(2, len(seen) - 1)].resident
            if max(x.resident for x in seen[2:] or seen) > first + ROOM:
                wrong.append(f"memory grew: {[x.resident >> 10 for x in seen]} KiB")
    for x, y in zip(*found, strict=False):
        if x.digest != y.digest:
            wrong.append(f"digests differ after {x.step} steps: {x.digest} and {y.digest}")
    return Soaked(found[0], found[1], runs[1].events, wrong)


def report(found: Soaked, command: str, minutes: float) -> str:
    lines = [
        "# A million small steps",
        "",
        f"`{command}`, {minutes:.1f} minutes. {found.straight[-1].step:,} steps straight, and the "
        f"same steps with {found.events:,} state dicts, files, copies and pickles on the way.",
        "",
        "Wrong: " + ("; ".join(found.wrong) if found.wrong else "nothing") + ".",
        "",
        f"Digest at the end: `{found.straight[-1].digest}`.",
        "",
        "| steps | digest | straight, KiB | with events, KiB |",
        "|---:|---|---:|---:|",
    ]
    for x, y in zip(found.straight, found.eventful, strict=False):
        lines.append(f"| {x.step:,} | `{x.digest}` | {x.resident >> 10:,} | {y.resident >> 10:,} |")
    return "\n".join([*lines, ""])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=500, help="steps between events")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--report", type=Path)
    asked = parser.parse_args(argv)
    began = time.monotonic()
    found = soak(asked.steps, asked.seed, asked.every, asked.minutes)
    command = " ".join(["python tests/long/soak.py", *(sys.argv[1:] if argv is None else argv)])
    text = report(found, command, (time.monotonic() - began) / 60)
    print(text)
    if asked.report:
        asked.report.write_text(text, encoding="utf-8")
    return 1 if found.wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
