"""What may be stepped: arrays are checked once here, with errors that name the parameter, and
become raw pointers with loop axes below.

A parameter is an array that can be changed in place: of a format (see `formats`), writable, each
element in its own place. It may have any strides. Its gradient and its states have formats of their
own. All written arrays must be disjoint, and no gradient may overlap one of them.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest.kernels import sources
from steepest.memory import formats
from steepest.memory.formats import computed as computed

Array = NDArray[Any]

LINE = 64  # bytes of a cache line and of the widest vector
HUGE = 1 << 21  # bytes of a huge page on x86-64, and on 64-bit Arm with pages of 4 KiB
LARGE = 32 * HUGE  # bytes of an array for which another huge page does not count


@dataclass(frozen=True)
class Walk:
    """How a sweep walks one array: axes from the slowest to the fastest, strides in bytes, the
    byte offset of the first element, and the codec (None: borrowed, as the array lies), with the
    array in C order that it stores beside this one, if any."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    codec: str | None
    beside: Array | None = None


@dataclass(frozen=True)
class Cut:
    """A parameter and its gradient, cut into `count` units of `length` elements and walked from
    unit to unit. `factors` holds one number per unit where the gradient's units get some."""

    count: int
    length: int
    p: Walk
    g: Walk
    factors: Array | None


@dataclass(frozen=True)
class Layout:
    """The walks of a parameter's arrays and its gradient, all in the parameter's memory order,
    that of the gradient in C order, and those unit by unit; and the type of their blocks."""

    computed: np.dtype[Any]
    walks: tuple[Walk, ...]
    c_order: Walk
    cuts: tuple[Cut, ...]


@dataclass(frozen=True)
class Matrices:
    """A parameter as a rule takes it that uses rows and columns: `count` matrices, one after the
    other in C order.

    `factors` are the shapes of the factors of all rows, and of all columns unless the rule uses
    rows alone, which NumPy would spread over the parameter's shape; `states` those of the states
    that hold numbers of rows and columns.
    """

    count: int
    rows: int
    columns: int
    factors: tuple[tuple[int, ...], ...]
    states: Mapping[str, tuple[int, ...]]


def factors(
    matrices: Matrices, p: Array, dtype: np.dtype[Any]
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """New factors of the rows and columns of p, and the same memory as arrays of the shape of p."""
    made = tuple(np.zeros(shape, dtype) for shape in matrices.factors)
    return made, tuple(np.broadcast_to(x, p.shape) for x in made)


def _walk(
    x: Array,
    axes: Sequence[int],
    flips: Sequence[int],
    blocks: np.dtype[Any],
    beside: tuple[str, Array | None] | None = None,
) -> Walk:
    """Walks x along `axes`, backwards along `flips`, in blocks of a type; joins neighbouring axes
    where x allows. `beside` is a codec that is not the format's, and what it stores beside x."""
    offset = sum((x.shape[axis] - 1) * x.strides[axis] for axis in flips) if x.size else 0
    shape: list[int] = []
    strides: list[int] = []
    for axis in axes:
        n, stride = x.shape[axis], -x.strides[axis] if axis in flips else x.strides[axis]
        if shape and strides[-1] == n * stride:
            shape[-1] *= n
            strides[-1] = stride
        else:
            shape.append(n)
            strides.append(stride)
    if not shape:
        shape, strides = [1], [x.itemsize]
    if beside is not None:
        return Walk(tuple(shape), tuple(strides), offset, *beside)
    dense = len(shape) == 1 and (strides[0] == x.itemsize or shape[0] == 1)
    borrowed = dense and x.flags.aligned and x.dtype == blocks
    return Walk(tuple(shape), tuple(strides), offset, None if borrowed else formats.of(x).name)


def _loop_axes(p: Array, in_c_order: bool) -> tuple[list[int], list[int]]:
    """The axes along which the arrays of the parameter p are walked, and those of them that are
    walked backwards: in its memory order, unless that is to be C order."""
    used = [axis for axis in range(p.ndim) if p.shape[axis] != 1]
    if in_c_order or p.flags.c_contiguous:  # strides along axes of length 1 mean nothing
        return used, []
    order = sorted(used, key=lambda axis: -abs(p.strides[axis]))
    return order, [axis for axis in used if p.strides[axis] < 0]


def copy_walk(copy: Array, p: Array, in_c_order: bool) -> Walk:
    """The walk of a copy of the parameter p beside its arrays. It always has a codec, which writes
    it."""
    walk = _walk(copy, *_loop_axes(p, in_c_order), formats.FLOAT32)
    return replace(walk, codec=formats.of(copy).name)


def layout(
    arrays: Sequence[Array],
    gradient: Array,
    cuts: Sequence[tuple[int | None, Array | None]] = (),
    in_c_order: bool = False,
    blocks: np.dtype[Any] | None = None,
    beside: Mapping[int, tuple[str, Array | None]] = MappingProxyType({}),
) -> Layout:
    """The walks of arrays of one shape, in the memory order of the first, the parameter, unless
    they are to be `in_c_order`.

    `cuts` are (axis of the units, factors of the units or None). `blocks` is the type in which
    blocks are computed: float64 where one of the arrays is, unless it is given. `beside` are the
    codecs of arrays, by their places, that are not their formats', and what these codecs store
    beside them; all is then in C order.
    """
    p, blocks = arrays[0], blocks or formats.wider(x.dtype for x in arrays)
    order, flips = _loop_axes(p, in_c_order)
    walks = tuple(
        _walk(x, order, flips, blocks, beside.get(k)) for k, x in enumerate((*arrays, gradient))
    )
    return Layout(
        blocks,
        walks,
        _walk(gradient, _loop_axes(p, True)[0], [], blocks),
        tuple(_cut(p, gradient, axis, factors, blocks, beside.get(0)) for axis, factors in cuts),
    )


def units(p: Array, axis: int | None) -> int:
    """How many units the array is cut into: its length along `axis`; 1 where axis is None, and for
    arrays of fewer than two dimensions, which are one unit as a whole."""
    if axis is None or p.ndim < 2:
        return 1
    if not -p.ndim <= axis < p.ndim:
        raise ValueError(f"axis = {axis}: an array of shape {p.shape} has no such axis")
    return int(p.shape[axis])


def _cut(
    p: Array,
    gradient: Array,
    axis: int | None,
    factors: Array | None,
    blocks: np.dtype[Any],
    beside: tuple[str, Array | None] | None,
) -> Cut:
    count = units(p, axis)
    first = [] if axis is None or p.ndim < 2 else [axis % p.ndim]
    order = first + [k for k in range(p.ndim) if k not in first]
    order = [k for k in order if p.shape[k] != 1]
    return Cut(
        count,
        p.size // max(count, 1),
        _walk(p, order, [], blocks, beside),
        _walk(gradient, order, [], blocks),
        factors,
    )


def unit_factors(
    p: Array, axis: int | None, dtype: np.dtype[Any], *, of_matrices: bool = False
) -> tuple[Array | None, Array]:
    """Ones, one for each unit, and the same memory as an array of the shape of p. With
    `of_matrices`, None and zeros where p has fewer than two dimensions."""
    if of_matrices and p.ndim < 2:
        return None, np.broadcast_to(np.zeros((), dtype), p.shape)
    count = units(p, axis)
    factors: Array = np.ones(count, dtype)
    shape = [1] * p.ndim
    if axis is not None and p.ndim > 1:
        shape[axis] = count
    return factors, np.broadcast_to(factors.reshape(shape), p.shape)


def _slowest_first(x: Array) -> list[int]:
    return sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis]))


def in_memory_order(x: Array) -> Array:
    """A view of x with its axes from the slowest to the fastest."""
    return x.transpose(_slowest_first(x))


def zeros_like(p: Array, memory: Array | None = None, dtype: np.dtype[Any] | None = None) -> Array:
    """A new array of zeros with the shape and memory order of p, of the type that blocks of p are
    computed in, as far from the start of a cache line as p is, so that a vector that is aligned in
    one is aligned in the other. A large one begins on a huge page.

    memory: zeros to make it of, as bytes, a line more than its own. dtype: another type.
    """
    order, dtype = _slowest_first(p), dtype or computed(p)
    nbytes, base = p.size * dtype.itemsize, 0
    if memory is None:
        room = HUGE if nbytes >= LARGE else 0
        memory = np.zeros(nbytes + room + LINE, np.uint8)
        base = -sources.start(memory) % room if room else 0
    shift = base + (sources.start(p) - sources.start(memory) - base) % LINE
    dense: Array = np.ndarray(
        [p.shape[axis] for axis in order],
        dtype,
        memory.data,
        shift // dtype.itemsize * dtype.itemsize,
    )
    return dense.transpose(np.argsort(order))


def as_array(
    x: Any, what: str, used: str = ", since it is used in place", *, writable: bool = False
) -> Array:
    """x itself, or a NumPy array over the memory of an object that shares it; `used` says why it
    must. What a tensor is only marked to be is computed, unless it must be `writable`.

    Raises TypeError for what has no memory to share (lists, numbers) or lies on another device.
    """
    if type(x) is np.ndarray:
        return x
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(
            f"{what} is a {type(x).__name__}, whose mask would be ignored; give a plain array: "
            ".filled(0) makes one"
        )
    if isinstance(x, np.ndarray):  # a subclass may say anything of itself; this view does not
        return np.ndarray.view(x, np.ndarray)
    if hasattr(x, "__dlpack_device__"):
        check_values(x, what)
        try:
            device = x.__dlpack_device__()
        except (RuntimeError, ValueError) as error:  # on PyTorch's meta device, or inside vmap
            raise TypeError(f"{what} has no memory of its own: {error}") from error
        if device[0] != 1:
            raise TypeError(f"{what} lies on device {device}; move it to the CPU first")
        _check_tensor(x, what)
        from_torch = is_torchs(x)
        if from_torch or getattr(x, "requires_grad", False):
            x = x.detach()  # another tensor, which holds the memory also where x gets a new one
        if from_torch:  # what PyTorch marks
            x = in_memory(x, what, writable=writable)
        try:
            made = _shared(x)
            # Read-only is also what does not say, as before DLPack 1: PyTorch's own array can tell.
            made = made if made.flags.writeable or not from_torch else x.numpy()
        except (BufferError, RuntimeError, TypeError) as error:
            raise TypeError(f"{what}: NumPy cannot share its memory: {error}") from error
        if made.flags.owndata and made.size:  # what NumPy makes of a null pointer
            raise TypeError(f"{what} is a {type(x).__name__} without memory of its own")
        return made
    try:
        return np.asarray(memoryview(x))
    except TypeError:
        pass
    raise TypeError(
        f"{what} is a {type(x).__name__}, not an array; it must be a NumPy array "
        f"or share memory with one{used}"
    )


def is_torchs(x: Any) -> bool:
    """Whether x is a tensor of PyTorch, which need not be imported for that."""
    return hasattr(x, "_is_zerotensor")


def _shared(x: Any) -> Array:
    """NumPy's array over the memory of a tensor; of one of bfloat16, in its own format."""
    if str(getattr(x, "dtype", "")) == "torch.bfloat16":
        made: Array = x.view(sys.modules["torch"].int16).numpy()
        return made.view(formats.named("bfloat16"))
    return np.from_dlpack(x)


def check_values(x: Any, what: str) -> None:
    """Raises TypeError for a tensor of a class that says itself what its numbers are."""
    dispatch = getattr(type(x), "__torch_dispatch__", None)
    if dispatch is not None and dispatch.__name__ != "_disabled_torch_dispatch_impl":
        raise TypeError(
            f"{what} is a {type(x).__name__}, whose numbers need not lie in its own memory; "
            "expected a plain torch.Tensor"
        )


def in_memory(x: Any, what: str, *, writable: bool) -> Any:
    """The tensor, or one of its numbers where they do not lie at its address: PyTorch may have only
    marked them as conjugate, negative, or zero. Raises TypeError if they lie nowhere, or must be
    `writable`."""
    zero = x._is_zerotensor()
    if zero or x.is_neg() or x.is_conj():
        if writable:
            mark = "zeros without memory" if zero else "a conjugate or negative view"
            raise TypeError(f"{what} is {mark}; give a copy: .clone().resolve_conj().resolve_neg()")
        return x.new_zeros(x.shape) if zero else x.resolve_conj().resolve_neg()
    try:
        address = x.data_ptr()
    except RuntimeError as error:  # a tensor inside torch.func.grad or vmap
        raise TypeError(f"{what} has no memory of its own: {error}") from error
    if not address and x.numel():
        raise TypeError(f"{what} has no memory: its storage was freed, or is another tensor's")
    return x


def _check_tensor(x: Any, what: str) -> None:
    """Raises TypeError for a tensor of a kind that has no NumPy array over its memory."""
    layout = getattr(x, "layout", None)
    if layout is not None and str(layout) != "torch.strided":
        raise TypeError(
            f"{what} has layout {layout}; expected a dense tensor: convert it with .to_dense(), or "
            "make the layer it comes from with sparse=False"
        )
    if str(getattr(x, "dtype", "")).startswith("torch.float8"):
        raise TypeError(
            f"{what} has dtype {x.dtype}; expected {formats.expected()}: convert it to one of them"
        )


def unmasked(x: Any, what: str) -> Any:
    """x itself. Raises TypeError for a masked array, since nothing here sees its mask."""
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(
            f"{what} is a {type(x).__name__}, whose mask would be ignored; "
            "give a plain array, such as .filled(0)"
        )
    return x


def overlaps_itself(x: Array) -> bool:
    """Whether two elements of x may share memory (zero strides, sliding windows)."""
    reach = x.itemsize
    for stride, n in sorted((abs(s), n) for s, n in zip(x.strides, x.shape, strict=True) if n > 1):
        if stride < reach:
            return x.size > 0
        reach += stride * (n - 1)
    return False


def of_bits(x: Any, name: str) -> Any:
    """An array of uint16 as one of the format whose bits it holds; anything else as it is."""
    if isinstance(x, np.ndarray) and x.dtype == np.uint16:
        return x.view(formats.named(name))
    return x


def of_a_format(x: Array, what: str, bits: str | None = None) -> Array:
    """x, or a view of its bits. Raises TypeError if they are no format's."""
    x = x if bits is None else of_bits(x, bits)
    if formats.found(x.dtype) is None:
        hint = "convert it with .astype(numpy.float32)"
        if x.dtype == np.uint16:
            hint = 'if it holds the bits of bfloat16, make the optimizer with dtype="bfloat16"'
        raise TypeError(
            f"{what} has dtype {x.dtype}; expected {formats.expected()} in native byte order: "
            f"{hint}"
        )
    return x


def in_place(x: Any, what: str) -> Array:
    """x as an array that may be updated in place. Raises TypeError or ValueError if it may not."""
    return _written(x, what, None)


def parameter(x: Any, name: str, bits: str | None = None) -> Array:
    """x as an array that may be updated in place; `bits` is the format of those of uint16. Raises
    TypeError or ValueError if it may not."""
    return _written(x, f"parameter {name!r}", bits)


def copy_of(x: Any, p: Array, name: str, bits: str | None = None) -> Array:
    """x as an array that the parameter p is also written to; `bits` as for `parameter`. Raises
    TypeError or ValueError if it may not be."""
    what = f"copy of parameter {name!r}"
    own = _written(x, what, bits)
    if own.shape != p.shape:
        raise ValueError(f"{what} has shape {own.shape}; expected the parameter's {p.shape}")
    return own


def _written(x: Any, what: str, bits: str | None) -> Array:
    own = of_a_format(as_array(x, what, writable=True), what, bits)
    if not own.flags.writeable:
        raise ValueError(f"{what} is read-only; give a writable array, such as a copy")
    if overlaps_itself(own):
        raise ValueError(
            f"{what} has elements that share memory (strides {own.strides}); give a copy"
        )
    return own


def gradient(x: Any, p: Array, name: str, kind: str = "gradient") -> Array:
    """x as a gradient for the parameter p, of any format. Raises TypeError or ValueError if it does
    not fit."""
    what = f"{kind} of parameter {name!r}"
    if isinstance(x, (np.generic, float)) and p.ndim == 0:
        g: Array = np.asarray(x)
    else:
        g = of_a_format(as_array(x, what, used=""), what)
    if g.shape != p.shape:
        raise ValueError(f"{what} has shape {g.shape}; expected the parameter's {p.shape}")
    return g


def _state_array(x: Any, what: str, dtype: np.dtype[Any]) -> Array:
    """x as an array, of the dtype if that is of the same format."""
    if not isinstance(x, np.ndarray):
        raise TypeError(f"{what} is a {type(x).__name__}; expected a NumPy array")
    own = as_array(x, what)
    return own.view(dtype) if own.dtype != dtype and formats.alike(own.dtype, dtype) else own


def state(x: Any, p: Array, name: str, key: str, dtype: np.dtype[Any]) -> Array:
    """x as a state array of the parameter p, of the format of a dtype. Raises TypeError or
    ValueError if it cannot be."""
    what = f"state {key!r} of parameter {name!r}"
    own = _state_array(x, what, dtype)
    if own.dtype != dtype or own.shape != p.shape:
        raise ValueError(
            f"{what} is {own.dtype} of shape {own.shape}; expected {dtype} of shape {p.shape}"
        )
    if not own.flags.writeable or overlaps_itself(own):
        raise ValueError(f"{what} is read-only or has elements that share memory; give a copy")
    return own


def like(x: Any, expected: Array, name: str, key: str) -> Array:
    """x as a state array alike in type and shape, in C order: a copy if it is not. Raises TypeError
    or ValueError if it cannot be."""
    return shaped(x, expected.dtype, expected.shape, name, key)


def shaped(x: Any, dtype: Any, shape: tuple[int, ...], name: str, key: str) -> Array:
    """x as a state array of a shape of its own, in C order: a copy if it is not. Raises TypeError
    or ValueError if it cannot be."""
    what = f"state {key!r} of parameter {name!r}"
    own = _state_array(x, what, np.dtype(dtype))
    if own.dtype != dtype or own.shape != shape:
        raise ValueError(
            f"{what} is {own.dtype} of shape {own.shape}; expected {dtype} of shape {shape}"
        )
    return own if own.flags.carray else own.copy()


def byte_bounds(x: Array) -> tuple[int, int]:
    """The addresses of the first byte of x and of the one after its last."""
    low = high = sources.start(x)
    for stride, n in zip(x.strides, x.shape, strict=True):
        if stride < 0:
            low += stride * (n - 1)
        else:
            high += stride * (n - 1)
    return low, high + x.itemsize


def share_memory(x: Array, y: Array) -> bool:
    """Whether x and y share an element; what is too hard to decide counts as yes."""
    try:
        # NumPy's stubs allow only its two special values of max_work.
        return bool(np.shares_memory(x, y, max_work=10**6))  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def same_memory(x: Any, y: Any) -> bool:
    """Whether two arrays have their elements in the same places."""
    return (
        isinstance(x, np.ndarray)
        and isinstance(y, np.ndarray)
        and (x.shape, x.strides, x.itemsize) == (y.shape, y.strides, y.itemsize)
        and sources.start(x) == sources.start(y)
    )


def disjoint_bounds(named: Sequence[tuple[str, Array]]) -> list[tuple[int, int]]:
    """The bounds of all written arrays, sorted and merged.

    Raises ValueError naming two arrays that share memory. Views that interleave without sharing
    an element are fine.
    """
    spans = sorted(
        ((*byte_bounds(x), i) for i, (_, x) in enumerate(named) if x.size), key=lambda span: span[0]
    )
    merged: list[tuple[int, int]] = []
    cluster: list[int] = []
    for low, high, i in spans:
        if not merged or low >= merged[-1][1]:
            merged.append((low, high))
            cluster = [i]
            continue
        for j in cluster:
            if share_memory(named[i][1], named[j][1]):
                raise ValueError(
                    f"{named[j][0]} and {named[i][0]} share memory; each array that is "
                    "updated must be its own (give it once, or give a copy)"
                )
        merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        cluster.append(i)
    assert all(a[1] <= b[0] for a, b in pairwise(merged))
    return merged
