"""Checks of a rule: its kernels against its reference, to the last bit.

``check_rule`` runs them all for one class, of this library or of another package.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from steepest import reference
from steepest.codecs import encoded, from_bfloat16, is_bfloat16
from steepest.core import internal
from steepest.core.optimizer import Optimizer
from steepest.kernels import dispatch, threads
from steepest.kernels.engine import BLOCK_SIZE, CHUNK_SIZE
from steepest.memory.arrays import Array
from steepest.options import clip
from steepest.reference.types import State

__all__ = [
    "DRAWS", "SIZES", "check_rule", "equals_reference", "misaligned", "normal", "reference_hyper",
    "reference_step", "running", "same_bits", "shared_numbers", "special", "wide",
]  # fmt: skip

SIZES = (
    0, 1, 7, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, CHUNK_SIZE - 1, CHUNK_SIZE + 1, 10_007
)  # fmt: skip
"""Sizes around the edges of blocks and chunks."""

_STAGES: tuple[dict[str, Any], ...] = (
    {"decay_mode": "l2", "l1": 0.01, "maximize": True},
    {"decay_mode": "decoupled", "ema": 0.5},
    {"clip": clip.value(0.7)},
)


def check_rule(
    cls: type[Optimizer],
    arguments: Mapping[str, Any] | None = None,
    *,
    steps: int = 20,
    workers: Sequence[int] = (1, 2, 3),
) -> None:
    """Raises AssertionError unless the rule's kernels give the bits of its reference.

    At every instruction-set level of this CPU, for float32 and float64 and every number of
    `workers` (threads, also more than there are CPUs): sizes around blocks and vectors; normal
    gradients and parameters, wide ones (1e-30 to 1e12, zeros of both signs) and special ones
    (infinite, NaN, subnormal); with clipping, decays, maximize and ema around the rule. `arguments`
    are the class's, best none of them its default. Raises LookupError for a rule whose reference is
    not registered (``reference.register``). Takes a second or two.

    >>> import steepest as st
    >>> from steepest.testing import check_rule
    >>> check_rule(st.Lion, {"betas": (0.8, 0.95), "weight_decay": 0.1}, steps=3, workers=[2])
    """
    given = dict(arguments or {})
    for level in dispatch.available():
        for count in workers:
            with running(level, count):
                for dtype in (np.float32, np.float64):
                    equals_reference(cls, given, dtype, SIZES, steps, normal, seed=count)
        with running(level, max(workers)):
            for dtype in (np.float32, np.float64):
                equals_reference(cls, given, dtype, range(70), 2, normal)
                for draw in (wide, special):
                    equals_reference(cls, given, dtype, (0, 1, 7, 331), 6, draw)
                for options in _STAGES:
                    around = given | options
                    equals_reference(cls, around, dtype, (1, 7, BLOCK_SIZE + 1), 4, normal)


def equals_reference(
    cls: type[Optimizer],
    arguments: Mapping[str, Any],
    dtype: Any,
    sizes: Sequence[int | tuple[int, ...]],
    steps: int,
    draw: Callable[[np.random.Generator, int], Array],
    seed: int = 0,
    layouts: int = 1,
) -> None:
    """Steps all sizes as one list of parameters, and each by the reference; compares the bits.

    A size may be a shape; with `layouts` up to 4, such arrays lie in memory in as many ways, which
    change from step to step for gradients. `dtype` is that of parameters and gradients, or a pair
    of one for each. Raises AssertionError where bits differ. Parameters and gradients are
    misaligned.
    """
    dtype, of_gradients = dtype if isinstance(dtype, tuple) else (dtype, dtype)
    rng = np.random.default_rng(seed)
    shapes = [n if isinstance(n, tuple) else (n,) for n in sizes]
    params = [_new(draw, rng, s, dtype, i % 5, i % layouts) for i, s in enumerate(shapes)]
    twins = [p.copy() for p in params]
    make: Any = cls
    opt: Optimizer = make(params, **arguments)
    for state in opt.state.values():
        if "hessian" in state:  # which no step makes
            x = state["hessian"]
            x[...] = encoded(draw(rng, x.size).reshape(x.shape), x.dtype)
    states = [{k: x.copy() for k, x in opt.state[str(i)].items()} for i in range(len(sizes))]
    hyper, shared = reference_hyper(opt), shared_numbers(opt)
    where = f"{opt.rule}, level {dispatch.current.level}, {np.dtype(dtype)}, {draw.__name__} values"
    for t in range(1, steps + 1):
        grads = [
            _new(draw, rng, s, of_gradients, (i + t) % 7, (i + t) % layouts)
            for i, s in enumerate(shapes)
        ]
        kept = [g.copy() for g in grads]
        opt.step(grads)
        reference_step(opt, twins, grads, states, t, shared, **hyper)
        for g, before in zip(grads, kept, strict=True):
            same_bits(g, before, f"{where}: the caller's gradient")
        if t in (1, steps):  # the first shows what later steps cover, such as signs of zeros
            for i, p in enumerate(twins):
                what = f"of size {sizes[i]} after step {t}"
                same_bits(params[i], p, f"{where}: parameter {what}")
                _same_state(opt.state[str(i)], states[i], t, f"{where}: state %s {what}")
            if opt.needs == "global":
                for key, x in shared.items():
                    actual = np.array(opt.param_groups[0][key])
                    same_bits(actual, np.array(x), f"{where}: {key} after step {t}")


def reference_step(
    opt: Optimizer,
    params: list[Array],
    grads: list[Array],
    states: list[State],
    t: int,
    shared: dict[str, Any],
    **hyper: Any,
) -> None:
    """The t-th step of all parameters by the reference: one by one, or together where the rule is
    global."""
    with np.errstate(all="ignore"):
        if opt.needs == "global":
            steps = [t] * len(params)
            reference.step(opt.rule, params, grads, states, steps, shared=shared, **hyper)
            return
        names = [name for group in opt.param_groups for name in group["param_names"]]
        for k, (name, p, g, state) in enumerate(zip(names, params, grads, states, strict=True)):
            reference.step(opt.rule, p, g, state, t, name=name, number=k, **hyper)


def shared_numbers(opt: Optimizer, group: int = 0) -> dict[str, Any]:
    """What the rule keeps of a group, beside its hyper-parameters."""
    return {key: opt.param_groups[group][key] for key in opt.shared(opt.param_groups[group])}


def _same_state(actual: Mapping[str, Array], expected: State, t: int, what: str) -> None:
    for key, x in actual.items():
        if key == "step":
            assert x == t, f"{what % key}: {x}, expected {t}"
        else:
            same_bits(x, expected[key], what % key)


@contextmanager
def running(level: str, workers: int) -> Iterator[None]:
    """At that level, with that many threads even where the machine has fewer CPUs."""
    before = dispatch.current.level
    dispatch.use(level)
    try:
        with threads.forced(workers):
            yield
    finally:
        dispatch.use(before)


def reference_hyper(opt: Optimizer, group: int = 0) -> dict[str, Any]:
    """A group's hyper-parameters as ``reference.step`` takes them."""
    found = opt.param_groups[group]
    return {key: found[key] for key in internal.rule_of(opt, found).defaults}


def same_bits(actual: Array, expected: Array, what: str = "") -> None:
    """Equality to the last bit, the sign of zero included; NaN equals NaN whatever its payload."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape, what
    if is_bfloat16(actual.dtype):
        actual, expected = from_bfloat16(actual), from_bfloat16(expected)
    np.testing.assert_array_equal(actual, expected, err_msg=what)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(
        np.signbit(actual)[numbers], np.signbit(expected)[numbers], err_msg=f"{what}: sign of zero"
    )


def _new(
    draw: Callable[[np.random.Generator, int], Array],
    rng: np.random.Generator,
    shape: tuple[int, ...],
    dtype: Any,
    shift: int,
    kind: int,
) -> Array:
    """An array of a draw: misaligned, or in Fortran's order, or every other element of a larger
    one, or with its first axis running backwards."""
    values = encoded(draw(rng, math.prod(shape)), np.dtype(dtype))
    if kind == 0 or not shape:
        return misaligned(values, shift).reshape(shape)
    if kind == 1:
        return np.asfortranarray(values.reshape(shape))
    room: Array = np.zeros([2 * n for n in shape], dtype)
    x: Array = room[tuple(slice(None, None, 2) for _ in shape)]
    if kind == 3:
        x = room[: shape[0]][::-1][tuple(slice(0, n) for n in shape)]
    x[...] = values.reshape(shape)
    return x


def misaligned(values: Array, shift: int) -> Array:
    """A copy that begins `shift` elements behind a 64-byte boundary."""
    room = np.empty(values.size + 64, values.dtype)
    start = -room.__array_interface__["data"][0] // values.itemsize % (64 // values.itemsize)
    copy = room[start + shift : start + shift + values.size]
    copy[...] = values
    return copy


def normal(rng: np.random.Generator, n: int) -> Array:
    """Normal numbers."""
    return rng.standard_normal(n)


def wide(rng: np.random.Generator, n: int) -> Array:
    """Magnitudes from 1e-30 to 1e12, with zeros of both signs."""
    x = rng.standard_normal(n) * 10.0 ** rng.uniform(-30, 12, n)
    x[rng.random(n) < 0.1] = 0.0
    x[rng.random(n) < 0.05] = -0.0
    return x


def special(rng: np.random.Generator, n: int) -> Array:
    """Zeros, infinities, NaN, subnormal numbers, and the ends of float32's range."""
    values = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-42, -1e-310, 3e38, -1e-38])
    return rng.choice(values, n)


DRAWS = (normal, wide, special)
"""What parameters and gradients are made of."""
