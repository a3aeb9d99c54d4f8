"""Formats: how arrays are stored is said in one place."""

import ctypes
from dataclasses import replace

import numpy as np
import pytest

import steepest as st
from steepest import checkpoint, codecs
from steepest.checkpoint import container
from steepest.extension import testing
from steepest.kernels import dispatch
from steepest.memory import arrays, formats
from steepest.optimizers import RULES

FLOAT, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)
QUARTER = np.dtype([("e5m2", "u1")])


class Operand(ctypes.Structure):
    """As in contract.pxd."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("ndim", ctypes.c_int),
        ("shape", ctypes.POINTER(ctypes.c_ssize_t)),
        ("strides", ctypes.POINTER(ctypes.c_ssize_t)),
        ("decode", ctypes.c_void_p),
        ("encode", ctypes.c_void_p),
    ]


FUNCTION = ctypes.CFUNCTYPE(
    None,
    ctypes.POINTER(Operand),
    ctypes.c_ssize_t,
    ctypes.c_ssize_t,
    ctypes.POINTER(ctypes.c_float),
)


def stored(x, dtype):
    """The operand as an array of its own strides."""
    shape, strides = x.shape[: x.ndim], x.strides[: x.ndim]
    assert all(stride >= 0 for stride in strides)
    reach = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    memory = (ctypes.c_char * (reach + dtype.itemsize)).from_address(x.data)
    return np.ndarray(shape, dtype, memory, strides=strides)


def codec(stored_as):
    """A codec for CODECS made of a format's twin in NumPy: what calls it, and what keeps it."""

    def decode(x, start, n, row):
        y = stored(x[0], stored_as.dtype)
        np.ctypeslib.as_array(row, (n,))[:] = stored_as.decode(y[...].reshape(-1)[start:][:n])

    def encode(x, start, n, row):
        y = stored(x[0], stored_as.dtype)
        places = np.unravel_index(np.arange(start, start + n), y.shape)
        y[places] = stored_as.encode(np.ctypeslib.as_array(row, (n,)))

    functions = FUNCTION(decode), FUNCTION(encode)
    make = ctypes.pythonapi.PyCapsule_New
    make.restype, make.argtypes = (
        ctypes.py_object,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p],
    )
    to, back = (make(ctypes.cast(f, ctypes.c_void_p), b"steepest.codec", None) for f in functions)
    return (to, None, back, None), functions


def narrow(x):
    """The upper half of a float16, towards 0."""
    with np.errstate(over="ignore", under="ignore"):
        bits = x.astype(np.float16).view(np.uint16)
    return (bits >> 8).astype(np.uint8).view(QUARTER)


def wide(x):
    return (x.view(np.uint8).astype(np.uint16) << 8).view(np.float16).astype(np.float32)


TOY = formats.Format("float8_e5m2", QUARTER, FLOAT, "F8_E5M2", (12, 8), decode=wide, encode=narrow)


@pytest.fixture
def toy(monkeypatch):
    """What a new format needs: one object, and one codec at each level."""
    table = dict(formats.FORMATS)
    entry, functions = codec(TOY)
    monkeypatch.setitem(dispatch.current.codecs, TOY.name, entry)
    formats.register(TOY)
    yield TOY
    formats.FORMATS.clear()
    formats.FORMATS.update(table)
    assert functions


def test_what_is_computed_as_it_is_stored():
    for dtype, code in ((np.float32, "F32"), (np.float64, "F64")):
        x = np.arange(6, dtype=dtype)
        found = formats.of(x)
        assert (found.name, found.dtype, found.computed) == (x.dtype.name, x.dtype, x.dtype)
        assert (found.code, found.dlpack) == (code, (2, 8 * x.itemsize))
        assert found.decode(x) is x and found.encode(x) is x
        assert formats.borrowed(x) and formats.computed(x) == dtype


@pytest.mark.parametrize(("name", "code"), [("bfloat16", "BF16"), ("float16", "F16")])
def test_sixteen_bits(name, code):
    x = np.zeros(3, formats.named(name))
    found = formats.of(x)
    assert (found.name, found.code, found.dlpack[1]) == (name, code, 16)
    assert not formats.borrowed(x) and formats.computed(x) == FLOAT
    assert formats.decoded(x).tolist() == [0.0, 0.0, 0.0]
    assert formats.encoded(np.ones(2), x.dtype).dtype == x.dtype
    assert formats.expected() == "float32, float64, bfloat16 or float16"


def test_the_two_types_of_bfloat16_are_one_format():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    theirs, ours = np.dtype(ml_dtypes.bfloat16), codecs.BFLOAT16
    assert formats.alike(theirs, ours) and not formats.alike(theirs, FLOAT)
    assert formats.named("bfloat16") == theirs
    rng = np.random.default_rng(0)
    x, g = (codecs.to_bfloat16(rng.standard_normal(9)) for _ in range(2))
    one, two = x.copy(), x.view(theirs).copy()
    first, second = (st.AdamW(p, lr=0.1, state_dtype="bfloat16") for p in (one, two))
    first.step(g.view(theirs))
    second.step(g)
    np.testing.assert_array_equal(one.view(np.uint16), two.view(np.uint16))
    state = first.state_dict()
    for key in ("exp_avg", "exp_avg_sq"):
        state["state"]["0"][key] = state["state"]["0"][key].view(ours)
    second.load_state_dict(state)
    first.step(g)
    second.step(g)
    np.testing.assert_array_equal(one.view(np.uint16), two.view(np.uint16))


def test_bits_of_bfloat16():
    """Arrays of uint16, where the optimizer is told what they hold."""
    rng = np.random.default_rng(0)
    bits, g = (codecs.to_bfloat16(rng.standard_normal((5, 4))).view(np.uint16) for _ in range(2))
    twin = bits.copy().view(codecs.BFLOAT16)
    first, second = st.Lion({"w": bits}, lr=0.1, dtype="bfloat16"), st.Lion({"w": twin}, lr=0.1)
    for _ in range(3):
        first.step({"w": g})
        second.step({"w": g.view(codecs.BFLOAT16)})
        np.testing.assert_array_equal(bits, twin.view(np.uint16))
    with pytest.raises(TypeError, match=r'has dtype uint16; .* with dtype="bfloat16"'):
        st.Lion(bits)
    with pytest.raises(ValueError, match="dtype = 'float32': expected None, or \"bfloat16\""):
        st.Lion(bits, dtype="float32")


def test_what_has_no_format():
    with pytest.raises(TypeError, match="int64 cannot be stepped; expected float32, float64, bf"):
        formats.of(np.arange(3, dtype=np.int64))
    with pytest.raises(TypeError, match=r"dtype int8; expected float32, float64, .* in native"):
        st.SGD(np.zeros(3, np.int8))
    with pytest.raises(ValueError, match="format 'int3': expected one of float32, float64"):
        formats.named("int3")


def test_what_is_refused():
    with pytest.raises(ValueError, match="'float8_e5m2' is computed in float16; expected float32"):
        formats.register(replace(TOY, computed=np.dtype(np.float16)))
    with pytest.raises(ValueError, match="float32 is how 'float32' is stored already"):
        formats.register(replace(TOY, dtype=FLOAT))


@pytest.mark.parametrize("name", RULES)
def test_a_step_of_a_new_format_is_that_of_its_blocks(toy, name):
    """encode(rule(decode(x))), with states of the computing type; no rule knows of it."""
    rng = np.random.default_rng(0)
    p = narrow(rng.standard_normal((70, 30)))
    opt = RULES[name](p)
    twin, state = p.copy(), {key: x.copy() for key, x in opt.state["0"].items()}
    hyper, shared = testing.reference_hyper(opt), testing.shared_numbers(opt)
    for t in range(1, 4):
        g = narrow(rng.standard_normal(p.shape))
        opt.step(g)
        block = toy.decode(twin)
        testing.reference_step(opt, [block], [toy.decode(g)], [state], t, shared, **hyper)
        twin = toy.encode(block)
        np.testing.assert_array_equal(p, twin)
    for key, x in opt.state["0"].items():
        assert x.dtype != QUARTER
        if key != "step":  # which the reference is given
            np.testing.assert_array_equal(x, state[key])


def test_strided_arrays_of_a_new_format(toy):
    rng = np.random.default_rng(1)
    memory = narrow(rng.standard_normal((40, 50)))
    dense = memory[::2, ::5].copy()
    g = narrow(rng.standard_normal(dense.shape))
    strided, plain = st.AdamW(memory[::2, ::5], lr=0.1), st.AdamW(dense, lr=0.1)
    for _ in range(2):
        strided.step(g)
        plain.step(np.asfortranarray(g))
    np.testing.assert_array_equal(memory[::2, ::5], dense)


def test_the_format_of_gradients_may_change_from_step_to_step():
    rng = np.random.default_rng(2)
    p = np.zeros(700, np.float32)
    twin = p.copy()
    opt, other = st.AdamW(p, lr=0.1), st.AdamW(twin, lr=0.1)
    for name in ("float32", "bfloat16", "float16", "bfloat16", "float64", "float32"):
        g = formats.encoded(rng.standard_normal(700), formats.named(name))
        opt.step(g)
        other.step(codecs.decoded(g, np.float32))
        np.testing.assert_array_equal(p, twin)


def test_a_format_for_some_states():
    opt = st.AdamW(np.ones(5, np.float32), state_dtype={"exp_avg": "bfloat16"}, ema=0.9)
    opt.step(np.ones(5, np.float32))
    types = {key: formats.of(x).name for key, x in opt.state["0"].items() if key != "step"}
    assert types == {"exp_avg": "bfloat16", "exp_avg_sq": "float32", "ema": "float32"}
    assert opt.param_groups[0]["state_dtype"] == (("exp_avg", "bfloat16"),)
    again = st.AdamW(np.ones(5, np.float32), ema=0.9, state_dtype=(("exp_avg", "bfloat16"),))
    again.load_state_dict(opt.state_dict())
    assert again.state["0"]["exp_avg"].dtype == opt.state["0"]["exp_avg"].dtype


def test_states_that_are_places_keep_their_precision():
    """What begins as a copy of the parameter: its changes would be lost in 16 bits."""
    opt = st.ScheduleFreeAdamW(np.ones(5, np.float32), state_dtype="bfloat16")
    types = {key: formats.of(x).name for key, x in opt.state["0"].items() if key != "step"}
    assert types == {"z": "float32", "exp_avg_sq": "bfloat16"}


def test_states_of_parameters_of_sixteen_bits_are_float32():
    for dtype in (np.float16, formats.named("bfloat16")):
        opt = st.AdamW(np.zeros(3, dtype))
        assert opt.state["0"]["exp_avg"].dtype == np.float32


def test_formats_that_are_refused():
    p = np.ones((3, 3), np.float32)
    for value, error, message in (
        ("float8", ValueError, "state_dtype = 'float8': expected one of float32, float64"),
        (np.int32, ValueError, "expected one of float32"),
        ({"exp": "float16"}, ValueError, "state_dtype names 'exp'; the states of adamw .* exp_avg"),
        ({1: "float16"}, TypeError, "expected names of states with a dtype each"),
    ):
        with pytest.raises(error, match=message):
            st.AdamW(p, state_dtype=value)
    with pytest.raises(ValueError, match="the states of muon are matrices"):
        st.Muon(p, state_dtype="float16")
    with pytest.raises(ValueError, match="has no effect: SGD, as it is here, has no states"):
        st.SGD(p, state_dtype="float16")
    assert st.AdamW(p, state_dtype=np.float16).param_groups[0]["state_dtype"] == "float16"


def test_the_format_of_states_cannot_change():
    opt = st.AdamW(np.ones(3, np.float32))
    opt.step(np.ones(3, np.float32))
    opt.param_groups[0]["state_dtype"] = "float16"
    with pytest.raises(ValueError, match="state_dtype = 'float16': the group's states were made"):
        opt.step(np.ones(3, np.float32))
    opt.param_groups[0]["state_dtype"] = None
    opt.step(np.ones(3, np.float32))


def test_a_checkpoint_of_a_new_format(toy, tmp_path):
    p = narrow(np.arange(5.0))
    container.write(tmp_path / "x", {"p": p}, {})
    assert b'"F8_E5M2"' in (tmp_path / "x").read_bytes()
    found = container.read(tmp_path / "x")[0]["p"]
    assert found.dtype == toy.dtype
    np.testing.assert_array_equal(found, p)


def test_an_operand_without_a_codec_is_refused():
    """As the engine's last word: what it reads is what it was told."""
    opt = st.SGD(np.zeros(3, np.float32), lr=0.1)
    opt.step(np.ones(3, np.float32))
    p, other = np.zeros(3, np.float32), np.zeros(3)
    layout = arrays.layout((p,), p)
    with pytest.raises(ValueError, match="an array of float64 without a codec"):
        opt._plan.bind_gradient(0, other, layout)


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_a_checkpoint_of_sixteen_bits(name, tmp_path):
    rng = np.random.default_rng(3)
    p = formats.encoded(rng.standard_normal((40, 5)), formats.named(name))
    twin = p.copy()
    opt, other = (st.AdamW({"w": x}, lr=0.1, state_dtype=name) for x in (p, twin))
    g = formats.encoded(rng.standard_normal((40, 5)), p.dtype)
    opt.step({"w": g})
    other.step({"w": g})
    checkpoint.save(tmp_path / "x", opt, arrays={"w": p})
    opt.step({"w": g})
    kept = p.copy()
    twin[...] = checkpoint.load(tmp_path / "x", other).arrays["w"]
    other.step({"w": g})
    np.testing.assert_array_equal(twin.view(np.uint16), kept.view(np.uint16))
