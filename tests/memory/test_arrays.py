"""Any memory layout gives the same bits; what cannot be stepped is refused by name."""

import numpy as np
import pytest
from cases import same_bits
from hypothesis import given, settings
from hypothesis import strategies as hs

import steepest as st
from steepest.kernels.engine import CHUNK_SIZE
from steepest.memory import arrays

LAYOUTS = {
    "fortran": lambda x: np.asfortranarray(x),
    "reversed": lambda x: x[::-1].copy()[::-1],
    "every second": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "transposed": lambda x: x.T.copy().T,
    "offset": lambda x: np.pad(x, 3)[tuple(slice(3, -3) for _ in x.shape)],
    "backwards columns": lambda x: np.repeat(x[..., ::-1], 3, axis=0)[::3, ..., ::-1],
}


def unaligned(x):
    """A copy whose elements do not begin at multiples of their size."""
    room = np.zeros(x.nbytes + 1, np.uint8)
    copy = np.ndarray(x.shape, x.dtype, room.data, 1)
    copy[...] = x
    assert not copy.flags.aligned
    return copy


LAYOUTS["unaligned"] = unaligned


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("p_layout", LAYOUTS)
@pytest.mark.parametrize("g_layout", ["plain", *LAYOUTS])
def test_layouts_give_the_bits_of_contiguous_arrays(dtype, p_layout, g_layout):
    rng = np.random.default_rng(5)
    start = rng.standard_normal((67, 3, 41)).astype(dtype)
    grads = rng.standard_normal((4, *start.shape)).astype(dtype)
    plain, laid = start.copy(), LAYOUTS[p_layout](start)
    options = {"lr": 0.01, "clip": st.clip.global_norm(1.0), "l1": 0.1, "ema": 0.9}
    one, other = st.AdamW(plain, **options), st.AdamW(laid, **options)
    for g in grads:
        one.step(g)
        other.step(g if g_layout == "plain" else LAYOUTS[g_layout](g))
        assert one.last_norm == other.last_norm
    same_bits(laid, plain)
    for key, x in one.state["0"].items():
        same_bits(other.state["0"][key], x, key)


@given(hs.data())
@settings(max_examples=60)
def test_random_views_give_the_bits_of_copies(data):
    ndim = data.draw(hs.integers(0, 4))
    shape = tuple(data.draw(hs.integers(1, 7)) for _ in range(ndim))
    rng = np.random.default_rng(data.draw(hs.integers(0, 99)))

    def view(x):
        """x in some other place, order and direction, with the surroundings it must not touch."""
        order = data.draw(hs.permutations(range(ndim)))
        steps = [data.draw(hs.sampled_from([-3, -2, -1, 1, 2])) for _ in range(ndim)]
        room = np.full([abs(s) * n + 2 for s, n in zip(steps, shape, strict=True)], 7.0)
        room = room.transpose(order).copy().transpose(np.argsort(order)) if ndim else room
        inner = room[(*(slice(1, -1) for _ in shape), ...)]
        inner = inner[(*(slice(None, None, s) for s in steps), ...)]
        inner[...] = x
        return room, inner

    start = rng.standard_normal(shape)
    plain, (room, laid) = start.copy(), view(start)
    untouched = room.copy()
    one, other = st.RMSprop(plain, momentum=0.5), st.RMSprop(laid, momentum=0.5)
    for _ in range(3):
        g = rng.standard_normal(shape)
        one.step(g.copy())
        other.step(view(g)[1])
    same_bits(laid.copy(), plain)
    laid[...] = start
    np.testing.assert_array_equal(room, untouched)


def test_broadcast_gradients():
    w, twin = np.zeros((5, 7)), np.zeros((5, 7))
    row = np.arange(7.0)
    st.SGD(w, lr=0.5).step(np.broadcast_to(row, (5, 7)))
    st.SGD(twin, lr=0.5).step(np.tile(row, (5, 1)))
    same_bits(w, twin)


def test_gradient_layout_may_change_between_steps():
    rng = np.random.default_rng(0)
    w, twin = np.zeros((40, 30), np.float32), np.zeros((40, 30), np.float32)
    one, other = st.Adam(w), st.Adam(twin)
    for i in range(6):
        g = rng.standard_normal((40, 30)).astype(np.float32)
        one.step([g, np.asfortranarray(g), unaligned(g)][i % 3])
        other.step(g)
    same_bits(w, twin)


def test_a_misaligned_gradient_after_an_aligned_one():
    """The second gradient has the first one's strides, but not its alignment."""
    w, twin = np.zeros(1000), np.zeros(1000)
    one, other = st.SGD(w, lr=1.0), st.SGD(twin, lr=1.0)
    for g in (np.ones(1000), unaligned(np.full(1000, 2.0)), np.full(1000, 3.0)):
        one.step(g)
        other.step(g.copy())
    same_bits(w, twin)


@pytest.mark.parametrize("place", range(4))
def test_empty_arrays_are_invisible(place):
    rng = np.random.default_rng(1)
    full = [rng.standard_normal(n) for n in (3, CHUNK_SIZE + 5, 1)]
    alone = [x.copy() for x in full]
    together = [x.copy() for x in full]
    together.insert(place, np.zeros((3, 0, 2)))
    assert together[place].size == 0
    options = {"lr": 0.1, "clip": st.clip.global_norm(0.5)}
    one, other = st.AdamW(alone, **options), st.AdamW(together, **options)
    grads = [rng.standard_normal(x.shape) for x in full]
    one.step(grads)
    other.step([*grads[:place], np.zeros((3, 0, 2)), *grads[place:]])
    del together[place]
    for x, y in zip(alone, together, strict=True):
        same_bits(x, y)


def test_scalars_and_shared_memory_are_arrays_too():
    w = np.array(1.0)
    st.SGD(w, lr=0.5).step(np.float64(1.0))
    assert w == 0.5
    raw = bytearray(np.zeros(3))
    st.SGD(memoryview(raw).cast("d"), lr=0.5).step(np.ones(3))
    assert np.frombuffer(raw).tolist() == [-0.5, -0.5, -0.5]


@pytest.mark.torch
def test_torch_tensors_are_updated_in_place():
    torch = pytest.importorskip("torch")
    w = torch.nn.Parameter(torch.zeros(3))
    st.SGD([w], lr=0.5).step([torch.ones(3)])
    assert w.tolist() == [-0.5, -0.5, -0.5]


BAD_PARAMETERS = {
    "a list": ([[1.0, 2.0]], TypeError, "float"),
    "integers": ({"w": np.zeros(3, int)}, TypeError, "'w' has dtype int64"),
    "a format of none": ({"w": np.zeros(3, np.longdouble)}, TypeError, "'w' has dtype float"),
    "swapped bytes": ({"w": np.zeros(3, ">f8")}, TypeError, "'w' has dtype >f8"),
    "complex": ({"w": np.zeros(3, complex)}, TypeError, "'w' has dtype complex128"),
    "objects": ({"w": np.zeros(3, object)}, TypeError, "'w' has dtype object"),
    "a broadcast": ({"w": np.broadcast_to(0.0, 3)}, ValueError, "'w' is read-only"),
    "a window": (
        {"w": np.lib.stride_tricks.as_strided(np.zeros(4), (3, 2), (8, 8))},
        ValueError,
        "'w' has elements that share memory",
    ),
    "None": ({"w": None}, TypeError, "'w' is a NoneType"),
    "text": ({"w": "abc"}, TypeError, "'w' is a str"),
    "a set": ({1.0, 2.0}, TypeError, "no order"),
    "nothing": ([], ValueError, "params is empty"),
    "nothing nested": ({"a": []}, ValueError, "params is empty"),
}


@pytest.mark.parametrize("bad", BAD_PARAMETERS)
def test_bad_parameters_are_refused_by_name(bad):
    params, error, message = BAD_PARAMETERS[bad]
    with pytest.raises(error, match=message):
        st.SGD(params)


def test_read_only_parameters():
    w = np.zeros(3)
    w.flags.writeable = False
    with pytest.raises(ValueError, match="parameter 'w' is read-only"):
        st.SGD({"w": w})


def test_overlapping_parameters():
    w = np.zeros(10)
    with pytest.raises(ValueError, match="parameter 'a' and parameter 'b' share memory"):
        st.SGD({"a": w, "b": w})
    with pytest.raises(ValueError, match="parameter 'a' and parameter 'b' share memory"):
        st.SGD({"a": w[:6], "b": w[5:]})
    with pytest.raises(ValueError, match="parameter 'b' and parameter 'a' share memory"):
        st.SGD({"a": w[1::3], "b": w[0:10:2]})
    st.SGD({"even": w[::2], "odd": w[1::2]}, lr=1.0).step({"even": np.ones(5), "odd": np.ones(5)})
    assert w.tolist() == [-1.0] * 10


def test_overlap_is_found_across_groups():
    w = np.zeros(10)
    with pytest.raises(ValueError, match="share memory"):
        st.SGD([{"params": {"a": w}}, {"params": {"b": w[3:4]}}])


def test_bounds_of_interleaved_arrays():
    w = np.zeros(12)
    bounds = arrays.disjoint_bounds([("a", w[0:8:2]), ("b", w[1:8:2]), ("c", w[9:])])
    start = w.__array_interface__["data"][0]
    assert bounds == [(start, start + 64), (start + 72, start + 96)]


def test_new_states_share_the_parameters_layout_and_alignment():
    for shift in range(16):
        room = np.zeros(4000, np.float32)
        p = room[shift : shift + 3 * 5 * 7].reshape(3, 5, 7).transpose(2, 0, 1)
        x = arrays.zeros_like(p)
        assert x.shape == p.shape and x.strides == p.strides and x.dtype == p.dtype
        address = [y.__array_interface__["data"][0] % 64 for y in (x, p)]
        assert address[0] == address[1]
        assert x.flags.writeable and not x.any()


@pytest.mark.parametrize("offset", [0, 4, 16, 60])
def test_a_large_state_begins_on_a_huge_page(offset):
    """But as far from a line's start as its parameter; nobody writes the pages before a step."""
    n = arrays.LARGE // 4
    p = np.empty(4 * n + 128, np.uint8)
    skip = -p.ctypes.data % arrays.LINE + offset
    state = arrays.zeros_like(p[skip : skip + 4 * n].view(np.float32))
    assert state.ctypes.data % arrays.HUGE == offset
    assert state.size == n
    assert not state[[0, -1]].any()
    small = arrays.zeros_like(p[skip : skip + 400].view(np.float32))
    assert small.ctypes.data % arrays.LINE == offset
