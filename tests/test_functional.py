"""Steps over memory of somebody else's: the bits of the optimizer object, and no memory of ours."""

import copy
import itertools
import random
import threading

import numpy as np
import pytest
import traced
from cases import BY_RULE, label, same_bits, use_threads

import steepest as st
from steepest import functional
from steepest.memory import formats
from steepest.optimizers import RULES

SHAPES = ((7,), (3, 40), (600,), (1, 1), (33, 5), (2, 3, 1, 1), (0,))
JOINT = {r for r, c in RULES.items() if c.needs == "global" or r.startswith("schedulefree")}
"""Whose parameters have numbers in common."""


def numbers(seed, of="float32", shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return [formats.encoded(rng.standard_normal(s), formats.named(of)) for s in shapes]


def fitting_shapes(rule):
    least = RULES[rule].least_axes
    return [s for s in SHAPES if len(s) >= least and 0 not in s]


def compared(opt, params, states, counts, twins, where):
    for i, p in enumerate(params):
        same_bits(p, twins[i], f"{where}: parameter {i}")
        own = opt.state[str(i)]
        assert own["step"] == counts[i]
        for key, each in states.items():
            if each[i] is not None:
                same_bits(np.asarray(each[i]), own[key], f"{where}: {key} {i}")


@pytest.mark.parametrize(("rule", "arguments"), BY_RULE, ids=label)
def test_every_rule_has_the_bits_of_its_object(rule, arguments):
    """Bound at every step, bound once, and in chunks in any order."""
    shapes = fitting_shapes(rule)
    use_threads(3)
    opt = RULES[rule](twins := numbers(0, shapes=shapes), **arguments)
    ways = []
    for name in ("step", "prepared", "chunks"):
        params = numbers(0, shapes=shapes)
        states, counts = functional.new_states(rule, params, **arguments)
        bound = functional.prepare(rule, params, states, counts, **arguments)
        ways.append((name, params, states, counts, bound))
    draw = random.Random(rule)
    for t in range(4):
        grads = numbers(1 + t, shapes=shapes)
        if t == 2:
            grads[1] = None
        opt.step(grads)
        for name, params, states, counts, bound in ways:
            if name == "step" and rule not in JOINT:
                functional.step(rule, params, grads, states, counts, **arguments)
            elif name == "chunks" and rule not in JOINT:
                cuts = [0, 1, 2, 4, len(params)]
                each = list(itertools.pairwise(cuts))
                draw.shuffle(each)
                for first, last in each:
                    bound.step(grads[first:last], first, last)
            else:
                bound.step(grads)
            compared(opt, params, states, counts, twins, f"{name}, step {t}")
    for key, x in ways[1][4].shared.items():
        assert x == opt.param_groups[0][key]


def test_rules_that_keep_numbers_of_all_parameters_keep_them_where_they_are_bound():
    """A step by itself begins with them anew, which would be another rule."""
    params = [np.ones(3)]
    states, counts = functional.new_states("prodigy", params)
    with pytest.raises(ValueError, match="keeps numbers of all parameters between steps"):
        functional.step("prodigy", params, [np.ones(3)], states, counts)
    bound = functional.prepare("prodigy", params, states, counts)
    bound.step([np.ones(3)])
    assert bound.shared["d"] > 0


OPTIONS = {
    "q8": ("float32", {"state_dtype": "q8"}),
    "split16": ("bfloat16", {"master": "split16", "state_dtype": "q8"}),
    "float32 master": ("float16", {"master": "float32"}),
    "stochastic": ("bfloat16", {"rounding": "stochastic", "rounding_seed": 5}),
    "bfloat16": ("bfloat16", {"state_dtype": "bfloat16"}),
    "ema": ("float32", {"ema": 0.9, "filter": st.filters.grokfast(0.9)}),
    "units": ("float32", {"regularize": st.regularize.max_norm(0.7)}),
}


AROUND = [(r, *x) for r in ("adamw", "lion", "lamb") for x in OPTIONS.values()]
# Adafactor's states are of rows and columns, and have no formats of their own.
AROUND += [
    ("adafactor", of, options) for of, options in OPTIONS.values() if "state_dtype" not in options
]
AROUND.append(("adafactor", "bfloat16", {"master": "split16"}))


@pytest.mark.parametrize(("rule", "of", "options"), AROUND, ids=label)
def test_formats_and_options(rule, of, options):
    """Also what is rounded at random, which depends on a parameter's number."""
    shapes = ((4100,), (3, 40), (33, 128))
    opt = RULES[rule](twins := numbers(0, of, shapes), **options)
    params = numbers(0, of, shapes)
    states, counts = functional.new_states(rule, params, **options)
    bound = functional.prepare(rule, params, states, counts, **options)
    for t in range(3):
        grads = numbers(1 + t, "bfloat16", shapes)
        opt.step(grads)
        for first in (2, 0, 1):
            bound.step(grads[first : first + 1], first, first + 1)
        compared(opt, params, states, counts, twins, f"step {t}")


def test_copies_scales_and_numbers_for_a_step():
    params, twins = numbers(0), numbers(0)
    copies = [np.zeros(s, formats.named("bfloat16")) for s in SHAPES]
    of_twins = [x.copy() for x in copies]
    opt = st.AdamW(twins, lr=0.5, copies=of_twins)
    states, counts = functional.new_states("AdamW", params)
    bound = functional.prepare("AdamW", params, states, counts, lr=9.0, copies=copies)
    for t in range(3):
        grads = numbers(1 + t)
        opt.param_groups[0]["lr"] = 0.5 / (1 + t)
        opt.step([g * np.float32(0.25) for g in grads])
        bound.step(grads, lr=0.5 / (1 + t), grad_scale=0.25)
        compared(opt, params, states, counts, twins, f"step {t}")
        for x, y in zip(copies, of_twins, strict=True):
            same_bits(x, y)
    before = [p.copy() for p in params]
    bound.step([np.zeros(s, np.float32) for s in SHAPES], lr=0.0)
    for x, y in zip(params, before, strict=True):
        same_bits(x, y)


def test_a_step_with_other_arrays_is_bound_to_these():
    """What ``States`` remember is used for the very same arrays, and for other numbers."""
    params, ones = [np.zeros(3), np.zeros(2)], [np.ones(3), np.ones(2)]
    states, counts = functional.new_states("sgd", params, momentum=0.5)
    copies = [np.zeros(3), np.zeros(2)]

    def step(lr=1.0, momentum=0.5, **options):
        functional.step(
            "sgd", params, ones, states, counts, lr=lr, momentum=momentum, copies=copies, **options
        )
        return states.bound

    first = step()
    assert step() is first and step(lr=0.5) is first and step(momentum=0.0) is first
    twins = [np.zeros(3), np.zeros(2)]
    opt = st.SGD(twins, lr=1.0, momentum=0.5)
    for lr in (1.0, 1.0, 0.5):
        opt.param_groups[0]["lr"] = lr
        opt.step(ones)
    np.testing.assert_array_equal(params[0] + 1.0, twins[0])  # the last was without momentum
    assert step(nesterov=True) is not first
    now = step()
    for replace in (
        lambda: params.__setitem__(0, np.zeros(3)),
        lambda: states["momentum_buffer"].__setitem__(1, np.zeros(2)),
        lambda: copies.__setitem__(0, np.zeros(3)),
    ):
        replace()
        before, now = now, step()
        assert now is not before
        np.testing.assert_array_equal(copies[0], params[0])
    assert step(maximize=True) is not now
    again = copy.deepcopy(states)
    assert again.bound is None and again.keys() == states.keys()


def test_an_interrupted_step_leaves_nothing_held():
    params = [np.ones(3)]
    bound = functional.prepare("sgd", params, {}, np.zeros(1, np.int64))

    def lr(t):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bound.step([np.ones(3)], lr=lr)
    bound.step([np.ones(3)])


def test_a_state_that_a_step_does_not_use_stays_the_callers():
    """An option that a number turns off for a step made every later step fail."""
    params, ones = [np.zeros(3)], [np.ones(3)]
    states, counts = functional.new_states("sgd", params, momentum=0.5)
    bound = functional.prepare("sgd", params, states, counts, lr=1.0, momentum=0.5)
    bound.step(ones)
    bound.step(ones, momentum=0.0)
    np.testing.assert_array_equal(states["momentum_buffer"][0], 1.0)
    bound.step(ones)
    np.testing.assert_array_equal(states["momentum_buffer"][0], 1.5)
    np.testing.assert_array_equal(params[0], -3.5)


def test_schedules_are_evaluated_at_the_count():
    lr = st.schedules.linear(0.5, steps=4)
    twins, params = numbers(0), numbers(0)
    opt = st.SGD(twins, lr=lr)
    counts = np.zeros(len(params), np.int64)
    for t in range(3):
        opt.step(numbers(1 + t))
        functional.step("sgd", params, numbers(1 + t), {}, counts, lr=lr)
        compared(opt, params, {}, counts, twins, f"step {t}")


def test_a_bound_step_allocates_nothing_that_grows():
    """Neither in chunks nor as a whole, whatever the arrays' size."""
    params = [np.ones(100_000, np.float32) for _ in range(6)]
    grads = [np.ones(100_000, np.float32) for _ in range(6)]
    states, counts = functional.new_states("adamw", params)
    bound = functional.prepare("adamw", params, states, counts)
    chunks = [(0, 2), (2, 6)]

    def steps():
        bound.step(grads)
        for first, last in chunks:
            bound.step(grads[first:last], first, last)

    kept, most = traced.taken(steps, 20)
    assert kept < 10_000 and most < 20_000  # an array has 400 000 bytes


def test_threads_step_different_ranges():
    twins, params = numbers(0), numbers(0)
    opt = st.AdamW(twins)
    states, counts = functional.new_states("adamw", params)
    bound = functional.prepare("adamw", params, states, counts)
    halves = [(0, 3), (3, len(params))]
    for t in range(50):
        grads = numbers(1 + t)
        opt.step(grads)
        workers = [threading.Thread(target=bound.step, args=(grads[a:b], a, b)) for a, b in halves]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    compared(opt, params, states, counts, twins, "threads")


def test_the_same_range_is_one_threads():
    """A schedule that steps some of the same parameters stands for another thread."""
    params = [np.ones(3), np.ones(3)]
    states, counts = functional.new_states("sgd", params)
    errors = []

    def lr(t):
        try:
            bound.step([np.ones(3)], first=1)
        except RuntimeError as error:
            errors.append(str(error))
        return 0.5

    bound = functional.prepare("sgd", params, states, counts, lr=0.5)
    bound.step([np.ones(3)] * 2, lr=lr)
    assert len(errors) == 1 and "is inside a step over some of parameters 1 to 2" in errors[0]
    np.testing.assert_array_equal(counts, [1, 1])
    bound.step([np.ones(3)], first=1)
    np.testing.assert_array_equal(counts, [1, 2])


def test_clipping_in_two_phases():
    """Each chunk is measured as it arrives; the last makes the norm, and all are stepped."""
    twins, params, grads = numbers(0), numbers(0), numbers(1)
    opt = st.AdamW(twins, clip=st.clip.global_norm(1.0))
    opt.step(grads)
    [*expected] = opt.last_norms.values()
    states, counts = functional.new_states("adamw", params)
    bound = functional.prepare("adamw", params, states, counts)
    norms = [bound.norm(grads[k : k + 1], k, k + 1) for k in range(len(params))]
    assert norms == expected
    norm = bound.total_norm()
    assert norm == opt.last_norm
    for k in range(len(params)):
        bound.step(grads[k : k + 1], k, k + 1, grad_scale=min(1.0, 1.0 / norm))
    compared(opt, params, states, counts, twins, "clipped")


@pytest.mark.parametrize("size", [1.0, 1e-200, 1e200, 1e154])
def test_the_norm_of_chunks_has_the_bits_of_that_of_all(size):
    for seed in range(20):
        draw = random.Random(seed)
        params = numbers(seed, "float64")
        grads = [size * x for x in numbers(seed + 100, "float64")]
        opt = st.SGD(params, clip=st.clip.global_norm(1.0))
        bound = functional.prepare("sgd", params, {}, np.zeros(len(params), np.int64))
        if seed % 2:
            grads[draw.randrange(len(grads))] = None
        for _ in range(2):  # what was measured before gives way
            each = list(itertools.pairwise([0, 1, 4, 5, len(params)]))
            draw.shuffle(each)
            for first, last in each:
                bound.norm(grads[first:last], first, last)
            grads = [None if g is None else g * 2.0 for g in grads]
        opt.step([None if g is None else g / 2.0 for g in grads])
        assert bound.total_norm() == opt.last_norm


@pytest.mark.parametrize("of", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize(
    "clip",
    [st.clip.norm(0.5), st.clip.adaptive(0.1), st.clip.value(0.2), st.clip.previous_norm(0.5)],
    ids=str,
)
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_clips_of_chunks_have_the_bits_of_the_object(clip, of, scale):
    """``previous_norm`` is the norm of the last step of all parameters, in any order."""
    twins, params = numbers(0, of), numbers(0, of)
    opt = st.AdamW(twins, lr=0.1, clip=clip)
    whole = functional.prepare(
        "adamw", others := numbers(0, of), *(two := functional.new_states("adamw", others)),
        lr=0.1, clip=clip,
    )  # fmt: skip
    states, counts = functional.new_states("adamw", params)
    bound = functional.prepare("adamw", params, states, counts, lr=0.1, clip=clip)
    draw = random.Random(str(clip))
    for t in range(8):
        grads = numbers(1 + t, of)
        if t in (3, 4):
            grads[t] = None
        whole.step(grads, grad_scale=scale)
        if t == 0 or t == 5:
            bound.step(grads, grad_scale=scale)
        else:
            each = list(itertools.pairwise([0, 1, 2, 4, len(params)]))
            draw.shuffle(each)
            for first, last in each:
                bound.step(grads[first:last], first, last, grad_scale=scale)
        if scale == 1.0:
            opt.step(grads)
            compared(opt, params, states, counts, twins, f"step {t}")
            assert bound.clip_history == opt.clip_history
        for p, q in zip(params, others, strict=True):
            same_bits(p, q, f"step {t}")
        assert bound.clip_history == whole.clip_history
    assert two[1].tolist() == counts.tolist()


def test_previous_norm_needs_one_step_of_all_first():
    params = [np.ones(3), np.ones(3)]
    clip = st.clip.previous_norm(1.0)
    bound = functional.prepare("sgd", params, {}, np.zeros(2, np.int64), clip=clip)
    with pytest.raises(ValueError, match="no norm of a step before; step all at once the first"):
        bound.step([np.ones(3)], first=1)
    bound.step([np.ones(3)] * 2)
    bound.step([np.ones(3)], first=1)
    again = functional.prepare("sgd", params, {}, np.zeros(2, np.int64), clip=clip)
    again.clip_history = bound.clip_history  # as of a run that was saved
    again.step([np.ones(3)], first=1)


def test_an_infinite_gradient_is_no_previous_norm():
    params = [np.ones(3), np.ones(3)]
    clip = st.clip.previous_norm(1.0)
    bound = functional.prepare("sgd", params, {}, np.zeros(2, np.int64), clip=clip)
    bound.step([np.ones(3)] * 2)
    before = dict(bound.clip_history)
    bound.step([np.full(3, np.inf)], last=1)
    bound.step([np.ones(3)], first=1)
    assert bound.clip_history == before


def test_what_looks_at_all_gradients_is_not_stepped_in_parts():
    for rule, options in (
        ("prodigy", {}),
        ("sgd", {"clip": st.clip.global_norm(1.0)}),
        ("sgd", {"nonfinite": "skip"}),
    ):
        params = [np.ones(3), np.ones(3)]
        states, counts = functional.new_states(rule, params, **options)
        bound = functional.prepare(rule, params, states, counts, **options)
        with pytest.raises(ValueError, match="looks at all gradients together; step all at once"):
            bound.step([np.ones(3)], first=1)
        bound.step([np.ones(3)] * 2)


def good():
    params = [np.ones(3), np.ones((2, 2))]
    states, counts = functional.new_states("adamw", params)
    return {"rule": "adamw", "params": params, "states": states, "counts": counts}


REFUSED = {
    "rule": ({"rule": "adamz"}, ValueError, "there is no such rule"),
    "params": ({"params": np.ones(3)}, TypeError, "params is a ndarray; expected a list"),
    "states": ({"states": [np.ones(3)]}, TypeError, "states is a list; expected a dict of lists"),
    "no states": ({"states": {}}, ValueError, "states lacks 'exp_avg' for parameter '0'"),
    "a length": ({"states": {"exp_avg": [np.ones(3)]}}, ValueError, "1 states 'exp_avg' for 2"),
    "counts": ({"counts": np.zeros(3, np.int64)}, ValueError, "counts: expected 2, one for each"),
    "floats": ({"counts": np.zeros(2)}, TypeError, "counts: expected writable memory of int64"),
    "hyper": ({"beta": 1}, TypeError, "beta"),
    "a value": ({"lr": -1.0}, ValueError, "lr = -1.0"),
    "names": ({"exclude": ["*"]}, TypeError, "exclude: parameters have no names here"),
    "copies": ({"copies": [None]}, ValueError, "1 copies for 2 parameters"),
}


@pytest.mark.parametrize(("change", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(change, error, message):
    with pytest.raises(error, match=message):
        functional.prepare(**(good() | change))


def test_states_of_other_kinds_are_refused():
    given = good()
    given["states"]["momentum_buffer"] = [np.ones(3), None]
    with pytest.raises(ValueError, match="'momentum_buffer' for parameter '0', which AdamW with"):
        functional.prepare(**given)
    given = good()
    given["states"]["exp_avg"][1] = np.ones(4)
    with pytest.raises(ValueError, match="state 'exp_avg' of parameter '1' is float64 of shape"):
        functional.prepare(**given)
    params = [np.ones((3, 40), np.float32)]
    states, counts = functional.new_states("ldog", params)
    states["rbar"] = [np.array(states["rbar"][0])]
    with pytest.raises(ValueError, match="'rbar' of parameter '0' cannot be used where it lies"):
        functional.prepare("ldog", params, states, counts)


def test_a_refused_step_changes_nothing():
    given = good()
    bound = functional.prepare(**given)
    before = [p.copy() for p in given["params"]]
    grads = [np.ones(3), np.ones((2, 2))]
    for wrong, error in (
        (lambda: bound.step(grads[:1]), ValueError),
        (lambda: bound.step([np.ones(3), np.ones(4)]), ValueError),
        (lambda: bound.step(grads, lr=-1.0), ValueError),
        (lambda: bound.step(grads, beta=1.0), TypeError),
        (lambda: bound.step(grads, params=[]), TypeError),
        (lambda: bound.step(grads, 1, 3), IndexError),
        (lambda: bound.step(grads, ema=0.5), ValueError),
    ):
        with pytest.raises(error):
            wrong()
    for p, x in zip(given["params"], before, strict=True):
        same_bits(p, x)
    np.testing.assert_array_equal(given["counts"], 0)
    bound.step(grads)
    opt = st.AdamW(before)
    opt.step(grads)
    for p, x in zip(given["params"], before, strict=True):
        same_bits(p, x)


def test_counts_may_be_arrays_of_their_own():
    params = [np.ones(3), np.ones(2)]
    counts = [np.array(5), np.array(7)]
    functional.step("signsgd", params, [np.ones(3), None], {}, counts, lr=0.5)
    assert [int(x) for x in counts] == [6, 7]
    np.testing.assert_array_equal(params[0], 0.5)


@pytest.mark.torch
@pytest.mark.parametrize("of", ["float32", "bfloat16"])
def test_tensors(of):
    torch = pytest.importorskip("torch")
    dtype = getattr(torch, of)
    torch.manual_seed(0)
    params = [torch.randn(600).to(dtype), torch.randn(3, 40).to(dtype)]
    twins = [p.clone() for p in params]
    states = {key: [torch.zeros(p.shape) for p in params] for key in ("exp_avg", "exp_avg_sq")}
    if of == "bfloat16":
        states["exp_avg"] = [x.to(dtype) for x in states["exp_avg"]]
    counts = torch.zeros(2, dtype=torch.int64)
    options = {"state_dtype": {"exp_avg": "bfloat16"}} if of == "bfloat16" else {}
    opt = st.AdamW(twins, **options)
    bound = functional.prepare("adamw", params, states, counts, **options)
    for _ in range(3):
        grads = [torch.randn(p.shape).to(dtype) for p in params]
        opt.step(grads)
        for k in (1, 0):
            bound.step(grads[k : k + 1], k, k + 1)
    for p, twin in zip(params, twins, strict=True):
        assert torch.equal(p, twin)
    assert counts.tolist() == [3, 3] and states["exp_avg"][0].any()
