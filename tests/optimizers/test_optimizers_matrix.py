"""The matrix rules as optimizers: what is around them, states of shapes of their own, and bits that
repeat. Their directions have tests of their own, test_matrix_*.py.
"""

import copy
import pickle
import tracemalloc

import numpy as np
import pytest
from cases import DTYPES, MATRICES_ONLY, VARIANTS, hyper, label, same_bits, use_threads
from layouts import laid_out

import steepest as st
from steepest import reference
from steepest.core.description import facts
from steepest.matrix.linalg import DecompositionError
from steepest.optimizers import RULES

SHAPES = {"a": (12, 5), "b": (5,), "conv": (4, 3, 2), "wide": (6, 9), "s": (), "none": (0, 4)}
MUON = [
    {"ns_coefficients": "polar_express", "nesterov": False, "adjust_lr_fn": "match_rms_adamw"},
    {"ns_coefficients": ((4.0, -6.8, 2.9), (3.4, -4.7, 2.0)), "ns_steps": 3, "momentum": 0.7},
]
CONFIGURATIONS = [
    (rule, hyper(rule, variant))
    for rule, cls in RULES.items()
    if cls.needs == "matrix"
    for variant in (MUON if rule in MATRICES_ONLY else VARIANTS[rule])
]
AROUND = [
    {},
    {"clip": (st.clip.global_norm(2.0), st.clip.value(0.5)), "maximize": True, "l1": 0.02},
    {"decay_mode": "l2", "ema": 0.9, "exclude": "vectors"},
    {"regularize": (st.regularize.toward_initial(0.1, decoupled=True), st.regularize.max_norm(3))},
    {"overrides": {"w*": {"lr": 0.3, "weight_decay": 0.0}}, "nonfinite": "skip"},
]

every = pytest.mark.parametrize(("rule", "arguments"), CONFIGURATIONS, ids=label)


def draw(seed, dtype=np.float64, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return {k: np.asarray(rng.standard_normal(shape), dtype) for k, shape in shapes.items()}


def train(opt, seeds, dtype=np.float64):
    for seed in seeds:
        opt.step(draw(seed, dtype))


def assert_same(params, others):
    for name, p in params.items():
        same_bits(p, others[name], name)


def assert_same_state(opt, other):
    np.testing.assert_equal(opt.state_dict()["state"], other.state_dict()["state"])


# Everything around them


@every
@pytest.mark.parametrize("options", AROUND, ids="+".join)
@pytest.mark.parametrize("dtype", DTYPES, ids=label)
def test_steps_equal_the_reference(rule, arguments, options, dtype):
    """The reference calls the same functions: this is about all that is around them."""
    use_threads(2)
    params, twins = draw(1, dtype), draw(1, dtype)
    plain = {k: x for k, x in options.items() if k != "clip"}
    clipped = {"clip": st.clip.value(0.5)} if "clip" in options else {}
    opt = RULES[rule](params, **arguments | plain | clipped)
    states = {k: {key: x.copy() for key, x in s.items()} for k, s in opt.state.items()}
    for t in range(1, 6):
        grads = draw(t + 1, dtype)
        opt.step(grads)
        with np.errstate(all="ignore"):
            for group in opt.param_groups:
                own = {k: group[k] for k in opt._rule_of(group).defaults}
                for name in group["param_names"]:
                    reference.step(
                        group.get("rule", rule), twins[name], grads[name], states[name], t,
                        name=name, **own,
                    )  # fmt: skip
    assert_same(params, twins)
    for name, state in opt.state.items():
        for key, x in state.items():
            if key != "step":
                same_bits(x, states[name][key], f"{name} {key}")


@every
@pytest.mark.parametrize("options", AROUND, ids="+".join)
def test_bits_repeat_with_any_number_of_threads_and_any_layout(rule, arguments, options):
    runs = []
    for threads, layout in ((1, "C"), (2, "F"), (3, "strided"), (1, "reversed")):
        use_threads(threads)
        params = {k: laid_out(x, layout) for k, x in draw(1).items()}
        opt = RULES[rule](params, **arguments | options)
        for seed in range(5):
            opt.step({k: laid_out(x, layout) for k, x in draw(seed).items()})
        runs.append((params, opt))
    for params, opt in runs[1:]:
        assert_same(params, runs[0][0])
        assert_same_state(opt, runs[0][1])


@every
def test_bits_repeat_on_a_matrix_of_many_blocks(rule, arguments):
    """Wherever in memory its arrays lie."""
    ends = []
    for k, layout in enumerate(("C", "F", "strided")):
        use_threads(k + 1)
        room = [np.empty(1000 * k + 8, np.uint8)]
        rng = np.random.default_rng(0)
        w = laid_out(rng.standard_normal((130, 97)).astype(np.float32), layout)
        opt = RULES[rule]({"w": w}, **arguments)
        for _ in range(3):
            opt.step({"w": rng.standard_normal((130, 97)).astype(np.float32)})
        ends.append((w.tobytes(), {key: x.tobytes() for key, x in opt.state["w"].items()}, room))
    assert ends[0][:2] == ends[1][:2] == ends[2][:2]


# Error of five steps, ‖Δ₃₂ - Δ₆₄‖ / ‖Δ₆₄‖ over all parameters: four times the largest that was
# measured on five seeds, 8e-6. SOAP is compared on a square matrix: the first statistics of others
# have a null space, where rounding chooses the basis, and nothing says that two runs choose alike.
NEAR = 3e-5
SQUARE = {"w": (8, 8)}


@every
def test_float32_is_close_to_float64(rule, arguments):
    moved = []
    shapes = SQUARE if rule == "soap" else SHAPES
    for dtype in DTYPES:
        params, start = (draw(1, np.float32, shapes) for _ in range(2))
        params = {k: x.astype(dtype) for k, x in params.items()}
        opt = RULES[rule](params, **arguments)
        for seed in range(5):
            opt.step({k: x.astype(dtype) for k, x in draw(seed, np.float32, shapes).items()})
        moved.append(np.concatenate([(params[k] - start[k]).ravel() for k in params]))
    assert np.isfinite(moved[1]).all()
    error = np.linalg.norm(moved[0] - moved[1]) / np.linalg.norm(moved[1])
    assert error < NEAR


@every
def test_what_has_no_gradient_is_left_alone(rule, arguments):
    params = draw(1)
    opt = RULES[rule](params, **arguments)
    train(opt, range(2))
    before = copy.deepcopy(opt.state_dict()["state"]["a"]), params["a"].copy()
    opt.step(draw(2) | {"a": None})
    np.testing.assert_equal(opt.state_dict()["state"]["a"], before[0])
    same_bits(params["a"], before[1])
    assert opt.state["a"]["step"] == 2 and opt.state["conv"]["step"] == 3


def test_the_callers_gradients_are_not_written():
    for rule, arguments in CONFIGURATIONS:
        grads = draw(3)
        for g in grads.values():
            g.flags.writeable = False
        RULES[rule](draw(1), **arguments).step(grads)


# State


@every
@pytest.mark.parametrize("via", ["state_dict", "file", "deepcopy", "pickle"])
def test_going_on_gives_the_bits_of_an_uninterrupted_run(rule, arguments, via, tmp_path):
    options = arguments | {"lr": st.schedules.cosine(0.05, steps=9), "ema": 0.9}
    params, whole = draw(1), draw(1)
    opt, straight = RULES[rule](params, **options), RULES[rule](whole, **options)
    train(straight, range(7))
    train(opt, range(3))
    if via == "state_dict":
        again = RULES[rule]({k: x.copy() for k, x in params.items()}, **options)
        again.load_state_dict(opt.state_dict())
    elif via == "file":
        st.save(tmp_path / "x.safetensors", opt)
        again = RULES[rule](draw(5), **options)
        st.load(tmp_path / "x.safetensors", again)
    else:
        again = copy.deepcopy(opt) if via == "deepcopy" else pickle.loads(pickle.dumps(opt))
    train(again, range(3, 7))
    found = {
        k: p
        for group in again.param_groups
        for k, p in zip(group["param_names"], group["params"], strict=True)
    }
    assert_same(found, whole)
    assert_same_state(again, straight)


@every
def test_a_parameters_path_hangs_on_its_name_and_not_on_groups_and_order(rule, arguments):
    params, others = draw(1), draw(1)
    opt = RULES[rule](params, **arguments)
    names = ["wide", "s", "conv"], ["none", "b", "a"]
    other = RULES[rule]([{"params": {k: others[k] for k in part}} for part in names], **arguments)
    for seed in range(4):
        grads = draw(seed)
        opt.step(grads)
        other.step([{k: grads[k] for k in part} for part in names])
    assert_same(params, others)


@pytest.mark.parametrize("rule", ["psgdkron", "apollo"])
def test_names_and_seeds_give_other_random_numbers(rule):
    def final(name, seed):
        w = {name: np.ones((4, 3))}
        opt = RULES[rule](w, lr=0.1, seed=seed, **({"rank": 2} if rule == "apollo" else {}))
        for k in range(3):
            opt.step({name: np.random.default_rng(k).standard_normal((4, 3))})
        return w[name].tobytes()

    assert final("a", 0) == final("a", 0)
    assert len({final("a", 0), final("b", 0), final("a", 1)}) == 3


FIXED = {
    "soap": [("max_precondition_dim", 3), ("precondition_1d", True)],
    "shampoo": [("max_precondition_dim", 3)],
    "psgdkron": [
        ("max_size_triangular", 3), ("min_ndim_triangular", 1), ("memory_save_mode", "all_diag")
    ],
    "galore": [("rank", 2), ("proj_type", "left")],
    "apollo": [("rank", 2), ("proj_type", "left")],
}  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "key", "value"), [(r, *x) for r, all_ in FIXED.items() for x in all_]
)
def test_what_gives_states_their_shapes_cannot_change(rule, key, value):
    assert {k for k, _ in FIXED[rule]} == set(RULES[rule].fixed)
    params = draw(1)
    opt = RULES[rule](params, overrides={"w*": {key: value}})
    train(opt, [1])
    before, kept = copy.deepcopy(params), opt.param_groups[0][key]
    opt.param_groups[0][key] = value
    for _ in range(2):
        with pytest.raises(ValueError, match=f"{key} = .*states were made for .*cannot change"):
            train(opt, [2])
    assert_same(params, before)
    opt.param_groups[0][key] = kept
    train(opt, [2])
    assert opt.updates == 2


def test_states_that_hyper_parameters_ask_for_later_begin_then():
    w = np.ones((3, 2))
    opt = st.Shampoo(w, lr=0.1)
    opt.step(np.ones((3, 2)))
    assert "momentum_buffer" not in opt.state["0"]
    opt.param_groups[0]["momentum"] = 0.9
    opt.param_groups[0]["grafting"] = "adagrad"
    opt.step(np.ones((3, 2)))
    assert opt.state["0"]["momentum_buffer"].any() and (opt.state["0"]["sum"] == 1.0).all()
    warm = st.Shampoo(np.ones((3, 2)), momentum=lambda t: 0.3 * t)
    warm.step(np.ones((3, 2)))
    assert warm.state["0"]["momentum_buffer"].any()  # though its weight is 0 as yet


def test_states_of_another_shape_are_refused():
    opt = st.GaLore({"w": np.ones((6, 4))}, rank=2)
    saved = opt.state_dict()
    saved["state"]["w"]["projector"] = np.zeros((4, 3))
    with pytest.raises(
        ValueError, match=r"'projector' of parameter 'w' is float64 of shape \(4, 3"
    ):
        opt.load_state_dict(saved)
    saved = st.PSGDKron({"w": np.ones((6, 4))}).state_dict()
    saved["state"]["w"]["waited"] = np.zeros(1)
    with pytest.raises(ValueError, match="'waited' of parameter 'w' is float64"):
        st.PSGDKron({"w": np.ones((6, 4))}).load_state_dict(saved)
    opt.state["w"]["exp_avg"] = np.zeros((6, 4))
    with pytest.raises(ValueError, match="'exp_avg' of parameter 'w'"):
        opt.step({"w": np.ones((6, 4))})


# What fails


@every
def test_a_step_that_fails_in_a_later_parameter_changes_nothing(rule, arguments, monkeypatch):
    params = draw(1)
    opt = RULES[rule](params, **arguments)
    train(opt, range(2))
    before, state = copy.deepcopy(params), opt.state_dict()
    direction = RULES[rule].direction

    def failing(name, *others):
        if name == "wide":
            raise np.linalg.LinAlgError("on purpose")
        return direction(name, *others)

    with monkeypatch.context() as patched:
        patched.setattr(RULES[rule], "direction", staticmethod(failing))
        with pytest.raises(np.linalg.LinAlgError, match="on purpose") as caught:
            train(opt, [3])
    assert "in the step of parameter 'wide'; nothing was changed" in caught.value.__notes__
    assert_same(params, before)
    np.testing.assert_equal(opt.state_dict(), state)
    train(opt, [3])
    assert opt.updates == 3


@pytest.mark.parametrize("rule", ["soap", "shampoo", "galore"])
def test_a_factorisation_that_fails_names_the_parameter(rule, monkeypatch):
    def fails(a):
        raise np.linalg.LinAlgError("no convergence")

    w = {"head": np.ones((4, 3))}
    opt = RULES[rule](w)
    monkeypatch.setattr(np.linalg, "eigh", fails)
    with pytest.raises(DecompositionError, match="were not found") as caught:
        opt.step({"head": np.ones((4, 3))})
    assert "in the step of parameter 'head'; nothing was changed" in caught.value.__notes__
    assert (w["head"] == 1.0).all() and opt.updates == 0


BAD = [
    ("muon", {"ns_coefficients": "cubic"}, ValueError, "expected one of 'jordan'"),
    ("muon", {"ns_coefficients": (1.0, 2.0)}, ValueError, "three finite numbers"),
    ("muon", {"ns_coefficients": [["a", 1, 2]]}, ValueError, "three finite numbers"),
    ("muon", {"ns_steps": 100}, ValueError, r"an integer in \[0, 99\]"),
    ("muon", {"ns_steps": 2.5}, TypeError, "ns_steps = 2.5: expected an integer"),
    ("muon", {"momentum": 1.0}, ValueError, r"momentum = 1\.0: expected a number in \[0, 1\)"),
    ("muon", {"adjust_lr_fn": "rms"}, ValueError, "adjust_lr_fn = 'rms': expected one of None"),
    ("normuon", {"beta2": 1.0}, ValueError, "beta2"),
    ("soap", {"shampoo_beta": 1.0}, ValueError, "shampoo_beta"),
    ("soap", {"shampoo_beta": "x"}, TypeError, "shampoo_beta"),
    ("soap", {"precondition_frequency": 0}, ValueError, "precondition_frequency"),
    ("shampoo", {"grafting": "adam"}, ValueError, "grafting"),
    ("psgdkron", {"preconditioner_update_probability": 2.0}, ValueError, "probability = 2.0"),
    ("psgdkron", {"memory_save_mode": "two"}, ValueError, "memory_save_mode"),
    ("psgdkron", {"seed": -1}, ValueError, "seed"),
    ("galore", {"rank": 0}, ValueError, "rank"),
    ("galore", {"proj_type": "full"}, ValueError, "proj_type"),
    ("apollo", {"growth": 0.9}, ValueError, "growth"),
    ("apollo", {"scale_type": "row"}, ValueError, "scale_type"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "arguments", "error", "message"), BAD, ids=label)
def test_hyper_parameters_out_of_range_are_named(rule, arguments, error, message):
    with pytest.raises(error, match=message):
        RULES[rule](draw(1), **arguments)


# What is said of them


def test_facts():
    """On a matrix of 256 x 256: n bytes read per parameter are n / 4 arrays of its size."""
    found = {rule: facts(cls) for rule, cls in RULES.items() if cls.needs == "matrix"}
    assert found["muon"].states == ("momentum_buffer",)
    assert (found["muon"].read, found["muon"].written) == (12.0, 8.0)
    assert found["soap"].states == ("exp_avg", "exp_avg_sq", "GG_0", "Q_0", "GG_1", "Q_1")
    assert (found["soap"].read, found["soap"].written) == (32.0, 28.0)
    assert found["galore"].states == ("exp_avg", "exp_avg_sq", "projector")
    assert found["galore"].read == 14.0  # rank 128 is half of 256
    assert found["apollo"].read == 12.0
    assert found["psgdkron"].states == ("momentum_buffer", "waited", "Q_0", "Q_1")
    assert found["shampoo"].states == ("L_0", "root_0", "L_1", "root_1")


def test_a_step_keeps_nothing_of_what_it_made():
    w, g = np.zeros((300, 300)), np.random.default_rng(0).standard_normal((300, 300))
    opt = st.Muon(w)
    opt.step(g)
    tracemalloc.start()
    try:
        opt.step(g)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 0.1 * w.nbytes and peak < 6.5 * w.nbytes


def test_soap_leaves_the_parameter_alone_at_its_first_step():
    w = np.ones((3, 3))
    opt = st.SOAP(w, lr=0.1, weight_decay=0.5)
    opt.step(np.eye(3))
    assert (w == 1.0).all()
    opt.step(np.zeros((3, 3)))
    np.testing.assert_allclose(w, 0.95, rtol=0.2)
    assert (w < 1.0).all()


def test_a_schedule_of_how_often_psgdkron_renews_is_kept():
    w = np.ones((3, 3))
    opt = st.PSGDKron(w, preconditioner_update_probability=lambda t: float(t >= 2))
    waited = []
    for seed in range(4):
        opt.step(np.random.default_rng(seed).standard_normal((3, 3)))
        waited.append(int(opt.state["0"]["waited"][0]))
    assert waited == [1, 2, 0, 0]
