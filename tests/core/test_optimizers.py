"""What all optimizers share: structures, groups, hyper-parameters, state, and the atomic step."""

import copy
import inspect
import math
import pickle
import threading
import tracemalloc

import numpy as np
import pytest
from cases import CONFIGURATIONS, hyper, label, reference_hyper, same_bits

import steepest as st
from steepest import reference
from steepest.optimizers import RULES


def snapshot(opt, params):
    """Everything that a failed step must leave alone, as bytes."""
    return (
        [np.asarray(p).tobytes() for p in params],
        {n: {k: x.tobytes() for k, x in s.items()} for n, s in opt.state.items()},
        opt.updates,
    )


# Structures


def test_params_may_be_any_tree_of_arrays():
    def tree(x):
        return {
            "layers": [{"w": x(2), "b": x(1)}, {"w": x(3)}],
            "scale": x(()),
            "pair": (x(1), x(2)),
        }

    params, grads = tree(np.zeros), tree(np.ones)
    opt = st.SGD(params, lr=0.5)
    assert list(opt.state) == [
        "layers.0.w", "layers.0.b", "layers.1.w", "scale", "pair.0", "pair.1",
    ]  # fmt: skip
    opt.step(grads)
    assert params["layers"][1]["w"].tolist() == [-0.5] * 3
    assert params["pair"][1].tolist() == [-0.5] * 2 and params["scale"] == -0.5


def test_named_pairs_and_generators():
    w = {"a": np.zeros(1), "b": np.zeros(2)}
    opt = st.SGD((pair for pair in w.items()), lr=1.0)
    assert list(opt.state) == ["a", "b"]
    opt.step({"b": np.ones(2), "a": np.ones(1)})
    opt.step([("a", np.ones(1)), ("b", np.ones(2))])
    assert w["b"].tolist() == [-2.0, -2.0]


def test_groups_have_hyperparameters_of_their_own():
    a, b = np.ones(2), np.ones(2)
    opt = st.SGD([{"params": {"a": a}}, {"params": {"b": b}, "lr": 0.25}], lr=0.5)
    opt.step([{"a": np.ones(2)}, {"b": np.ones(2)}])
    assert a.tolist() == [0.5, 0.5] and b.tolist() == [0.75, 0.75]
    opt.param_groups[0]["lr"] = 0.0
    opt.step([{"a": np.ones(2)}, {"b": np.ones(2)}])
    assert a.tolist() == [0.5, 0.5] and b.tolist() == [0.5, 0.5]


def test_a_group_may_be_added_later():
    a, b = np.zeros(2), np.zeros(3)
    opt = st.Adam([a], lr=0.1)
    opt.step([np.ones(2)])
    opt.add_param_group({"params": [b], "lr": 0.2})
    opt.step([[np.ones(2)], [np.ones(3)]])
    assert opt.state["0"]["step"] == 2 and opt.state["1"]["step"] == 1
    np.testing.assert_allclose(b, -0.2, rtol=1e-7)  # eps = 1e-8 beside 1


BAD_STRUCTURES = {
    "a missing key": ({"a": np.ones(2)}, ValueError, r"missing \['b'\]"),
    "an unknown key": (
        {"a": np.ones(2), "c": np.ones(3)}, ValueError, r"missing \['b'\], unknown \['c'\]"
    ),
    "one key too many": (
        {"a": np.ones(2), "b": np.ones(3), "c": np.ones(3)}, ValueError, r"unknown \['c'\]"
    ),
    "a list": ([np.ones(2), np.ones(3)], TypeError, "expected a dict"),
    "an array": (np.ones(2), TypeError, "expected a dict"),
    "a wrong shape": (
        {"a": np.ones(2), "b": np.ones((3, 1))}, ValueError,
        r"gradient of parameter 'b' has shape \(3, 1\); expected the parameter's \(3,\)",
    ),
    "a wrong type": (
        {"a": np.ones(2), "b": np.ones(3, np.int32)}, TypeError,
        "gradient of parameter 'b' has dtype int32; expected float32, float64, bfloat16 or",
    ),
    "integers": ({"a": np.ones(2), "b": np.ones(3, int)}, TypeError, "'b' has dtype int64"),
    "a number": ({"a": np.ones(2), "b": 1.0}, TypeError, "'b' is a float"),
    "a nested list": ({"a": np.ones(2), "b": [1.0] * 3}, TypeError, "'b' is a list"),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD_STRUCTURES)
def test_bad_gradients_change_nothing(bad):
    grads, error, message = BAD_STRUCTURES[bad]
    params = {"a": np.zeros(2), "b": np.zeros(3)}
    opt = st.AdamW(params, ema=0.9)
    opt.step({"a": np.ones(2), "b": np.ones(3)})
    before = snapshot(opt, params.values())
    with pytest.raises(error, match=message):
        opt.step(grads)
    assert snapshot(opt, params.values()) == before
    opt.step({"a": np.ones(2), "b": np.ones(3)})
    assert opt.updates == 2


def test_wrong_length_of_a_list():
    opt = st.SGD([np.zeros(2), np.zeros(3)])
    with pytest.raises(ValueError, match="grads has 1 entries; expected 2"):
        opt.step([np.ones(2)])


@pytest.mark.parametrize("what", ["own parameter", "other parameter", "state"])
def test_a_gradient_must_not_share_memory_with_what_is_written(what):
    params = {"a": np.ones(2000), "b": np.ones(2000)}
    opt = st.Adam(params)
    shared = {
        "own parameter": params["a"],
        "other parameter": params["b"],
        "state": opt.state["a"]["exp_avg"],
    }[what]
    opt.step({"a": np.ones(2000), "b": np.ones(2000)})
    before = snapshot(opt, params.values())
    for _ in range(2):  # a refused gradient is refused again
        with pytest.raises(ValueError, match="gradient of parameter 'a' shares memory"):
            opt.step({"a": shared, "b": np.ones(2000)})
    assert snapshot(opt, params.values()) == before


def test_the_first_gradient_must_not_be_the_parameter():
    """A plan begins with the parameter's layout for its gradient, but not with its place."""
    w = np.ones(3)
    for opt in (st.SGD(w), st.Adam({"w": w}, clip=st.clip.global_norm(1.0))):
        for _ in range(2):
            with pytest.raises(ValueError, match="shares memory with parameter"):
                opt.step(w if opt.rule == "sgd" else {"w": w})
    assert (w == 1).all()


def test_a_gradient_may_lie_between_the_elements_of_a_parameter():
    room = np.zeros(20)
    w, g = room[::2], room[1::2]
    g[...] = 1.0
    opt = st.SGD(w, lr=1.0)
    opt.step(g)
    opt.step(g)
    assert w.tolist() == [-2.0] * 10 and g.tolist() == [1.0] * 10


def test_a_parameter_made_read_only_later():
    w = np.zeros(3)
    opt = st.SGD({"w": w})
    opt.step({"w": np.ones(3)})
    w.flags.writeable = False
    before = snapshot(opt, [w])
    with pytest.raises(ValueError, match="parameter 'w' is read-only"):
        opt.step({"w": np.ones(3)})
    assert snapshot(opt, [w]) == before


def test_a_replaced_parameter_or_state_is_checked_and_used():
    opt = st.Adam({"w": np.zeros(3)})
    opt.step({"w": np.ones(3)})
    fresh = np.full(3, 5.0)
    opt.param_groups[0]["params"][0] = fresh
    opt.step({"w": np.ones(3)})
    assert (fresh < 5.0).all()
    opt.state["w"]["exp_avg"] = np.zeros(4)
    with pytest.raises(ValueError, match=r"state 'exp_avg' of parameter 'w' is float64 of shape"):
        opt.step({"w": np.ones(3)})
    opt.state["w"]["exp_avg"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="expected float64"):
        opt.step({"w": np.ones(3)})
    opt.state["w"]["exp_avg"] = opt.state["w"]["exp_avg_sq"]
    with pytest.raises(ValueError, match="share memory"):
        opt.step({"w": np.ones(3)})
    opt.state["w"]["exp_avg"] = np.zeros(3)
    opt.state["w"]["step"] = 7
    opt.step({"w": np.ones(3)})
    assert opt.state["w"]["step"] == 8
    opt.state["w"]["step"] = -1
    with pytest.raises(ValueError, match="step of parameter 'w'"):
        opt.step({"w": np.ones(3)})


def test_states_may_be_changed_by_any_method_of_a_dict():
    w, fresh = np.zeros(2), np.full(2, 0.5)
    opt = st.SGD({"w": w}, lr=1.0, momentum=0.5)
    state = opt.state["w"]
    changes = [
        lambda: state.update(momentum_buffer=fresh.copy()),
        lambda: state.__ior__({"momentum_buffer": fresh.copy()}),
        lambda: (state.pop("momentum_buffer"), state.setdefault("momentum_buffer", fresh.copy())),
        lambda: opt.state.update(w={"step": 3, "momentum_buffer": fresh.copy()}),
        lambda: opt.state["w"].__setitem__("momentum_buffer", fresh.copy()),
    ]
    opt.step({"w": np.ones(2)})
    assert opt.state["w"] is state
    for change in changes:
        opt.step({"w": np.ones(2)})
        before = w.copy()
        change()
        opt.step({"w": np.ones(2)})
        np.testing.assert_array_equal(w, before - 1.25)
    opt.state["w"].clear()
    opt.step({"w": np.ones(2)})
    assert opt.state["w"]["step"] == 1
    with pytest.raises(AttributeError):
        opt.state = {}


def test_none_leaves_parameter_state_and_counter_alone():
    rng = np.random.default_rng(0)
    params = [rng.standard_normal(5) for _ in range(6)]
    alone = [p.copy() for p in params]
    together = st.AdamW(params, lr=0.1, weight_decay=0.5)
    each = [st.AdamW(p, lr=0.1, weight_decay=0.5) for p in alone]
    for _ in range(30):
        grads = [rng.standard_normal(5) if rng.random() < 0.6 else None for _ in params]
        together.step(grads)
        for opt, g in zip(each, grads, strict=True):
            if g is not None:
                opt.step(g)
    for i, opt in enumerate(each):
        same_bits(params[i], alone[i])
        assert together.state[str(i)]["step"] == opt.state["0"]["step"] < 30


def test_a_subtree_without_gradients():
    params = {"a": {"w": np.ones(2), "b": np.ones(1)}, "c": np.ones(1)}
    opt = st.SGD(params, lr=1.0)
    opt.step({"a": None, "c": np.ones(1)})
    assert params["a"]["w"].tolist() == [1.0, 1.0] and params["c"].tolist() == [0.0]
    opt.step(None)
    assert opt.updates == 2


# Hyper-parameters


@pytest.mark.parametrize("rule", RULES)
def test_unknown_arguments_are_refused(rule):
    with pytest.raises(TypeError, match="no argument 'leraning_rate'"):
        RULES[rule](np.zeros(1), leraning_rate=0.1)


BAD_HYPER = [
    ("sgd", {"lr": -1.0}, ValueError, "lr = -1.0"),
    ("sgd", {"lr": math.nan}, ValueError, "lr = nan"),
    ("sgd", {"lr": "fast"}, TypeError, "lr = 'fast'"),
    ("sgd", {"lr": None}, TypeError, "lr = None"),
    ("sgd", {"lr": True}, TypeError, "lr = True"),
    ("sgd", {"lr": (0.1, 0.2)}, TypeError, "expected a finite number of at least 0, or"),
    ("sgd", {"momentum": -0.1}, ValueError, "momentum = -0.1"),
    ("sgd", {"nesterov": True}, ValueError, "nesterov needs momentum"),
    ("sgd", {"nesterov": 2, "momentum": 0.5}, TypeError, "True or False"),
    ("sgd", {"nesterov": True, "momentum": 0.5, "dampening": 0.1}, ValueError, "nesterov"),
    ("sgd", {"dampening": 0.1}, ValueError, "dampening has no effect"),
    ("adam", {"betas": (0.9, 1.0)}, ValueError, r"betas\[1\] = 1.0: expected a number in \[0, 1\)"),
    ("adam", {"betas": (0.9,)}, ValueError, "a tuple of 2, each a number in"),
    ("adam", {"betas": 0.9}, TypeError, "a tuple of 2, each a number in"),
    ("adam", {"betas": (0.9, 0.9, 0.9)}, ValueError, "a tuple of 2, each a number in"),
    ("adan", {"betas": (0.9, 0.9)}, ValueError, "a tuple of 3, each a number in"),
    ("adan", {"betas": 0.9}, TypeError, "a tuple of 3, each a number in"),
    (
        "ademamix",
        {"alpha": -1.0},
        ValueError,
        "alpha = -1.0: expected a finite number",
    ),
    ("adam", {"eps": -1e-8}, ValueError, "eps = -1e-08"),
    ("adam", {"weight_decay": -0.1}, ValueError, "weight_decay"),
    ("adam", {"l1": math.inf}, ValueError, "l1 = inf"),
    ("adam", {"ema": 1.0}, ValueError, "ema = 1.0"),
    ("adam", {"decay_mode": "cosy"}, ValueError, "one of 'l2', 'decoupled'"),
    ("adam", {"nonfinite": "ignore"}, ValueError, "propagate, raise, skip"),
    ("adam", {"clip": 1.0}, TypeError, "st.clip.value"),
    ("adam", {"clip": (st.clip.value(1.0), 1.0)}, TypeError, "or a tuple of them"),
    ("adam", {"clip": (st.clip.value(1.0), st.clip.norm(1.0))}, ValueError, "in this order"),
    ("adam", {"regularize": 0.1}, TypeError, "expected penalties, such as st.regularize.l1"),
    ("adam", {"exclude": 1}, TypeError, 'exclude = 1: expected "vectors" or patterns'),
    ("adam", {"exclude": "bias"}, ValueError, "no parameter has a name like 'bias'; there are '0'"),
    ("adam", {"overrides": {"0": 1.0}}, TypeError, "expected hyper-parameters by patterns"),
    ("adam", {"overrides": {"1": {"lr": 0.1}}}, ValueError, "no parameter has a name like '1'"),
    ("adam", {"overrides": {"0": {"rl": 0.1}}}, ValueError, "no hyper-parameter 'rl'; there are"),
    ("adam", {"overrides": {"0": {"lr": -1.0}}}, ValueError, r"lr = -1\.0"),
    ("adam", {"decoupled_weight_decay": True, "decay_mode": "l2"}, ValueError, "not both"),
    ("rmsprop", {"alpha": 1.5}, ValueError, "alpha = 1.5"),
    ("adadelta", {"rho": -0.1}, ValueError, "rho = -0.1"),
    ("adagrad", {"lr_decay": -1.0}, ValueError, "lr_decay"),
    ("adagrad", {"initial_accumulator_value": -1.0}, ValueError, "initial_accumulator_value"),
    ("rprop", {"etas": (0.5, 0.9)}, ValueError, r"etas = \(0\.5, 0\.9\): expected 0 < η₋ < 1 < η₊"),
    ("rprop", {"etas": (0.0, 1.2)}, ValueError, "expected 0 < η₋"),
    ("rprop", {"etas": 1.2}, TypeError, "expected a tuple of 2, each a finite"),
    ("rprop", {"step_sizes": (2.0, 1.0)}, ValueError, "expected the smaller one first"),
    ("schedulefreesgd", {"momentum": 1.0}, ValueError, r"expected a number in \(0, 1\)"),
    ("schedulefreesgd", {"momentum": 0.0}, ValueError, "momentum = 0.0"),
    ("schedulefreesgd", {"momentum": abs}, TypeError, "expected a number; the average"),
    ("schedulefreeadamw", {"betas": (0.0, 0.9)}, ValueError, r"betas\[0\] = 0.0"),
    ("schedulefreeadamw", {"betas": (abs, 0.9)}, TypeError, "expected a number; the average"),
    ("madgrad", {"momentum": 1.5}, ValueError, "momentum = 1.5"),
    ("signum", {"momentum": 1.0}, ValueError, "momentum = 1.0"),
    ("nadam", {"momentum_decay": -1.0}, ValueError, "momentum_decay"),
]


@pytest.mark.parametrize(("rule", "arguments", "error", "message"), BAD_HYPER)
def test_bad_hyperparameters_are_refused(rule, arguments, error, message):
    with pytest.raises(error, match=message):
        RULES[rule](np.zeros(1), **arguments)


@pytest.mark.parametrize("rule", ["ademamix", "adan"])
def test_three_betas_are_checked_and_named_plainly(rule):
    """Whatever the optimizer has been through; a file takes only plain strings as keys."""
    opt = RULES[rule]({"a": np.ones(2), "b": np.ones(2)}, overrides={"b": {"betas": (0.1,) * 3}})
    opt.add_param_group({"params": {"c": np.ones(2)}})
    opt.load_state_dict(opt.state_dict())
    for twin in (opt, copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        assert [g["betas"] == (0.1,) * 3 for g in twin.param_groups] == [False, True, False]
        assert {type(name) for g in twin.param_groups for name in g} == {str}
        twin.param_groups[0]["betas"] = (0.5, 0.5)
        with pytest.raises(ValueError, match="a tuple of 3, each a number in"):
            twin.step([{"a": np.ones(2), "b": np.ones(2)}, {"c": np.ones(2)}])


def test_hyperparameters_are_checked_at_every_step():
    w = np.ones(2)
    opt = st.Adam(w)
    opt.step(np.ones(2))
    before = snapshot(opt, [w])
    opt.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match=r"lr = -1\.0"):
        opt.step(np.ones(2))
    assert snapshot(opt, [w]) == before
    nesterov = st.SGD(w, momentum=0.5, nesterov=True)
    nesterov.param_groups[0]["momentum"] = 0.0
    for _ in range(2):
        with pytest.raises(ValueError, match="nesterov needs momentum"):
            nesterov.step(np.ones(2))
    opt.param_groups[0]["lr"] = lambda t: math.nan
    with pytest.raises(ValueError, match="lr = nan"):
        opt.step(np.ones(2))
    assert snapshot(opt, [w]) == before


def changed(rule, arguments, name):
    """Another allowed value of one argument."""
    other = {
        "betas": (0.7, 0.95, 0.93)[: len(arguments.get("betas", ()))], "nesterov": False,
        "etas": (0.4, 1.3), "step_sizes": (0.02, 0.03), "norm_bounds": (0.1, 0.5),
        "adapt": False, "trust_clip": True, "grad_averaging": True, "safeguard_warmup": True,
        "use_bias_correction": True, "growth_rate": 1.07,
        "centered": True, "amsgrad": True, "bias_correction": False, "use_clipping": False,
        "eps_inside_sqrt": True, "decoupled_weight_decay": True,
        "convention": next((c for c in reversed(RULES[rule].conventions) if c != "paper"), None),
        "l1": 0.3, "maximize": True, "ema": 0.5, "clip": st.clip.value(0.01), "nonfinite": "skip",
        "regularize": st.regularize.l1(0.3), "filter": st.filters.grokfast(),
        "overrides": {"*": {"lr": 0.5}},
        "beta1": 0.5, "beta2_decay": -0.5, "d": 0.3, "form": "paper", "relative_step": False,
        "warmup_init": True, "scale_parameter": False, "clip_threshold": 0.3, "blocks": "arrays",
        "beta": 0.5,
        "decay_mode": "l2" if RULES[rule].decay_mode == "decoupled" else "decoupled",
        "lookahead": st.average.lookahead(3), "average": st.average.tail(3), "peak_lr": 0.5,
        "cautious": True, "master": "split16", "rounding": "stochastic",
        "exclude": "0" if RULES[rule].needs == "matrix" else "vectors",
        "ns_coefficients": "polar_express", "ns_steps": 3, "adjust_lr_fn": "match_rms_adamw",
        "ns_eps": 50.0, "adamw": {"lr": 0.5}, "adamw_for": "0", "precondition_frequency": 3,
        "max_precondition_dim": 3, "precondition_1d": True, "correct_bias": False,
        "normalize_gradient": True, "preconditioning_compute_steps": 3, "grafting": "sgd",
        "max_size_triangular": 3, "min_ndim_triangular": 1, "memory_save_mode": "all_diag",
        "momentum_into_precondition_update": False, "balance_interval": 3, "seed": 5, "rank": 2,
        "update_proj_gap": 3, "proj_type": "left", "scale_type": "tensor", "growth": 1.5,
    }  # fmt: skip
    if name == "state_dtype":
        if RULES[rule].prepares:
            return "float16"
        h = {key: field.default for key, field in RULES[rule].fields.items()} | arguments
        return {next(iter((*RULES[rule].states(h), *RULES[rule].beside(h))), "none"): "float16"}
    if (rule, name) == ("muon", "eps"):
        return 50.0  # it matters only where ‖u‖ is less
    if name in other:
        return other[name]
    if (rule, name) == ("adopt", "eps"):
        return 0.5  # it matters only where √v is less
    if isinstance(arguments.get(name), tuple):
        return tuple(0.5 * x + 3.0 for x in arguments[name])
    return arguments.get(name, 0.1) * 0.5 + 0.01


# Where an argument works only beside others.
BASES = {
    "sgd": {"momentum": 0.8}, "rmsprop": {"momentum": 0.5}, "prodigy": {"lr": 0.9, "d0": 0.01},
    "dadaptadam": {"lr": 1.0, "d0": 0.01}, "ftrl": {"lambda2": 0.17}, "adafactor": {"lr": 0.3},
}  # fmt: skip


def arguments_of(rule):
    names = [
        n
        for n in inspect.signature(RULES[rule]).parameters
        if n not in ("self", "params", "options")
    ]
    return names + list(st.core.common_options.OPTIONS)


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        (rule, name)
        for rule in RULES
        for name in arguments_of(rule)
        if name != "clip" or rule not in ("signsgd", "rprop")  # no clip changes a gradient's sign
        if name != "lookahead" or RULES[rule].may_be_moved
        if name != "state_dir"  # which must not; see test_state_dir.py
        if name != "copies"  # which are written beside; see test_copies.py
        if name != "dtype"  # which says what arrays of uint16 hold; see test_formats.py
        if name != "ns_dtype"  # which needs PyTorch; see test_optimizers_muon.py
        # These move every element against its gradient.
        if name != "cautious" or rule not in ("adagrad", "adadelta", "signsgd", "grams")
    ],
)
def test_every_argument_changes_the_result(rule, name):
    """An argument that is accepted and then ignored is the commonest bug of optimizers."""
    base = hyper(rule, BASES.get(rule, {}))
    if (rule, name) == ("lars", "adapt"):  # without which these must be as they usually are
        base = {k: x for k, x in base.items() if k not in ("eps", "trust_coefficient")}
    arguments = base | {name: changed(rule, base, name)}
    if rule in ("sgd", "lars") and name == "nesterov":
        arguments = base | {"nesterov": True}
    if name == "cautious" and not RULES[rule].additive:
        with pytest.raises(ValueError, match="does not add a step"):
            RULES[rule](np.ones((3, 3)), cautious=True)
        return
    if name == "state_dtype" and (RULES[rule].prepares or rule in ("signsgd", "fromage")):
        with pytest.raises(ValueError, match=r"matrices in float32|has no effect|names 'none'"):
            RULES[rule](np.ones((3, 3)), state_dtype="float16")
        return
    if name == "master":  # which changes what parameters of 16 bits do; see test_masters.py
        with pytest.raises(ValueError, match="'split16' has no effect: no parameter is bfloat16"):
            RULES[rule](np.ones((3, 3)), master="split16")
        return
    if name == "rounding":  # see test_stochastic_rounding.py
        with pytest.raises(ValueError, match="rounding = 'stochastic' has no effect: no parameter"):
            RULES[rule](np.ones((3, 3)), rounding="stochastic")
        return
    if name == "rounding_seed":  # see test_q8.py
        with pytest.raises(ValueError, match="rounding_seed = 1 has no effect"):
            RULES[rule](np.ones((3, 3)), rounding_seed=1)
        return
    if name == "peak_lr" and RULES[rule].own_decay:
        with pytest.raises(ValueError, match=r"peak_lr = 0\.5 has no effect"):
            RULES[rule](np.ones(3), peak_lr=0.5)
        return
    if name == "peak_lr":
        base, arguments = (a | {"decay_mode": "lr_relative"} for a in (base, arguments))
    if name == "weight_lr_power":  # a constant lr weighs alike at any power
        base, arguments = (a | {"lr": lambda t: 0.01 * (1 + t)} for a in (base, arguments))
    rng = np.random.default_rng(0)
    matrix = RULES[rule].needs == "matrix" or RULES[rule].factors
    start = (
        [rng.standard_normal((4, 3)), rng.standard_normal(3)] if matrix else rng.standard_normal(9)
    )
    grads = rng.standard_normal((40, 9))
    if name == "state_dtype":  # by elements, all of them, and of a size that is felt in 16 bits
        start = [rng.standard_normal(3)] if matrix else start
    if name == "nonfinite":
        grads[3, 2] = np.nan
    results = []
    for a in (base, arguments):
        p = copy.deepcopy(start)
        opt = RULES[rule](p, **a)
        if hasattr(opt, "update_hessian"):
            opt.update_hessian(10.0 * np.abs(start))
        for g in grads:
            opt.step([np.resize(g, x.shape) for x in p] if matrix else g)
        own = type(opt).averaged is not st.Optimizer.averaged
        if name == "state_dtype":  # a rule of signs may not feel it for long
            p = b"".join(x.tobytes() for x in opt.state["0"].values())
            p = np.frombuffer(p, np.uint8)
        averaged = opt.averaged()["0"].tobytes() if own else b""
        p = np.concatenate([x.ravel() for x in p]) if isinstance(p, list) else p
        results.append((p.tobytes(), averaged, sorted(opt.state["0"])))
    assert results[0] != results[1], name


def test_any_hyperparameter_may_be_a_schedule():
    """The reference, given each step's values as numbers, has the same bits."""
    rng = np.random.default_rng(0)
    p = rng.standard_normal(33)
    twin = p.copy()
    schedules = {
        "lr": lambda t: 0.1 / (1 + t),
        "betas": (lambda t: 0.5 + 0.01 * t, lambda t: 0.9 + 0.001 * t),
        "eps": lambda t: 1e-8 * (1 + t),
        "weight_decay": lambda t: 0.1 * (t % 2),
        "l1": lambda t: 0.01 * (t % 3),
        "ema": lambda t: 0.5 + 0.01 * t,
    }
    opt = st.AdamW(p, **schedules)
    state = {k: x.copy() for k, x in opt.state["0"].items()}
    fixed = reference_hyper(opt)
    for t in range(30):
        g = rng.standard_normal(33)
        opt.step(g)
        now = {k: (f[0](t), f[1](t)) if k == "betas" else f(t) for k, f in schedules.items()}
        reference.step("adamw", twin, g, state, t + 1, **fixed | now)
    same_bits(p, twin)
    same_bits(opt.state["0"]["ema"], state["ema"])


def test_hyperparameters_changed_in_place_are_seen():
    rng = np.random.default_rng(0)
    w, twin = np.ones(5), np.ones(5)
    opt, other = st.Adam(w), st.Adam(twin)
    betas, lr = [0.9, 0.99], np.array(0.1)
    opt.param_groups[0].update(betas=betas, lr=lr)
    for b1, rate in ((0.9, 0.1), (0.5, 0.1), (0.5, 0.3)):
        betas[0] = b1
        lr[...] = rate
        other.param_groups[0].update(betas=(b1, 0.99), lr=rate)
        g = rng.standard_normal(5)
        opt.step(g)
        other.step(g)
    same_bits(w, twin)
    for optimizer in (opt, other):
        optimizer.param_groups[0]["lr"] = np.array([0.1, 0.2])
        with pytest.raises(TypeError, match="lr = array"):
            optimizer.step(np.ones(5))


def test_scheduled_momentum_keeps_its_buffer():
    w = np.zeros(3)
    opt = st.SGD(w, lr=1.0, momentum=lambda t: 0.5 * (t > 0))
    opt.step(np.ones(3))
    opt.step(np.ones(3))
    assert w.tolist() == [-2.5] * 3  # -1, then -(0.5 + 1)


def test_a_flag_switched_on_later_gets_its_state():
    rng = np.random.default_rng(0)
    w = rng.standard_normal(5)
    opt = st.Adam(w)
    opt.step(rng.standard_normal(5))
    opt.param_groups[0]["amsgrad"] = True
    opt.step(rng.standard_normal(5))
    np.testing.assert_array_equal(opt.state["0"]["max_exp_avg_sq"], opt.state["0"]["exp_avg_sq"])


# The non-finite policy


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("position", [0, 4095, 4096, 9999])
def test_nonfinite_gradients_raise_or_skip(bad, dtype, position):
    params = {"a": np.zeros(3, dtype), "b": np.zeros(10_000, dtype)}
    grads = {"a": np.ones(3, dtype), "b": np.ones(10_000, dtype)}
    spoiled = {"a": grads["a"], "b": grads["b"].copy()}
    spoiled["b"][position] = bad
    for policy in ("raise", "skip"):
        opt = st.AdamW(params, nonfinite=policy)
        opt.step(grads)
        before = snapshot(opt, params.values())
        if policy == "raise":
            with pytest.raises(FloatingPointError, match="gradient of parameter 'b'"):
                opt.step(spoiled)
        else:
            opt.step(spoiled)
            assert opt.skipped == 1
        assert snapshot(opt, params.values()) == before
        opt.step(grads)
        assert opt.updates == 2


def test_nonfinite_gradients_propagate_by_default():
    w = np.zeros(3)
    st.SGD(w, lr=1.0).step(np.array([1.0, np.nan, np.inf]))
    np.testing.assert_array_equal(w, [-1.0, np.nan, -np.inf])


@pytest.mark.parametrize("size", [1e200, 1e300])
def test_large_finite_gradients_are_no_offence(size):
    w = np.zeros(1000)
    opt = st.SGD(w, lr=0.0, nonfinite="raise")
    opt.step(np.full(1000, size))
    assert math.isfinite(opt.last_norm)


# State in and out


@pytest.mark.parametrize(("rule", "arguments"), CONFIGURATIONS, ids=label)
def test_resuming_gives_the_bits_of_going_on(rule, arguments):
    rng = np.random.default_rng(2)
    start = {"w": rng.standard_normal((5, 7)).astype(np.float32), "b": rng.standard_normal(3)}
    grads = [
        {"w": rng.standard_normal((5, 7)).astype(np.float32), "b": rng.standard_normal(3)}
        for _ in range(12)
    ]
    options = arguments | {"lr": st.schedules.inverse_time(0.1, 0.5), "ema": 0.9}
    whole = {k: x.copy() for k, x in start.items()}
    opt = RULES[rule](whole, **options)
    for g in grads:
        opt.step(g)
    for stop in (0, 1, 6):
        part = {k: x.copy() for k, x in start.items()}
        first = RULES[rule](part, **options)
        for g in grads[:stop]:
            first.step(g)
        resumed = {k: x.copy() for k, x in part.items()}
        second = RULES[rule](resumed, lr=0.5, ema=0.1)
        state = pickle.loads(pickle.dumps(first.state_dict()))
        if set(second.state["w"]) == set(state["state"]["w"]):
            second.load_state_dict(state)
        else:  # a flag that changes the states must be given to the constructor
            second = RULES[rule](resumed, **options)
            second.load_state_dict(state)
        for g in grads[stop:]:
            second.step(g)
        for key in start:
            same_bits(resumed[key], whole[key], f"{rule} resumed at {stop}")
        assert second.updates == 12


def test_a_state_dict_fits_its_groups_as_they_are_now():
    """Arrays that a changed group no longer asks for are left out; new ones begin."""
    for before, after in ((0.5, None), (None, 0.5)):
        opt = st.SGD({"w": np.full(3, 2.0)}, ema=before, momentum=0.9)
        opt.step({"w": np.ones(3)})
        opt.param_groups[0]["ema"] = after
        saved = opt.state_dict()
        assert ("ema" in saved["state"]["w"]) == (after is not None)
        twin = copy.deepcopy(opt)
        twin.load_state_dict(saved)
        for each in (opt, twin):
            each.step({"w": np.ones(3)})
        np.testing.assert_equal(opt.state_dict(), twin.state_dict())


@pytest.mark.parametrize(
    ("cls", "key", "on", "off"),
    [
        (st.SGD, "momentum", 0.9, 0.0),
        (st.AdamW, "amsgrad", True, False),
        (st.SGD, "ema", 0.5, None),
        (st.SGD, "average", st.average.tail(), None),
        (st.SGD, "lookahead", st.average.lookahead(2), None),
        (st.SGD, "filter", st.filters.grokfast(0.5), ()),
        (st.SGD, "filter", st.filters.mars(0.5), ()),
        (st.SGD, "regularize", st.regularize.toward_initial(0.5), ()),
    ],
    ids=lambda x: getattr(x, "__name__", repr(x)),
)
def test_what_a_step_does_without_begins_anew_as_in_a_saved_run(cls, key, on, off):
    """A state that a group asks for again, once a step went without it, whether saved or not."""
    runs = [np.full(3, 2.0), np.full(3, 2.0)]
    opts = [cls({"w": w}, lr=0.1, **{key: on}) for w in runs]
    began = {*opts[0].state["w"]}
    for t, value in enumerate((on, on, off, on, on)):
        for opt in opts:
            opt.param_groups[0][key] = value
            opt.step({"w": np.full(3, t + 1.0)})
        assert ({*opts[0].state["w"]} == began) == (value == on)
        opts[1].load_state_dict(opts[1].state_dict())
        same_bits(*runs)


def test_a_state_that_was_deleted_begins_anew():
    """In whatever order: names belong to the parameters, not to the state's order."""
    opt = st.Adam({"a": np.zeros(1), "b": np.zeros(1)}, clip=st.clip.norm(9.0))
    opt.step({"a": np.ones(1), "b": np.ones(1)})
    del opt.state["a"]
    opt.step({"a": np.array([1.0]), "b": np.array([2.0])})
    assert opt.state["a"]["step"] == 1 and opt.state["b"]["step"] == 2
    assert opt.last_norms == {"a": 1.0, "b": 2.0}


def test_state_dict_is_a_copy():
    w = np.ones(3)
    opt = st.Adam(w)
    opt.step(np.ones(3))
    saved = opt.state_dict()
    kept = copy.deepcopy(saved)
    opt.step(np.ones(3))
    np.testing.assert_equal(saved, kept)
    opt.load_state_dict(saved)
    opt.step(np.ones(3))
    np.testing.assert_equal(saved, kept)
    saved["state"]["0"]["exp_avg"][...] = 9.0
    assert opt.state["0"]["exp_avg"].max() < 1.0


BAD_STATES = {
    "another rule": (lambda s: s.update(rule="sgd"), "state of rule 'sgd'"),
    "other names": (
        lambda s: s["param_groups"][0].update(param_names=["v"]), "other parameter names"
    ),
    "a missing state": (lambda s: s["state"]["w"].pop("exp_avg"), "has keys"),
    "an extra state": (lambda s: s["state"]["w"].update(foo=np.zeros(3)), "has keys"),
    "a wrong shape": (
        lambda s: s["state"]["w"].update(exp_avg=np.zeros(2)), "'exp_avg' of parameter 'w'"
    ),
    "a wrong type": (
        lambda s: s["state"]["w"].update(exp_avg=np.zeros(3, np.float32)), "expected float64"
    ),
    "a negative step": (lambda s: s["state"]["w"].update(step=-1), "step of parameter 'w'"),
    "half a step": (lambda s: s["state"]["w"].update(step=0.5), "step of parameter 'w'"),
    "a bad rate": (lambda s: s["param_groups"][0].update(lr=-1.0), "lr = -1.0"),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD_STATES)
def test_bad_state_dicts_change_nothing(bad):
    spoil, message = BAD_STATES[bad]
    w = {"w": np.ones(3)}
    opt = st.Adam(w)
    opt.step({"w": np.ones(3)})
    state = opt.state_dict()
    spoil(state)
    before, groups = snapshot(opt, w.values()), copy.deepcopy(opt.param_groups[0]["lr"])
    with pytest.raises(ValueError, match=message):
        opt.load_state_dict(state)
    assert snapshot(opt, w.values()) == before and opt.param_groups[0]["lr"] == groups
    opt.step({"w": np.ones(3)})


@pytest.mark.parametrize("via", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_independent_and_go_on_alike(via):
    opt = st.AdamW({"w": np.ones(3)}, lr=st.schedules.inverse_sqrt(0.1))
    opt.step({"w": np.ones(3)})
    twin = via(opt)
    opt.step({"w": np.ones(3)})
    assert twin.updates == 1
    twin.step({"w": np.ones(3)})
    same_bits(twin.param_groups[0]["params"][0], opt.param_groups[0]["params"][0])
    assert twin.param_groups[0]["params"][0] is not opt.param_groups[0]["params"][0]


@pytest.mark.parametrize("t", [2**24 - 1, 2**31, 2**53 - 2])
def test_late_steps_use_the_exact_count(t):
    w, twin = np.ones(5), np.ones(5)
    opt = st.Adam(w, lr=0.1)
    opt.state["0"]["step"][...] = t
    state = {k: x.copy() for k, x in opt.state["0"].items()}
    opt.step(np.ones(5))
    reference.step("adam", twin, np.ones(5), state, t + 1, **reference_hyper(opt))
    same_bits(w, twin)
    assert opt.state["0"]["step"] == t + 1


# Promises about the process


def test_a_steady_step_allocates_nothing_like_the_parameters():
    """Everything around the step together, on 4 MB arrays, once the plan stands."""
    w, g = np.zeros(1_000_000, np.float32), np.ones(1_000_000, np.float32)
    opt = st.AdamW(w, clip=st.clip.global_norm(1.0), l1=0.1, ema=0.9, nonfinite="raise")
    opt.step(g)
    opt.step(g)
    tracemalloc.start()
    try:
        for _ in range(5):
            opt.step(g.copy())
            opt.step(g)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - g.nbytes < 50_000  # the copy of g, and small objects


def test_two_threads_in_one_optimizer():
    """The second caller is refused; nothing is torn."""
    w, g = np.zeros(300_000), np.ones(300_000)
    opt = st.SGD(w, lr=1.0)
    refused, done = [], []

    def work():
        for _ in range(60):
            try:
                opt.step(g)
                done.append(1)
            except RuntimeError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("another thread" in message for message in refused)
    assert opt.updates == len(done)
    np.testing.assert_array_equal(w, -float(len(done)))


def test_optimizers_in_different_threads_do_not_disturb_each_other():
    rng = np.random.default_rng(0)
    grads = rng.standard_normal((20, 70_000))
    expected = np.zeros(70_000)
    opt = st.Adam(expected)
    for g in grads:
        opt.step(g)
    results = [np.zeros(70_000) for _ in range(6)]

    def work(p):
        mine = st.Adam(p)
        for g in grads:
            mine.step(g)

    threads = [threading.Thread(target=work, args=(p,)) for p in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for p in results:
        same_bits(p, expected)


def test_optimizers_are_freed_without_the_garbage_collector():
    import gc
    import weakref

    gc.disable()
    try:
        w = np.zeros(3)
        opt = st.Adam(w)
        opt.step(np.ones(3))
        ref = weakref.ref(opt)
        del opt
        assert ref() is None
    finally:
        gc.enable()


# Properties that hold without any reference


@pytest.mark.parametrize(("rule", "arguments"), CONFIGURATIONS, ids=label)
def test_metamorphic_properties(rule, arguments):
    rng = np.random.default_rng(9)
    start, grads = rng.standard_normal(50), rng.standard_normal((8, 50))

    def final(start, grads, **options):
        p = start.copy()
        opt = RULES[rule](p, **arguments | options)
        for g in grads:
            opt.step(g)
        return p

    whole = final(start, grads)
    if (rule, arguments.get("convention")) != ("yogi", "optax"):  # whose m starts above 0
        same_bits(final(-start, -grads), -whole, "odd symmetry")
    same_bits(final(start, -grads, maximize=True), whole, "climbing is descending the negative")
    if RULES[rule].needs != "element-wise":
        return  # what is elsewhere matters, and sums depend on the order
    halves = [final(start[:20], grads[:, :20]), final(start[20:], grads[:, 20:])]
    same_bits(np.concatenate(halves), whole, "partition")
    order = rng.permutation(50)
    same_bits(final(start[order], grads[:, order]), whole[order], "permutation")
    if rule != "rprop":  # whose lr is the size of the first step, held within bounds
        same_bits(final(start, grads, lr=0.0, weight_decay=0.0), start, "a rate of 0 moves nothing")


def test_every_rule_is_described():
    for rule, cls in RULES.items():
        assert cls.rule == rule and cls.__name__.lower() == rule
        assert "←" in cls.formula and "p" in cls.formula, rule
        assert any(character.isdigit() for character in cls.source), rule
        assert ">>>" in cls.__doc__ and "Raises" in cls.__doc__, rule
        assert rule in reference.RULES, rule
