"""Bugs of arrays: strides, empty arrays, tails, sharing, what is not changed, what is refused."""

import re
from pathlib import Path

import numpy as np
import pytest
from museum import fails_with
from package_copy import ROOT

import steepest as st

ARRAYS = "memory/arrays.py"


def stepped(w, g, cls=st.Adam, **arguments):
    """The parameter after two steps."""
    opt = cls(w, **arguments)
    for _ in range(2):
        opt.step(g)
    return w


@fails_with(
    ARRAYS,
    "n, stride = x.shape[axis], -x.strides[axis] if axis in flips else x.strides[axis]",
    "n, stride = x.shape[axis], abs(x.strides[axis])",
)
def test_bitsandbytes_1187_a_gradient_that_lies_otherwise_gives_the_same():
    """Kernels took every array for contiguous, and updates were wrong for those that are not
    (bitsandbytes-foundation/bitsandbytes#1187)."""
    g = np.arange(1.0, 13.0).reshape(3, 4)
    expected = stepped(np.ones((3, 4)), g)
    backwards = np.ascontiguousarray(g[::-1, ::-1])[::-1, ::-1]
    for other in (np.asfortranarray(g), backwards, np.repeat(g, 2, axis=1)[:, ::2]):
        assert np.array_equal(stepped(np.ones((3, 4)), other), expected)
    flat = stepped(np.ones((3, 4)), np.broadcast_to(2.0, (3, 4)))
    assert np.array_equal(flat, stepped(np.ones((3, 4)), np.full((3, 4), 2.0)))


@fails_with(
    ARRAYS,
    "for s, n in zip(x.strides, x.shape, strict=True) if n > 1):\n",
    "for s, n in zip(x.strides, x.shape, strict=True)):\n",
)
@pytest.mark.parametrize("stride", [0, 3, -(10**9)])
def test_pytorch_106951_an_axis_of_one_element_has_no_stride(stride):
    """A gradient had another stride than its parameter on an axis of one element, where it means
    nothing, and the fused Adam refused it (pytorch/pytorch#106951)."""
    room = np.ones(4)
    odd = np.lib.stride_tricks.as_strided(room, (4, 1), (8, stride))
    expected = stepped(np.ones(4), np.arange(4.0))
    got = stepped(odd, np.arange(4.0).reshape(4, 1))
    assert np.array_equal(got[:, 0], expected) and np.array_equal(room, expected)


@fails_with(
    ARRAYS,
    "    own = of_a_format(as_array(x, what, writable=True), what, bits)\n",
    "    own = of_a_format(as_array(x, what, writable=True), what, bits)\n"
    "    own = np.ascontiguousarray(own) if own.ndim else own\n",
)
def test_axolotl_3785_a_parameter_is_not_updated_in_a_copy():
    """A review asked for `.contiguous()` of the parameter; the update would have gone into a copy
    and been lost (axolotl-ai-cloud/axolotl#3785)."""
    whole = np.ones((4, 6))
    st.SGD(whole[:, ::2], lr=1.0).step(np.full((4, 3), 0.5))
    assert (whole[:, ::2] == 0.5).all() and (whole[:, 1::2] == 1).all()


@fails_with(
    "kernels/engine/plan.pyx",
    "            if not e.active:\n                continue\n            e.scale = 1.0",
    "            if not e.active:\n                continue\n"
    "            if not e.size:\n                break\n            e.scale = 1.0",
    ("engine/plan", None),
)
@pytest.mark.parametrize("place", range(4))
def test_pytorch_100701_an_empty_parameter_at_any_place(place):
    """Where the last tensor of a list was empty, the kernel was not started for the others
    (pytorch/pytorch#100701); its test took an array of one element for an empty one."""
    params = [np.ones(2) for _ in range(4)]
    params[place] = np.ones((3, 0, 2))
    assert params[place].size == 0
    st.AdamW(params, lr=0.5).step([np.ones(p.shape) for p in params])
    assert all((p < 1).all() for p in params)


@fails_with(
    "core/planning.py",
    "                program.check_axes(p, name)\n                keys, ",
    "                program.check_axes(p, name)\n                if not p.size:\n"
    "                    plan = Plan(dispatch.current, len(self._names), self._updates)\n"
    "                keys, ",
)
def test_transformer_engine_3207_an_empty_parameter_leaves_those_before_it():
    """An empty tensor at the end of a group: the parameters before it were not updated, without an
    error (NVIDIA/TransformerEngine#3207)."""
    params = [np.ones(3), np.ones(0), np.ones(2)]
    st.SGD(params, lr=0.5).step([np.ones(p.shape) for p in params])
    assert params[0].tolist() == [0.5] * 3 and params[2].tolist() == [0.5] * 2


@fails_with(
    "kernels/leveled/adam.pyx",
    """    for i in range(n):
        gi = f * g[i]
        mi = b1 * m[i] + fresh1 * gi
        vi = b2 * v[i] + fresh2 * (gi * gi)
        m[i] = mi
        v[i] = vi
        p[i] = k * p[i] - step * mi / (root(vi) * unbias + eps)""",
    """    for i in range(n - n % 8):
        gi = f * g[i]
        mi = b1 * m[i] + fresh1 * gi
        vi = b2 * v[i] + fresh2 * (gi * gi)
        m[i] = mi
        v[i] = vi
        p[i] = k * p[i] - step * mi / (root(vi) * unbias + eps)""",
    ("leveled/adam", "base"),
)
def test_deepspeed_735_sizes_that_no_vector_divides():
    """Without vector instructions the loop over single elements crashed
    (deepspeedai/DeepSpeed#735), and of the sizes in its tests 55 is commented out. Every size to 70
    and some more, between two guards."""
    g = np.linspace(-1, 1, 130, dtype=np.float32)
    expected = stepped(np.ones(130, np.float32), g)
    for n in (*range(70), 127, 128, 129):
        room = np.full(n + 2, 7, np.float32)
        room[1:-1] = 1
        stepped(room[1:-1], g[:n])
        assert np.array_equal(room[1:-1], expected[:n]) and room[0] == room[-1] == 7


def kernel_texts():
    """The Cython texts of the package, or of the repository where it ships none."""
    folder = Path(st.__file__).parent / "kernels"
    if not any(folder.rglob("*.pyx")):
        folder = ROOT / "src" / "steepest" / "kernels"
    return {path.name: path.read_text(encoding="utf-8") for path in folder.rglob("*.pyx")}


@fails_with(
    "kernels/leveled/sign.pyx",
    """    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        p[i] =""",
    """    cdef int i
    for i in range(n):
        gi = f * g[i]
        p[i] =""",
)
def test_deepspeed_7640_no_kernel_counts_elements_in_an_int():
    """The number of elements was an int of 32 bits: from 2³¹ on nothing was updated, without an
    error (deepspeedai/DeepSpeed#7640)."""
    loops = 0
    for name, text in kernel_texts().items():
        for function in re.split(r"^(?=cdef )", text, flags=re.MULTILINE):
            for i in re.findall(r"for (\w+) in range\((?:n|size|rows|columns)\)", function):
                loops += 1
                assert re.search(rf"cdef Py_ssize_t\b[^(\n]*\b{i}\b", function), (
                    f"{name}: {function}"
                )
    assert loops > 50


@fails_with(
    ARRAYS,
    '        g = of_a_format(as_array(x, what, used=""), what)\n',
    "        g = _written(x, what, None)\n",
)
def test_scikit_learn_25172_a_gradient_may_be_read_only(tmp_path):
    """Buffers that are read-only, such as mapped files, were refused by code that only reads them
    (scikit-learn/scikit-learn#25172)."""
    np.save(tmp_path / "g.npy", np.ones(8))
    g = np.load(tmp_path / "g.npy", mmap_mode="r")[::2]
    w = np.ones(4)
    st.SGD(w, lr=0.5).step(g)
    assert (w == 0.5).all()


@fails_with(
    ARRAYS,
    '    if not own.flags.writeable:\n        raise ValueError(f"{what} is read-only; give',
    '    if False:\n        raise ValueError(f"{what} is read-only; give',
)
def test_pywt_839_a_read_only_parameter_is_refused():
    """The other side of PyWavelets/pywt#839, where an input that is only read was refused for being
    read-only: what is written must be refused, before anything is. The flag may turn after the
    optimizer was made, too."""
    w = np.ones(3)
    opt = st.SGD(w, lr=1.0)
    w.flags.writeable = False
    with pytest.raises(ValueError, match="parameter '0' is read-only"):
        st.SGD(w)
    with pytest.raises(ValueError, match="parameter '0' is read-only"):
        opt.step(np.ones(3))
    assert (w == 1).all()


@fails_with(
    ARRAYS,
    "            if share_memory(named[i][1], named[j][1]):",
    "            if named[i][1] is named[j][1]:",
)
def test_pytorch_188346_two_objects_over_one_memory():
    """Tied weights became two objects on loading, and an optimizer made of them updated the weight
    twice (pytorch/pytorch#188346; one object listed twice is pytorch/pytorch#40967)."""
    w = np.ones((2, 3))
    for other in (w, w.T, w[1], w.reshape(-1)[2:5]):
        with pytest.raises(ValueError, match="share memory"):
            st.Adam([w, other])
    st.Adam([w[:, ::2], w[:, 1]])  # that interleave without sharing an element


@fails_with(
    "core/planning.py",
    "            if g.size and plan.overlaps(low, high):",
    "            if False:",
)
def test_pytorch_198033_a_gradient_in_memory_that_is_written_is_refused():
    """An operand that was a view of what was written was read while it changed, and results were
    wrong without an error (pytorch/pytorch#198033). Here what is read must not be what is
    written."""
    w = np.ones(4)
    opt = st.SGD(w, lr=1.0, momentum=0.9)
    for g in (w, opt.state["0"]["momentum_buffer"]):
        with pytest.raises(ValueError, match="shares memory with"):
            opt.step(g)
    assert (w == 1).all()


@fails_with(
    "core/optimizer.py",
    "        flat = [grads] if self._shape is None else trees.take(self._shape, grads)\n",
    "        flat = [grads] if self._shape is None else trees.take("
    "self._shape, grads)\n        for g in flat:\n            if g is not None and "
    "self.defaults['maximize']:\n                g *= -1\n",
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"maximize": True},
        {"clip": st.clip.global_norm(0.1)},
        {"weight_decay": 0.1},
        {"l1": 0.5},
    ],
    ids=str,
)
def test_pytorch_12218_gradients_are_not_written(options):
    """SGD with a weight decay added it to the gradient itself (pytorch/pytorch#12218). Others may
    still read that, whatever the options do to it."""
    g = np.linspace(-2, 2, 9).reshape(3, 3)
    before = g.tobytes()
    for rule in (st.SGD, st.Adam, st.LAMB):
        w = np.ones((3, 3))
        rule(w, **options).step(g)
        assert g.tobytes() == before


@fails_with(
    "core/optimizer.py",
    "        self._flat_step(flat if self._in_order",
    "        flat = [0.0 * p if g is None else g for g, p in zip(flat, self._params())]\n"
    "        self._flat_step(flat if self._in_order",
)
def test_normuon_3_a_parameter_without_a_gradient_does_not_decay():
    """Weight decay was applied also where the gradient is None (zichongli5/NorMuon#3); zeros put in
    its place do the same (KellerJordan/Muon#38)."""
    w, frozen = np.ones(2), np.ones(2)
    opt = st.SGD([w, frozen], lr=0.5, momentum=0.9, weight_decay=0.1)
    opt.step([np.ones(2), np.ones(2)])
    before = frozen.copy(), opt.state["1"]["momentum_buffer"].copy()
    opt.step([np.ones(2), None])
    assert np.array_equal(frozen, before[0]) and opt.state["1"]["step"] == 1
    assert np.array_equal(opt.state["1"]["momentum_buffer"], before[1])


@fails_with(
    ARRAYS,
    "    if formats.found(x.dtype) is None:\n        hint",
    "    if formats.found(x.dtype.newbyteorder('=')) is None:\n        hint",
)
@pytest.mark.parametrize("dtype", [">f4", ">f8", "i4", "?", "O", "U3"])
def test_pytorch_59998_other_types_are_not_misread(dtype):
    """A relative of pytorch/pytorch#59998, where a formula for real numbers was used for complex
    ones: other types, too, must be refused. Bytes in another order, integers, objects."""
    w = np.ones(3)
    with pytest.raises(TypeError, match="dtype"):
        st.SGD(w).step(np.ones(3).astype(dtype))
    with pytest.raises(TypeError, match="dtype"):
        st.SGD(np.ones(3).astype(dtype))
    assert (w == 1).all()


@fails_with(
    "core/trees.py",
    "            tree = dict(tree)\n        if isinstance(tree, Mapping):",
    "            tree = dict(tree)\n        if isinstance(tree, dict):\n"
    "            tree['seen'] = tree.pop(next(iter(tree)))\n"
    "        if isinstance(tree, Mapping):",
)
def test_pytorch_51794_what_the_caller_gave_is_not_changed():
    """The optimizer filled the dicts it was given, and a second one made of them had the rate of
    the first (pytorch/pytorch#51794)."""
    a, b = np.ones(2), np.ones(3)
    groups = [{"params": {"a": a}}, {"params": {"b": b}, "lr": 0.5}]
    opt = st.AdamW(groups, lr=0.1)
    grads = [{"a": np.ones(2)}, {"b": None}]
    opt.step(grads)
    opt.param_groups[1]["lr"] = 0.25
    assert [list(group) for group in groups] == [["params"], ["params", "lr"]]
    assert list(groups[0]["params"]) == ["a"] and groups[0]["params"]["a"] is a
    assert groups[1]["lr"] == 0.5 and grads[1]["b"] is None


@fails_with("core/trees.py", "if isinstance(tree, (set, frozenset)):", "if isinstance(tree, set):")
@pytest.mark.parametrize("kind", [set, frozenset])
def test_pytorch_6031_a_set_has_no_order(kind):
    """Parameters in a set may come in another order in the next run, and a loaded state would not
    fit them (pytorch/pytorch#6031)."""
    with pytest.raises(TypeError, match="no order"):
        st.SGD(kind([1.0, 2.0]))
