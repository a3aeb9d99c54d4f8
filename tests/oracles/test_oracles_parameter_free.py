"""Rules that find their own rate, in float64, against their papers and others' versions.

Nothing is at its default. Parameters of several sizes and shapes step together; one of them lacks
some of its gradients, and some are in groups with other rates. Gradients have a common direction at
first, so that estimates grow. The tolerance 1e-11 is for 100 steps of differently ordered roundings
in float64, of which each rate hands its own on to all further ones; atol stands for elements, of 10
or so, that come close to 0.
"""

import math

import numpy as np
import pytest
from cases import VARIANTS, hyper, label, same_bits

import steepest as st
from steepest import reference
from steepest.optimizers import RULES, parameter_free

CLOSE = {"rtol": 1e-11, "atol": 1e-11}
STEPS = 100
SHAPES = [(5,), (7, 3), (1,), (2, 30, 20)]
FAMILY = {getattr(parameter_free, name).rule for name in parameter_free.__all__}
FORMS = [(rule, hyper(rule, v)) for rule in sorted(FAMILY) for v in VARIANTS.get(rule, [{}])]
TUNED = ("prodigy", "dadaptadam")


def problem(lacking=True):
    rng = np.random.default_rng(5)
    grads = []
    slopes = [rng.standard_normal(s) for s in SHAPES]
    for t in range(STEPS):
        common = 1.0 if t < 9 else rng.uniform(-1, 1)
        now = [
            common * x + rng.standard_normal(x.shape) * 10.0 ** rng.uniform(-3, 0) for x in slopes
        ]
        if lacking and t % 3 == 1:
            now[1] = None
        grads.append(now)
    return grads, [rng.standard_normal(s) for s in SHAPES]


def flat(arrays):
    return np.concatenate([np.ravel(x) for x in arrays])


def path(rule, arguments, grads, start, rates=None):
    """All parameters after each step, and the groups' numbers at the end."""
    params = [p.copy() for p in start]
    given = params
    if rates is not None:
        given = [{"params": [p], "lr": lr} for p, lr in zip(params, rates, strict=True)]
    opt = RULES[rule](given, **arguments)
    found = []
    for now in grads:
        opt.step(now if rates is None else [[g] for g in now])
        found.append(flat(params))
    return np.array(found), opt


# The papers, written down for one long vector, of which `on` is the part that has a gradient


class Dog:
    def __init__(self, x, a):
        self.start, self.a = x.copy(), a
        self.far = self.total = 0.0

    def rate(self, x, g, on, t):
        a = self.a
        if not self.far:
            self.far = a["reps_rel"] * (1 + np.linalg.norm(x[on]))
        self.far = max(self.far, np.linalg.norm((x - self.start)[on]))
        self.total += (g[on] ** 2).sum()
        return self.far / math.sqrt(self.total + a["eps"])

    def step(self, x, g, on, t, lr, decay):
        return lr * self.rate(x, g, on, t) * (g + decay * x)


class Dowg(Dog):
    def rate(self, x, g, on, t):
        a = self.a
        self.far = max(self.far or a.get("init_estim_sq_dist") or a["eps"],
                       ((x - self.start)[on] ** 2).sum())  # fmt: skip
        self.total += self.far * (g[on] ** 2).sum()
        return self.far / (math.sqrt(self.total) + a["eps"])


class Adaptive:
    def __init__(self, x, a):
        self.start, self.a = x.copy(), a
        self.m, self.v, self.s = (np.zeros_like(x) for _ in range(3))
        self.d = self.most = a["d0"]
        self.numerator = 0.0
        self.growth = a.get("growth_rate", math.inf)

    def rates(self, t, lr):
        b1, b2 = self.a["betas"]
        right = np.sqrt(1 - b2**t) / (1 - b1**t) if self.a.get("use_bias_correction") else 1.0
        return self.d * lr * right


class Prodigy(Adaptive):
    def step(self, x, g, on, t, lr, decay):
        a, d, (b1, b2) = self.a, self.d, self.a["betas"]
        b3 = a.get("beta3") or math.sqrt(b2)
        rate = self.rates(t, lr)
        weight = d / a["d0"] * rate
        self.numerator = b3 * self.numerator + (weight * g * (self.start - x))[on].sum()
        m, v, s = self.m, self.v, self.s
        m[on] = (b1 * m + (1 - b1) * d * g)[on]
        v[on] = (b2 * v + (1 - b2) * d**2 * g**2)[on]
        fresh = d / a["d0"] * (d * np.sign(lr) if a.get("safeguard_warmup") else rate)
        s[on] = (b3 * s + fresh * g)[on]
        found = a.get("d_coef", 1.0) * self.numerator / np.abs(s[on]).sum()
        if d == a["d0"]:
            self.d = max(d, found)
        self.most = max(self.most, found)
        self.d = min(self.most, self.d * self.growth)
        return rate * (m / (np.sqrt(v) + self.d * a["eps"]) + decay * x)


class DAdaptAdam(Adaptive):
    def step(self, x, g, on, t, lr, decay):
        a, (b1, b2) = self.a, self.a["betas"]
        b3 = math.sqrt(b2)
        rate = self.rates(t, lr)
        m, v, s = self.m, self.v, self.s
        product = (rate * g * s / (np.sqrt(v) + a["eps"]))[on].sum()
        self.numerator = b3 * self.numerator + (1 - b3) * product
        m[on] = (b1 * m + (1 - b1) * rate * g)[on]
        v[on] = (b2 * v + (1 - b2) * g**2)[on]
        s[on] = (b3 * s + (1 - b3) * rate * g)[on]
        found = self.numerator / ((1 - b3) * np.abs(s[on]).sum())
        self.d = max(self.d, min(found, self.d * self.growth))
        return m / (np.sqrt(v) + a["eps"]) + rate * decay * x


PAPERS = {"dog": Dog, "ldog": Dog, "dowg": Dowg, "prodigy": Prodigy, "dadaptadam": DAdaptAdam}


def paper_path(rule, a, grads, start, rates=None):
    spread = [np.full(p.size, i) for i, p in enumerate(start)]
    which, x = np.concatenate(spread), flat(start)
    lr = a["lr"] if rates is None else np.array(rates)[which]
    parts = [which == i for i in range(len(start))] if rule == "ldog" else [which >= 0]
    papers = [PAPERS[rule](x, a) for _ in parts]
    count, found = np.zeros(x.size), []
    for now in grads:
        g = flat(p * 0 if y is None else y for p, y in zip(start, now, strict=True))
        on = np.concatenate(
            [np.full(p.size, y is not None) for p, y in zip(start, now, strict=True)]
        )
        count += on
        g = -g if a.get("maximize") else g
        decay = a["weight_decay"]
        if a.get("decay_mode", RULES[rule].decay_mode) == "l2":
            g, decay = g + decay * x, 0.0
        new = x.copy()
        for part, paper in zip(parts, papers, strict=True):
            here = on & part
            if here.any():
                step = paper.step(x, g, here, np.maximum(count, 1), lr, decay)
                new[here] = (x - step)[here]
        x = new
        found.append(x)
    return np.array(found), papers[0]


def test_every_rule_has_a_formula():
    assert set(PAPERS) == FAMILY


@pytest.mark.parametrize("options", [{}, {"maximize": True}, {"decay_mode": "l2"},
                                     {"decay_mode": "decoupled"}], ids=str)  # fmt: skip
@pytest.mark.parametrize(("rule", "arguments"), FORMS, ids=label)
def test_rule_equals_the_paper(rule, arguments, options):
    grads, start = problem()
    a = arguments | options
    ours, opt = path(rule, a, grads, start)
    papers, paper = paper_path(rule, a, grads, start)
    np.testing.assert_allclose(ours, papers, **CLOSE)
    if rule in TUNED:
        assert opt.param_groups[0]["d"] == pytest.approx(paper.d, rel=1e-11)
        assert paper.d > 2 * a["d0"]


@pytest.mark.parametrize("rates", [(1.3, 0.3, 0.7, 1.1), (0.9, 0.0, 0.9, 0.9)], ids=str)
@pytest.mark.parametrize(("rule", "arguments"), FORMS, ids=label)
def test_groups_with_other_rates_share_the_sums(rule, arguments, rates):
    grads, start = problem()
    ours, opt = path(rule, arguments, grads, start, rates)
    np.testing.assert_allclose(ours, paper_path(rule, arguments, grads, start, rates)[0], **CLOSE)
    for key in opt._groups[0].shared:
        assert len({group[key] for group in opt.param_groups}) == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("rule", "arguments"), [f for f in FORMS if f[0] in TUNED], ids=label)
def test_groups_with_other_rates_have_the_bits_of_the_reference(rule, arguments, dtype):
    grads, start = problem()
    rates = [1.3, 0.3, 0.0, 1.1]
    start = [p.astype(dtype) for p in start]
    twins = [p.copy() for p in start]
    groups = [{"params": [p], "lr": lr} for p, lr in zip(start, rates, strict=True)]
    opt = RULES[rule](groups, **arguments)
    states = [{k: x.copy() for k, x in opt.state[name].items()} for name in opt.state]
    shared = {key: opt.param_groups[0][key] for key in opt._groups[0].shared}
    options = st.core.common_options.GROUP_OPTIONS
    own = ("lr", "weight_decay", *options)
    h = {k: x for k, x in opt.param_groups[0].items() if k in opt.defaults and k not in own}
    function = reference.RULES[rule]
    for now in grads:
        now = [None if g is None else g.astype(dtype) for g in now]
        opt.step([[g] for g in now])
        on = [i for i, g in enumerate(now) if g is not None]
        for i in on:
            states[i]["step"] += 1
        decay = {"decay": arguments["weight_decay"]}
        given = [now[i] for i in on]
        if RULES[rule].decay_mode == "l2":
            given = [g + dtype(decay["decay"]) * twins[i] for i, g in zip(on, given, strict=True)]
            decay = {"decay": 0.0}
        function(
            [twins[i] for i in on], given, [states[i] for i in on],
            [int(states[i]["step"]) for i in on], shared=shared, lr=[rates[i] for i in on],
            **h, **decay,
        )  # fmt: skip
    for p, twin in zip(start, twins, strict=True):
        same_bits(p, twin)
    assert {key: opt.param_groups[3][key] for key in shared} == shared


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


def optax_twin(rule, optax, a):
    lr, decay, eps = a["lr"], a["weight_decay"], a["eps"]
    if rule == "dog":
        start = ("heuristic", a["reps_rel"])
        return optax.contrib.dog(lr, init_step=start, eps=eps, weight_decay=decay)
    if rule == "dowg":
        return optax.contrib.dowg(lr, a.get("init_estim_sq_dist"), eps=eps, weight_decay=decay)
    if rule == "prodigy":
        return optax.contrib.prodigy(
            lr, a["betas"], beta3=a.get("beta3"), eps=eps, estim_lr0=a["d0"],
            estim_lr_coef=a.get("d_coef", 1.0), weight_decay=decay,
            safeguard_warmup=a.get("safeguard_warmup", False),
        )  # fmt: skip
    return optax.contrib.dadapt_adamw(lr, a["betas"], eps, estim_lr0=a["d0"], weight_decay=decay)


@pytest.mark.torch
@pytest.mark.parametrize(("rule", "variant"), [
    ("dog", {"reps_rel": 0.013, "lr": 0.83}),
    ("dowg", {"lr": 0.83}),
    ("dowg", {"lr": 0.83, "init_estim_sq_dist": 0.0013}),
    ("prodigy", {"lr": 1.3, "d0": 0.013, "beta3": 0.93, "d_coef": 1.7}),
    ("prodigy", {"lr": 1.3, "d0": 0.013, "safeguard_warmup": True}),
    ("dadaptadam", {"lr": 1.3, "d0": 0.013}),
], ids=label)  # fmt: skip
def test_rule_equals_optax(rule, variant):
    """optax's last two always have the bias correction and decoupled decay."""
    grads, start = problem(lacking=False)
    a = hyper(rule, variant)
    peer = optax_path(lambda optax: optax_twin(rule, optax, a), grads, start)
    if rule in TUNED:
        a |= {"use_bias_correction": True, "decay_mode": "decoupled"}
    np.testing.assert_allclose(path(rule, a, grads, start)[0], peer, **CLOSE)


@pytest.mark.torch
def test_ldog_equals_a_dog_of_optax_for_each():
    grads, start = problem(lacking=False)
    a = hyper("ldog", {"reps_rel": 0.013, "lr": 0.83})
    each = [
        optax_path(lambda optax: optax_twin("dog", optax, a), [[now[i]] for now in grads], [p])
        for i, p in enumerate(start)
    ]
    ours = path("ldog", a, grads, start)[0]
    np.testing.assert_allclose(ours, np.concatenate(each, axis=1), **CLOSE)


# The authors' packages


def authors_path(module, name, arguments, grads, start):
    torch = pytest.importorskip("torch")
    package = pytest.importorskip(module)
    params = [torch.tensor(p, requires_grad=True) for p in start]
    rates = arguments.pop("rates", None)
    given = params
    if rates is not None:
        given = [{"params": [p], "lr": lr} for p, lr in zip(params, rates, strict=True)]
    opt = getattr(package, name)(given, **arguments)
    found = []
    for now in grads:
        for p, g in zip(params, now, strict=True):
            p.grad = None if g is None else torch.tensor(g)
        opt.step()
        found.append(flat(p.detach().numpy() for p in params))
    return np.array(found), opt.param_groups[0]["d"]


PACKAGES = {"prodigy": ("prodigyopt", "Prodigy"), "dadaptadam": ("dadaptation", "DAdaptAdam")}


@pytest.mark.torch
@pytest.mark.parametrize("decouple", [False, True])
@pytest.mark.parametrize("still", [False, True])
@pytest.mark.parametrize(("rule", "arguments"), [f for f in FORMS if f[0] in TUNED], ids=label)
def test_rule_equals_the_authors_package(rule, arguments, decouple, still):
    """`still`: with a group at lr = 0, which the authors' decoupled decay shrinks all the same.

    They count steps of the optimizer, not of the parameter, so gradients are lacking only where no
    count matters."""
    if still and decouple:
        arguments = arguments | {"weight_decay": 0.0}
    grads, start = problem(lacking=not arguments.get("use_bias_correction"))
    rates = [1.3, 1.3, 0.0, 1.3] if still else None
    theirs = arguments | {"decouple": decouple, "rates": rates}
    peer, d = authors_path(*PACKAGES[rule], theirs, grads, start)
    a = arguments | {"decay_mode": "decoupled" if decouple else "l2"}
    ours, opt = path(rule, a, grads, start, rates)
    np.testing.assert_allclose(ours, peer, **CLOSE)
    assert opt.param_groups[0]["d"] == pytest.approx(d, rel=1e-11)


# At the edges


@pytest.mark.parametrize("rule", TUNED)
def test_d_stays_while_all_gradients_are_zero(rule):
    p = np.ones(3)
    opt = RULES[rule](p, d0=0.01)
    opt.step(np.zeros(3))
    assert p.tolist() == [1.0, 1.0, 1.0]
    assert opt.param_groups[0]["d"] == 0.01


@pytest.mark.parametrize("rule", TUNED)
def test_d_outlives_a_nan(rule):
    params = [np.ones(3), np.ones(3)]
    opt = RULES[rule](params, d0=0.01)
    for _ in range(5):
        opt.step([np.ones(3), np.ones(3)])
    d = opt.param_groups[0]["d"]
    assert d > 0.01
    for bad in (np.nan, 1.0):
        opt.step([np.array([bad, 1.0, 1.0]), np.ones(3)])
    assert opt.param_groups[0]["d"] == d
    assert np.isnan(params[0][0]) and np.isfinite(params[0][1:]).all()
    assert np.isfinite(params[1]).all()


@pytest.mark.parametrize("rule", ["dog", "ldog", "dowg"])
def test_zero_gradients_move_nothing_even_without_eps(rule):
    p = np.ones(3)
    RULES[rule](p, eps=0.0).step(np.zeros(3))
    assert p.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("rule", ["dog", "ldog", "dowg"])
def test_a_nan_stays_in_a_distance(rule):
    p = np.ones(3)
    opt = RULES[rule](p)
    opt.step(np.array([np.nan, 1.0, 1.0]))
    assert np.isnan(p).all()
    opt.step(np.ones(3))
    assert np.isnan(p).all()
    skipping = RULES[rule](np.ones(3), nonfinite="skip")
    skipping.step(np.array([np.nan, 1.0, 1.0]))
    assert skipping.skipped == 1


@pytest.mark.parametrize("rule", sorted(FAMILY))
def test_empty_parameters_are_left_alone(rule):
    params, alone = [np.ones((0, 3)), np.ones(3)], np.ones(3)
    opt, twin = RULES[rule](params), RULES[rule](alone)
    for _ in range(3):
        opt.step([np.ones((0, 3)), np.ones(3)])
        twin.step(np.ones(3))
    assert params[1].tolist() == alone.tolist() != [1.0, 1.0, 1.0]
    RULES[rule](np.ones(0)).step(np.ones(0))


@pytest.mark.parametrize("rule", TUNED)
def test_growth_is_limited(rule):
    p = np.ones(3)
    opt = RULES[rule](p, d0=0.01, growth_rate=1.5)
    found = [0.01]
    for _ in range(20):
        opt.step(np.array([1.0, -2.0, 3.0]))
        found.append(opt.param_groups[0]["d"])
    ratios = np.array(found[1:]) / np.array(found[:-1])
    risen = np.flatnonzero(ratios > 1)
    later = ratios[risen[0] + 1 :] if rule == "prodigy" else ratios
    assert later.max() == pytest.approx(1.5, rel=1e-14)


@pytest.mark.parametrize("rule", TUNED)
@pytest.mark.parametrize(("name", "bad"), [("d0", 0.0), ("d0", -1.0), ("growth_rate", 0.9)])
def test_bad_arguments_are_refused(rule, name, bad):
    with pytest.raises(ValueError, match=name):
        RULES[rule](np.ones(2), **{name: bad})


@pytest.mark.parametrize(("rule", "name", "value"), [
    ("prodigy", "betas", (0.8, 0.9)), ("prodigy", "beta3", 0.5), ("prodigy", "d0", 0.1),
    ("prodigy", "d_coef", 0.5), ("prodigy", "growth_rate", 2.0), ("dadaptadam", "growth_rate", 2.0),
    ("dadaptadam", "betas", (0.8, 0.9)), ("dog", "reps_rel", 0.1),
    ("dowg", "init_estim_sq_dist", 0.1),
], ids=str)  # fmt: skip
def test_groups_do_not_differ_in_what_an_estimate_follows_from(rule, name, value):
    params = [np.ones(2), np.ones(3)]
    opt = RULES[rule]([{"params": params[0]}, {"params": params[1], name: value}])
    with pytest.raises(ValueError, match=f"{name} of group 1"):
        opt.step([np.ones(2), np.ones(3)])
    assert flat(params).tolist() == [1.0] * 5
    opt.param_groups[0][name] = value
    opt.param_groups[1] |= {key: opt.param_groups[0][key] for key in opt._groups[0].shared}
    opt.step([np.ones(2), np.ones(3)])
    assert (flat(params) < 1.0).all()


def test_no_beta3_is_the_root_of_beta2():
    found = []
    for beta3 in (None, math.sqrt(0.97)):
        p = np.ones(3)
        opt = st.Prodigy(p, betas=(0.9, 0.97), beta3=beta3, d0=0.01)
        for k in range(20):
            opt.step(np.array([1.0, -2.0, 3.0 + k]))
        found.append(p.tolist())
    assert found[0] == found[1]


@pytest.mark.parametrize("rule", sorted(FAMILY))
def test_numbers_are_saved_and_resumed(rule):
    grads, start = problem()
    a = hyper(rule, VARIANTS[rule][-1])
    whole, _ = path(rule, a, grads[:20], start)
    params = [p.copy() for p in start]
    opt = RULES[rule](params, **a)
    for now in grads[:10]:
        opt.step(now)
    resumed = RULES[rule](params, **hyper(rule, {}))
    resumed.load_state_dict(opt.state_dict())
    for now in grads[10:20]:
        resumed.step(now)
    same_bits(flat(params), whole[-1])


@pytest.mark.parametrize("rule", sorted(FAMILY))
def test_rosenbrock_descends_at_its_default_rate(rule):
    def value(w):
        return (1 - w[0]) ** 2 + 100 * (w[1] - w[0] ** 2) ** 2

    w = np.array([-1.2, 1.0])
    opt = RULES[rule](w)
    first = value(w)
    for _ in range(3000):
        x, y = w
        opt.step(np.array([-2 * (1 - x) - 400 * x * (y - x * x), 200 * (y - x * x)]))
    assert value(w) < first / 5
