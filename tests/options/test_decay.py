"""Modes of weight decay: each against others' code or the formula as its source has it."""

import numpy as np
import pytest
from cases import reference_hyper, same_bits

import steepest as st
from steepest import reference
from steepest.optimizers import RULES
from steepest.options import decay

WEIGHT = 0.31
LR = st.schedules.cosine(0.2, 40, end=0.01, warmup=5)


def gradients(steps=50, n=17, seed=5):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((steps, n)), rng.standard_normal(n)


def path(make, grads, start):
    p = start.copy()
    opt = make(p)
    points = []
    for g in grads:
        opt.step(g)
        points.append(p.copy())
    return np.array(points)


# What is left of the parameter, as the sources have it: (before the step, after it).
SOURCES = {
    "decoupled": lambda lr: (1 - lr * WEIGHT, 1),  # arXiv:1711.05101, algorithm 2
    "decoupled_after": lambda lr: (1, 1 - lr * WEIGHT),  # thinc, SOAP, GaLore
    "independent": lambda lr: (1 - WEIGHT, 1),  # arXiv:2309.14322
    "lr_relative": lambda lr: (1 - lr / 0.2 * WEIGHT, 1),  # optimi: decouple_lr
    "corrected": lambda lr: (1 - lr**2 / 0.2 * WEIGHT, 1),  # arXiv:2506.02285; timm
    "palm": lambda lr: (1 - lr**2 * WEIGHT, 1),  # arXiv:2204.02311, section 5
    "proximal": lambda lr: (1, 1 / (1 + lr * WEIGHT)),  # arXiv:2208.06677
}


def adam(grads, start, left):
    """Adam from its paper, decayed as `left` says."""
    p, m, v, points = start.copy(), 0.0, 0.0, []
    for t, g in enumerate(grads, 1):
        lr = LR(t - 1)
        before, after = left(lr)
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
        step = lr * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-3)
        p = (p * before - step) * after
        points.append(p.copy())
    return np.array(points)


@pytest.mark.parametrize("mode", SOURCES)
def test_formula_around_adam(mode):
    grads, start = gradients()
    ours = path(
        lambda p: st.Adam(
            p, lr=LR, betas=(0.8, 0.95), eps=1e-3, weight_decay=WEIGHT, decay_mode=mode,
            peak_lr=0.2 if mode in decay.PEAKED else None,
        ), grads, start,
    )  # fmt: skip
    np.testing.assert_allclose(ours, adam(grads, start, SOURCES[mode]), rtol=1e-11, atol=1e-13)
    others = [adam(grads, start, SOURCES[other]) for other in SOURCES if other != mode]
    assert min(np.abs(ours - other).max() for other in others) > 1e-4


def test_every_mode_is_here():
    assert set(SOURCES) | {"l2", "cautious"} == set(decay.MODES)


def test_cautious_formula_around_adam():
    """Algorithm 1 of arXiv:2510.12402, with steps far below a rounding of p, which count too."""
    grads, start = gradients()
    grads[:, :3] *= 1e-25
    start[3] = 0.0
    ours = path(
        lambda p: st.Adam(
            p, lr=LR, betas=(0.8, 0.95), eps=1e-3, weight_decay=WEIGHT, decay_mode="cautious"
        ), grads, start,
    )  # fmt: skip
    p, m, v, decayed = start.copy(), 0.0, 0.0, []
    for t, g in enumerate(grads, 1):
        lr = LR(t - 1)
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
        u = (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-3)
        decayed.append(np.sign(u) * np.sign(p) >= 0)
        p = p - lr * (u + WEIGHT * decayed[-1] * p)
        np.testing.assert_allclose(ours[t - 1], p, rtol=1e-11, atol=1e-13)
    shares = np.mean(decayed, axis=0)
    assert (shares[:3] > 0.1).all() and (shares[:3] < 0.9).all()  # not all one way, however small


@pytest.mark.parametrize("rule", [rule for rule in RULES if RULES[rule].additive])
def test_additive_rules_are(rule):
    """What they add to the parameter is the same wherever it is."""
    grads, start = gradients(6)

    def added(far):
        p = start.copy()
        opt = RULES[rule](p, lr=0.1)
        state = {k: x.copy() for k, x in opt.state["0"].items()}
        h = reference_hyper(opt)
        steps = []
        for t, g in enumerate(grads, 1):
            p[...] = far  # not where the state would have it
            reference.step(rule, p, g, state, t, **h | {"weight_decay": 0.0})
            steps.append(p - far)
        return np.array(steps)

    np.testing.assert_allclose(added(1.0), added(0.0), rtol=0, atol=1e-15)


@pytest.mark.torch
@pytest.mark.parametrize("rule", ["Lion", "AdaBelief"])
def test_independent_equals_fixed_decay_of_pytorch_optimizer(rule):
    torch = pytest.importorskip("torch")
    peers = pytest.importorskip("pytorch_optimizer")
    grads, start = gradients()
    ours = path(
        lambda p: getattr(st, rule)(
            p, lr=0.01, betas=(0.8, 0.95), weight_decay=0.1, decay_mode="independent"
        ), grads, start,
    )  # fmt: skip
    p = torch.nn.Parameter(torch.from_numpy(start.copy()))
    peer = getattr(peers, rule)(
        [p], lr=0.01, betas=(0.8, 0.95), weight_decay=0.1, weight_decouple=True, fixed_decay=True
    )
    for t, g in enumerate(grads):
        p.grad = torch.from_numpy(g.copy())
        peer.step()
        # Theirs adds eps to v of AdaBelief at every step in another order.
        np.testing.assert_allclose(ours[t], p.detach().numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.torch
@pytest.mark.parametrize("mode", ["proximal", "decoupled"])
def test_adan_has_its_papers_decay(mode):
    """Theirs takes the paper's form for what is not decoupled."""
    torch = pytest.importorskip("torch")
    peers = pytest.importorskip("pytorch_optimizer")
    grads, start = gradients()
    arguments = {"lr": 0.05, "betas": (0.9, 0.8, 0.95), "eps": 1e-3, "weight_decay": WEIGHT}
    ours = path(lambda p: st.Adan(p, **arguments, decay_mode=mode), grads, start)
    p = torch.nn.Parameter(torch.from_numpy(start.copy()))
    peer = peers.Adan([p], **arguments, weight_decouple=mode == "decoupled")
    for t, g in enumerate(grads):
        p.grad = torch.from_numpy(g.copy())
        peer.step()
        np.testing.assert_allclose(ours[t], p.detach().numpy(), rtol=1e-11, atol=1e-13)


@pytest.mark.torch
@pytest.mark.parametrize("mode", ["decoupled_after", "lr_relative", "corrected", "palm"])
def test_modes_are_torchs_adamw_with_another_weight(mode):
    """PyTorch's loop, with weight_decay set at every step, and p scaled after it."""
    torch = pytest.importorskip("torch")
    grads, start = gradients()
    ours = path(
        lambda p: st.AdamW(
            p, lr=LR, weight_decay=WEIGHT, decay_mode=mode,
            peak_lr=0.2 if mode in decay.PEAKED else None,
        ), grads, start,
    )  # fmt: skip
    p = torch.nn.Parameter(torch.from_numpy(start.copy()))
    peer = torch.optim.AdamW([p], weight_decay=0.0)
    for t, g in enumerate(grads):
        before, after = SOURCES[mode](LR(t))
        p.grad = torch.from_numpy(g.copy())
        peer.param_groups[0].update(lr=LR(t), weight_decay=(1 - before) / LR(t))
        peer.step()
        with torch.no_grad():
            p *= after
        np.testing.assert_allclose(ours[t], p.detach().numpy(), rtol=1e-11, atol=1e-13)


# The largest rate


def test_the_largest_rate_is_the_one_at_construction():
    """As PyTorch's initial_lr; a group has its own, and a later rate does not change it."""
    grads, start = gradients(9)
    params, twins = [start.copy(), start.copy()], [start.copy(), start.copy()]
    groups = [{"params": params[0]}, {"params": params[1], "lr": 0.05}]
    opt = st.SGD(groups, lr=0.1, weight_decay=WEIGHT, decay_mode="lr_relative")
    assert [g["peak_lr"] for g in opt.param_groups] == [0.1, 0.05]
    for t, g in enumerate(grads):
        for group, rate in zip(opt.param_groups, (0.1, 0.05), strict=True):
            group["lr"] = rate / (t + 1)
        opt.step([g, g])
        for twin, rate in zip(twins, (0.1, 0.05), strict=True):
            lr = rate / (t + 1)
            reference.step(
                "sgd", twin, g, {}, t + 1, lr=lr, weight_decay=WEIGHT, decay_mode="lr_relative",
                peak_lr=rate, momentum=0.0, dampening=0.0, nesterov=False, convention="torch",
            )  # fmt: skip
    for p, twin in zip(params, twins, strict=True):
        same_bits(p, twin)
    resumed = st.SGD(
        [{"params": p} for p in params], lr=9.0, weight_decay=WEIGHT, decay_mode="lr_relative"
    )
    resumed.load_state_dict(opt.state_dict())
    assert [g["peak_lr"] for g in resumed.param_groups] == [0.1, 0.05]


def test_a_schedule_has_to_say_its_largest_value():
    lr = st.schedules.cosine(0.1, 100, warmup=10)
    with pytest.raises(ValueError, match="decay_mode = 'corrected' uses the largest lr: expect"):
        st.AdamW(np.ones(1), lr=lr, decay_mode="corrected")
    w = np.ones(1)
    opt = st.SGD(w, lr=lr, weight_decay=0.5, decay_mode="lr_relative", peak_lr=0.1)
    opt.step(np.zeros(1))
    assert w == 1 - 0.5 * (lr(0) / 0.1)
    opt.param_groups[0]["peak_lr"] = None
    with pytest.raises(ValueError, match="it is None"):
        opt.step(np.zeros(1))
    assert opt.updates == 1


def test_a_rate_of_zero_decays_nothing_but_independently():
    for mode in decay.MODES:
        w = np.ones(1)
        opt = st.Adam(w, lr=0.0, weight_decay=0.5, decay_mode=mode)
        opt.step(np.ones(1))
        assert w == (0.5 if mode == "independent" else 1.0), mode
        if mode in decay.PEAKED:
            opt.param_groups[0]["lr"] = 0.1
            with pytest.raises(ValueError, match=r"it is 0\.0"):
                opt.step(np.ones(1))


def test_a_largest_rate_without_use_is_refused():
    message = r"peak_lr = 0\.1 has no effect with decay_mode 'decoupled'; expected one of lr_rel"
    with pytest.raises(ValueError, match=message):
        st.AdamW(np.ones(1), peak_lr=0.1)
    st.AdamW(np.ones(1), peak_lr=0.1, overrides={"0": {"decay_mode": "corrected"}})
    with pytest.raises(ValueError, match=r"peak_lr = -1\.0: expected a finite number"):
        st.AdamW(np.ones(1), peak_lr=-1.0, decay_mode="corrected")


# Any rule


@pytest.mark.parametrize("rule", [rule for rule in RULES if RULES[rule].least_axes < 2])
@pytest.mark.parametrize("mode", decay.MODES)
def test_every_rule_takes_every_mode_or_says_no(rule, mode):
    grads, start = gradients(5)
    arguments = {"decay_mode": mode, "weight_decay": 0.3}

    def bits(**arguments):
        return path(lambda p: RULES[rule](p, **arguments), grads, start).tobytes()

    if mode == "cautious" and not RULES[rule].additive:
        with pytest.raises(ValueError, match=f"'cautious': {rule} does not add a step to the par"):
            bits(**arguments)
        return
    if RULES[rule].own_decay and mode not in decay.OWN:
        with pytest.raises(ValueError, match=f"{rule} has decay in its own formula"):
            bits(**arguments)
        return
    if mode in decay.AFTER and not RULES[rule].may_be_moved:
        with pytest.raises(ValueError, match=f"decay_mode = .*{rule} cannot be moved after"):
            bits(**arguments)
        return
    assert bits(**arguments) != bits(weight_decay=0.0)


def test_groups_exclude_and_penalties():
    """A mode belongs to a group; `exclude` takes the weight, whatever the mode; penalties add."""
    w = {"w": np.ones((1, 1)), "b": np.ones(1), "v": np.ones((1, 1))}
    opt = st.SGD(
        w, lr=0.5, weight_decay=0.25, decay_mode="independent", exclude="vectors",
        overrides={"v": {"decay_mode": "proximal"}},
        regularize=st.regularize.decoupled(0.5),
    )  # fmt: skip
    opt.step({k: np.zeros_like(p) for k, p in w.items()})
    assert w["w"] == 1 - (0.25 + 0.5 * 0.5) and w["b"] == 1
    assert w["v"] == (1 - 0.5 * 0.5) * (1 / (1 + 0.5 * 0.25))
    assert reference_hyper(opt)["decay_mode"] == "independent"


def test_unknown_modes_are_told_all():
    with pytest.raises(
        ValueError, match=f"'cosy': expected one of {', '.join(map(repr, decay.MODES))}"
    ):
        st.Adam(np.ones(1), decay_mode="cosy")
