"""What all matrix rules promise: nothing written, the same bits again, any shape and any number."""

import doctest
import inspect
import math

import numpy as np
import pytest
from matrix_rules import RULES, gradients, run

from steepest.matrix import (
    adam_moments,
    kron,
    linalg,
    low_rank,
    muon,
    newton_schulz,
    random_numbers,
    shampoo,
    soap,
)

SHAPES = [(6, 6), (12, 5), (5, 12), (1, 7), (7, 1), (1, 1), (3, 4, 5), (8, 3, 3, 2)]
FLAT = [(7,), (1,), ()]
TYPES = [np.float32, np.float64]

every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)


def takes(rule, shape):
    return len(shape) >= 2 or "muon" not in rule.name


@every_rule
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES + FLAT, ids=str)
def test_directions_and_states_keep_their_shapes_and_types(rule, shape, dtype):
    if not takes(rule, shape):
        with pytest.raises(ValueError, match="two axes"):
            rule.start(shape, dtype)
        return
    start = rule.start(shape, dtype)
    for d, state in run(rule, gradients(shape, 9, dtype)):
        assert d.shape == shape and d.dtype == dtype and np.isfinite(d).all()
        assert d.flags.c_contiguous
        assert {k: (x.shape, x.dtype) for k, x in state.items()} == {
            k: (x.shape, x.dtype) for k, x in start.items()
        }


@every_rule
@pytest.mark.parametrize("shape", [(6, 6), (12, 5)], ids=str)
def test_nothing_given_is_written_and_nothing_returned_is_shared(rule, shape):
    state = rule.start(shape, np.float64)
    for t, g in enumerate(gradients(shape, 9), 1):
        g.flags.writeable = False
        for x in state.values():
            x.flags.writeable = False
        d, new = rule(g, state, t)
        for x in (d, *new.values()):
            assert x.flags.writeable
            assert not any(np.shares_memory(x, y) for y in (g, *state.values()))
        state = state | new


@every_rule
@pytest.mark.parametrize("dtype", TYPES)
def test_bits_repeat(rule, dtype):
    grads = gradients((40, 24), 6, dtype)
    once, again = run(rule, grads), run(rule, grads)
    for (d, state), (e, other) in zip(once, again, strict=True):
        assert d.tobytes() == e.tobytes()
        assert all(state[k].tobytes() == other[k].tobytes() for k in state)


@every_rule
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (3, 4, 2)], ids=str)
def test_zero_gradients_give_zero(rule, shape, dtype):
    for d, _ in run(rule, [np.zeros(shape, dtype)] * 4):
        assert (d == 0).all()


@every_rule
@pytest.mark.parametrize("dtype", TYPES)
def test_empty_parameters_are_left_alone(rule, dtype):
    for shape in [(0, 3), (3, 0), (2, 0, 3)]:
        for d, _ in run(rule, [np.zeros(shape, dtype)] * 3):
            assert d.shape == shape


@every_rule
@pytest.mark.parametrize("dtype", TYPES)
def test_gradients_of_rank_one(rule, dtype):
    g = np.outer(np.arange(1.0, 7.0), [1.0, -2.0, 0.0, 0.5]).astype(dtype)
    for d, state in run(rule, [g] * 12):
        assert np.isfinite(d).all()
        assert all(np.isfinite(x).all() for x in state.values())


@every_rule
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", TYPES)
def test_what_is_not_finite_stays_and_raises_nothing(rule, dtype, bad):
    """At the first step, which prepares, and later; SOAP's first direction is 0 in any case."""
    for when in (0, 5):
        grads = gradients((6, 4), 9, dtype)
        grads[when][1, 2] = bad
        history = run(rule, grads)
        late = history[max(when, 1)][0]
        assert not np.isfinite(late).all()
        if "muon" in rule.name:
            assert np.isnan(late).all()


@every_rule
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("share", [-0.4, 0.4])
def test_large_and_small_gradients_stay_finite(rule, dtype, share):
    """Squares of 2^(0.4 · 128) in float32 are finite; larger ones are the next test's."""
    power = int(share * np.finfo(dtype).maxexp)
    for d, _ in run(rule, [np.ldexp(g, power) for g in gradients((6, 4), 9, dtype)]):
        assert np.isfinite(d).all()


@pytest.mark.parametrize("rule", [r for r in RULES if "muon" in r.name], ids=lambda r: r.name)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("power", [0.7, 0.97])
def test_muon_takes_gradients_whose_squares_overflow(rule, dtype, power):
    grads = gradients((6, 4), 3, dtype)
    large = [np.ldexp(g, int(power * np.finfo(dtype).maxexp)) for g in grads]
    for (d, _), (e, _) in zip(run(rule, grads), run(rule, large), strict=True):
        np.testing.assert_allclose(e, d, rtol=100 * np.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: muon.direction(np.ones((2, 2)), {}, 1, adjust_lr_fn="mean"), "adjust_lr_fn"),
        (lambda: shampoo.direction(np.ones((2, 2)), {}, 1, grafting="adam"), "grafting"),
        (lambda: kron.initial_states((2, 2), "f8", memory_save_mode="two"), "memory_save_mode"),
        (lambda: low_rank.galore_states((2, 2), "f8", proj_type="full"), "proj_type"),
        (lambda: low_rank.apollo_direction(np.ones((2, 2)), {}, 1, scale_type="row"), "scale_type"),
    ],
)
def test_choices_that_do_not_exist_are_named(call, text):
    state = muon.initial_states((2, 2), np.float64)
    with pytest.raises(ValueError, match=text):
        call() if text != "adjust_lr_fn" else muon.direction(
            np.ones((2, 2)), state, 1, adjust_lr_fn="mean"
        )


@pytest.mark.parametrize("module", [soap, shampoo, low_rank])
def test_a_factorisation_that_fails_is_an_error_before_anything_is_returned(module, monkeypatch):
    def fails(a):
        raise np.linalg.LinAlgError("no convergence")

    names = {soap: "soap", shampoo: "shampoo", low_rank: "galore"}
    rule = next(r for r in RULES if r.name == names[module])
    state = rule.start((4, 3), np.float64)
    monkeypatch.setattr(np.linalg, "eigh", fails)
    with pytest.raises(linalg.DecompositionError, match="were not found"):
        rule(gradients((4, 3), 1)[0], state, 1)


# Closeness in float32


# Error of one step from the same state, ‖d₃₂ - d₆₄‖ / ‖d₆₄‖, in units of float32's 2⁻²³: about four
# times the largest that was measured on these shapes, and five seeds of each. The iteration of
# Muon amplifies an error of X as it does X: Polar Express, steeper at 0, more. For Shampoo the
# error grows with the ratio of the largest eigenvalue to matrix_eps. SOAP's first directions are
# signs, nearly, of rotated gradients, and the smallest of those are all rounding.
UNITS = {
    "muon": 100,
    "muon plain": 100,
    "muon polar": 1000,
    "normuon": 100,
    "normuon rms": 100,
    "soap": 8000,
    "soap one side": 1000,
    "shampoo": 5000,
    "shampoo grafted": 20,
    "psgdkron": 20,
    "psgdkron diagonal": 20,
    "galore": 100,
    "apollo": 20,
    "apollo mini": 20,
}


@every_rule
@pytest.mark.parametrize("shape", [(8, 8), (12, 5), (5, 12), (3, 4, 5), (1, 7), (64, 64)], ids=str)
def test_float32_is_close_to_float64(rule, shape):
    grads = [g.astype(np.float32).astype(np.float64) for g in gradients(shape, 8)]
    state = rule.start(shape, np.float64)
    for t, g in enumerate(grads, 1):
        same = {
            k: x.astype(np.float32) if k not in ("waited", "scaled_norm") else x
            for k, x in state.items()
        }
        d, new = rule(g, {k: x.astype(state[k].dtype) for k, x in same.items()}, t)
        e, _ = rule(g.astype(np.float32), same, t)
        error = np.linalg.norm((e - d).ravel()) / max(np.linalg.norm(d.ravel()), 1e-30)
        assert error <= UNITS[rule.name] * 2.0**-23, t
        state = state | new


def test_defaults_are_those_of_the_packages_they_are_named_after():
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(muon.direction).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    assert defaults == {
        "momentum": 0.95,
        "nesterov": True,
        "coefficients": "jordan",
        "eps": 1e-7,
        "ns_steps": 5,
        "adjust_lr_fn": None,
        "iterate": newton_schulz.orthogonalize,
    }


MODULES = [linalg, random_numbers, adam_moments, newton_schulz, muon, soap, shampoo, kron, low_rank]


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_examples(module):
    tried = doctest.testmod(module)
    assert tried.attempted and not tried.failed
