"""Checks of arrays: where their elements lie, and what must not be written."""

from collections.abc import Callable

import numpy as np

from steepest.extension.conformance.adapters import Candidate
from steepest.extension.conformance.subject import STEPS, Subject, check, same, same_array
from steepest.memory.arrays import Array

__all__: list[str] = []

Laid = Callable[[Array], Array]


def _every_other(x: Array) -> Array:
    room: Array = np.full([2 * n + 1 for n in x.shape], 7, x.dtype)
    view: Array = room[tuple(slice(1, None, 2) for _ in x.shape)]
    view[...] = x
    return view


def _backwards(x: Array) -> Array:
    room = np.ascontiguousarray(x[tuple(slice(None, None, -1) for _ in x.shape)])
    backwards: Array = room[tuple(slice(None, None, -1) for _ in x.shape)]
    return backwards


def _shifted(x: Array) -> Array:
    room = np.full(x.size + 3, 7, x.dtype)
    view = room[1 : x.size + 1].reshape(x.shape)
    view[...] = x
    return view


def _as_contiguous(c: Subject, of_params: Laid, of_grads: Laid, what: str) -> None:
    """A run with arrays laid out so has the bits of one with contiguous arrays."""
    params = {name: of_params(p) for name, p in c.params().items()}
    opt = c.make(params)
    for t in range(1, STEPS + 1):
        opt.step({name: of_grads(g) for name, g in c.grads(c.params(), t).items()})
    same(opt, c.run(), f"{what}: ")
    if "in place" not in c.adapter.lacks:
        for name, p in opt.params().items():
            same_array(params[name], p, f"{what}: the caller's array {name!r}")


@check
def in_place(c: Subject) -> None:
    """The array that was given is the one that is changed: an update of a copy is lost."""
    c.asks_for("in place")
    params = c.params()
    opt = c.run(params)
    for name, p in opt.params().items():
        same_array(params[name], p, f"the caller's array {name!r}")
        assert (p != c.params()[name]).any(), f"the caller's array {name!r} has not moved"


@check
def strided(c: Subject) -> None:
    """Parameters and gradients that are every other element of a larger array step as contiguous
    ones, and what lies between is not written."""
    c.asks_for("strides")
    _as_contiguous(c, _every_other, _every_other, "every other element")
    params = {name: _every_other(p) for name, p in c.params().items()}
    rooms = {name: p.base for name, p in params.items()}
    c.run(params)
    for name, room in rooms.items():
        assert room is not None
        params[name][...] = 7
        assert (room == 7).all(), f"what lies between the elements of {name!r} was written"


@check
def negative_strides(c: Subject) -> None:
    """Arrays whose axes run backwards in memory step as contiguous ones."""
    c.asks_for("strides", "negative strides")
    _as_contiguous(c, _backwards, _backwards, "backwards")


@check
def fortran_order(c: Subject) -> None:
    """Arrays in Fortran's order, parameters and gradients or one of both, step as those in C's."""
    c.asks_for("strides")
    _as_contiguous(c, np.asfortranarray, np.asfortranarray, "in Fortran's order")
    _as_contiguous(c, np.asfortranarray, np.ascontiguousarray, "parameters in Fortran's order")
    _as_contiguous(c, np.ascontiguousarray, np.asfortranarray, "gradients in Fortran's order")


@check
def misaligned(c: Subject) -> None:
    """Arrays that begin anywhere in memory step as aligned ones; their neighbours stay."""
    c.asks_for("strides")
    _as_contiguous(c, _shifted, _shifted, "beginning anywhere")
    params = {name: _shifted(p) for name, p in c.params().items()}
    c.run(params)
    for name, p in params.items():
        room = p
        while room.base is not None:
            room = room.base
        assert room[0] == 7 and (room[-2:] == 7).all(), f"the neighbours of {name!r} were written"


@check
def broadcast_gradients(c: Subject) -> None:
    """A gradient of one number for all elements, with strides of 0, steps as a full array."""
    c.asks_for("strides")
    full, broadcast = c.make(), c.make()
    for t in range(1, STEPS + 1):
        grads = {
            name: np.full(p.shape, 0.1 * t, p.dtype) for name, p in full.params().items()
        }  # fmt: skip
        full.step(grads)
        ones = {name: np.broadcast_to(g.flat[0], g.shape) for name, g in grads.items()}
        if "read-only" in c.adapter.lacks:
            for g in ones.values():
                g.flags.writeable = True
        broadcast.step(ones)
    same(broadcast, full, "gradients with strides of 0: ")


@check
def numbers_without_axes(c: Subject) -> None:
    """A parameter without axes steps as one of a single element."""
    shape: tuple[int, ...]
    found = []
    for shape in ((), (1,)):
        try:
            found.append(c.run({"n": c.params(shapes={"n": (1,)})["n"].reshape(shape)}))
        except (ValueError, TypeError) as error:
            c.skip(f"a single number is refused: {str(error).partition(chr(10))[0]}")
    p, q = (opt.params()["n"] for opt in found)
    assert p.shape == () and q.shape == (1,)
    same_array(p.reshape(1), q, "a parameter without axes")


@check
def empty_arrays(c: Subject) -> None:
    """A parameter without elements, at any place of the list, is invisible to the others."""
    expected = c.run()
    names = list(c.shapes)
    vectors = min(len(shape) for shape in c.shapes.values()) < 2
    for at in range(len(names) + 1):
        for shape in ((0,), (3, 0, 2)) if vectors else ((0, 3), (3, 0)):
            shapes = {name: c.shapes[name] for name in names[:at]} | {"nothing": shape}
            shapes |= {name: c.shapes[name] for name in names[at:]}
            params = c.params(shapes=shapes)
            assert params["nothing"].size == 0
            same(c.run(params), expected, f"with an array {shape} at place {at}: ", names)


@check
def gradients_are_not_written(c: Subject) -> None:
    """The caller's gradients keep their bits: they may be used again, for norms or logs."""
    opt = c.make()
    for t in range(1, STEPS + 1):
        grads = c.grads(opt.params(), t)
        kept = {name: g.copy() for name, g in grads.items()}
        opt.step(grads)
        for name, g in grads.items():
            same_array(g, kept[name], f"the caller's gradient of {name!r}")


@check
def gradients_are_not_kept(c: Subject) -> None:
    """A gradient that its caller overwrites after the step has no part in later steps."""
    opt, kept = c.make(), {name: np.empty_like(p) for name, p in c.params().items()}
    for t in range(1, STEPS + 1):
        for name, g in c.grads(opt.params(), t).items():
            kept[name][...] = g
        opt.step(kept)
        for g in kept.values():
            g[...] = np.nan
    same(opt, c.run(), "where gradients lie in one memory: ")


@check
def read_only_gradients(c: Subject) -> None:
    """Gradients that cannot be written, as from a mapped file, are taken."""
    c.asks_for("read-only")
    opt = c.make()
    for t in range(1, STEPS + 1):
        grads = c.grads(opt.params(), t)
        for g in grads.values():
            g.flags.writeable = False
        opt.step(grads)
    same(opt, c.run(), "with read-only gradients: ")


@check
def containers_are_not_changed(c: Subject) -> None:
    """The dicts of parameters and gradients that were given have the same entries afterwards."""
    params = c.params()
    entries = {name: id(p) for name, p in params.items()}
    opt: Candidate = c.make(params)
    grads = c.grads(params, 1)
    of_grads = {name: id(g) for name, g in grads.items()}
    opt.step(grads)
    assert {name: id(p) for name, p in params.items()} == entries, "the dict of parameters changed"
    assert {name: id(g) for name, g in grads.items()} == of_grads, "the dict of gradients changed"
