"""States of rows and columns: their shapes, where they go and what is refused."""

import copy
import pickle

import numpy as np
import pytest

import steepest as st

RULES = {
    "adafactor": lambda p, **k: st.Adafactor(p, beta1=0.9, **k),
    "came": st.CAME,
    "sm3": st.SM3,
    "adammini": st.AdamMini,
    "adammini-arrays": lambda p, **k: st.AdamMini(p, blocks="arrays", **k),
}
SHAPES = {"a": (4, 5), "b": (3,), "c": (2, 3, 4), "d": (), "e": (0, 3), "f": (6, 1)}
OWN = {
    "adafactor": {"a": {"row_var": (4, 1), "col_var": (1, 5)}, "b": {"variance": (3,)},
                  "c": {"row_var": (2, 3, 1), "col_var": (2, 1, 4)}},
    "came": {"a": {"exp_avg_sq_row": (4,), "exp_avg_res_col": (5,)}, "b": {"exp_avg_sq": (3,)},
             "c": {"exp_avg_sq_col": (2, 4), "exp_avg_res_row": (2, 3)}},
    "sm3": {"a": {"accumulator_0": (4, 1), "accumulator_1": (1, 5)}, "b": {"accumulator_0": (3,)},
            "c": {"accumulator_1": (1, 3, 1), "accumulator_2": (1, 1, 4)}},
    "adammini": {"a": {"exp_avg_sq": (4, 1)}, "b": {"exp_avg_sq": (1,)},
                 "c": {"exp_avg_sq": (2, 1, 1)}, "d": {"exp_avg_sq": ()}},
    "adammini-arrays": {"a": {"exp_avg_sq": (1, 1)}, "f": {"exp_avg_sq": (1, 1)}},
}  # fmt: skip


def tree(rng):
    """Arrays of all shapes, those of two dimensions in Fortran's order."""
    return {k: np.array(rng.standard_normal(s), order="F", ndmin=0) for k, s in SHAPES.items()}


def same(one, other):
    for name, state in one.state.items():
        for key, x in state.items():
            np.testing.assert_array_equal(x, other.state[name][key])
    for p, q in zip(one.param_groups[0]["params"], other.param_groups[0]["params"], strict=True):
        np.testing.assert_array_equal(p, q)


@pytest.mark.parametrize("rule", RULES)
def test_the_states_shapes(rule):
    opt = RULES[rule](tree(np.random.default_rng(0)))
    for name, shapes in OWN[rule].items():
        for key, shape in shapes.items():
            assert opt.state[name][key].shape == shape


@pytest.mark.parametrize("rule", RULES)
def test_copies_of_every_kind_go_on_alike(rule, tmp_path):
    rng = np.random.default_rng(0)
    params, grads = tree(rng), [tree(rng) for _ in range(6)]
    opt = RULES[rule](params, ema=0.9)
    for g in grads[:3]:
        opt.step(g)
    loaded = RULES[rule]({k: x.copy() for k, x in params.items()}, ema=0.9)
    loaded.load_state_dict(opt.state_dict())
    st.save(tmp_path / "x.safetensors", opt, params)
    read = {k: np.zeros_like(x) for k, x in params.items()}
    resumed = RULES[rule](read, ema=0.9)
    st.load(tmp_path / "x.safetensors", resumed, read)
    others = [loaded, resumed, pickle.loads(pickle.dumps(opt)), copy.deepcopy(opt)]
    for g in grads[3:]:
        for x in (opt, *others):
            x.step(g)
    for x in others:
        same(opt, x)


@pytest.mark.parametrize("rule", RULES)
def test_a_state_of_another_shape_is_refused(rule):
    rng = np.random.default_rng(0)
    opt = RULES[rule](tree(rng))
    key, shape = next(iter(OWN[rule]["a"].items()))
    wrong = opt.state_dict()
    wrong["state"]["a"][key] = np.zeros(17)
    message = f"state '{key}' of parameter 'a' is float64 of shape \\(17,\\); expected float64 of"
    with pytest.raises(ValueError, match=message):
        opt.load_state_dict(wrong)
    before = opt.state["a"][key]
    opt.state["a"][key] = np.zeros(17)
    with pytest.raises(ValueError, match=message):
        opt.step(tree(rng))
    opt.state["a"][key] = before
    opt.step(tree(rng))
    assert opt.state["a"][key].shape == shape


def test_a_state_in_another_order_is_copied():
    p, twin = np.ones((2, 3, 4)), np.ones((2, 3, 4))
    g = np.random.default_rng(0).standard_normal(p.shape)
    opt, other = st.Adafactor(p), st.Adafactor(twin)
    opt.state["0"]["row_var"] = np.zeros((2, 3, 2))[:, :, :1]
    opt.step(g)
    other.step(g)
    same(opt, other)


def test_a_gradient_that_shares_memory_with_a_row_is_refused():
    memory = np.zeros(20)
    opt = st.Adafactor(np.zeros((4, 4)))
    opt.state["0"]["row_var"] = memory[:4].reshape(4, 1)
    with pytest.raises(ValueError, match="gradient of parameter '0' shares memory"):
        opt.step(memory[:16].reshape(4, 4))
    opt.step(memory[4:].reshape(4, 4))


def test_blocks_that_change_ask_for_another_state():
    opt = st.AdamMini(np.zeros((4, 4)))
    opt.step(np.ones((4, 4)))
    opt.param_groups[0]["blocks"] = "arrays"
    with pytest.raises(ValueError, match=r"of shape \(4, 1\); expected float64 of shape \(1, 1\)"):
        opt.step(np.ones((4, 4)))


def test_scheduled_momentum_keeps_its_buffer():
    opt = st.SM3([np.ones((3, 3)), np.ones(3)], momentum=lambda t: 0.5 * (t % 2))
    for _ in range(3):
        opt.step([np.ones((3, 3)), np.ones(3)])
    assert [x["momentum_buffer"].shape for x in opt.state.values()] == [(3, 3), (3,)]


def test_many_dimensions_have_many_accumulators():
    params = [np.ones((2,) * 12) for _ in range(3)]
    opt = st.SM3(params, ema=0.5, regularize=st.regularize.toward_initial(0.1))
    opt.step([x.copy() for x in params])
    assert {f"accumulator_{k}" for k in range(12)} < opt.state["0"].keys()


@pytest.mark.parametrize("rule", ["adafactor", "came", "sm3"])
def test_a_matrix_of_rank_one_has_its_own_scale(rule):
    """The squares of g = r cᵀ are products of their means, so each element uses its own."""
    rng = np.random.default_rng(0)
    g = np.outer(rng.uniform(0.1, 9.0, 7), rng.uniform(0.1, 9.0, 5))
    p = np.zeros_like(g)
    arguments = {"adafactor": {"lr": 1.0}, "came": {"lr": 1.0}, "sm3": {"lr": 1.0, "momentum": 0.0}}
    opt = getattr(st, {"adafactor": "Adafactor", "came": "CAME", "sm3": "SM3"}[rule])(
        p, **arguments[rule]
    )
    opt.step(g)
    np.testing.assert_allclose(p, np.full_like(p, p[0, 0]), rtol=1e-12)
    assert p[0, 0] < 0


def test_what_is_refused():
    w = np.ones((2, 2))
    with pytest.raises(ValueError, match="warmup_init has no effect without relative_step"):
        st.Adafactor(w, warmup_init=True, relative_step=False)
    with pytest.raises(ValueError, match="only the first may be None"):
        st.Adafactor(w, eps=(None, None))
    with pytest.raises(ValueError, match="form = 'x': expected one of 'torch', 'paper'"):
        st.Adafactor(w, form="x")
    with pytest.raises(ValueError, match="blocks = 'heads': expected one of 'rows', 'arrays'"):
        st.AdamMini(w, blocks="heads")
    with pytest.raises(TypeError, match="lr = None: expected a finite number"):
        st.Adafactor(w, lr=None)
    with pytest.raises(ValueError, match=r"beta2_decay = 0\.1"):
        st.Adafactor(w, beta2_decay=0.1)
