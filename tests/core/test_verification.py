"""Steps that are computed again in part: no false alarm, and every wrong bit is found."""

import copy
import gc
import pickle
import weakref
from collections import deque

import ml_dtypes
import numpy as np
import pytest
from cases import BY_RULE, STAGES, fitting, label

import steepest as st
from steepest.core.verification import BLOCK as BLOCK_SIZE
from steepest.optimizers import RULES

SHAPES = {"long": (3 * BLOCK_SIZE + 5,), "matrix": (20, 31), "kernel": (3, 4, 3, 3), "number": (),
          "empty": (0, 3)}  # fmt: skip
OWN = [(rule, arguments) for rule, arguments in (x.values for x in BY_RULE)]
FORMATS = [
    ("float64", {}), ("bfloat16", {"rounding": "stochastic"}), ("bfloat16", {"master": "split16"}),
    ("float16", {"state_dtype": "float16"}), ("float32", {"state_dtype": "q8"}),
]  # fmt: skip


def arrays(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {k: np.asarray(rng.standard_normal(s)).astype(dtype) for k, s in SHAPES.items()}


def run(rule, arguments, dtype=np.float32, steps=4):
    """Steps that are verified whole, and how many elements were compared."""
    opt = RULES[rule](arrays(0, dtype), **arguments)
    check = opt.verify(1.0)
    for t in range(1, steps + 1):
        grads = arrays(t, dtype)
        if t == 2:
            grads["kernel"] = None
        opt.step(grads)
    return check.elements


@pytest.mark.parametrize(("rule", "arguments"), BY_RULE, ids=label)
def test_no_step_of_any_rule_is_suspected(rule, arguments):
    compared = run(rule, arguments)
    if RULES[rule].prepares:
        assert compared == 0
    else:
        assert compared > 3 * BLOCK_SIZE


AROUND = [
    *STAGES,
    {"clip": (st.clip.global_norm(1.0), st.clip.value(0.1)), "maximize": True},
    {"clip": st.clip.norm(0.5, p=1)},
    {"clip": st.clip.previous_norm(0.5)},
    {"clip": st.clip.percentile(50)},
    {"lr": st.schedules.cosine(0.01, steps=3)},
    {"regularize": (st.regularize.max_norm(2.0), st.regularize.group_lasso(0.01))},
    {"filter": st.filters.centralize(), "regularize": st.regularize.box(-1, 1)},
]


@pytest.mark.parametrize("options", AROUND, ids="+".join)
def test_no_option_around_a_rule_is_suspected(options):
    for rule in ("adamw", "sgd", "lamb", "adafactor"):
        found = next(arguments for known, arguments in OWN if known == rule)
        assert run(rule, fitting(rule, found, options)) > BLOCK_SIZE


@pytest.mark.exhaustive
@pytest.mark.parametrize(("rule", "arguments"), OWN, ids=label)
def test_no_option_around_any_rule_is_suspected(rule, arguments):
    for options in AROUND:
        run(rule, fitting(rule, arguments, options))


@pytest.mark.parametrize(("name", "options"), FORMATS)
def test_no_format_is_suspected(name, options):
    dtype = ml_dtypes.bfloat16 if name == "bfloat16" else name
    for rule in ("adamw", "lion", "came"):
        assert run(rule, options, dtype) > BLOCK_SIZE


def damaged(opt, damage):
    """The optimizer, whose commits are followed by damage to memory."""
    step = opt._go.args[1]

    def go(optimizer, flat, count):
        step(optimizer, flat, count)
        damage(optimizer)

    opt._go = type(opt._go)(opt._go.func, opt._go.args[0], go)
    return opt


@pytest.mark.parametrize("what", ["parameter", "exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("place", [0, BLOCK_SIZE, 3 * BLOCK_SIZE + 4])
def test_one_wrong_bit_is_found(what, place):
    opt = st.AdamW(arrays(0))
    check = opt.verify(1.0)
    opt.step(arrays(1))

    def damage(opt):
        x = opt.param_groups[0]["params"][0] if what == "parameter" else opt.state["long"][what]
        x.view(np.uint32)[place] ^= 1

    damaged(opt, damage)
    said = rf"'long' has .* at .{place},. after update 2, where the reference has"
    with pytest.raises(st.CorruptionError, match=said):
        opt.step(arrays(2))
    assert opt.updates == 2 and check.elements > 0


def test_a_number_of_a_group_is_compared():
    opt = st.Prodigy(arrays(0))
    opt.verify(1.0)
    opt.step(arrays(1))
    [group] = opt.param_groups
    damaged(opt, lambda _: group.update(d=np.nextafter(group["d"], 1)))
    with pytest.raises(st.CorruptionError, match=r"d is .* after update 2"):
        opt.step(arrays(2))


def test_about_the_share_is_compared_and_every_block_in_time():
    p = np.zeros(64 * BLOCK_SIZE, np.float32)
    opt = st.SGD(p, lr=1.0)
    check = opt.verify(0.1, seed=3)
    for _ in range(50):
        opt.step(np.ones_like(p))
    # 3200 blocks with a chance of 0.1: 320, and a standard deviation of 17.
    assert 250 < check.elements / BLOCK_SIZE < 390
    assert f"elements={check.elements}" in repr(check)
    damaged(opt, lambda opt: p.view(np.uint32).__setitem__(17, 0))
    with pytest.raises(st.CorruptionError):  # each finds it with a chance of 0.1
        deque((opt.step(np.ones_like(p)) for _ in range(200)), 0)


def test_a_skipped_step_has_to_change_nothing():
    opt = st.AdamW(arrays(0), nonfinite="skip")
    opt.verify(1.0)
    grads = arrays(1)
    grads["matrix"][3, 4] = np.nan
    opt.step(grads)
    assert opt.skipped == 1
    damaged(opt, lambda opt: opt.param_groups[0]["params"][1].__setitem__((0, 0), 7))
    with pytest.raises(st.CorruptionError, match="'matrix'"):
        opt.step(grads)


def test_it_can_be_ended_and_goes_with_copies():
    opt = st.AdamW(arrays(0))
    check = opt.verify(1.0)
    opt.step(arrays(1))
    for other in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        damaged(other, lambda opt: opt.param_groups[0]["params"][0].fill(0))
        with pytest.raises(st.CorruptionError):
            other.step(arrays(2))
    compared = check.elements
    assert opt.verify(0).elements == 0 and "_go" not in vars(opt)
    opt.step(arrays(2))
    assert check.elements == compared


def test_it_keeps_nothing_alive():
    opt = st.AdamW(arrays(0))
    opt.verify(0.5)
    opt.step(arrays(1))
    seen = weakref.ref(opt)
    gc.disable()
    try:
        del opt
        assert seen() is None
    finally:
        gc.enable()


def test_errors_of_a_step_are_those_of_a_step():
    opt = st.AdamW(arrays(0))
    opt.verify(1.0)
    digest = opt.digest()
    with pytest.raises(ValueError, match="shape"):
        opt.step(arrays(1) | {"matrix": np.ones((2, 2), np.float32)})
    assert opt.digest() == digest


@pytest.mark.parametrize("share", [-0.1, 1.5, "much", np.nan])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises((TypeError, ValueError), match="share"):
        st.SGD(np.ones(2)).verify(share)


def test_views_tensors_and_orders():
    room = np.zeros((40, 62), np.float32)
    p = {"a": room[::2, ::2], "b": np.asfortranarray(np.ones((70, 90), np.float32)), "c": room[1]}
    p["c"] = np.ones(5000, np.float32)[::-1]
    opt = st.AdamW(p)
    check = opt.verify(1.0)
    for t in range(3):
        rng = np.random.default_rng(t)
        opt.step({k: rng.standard_normal(x.shape).astype(np.float32) for k, x in p.items()})
    assert check.elements == 3 * sum(x.size for x in p.values())
