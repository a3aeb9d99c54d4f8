"""What ``steepest train`` makes of tables by its defaults, beside a linear model of scikit-learn.

    python bench/defaults.py [--table NAME ...] [--seeds N] [--out FILE]

Writes a table in Markdown, and ends with code 1 where a default is more than 0.02 below the linear
model. The tables are all that scikit-learn ships, and some that it makes. Each is trained by the
defaults, with ``--hidden none``, with ``--optimizer sgd``, and with both, once for each seed, which
decides the split, the first weights and the order. The linear models are
``steepest.data.baselines``: ridge regression with its penalty by leave-one-out, and logistic
regression, of the same scaled inputs and the same training part. Results are accuracies and R² on
the test parts, means over the seeds; R² of linnerud, which has three rows in each test part, is
that of all those rows together.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn import datasets
from threadpoolctl import threadpool_limits

if not __package__:  # run as a file: the directory above is the one to import from
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from steepest import data
from steepest.cli import defaults, runs
from steepest.cli.settings import Settings
from steepest.data.baselines import linear
from steepest.models.networks import Task, r_squared

ALLOWED = 0.02

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "`--hidden none`": {"hidden": ()},
    "`--optimizer sgd`": {"optimizer": "sgd"},
    "both": {"optimizer": "sgd", "hidden": ()},
}

TABLES: dict[str, tuple[Callable[[], Any], Task]] = {
    "iris": (lambda: datasets.load_iris(return_X_y=True), "classification"),
    "wine": (lambda: datasets.load_wine(return_X_y=True), "classification"),
    "breast_cancer": (lambda: datasets.load_breast_cancer(return_X_y=True), "classification"),
    "digits": (lambda: datasets.load_digits(return_X_y=True), "classification"),
    "diabetes": (lambda: datasets.load_diabetes(return_X_y=True), "regression"),
    "linnerud": (lambda: _linnerud(), "regression"),
    "make_classification": (
        lambda: datasets.make_classification(
            1000, 20, n_informative=5, n_classes=3, random_state=0
        ),
        "classification",
    ),
    "make_moons": (lambda: datasets.make_moons(500, noise=0.2, random_state=0), "classification"),
    "make_blobs": (
        lambda: datasets.make_blobs(300, centers=4, cluster_std=3, random_state=0),
        "classification",
    ),
    "make_hastie_10_2": (
        lambda: datasets.make_hastie_10_2(2000, random_state=0),
        "classification",
    ),
    "make_regression": (
        lambda: datasets.make_regression(300, 10, noise=20, random_state=0),
        "regression",
    ),
    "make_regression, 40 inputs": (
        lambda: datasets.make_regression(120, 40, n_informative=10, noise=20, random_state=0),
        "regression",
    ),
    "make_friedman1": (
        lambda: datasets.make_friedman1(1000, noise=1, random_state=0),
        "regression",
    ),
    "make_friedman2": (
        lambda: datasets.make_friedman2(1000, noise=50, random_state=0),
        "regression",
    ),
    "make_friedman3": (
        lambda: datasets.make_friedman3(1000, noise=0.1, random_state=0),
        "regression",
    ),
    "make_sparse_uncorrelated": (
        lambda: datasets.make_sparse_uncorrelated(300, random_state=0),
        "regression",
    ),
}


def _linnerud() -> tuple[Any, Any]:
    """The exercises of 20 people, and their waists."""
    x, y = datasets.load_linnerud(return_X_y=True)
    return x, y[:, 1]


def dataset(name: str, seed: int) -> data.Dataset:
    """The table as ``steepest train`` reads it from a CSV file.

    >>> dataset("iris", 0).train.x.shape
    (102, 4)
    """
    make, task = TABLES[name]
    x, y = make()
    rows = [",".join([*map(repr, row), repr(target)]) for row, target in _rows(x, y)]
    header = ",".join([*(f"x{i}" for i in range(x.shape[1])), "y"])
    content = "\n".join([header, *rows, ""]).encode()
    return data.table(f"{name}.csv", "y", task=task, seed=seed, content=content)


def _rows(x: Any, y: Any) -> Any:
    return zip(x.tolist(), y.tolist(), strict=True)


def trained(name: str, seed: int, **options: Any) -> Any:
    """What a run predicts of its test part, as numbers of classes or scaled targets."""
    found = dataset(name, seed)
    settings, _ = defaults.chosen(Settings(name, seed=seed, **options), found)
    run = runs.prepare(settings, found)
    run.train()
    return run.net.predict(run.params, found.test.x)


def score(task: Task, parts: Sequence[tuple[Any, Any]]) -> float:
    """The mean accuracy or R² of (prediction, target) of several seeds.

    >>> score("classification", [(np.array([1, 2]), np.array([1, 0]))])
    0.5
    """
    if task == "classification":
        return float(np.mean([np.mean(found == y) for found, y in parts]))
    if len(parts[0][1]) <= 3:
        return r_squared(*(np.concatenate(both) for both in zip(*parts, strict=True)))
    return float(np.mean([r_squared(found, y) for found, y in parts]))


def row(name: str, seeds: int) -> tuple[list[str], bool]:
    """The row of a table, and whether all its results are as they should be."""
    task = TABLES[name][1]
    found = [dataset(name, seed) for seed in range(seeds)]
    base = score(task, [(linear(one).predict(one.test.x), one.test.y) for one in found])
    scores = [
        score(
            task,
            [(trained(name, seed, **options), found[seed].test.y) for seed in range(seeds)],
        )
        for options in VARIANTS.values()
    ]
    rows = sum(len(part.y) for part in found[0].parts.values())
    cells = [f"{x:.3f}" + " **below**" * (x < base - ALLOWED) for x in scores]
    measure = "accuracy" if task == "classification" else "R²"
    size = f"{rows} × {len(found[0].features)}"
    whole = all(x >= base - ALLOWED for x in scores)
    return [name, size, measure, f"{base:.3f}", *cells], whole


def main(argv: Sequence[str] | None = None) -> int:
    purpose = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="bench/defaults.py", description=purpose)
    parser.add_argument("--table", action="append", choices=TABLES, help="default: all")
    parser.add_argument("--seeds", type=int, default=8, help="runs of each (default: 8)")
    parser.add_argument("--out", type=Path, help="default: the standard output")
    arguments = parser.parse_args(argv)
    header = ["table", "rows × inputs", "measure", "linear model", *VARIANTS]
    lines = [
        "# What the defaults of `steepest train` come to",
        "",
        "Written by `python bench/defaults.py --out FILE`; the head of that file says how. Test",
        f"results, means over {arguments.seeds} seeds; **below** marks what is more than "
        f"{ALLOWED} below the",
        "linear model of scikit-learn (ridge or logistic regression).",
        "",
        f"| {' | '.join(header)} |",
        f"|---|---|---|{'--:|' * (len(header) - 3)}",
    ]
    whole = True
    with threadpool_limits(1, user_api="blas"):
        for name in arguments.table or TABLES:
            cells, fine = row(name, arguments.seeds)
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], file=sys.stderr)
            whole = whole and fine
    text = "\n".join(lines) + "\n"
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
