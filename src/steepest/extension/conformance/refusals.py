"""Checks of what must be refused, and of what is left when something was."""

from functools import partial
from typing import Any

import numpy as np

from steepest.extension.conformance.subject import Subject, check, same
from steepest.memory.arrays import Array

__all__: list[str] = []


@check
def unknown_arguments_are_refused(c: Subject) -> None:
    """An argument that the optimizer has not is refused: a slip of the pen is no default."""
    c.asks_for("keywords")
    c.refused(lambda: c.make(lerning_rate=0.1), "an argument lerning_rate")


@check
def bad_values_are_refused(c: Subject) -> None:
    """Rates that are negative, NaN or no number are refused when the optimizer is made."""
    c.asks_for("keywords")
    if "lr" not in c.make().groups()[0]:
        c.skip("there is no lr")
    for bad in (-1.0, float("nan"), "fast"):
        c.refused(partial(c.make, lr=bad), f"lr = {bad!r}")


@check
def bad_values_between_steps_are_refused(c: Subject) -> None:
    """A rate that becomes NaN or negative between steps is refused at the next step, which changes
    nothing: one step with it destroys all parameters."""
    c.asks_for("set")
    if "lr" not in c.make().groups()[0]:
        c.skip("there is no lr")
    for bad in (float("nan"), -1.0):
        opt = c.run(last=2)
        grads = c.grads(opt.params(), 3)

        def work(opt: Any = opt, bad: float = bad, grads: Any = grads) -> None:
            opt.groups()[0]["lr"] = bad
            opt.step(grads)

        c.refused(work, f"lr = {bad!r} between steps", opt)


@check
def duplicates_are_refused(c: Subject) -> None:
    """One array given twice is refused: it would be updated twice in a step."""
    c.asks_for("shared memory")
    p = c.params()[next(iter(c.shapes))]
    c.refused(lambda: c.make({"first": p, "second": p}), "one array as two parameters")


@check
def overlaps_are_refused(c: Subject) -> None:
    """Parameters that share memory are refused: what they become depends on who is last."""
    c.asks_for("shared memory")
    room = np.ones((6, 5), np.float32)
    c.refused(lambda: c.make({"first": room[:4], "second": room[3:]}), "two overlapping parameters")


@check
def read_only_parameters_are_refused(c: Subject) -> None:
    """A parameter that cannot be written is refused, when given or at the step."""
    c.asks_for("in place", "read-only")
    params = c.params()
    next(iter(params.values())).flags.writeable = False
    kept = {name: p.copy() for name, p in params.items()}
    c.refused(lambda: c.run(params, 1), "a read-only parameter")
    for name, p in params.items():
        assert (p == kept[name]).all(), f"a read-only parameter was refused; {name!r} has moved"


@check
def whole_numbers_are_refused(c: Subject) -> None:
    """Parameters of integers are refused: a step of less than 1 is lost in them."""
    params: dict[str, Array] = {
        name: np.zeros(shape, np.int64) for name, shape in c.shapes.items()
    }  # fmt: skip
    grads = {name: np.ones(p.shape, np.float32) for name, p in params.items()}
    c.refused(lambda: c.make(params).step(grads), "parameters of int64")


@check
def wrong_gradients_are_refused(c: Subject) -> None:
    """A gradient of another shape is refused, also one that NumPy would broadcast, and the step has
    then changed nothing: the wrong one is the last of the list."""
    for shape in ((2, 3), (1,)):
        opt = c.run(last=2)
        grads = c.grads(opt.params(), 3)
        grads[list(c.shapes)[-1]] = np.ones(shape, np.float32)
        c.refused(partial(opt.step, grads), f"a gradient of shape {shape}", opt)


@check
def missing_gradients_are_refused(c: Subject) -> None:
    """Gradients that lack a parameter, or have one more, are refused; the step has then changed
    nothing."""
    c.asks_for("names")
    last = list(c.shapes)[-1]
    for what in ("one parameter less", "one parameter more"):
        opt = c.run(last=2)
        grads = c.grads(opt.params(), 3)
        if what.endswith("less"):
            del grads[last]
        else:
            grads["another"] = grads[last]
        c.refused(partial(opt.step, grads), f"gradients of {what}", opt)


@check
def goes_on_after_an_error(c: Subject) -> None:
    """After a step that was refused, the next ones have the bits of a run without it."""
    opt = c.run(last=3)
    grads = c.grads(opt.params(), 4)
    grads[list(c.shapes)[-1]] = np.ones((2, 3), np.float32)
    try:
        opt.step(grads)
    except Exception:
        same(c.steps(opt, 4), c.run(), "after a step that was refused: ")
        return
    raise AssertionError("a gradient of shape (2, 3) was not refused")
