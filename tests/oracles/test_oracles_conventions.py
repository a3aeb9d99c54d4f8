"""The dialects of a rule, against the very packages that they are named after; nothing at its
default, and lr not constant.

The reference runs in float64; the kernels run beside it and have the same bits. The tolerance 1e-12
is for 100 steps of differently ordered roundings; atol stands for elements that come close to 0.
"""

import importlib.util
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import VARIANTS, hyper, label, reference_hyper, same_bits
from trajectories import gradients

import steepest as st
from steepest import reference
from steepest.cli import search_space, syntax
from steepest.optimizers import RULES

CLOSE = {"rtol": 1e-12, "atol": 1e-14}
DIALECTS = [(rule, name) for rule in RULES for name in RULES[rule].conventions]


def rates(arguments, steps):
    """An lr for each step: dialects that have it inside the momentum differ only by its changes."""
    return [arguments["lr"] * (0.5 + t % 3) for t in range(steps)]


def path(rule, arguments, grads, start):
    """The parameter after each step of the reference and, to the same bits, of the kernels."""
    plan = rates(arguments, len(grads))
    arguments = arguments | {"lr": lambda t: plan[t]}
    p, twin = start.copy(), start.copy()
    opt = RULES[rule](p, **arguments)
    state = {key: x.copy() for key, x in opt.state["0"].items()}
    h = reference_hyper(opt)
    found = []
    for t, g in enumerate(grads, 1):
        opt.step(g)
        reference.step(rule, twin, g, state, t, **h | {"lr": plan[t - 1]})
        same_bits(p, twin, f"{rule} at step {t}")
        found.append(p.copy())
    return np.array(found)


def faint(grads):
    """Gradients, of which some are 0 for long and some have squares that underflow to 0."""
    grads = grads.copy()
    grads[:40, :5] = 0.0
    grads[:30, 5:9] = 1e-170
    return grads


# optax


def optax_twin(optax, rule, a, lr):
    """optax's transformation for our arguments; without decay, which is added to the gradient."""
    eps = a.get("eps")
    betas = dict(zip(("b1", "b2", "b3"), a.get("betas", ()), strict=False))
    start = {"initial_accumulator_value": a.get("initial_accumulator_value")}
    if rule == "sgd":
        return optax.sgd(lr, momentum=a["momentum"], nesterov=a.get("nesterov", False))
    if rule == "adagrad":
        return optax.adagrad(lr, eps=eps, **start)
    if rule == "rmsprop":
        return optax.rmsprop(
            lr, decay=a["alpha"], eps=eps, momentum=a.get("momentum"),
            centered=a.get("centered", False),
        )  # fmt: skip
    if rule == "adam" and a.get("amsgrad"):
        return optax.amsgrad(lr, **betas, eps=eps)
    if rule == "adamw":
        return optax.adamw(lr, **betas, eps=eps, weight_decay=a["weight_decay"])
    if rule == "yogi":
        scaled = optax.scale_by_yogi(**betas, eps=eps, **start)
        return optax.chain(scaled, optax.scale_by_learning_rate(lr))
    if rule == "adan":
        return optax.adan(lr, **betas, eps=eps, eps_root=0.0)
    return getattr(optax, rule)(lr, **betas, eps=eps)


def optax_path(rule, a, grads, start):
    optax = pytest.importorskip("optax")
    import jax

    jax.config.update("jax_enable_x64", True)
    table = jax.numpy.asarray(rates(a, len(grads)))
    opt = optax_twin(optax, rule, a, lambda count: table[count])
    if rule != "adamw":
        opt = optax.chain(optax.add_decayed_weights(a["weight_decay"]), opt)
    p = jax.numpy.asarray(start)
    state = opt.init(p)
    update = jax.jit(opt.update)
    found = []
    for g in grads:
        updates, state = update(jax.numpy.asarray(g), state, p)
        p = optax.apply_updates(p, updates)
        found.append(np.asarray(p))
    return np.array(found)


IN_OPTAX = [
    ("sgd", {"momentum": 0.87}),
    ("sgd", {"momentum": 0.87, "nesterov": True}),
    ("adagrad", {"initial_accumulator_value": 0.07}),
    ("adagrad", {"initial_accumulator_value": 0.0, "eps": 0.0, "weight_decay": 0.0}),
    ("adagrad", {"initial_accumulator_value": 0.0, "weight_decay": 0.0}),
    ("rmsprop", {"alpha": 0.91}),
    ("rmsprop", {"alpha": 0.91, "centered": True}),
    ("rmsprop", {"alpha": 0.91, "momentum": 0.77}),
    ("rmsprop", {"alpha": 0.91, "momentum": 0.77, "centered": True}),
    ("adam", {}),
    ("adam", {"amsgrad": True}),
    ("adamw", {}),
    ("adamax", {}),
    ("nadam", {}),
    ("radam", {}),
    ("yogi", {"initial_accumulator_value": 0.013}),
    ("adan", {}),
]


@pytest.mark.torch
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(("rule", "variant"), IN_OPTAX, ids=label)
def test_the_dialect_of_optax(rule, variant, maximize):
    """optax's other small constant, eps_root, is 0 here, and so by its default except in Adan."""
    grads, start = gradients()
    if variant.get("weight_decay") == 0.0:
        grads = faint(grads)
    a = hyper(rule, variant)
    ours = {"convention": "optax", "maximize": maximize}
    ours["decay_mode"] = "decoupled" if rule == "adamw" else "l2"
    given = path(rule, a | ours, grads, start)
    sign = -1.0 if maximize else 1.0
    np.testing.assert_allclose(given, optax_path(rule, a, sign * grads, start), **CLOSE)


def test_optax_leaves_alone_what_has_no_sum():
    w = np.ones(4)
    opt = st.Adagrad(w, lr=0.5, eps=0.0, convention="optax")
    opt.step(np.array([0.0, -0.0, 1e-170, 2.0]))
    assert w.tolist() == [1.0, 1.0, 1.0, 0.5]


@pytest.mark.torch
@pytest.mark.parametrize("momentum", [0.87, 0.0])
def test_madgrad_of_optax(momentum):
    """optax takes the root of t in single precision: hence the tolerance. pytorch_optimizer, like
    the authors' code, adds eps to lr as well, and in double."""
    contrib = pytest.importorskip("optax.contrib")
    torch = pytest.importorskip("torch")
    peer = pytest.importorskip("pytorch_optimizer").MADGRAD
    grads, start = gradients()
    a = {"lr": 0.0137, "momentum": momentum, "eps": 1e-3}
    plan = rates(a, len(grads))
    given = path("madgrad", a | {"convention": "optax"}, grads, start)
    import jax

    jax.config.update("jax_enable_x64", True)
    table = jax.numpy.asarray(plan)
    opt = contrib.madgrad(lambda count: table[count], momentum=momentum, eps=1e-3)
    p = jax.numpy.asarray(start)
    state, found = opt.init(p), []
    update = jax.jit(opt.update)
    for g in grads:
        change, state = update(jax.numpy.asarray(g), state, p)
        p = p + change
        found.append(np.asarray(p))
    np.testing.assert_allclose(given, np.array(found), rtol=1e-5, atol=1e-6)

    twin = torch.nn.Parameter(torch.from_numpy(start.copy()))
    opt = peer([twin], **a, foreach=False)
    for t, g in enumerate(grads):
        twin.grad = torch.from_numpy(g.copy())
        opt.param_groups[0]["lr"] = plan[t]
        opt.step()
        np.testing.assert_allclose(given[t], twin.detach().numpy(), rtol=1e-11, atol=1e-13)


# Keras


KERAS = """
import json, sys
import keras, numpy as np
if keras.backend.backend() == "jax":
    import jax
    jax.config.update("jax_enable_x64", True)
keras.backend.set_floatx("float64")
cases, grads, start = json.load(sys.stdin)
for name, arguments, rates in cases:
    p = keras.Variable(np.array(start), dtype="float64")
    opt = getattr(keras.optimizers, name)(learning_rate=rates[0], **arguments)
    found = []
    for rate, g in zip(rates, grads):
        opt.learning_rate = rate
        opt.apply([keras.ops.convert_to_tensor(np.array(g))], [p])
        found.append(keras.ops.convert_to_numpy(p).tolist())
    print(json.dumps(found))
"""
IN_KERAS = [
    ("sgd", {"momentum": 0.87}),
    ("sgd", {"momentum": 0.87, "nesterov": True}),
    ("adagrad", {"initial_accumulator_value": 0.07}),
    ("rmsprop", {"alpha": 0.91}),
    ("rmsprop", {"alpha": 0.91, "centered": True}),
    ("rmsprop", {"alpha": 0.91, "momentum": 0.77}),
    ("rmsprop", {"alpha": 0.91, "momentum": 0.77, "centered": True}),
    ("adam", {}),
    ("adam", {"amsgrad": True}),
    ("adamw", {}),
    ("adamw", {"amsgrad": True}),
    ("adamax", {}),
    ("nadam", {}),
    ("ftrl", {"lambda1": 0.31, "lambda2": 0.17, "beta": 0.7, "initial_accumulator_value": 0.07}),
]
NAMES = {
    "eps": "epsilon",
    "alpha": "rho",
    "lambda1": "l1_regularization_strength",
    "lambda2": "l2_regularization_strength",
}


def keras_case(rule, a):
    """Class, arguments and rates; 60 steps, since they are the slow part of this file."""
    theirs = {NAMES.get(k, k): x for k, x in a.items() if k not in ("lr", "betas")}
    if "betas" in a:
        theirs["beta_1"], theirs["beta_2"] = a["betas"]
    name = {"rmsprop": "RMSprop", "nadam": "Nadam", "ftrl": "Ftrl"}.get(rule, RULES[rule].__name__)
    return name, theirs, rates(a, 60)


@pytest.fixture(scope="module", params=["jax", "torch"])
def from_keras(request):
    """The parameter after each step of each case, at Keras in float64 over one of its backends."""
    if not all(map(importlib.util.find_spec, ("keras", request.param))):
        pytest.skip(f"needs Keras, with {request.param} under it")
    grads, start = gradients()
    cases = [keras_case(rule, hyper(rule, variant)) for rule, variant in IN_KERAS]
    done = subprocess.run(
        [sys.executable, "-c", KERAS],
        input=json.dumps([cases, grads[:60].tolist(), start.tolist()]),
        env=os.environ | {"KERAS_BACKEND": request.param},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [np.array(json.loads(line)) for line in done.stdout.splitlines()]


@pytest.mark.torch
@pytest.mark.parametrize("case", range(len(IN_KERAS)), ids=lambda i: f"{IN_KERAS[i][0]}-{i}")
def test_the_dialect_of_keras(from_keras, case):
    """Its weight_decay is decoupled, for every rule."""
    rule, variant = IN_KERAS[case]
    grads, start = gradients()
    ours = hyper(rule, variant) | {"convention": "keras", "decay_mode": "decoupled"}
    np.testing.assert_allclose(path(rule, ours, grads[:60], start), from_keras[case], **CLOSE)


# The papers, written down


def sgd(p, g, t, lr, s, a):
    """Polyak's heavy ball: the last displacement, times momentum, goes on."""
    s.last, before = p, s.last if t > 1 else p
    return lr * g - a["momentum"] * (p - before)


def adagrad(p, g, t, lr, s, a):
    s.v = s.v + g**2
    return lr * g / (a["eps"] + np.sqrt(s.v))


def rmsprop(p, g, t, lr, s, a):
    """Graves 2013, equations 38 to 45."""
    s.v = a["alpha"] * s.v + (1 - a["alpha"]) * g**2
    s.m = a["alpha"] * s.m + (1 - a["alpha"]) * g
    s.d = a["momentum"] * s.d - lr * g / np.sqrt(s.v - s.m**2 + a["eps"])
    return -s.d


def adam(p, g, t, lr, s, a):
    b1, b2 = a["betas"]
    s.m = b1 * s.m + (1 - b1) * g
    s.v = b2 * s.v + (1 - b2) * g**2
    return lr * (s.m / (1 - b1**t)) / (np.sqrt(s.v / (1 - b2**t)) + a["eps"])


def nadam(p, g, t, lr, s, a):
    """Dozat 2016, algorithm 2, with the schedule of μ of its section on experiments."""
    b1, b2 = a["betas"]
    mu = [b1 * (1 - 0.5 * 0.96 ** (i * a["momentum_decay"])) for i in range(1, t + 2)]
    s.m = mu[t - 1] * s.m + (1 - mu[t - 1]) * g
    s.v = b2 * s.v + (1 - b2) * g**2
    m = mu[t] * s.m / (1 - np.prod(mu)) + (1 - mu[t - 1]) * g / (1 - np.prod(mu[:t]))
    return lr * m / (np.sqrt(b2 * s.v / (1 - b2**t)) + a["eps"])


def radam(p, g, t, lr, s, a):
    """Liu et al. 2019, algorithm 2, which has no eps."""
    b1, b2 = a["betas"]
    s.v = b2 * s.v + (1 - b2) * g**2
    s.m = b1 * s.m + (1 - b1) * g
    longest = 2 / (1 - b2) - 1
    length = longest - 2 * t * b2**t / (1 - b2**t)
    if length <= 4:
        return lr * s.m / (1 - b1**t)
    size = np.sqrt((1 - b2**t) / (np.sqrt(s.v) + a["eps"]) ** 2)
    r = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    return lr * np.sqrt(r) * s.m / (1 - b1**t) * size


class Memory:
    m = v = d = last = 0.0


PAPERS = [
    (sgd, {"momentum": 0.87}),
    (adagrad, {}),
    (rmsprop, {"alpha": 0.91, "momentum": 0.77, "centered": True}),
    (adam, {}),
    (nadam, {"momentum_decay": 0.0113}),
    (radam, {}),
]


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(("formula", "variant"), PAPERS, ids=lambda x: getattr(x, "__name__", ""))
def test_the_dialect_of_the_paper(formula, variant, maximize):
    """A displacement of p includes what a decay did, so heavy ball is tested without."""
    rule = formula.__name__
    grads, start = gradients()
    a = hyper(rule, variant)
    decay = a["weight_decay"] = 0.0 if rule == "sgd" else a["weight_decay"]
    given = path(rule, a | {"convention": "paper", "maximize": maximize}, grads, start)
    p, memory, plan = start, Memory(), rates(a, len(grads))
    for t, g in enumerate(grads, 1):
        g = (-g if maximize else g) + decay * p
        p = p - formula(p, g, t, plan[t - 1], memory, a)
        # heavy ball's displacements are differences of parameters, rounded as these
        loose = {"rtol": 1e-11, "atol": 1e-12} if rule == "sgd" else CLOSE
        np.testing.assert_allclose(given[t - 1], p, err_msg=f"step {t}", **loose)


# The argument


@pytest.mark.parametrize("rule", RULES)
def test_the_first_convention_is_the_default(rule):
    parameter = inspect.signature(RULES[rule]).parameters.get("convention")
    known = list(RULES[rule].conventions)
    assert (parameter.default if parameter else None) == (known[0] if known else None)
    assert set(known) <= {"torch", "optax", "keras", "paper"}


@pytest.mark.parametrize(("rule", "name"), DIALECTS)
def test_the_exactness_tests_run_every_convention(rule, name):
    run = {variant.get("convention") for variant in VARIANTS[rule]}
    assert name in run | {next(iter(RULES[rule].conventions))}
    assert RULES[rule].conventions[name]


def test_the_pages_table_is_that_of_the_classes():
    page = (Path(__file__).parents[2] / "docs/conventions.md").read_text("utf-8")
    columns = ("torch", "optax", "keras", "paper")
    rows = ["| | " + " | ".join(columns) + " |", "|---|---|---|---|---|"]
    for cls in RULES.values():
        if cls.conventions:
            cells = [cls.conventions.get(name, "–").replace("|", "\\|") for name in columns]
            rows.append(f"| {cls.__name__} | " + " | ".join(cells) + " |")
    assert "\n".join(rows) + "\n\n" in page


@pytest.mark.parametrize(("rule", "name"), DIALECTS)
def test_a_convention_survives_saving(rule, name, tmp_path):
    w, twin = np.ones(3), np.ones(3)
    opt, fresh = RULES[rule](w, convention=name), RULES[rule](twin)
    opt.step(np.array([1.0, -2.0, 3.0]))
    st.save(tmp_path / "run", opt)
    st.load(tmp_path / "run", fresh)
    twin[...] = w
    assert fresh.param_groups[0]["convention"] == name
    for g in ([0.5, 1.0, -1.0], [2.0, 0.0, 1.0]):
        opt.step(np.array(g))
        fresh.step(np.array(g))
    same_bits(w, twin)


@pytest.mark.parametrize("rule", ["sgd", "yogi"])
def test_a_state_from_before_there_were_conventions(rule):
    opt = RULES[rule](np.ones(3))
    old = opt.state_dict()
    del old["param_groups"][0]["convention"]
    opt.load_state_dict(old)
    assert opt.param_groups[0]["convention"] == next(iter(RULES[rule].conventions))


def test_a_convention_of_a_group_and_at_any_time():
    params = {"a": np.ones(2), "b": np.ones(2)}
    opt = st.Adamax(params, lr=0.5, eps=1.0, overrides={"b": {"convention": "keras"}})
    opt.step({"a": np.full(2, 3.0), "b": np.full(2, -3.0)})
    assert params["a"].tolist() == [0.625, 0.625] and params["b"].tolist() == [1.375, 1.375]
    w, twin = np.ones(2), np.ones(2)
    opt, other = st.Adam(w, eps=0.1), st.Adam(twin, eps=0.1, convention="keras")
    opt.param_groups[0]["convention"] = "keras"
    opt.step(np.ones(2))
    other.step(np.ones(2))
    same_bits(w, twin)
    opt.param_groups[0]["convention"] = "tensorflow"
    with pytest.raises(ValueError, match=r"convention = 'tensorflow': Adam has 'torch', 'optax'"):
        opt.step(np.ones(2))


@pytest.mark.parametrize("value", ["Keras", "", None, 1, ["torch"]])
def test_a_convention_that_a_rule_lacks(value):
    with pytest.raises(ValueError, match=r"AdamW has 'torch', 'optax', 'keras'"):
        st.AdamW(np.ones(2), convention=value)
    with pytest.raises(ValueError, match=r"FTRL has 'paper', 'keras'"):
        st.FTRL(np.ones(2), convention=value)


@pytest.mark.parametrize("rule", [rule for rule in RULES if not RULES[rule].conventions])
def test_a_rule_of_one_form(rule):
    message = rf"convention = 'keras': {RULES[rule].__name__} has one form only"
    with pytest.raises(ValueError, match=message):
        RULES[rule](np.ones((2, 2)), convention="keras")
    with pytest.raises(ValueError, match=message):
        RULES[rule]([{"params": np.ones((2, 2)), "convention": "keras"}])


@pytest.mark.parametrize(("rule", "arguments", "message"), [
    ("sgd", {"momentum": 0.9, "dampening": 0.1, "convention": "optax"}, "'optax' has no dampening"),
    ("sgd", {"momentum": 0.9, "dampening": 0.1, "convention": "keras"}, "'keras' has no dampening"),
    ("adagrad", {"eps_inside_sqrt": True, "convention": "keras"}, "give eps_inside_sqrt or"),
    ("nadam", {"momentum_decay": 0.1, "convention": "keras"}, "momentum_decay has no effect"),
    ("nadam", {"momentum_decay": 0.1, "convention": "optax"}, "leave it at 0.004"),
])  # fmt: skip
def test_arguments_that_a_dialect_lacks(rule, arguments, message):
    with pytest.raises(ValueError, match=message):
        RULES[rule](np.ones(2), **arguments)


def test_the_command_line_takes_a_convention():
    rule, _, named = syntax.call("--optimizer", "adam:convention='keras'", RULES)
    assert RULES[rule](np.ones(2), **named).param_groups[0]["convention"] == "keras"
    assert "convention" in search_space.hyper_names("adam")
    assert search_space.distribution("convention", "'torch','keras'", "adam").values == (
        "torch",
        "keras",
    )
