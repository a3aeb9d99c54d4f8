"""What is running: version, instruction-set level, threads; and where an optimizer's pages lie."""

import platform
import sys
import warnings
from collections import Counter
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from steepest.core import internal
from steepest.core.optimizer import Optimizer
from steepest.kernels import dispatch, pages, threads, topology
from steepest.kernels.engine import Plan
from steepest.memory.arrays import Array, byte_bounds

__all__ = ["info", "openmp_runtimes"]

SAMPLES = 4096
"""Of so many pages at most it is asked where they lie."""
FAR = 0.1
"""From which share of an optimizer's pages on it is worth a warning that they are far."""


def openmp_runtimes() -> list[str]:
    """The OpenMP runtimes loaded in this process, where the system tells (Linux)."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return []
    prefixes = ("libgomp", "libomp", "libiomp")
    paths = {
        line.split(maxsplit=5)[5]
        for line in maps.splitlines()
        if line.count(" ") >= 5 and "/" in line
    }
    return sorted(path for path in paths if Path(path).name.startswith(prefixes))


def info(optimizer: Any = None) -> dict[str, Any]:
    """Version, level, threads, processors and OpenMP of this process, to print or to log; 0 for
    numbers of processors and nodes that the system does not say.

    With an optimizer that has stepped, also where the system has put its pages: under ``"pages"``,
    for parameters and each state, their shares by memory nodes, of some thousands that are asked
    for; under ``"far"`` the share that lies on other nodes than the processors on which the threads
    are now that work on them, None where the system does not say. Warns with a RuntimeWarning where
    that is more than a tenth. Raises TypeError for what is no optimizer.

    >>> import numpy as np, steepest as st
    >>> sorted(st.info())[:4]
    ['cores', 'cpu', 'cpus', 'level']
    >>> w = np.zeros(1 << 20, np.float32)
    >>> opt = st.AdamW(w)
    >>> opt.step(w + 1)
    >>> list(st.info(opt)["pages"])
    ['parameters', 'exp_avg', 'exp_avg_sq']
    """
    number, origin = threads.granted()
    team = threads.team()
    counted = topology.here().counted(threads.limited_to())
    facts = {
        "steepest": version("steepest"),
        "python": sys.version.split()[0],
        "numpy": np.__version__,
        "cpu": f"{platform.system()} {platform.machine()}",
        "cpus": threads.limit(),
        **counted,
        "level": dispatch.current.level,
        "levels": list(dispatch.available()),
        "threads": number,
        "threads_by": origin,
        "threads_of": team.threads_of(),
        "threads_bound": bool(team.bound()),
        "parts_in_turn": team.parts() > 1,
        "openmp": team.openmp(),
        "openmp_runtimes": openmp_runtimes(),
    }
    if optimizer is not None:
        facts |= _where(internal.inside(optimizer))
    return facts


def _where(optimizer: Optimizer) -> dict[str, Any]:
    """Where the pages of an optimizer lie, and how many are far from who works on them."""
    plan = internal.current_plan(optimizer)
    if plan is None:
        return {"pages": {}, "far": None}
    owned = _sampled(optimizer, _sweeps(optimizer, plan))
    found = pages.nodes([address for _, _, address in owned])
    if found is None:
        return {"pages": {}, "far": None}
    machine = topology.here()
    workers = 1 + max((worker for _, worker, _ in owned), default=0)
    homes = [machine.node_of(cpu) for cpu in threads.team().places(workers)]
    where: dict[str, Counter[int]] = {}
    near = far = 0
    for (what, worker, _), node in zip(owned, found, strict=True):
        own = where.setdefault(what, Counter())
        if node >= 0:  # there is a page
            own[node] += 1
            near, far = near + (node == homes[worker]), far + (node != homes[worker])
    known = near + far and None not in homes
    share = far / (near + far) if known else None
    if share is not None and share > FAR:
        warnings.warn(
            f"{share:.0%} of the optimizer's pages lie on other memory nodes than the threads that "
            "work on them: start Python with OMP_PROC_BIND=close and OMP_PLACES=cores, or a "
            "process on each node, as by numactl",
            RuntimeWarning,
            stacklevel=3,
        )
    shares = {
        what: {node: count / own.total() for node, count in sorted(own.items())}
        for what, own in where.items()
    }
    return {"pages": shares, "far": share}


_Sweep = tuple[list[tuple[int, int]], list[int]]
"""Where the part of each thread begins, and where the last one ends; the parameters' numbers."""


def _sweeps(optimizer: Optimizer, plan: Plan) -> list[_Sweep]:
    """That of the last step; and one for each parameter that was not in it but in others, as when
    they are stepped one by one."""
    last = plan.parts(1 if plan.cost < threads.SMALL else threads.workers(plan.elements()))
    sweeps = [last]
    for i in range(internal.parameter_count(optimizer)):
        if i not in last[1]:
            name, p = internal.parameter_at(optimizer, i)
            if internal.unmarked_state(optimizer)[name]["step"]:
                sweeps.append(plan.parts(threads.workers(p.size), i))
    return sweeps


def _sampled(optimizer: Optimizer, sweeps: list[_Sweep]) -> list[tuple[str, int, int]]:
    """Some bytes of the arrays of steps, spread over all of them: (what, whose, address)."""
    arrays = {i: _arrays(optimizer, i) for _, entries in sweeps for i in entries}
    every = max(sum(x.nbytes for own in arrays.values() for x in own.values()) // SAMPLES, 1)
    found = []
    for parts, entries in sweeps:
        for worker, ((first, start), (last, end)) in enumerate(pairwise(parts)):
            for k in range(first, min(last + 1, len(entries))):
                for what, x in arrays[entries[k]].items():
                    begin = start if k == first else 0
                    stop = min(end, x.size) if k == last else x.size
                    low, high = byte_bounds(x)
                    places = range(begin, stop, max(every // x.itemsize, 1))
                    found += [(what, worker, low + (high - low) * at // x.size) for at in places]
    return found


def _arrays(optimizer: Optimizer, i: int) -> dict[str, Array]:
    """The arrays of a parameter that have as many elements as itself: in their order in memory, its
    elements are walked."""
    name, p = internal.parameter_at(optimizer, i)
    states = internal.unmarked_state(optimizer)[name]
    return {"parameters": p, **{key: x for key, x in states.items() if x.shape == p.shape}}
