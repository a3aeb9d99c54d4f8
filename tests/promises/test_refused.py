"""Every argument changes the result or is refused: arguments without effect beside others, and
values of wrong kinds."""

import decimal
import fractions

import numpy as np
import pytest

import steepest as st

MATRIX = {"w": np.zeros((3, 3))}
ALL = {"w": np.zeros((3, 3)), "b": np.zeros(3)}

IDLE = [
    (st.LAMB, {"adapt": False, "norm_bounds": (0.1, 2.0)}, r"norm_bounds = \(0.1, 2.0\) .*adapt"),
    (st.LARS, {"adapt": False, "trust_coefficient": 0.1}, "trust_coefficient = 0.1 .*adapt=False"),
    (st.LARS, {"adapt": False, "eps": 0.1}, "eps = 0.1 has no effect with adapt=False"),
    (st.LARS, {"adapt": False, "trust_clip": True}, "trust_clip = True has no effect with adapt"),
    (st.Adagrad, {"eps": 0.0, "eps_inside_sqrt": True}, "eps_inside_sqrt = True .* with eps=0"),
    (st.Muon, {"momentum": 0.0, "nesterov": True}, "nesterov = True .*without momentum; leave it"),
    (st.NorMuon, {"momentum": 0.0}, "nesterov = True has no effect without momentum; leave it"),
    (st.Muon, {"ns_steps": 0, "ns_coefficients": (3.0, -3.0, 1.0)}, "ns_coefficients .*ns_steps=0"),
    (st.PSGDKron, {"memory_save_mode": "all_diag", "max_size_triangular": 9}, "max_size_triang"),
    (st.PSGDKron, {"memory_save_mode": "all_diag", "min_ndim_triangular": 1}, "min_ndim_triang"),
    (
        st.PSGDKron, {"momentum": 0.0, "momentum_into_precondition_update": False},
        "momentum_into_precondition_update = False has no effect without momentum",
    ),
    (
        st.PSGDKron, {"preconditioner_update_probability": 0.0, "seed": 5},
        "seed = 5 has no effect with preconditioner_update_probability=0; leave it at 0",
    ),
    (st.SGD, {"exclude": "vectors", "weight_decay": 0.1}, 'exclude of "vectors": no parameter has'),
    (st.Muon, {"exclude": ["w", "vectors"]}, 'exclude of "vectors": no parameter has'),
    (st.SGD, {"overrides": {"vectors": {"lr": 0.1}}}, 'overrides of "vectors": no parameter has'),
    (st.Muon, {"overrides": {"w": {"betas": (0.5, 0.5)}}}, "overrides of 'w': .*'betas'"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "arguments", "message"), IDLE)
def test_an_argument_without_effect_is_refused(rule, arguments, message):
    with pytest.raises(ValueError, match=message):
        rule(MATRIX, **arguments)
    if not {"exclude", "overrides"} & arguments.keys() and len(arguments) > 1:
        with pytest.raises(ValueError, match=message):
            rule([{"params": MATRIX, **arguments}])


def test_one_group_that_uses_an_argument_is_enough():
    one = st.LARS(ALL, trust_coefficient=0.3, overrides={"b": {"adapt": False}})
    assert [g["adapt"] for g in one.param_groups] == [True, False]
    other = st.LARS(ALL, trust_coefficient=0.3, adapt=False, overrides={"w": {"adapt": True}})
    assert [g["adapt"] for g in other.param_groups] == [True, False]
    again = st.LARS([{**group} for group in one.param_groups])
    assert repr(again.param_groups) == repr(one.param_groups)
    st.SGD(ALL, exclude="vectors", weight_decay=0.1)
    st.Muon(ALL, overrides={"*": {"momentum": 0.5}})  # which is for the matrix
    with pytest.raises(ValueError, match=r"overrides of 'b': there is no .*'momentum'"):
        st.Muon(ALL, overrides={"b": {"momentum": 0.5}})
    opt = st.Muon(MATRIX, momentum=0.5)
    opt.param_groups[0]["momentum"] = 0.0  # in training, a value is a value
    opt.step({"w": np.ones((3, 3))})


NO_NUMBERS = [
    b"0.5", bytearray(b"0.5"), memoryview(b"1"), "0.5", True, np.True_, np.bytes_(b"0.5"),
    np.complex64(1), 1j, np.array(True), np.array("0.5"), np.array(0.5, object),
    np.array([0.5]), np.timedelta64(1, "s"), [0.5], None, {},
]  # fmt: skip


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda x: repr(x).partition(" at 0x")[0])
def test_what_is_no_number_is_refused(value):
    for made in (
        lambda: st.SGD(MATRIX, lr=value),
        lambda: st.SGD(MATRIX, lr=lambda count: value).step({"w": np.ones((3, 3))}),
        lambda: st.AdamW(MATRIX, betas=(value, 0.99)),
        lambda: st.SGD([{"params": MATRIX, "weight_decay": value}]),
        lambda: st.LBFGS(MATRIX, lr=value),
    ):
        with pytest.raises(TypeError, match=r"expected (a|one|a finite) number"):
            made()


@pytest.mark.parametrize("value", [10**400, -(10**400)], ids=["large", "small"])
def test_an_integer_beyond_double_is_out_of_range(value):
    for key in ("lr", "momentum"):
        with pytest.raises(ValueError, match=f"{key} = -?inf: expected a finite number"):
            st.SGD(MATRIX, **{key: value})


@pytest.mark.parametrize(
    "value",
    [0.5, np.float16(0.5), np.array(0.5), fractions.Fraction(1, 2), decimal.Decimal("0.5")],
    ids=repr,
)
def test_what_is_a_number_is_taken(value):
    assert st.SGD(MATRIX, lr=value).param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("skipped", [-5, 2.5, "many", None])
def test_a_count_of_skipped_steps_is_a_count(skipped):
    opt = st.SGD(MATRIX, lr=0.5)
    state = opt.state_dict() | {"skipped": skipped}
    with pytest.raises(ValueError, match="skipped"):
        opt.load_state_dict(state)
    assert opt.skipped == 0


# Rprop


def test_rprop_begins_with_the_rate_of_its_first_step():
    w = {"a": np.zeros(2), "b": np.zeros(2)}
    opt = st.Rprop(w, lr=0.125)
    opt.param_groups[0]["lr"] = 0.5
    opt.step({"a": np.ones(2), "b": None})
    opt.param_groups[0]["lr"] = 0.25
    opt.step({"a": None, "b": np.ones(2)})
    assert w["a"].tolist() == [-0.5, -0.5] and w["b"].tolist() == [-0.25, -0.25]


def test_rprop_begins_with_the_sizes_that_its_state_was_given():
    w = np.zeros(2)
    opt = st.Rprop(w, lr=0.125)
    opt.state["0"]["step_size"][...] = [0.5, 0.0]
    opt.step(np.ones(2))
    assert w.tolist() == [-0.5, -0.125]


@pytest.mark.torch
def test_rprop_begins_as_torch_does():
    torch = pytest.importorskip("torch")
    import steepest.torch as stt

    found = []
    for rule in (torch.optim.Rprop, stt.Rprop):
        a, b = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
        opt = rule([a, b], lr=0.125)
        for lr, p in ((0.5, a), (0.25, b), (0.75, a)):
            opt.param_groups[0]["lr"] = lr
            opt.zero_grad()
            p.grad = torch.ones(2)
            opt.step()
        found.append((a.tolist(), b.tolist()))
    assert found[0] == found[1]


# Rules of one's own


def step(p, g, state, t, *, lr=0.5):
    p -= lr * g


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"states": ("step",)}, ValueError, "'step' is taken by what is around every rule"),
        ({"states": ("ema",)}, ValueError, "'ema' is taken"),
        ({"states": ("m", "m")}, ValueError, "'m' is there twice"),
        ({"states": "momentum"}, TypeError, "states = 'momentum': expected a tuple of names"),
        ({"states": (3,)}, TypeError, "expected a tuple of names"),
        ({"needs": "layerwise"}, ValueError, "needs = 'layerwise': expected one of element-wise"),
        ({"decay_mode": "corrected"}, ValueError, "decay_mode = 'corrected': expected one of l2"),
        ({"ranges": {"lrr": (0, 1, True)}}, ValueError, "there is no hyper-parameter 'lrr'"),
    ],
)
def test_arguments_of_a_rule_of_ones_own(arguments, error, message):
    with pytest.raises(error, match=message):
        st.rule(step, **arguments)


def test_a_hyper_parameter_that_every_optimizer_has():
    with pytest.raises(TypeError, match="'clip' is no name for a hyper-parameter"):
        st.rule(lambda p, g, state, t, *, lr=0.5, clip=1.0: None)


@pytest.mark.parametrize("value", [np.array([1j, 2j]), 1j, np.array(["a", "b"])], ids=repr)
def test_a_state_that_is_not_real_is_refused(value):
    @st.rule(states=("m",))
    def turning(p, g, state, t, *, lr=0.5):
        state["m"] = value
        p -= lr * g

    w = {"w": np.zeros(2)}
    opt = turning(w)
    with pytest.raises(TypeError, match=r"state 'm' was replaced by a \w+ of .*expected float64"):
        opt.step({"w": np.ones(2)})
    assert w["w"].tolist() == [0.0, 0.0] and opt.state["w"]["m"].tolist() == [0.0, 0.0]


# State dicts of others

JUNK = [None, 3, "x", [], [3], [None], [[]], [{}], (1, 2), b"x", float("nan"), np.ones(3), object()]
PLACES = [
    ("state",), ("state", 0), ("state", 0, "exp_avg"), ("param_groups",), ("param_groups", 0),
    ("param_groups", 0, "params"), ("param_groups", 0, "param_names"), ("param_groups", 0, "lr"),
]  # fmt: skip


def hostile():
    """State dicts of PyTorch's layout with junk in one place, or nothing but junk."""
    yield from JUNK
    for place in PLACES:
        for junk in [*JUNK, {}, {"a": 1}]:
            opt = st.Adam(ALL)
            opt.step({"w": np.ones((3, 3)), "b": np.ones(3)})
            given = st.convert.to_torch(opt, tensors=False)
            *path, last = place
            there = given
            for key in path:
                there = there[key]
            there[last] = junk
            yield given


@pytest.mark.parametrize(
    "name", ["from_torch", "from_deepspeed", "from_bitsandbytes", "from_flashoptim"]
)
def test_a_hostile_state_dict_is_refused_by_name(name):
    taken = 0
    for given in hostile():
        opt = st.Adam(ALL)
        try:
            getattr(st.convert, name)(given, opt)
        except (TypeError, ValueError) as error:  # of ours, not of Python's
            if "object is not" in str(error) or opt.updates:
                raise
        else:
            taken += 1
    assert taken < 12  # an empty state is that of a parameter without a step
