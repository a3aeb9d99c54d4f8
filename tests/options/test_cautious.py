"""Cautious updates: only what the rule moves against its gradient, by as much more."""

import math

import numpy as np
import pytest
from cases import DTYPES, LEVELS, SETS_OF_LEVELS, label, reference_hyper, same_bits, use_threads
from layouts import SHAPES, laid_out

import steepest as st
from steepest.extension.testing import reference_step
from steepest.kernels import dispatch
from steepest.optimizers import RULES


@pytest.mark.parametrize("kind", ["C", "F", "reversed", "strided"])
@pytest.mark.parametrize("dtype", DTYPES, ids=label)
@pytest.mark.parametrize("levels", SETS_OF_LEVELS, ids="+".join)
def test_layouts_levels_and_threads(dtype, kind, levels):
    rng = np.random.default_rng(1)
    start = [np.asarray(rng.standard_normal(s), dtype) for s in SHAPES]
    for level in levels:
        dispatch.use(level)
        use_threads(1 + LEVELS.index(level))
        params, twins = [laid_out(x, kind) for x in start], [x.copy() for x in start]
        opt = st.AdamW(
            params, lr=0.02, betas=(0.6, 0.9), weight_decay=0.3, cautious=True,
            filter=st.filters.mars(0.3), clip=st.clip.adaptive(0.3),
        )  # fmt: skip
        states = [{key: x.copy() for key, x in s.items()} for s in opt.state.values()]
        for t in range(1, 4):
            grads = [np.asarray(rng.standard_normal(s), dtype) for s in SHAPES]
            opt.step([laid_out(g, kind) for g in grads])
            reference_step(opt, twins, grads, states, t, {}, **reference_hyper(opt))
        for p, twin, own, state in zip(params, twins, opt.state.values(), states, strict=True):
            same_bits(p, twin)
            for key in own.keys() - {"step"}:
                same_bits(own[key], state[key], key)


@pytest.mark.parametrize("name", ["Lion", "LaProp"])
@pytest.mark.torch
def test_it_equals_pytorch_optimizer(name, monkeypatch):
    """Which scales by the number of elements through that of agreeing ones and one more, where the
    paper's algorithm 1 and the authors' C-AdamW have the mean of the mask, at least 1e-3."""
    torch = pytest.importorskip("torch")
    peers = pytest.importorskip("pytorch_optimizer")

    def of_the_paper(update, grad):
        mask = (update * grad > 0).to(grad.dtype)
        update.mul_(mask / mask.mean().clamp(min=1e-3))

    peer_class = getattr(peers, name)
    monkeypatch.setattr(peer_class, "apply_cautious", staticmethod(of_the_paper))
    rng = np.random.default_rng(0)
    start, grads = rng.standard_normal(400), rng.standard_normal((30, 400))
    p = torch.nn.Parameter(torch.from_numpy(start.copy()))
    arguments = {"lr": 0.013, "betas": (0.83, 0.98), "weight_decay": 0.07}
    peer = peer_class([p], **arguments, cautious=True)
    for g in grads:
        p.grad = torch.from_numpy(g.copy())
        peer.step()
    w = start.copy()
    if name == "LaProp":
        arguments |= {"decay_mode": "decoupled_after", "eps": peer.defaults["eps"]}
    opt = RULES[name.lower()](w, **arguments, cautious=True)
    for g in grads:
        opt.step(g)
    rtol = 1e-7 if name == "LaProp" else 1e-11  # it adds 1e-15 under the root
    np.testing.assert_allclose(w, p.detach().numpy(), rtol=rtol, atol=1e-13)


def test_the_formula_by_hand():
    w = np.array([1.0, 1.0, 1.0, 1.0])
    opt = st.SGD(w, lr=0.5, momentum=1.0, cautious=True)
    opt.step(np.array([1.0, 1.0, 1.0, 1.0]))
    assert w.tolist() == [0.5] * 4
    opt.step(np.array([-0.5, 1.0, -0.5, -0.5]))  # v = 0.5, 2, 0.5, 0.5: one of four agrees
    assert w.tolist() == [0.5, 0.5 - 0.5 * 2.0 * 4.0, 0.5, 0.5]
    opt.step(np.zeros(4))  # none does
    assert w.tolist() == [0.5, -3.5, 0.5, 0.5]


def test_a_nan_agrees_with_nothing():
    w = np.ones(2)
    st.SGD(w, lr=0.5, cautious=True).step(np.array([math.nan, 1.0]))
    assert w.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("rule", [rule for rule in RULES if not RULES[rule].additive])
def test_rules_that_do_not_add_are_refused(rule):
    with pytest.raises(ValueError, match=f"cautious = True: {rule} does not add"):
        RULES[rule](np.ones((2, 2)), cautious=True)


def test_one_caution_at_a_time():
    with pytest.raises(ValueError, match="expected one of them"):
        st.Adam(np.ones(2), cautious=True, weight_decay=0.1, decay_mode="cautious")
