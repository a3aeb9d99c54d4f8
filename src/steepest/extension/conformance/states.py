"""Checks of state: out and in, copies, groups that come later."""

import copy
import pickle
from typing import Any

import numpy as np

from steepest.extension.conformance.subject import (
    COUNTS,
    STEPS,
    Subject,
    check,
    compare,
    dotted,
    same,
    same_array,
    snapshot,
    unchanged,
)
from steepest.memory.arrays import Array

__all__: list[str] = []


@check
def state_dict_round_trip(c: Subject) -> None:
    """A new optimizer over copies of the parameters, with a copy of the state of an old one, goes
    on with the same bits: after 0, 1 and 4 steps."""
    expected = c.run()
    for done in (0, 1, 4):
        first = c.run(last=done)
        resumed = c.make(first.params())
        resumed.load_state_dict(copy.deepcopy(first.state_dict()))
        same(c.steps(resumed, done + 1, STEPS), expected, f"resumed after {done} steps: ")


@check
def state_dict_repeats(c: Subject) -> None:
    """``state_dict`` changes nothing, and tells the same again."""
    opt = c.run(last=3)
    first, second = c.arrays(opt.state_dict()), c.arrays(opt.state_dict())
    assert first.keys() == second.keys(), "the second state dict has other keys"
    for path, x in first.items():
        same_array(second[path], x, f"{dotted(path)} of the second state dict")
    same(c.steps(opt, 4, STEPS), c.run(), "after state dicts: ")


@check
def state_dict_is_a_snapshot(c: Subject) -> None:
    """What ``state_dict`` has given does not change with later steps: a run can go back to it."""
    opt = c.run(last=3)
    held = opt.state_dict()
    before = c.arrays(held)
    c.steps(opt, 4, STEPS)
    for path, x in c.arrays(held).items():
        same_array(x, before[path], f"{dotted(path)} of a state dict, after later steps")


@check
def loading_copies(c: Subject) -> None:
    """Two optimizers that were given one state dict share no memory with it or each other."""
    first = c.run(last=3)
    held = copy.deepcopy(first.state_dict())
    before = c.arrays(held)
    one, two = c.make(first.params()), c.make(first.params())
    one.load_state_dict(held)
    two.load_state_dict(held)
    c.steps(one, 4, STEPS)
    for path, x in c.arrays(held).items():
        same_array(
            x, before[path], f"{dotted(path)} of the state dict that was loaded, after steps"
        )
    same(c.steps(two, 4, STEPS), one, "the second that was given the state dict: ")


@check
def wrong_shapes_are_refused(c: Subject) -> None:
    """An array of a wrong shape in a state dict is refused, when it is loaded or at the next step,
    before anything is written: a kernel that believes it writes into memory of others. Runs in a
    child process, which may not survive it."""
    params = c.params(shapes=dict.fromkeys(c.shapes, (32, 32)))
    held = c.run(params, 2).state_dict()
    arrays = {path: x for path, x in c.arrays(held).items() if x.size > 8}
    if not arrays:
        c.skip("the state has no arrays")
    wrong = [(path, shape) for path, x in arrays.items() for shape in ((4,), (*x.shape, 3))]

    def work() -> list[str]:
        return [said for path, shape in wrong if (said := _with_wrong(c, held, path, shape))]

    how, said = c.guarded(work)
    assert how == "returned", (
        f"a state dict with an array of a wrong shape was taken; the process {how} ({said})"
    )
    assert not said, said[0]


def _with_wrong(c: Subject, held: Any, path: tuple[Any, ...], shape: tuple[int, ...]) -> str:
    """What is wrong after a state dict with one array of that shape; empty if it is refused."""

    def wrong(at: tuple[Any, ...], x: Array) -> Array | None:
        return np.ones(shape, x.dtype) if at == path else None

    opt = c.make(c.params(shapes=dict.fromkeys(c.shapes, (32, 32))))
    params = opt.params()
    what = f"{dotted(path)} with shape {shape} instead of its own was"
    try:
        opt.load_state_dict(c.changed(held, wrong))
        c.steps(opt, 3, 3)
    except Exception:
        moved = [name for name, p in opt.params().items() if (p != params[name]).any()]
        return f"{what} refused after {', '.join(moved)} had moved" if moved else ""
    return f"{what} taken"


@check
def missing_state_is_refused(c: Subject) -> None:
    """A state dict of other parameters, or of fewer, is refused and changes nothing."""
    c.asks_for("load")
    names = list(c.shapes)
    fewer = c.run({name: c.params()[name] for name in names[:-1]}, 2).state_dict()
    opt = c.run(last=2)
    if not c.arrays(opt.state_dict()):
        c.skip("there is no state")
    before = snapshot(opt)
    try:
        opt.load_state_dict(fewer)
        c.steps(opt, 3, 3)
    except Exception:
        unchanged(opt, before, "a state dict of fewer parameters was refused, but: ")
        return
    raise AssertionError("a state dict of fewer parameters was not refused")


@check
def states_are_independent(c: Subject) -> None:
    """Two optimizers that were made alike share nothing: the steps of one do not show in the
    other."""
    one, two = c.make(), c.make()
    c.steps(one)
    same(c.steps(two), one, "beside another optimizer: ")
    held = snapshot(two)
    c.steps(one, STEPS + 1, STEPS + 2)
    unchanged(two, held, "after steps of another optimizer: ")


@check
def deep_copies(c: Subject) -> None:
    """``copy.deepcopy`` of an optimizer goes on with the same bits, and shares nothing."""
    c.asks_for("pickle")
    opt = c.run(last=3)
    other = copy.deepcopy(opt)
    before = snapshot(other)
    c.steps(opt, 4, STEPS)
    unchanged(other, before, "a deep copy after steps of the original: ")
    same(c.steps(other, 4, STEPS), opt, "a deep copy: ")


@check
def pickles(c: Subject) -> None:
    """A pickled optimizer comes back, and goes on with the same bits."""
    c.asks_for("pickle")
    opt = c.run(last=3)
    other = pickle.loads(pickle.dumps(opt))
    same(c.steps(other, 4, STEPS), c.steps(opt, 4, STEPS), "a pickle: ")


@check
def groups_may_come_later(c: Subject) -> None:
    """A group that is added after three steps begins its own count, and leaves the others alone."""
    c.asks_for("add")
    if c.needs == "global":
        c.skip("the rule is global: each parameter's step depends on all")
    names = list(c.shapes)
    first = {name: c.params()[name] for name in names[:-1]}
    opt = c.run({name: p.copy() for name, p in first.items()}, 3)
    opt.add({names[-1]: c.params()[names[-1]]})
    for t in range(4, 4 + STEPS):
        grads = c.grads(c.params(), t)
        grads[names[-1]] = c.grads(c.params(), t - 3)[names[-1]]
        opt.step(grads)
    compare(snapshot(opt), snapshot(c.run()), "a group that came later: ", [names[-1]])
    alone = c.run(first, 3 + STEPS)
    compare(snapshot(opt), snapshot(alone), "beside a group that came later: ", names[:-1])
    for state in (opt.state(), alone.state()):
        for key in set(COUNTS) & set(state.get(names[0], {})):
            assert state[names[0]][key] == 3 + STEPS, f"{key} of {names[0]!r}: {state[names[0]]}"
