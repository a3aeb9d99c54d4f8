"""How far every rule gets on two small problems, with its default and with a tuned learning rate.

    python bench/convergence.py [--rule NAME ...] [--steps N] [--epochs N] [--out FILE]

Writes a table in Markdown. The problems are eight Rosenbrock valleys, started at (-1.2, 1), whose
least value is 0, and a network of 64, 32 and 10 units on scikit-learn's digits, whose loss is the
mean cross entropy over the training data at the end (FTRL, which sets parameters to 0 at first,
gets no hidden layer). Defaults are those of the class, with
a constant rate. Tuned is the best of a grid of rates, a factor of √10 apart, that fall to 0 along a
half cosine. Nothing is random but the beginning and the order of the data, which are seeded.
"""

import argparse
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

if not __package__:  # run as a file: the directory above is the one to import from
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import steepest as st
from steepest import data
from steepest.models.networks import MLP
from steepest.optimizers import RULES

RATES = tuple(10.0 ** (k / 2) for k in range(-8, 5))
"""The grid of learning rates: 1e-4 to 100."""

Rate = float | Callable[[int], float]


@dataclass(frozen=True)
class Result:
    """The last loss of a rule on one problem: with its defaults, and at the best rate of a grid."""

    rule: str
    default: float
    tuned: float
    rate: float


def made(rule: str, params: Any, lr: Rate | None) -> Any:
    """The optimizer with its defaults, but for the rate."""
    return RULES[rule](params, **({} if lr is None else {"lr": lr}))


def stepped(opt: Any, grads: Any) -> None:
    """One step; a rule that wants an estimate of the Hessian gets the squared gradients."""
    if hasattr(opt, "update_hessian") and opt.updates % 10 == 0:
        opt.update_hessian({name: g * g for name, g in grads.items()})
    opt.step(grads)


def rosenbrock(rule: str, lr: Rate | None, steps: int = 2000) -> float:
    """The mean of (1 - x)² + 100 (y - x²)² over the rows after so many steps; 24.2 at first."""
    params = {"w": np.tile([-1.2, 1.0], (8, 1))}
    opt = made(rule, params, lr)
    with np.errstate(all="ignore"):
        for _ in range(steps):
            x, y = params["w"].T
            valley = y - x * x
            slope = np.stack([-2.0 * (1.0 - x) - 400.0 * x * valley, 200.0 * valley], axis=1)
            stepped(opt, {"w": slope / 8})
        x, y = params["w"].T
        return float(np.mean((1.0 - x) ** 2 + 100.0 * (y - x * x) ** 2))


def digits(rule: str, lr: Rate | None, epochs: int = 10) -> float:
    """The training loss of the network after so many epochs; about 2.4 at first."""
    train = data.digits().train
    hidden = () if rule == "ftrl" else (32,)  # FTRL begins at 0, where hidden units are alike
    net = MLP((64, *hidden, 10), "classification")
    params = net.initial(seed=0)
    flat = {f"{a}.{b}": x for a, layer in params.items() for b, x in layer.items()}
    opt = made(rule, flat, lr)
    rng = np.random.default_rng(0)
    with np.errstate(all="ignore"):
        for _ in range(epochs):
            order = rng.permutation(len(train.y))
            for start in range(0, len(order) - 63, 64):
                batch = order[start : start + 64]
                _, grads = net.value_and_grad(params, train.x[batch], train.y[batch])
                stepped(opt, {f"{a}.{b}": g for a, own in grads.items() for b, g in own.items()})
        return float(net.value_and_grad(params, train.x, train.y)[0])


def result(rule: str, run: Callable[[str, Rate | None], float], steps: int) -> Result:
    """Runs a rule with its defaults and at every rate of the grid."""
    losses = {lr: run(rule, st.schedules.cosine(lr, steps=steps)) for lr in RATES}
    finite = {lr: x for lr, x in losses.items() if math.isfinite(x)}
    best = min(finite, key=finite.__getitem__) if finite else math.nan
    needs_lr = inspect.signature(RULES[rule]).parameters["lr"].default
    default = run(rule, None) if needs_lr is not inspect.Parameter.empty else math.nan
    return Result(rule, default, finite.get(best, math.nan), best)


def table(rules: Sequence[str], steps: int, epochs: int) -> str:
    """The results in Markdown."""
    batches = len(data.digits().train.y) // 64
    lines = [
        f"| rule | Rosenbrock, {steps} steps: default | tuned | at lr | digits, {epochs} epochs: "
        "default | tuned | at lr |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for rule in rules:
        valley = result(rule, lambda r, lr: rosenbrock(r, lr, steps), steps)
        pictures = result(rule, lambda r, lr: digits(r, lr, epochs), epochs * batches)
        cells = [
            cell
            for one in (valley, pictures)
            for cell in (shown(one.default), shown(one.tuned), f"{one.rate:.2g}")
        ]
        lines.append(f"| {RULES[rule].__name__} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def shown(x: float) -> str:
    """A loss with two digits; a dash for what is no number."""
    return f"{x:.2g}" if math.isfinite(x) else "–"


def main(argv: Sequence[str] | None = None) -> int:
    purpose = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="bench/convergence.py", description=purpose)
    parser.add_argument("--rule", nargs="+", default=list(RULES), choices=list(RULES),
                        metavar="NAME", help="only these rules")  # fmt: skip
    parser.add_argument("--steps", type=int, default=2000, help="on Rosenbrock (2000)")
    parser.add_argument("--epochs", type=int, default=10, help="on the digits (10)")
    parser.add_argument("--out", type=Path, help="a file instead of the terminal")
    arguments = parser.parse_args(argv)
    text = table(arguments.rule, arguments.steps, arguments.epochs)
    if arguments.out is None:
        sys.stdout.write(text)
    else:
        arguments.out.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
