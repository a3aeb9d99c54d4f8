"""What optimizers of several libraries do with the checks of ``steepest.testing.check_optimizer``.

Each is put through all checks in a process of its own, without expected failures. The table counts;
below it stands what was found for each check that did not pass, with the command that repeats it.
The contract is that of this library: where another documents other behaviour, or leaves it open, a
failure says that it differs, and no more.

``python tests/long/scoreboard.py --report tests/long/reports/scoreboard.md --docs`` also writes the
table, and the list of the checks, into docs/conformance.md. ``--only NAME --check CHECK`` runs one.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import steepest as st
from steepest.extension.conformance import Outcome, run_checks
from steepest.extension.conformance.subject import CHECKS
from steepest.testing import (
    described_checks,
    optax_transformation,
    optimizer_checks,
    torch_optimizer,
)

ROOT = Path(__file__).parents[2]
SCRIPT = "python tests/long/scoreboard.py"
DOCUMENT = ROOT / "docs" / "conformance.md"
MATRICES = {"first": (7, 5), "second": (4, 6), "third": (9, 9), "fourth": (3, 8)}
LAYERS, ALL = "layer-wise", "global"


def of_torch(name: str, needs: str = "element-wise", **arguments: Any) -> Callable[[], Any]:
    """An optimizer of torch.optim; the class itself where there are no arguments."""

    def make() -> Any:
        cls = getattr(import_module("torch.optim"), name)
        given = cls if not arguments else lambda params: cls(params, **arguments)
        return torch_optimizer(given, needs)

    return make


def of_optax(name: str, needs: str = "element-wise", **arguments: Any) -> Callable[[], Any]:
    def make() -> Any:
        found: Any = import_module("optax")
        for part in name.split("."):
            found = getattr(found, part)
        return optax_transformation(found(**arguments), needs)

    return make


def of_module(module: str, name: str, needs: str = "element-wise") -> Callable[[], Any]:
    """A class with torch.optim's interface from elsewhere."""
    return lambda: torch_optimizer(getattr(import_module(module), name), needs)


def schedule_free(params: Any) -> Any:
    """In training mode, in which its steps are meant."""
    opt = import_module("schedulefree").AdamWScheduleFree(params, lr=0.01)
    opt.train()
    return opt


CANDIDATES: Mapping[str, tuple[str, Callable[[], Any]]] = {
    "steepest.SGD": ("steepest", lambda: st.SGD),
    "steepest.AdamW": ("steepest", lambda: st.AdamW),
    "steepest.Lion": ("steepest", lambda: st.Lion),
    "steepest.LAMB": ("steepest", lambda: st.LAMB),
    "steepest.Adafactor": ("steepest", lambda: st.Adafactor),
    "steepest.Muon": ("steepest", lambda: st.Muon),
    "torch SGD momentum=0.9": ("torch", of_torch("SGD", lr=0.01, momentum=0.9)),
    "torch AdamW": ("torch", of_torch("AdamW")),
    "torch AdamW foreach": ("torch", of_torch("AdamW", lr=0.01, foreach=True)),
    "torch AdamW fused": ("torch", of_torch("AdamW", lr=0.01, fused=True)),
    "torch Adam amsgrad": ("torch", of_torch("Adam", lr=0.01, amsgrad=True)),
    "torch Adam fused": ("torch", of_torch("Adam", lr=0.01, fused=True)),
    "torch Adagrad": ("torch", of_torch("Adagrad")),
    "torch RMSprop": ("torch", of_torch("RMSprop")),
    "torch NAdam": ("torch", of_torch("NAdam")),
    "torch RAdam": ("torch", of_torch("RAdam")),
    "torch Adafactor": ("torch", of_torch("Adafactor", LAYERS)),
    "torch Muon": ("torch", of_torch("Muon", "matrix")),
    "optax sgd momentum=0.9": ("optax", of_optax("sgd", learning_rate=0.01, momentum=0.9)),
    "optax adamw": ("optax", of_optax("adamw", learning_rate=0.01, weight_decay=0.0)),
    "optax adam": ("optax", of_optax("adam", learning_rate=0.01)),
    "optax lion": ("optax", of_optax("lion", learning_rate=0.01, weight_decay=0.0)),
    "optax lamb": ("optax", of_optax("lamb", LAYERS, learning_rate=0.01)),
    "optax adafactor": ("optax", of_optax("adafactor", LAYERS, learning_rate=0.01)),
    "optax prodigy": ("optax", of_optax("contrib.prodigy", ALL)),
    "pytorch_optimizer Lion": ("pytorch_optimizer", of_module("pytorch_optimizer", "Lion")),
    "pytorch_optimizer AdaBelief": (
        "pytorch_optimizer", of_module("pytorch_optimizer", "AdaBelief")),
    "pytorch_optimizer Lamb": (
        "pytorch_optimizer", of_module("pytorch_optimizer", "Lamb", LAYERS)),
    "schedulefree AdamWScheduleFree": ("schedulefree", lambda: torch_optimizer(schedule_free)),
    "prodigyopt Prodigy": ("prodigyopt", of_module("prodigyopt", "Prodigy", ALL)),
}  # fmt: skip


def outcomes(name: str) -> list[Outcome]:
    """All checks of one candidate, in this process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = {"shapes": MATRICES} if name == "torch Muon" else {}
        return run_checks(CANDIDATES[name][1](), **shapes)


def in_process(name: str, seconds: float) -> list[Outcome] | str:
    """The same in a process of its own; or how that ended."""
    command = [sys.executable, __file__, "--only", name, "--json"]
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "JAX_PLATFORMS": "cpu"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return f"not finished after {seconds:g} seconds"
    try:
        return [Outcome(*row) for row in json.loads(done.stdout.splitlines()[-1])]
    except (IndexError, ValueError):
        return f"the process ended with {done.returncode}: {done.stderr.strip()[-300:]}"


def version(package: str) -> str:
    try:
        return st.__version__ if package == "steepest" else metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def sentence(text: str) -> str:
    """What was found, in one line."""
    line = " ".join(text.split())
    line = line if len(line) < 300 else line[:297] + "..."
    return re.sub(r"([|<>*_])", r"\\\1", line)


def tables(found: Mapping[str, list[Outcome] | str]) -> str:
    """The table of counts, and what did not pass."""
    lines = [
        "| optimizer | version | passed | differs | does not apply |",
        "|---|---|---:|---:|---:|",
    ]
    details = []
    for name, result in found.items():
        release = version(CANDIDATES[name][0])
        if isinstance(result, str):
            lines.append(f"| {name} | {release} | {sentence(result)} | | |")
            continue
        count = {how: sum(x.how == how for x in result) for how in ("passed", "failed", "skipped")}
        lines.append(
            f"| {name} | {release} | {count['passed']} | {count['failed']} | {count['skipped']} |"
        )
        failed = [x for x in result if x.how == "failed"]
        if failed:
            details += [
                "",
                f"## {name}",
                "",
                f"`{SCRIPT} --only '{name}'`",
                "",
            ]
            details += [f"* `{x.check}`: {sentence(x.why)}" for x in failed]
    return "\n".join([*lines, *details])


def report(
    found: Mapping[str, list[Outcome] | str], argv: Sequence[str] | None, minutes: float
) -> str:
    command = " ".join([SCRIPT, *(sys.argv[1:] if argv is None else argv)])
    return (
        f"# Optimizers of several libraries and the checks\n\n`{command}`, {minutes:.1f} minutes; "
        f"NumPy {metadata.version('numpy')}. {len(CHECKS)} checks, described in "
        "[conformance.md](../../../docs/conformance.md). The contract is that of steepest: where "
        "another library documents other behaviour, or leaves it open, what is listed says that it "
        f"differs, and no more.\n\n{tables(found)}\n"
    )


def checks_listed() -> str:
    """The list of all checks for docs/conformance.md."""
    titles = {
        "arithmetic": "The step", "layouts": "Arrays", "states": "State",
        "refusals": "What is refused", "processes": "Threads, processes, memory",
    }  # fmt: skip
    lines, last = [], ""
    for name, text in described_checks():
        room = CHECKS[name].__module__.rpartition(".")[2]
        if room != last:
            lines += [*([""] if last else []), f"### {titles[room]}", ""]
            last = room
        lines.append(f"* `{name}`: {text.replace('``', '`')}")
    return "\n".join(lines)


def between(text: str, mark: str, new: str) -> str:
    """A document with other text between two marks."""
    pattern = rf"(<!-- {mark}:begin -->\n).*(<!-- {mark}:end -->)"
    assert re.search(pattern, text, re.DOTALL), mark
    return re.sub(pattern, lambda m: f"{m[1]}\n{new}\n\n{m[2]}", text, flags=re.DOTALL)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=CANDIDATES, help="one candidate, in this process")
    parser.add_argument("--check", choices=CHECKS, help="one check of it, with its traceback")
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--minutes", type=float, default=10.0, help="for one candidate")
    parser.add_argument("--seed", type=int, default=0, help="without effect: numbers are fixed")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--docs", action="store_true", help=f"write into {DOCUMENT.name}")
    asked = parser.parse_args(argv)
    if asked.only and asked.check:
        dict(optimizer_checks(CANDIDATES[asked.only][1]()))[asked.check]()
        return 0
    if asked.only:
        result = outcomes(asked.only)
        print(json.dumps(result) if asked.json else tables({asked.only: result}))
        return 0
    began, found = time.monotonic(), {}
    for name, (package, _) in CANDIDATES.items():
        if version(package):
            found[name] = in_process(name, 60 * asked.minutes)
            print(tables({name: found[name]}).splitlines()[2], flush=True)
            if asked.report:  # also of what was done before it is stopped
                minutes = (time.monotonic() - began) / 60
                asked.report.write_text(report(found, argv, minutes), encoding="utf-8")
    if asked.docs:
        old = DOCUMENT.read_text(encoding="utf-8")
        counts = tables(found).partition("\n\n###")[0]
        new = between(between(old, "checks", checks_listed()), "scoreboard", counts)
        DOCUMENT.write_text(new, encoding="utf-8")
    ours = [x for name, x in found.items() if name.startswith("steepest.")]
    return 1 if any(isinstance(x, str) or any(y.how == "failed" for y in x) for x in ours) else 0


if __name__ == "__main__":
    raise SystemExit(main())
