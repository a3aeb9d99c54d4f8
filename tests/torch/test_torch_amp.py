"""torch.amp.GradScaler: unscaling and skipping inside the step, as torch's fused optimizers do."""

import math

import numpy as np
import pytest

import steepest as st

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch")

import steepest.torch as stt  # noqa: E402

SHAPES = [(7, 5), (6,), (3, 4, 2), (1,)]
BAD = {2: math.inf, 5: math.nan}
"""The steps that have a gradient with such an element."""

RULES = {
    "sgd": lambda ps, **k: stt.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.01, **k),
    "adamw": lambda ps, **k: stt.AdamW(ps, lr=0.1, amsgrad=True, **k),
    "adafactor": lambda ps, **k: stt.Adafactor(ps, lr=0.1, **k),
    "lamb": lambda ps, **k: stt.LAMB(ps, lr=0.1, **k),
    "prodigy": lambda ps, **k: stt.Prodigy(ps, **k),
    "muon": lambda ps, **k: stt.Muon(ps[::2], lr=0.1, **k),
    "schedulefree": lambda ps, **k: stt.ScheduleFreeAdamW(ps, lr=0.1, **k),
}
CLIPS = [
    st.clip.value(0.5),
    st.clip.norm(1.0),
    st.clip.norm(1.0, p=1),
    st.clip.group_norm(1.0),
    st.clip.global_norm(1.0),
    st.clip.global_norm(1.0, p=math.inf),
    st.clip.percentile(40),
    st.clip.previous_norm(1.0),
    st.clip.adaptive(0.1),
    (st.clip.skip_spikes(sigma=0.5, window=4), st.clip.global_norm(2.0), st.clip.value(0.5)),
]


def parameters(dtype=np.float32):
    rng = np.random.default_rng(1)
    return [torch.nn.Parameter(torch.tensor(rng.standard_normal(s).astype(dtype))) for s in SHAPES]


def gradients(t, dtype=np.float32):
    rng = np.random.default_rng(10 + t)
    made = [torch.tensor(rng.standard_normal(s).astype(dtype)) for s in SHAPES]
    if t in BAD:
        made[2][1, 1, 1] = BAD[t]
    return made


def scaler(scale=2.0**8, **more):
    made = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2, **more)
    made.scale(torch.ones(()))  # makes the scale
    return made


def give(params, grads, scale=1.0):
    for p, g in zip(params, grads, strict=True):
        p.grad = g * scale


def scaled_run(make, steps=8, explicit=False, scale=2.0**8, dtype=np.float32):
    """Parameters, optimizer and all scales of a run with a scaler."""
    params = parameters(dtype)
    optimizer, amp = make(params), scaler(scale)
    scales = []
    for t in range(steps):
        give(params, gradients(t, dtype), amp.get_scale())
        if explicit:
            amp.unscale_(optimizer)
        amp.step(optimizer)
        amp.update()
        scales.append(amp.get_scale())
    return params, optimizer, scales


def plain_run(make, steps=8):
    params = parameters()
    optimizer = make(params)
    for t in range(steps):
        if t not in BAD:
            give(params, gradients(t))
            optimizer.step()
    return params, optimizer


def equal(params, others):
    return all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


def equal_states(one, other):
    return all(
        torch.equal(x, other_state[key])
        for state, other_state in zip(one.state.values(), other.state.values(), strict=True)
        for key, x in state.items()
    )


@pytest.mark.parametrize("explicit", [False, True], ids=["inside", "unscale_"])
@pytest.mark.parametrize("rule", RULES)
def test_a_power_of_two_changes_no_bit(rule, explicit):
    params, optimizer, _ = scaled_run(RULES[rule], explicit=explicit)
    others, plain = plain_run(RULES[rule])
    assert equal(params, others)
    assert equal_states(optimizer, plain)
    assert optimizer.updates == plain.updates == 6
    assert optimizer.skipped == len(BAD) and "GradScaler" in optimizer.last_skip


@pytest.mark.parametrize("clip", CLIPS, ids=repr)
def test_clips_go_by_unscaled_norms(clip):
    def make(ps):
        return stt.SGD(ps, lr=0.1, momentum=0.9, clip=clip, maximize=True)

    params, optimizer, _ = scaled_run(make)
    others, plain = plain_run(make)
    assert equal(params, others)
    assert optimizer.clip_history == plain.clip_history
    assert optimizer.last_norm == plain.last_norm
    assert optimizer.last_norms == plain.last_norms
    assert optimizer.skipped - len(BAD) == plain.skipped


def test_norms_by_groups_with_clips_of_their_own_are_unscaled():
    def make(ps):
        groups = [
            {"params": ps[:2], "clip": st.clip.norm(0.5)},
            {"params": ps[2:3], "clip": st.clip.previous_norm(0.5)},
            {"params": ps[3:]},
        ]
        return stt.SGD(groups, lr=0.1)

    params, optimizer, _ = scaled_run(make)
    others, plain = plain_run(make)
    assert equal(params, others) and optimizer.clip_history == plain.clip_history != {}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("how", [{"fused": True}, {"foreach": True}, {"foreach": False}], ids=str)
@pytest.mark.parametrize("explicit", [False, True], ids=["inside", "unscale_"])
def test_as_torchs_own(how, dtype, explicit):
    keywords = {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1, "eps": 1e-6}
    params, ours, scales = scaled_run(
        lambda ps: stt.AdamW(ps, **keywords), explicit=explicit, dtype=dtype
    )
    others, theirs, their_scales = scaled_run(
        lambda ps: torch.optim.AdamW(ps, **keywords, **how), explicit=explicit, dtype=dtype
    )
    assert scales == their_scales
    assert scales == [256, 512, 256, 256, 512, 256, 256, 512]
    # Both round the same formula in another order: float32 as 2 units in the last place per step.
    tolerance = 2 * 6 * 2.0**-23 if dtype == np.float32 else 1e-12
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)
        assert ours.state[p]["step"] == theirs.state[q]["step"] == 6


@pytest.mark.parametrize("scale", [3.0, 1000.0, 0.7])
def test_any_scale_is_one_product_in_float32(scale):
    params, _, _ = scaled_run(RULES["adamw"], steps=1, scale=scale)
    others = parameters()
    number = scaler(scale).get_scale()
    give(others, [g * number * np.float32(1.0 / number) for g in gradients(0)])
    RULES["adamw"](others).step()
    assert equal(params, others)


def test_gradients_stay_as_they_are():
    params = parameters()
    optimizer, amp = stt.AdamW(params, clip=st.clip.global_norm(0.1)), scaler()
    give(params, gradients(0), amp.get_scale())
    before = [p.grad.clone() for p in params]
    amp.step(optimizer)
    assert equal([p.grad for p in params], before)


def test_a_skipped_step_changes_nothing_and_leaves_no_trace_on_the_next():
    params = parameters()
    optimizer, amp = stt.AdamW(params, ema=0.9), scaler()
    give(params, gradients(0), amp.get_scale())
    amp.step(optimizer)
    amp.update()
    before = [p.detach().clone() for p in params]
    state = {p: {k: x.clone() for k, x in s.items()} for p, s in optimizer.state.items()}
    give(params, gradients(2), amp.get_scale())
    amp.step(optimizer)
    amp.update()
    assert equal(params, before) and optimizer.updates == 1
    assert all(torch.equal(x, state[p][k]) for p, s in optimizer.state.items()
               for k, x in s.items())  # fmt: skip
    assert not hasattr(optimizer, "grad_scale") and not hasattr(optimizer, "found_inf")
    give(params, gradients(1))
    optimizer.step()  # without the scaler: no scale is left
    others = parameters()
    plain = stt.AdamW(others)
    for t in range(2):
        give(others, gradients(t))
        plain.step()
    assert equal(params, others)


def test_the_policy_for_non_finite_gradients_has_nothing_to_do():
    params, optimizer, _ = scaled_run(lambda ps: stt.SGD(ps, lr=0.1, nonfinite="raise"))
    others, _ = plain_run(lambda ps: stt.SGD(ps, lr=0.1, nonfinite="raise"))
    assert equal(params, others) and optimizer.skipped == 2


def test_a_scale_of_ones_own():
    params, others = parameters(), parameters()
    optimizer = stt.SGD(params, lr=0.1)
    optimizer.grad_scale = torch.tensor(4.0)
    give(params, gradients(0), 4.0)
    optimizer.step()
    give(others, gradients(0))
    stt.SGD(others, lr=0.1).step()
    assert equal(params, others)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_an_impossible_scale_is_an_error(scale):
    params = parameters()
    optimizer = stt.AdamW(params)
    optimizer.grad_scale = torch.tensor(scale)
    give(params, gradients(0))
    with pytest.raises(ValueError, match="grad_scale"):
        optimizer.step()
    assert equal(params, parameters())


def test_a_disabled_scaler_only_steps():
    params, others = parameters(), parameters()
    amp = torch.amp.GradScaler("cpu", enabled=False)
    give(params, gradients(0))
    amp.step(stt.AdamW(params))
    give(others, gradients(0))
    stt.AdamW(others).step()
    assert equal(params, others)
