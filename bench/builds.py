"""Compares the steps of two builds of this library, each in an environment of its own, in turns.

    python bench/builds.py BEFORE AFTER [--rounds N] [--row NAME ...] [--rules [NAME ...]]

BEFORE and AFTER are the Python interpreters of the two environments. A row's figure is the median
of the per-round ratios, time after by time before, with quartiles: above 1 the later build is
slower. Rows that need PyTorch are left out where an environment lacks it. With ``--rules`` the rows
are the rules that both builds have, or those named, each on one matrix, and those with sums over
layers on the layers of ResNet-50 as well.
"""

import argparse
import gc
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

SHAPES = {
    "1x10": [(10,)],
    "mlp": [(64, 128), (128,), (128, 64), (64,), (64, 10), (10,)],
    "1000x100": [(100,)] * 1000,
    "100x10000": [(100, 100)] * 100,
    "1x20M": [(4000, 5000)],
}
MODELS = ("resnet50", "bert", "gpt2")
STEPS = {"1x10": 2000, "mlp": 1000, "1000x100": 20, "100x10000": 10, "1x20M": 2}
KINDS = ("numpy", "numpy-schedule", "numpy-clip", "torch", "torch-LambdaLR", "torch-OneCycleLR")
MODEL_KINDS = ("numpy", "numpy-clip", "torch", "torch-loop")
RULE_SHAPES = {"layer-wise": ("1x20M", "resnet50"), "matrix": ("2048x2048",)}
ROWS = tuple(f"{kind} {shape}" for kind in KINDS for shape in SHAPES) + tuple(
    f"{kind} {model}" for kind in MODEL_KINDS for model in MODELS
)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("before", help="the Python of one build")
    parser.add_argument("after", help="the Python of the other")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--row", nargs="+", default=ROWS, choices=ROWS, metavar="NAME")
    parser.add_argument("--rules", nargs="*", metavar="NAME", help="rules in place of these rows")
    arguments = parser.parse_args()
    rows = arguments.row
    if arguments.rules is not None:
        later = rules(arguments.after)
        rows = [
            f"rule-{name} {shape}"
            for name, needs in rules(arguments.before).items()
            if name in later and (not arguments.rules or name in arguments.rules)
            for shape in RULE_SHAPES.get(needs, ("1x20M",))
        ]
    for row in rows:
        ratios, times = [], []
        with worker(arguments.before, row) as before, worker(arguments.after, row) as after:
            if before() is None or after() is None:
                print(f"{row:26} left out: no PyTorch")
                continue
            for turn in range(arguments.rounds):
                pair = {}
                for which in (0, 1) if turn % 2 else (1, 0):
                    pair[which] = (before, after)[which]()
                ratios.append(pair[1] / pair[0])
                times.append(pair[1])
        low, middle, high = np.percentile(ratios, (25, 50, 75))
        shown = f"{np.median(times) * 1e6:12.2f} µs"
        print(f"{row:26} {middle:6.3f}  ({low:.3f} to {high:.3f}) {shown}", flush=True)
    return 0


def rules(python: str) -> dict[str, str]:
    """The rules of a build, and what each needs to see at once."""
    code = (
        "import steepest.optimizers as o; "
        "print(*(x for name, rule in o.RULES.items() for x in (name, rule.needs)))"
    )
    found = subprocess.run([python, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    words = found.stdout.split()
    return dict(zip(words[::2], words[1::2], strict=True))


@contextmanager
def worker(python: str, row: str) -> Iterator[Callable[[], float | None]]:
    """A process of the environment, which times a turn whenever it is asked."""
    command = [python, str(Path(__file__).resolve()), "--worker", row]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as it:

        def turn() -> float | None:
            it.stdin.write("\n")
            it.stdin.flush()
            answer = it.stdout.readline().strip()
            return None if answer == "none" else float(answer)

        yield turn
        it.stdin.close()


def shapes_of(name: str) -> list[tuple[int, ...]]:
    """The shapes that a row's name ends with; a real model's stand in ``bench/cases.py``."""
    if name in SHAPES:
        return SHAPES[name]
    if name not in MODELS:
        return [tuple(map(int, name.split("x")))]
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from bench import cases

    return list(cases.MODELS[name][1](1))


def serve(row: str) -> None:
    kind, _, shape = row.partition(" ")
    steps = STEPS.get(shape, 1)
    try:
        step = (torch_step if kind.startswith("torch") else numpy_step)(kind, shapes_of(shape))
    except ImportError:
        step = None
    gc.disable()
    for _ in sys.stdin:
        if step is None:
            print("none", flush=True)
            continue
        for _ in range(max(1, steps // 20)):
            step()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        print((time.perf_counter() - start) / steps, flush=True)


def numpy_step(kind: str, shapes: list[tuple[int, ...]]) -> Callable[[], None]:
    import steepest as st

    rng = np.random.default_rng(0)
    params, grads = ([rng.standard_normal(s, np.float32) for s in shapes] for _ in range(2))
    options: dict[str, Any] = {}
    if kind.endswith("clip"):
        options["clip"] = st.clip.global_norm(1.0)
    if kind.endswith("schedule"):
        options["lr"] = st.schedules.cosine(1e-3, steps=10**6)
    rule = st.optimizers.RULES[kind.removeprefix("rule-")] if "rule-" in kind else st.AdamW
    opt = rule(params, **options)
    return lambda: opt.step(grads)


def torch_step(kind: str, shapes: list[tuple[int, ...]]) -> Callable[[], None]:
    import torch

    import steepest.torch

    params = [torch.nn.Parameter(torch.randn(s)) for s in shapes]
    gradients = [torch.randn_like(p) for p in params]
    for p, g in zip(params, gradients, strict=True):
        p.grad = g
    clip = steepest.clip.global_norm(1.0) if kind.endswith("loop") else None
    opt = steepest.torch.AdamW(params, clip=clip)
    if kind == "torch":
        return opt.step
    if kind.endswith("loop"):  # zero_grad lets go of the gradients; they are given again

        def loop() -> None:
            for p, g in zip(params, gradients, strict=True):
                p.grad = g
            opt.step()
            opt.zero_grad()

        return loop
    schedulers = torch.optim.lr_scheduler
    if kind.endswith("LambdaLR"):
        scheduler = schedulers.LambdaLR(opt, lambda t: 1 / (1 + 1e-3 * t))
    else:
        scheduler = schedulers.OneCycleLR(opt, 1e-3, total_steps=10**7)

    def step() -> None:
        opt.step()
        scheduler.step()

    return step


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        serve(sys.argv[2])
    else:
        sys.exit(main())
