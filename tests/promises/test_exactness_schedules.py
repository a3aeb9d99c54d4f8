"""Hyper-parameters whose schedules pass through the ends of their ranges, such as a momentum of 0:
the kernels and the reference have the same bits, whatever structure depends on the value."""

from itertools import product

import numpy as np
import pytest
from cases import BY_RULE, label

from steepest.extension.testing import reference_hyper, reference_step, same_bits, shared_numbers
from steepest.optimizers import RULES
from steepest.options import regularize
from steepest.options.decay import MODES

SHAPES = ((7,), (3, 5), ())
ORDERS = ((0, 1, 0, 0, 1), (1, 0, 1, 1, 0))
"""When a schedule is at the end of its range: at the first step, or not."""
OTHERS = {"beta3": 0.9, "beta1": 0.9, "init_estim_sq_dist": 0.01}
"""Values for what is None otherwise."""
REFUSED = ("has no effect with", "nesterov needs", "has no dampening", "expected")


def through(usual, end, order):
    return lambda count: end if order[count % 5] else usual


def at(value, count):
    if isinstance(value, tuple):
        return tuple(at(x, count) for x in value)
    return value(count) if callable(value) else value


def in_lockstep(cls, arguments):
    """Steps by the kernels and by the reference; AssertionError where bits differ."""
    rng = np.random.default_rng(7)
    params = [rng.standard_normal(shape) for shape in SHAPES]
    twins = [p.copy() for p in params]
    opt = cls(params, **arguments)
    states = [{k: x.copy() for k, x in opt.state[str(i)].items()} for i in range(len(SHAPES))]
    shared = shared_numbers(opt)
    for t in range(1, 6):
        hyper = {key: at(x, t - 1) for key, x in reference_hyper(opt).items()}
        grads = [rng.standard_normal(shape) for shape in SHAPES]
        opt.step(grads)
        reference_step(opt, twins, grads, states, t, shared, **hyper)
        for i, (p, twin) in enumerate(zip(params, twins, strict=True)):
            same_bits(p, twin, f"parameter {i} after step {t}")
            for key, x in opt.state[str(i)].items():
                if key != "step":
                    same_bits(x, states[i][key], f"state {key} of {i} after step {t}")


def ends(limits):
    """The numbers at which a range ends, which are allowed."""
    return [x for x in (limits.low, np.inf if limits.below else limits.high) if np.isfinite(x)]


def scheduled(cls, arguments):
    """Arguments in each of which one number is a schedule through an end of its range."""
    probe = cls([np.ones(2)], **arguments)
    for key, limits in probe.ranges.items():
        usual = probe.param_groups[0][key]
        usual = OTHERS.get(key) if usual is None else usual
        for end, order in product(ends(limits), ORDERS):
            if isinstance(usual, tuple):
                for i in (i for i, x in enumerate(usual) if x is not None):
                    moved = through(usual[i], end, order)
                    yield {**arguments, key: (*usual[:i], moved, *usual[i + 1 :])}
            elif usual is not None:
                yield {**arguments, key: through(usual if usual != end else 0.5, end, order)}


@pytest.mark.parametrize(("rule", "arguments"), BY_RULE, ids=label)
def test_a_schedule_through_the_end_of_a_range(rule, arguments):
    run = 0
    for given in scheduled(RULES[rule], arguments):
        try:
            in_lockstep(RULES[rule], given)
            run += 1
        except (TypeError, ValueError) as error:  # what has no effect, or what the class forbids
            if not any(x in str(error) for x in REFUSED):
                raise
    assert run


DECAYS = [0.1, *(through(0.1, 0.0, order) for order in ORDERS)]


def decays(mode):
    """Combinations of what decay uses, that are allowed."""
    penalties = [(), *map(regularize.decoupled, DECAYS)]
    for cautious, weight, lr, penalty in product((False, True), (0.0, *DECAYS), DECAYS, penalties):
        given = {"lr": lr, "weight_decay": weight, "cautious": cautious, "regularize": penalty}
        peaked = mode in ("lr_relative", "corrected")
        if cautious and mode == "cautious":
            continue
        if not (peaked and weight and callable(lr)):  # which need to be told the peak
            yield given
        if peaked:
            yield given | {"peak_lr": 0.2}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rule", ["sgd", pytest.param("adam", marks=pytest.mark.exhaustive)])
def test_decay_through_zero(rule, mode):
    for given in decays(mode):
        in_lockstep(RULES[rule], given | {"decay_mode": mode})
