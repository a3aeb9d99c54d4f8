"""Formats are exact: a kernel's result is encode(rule(decode(x))) to the last bit.

For every rule, with formats of parameter, gradient and states of their own.
"""

from itertools import product

import numpy as np
import pytest
from cases import BY_RULE, LEVELS, label, use_threads

import steepest as st
from steepest import codecs
from steepest.extension.testing import equals_reference, normal, special, wide
from steepest.kernels import dispatch
from steepest.kernels.engine import BLOCK_SIZE, CHUNK_SIZE
from steepest.memory import formats
from steepest.optimizers import RULES

NAMES = ("float32", "float64", "bfloat16", "float16")
SIZES = (0, 1, 7, BLOCK_SIZE + 1, CHUNK_SIZE + 1, (3, 40), (33, 17))
NUMBERED = [pytest.param(i, *x.values, marks=x.marks) for i, x in enumerate(BY_RULE)]
ROLES = list(product(NAMES, NAMES, (None, *NAMES)))
"""Parameter, gradient, states."""


def pairwise(shift):
    """Few of these, among which any two formats meet in any two roles; others for other shifts."""
    n = len(NAMES)
    square = [(i, (i + j) % n, j) for i in range(n) for j in range(n)]
    return [
        (NAMES[i], NAMES[(j + shift) % n], (None, *NAMES)[(k + shift * i) % (n + 1)])
        for i, j, k in square
    ]


def with_states(rule, arguments, of_states):
    """The arguments, and a format of states where the rule takes one."""
    cls = RULES[rule]
    h = {name: field.default for name, field in cls.fields.items()} | arguments
    if of_states is None or cls.prepares:
        return arguments
    own = dict.fromkeys((*cls.states(h), *cls.beside(h)))
    if not own:
        return arguments
    every = of_states if {*own} - {*cls.points} else {next(iter(own)): of_states}
    return arguments | {"state_dtype": every}


def run(rule, arguments, roles, sizes, steps, draw, **options):
    p, g, of_states = roles
    dtypes = formats.named(p), formats.named(g)
    if RULES[rule].prepares:  # BLAS gives other bits for other layouts
        options = {"layouts": 1}
    equals_reference(
        RULES[rule], with_states(rule, arguments, of_states), dtypes, sizes, steps, draw, **options
    )


@pytest.mark.parametrize(("number", "rule", "arguments"), NUMBERED, ids=label)
def test_every_rule_in_every_format(number, rule, arguments):
    """A sixth of the pairs each; the exhaustive test has all of the product."""
    chosen = pairwise(number)[number % 6 :: 6]
    for k, roles in enumerate(chosen):
        dispatch.use(LEVELS[(number + k) % len(LEVELS)])
        use_threads(1 + k % 3)
        run(rule, arguments, roles, SIZES, 3, normal, layouts=4)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("rule", "arguments"), BY_RULE, ids=label)
@pytest.mark.parametrize("level", LEVELS)
def test_the_product_of_roles(rule, arguments, level):
    dispatch.use(level)
    use_threads(3)
    for roles in ROLES:
        run(rule, arguments, roles, SIZES, 2, normal, layouts=4)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("rule", "arguments"), BY_RULE, ids=label)
@pytest.mark.parametrize("draw", [wide, special], ids=lambda f: f.__name__)
def test_special_values(rule, arguments, draw):
    for level in LEVELS:
        dispatch.use(level)
        for roles in pairwise(0):
            run(rule, arguments, roles, (0, 1, 7, 331), 4, draw)


AROUND = [
    {"l1": 0.031, "maximize": True, "ema": 0.93},
    {"clip": (st.clip.adaptive(0.05), st.clip.value(0.7)), "average": st.average.tail(1)},
    {"regularize": (st.regularize.toward_initial(0.1), st.regularize.max_norm(1.0, axis=0))},
    {"lookahead": st.average.lookahead(2, 0.37), "filter": st.filters.mars(0.3)},
    {"cautious": True, "decay_mode": "decoupled", "filter": st.filters.centralize()},
    {"decay_mode": "proximal", "regularize": st.regularize.l1(0.1, proximal=True)},
]


@pytest.mark.parametrize("options", AROUND, ids="+".join)
@pytest.mark.parametrize("rule", ["adamw", "lion", "sgd"])
def test_operations_around_rules(rule, options):
    given = ({"momentum": 0.9} if rule == "sgd" else {}) | {"lr": 0.1} | options
    for k, roles in enumerate(pairwise(1)):
        dispatch.use(LEVELS[k % len(LEVELS)])
        run(rule, given, roles, (1, 7, BLOCK_SIZE + 1, (33, 17)), 4, normal)


@pytest.mark.parametrize("key", ["ema", "slow", "previous"])
def test_the_state_of_an_operation_has_a_format_of_its_own(key):
    options = {
        "ema": {"ema": 0.93}, "slow": {"lookahead": st.average.lookahead(2, 0.37)},
        "previous": {"filter": st.filters.mars(0.3)},
    }[key]  # fmt: skip
    opt = st.AdamW(np.ones((4, 3), np.float32), **options)
    [own] = opt.state["0"].keys() - {"step", "exp_avg", "exp_avg_sq"}
    given = {"lr": 0.1, **options, "state_dtype": {own: "bfloat16"}}
    for name in NAMES:
        run("adamw", given, (name, name, None), (1, 7, BLOCK_SIZE + 1), 4, normal)


# The codecs alone, on a step that only copies: p - 1 · g with p = 0 is -g.


def every_number(name):
    """All patterns of a format of 16 bits, or many of the others, at all magnitudes."""
    dtype = formats.named(name)
    if dtype.itemsize == 2:
        return np.arange(1 << 16, dtype=np.uint16).view(dtype)
    rng = np.random.default_rng(0)
    if name == "float32":
        return rng.integers(0, 1 << 32, 1 << 16, dtype=np.uint32).view(np.float32)
    # Halves between numbers of 16 bits, and what a rounding to float32 makes such a half.
    short = [codecs.decoded(every_number(x), np.float64) for x in ("bfloat16", "float16")]
    x = np.concatenate(short)
    x = np.sort(np.abs(x[np.isfinite(x)]))
    halves = (x[1:] + x[:-1]) / 2
    near = [halves, halves * (1 + 2.0**-40), halves * (1 - 2.0**-40), halves * (1 + 2.0**-24)]
    return np.concatenate([*near, rng.standard_normal(4096) * 10.0 ** rng.uniform(-50, 40, 4096)])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("stored", NAMES)
@pytest.mark.parametrize("blocks", ["float32", "float64"])
@pytest.mark.parametrize("stride", [1, 3])
def test_every_pattern_is_decoded(level, stored, blocks, stride):
    dispatch.use(level)
    x = every_number(stored)
    g = np.zeros(stride * x.size, x.dtype)[::stride]
    g[...] = x
    p = np.zeros(x.size, blocks)
    with np.errstate(all="ignore"):
        st.SGD(p, lr=1.0).step(g)
        expected = -codecs.decoded(x, blocks)
    np.testing.assert_array_equal(p, expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("stored", "blocks"),  # a float64 parameter is computed in float64
    [x for x in product(NAMES, ["float32", "float64"]) if x != ("float64", "float32")],
)
@pytest.mark.parametrize("stride", [1, 3])
def test_numbers_are_rounded_once_to_the_nearest(level, stored, blocks, stride):
    dispatch.use(level)
    with np.errstate(all="ignore"):
        x = np.concatenate([every_number(name).astype(blocks) for name in ("float32", "float64")])
    x = np.concatenate([x, -x])
    p = np.zeros(stride * x.size, formats.named(stored))[::stride]
    # momentum is a state, which may be float64 under any parameter
    given = {"momentum": 0.5, "state_dtype": blocks} if blocks == "float64" else {}
    with np.errstate(all="ignore"):
        st.SGD(p, lr=1.0, **given).step(x)
    actual, expected = (
        codecs.decoded(p, np.float64),
        codecs.decoded(codecs.encoded(-x, p.dtype), np.float64),
    )
    np.testing.assert_array_equal(actual, expected)


def test_the_codecs_in_numpy_round_as_others_do():
    """float16 as NumPy's own, bfloat16 as ml_dtypes' from float32; from float64 to the nearer of
    the two neighbours."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    bits = np.arange(1 << 16, dtype=np.uint16)
    theirs = bits.view(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(codecs.from_bfloat16(theirs), theirs.astype(np.float32))
    x = np.random.default_rng(1).integers(0, 1 << 32, 1 << 18, dtype=np.uint32).view(np.float32)
    with np.errstate(all="ignore"):
        expected = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(codecs.from_bfloat16(codecs.to_bfloat16(x)), expected)

    y = every_number("float64")
    y = y[np.abs(y) < 3e38]
    found = codecs.from_bfloat16(codecs.to_bfloat16(y)).astype(np.float64)
    at = codecs.to_bfloat16(y).view(np.uint16).astype(np.int64)
    for step in (1, -1):
        beside = codecs.from_bfloat16((at + step).astype(np.uint16).view(codecs.BFLOAT16))
        with np.errstate(all="ignore"):
            other = np.abs(beside.astype(np.float64) - y)
        nearer = np.abs(found - y) <= other
        assert (nearer | ~np.isfinite(other)).all()
        ties = (np.abs(found - y) == other) & np.isfinite(other) & (found != beside)
        assert not (at[ties] & 1).any()
