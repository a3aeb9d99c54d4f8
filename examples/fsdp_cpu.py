"""A model whose parameters and states are spread over processes: FSDP2 on the CPU.

    torchrun --standalone --nproc_per_node 2 fsdp_cpu.py

Run again, with any number of processes, it goes on from the checkpoint that it wrote.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import steepest as st
from steepest.torch import AdamW

FOLDER = Path("fsdp_cpu_checkpoint")

dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
fully_shard(model, mesh=init_device_mesh("cpu", (size,)))
optimizer = AdamW(model.parameters(), lr=1e-2, clip=st.clip.global_norm(1.0))

if FOLDER.exists():
    there = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    checkpoint.load(there, checkpoint_id=FOLDER)
    set_state_dict(
        model, optimizer,
        model_state_dict=there["model"], optim_state_dict=there["optimizer"],
    )  # fmt: skip

data = torch.Generator().manual_seed(0)
x = torch.randn(256, 16, generator=data)
y = x[:, :4].prod(1, keepdim=True)
for _ in range(20):
    optimizer.zero_grad()
    loss = (model(x[rank::size]) - y[rank::size]).square().mean()
    loss.backward()
    optimizer.step()

state = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
checkpoint.save(state, checkpoint_id=FOLDER)
total = loss.detach()
dist.all_reduce(total)
if rank == 0:
    print(f"{optimizer.updates} updates on {size} process(es): loss {total.item() / size:.3f}")
dist.destroy_process_group()

# A thread of gloo may still hold a tensor; where the interpreter ends meanwhile, PyTorch aborts.
sys.stdout.flush()
os._exit(0)
