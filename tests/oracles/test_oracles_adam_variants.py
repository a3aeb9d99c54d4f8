"""The relatives of Adam that PyTorch lacks, as reference in float64, against others' versions.

Nothing is at its default. The tolerance 1e-12 is for 100 steps of differently ordered roundings in
float64; atol stands for elements that come close to 0.
"""

import inspect

import numpy as np
import pytest
from cases import VARIANTS, hyper, label, reference_hyper
from trajectories import gradients

import steepest as st
from steepest import reference, schedules
from steepest.optimizers import RULES, adam_variants
from steepest.reference.adam_variants import arctan2

CLOSE = {"rtol": 1e-12, "atol": 1e-14}
FAMILY = {getattr(adam_variants, name).rule for name in adam_variants.__all__}
FORMS = [
    (rule, hyper(rule, v))
    for rule in sorted(FAMILY)
    for v in VARIANTS.get(rule, [{}])
    if "convention" not in v  # see test_oracles_conventions.py
]


def path(rule, arguments, grads, start, put=None, after=1.0):
    """The parameter after each step of the reference. `put` are first values of states, `after`
    what a decay behind the step leaves of the parameter; a schedule is evaluated as in a step."""
    p = start.copy()
    opt = RULES[rule](p, **arguments)
    state = {key: x.copy() for key, x in opt.state["0"].items()}
    for key, value in (put or {}).items():
        state[key][...] = value
    h = reference_hyper(opt)
    found = []
    for t, g in enumerate(grads, 1):
        now = {k: tuple(at(x, t) for x in v) if k == "betas" else at(v, t) for k, v in h.items()}
        reference.step(rule, p, g, state, t, **now)
        p *= after
        found.append(p.copy())
    return np.array(found)


def at(value, t):
    return value(t - 1) if callable(value) else value


# The papers, written down


def adabelief(p, g, t, s, a):
    b1, b2 = a["betas"]
    s.m = b1 * s.m + (1 - b1) * g
    s.v = b2 * s.v + (1 - b2) * (g - s.m) ** 2 + a["eps"]
    return s.m / (1 - b1**t) / (np.sqrt(s.v / (1 - b2**t)) + a["eps"])


def yogi(p, g, t, s, a):
    b1, b2 = a["betas"]
    if t == 1:
        s.v = s.v + a["initial_accumulator_value"]
    s.m = b1 * s.m + (1 - b1) * g
    s.v = s.v + (1 - b2) * np.sign(g**2 - s.v) * g**2
    if a.get("bias_correction", True):
        return s.m / (1 - b1**t) / (np.sqrt(s.v / (1 - b2**t)) + a["eps"])
    return s.m / (np.sqrt(s.v) + a["eps"])


def laprop(p, g, t, s, a):
    b1, b2 = a["betas"]
    s.v = b2 * s.v + (1 - b2) * g**2
    s.m = b1 * s.m + (1 - b1) * g / (np.sqrt(s.v / (1 - b2**t)) + a["eps"])
    return s.m / (1 - b1**t)


def adopt(p, g, t, s, a):
    b1, b2 = a["betas"]
    if t == 1:
        s.v = g**2
        return 0.0
    x = g / np.fmax(np.sqrt(s.v), a["eps"])
    if a.get("use_clipping", True):
        x = np.clip(x, -((t - 1) ** 0.25), (t - 1) ** 0.25)
    s.m = b1 * s.m + (1 - b1) * x
    s.v = b2 * s.v + (1 - b2) * g**2
    return s.m


def ademamix(p, g, t, s, a):
    b1, b2, b3 = a["betas"]
    s.m = b1 * s.m + (1 - b1) * g
    s.d = b3 * s.d + (1 - b3) * g
    s.v = b2 * s.v + (1 - b2) * g**2
    return (s.m / (1 - b1**t) + a["alpha"] * s.d) / (np.sqrt(s.v / (1 - b2**t)) + a["eps"])


def adan(p, g, t, s, a):
    b1, b2, b3 = a["betas"]
    weight = a.get("weight", b2)
    change = g - s.last if t > 1 else 0.0 * g
    s.last = g
    s.m = b1 * s.m + (1 - b1) * g
    s.d = b2 * s.d + (1 - b2) * change
    s.v = b3 * s.v + (1 - b3) * (g + weight * change) ** 2
    ahead = s.m / (1 - b1**t) + weight * s.d / (1 - b2**t)
    return ahead / (np.sqrt(s.v / (1 - b3**t)) + a["eps"])


def adamatan2(p, g, t, s, a):
    b1, b2 = a["betas"]
    s.m = b1 * s.m + (1 - b1) * g
    s.v = b2 * s.v + (1 - b2) * g**2
    return a["a"] * np.arctan2(s.m / (1 - b1**t), a["b"] * np.sqrt(s.v / (1 - b2**t)))


def sophia(p, g, t, s, a):
    """Before there is an estimate of the curvature h; see test_sophia."""
    s.m = a["betas"][0] * s.m + (1 - a["betas"][0]) * g
    return np.clip(s.m / np.fmax(a["rho"] * s.h, a["eps"]), -1, 1)


def grams(p, g, t, s, a):
    b1, b2 = a["betas"]
    s.m = b1 * s.m + (1 - b1) * g
    s.v = b2 * s.v + (1 - b2) * g**2
    return np.sign(g) * abs(s.m / (1 - b1**t)) / (np.sqrt(s.v / (1 - b2**t)) + a["eps"])


RULE_FORMULAS = (adabelief, yogi, laprop, adopt, ademamix, adan, adamatan2, sophia, grams)
PAPERS = {f.__name__: f for f in RULE_FORMULAS}


class Moments:
    m = v = d = h = 0.0


def paper_path(rule, a, grads, start):
    """By the paper's formula; `maximize` and both decays as in torch."""
    p, s, found = start, Moments(), []
    for t, g in enumerate(grads, 1):
        g = -g if a.get("maximize") else g
        decay = a["weight_decay"]
        if a.get("decay_mode", RULES[rule].decay_mode) == "l2":
            g = g + decay * p
            decay = 0.0
        p = p - a["lr"] * decay * p - a["lr"] * PAPERS[rule](p, g, t, s, a)
        found.append(p)
    return np.array(found)


def test_every_rule_has_a_formula():
    assert set(PAPERS) == FAMILY


@pytest.mark.parametrize("options", [{}, {"maximize": True}, {"decay_mode": "l2"},
                                     {"decay_mode": "decoupled"}], ids=str)  # fmt: skip
@pytest.mark.parametrize(("rule", "arguments"), FORMS, ids=label)
def test_reference_equals_the_paper(rule, arguments, options):
    grads, start = gradients()
    a = arguments | options
    np.testing.assert_allclose(
        path(rule, a, grads, start), paper_path(rule, a, grads, start), **CLOSE
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_arctangent_is_within_three_units_of_the_last_place(dtype):
    rng = np.random.default_rng(0)
    angle = np.concatenate([np.linspace(-1, 1, 100_001) * np.pi / 2, rng.uniform(-1, 1, 100_000)])
    size = 10.0 ** rng.uniform(-15, 15, angle.size)
    y, x = (size * np.sin(angle)).astype(dtype), (size * np.abs(np.cos(angle))).astype(dtype)
    exact = np.arctan2(y.astype(np.longdouble), x.astype(np.longdouble))
    error = np.abs(arctan2(y, x) - exact) / np.spacing(np.abs(exact).astype(dtype))
    assert error.max() < 3.0


def test_the_arctangent_at_its_ends():
    y = np.array([0.0, -0.0, 0.0, 1.0, -1.0, np.nan, 1.0, np.inf, 1.0])
    x = np.array([0.0, 0.0, 1.0, 0.0, 0.0, 1.0, np.nan, 1.0, np.inf])
    quarter = np.pi / 2
    expected = [0.0, 0.0, 0.0, quarter, -quarter, np.nan, np.nan, quarter, 0.0]
    np.testing.assert_array_equal(arctan2(y, x), expected)


# pytorch_optimizer (kozistr)


def peer_path(name, grads, start, **arguments):
    pytest.importorskip("torch")
    import torch

    peers = pytest.importorskip("pytorch_optimizer")
    p = torch.nn.Parameter(torch.from_numpy(start.copy()))
    opt = getattr(peers, name)([p], foreach=False, **arguments)
    found = []
    for g in grads:
        p.grad = torch.from_numpy(g.copy())
        opt.step()
        found.append(p.detach().numpy().copy())
    return np.array(found)


@pytest.mark.torch
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("mode", ["l2", "decoupled"])
@pytest.mark.parametrize(("rule", "variant", "theirs"), [
    ("adabelief", {}, {}),
    ("yogi", {"initial_accumulator_value": 0.013}, {"initial_accumulator": 0.013}),
    ("adopt", {}, {"clip_lambda": lambda step: (step - 1) ** 0.25}),
    ("adopt", {"use_clipping": False}, {"clip_lambda": None}),
    ("ademamix", {"alpha": 3.7}, {"alpha": 3.7}),
    ("adan", {}, {}),
], ids=label)  # fmt: skip
def test_reference_equals_pytorch_optimizer(rule, variant, theirs, mode, maximize):
    """Theirs starts Yogi's m as its v, and clips ADOPT at t^(1/4), by one step more than the paper:
    both are given here. Their Adan has the paper's proximal decay in the place of L2; its
    `maximize` takes the first change of the gradient as -2 g, so it climbs by gradients of the
    other sign here."""
    ours = hyper(rule, variant) | {"decay_mode": mode}
    grads, start = gradients()
    shared = hyper(rule, {})
    if rule == "adan" and mode == "l2":
        proximal = st.regularize.elastic_net(shared["weight_decay"], 0.0, proximal=True)
        ours |= {"weight_decay": 0.0, "regularize": proximal}
    given = path(
        rule, ours | {"maximize": maximize}, grads, start,
        put={"exp_avg": 0.013} if rule == "yogi" else None,
    )  # fmt: skip
    turned = maximize and rule == "adan"
    peer = peer_path(
        RULES[rule].__name__, -grads if turned else grads, start,
        weight_decouple=mode == "decoupled", maximize=maximize and not turned, **shared, **theirs,
    )  # fmt: skip
    np.testing.assert_allclose(given, peer, **CLOSE)


@pytest.mark.torch
@pytest.mark.parametrize("maximize", [False, True])
def test_grams_equals_pytorch_optimizer(maximize):
    """Whose L2 decay comes when the gradient has been used, and does nothing."""
    arguments = hyper("grams", {})
    grads, start = gradients()
    given = path("grams", arguments | {"maximize": maximize}, grads, start)
    peer = peer_path("Grams", grads, start, maximize=maximize, **arguments)
    np.testing.assert_allclose(given, peer, **CLOSE)


@pytest.mark.torch
@pytest.mark.parametrize("maximize", [False, True])
def test_laprop_equals_pytorch_optimizer(maximize):
    """Theirs unbiases √v + eps, where paper and authors unbias √v alone, and decays afterwards. It
    also adds 1e-15 to v: the gradients are enlarged here, and eps with them, until that is lost."""
    grads, start = gradients()
    grads *= 1e4
    shared = hyper("laprop", {"eps": 0.31})
    b2, decay = shared["betas"][1], shared.pop("weight_decay")
    eps = shared["eps"]
    ours = shared | {"eps": lambda t: eps / np.sqrt(1 - b2 ** (t + 1)), "maximize": maximize}
    given = path("laprop", ours, grads, start, after=1 - shared["lr"] * decay)
    peer = peer_path("LaProp", grads, start, weight_decay=decay, maximize=maximize, **shared)
    np.testing.assert_allclose(given, peer, **CLOSE)


@pytest.mark.torch
def test_ademamix_with_its_schedules_equals_pytorch_optimizer():
    grads, start = gradients()
    shared = hyper("ademamix", {})
    b1, b2, b3 = shared["betas"]
    ours = shared | {
        "betas": (b1, b2, schedules.ademamix_beta3(b3, steps=60, start=b1)),
        "alpha": schedules.ademamix_alpha(3.7, steps=60),
    }
    peer = peer_path(
        "AdEMAMix", grads, start, alpha=3.7, t_alpha_beta3=60, weight_decouple=True, **shared
    )
    np.testing.assert_allclose(path("ademamix", ours, grads, start), peer, **CLOSE)


# optax


def optax_path(make, grads, start):
    """By one of optax's transformations, none of which decays here."""
    optax = pytest.importorskip("optax")
    import jax

    jax.config.update("jax_enable_x64", True)
    opt = make(optax)
    p = jax.numpy.asarray(start)
    state = opt.init(p)
    update = jax.jit(opt.update)
    found = []
    for g in grads:
        updates, state = update(jax.numpy.asarray(g), state, p)
        p = optax.apply_updates(p, updates)
        found.append(np.asarray(p))
    return np.array(found)


def optax_twin(rule, optax, a):
    lr, eps = a["lr"], a["eps"]
    betas = dict(zip(("b1", "b2", "b3"), a["betas"], strict=False))
    if rule == "adabelief":
        return optax.adabelief(lr, **betas, eps=eps, eps_root=eps)
    if rule == "yogi":
        scaled = optax.scale_by_yogi(**betas, eps=eps, initial_accumulator_value=0.013)
        return optax.chain(scaled, optax.scale(-lr))
    if rule == "adopt":
        return optax.contrib.adopt(lr, **betas, eps=eps, use_clipping=a.get("use_clipping", True))
    return optax.contrib.ademamix(
        lr, **betas, alpha=a["alpha"], eps=eps, weight_decay=a["weight_decay"]
    )


@pytest.mark.torch
@pytest.mark.parametrize(("rule", "variant"), [
    ("adabelief", {}),
    ("yogi", {"initial_accumulator_value": 0.013}),
    ("adopt", {}),
    ("adopt", {"use_clipping": False}),
    ("ademamix", {"alpha": 3.7}),
], ids=label)  # fmt: skip
def test_reference_equals_optax(rule, variant):
    grads, start = gradients()
    a = hyper(rule, variant)
    if rule != "ademamix":
        a["weight_decay"] = 0.0
    put = {"exp_avg": 0.013} if rule == "yogi" else None
    peer = optax_path(lambda optax: optax_twin(rule, optax, a), grads, start)
    np.testing.assert_allclose(path(rule, a, grads, start, put), peer, **CLOSE)


@pytest.mark.torch
def test_optax_weighs_the_change_in_adan_by_one_minus_beta():
    """Where the paper has 1 - β₂ in its own letters, which is β₂ in those that optax uses."""
    grads, start = gradients()
    a = hyper("adan", {}) | {"weight_decay": 0.0}
    b1, b2, b3 = a["betas"]

    def make(optax):
        return optax.adan(a["lr"], b1=b1, b2=b2, b3=b3, eps=a["eps"], eps_root=0.0)

    peer = optax_path(make, grads, start)
    np.testing.assert_allclose(
        paper_path("adan", a | {"weight": 1 - b2}, grads, start), peer, **CLOSE
    )
    assert np.abs(path("adan", a, grads, start) - peer).max() > 1e-3


# Descent


def rosenbrock(w):
    x, y = w
    return (1 - x) ** 2 + 100 * (y - x * x) ** 2


def slope(w):
    x, y = w
    return np.array([-2 * (1 - x) - 400 * x * (y - x * x), 200 * (y - x * x)])


@pytest.mark.parametrize("rule", sorted(FAMILY))
def test_descends_rosenbrock(rule):
    """From 24.2 at the usual start to a thousandth of that, with a rate that falls to 0."""
    w = np.array([-1.2, 1.0])
    # The long memories of these two are for long runs.
    short = {"adopt": {"betas": (0.9, 0.99)}, "ademamix": {"betas": (0.9, 0.999, 0.99)}}
    opt = RULES[rule](w, lr=schedules.cosine(0.03, steps=3000), **short.get(rule, {}))
    for _ in range(3000):
        opt.step(slope(w))
    assert rosenbrock(w) < 0.0242


def test_the_oracles_name_every_argument():
    """A new argument of one of these rules is to be given above; conventions have their file."""
    common = {"self", "params", "options", "lr", "betas", "eps", "weight_decay", "convention"}
    own = {n for rule in FAMILY for n in inspect.signature(RULES[rule]).parameters}
    named = {
        "initial_accumulator_value", "bias_correction", "use_clipping", "alpha", "a", "b", "rho",
    }  # fmt: skip
    assert own - common == named
