"""Checks of the step itself: what its numbers may depend on, and what they may not."""

from typing import Any

import numpy as np

from steepest.extension.conformance.adapters import Candidate
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

HEARD = ("lr", "learning_rate", "betas", "momentum", "weight_decay", "beta1", "beta2")
"""Hyper-parameters whose change every rule that has them hears, in the names of most libraries."""


@check
def repeats(c: Subject) -> None:
    """Two runs from the same numbers give the same bits: else no result can be looked into."""
    same(c.run(), c.run(), "a second run from the same numbers: ")


@check
def moves(c: Subject) -> None:
    """Steps with gradients change every parameter, and stay finite: what does nothing passes every
    comparison."""
    opt = c.run()
    for name, p in opt.params().items():
        assert np.isfinite(p).all(), f"parameter {name!r} is not finite after {STEPS} steps"
        assert (p != c.params()[name]).any(), f"parameter {name!r} has not moved"


@check
def order_of_parameters(c: Subject) -> None:
    """The order in which parameters are given does not change any of them."""
    if c.needs == "global":
        c.skip("the rule is global: its sums follow the order of the parameters")
    params = dict(reversed(c.params().items()))
    same(c.run(params), c.run(), "parameters in another order: ")


@check
def partition(c: Subject) -> None:
    """One optimizer of a list steps as one optimizer for each parameter does: no parameter sees
    the numbers, or the count, of another."""
    if c.needs == "global":
        c.skip("the rule is global: each parameter's step depends on all")
    together = c.run()
    for name in c.shapes:
        alone = c.run({name: c.params()[name]})
        compare(snapshot(alone), snapshot(together), "an optimizer of one: ", [name])


@check
def groups(c: Subject) -> None:
    """Parameters in several groups with equal hyper-parameters step as in one."""
    c.asks_for("groups")
    names = list(c.shapes)
    same(c.run(groups=[names[:1], names[1:]]), c.run(), "the same parameters in two groups: ")


@check
def odd_symmetry(c: Subject) -> None:
    """Parameters and gradients of the opposite sign take the opposite path, to the last bit."""
    mirrored = c.make({name: -p for name, p in c.params().items()})
    opt = c.make()
    for t in range(1, STEPS + 1):
        grads = c.grads(opt.params(), t)
        mirrored.step({name: -g for name, g in grads.items()})
        opt.step(grads)
    for name, p in opt.params().items():
        same_array(0 - mirrored.params()[name], p + 0, f"mirrored: parameter {name!r}")


@check
def maximize(c: Subject) -> None:
    """``maximize=True`` takes the step that the gradient's opposite takes without it."""
    c.asks_for("set")
    climbing, opt = c.make(), c.make()
    for group in climbing.groups():
        if group.get("maximize") is not False:
            c.skip("there is no maximize")
        group["maximize"] = True
    for t in range(1, STEPS + 1):
        grads = c.grads(opt.params(), t)
        opt.step({name: -g for name, g in grads.items()})
        climbing.step(grads)
    for name, p in opt.params().items():
        same_array(climbing.params()[name] + 0, p + 0, f"climbing: parameter {name!r}")


@check
def zero_gradients_on_fresh_state(c: Subject) -> None:
    """Where there is no decay, gradients of 0 leave parameters of a fresh optimizer where they are:
    an update of 0 / 0 or of a rounded state moves them, or makes them NaN."""
    opt = c.make()
    for group in opt.groups():
        if group.get("weight_decay"):
            group["weight_decay"] = 0.0
    before = opt.params()
    for _ in range(3):
        opt.step({name: np.zeros_like(p) for name, p in before.items()})
    for name, p in opt.params().items():
        same_array(p, before[name], f"after gradients of 0: parameter {name!r}")


@check
def zero_gradients_in_half_precision(c: Subject) -> None:
    """Gradients of 0 leave parameters of float16 finite: an ``eps`` of 1e-8 is 0 in that type, and
    0 / 0 is NaN."""
    try:
        opt = c.make(c.params(np.float16))
        grads = c.grads(opt.params(), 1)
        opt.step({name: 0 * g for name, g in grads.items()})
        opt.step(grads)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        c.skip(f"parameters of float16 are refused: {str(error).partition(chr(10))[0]}")
    for name, p in opt.params().items():
        assert np.isfinite(p).all(), f"parameter {name!r} is not finite after gradients of 0"


@check
def nan_stays_in_its_parameter(c: Subject) -> None:
    """NaN in one gradient changes no other parameter."""
    if c.needs == "global":
        c.skip("the rule is global: each parameter's step depends on all")
    _poisoned(c, np.nan, by_element=False)


@check
def nan_stays_in_its_element(c: Subject) -> None:
    """NaN in one element of a gradient changes no other element, where the rule is element-wise."""
    if c.needs != "element-wise":
        c.skip(f"the rule is {c.needs}: an element's step depends on others")
    _poisoned(c, np.nan, by_element=True)


@check
def infinity_stays_in_its_parameter(c: Subject) -> None:
    """An infinite gradient changes no other parameter, and no other element where the rule is
    element-wise."""
    if c.needs == "global":
        c.skip("the rule is global: each parameter's step depends on all")
    _poisoned(c, np.inf, by_element=c.needs == "element-wise")


def _poisoned(c: Subject, x: float, by_element: bool) -> None:
    """Steps with one bad element, compared with a run without it."""
    names = list(c.shapes)
    with np.errstate(all="ignore"):
        bad, good = c.make(), c.make()
        for t in range(1, 4):
            grads = c.grads(good.params(), t)
            good.step(c.grads(good.params(), t))
            if t == 2:
                grads[names[0]].flat[3] = x
            try:
                bad.step(grads)
            except (ArithmeticError, ValueError, RuntimeError) as error:
                if "eigen" in str(error) or "converge" in str(error) or "finite" in str(error):
                    c.skip(f"the step is refused: {str(error).partition(chr(10))[0]}")
                raise
    compare(snapshot(bad), snapshot(good), f"beside a gradient of {x}: ", names[1:])
    if by_element:
        p, q = bad.params()[names[0]].ravel(), good.params()[names[0]].ravel()
        same_array(np.delete(p, 3), np.delete(q, 3), f"elements beside a gradient of {x}")


@check
def subnormal_gradients(c: Subject) -> None:
    """Gradients and parameters that are subnormal give finite steps, whose bits repeat."""
    runs = []
    for _ in range(2):
        opt = c.make()
        for t in range(1, STEPS + 1):
            tiny = np.finfo(np.float32).smallest_subnormal
            opt.step({
                name: (np.round(100 * g) * tiny).astype(np.float32)
                for name, g in c.grads(opt.params(), t).items()
            })  # fmt: skip
        runs.append(opt)
    for name, p in runs[0].params().items():
        assert np.isfinite(p).all(), f"parameter {name!r} is not finite"
    same(runs[0], runs[1], "a second run with subnormal gradients: ")


@check
def counts_from_one(c: Subject) -> None:
    """The count of steps is 1 after the first and 7 after the seventh, in whole numbers: a bias
    correction by another count is another rate."""
    opt = c.run(last=1)
    if not _counts(c, opt):
        c.skip("the state has no count of steps")
    for last in (1, STEPS):
        if last > 1:
            c.steps(opt, 2, last)
        for path, x in _counts(c, opt).items():
            assert x == last, f"{dotted(path)} is {x} after {last} steps"


@check
def counts_beyond_24_bits(c: Subject) -> None:
    """A count of 2²⁴ goes on to 2²⁴ + 1: one that is float32 stays where it is for ever, and one of
    16 bits much earlier."""
    opt = c.run(last=2)
    if not _counts(c, opt):
        c.skip("the state has no count of steps")
    paths = set(_counts(c, opt))
    held = opt.state_dict()

    def late(path: tuple[Any, ...], x: Array) -> Array | None:
        return np.array(2**24).astype(x.dtype) if path in paths else None

    opt.load_state_dict(c.changed(held, late))
    c.steps(opt, 3, 3)
    for path, x in _counts(c, opt).items():
        assert int(x) == 2**24 + 1, f"{dotted(path)} is {int(x)} after the step behind 16777216"


def _counts(c: Subject, opt: Candidate) -> dict[tuple[Any, ...], Array]:
    """The counts in the state dict, without those of groups."""
    found = c.arrays(opt.state_dict())
    return {
        path: x for path, x in found.items()
        if path[-1] in COUNTS and x.size == 1 and "param_groups" not in path
    }  # fmt: skip


@check
def hyper_parameters_are_heard(c: Subject) -> None:
    """A hyper-parameter that is changed between steps by one part in a thousand changes the next
    steps: it was neither captured, nor rounded to a short type."""
    c.asks_for("set")
    params = c.params(np.float64)
    before = c.run(params, 3)
    held = {name: x for name, x in before.groups()[0].items() if name in HEARD and _changed(x)}
    if not held:
        c.skip("there is no hyper-parameter of the usual names")
    expected = snapshot(c.steps(before, 4, STEPS))
    for name, value in held.items():
        opt = c.run(c.params(np.float64), 3)
        opt.groups()[0][name] = _changed(value)
        try:
            compare(snapshot(c.steps(opt, 4, STEPS)), expected, "")
        except AssertionError:
            continue
        raise AssertionError(
            f"{name} = {value!r} was changed to {_changed(value)!r}; the next steps are the same"
        )


def _changed(value: Any) -> Any:
    """Slightly another value; None for what is no number."""
    if isinstance(value, tuple | list):
        return type(value)(_changed(x) for x in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value * (1 - 2.0**-10) if value else 2.0**-10


@check
def a_change_taken_back_leaves_nothing(c: Subject) -> None:
    """A hyper-parameter that is changed and set back before the next step has no effect."""
    c.asks_for("set")
    opt = c.run(last=3)
    for group in opt.groups():
        held = {name: x for name, x in group.items() if name in HEARD and _changed(x)}
        if not held:
            c.skip("there is no hyper-parameter of the usual names")
        for name, value in held.items():
            group[name] = _changed(value)
            group[name] = value
    same(c.steps(opt, 4, STEPS), c.run(), "after changes that were taken back: ")


@check
def types_are_kept(c: Subject) -> None:
    """Parameters and every array of the state keep type and shape from step to step, in float32
    and float64."""
    for dtype in (np.float32, np.float64):
        opt = c.run(c.params(dtype), 1)
        first = snapshot(opt)
        later = snapshot(c.steps(opt, 2, STEPS))
        for name, p in first[0].items():
            assert p.dtype == dtype, f"parameter {name!r} of {np.dtype(dtype)} became {p.dtype}"
            assert later[0][name].dtype == p.dtype, f"parameter {name!r} became {later[0][name]}"
        for name, state in first[1].items():
            for key, x in state.items():
                y = later[1][name][key]
                assert (y.dtype, y.shape) == (x.dtype, x.shape), (
                    f"state {key!r} of {name!r} was {x.dtype} {x.shape} after one step, and is "
                    f"{y.dtype} {y.shape} after {STEPS}"
                )


@check
def none_leaves_all_alone(c: Subject) -> None:
    """A gradient that is None leaves its parameter, its state and its count as they are, whatever
    momentum and decay are; the others step."""
    c.asks_for("None")
    opt = c.run(last=3)
    idle, *others = c.shapes
    before = snapshot(opt)
    opt.step({**c.grads(opt.params(), 4), idle: None})
    unchanged(opt, before, "without a gradient: ", [idle])
    for name in others:
        assert (opt.params()[name] != before[0][name]).any(), f"{name!r} has not moved"


@check
def none_is_as_if_absent(c: Subject) -> None:
    """With None for one parameter, the others step as in an optimizer without it."""
    c.asks_for("None")
    idle, *others = c.shapes
    opt, without = c.make(), c.make({name: c.params()[name] for name in others})
    for t in range(1, STEPS + 1):
        grads = c.grads(opt.params(), t)
        without.step({name: grads[name].copy() for name in others})
        opt.step({**grads, idle: None})
    compare(snapshot(opt), snapshot(without), "beside one without gradients: ", others)
