"""The kernels equal the reference to the last bit: every rule, type, level, thread count, size."""

import math
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
    rule: str, arguments: dict[str, Any], dtype: type, sizes: tuple[Any, ...], steps: int,
    draw: Any, options: dict[str, Any] | None = None, seed: int = 0, layouts: int = 1,
) -> None:  # fmt: skip
    """Steps all sizes as one list of parameters, and each by the reference; compares the bits.

    A size may be a shape; with `layouts` up to 4, such arrays lie in memory in as many ways.
    """
    rng = np.random.default_rng(seed)
    options = options or {}
    shapes = [n if isinstance(n, tuple) else (n,) for n in sizes]
    params = [new(draw, rng, s, dtype, i % 5, i % layouts) for i, s in enumerate(shapes)]
    twins = [p.copy() for p in params]
    opt = RULES[rule](params, **arguments, **options)
    states = [{k: x.copy() for k, x in opt.state[str(i)].items()} for i in range(len(sizes))]
    hyper = reference_hyper(opt)
    shared = {key: opt.param_groups[0][key] for key in opt._groups[0].shared}
    for t in range(1, steps + 1):
        grads = [
            new(draw, rng, s, dtype, (i + t) % 7, (i + t) % layouts) for i, s in enumerate(shapes)
        ]
        kept = [g.copy() for g in grads]
        opt.step(grads)
        with np.errstate(all="ignore"):
            if RULES[rule].needs == "global":
                each = [t] * len(twins)
                reference.step(rule, twins, grads, states, each, shared=shared, **hyper)
            else:
                for p, g, state in zip(twins, grads, states, strict=True):
                    reference.step(rule, p, g, state, t, **hyper)
        for g, before in zip(grads, kept, strict=True):
            same_bits(g, before, "the caller's gradient")
    for key, x in shared.items():
        if RULES[rule].needs == "global":
            same_bits(np.array(opt.param_groups[0][key]), np.array(x), f"{rule} number {key}")
    for i, n in enumerate(sizes):
        same_bits(params[i], twins[i], f"{rule} parameter of size {n} after {steps} steps")
        for key, x in opt.state[str(i)].items():
            if key == "step":
                assert x == steps
            else:
                same_bits(x, states[i][key], f"{rule} state {key} of size {n}")


def new(
    draw: Any, rng: np.random.Generator, shape: tuple[int, ...], dtype: type, shift: int, kind: int
) -> np.ndarray:
    """An array of a draw: misaligned, or in Fortran's order, or every other element of a larger
    one, or with its first axis running backwards."""
    values = draw(rng, math.prod(shape)).astype(dtype)
    if kind == 0 or not shape:
        return misaligned(values, shift).reshape(shape)
    if kind == 1:
        return np.asfortranarray(values.reshape(shape))
    room = np.zeros([2 * n for n in shape], dtype)
    x = room[tuple(slice(None, None, 2) for _ in shape)] if kind == 2 else room[: shape[0]][::-1]
    x = x[tuple(slice(0, n) for n in shape)]
    x[...] = values.reshape(shape)
    return x


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


# What goes by the shape of a parameter, and not by its elements alone.
SHAPED = [(rule, a) for rule, a in CONFIGURATIONS if RULES[rule].needs != "element-wise"]
SHAPES = (
    (), (0,), (7,), (0, 5), (5, 0), (2, 0, 3), (1, 1), (3, 5), (5, 3), (1, 700), (700, 1),
    (40, BLOCK_SIZE + 1), (2, CHUNK_SIZE + 1), (3, 20, 30), (3, 4, 3, 3),
)  # fmt: skip
# Several bands of rows; of long rows; several items of small matrices; bands of several matrices.
LARGE = ((600, 100), (40, 2 * CHUNK_SIZE + 1), (41, 100, 3, 3), (2, 400, 200), (2100, 33))


@pytest.mark.parametrize(("rule", "arguments"), SHAPED, ids=label)
@pytest.mark.parametrize("dtype", DTYPES, ids=label)
@pytest.mark.parametrize("level", LEVELS)
def test_shapes(rule, arguments, dtype, level):
    """In four layouts, which change from step to step for gradients."""
    dispatch.use(level)
    use_threads(3)
    for first in range(4):
        run(rule, arguments, dtype, SHAPES[first:] + SHAPES[:first], 4, normal, layouts=4)
    run(rule, arguments, dtype, SHAPES, 4, special, layouts=4)
    run(rule, arguments, dtype, SHAPES, 4, wide, layouts=4)


@pytest.mark.parametrize(("rule", "arguments"), SHAPED, ids=label)
@pytest.mark.parametrize("dtype", DTYPES, ids=label)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_large_shapes(rule, arguments, dtype, threads):
    use_threads(threads)
    run(rule, arguments, dtype, LARGE, 2, normal, layouts=4)


@pytest.mark.parametrize(("rule", "arguments"), SHAPED, ids=label)
@pytest.mark.parametrize("options", STAGES, ids="+".join)
def test_stages_around_shapes(rule, arguments, options):
    for level in LEVELS:
        dispatch.use(level)
        for dtype in DTYPES:
            run(rule, arguments, dtype, ((7,), (20, 30), (3, 4, 5)), 4, normal, options, layouts=4)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("rule", "arguments"), SHAPED, ids=label)
@pytest.mark.parametrize("dtype", DTYPES, ids=label)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("draw", [normal, wide, special], ids=lambda f: f.__name__)
def test_every_product_of_the_axes_of_shapes(rule, arguments, dtype, level, threads, draw):
    dispatch.use(level)
    use_threads(threads)
    for first in range(4):
        sizes = SHAPES[first:] + SHAPES[:first] + LARGE
        run(rule, arguments, dtype, sizes, 4, draw, seed=threads, layouts=4)
