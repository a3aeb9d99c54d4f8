"""Sophia and its mean of Hessians: to the last bit as the reference, and as others have it."""

import copy

import numpy as np
import pytest
from cases import DTYPES, LEVELS, label, reference_hyper, same_bits, use_threads
from layouts import SHAPES, laid_out

import steepest as st
from steepest import reference
from steepest.kernels import dispatch
from steepest.reference.adam_variants import sophia_hessian

HYPER = {"lr": 0.013, "betas": (0.83, 0.91), "rho": 0.7, "eps": 3e-4, "weight_decay": 0.07}


@pytest.mark.parametrize("dtype", DTYPES, ids=label)
@pytest.mark.parametrize("kind", ["C", "F", "reversed", "strided"])
def test_steps_and_estimates_equal_the_reference(dtype, kind):
    rng = np.random.default_rng(0)
    shapes = (*SHAPES, (40_000,))
    start = [np.asarray(rng.standard_normal(s), dtype) for s in shapes]
    for i, level in enumerate(LEVELS):
        dispatch.use(level)
        use_threads(1 + i)
        params, twins = [laid_out(x, kind) for x in start], [x.copy() for x in start]
        opt = st.Sophia(params, **HYPER)
        states = [{k: x.copy() for k, x in s.items()} for s in opt.state.values()]
        for t in range(1, 6):
            if t != 3:
                estimate = [np.asarray(rng.standard_normal(s) ** 2, dtype) for s in shapes]
                opt.update_hessian([None, *(laid_out(x, kind) for x in estimate[1:])])
                for state, x in zip(states[1:], estimate[1:], strict=True):
                    sophia_hessian(state["hessian"], x, HYPER["betas"])
            grads = [np.asarray(rng.standard_normal(s), dtype) for s in shapes]
            opt.step([laid_out(g, kind) for g in grads])
            for p, g, state in zip(twins, grads, states, strict=True):
                reference.step("sophia", p, g, state, t, **reference_hyper(opt))
        for p, twin, own, state in zip(params, twins, opt.state.values(), states, strict=True):
            same_bits(p, twin)
            same_bits(own["exp_avg"], state["exp_avg"])
            same_bits(own["hessian"], state["hessian"])
            assert own["step"] == 5


def test_groups_of_other_rules_have_no_estimate():
    params = {name: np.zeros((2, 2)) for name in "abc"}
    groups = [{"params": {"a": params["a"]}}, {"params": {"b": params["b"]}, "rule": "sgd"},
              {"params": {"c": params["c"]}}]  # fmt: skip
    opt = st.Sophia(groups, betas=(0.9, 0.5))
    opt.update_hessian([{"a": np.ones((2, 2))}, {"b": np.ones(3)}, {"c": np.full((2, 2), 2.0)}])
    assert opt.state["a"]["hessian"].flat[0] == 0.5 and opt.state["c"]["hessian"].flat[0] == 1.0
    assert opt.state["b"].keys() == {"step"}


def test_groups_names_and_schedules():
    """Gradients and estimates keep the structure of the parameters; each group has its betas."""
    params = {"w": np.zeros((2, 2)), "b": np.zeros(2), "v": np.zeros((2, 2))}
    opt = st.Sophia(
        params, betas=(0.9, lambda t: 0.5 + 0.25 * t), overrides={"b": {"betas": (0.9, 0.0)}}
    )
    ones = {name: np.ones_like(p) for name, p in params.items()}
    opt.update_hessian(ones)
    opt.step(ones)
    opt.update_hessian({**ones, "v": None})
    found = {name: state["hessian"].flat[0] for name, state in opt.state.items()}
    assert found == {"w": 0.625, "b": 1.0, "v": 0.5}
    assert opt.updates == 1


def test_an_estimate_is_checked_before_anything_changes():
    w = {"a": np.zeros(3), "b": np.zeros(2)}
    opt = st.Sophia(w)
    good = np.ones(3)
    for bad, error, message in (
        (np.ones(3), ValueError, r"estimate of parameter 'b' has shape \(3,\); expected"),
        (np.ones(2, np.int64), TypeError, "estimate of parameter 'b' has dtype int64"),
        ([1.0, 1.0], TypeError, "estimate of parameter 'b' is a list"),
        (opt.state["b"]["hessian"], ValueError, "estimate of parameter 'b' shares memory with a"),
    ):
        with pytest.raises(error, match=message):
            opt.update_hessian({"a": good, "b": bad})
        assert not opt.state["a"]["hessian"].any()
    with pytest.raises(ValueError, match=r"estimate has other keys than params: missing \['b'\]"):
        opt.update_hessian({"a": good})
    opt.state["b"]["hessian"] = np.zeros(5)
    with pytest.raises(ValueError, match="state 'hessian' of parameter 'b' is float64 of shape"):
        opt.update_hessian({"a": good, "b": None})
    del opt.state["b"]["hessian"]
    opt.update_hessian({"a": good, "b": None})
    assert opt.state["a"]["hessian"].all() and not opt.state["b"]["hessian"].any()


def test_no_estimate_during_a_step():
    w = np.zeros(2)
    opt = st.Sophia(w)
    errors = []

    def betas(count):
        try:
            opt.update_hessian(np.ones(2))
        except RuntimeError as error:
            errors.append(str(error))
        return 0.9

    opt.param_groups[0]["betas"] = (betas, 0.9)
    opt.step(np.ones(2))
    assert errors == [
        "another thread, or this one further up, is inside update_hessian() or step() of this "
        "optimizer"
    ]
    assert not opt.state["0"]["hessian"].any()


@pytest.mark.parametrize("way", ["state_dict", "file"])
def test_a_run_goes_on_where_it_stopped(way, tmp_path):
    rng = np.random.default_rng(0)
    draws = rng.standard_normal((8, 2, 6))
    whole, part = np.ones(6), np.ones(6)
    opt, first = st.Sophia(whole, **HYPER), st.Sophia(part, **HYPER)

    def run(which, some):
        for h, g in some:
            which.update_hessian(h**2)
            which.step(g)

    run(opt, draws)
    run(first, draws[:4])
    other = copy.deepcopy(part)
    resumed = st.Sophia(other)
    if way == "file":
        st.save(tmp_path / "x", first, part)
        st.load(tmp_path / "x", resumed, other)
    else:
        resumed.load_state_dict(first.state_dict())
    run(resumed, draws[4:])
    same_bits(other, whole)


def test_curvature_helps():
    """On a quadratic whose curvatures differ by 1e6, all elements come down at one pace."""
    curvature = 10.0 ** np.arange(-3, 4)
    w = np.ones(7)
    opt = st.Sophia(w, lr=0.1, betas=(0.0, 0.0), rho=1.0, weight_decay=0.0)
    for _ in range(50):
        opt.update_hessian(curvature)
        opt.step(curvature * w)
    np.testing.assert_allclose(w, 0.9**50, rtol=1e-12)  # 50 roundings


def test_no_element_moves_by_more_than_lr():
    rng = np.random.default_rng(0)
    w = rng.standard_normal(100)
    opt = st.Sophia(w, lr=0.25, weight_decay=0.0)
    for _ in range(5):
        before = w.copy()
        opt.update_hessian(rng.standard_normal(100))  # also negative: those are saddles
        opt.step(rng.standard_normal(100) * 1e3)
        assert np.abs(w - before).max() <= 0.25 + 1e-15


# Others, in float64. The tolerance is for 40 steps of differently ordered roundings.

CLOSE = {"rtol": 1e-11, "atol": 1e-14}


def drawn(n=40):
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, 9)), rng.standard_normal((n, 9)) ** 2, rng.standard_normal(9)


def test_the_papers_algorithm():
    """Algorithm 3, where the estimate comes at every third step, before the update."""
    grads, curvatures, w = drawn()
    a, m, h, p = HYPER, 0.0, 0.0, w.copy()
    opt = st.Sophia(w, **HYPER)
    b1, b2 = a["betas"]
    for t, (g, c) in enumerate(zip(grads, curvatures, strict=True)):
        m = b1 * m + (1 - b1) * g
        if t % 3 == 0:
            h = b2 * h + (1 - b2) * c
            opt.update_hessian(c)
        p = p - a["lr"] * a["weight_decay"] * p
        p = p - a["lr"] * np.clip(m / np.fmax(a["rho"] * h, a["eps"]), -1, 1)
        opt.step(g)
    np.testing.assert_allclose(w, p, **CLOSE)


@pytest.mark.torch
@pytest.mark.parametrize("maximize", [False, True])
def test_pytorch_optimizer_clips_at_p_instead_of_scaling(maximize):
    """clip(m / max(h, eps), ±p) is p · clip(m / max(p h, p eps), ±1)."""
    torch = pytest.importorskip("torch")
    peers = pytest.importorskip("pytorch_optimizer")
    grads, curvatures, w = drawn()
    twin = torch.nn.Parameter(torch.from_numpy(w.copy()))
    p = 0.3
    peer = peers.SophiaH(
        [twin], lr=0.05, betas=(0.83, 0.91), weight_decay=0.07, p=p, eps=1e-3,
        update_period=10**9, maximize=maximize, foreach=False,
    )  # fmt: skip
    opt = st.Sophia(
        w, lr=0.05 * p, betas=(0.83, 0.91), weight_decay=0.07 / p, rho=p, eps=p * 1e-3,
        maximize=maximize,
    )  # fmt: skip
    for t, (g, c) in enumerate(zip(grads, curvatures, strict=True)):
        twin.grad = torch.from_numpy(g.copy())
        if t % 4 == 0:
            opt.update_hessian(c)
            peer.step(hessian=[torch.from_numpy(c.copy())])
        else:
            peer.step()
        opt.step(g)
    np.testing.assert_allclose(w, twin.detach().numpy(), **CLOSE)


@pytest.mark.torch
def test_optax_unbiases_the_momentum_and_takes_the_estimate_after_the_step():
    """The first as rho and eps that grow as 1 - β₁ᵗ here, the second as calls in another order."""
    optax = pytest.importorskip("optax")
    import jax

    jax.config.update("jax_enable_x64", True)
    grads, curvatures, w = drawn()
    (b1, b2), rho, eps = HYPER["betas"], HYPER["rho"], HYPER["eps"]
    given = optax.GradientTransformationExtraArgs(
        lambda params: None, lambda updates, state, params=None, curvature=None: (curvature, state)
    )
    peer = optax.contrib.sophia(
        HYPER["lr"], b1=b1, b2=b2, eps=eps, gamma=rho, weight_decay=HYPER["weight_decay"],
        update_interval=1, hessian_diagonal_fn=given,
    )  # fmt: skip
    twin = jax.numpy.asarray(w)
    state = peer.init(twin)
    schedules = {
        "rho": lambda t: rho * (1 - b1 ** (t + 1)), "eps": lambda t: eps * (1 - b1 ** (t + 1)),
    }  # fmt: skip
    opt = st.Sophia(w, **HYPER | schedules)
    for g, c in zip(grads, curvatures, strict=True):
        opt.step(g)
        opt.update_hessian(c)
        updates, state = peer.update(jax.numpy.asarray(g), state, twin, curvature=c)
        twin = optax.apply_updates(twin, updates)
    np.testing.assert_allclose(w, np.asarray(twin), **CLOSE)
