"""Steps in the processes of torchrun, by how many threads each uses.

    python bench/launcher.py [--processes 2] [--rounds 5] [--size 10000000]

Every process steps AdamW over a tensor of its own, all at the same time. Three ways take turns: as
torchrun starts them, which sets OMP_NUM_THREADS=1, so that a step uses the process's share of the
CPUs; one thread each, asked for; and as many threads each as there are CPUs. Prints the median time
of a step of the slowest process, and its ratio to the first way's, in Markdown.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

import steepest as st
import steepest.torch as stt

WAYS = {
    "as torchrun starts it": {},
    "STEEPEST_NUM_THREADS=1": {"STEEPEST_NUM_THREADS": "1"},
    "all CPUs in each process": {"STEEPEST_NUM_THREADS": str(os.cpu_count())},
}


def stepped(size: int) -> None:
    """In a process of torchrun: prints the times of the slowest one, and its threads."""
    dist.init_process_group("gloo")
    p = torch.nn.Parameter(torch.randn(size))
    p.grad = torch.randn(size)
    optimizer = stt.AdamW([p], lr=1e-4)
    times = []
    for _ in range(12):
        dist.barrier()
        start = time.perf_counter()
        optimizer.step()
        own = torch.tensor(time.perf_counter() - start)
        dist.all_reduce(own, dist.ReduceOp.MAX)
        times.append(own.item())
    if dist.get_rank() == 0:
        said = st.info()
        print(json.dumps([statistics.median(times[2:]), said["threads"], said["threads_by"]]))
    dist.destroy_process_group()
    # A thread of gloo may still hold a tensor: where the interpreter ends meanwhile, it aborts.
    sys.stdout.flush()
    os._exit(0)


def launched(processes: int, size: int, environment: dict[str, str]) -> tuple[float, int, str]:
    """The time of a step in so many processes, and what one of them says of its threads."""
    kept = {k: x for k, x in os.environ.items() if not k.endswith("NUM_THREADS")}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    done = subprocess.run(
        [*command, str(processes), str(Path(__file__)), "--size", str(size), "--stepping"],
        env=kept | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    seconds, threads, by = json.loads(done.stdout.strip().splitlines()[-1])
    return seconds, threads, by


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=10_000_000)
    parser.add_argument("--stepping", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stepping:
        stepped(given.size)
        return
    found: dict[str, list[tuple[float, int, str]]] = {way: [] for way in WAYS}
    for _ in range(given.rounds):
        for way, environment in WAYS.items():
            found[way].append(launched(given.processes, given.size, environment))
    first = [seconds for seconds, _, _ in next(iter(found.values()))]
    print(
        f"| {given.processes} processes, {given.size} elements each | threads each | step | ratio |"
    )
    print("|---|---|---|---|")
    for way, runs in found.items():
        own = [seconds for seconds, _, _ in runs]
        ratio = statistics.median(x / y for x, y in zip(own, first, strict=True))
        threads, by = runs[0][1:]
        print(f"| {way} | {threads} ({by}) | {1e3 * statistics.median(own):.1f} ms | {ratio:.2f} |")


if __name__ == "__main__":
    main()
