"""
Several processes by MPI
========================

``st.mpi.Sharded`` gives each process a part of the optimizer's state. This page starts the program
``TRAIN`` below by ``mpiexec``, with one, two and four processes. Needs ``pip install ".[train,mpi]"
mpich``.
"""

import json
import os
import subprocess
import sys

import matplotlib.pyplot as plt

TRAIN = """
import json, numpy as np, steepest as st
from mpi4py import MPI

comm, rng = MPI.COMM_WORLD, np.random.default_rng(0)
x = rng.normal(size=(640, 64))
y = (x @ rng.normal(size=(64, 10))).argmax(axis=1)
net = st.models.MLP((64, 100, 10), "classification")
params = net.initial(seed=0, dtype=np.float64)
opt = st.mpi.Sharded(st.AdamW, params, lr=3e-3, clip=st.clip.global_norm(1.0), comm=comm)
seen = 0
for _ in range(5):
    for first in range(0, 640, 64):
        own = slice(first + comm.rank, first + 64, comm.size)  # every size-th sample of the batch
        opt.step(net.value_and_grad(params, x[own], y[own])[1])
        seen += len(x[own])
kept = sum(x.nbytes for state in opt.state.values() for x in state.values())
kept, seen = comm.gather(kept), comm.gather(seen)
if comm.rank == 0:
    print(json.dumps({"loss": net.loss(params, x, y), "bytes": kept, "samples": seen}))
"""

# %%
# Each process takes its samples of every batch. The step averages the gradients, and each process
# computes the part of the parameters whose state it has. Processes share the cores of a machine, so
# each gets one thread.

threads = dict.fromkeys(["STEEPEST_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"], "1")
found = {}
for ranks in 1, 2, 4:
    command = ["mpiexec", "-n", str(ranks), sys.executable, "-m", "mpi4py", "-c", TRAIN]
    done = subprocess.run(command, env=os.environ | threads, stdout=subprocess.PIPE, check=True)
    found[ranks] = json.loads(done.stdout)

# %%
# State and samples of a process shrink in proportion. The losses are equal up to rounding: the
# gradient of a batch is now the mean of those of its parts.

figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
for place, result in enumerate(found.values()):
    below = 0
    for rank, size in enumerate(result["bytes"]):
        ax.bar(place, size / 1000, bottom=below, color=f"C{rank}", edgecolor="white", width=0.6)
        ax.text(place, below + size / 2000, f"rank {rank}", ha="center", va="center", color="white")
        below += size / 1000
ax.set(title="state of each process, kB", xlabel="processes")
ax.set_xticks(range(len(found)), [str(ranks) for ranks in found])
plt.show()

for ranks, result in found.items():
    state, samples = max(result["bytes"]), max(result["samples"])
    print(f"{ranks} processes, each with {samples} samples and {state} bytes of state at most:")
    print(f"loss {result['loss']:.12f}")
