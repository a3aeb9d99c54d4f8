"""Code with programs of others, for the tests of offload: each in a process of its own, as they
change what is global, and on one thread."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

COMMON = """
import copy
import json
import os
import sys
import warnings

import torch
import torch.distributed as dist

import steepest as st
import steepest.torch as stt

warnings.simplefilter("ignore")  # theirs; they are many, and change with every release
torch.set_num_threads(1)
st.set_num_threads(1)
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

OPTIONS = {"lr": 0.02, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.2}
WIDTH = 64

def network(dtype=torch.float32):
    torch.manual_seed(0)
    layers = torch.nn.Linear(16, WIDTH), torch.nn.Tanh(), torch.nn.Linear(WIDTH, 1)
    return torch.nn.Sequential(*layers).to(dtype)

def groups(model):
    "Matrices, and vectors with a rate and a decay of their own."
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    return [{"params": matrices}, {"params": vectors, "weight_decay": 0.05, "lr": 0.01}]

def loss_of(model, t, dtype=torch.float32):
    x = torch.randn(16, 16, generator=torch.Generator().manual_seed(t % 4))
    return (model(x.to(dtype)).float() - torch.sin(x).sum(1, keepdim=True)).square().mean()

def apart(a, b):
    "The largest difference, as a part of the largest number."
    a, b = (torch.cat([x.detach().flatten().double() for x in some]) for some in (a, b))
    return float((a - b).abs().max() / b.abs().max())

def losses_apart(a, b):
    return max(abs(x - y) / abs(y) for x, y in zip(a, b, strict=True))
"""


def needs(*modules: str) -> None:
    """Skips where one is not installed, without importing any here."""
    for name in ("torch", *modules):
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            found = None
        if found is None:
            pytest.skip(f"needs {name}")


# Without the interpreter's end: a thread of gloo that holds a tensor meanwhile aborts the process.
END = """
print()
print(json.dumps(found), flush=True)
os._exit(0)
"""


def run(code: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """The `found` that the code leaves."""
    tools = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    here = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "LOCAL_RANK": "0", "PATH": tools}
    done = subprocess.run(
        [sys.executable, "-c", f"{COMMON}\n{code}\n{END}", *arguments],
        cwd=folder,
        env=os.environ | here | {"DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,  # the first use of DeepSpeed's CPUAdam compiles it
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
