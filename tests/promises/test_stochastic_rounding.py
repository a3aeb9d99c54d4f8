"""Stochastic rounding: to one of two neighbours, right in the mean, by numbers that follow from
seed, parameter, step and place."""

import numpy as np
import pytest
from cases import BY_RULE, LEVELS, label, use_threads

import steepest as st
from steepest import checkpoint, codecs
from steepest.extension.testing import equals_reference, normal, same_bits, special, wide
from steepest.kernels import dispatch
from steepest.kernels.engine import BLOCK_SIZE, CHUNK_SIZE
from steepest.memory import formats
from steepest.optimizers import RULES

SIZES = (0, 1, 7, BLOCK_SIZE + 1, CHUNK_SIZE + 1, (3, 40), (33, 17))
NUMBERED = [pytest.param(i, *x.values, marks=x.marks) for i, x in enumerate(BY_RULE)]
NAMES = ("bfloat16", "float16")
STOCHASTIC = {"rounding": "stochastic", "rounding_seed": 5}

both = pytest.mark.parametrize("name", NAMES)


def equal_to_the_reference(rule, arguments, name, steps=3, draw=normal, sizes=SIZES):
    dtypes = formats.named(name), np.dtype(np.float32)
    layouts = 1 if RULES[rule].prepares else 4  # BLAS gives other bits for other layouts
    given = arguments | STOCHASTIC
    equals_reference(RULES[rule], given, dtypes, sizes, steps, draw, layouts=layouts)


@pytest.mark.parametrize(("number", "rule", "arguments"), NUMBERED, ids=label)
def test_every_rule(number, rule, arguments):
    dispatch.use(LEVELS[number % len(LEVELS)])
    use_threads(1 + number % 3)
    equal_to_the_reference(rule, arguments, NAMES[number % 2])


@pytest.mark.exhaustive
@pytest.mark.parametrize(("rule", "arguments"), BY_RULE, ids=label)
@pytest.mark.parametrize("level", LEVELS)
@both
def test_every_rule_at_every_level(rule, arguments, level, name):
    dispatch.use(level)
    for threads, draw in ((1, normal), (3, wide)):
        use_threads(threads)
        equal_to_the_reference(rule, arguments, name, 6, draw)


@both
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("draw", [wide, special], ids=lambda f: f.__name__)
def test_numbers_of_all_sizes(name, level, draw):
    dispatch.use(level)
    for rule, more in (("sgd", {}), ("lamb", {}), ("lion", {"state_dtype": "float64"})):
        equal_to_the_reference(rule, {"lr": 0.01} | more, name, 5, draw)


@both
@pytest.mark.parametrize(
    "options",
    [
        {"clip": (st.clip.adaptive(0.05), st.clip.value(0.7)), "average": st.average.tail(1)},
        # A parameter is stored between these, and rounded each time.
        {"clip": st.clip.adaptive(0.05), "lookahead": st.average.lookahead(1, 0.37),
         "regularize": (st.regularize.max_norm(1.0, axis=0), st.regularize.simplex(2.0, axis=0))},
        {"regularize": st.regularize.unit_norm(axis=None)},
        {"lookahead": st.average.lookahead(2, 0.37), "filter": st.filters.mars(0.3), "ema": 0.9},
        {"cautious": True, "decay_mode": "decoupled", "filter": st.filters.centralize()},
    ],
    ids="+".join,
)  # fmt: skip
def test_operations_around(name, options):
    equal_to_the_reference("adamw", {"lr": 0.1} | options, name)


@both
@pytest.mark.parametrize("rule", ["adamw", "lion", "lamb"])
def test_beside_states_of_8_bits(name, rule):
    """Which have random numbers of their own."""
    dtypes = formats.named(name), np.dtype(np.float32)
    given = {"lr": 0.01, "state_dtype": "q8"} | STOCHASTIC
    equals_reference(RULES[rule], given, dtypes, (7, 4096, 5000, (70, 90)), 3, normal, layouts=4)


# What is rounded to what


def numbers(name):
    """All magnitudes that a format has, its ends, and what lies between its numbers."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 32, 1 << 17, dtype=np.uint32)
    found = bits.view(np.float32)
    found[np.isnan(found)] = np.nan  # NumPy warns of casts of some others
    if name == "float16":
        small = rng.standard_normal(1 << 16) * 2.0 ** rng.uniform(-30, 16, 1 << 16)
        found = np.concatenate([found, small.astype(np.float32)])
    ends = np.array([0, 65504, 65519, 65520, 65535, 65536, 6.1e-5, 6e-8, 1e-9, 1e-45, 3.39e38])
    return np.concatenate([found, ends.astype(np.float32), -ends.astype(np.float32)])


def steps_of(x, name, n, level=LEVELS[-1], seed=0):
    """What x is rounded to in each of n steps, as float64: p - 1 · g with p = 0 is -g."""
    dispatch.use(level)
    p = np.zeros(x.size, formats.named(name))
    opt = st.SGD(p, lr=1.0, rounding="stochastic", rounding_seed=seed)
    for _ in range(n):
        p.view(np.uint16)[...] = 0
        with np.errstate(all="ignore"):
            opt.step(-x)
        yield codecs.decoded(p, np.float64)


@both
@pytest.mark.parametrize("level", LEVELS)
def test_numbers_become_one_of_their_neighbours(name, level):
    x = numbers(name)
    dtype = formats.named(name)
    near = codecs.encoded(x, dtype)
    bits = near.view(np.uint16).astype(np.int64)
    exact, rounded = x.astype(np.float64), codecs.decoded(near, np.float64)
    with np.errstate(invalid="ignore"):
        step = np.where(np.abs(rounded) > np.abs(exact), -1, 1)
        step[rounded == exact] = 0
    other = (bits + step).astype(np.uint16).view(dtype)
    other = codecs.decoded(other, np.float64)
    numbers_ = ~np.isnan(x)
    moved = np.zeros(x.size, bool)
    for found in steps_of(x, name, 8, level):
        assert np.isnan(found[~numbers_]).all()
        assert ((found == rounded) | (found == other))[numbers_].all()
        moved |= found == other
    ordinary = (np.abs(x) > 1e-6) & (np.abs(x) < 65504) & (step != 0)
    assert moved[ordinary].mean() > 0.7  # the further one, in one of 8 steps


@both
def test_what_can_be_stored_is_left_alone(name):
    """Zero gradients move nothing, whatever the number."""
    p = np.arange(1 << 16, dtype=np.uint16).view(formats.named(name))
    before = p.copy()
    opt = st.SGD(p, lr=1.0, rounding="stochastic")
    for _ in range(5):
        opt.step(np.zeros(p.size, np.float32))
    same_bits(p, before)


# Unbiased


def between(name, n):
    """Numbers from 2 to 4, and how far above their lower neighbours: 0.1 to 0.9 of the distance."""
    rng = np.random.default_rng(1)
    unit = 2.0 ** (-6 if name == "bfloat16" else -9)
    fraction = rng.uniform(0.1, 0.9, n)
    x = (2 + unit * (rng.integers(0, 100, n) + fraction)).astype(np.float32)
    return x, unit, x.astype(np.float64) / unit % 1


@both
def test_it_is_right_in_the_mean(name):
    """Over steps for each place, over places for each step, and for both: within 5 sigma; errors of
    neighbours in place and step are not correlated."""
    n, steps = 6000, 300
    x, unit, fraction = between(name, n)
    sigma = np.sqrt(fraction * (1 - fraction))
    z = np.array([(found - x) / unit / sigma for found in steps_of(x, name, steps, seed=7)])
    assert abs(z.sum()) < 5 * np.sqrt(z.size)
    assert np.abs(z.sum(axis=0)).max() < 5 * np.sqrt(steps)
    assert np.abs(z.sum(axis=1)).max() < 5 * np.sqrt(n)
    for lag in (1, 2, 4, 16, 128, 512, 1024):
        product = z[:, lag:] * z[:, :-lag]
        assert abs(product.sum()) < 5 * np.sqrt(product.size), lag
    for lag in (1, 2, 8):
        product = z[lag:] * z[:-lag]
        assert abs(product.sum()) < 5 * np.sqrt(product.size), lag
    # As many errors of each size as there should be: the variance is that of a coin.
    assert abs(np.mean(z**2) - 1) < 5 * np.sqrt(np.mean(z**4) / z.size)


@both
def test_it_is_right_in_the_mean_for_small_parts_of_a_unit(name):
    """A thousandth of a unit is seldom taken for a whole one, but as often as it should be; so are
    parts of float16's smallest number."""
    base = 2.0 if name == "bfloat16" else 0.0
    unit = 2.0 ** (-6 if name == "bfloat16" else -24)
    for part in (2.0**-10, 3 * 2.0**-12, 1 - 2.0**-10):
        x = np.full(20_000, base + unit * part, np.float32)
        found = np.array([(y - base) / unit for y in steps_of(x, name, 50)])
        sigma = np.sqrt(part * (1 - part) / found.size)
        assert abs(found.mean() - part) < 5 * sigma, part
        assert found.var() > 0


@both
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.filterwarnings("ignore:parameter '0' stands still")
def test_small_updates_count(name, rounding):
    """200 steps of 0.001 from 1: within 1 % of exact in the mean; to nearest, bfloat16 stays."""
    p = codecs.encoded(np.ones(20_000), formats.named(name))
    twin = np.ones(1)
    opt = st.AdamW(p, lr=1e-3, rounding=rounding)
    other = st.AdamW(twin, lr=1e-3)
    for _ in range(200):
        opt.step(np.ones(p.size, np.float32))
        other.step(np.ones(1))
    moved = 1 - codecs.decoded(p, np.float64)
    off = abs(moved.mean() / (1 - twin[0]) - 1)
    if rounding == "stochastic":
        assert off < 0.01
    elif name == "bfloat16":
        assert not moved.any()


# What the random numbers depend on


def trained(p, rule="adamw", steps=3, threads=1, level=LEVELS[-1], **options):
    dispatch.use(level)
    use_threads(threads)
    rng = np.random.default_rng(3)
    params = p if isinstance(p, list) else [p]
    opt = RULES[rule](params, lr=0.1, **(STOCHASTIC | options))
    for _ in range(steps):
        opt.step([rng.standard_normal(x.shape).astype(np.float32) for x in params])
    return params


def start(name, shape=(300, 500)):
    return codecs.encoded(np.random.default_rng(2).standard_normal(shape), formats.named(name))


@both
@pytest.mark.parametrize("rule", ["adamw", "lamb", "adafactor"])
def test_threads_levels_and_layouts_give_the_same_bits(name, rule):
    p = start(name)
    [expected] = trained(p.copy(), rule)
    room = np.zeros((600, 1500), p.dtype)
    room[::2, ::3] = p
    layouts = [p.copy(), np.asfortranarray(p), room[::2, ::3], p[::-1].copy()[::-1]]
    for number, x in enumerate(layouts):
        for level in LEVELS:
            y = x if level == LEVELS[-1] else x.copy(order="K")
            [found] = trained(y, rule, threads=1 + number % 3, level=level)
            same_bits(found, expected, f"layout {number}, {level}")


@both
def test_they_depend_on_seed_parameter_step_and_place(name):
    x = codecs.encoded(np.ones(1000), formats.named(name))

    def bits(*given, **options):
        return [p.view(np.uint16).tolist() for p in trained([y.copy() for y in given], **options)]

    twice = bits(x, x, rule="sgd", steps=1)
    g = np.full(1000, 2.0**-12, np.float32)
    p, q = x.copy(), x.copy()
    opt = st.SGD([p, q], lr=1.0, **STOCHASTIC)
    found = []
    for _ in range(2):
        p[...] = q[...] = x
        opt.step([g, g])
        found += [p.view(np.uint16).copy(), q.view(np.uint16).copy()]
    assert len({tuple(y) for y in found}) == 4  # for each parameter and each step
    assert all(len(set(y.tolist())) == 2 for y in found)  # for each place
    assert twice == bits(x, x, rule="sgd", steps=1)
    assert twice != bits(x, x, rule="sgd", steps=1, rounding_seed=6)


@both
def test_a_run_that_is_resumed_goes_on_with_the_same_bits(name, tmp_path):
    rng = np.random.default_rng(3)
    grads = rng.standard_normal((4, 40, 50)).astype(np.float32)
    p = start(name, (40, 50))
    opt = st.AdamW({"w": p}, lr=0.1, **STOCHASTIC)
    for g in grads[:2]:
        opt.step({"w": g})
    checkpoint.save(tmp_path / "x", opt, {"w": p})
    again, loaded = np.zeros_like(p), p.copy()
    other = st.AdamW({"w": again}, lr=0.1)
    checkpoint.load(tmp_path / "x", other, {"w": again})
    third = st.AdamW({"w": loaded}, lr=0.1)
    third.load_state_dict(opt.state_dict())
    for g in grads[2:]:
        for one in (opt, other, third):
            one.step({"w": g})
    same_bits(again, p)
    same_bits(loaded, p)


def test_groups_may_round_in_their_own_way():
    """And change their minds."""
    x = codecs.encoded(np.ones(1000), codecs.BFLOAT16)
    p, q, r = x.copy(), x.copy(), np.ones(1000, np.float32)
    opt = st.SGD(
        [{"params": [p, r], "rounding": "stochastic"}, {"params": [q]}], lr=2.0**-10, momentum=0.0
    )
    g = np.ones(1000, np.float32)
    opt.step([[g, g], [g]])
    assert len(set(p.view(np.uint16).tolist())) == 2
    same_bits(q, x)
    assert (r == np.float32(1 - 2.0**-10)).all()
    before = p.copy()
    opt.param_groups[0]["rounding"], opt.param_groups[1]["rounding"] = "nearest", "stochastic"
    opt.step([[g, g], [g]])
    same_bits(p, before)
    assert len(set(q.view(np.uint16).tolist())) == 2


def test_what_is_refused():
    p, whole = codecs.encoded(np.ones((3, 3)), codecs.BFLOAT16), np.ones((3, 3), np.float32)
    with pytest.raises(ValueError, match="rounding = 'up'"):
        st.AdamW(p, rounding="up")
    with pytest.raises(ValueError, match="rounding = 'stochastic' has no effect: no parameter is"):
        st.AdamW(whole, rounding="stochastic")
    with pytest.raises(ValueError, match="rounding = 'stochastic' with master = 'split16'"):
        st.AdamW(p, rounding="stochastic", master="split16")
    with pytest.raises(ValueError, match="axis 1 with rounding = 'stochastic': expected axis 0"):
        st.AdamW(p, rounding="stochastic", regularize=st.regularize.max_norm(1.0, axis=1))
