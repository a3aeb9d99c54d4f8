"""One digest for each rule, type and option: the bits of 50 steps, to see whether they stay; and
one for each rule and format: those of 2000 steps.

``python tests/helpers/golden.py`` prints them all, the matrix rules' too; ``--write`` renews the
files that ``test_golden.py`` compares. A digest may change only where the numbers are meant to
change, and then CHANGELOG.md says so. Matrix rules are not in the file: their bits are those of one
machine's BLAS. Parameters and gradients come of whole numbers, so that no random generator has a
part.
"""

import argparse
import functools
import hashlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from cases import CONFIGURATIONS, label

import steepest as st
from steepest.memory import formats
from steepest.optimizers import RULES
from steepest.options import decay

FILE = Path(__file__).parents[1] / "data" / "golden.txt"

LONG_FILE = FILE.with_name("golden_2000.txt")

STEPS, LONG_STEPS = 50, 2000
SHAPES: dict[str, tuple[int, ...]] = {
    "vector": (7,), "long": (1031,), "matrix": (20, 31), "kernel": (3, 4, 3, 3), "number": (),
}  # fmt: skip

OPTIONS: dict[str, dict[str, Any]] = {
    "schedules": {"lr": st.schedules.cosine(0.01, steps=40, warmup=5)},
    "l1-maximize": {"l1": 0.031, "maximize": True},
    "clip": {"clip": (st.clip.global_norm(1.5), st.clip.adaptive(0.05), st.clip.value(0.7))},
    "norm-ema": {"clip": st.clip.norm(0.9, p=1), "ema": 0.93},
    "mask": {"filter": st.filters.mask()},
    "filters": {"filter": (st.filters.centralize(), st.filters.mars(0.3))},
    "grokfast": {"filter": st.filters.grokfast(0.7), "nonfinite": "skip"},
    "cautious": {"cautious": True, "ema": 0.5},
    "lookahead": {"lookahead": st.average.lookahead(3, 0.37)},
    "tail": {"average": st.average.tail(5, 2)},
    "proximal": {"regularize": st.regularize.l1(0.01, proximal=True)},
    "max-norm": {"regularize": (st.regularize.max_norm(2.0), st.regularize.group_lasso(0.01))},
    "initial": {"regularize": st.regularize.toward_initial(0.1, decoupled=True)},
    "box": {"regularize": st.regularize.box(-0.5, 1.0)},
    **{f"decay-{mode}": {"decay_mode": mode} for mode in decay.MODES},
}

FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "float64": ("float64", {}),
    "float32": ("float32", {}),
    "bfloat16": ("bfloat16", {"state_dtype": "bfloat16"}),
    "float16": ("float16", {}),
    "bfloat16-stochastic": ("bfloat16", {"rounding": "stochastic"}),
    "bfloat16-split16": ("bfloat16", {"master": "split16"}),
    "float16-master": ("float16", {"master": "float32"}),
    "float32-q8": ("float32", {"state_dtype": "q8"}),
    "bfloat16-split16-q8": ("bfloat16", {"master": "split16", "state_dtype": "q8"}),
}
"""Type of parameters and gradients, and arguments, by a name."""

LONG_SHAPES: dict[str, tuple[int, ...]] = {"embedding": (73, 61), "vector": (37,), "number": ()}
"""The first is large enough for states of 8 bits."""

Case = tuple[str, str, str, dict[str, Any]]


def cases() -> Iterator[Case]:
    """(rule, type, what is not default, arguments): every variant of a rule, and its first with
    each option."""
    seen = set()
    for rule, arguments in CONFIGURATIONS:
        for dtype in ("float32", "float64"):
            yield rule, dtype, str(label(arguments)).replace(" ", ""), arguments
            if rule not in seen:
                for name, options in OPTIONS.items():
                    if name.startswith("decay-lr_relative"):
                        options = options | {"peak_lr": 0.31}
                    yield rule, dtype, name, arguments | options
        seen.add(rule)


def digest(rule: str, dtype: str, arguments: dict[str, Any]) -> str | None:
    """The digest of all parameters and states after the steps; None where the rule refuses an
    option."""
    params = {
        name: numbers(shape, k, dtype).copy() for k, (name, shape) in enumerate(SHAPES.items())
    }
    try:
        opt: Any = RULES[rule](params, **arguments)
    except ValueError:
        return None
    total = hashlib.sha256()
    for t in range(STEPS):
        grads = {
            name: numbers(p.shape, 31 * t + k, dtype) + np.clip(p, -1, 1) / 4
            for k, (name, p) in enumerate(params.items())
        }
        if t == 3:
            grads["kernel"] = None
        opt.step(grads)
    for name, p in params.items():
        for key, x in {"p": p, **dict(sorted(opt.state[name].items()))}.items():
            assert np.isfinite(x).all(), (rule, dtype, arguments, name, key)
            total.update(f"{name} {key} {x.dtype} {x.shape}".encode() + x.tobytes())
    for key in opt.shared(opt.param_groups[0]):
        total.update(float(opt.param_groups[0][key]).hex().encode())
    return total.hexdigest()[:16]


def long_cases() -> Iterator[tuple[str, str]]:
    """(rule, name of a format)."""
    for rule, cls in RULES.items():
        if cls.needs != "matrix":
            yield from ((rule, name) for name in FORMATS)


def long_digest(
    rule: str, name: str, around: tuple[Callable[[], Any], Callable[[], Any]] | None = None
) -> str | None:
    """The digest of an optimizer after 2000 steps under a schedule; None where the rule refuses the
    format. `around`: what is called before each step, and after it."""
    dtype, options = FORMATS[name]
    with warnings.catch_warnings():  # some formats cannot hold the smallest steps
        warnings.filterwarnings("ignore", "parameter .* stands still", UserWarning)
        return _long_digest(rule, dtype, options, around)


def _long_digest(
    rule: str, dtype: str, options: dict[str, Any],
    around: tuple[Callable[[], Any], Callable[[], Any]] | None,
) -> str | None:  # fmt: skip
    params = {
        key: formats.encoded(numbers(shape, k, "float64"), formats.named(dtype)).copy()
        for k, (key, shape) in enumerate(LONG_SHAPES.items())
    }
    arguments = next(found for known, found in CONFIGURATIONS if known == rule)
    try:
        opt: Any = RULES[rule](params, **arguments, **options)
    except ValueError:
        return None
    if "lr" in opt.param_groups[0]:
        lr = opt.param_groups[0]["lr"]
        opt.param_groups[0]["lr"] = st.schedules.cosine(lr, steps=LONG_STEPS, warmup=100)
    for t in range(LONG_STEPS):
        grads = {}
        for k, (key, p) in enumerate(params.items()):
            pull = np.clip(formats.decoded(p), -1, 1) / 4
            g = numbers(p.shape, 31 * (t % 40) + k, "float32") + pull
            grads[key] = formats.encoded(g.astype(pull.dtype), p.dtype)
        if around is None:
            opt.step(grads)
            continue
        around[0]()
        try:
            opt.step(grads)
        finally:
            around[1]()
    for p in params.values():
        assert np.isfinite(formats.decoded(p)).all(), (rule, dtype, options)
    return str(opt.digest()[:16])


@functools.cache
def numbers(shape: tuple[int, ...], seed: int, dtype: str) -> np.ndarray:
    """Numbers between -1 and 1 with 20 bits each, without order, the same everywhere."""
    k = np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(seed * 1_000_003 + 1)
    with np.errstate(over="ignore"):
        for multiplier in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
            k = (k ^ (k >> np.uint64(29))) * np.uint64(multiplier)
    signed = (k >> np.uint64(44)).astype(np.int64) - (1 << 19)
    return (signed / (1 << 19)).astype(dtype).reshape(shape)


def long_lines() -> Iterator[str]:
    for case in long_cases():
        found = long_digest(*case)
        if found is not None:
            yield f"{' '.join(case)} {found}"


def lines(*, with_matrix_rules: bool) -> Iterator[str]:
    for rule, dtype, name, arguments in cases():
        if with_matrix_rules or RULES[rule].needs != "matrix":
            found = digest(rule, dtype, arguments)
            if found is not None:
                yield f"{rule} {dtype} {name} {found}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--write", action="store_true", help=f"renew {FILE.name} and {LONG_FILE.name}"
    )
    write = parser.parse_args().write
    made = [f"{line}\n" for line in lines(with_matrix_rules=not write)]
    long = [f"{line}\n" for line in long_lines()]
    if write:
        FILE.write_text("".join(made))
        LONG_FILE.write_text("".join(long))
    else:
        print("".join([*made, *long]), end="")
