"""``steepest.torch`` on DTensors over gloo: FSDP2, norms over shards, distributed checkpoints."""

import pytest
from torch_run import hosted

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def host():
    yield from hosted()


START = """
import math
import steepest.torch as stt
from steepest.optimizers import RULES
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

mesh = init_device_mesh("cpu", (size,))
SHAPES = [(7, 5), (6,), (3, 4, 2), (1, 3)]

def cls(rule):
    return getattr(stt, RULES[rule].__name__)

def values(seed, dtype=torch.float64, shapes=SHAPES):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g, dtype=dtype) for shape in shapes]

def sharded(tensors, mesh=mesh, placements=(Shard(0),)):
    return [distribute_tensor(x, mesh, placements, src_data_rank=None) for x in tensors]

def params(seed, dtype=torch.float64, **how):
    return [torch.nn.Parameter(x) for x in sharded(values(seed, dtype), **how)]

def whole(seed, dtype=torch.float64):
    return [torch.nn.Parameter(x) for x in values(seed, dtype)]

def give(own, one, seed, dtype=torch.float64, **how):
    for p, g in zip(own, sharded(values(seed, dtype), **how)):
        p.grad = g
    for p, g in zip(one, values(seed, dtype)):
        p.grad = g

def full(tensors):
    return [x.detach().full_tensor() for x in tensors]

def bits(tensors):
    return [x.detach().numpy().tobytes() for x in tensors]

def apart(own, one):
    return max((x - y).abs().max().item() for x, y in zip(full(own), one))

def alike(x):
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

NETWORK = """
def network(shard=True):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)]
    m = torch.nn.Sequential(*layers).double()
    if shard:
        fully_shard(m, mesh=mesh)
    return m

def train(m, optimizer, steps, own=True):
    for t in steps:
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
        if own:
            m(x[rank::size]).square().mean().backward()  # all have as many rows
        else:
            m(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
"""


@pytest.mark.parametrize("n", [2, 4])
def test_element_wise_rules_have_the_bits_of_one_process(n, host, tmp_path):
    """Of the rows of the last parameter, one, all processes but the first have none."""
    code = """
options = {
    "adamw": {"ema": 0.9, "l1": 0.01, "weight_decay": 0.1, "lr": 0.1}, "sgd": {"lr": 0.1},
    "adam": {"clip": st.clip.value(0.5), "filter": st.filters.grokfast()},
}
done = refused = 0
for rule in RULES:
    if RULES[rule].needs != "element-wise" or RULES[rule].prepares:
        words = "needs" if RULES[rule].needs == "global" else "is sharded, and"
        raises(ValueError, words, lambda: cls(rule)(sharded(values(1, shapes=[(4, 4)]))))
        refused += 1
        continue
    for dtype in torch.float32, torch.float64:
        own, one = params(1, dtype), whole(1, dtype)
        hyper = options.get(rule, {})
        a, b = cls(rule)(own, **hyper), cls(rule)(one, **hyper)
        for t in range(4):
            give(own, one, 10 + t, dtype)
            a.step()
            b.step()
        assert bits(full(own)) == bits(one) != bits(values(1, dtype)), rule
        for p, q in zip(own, one):
            for key, x in a.state[p].items():
                x = x.full_tensor() if isinstance(x, DTensor) else x
                assert torch.equal(x, b.state[q][key]), (rule, key)
    done += 1
assert done > 20 and refused > 15, (done, refused)
"""
    host.together(n, START + code, tmp_path)


def test_other_ways_to_lie(host, tmp_path):
    """Columns, complex numbers, all whole on each, another order of the mesh's dimensions."""
    code = """
for dtype, placements in [
    (torch.float64, [Shard(1)]), (torch.complex128, [Shard(0)]), (torch.float32, [Replicate()]),
]:
    shapes = SHAPES if placements != [Shard(1)] else [(7, 5), (4, 3)]
    own = [torch.nn.Parameter(x) for x in sharded(values(1, dtype, shapes), placements=placements)]
    one = [torch.nn.Parameter(x) for x in values(1, dtype, shapes)]
    a, b = stt.AdamW(own, lr=0.1, amsgrad=True), stt.AdamW(one, lr=0.1, amsgrad=True)
    for t in range(3):
        for x, g in (own, sharded(values(t, dtype, shapes), placements=placements)), (
            one, values(t, dtype, shapes)
        ):
            for p, y in zip(x, g):
                p.grad = y
        a.step()
        b.step()
    assert [x.resolve_conj().numpy().tobytes() for x in full(own)] == bits(one), placements
    for key, x in a.state[own[0]].items():
        assert key == "step" or x.placements == own[0].placements
own = [torch.nn.Parameter(x) for x in sharded(values(1), placements=[Replicate()])]
stt.LAMB(own)  # whole on each
own = params(1)
a = stt.AdamW(own)
own[0].grad = distribute_tensor(torch.ones(7, 5).double(), mesh, [Replicate()])
raises(TypeError, "use .redistribute()", a.step)
part = DTensor.from_local(torch.ones(7, 5).double(), mesh, [Partial()])
own[0].grad = part.redistribute(placements=[Shard(0)], async_op=True)
a.step()
assert a.state[own[0]]["exp_avg"].full_tensor()[6, 4].item() == 2 * (1 - 0.9)
raises(TypeError, "a sum that has yet to be made", lambda: stt.AdamW([part]))
"""
    host.together(2, START + code, tmp_path)


def test_what_goes_by_whole_arrays_is_refused(host, tmp_path):
    code = """
for hyper in [
    {"clip": st.clip.adaptive(0.1)}, {"filter": st.filters.centralize()},
    {"filter": st.filters.mars()}, {"cautious": True},
    {"regularize": st.regularize.group_lasso(0.1)},
]:
    raises(ValueError, "no process has one", lambda: stt.AdamW(params(1), **hyper))
own = params(1)
a = stt.AdamW(own, lr=0.1)
give(own, [], 2)
a.param_groups[0]["cautious"] = True
raises(ValueError, "cautious=True needs whole arrays", a.step)
a.param_groups[0]["cautious"] = False
assert bits(full(own)) == bits(values(1))
a.step()
now = bits(full(own))
assert now != bits(values(1))
a.param_groups[0]["cautious"] = True  # once there is a plan
raises(ValueError, "cautious=True needs whole arrays", a.step)
assert bits(full(own)) == now
a.param_groups[0]["cautious"] = False
masks = (torch.ones(7, 5).numpy() > 0,)
raises(ValueError, "masks", lambda: stt.AdamW(params(1)[:1], filter=st.filters.mask(masks)))
raises(ValueError, "LAMB needs", lambda: (
    a.add_param_group({"params": params(5), "rule": "lamb"}), a.step()
))
"""
    host.together(2, START + code, tmp_path)


# Norms


@pytest.mark.parametrize("n", [2, 4])
def test_clips_go_by_whole_gradients(n, host, tmp_path):
    """The sums of squares are added in another order: 1e-12 of numbers near 1."""
    code = """
groups = lambda ps: [{"params": ps[:2]}, {"params": ps[2:], "lr": 0.2}]
for hyper in [
    {"clip": st.clip.global_norm(1.0)}, {"clip": st.clip.global_norm(1.0, math.inf)},
    {"clip": st.clip.global_norm(2.0, 1.0)}, {"clip": st.clip.norm(0.5), "nonfinite": "raise"},
    {"clip": st.clip.group_norm(0.5)}, {"clip": st.clip.previous_norm(1.0)},
    {"clip": (st.clip.skip_spikes(3.0), st.clip.percentile(50))},
]:
    own, one = params(1), whole(1)
    a, b = stt.SGD(groups(own), lr=0.5, **hyper), stt.SGD(groups(one), lr=0.5, **hyper)
    for t in range(8):
        give(own, one, t)
        a.step()
        b.step()
        assert a.last_norm is None or abs(a.last_norm - b.last_norm) <= 1e-12, hyper
        assert list(a.last_norms) == list(b.last_norms), hyper
    assert apart(own, one) <= 1e-12 < apart(own, whole(1)), hyper
    assert alike((a.last_norm, a.last_norms, a.clip_history)), hyper
"""
    host.together(n, START + code, tmp_path)


@pytest.mark.parametrize("n", [2, 4])
def test_the_global_norm_is_torchs(n, host, tmp_path):
    code = """
own, one = params(1), params(1)
hyper = {"lr": 0.1, "weight_decay": 0.1}
a = stt.AdamW(own, clip=st.clip.global_norm(3.0), **hyper)
b = torch.optim.AdamW(one, **hyper)
clipped = 0
for t in range(8):
    give(own, [], t)
    give(one, [], t)
    norm = torch.nn.utils.clip_grad_norm_(one, 3.0).full_tensor().item()
    a.step()
    b.step()
    assert abs(a.last_norm - norm) <= 1e-12 * norm
    clipped += norm > 3.0
assert clipped and apart(own, full(one)) <= 1e-12
"""
    host.together(n, START + code, tmp_path)


def test_norms_where_shards_are_replicated(host, tmp_path):
    """Two pairs, each of which has all (HSDP): norms are of a pair, and not of all four."""
    code = """
square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "parts"))
for placements in [Replicate(), Shard(0)], [Shard(0), Replicate()], [Shard(0), Shard(0)]:
    how = {"mesh": square, "placements": placements}
    own, one = params(1, **how), whole(1)
    a = stt.SGD(own, lr=0.5, clip=st.clip.global_norm(1.0))
    b = stt.SGD(one, lr=0.5, clip=st.clip.global_norm(1.0))
    for t in range(3):
        give(own, one, t, **how)
        a.step()
        b.step()
        assert abs(a.last_norm - b.last_norm) <= 1e-12, placements
    assert apart(own, one) <= 1e-12, placements
    a.param_groups[0]["lr"] = "high" if rank == 3 else 0.5
    raises(TypeError if rank == 3 else st.mpi.RankError, "lr", a.step)
    assert apart(own, one) <= 1e-12, placements

mixed = [*params(1)[:2], torch.nn.Parameter(torch.ones(3).double())]
a = stt.SGD(mixed, lr=0.5, clip=st.clip.global_norm(1.0))
for p in mixed:
    p.grad = torch.ones_like(p)
raises(ValueError, "an optimizer for each kind", a.step)
a.param_groups[0]["clip"] = None
a.step()
assert mixed[2].tolist() == [0.5] * 3
"""
    host.together(4, START + code, tmp_path)


def test_a_bad_gradient_is_seen_by_all(host, tmp_path):
    code = """
for how in "skip", "raise":
    own = params(1)
    a = stt.AdamW(own, lr=0.1, nonfinite=how)
    give(own, [], 2)
    if rank == 1:
        own[1].grad.to_local()[0] = math.nan
    if how == "skip":
        a.step()
        assert a.skipped == 1 and "parameter '1'" in a.last_skip and a.updates == 0
    else:
        raises(FloatingPointError, "parameter '1'", a.step)
    assert bits(full(own)) == bits(values(1))
    give(own, [], 2)
    a.step()
    assert a.updates == 1 and bits(full(own)) != bits(values(1))
"""
    host.together(2, START + code, tmp_path)


SCALED = """
own, one = params(0), whole(0)
a, b = stt.AdamW(own, lr=0.1), stt.AdamW(one, lr=0.1)
for t in range(4):
    give(own, one, 1 + t)
    a.grad_scale = b.grad_scale = torch.tensor(4.0)
    a.found_inf = torch.tensor(float(t == 1 and rank == size - 1))  # by one process alone
    b.found_inf = torch.tensor(float(t == 1))
    a.step(); b.step()
    del a.grad_scale, a.found_inf, b.grad_scale, b.found_inf
    assert a.skipped == b.skipped == int(t >= 1) and alike((a.updates, a.last_skip))
assert a.updates == 3 and bits(full(own)) == bits(one)
"""


def test_a_step_that_one_process_must_skip_is_skipped_by_all(host, tmp_path):
    host.together(2, START + SCALED, tmp_path)


def test_flat_parameters_go_alone(host, tmp_path):
    """FSDP1: what is right on parts is done, the rest refused."""
    code = (
        NETWORK
        + """
from torch.distributed.fsdp import FullyShardedDataParallel
for keep in False, True:
    q = network(False)
    m = FullyShardedDataParallel(
        network(False), use_orig_params=keep, device_id=torch.device("cpu")
    )
    raises(ValueError, "needs whole arrays", lambda: stt.LAMB(m.parameters()))
    raises(ValueError, "needs sums", lambda: stt.Prodigy(m.parameters()))
    a, b = stt.AdamW(m.parameters(), lr=0.1), stt.AdamW(q.parameters(), lr=0.1)
    train(m, a, range(3))
    train(q, b, range(3), own=False)
    with FullyShardedDataParallel.summon_full_params(m):
        for x, y in zip(m.module.parameters(), q.parameters()):
            assert (x - y).abs().max() <= 1e-12
    a.param_groups[0]["clip"] = st.clip.global_norm(1.0)
    raises(ValueError, "shard with fully_shard", lambda: train(m, a, [3]))
"""
    )
    host.together(2, START + code, tmp_path)


# FSDP2


@pytest.mark.parametrize("n", [2, 4])
def test_fully_shard_trains_as_one_process(n, host, tmp_path):
    """The mean of the gradients is added in another order: 1e-12 after 10 steps of size 0.1."""
    code = """
import copy, pickle
make = lambda m: stt.AdamW(m.named_parameters(), lr=0.1, clip=st.clip.global_norm(0.1), ema=0.9)
m, q = network(), network(False)
a, b = make(m), make(q)
train(m, a, range(10))
train(q, b, range(10), own=False)
own, one = list(m.parameters()), list(q.parameters())
assert apart(own, one) <= 1e-12 and apart(own, network(False).parameters()) > 0.1
assert own[2].to_local().shape[0] == (1 if rank == 0 else 0)
assert list(a.averaged()) == list(b.averaged())
assert apart(a.averaged().values(), b.averaged().values()) <= 1e-12
copied = copy.deepcopy(a)
assert copied.updates == 10 and copied._company is not None
raw = torch.optim.AdamW(m.parameters(), lr=0.1)
train(m, raw, [11])  # torch's own lays its states out alike
for key, x in raw.state[own[0]].items():
    y = a.state[own[0]][key]
    assert type(x) is type(y) and x.shape == y.shape, key
"""
    host.together(n, START + NETWORK + code, tmp_path)


def test_shards_of_sixteen_bits(host, tmp_path):
    """With the gradients that they have, parameters and states have the bits of one process; norms
    are added in another order."""
    code = """
import copy
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions, get_state_dict, set_state_dict,
)
dtype = getattr(torch, DTYPE)

def short(shard=True):
    m = network(False).to(dtype)
    if shard:
        fully_shard(m, mesh=mesh)
    return m

def backward(m, t):
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(t)).to(dtype)
    m(x[rank::size]).square().mean().backward()

def same(own, one):
    return all(map(torch.equal, full(own), one))

def run(m, a, q, b, steps):
    for t in steps:
        backward(m, t)
        for p, r in zip(m.parameters(), q.parameters()):
            assert p.grad.dtype == dtype and isinstance(p.grad, DTensor)
            r.grad = p.grad.full_tensor()
        a.step()
        b.step()
        a.zero_grad()

for options in [
    {"clip": st.clip.value(0.1), "ema": 0.9},
    {"state_dtype": "bfloat16", "ema": 0.9, "nonfinite": "skip"},
    {"state_dtype": {"exp_avg": "float16"}, "ema": 0.9},
    {"master": "split16" if dtype == torch.bfloat16 else "float32", "ema": 0.9},
]:
    make = lambda m: stt.AdamW(m.parameters(), lr=0.1, weight_decay=0.1, **options)
    m, q = short(), short(False)
    a, b = make(m), make(q)
    run(m, a, q, b, range(4))
    assert same(m.parameters(), q.parameters())
    assert not same(m.parameters(), short(False).parameters())
    for p, r in zip(m.parameters(), q.parameters()):
        assert p.dtype == dtype and a.state[p]["ema"].dtype == torch.float32
        for key, x in a.state[p].items():
            y = b.state[r][key]
            assert x.dtype == y.dtype, key
            if x.dtype == torch.int16:  # which gloo does not send
                x, y = x.int(), y.int()
            assert torch.equal(x.full_tensor() if isinstance(x, DTensor) else x, y)
    for flat in False, True:
        how = StateDictOptions(flatten_optimizer_state_dict=flat)
        name = f"{DTYPE} {sorted(options)} {flat}"
        checkpoint.save(dict(zip("mo", get_state_dict(m, a, options=how))), checkpoint_id=name)
        again, r = short(), copy.deepcopy(q)
        c, d = make(again), make(r)
        d.load_state_dict(b.state_dict())
        there = dict(zip("mo", get_state_dict(again, c, options=how)))
        checkpoint.load(there, checkpoint_id=name)
        set_state_dict(again, c, model_state_dict=there["m"], optim_state_dict=there["o"],
                       options=how)
        run(again, c, r, d, range(4, 6))
        assert c.updates == 6 and same(again.parameters(), r.parameters())

m, q = short(), short(False)
a, b = (stt.SGD(x.parameters(), lr=0.1, clip=st.clip.global_norm(0.01)) for x in (m, q))
run(m, a, q, b, range(2))
assert abs(a.last_norm / b.last_norm - 1) <= 1e-12 and a.last_norm > 0.01

m, q = short(), short(False)
a, b = (stt.ScheduleFreeAdamW(x.parameters(), lr=0.1) for x in (m, q))
run(m, a, q, b, range(3))
for mode in "eval", "train":
    before = full(m.parameters())
    getattr(a, mode)()
    getattr(b, mode)()
    assert same(m.parameters(), q.parameters()) and not same(m.parameters(), before)
"""
    for dtype in "bfloat16", "float16":
        host.together(2, START + NETWORK + code.replace("DTYPE", repr(dtype)), tmp_path)


KINDS = [
    ("AdamW", 'lr=0.1, clip=st.clip.global_norm(0.1), ema=0.9, nonfinite="skip"'),
    ("SGD", "lr=st.schedules.cosine(0.1, 10), momentum=0.9, dampening=0.5"),
    ("NAdam", "lr=0.1"),
    ("Adagrad", "lr=0.1"),
    ("ASGD", "lr=0.1"),
    ("Adan", "lr=0.1"),
]
CHECKPOINTS = """
from pathlib import Path
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions, get_state_dict, set_state_dict,
)

def kinds():
    for name, hyper in KINDS:
        for flat in False, True:
            m = network()
            keywords = eval(f"dict({hyper})")
            if name == "SGD" and flat:
                keywords["lr"] = 0.1  # torch's layout of SGD has no count, so no schedule
            yield f"{name} {flat}", m, getattr(stt, name)(m.parameters(), **keywords), (
                StateDictOptions(flatten_optimizer_state_dict=flat)
            )

def stored(m, a, options):
    one, two = get_state_dict(m, a, options=options)
    return {"model": one, "optimizer": two}

def end(name, m):
    torch.save(full(m.parameters()), f"end of {name}")
"""
SAVE = """
for name, m, a, options in kinds():
    train(m, a, range(3))
    checkpoint.save(stored(m, a, options), checkpoint_id=name)
    train(m, a, range(3, 6))
    (end if rank == 0 else lambda *_: full(m.parameters()))(name, m)
"""
LOAD = """
for name, m, a, options in kinds():
    before = bits(full(m.parameters()))
    there = stored(m, a, options)  # makes a state by a step with lr = 0
    assert bits(full(m.parameters())) == before, name
    checkpoint.load(there, checkpoint_id=name)
    set_state_dict(m, a, model_state_dict=there["model"], optim_state_dict=there["optimizer"],
                   options=options)
    assert a.updates == 3 or "SGD True" in name, (name, a.updates)
    train(m, a, range(3, 6))
    assert apart(m.parameters(), torch.load(f"end of {name}")) <= 1e-12, name
    assert a.skipped == 0
"""


def test_checkpoints_load_with_another_number_of_processes(host, tmp_path):
    """Saved by two, loaded by one, two and four, in torch's nested and flat form; the training
    goes on as if it had not ended, to 1e-12: means of gradients are added in another order."""
    start = START + NETWORK + f"KINDS = {KINDS!r}\n" + CHECKPOINTS
    host.together(2, start + SAVE, tmp_path)
    for n in 1, 2, 4:
        host.together(n, start + LOAD, tmp_path)


def test_a_whole_state_dict_is_shared_out(host, tmp_path):
    """From one process's file to two, and back: full_state_dict."""
    code = """
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict,
)
q = network(False)
b = stt.AdamW(q.parameters(), lr=0.1)
train(q, b, range(3), own=False)
options = StateDictOptions(full_state_dict=True)
saved = get_optimizer_state_dict(q, b, options=options)
m = network()
a = stt.AdamW(m.parameters(), lr=0.1)
set_optimizer_state_dict(m, a, saved, options=options)
assert a.updates == 3
again = get_optimizer_state_dict(m, a, options=options)
assert list(again["state"]) == list(saved["state"]) == ["0.weight", "0.bias", "2.weight", "2.bias"]
for name, state in saved["state"].items():
    for key, x in state.items():
        assert torch.equal(x, again["state"][name][key]), (name, key)
"""
    host.together(2, START + NETWORK + code, tmp_path)


# States of 8 bits


EIGHT = """
import numpy as np
from steepest import codecs
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions, get_optimizer_state_dict, get_state_dict, set_optimizer_state_dict,
    set_state_dict,
)
CODES = {"exp_avg": "exp_avg_scale", "exp_avg_sq": "exp_avg_sq_root_scale"}
\"""The states of 8 bits, with what has their scales.\"""

def network(shard=True, dtype=torch.float32, rows=37):
    \"""Its first and third weights have rows of whole groups; the second has not.\"""
    torch.manual_seed(0)
    layers = [
        torch.nn.Linear(128, rows), torch.nn.Tanh(), torch.nn.Linear(rows, 256), torch.nn.Tanh(),
        torch.nn.Linear(256, 17),
    ]
    m = torch.nn.Sequential(*layers).to(dtype)
    if shard:
        fully_shard(m, mesh=mesh)
    return m

def eight(m, **options):
    given = {"lr": 0.01, "state_dtype": "q8", "rounding_seed": 3} | options
    return stt.AdamW(m.named_parameters(), **given)

def train(m, optimizer, steps):
    \"""Returns the losses; all processes have the same data, so that gradients are as of one.\"""
    losses = []
    for t in steps:
        x = torch.randn(16, 128, generator=torch.Generator().manual_seed(t))
        y = m(x.to(next(m.parameters()).dtype)).float()
        loss = (y - x[:, :17]).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses

def whole(x):
    return x.full_tensor() if isinstance(x, DTensor) else x

def local(x):
    return x.to_local() if isinstance(x, DTensor) else x

def numbers(state, key):
    codes, scales = whole(state[key]).numpy(), whole(state[CODES[key]]).numpy()
    return codecs.from_q8(codes, scales, square=key == "exp_avg_sq")

def same_states(m, a, n, b):
    for p, q in zip(m.parameters(), n.parameters(), strict=True):
        assert a.state[p].keys() == b.state[q].keys()
        for key, x in a.state[p].items():
            assert torch.equal(local(x), local(b.state[q][key])), key
"""


@pytest.mark.parametrize("n", [2, 4])
def test_states_of_8_bits_are_sharded_by_rows(n, host, tmp_path):
    """Rows of whole groups of 128: codes and scales are DTensors; other sharded parameters keep
    float32. The noise is another than in one process: a rounding is off by up to 1/8 of a number,
    a moving average of them by less in the mean, so 1/16 of the largest and 1/2 for each."""
    code = """
m, q = network(), network(False)
a, b = eight(m), eight(q)
losses = train(m, a, range(20))
assert losses[-1] < 0.8 * losses[0]
# The two round at random by other numbers, each state by up to an eighth of it.
assert np.allclose(losses, train(q, b, range(20)), rtol=0.05)
for (name, p), r in zip(m.named_parameters(), q.parameters()):
    state, one = a.state[p], b.state[r]
    if name not in ("0.weight", "4.weight"):
        assert all(state[key].dtype == torch.float32 for key in CODES), name
        assert not state.keys() & set(CODES.values()), name
        continue
    for key, scale in CODES.items():
        x, scales = state[key], state[scale]
        assert isinstance(x, DTensor) and x.dtype == torch.uint8 and x.shape == p.shape
        assert isinstance(scales, DTensor) and scales.dtype == torch.uint8
        assert scales.shape == one[scale].shape == (len(p), p.shape[1] // 128)
        assert x.placements == scales.placements == p.placements
        assert scales.to_local().shape[0] == x.to_local().shape[0] == p.to_local().shape[0]
        own, other = numbers(state, key), numbers(one, key)
        apart = abs(own - other) / abs(other).max()
        assert 0 < apart.mean() < 1 / 16 and apart.max() < 1 / 2, (name, key, apart.max())
inner = a._current()
assert len([x for state in a.state.values() for x in state.values()]) == 6 * 3 + 2 * 2
assert a._current() is inner  # looked at, and found as it was
"""
    host.together(n, START + EIGHT + code, tmp_path)


def test_a_state_dict_of_8_bits_goes_on_with_the_same_bits(host, tmp_path):
    """On the same number of processes, in torch's own forms of it; so does a run from the start."""
    code = """
for options in [{}, {"master": "split16"}]:
    dtype = torch.bfloat16 if options else torch.float32
    m, n = network(dtype=dtype), network(dtype=dtype)
    a, b = eight(m, **options), eight(n, **options)
    assert train(m, a, range(3)) == train(n, b, range(3))
    same_states(m, a, n, b)
    first = a.state[next(m.parameters())]
    assert first["exp_avg"].dtype == torch.uint8 and ("remainder" in first) == bool(options)
    for way in "own", "nested", "flat":
        again = network(dtype=dtype)
        c = eight(again, **options | {"lr": 0.5})
        if way == "own":
            c.load_state_dict(a.state_dict())
            again.load_state_dict(m.state_dict())
        else:
            how = StateDictOptions(flatten_optimizer_state_dict=way == "flat")
            of_m, of_a = get_state_dict(m, a, options=how)
            set_state_dict(again, c, model_state_dict=of_m, optim_state_dict=of_a, options=how)
        same_states(m, a, again, c)
        other = network(dtype=dtype)
        d = eight(other, **options)
        d.load_state_dict(a.state_dict())
        other.load_state_dict(m.state_dict())
        assert train(other, d, range(3, 6)) == train(again, c, range(3, 6)), way
        same_states(other, d, again, c)
    assert train(m, a, range(3, 6)) == train(n, b, range(3, 6))
    same_states(m, a, n, b)
    same_states(m, a, again, c)
"""
    host.together(2, START + EIGHT + code, tmp_path)


def test_checkpoints_of_8_bits_load_with_another_number_of_processes(host, tmp_path):
    """Codes and scales are the same; the training goes on with other noise."""
    save = """
m = network()
a = eight(m)
train(m, a, range(3))
for flat in False, True:
    how = StateDictOptions(flatten_optimizer_state_dict=flat)
    checkpoint.save(dict(zip("mo", get_state_dict(m, a, options=how))), checkpoint_id=f"{flat}")
found = [{key: whole(x).clone() for key, x in a.state[p].items()} for p in m.parameters()]
losses = train(m, a, range(3, 9))
if rank == 0:
    torch.save((found, losses), "found")
"""
    load = """
found, losses = torch.load("found")
for flat in False, True:
    how = StateDictOptions(flatten_optimizer_state_dict=flat)
    m = network()
    a = eight(m)
    there = dict(zip("mo", get_state_dict(m, a, options=how)))
    checkpoint.load(there, checkpoint_id=f"{flat}")
    set_state_dict(m, a, model_state_dict=there["m"], optim_state_dict=there["o"], options=how)
    for p, expected in zip(m.parameters(), found, strict=True):
        assert a.state[p].keys() == expected.keys()
        for key, x in a.state[p].items():
            assert torch.equal(whole(x), expected[key]), (flat, key)
    # From the same codes on, they round at random by other numbers.
    assert np.allclose(train(m, a, range(3, 9)), losses, rtol=0.05)
"""
    host.together(2, START + EIGHT + save, tmp_path)
    for n in 1, 2, 4:
        host.together(n, START + EIGHT + load, tmp_path)


def test_a_whole_state_dict_of_8_bits_is_shared_out(host, tmp_path):
    """From one process's file to three, whose shards are uneven, and back."""
    code = """
q = network(False, rows=128)
b = eight(q)
train(q, b, range(3))
options = StateDictOptions(full_state_dict=True)
saved = get_optimizer_state_dict(q, b, options=options)
assert saved["state"]["2.weight"]["exp_avg_scale"].shape == (256, 1)
for alone in False, True:
    how = StateDictOptions(full_state_dict=True, broadcast_from_rank0=alone)
    m = network(rows=128)
    a = eight(m)
    set_optimizer_state_dict(m, a, saved if rank == 0 or not alone else {}, options=how)
    assert a.updates == 3
    again = get_optimizer_state_dict(m, a, options=options)
    for name, state in saved["state"].items():
        for key, x in state.items():
            assert torch.equal(x, again["state"][name][key]), (name, key)
    train(m, a, [3])
r = network(False, rows=128)
c = eight(r)
set_optimizer_state_dict(r, c, again, options=options)
same_states(q, b, r, c)
"""
    host.together(3, START + EIGHT + code, tmp_path)


def test_a_state_of_torchs_own_becomes_one_of_8_bits(host, tmp_path):
    code = """
m = network()
theirs = torch.optim.AdamW(m.parameters(), lr=0.01)
train(m, theirs, range(3))
a = eight(m)
a.load_state_dict(theirs.state_dict())
p = next(m.parameters())
for key, scale in CODES.items():
    exact = theirs.state[p][key].full_tensor().numpy()
    codes, scales = codecs.to_q8(exact, key == "exp_avg_sq")
    assert np.array_equal(whole(a.state[p][key]).numpy(), codes)
    assert np.array_equal(whole(a.state[p][scale]).numpy().reshape(-1), scales)
train(m, a, [3])
"""
    host.together(2, START + EIGHT + code, tmp_path)


def test_rules_with_states_of_8_bits(host, tmp_path):
    """The noise depends on the place in the shard: the first shard has the bits of one process."""
    code = """
done = 0
for rule in RULES:
    if RULES[rule].needs != "element-wise" or RULES[rule].prepares:
        continue
    w = values(1, torch.float32, [(37, 128)])
    own, one = [torch.nn.Parameter(x) for x in sharded(w)], [torch.nn.Parameter(x) for x in w]
    try:
        b = cls(rule)(one, state_dtype="q8", rounding_seed=5)
    except ValueError as error:
        words = str(error)
        raises(ValueError, words, lambda: cls(rule)(own, state_dtype="q8", rounding_seed=5))
        continue
    a = cls(rule)(own, state_dtype="q8", rounding_seed=5)
    for t in range(3):
        g = values(2 + t, torch.float32, [(37, 128)])
        own[0].grad, one[0].grad = sharded(g)[0], g[0]
        a.step()
        b.step()
    state, expected = a.state[own[0]], b.state[one[0]]
    assert state.keys() == expected.keys()
    rows = len(own[0].to_local())
    for key, x in [("parameter", own[0].detach()), *state.items()]:
        y = one[0].detach() if key == "parameter" else expected[key]
        assert x.shape == y.shape and x.dtype == y.dtype, (rule, key)
        if rank == 0:
            assert torch.equal(local(x), y[:rows] if x.dim() else y), (rule, key)
    done += any(x.dtype == torch.uint8 for x in state.values())
assert done > 15, done
"""
    host.together(2, START + EIGHT + code, tmp_path)


def test_which_shards_have_8_bits(host, tmp_path):
    """It depends on the whole parameter, so all processes agree, those without a row too."""
    code = """
square = init_device_mesh("cpu", (2, 2))
f32, u8 = torch.float32, torch.uint8
for shape, mesh, placements, expected in [
    ((3, 2048), mesh, [Shard(0)], u8),  # the last process has no row
    ((8, 4, 128), mesh, [Shard(0)], u8),
    ((37, 128), square, [Replicate(), Shard(0)], u8),
    ((37, 128), square, [Shard(0), Shard(0)], u8),
    ((37, 128), square, [Shard(0), Replicate()], u8),
    ((31, 128), mesh, [Shard(0)], f32),  # fewer than 4096
    ((64, 100), mesh, [Shard(0)], f32),
    ((8192,), mesh, [Shard(0)], f32),
    ((64, 1024), mesh, [Shard(1)], f32),
    ((64, 1024), square, [Shard(0), Shard(1)], f32),
    ((64, 100), mesh, [Replicate()], u8),
    ((8192,), mesh, [Replicate()], u8),
]:
    w, g = values(1, f32, [shape])[0], values(2, f32, [shape])[0]
    p = torch.nn.Parameter(sharded([w], mesh, placements)[0])
    a = stt.AdamW([p], lr=0.1, state_dtype="q8", clip=st.clip.global_norm(1.0))
    for t in range(3):
        p.grad = sharded([g * t], mesh, placements)[0]
        a.step()
    state = a.state[p]
    assert {state[key].dtype for key in CODES} == {expected}, shape
    assert (state.keys() & set(CODES.values()) != set()) == (expected == u8), shape
    for key, x in state.items():
        assert key == "step" or (x.placements, x.device_mesh) == (p.placements, mesh), (shape, key)
    assert alike(bits([x.full_tensor() for key, x in state.items() if key != "step"]))
    before = {key: local(x).clone() for key, x in state.items()}
    b = stt.AdamW([p], lr=0.1, state_dtype="q8", clip=st.clip.global_norm(1.0))
    b.load_state_dict(a.state_dict())
    assert all(torch.equal(local(b.state[p][key]), x) for key, x in before.items()), shape
    b.step()

p = torch.nn.Parameter(sharded([torch.ones(64, 256)])[0])
a = stt.AdamW([p], state_dtype="q8")
p.grad = torch.ones_like(p)
a.step()
saved = a.state_dict()
flat = saved["state"][0]["exp_avg_scale"].full_tensor().reshape(-1)
saved["state"][0] |= {"exp_avg_scale": sharded([flat])[0]}
raises(ValueError, "'exp_avg_scale' of parameter '0' has shape (128,); expected (64, 2)",
       lambda: a.load_state_dict(saved))

p = torch.nn.Parameter(sharded([torch.ones(64, 100)])[0])
q = torch.nn.Parameter(torch.ones(64, 100))
a, b = (stt.AdamW([x], state_dtype="q8") for x in (p, q))
p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
a.step()
b.step()
saved = b.state_dict()
saved["state"][0] |= {key: sharded([x])[0] for key, x in saved["state"][0].items() if key in CODES}
before = {key: local(x).clone() for key, x in a.state[p].items()}
raises(ValueError, "'exp_avg' of parameter '0' is uint8", lambda: a.load_state_dict(saved))
assert all(torch.equal(local(a.state[p][key]), x) for key, x in before.items())
"""
    host.together(4, START + EIGHT + code, tmp_path)


def test_flat_parameters_have_no_states_of_8_bits(host, tmp_path):
    code = """
from torch.distributed.fsdp import FullyShardedDataParallel
m = FullyShardedDataParallel(network(False), device_id=torch.device("cpu"))
raises(ValueError, "state_dtype='q8' needs whole arrays", lambda: eight(m))
"""
    host.together(2, START + EIGHT + code, tmp_path)


def test_every_rule_makes_its_state_without_a_change(tmp_path):
    """What ``get_state_dict`` does before the first step: zero gradients and lr = 0."""
    torch = pytest.importorskip("torch")
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    import steepest.torch as stt
    from steepest.optimizers import RULES

    for rule in RULES.values():
        torch.manual_seed(0)
        m = torch.nn.Linear(4, 3, bias=False)
        before = m.weight.detach().clone()
        optimizer = getattr(stt, rule.__name__)(m.parameters())
        state = get_optimizer_state_dict(m, optimizer)
        assert torch.equal(m.weight, before), rule
        optimizer.load_state_dict(optimizer.state_dict())
        assert state["param_groups"][0]["params"] == ["weight"], rule
