"""The kernels equal the reference to the last bit: every rule, type, level, thread count, size."""

from typing import Any

import numpy as np
import pytest
from cases import (
    CONFIGURATIONS,
    DTYPES,
    LEVELS,
    label,
    misaligned,
    reference_hyper,
    same_bits,
    use_threads,
)  # fmt: skip

import steepest as st
from steepest import reference
from steepest.kernels import dispatch
from steepest.kernels.engine import BLOCK_SIZE, CHUNK_SIZE
from steepest.optimizers import RULES

SIZES = (
    0, 1, 7, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, CHUNK_SIZE - 1, CHUNK_SIZE + 1, 10_007
)  # fmt: skip
THREADS = (1, 2, 3)


def run(
    rule: str, arguments: dict[str, Any], dtype: type, sizes: tuple[int, ...], steps: int,
    draw: Any, options: dict[str, Any] | None = None, seed: int = 0,
) -> None:  # fmt: skip
    """Steps all sizes as one list of parameters, and each by the reference; compares the bits."""
    rng = np.random.default_rng(seed)
    options = options or {}
    params = [misaligned(draw(rng, n).astype(dtype), i % 5) for i, n in enumerate(sizes)]
    twins = [p.copy() for p in params]
    opt = RULES[rule](params, **arguments, **options)
    for state in opt.state.values():
        if "hessian" in state:  # which no step makes
            state["hessian"][...] = draw(rng, state["hessian"].size).astype(dtype)
    states = [{k: x.copy() for k, x in opt.state[str(i)].items()} for i in range(len(sizes))]
    hyper = reference_hyper(opt)
    for t in range(1, steps + 1):
        grads = [misaligned(draw(rng, n).astype(dtype), (i + t) % 7) for i, n in enumerate(sizes)]
        kept = [g.copy() for g in grads]
        opt.step(grads)
        for i, p in enumerate(twins):
            with np.errstate(all="ignore"):
                reference.step(rule, p, grads[i], states[i], t, **hyper)
            same_bits(grads[i], kept[i], "the caller's gradient")
    for i, n in enumerate(sizes):
        same_bits(params[i], twins[i], f"{rule} parameter of size {n} after {steps} steps")
        for key, x in opt.state[str(i)].items():
            if key == "step":
                assert x == steps
            else:
                same_bits(x, states[i][key], f"{rule} state {key} of size {n}")


def normal(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_normal(n)


def wide(rng: np.random.Generator, n: int) -> np.ndarray:
    """Magnitudes from 1e-30 to 1e12, with zeros of both signs."""
    x = rng.standard_normal(n) * 10.0 ** rng.uniform(-30, 12, n)
    x[rng.random(n) < 0.1] = 0.0
    x[rng.random(n) < 0.05] = -0.0
    return x


def special(rng: np.random.Generator, n: int) -> np.ndarray:
    values = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-42, -1e-310, 3e38, -1e-38])
    return rng.choice(values, n)


@pytest.mark.parametrize(("rule", "arguments"), CONFIGURATIONS, ids=label)
@pytest.mark.parametrize("dtype", DTYPES, ids=label)
@pytest.mark.parametrize("level", LEVELS)
def test_fifty_steps_equal_the_reference(rule, arguments, dtype, level):
    """Three threads; the exhaustive test below runs the other counts."""
    dispatch.use(level)
    use_threads(3)
    run(rule, arguments, dtype, SIZES, 50, normal)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("rule", "arguments"), CONFIGURATIONS, ids=label)
@pytest.mark.parametrize("dtype", DTYPES, ids=label)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("draw", [wide, special], ids=lambda f: f.__name__)
def test_every_product_of_the_axes(rule, arguments, dtype, level, threads, draw):
    dispatch.use(level)
    use_threads(threads)
    run(rule, arguments, dtype, SIZES, 50, draw, seed=threads)


@pytest.mark.parametrize(("rule", "arguments"), CONFIGURATIONS, ids=label)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("draw", [wide, special], ids=lambda f: f.__name__)
def test_special_values(rule, arguments, level, draw):
    dispatch.use(level)
    for dtype in DTYPES:
        run(rule, arguments, dtype, (0, 1, 7, 331), 6, draw)


@pytest.mark.parametrize(("rule", "arguments"), CONFIGURATIONS, ids=label)
@pytest.mark.parametrize("dtype", DTYPES, ids=label)
def test_the_tail_of_every_vector_width(rule, arguments, dtype):
    for level in LEVELS:
        dispatch.use(level)
        run(rule, arguments, dtype, tuple(range(70)), 2, normal)


STAGES = [
    {"l1": 0.031},
    {"maximize": True},
    {"ema": 0.93},
    {"decay_mode": "l2", "l1": 0.01},
    {"decay_mode": "decoupled", "ema": 0.5},
    {"clip": st.clip.value(0.7)},
    {"clip": (st.clip.adaptive(0.05), st.clip.value(0.7)), "l1": 0.02, "maximize": True},
    {"regularize": (st.regularize.toward_initial(0.1), st.regularize.l1(0.1, proximal=True))},
    {
        "filter": (st.filters.grokfast(0.7), st.filters.mask()),
        "regularize": st.regularize.box(-1, 1),
    },
]


@pytest.mark.parametrize(("rule", "arguments"), CONFIGURATIONS, ids=label)
@pytest.mark.parametrize("options", STAGES, ids="+".join)
def test_stages_around_every_rule(rule, arguments, options):
    if "decoupled_weight_decay" in arguments and "decay_mode" in options:
        arguments = {k: v for k, v in arguments.items() if k != "decoupled_weight_decay"}
    for level in LEVELS:
        dispatch.use(level)
        for dtype in DTYPES:
            for draw in (normal, special):
                run(rule, arguments, dtype, (1, 7, BLOCK_SIZE + 1), 4, draw, options)
