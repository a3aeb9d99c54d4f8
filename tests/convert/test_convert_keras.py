"""Training goes on: k steps in Keras, k here from its variables, and the reverse; float64.

Keras runs in a process of its own, which chooses its backend. The tolerance 1e-12 is for
differently ordered roundings.
"""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest

import steepest as st
from steepest.optimizers import RULES

CLOSE = {"rtol": 1e-12, "atol": 1e-13}
SINGLE = {"rtol": 1e-6, "atol": 1e-7}  # Keras takes means and powers in single precision
SHAPES = {"a": (4, 3), "b": (3,), "c": (2, 3, 2)}
K = {"convention": "keras"}
B = {"beta_1": 0.8, "beta_2": 0.95}
OURS = {"betas": (0.8, 0.95), "eps": 1e-5}
DECAY = {"weight_decay": 0.1, "decay_mode": "decoupled"}
RATE = 0.05

# name: rule, Keras's class, its arguments, ours
CASES = {
    "sgd": ("sgd", "SGD", {"weight_decay": 0.1}, {**K, **DECAY}),
    "momentum": ("sgd", "SGD", {"momentum": 0.9}, {"momentum": 0.9, **K}),
    "nesterov": ("sgd", "SGD", {"momentum": 0.9, "nesterov": True},
                 {"momentum": 0.9, "nesterov": True, **K}),
    "momentum_as_torch": ("sgd", "SGD", {"momentum": 0.9}, {"momentum": 0.9}),
    "adagrad": ("adagrad", "Adagrad", {"epsilon": 1e-3}, {"eps": 1e-3, **K}),
    "adagrad_inside": ("adagrad", "Adagrad", {"epsilon": 1e-3},
                       {"eps": 1e-3, "eps_inside_sqrt": True}),
    "rmsprop": ("rmsprop", "RMSprop", {"rho": 0.8, "epsilon": 1e-3},
                {"alpha": 0.8, "eps": 1e-3, **K}),
    "rmsprop_all": ("rmsprop", "RMSprop",
                    {"rho": 0.8, "epsilon": 1e-3, "momentum": 0.7, "centered": True},
                    {"alpha": 0.8, "eps": 1e-3, "momentum": 0.7, "centered": True, **K}),
    "adadelta": ("adadelta", "Adadelta", {"rho": 0.8, "epsilon": 1e-4},
                 {"rho": 0.8, "eps": 1e-4}),
    "ftrl": ("ftrl", "Ftrl", {"l1_regularization_strength": 0.1, "beta": 0.5,
                              "l2_regularization_strength": 0.2},
             {"lambda1": 0.1, "lambda2": 0.2, "beta": 0.5, **K}),
    "adam": ("adam", "Adam", {**B, "epsilon": 1e-5}, {**OURS, **K}),
    "amsgrad": ("adam", "Adam", {**B, "epsilon": 1e-5, "amsgrad": True},
                {**OURS, **K, "amsgrad": True}),
    "adamw": ("adamw", "AdamW", {**B, "epsilon": 1e-5, "weight_decay": 0.1},
              {**OURS, **K, "weight_decay": 0.1}),
    "adamax": ("adamax", "Adamax", {**B, "epsilon": 1e-5}, {**OURS, **K}),
    "nadam": ("nadam", "Nadam", {**B, "epsilon": 1e-5}, {**OURS, **K}),
    "lion": ("lion", "Lion", {"beta_1": 0.8, "beta_2": 0.9}, {"betas": (0.8, 0.9)}),
    "lamb": ("lamb", "Lamb", {**B, "epsilon": 1e-5}, OURS),
    "adafactor": ("adafactor", "Adafactor", {"beta_2_decay": -0.7, "epsilon_1": 1e-20},
                  {"beta2_decay": -0.7, "eps": (1e-20, 1e-3), "form": "paper"}),
}  # fmt: skip

SCRIPT = """
import json, sys
import keras, numpy as np
if keras.backend.backend() == "jax":
    import jax
    jax.config.update("jax_enable_x64", True)
keras.backend.set_floatx("float64")
import steepest as st
from steepest.optimizers import RULES

cases, grads, start, rate = json.load(sys.stdin)
grads = [{k: np.array(g) for k, g in one.items()} for one in grads]
tensor, numpy = keras.ops.convert_to_tensor, keras.ops.convert_to_numpy

def made(name, arguments, values):
    params = {k: keras.Variable(np.array(x), dtype="float64", name=k) for k, x in values.items()}
    opt = getattr(keras.optimizers, name)(learning_rate=rate, **arguments)
    opt.build(list(params.values()))
    def step(grads):
        opt.apply([tensor(grads[k]) for k in params], list(params.values()))
    return opt, params, step

def lists(values):
    return {k: np.array(numpy(x) if hasattr(x, "path") else x).tolist() for k, x in values.items()}

for label, (rule, name, theirs, ours) in cases.items():
    ours = {k: tuple(x) if isinstance(x, list) else x for k, x in ours.items()}
    opt, params, step = made(name, theirs, start)
    for g in grads[:5]:
        step(g)
    p = {k: np.array(x) for k, x in lists(params).items()}
    mine = RULES[rule](p, lr=1.0 if label != "ftrl" else rate, **ours)
    store = {}
    opt.save_own_variables(store)
    st.convert.from_keras(opt.variables, mine)
    twin = RULES[rule](p, **ours)
    st.convert.from_keras(store, twin)
    same = all(np.array_equal(twin.state[k][s], x) for k in p for s, x in mine.state[k].items())
    back, params2, step2 = made(name, theirs, p)
    back.load_own_variables(st.convert.to_keras(mine))
    for g in grads[5:]:
        step(g), mine.step(g), step2(g)
    found = {"keras": lists(params), "ours": lists(p), "back": lists(params2), "same": same}
    print(json.dumps([label, found | {"rate": mine.param_groups[0]["lr"]}]))
"""


def tree(seed):
    random = np.random.default_rng(seed)
    return {k: random.normal(size=s) for k, s in SHAPES.items()}


@pytest.fixture(scope="module", params=["jax", "torch"])
def runs(request):
    """Of each case: the parameters of Keras, of here, and of Keras again, in the end."""
    if not all(map(importlib.util.find_spec, ("keras", request.param))):
        pytest.skip(f"needs Keras, with {request.param} under it")
    grads = [{k: x.tolist() for k, x in tree(10 + t).items()} for t in range(10)]
    start = {k: x.tolist() for k, x in tree(0).items()}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps([CASES, grads, start, RATE]),
        env=os.environ | {"KERAS_BACKEND": request.param, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))


@pytest.mark.torch
@pytest.mark.parametrize("case", CASES)
def test_training_goes_on_from_keras_and_back(runs, case):
    found = runs[case]
    assert found["same"]
    assert found["rate"] == pytest.approx(RATE, rel=1e-6)  # which Keras has in single precision
    close = SINGLE if case == "adafactor" else CLOSE
    for k in SHAPES:
        np.testing.assert_allclose(found["ours"][k], found["keras"][k], **close, err_msg=k)
        np.testing.assert_allclose(found["back"][k], found["keras"][k], **close, err_msg=k)


# Without Keras: its order, as arrays


def variables(step=3, rate=0.5, *, hat=False):
    """Those of Keras's Adam for ``SHAPES``."""
    slots = [x for k in SHAPES for x in (tree(1)[k], tree(2)[k] ** 2)]
    return [np.array(step), np.array(rate), *slots, *(tree(3).values() if hat else ())]


def adam(**more):
    return st.Adam(tree(0), convention="keras", **more)


def test_order_is_that_in_which_parameters_were_given():
    """Though ``exclude`` has sorted those here into two groups."""
    opt = adam(exclude="vectors", amsgrad=True)
    st.convert.from_keras(variables(hat=True), opt)
    for k in SHAPES:
        np.testing.assert_array_equal(opt.state[k]["exp_avg"], tree(1)[k])
        np.testing.assert_array_equal(opt.state[k]["exp_avg_sq"], tree(2)[k] ** 2)
        np.testing.assert_array_equal(opt.state[k]["max_exp_avg_sq"], tree(3)[k])
    assert [g["lr"] for g in opt.param_groups] == [0.5, 0.5]
    for given, expected in zip(st.convert.to_keras(opt).values(), variables(hat=True), strict=True):
        np.testing.assert_array_equal(given, expected)


def test_names_say_whose_state_is_whose():
    opt = st.Lion({"q": np.zeros(2), "p": np.zeros(2)})
    st.convert.from_keras([3, 0.5, np.ones(2), np.full(2, 2.0)], opt, names=["p", "q"])
    assert opt.state["p"]["exp_avg"].tolist() == [1.0, 1.0]
    again = st.convert.to_keras(opt, names=["p", "q"])
    assert again["2"].tolist() == [1.0, 1.0]


def test_the_rate_is_taken_or_kept():
    schedule = st.schedules.cosine(0.1, steps=10)
    for lr, keep, expected in ((0.1, False, 0.5), (0.1, ["lr"], 0.1), (schedule, False, schedule)):
        opt = adam(lr=lr)
        st.convert.from_keras(variables(), opt, keep=keep)
        assert opt.param_groups[0]["lr"] is expected or opt.param_groups[0]["lr"] == expected
    without = variables()
    del without[1]  # Keras has none where it is a schedule
    st.convert.from_keras(without, opt)
    assert opt.updates == 3
    assert st.convert.to_keras(opt, learning_rate=False)["1"].shape == (4, 3)


def wrong(i, x):
    def change(values):
        values[i] = x

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda v: v.pop() is v.pop(),
            "there are 6 variables; expected iteration, learning_rate and 6",
        ),
        (lambda v: v.extend(tree(1).values()), "there are 11 variables.*use_ema"),
        (wrong(4, np.zeros(4)), r"'exp_avg' of parameter 'b' has shape \(4,\); expected \(3,\)"),
        (wrong(3, np.zeros((4, 3), int)), "'exp_avg_sq' of parameter 'a' has dtype int64"),
        (wrong(0, np.array(-1)), "variable 0, iteration = -1.0: expected a count"),
        (wrong(0, np.zeros(2)), "variable 0, iteration = .*expected one number"),
        (wrong(1, np.array(np.nan)), "lr = nan"),
        (wrong(1, "text"), "variable 1, learning_rate"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_nothing_changes(change, message):
    values = variables()
    change(values)
    opt = adam()
    opt.step(tree(5))
    before = opt.state_dict()
    with pytest.raises((ValueError, TypeError), match=message):
        st.convert.from_keras(values, opt)
    after = opt.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert after["updates"] == 1
    for name, state in before["state"].items():
        for key, x in state.items():
            np.testing.assert_array_equal(after["state"][name][key], x)


def test_a_store_with_other_keys_is_refused():
    with pytest.raises(ValueError, match=r"variables has the keys \['0', '2'\]"):
        st.convert.from_keras({"0": np.zeros(()), "2": np.zeros(2)}, adam())


def test_another_product_of_momenta_is_refused():
    opt = st.NAdam([np.zeros(2)], convention="keras")
    with pytest.raises(ValueError, match=r"product of momenta, is 0.5; 3 steps"):
        st.convert.from_keras([3, 0.1, np.zeros(2), np.zeros(2), 0.5], opt)


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("adam", {}, "keras has another formula of adam: make .*convention='keras'"),
        ("radam", {}, "Keras has no radam"),
        ("adagrad", {"convention": "keras", "lr_decay": 0.1}, "keras has no lr_decay of adagrad"),
        ("lion", {"maximize": True}, "keras has no maximize of lion"),
        ("lamb", {"weight_decay": 0.1}, "Keras's Lamb has its decay outside the trust ratio"),
        ("adafactor", {}, "Keras's Adafactor is one with form='paper'"),
        ("adafactor", {"form": "paper", "relative_step": False}, "is one with relative_step=True"),
        ("adafactor", {"form": "paper", "weight_decay": 0.1}, "leave weight_decay at 0"),
        ("sgd", {"momentum": 0.9, "lr": 0.0}, "while lr is 0"),
    ],
)
def test_what_keras_lacks_is_refused(rule, options, message):
    opt = RULES[rule](tree(0), **options)
    with pytest.raises(ValueError, match=message):
        st.convert.to_keras(opt)


def test_counts_and_rates_that_differ_are_refused():
    opt = adam()
    opt.step(tree(1) | {"a": None})
    with pytest.raises(ValueError, match=r"have done \[0, 1\] steps; Keras has one"):
        st.convert.to_keras(opt)
    opt = adam(overrides={"a": {"lr": 0.5}})
    with pytest.raises(ValueError, match=r"have the learning rates \[0.001, 0.5\]"):
        st.convert.to_keras(opt)
