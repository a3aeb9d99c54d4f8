"""The warning where parameters of 16 bits stand still."""

import copy
import warnings

import ml_dtypes
import numpy as np
import pytest

import steepest as st
from steepest import codecs
from steepest.core.standstill import Standstill

BRAIN, HALF = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)


def trained(opt, grads, steps):
    """The warnings of some steps, each with the number of steps that were done by then."""
    found = []
    for t in range(steps):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            opt.step(grads(t) if callable(grads) else grads)
        found += [(opt.updates, x) for x in told]
    return found


def ones(n=50, dtype=BRAIN):
    return np.ones(n, dtype)


@pytest.mark.parametrize("dtype", [BRAIN, codecs.BFLOAT16, HALF], ids=str)
@pytest.mark.parametrize("make", [st.SGD, st.AdamW, st.Lion])
def test_a_parameter_that_stands_still_is_told_of_once(make, dtype):
    """In its hundredth step, at a rate that would have moved it by a hundred units of float32."""
    p = codecs.encoded(np.ones(50, np.float32), dtype)
    opt = make({"w": p}, lr=1e-4, weight_decay=0.0)
    found = trained(opt, {"w": np.ones(50, np.float32)}, 1005)
    assert (codecs.decoded(p, np.float32) == 1).all()
    [(step, told)] = found
    assert step == 100 and told.category is UserWarning and told.filename == __file__
    name, master = ("float16", "float32") if dtype == HALF else ("bfloat16", "split16")
    text = str(told.message)
    assert text.startswith("parameter 'w' stands still: in step 100 100% of its elements that")
    assert f"half a unit of {name} are rounded away" in text
    assert f'master="{master}"' in text and 'rounding="stochastic"' in text


def test_what_it_recommends_moves_the_parameter():
    p = ones()
    opt = st.AdamW(p, lr=1e-4, weight_decay=0.0, master="split16")
    assert trained(opt, np.ones(50, np.float32), 150) == []
    assert (p < 1).all()


def test_of_several_the_worst_is_named():
    """Nine in ten at least; a quarter of 'c' moves, and 'd' has no master because it needs none."""
    p = {
        "a": np.where(np.arange(40) < 2, 1e-3, 1).astype(BRAIN), "b": ones(8), "c": ones(8),
        "d": ones(8, np.float32),
    }  # fmt: skip
    p["c"][:2] = 1e-3
    grads = {key: np.ones(x.shape, np.float32) for key, x in p.items()}
    [(_, told)] = trained(st.SGD(p, lr=1e-4), grads, 120)
    assert str(told.message).startswith("parameter 'b' (and 1 more) stands still: in step 100 100%")
    del p["b"], grads["b"]
    p["a"][:2] = 1e-3
    [(_, told)] = trained(st.SGD(p, lr=1e-4), grads, 120)
    assert str(told.message).startswith("parameter 'a' stands still: in step 100 95% of its")


ORDINARY = {
    "float32": (lambda: st.SGD(ones(dtype=np.float32), lr=1e-9), 1.0),
    "a larger rate": (lambda: st.SGD(ones(), lr=1e-2), 1.0),
    "no rate": (lambda: st.SGD(ones(), lr=0.0), 1.0),
    "warming up": (lambda: st.SGD(ones(), lr=st.schedules.linear(0.0, steps=1000, end=0.01)), 1.0),
    "cooling down": (lambda: st.Lion(ones(), lr=st.schedules.cosine(0.05, steps=100)), 1.0),
    "no gradient": (lambda: st.AdamW(ones(), lr=1e-5, weight_decay=0.0), 0.0),
    "held at 0": (
        lambda: st.SGD(np.zeros(50, BRAIN), 0.1, regularize=st.regularize.l1(10.0, proximal=True)),
        1.0,
    ),
    "held on a simplex": (
        lambda: st.SGD(np.full(8, 0.125, BRAIN), lr=0.1, regularize=st.regularize.simplex()), 1.0,
    ),
    "now and then": (lambda: st.SGD(ones(), lr=lambda t: 0.05 if 50 < t < 150 else 1e-5), 1.0),
    "held in a box": (
        lambda: st.SGD(ones(), lr=0.1, regularize=st.regularize.box(1.0, 2.0)), 1.0,
    ),
    "masked": (
        lambda: st.SGD({"w": ones()}, lr=0.1, filter=st.filters.mask({"w": np.zeros(50)})), 1.0,
    ),
    "nothing in it": (lambda: st.SGD(ones(0), lr=1e-5), 1.0),
    "no number": (lambda: st.SGD(np.full(50, np.nan, BRAIN), lr=1e-5), 1.0),
}  # fmt: skip


@pytest.mark.parametrize("case", ORDINARY)
def test_ordinary_runs_do_not_warn(case):
    make, g = ORDINARY[case]
    opt = make()
    [p] = opt.param_groups[0]["params"]
    grads = {"w": np.full(p.shape, g, np.float32)} if "w" in opt.state else np.full_like(p, g)
    assert trained(opt, grads, 1001 if case in ("warming up", "now and then") else 101) == []


def test_training_in_bfloat16_at_a_usual_rate_does_not_warn():
    """Weights of 1/√100, gradients of alternating sign and many sizes, a rate of 1e-3."""
    rng = np.random.default_rng(0)
    p = (rng.standard_normal((100, 50)) / 10).astype(BRAIN)
    assert trained(st.AdamW(p), lambda t: rng.standard_normal((100, 50)).astype(BRAIN), 101) == []


def test_skipped_steps_are_not_looked_at():
    """The tenth is tried three times."""
    p = ones()
    opt = st.SGD(p, lr=0.01, nonfinite="skip")
    bad = range(9, 12)
    found = trained(opt, lambda t: np.full(50, np.nan if t in bad else 1.0, np.float32), 20)
    assert found == [] and opt.skipped == 3


def test_steps_are_those_of_the_parameter():
    """One that has a gradient in every other step is looked at in step 200."""
    opt = st.SGD([ones(), ones(dtype=np.float32)], lr=1e-4)
    g = np.ones(50, np.float32)
    [(step, told)] = trained(opt, lambda t: [g if t % 2 else None, g], 250)
    assert step == 200 and "in step 100 " in str(told.message)


def test_a_copy_that_goes_on_has_seen_the_same():
    g = np.ones(50, np.float32)
    opt = st.SGD(ones(), lr=1e-4)
    assert trained(opt, g, 50) == []
    again = copy.deepcopy(opt)
    first, second = trained(opt, g, 60), trained(again, g, 60)
    assert [(t, str(x.message)) for t, x in first] == [(t, str(x.message)) for t, x in second]
    assert len(first) == 1 and trained(copy.deepcopy(opt), g, 1000) == []


def test_only_what_may_stand_still_is_looked_at(monkeypatch):
    """The others pay nothing."""

    def begin(*arguments):
        raise AssertionError("it was looked at")

    monkeypatch.setattr(Standstill, "begin", begin)
    g = np.ones(50, np.float32)
    trained(st.AdamW([ones(dtype=np.float32), ones(dtype=np.float64)]), [g, g], 12)
    trained(st.AdamW(ones(), master="split16"), g, 12)
    with pytest.raises(AssertionError, match="it was looked at"):
        st.AdamW(ones()).step(g)


def test_strided_arrays_and_other_formats_of_gradients():
    p = np.ones((200, 100), BRAIN)[::2, ::-3]
    for kind in (BRAIN, HALF, np.float64):
        opt = st.SGD(p, lr=1e-4)
        g = np.ones((34, 100), kind).T
        [(step, _)] = trained(opt, g, 101)
        assert step == 100


def test_where_warnings_are_errors_the_step_is_done():
    p = ones()
    p[0] = 1e-3
    opt = st.SGD(p, lr=1e-4)
    g = np.ones(50, np.float32)
    trained(opt, g, 99)
    before = p.copy()
    with pytest.raises(UserWarning, match="stands still"):
        opt.step(g)
    assert opt.updates == 100 and p[0] != before[0]
    opt.step(g)


@pytest.mark.torch
@pytest.mark.parametrize("how", ["step", "backward", "loaded"])
def test_in_pytorch(how):
    torch = pytest.importorskip("torch")
    stt = pytest.importorskip("steepest.torch")
    w = torch.nn.Parameter(torch.ones(30, dtype=torch.bfloat16))
    v = torch.nn.Parameter(torch.ones(30))
    opt = stt.Lion([("weight", w), ("float", v)], lr=1e-4, weight_decay=0.0)
    stepping = stt.step_in_backward(opt) if how == "backward" else None
    found = []
    for t in range(1, 1002):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            (w.float() + v).sum().backward()
            if stepping is None:
                opt.step()
                opt.zero_grad()
        found += [(t, x) for x in told]
        if how == "loaded" and t in (50, 150):
            opt.load_state_dict(opt.state_dict())
    [(step, told)] = found
    assert step == 100 and "parameter 'weight' stands still" in str(told.message)
    assert how == "backward" or told.filename == __file__
    assert (w == 1).all() and (v < 0.95).all()
