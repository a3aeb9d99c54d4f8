"""Programs that keep optimizer steps on the CPU, with AdamW of ours in them, against the same with
the optimizer that is theirs: the recipes of docs/offload.md.

There is no accelerator here: DeepSpeed, Accelerate and FSDP2 take the CPU for one, and run as they
stand.
"""

from pathlib import Path
from typing import Any

import pytest
from offload_run import needs, run
from torch_run import hosted

pytestmark = pytest.mark.torch

# DeepSpeed

DEEPSPEED = """
import deepspeed
from deepspeed.ops.adam import DeepSpeedCPUAdam

# What sums over shared memory of several processes; it would be compiled for this one.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

def config(stage, bf16=False, **more):
    zero = {"stage": stage}
    if stage:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 16,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": bf16},
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        **more,
    }

def engine_of(make, stage, bf16=False, parts=groups, **more):
    model = network()
    rates = lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)
    return deepspeed.initialize(
        model=model, optimizer=make(parts(model)), lr_scheduler=rates,
        config=config(stage, bf16, **more),
    )[0]

def train(engine, first, last, bf16=False):
    "Losses and gradients' norms of steps, each of two batches."
    losses, norms = [], []
    for t in range(2 * first, 2 * last):
        loss = loss_of(engine, t, torch.bfloat16 if bf16 else torch.float32)
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
        if t % 2:
            norms.append(float(engine.get_global_grad_norm() or 0.0))
    return losses, norms

def weights(engine):
    "Those of float32."
    full = deepspeed.utils.safe_get_full_fp32_param
    return [
        (p if (whole := full(p)) is None else whole).detach().float().clone()
        for p in engine.module.parameters()
    ]

def ours(params, **more):
    return stt.AdamW(params, **OPTIONS | more)

def theirs(params):
    return DeepSpeedCPUAdam(params, **OPTIONS)
"""


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeed(stage: int, tmp_path: Path) -> None:
    """In float32 and bfloat16, clipped, of two batches each, with rates of a scheduler and two
    groups; saved half way, with what goes on from that."""
    needs("deepspeed")
    found = run(
        DEEPSPEED
        + """
stage = int(sys.argv[1])
found = {}
for name, bf16 in {"float32": False, "bfloat16": True}.items():
    a, b = engine_of(ours, stage, bf16), engine_of(theirs, stage, bf16)
    losses, norms = train(a, 0, 10, bf16)
    a.save_checkpoint(name)
    more = train(a, 10, 20, bf16)
    others, _ = train(b, 0, 20, bf16)
    resumed = engine_of(ours, stage, bf16)
    resumed.load_checkpoint(name)
    rest, _ = train(resumed, 10, 20, bf16)
    inner = a.basic_optimizer
    states = [s for s in inner.state.values() if s]
    found[name] = {
        "losses": losses + more[0],
        "norms": norms + more[1],
        "losses apart": losses_apart(losses + more[0], others),
        "weights apart": apart(weights(a), weights(b)),
        "resumed": [rest == more[0], apart(weights(resumed), weights(a))],
        "optimizers": [type(x.basic_optimizer).__module__ for x in (a, b)],
        "rates": [group["lr"] for group in inner.param_groups],
        "steps": sorted({int(s["step"]) for s in states}),
        "states": sorted({str(s[key].dtype) for s in states for key in ("exp_avg", "exp_avg_sq")}),
    }
undecayed, _ = train(engine_of(lambda params: ours(params, weight_decay=0.0), stage), 0, 20)
found["without decay"] = losses_apart(undecayed, found["float32"]["losses"])
""",
        tmp_path,
        str(stage),
    )
    assert found.pop("without decay") > 1e-2
    for kind, x in found.items():
        empty = stage == 0 and kind == "bfloat16"  # DeepSpeed begins with a step of zero gradients
        assert x["norms"][0] > 2.0 or (stage == 0 and kind == "float32")  # there it does not say
        assert x["losses"][-1] < 0.5 * x["losses"][0]
        assert x["optimizers"] == ["steepest.torch", "deepspeed.ops.adam.cpu_adam"]
        # torch's scheduler multiplies step by step, with a rounding in each.
        assert x["rates"] == pytest.approx([0.02 * 0.95**20, 0.01 * 0.95**20])
        assert x["steps"] == [20 + empty] and x["states"] == ["torch.float32"]
        assert x["resumed"] == [True, 0.0]
        # Rounding in float32, carried on by 20 steps. In bfloat16 masters that differ by that may
        # lie on both sides of the middle of two weights, which then differ by 2**-8 of themselves.
        assert x["losses apart"] < (5e-6 if kind == "float32" else 1e-4)
        assert x["weights apart"] < (5e-6 if kind == "float32" else 1e-3)


def test_deepspeed_steps_group_by_group(tmp_path: Path) -> None:
    """So it is DeepSpeed that clips and has the rates: a norm, or a count, of ours is that of one
    group. Its two keys are needed; without them it says so. Groups may be made by names."""
    needs("deepspeed")
    found = run(
        DEEPSPEED
        + """
def one(model):
    return [{"params": list(model.parameters())}]

def refused(**more):
    try:
        engine_of(ours, 2, **more)
    except Exception as error:
        return type(error).__name__

found = {
    "refused": [
        refused(zero_force_ds_cpu_optimizer=True), refused(zero_allow_untested_optimizer=False)
    ],
    "updates": [],
    "axes": [],
    "named": [],
}
for stage in (1, 2, 3):
    for parts in (one, groups):
        engine = engine_of(ours, stage, parts=parts)
        train(engine, 0, 5)
        inner = engine.basic_optimizer
        found["updates"].append(inner.updates)
        found["axes"].append([p.dim() for p, state in inner.state.items() if state])

def by_names(model):
    return [(f"{name}.{p.dim()}", p) for name, p in model.named_parameters()]

def decayed(model):
    one, two = groups(model)
    return [one, {"params": two["params"], "weight_decay": 0.0}]

for stage in (1, 2, 3):
    named = engine_of(lambda params: ours(params, exclude="*.1"), stage, parts=by_names)
    plain = engine_of(ours, stage, parts=decayed)
    losses, _ = train(named, 0, 5)
    named.save_checkpoint(f"{stage}")
    resumed = engine_of(lambda params: ours(params, exclude="*.1"), stage, parts=by_names)
    resumed.load_checkpoint(f"{stage}")
    found["named"] += [
        losses == train(plain, 0, 5)[0], train(resumed, 5, 7)[0] == train(named, 5, 7)[0]
    ]
""",
        tmp_path,
    )
    assert found["refused"] == ["ZeRORuntimeException", "AssertionError"]
    assert found["updates"] == [5, 10] * 3
    assert found["axes"] == [[1], [1, 1]] * 3
    assert found["named"] == [True] * 6


def test_deepspeed_with_states_of_8_bits(tmp_path: Path) -> None:
    """A group of scales is 128 neighbours of a flat partition; the checkpoint is DeepSpeed's."""
    needs("deepspeed")
    found = run(
        DEEPSPEED
        + """
WIDTH = 512

def one(model):
    return [{"params": list(model.parameters())}]

found = {}
for stage in (2, 3):
    def made(kind):
        return engine_of(lambda params: ours(params, state_dtype=kind), stage, True, one)

    whole, resumed, wide = made("q8"), made("q8"), made("float32")
    first, _ = train(whole, 0, 10, True)
    whole.save_checkpoint(str(stage))
    last, _ = train(whole, 10, 20, True)
    resumed.load_checkpoint(str(stage))
    rest, _ = train(resumed, 10, 20, True)
    other, _ = train(wide, 0, 20, True)
    sizes = [
        sum(x.nbytes for x in state.values()) / p.numel()
        for each in (whole, wide) for p, state in each.basic_optimizer.state.items() if state
    ]
    found[stage] = {
        "sizes": sizes,
        "resumed": [rest == last, apart(weights(resumed), weights(whole))],
        "losses": first + last,
        "losses apart": losses_apart(first + last, other),
    }
""",
        tmp_path,
    )
    for x in found.values():
        eight, wide = x["sizes"]
        assert eight < 2.03 and 8.0 <= wide < 8.01  # bytes for each parameter, scales and count too
        assert x["resumed"] == [True, 0.0]
        assert x["losses"][-1] < 0.5 * x["losses"][0]
        assert 0.0 < x["losses apart"] < 3e-2  # what states in 8 bits cost here


# Accelerate

ACCELERATE = """
from accelerate import Accelerator, DeepSpeedPlugin

def prepared(optimizer_of, **more):
    "A run under Accelerate: its engine, what prepare() was given, and the losses."
    model = network()
    given = optimizer_of(groups(model))
    plugin = DeepSpeedPlugin(hf_ds_config={
        "train_micro_batch_size_per_gpu": 16,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
        **more,
    })
    accelerator = Accelerator(deepspeed_plugin=plugin)
    engine, optimizer = accelerator.prepare(model, given)
    losses = []
    for t in range(20):
        loss = loss_of(engine, t)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    accelerator.state._reset_state(reset_partial_state=True)
    return engine, given, losses

def alone(make):
    model = network()
    optimizer, losses = make(groups(model)), []
    for t in range(20):
        optimizer.zero_grad()
        loss = loss_of(model, t)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses
"""


def test_accelerate_replaces_an_optimizer_unless_it_is_told_not_to(tmp_path: Path) -> None:
    """By DeepSpeed's, with the rate, betas and decay of the groups, but as Adam with a decay in the
    gradient: only torch's own AdamW becomes AdamW."""
    needs("deepspeed", "accelerate")
    found = run(
        DEEPSPEED
        + ACCELERATE
        + """
def torchs(params, name="AdamW"):
    return getattr(torch.optim, name)(params, **OPTIONS)

engines, given, losses = zip(*[
    prepared(ours), prepared(torchs), prepared(ours, zero_force_ds_cpu_optimizer=False)
], strict=True)
adam, adamw = alone(lambda params: torchs(params, "Adam")), alone(torchs)
found = {
    "types": [type(engine.basic_optimizer).__name__ for engine in engines],
    "decoupled": [getattr(engine.basic_optimizer, "adam_w_mode", None) for engine in engines],
    "kept": [engine.basic_optimizer is x for engine, x in zip(engines, given, strict=True)],
    "updates": [given[0].updates, given[2].updates],
    "losses": losses[2],
    "from Adam": [losses_apart(x, adam) for x in losses],
    "from AdamW": [losses_apart(x, adamw) for x in losses],
    "from theirs": losses_apart(losses[2], losses[1]),
}
""",
        tmp_path,
    )
    assert found["types"] == ["DeepSpeedCPUAdam", "DeepSpeedCPUAdam", "AdamW"]
    assert found["decoupled"] == [False, True, None]
    assert found["kept"] == [False, False, True]
    assert found["updates"] == [0, 40]  # for each of two groups, as above
    assert found["losses"][-1] < 0.5 * found["losses"][0]
    # Rounding in float32, carried on by 20 steps.
    assert found["from Adam"][0] < 5e-6 and found["from AdamW"][0] > 0.1
    assert found["from AdamW"][1] < 5e-6 and found["from AdamW"][2] < 5e-6
    assert found["from theirs"] < 5e-6


# FSDP2


@pytest.fixture(scope="module")
def host():
    yield from hosted()


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_fsdp2(kind: str, host: Any, tmp_path: Path) -> None:
    """Two processes, shards and states on the host. Theirs is given the gradients of ours, so that
    what differs is the steps alone."""
    code = """
import steepest.torch as stt
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

OPTIONS = {"lr": 0.02, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.2}
mesh = init_device_mesh("cpu", (size,))

def model():
    torch.manual_seed(0)
    layers = torch.nn.Linear(16, 63), torch.nn.Tanh(), torch.nn.Linear(63, 1)
    made = torch.nn.Sequential(*layers)
    kinds = MixedPrecisionPolicy(param_dtype=DTYPE, reduce_dtype=torch.float32)
    for part in (made[0], made[2], made):
        fully_shard(
            part, mesh=mesh, mp_policy=kinds, offload_policy=CPUOffloadPolicy(pin_memory=False)
        )
    return made

def shards(m):
    return [p.detach().to_local() for p in m.parameters()]

m, q = model(), model()
own = stt.AdamW(m.parameters(), clip=st.clip.global_norm(3.0), **OPTIONS)
other = torch.optim.AdamW(q.parameters(), **OPTIONS)
losses, clipped, most = [], 0, 0.0
for t in range(20):
    x = torch.randn(16, 16, generator=torch.Generator().manual_seed(10 * rank + t % 4))
    loss = (m(x).float() - torch.sin(x).sum(1, keepdim=True)).square().mean()
    own.zero_grad()
    loss.backward()
    assert {(p.grad.device.type, p.grad.dtype) for p in m.parameters()} == {("cpu", torch.float32)}
    for p, one in zip(q.parameters(), m.parameters(), strict=True):
        p.grad = one.grad.clone()
    own.step()
    norm = torch.nn.utils.clip_grad_norm_(q.parameters(), 3.0).full_tensor().item()
    assert abs(own.last_norm - norm) < 1e-6 * norm
    clipped += norm > 3.0
    other.step()
    for a, b in zip(shards(m), shards(q), strict=True):
        unit = torch.finfo(torch.float32).eps * b.abs().clamp(min=OPTIONS["lr"])
        most = max([most, *((a - b).abs() / unit).flatten().tolist()])
    losses.append(loss.item())
assert 3 < clipped < 20
assert losses[-1] < 0.5 * losses[0]
states = [x for state in own.state.values() for key, x in state.items() if key != "step"]
assert {x.to_local().device.type for x in states} == {"cpu"} and len(states) == 8
assert sum(p.numel() for p in shards(m)) < 0.6 * sum(p.numel() for p in m.parameters())
assert most <= 40.0  # two for each step, which is rounded in another order
"""
    host.together(2, code.replace("DTYPE", f"torch.{kind}"), tmp_path)
