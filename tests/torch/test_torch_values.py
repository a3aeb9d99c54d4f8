"""Gradients and parameters of PyTorch whose numbers are not what lies at their address: what torch
would use, or an error that names the parameter."""

import numpy as np
import pytest
from cases import CONFIGURATIONS, MATRICES_ONLY

import steepest as st
from steepest.optimizers import RULES

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch")

from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

import steepest.torch as stt  # noqa: E402
from steepest.torch import views  # noqa: E402

FIRST = dict(reversed([*CONFIGURATIONS, *((rule, {}) for rule in MATRICES_ONLY)]))
Z = torch.tensor([[1 + 2j, 3 + 4j], [5 + 6j, 7 + 8j]], dtype=torch.complex128)


def freed():
    g = torch.ones(2, 2, dtype=torch.float64)
    g.untyped_storage().resize_(0)
    return g


class Tagged(torch.Tensor):
    """A subclass that changes nothing."""


class Dispatched(torch.Tensor):
    """A subclass whose numbers are twice those at its address."""

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise AssertionError("nobody asks it")


class Wrapping(torch.Tensor):
    """A subclass without memory, around a tensor that has the numbers."""

    @staticmethod
    def __new__(cls, x):
        return torch.Tensor._make_wrapper_subclass(cls, x.shape, dtype=x.dtype)

    def __init__(self, x):
        self.x = x

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return function(*(a.x if isinstance(a, Wrapping) else a for a in args), **(kwargs or {}))


def ones():
    return torch.ones(2, 2, dtype=torch.float64)


# Gradients that are worth something, and those that are worth nothing anyone could know.
WORTH = {
    "zero": lambda: torch._efficientzerotensor((2, 2), dtype=torch.float64),
    "view of a zero": lambda: torch._efficientzerotensor((2, 4), dtype=torch.float64)[:, ::2],
    "negative": lambda: Z.conj().imag,
    "negative as_strided": lambda: Z.conj().imag.as_strided((2, 2), (2, 1)),
    "negative, dense": lambda: torch._neg_view(ones()),
    "negative of one": lambda: torch._neg_view(ones())[:1, :1].expand(2, 2),
    "expanded": lambda: torch.full((1, 1), 3.0, dtype=torch.float64).expand(2, 2),
    "expanded rows": lambda: torch.tensor([[3.0, 4.0]], dtype=torch.float64).expand(2, 2),
    "real": lambda: Z.real,
    "imaginary": lambda: Z.imag.t(),
    "subclass": lambda: ones().as_subclass(Tagged),
    "inference": lambda: inference(),
}
NOWHERE = {
    "fake": lambda: FakeTensorMode().from_tensor(ones()),
    "freed": freed,
    "dispatched": lambda: torch.Tensor._make_subclass(Dispatched, ones()),
    "wrapping": lambda: Wrapping(ones()),
}


def inference():
    with torch.inference_mode():
        return ones() * 2


def numpy_step(make, opt, p):
    opt.step([make()])


def torch_step(make, opt, p):
    p.grad = make()
    opt.step()


def ready(door, warm, **options):
    """A parameter of fours, an optimizer of it, and what steps it with a gradient."""
    if door == "numpy":
        p = np.full((2, 2), 4.0)
        opt = st.SGD([p], lr=0.25, **options)
        step = numpy_step
    else:
        p = torch.nn.Parameter(torch.full((2, 2), 4.0, dtype=torch.float64))
        opt = stt.SGD([p], lr=0.25, **options)
        step = torch_step
    if warm:
        step(lambda: torch.zeros(2, 2, dtype=torch.float64), opt, p)
    return p, opt, step


def numbers(p):
    return p.detach().numpy().copy() if isinstance(p, torch.Tensor) else p.copy()


def test_the_engine_looks_at_plain_tensors_itself():
    assert (torch.Tensor, torch.nn.Parameter) == views._LEARNT


OPTIONS = [{}, {"clip": st.clip.global_norm(100.0)}, {"nonfinite": "raise"}, {"momentum": 0.5}]


@pytest.mark.parametrize("door", ["numpy", "torch"])
@pytest.mark.parametrize("warm", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("kind", WORTH)
def test_gradients_are_worth_what_torch_says(kind, warm, door):
    expected = 4.0 - 0.25 * WORTH[kind]().resolve_neg().add(0).numpy()
    for options in OPTIONS:
        p, opt, step = ready(door, warm, **options)
        step(WORTH[kind], opt, p)
        np.testing.assert_array_equal(numbers(p), expected)


@pytest.mark.parametrize("door", ["numpy", "torch"])
@pytest.mark.parametrize("warm", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("kind", NOWHERE)
def test_gradients_without_numbers_are_refused_by_name(kind, warm, door):
    for options in OPTIONS:
        p, opt, step = ready(door, warm, **options)
        with pytest.raises(TypeError, match="gradient of parameter '0'"):
            step(NOWHERE[kind], opt, p)
        np.testing.assert_array_equal(numbers(p), np.full((2, 2), 4.0))


def test_a_gradient_on_the_meta_device_is_refused_by_name():
    opt = st.SGD([np.ones(2)])
    with pytest.raises(TypeError, match="gradient of parameter '0' has no memory"):
        opt.step([torch.ones(2, dtype=torch.float64, device="meta")])


@pytest.mark.parametrize("rule", FIRST)
def test_a_gradient_of_zeros_without_memory_is_one_of_zeros(rule):
    """torch.sgn has such a derivative."""
    found = []
    for zero in (lambda w: torch.zeros_like(w), None):
        w = torch.nn.Parameter(torch.arange(1.0, 13.0).reshape(4, 3))
        opt = getattr(stt, RULES[rule].__name__)([w], **FIRST[rule])
        (w * w).sum().backward()
        opt.step()
        opt.zero_grad()
        if zero is None:
            torch.sgn(w).sum().backward()
            assert w.grad._is_zerotensor()
        else:
            w.grad = zero(w)
        opt.step()
        found.append(w.detach().numpy().tobytes())
    assert found[0] == found[1]


def test_such_a_gradient_in_a_backward_pass_that_steps():
    w = torch.nn.Parameter(torch.tensor([4.0]))
    with stt.step_in_backward(stt.SGD([w], lr=0.25, momentum=0.5)):
        (2.0 * w).sum().backward()
        torch.sgn(w).sum().backward()
    assert w.item() == 4.0 - 0.5 - 0.25


@pytest.mark.parametrize("door", ["numpy", "torch"])
@pytest.mark.parametrize("transform", ["grad", "vmap", "functionalize"])
def test_gradients_of_torch_func_are_refused_by_name(transform, door):
    p, opt, step = ready(door, True)

    def inside(x):
        with pytest.raises(TypeError, match="gradient of parameter '0' has no memory"):
            step(lambda: x, opt, p)
        return x.sum()

    shape = (3, 2, 2) if transform == "vmap" else (2, 2)
    getattr(torch.func, transform)(inside)(torch.ones(shape, dtype=torch.float64))
    np.testing.assert_array_equal(numbers(p), np.full((2, 2), 4.0))


def test_a_complex_gradient_of_zeros_without_memory():
    w = torch.nn.Parameter(torch.tensor([4.0 + 2j]))
    opt = stt.SGD([w], lr=0.25)
    w.grad = torch._efficientzerotensor((1,), dtype=w.dtype)
    opt.step()
    assert w.item() == 4 + 2j


# Parameters


@pytest.mark.parametrize("kind", [k for k in WORTH if k.startswith(("zero", "negative"))])
def test_parameters_are_not_stepped_in_a_copy(kind):
    for make in (lambda x: st.SGD([x]), lambda x: stt.SGD([torch.nn.Parameter(x)])):
        with pytest.raises(TypeError, match=r"parameter '0' is .*give a copy"):
            make(WORTH[kind]())


@pytest.mark.parametrize("kind", NOWHERE)
def test_parameters_without_memory_are_refused_by_name(kind):
    for make in (lambda x: st.SGD([x]), lambda x: stt.SGD([x.requires_grad_()])):
        with pytest.raises(TypeError, match="parameter '0'"):
            make(NOWHERE[kind]())


def test_a_parameter_that_loses_its_memory_is_refused_until_it_is_back():
    p = torch.nn.Parameter(torch.full((2, 2), 4.0, dtype=torch.float64))
    opt = stt.SGD([p], lr=0.25, momentum=0.5)
    torch_step(ones, opt, p)
    memory = p.data
    p.data, p.grad = freed(), ones()
    with pytest.raises(TypeError, match="parameter '0' has no memory"):
        opt.step()
    p.data = memory
    opt.step()
    np.testing.assert_array_equal(numbers(p), np.full((2, 2), 4.0 - 0.25 - 0.25 * 1.5))


def test_a_parameter_that_becomes_a_negative_view_is_refused():
    p = torch.nn.Parameter(ones())
    opt = stt.SGD([p], lr=0.25)
    torch_step(ones, opt, p)
    base = p.data
    p.data = torch._neg_view(base)
    assert p.data_ptr() == base.data_ptr()
    with pytest.raises(TypeError, match="parameter '0' is a conjugate or negative view"):
        opt.step()


@pytest.mark.parametrize("mark", ["conj", "_neg_view"])
def test_a_complex_parameter_that_becomes_a_marked_view_is_refused(mark):
    p = torch.nn.Parameter(Z.clone())
    opt = stt.SGD([p], lr=0.25)
    torch_step(lambda: torch.ones_like(Z), opt, p)
    base = p.data
    p.data = getattr(torch, mark)(base)
    assert p.data_ptr() == base.data_ptr()
    with pytest.raises(TypeError, match="parameter '0' is a conjugate or negative view"):
        opt.step()


def test_a_negative_view_is_no_place_to_load_into(tmp_path):
    w = np.ones(2)
    opt = st.SGD({"w": w})
    st.save(tmp_path / "x", opt, params={"w": w, "extra": torch.ones(2, dtype=torch.float64)})
    into = torch._neg_view(torch.zeros(2, dtype=torch.float64))
    with pytest.raises(TypeError, match="params 'extra' is a conjugate or negative view"):
        st.load(tmp_path / "x", opt, params={"w": w, "extra": into})
