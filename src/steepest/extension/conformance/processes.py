"""Checks of threads, processes, floating-point modes and memory."""

import contextlib
import gc
import io
import os
import platform
import random
import sys
import threading
import tracemalloc
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from steepest.extension.conformance.adapters import Candidate
from steepest.extension.conformance.children import CAN_FORK, in_child
from steepest.extension.conformance.subject import STEPS, Subject, check, same, same_array
from steepest.extension.testing import running
from steepest.kernels import dispatch, machine

__all__: list[str] = []

STICKY = 0x3F
"""The bits of x86's mode that say what has happened; any operation may set them."""


@check
def number_of_threads(c: Subject) -> None:
    """Steps of large arrays have the same bits with 1, 2 and 3 threads."""
    c.asks_for("threads")
    params = c.params(shapes=_large(c))

    def with_threads(count: int) -> Candidate:
        with c.adapter.threads(count):
            return c.run({name: p.copy() for name, p in params.items()}, 2)

    one = with_threads(1)
    for count in (2, 3):
        same(with_threads(count), one, f"with {count} threads: ")


def _large(c: Subject) -> dict[str, tuple[int, ...]]:
    """Arrays that are worth more than one thread, of the least number of axes that shapes have."""
    if c.needs == "matrix":
        return {"matrix": (41, 30)}
    axes = min(len(shape) for shape in c.shapes.values())
    return {"large": (70_003,) if axes < 2 else (301, 233), "small": (9,) * max(axes, 1)}


@check
def instruction_sets(c: Subject) -> None:
    """Steps have the same bits at every instruction-set level of this processor."""
    c.asks_for("levels")
    found = []
    for level in dispatch.available():
        with running(level, 1):
            found.append(c.run())
    for level, opt in zip(dispatch.available(), found, strict=True):
        same(opt, found[0], f"at level {level}: ")


@check
def floating_point_mode(c: Subject) -> None:
    """A caller who has subnormal numbers flushed to zero, or another rounding, gets the same bits,
    and finds the mode as it was."""
    default = machine.float_mode() & ~STICKY
    if not default and platform.machine() not in ("aarch64", "arm64"):
        c.skip("the floating-point mode of this processor is not known")
    x86 = platform.machine() in ("x86_64", "AMD64")
    flush, toward_zero = (0x8040, 0x6000) if x86 else (1 << 24, 3 << 22)

    def run(mode: int) -> Candidate:
        opt = c.make()
        for t in range(1, STEPS + 1):
            grads = c.grads(opt.params(), t)
            for g in grads.values():
                g.ravel()[::3] *= np.float32(1e-41)  # the last axis first: a view
            machine.set_float_mode(mode)
            try:
                opt.step(grads)
                now = machine.float_mode() & ~STICKY
            finally:
                machine.set_float_mode(default)
            assert now == mode, f"the floating-point mode was changed from {mode:#x} to {now:#x}"
        return opt

    expected = run(default)
    for mode, what in ((default | flush, "flushing"), (default | toward_zero, "rounding to zero")):
        same(run(mode), expected, f"a caller who is {what}: ")


@check
def fork(c: Subject) -> None:
    """A child made by ``fork``, after steps on several threads, steps at once and with the same
    bits."""
    c.asks_for("fork", "threads")
    if not CAN_FORK:
        c.skip("this system has no fork")
    with c.adapter.threads(2):
        opt = c.run(c.params(shapes=_large(c)), 1)

        def work() -> dict[str, Any]:
            return c.steps(opt, 2, 3).params()

        how, found = in_child(work, 10)
        assert how == "returned", f"the child {how}: {found}"
        for name, p in c.steps(opt, 2, 3).params().items():
            same_array(found[name], p, f"parameter {name!r} of the child")


@check
def several_python_threads(c: Subject) -> None:
    """Optimizers in threads of their own do not disturb each other."""
    found: list[Any] = [None] * 3

    def work(k: int) -> None:
        found[k] = c.run()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = c.run()
    for k, opt in enumerate(found):
        assert opt is not None, f"the step in thread {k} raised"
        same(opt, expected, f"in thread {k}: ")


@check
def global_random_numbers(c: Subject) -> None:
    """Neither making an optimizer nor stepping draws from, or seeds, Python's or NumPy's global
    random numbers."""

    def drawn() -> Any:
        return random.getstate(), [np.array(x) for x in np.random.get_state()]  # noqa: NPY002

    before = drawn()
    c.run()
    after = drawn()
    assert after[0] == before[0], "Python's random numbers were drawn or seeded"
    for x, y in zip(after[1], before[1], strict=True):
        assert (x == y).all(), "NumPy's global random numbers were drawn or seeded"


@check
def memory_is_flat(c: Subject) -> None:
    """Hundreds of steps keep nothing: neither objects of Python, nor memory of the process."""
    side, many = (40, 400) if c.needs != "matrix" else (6, 100)
    opt = c.make(c.params(shapes=dict.fromkeys(c.shapes, (side, side))))
    grads = c.grads(opt.params(), 1)
    _repeat(opt.step, grads, many)
    gc.collect()
    resident = _resident()
    tracing = tracemalloc.is_tracing()
    if not tracing:
        tracemalloc.start()
    try:
        for _ in range(6):  # caches of small objects grow until they are full, a leak for ever
            begun = tracemalloc.get_traced_memory()[0]
            _repeat(opt.step, grads, many)
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0] - begun
            if grown < 24 * many:
                break
    finally:
        if not tracing:
            tracemalloc.stop()
    assert grown < 24 * many, f"{grown} bytes of Python's memory are kept after {many} more steps"
    more = _resident() - resident
    assert more < 4 << 20, f"the process has {more} bytes more after hundreds of steps"


def _repeat(step: Callable[[Any], None], grads: Any, count: int) -> None:
    for _ in range(count):
        step(grads)


def _resident() -> int:
    """The process's memory in bytes; 0 where that is not told."""
    with contextlib.suppress(OSError), open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


@check
def freed_without_the_collector(c: Subject) -> None:
    """An optimizer goes when its last reference goes: circles keep arrays until the garbage
    collector happens to run."""
    c.asks_for("object")
    if sys.implementation.name != "cpython":
        c.skip("only CPython counts references")
    opt = c.run(last=2)
    gone = weakref.ref(opt.object)
    enabled = gc.isenabled()
    gc.disable()
    try:
        del opt
        assert gone() is None, "the optimizer is in a circle of references"
    finally:
        if enabled:
            gc.enable()


@check
def nothing_is_printed(c: Subject) -> None:
    """A step says nothing: neither on the terminal nor as a warning."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        c.run()
    assert not out.getvalue() and not err.getvalue(), f"printed: {out.getvalue()}{err.getvalue()}"
    assert not caught, f"warned: {caught[0].message}"
