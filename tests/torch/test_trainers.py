"""The examples of trainers run as they stand, and give what PyTorch's or Keras' own AdamW gives.

Each runs in a process of its own: importing a trainer takes seconds and changes what is global. On
one thread, as threads that wait for each other are slow where other work has the cores.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from steepest.optimizers import RULES

pytestmark = pytest.mark.torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "trainers"

# What the trainers do that is deprecated elsewhere; all other warnings are errors.
THEIRS = {
    "lightning_trainer": ["ignore:`isinstance(treespec, LeafSpec)` is deprecated:FutureWarning"],
    "keras_torch": ["ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"],
}

CHILD = """
import json, re, runpy, sys, warnings
for line in json.loads(sys.argv[2]):
    action, message, category = line.split(":")
    warnings.filterwarnings(action, re.escape(message), getattr(__builtins__, category))
example = runpy.run_path(sys.argv[1], run_name=sys.argv[3])
globals().update({key: x for key, x in example.items() if not key.startswith("__")})

MOMENTS = ("exp_avg", "exp_avg_sq")

def apart(a, b):
    return max(float((x - y).detach().abs().max()) for x, y in zip(a, b, strict=True))

"""


def needs(*modules: str) -> None:
    """Skips where one is not installed, without importing any here."""
    for name in ("torch", *modules):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}")


def run(name: str, code: str, folder: Path, script: bool = True) -> tuple[str, dict[str, Any]]:
    """What the example prints as a script, and the `found` that the code after it leaves; if it is
    no `script`, it is only imported."""
    show = "\nprint()\nprint(json.dumps(found))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CHILD + code + show,
         str(EXAMPLES / f"{name}.py"), json.dumps(THEIRS.get(name, [])),
         "__main__" if script else name],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *_, last = done.stdout.splitlines()
    return done.stdout, json.loads(last)


def test_hugging_face(tmp_path: Path) -> None:
    needs("transformers", "accelerate")
    said, found = run(
        "huggingface",
        """
ours = trainer("ours")
ours.train()
theirs = trainer(
    "theirs", torch.optim.AdamW, {k: x for k, x in OURS.items() if k != "clip"}, max_grad_norm=1.0
)
theirs.train()
found = {
    "losses": losses(ours),
    "losses apart": max(abs(a - b) for a, b in zip(losses(ours), losses(theirs), strict=True)),
    "weights apart": {
        name: apart([p], [q])
        for (name, p), q in zip(
            ours.model.named_parameters(), theirs.model.parameters(), strict=True
        )
    },
    "decays": [group["weight_decay"] for group in ours.optimizer.param_groups],
    "norm": ours.optimizer.optimizer.last_norm,
    "updates": ours.optimizer.optimizer.updates,
}
""",
        tmp_path,
    )
    assert "from the checkpoint at 30 to 60: the same bits" in said
    assert found["losses"][-1] < 0.7 * found["losses"][0]
    assert found["decays"] == [0.01, 0.0]
    assert found["updates"] == 60 and found["norm"] > 0
    # Rounding in float32, carried on by 60 steps. Gradients of the keys' biases, which change no
    # attention, are nothing but rounding, and Adam makes steps of full length of them.
    assert found["losses apart"] < 1e-5
    assert max(x for key, x in found["weights apart"].items() if "c_attn.bias" not in key) < 1e-5
    assert max(found["weights apart"].values()) < 1e-2


def test_hugging_face_with_parameters_in_bfloat16(tmp_path: Path) -> None:
    needs("transformers", "accelerate")
    _, found = run(
        "huggingface",
        """
wide = model
trainer.__globals__["model"] = lambda: wide().to(torch.bfloat16)
whole = trainer("whole")
whole.train()
resumed = trainer("whole")
resumed.train(resume_from_checkpoint="whole/checkpoint-30")
optimizer = whole.optimizer.optimizer
found = {
    "losses": losses(whole),
    "apart": apart(whole.model.parameters(), resumed.model.parameters()),
    "parameters": sorted({str(p.dtype) for p in whole.model.parameters()}),
    "states": sorted({str(s[key].dtype) for s in optimizer.state.values() for key in MOMENTS}),
    "updates": [x.optimizer.optimizer.updates for x in (whole, resumed)],
}
""",
        tmp_path,
        script=False,
    )
    assert found["losses"][-1] < 0.8 * found["losses"][0]
    assert found["parameters"] == ["torch.bfloat16"] and found["states"] == ["torch.float32"]
    assert found["apart"] == 0.0 and found["updates"] == [60, 60]


def test_lightning(tmp_path: Path) -> None:
    needs("lightning")
    said, found = run(
        "lightning_trainer",
        """
ours, _ = train(80)
theirs, _ = train(80, optimizer=torch.optim.AdamW)
found = {
    "losses": ours.losses,
    "losses apart": max(abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True)),
    "weights apart": apart(ours.parameters(), theirs.parameters()),
    "rate": ours.optimizers().param_groups[0]["lr"],
    "updates": ours.optimizers().optimizer.updates,
}
""",
        tmp_path,
    )
    assert "from a checkpoint at half: the same bits" in said
    assert len(found["losses"]) == found["updates"] == 160
    assert found["losses"][-1] < 0.2 * found["losses"][0]
    assert found["rate"] < 1e-8  # the cosine's end
    # Rounding in float32, carried on by 160 steps.
    assert found["losses apart"] < 1e-4
    assert found["weights apart"] < 1e-3


def test_lightning_with_parameters_in_bfloat16(tmp_path: Path) -> None:
    needs("lightning")
    _, found = run(
        "lightning_trainer",
        """
import functools
lightning.Trainer = functools.partial(lightning.Trainer, precision="bf16-true")
whole, _ = train(80)
train(40)[1].save_checkpoint("half.ckpt")
resumed, _ = train(80, resume="half.ckpt")
optimizer = whole.optimizers().optimizer
found = {
    "losses": whole.losses,
    "apart": apart(whole.parameters(), resumed.parameters()),
    "parameters": sorted({str(p.dtype) for p in whole.parameters()}),
    "states": sorted({str(s[key].dtype) for s in optimizer.state.values() for key in MOMENTS}),
    "updates": [x.optimizers().optimizer.updates for x in (whole, resumed)],
}
""",
        tmp_path,
        script=False,
    )
    assert found["losses"][-1] < 0.4 * found["losses"][0]
    assert found["parameters"] == ["torch.bfloat16"] and found["states"] == ["torch.float32"]
    assert found["apart"] == 0.0 and found["updates"] == [160, 160]


def test_accelerate(tmp_path: Path) -> None:
    needs("accelerate")
    said, found = run(
        "accelerate_loop",
        """
import steepest.torch
ours = Loop("ours", steepest.torch.AdamW)
ours.run(20)
theirs = Loop("theirs", torch.optim.AdamW)
theirs.run(20)
inner = ours.optimizer.optimizer

def resumes(rule):
    def made(params, lr, weight_decay):
        return getattr(steepest.torch, rule)(params)

    whole = Loop(rule, made)
    whole.run(1)
    path = whole.save()
    whole.run(1)
    resumed = Loop(rule, made)
    resumed.load(path)
    resumed.run(1)
    return all(map(torch.equal, resumed.weights, whole.weights))

rules = [cls.__name__ for cls in steepest.optimizers.RULES.values()]
found = {
    "resume": {rule: resumes(rule) for rule in rules},
    "losses": ours.losses,
    "losses apart": max(abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True)),
    "weights apart": apart(ours.weights, theirs.weights),
    "updates": inner.updates,
    "rate": inner.param_groups[0]["lr"],
}
""",
        tmp_path,
    )
    assert "from the state at half: the same bits" in said
    assert found["resume"] == {rule.__name__: True for rule in RULES.values()}
    assert found["updates"] == 20 * 256 // 16 // 4
    assert found["rate"] == pytest.approx(1e-2 * 0.99**80)
    assert found["losses"][-1] < 0.2 * found["losses"][0]
    # Rounding in float32, carried on by 80 steps.
    assert found["losses apart"] < 1e-5
    assert found["weights apart"] < 1e-4


def test_keras(tmp_path: Path) -> None:
    needs("keras")
    _, found = run(
        "keras_torch",
        """
def weights(model):
    return [v.value.detach() for v in model.trainable_variables]

def pair(**options):
    ours, losses = fitted(FusedAdamW(1e-2, 0.1, **options))
    theirs, others = fitted(keras.optimizers.AdamW(1e-2, 0.1, **options))
    return ours, losses, max(abs(a - b) for a, b in zip(losses, others, strict=True)), apart(
        weights(ours), weights(theirs)
    )

ours, losses, *plain = pair()
_, _, *more = pair(global_clipnorm=0.1, use_ema=True, gradient_accumulation_steps=2)

halves = []
for optimizer in (FusedAdamW(1e-2, 0.5), keras.optimizers.AdamW(1e-2, 0.5)):
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    halves.append(weights(fitted(optimizer)[0]))

ours.save("kept.keras")
again = keras.saving.load_model("kept.keras", custom_objects={"FusedAdamW": FusedAdamW})
for model in (ours, again):
    model.fit(*data(), batch_size=64, epochs=2, shuffle=False, verbose=0)

with_ours, curve = looped(steepest.torch.AdamW, lr=1e-2, weight_decay=0.1)
with_theirs, other = looped(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
found = {
    "losses": losses,
    "curve": curve,
    "plain": plain,
    "more": more,
    "excluded": apart(*halves),
    "saved": apart(weights(ours), weights(again)),
    "steps": [int(m.optimizer.iterations) for m in (ours, again)]
    + [int(s["step"]) for m in (ours, again) for s in m.optimizer.inner.state.values()],
    "loop": [
        max(abs(a - b) for a, b in zip(curve, other, strict=True)),
        apart(weights(with_ours), weights(with_theirs)),
    ],
}
""",
        tmp_path,
    )
    assert found["losses"][-1] < 0.8 * found["losses"][0]
    assert found["curve"][-1] < 0.5 * found["curve"][0]
    # Rounding in float32, carried on by 80 steps (40 of them accumulated).
    for losses, weights in (found["plain"], found["more"], found["loop"]):
        assert losses < 1e-5 and weights < 1e-4
    assert found["excluded"] < 1e-4
    assert found["saved"] == 0.0
    assert found["steps"] == [88] * 10
