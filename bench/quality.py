"""What formats do to training: AdamW with each of them beside float32, on gradients made to be hard
and on two real problems.

    python bench/quality.py [--only FORMAT ...] [--jobs N] [--write docs/formats.md]
                            [--picture FILE]

Prints a table in Markdown; ``--write`` puts it between the lines ``<!-- quality:begin -->`` and
``<!-- quality:end -->`` of a file instead. Bold is what misses its limit (`LIMITS`). All formats
get the same beginnings and the same gradients or data; parameters are judged as a model sees them.

The real problems are a network of 64, 128, 64 and 10 units on scikit-learn's digits (its loss on
the training data), and a transformer of two layers that reads Python's own documentation letter by
letter (its loss on the last tenth, which it is not trained on). Models compute in float32 with the
numbers that are stored, and gradients are rounded to the format they are said to have. A format is
within the spread of the seeds if the mean of its losses is at most the largest of float32's.
"""

import argparse
import dataclasses
import multiprocessing
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

if not __package__:  # run as a file: the directory above is the one to import from
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import steepest as st
from steepest import codecs, data
from steepest.extras import require
from steepest.memory.arrays import Array
from steepest.models.networks import MLP

BEGIN, END = "<!-- quality:begin -->", "<!-- quality:end -->"
SEEDS = (0, 1, 2)
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": codecs.BFLOAT16}


@dataclasses.dataclass(frozen=True)
class Storage:
    """Formats of parameters and gradients, and the optimizer's options for the rest."""

    parameter: str = "float32"
    gradient: str = "float32"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _short(**options: Any) -> Storage:
    return Storage("bfloat16", "bfloat16", options)


STORAGES = {
    "float32": Storage(),
    "float32, bfloat16 gradients": Storage(gradient="bfloat16"),
    "float32, bfloat16 `exp_avg`": Storage(options={"state_dtype": {"exp_avg": "bfloat16"}}),
    "float32, bfloat16 states": Storage(options={"state_dtype": "bfloat16"}),
    "float32, q8 states": Storage(options={"state_dtype": "q8"}),
    "bfloat16, float32 states": _short(),
    "bfloat16 rounded stochastically, float32 states": _short(rounding="stochastic"),
    "bfloat16 with split8, float32 states": _short(master="split8"),
    "bfloat16 with kahan, float32 states": _short(master="kahan"),
    "bfloat16 with split16, float32 states": _short(master="split16"),
    "bfloat16 rounded stochastically, q8 states": _short(rounding="stochastic", state_dtype="q8"),
    "bfloat16 with split8, q8 states": _short(master="split8", state_dtype="q8"),
    "bfloat16 with split16, q8 states": _short(master="split16", state_dtype="q8"),
    "all bfloat16": _short(state_dtype="bfloat16"),
}
"""What is compared: the format of parameters, which is that of gradients too, and of states."""

LIMITS = {"error": 0.15, "farthest": 2.0, "stale": 0.02, "still": 0.01}
"""Spread: the error of all updates, and how far an element goes as a multiple of the farthest that
float32 goes. Staleness: the error of √v. Stagnation: that of parameters. Of these two, the error of
the mean is judged."""


class Trained:
    """Parameters in their formats, and AdamW that steps them.

    >>> w = Trained(STORAGES["all bfloat16"], {"w": np.ones(4, np.float32)}, lr=0.1)
    >>> w.step({"w": np.ones(4, np.float32)})
    >>> w.numbers["w"], w.bytes
    (array([0.8984375, 0.8984375, 0.8984375, 0.8984375], dtype=float32), 6.0)
    """

    def __init__(self, storage: Storage, start: Mapping[str, Array], **arguments: Any) -> None:
        self._gradient = DTYPES[storage.gradient]
        self._params = {
            name: codecs.encoded(x, DTYPES[storage.parameter]) for name, x in start.items()
        }
        self._opt = st.AdamW(self._params, **arguments, **storage.options)

    def step(self, grads: Mapping[str, Array]) -> None:
        """One step, with gradients rounded to their format."""
        self._opt.step({name: codecs.encoded(g, self._gradient) for name, g in grads.items()})

    @property
    def numbers(self) -> dict[str, Array]:
        """The parameters as the model sees them."""
        return {name: codecs.decoded(x, np.float32) for name, x in self._params.items()}

    @property
    def second_moment(self) -> Array:
        """v of the parameter w."""
        state = self._opt.state["w"]
        if (scale := state.get("exp_avg_sq_root_scale")) is not None:
            return codecs.from_q8(state["exp_avg_sq"], scale, square=True).astype(np.float64)
        return codecs.decoded(state["exp_avg_sq"], np.float64)

    @property
    def bytes(self) -> float:
        """Of parameters and states, for each parameter."""
        stored = [*self._params.values()]
        for state in self._opt.state.values():
            stored += [x for key, x in state.items() if key != "step"]
        return sum(x.nbytes for x in stored) / sum(x.size for x in self._params.values())


# Gradients that are made


def beginning(rng: np.random.Generator, size: int) -> Array:
    """Parameters of about 0.1 that are exact in bfloat16."""
    drawn = 0.1 * rng.standard_normal(size, np.float32)
    return codecs.decoded(codecs.encoded(drawn, codecs.BFLOAT16), np.float32)


def updates(
    storage: Storage, *, decades: float, noisy: bool, steps: int = 1000, size: int = 8192
) -> tuple[float, float]:
    """How far the parameters have moved, beside float32: the error of all updates together,
    ‖Δ - Δ₃₂‖ / ‖Δ₃₂‖, and max |Δ| / max |Δ₃₂|.

    The sizes of gradients are drawn evenly on a scale of logarithms, over so many decades. They are
    constant, or noise with a mean of 0.3 of its standard deviation.
    """
    rng = np.random.default_rng(0)
    start = beginning(rng, size)
    sizes = (10.0 ** rng.uniform(-decades, 0.0, size)).astype(np.float32)
    signs = rng.choice(np.array([-1.0, 1.0], np.float32), size)
    exact, stored = (
        Trained(x, {"w": start}, lr=1e-3, weight_decay=0.0) for x in (Storage(), storage)
    )
    for _ in range(steps):
        drawn = rng.standard_normal(size, np.float32) + np.float32(0.3) if noisy else signs
        exact.step({"w": drawn * sizes})
        stored.step({"w": drawn * sizes})
    expected, found = (x.numbers["w"].astype(np.float64) - start for x in (exact, stored))
    far = float(np.abs(found).max() / np.abs(expected).max())
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected)), far


def staleness(
    storage: Storage, *, drop: int = 1500, steps: int = 4000, size: int = 8192
) -> tuple[float, float]:
    """The error of √v, when gradients have become ten times smaller: of its mean, and of each
    (the root of the mean square), as fractions of what float32 has."""
    rng = np.random.default_rng(0)
    start = beginning(rng, size)
    exact, stored = (Trained(x, {"w": start}, lr=1e-3) for x in (Storage(), storage))
    for t in range(steps):
        drawn = rng.standard_normal(size, np.float32) + np.float32(0.3)
        drawn *= np.float32(1.0 if t < drop else 0.1)
        exact.step({"w": drawn})
        stored.step({"w": drawn})
    error = np.sqrt(stored.second_moment) / np.sqrt(exact.second_moment) - 1.0
    return float(error.mean()), float(np.sqrt((error * error).mean()))


def stagnation(storage: Storage, *, steps: int = 200, size: int = 8192) -> tuple[float, float]:
    """The error of parameters that go down from 1 by 0.001 in every step: of their mean, and the
    largest of one."""
    ones = {"w": np.ones(size, np.float32)}
    exact, stored = (Trained(x, ones, lr=1e-3, weight_decay=0.0) for x in (Storage(), storage))
    for _ in range(steps):
        exact.step(ones)
        stored.step(ones)
    error = stored.numbers["w"].astype(np.float64) / exact.numbers["w"] - 1.0
    return float(error.mean()), float(np.abs(error).max())


# Real problems


def digits(storage: Storage, seed: int, epochs: int = 8) -> float:
    """The loss of a network on its training data."""
    train = data.digits().train
    net = MLP((64, 128, 64, 10), "classification")
    nested = net.initial(seed=seed)
    start = {f"{a}.{b}": x for a, layer in nested.items() for b, x in layer.items()}
    steps = epochs * (len(train.y) // 64)
    opt = Trained(storage, start, lr=st.schedules.cosine(2e-3, steps=steps))

    def value_and_grad(x: Array, y: Array) -> tuple[float, dict[str, Array]]:
        numbers = opt.numbers
        params = {a: {b: numbers[f"{a}.{b}"] for b in layer} for a, layer in nested.items()}
        loss, grads = net.value_and_grad(params, x, y)
        return float(loss), {f"{a}.{b}": g for a, own in grads.items() for b, g in own.items()}

    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(len(train.y))
        for first in range(0, len(order) - 63, 64):
            batch = order[first : first + 64]
            opt.step(value_and_grad(train.x[batch], train.y[batch])[1])
    return value_and_grad(train.x, train.y)[0]


WIDTH, CONTEXT, BATCH = 64, 64, 16


@cache
def text() -> tuple[Array, Array, int]:
    """Python's documentation as numbered letters: to train on, to test with; how many there are."""
    from pydoc_data.topics import topics

    whole = "\n\n".join(topics[name] for name in sorted(topics)).encode()
    letters, numbered = np.unique(np.frombuffer(whole, np.uint8), return_inverse=True)
    cut = len(numbered) * 9 // 10
    return numbered[:cut], numbered[cut:], len(letters)


def transformer(torch: Any, letters: int) -> Any:
    """Two layers with causal attention, from letters to the logits of the next one."""
    nn = torch.nn

    class Transformer(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.letter = nn.Embedding(letters, WIDTH)
            self.place = nn.Embedding(CONTEXT, WIDTH)
            self.layers = nn.ModuleList(
                nn.TransformerEncoderLayer(
                    WIDTH, 2, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
                )
                for _ in range(2)
            )
            self.norm = nn.LayerNorm(WIDTH)
            self.out = nn.Linear(WIDTH, letters)
            self.mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT)

        def forward(self, x: Any) -> Any:
            h = self.letter(x) + self.place.weight
            for layer in self.layers:
                h = layer(h, self.mask, is_causal=True)
            return self.out(self.norm(h))

    return Transformer()


def language(storage: Storage, seed: int, steps: int = 400) -> float:
    """The loss of a small transformer on text that it was not trained on, in nats per letter."""
    torch = require("torch", "torch", "the language model")
    train, test, letters = text()
    torch.manual_seed(seed)
    model = transformer(torch, letters)
    names = [name for name, _ in model.named_parameters()]
    start = {name: x.detach().numpy() for name, x in model.named_parameters()}
    opt = Trained(storage, start, lr=st.schedules.cosine(3e-3, steps=steps, warmup=steps // 10))

    def loss(params: Mapping[str, Any], places: Array, letters: Array) -> Any:
        rows = torch.from_numpy(letters[places[:, None] + np.arange(CONTEXT + 1)])
        logits = torch.func.functional_call(model, params, (rows[:, :-1],))
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())

    def tensors() -> dict[str, Any]:
        return {name: torch.from_numpy(x).requires_grad_() for name, x in opt.numbers.items()}

    rng = np.random.default_rng(seed)
    for _ in range(steps):
        params = tensors()
        value = loss(params, rng.integers(0, len(train) - CONTEXT, BATCH), train)
        grads = torch.autograd.grad(value, [params[name] for name in names])
        opt.step({name: g.numpy() for name, g in zip(names, grads, strict=True)})
    with torch.no_grad():
        places = np.linspace(0, len(test) - CONTEXT - 1, 512).astype(np.int64)
        return float(loss(tensors(), places, test))


# Results


@dataclasses.dataclass(frozen=True)
class Result:
    """All that is measured of one format; losses for each seed."""

    bytes: float
    alike: float
    noisy: tuple[float, float]
    constant: tuple[float, float]
    stale: tuple[float, float]
    still: tuple[float, float]
    digits: tuple[float, ...]
    language: tuple[float, ...]


def measured(storage: Storage, seeds: Sequence[int] = SEEDS) -> Result:
    """Everything, for one format."""
    return Result(
        bytes=Trained(storage, {"w": np.zeros(8192, np.float32)}).bytes,
        alike=updates(storage, decades=0.0, noisy=True)[0],
        noisy=updates(storage, decades=4.0, noisy=True),
        constant=updates(storage, decades=4.0, noisy=False),
        stale=staleness(storage),
        still=stagnation(storage),
        digits=tuple(digits(storage, seed) for seed in seeds),
        language=tuple(language(storage, seed) for seed in seeds),
    )


def one_thread() -> None:
    """For a process that measures beside others."""
    st.set_num_threads(1)
    require("torch", "torch", "the language model").set_num_threads(1)


def all_measured(titles: Sequence[str], jobs: int) -> dict[str, Result]:
    """Everything, for these formats, so many at a time, each in one thread."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"  # of the processes to come
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, one_thread) as pool:
        found = {title: pool.submit(measured, STORAGES[title]) for title in titles}
        results = {}
        for title, future in found.items():
            results[title] = future.result()
            print(title, results[title], file=sys.stderr, flush=True)
    return results


def within(losses: Sequence[float], base: Sequence[float]) -> bool:
    """Whether losses are no higher than those of float32, within the spread of the seeds.

    >>> within([1.0, 1.1, 1.2], [1.05, 1.1, 1.15]), within([1.2, 1.2, 1.2], [1.05, 1.1, 1.15])
    (True, False)
    """
    return float(np.mean(losses)) <= max(base)


def judged(result: Result, base: Result) -> dict[str, bool]:
    """Which limits a format keeps."""
    return {
        "alike": result.alike <= LIMITS["error"],
        "stale": abs(result.stale[0]) <= LIMITS["stale"],
        "noisy": result.noisy[0] <= LIMITS["error"],
        "constant": result.constant[0] <= LIMITS["error"],
        "farthest": max(result.noisy[1], result.constant[1]) <= LIMITS["farthest"],
        "still": abs(result.still[0]) <= LIMITS["still"],
        "digits": within(result.digits, base.digits),
        "language": within(result.language, base.language),
    }


LEAST = 1e-4
"""Errors below it are shown as such."""

HEAD = (
    "parameters, states", "bytes", "update error", "√v (of each)", "spread: noise", "constant",
    "farthest", "p = 1 (worst)", "digits", "text",
)  # fmt: skip


def table(results: Mapping[str, Result]) -> list[str]:
    """The results in Markdown; bold is what misses its limit."""
    base = next(iter(results.values()))
    lines = ["| " + " | ".join(HEAD) + " |", "|---|" + "--:|" * (len(HEAD) - 1)]
    for title, found in results.items():
        kept = judged(found, base)
        cells = {
            "alike": _percent(found.alike),
            "stale": _mean(found.stale),
            "noisy": _percent(found.noisy[0]),
            "constant": _percent(found.constant[0]),
            "farthest": f"{max(found.noisy[1], found.constant[1]):.3g}",
            "still": _mean(found.still),
            "digits": _losses(found.digits, base.digits),
            "language": _losses(found.language, base.language),
        }
        shown = [cell if kept[what] else f"**{cell}**" for what, cell in cells.items()]
        lines.append(f"| {title} | {found.bytes:.3g} | " + " | ".join(shown) + " |")
    return lines


def _percent(x: float) -> str:
    if 0.0 < x < LEAST:
        return f"<{100 * LEAST:g} %"
    return f"{100 * x:.2g} %" if x < 0.995 else f"{100 * x:.0f} %"


def _mean(x: tuple[float, float]) -> str:
    """An error of a mean, and that of each."""
    return f"{_percent(abs(x[0]))} ({_percent(x[1])})"


def _losses(x: Sequence[float], base: Sequence[float]) -> str:
    """The mean, and how far it is from float32's; for float32, from which seed to which."""
    further = round(float(np.mean(x) - np.mean(base)), 4) + 0.0  # no -0
    around = f"{further:+.4f}" if x != base else f"{min(x):.4f} to {max(x):.4f}"
    return f"{np.mean(x):.4f} ({around})"


def markdown(results: Mapping[str, Result], picture: str | None = None) -> str:
    """The table, where it was made, and the picture."""
    torch = require("torch", "torch", "the language model")
    lines = [*table(results), ""]
    lines.append(
        f"Python {platform.python_version()}, NumPy {np.__version__}, PyTorch {torch.__version__}, "
        f"level {st.info()['level']}."
    )
    if picture is not None:
        lines += ["", f"![Formats beside float32: errors, and losses of two models]({picture})"]
    return "\n".join(lines)


def replaced(old: str, new: str) -> str:
    """`old` with `new` between its two markers. Raises ValueError unless each is there once."""
    if old.count(BEGIN) != 1 or old.count(END) != 1 or old.index(BEGIN) > old.index(END):
        raise ValueError(f"expected one line {BEGIN} and, after it, one line {END}")
    before, _, rest = old.partition(BEGIN)
    return f"{before}{BEGIN}\n{new.strip()}\n{END}{rest.partition(END)[2]}"


# Picture


def panels() -> Iterator[tuple[str, float | None, Callable[[Result], Sequence[float]]]]:
    """Title, limit, and the values of a format."""
    yield "update error, %", 15.0, lambda x: [100 * x.alike]
    yield "spread: error, %\n(× constant)", 15.0, lambda x: [100 * x.noisy[0], 100 * x.constant[0]]
    yield "staleness: mean of √v, %", 2.0, lambda x: [100 * abs(x.stale[0])]
    yield "stagnation, %", 1.0, lambda x: [100 * abs(x.still[0])]
    yield "digits: loss", None, lambda x: x.digits
    yield "text: loss", None, lambda x: x.language


def draw(results: Mapping[str, Result]) -> Any:
    """A matplotlib Figure: a line for each format, errors and their limits at the left, losses of
    the seeds and float32's spread at the right. Raises MissingExtra without matplotlib."""
    matplotlib = require("matplotlib.figure", "bench", "drawing the results")
    ticker = require("matplotlib.ticker", "bench", "drawing the results")
    base = next(iter(results.values()))
    count = len(results)
    figure = matplotlib.Figure(figsize=(16, 1.6 + 0.34 * count), layout="constrained")
    axes = figure.subplots(1, 6, sharey=True)
    for ax, (title, limit, values) in zip(axes, panels(), strict=True):
        for y, found in enumerate(results.values()):
            for mark, x in zip("ox" if limit else "ooo", values(found), strict=False):
                fine = x <= limit if limit else within(values(found), values(base))
                ax.plot(
                    max(x, 100 * LEAST) if limit else x,
                    y,
                    mark,
                    color="#0072B2" if fine else "#D55E00",
                )
        if limit is None:
            ax.axvspan(min(values(base)), max(values(base)), color="#dddddd", zorder=0)
        else:
            ax.set_xscale("log")
            ax.set_xlim(left=70 * LEAST)
            ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:g}"))
            ax.xaxis.set_minor_locator(ticker.NullLocator())
            ax.axvline(limit, color="black", linewidth=1)
        ax.set_title(title, fontsize=10)
        ax.grid(axis="y", color="#eeeeee")
        for side in ("top", "right", "left"):
            ax.spines[side].set_visible(False)
        ax.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(count), [title.replace("`", "") for title in results])
    axes[0].set_ylim(count - 0.5, -0.5)
    figure.suptitle(
        "AdamW in each format beside float32: limits are lines, the range of float32's seeds is "
        "grey, orange is outside; errors below 0.01 % stand at 0.01",
        fontsize=11,
    )
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    purpose = (__doc__ or "").partition("\n\n")[0]
    parser = argparse.ArgumentParser(prog="bench/quality.py", description=purpose)
    parser.add_argument("--only", nargs="+", default=[], choices=list(STORAGES), metavar="FORMAT",
                        help="these formats, beside float32")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=2, help="formats at a time (2)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into this file")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw, and refer to, a PNG")
    given = parser.parse_args(argv)
    chosen = [x for x in STORAGES if not given.only or x in ("float32", *given.only)]
    results = all_measured(chosen, given.jobs)
    shown = None
    if given.picture is not None:
        draw(results).savefig(given.picture, dpi=110)
        beside = given.write.parent if given.write is not None else Path()
        shown = Path(os.path.relpath(given.picture, beside)).as_posix()
    written = markdown(results, shown)
    if given.write is None:
        print(written)
    else:
        old = given.write.read_text(encoding="utf-8")
        given.write.write_text(replaced(old, written), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
