"""``steepest.torch`` where processes have whole parameters: DDP, ZeroRedundancyOptimizer."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from torch_run import hosted

pytestmark = pytest.mark.torch

EXAMPLE = Path(__file__).parents[2] / "examples" / "fsdp_cpu.py"


@pytest.fixture(scope="module")
def host():
    yield from hosted()


MODEL = """
import steepest.torch as stt
from steepest.optimizers import RULES
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

def cls(rule):
    return getattr(stt, RULES[rule].__name__)

def model(dtype=torch.float32):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(4, 6, bias=False), torch.nn.Tanh(), torch.nn.Linear(6, 2, bias=False)]
    return torch.nn.Sequential(*layers).to(dtype)

def loss(m, t, r):
    dtype = next(m.parameters()).dtype
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(100 * t + r), dtype=dtype)
    return m(x).square().mean()

def mean_gradients(m, t):
    "What one process makes of the data of all, with the gradients' own mean."
    grads = []
    for r in range(size):
        m.zero_grad()
        loss(m, t, r).backward()
        grads.append([p.grad for p in m.parameters()])
    for p, each in zip(m.parameters(), zip(*grads)):
        total = each[0].clone()
        for g in each[1:]:
            total += g
        p.grad = total / size

def bits(m):
    return [p.detach().numpy().tobytes() for p in m.parameters()]

def apart(m, q):
    return max((x - y).abs().max().item() for x, y in zip(m.parameters(), q.parameters()))

def alike(x):
    "Whether all ranks have the same."
    every = [None] * size
    dist.all_gather_object(every, x)
    return all(one == every[0] for one in every)

def raises(kind, words, do):
    try:
        do()
    except Exception as error:
        assert isinstance(error, kind) and words in str(error), repr(error)
    else:
        raise AssertionError(f"no {kind.__name__} of {words!r}")
"""


# DistributedDataParallel


def test_ddp_of_two_has_the_bits_of_one_process(host, tmp_path):
    """A sum of two is the same in either order, and halves are exact."""
    code = """
clip = st.clip.global_norm(0.01)
for rule, hyper in [(rule, {}) for rule in RULES] + [("adamw", {"clip": clip}), ("sgd", {
    "lr": 0.1, "momentum": 0.9, "clip": st.clip.group_norm(0.01), "nonfinite": "skip", "ema": 0.9,
})]:
    m, q = model(), model()
    wrapped = DistributedDataParallel(m)
    own, one = cls(rule)(wrapped.parameters(), **hyper), cls(rule)(q.parameters(), **hyper)
    for t in range(4):
        own.zero_grad()
        loss(wrapped, t, rank).backward()
        own.step()
        mean_gradients(q, t)
        one.step()
    assert bits(m) == bits(q) != bits(model()), rule
    assert own.last_norm == one.last_norm and own._company is None, rule
"""
    host.together(2, MODEL + code, tmp_path)


@pytest.mark.parametrize("n", [2, 4])
def test_ddp_is_torchs_own_within_rounding(n, host, tmp_path):
    """Both see the same bits of gradients, and round 10 steps of double otherwise: 1e-12."""
    code = """
m, q, one = model(torch.float64), model(torch.float64), model(torch.float64)
ours, theirs = DistributedDataParallel(m), DistributedDataParallel(q)
hyper = {"lr": 0.05, "weight_decay": 0.1}
own = stt.AdamW(ours.parameters(), clip=st.clip.global_norm(0.05), **hyper)
other = torch.optim.AdamW(theirs.parameters(), **hyper)
alone = stt.AdamW(one.parameters(), clip=st.clip.global_norm(0.05), **hyper)
clipped = 0
for t in range(10):
    own.zero_grad()
    other.zero_grad()
    loss(ours, t, rank).backward()
    loss(theirs, t, rank).backward()
    own.step()
    norm = torch.nn.utils.clip_grad_norm_(q.parameters(), 0.05)
    assert abs(own.last_norm - norm.item()) <= 1e-12, t
    clipped += norm.item() > 0.05
    other.step()
    mean_gradients(one, t)
    alone.step()
assert clipped > 3
assert apart(m, q) <= 1e-12 and apart(m, one) <= 1e-12
assert alike(bits(m)) and apart(m, model(torch.float64)) > 0.1
"""
    host.together(n, MODEL + code, tmp_path)


# ZeroRedundancyOptimizer


@pytest.mark.parametrize("n", [2, 3])
def test_every_rule_in_zero_has_the_bits_of_one_process(n, host, tmp_path):
    """There are two parameters, so of three processes one has none."""
    code = """
refused = set()
for rule in RULES:
    m, q = model(), model()
    def made(parameters):
        return ZeroRedundancyOptimizer(parameters, cls(rule))
    if RULES[rule].needs == "global":
        raises(ValueError, "needs sums over all parameters", lambda: made(m.parameters()))
        refused.add(rule)
        continue
    own, one = made(m.parameters()), cls(rule)(q.parameters())
    for t in range(3):
        mean_gradients(m, t)
        mean_gradients(q, t)
        own.step()
        one.step()
    assert bits(m) == bits(q) != bits(model()), rule
assert len(refused) == 4, refused
"""
    host.together(n, MODEL + code, tmp_path)


def test_clips_in_zero_go_by_all_gradients(host, tmp_path):
    """The sums of squares are added in another order: 1e-12 of numbers near 1."""
    code = """
options = [
    {"clip": st.clip.global_norm(0.02)},
    {"clip": st.clip.norm(0.02), "nonfinite": "skip"},
    {"clip": st.clip.global_norm(0.02, float("inf"))},
    {"clip": (st.clip.skip_spikes(3.0), st.clip.percentile(50))},
    {"clip": st.clip.previous_norm(0.02)},
    {"clip": st.clip.value(0.01), "nonfinite": "raise"},
]
for extra in options:
    m, q = model(torch.float64), model(torch.float64)
    own = ZeroRedundancyOptimizer(m.parameters(), stt.SGD, lr=0.5, **extra)
    one = stt.SGD(q.parameters(), lr=0.5, **extra)
    for t in range(8):
        mean_gradients(m, t)
        mean_gradients(q, t)
        own.step()
        one.step()
    assert 0 < apart(m, model(torch.float64)) and apart(m, q) <= 1e-12, extra
    assert alike(bits(m))
"""
    for n in 2, 3:
        host.together(n, MODEL + code, tmp_path)


def test_one_bad_gradient_in_zero_is_seen_by_all(host, tmp_path):
    code = """
for t in range(2):  # each of the two parameters
    for how in "skip", "raise":
        m = model()
        own = ZeroRedundancyOptimizer(
            m.parameters(), stt.AdamW, nonfinite=how, clip=st.clip.global_norm(1.0)
        )
        def step():
            mean_gradients(m, 0)
            list(m.parameters())[t].grad[0, 0] = float("nan")
            own.step()
        if how == "skip":
            step()
            has = any(group["params"] for group in own.optim.param_groups)
            assert own.optim.skipped == has and ("gradient of" in own.optim.last_skip) == has
        elif any(group["params"] for group in own.optim.param_groups):
            raises(FloatingPointError, "nothing was changed", step)
        else:
            raises(st.mpi.RankError, "FloatingPointError", step)
        assert bits(m) == bits(model())
        mean_gradients(m, 0)
        own.step()
        assert bits(m) != bits(model()) and alike(bits(m))
"""
    for n in 2, 3:
        host.together(n, MODEL + code, tmp_path)


def test_what_zero_cannot_follow_is_refused(host, tmp_path):
    code = """
m = model()
first, second = m.parameters()
def make(params=None, **extra):
    ZeroRedundancyOptimizer(params or m.parameters(), stt.SGD, lr=0.1, **extra)
raises(ValueError, "group_norm", lambda: make(clip=st.clip.group_norm(1.0)))
raises(ValueError, "give it the groups themselves", lambda: make(exclude="vectors"))
raises(ValueError, "of which each process has other", lambda: make(copies=[torch.zeros(6, 4)]))
raises(ValueError, "give it the groups themselves", lambda: make(overrides={"0": {"lr": 1.0}}))
one = {"params": [first], "clip": st.clip.global_norm(1.0)}
two = {"params": [second], "clip": None}
raises(ValueError, "give all groups the same clip", lambda: make([one, two]))
make([one, two | {"clip": one["clip"], "lr": 0.5}])
assert stt.SGD(m.parameters(), lr=0.1, exclude="0")._zero is None
"""
    host.together(2, MODEL + code, tmp_path)


def test_a_consolidated_state_goes_on_anywhere(host, tmp_path):
    code = """
import copy
def train(own, m, steps):
    for t in steps:
        mean_gradients(m, t)
        own.step()

for name, hyper in [
    ("AdamW", {"lr": 0.1, "ema": 0.9}), ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
    ("NAdam", {"lr": 0.1}), ("Adafactor", {"lr": 0.1}), ("Muon", {"lr": 0.1}),
    ("AdamW", {"lr": st.schedules.cosine(0.1, 10), "clip": st.clip.global_norm(0.05)}),
]:
    make = getattr(stt, name)
    whole = model()
    train(make(whole.parameters(), **hyper), whole, range(6))
    m = model()
    own = ZeroRedundancyOptimizer(m.parameters(), make, **hyper)
    train(own, m, range(3))
    own.consolidate_state_dict(to=0)
    told = [own.state_dict() if rank == 0 else None]
    dist.broadcast_object_list(told)
    saved = told[0]
    other = model()
    other.load_state_dict(m.state_dict())
    again = ZeroRedundancyOptimizer(m.parameters(), make, **hyper)
    again.load_state_dict(copy.deepcopy(saved))  # it keeps the tensors
    train(again, m, range(3, 6))
    one = make(other.parameters(), **hyper)
    one.load_state_dict(saved)
    train(one, other, range(3, 6))
    if hyper.get("clip"):  # a norm of all is put together, in another order than in one process
        torch.testing.assert_close(list(m.parameters()), list(whole.parameters()))
    else:
        assert bits(m) == bits(whole), name
        assert bits(other) == bits(whole), name
    assert alike(bits(m))
"""
    host.together(2, MODEL + code, tmp_path)


def test_zero_in_buckets_and_with_ddp(host, tmp_path):
    code = """
m, q = model(), model()
wrapped = DistributedDataParallel(m)
own = ZeroRedundancyOptimizer(
    wrapped.parameters(), stt.AdamW, parameters_as_bucket_view=True, lr=0.1, weight_decay=0.1
)
one = stt.AdamW(q.parameters(), lr=0.1, weight_decay=0.1)
for t in range(4):
    own.zero_grad()
    loss(wrapped, t, rank).backward()
    own.param_groups[0]["lr"] = one.param_groups[0]["lr"] = 0.1 / (t + 1)
    own.step()
    mean_gradients(q, t)
    one.step()
assert bits(m) == bits(q)
"""
    host.together(2, MODEL + code, tmp_path)


# Failures


def test_a_process_that_is_killed_ends_the_others(host, tmp_path):
    code = """
import os, signal
m = model()
own = ZeroRedundancyOptimizer(m.parameters(), stt.AdamW, lr=0.1)
mean_gradients(m, 0)
own.step()
before = bits(m)
dist.barrier()
if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
mean_gradients(m, 1)
raises(st.mpi.RankError, "a process has ended", own.step)
assert bits(m) == before
raise SystemExit(7)  # without the good-bye that nobody answers
"""
    host.together(2, MODEL + code, tmp_path, expected=[7, -signal.SIGKILL], seconds=30)


def test_a_process_that_does_not_come_ends_the_others(host, tmp_path):
    """It waits for the file that the other one leaves, so it is alive all the while."""
    code = """
import time
from pathlib import Path
m = model()
own = ZeroRedundancyOptimizer(m.parameters(), stt.AdamW, lr=0.1)
mean_gradients(m, 0)
if rank == 1:
    while not Path("gave up").exists():
        time.sleep(0.01)
else:
    raises(st.mpi.RankError, "did not come to this step in time", own.step)
    assert bits(m) == bits(model())
    Path("gave up").touch()
raise SystemExit(7)
"""
    host.together(2, MODEL + code, tmp_path, expected=[7, 7], seconds=3)


def test_an_error_on_one_process_is_one_on_all(host, tmp_path):
    code = """
for options in {}, {"clip": st.clip.global_norm(1.0)}:
    m = model()
    own = ZeroRedundancyOptimizer(m.parameters(), stt.AdamW, lr=0.1, **options)
    mean_gradients(m, 0)
    if rank == 1:
        own.param_groups[0]["lr"] = "high"
        raises(TypeError, "lr", own.step)
    else:
        raises(st.mpi.RankError, "rank 1: TypeError: lr", own.step)
    assert bits(m) == bits(model())
    own.param_groups[0]["lr"] = 0.1
    own.step()
    assert alike(bits(m)) and bits(m) != bits(model())
"""
    host.together(2, MODEL + code, tmp_path)


def test_the_example_runs_and_goes_on(tmp_path):
    """Two processes of torchrun, then one without it, at a port that the system chooses."""
    pytest.importorskip("torch")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for updates, n, how, more in (20, 2, torchrun, {}), (40, 1, [], alone):
        run = subprocess.Popen(
            [sys.executable, *how, str(EXAMPLE)], text=True, start_new_session=True, cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"} | more,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            told, _ = run.communicate(timeout=120)
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
                run.communicate()
        assert run.returncode == 0, told
        assert f"{updates} updates on {n} process" in told
