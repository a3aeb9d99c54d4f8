"""Handwritten digits on several processes: each has its share of every batch and of the state.

    pip install "steepest[mpi,train]" mpich
    mpiexec -n 2 python -m mpi4py mpi_digits.py

Run again, with any number of processes, it goes on from the file that it wrote. The batches are the
same for any number of processes that divides their size.
"""

import sys
from pathlib import Path

from mpi4py import MPI

import steepest as st
from steepest.data.datasets import digits

PATH = Path("mpi_digits.safetensors")
BATCH, EPOCHS = 60, 3

comm = MPI.COMM_WORLD
model = st.models.MLP((64, 100, 10), "classification")
params = model.initial(seed=0)
opt = st.mpi.Sharded(
    st.AdamW, params, lr=3e-3, exclude="vectors", clip=st.clip.global_norm(1.0), comm=comm
)
begun = PATH.exists()
if comm.bcast(begun, root=0):
    st.load(PATH, opt)

data = digits()
x, y = data.train
for _ in range(EPOCHS):
    for first in range(0, len(x) - BATCH + 1, BATCH):
        own = slice(first + comm.rank, first + BATCH, comm.size)
        _, grads = model.value_and_grad(params, x[own], y[own])
        opt.step(grads)
st.save(PATH, opt)

kept = sum(x.nbytes for state in opt.state.values() for x in state.values())
total = comm.allgather(kept)
if comm.rank == 0:
    right = float((model.predict(params, data.test.x) == data.test.y).mean())
    print(f"{opt.updates} updates on {comm.size} processes: {right:.1%} of the test digits right")
    print(f"bytes of state on each: {total}")
sys.stdout.flush()
