"""Tensors as NumPy arrays over the same memory, and which of them the engine may look at itself."""

from typing import Any

import numpy as np

from steepest import nesting
from steepest.codecs import GROUP, is_bfloat16
from steepest.extras import require
from steepest.kernels import sources
from steepest.memory import formats
from steepest.memory.arrays import Array, check_values, in_memory

torch: Any = require("torch", extra="torch", purpose="steepest.torch")

__all__ = ["array", "changed", "local", "numbers", "ordinary", "plain", "place", "scales", "state",
           "tensor", "type_of"]  # fmt: skip

_REAL = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_COMPLEX = (torch.complex64, torch.complex128)


def _samples(cls: Any) -> list[tuple[Any, Array]]:
    found = []
    for dtype in (torch.float32, torch.float64):
        x = torch.arange(60, dtype=dtype, device="cpu").reshape(5, 4, 3)[1:4:2, :, 1:]
        x = x.transpose(0, 1)
        x = cls(x) if cls is not torch.Tensor else x
        found.append((x, x.detach().numpy()))
    return found


def _keys(x: Any) -> int:
    keys: int = torch._C._dispatch_keys(x).raw_repr()
    return keys


def _learnt() -> tuple[Any, ...]:
    """The types of tensors that the engine looks at without help from Python."""
    types = (torch.Tensor, torch.nn.Parameter)
    try:
        with torch.inference_mode(False):
            samples = {cls: _samples(cls) for cls in types}
            marked = [torch._neg_view(torch.zeros(2, device="cpu"))]
            marked.append(torch._efficientzerotensor((2,), device="cpu"))
            every = [x for of_type in samples.values() for x, _ in of_type] + marked
            heads = [(x, x._cdata, _keys(x)) for x in every]
    except (AttributeError, RuntimeError):  # a torch that does not show where its keys are
        return ()
    if not sources.learn_keys(heads, heads[0][2]):
        return ()
    return tuple(cls for cls in types if sources.learn(cls, samples[cls]))


_LEARNT = _learnt()


def ordinary(p: Any) -> bool:
    """Whether the engine may look at the tensor itself."""
    return type(p) in _LEARNT and p.dtype in _REAL


def plain(x: Any, what: str) -> Any:
    """The real, dense tensor in main memory that x is, or has its numbers in. Raises TypeError."""
    if type(x) not in (torch.Tensor, torch.nn.Parameter):
        x = local(x)
        if torch.utils._python_dispatch.is_traceable_wrapper_subclass(x):
            raise TypeError(f"{what} is a {type(x).__name__}; expected a plain torch.Tensor")
        check_values(x, what)
    if x.device.type != "cpu":
        raise TypeError(f"{what} lies on device {x.device}; move it to the CPU first")
    if x.layout != torch.strided:
        raise TypeError(
            f"{what} has layout {x.layout}; expected a dense tensor: convert it with .to_dense(), "
            "or make the layer it comes from with sparse=False"
        )
    if x.dtype not in _REAL + _COMPLEX:
        raise TypeError(
            f"{what} has dtype {x.dtype}; expected {formats.expected()}, or complex numbers of "
            "the first two: convert it to one of them"
        )
    return x


def local(x: Any) -> Any:
    """The part of a tensor that this process has."""
    if hasattr(x, "to_local"):  # a DTensor
        x = x.to_local()
    if hasattr(x, "trigger_wait"):  # it may be on its way from other processes
        x = x.trigger_wait()
    return x


def array(x: Any, what: str, *, writable: bool = False) -> Array:
    """A NumPy array over the memory of x; complex numbers are pairs along a last axis. What is only
    marked as conjugate or negative is computed, unless it must be `writable`."""
    x = in_memory(plain(x, what).detach(), what, writable=writable)
    if x.dtype == torch.bfloat16:
        bits: Array = x.view(torch.int16).numpy()
        return bits.view(formats.named("bfloat16"))
    view: Array = (torch.view_as_real(x) if x.is_complex() else x).numpy()
    return view


def state(x: Any, what: str) -> Any:
    """A NumPy array over the memory of a state; what is no tensor as it is."""
    if not isinstance(x, torch.Tensor):
        return x
    if x.is_floating_point() or x.is_complex():
        return array(x, what, writable=True)
    return local(x.detach()).numpy()


def scales(x: Any, p: Any, what: str) -> Any:
    """A flat NumPy array over the memory of the scales of a state of p; what is no tensor as it is.

    Raises ValueError for those of all shards that are not laid out by the rows of p.
    """
    if hasattr(x, "to_local") and x.shape != _scale_shape(p, x.numel()):
        raise ValueError(
            f"{what} has shape {tuple(x.shape)}; expected {_scale_shape(p, x.numel())}, a row for "
            "each row of the parameter"
        )
    found = state(x, what)
    return found.reshape(-1) if isinstance(found, np.ndarray) else found


def _scale_shape(p: Any, count: int) -> tuple[int, ...]:
    """The shape of the scales of a state of p, `count` in all: by rows if these are of whole
    groups, so that they are sharded and put together as the rows of p are."""
    pairs = 2 if p.is_complex() else 1
    row = p.shape[1:].numel() * pairs
    return (count,) if p.dim() < 2 or row % GROUP else (p.shape[0], row // GROUP)


def type_of(dtype: Any) -> Any:
    """torch's type of the elements of an array."""
    return torch.bfloat16 if is_bfloat16(dtype) else torch.from_numpy(np.empty(0, dtype)).dtype


def changed(tensors: list[Any]) -> None:
    """Tells torch that tensors were changed in place, so that a backward pass that needs them as
    they were raises, as after a step of torch's own."""
    torch.autograd.graph.increment_version(tensors)


def place(x: Any) -> tuple[Any, ...]:
    """Where a tensor lies and how: if that is the same, so is its array."""
    if hasattr(x, "to_local"):
        x = x.to_local()
    return x.data_ptr(), x.dtype, x.shape, x.stride(), x.device, x.is_conj(), x.is_neg()


def tensor(x: Array, p: Any) -> Any:
    """The array as a tensor over the same memory; for a complex or sharded p, and an array of its
    shape, one like p. Scales have the rows of p, if these are of whole groups."""
    if is_bfloat16(x.dtype):
        made = torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    else:
        made = torch.from_numpy(x)
    own = p.to_local() if hasattr(p, "to_local") else p
    pairs = own.is_complex() and made.shape == (*own.shape, 2)
    if pairs and made.dtype in (torch.float32, torch.float64):  # torch has no others
        made = torch.view_as_complex(made)
    if made.dtype == torch.uint8 and made.dim() == 1 and made.shape != own.shape and not pairs:
        shape = _scale_shape(p, made.numel())
        made = made.reshape(own.shape[0], *shape[1:]) if len(shape) > 1 else made
        return made if own is p else _placed(made, p, shape, torch.empty(shape, device="meta"))
    if own is not p and made.shape == own.shape:
        made = _placed(made, p, p.shape, p)
    return made


def _placed(x: Any, p: Any, shape: Any, like: Any) -> Any:
    """A local tensor as this process's part of one that lies on the mesh of p as p does."""
    how = {"run_check": False, "shape": torch.Size(shape), "stride": like.stride()}
    return type(p).from_local(x, p.device_mesh, p.placements, **how)


def numbers(x: Any, depth: int = 0) -> Any:
    """A hyper-parameter with numbers in place of tensors of one number. Raises ValueError."""
    if isinstance(x, torch.Tensor):
        if x.numel() != 1:
            raise ValueError(f"a hyper-parameter is a tensor of shape {tuple(x.shape)}: "
                             "expected one number")  # fmt: skip
        return x.item()
    if type(x) in (tuple, list):
        if depth > nesting.DEEPEST:
            raise ValueError("a hyper-parameter is nested too deeply, or contains itself")
        return type(x)(numbers(y, depth + 1) for y in x)
    if isinstance(x, np.generic):
        return x.item()
    return x
