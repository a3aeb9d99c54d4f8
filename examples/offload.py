"""A bfloat16 model on an accelerator; AdamW, with float32 masters, on the CPU.

    python offload.py [--steps 10] [--width 1024]

Without an accelerator the model is on the CPU, too, and each of both has half of its cores. Prints
whether the parameters have the bits of AdamW on the CPU with the same gradients, and which part of
the time of the steps was hidden behind the backward passes.
"""

import argparse
import copy
import os
import time

import torch

import steepest as st
from steepest.torch import AdamW, Offload

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=10)
parser.add_argument("--width", type=int, default=1024)
parser.add_argument("--layers", type=int, default=8)
given = parser.parse_args()

device = torch.accelerator.current_accelerator() or torch.device("cpu")
if device.type == "cpu":
    half = max(1, len(os.sched_getaffinity(0)) // 2)
    torch.set_num_threads(half)
    st.set_num_threads(half)

torch.manual_seed(0)
layers = [torch.nn.Linear(given.width, given.width) for _ in range(given.layers)]
model = torch.nn.Sequential(*layers).to(torch.bfloat16)
start = copy.deepcopy(model)
model.to(device)
x = torch.randn(256, given.width, device=device, dtype=torch.bfloat16)
hyper = {"lr": 1e-4, "weight_decay": 0.1, "state_dtype": {"exp_avg": torch.bfloat16}}


def wait():
    if device.type != "cpu":
        torch.accelerator.synchronize()


def backward():
    model(x).square().mean().backward()
    wait()


def median_time(function):
    times = []
    for _ in range(given.steps):
        begun = time.perf_counter()
        function()
        times.append(time.perf_counter() - begun)
    return sorted(times)[len(times) // 2]


# The same gradients for AdamW on the CPU: kept before Offload takes them.
seen = {p: [] for p in model.parameters()}
hooks = [
    p.register_post_accumulate_grad_hook(lambda p: seen[p].append(p.grad.cpu().clone()))
    for p in seen
]
optimizer = Offload(model, AdamW, **hyper)
for _ in range(3):
    backward()
    optimizer.step()
wait()
twin = AdamW(start.parameters(), master="float32", **hyper)
for t in range(3):
    for p, grads in zip(start.parameters(), seen.values(), strict=True):
        p.grad = grads[t]
    twin.step()
pairs = zip(start.parameters(), model.parameters(), strict=True)
print("bits of AdamW on the CPU:", all(torch.equal(p, q.cpu()) for p, q in pairs))
for hook in hooks:
    hook.remove()


def together():
    backward()
    optimizer.step()
    wait()


def step_alone():
    for p, g in grads_of.items():
        p.grad = g
    optimizer.step()
    wait()


both = median_time(together)
with optimizer.no_sync():
    passes = median_time(backward)
grads_of = {p: p.grad for p in model.parameters()}
steps = median_time(step_alone)
hidden = max(0.0, passes + steps - both) / min(passes, steps)
figures = {"pass": passes, "step": steps, "both": both}
times = ", ".join(f"{name} {1e3 * x:.1f} ms" for name, x in figures.items())
print(f"{device.type}: {times}; {hidden:.0%} of the shorter hidden")
