"""States of 8 bits: kernels equal their reference to the last bit; what they do to numbers."""

import numpy as np
import pytest
from cases import BY_RULE, LEVELS, label, same_bits, use_threads

import steepest as st
from steepest import checkpoint, codecs
from steepest.extension.testing import equals_reference, normal, special, wide
from steepest.kernels import dispatch
from steepest.kernels.engine import CHUNK_SIZE
from steepest.memory import formats
from steepest.optimizers import RULES

LEAST = formats.SCALED["q8"].least
SIZES = (LEAST, LEAST - 1, LEAST + 1, LEAST + 127, LEAST + 128, (65, 64), (3, 37, 41))
NUMBERED = [pytest.param(i, *x.values, marks=x.marks) for i, x in enumerate(BY_RULE)]
FORMATS = ("float32", "float64", "bfloat16", "float16")
ROWS = ((33, 128), (3, 11, 128), (5, 1152), (2, CHUNK_SIZE + 256), (1, 4099), (64, 65))
BY_ROWS = [
    ("adafactor", {"beta1": 0.9}, "exp_avg"),
    ("came", {}, "exp_avg"),
    ("sm3", {}, "momentum_buffer"),
    ("adammini", {}, "exp_avg"),
]
CODES = np.arange(256, dtype=np.uint8)


def taking(rule, arguments):
    """The states of a rule that may have 8 bits."""
    cls = RULES[rule]
    h = {name: field.default for name, field in cls.fields.items()} | arguments
    own = {*cls.states(h), *cls.beside(h)} - {*cls.points}
    return [] if cls.prepares else sorted(own)


def run(rule, arguments, roles, sizes, steps, draw, **options):
    if taking(rule, arguments):
        dtypes = tuple(map(formats.named, roles))
        given = arguments | {"state_dtype": "q8", "rounding_seed": 12345678901234567890}
        equals_reference(RULES[rule], given, dtypes, sizes, steps, draw, **options)


@pytest.mark.parametrize(("number", "rule", "arguments"), NUMBERED, ids=label)
def test_every_rule_equals_its_reference(number, rule, arguments):
    pairs = [(p, g) for p in FORMATS for g in FORMATS][number % 5 :: 5]
    for k, roles in enumerate([("float32", "float32"), *pairs]):
        dispatch.use(LEVELS[(number + k) % len(LEVELS)])
        use_threads(1 + k % 3)
        run(rule, arguments, roles, SIZES[k % 2 :: 2], 3, normal, layouts=4)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("rule", "arguments", "key"), BY_ROWS, ids=label)
def test_rules_by_rows_and_columns(rule, arguments, key, level):
    """States of matrices whose rows are whole groups have 8 bits, and no others."""
    dispatch.use(level)
    for threads, roles in ((1, ("float32", "float32")), (3, ("bfloat16", "float16"))):
        use_threads(threads)
        for draw in (normal, special):
            run(rule, arguments, roles, ROWS, 3, draw, layouts=4)
    params = [np.ones(shape, np.float32) for shape in ROWS]
    opt = RULES[rule](params, state_dtype="q8", **arguments)
    found = [opt.state[name][key].dtype == np.uint8 for name in map(str, range(len(ROWS)))]
    assert found == [True, True, True, True, True, False]


@pytest.mark.parametrize(("rule", "arguments"), BY_RULE, ids=label)
def test_each_state_alone(rule, arguments):
    """The others keep 32 bits: of a loop, every state may have either format."""
    states = taking(rule, arguments)
    for key in states if len(states) > 1 else ():
        given = arguments | {"state_dtype": {key: "q8"}}
        shapes = (LEAST, LEAST + 131, (33, 128), (64, 65))
        equals_reference(RULES[rule], given, np.float32, shapes, 3, normal)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("rule", "arguments"), BY_RULE, ids=label)
@pytest.mark.parametrize("level", LEVELS)
def test_every_rule_in_every_format(rule, arguments, level):
    dispatch.use(level)
    for k, p in enumerate(FORMATS):
        for j, g in enumerate(FORMATS):
            use_threads(1 + (j + k) % 3)
            draw = (normal, wide, special)[(j + k) % 3]
            run(rule, arguments, (p, g), SIZES, 4, draw, layouts=4)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("draw", [wide, special], ids=lambda f: f.__name__)
@pytest.mark.parametrize("rule", ["adamw", "lion", "adagrad", "lamb", "prodigy"])
def test_special_values(rule, draw, level):
    dispatch.use(level)
    run(rule, {"lr": 0.01}, ("float32", "float32"), (LEAST, LEAST + 131), 4, draw)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("master", [None, "split16", "float32"])
def test_with_masters_and_operations(master, level):
    dispatch.use(level)
    for more in ({}, {"clip": st.clip.adaptive(0.05)}, {"ema": 0.9, "l1": 0.01}):
        given = {"lr": 0.01, "master": master} | more
        run("adamw", given, ("bfloat16", "bfloat16"), SIZES, 4, normal, layouts=4)


@pytest.mark.parametrize("square", [False, True], ids=["signed", "squares"])
def test_every_code_is_itself(square):
    """A number that is one of the format keeps its code, whatever the random numbers are."""
    rng = np.random.default_rng(0)
    codes = np.maximum(CODES, 1).reshape(128, 2).T.reshape(-1) if square else CODES
    for scale in range(80, 190) if square else range(16, 255):  # where float32 has the squares
        scales = np.full(2, scale, np.uint8)  # of the largest code
        numbers = codecs.from_q8(codes, scales, square)
        for random in (None, rng.integers(0, 1 << 32, 256, dtype=np.uint32)):
            again, used = codecs.to_q8(numbers, square, random)
            np.testing.assert_array_equal(again, codes)
            np.testing.assert_array_equal(used, scales)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("scale", [17, 30, 127, 200, 253])
def test_kernels_decode_every_code(level, scale):
    """Half of a momentum, as it is stored, is what the parameter moves by."""
    dispatch.use(level)
    p = np.zeros(LEAST, np.float32)
    opt = st.SGD(p, lr=1.0, momentum=0.5, state_dtype="q8")
    codes = np.resize(CODES, LEAST)
    opt.state["0"]["momentum_buffer"][...] = codes
    opt.state["0"]["momentum_buffer_scale"][...] = scale
    opt.step(np.zeros(LEAST, np.float32))
    moved = codecs.from_q8(codes, np.full(LEAST // 128, scale, np.uint8), False)
    np.testing.assert_array_equal(p, moved * np.float32(-0.5))


def test_rounding_is_within_a_unit_and_unbiased():
    """Over the steps, and over the elements: at five standard deviations."""
    rng = np.random.default_rng(2)
    for square in (False, True):
        x = np.abs(rng.standard_normal(512)).astype(np.float32)
        x = x * x if square else x * rng.choice([-1, 1], 512).astype(np.float32)
        exact = np.sqrt(x.astype(np.float64)) if square else x.astype(np.float64)
        steps, total, errors = 4000, np.zeros(512), []
        for t in range(steps):
            random = codecs.noise(codecs.noise_base(3, 1, t, 1), 512)
            found = codecs.from_q8(*codecs.to_q8(x, square, random), square)
            found = np.sqrt(found) if square else found
            error = found - exact
            assert (np.abs(error) <= np.abs(exact) / (16 if square else 8) + 2e-5 * 4).all()
            total += error
            errors.append(error.sum())
        unit = np.maximum(np.abs(exact) / (16 if square else 8), 1e-4)
        assert (np.abs(total) <= 5 * unit / 2 * np.sqrt(steps)).all()
        spread = np.std(errors) / np.sqrt(steps)
        assert abs(np.mean(errors)) <= 5 * spread + 1e-3


def test_random_numbers_are_uniform_in_every_place():
    """For each element over the steps, and for neighbours together."""
    steps, n = 4096, 300
    each = np.stack([codecs.noise(codecs.noise_base(0, 5, t, 1), n) for t in range(steps)])
    centred = each / 2.0**32 - 0.5
    assert (np.abs(centred.mean(0)) < 5 * np.sqrt(1 / 12 / steps)).all()
    assert (np.abs(centred.mean(1)) < 5 * np.sqrt(1 / 12 / n)).all()
    for lag in (1, 2, 3, 5, 8, 21, 55, 89, 128, 233, 255):
        together = (centred[:, lag:] * centred[:, :-lag]).mean() * 12
        assert abs(together) < 5 / np.sqrt(steps * (n - lag))
    assert abs((centred[1:] * centred[:-1]).mean() * 12) < 5 / np.sqrt(steps * n)


def trained(threads=1, steps=6, resume=None, **options):
    rng = np.random.default_rng(4)
    p = rng.standard_normal(3 * CHUNK_SIZE + 77).astype(np.float32)
    small = np.ones(10, np.float32)

    def make():
        return st.AdamW([small, p], lr=0.01, state_dtype="q8", **options)

    opt = make()
    use_threads(threads)
    for t in range(steps):
        g = [np.ones(10, np.float32), rng.standard_normal(p.size).astype(np.float32)]
        opt.step(g)
        if t == resume:
            kept = opt.state_dict()
            opt = make()
            opt.load_state_dict(kept)
    return p, opt.state["1"]


def test_the_same_bits_for_any_threads_and_after_resuming():
    p, state = trained()
    for given in ({"threads": 2}, {"threads": 3}, {"resume": 2}):
        q, other = trained(**given)
        same_bits(p, q)
        for key, x in state.items():
            np.testing.assert_array_equal(x, other[key])
    q, other = trained(rounding_seed=1)
    assert (other["exp_avg_sq"] != state["exp_avg_sq"]).any()


def test_zero_gradients_do_not_move():
    p = np.ones(LEAST + 50, np.float32)
    opt = st.AdamW(p, lr=0.1, weight_decay=0.0, state_dtype="q8")
    for _ in range(5):
        opt.step(np.zeros_like(p))
    assert (p == 1).all() and (opt.state["0"]["exp_avg"] == 0).all()
    g = np.zeros_like(p)
    g[::256] = 1.0  # others in every second group have no gradient, ever
    for _ in range(5):
        opt.step(g)
    assert (p[g == 0] == 1).all() and (p[g != 0] < 0.7).all()


def test_what_is_not_finite_stays_where_it_is():
    """An infinite or NaN element spoils itself, and the precision of its group until it is gone."""
    p = np.ones(2 * LEAST, np.float32)
    opt = st.AdamW(p, lr=0.1, state_dtype="q8")
    g = np.ones_like(p)
    g[5], g[300] = np.nan, np.inf
    for _ in range(3):
        opt.step(g)
    assert np.isnan(p[[5, 300]]).all() and np.isfinite(np.delete(p, [5, 300])).all()
    assert (p[500:] < 0.75).all()


def test_bytes_per_parameter():
    p = np.ones(1 << 16, np.float32)
    for rule, most in ((st.AdamW, 2.1), (st.Lion, 1.05)):
        state = rule(p, state_dtype="q8").state["0"]
        assert sum(x.nbytes for x in state.values()) / p.size <= most


def test_some_states_by_name():
    opt = st.AdamW(np.ones(LEAST, np.float32), state_dtype={"exp_avg": "q8"})
    state = opt.state["0"]
    assert [x.dtype.name for x in state.values()] == ["int64", "uint8", "float32", "uint8"]
    assert [*state] == ["step", "exp_avg", "exp_avg_sq", "exp_avg_scale"]


def test_small_arrays_keep_their_states():
    params = {"w": np.ones((64, 64), np.float32), "b": np.ones(64, np.float32)}
    opt = st.AdamW(params, state_dtype="q8")
    assert opt.state["b"]["exp_avg"].dtype == np.float32 and "exp_avg_scale" not in opt.state["b"]
    assert opt.state["w"]["exp_avg"].dtype == np.uint8
    assert opt.state["w"]["exp_avg_sq_root_scale"].shape == (32,)


def test_states_that_do_not_begin_at_0():
    p = np.ones(LEAST, np.float32)
    opt = st.Adagrad(p, initial_accumulator_value=0.25, state_dtype="q8")
    state = opt.state["0"]
    numbers = codecs.from_q8(state["sum"], state["sum_root_scale"], True)
    np.testing.assert_array_equal(numbers, np.full(LEAST, 0.25, np.float32))


def test_a_checkpoint_goes_on_with_the_same_bits(tmp_path):
    rng = np.random.default_rng(3)
    p = rng.standard_normal((70, 90)).astype(np.float32)
    g = rng.standard_normal((70, 90)).astype(np.float32)
    opt = st.AdamW({"w": p}, lr=0.1, state_dtype="q8", rounding_seed=7)
    opt.step({"w": g})
    checkpoint.save(tmp_path / "x", opt)
    kept = opt.state_dict()
    again, loaded = p.copy(), np.asfortranarray(p)
    other = st.AdamW({"w": again}, lr=0.5, state_dtype="q8", rounding_seed=7)
    checkpoint.load(tmp_path / "x", other)
    third = st.AdamW(
        {"w": loaded}, lr=0.5, state_dtype="q8", rounding_seed=7, state_dir=str(tmp_path)
    )
    third.load_state_dict(kept)
    for one in (opt, other, third):
        one.step({"w": g})
    for q, one in ((again, other), (loaded, third)):
        np.testing.assert_array_equal(q, p)
        for key, x in opt.state["w"].items():
            np.testing.assert_array_equal(one.state["w"][key], x)


def test_what_is_refused():
    p = np.ones((64, 64), np.float32)
    with pytest.raises(ValueError, match="of 4096 elements or more, in rows of a multiple of 128"):
        st.CAME(p, state_dtype="q8")
    with pytest.raises(ValueError, match="state_dtype = 'q8' has no effect: no parameter has 4096"):
        st.AdamW(p[:63].copy(), state_dtype="q8")
    with pytest.raises(ValueError, match="state_dtype = 'q8' for 'ema': too coarse"):
        st.AdamW(p, ema=0.9, state_dtype={"ema": "q8"})
    with pytest.raises(ValueError, match="state_dtype = 'q8' for 'z': too coarse"):
        st.ScheduleFreeAdamW(p, state_dtype={"z": "q8"})
    with pytest.raises(ValueError, match="rounding_seed = 3 has no effect"):
        st.AdamW(p, rounding_seed=3)
    with pytest.raises(ValueError, match="state_dtype = 'q8' has no effect: DoG"):
        st.DoG(p, state_dtype="q8")
    opt = st.AdamW(p, state_dtype="q8")
    opt.state["0"]["exp_avg_scale"] = np.zeros(31, np.uint8)
    with pytest.raises(ValueError, match=r"state 'exp_avg_scale' .* of shape \(31,\)"):
        opt.step(p.copy())
    opt.state["0"]["exp_avg_scale"] = np.zeros(32, np.uint8)
    opt.param_groups[0]["rounding_seed"] = 4
    with pytest.raises(ValueError, match="rounding_seed = 4: the group's states were made for 0"):
        opt.step(p.copy())


@pytest.mark.parametrize("level", LEVELS)
def test_a_nan_of_any_payload_spoils_its_group_alone(level):
    """Found by a mutant: the bits of the largest NaN, rounded up, are beyond the largest scale."""
    dispatch.use(level)
    opt = st.SGD({"w": np.zeros(4096, np.float32)}, lr=0.0, momentum=0.9, state_dtype="q8")
    g = np.ones(4096, np.float32)
    g.view(np.uint32)[[3, 200]] = 0x7FFFFFFF, 0xFFFFFFFF
    opt.step({"w": g})
    scales = opt.state["w"]["momentum_buffer_scale"]
    assert (scales[:2] == 255).all() and (scales[2:] < 255).all()
