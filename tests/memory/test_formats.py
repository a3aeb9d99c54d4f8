"""Formats: how arrays are stored is said in one place."""

import ctypes
from dataclasses import replace

import numpy as np
import pytest

import steepest as st
from steepest.checkpoint import container
from steepest.extension import testing
from steepest.kernels import dispatch
from steepest.memory import arrays, formats
from steepest.optimizers import RULES

FLOAT, HALF = np.dtype(np.float32), np.dtype(np.float16)


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


def half(x):
    return x.astype(np.float16)


def wide(x):
    return x.astype(np.float32)


TOY = formats.Format("float16", HALF, FLOAT, "half", "F16", (2, 16), decode=wide, encode=half)


@pytest.fixture
def toy(monkeypatch):
    """What a new format needs: one object, and one codec at each level."""
    table = dict(formats.FORMATS)
    entry, functions = codec(TOY)
    monkeypatch.setitem(dispatch.current.codecs, "half", entry)
    formats.register(TOY)
    yield TOY
    formats.FORMATS.clear()
    formats.FORMATS.update(table)
    assert functions


def test_the_first_two():
    for dtype, code in ((np.float32, "F32"), (np.float64, "F64")):
        x = np.arange(6, dtype=dtype)
        found = formats.of(x)
        assert (found.name, found.dtype, found.computed) == (x.dtype.name, x.dtype, x.dtype)
        assert (found.code, found.dlpack) == (code, (2, 8 * x.itemsize))
        assert found.decode(x) is x and found.encode(x) is x
        assert formats.borrowed(x) and formats.computed(x) == dtype
    assert formats.expected() == "float32 or float64"
    assert list(arrays.DTYPES) == [np.float32, np.float64]


def test_what_has_no_format():
    with pytest.raises(TypeError, match="int64 cannot be stepped; expected float32 or float64"):
        formats.of(np.arange(3, dtype=np.int64))
    with pytest.raises(TypeError, match="float16; expected float32 or float64 in native"):
        st.SGD(np.zeros(3, HALF))


def test_what_is_refused():
    with pytest.raises(ValueError, match="'float16' is computed in float16; expected float32 or"):
        formats.register(replace(TOY, computed=HALF))
    with pytest.raises(ValueError, match="float32 is how 'float32' is stored already"):
        formats.register(replace(TOY, dtype=FLOAT))


@pytest.mark.parametrize("name", RULES)
def test_a_step_of_a_new_format_is_that_of_its_blocks(toy, name):
    """encode(rule(decode(x))), with states of the computing type; no rule knows of it."""
    rng = np.random.default_rng(0)
    p = rng.standard_normal((70, 30)).astype(HALF)
    opt = RULES[name](p)
    twin, state = p.copy(), {key: x.copy() for key, x in opt.state["0"].items()}
    hyper, shared = testing.reference_hyper(opt), testing.shared_numbers(opt)
    for t in range(1, 4):
        g = rng.standard_normal(p.shape).astype(HALF)
        opt.step(g)
        block = toy.decode(twin)
        testing.reference_step(opt, [block], [toy.decode(g)], [state], t, shared, **hyper)
        twin = toy.encode(block)
        np.testing.assert_array_equal(p, twin)
    for key, x in opt.state["0"].items():
        assert x.dtype != HALF
        if key != "step":  # which the reference is given
            np.testing.assert_array_equal(x, state[key])


def test_strided_arrays_of_a_new_format(toy):
    rng = np.random.default_rng(1)
    memory = rng.standard_normal((40, 50)).astype(HALF)
    dense = memory[::2, ::5].copy()
    g = rng.standard_normal(dense.shape).astype(HALF)
    strided, plain = st.AdamW(memory[::2, ::5], lr=0.1), st.AdamW(dense, lr=0.1)
    for _ in range(2):
        strided.step(g)
        plain.step(np.asfortranarray(g))
    np.testing.assert_array_equal(memory[::2, ::5], dense)


def test_a_gradient_has_the_format_of_its_parameter(toy):
    opt = st.SGD(np.zeros(3, HALF), lr=0.1)
    with pytest.raises(TypeError, match="has dtype float32; expected the parameter's float16"):
        opt.step(np.ones(3, np.float32))
    opt.step(np.ones(3, HALF))
    with pytest.raises(TypeError, match="has dtype float32; expected the parameter's float16"):
        opt.step(np.ones(3, np.float32))


def test_a_checkpoint_of_a_new_format(toy, tmp_path):
    p = np.arange(5).astype(HALF)
    container.write(tmp_path / "x", {"p": p}, {})
    found = container.read(tmp_path / "x")[0]["p"]
    assert found.dtype == toy.dtype
    np.testing.assert_array_equal(found, p)


def test_a_name_of_its_own_in_checkpoints(toy, monkeypatch, tmp_path):
    """One that safetensors has and this library did not."""
    swapped = np.dtype([("e5m2", "u1")])
    monkeypatch.setitem(
        formats.FORMATS, swapped, replace(toy, name="e5m2", dtype=swapped, code="F8_E5M2")
    )
    x = np.zeros(3, swapped)
    x["e5m2"] = 1, 2, 3
    container.write(tmp_path / "x", {"p": x}, {})
    assert b'"F8_E5M2"' in (tmp_path / "x").read_bytes()
    found = container.read(tmp_path / "x")[0]["p"]
    assert found.dtype == swapped and found["e5m2"].tolist() == [1, 2, 3]


def test_an_operand_without_a_codec_is_refused():
    """As the engine's last word: what it reads is what it was told."""
    opt = st.SGD(np.zeros(3, np.float32), lr=0.1)
    opt.step(np.ones(3, np.float32))
    p, other = np.zeros(3, np.float32), np.zeros(3)
    layout = arrays.layout((p,), p)
    with pytest.raises(ValueError, match="an array of float64 without a codec"):
        opt._plan.bind_gradient(0, other, layout)
