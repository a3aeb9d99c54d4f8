"""``steepest.mpi`` in one process, where it is the optimizer itself."""

import sys

import numpy as np
import pytest
from cases import same_bits

import steepest as st
from steepest.extras import MissingExtra
from steepest.optimizers import RULES


def test_without_mpi4py_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.delitem(sys.modules, "mpi4py.MPI", raising=False)
    with pytest.raises(MissingExtra, match=r"pip install mpi4py, or .* \[mpi\]"):
        st.mpi.Sharded(st.SGD, np.zeros(2), lr=0.1)
    with pytest.raises(MissingExtra, match=r"pip install mpi4py, or .* \[mpi\]"):
        st.mpi.mean([np.zeros(2)])


@pytest.fixture
def alone():
    return pytest.importorskip("mpi4py.MPI", exc_type=ImportError).COMM_SELF


def values(seed):
    rng = np.random.default_rng(seed)
    return {"a": rng.normal(size=(5, 4)), "b": [rng.normal(size=3), rng.normal(size=())]}


@pytest.mark.torch
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_has_the_bits_of_itself(rule, alone):
    p, q = values(0), values(0)
    opt, one = st.mpi.Sharded(RULES[rule], p, comm=alone, bucket_bytes=64), RULES[rule](q)
    for t in range(1, 4):
        opt.step(values(t))
        one.step(values(t))
    same_bits(p["a"], q["a"])
    same_bits(p["b"][0], q["b"][0])
    assert opt.updates == one.updates == 3 and opt.rule == rule
    assert opt.digest() == one.digest()
    found, expected = opt.state_dict(), one.state_dict()
    assert found["param_groups"] == expected["param_groups"]
    for name, state in expected["state"].items():
        assert list(found["state"][name]) == list(state)
        for key, x in state.items():
            same_bits(np.asarray(found["state"][name][key]), np.asarray(x))


@pytest.mark.torch
def test_a_tensor_that_has_other_memory_by_now_is_refused(alone):
    torch = pytest.importorskip("torch")
    w = torch.tensor([3.0, 4.0])
    opt = st.mpi.Sharded(st.SGD, {"w": w}, lr=0.5, comm=alone)
    opt.step({"w": np.ones(2, np.float32)})
    assert w.tolist() == [2.5, 3.5]
    w.data = w.clone()
    with pytest.raises(ValueError, match="'w' is a tensor that has other memory than when the op"):
        opt.step({"w": np.ones(2, np.float32)})
    assert opt.updates == 1 and w.tolist() == [2.5, 3.5]


@pytest.mark.torch
def test_groups_are_live_and_have_the_parameters(alone):
    a, b = np.ones(3), np.ones((2, 2))[:, ::-1]
    groups = [{"params": a, "lr": 0.5}, {"params": [b]}]
    opt = st.mpi.Sharded(st.SGD, groups, lr=1.0, comm=alone)
    opt.param_groups[0]["note"] = "first"
    assert opt.param_groups[0]["note"] == "first" and opt.param_groups[1]["params"][0] is b
    opt.param_groups[1]["lr"] = 0.25
    opt.step([np.ones(3), [np.array([[4.0, 8.0], [0.0, 4.0]])]])
    assert a.tolist() == [0.5] * 3 and b.tolist() == [[0.0, -1.0], [1.0, 0.0]]
    with pytest.raises(TypeError, match="params of a sharded optimizer cannot change"):
        opt.param_groups[0]["params"] = [a]
    with pytest.raises(TypeError, match="cannot change"):
        del opt.param_groups[0]["param_names"]
    assert "rank 0 of 1" in repr(opt) and "'note': 'first'" in repr(opt.param_groups[0])


@pytest.mark.torch
@pytest.mark.parametrize(
    ("made", "error", "match"),
    [
        (lambda c: st.mpi.Sharded(st.SGD, [], lr=1.0, comm=c), ValueError, "params is empty"),
        (
            lambda c: st.mpi.Sharded(st.SGD, [{"params": np.zeros(1), "note": 1}], lr=1, comm=c),
            ValueError,
            "sgd has no hyper-parameter 'note'",
        ),
        (lambda c: st.mpi.Sharded(dict, {"w": np.zeros(1)}, comm=c), TypeError, "gave a dict"),
        (lambda c: st.mpi.Sharded(st.SGD, [np.zeros(1, int)], comm=c), TypeError, "dtype int64"),
        (lambda c: st.mpi.Sharded(st.SGD, np.zeros(1), lr=-1.0, comm=c), ValueError, "lr = -1"),
        (
            lambda c: st.mpi.Sharded(st.SGD, {"a": {"b": np.zeros(1)}, "a.b": np.ones(1)}, comm=c),
            ValueError,
            "'a.b' is given twice",
        ),
        (
            lambda c: st.mpi.Sharded(st.SGD, [w := np.zeros(3), w[1:]], comm=c),
            ValueError,
            "share memory",
        ),
        (
            lambda c: st.mpi.Sharded(st.SGD, np.zeros(1), bucket_bytes=1, comm=c),
            ValueError,
            "bucket_bytes = 1: expected 8",
        ),
        (
            lambda c: st.mpi.Sharded(st.SGD, np.zeros(1), copies=np.zeros(1), comm=c),
            ValueError,
            "copies of parameters that are stepped in parts",
        ),
        (
            lambda c: st.mpi.Sharded(
                st.SGD, [{"params": np.zeros(1), "copies": np.zeros(1)}], comm=c
            ),
            ValueError,
            "copies of parameters that are stepped in parts",
        ),
        (lambda c: st.mpi.Sharded(st.SGD, np.zeros(1), comm="all"), TypeError, "comm is a str"),
        (lambda c: st.mpi.mean([np.zeros(1, int)], comm=c), TypeError, "'0' has dtype int64"),
        (
            lambda c: st.mpi.Sharded(st.SGD, np.zeros(()), lr=1, comm=c).step(np.int64(1)),
            TypeError,
            "int64",
        ),
    ],
)
def test_what_cannot_be(made, error, match, alone):
    with pytest.raises(error, match=match):
        made(alone)


@pytest.mark.torch
def test_a_mean_is_a_copy_of_the_same_structure(alone):
    grads = {"a": np.arange(6.0, dtype=np.float32).reshape(2, 3).T, "b": [None, np.zeros((0, 2))]}
    mean = st.mpi.mean(grads, comm=alone)
    assert list(mean) == ["a", "b"] and mean["b"][0] is None and mean["b"][1].shape == (0, 2)
    same_bits(mean["a"], grads["a"])
    assert not np.shares_memory(mean["a"], grads["a"])


@pytest.mark.torch
def test_a_failed_step_changes_nothing(alone):
    w = np.ones(2)
    opt = st.mpi.Sharded(st.AdamW, w, lr=0.5, nonfinite="raise", comm=alone)
    for grads, error in (([1.0, np.nan], FloatingPointError), ([1.0, 2.0, 3.0], ValueError)):
        with pytest.raises(error):
            opt.step(np.array(grads))
    assert w.tolist() == [1.0, 1.0] and opt.updates == 0
    opt.step(None)
    assert w.tolist() == [1.0, 1.0] and opt.updates == 1
