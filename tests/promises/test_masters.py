"""Masters: parameters of 16 bits that are trained as float32, to the last bit, or with 24 bits or
two numbers of 16."""

import pickle

import numpy as np
import pytest
from cases import BY_RULE, LEVELS, label, same_bits, use_threads

import steepest as st
from steepest import checkpoint, codecs
from steepest.extension.testing import equals_reference, normal, special, wide
from steepest.kernels import dispatch
from steepest.kernels.engine import BLOCK_SIZE, CHUNK_SIZE
from steepest.memory import formats
from steepest.optimizers import RULES

SIZES = (0, 1, 7, BLOCK_SIZE + 1, CHUNK_SIZE + 1, (3, 40), (33, 17))
SHAPES = [(0,), (1,), (7,), (BLOCK_SIZE + 1,), (CHUNK_SIZE + 300,), (33, 17), (3, 20, 30)]
NUMBERED = [pytest.param(i, *x.values, marks=x.marks) for i, x in enumerate(BY_RULE)]
EXACT = [("split16", "bfloat16"), ("float32", "bfloat16"), ("float32", "float16")]
ROUNDED = [("split8", "bfloat16"), ("kahan", "bfloat16"), ("kahan", "float16")]
MASTERS = EXACT + ROUNDED


def exact(p, state):
    """The parameter as float32."""
    return codecs.joined(p, state["remainder"]) if "remainder" in state else state["master"]


def nearest(x, state, dtype):
    """The parameter of 16 bits that belongs to it."""
    return codecs.split(x)[0] if "remainder" in state else codecs.encoded(x, dtype)


def begun(rng, dtype, shapes=SHAPES):
    """Parameters, and the same as float32."""
    params = [codecs.encoded(rng.standard_normal(shape), dtype) for shape in shapes]
    return params, [codecs.decoded(p, np.float32) for p in params]


def trained_alike(rule, arguments, master, name, steps=6, shapes=SHAPES):
    """Steps both; AssertionError where bits differ."""
    rng = np.random.default_rng(5)
    dtype = formats.named(name)
    params, twins = begun(rng, dtype, shapes)
    opt = RULES[rule](params, **arguments, master=master)
    other = RULES[rule](twins, **arguments)
    for t in range(1, steps + 1):
        grads = [codecs.encoded(rng.standard_normal(s), dtype) for s in shapes]
        opt.step(grads)
        other.step(grads)
        for i, (p, twin) in enumerate(zip(params, twins, strict=True)):
            state, expected = opt.state[str(i)], other.state[str(i)]
            where = f"{rule}, step {t}, {shapes[i]}"
            same_bits(np.asarray(exact(p, state)), twin, where)
            same_bits(p.view(np.uint16), nearest(twin, state, dtype).view(np.uint16), where)
            for key, x in expected.items():
                same_bits(state[key], x, f"{where}: {key}")


@pytest.mark.parametrize(("number", "rule", "arguments"), NUMBERED, ids=label)
def test_every_rule_is_that_of_float32(number, rule, arguments):
    dispatch.use(LEVELS[number % len(LEVELS)])
    use_threads(1 + number % 3)
    master, name = EXACT[number % 3] if number % 2 else EXACT[0]
    trained_alike(rule, arguments, master, name)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("rule", "arguments"), BY_RULE, ids=label)
@pytest.mark.parametrize(("master", "name"), EXACT)
@pytest.mark.parametrize("level", LEVELS)
def test_every_rule_with_every_master(rule, arguments, master, name, level):
    dispatch.use(level)
    for threads in (1, 3):
        use_threads(threads)
        trained_alike(rule, arguments, master, name, 12)


def equal_to_the_reference(rule, arguments, master, name, steps=3, draw=normal):
    dtypes = formats.named(name), np.dtype(np.float32)
    layouts = 1 if RULES[rule].prepares else 4  # BLAS gives other bits for other layouts
    given = arguments | {"master": master}
    equals_reference(RULES[rule], given, dtypes, SIZES, steps, draw, layouts=layouts)


@pytest.mark.parametrize(("number", "rule", "arguments"), NUMBERED, ids=label)
def test_every_rule_rounds_as_its_reference(number, rule, arguments):
    dispatch.use(LEVELS[number % len(LEVELS)])
    use_threads(1 + number % 3)
    equal_to_the_reference(rule, arguments, *ROUNDED[number % 3])


@pytest.mark.exhaustive
@pytest.mark.parametrize(("rule", "arguments"), BY_RULE, ids=label)
@pytest.mark.parametrize(("master", "name"), ROUNDED)
@pytest.mark.parametrize("level", LEVELS)
def test_every_rule_rounds_as_its_reference_at_every_level(rule, arguments, master, name, level):
    dispatch.use(level)
    use_threads(3)
    for draw in (normal, wide):
        equal_to_the_reference(rule, arguments, master, name, 6, draw)


@pytest.mark.parametrize(("master", "name"), EXACT)
@pytest.mark.parametrize(
    "options",
    [
        {"l1": 0.031, "maximize": True, "ema": 0.93},
        {"clip": (st.clip.adaptive(0.05), st.clip.value(0.7)), "average": st.average.tail(1)},
        {"clip": st.clip.global_norm(0.5), "decay_mode": "cautious"},
        {"regularize": (st.regularize.toward_initial(0.1), st.regularize.max_norm(1.0, axis=0))},
        {"regularize": st.regularize.simplex(1.0, axis=None)},
        {"lookahead": st.average.lookahead(2, 0.37), "filter": st.filters.mars(0.3)},
        {"cautious": True, "decay_mode": "decoupled", "filter": st.filters.centralize()},
    ],
    ids="+".join,
)
def test_operations_around(master, name, options):
    trained_alike("adamw", {"lr": 0.1} | options, master, name)


@pytest.mark.parametrize(("master", "name"), ROUNDED)
@pytest.mark.parametrize(
    "options",
    [
        {"clip": (st.clip.adaptive(0.05), st.clip.value(0.7)), "average": st.average.tail(1)},
        {"regularize": (st.regularize.toward_initial(0.1), st.regularize.max_norm(1.0, axis=0))},
        {"lookahead": st.average.lookahead(2, 0.37), "filter": st.filters.mars(0.3), "ema": 0.9},
        {"cautious": True, "decay_mode": "decoupled", "filter": st.filters.centralize()},
    ],
    ids="+".join,
)
def test_operations_around_what_is_rounded(master, name, options):
    equal_to_the_reference("adamw", {"lr": 0.1} | options, master, name)


@pytest.mark.parametrize(("master", "name"), MASTERS)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("draw", [normal, wide, special], ids=lambda f: f.__name__)
def test_kernels_equal_the_reference(master, name, level, draw):
    dispatch.use(level)
    dtypes = (formats.named(name), np.dtype(np.float32))
    for rule, more in (("adamw", {}), ("lamb", {}), ("lion", {"state_dtype": "float64"})):
        given = {"lr": 0.01, "master": master} | more
        equals_reference(RULES[rule], given, dtypes, (0, 1, 7, 700, (33, 17)), 5, draw, layouts=4)


@pytest.mark.parametrize(("master", "name"), MASTERS)
def test_masters_beside_states_of_8_bits(master, name):
    dtypes = formats.named(name), formats.named(name)
    given = {"lr": 0.01, "state_dtype": "q8", "master": master}
    equals_reference(st.AdamW, given, dtypes, (7, 4096, 5000, (70, 90)), 3, normal, layouts=4)


def test_splitting_loses_nothing():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 32, 1 << 18, dtype=np.uint32)
    x = np.concatenate([bits, [0, 1 << 31, 0x7F800000, 0xFF800000, 1, 0x7F7FFFFF]]).astype(
        np.uint32
    )
    x = x.view(np.float32)
    high, low = codecs.split(x)
    same_bits(codecs.joined(high, low), x)
    finite = np.abs(x) < 3e38
    near = codecs.from_bfloat16(high)[finite].astype(np.float64)
    away = np.abs(near - x[finite])
    best = np.abs(
        codecs.from_bfloat16(codecs.to_bfloat16(x))[finite].astype(np.float64) - x[finite]
    )
    np.testing.assert_array_equal(away, best)
    assert np.isnan(codecs.from_bfloat16(high)[np.isnan(x)]).all()


def many_numbers():
    """float32 of all exponents, and the ends of its range."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, 1 << 18, dtype=np.uint32)
    ends = [0, 1 << 31, 0x7F800000, 0xFF800000, 1, 0x7F7FFFFF, 0x7F800001, 0xFFFFFFFF, 0x3F80FF80]
    found = np.concatenate([bits, np.array(ends, np.uint32)]).view(np.float32)
    found[np.isnan(found)] = np.nan  # NumPy warns of casts of some others
    return found


def test_24_bits_are_the_nearest():
    """Numbers of 16 bits of precision, ties to even, as NumPy's own rounding finds them."""
    x = many_numbers()
    master = codecs.MASTERS["split8"]
    high, low = master.split(x, codecs.BFLOAT16)
    assert low.dtype == np.int8
    found = master.joined(high, low)
    normal = (np.abs(x) > 2.0**-126) & (np.abs(x) < 3e38)
    exact = x[normal].astype(np.float64)
    unit = 2.0 ** (np.frexp(exact)[1] - 16)
    np.testing.assert_array_equal(found[normal], np.rint(exact / unit) * unit)
    small = np.abs(x) <= 2.0**-126
    np.testing.assert_array_equal(found[small], np.rint(x[small] / 2.0**-141) * 2.0**-141)
    assert not np.isnan(found[~np.isnan(x)]).any() and np.isnan(found[np.isnan(x)]).all()
    too_large = np.abs(x.astype(np.float64)) >= 2.0**128 * (1 - 2.0**-17)
    np.testing.assert_array_equal(np.isinf(found), too_large)
    same_bits(master.joined(*master.split(found, codecs.BFLOAT16)), found)


@pytest.mark.parametrize(("name", "bits"), [("bfloat16", 8), ("float16", 11)])
def test_a_compensation_is_what_the_nearest_number_lacks(name, bits):
    x, dtype = many_numbers(), formats.named(name)
    master = codecs.MASTERS["kahan"]
    near, rest = master.split(x, dtype)
    assert near.dtype == rest.dtype == dtype
    found, rounded = master.joined(near, rest), codecs.decoded(near, np.float64)
    same_bits(near, codecs.encoded(found, dtype))
    for once, again in zip((near, rest), master.split(found, dtype), strict=True):
        same_bits(again, once)
    finite = np.isfinite(rounded)
    assert not codecs.decoded(rest, np.float32)[~finite].any()
    np.testing.assert_array_equal(found[~finite], rounded[~finite].astype(np.float32))
    left = np.abs(x[finite] - rounded[finite])
    smallest = 2.0**-24 if name == "float16" else 2.0**-133
    bound = np.maximum(left * 2.0**-bits, smallest / 2)
    assert (np.abs(found[finite].astype(np.float64) - x[finite]) <= bound).all()


@pytest.mark.parametrize(("master", "name"), MASTERS)
def test_small_updates_add_up(master, name):
    """200 of them, each an eighth of the distance between two bfloat16 numbers there."""
    rng = np.random.default_rng(2)
    dtype = formats.named(name)
    start = codecs.encoded(1 + rng.random(1000).astype(np.float32) / 2, dtype)
    p, twin = start.copy(), codecs.decoded(start, np.float64)
    begun = twin.copy()
    opt, other = st.AdamW(p, lr=1e-3, master=master), st.AdamW(twin, lr=1e-3)
    for _ in range(200):
        g = rng.standard_normal(1000) + 1.0
        opt.step(g.astype(np.float32))
        other.step(g)
    key = codecs.MASTERS[master].key
    moved = codecs.MASTERS[master].joined(p, opt.state["0"][key]) - begun
    assert (np.abs(moved - (twin - begun)) < 0.01 * np.abs(twin - begun).mean()).all()
    assert np.abs(codecs.decoded(p, np.float64) - begun).mean() > 0.1  # the model sees it


@pytest.mark.parametrize(("master", "name"), MASTERS)
def test_parameters_of_any_strides(master, name):
    rng = np.random.default_rng(1)
    dtype = formats.named(name)
    start = codecs.encoded(rng.standard_normal((6, 5)), dtype)
    room = np.zeros((12, 15), dtype)
    room[::2, ::3] = start
    layouts = [start.copy(), np.asfortranarray(start), room[::2, ::3], start[::-1].copy()[::-1]]
    opts = [st.AdamW(p, lr=0.1, master=master) for p in layouts]
    for _ in range(3):
        g = rng.standard_normal((6, 5)).astype(np.float32)
        for opt in opts:
            opt.step(g)
    for p, opt in zip(layouts, opts, strict=True):
        np.testing.assert_array_equal(p.view(np.uint16), layouts[0].view(np.uint16))
        for key, x in opts[0].state["0"].items():
            same_bits(opt.state["0"][key], x, key)


@pytest.mark.parametrize(("master", "name"), MASTERS)
def test_a_checkpoint_goes_on_with_the_same_bits(master, name, tmp_path):
    rng = np.random.default_rng(3)
    [p], _ = begun(rng, formats.named(name), [(40, 5)])
    g = rng.standard_normal((40, 5)).astype(np.float32)
    opt = st.AdamW({"w": p}, lr=0.1, master=master)
    opt.step({"w": g})
    checkpoint.save(tmp_path / "x", opt)
    kept = opt.state_dict()
    again, loaded = np.zeros_like(p), p.copy()
    other = st.AdamW({"w": again}, lr=0.5, master=master)
    checkpoint.load(tmp_path / "x", other)
    third = st.AdamW({"w": loaded}, lr=0.5, master=master, state_dir=str(tmp_path))
    third.load_state_dict(kept)
    for one in (opt, other, third):
        one.step({"w": g})
    key = codecs.MASTERS[master].key
    for q, one in ((again, other), (loaded, third)):
        np.testing.assert_array_equal(q.view(np.uint16), p.view(np.uint16))
        same_bits(one.state["w"][key], opt.state["w"][key])


@pytest.mark.parametrize(("master", "name"), MASTERS)
def test_a_pickle_goes_on_with_the_same_bits(master, name):
    rng = np.random.default_rng(3)
    w, g = codecs.encoded(rng.standard_normal((2, 7, 9)), formats.named(name))
    opt = st.AdamW({"w": w}, lr=0.01, master=master)
    opt.step({"w": g})
    again = pickle.loads(pickle.dumps(opt))
    for each in (opt, again):
        each.step({"w": g})
    [twin] = again.param_groups[0]["params"]
    same_bits(twin.view(np.uint16), w.view(np.uint16))
    np.testing.assert_equal(again.state_dict(), opt.state_dict())


def test_groups_of_mixed_formats():
    """Masters are of parameters of 16 bits; others are as precise as they are."""
    params = {"w": codecs.encoded(np.ones(3), codecs.BFLOAT16), "norm": np.ones(3, np.float32)}
    opt = st.AdamW(params, lr=1e-3, master="split16")
    assert opt.state["w"]["remainder"].dtype == np.int16 and "remainder" not in opt.state["norm"]
    for _ in range(200):
        opt.step({name: np.ones(3, np.float32) for name in params})
    trained = codecs.joined(params["w"], opt.state["w"]["remainder"])
    np.testing.assert_array_equal(trained, params["norm"])
    assert (codecs.from_bfloat16(params["w"]) < 0.85).all()


def test_what_is_refused():
    p = codecs.encoded(np.ones((3, 3)), codecs.BFLOAT16)
    half = np.ones((3, 3), np.float16)
    with pytest.raises(ValueError, match="master = 'float8': expected None or one of 'split16'"):
        st.AdamW(p, master="float8")
    with pytest.raises(ValueError, match="master = 'split16' has no effect: no parameter is bf"):
        st.AdamW(half, master="split16")
    with pytest.raises(ValueError, match="along axis 1 with master = 'split16': expected axis 0"):
        st.AdamW(p, master="split16", regularize=st.regularize.max_norm(1.0, axis=1))
    with pytest.raises(ValueError, match="'kahan' has no effect: no parameter is bfloat16 or fl"):
        st.AdamW(np.ones(3, np.float32), master="kahan")
    opt = st.AdamW(p, master="split16")
    opt.step(half)
    opt.param_groups[0]["master"] = None
    with pytest.raises(ValueError, match="master = None: the group's states were made for 'split"):
        opt.step(half)
    opt.param_groups[0]["master"] = "split16"
    opt.state["0"]["remainder"] = np.zeros((3, 3), np.int32)
    with pytest.raises(ValueError, match="state 'remainder' of parameter '0' is int32"):
        opt.step(half)
    opt.state["0"]["remainder"] = np.zeros((3, 3), np.int16)
    opt.step(half)


def test_the_type_of_the_state_depends_on_master_and_parameter():
    params = [codecs.encoded(np.ones(3), codecs.BFLOAT16), np.ones(3, np.float16)]
    opt = st.AdamW(params, master="kahan")
    found = [opt.state[name]["compensation"].dtype for name in "01"]
    assert found == [p.dtype for p in params]
    grads = [np.ones(3, np.float32)] * 2
    opt.step(grads)
    opt.state["0"]["compensation"] = np.zeros(3, np.float16)
    with pytest.raises(ValueError, match="state 'compensation' of parameter '0' is float16"):
        opt.step(grads)
    bits = np.full(3, 0x3F80, np.uint16)
    opt = st.AdamW(bits, master="kahan", dtype="bfloat16")
    opt.step(np.ones(3, np.float32))
    state = opt.state_dict()
    twin = bits.view(formats.named("bfloat16"))
    other = st.AdamW(twin, master="kahan")
    other.load_state_dict(state)
    assert other.state["0"]["compensation"].dtype == twin.dtype

    p = params[0]
    opt = st.AdamW(p, master="split8")
    assert opt.state["0"]["remainder"].dtype == np.int8
    opt.state["0"]["remainder"] = np.zeros(3, np.int16)
    with pytest.raises(ValueError, match="state 'remainder' of parameter '0' is int16"):
        opt.step(grads[0])


def test_a_master_that_overlaps_is_refused():
    p = codecs.encoded(np.ones(4), codecs.BFLOAT16)
    opt = st.SGD(p, lr=0.1, master="split16")
    opt.state["0"]["remainder"] = p.view(np.int16)
    with pytest.raises(ValueError, match="share memory"):
        opt.step(np.ones(4, np.float32))
