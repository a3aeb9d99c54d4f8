"""Rules as Python functions: the same optimizers around them, the same bits as the kernels'."""

import math
import pickle

import numpy as np
import pytest
from cases import DTYPES, label, same_bits, use_threads

import steepest as st
from steepest import reference


@st.rule(states=("exp_avg", "exp_avg_sq"), decay_mode="decoupled")
def myadam(p, g, state, t, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
    """Adam again.

    p ← as Adam
    """
    reference.RULES["adam"](
        p,
        g,
        state,
        t,
        lr=lr,
        betas=betas,
        eps=eps,
        amsgrad=False,
        bias_correction=True,
        convention="torch",
    )


@st.rule(states=("exp_avg", "exp_avg_sq"), needs="layer-wise", decay_mode="decoupled")
def mylamb(p, g, state, t, *, lr, decay, betas=(0.9, 0.999), eps=1e-6):
    plain = {"bias_correction": True, "norm_bounds": (0.0, math.inf), "adapt": True}
    reference.RULES["lamb"](p, g, state, t, lr=lr, decay=decay, betas=betas, eps=eps, **plain)


OPTIONS = [
    {},
    {"weight_decay": 0.1},
    {"clip": (st.clip.global_norm(0.7), st.clip.adaptive(0.05)), "l1": 0.02, "maximize": True},
    {"ema": 0.9, "decay_mode": "l2", "weight_decay": 0.2},
    {"regularize": (st.regularize.toward_initial(0.1, decoupled=True), st.regularize.max_norm(3))},
    {"clip": st.clip.previous_norm(0.5), "lr": st.schedules.cosine(0.02, steps=9)},
]


@pytest.mark.parametrize("options", OPTIONS, ids="+".join)
@pytest.mark.parametrize("dtype", DTYPES, ids=label)
@pytest.mark.parametrize(("own", "built_in"), [(myadam, st.Adam), (mylamb, st.LAMB)])
def test_a_function_equals_the_kernel(own, built_in, options, dtype):
    use_threads(2)
    rng = np.random.default_rng(3)
    start = [rng.standard_normal(n).astype(dtype) for n in [(70, 1000), (3, 0), 7, ()]]
    start.append(rng.standard_normal((50, 30)).astype(dtype).T)
    runs = []
    for cls in (own, built_in):
        params = [p.copy(order="K") for p in start]
        opt = cls(params, **{"lr": 0.01, "decay_mode": "decoupled", "betas": (0.8, 0.9)} | options)
        again = np.random.default_rng(4)
        for _ in range(4):
            opt.step([again.standard_normal(p.shape).astype(dtype) for p in params])
        runs.append((params, opt))
    for p, q in zip(runs[0][0], runs[1][0], strict=True):
        same_bits(p, q)
    for name, state in runs[0][1].state.items():
        for key, x in state.items():
            same_bits(x, runs[1][1].state[name][key], key)


def test_a_function_that_raises_changes_nothing():
    calls = []

    @st.rule(states=("m",))
    def failing(p, g, state, t, *, lr=0.1):
        state["m"] += 1.0
        p -= lr * g
        calls.append(t)
        if len(calls) == 2:
            raise ArithmeticError("on purpose")

    params = {"a": np.zeros(2), "b": np.zeros(3)}
    opt = failing(params)
    with pytest.raises(ArithmeticError, match="on purpose") as caught:
        opt.step({"a": np.ones(2), "b": np.ones(3)})
    assert "in the step of parameter 'b'; nothing was changed" in caught.value.__notes__
    assert not params["a"].any() and not opt.state["a"]["m"].any() and opt.updates == 0
    opt.step({"a": np.ones(2), "b": np.ones(3)})
    assert params["b"].tolist() == [-0.1] * 3 and opt.state["b"]["m"].tolist() == [1.0] * 3


def test_a_state_may_be_put_in_place():
    @st.rule(states=("m",))
    def replacing(p, g, state, t, *, lr=0.5):
        state["m"] = state["m"] + g
        p -= lr * state["m"]

    w = np.zeros(2)
    opt = replacing(w)
    for _ in range(2):
        opt.step(np.ones(2))
    assert w.tolist() == [-1.5, -1.5] and opt.state["0"]["m"].tolist() == [2.0, 2.0]


def test_hyperparameters_are_checked_and_scheduled():
    @st.rule(ranges={"power": (0.0, 1.0, True)})
    def powered(p, g, state, t, *, lr=0.5, power=1.0, flip=False, pair=(1.0, 2.0)):
        p -= lr * np.sign(g) * np.abs(g) ** power * (-1.0 if flip else 1.0) * pair[1]

    w = np.zeros(1)
    powered(w, power=lambda t: 0.5, flip=True, pair=(0.0, 3.0)).step(np.array([4.0]))
    assert w.tolist() == [3.0]
    with pytest.raises(ValueError, match=r"power = 2.0: expected a number in \[0, 1\]"):
        powered(w, power=2.0)
    with pytest.raises(TypeError, match=r"pair = 1\.0: expected a tuple of 2"):
        powered(w, pair=1.0)
    with pytest.raises(TypeError, match="powered has no argument 'powr'"):
        powered(w, powr=1.0)
    with pytest.raises(TypeError, match="mylamb needs lr"):
        mylamb(w)


def test_functions_of_another_shape_are_refused():
    with pytest.raises(TypeError, match="expected the arguments p, g, state, t"):
        st.rule(lambda p, g, *, lr=0.1: None)
    with pytest.raises(TypeError, match="has no hyper-parameter lr"):
        st.rule(lambda p, g, state, t: None)
    with pytest.raises(TypeError, match="weight_decay, which every optimizer has"):
        st.rule(lambda p, g, state, t, *, lr=0.1, weight_decay=0.0: None)
    with pytest.raises(TypeError, match="kind = 'a': expected a number"):
        st.rule(lambda p, g, state, t, *, lr=0.1, kind="a": None)

    def adam(p, g, state, t, *, lr=0.1):
        pass

    with pytest.raises(ValueError, match="rule 'adam' exists"):
        st.rule(adam)

    @st.rule
    def returning(p, g, state, t, *, lr=0.1):
        return p - lr * g

    w = np.ones(2)
    with pytest.raises(TypeError, match="returned a ndarray; expected None"):
        returning(w).step(w.copy())
    assert w.tolist() == [1.0, 1.0]


def lost(p, g, state, t, *, lr=0.5):
    p = p - lr * g


def unused(p, g, state, t, *, lr=0.5):
    np.subtract(p, lr * g)


def forgetful(p, g, state, t, *, lr=0.5):
    m = state["m"]
    m = 0.5 * m + g
    p = p - lr * m


@pytest.mark.parametrize("needs", ["element-wise", "layer-wise"])
@pytest.mark.parametrize("function", [lost, unused, forgetful])
def test_a_function_that_writes_nothing_is_refused(function, needs):
    w = np.array([1.0, -2.0])
    opt = st.rule(function, states=("m",), needs=needs)({"w": w})
    for _ in range(2):
        with pytest.raises(TypeError, match=r"returned None and wrote neither to p nor .* p -= "):
            opt.step({"w": np.ones(2)})
    assert w.tolist() == [1.0, -2.0] and opt.updates == opt.state["w"]["step"] == 0


def inplace(p, g, state, t, *, lr=0.5):
    p -= lr * g


def by_out(p, g, state, t, *, lr=0.5):
    np.subtract(p, lr * g, out=p)


def by_view(p, g, state, t, *, lr=0.5):
    q = p.reshape(-1)
    q[...] = q - lr * g.reshape(-1)


def by_state(p, g, state, t, *, lr=0.5):
    state["m"] = 0.0 * state["m"]
    if t > 2:
        p -= lr * g


@pytest.mark.parametrize("function", [inplace, by_out, by_view, by_state])
def test_a_function_that_writes_what_was_there_is_not(function):
    """With a rate of 0, as at the start of a warm-up, or a gradient of 0."""
    w = np.array([1.0, -2.0])
    opt = st.rule(function, states=("m",))(w, lr=lambda count: 0.5 * min(count, 1))
    for _ in range(3):
        opt.step(np.zeros(2))
    opt.step(np.ones(2))
    assert w.tolist() == [0.5, -2.5]


def test_a_function_runs_once_a_step_if_it_changes_something():
    calls = []

    @st.rule
    def counting(p, g, state, t, *, lr=0.5):
        calls.append(t)
        p -= lr * g

    opt = counting(np.ones(2))
    opt.step(np.ones(2))
    opt.step(np.zeros(2))
    assert calls == [1, 2]


def test_it_is_saved_pickled_and_used_in_a_group(tmp_path):
    w = np.ones(3, np.float32)
    opt = myadam({"w": w}, lr=0.1)
    opt.step({"w": w.copy()})
    st.save(tmp_path / "a.safetensors", opt, {"w": w})
    twin = np.zeros(3, np.float32)
    other = myadam({"w": twin}, lr=0.3)
    st.load(tmp_path / "a.safetensors", other, {"w": twin})
    again = pickle.loads(pickle.dumps(opt))
    for each, p in ((opt, w), (other, twin), (again, again.param_groups[0]["params"][0])):
        each.step({"w": np.full(3, 0.5, np.float32)})
        same_bits(p, w)
    assert st.ByGroup({"w": w.copy()}, {"*": {"rule": "mylamb", "lr": 0.5}}).param_groups[0]["lr"]
    with pytest.raises(TypeError, match="mylamb needs lr"):
        st.ByGroup({"w": w.copy()}, {"*": {"rule": "mylamb"}})
    by_group = st.ByGroup({"w": w.copy()}, {"*": {"rule": "myadam", "lr": 0.1}})
    assert by_group.state["w"].keys() == {"step", "exp_avg", "exp_avg_sq"}
