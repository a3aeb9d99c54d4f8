"""The checks of optimizers: this library's rules pass them, and each fails where it should."""

import contextlib
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import scoreboard

import steepest as st
from steepest.extension import conformance
from steepest.extension.conformance import adapters, run_checks
from steepest.extension.conformance.children import in_child
from steepest.extension.conformance.subject import CHECKS
from steepest.kernels import dispatch, threads
from steepest.optimizers import RULES
from steepest.testing import DoesNotApply, check_optimizer, described_checks, optimizer_checks

ALL_PARAMETERS_DECAY = "the formula divides by √(1 + lr²), whatever the gradient"
EXPECTED = {
    "rprop": {"hyper_parameters_are_heard": "lr is the first step size, and is used at step 1"},
    "ftrl": {"zero_gradients_on_fresh_state": "the formula makes the parameter of its sums"},
    "asgd": {"zero_gradients_on_fresh_state": "lambd is a decay of its own"},
    "fromage": {"zero_gradients_on_fresh_state": ALL_PARAMETERS_DECAY},
}
FAST = ("lamb",)  # and AdamW is inside of what is without a fault


@pytest.mark.parametrize(
    "rule",
    [pytest.param(r, marks=() if r in FAST else pytest.mark.exhaustive) for r in RULES],
)
def test_every_rule_passes(rule):
    found = check_optimizer(RULES[rule], expected_failures=EXPECTED.get(rule))
    assert [x.check for x in found] == list(CHECKS)
    skipped = {x.check for x in found if x.how == "skipped"}
    assert skipped <= MAY_BE_SKIPPED | (OF_GLOBAL if RULES[rule].needs == "global" else set())


MAY_BE_SKIPPED = {"nan_stays_in_its_element", "wrong_shapes_are_refused"}
OF_GLOBAL = {
    "order_of_parameters", "partition", "nan_stays_in_its_parameter",
    "infinity_stays_in_its_parameter", "groups_may_come_later",
}  # fmt: skip


# Each check fails on an optimizer with one fault


class Whole:
    """AdamW behind the interface of this library's optimizers, without a fault."""

    needs = "element-wise"

    def __init__(self, params, **more):
        self.opt = st.AdamW(params, **{"lr": 0.01, **more})

    @property
    def param_groups(self):
        return self.opt.param_groups

    @property
    def state(self):
        return self.opt.state

    def step(self, grads):
        self.opt.step(grads)

    def state_dict(self):
        return self.opt.state_dict()

    def load_state_dict(self, given):
        self.opt.load_state_dict(given)

    def add_param_group(self, group):
        self.opt.add_param_group(group)

    def named(self):
        for group in self.param_groups:
            yield from zip(group["param_names"], group["params"], strict=True)


BROKEN = {}


def broken(*names):
    """Notes that an optimizer fails a check; one without names fails that of its own name."""

    def note(cls):
        for name in names or (cls.__name__,):
            BROKEN[name] = cls
        return cls

    return note


def at_steps(name):
    """The same for a function (self, grads) that is called in place of the step."""

    def note(function):
        BROKEN[name] = type(name, (Whole,), {"step": function})
        return function

    return note


def at_first(name):
    """The same for a function of params, whose result the optimizer is made of."""

    def note(function):
        def made(self, params, **more):
            Whole.__init__(self, function(params), **more)

        BROKEN[name] = type(name, (Whole,), {"__init__": made})
        return function

    return note


def each(function, grads):
    """A function of every gradient that there is, in whatever structure."""
    if isinstance(grads, list):
        return [each(function, x) for x in grads]
    return {name: g if g is None else function(g) for name, g in grads.items()}


@at_steps("repeats")
def _(self, grads, calls=[]):  # noqa: B006
    calls.append(1)
    self.opt.step(each(lambda g: g * np.float32(1 + 1e-3 * len(calls)), grads))


@at_steps("moves")
def _(self, grads):
    pass


@at_steps("order_of_parameters")
def _(self, grads):
    self.opt.step(grads)
    for k, (_, p) in enumerate(self.named()):
        p += np.float32(1e-3 * k)


@at_steps("partition")
def _(self, grads):
    length = np.sqrt(np.sum([np.sum(g * g) for g in grads.values()]))
    self.opt.step(each(lambda g: (g / length).astype(g.dtype), grads))


@broken()
class groups(Whole):
    def __init__(self, params, **more):
        super().__init__(params, **more)
        for group in self.param_groups[1:]:
            group["lr"] /= 2


@at_steps("odd_symmetry")
def _(self, grads):
    self.opt.step(each(lambda g: g + g.dtype.type(0.01), grads))


@at_steps("maximize")
def _(self, grads):
    for group in self.param_groups:
        group["maximize"] = False
    self.opt.step(grads)


@at_steps("zero_gradients_on_fresh_state")
def _(self, grads):
    self.opt.step(grads)
    for _, p in self.named():
        p *= p.dtype.type(0.99)


@at_steps("zero_gradients_in_half_precision")
def _(self, grads):
    self.opt.step(grads)
    with np.errstate(invalid="ignore"):
        for name, p in self.named():
            if p.dtype == np.float16:
                p += 0 * grads[name] / abs(grads[name])


@at_steps("nan_stays_in_its_parameter")
def _(self, grads):
    total = np.sum([np.sum(g) for g in grads.values()])
    self.opt.step(each(lambda g: g if np.isfinite(total) else g * total, grads))


@at_steps("nan_stays_in_its_element")
def _(self, grads):
    self.opt.step(each(lambda g: g if np.isfinite(g).all() else np.full_like(g, np.nan), grads))


@at_steps("infinity_stays_in_its_parameter")
def _(self, grads):
    largest = max(np.max(abs(g)) for g in grads.values())
    self.opt.step(each(lambda g: g if np.isfinite(largest) else g * g.dtype.type(0), grads))


@at_steps("subnormal_gradients")
def _(self, grads):
    self.opt.step(grads)
    with np.errstate(all="ignore"):
        for name, p in self.named():
            p += np.where(grads[name] != 0, 0 * (1 / grads[name]), 0)


@broken()
class counts_from_one(Whole):
    def state_dict(self):
        held = super().state_dict()
        return held | {"updates": held["updates"] + 1}


@broken()
class counts_beyond_24_bits(Whole):
    def state_dict(self):
        held = super().state_dict()
        for state in held["state"].values():
            state["step"] = np.array(np.float32(state["step"]))
        return held


@broken()
class hyper_parameters_are_heard(Whole):
    def step(self, grads):
        self.first = getattr(self, "first", self.param_groups[0]["betas"])
        self.param_groups[0]["betas"] = self.first
        self.opt.step(grads)


class Short(dict):
    """Takes numbers as float16."""

    def __setitem__(self, key, value):
        super().__setitem__(key, float(np.float16(value)) if key == "lr" else value)
        self.of[key] = self[key]


@broken()
class a_change_taken_back_leaves_nothing(Whole):
    @property
    def param_groups(self):
        short = [Short(group) for group in self.opt.param_groups]
        for mine, group in zip(short, self.opt.param_groups, strict=True):
            mine.of = group
        return short


@broken()
class types_are_kept(Whole):
    @property
    def state(self):
        held = {name: dict(state) for name, state in self.opt.state.items()}
        for state in held.values():
            if state["step"] > 2:
                state["exp_avg_sq"] = state["exp_avg_sq"].astype(np.float64)
        return held


@at_steps("none_leaves_all_alone")
def _(self, grads):
    given = {name: np.zeros_like(p) for name, p in self.named()}
    self.opt.step(given | {name: g for name, g in grads.items() if g is not None})


@at_steps("none_is_as_if_absent")
def _(self, grads):
    some = any(g is None for g in grads.values())
    self.opt.step(each(lambda g: g / 2 if some else g, grads))


@at_first("in_place")
@at_first("duplicates_are_refused")
@at_first("overlaps_are_refused")
def _(params):
    return {name: p.copy() for name, p in params.items()}


@at_first("strided")
def _(params):
    return {name: np.require(p, requirements="C") for name, p in params.items()}


@at_first("negative_strides")
def _(params):
    return {name: p.copy() if min(p.strides) < 0 else p for name, p in params.items()}


@at_first("fortran_order")
def _(params):
    return {name: p if p.flags.c_contiguous else p.copy() for name, p in params.items()}


@at_steps("misaligned")
def _(self, grads):
    self.opt.step(grads)
    for _, p in self.named():
        if p.base is not None:
            p.base.reshape(-1)[-1] = 0


@at_steps("broadcast_gradients")
def _(self, grads):
    self.opt.step(each(lambda g: np.lib.stride_tricks.as_strided(g, strides=(
        g.itemsize,) * g.ndim) if 0 in g.strides else g, grads))  # fmt: skip


@at_steps("numbers_without_axes")
def _(self, grads):
    self.opt.step(each(lambda g: g if g.shape else -g, grads))


@at_steps("empty_arrays")
def _(self, grads):
    empty = [name for name, g in grads.items() if not g.size]
    names = list(grads)
    skipped = [names[k + 1 : k + 2] for k, name in enumerate(names) if name in empty]
    self.opt.step({name: None if [name] in skipped else g for name, g in grads.items()})


@at_steps("gradients_are_not_written")
def _(self, grads):
    self.opt.step(grads)
    for g in grads.values():
        g *= g.dtype.type(0.5)


@at_steps("gradients_are_not_kept")
def _(self, grads):
    last, self.last = getattr(self, "last", grads), grads
    self.opt.step({name: g + last[name] for name, g in grads.items()})


@at_steps("read_only_gradients")
def _(self, grads):
    for g in grads.values():
        g[...] = -g
        g[...] = -g
    self.opt.step(grads)


@at_steps("containers_are_not_changed")
def _(self, grads):
    for name, g in grads.items():
        grads[name] = g.copy()
    self.opt.step(grads)


@broken()
class state_dict_round_trip(Whole):
    def load_state_dict(self, given):
        for state in given["state"].values():
            state["step"][...] = 0
        super().load_state_dict(given)


@broken()
class state_dict_repeats(Whole):
    calls = 0

    def state_dict(self):
        self.calls += 1
        return super().state_dict() | {"calls": self.calls}


@broken()
class state_dict_is_a_snapshot(Whole):
    def state_dict(self):
        return super().state_dict() | {"state": self.opt.state}


@broken()
class loading_copies(Whole):
    def load_state_dict(self, given):
        super().load_state_dict(given)
        for name, state in given["state"].items():
            self.opt.state[name]["exp_avg"] = state["exp_avg"]


@broken("wrong_shapes_are_refused", "missing_state_is_refused")
class Lenient(Whole):
    def load_state_dict(self, given):
        with contextlib.suppress(ValueError, KeyError):
            super().load_state_dict(given)


@broken()
class states_are_independent(Whole):
    first = None

    def __init__(self, params, **more):
        super().__init__(params, **more)
        if type(self).first is not None:
            for name, state in type(self).first.items():
                if name in self.opt.state:
                    self.opt.state[name]["exp_avg"] = state["exp_avg"]
        type(self).first = self.opt.state


@broken()
class deep_copies(Whole):
    def __deepcopy__(self, memo):
        return self


class pickles(Whole):
    def __reduce__(self):
        return pickles, ({name: p.copy() for name, p in self.named()},)


BROKEN["pickles"] = pickles


@broken()
class groups_may_come_later(Whole):
    def add_param_group(self, group):
        super().add_param_group(group)
        most = max(state["step"] for state in self.state.values())
        for state in self.state.values():
            state["step"][...] = most


@broken("unknown_arguments_are_refused", "bad_values_are_refused")
class Generous(Whole):
    def __init__(self, params, **more):
        try:
            super().__init__(params, **more)
        except (TypeError, ValueError):
            super().__init__(params)


@at_steps("bad_values_between_steps_are_refused")
def _(self, grads):
    for group in self.param_groups:
        if not group["lr"] >= 0:
            group["lr"] = 0.01
    self.opt.step(grads)


@at_first("read_only_parameters_are_refused")
def _(params):
    return {name: p if p.flags.writeable else p.copy() for name, p in params.items()}


@at_first("whole_numbers_are_refused")
def _(params):
    return {name: p.astype(np.float32) for name, p in params.items()}


@at_steps("wrong_gradients_are_refused")
def _(self, grads):
    for name, _ in self.named():  # one after the other
        some = {other: None for other, _ in self.named()}
        self.opt.step(some | {name: grads[name]})


@at_steps("missing_gradients_are_refused")
def _(self, grads):
    self.opt.step({name: grads.get(name) for name, _ in self.named()})


@at_steps("goes_on_after_an_error")
def _(self, grads):
    try:
        self.opt.step(grads)
    except ValueError:
        for state in self.state.values():
            state["step"] += 1
        raise


@at_steps("number_of_threads")
def _(self, grads):
    self.opt.step(each(lambda g: g * g.dtype.type(threads.get_num_threads()), grads))


@at_steps("instruction_sets")
def _(self, grads):
    last = dispatch.current.level == dispatch.available()[-1]
    self.opt.step(each(lambda g: g * g.dtype.type(1.001) if last else g, grads))


@at_steps("floating_point_mode")
def _(self, grads):
    self.opt.step(each(lambda g: g * g.dtype.type(1.1), grads))


@broken()
class fork(Whole):
    def __init__(self, params, **more):
        super().__init__(params, **more)
        self.home = os.getpid()

    def step(self, grads):
        self.opt.step(grads if os.getpid() == self.home else each(lambda g: -g, grads))


@at_steps("several_python_threads")
def _(self, grads):
    main = threading.current_thread() is threading.main_thread()
    self.opt.step(grads if main else each(lambda g: -g, grads))


@at_steps("global_random_numbers")
def _(self, grads):
    np.random.seed(0)  # noqa: NPY002
    self.opt.step(grads)


@at_steps("memory_is_flat")
def _(self, grads, kept=[]):  # noqa: B006
    kept.append({name: g.sum() for name, g in grads.items()})
    self.opt.step(grads)


@broken()
class freed_without_the_collector(Whole):
    def __init__(self, params, **more):
        super().__init__(params, **more)
        self.me = self


@at_steps("nothing_is_printed")
def _(self, grads):
    print("step")
    self.opt.step(grads)


def test_there_is_an_optimizer_that_fails_each_check():
    assert set(BROKEN) == set(CHECKS)


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_fails_where_it_should(name):
    check = dict(optimizer_checks(BROKEN[name]))[name]
    with pytest.raises(AssertionError) as found:
        check()
    assert "has no attribute" not in str(found.value), "the optimizer of this test is at fault"


def test_one_without_a_fault_passes():
    """So that what the others fail is their fault, and not that of what they have in common."""
    assert {x.how for x in check_optimizer(Whole)} == {"passed"}


# What is said of it


def test_all_failures_are_named(monkeypatch):
    class Deaf(Whole):
        """Hears nothing, says nothing."""

        def step(self, grads):
            print(end="deaf")

    names = ("repeats", "moves", "instruction_sets", "nothing_is_printed")
    monkeypatch.setattr(conformance, "CHECKS", {name: CHECKS[name] for name in names})
    found = run_checks(Deaf, {"moves": "it is deaf"})
    assert [x.how for x in found] == ["passed", "expected", "passed", "failed"]
    assert found[1].why == "it is deaf"
    with pytest.raises(AssertionError) as found:
        check_optimizer(Deaf)
    said = str(found.value)
    assert said.startswith("moves: parameter 'matrix' has not moved\n")
    assert "\nnothing_is_printed: printed: deaf" in said


def test_failures_may_be_declared():
    cls, reason = BROKEN["odd_symmetry"], "it adds a constant"
    declared = {"odd_symmetry": reason, "none_leaves_all_alone": "the constant again"}
    found = dict(optimizer_checks(cls, expected_failures=declared))
    with pytest.raises(DoesNotApply, match=f"^{reason}$"):
        found["odd_symmetry"]()
    with pytest.raises(AssertionError, match=r"fail \(the constant again\), but passes"):
        found["none_leaves_all_alone"]()
    with pytest.raises(KeyError, match="no_such_check"):
        check_optimizer(Whole, expected_failures={"no_such_check": ""})


def test_a_skip_that_was_declared_a_failure_fails():
    function = dict(optimizer_checks(st.SGD, expected_failures={"wrong_shapes_are_refused": "x"}))
    with pytest.raises(AssertionError, match="does not apply: the state has no arrays"):
        function["wrong_shapes_are_refused"]()


def test_what_does_not_apply_is_skipped_with_its_reason():
    made = dict(optimizer_checks(lambda params: st.SGD(params, lr=0.1)))
    with pytest.raises(DoesNotApply, match="give the class to check arguments"):
        made["unknown_arguments_are_refused"]()


@pytest.mark.parametrize("name", ["repeats", "wrong_shapes_are_refused"])
def test_checks_are_functions_for_parametrize(name):
    for made in (optimizer_checks(st.AdamW), check_optimizer(st.AdamW, generate_only=True)):
        dict(made)[name]()


@pytest.mark.parametrize("bad", [3, None, "adamw"])
def test_what_is_no_factory_is_refused(bad):
    with pytest.raises(TypeError, match="expected an optimizer's class"):
        check_optimizer(bad)


def test_every_check_says_what_it_demands():
    said = dict(described_checks())
    assert list(said) == list(CHECKS) and len(said) > 45
    assert all(text.endswith(".") and len(text) > 40 for text in said.values())


def test_the_page_lists_them():
    """Written with: python tests/long/scoreboard.py --docs"""
    page = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text(encoding="utf-8")
    assert f"\n{scoreboard.checks_listed()}\n" in page
    for rule, declared in EXPECTED.items():
        for name, why in declared.items():
            assert f"| {rule} | {name} | {why} |" in page.replace("`", "")


def test_a_child_that_dies_or_hangs_is_told_of():
    assert in_child(lambda: 3) == ("returned", 3)
    assert in_child(lambda: {}["x"]) == ("raised", "KeyError: 'x'")
    assert in_child(os.abort) == ("died", "SIGABRT")
    assert in_child(lambda: threading.Event().wait(), 0.2).how == "hung"


def test_others_are_asked_for_when_they_are_given():
    assert isinstance(adapters.adapted(st.SGD), adapters.Steepest)
    same = adapters.adapted(st.SGD)
    assert adapters.adapted(same) is same
