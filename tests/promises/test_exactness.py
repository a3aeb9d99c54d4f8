"""The kernels equal the reference to the last bit: every rule, type, level, thread count, size."""

from typing import Any

import pytest
from cases import (
    BY_RULE,
    CONFIGURATIONS,
    DTYPES,
    EACH_LEVEL,
    LEVELS,
    SETS_OF_LEVELS,
    STAGES,
    brief,
    fitting,
    label,
    use_threads,
)  # fmt: skip

from steepest.extension.testing import SIZES, equals_reference, normal, special, wide
from steepest.kernels import dispatch
from steepest.kernels.engine import BLOCK_SIZE, CHUNK_SIZE
from steepest.optimizers import RULES

THREADS = (1, 2, 3)

# All run at the best level in float32; the first configuration of each rule also in float64, and at
# the lesser levels.
_PRODUCT = [(*x, level, dtype) for x in CONFIGURATIONS for level in LEVELS for dtype in DTYPES]
_FIRST = list(dict(reversed(CONFIGURATIONS)).items())
AT_LEVELS = brief(
    _PRODUCT,
    [
        x
        for x in _PRODUCT
        if (x[2] == LEVELS[-1] or x[3] == DTYPES[0])
        and (x[:2] in _FIRST or x[2:] == (LEVELS[-1], DTYPES[0]))
    ],
)


def run(rule: str, arguments: dict[str, Any], *axes: Any, **options: Any) -> None:
    equals_reference(RULES[rule], arguments, *axes, **options)


@pytest.mark.parametrize(("rule", "arguments", "level", "dtype"), AT_LEVELS, ids=label)
def test_fifty_steps_equal_the_reference(rule, arguments, level, dtype):
    """Three threads; the exhaustive test below runs the other counts."""
    dispatch.use(level)
    use_threads(3)
    steps = 9 if RULES[rule].needs == "matrix" else 50  # these are the same NumPy on both sides
    run(rule, arguments, dtype, SIZES, steps, normal)


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
@pytest.mark.parametrize("level", EACH_LEVEL)
@pytest.mark.parametrize("draw", [wide, special], ids=lambda f: f.__name__)
def test_special_values(rule, arguments, level, draw):
    dispatch.use(level)
    for dtype in DTYPES:
        run(rule, arguments, dtype, (0, 1, 7, 331), 6, draw)


@pytest.mark.parametrize(("rule", "arguments"), BY_RULE, ids=label)
@pytest.mark.parametrize("dtype", DTYPES, ids=label)
@pytest.mark.parametrize("levels", SETS_OF_LEVELS, ids="+".join)
def test_the_tail_of_every_vector_width(rule, arguments, dtype, levels):
    for level in levels:
        dispatch.use(level)
        run(rule, arguments, dtype, tuple(range(70)), 2, normal)


@pytest.mark.parametrize(("rule", "arguments"), BY_RULE, ids=label)
@pytest.mark.parametrize("options", STAGES, ids="+".join)
@pytest.mark.parametrize("levels", SETS_OF_LEVELS, ids="+".join)
@pytest.mark.parametrize("draw", brief([normal, special], [normal]), ids=lambda f: f.__name__)
def test_stages_around_every_rule(rule, arguments, options, levels, draw):
    options = fitting(rule, arguments, options)
    for level in levels:
        dispatch.use(level)
        for dtype in DTYPES:
            run(rule, options, dtype, (1, 7, BLOCK_SIZE + 1), 4, draw)


# What depends on the shape of a parameter, and not on its elements alone.
SHAPED = [(r, a) for r, a in CONFIGURATIONS if RULES[r].needs in ("layer-wise", "global")]
BY_ROWS = [(rule, a) for rule, a in SHAPED if RULES[rule].factors]
SHAPES = (
    (), (0,), (7,), (0, 5), (5, 0), (2, 0, 3), (1, 1), (3, 5), (5, 3), (1, 700), (700, 1),
    (40, BLOCK_SIZE + 1), (2, CHUNK_SIZE + 1), (3, 20, 30), (3, 4, 3, 3),
    (2, 5, 1, 1), (3, 2, 7, 5),
)  # fmt: skip
# Several bands of rows; of long rows; several items of small matrices; bands of several matrices.
# Together more than what is swept at a time by 1 or 2 threads.
LARGE = (
    (600, 100), (40, 2 * CHUNK_SIZE + 1), (41, 100, 3, 3), (2, 400, 200), (2100, 33),
    (60, 50, 1, 1), (20, 30, 5, 5), (13, 21, 7, 7), (1400, 1), (7, 2, CHUNK_SIZE + 5),
)  # fmt: skip


@pytest.mark.parametrize(("rule", "arguments"), SHAPED, ids=label)
@pytest.mark.parametrize("dtype", brief(DTYPES, DTYPES[:1]), ids=label)
@pytest.mark.parametrize("level", EACH_LEVEL)
def test_shapes(rule, arguments, dtype, level):
    """In four layouts, which change from step to step for gradients."""
    dispatch.use(level)
    use_threads(3)
    for first in range(4):
        run(rule, arguments, dtype, SHAPES[first:] + SHAPES[:first], 4, normal, layouts=4)
    run(rule, arguments, dtype, SHAPES, 4, special, layouts=4)
    run(rule, arguments, dtype, SHAPES, 4, wide, layouts=4)


@pytest.mark.parametrize(("rule", "arguments"), SHAPED, ids=label)
@pytest.mark.parametrize("dtype", brief(DTYPES, DTYPES[:1]), ids=label)
@pytest.mark.parametrize("threads", brief([1, 2, 5], [5]))
def test_large_shapes(rule, arguments, dtype, threads):
    use_threads(threads)
    run(rule, arguments, dtype, LARGE, 2, normal, layouts=4)


@pytest.mark.parametrize(("rule", "arguments"), BY_ROWS, ids=label)
@pytest.mark.parametrize("options", STAGES, ids="+".join)
@pytest.mark.parametrize("levels", SETS_OF_LEVELS, ids="+".join)
def test_stages_around_shapes(rule, arguments, options, levels):
    options = fitting(rule, arguments, options)
    for level in levels:
        dispatch.use(level)
        for dtype in DTYPES:
            run(rule, options, dtype, ((7,), (20, 30), (3, 4, 5)), 4, normal, layouts=4)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("rule", "arguments"), BY_ROWS, ids=label)
@pytest.mark.parametrize("dtype", DTYPES, ids=label)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("draw", [wide, special], ids=lambda f: f.__name__)
def test_every_product_of_the_axes_of_shapes(rule, arguments, dtype, level, threads, draw):
    dispatch.use(level)
    use_threads(threads)
    run(rule, arguments, dtype, SHAPES + LARGE, 4, draw, seed=threads, layouts=4)
