"""Rules by norms over a parameter, in float64, against their papers and others' versions.

Nothing is at its default. Parameters of several sizes and shapes step together, and one of them
lacks some of its gradients. The tolerance 1e-12 is for 100 steps of differently ordered roundings
in float64; atol stands for elements that come close to 0.
"""

import math

import numpy as np
import pytest
from cases import VARIANTS, hyper, label

import steepest as st
from steepest.optimizers import RULES, layerwise

CLOSE = {"rtol": 1e-12, "atol": 1e-14}
STEPS = 100
SHAPES = [(5,), (7, 3), (1,), (2, 30, 20)]
FAMILY = {getattr(layerwise, name).rule for name in layerwise.__all__}
FORMS = [(rule, hyper(rule, v)) for rule in sorted(FAMILY) for v in VARIANTS.get(rule, [{}])]


def problem(lacking=True, shapes=SHAPES):
    """Gradients of changing size for each step, and where to start."""
    rng = np.random.default_rng(11)
    grads = []
    for t in range(STEPS):
        now = [rng.standard_normal(s) * 10.0 ** rng.uniform(-3, 1, s) + 0.1 for s in shapes]
        if lacking and t % 3 == 1:
            now[1] = None
        grads.append(now)
    return grads, [rng.standard_normal(s) for s in shapes]


def flat(arrays):
    return np.concatenate([np.ravel(x) for x in arrays])


def path(rule, arguments, grads, start):
    """All parameters after each step."""
    params = [p.copy() for p in start]
    opt = RULES[rule](params, **arguments)
    found = []
    for now in grads:
        opt.step(now)
        found.append(flat(params))
    return np.array(found)


# The papers, written down: each returns what is to be subtracted from p


def norm(x):
    return math.sqrt((x * x).sum())


def lamb(p, g, t, s, a, decay):
    b1, b2 = a["betas"]
    s.m = b1 * s.m + (1 - b1) * g
    s.v = b2 * s.v + (1 - b2) * g**2
    m, v = s.m, s.v
    if a.get("bias_correction", True):
        m, v = m / (1 - b1**t), v / (1 - b2**t)
    r = m / (np.sqrt(v) + a["eps"]) + decay * p
    if not a.get("adapt", True):
        return a["lr"] * r
    return a["lr"] * np.clip(norm(p), *a.get("norm_bounds", (0, np.inf))) / norm(r) * r


def lars(p, g, t, s, a, decay):
    ratio = 1.0
    if a.get("adapt", True):
        trust = a.get("trust_coefficient", 0.001)
        ratio = trust * norm(p) / (norm(g) + decay * norm(p) + a["eps"])
        if a.get("trust_clip"):
            ratio = min(ratio / a["lr"], 1.0)
    x = a["lr"] * ratio * (g + decay * p)
    s.m = a["momentum"] * s.m + x
    return x + a["momentum"] * s.m if a.get("nesterov") else s.m


def novograd(p, g, t, s, a, decay):
    b1, b2 = a["betas"]
    s.v = norm(g) ** 2 if t == 1 else b2 * s.v + (1 - b2) * norm(g) ** 2
    x = g / (np.sqrt(s.v) + a["eps"]) + decay * p
    averaging = a.get("grad_averaging") and t > 1
    s.m = b1 * s.m + ((1 - b1) * x if averaging else x)
    return a["lr"] * s.m


def stableadamw(p, g, t, s, a, decay):
    b1, b2 = (b * (1 - b ** (t - 1)) / (1 - b**t) for b in a["betas"])
    s.m = b1 * s.m + (1 - b1) * g
    s.v = b2 * s.v + (1 - b2) * g**2
    rms = math.sqrt(np.mean(g**2 / np.maximum(s.v, a["eps"] ** 2)))
    rate = a["lr"] / max(1, rms / a.get("clip_threshold", 1.0))
    return rate * decay * p + rate * s.m / (np.sqrt(s.v) + a["eps"])


def fromage(p, g, t, s, a, decay):
    start, p = p, p - a["lr"] * decay * p
    return start - (p - a["lr"] * norm(p) / norm(g) * g) / math.sqrt(1 + a["lr"] ** 2)


PAPERS = {f.__name__: f for f in (lamb, lars, novograd, stableadamw, fromage)}


class Moments:
    m = v = 0.0


def paper_path(rule, a, grads, start):
    params, states, counts = list(start), [Moments() for _ in start], [0] * len(start)
    found = []
    for now in grads:
        for i, (p, g) in enumerate(zip(params, now, strict=True)):
            if g is None:
                continue
            counts[i] += 1
            g = -g if a.get("maximize") else g
            decay = a["weight_decay"]
            if a.get("decay_mode") == "l2":
                g, decay = g + decay * p, 0.0
            params[i] = p - PAPERS[rule](p, g, counts[i], states[i], a, decay)
        found.append(flat(params))
    return np.array(found)


def test_every_rule_has_a_formula():
    assert set(PAPERS) == FAMILY


@pytest.mark.parametrize("options", [{}, {"maximize": True}, {"decay_mode": "l2"}], ids=str)
@pytest.mark.parametrize(("rule", "arguments"), FORMS, ids=label)
def test_rule_equals_the_paper(rule, arguments, options):
    grads, start = problem()
    a = arguments | options
    ours = path(rule, a, grads, start)
    assert np.isfinite(ours).all()
    np.testing.assert_allclose(ours, paper_path(rule, a, grads, start), **CLOSE)


# optax


def optax_path(make, grads, start):
    optax = pytest.importorskip("optax")
    import jax

    jax.config.update("jax_enable_x64", True)
    opt = make(optax)
    p = [jax.numpy.asarray(x) for x in start]
    state = opt.init(p)
    update = jax.jit(opt.update)
    found = []
    for now in grads:
        updates, state = update([jax.numpy.asarray(g) for g in now], state, p)
        p = optax.apply_updates(p, updates)
        found.append(flat(p))
    return np.array(found)


@pytest.mark.torch
def test_lamb_equals_optax():
    grads, start = problem(lacking=False)
    a = hyper("lamb", {})
    (b1, b2), lr, decay = a["betas"], a["lr"], a["weight_decay"]
    peer = optax_path(
        lambda optax: optax.lamb(lr, b1=b1, b2=b2, eps=a["eps"], weight_decay=decay), grads, start
    )
    np.testing.assert_allclose(path("lamb", a, grads, start), peer, **CLOSE)


@pytest.mark.torch
def test_fromage_equals_optax():
    grads, start = problem(lacking=False)
    peer = optax_path(lambda optax: optax.fromage(0.071, min_norm=0.0), grads, start)
    np.testing.assert_allclose(path("fromage", {"lr": 0.071}, grads, start), peer, **CLOSE)


@pytest.mark.torch
@pytest.mark.parametrize("nesterov", [False, True])
def test_lars_with_the_norm_of_the_decayed_gradient_equals_optax(nesterov):
    """optax divides by ‖g + λp‖, where the paper has ‖g‖ + λ‖p‖."""
    grads, start = problem(lacking=False)
    a = hyper("lars", {"lr": 0.71, "momentum": 0.87, "trust_coefficient": 0.013})
    a["nesterov"] = nesterov

    def make(optax):
        return optax.lars(
            a["lr"], a["weight_decay"], trust_coefficient=0.013, eps=a["eps"], momentum=0.87,
            nesterov=nesterov,
        )  # fmt: skip

    peer = optax_path(make, grads, start)
    ours = path("lars", a | {"decay_mode": "l2"}, grads, start)
    np.testing.assert_allclose(ours, peer, **CLOSE)
    assert np.abs(path("lars", a, grads, start) - peer).max() > 1e-6


@pytest.mark.torch
def test_novograd_equals_optax():
    grads, start = problem(lacking=False)
    a = hyper("novograd", {})
    (b1, b2), lr, decay = a["betas"], a["lr"], a["weight_decay"]
    peer = optax_path(
        lambda optax: optax.novograd(lr, b1=b1, b2=b2, eps=a["eps"], weight_decay=decay),
        grads, start,
    )  # fmt: skip
    np.testing.assert_allclose(path("novograd", a, grads, start), peer, **CLOSE)


# pytorch_optimizer


def kozistr_path(name, arguments, grads, start):
    torch = pytest.importorskip("torch")
    peers = pytest.importorskip("pytorch_optimizer")
    params = [torch.tensor(p, requires_grad=True) for p in start]
    opt = getattr(peers, name)(params, **arguments)
    found = []
    for now in grads:
        for p, g in zip(params, now, strict=True):
            p.grad = None if g is None else torch.tensor(g)
        opt.step()
        found.append(flat(p.detach().numpy() for p in params))
    return np.array(found)


@pytest.mark.torch
@pytest.mark.parametrize("averaging", [False, True])
def test_novograd_equals_pytorch_optimizer(averaging):
    grads, start = problem()
    a = hyper("novograd", {"grad_averaging": averaging})
    peer = kozistr_path("NovoGrad", a, grads, start)
    np.testing.assert_allclose(path("novograd", a, grads, start), peer, **CLOSE)


@pytest.mark.torch
@pytest.mark.parametrize("maximize", [False, True])
def test_stableadamw_equals_pytorch_optimizer(maximize):
    """Which counts steps of the group, so that no gradient is left out here."""
    grads, start = problem(lacking=False)
    a = hyper("stableadamw", {}) | {"maximize": maximize}
    peer = kozistr_path("StableAdamW", a | {"kahan_sum": False}, grads, start)
    np.testing.assert_allclose(path("stableadamw", a, grads, start), peer, **CLOSE)


@pytest.mark.torch
def test_lars_equals_pytorch_optimizer():
    """With one lr; the peer's momentum comes before lr, it has no eps, and spares vectors."""
    grads, start = problem(shapes=[(5, 2), (7, 3), (1, 1), (2, 30, 20)])
    a = hyper("lars", {"lr": 0.71, "momentum": 0.87, "trust_coefficient": 0.013})
    del a["eps"]
    peer = kozistr_path("LARS", a, grads, start)
    np.testing.assert_allclose(path("lars", a | {"eps": 0.0}, grads, start), peer, **CLOSE)


# At the edges


@pytest.mark.parametrize("rule", ["lamb", "lars"])
def test_a_parameter_of_zeros_moves_as_without_the_ratio(rule):
    g = np.array([0.3, -0.4])
    found = []
    for adapt in (True, False):
        p = np.zeros(2)
        RULES[rule](p, lr=0.5, adapt=adapt).step(g)
        found.append(p)
    assert found[0].tolist() == found[1].tolist() != [0.0, 0.0]


def test_lamb_holds_the_norm_within_bounds():
    steps = []
    for bounds in [(0.0, np.inf), (2.0, np.inf), (0.0, 0.25)]:
        p = np.array([0.6, 0.8])
        st.LAMB(p, lr=1.0, eps=0.0, norm_bounds=bounds).step(np.array([1.0, 1.0]))
        steps.append(norm(p - np.array([0.6, 0.8])))
    np.testing.assert_allclose(steps, [1.0, 2.0, 0.25], rtol=1e-15)


@pytest.mark.parametrize("bad", [(2.0, 1.0), (-1.0, 1.0), (1.0,), 1.0])
def test_bad_bounds_are_refused(bad):
    with pytest.raises((TypeError, ValueError), match="norm_bounds"):
        st.LAMB(np.ones(2), norm_bounds=bad)


def test_larc_never_steps_further_than_lr():
    g = np.array([3.0, -4.0])
    for trust in (0.1, 100.0):
        p = np.array([30.0, 40.0])
        st.LARS(p, lr=0.5, momentum=0.0, trust_coefficient=trust, trust_clip=True, eps=0.0).step(g)
        rate = norm(p - np.array([30.0, 40.0])) / norm(g)
        assert rate == pytest.approx(min(0.5, trust * 50 / 5), rel=1e-14)


def test_nesterov_needs_momentum():
    with pytest.raises(ValueError, match="momentum"):
        st.LARS(np.ones(2), momentum=0.0, nesterov=True)


def test_novograd_leaves_a_parameter_alone_that_has_no_slope():
    p = np.ones(3)
    st.NovoGrad(p, eps=0.0).step(np.zeros(3))
    assert p.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("rule", sorted(FAMILY))
def test_nan_spreads_over_its_parameter_and_no_further(rule):
    params = [np.ones(3), np.ones(3)]
    RULES[rule](params).step([np.array([np.nan, 1.0, 1.0]), np.ones(3)])
    assert np.isnan(params[0]).all()
    assert (params[1] < 1).all()


@pytest.mark.parametrize("rule", sorted(FAMILY))
def test_empty_parameters_are_left_alone(rule):
    params = [np.ones((0, 3)), np.ones(3)]
    alone = np.ones(3)
    RULES[rule](params).step([np.ones((0, 3)), np.ones(3)])
    RULES[rule](alone).step(np.ones(3))
    assert params[1].tolist() == alone.tolist()


@pytest.mark.parametrize(("rule", "lr"), [("lamb", 0.02), ("lars", 0.5), ("novograd", 0.02),
                                          ("stableadamw", 0.05)])  # fmt: skip
def test_rosenbrock_descends(rule, lr):
    def value(w):
        return (1 - w[0]) ** 2 + 100 * (w[1] - w[0] ** 2) ** 2

    w = np.array([-1.2, 1.0])
    more = {"trust_coefficient": 0.01} if rule == "lars" else {}
    opt = RULES[rule](w, lr=lambda t: lr / (1 + 0.001 * t), **more)
    first = value(w)
    for _ in range(3000):
        x, y = w
        slope = np.array([-2 * (1 - x) - 400 * x * (y - x * x), 200 * (y - x * x)])
        opt.step(slope)
    assert value(w) < first / 20
