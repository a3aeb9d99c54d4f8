"""Random histories of the NumPy optimizers, for minutes or hours:

    python tests/long/histories.py --minutes 60 --seed 1 --report histories.md
    python tests/long/histories.py --replay '{"seed": ...}'

A history is an optimizer of any rule, with any formats, options and memory layouts, and what
happens to it: steps on threads, levels and in floating-point modes, gradients that are missing or
not finite, written hyper-parameters, new groups, state dicts, files, copies, pickles, forks,
interrupts at any line. Each runs against the reference, a contiguous twin, and a twin that is saved
and loaded at every step; see ``history_draws`` and ``history_runs`` in ``tests/helpers``.

Histories run in a process of their own, so that a crash is a finding as well. What is found is made
smaller and printed. The exit code is 1 where something was found.
"""

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / "helpers"), str(Path(__file__).parent)]

import history_draws  # noqa: E402
import history_runs  # noqa: E402
from history_runs import Found  # noqa: E402
from shrinking import shrunk  # noqa: E402

Check = Callable[[dict[str, Any], Path], Counter[str]]
HANGS = 300
"""Seconds after which a history is taken to hang."""


def folder_in_memory() -> Any:
    """A folder for a while; in memory, where the system has that, since files are synced."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    return tempfile.TemporaryDirectory(dir=memory, ignore_cleanup_errors=True)


def finding(history: dict[str, Any], check: Check) -> Found | None:
    """What is wrong with a history; None if nothing is."""
    with folder_in_memory() as folder:
        try:
            check(history, Path(folder))
        except Found as found:
            return found
        except AssertionError as error:
            return Found("assertion", repr(error))
    return None


def program(history: dict[str, Any], name: str = "tests/long/histories.py") -> str:
    """The command that runs a history again."""
    return f"python {name} --replay '{json.dumps(history)}'"


def smallest(
    history: dict[str, Any], kind: str, check: Check, seconds: float = 60.0
) -> dict[str, Any]:
    """A smaller history with a finding of the same kind."""

    def fails(candidate: dict[str, Any]) -> bool:
        found = finding(candidate, check)
        return found is not None and found.kind == kind

    return shrunk(history, fails, seconds)


def work(seed: int, draw: Any, check: Check, shrinking: float) -> None:
    """Runs the histories from a seed on, and tells of each in lines of JSON on stdout."""

    def tell(**what: Any) -> None:
        print(json.dumps(what), flush=True)

    while True:
        tell(begun=seed)
        history = draw(seed)
        with folder_in_memory() as folder:
            try:
                tell(done=seed, counts=check(history, Path(folder)))
            except Found as found:
                small = smallest(history, found.kind, check, shrinking)
                again = finding(small, check) or found
                tell(found=seed, kind=found.kind, what=again.what, history=small)
        seed += 1


class Search:
    """The parent of the processes in which histories run."""

    def __init__(self, script: str, arguments: argparse.Namespace, draw: Any) -> None:
        self.script, self.arguments, self.draw = script, arguments, draw
        self.counts: Counter[str] = Counter()
        self.found: list[dict[str, Any]] = []
        self.seed = arguments.seed

    def run(self) -> None:
        """Draws for the minutes that were given."""
        end = time.monotonic() + 60 * self.arguments.minutes
        while time.monotonic() < end and not self._enough():
            with self._worker() as worker:
                self._listen(worker, end)
                worker.kill()

    def _enough(self) -> bool:
        count = self.arguments.count
        return count is not None and self.seed >= self.arguments.seed + count

    def _worker(self) -> subprocess.Popen[str]:
        command = [sys.executable, self.script, "--worker", "--seed", str(self.seed)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def _listen(self, worker: Any, end: float) -> None:
        while time.monotonic() < end and not self._enough():
            ready, _, _ = select.select([worker.stdout], [], [], HANGS)
            line = worker.stdout.readline() if ready else ""
            if not line:  # it has ended, or hangs
                if ready:
                    worker.wait()
                status = worker.returncode if ready else "hangs"
                self._add(kind="crash", what=f"the process ended: {status}", found=self.seed,
                          history=self.draw(self.seed))  # fmt: skip
                self.seed += 1
                return
            told = json.loads(line)
            if "counts" in told:
                self.counts.update(told["counts"])
                self.seed = told["done"] + 1
            elif "found" in told:
                self._add(**told)
                self.seed = told["found"] + 1

    def _add(self, **told: Any) -> None:
        self.found.append(told)
        print(f"seed {told['found']}: {told['kind']}: {told['what']}")
        print(
            f"    python {self.arguments.name} --replay '{json.dumps(told['history'])}'", flush=True
        )

    def report(self, minutes: float) -> str:
        """A short report in Markdown."""
        options = f"--minutes {self.arguments.minutes:g} --seed {self.arguments.seed}"
        kinds = Counter(told["kind"] for told in self.found)
        rows = [f"| {name} | {n} |" for name, n in self.counts.items()]
        return "\n".join([
            f"# {Path(self.arguments.name).stem}", "",
            f"`python {self.arguments.name} {options}`, {date.today()}: seeds "
            f"{self.arguments.seed} to {self.seed - 1} in {minutes:.1f} minutes.", "",
            "| | |", "|---|--:|", *rows, f"| findings | {len(self.found)} |",
            *(f"| findings of kind {kind} | {n} |" for kind, n in kinds.items()), "",
        ])  # fmt: skip


def parser(what: str, name: str) -> argparse.ArgumentParser:
    """The options of a script that draws histories."""
    made = argparse.ArgumentParser(description=what)
    made.add_argument("--minutes", type=float, default=10.0)
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--count", type=int, help="stop after so many histories")
    made.add_argument("--report", type=Path, help="write a report in Markdown")
    made.add_argument("--replay", help="run one history, as JSON or a file of it")
    made.add_argument("--draw", type=int, help="print the history of a seed")
    made.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    made.set_defaults(name=name)
    return made


def run(argv: list[str] | None, script: str, what: str, draw: Any, check: Check) -> int:
    """The command of a script: draws, replays, or works for one that draws."""
    name = f"tests/long/{Path(script).name}"
    arguments = parser(what, name).parse_args(argv)
    if arguments.worker:
        work(arguments.seed, draw, check, 60.0)
    if arguments.draw is not None:
        print(json.dumps(draw(arguments.draw)))
        return 0
    if arguments.replay is not None:
        text = arguments.replay
        found = finding(json.loads(text if text.startswith("{") else Path(text).read_text()), check)
        print(found or "nothing found")
        return int(found is not None)
    search, start = Search(script, arguments, draw), time.monotonic()
    search.run()
    report = search.report((time.monotonic() - start) / 60)
    print(report)
    if arguments.report is not None:
        arguments.report.write_text(report)
    return int(bool(search.found))


def main(argv: list[str] | None = None) -> int:
    """Draws histories; 1 if something was found."""
    return run(
        argv, __file__, "random histories of the NumPy optimizers",
        history_draws.history, history_runs.check,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
