"""``steepest.mpi`` on several processes, started by mpiexec: bits, state, files, failures."""

import re
import signal
from pathlib import Path

import numpy as np
import pytest
from mpi_run import launch, mpiexec, together

import steepest as st

pytestmark = pytest.mark.torch

EXAMPLE = Path(__file__).parents[2] / "examples" / "mpi_digits.py"


@pytest.fixture(autouse=True)
def peers():
    pytest.importorskip("mpi4py")
    if mpiexec() is None:
        pytest.skip("there is no mpiexec")


# A model of odd shapes, gradients that differ between ranks, and what one process would make of it.
MODEL = """
SHAPES = {
    "a": (5, 3), "b": (4,), "c": (), "d": (2, 3, 4), "e": (0, 3), "f": (7, 6), "g": (1, 9),
}

def values(*seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {k: np.asarray(rng.normal(size=s), dtype) for k, s in SHAPES.items()}

def mean(grads):
    kind = np.float32 if grads[0].itemsize == 2 else grads[0].dtype
    total = grads[0].astype(kind)
    for g in grads[1:]:
        total = np.asarray(total + g.astype(kind))
    return np.asarray(total / total.dtype.type(len(grads)))

def grads_of(t, dtype):
    return [values(t, r, dtype=dtype) for r in range(size)]

def both(make, *arguments, dtype=np.float32, steps=4, **hyper):
    p, q = values(0, dtype=dtype), values(0, dtype=dtype)
    sharded = st.mpi.Sharded(make, p, *arguments, bucket_bytes=64 * size, **hyper)
    one = make(q, *arguments, **hyper)
    for t in range(1, steps + 1):
        grads = grads_of(t, dtype)
        sharded.step(grads[rank])
        one.step({k: mean([g[k] for g in grads]) for k in SHAPES})
    return p, q, sharded, one

def same(x, y, what):
    assert x.dtype == y.dtype and x.shape == y.shape, what
    assert np.array_equal(x.view(np.uint8) if x.ndim else x.tobytes(),
                          y.view(np.uint8) if y.ndim else y.tobytes()), (what, x, y)

def same_state(sharded, one):
    found, expected = sharded.state_dict(), one.state_dict()
    assert repr(found["param_groups"]) == repr(expected["param_groups"])
    for name, state in expected["state"].items():
        assert list(found["state"][name]) == list(state), name
        for key, x in state.items():
            y = np.asarray(found["state"][name][key])
            assert y.shape == np.shape(x) and np.array_equal(y, x, equal_nan=True), (name, key)
    for key in ("rule", "updates", "skipped"):
        assert found[key] == expected[key], key
"""


@pytest.mark.parametrize("ranks", [2, 3])
def test_every_rule_has_the_bits_of_one_process(ranks, tmp_path):
    """Gradients are added in the order of the ranks, so this holds for any number of them."""
    code = """
from steepest.optimizers import RULES
refused = []
for name, make in RULES.items():
    if make.needs == "global":
        try:
            st.mpi.Sharded(make, values(0))
        except ValueError as error:
            refused.append(name)
            assert "needs sums over all parameters" in str(error)
        continue
    for dtype in (np.float32, np.float64)[size - 2 :]:
        p, q, sharded, one = both(make, dtype=dtype, steps=3)
        for k in SHAPES:
            same(p[k], q[k], (name, dtype, k))
        same_state(sharded, one)
        assert sharded.digest() == one.digest()
assert sorted(refused) == ["dadaptadam", "dog", "dowg", "prodigy"]
"""
    together(ranks, MODEL + code, tmp_path)


OPTIONS = """
@st.rule(states=("m",))
def heavy(p, g, state, t, *, lr=0.1, momentum=0.9):
    state["m"] *= momentum
    state["m"] += g
    p -= lr * state["m"]

CUT = []

def cut(**hyper):
    CUT.append(hyper)
    return hyper

cosine = st.schedules.cosine(0.1, steps=10)
CASES = [
    (st.AdamW, (), cut(lr=cosine, exclude="vectors", overrides={"f": {"lr": 0.5}})),
    (st.AdamW, (), cut(ema=0.9, l1=0.01, maximize=True)),
    (st.AdamW, (), dict(clip=(st.clip.adaptive(0.05, axis=None), st.clip.value(0.1)))),
    (st.AdamW, (), dict(cautious=True)),
    (st.ScheduleFreeAdamW, (), cut(overrides={"c": {"lr": 0.01}, "b": {"lr": 0.02}})),
    (st.AdamW, (), cut(decay_mode="cautious", weight_decay=0.1)),
    (st.AdamW, (), cut(lookahead=st.average.lookahead(k=2, alpha=0.5))),
    (st.AdamW, (), cut(average=st.average.tail(start=1))),
    (st.Lion, (), dict(filter=(st.filters.mars(), st.filters.grokfast(), st.filters.mask()))),
    (st.SGD, (), dict(lr=0.1, filter=st.filters.centralize(axis=-1), momentum=0.9)),
    (st.SGD, (), dict(lr=0.1, regularize=st.regularize.group_lasso(0.3))),
    (st.ByGroup, ({"vectors": {"rule": "sgd", "lr": 0.1}, "f": {"rule": "lamb", "lr": 0.1},
                   "*": {"rule": "adamw"}},), cut()),
    (heavy, (), dict(lr=0.05)),
]
"""


def test_options_have_the_bits_of_one_process(tmp_path):
    code = """
for make, arguments, hyper in CASES:
    p, q, sharded, one = both(make, *arguments, **hyper)
    for k in SHAPES:
        same(p[k], q[k], (hyper, k))
    same_state(sharded, one)
    assert any(sharded._cut) == (hyper in CUT)
    if {"ema", "average"} & hyper.keys():
        found, expected = sharded.averaged(), one.averaged()
        assert list(found) == list(expected)
        for k in SHAPES:
            same(found[k], expected[k], (hyper, k))
"""
    together(3, MODEL + OPTIONS + code, tmp_path)


def test_parameters_of_16_bits_have_the_bits_of_one_process(tmp_path):
    """Means are of float32, and not rounded; with a master parameters are cut as without."""
    code = """
import ml_dtypes
from steepest import codecs
from steepest.memory import formats
BRAIN, HALF = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)
CASES = [
    (st.AdamW, BRAIN, True, {}), (st.AdamW, HALF, True, dict(state_dtype={"exp_avg": "float16"})),
    (st.AdamW, BRAIN, True, dict(master="split16", ema=0.9)),
    (st.Lion, HALF, True, dict(lr=0.1, master="float32")), (st.LAMB, BRAIN, False, dict(lr=0.1)),
    (st.Adafactor, HALF, False, {}), (st.Muon, BRAIN, True, {}),
    (st.ScheduleFreeAdamW, BRAIN, True, dict(master="split16", lr=0.1)),
    (st.SGD, BRAIN, True, dict(lr=0.1, momentum=0.9, state_dtype="bfloat16")),
]
for make, dtype, cuts, hyper in CASES:
    p, q, sharded, one = both(make, dtype=dtype, **hyper)
    for k in SHAPES:
        same(p[k], q[k], (make, hyper, k))
    same_state(sharded, one)
    assert sharded.digest() == one.digest()
    assert any(sharded._cut) == cuts, (make, hyper)
    assert all(x.dtype == np.float32 for x in sharded._shares)
    st.save("run.safetensors", sharded)
    again = make({k: np.zeros_like(x) for k, x in p.items()}, **hyper)
    st.load("run.safetensors", again)
    same_state(sharded, again)
    comm.Barrier()

grads = [values(1, r, dtype=BRAIN) for r in range(size)]
found = st.mpi.mean(grads[rank], bucket_bytes=100)
for k in SHAPES:
    same(found[k], mean([g[k] for g in grads]), k)
assert not np.array_equal(found["f"], found["f"].astype(BRAIN))
p, q = values(0, dtype=BRAIN), values(0, dtype=BRAIN)
opt, one = st.mpi.Sharded(st.AdamW, p), st.AdamW(q)
for t in range(3):
    own = values(t, rank, dtype=BRAIN)
    opt.step(own)
    one.step(st.mpi.mean(own))
for k in SHAPES:
    same(p[k], q[k], k)

# Gradients of other formats: fewer bits do, more do not.
p, q = values(0), values(0)
opt, one = st.mpi.Sharded(st.AdamW, p), st.AdamW(q)
opt.step(grads[rank])
one.step({k: mean([g[k] for g in grads]) for k in SHAPES})
for k in SHAPES:
    same(p[k], q[k], k)
opt = st.mpi.Sharded(st.AdamW, values(0, dtype=BRAIN))
for bad in (np.float32, HALF):
    try:
        opt.step(values(0, dtype=bad))
    except TypeError as error:
        told = f"'a' has dtype {np.dtype(bad).name}; expected the parameter's bfloat16"
        assert told in str(error), error
    else:
        raise AssertionError
try:
    st.mpi.mean(np.ones(3, BRAIN if rank else HALF))
except ValueError as error:
    assert "rank 1 has gradient '0', bfloat16 of shape (3,), rank 0 has" in str(error)
else:
    raise AssertionError

# As bits, or in the dtype that needs no package
numbers = values(0, dtype=BRAIN)
for kind, hyper in ((np.uint16, {"dtype": "bfloat16"}), (codecs.BFLOAT16, {})):
    p = {k: (x.copy() if rank == 0 else np.zeros_like(x)).view(kind) for k, x in numbers.items()}
    q = {k: x.copy() for k, x in numbers.items()}
    opt, one = st.mpi.Sharded(st.AdamW, p, **hyper), st.AdamW(q)
    opt.step({k: g.view(kind) for k, g in grads[rank].items()})
    one.step({k: mean([g[k] for g in grads]) for k in SHAPES})
    for k in SHAPES:
        same(p[k].view(np.uint16), q[k].view(np.uint16), k)
"""
    together(3, MODEL + code, tmp_path)


def test_states_of_8_bits_have_the_bits_of_one_process(tmp_path):
    """Whole parameters go to one rank each; a rank may have none whose states have scales."""
    code = """
import ml_dtypes
SHAPES |= {"g": (64, 80), "h": (3, 32, 128)}
CASES = [
    (st.AdamW, np.float32, dict(state_dtype="q8", rounding_seed=5)),
    (st.AdamW, np.dtype(ml_dtypes.bfloat16), dict(state_dtype="q8", master="split16")),
    (st.Lion, np.float32, dict(overrides={"g": {"state_dtype": {"exp_avg": "q8"}}})),
    (st.CAME, np.float32, dict(state_dtype="q8")),
]
for make, dtype, hyper in CASES:
    p, q, sharded, one = both(make, dtype=dtype, **hyper)
    for k in SHAPES:
        same(p[k], q[k], (make, hyper, k))
    same_state(sharded, one)
    assert sharded.digest() == one.digest()
    assert any(x.dtype == np.uint8 for state in one.state.values() for x in state.values())
    st.save("run.safetensors", sharded)
    again = make({k: np.zeros_like(x) for k, x in p.items()}, **hyper)
    st.load("run.safetensors", again)
    same_state(sharded, again)
    comm.Barrier()
    other = st.mpi.Sharded(make, {k: np.zeros_like(x) for k, x in p.items()}, **hyper)
    other.load_state_dict(one.state_dict())
    same_state(other, one)
alone = st.mpi.Sharded(st.AdamW, {"g": np.ones((64, 80), np.float32)}, state_dtype="q8")
alone.step({"g": np.ones((64, 80), np.float32)})
"""
    together(3, MODEL + code, tmp_path)


def test_clips_by_norms_go_by_whole_gradients(tmp_path):
    """Sums of squares are put together in another order than in one process: float64 to 1e-13,
    which is many roundings of four steps, where a norm of parts alone would be off by tenths."""
    code = """
CLIPS = [
    st.clip.global_norm(0.7), st.clip.global_norm(0.7, p=1.0), st.clip.global_norm(0.1, p=np.inf),
    st.clip.global_norm(0.7, p=3.0), st.clip.norm(0.3), st.clip.group_norm(0.7),
    st.clip.percentile(30.0), st.clip.previous_norm(0.5),
    (st.clip.skip_spikes(0.01, window=2), st.clip.norm(0.3), st.clip.value(0.2)),
]
for clip in CLIPS:
    overrides = {"d": {"clip": st.clip.global_norm(0.2, p=1.0)}, "c": {"clip": None}}
    for hyper in ({}, {"overrides": overrides}):
        p, q, sharded, one = both(st.SGD, lr=0.1, dtype=np.float64, clip=clip, steps=5, **hyper)
        for k in SHAPES:
            np.testing.assert_allclose(p[k], q[k], rtol=1e-13, atol=1e-15, err_msg=repr(clip))
        np.testing.assert_allclose(sharded.last_norm, one.last_norm, rtol=1e-14)
        assert list(sharded.last_norms) == list(one.last_norms)
        np.testing.assert_allclose(
            list(sharded.last_norms.values()), list(one.last_norms.values()), rtol=1e-14
        )
        assert sharded.skipped == one.skipped and sharded.updates == one.updates
        a, b = sharded.optimizer.clip_history, one.clip_history
        assert list(a) == list(b)
        for key in a:
            np.testing.assert_allclose(a[key], b[key], rtol=1e-14)
        every = comm.allgather((sharded.last_norm, sharded.last_norms, a))
        assert all(x == every[0] for x in every)
assert one.skipped > 0
"""
    together(3, MODEL + code, tmp_path)


def test_bad_gradients_are_decided_upon_together(tmp_path):
    """One NaN on one rank, in a parameter that another rank steps."""
    code = """
for policy in ("skip", "raise"):
    p = values(0)
    before = {k: x.copy() for k, x in p.items()}
    opt = st.mpi.Sharded(st.AdamW, p, lr=0.1, nonfinite=policy)
    for bad in ("a", "f", "g"):
        for culprit in range(size):
            grads = values(1, rank)
            if rank == culprit:
                grads[bad].flat[-1] = np.nan
            try:
                opt.step(grads)
                assert policy == "skip"
                assert opt.last_skip.startswith(f"gradient of parameter {bad!r} has an infinite")
            except FloatingPointError as error:
                assert policy == "raise" and repr(bad) in str(error)
    for k in SHAPES:
        same(p[k], before[k], k)
    assert opt.updates == 0 and opt.skipped == (9 if policy == "skip" else 0)
    opt.step(values(1, rank))
    assert opt.updates == 1 and not np.array_equal(p["f"], before["f"])
"""
    together(3, MODEL + code, tmp_path)


def test_a_gradient_that_is_none(tmp_path):
    """On all ranks: left alone. On some: zeros there, as in a mean over the batch."""
    code = """
for make in (st.AdamW, st.LAMB, st.ScheduleFreeAdamW, st.Muon, st.NovoGrad):
    p, q = values(0), values(0)
    opt, one = st.mpi.Sharded(make, p, bucket_bytes=256), make(q)
    for t in range(1, 5):
        grads = grads_of(t, np.float32)
        for k in "adf":
            grads[t % size][k] = None
        for g in grads:
            g["b"] = None
            g["g"] = None if t % 2 else g["g"]
        opt.step(grads[rank])
        whole = {}
        for k in SHAPES:
            own = [g[k] for g in grads]
            zeros = np.zeros(SHAPES[k], np.float32)
            none = all(g is None for g in own)
            whole[k] = None if none else mean([zeros if g is None else g for g in own])
        one.step(whole)
    for k in SHAPES:
        same(p[k], q[k], (make, k))
    same_state(opt, one)
    opt.step(None)
    assert opt.updates == 5
    same(p["f"], q["f"], "f")
"""
    together(2, MODEL + code, tmp_path)


def test_a_rank_that_fails_stops_all_and_nothing_is_changed(tmp_path):
    code = """
def unchanged(act, own, other):
    "act(opt) fails on rank 1 with its own error, elsewhere with a RankError"
    before = [x.copy() for x in p.values()], repr(opt.state_dict())
    try:
        act()
        raise AssertionError("nothing was raised")
    except (own if rank == 1 else st.mpi.RankError) as error:
        assert rank == 1 or re.search(other, str(error)), error
    for x, y in zip(p.values(), before[0]):
        same(x, y, other)
    assert repr(opt.state_dict()) == before[1]

import re
p = values(0)

class Broken:
    def __init__(self): self.at = None
    def __repr__(self): return "rate"
    def __call__(self, t):
        if t == self.at: raise ArithmeticError("no rate")
        return 0.1

rate = Broken()
opt = st.mpi.Sharded(st.AdamW, p, lr=rate, clip=st.clip.global_norm(1.0), bucket_bytes=256)
opt.step(values(1, rank))
good, shape, dtype, missing = (values(2, rank) for _ in range(4))
shape["f"] = shape["f"][:3] if rank == 1 else shape["f"]
dtype["c"] = dtype["c"].astype(np.float64) if rank == 1 else dtype["c"]
if rank == 1:
    del missing["a"]
unchanged(lambda: opt.step(shape), ValueError, "rank 1 of 3 failed.* gradient of parameter 'f'")
unchanged(lambda: opt.step(dtype), TypeError, "rank 1 of 3 failed.* dtype float64")
unchanged(lambda: opt.step(missing), ValueError, "rank 1 of 3 failed.* other keys than params")

rate.at = 1 if rank == 1 else None  # fails inside the step, before norms are exchanged
unchanged(lambda: opt.step(good), ArithmeticError, "ArithmeticError: no rate")
rate.at = None

whole = opt.state_dict()
if rank == 1:
    whole["state"]["f"]["exp_avg"] = whole["state"]["f"]["exp_avg"][:2]
unchanged(lambda: opt.load_state_dict(whole), ValueError, "rank 1 .*exp_avg")

if rank == 1:
    opt.param_groups[0]["weight_decay"] = -1.0
try:
    opt.step(good)
except ValueError as error:
    assert "the ranks differ: rank 1 has weight_decay=-1.0 in group 0, rank 0 has" in str(error)
else:
    raise AssertionError
if rank == 1:
    opt.param_groups[0]["weight_decay"] = 0.01
opt.step(good)
assert opt.updates == 2

spikes = st.clip.skip_spikes(sigma=rate, window=1)  # 0.1 deviations: the others skip
opt = st.mpi.Sharded(st.SGD, p, lr=0.1, clip=spikes)
opt.step(values(1, rank))
rate.at = 1 if rank == 1 else None
large = {k: np.asarray(100 * g, np.float32) for k, g in good.items()}
unchanged(lambda: opt.step(large), ArithmeticError, "ArithmeticError: no rate")
rate.at = None
opt.step(large)
assert (opt.updates, opt.skipped) == (1, 1)

@st.rule(states=())
def picky(p, g, state, t, *, lr=0.1):
    if g.max() > 100: raise ArithmeticError("too large")
    p -= lr * g

opt = st.mpi.Sharded(picky, p, lr=0.1)
owner = {name: own[0].rank for name, own in zip(SHAPES, opt._pieces)}
name = next(k for k, r in owner.items() if r == 1 and p[k].size)
good[name].flat[0] = 1e6
unchanged(lambda: opt.step(good), ArithmeticError, "ArithmeticError: too large")
"""
    together(3, MODEL + code, tmp_path)


def test_ranks_that_differ_are_told_so(tmp_path):
    code = """
def differ(words, make=st.AdamW, params=None, **hyper):
    try:
        st.mpi.Sharded(make, values(0) if params is None else params, **hyper)
    except ValueError as error:
        assert "the ranks differ: rank 1 has" in str(error) and words in str(error), error
    else:
        raise AssertionError(words)

mine = values(0)
if rank == 1:
    mine["b"] = np.zeros(5, np.float32)
differ("parameter 'b', float32 of shape (5,), rank 0 has parameter 'b', float32 of shape (4,)",
       params=mine)
mine = values(0, dtype=np.float64 if rank == 1 else np.float32)
differ("'a', float64", params=mine)
mine = {("x" if rank == 1 and k == "f" else k): x for k, x in values(0).items()}
differ("parameter 'x'", params=mine)
mine = values(0)
if rank == 1:
    del mine["g"]
differ("rank 0 has parameter 'g'", params=mine)
differ("lr=0.2", lr=0.2 if rank == 1 else 0.1)
differ("cosine", lr=st.schedules.cosine(0.1, steps=10 + rank))
differ("the optimizer SGD", make=st.SGD if rank == 1 else st.AdamW, lr=0.1)
differ("bucket_bytes=64", bucket_bytes=64 if rank == 1 else 128)
part = ["a", "b"] if rank == 1 else ["a", "c"]
mine = values(0)
groups = [{"params": {k: mine[k] for k in SHAPES if (k in part) == first}} for first in (1, 0)]
differ("parameter 'b'", params=groups)
split = [dict(list(mine.items())[a:b]) for a, b in ((0, 2 + rank), (2 + rank, 7))]
differ("group 0 with a, b, c", params=[{"params": x} for x in split])
differ("nonfinite='skip'", nonfinite="skip" if rank == 1 else "raise")
differ("clip=", clip=st.clip.global_norm(1.0) if rank == 1 else None)

opt = st.mpi.Sharded(st.AdamW, values(0))
opt.param_groups[0]["clip"] = st.clip.adaptive(0.1)
try:
    opt.step(values(1, rank))
except ValueError as error:
    assert "is cut between ranks" in str(error)
else:
    raise AssertionError
cautious = st.AdamW(values(0), cautious=True).state_dict()
opt = st.mpi.Sharded(st.AdamW, values(0))
try:
    opt.load_state_dict(cautious)
except ValueError as error:
    assert "is cut between ranks" in str(error) and not opt.param_groups[0]["cautious"]
else:
    raise AssertionError
masks = st.filters.mask({"f": np.ones((7, 6))})
for hyper in ({"filter": masks}, {"overrides": {"f": {"filter": (masks,)}}}):
    try:
        st.mpi.Sharded(st.AdamW, values(0), **hyper)
    except ValueError as error:
        assert "masks are given as whole arrays" in str(error)
    else:
        raise AssertionError

opt = st.mpi.Sharded(st.AdamW, {"f": np.ones((70, 100), np.float32)})
try:
    one = st.AdamW({"f": np.ones((70, 100), np.float32)}, state_dtype="q8")
    opt.load_state_dict(one.state_dict())
except ValueError as error:
    assert "is cut between ranks" in str(error) and opt.param_groups[0]["state_dtype"] is None
else:
    raise AssertionError

p = values(rank)  # the parameters become those of rank 0
p["f"] = p["f"].T.copy().T
st.mpi.Sharded(st.AdamW, p)
for k in SHAPES:
    same(p[k].copy(), values(0)[k], k)
"""
    together(2, MODEL + code, tmp_path)


def test_strided_arrays_and_small_messages(tmp_path):
    code = """
for bucket in (8, 24 * size, 100 * size, 1 << 20):
    base = {"x": np.ones((6, 10)), "y": np.ones((9, 4)).T, "z": np.ones(30, np.float32)}
    p = {"x": base["x"][::-2, 1::3], "y": base["y"], "z": base["z"][::-1]}
    q = {k: x.copy() for k, x in p.items()}
    opt, one = st.mpi.Sharded(st.AdamW, p, lr=0.1, bucket_bytes=bucket), st.AdamW(q, lr=0.1)
    for t in range(3):
        grads = [
            {k: np.random.default_rng([t, r]).normal(size=x.shape).astype(x.dtype).T.copy().T
             for k, x in p.items()} for r in range(size)
        ]
        opt.step(grads[rank])
        one.step({k: mean([g[k] for g in grads]) for k in p})
    for k in p:
        same(p[k].copy(), q[k].copy(), k)
    assert (base["x"][1::2] == 1).sum() >= 20 and (base["x"][:, 0] == 1).all()
"""
    together(3, MODEL + code, tmp_path)


def test_a_rank_has_its_part_of_the_state(tmp_path):
    """1/n of the bytes, and what is cut is cut to a row."""
    code = """
shapes = {"embedding": (1000, 16), "w": (64, 48), "v": (48, 64), "b": (48,), "s": ()}
for make, slack in ((st.AdamW, 0.01), (st.Lion, 0.01), (st.LAMB, None)):
    opt = st.mpi.Sharded(make, {k: np.ones(s, np.float32) for k, s in shapes.items()})
    own = sum(x.nbytes for s in opt.state.values() for k, x in s.items() if k != "step")
    gradients = sum(x.nbytes for x in opt._shares)
    every, states = comm.allgather(own), len(make(np.ones(1)).state["0"]) - 1
    total = 4 * states * sum(int(np.prod(s)) for s in shapes.values())
    assert sum(every) == total
    if slack:
        assert max(every) <= total / size * (1 + slack), every
        assert gradients <= total / states / size * (1 + slack)
    else:  # whole arrays: the largest is on a rank of its own
        assert max(every) == 4 * states * 16000
"""
    together(4, MODEL + code, tmp_path)


TRAIN = """
def optimizer(p, make=None):
    hyper = dict(
        lr=st.schedules.cosine(0.1, steps=50), ema=0.9, clip=st.clip.percentile(50.0),
        exclude="vectors", nonfinite="skip",
    )
    return make(p, **hyper)

def train(opt, p, first, last):
    for t in range(first, last):
        opt.step({k: np.sin(x + t) for k, x in p.items()})  # the same on every rank
"""


def load_here(code):
    scope = {"np": np, "st": st, "rank": 0, "size": 1}
    exec(MODEL + TRAIN + code, scope)
    return scope


def test_a_checkpoint_goes_from_any_number_of_ranks_to_any_other(tmp_path):
    """2 ranks, then the optimizer alone, then 3: float64 to 1e-12 of an uninterrupted run of one
    process; what differs is the rounding of the norms and of the mean of equal gradients."""
    save = """
p = values({seed}, dtype=np.float64)
opt = optimizer(p, lambda *a, **k: st.mpi.Sharded(st.AdamW, *a, **k))
{load}
train(opt, p, {first}, {last})
st.save({path!r}, opt, extra={{"t": {last}}}, arrays={{"order": np.arange(3)}})
found = st.checkpoint.read({path!r})
for k in SHAPES:
    same(found.params[k], p[k], k)
again = opt.state_dict()
assert repr(again["param_groups"]) == repr(found.state_dict["param_groups"])
for k in SHAPES:
    for key, x in again["state"][k].items():
        assert np.array_equal(found.state_dict["state"][k][key], x), (k, key)
"""
    first, second, third = (str(tmp_path / f"{n}.safetensors") for n in (1, 2, 3))
    together(
        2,
        MODEL + TRAIN + save.format(seed=0, load="", first=0, last=5, path=first),
        tmp_path,
    )
    scope = load_here(f"""
p = values(7, dtype=np.float64)
opt = optimizer(p, st.AdamW)
found = st.load({first!r}, opt)
train(opt, p, 5, 9)
st.save({second!r}, opt)
""")
    assert scope["found"].extra == {"t": 5} and scope["found"].arrays["order"].tolist() == [0, 1, 2]
    together(
        3,
        MODEL
        + TRAIN
        + save.format(seed=8, load=f"st.load({second!r}, opt)", first=9, last=14, path=third),
        tmp_path,
    )
    here = load_here("""
p = values(0, dtype=np.float64)
opt = optimizer(p, st.AdamW)
train(opt, p, 0, 14)
""")
    found, one = st.checkpoint.read(third), here["opt"].state_dict()
    assert found.state_dict["updates"] == one["updates"] == 14
    for name, state in one["state"].items():
        np.testing.assert_allclose(found.params[name], here["p"][name], rtol=1e-12, atol=1e-14)
        assert found.state_dict["state"][name].keys() == state.keys()
        for key, x in state.items():
            ours = found.state_dict["state"][name][key]
            np.testing.assert_allclose(ours, x, rtol=1e-12, atol=1e-14, err_msg=f"{name} {key}")


def test_a_resumed_run_has_the_bits_of_one_that_went_on(tmp_path):
    """Rules of each need, saved and loaded by the same number of ranks, or a state by itself."""
    code = """
for make in (st.AdamW, st.LAMB, st.Adafactor, st.Shampoo, st.NovoGrad, st.ScheduleFreeAdamW):
    p = values(0)
    opt = st.mpi.Sharded(make, p)
    for t in range(3):
        opt.step(values(t, rank))
    st.save("run.safetensors", opt)
    whole, own = opt.state_dict(), opt.state_dict(gather=False)
    then = {k: x.copy() for k, x in p.items()}
    for t in range(3, 6):
        opt.step(values(t, rank))
    for way in ("file", "whole", "own"):
        q = values(9)
        again = st.mpi.Sharded(make, q, weight_decay=0.5)
        if way == "file":
            st.load("run.safetensors", again)
        else:
            again.load_state_dict(whole if way == "whole" else own, gather=way == "whole")
            for k in q:
                q[k][...] = then[k]
        for t in range(3, 6):
            again.step(values(t, rank))
        for k in SHAPES:
            same(q[k], p[k], (make, way, k))
    comm.Barrier()
"""
    together(3, MODEL + code, tmp_path)


def test_a_file_that_cannot_be_fails_on_all_ranks(tmp_path):
    code = """
p = values(0)
opt = st.mpi.Sharded(st.AdamW, p)
opt.step(values(1, rank))

def fails(act, root, other):
    try:
        act()
    except (root if rank == 0 else other) as error:
        return str(error)
    raise AssertionError

Rank = st.mpi.RankError
fails(lambda: st.save("no/such/folder/file", opt), FileNotFoundError, Rank)
fails(lambda: st.save("file", opt, extra=[]), TypeError, Rank)
fails(lambda: st.save("file", opt, extra={"f": print}), st.checkpoint.CheckpointError, Rank)
st.save("file", opt)
# only rank 0 sees no such file
text = fails(lambda: st.load("file" if rank else "other", opt), FileNotFoundError, Rank)
assert rank == 0 or "rank 0 of 2 failed" in text
other = st.mpi.Sharded(st.AdamW, {k: x for k, x in values(0).items() if k != "f"})
Error = st.checkpoint.CheckpointError
fails(lambda: st.load("file", other), Error, Error)
fails(lambda: st.load("file", st.mpi.Sharded(st.Lion, values(0))), Error, Error)
state = opt.state_dict()
state["rule"] = "lion"
fails(lambda: opt.load_state_dict(state), ValueError, ValueError)
st.load("file", opt)
assert opt.updates == 1
"""
    together(2, MODEL + code, tmp_path)


def test_means_for_an_optimizer_that_every_rank_has(tmp_path):
    code = """
p, q = values(0), values(0)
opt, one = st.Prodigy(p), st.Prodigy(q)
for t in range(1, 4):
    grads = grads_of(t, np.float32)
    opt.step(st.mpi.mean(grads[rank], bucket_bytes=100))
    one.step({k: mean([g[k] for g in grads]) for k in SHAPES})
for k in SHAPES:
    same(p[k], q[k], k)
for bad in ([np.ones(2 + (rank == 1))], [None if rank == 1 else np.ones(2)]):
    try:
        st.mpi.mean(bad)
    except ValueError as error:
        assert "the ranks differ: rank 1 has gradient '0'" in str(error)
    else:
        raise AssertionError
half = comm.Split(rank % 2)  # ranks 0 and 2, and rank 1 alone
found = st.mpi.mean(np.array([float(rank)]), comm=half)
assert found[0] == 1.0
"""
    together(3, MODEL + code, tmp_path)


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", signal.SIGKILL),
        ("raise RuntimeError('a bug of the caller')", 1),
        ("sys.exit(3)", 3),
        ("opt.optimizer.step = lambda g: (opt._ranks.ready(), [][0])", 1),
    ],
)
def test_a_rank_that_ends_ends_all(end, status, tmp_path):
    """No rank waits for ever for one that was killed, that left by an error of the caller, or that
    failed when others had begun to change their parts."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import os, signal, sys
import numpy as np
import steepest as st
from mpi4py import MPI
rank = MPI.COMM_WORLD.rank
opt = st.mpi.Sharded(st.AdamW, np.ones(1000))
for t in range(1_000_000_000):
    if t == 20 and rank == 1:
        open("so far", "w").close()
        {end}
    try:
        opt.step(np.ones(1000))
    except IndexError:
        pass
""")
    found, _, err = launch(2, script, cwd=tmp_path, timeout=60)
    assert (tmp_path / "so far").exists(), err
    assert found != 0 and found % 128 in (status, 0x80 - status), found


def test_the_example(tmp_path):
    """It learns, shares its state, and goes on with another number of processes."""
    for ranks, updates in ((2, 60), (3, 120)):
        status, out, err = launch(ranks, EXAMPLE, cwd=tmp_path)
        assert status == 0, err
        found = re.search(r"(\d+) updates on (\d+) processes: ([\d.]+)%", out)
        assert [int(found[1]), int(found[2])] == [updates, ranks]
        assert float(found[3]) > 90
        kept = [int(x) for x in re.search(r"each: \[(.*)\]", out)[1].split(",")]
        assert len(kept) == ranks and max(kept) < 1.02 * sum(kept) / ranks
