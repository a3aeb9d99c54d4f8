"""The checks that packages of others run too: they pass what is right and nothing else."""

import numpy as np
import pytest
from cases import LEVELS, hyper

import steepest as st
from steepest import reference
from steepest.extension import testing
from steepest.kernels import dispatch, threads
from steepest.optimizers import RULES


@pytest.fixture
def own(monkeypatch):
    """Makes a subclass of SignSGD under another name, and forgets it afterwards."""
    monkeypatch.setattr("steepest.core.rule.RULES", dict(RULES))
    monkeypatch.setattr(reference, "RULES", dict(reference.RULES))

    def make(kernel, step, states=()):
        def mine(p, g, state, t, *, lr):
            step(p, g, state, p.dtype.type(lr))

        class Mine(st.SignSGD):
            """Mine."""

            @staticmethod
            def states(h):
                return states

            @staticmethod
            def coefficients(h, t):
                return kernel, (h["lr"], 0.5, 0.5)

        reference.register(mine)
        return Mine

    return make


def right(p, g, state, lr):
    p[...] = p - lr * np.sign(g)


def test_what_is_right_passes(own):
    testing.check_rule(own("signsgd", right), {"lr": 0.1}, steps=2)


def test_another_formula_fails(own):
    cls = own("sgd", right)
    with pytest.raises(
        AssertionError, match=r"mine, level base, float32, normal values: parameter"
    ):
        testing.check_rule(cls, {"lr": 0.1}, steps=2)


def test_another_rounding_fails(own):
    def step(p, g, state, lr):
        p[...] = p - p.dtype.type(np.float32(lr)) * np.sign(g)

    with pytest.raises(AssertionError, match="float64"):
        testing.check_rule(own("signsgd", step), {"lr": 0.1}, steps=2)


def test_another_sign_of_zero_fails(own):
    """Only a parameter of -0 with a gradient of 0 shows it: normal numbers have none."""

    def step(p, g, state, lr):
        p[...] = p - lr * np.sign(g) + p.dtype.type(0)

    cls = own("signsgd", step)
    testing.equals_reference(cls, {"lr": 0.1}, np.float32, (331,), 2, testing.normal)
    with pytest.raises(AssertionError, match="sign of zero"):
        testing.check_rule(cls, {"lr": 0.1}, steps=2)


def test_another_state_fails(own):
    def step(p, g, state, lr):
        p[...] = p - lr * np.sign(p.dtype.type(0.5) * state["m"] + p.dtype.type(0.5) * g)

    with pytest.raises(AssertionError, match="state m of size 1"):
        testing.check_rule(own("signum", step, ("m",)), {"lr": 0.1}, steps=1)


def test_one_wrong_level_fails(own, monkeypatch):
    cls = own("signsgd", right)
    load = dispatch.load

    def broken(level):
        kernels = load(level)
        if level == LEVELS[-1]:
            kernels.rules["signsgd"] = kernels.rules["sgd"]
        return kernels

    monkeypatch.setattr(dispatch, "load", broken)
    with pytest.raises(AssertionError, match=f"level {LEVELS[-1]}"):
        testing.check_rule(cls, {"lr": 0.1}, steps=1)


def test_a_rule_without_a_reference_is_told_so(monkeypatch):
    monkeypatch.delitem(reference.RULES, "lion")
    with pytest.raises(LookupError, match=r"reference of rule 'lion'; give one with .*register"):
        testing.check_rule(st.Lion)


def test_level_and_threads_are_put_back():
    before = dispatch.current.level, threads._asked, threads._limit
    with testing.running(LEVELS[0], 5):
        assert (dispatch.current.level, st.get_num_threads()) == (LEVELS[0], 5)
    assert (dispatch.current.level, threads._asked, threads._limit) == before


def test_a_rule_of_this_library():
    testing.check_rule(st.AdamW, hyper("adamw", {}), steps=3, workers=[3])


# References of others


def test_a_reference_is_found_by_its_name(own):
    own("signsgd", right)
    p = np.ones(3)
    reference.step("mine", p, np.ones(3), {}, 1, lr=0.25)
    np.testing.assert_array_equal(p, 0.75)


@pytest.mark.parametrize("function", [lambda p, g: None, lambda: None, 3, dict])
def test_what_is_no_reference_is_refused(function):
    with pytest.raises(TypeError, match=r"expected a function of \(p, g, state, t"):
        reference.register(function)


def test_a_reference_whose_name_is_taken_is_refused():
    def adam(p, g, state, t, *, lr):
        """Not Adam."""

    with pytest.raises(ValueError, match=r"'adam', which steepest\.reference\.adam has"):
        reference.register(adam)
