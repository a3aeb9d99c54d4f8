"""Training goes on: k steps in PyTorch, k here from its state, and the reverse; float64.

The tolerance 1e-12 is for differently ordered roundings; where PyTorch itself rounds to single
precision or below, another is given with its reason.
"""

import numpy as np
import pytest

import steepest as st
from steepest.convert import torch_layout
from steepest.optimizers import RULES

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True, scope="module")
def peers():
    global torch
    torch = pytest.importorskip("torch")


SHAPES = {"a": (4, 3), "b": (3,), "c": (2, 3, 2)}
CLOSE = {"rtol": 1e-12, "atol": 1e-13}
SINGLE = {"rtol": 1e-6, "atol": 1e-8}  # PyTorch keeps a number in single precision
HALF = {"rtol": 2e-2, "atol": 2e-2}  # PyTorch orthogonalises in bfloat16

CASES = [
    ("sgd", {}, CLOSE),
    ("sgd", {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}, CLOSE),
    ("sgd", {"momentum": 0.9, "nesterov": True, "maximize": True}, CLOSE),
    ("adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.2, "weight_decay": 0.1}, CLOSE),
    ("rmsprop", {"weight_decay": 0.1}, CLOSE),
    ("rmsprop", {"momentum": 0.8, "centered": True, "alpha": 0.8}, CLOSE),
    ("adadelta", {"lr": 0.5, "rho": 0.8, "weight_decay": 0.1}, CLOSE),
    ("rprop", {"etas": (0.4, 1.3), "step_sizes": (1e-5, 2.0)}, CLOSE),
    ("adam", {"betas": (0.8, 0.95), "weight_decay": 0.1}, CLOSE),
    ("adam", {"amsgrad": True, "eps": 1e-3, "maximize": True}, CLOSE),
    ("adam", {"weight_decay": 0.1, "decoupled_weight_decay": True}, CLOSE),
    ("adamw", {"weight_decay": 0.2, "amsgrad": True}, CLOSE),
    ("adamax", {"betas": (0.8, 0.9), "weight_decay": 0.1}, CLOSE),
    ("nadam", {"momentum_decay": 0.01, "decoupled_weight_decay": True, "weight_decay": 0.1},
     SINGLE),
    ("radam", {"betas": (0.8, 0.9), "weight_decay": 0.1}, CLOSE),
    ("asgd", {"lambd": 0.01, "t0": 3.0, "weight_decay": 0.1}, SINGLE),
    ("adafactor", {"weight_decay": 0.1, "d": 1.5, "beta2_decay": -0.7}, SINGLE),
    ("muon", {"momentum": 0.9, "weight_decay": 0.2}, HALF),
]  # fmt: skip


def shapes(rule):
    return {"a": (4, 3), "d": (3, 5)} if rule == "muon" else SHAPES


def gradients(rule, steps=12, seed=0):
    """Of two kinds of parameters: one has no gradient in the first steps."""
    random = np.random.default_rng(seed)
    grads = [{k: random.normal(size=s) for k, s in shapes(rule).items()} for _ in range(steps)]
    late = list(shapes(rule))[-1]
    return [g | {late: None} if t < 2 else g for t, g in enumerate(grads)]


def start(rule, seed=1):
    random = np.random.default_rng(seed)
    return {k: random.normal(size=s) for k, s in shapes(rule).items()}


class Peer:
    """PyTorch's class of a rule, stepped with gradients by name."""

    def __init__(self, rule, params, hyper, dtype=None, named=False):
        dtype = dtype or torch.float64
        self.params = {
            k: torch.nn.Parameter(torch.tensor(x, dtype=dtype)) for k, x in params.items()
        }
        given = list(self.params.items()) if named else list(self.params.values())
        made = getattr(torch.optim, torch_layout.LAYOUTS[rule].name)
        self.opt = made(given, **({"lr": 0.05} | hyper))

    def step(self, grads):
        for k, p in self.params.items():
            g = grads[k]
            p.grad = None if g is None else torch.tensor(g, dtype=p.dtype)
        self.opt.step()

    def values(self):
        return {k: p.detach().numpy().copy() for k, p in self.params.items()}


def here(rule, params, hyper, **more):
    p = {k: x.copy() for k, x in params.items()}
    return RULES[rule](p, **({"lr": 0.05} | hyper | more)), p


def assert_close(p, q, close):
    for k in p:
        np.testing.assert_allclose(p[k], q[k], **close, err_msg=k)


def label(x):
    return "" if "rtol" in x else x if isinstance(x, str) else "-".join(x)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(("rule", "hyper", "close"), CASES, ids=label)
def test_training_goes_on_from_torch(rule, hyper, close, named):
    """The optimizer here begins with other numbers, and takes those of the state dict."""
    grads = gradients(rule)
    peer = Peer(rule, start(rule), hyper, named=named)
    for g in grads[:6]:
        peer.step(g)
    flags = {k: x for k, x in hyper.items() if k in ("centered", "momentum", "initial")}
    opt, p = here(rule, peer.values(), flags)
    st.convert.from_torch(peer.opt.state_dict(), opt)
    for g in grads[6:]:
        peer.step(g)
        opt.step(g)
    assert_close(p, peer.values(), close)


@pytest.mark.parametrize(("rule", "hyper", "close"), CASES, ids=label)
def test_training_goes_on_in_torch(rule, hyper, close):
    grads = gradients(rule)
    opt, p = here(rule, start(rule), hyper)
    for g in grads[:6]:
        opt.step(g)
    peer = Peer(rule, p, {})
    peer.opt.load_state_dict(st.convert.to_torch(opt))
    for g in grads[6:]:
        peer.step(g)
        opt.step(g)
    assert_close(p, peer.values(), close)
    theirs = peer.opt.state_dict()["state"]
    for i, state in st.convert.to_torch(opt)["state"].items():
        assert_close(state, theirs[i], close)


@pytest.mark.parametrize(("rule", "hyper", "close"), CASES, ids=label)
def test_a_state_dict_has_torchs_keys_shapes_and_dtypes(rule, hyper, close):
    """But for numbers that PyTorch keeps in single precision, which have the parameter's here."""
    grads = gradients(rule)
    opt, _ = here(rule, start(rule), hyper)
    peer = Peer(rule, start(rule), hyper, named=True)
    for g in grads[:2]:
        opt.step(g)
        peer.step(g)
    given, expected = st.convert.to_torch(opt, param_names=True), peer.opt.state_dict()
    strip = {"step": lambda x: (x.dtype, x.shape)}
    for groups in (given, expected):
        for group in groups["param_groups"]:
            group["params"] = list(group["params"])
    ours, theirs = given["param_groups"][0], expected["param_groups"][0]
    assert ours.keys() == theirs.keys()
    for key, x in theirs.items():
        if key in hyper or key in ("lr", "params", "param_names", "maximize"):
            assert ours[key] == x, key
    filled = {i: s for i, s in expected["state"].items() if any(x is not None for x in s.values())}
    assert given["state"].keys() == filled.keys()
    for i, state in filled.items():
        assert given["state"][i].keys() == state.keys()
        for key, x in state.items():
            assert given["state"][i][key].shape == x.shape, key
            if key not in ("mu_product", "eta", "mu"):
                assert strip.get(key, lambda x: x.dtype)(given["state"][i][key]) == strip.get(
                    key, lambda x: x.dtype
                )(x), key


@pytest.mark.parametrize(("rule", "hyper", "close"), CASES, ids=label)
def test_there_and_back_is_the_same(rule, hyper, close):
    opt, p = here(rule, start(rule), hyper)
    for g in gradients(rule)[:5]:
        opt.step(g)
    again, _ = here(rule, p, hyper)
    state_dict = st.convert.to_torch(opt)
    counted = torch_layout.LAYOUTS[rule].counts
    st.convert.from_torch(state_dict, again, step=None if counted else 5)
    ours, theirs = opt.state_dict(), again.state_dict()
    for name, state in ours["state"].items():
        for key, x in state.items():
            if key != "step" or counted:
                np.testing.assert_array_equal(theirs["state"][name][key], x, f"{name} {key}")
    assert theirs["param_groups"] == ours["param_groups"]


def test_every_rule_of_torch_is_there():
    classes = {
        name for name in dir(torch.optim)
        if isinstance(getattr(torch.optim, name), type) and name[0].isupper()
    }  # fmt: skip
    classes -= {"Optimizer", "LBFGS", "SparseAdam"}
    assert {layout.name for layout in torch_layout.LAYOUTS.values()} == classes
    assert list(torch_layout.LAYOUTS) == [x for x in RULES if x in torch_layout.LAYOUTS]


# Matching


def trained(rule="adam", hyper=None, groups=None, **kind):
    """PyTorch's Adam after three steps, and its parameters' values."""
    peer = Peer(rule, start(rule), hyper or {}, **kind)
    for g in gradients(rule)[2:5]:
        peer.step(g)
    return peer


def test_groups_of_torch_are_taken_by_name():
    """Decay and no decay, as trainers make them, in another order than here."""
    params = {k: torch.nn.Parameter(torch.tensor(x)) for k, x in start("adam").items()}
    groups = [
        {"params": [("b", params["b"])], "weight_decay": 0.0, "lr": 0.3},
        {"params": [("c", params["c"]), ("a", params["a"])], "weight_decay": 0.1, "lr": 0.2},
    ]
    peer = torch.optim.AdamW(groups)
    for k, p in params.items():
        p.grad = torch.tensor(gradients("adam")[3][k])
    peer.step()
    values = {k: p.detach().numpy().copy() for k, p in params.items()}
    opt = st.AdamW(values, exclude="vectors")
    st.convert.from_torch(peer.state_dict(), opt)
    found = {n: g["lr"] for g in opt.param_groups for n in g["param_names"]}
    assert found == {"a": 0.2, "b": 0.3, "c": 0.2}
    for k, p in params.items():
        np.testing.assert_array_equal(opt.state[k]["exp_avg"], peer.state[p]["exp_avg"].numpy())


def test_parameters_without_names_are_taken_in_the_order_they_were_given():
    """Though ``exclude`` has sorted those here into two groups."""
    random = np.random.default_rng(5)
    params = {k: random.normal(size=s) for k, s in {"x": (2,), "w": (2, 2), "y": (2,)}.items()}
    peer = Peer("adam", params, {})
    peer.step({k: np.full(x.shape, i + 1.0) for i, (k, x) in enumerate(params.items())})
    opt = st.Adam(params, exclude="vectors", lr=0.1)
    st.convert.from_torch(peer.opt.state_dict(), opt)
    for k, p in peer.params.items():
        np.testing.assert_array_equal(
            opt.state[k]["exp_avg"], peer.opt.state[p]["exp_avg"].numpy(), k
        )


def test_names_say_whose_state_is_whose():
    peer = Peer("adam", {"p": np.ones(2), "q": np.ones(2)}, {})
    peer.step({"p": np.ones(2), "q": np.full(2, 3.0)})
    opt = st.Adam({"q": np.ones(2), "p": np.ones(2)})
    st.convert.from_torch(peer.opt.state_dict(), opt, names=["p", "q"])
    np.testing.assert_allclose(opt.state["q"]["exp_avg"], 0.3)
    with pytest.raises(ValueError, match=r"missing \['q'\], unknown \['x'\]"):
        st.convert.from_torch(peer.opt.state_dict(), opt, names=["p", "x"])


def test_states_under_names_are_taken():
    """As ``torch.distributed.checkpoint`` writes them."""
    arrays = {"step": torch.tensor(4.0), "exp_avg": np.ones(2), "exp_avg_sq": np.ones(2)}
    state_dict = {"state": {"q": arrays}, "param_groups": [{"params": ["p", "q"], "lr": 0.5}]}
    opt = st.Adam({"q": np.ones(2), "p": np.ones(2)})
    st.convert.from_torch(state_dict, opt)
    assert (int(opt.state["q"]["step"]), int(opt.state["p"]["step"])) == (4, 0)


def test_groups_that_cannot_be_matched_are_refused():
    peer = trained()
    state_dict = peer.opt.state_dict()
    group = state_dict["param_groups"][0]
    state_dict["param_groups"] = [group | {"params": [0]}, group | {"params": [1, 2]}]
    opt = st.Adam(peer.values(), overrides={"a": {"lr": 1.0}, "b": {"lr": 2.0}})
    with pytest.raises(ValueError, match=r"other groups than here.*give names="):
        st.convert.from_torch(state_dict, opt)
    state_dict["param_groups"][1]["lr"] = 7.0
    with pytest.raises(ValueError, match=r"differ in lr"):
        st.convert.from_torch(state_dict, st.Adam(peer.values()), names=["a", "b", "c"])


# Hyper-parameters


def test_hyper_parameters_are_taken_or_kept():
    peer = trained(hyper={"lr": torch.tensor(0.25), "weight_decay": 0.5, "eps": 1e-3})
    peer.opt.param_groups[0]["initial_lr"] = 9.0
    schedule = st.schedules.cosine(0.1, steps=10)
    for keep, expected in (
        (False, (0.25, 0.5, 1e-3)), (["lr"], (0.125, 0.5, 1e-3)), (True, (0.125, 0.0, 1e-8)),
    ):  # fmt: skip
        opt = st.Adam(peer.values(), lr=0.125)
        st.convert.from_torch(peer.opt.state_dict(), opt, keep=keep)
        group = opt.param_groups[0]
        assert (group["lr"], group["weight_decay"], group["eps"]) == expected
        assert "initial_lr" not in group
    opt = st.Adam(peer.values(), lr=schedule)
    st.convert.from_torch(peer.opt.state_dict(), opt)
    assert opt.param_groups[0]["lr"] is schedule
    assert opt.updates == 3
    with pytest.raises(TypeError, match=r"keep = 'lr'"):
        st.convert.from_torch(peer.opt.state_dict(), opt, keep="lr")


def test_a_schedule_needs_the_step_that_sgd_does_not_store():
    peer = trained("sgd", {"momentum": 0.9})
    opt = st.SGD(peer.values(), lr=st.schedules.cosine(0.1, steps=10), momentum=0.9)
    with pytest.raises(ValueError, match=r"does not store how many steps sgd.*give step="):
        st.convert.from_torch(peer.opt.state_dict(), opt)
    st.convert.from_torch(peer.opt.state_dict(), opt, step=3)
    assert opt.updates == 3
    plain = trained("sgd")
    opt = st.SGD(plain.values(), lr=st.schedules.cosine(0.1, steps=10))
    st.convert.from_torch(plain.opt.state_dict(), opt, step=4)
    assert opt.updates == 4


@pytest.mark.parametrize("convention", ["torch", "keras"])
def test_the_velocity_gets_the_rate_that_the_convention_has_in_it(convention):
    """lr is constant, so both conventions go the same way."""
    hyper = {"momentum": 0.9, "lr": 0.05}
    peer = trained("sgd", hyper)
    opt, p = here("sgd", peer.values(), hyper, convention=convention)
    st.convert.from_torch(peer.opt.state_dict(), opt)
    back = Peer("sgd", p, hyper)
    back.opt.load_state_dict(st.convert.to_torch(opt))
    for g in gradients("sgd")[5:9]:
        for one in (peer, opt, back):
            one.step(g)
    assert_close(p, peer.values(), CLOSE)
    assert_close(back.values(), peer.values(), CLOSE)


def test_without_a_rate_a_velocity_cannot_be_converted():
    peer = trained("sgd", {"momentum": 0.9})
    peer.opt.param_groups[0]["lr"] = 0.0
    opt, _ = here("sgd", peer.values(), {"momentum": 0.9}, convention="keras")
    with pytest.raises(ValueError, match=r"while lr is 0"):
        st.convert.from_torch(peer.opt.state_dict(), opt)


# Types


def test_old_steps_and_tensors_of_any_kind_are_taken():
    state = {
        "step": 3,  # before PyTorch 1.12
        "exp_avg": torch.full((2,), 0.1, dtype=torch.bfloat16),
        "exp_avg_sq": torch.nn.Parameter(torch.ones(2)),
    }
    opt = st.Adam([np.zeros(2)])
    state_dict = {"state": {0: state}, "param_groups": [{"params": [0]}]}
    st.convert.from_torch(state_dict, opt)
    assert opt.state["0"]["exp_avg"].dtype == np.float64
    assert opt.state["0"]["exp_avg"].tolist() == [0.10009765625] * 2
    assert opt.updates == 3


class Quantised:
    """Like a state of torchao: codes and a way to numbers."""

    def __init__(self, codes, scale):
        self.codes, self.scale = codes, scale

    def dequantize(self):
        return self.codes.float() * self.scale


def test_quantised_tensors_are_dequantised():
    codes = torch.tensor([[1, 2], [3, 250]], dtype=torch.uint8)
    state = {"step": torch.tensor(2.0), "exp_avg": Quantised(codes, 0.5), "exp_avg_sq": codes / 2}
    opt = st.AdamW({"w": np.zeros((2, 2))})
    group = {"params": [0], "lr": torch.tensor(0.5)}
    st.convert.from_torch({"state": {0: state}, "param_groups": [group]}, opt)
    assert opt.state["w"]["exp_avg"].tolist() == [[0.5, 1.0], [1.5, 125.0]]
    assert opt.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_states_have_the_type_of_the_parameters_here(dtype):
    peer = trained(dtype=torch.float32)
    opt = st.Adam({k: x.astype(dtype) for k, x in peer.values().items()})
    st.convert.from_torch(peer.opt.state_dict(), opt)
    assert opt.state["a"]["exp_avg"].dtype == dtype
    theirs = peer.opt.state[peer.params["a"]]["exp_avg"].numpy()
    np.testing.assert_array_equal(opt.state["a"]["exp_avg"], theirs)


def test_steps_beyond_single_precision_stay_exact():
    opt = st.Adam([np.zeros(1)])
    opt.step([np.ones(1)])
    opt.state["0"]["step"][...] = 2**24 + 1
    step = st.convert.to_torch(opt)["state"][0]["step"]
    assert (step.dtype, int(step)) == (torch.float64, 2**24 + 1)


# What is refused


def damaged(change):
    peer = trained()
    state_dict = peer.opt.state_dict()
    change(state_dict)
    opt = st.Adam(peer.values())
    for g in gradients("adam")[2:4]:
        opt.step(g)
    return state_dict, opt


def put(key, made):
    return lambda sd: sd["state"][1].__setitem__(key, made())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("exp_avg", lambda: torch.zeros(4)),
         r"'exp_avg' of parameter 'b' has shape \(4,\); .*\(3,\)"),
        (put("exp_avg", lambda: torch.zeros(3).long()), "'exp_avg' of parameter 'b' has dtype int"),
        (put("exp_avg", lambda: torch.zeros(3) * 1j), "'exp_avg' of parameter 'b' has dtype comp"),
        (put("exp_avg", lambda: "text"), "'exp_avg' of parameter 'b' has dtype <U4"),
        (put("extra", lambda: torch.zeros(3)),
         r"parameter 'b' has the states \['exp_avg', .*'extra'\]"),
        (put("max_exp_avg_sq", lambda: torch.zeros(3)), "parameter 'b' has the states"),
        (put("step", lambda: torch.tensor(1.5)), "step of parameter 'b' = 1.5: expected a count"),
        (put("step", lambda: torch.tensor(float("nan"))), "step of parameter 'b' = nan"),
        (put("step", lambda: -1), "step of parameter 'b' = -1"),
        (put("step", lambda: torch.zeros(2)), "step of parameter 'b' = .*expected one number"),
        (lambda sd: sd["state"][1].pop("step"), "parameter 'b' has no step"),
        (lambda sd: sd["state"][1].pop("exp_avg"), "parameter 'b' has the states"),
        (lambda sd: sd["state"].__setitem__(9, {}), "state 9 belongs to no parameter"),
        (lambda sd: sd["state"].__setitem__(1, 5), "state of parameter 'b' is a int"),
        (lambda sd: sd["param_groups"][0]["params"].pop(), "state 2 belongs to no parameter"),
        (lambda sd: sd["param_groups"][0].__setitem__("lr", -1.0), "lr = -1.0"),
        (lambda sd: sd["param_groups"][0].__setitem__("lr", torch.zeros(2)), "lr of group 0"),
        (lambda sd: sd.pop("param_groups"), "not a state dict of torch.optim"),
        (lambda sd: sd["param_groups"][0].__setitem__("param_names", ["a", "b", "d"]),
         r"param_names of the state dict.*missing \['c'\], unknown \['d'\]"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name_and_nothing_changes(change, message):
    state_dict, opt = damaged(change)
    before = opt.state_dict()
    with pytest.raises((ValueError, TypeError), match=message):
        st.convert.from_torch(state_dict, opt)
    after = opt.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert after["updates"] == before["updates"]
    for name, state in before["state"].items():
        for key, x in state.items():
            np.testing.assert_array_equal(after["state"][name][key], x)


def test_numbers_beyond_the_type_here_are_refused():
    state = {"step": 1, "exp_avg": np.array([1e200]), "exp_avg_sq": np.array([np.inf])}
    opt = st.Adam([np.zeros(1, np.float32)])
    with pytest.raises(ValueError, match=r"'exp_avg' of parameter '0' has numbers beyond float32"):
        st.convert.from_torch({"state": {0: state}, "param_groups": [{"params": [0]}]}, opt)
    state["exp_avg"] = np.array([1.0])
    st.convert.from_torch({"state": {0: state}, "param_groups": [{"params": [0]}]}, opt)
    assert opt.state["0"]["exp_avg_sq"] == np.inf


def test_another_product_of_momenta_is_refused():
    peer = trained("nadam")
    state_dict = peer.opt.state_dict()
    state_dict["param_groups"][0]["betas"] = (0.5, 0.9)
    opt, _ = here("nadam", peer.values(), {})
    with pytest.raises(ValueError, match=r"'mu_product' of parameter 'a' is"):
        st.convert.from_torch(state_dict, opt)


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("adam", {"convention": "keras"}, "torch has another formula of adam"),
        ("rmsprop", {"convention": "optax"}, "torch has another formula of rmsprop"),
        ("adagrad", {"eps_inside_sqrt": True}, "torch has another formula of adagrad"),
        ("nadam", {"convention": "paper"}, "torch has another formula of nadam"),
        ("adam", {"bias_correction": False}, "torch has no bias_correction of adam"),
        ("adafactor", {"form": "paper"}, "has no form"),
        ("adafactor", {"beta1": 0.9}, "has no beta1"),
        (
            "sgd",
            {"weight_decay": 0.1, "decay_mode": "decoupled"},
            "no weight_decay with decay_mode",
        ),
        ("rprop", {"weight_decay": 0.1}, "no weight_decay with decay_mode"),
        ("adam", {"lookahead": st.average.lookahead(k=5)}, "has no lookahead"),
        ("adam", {"l1": 0.1}, "has no l1"),
        ("adam", {"cautious": True}, "has no cautious"),
        ("muon", {"ns_coefficients": "polar_express"}, "takes three ns_coefficients"),
        ("muon", {"maximize": True}, "cannot maximize"),
        ("lion", {}, "torch.optim has no lion"),
    ],
)
def test_what_torch_lacks_is_refused(rule, options, message):
    opt, _ = here(rule, start("muon"), {}, **options)
    with pytest.raises(ValueError, match=message):
        st.convert.to_torch(opt)


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("adam", {"bias_correction": False}, "torch has no bias_correction of adam"),
        ("adam", {"convention": "keras"}, "torch has another formula of adam"),
        ("adafactor", {"form": "paper"}, "Adafactor has no form"),
        ("adafactor", {"scale_parameter": False}, "Adafactor has no scale_parameter"),
    ],
)
def test_a_formula_that_torch_lacks_does_not_take_its_state(rule, options, message):
    peer = trained(rule)
    opt, _ = here(rule, peer.values(), {}, **options)
    with pytest.raises(ValueError, match=message):
        st.convert.from_torch(peer.opt.state_dict(), opt)


@pytest.mark.parametrize("option", [{"ema": 0.9}, {"average": st.average.tail(start=1)}])
def test_averages_stay_behind_and_cannot_be_made_up(option):
    peer = trained()
    opt = st.Adam(peer.values(), lr=0.05, **option)
    opt.step(gradients("adam")[3])
    assert set(st.convert.to_torch(opt)["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}
    with pytest.raises(ValueError, match=r"has no state '(ema|average)' of parameter 'a'"):
        st.convert.from_torch(peer.opt.state_dict(), opt)


def test_muon_together_with_adamw_is_refused():
    opt = st.Muon({"w": np.ones((2, 2)), "b": np.ones(2)})
    with pytest.raises(ValueError, match=r"no muon with groups of adamw"):
        st.convert.to_torch(opt)


def test_only_optimizers_have_a_state_to_convert():
    with pytest.raises(TypeError, match=r"optimizer is a LBFGS"):
        st.convert.to_torch(st.LBFGS([np.ones(2)]))
