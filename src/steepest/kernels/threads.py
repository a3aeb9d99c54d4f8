"""How many threads a sweep uses.

The number is the first of: ``set_num_threads``, the environment variable ``STEEPEST_NUM_THREADS``,
OpenMP's own setting (``OMP_NUM_THREADS``, ``torch.set_num_threads``; with the threads of Grand
Central Dispatch, ``OMP_NUM_THREADS`` alone); and never more than the CPUs that this process may run
on, nor than the cgroup's quota. Small steps stay on one thread. A child
made by ``fork`` uses one thread: OpenMP's threads do not survive a fork.

A launcher of several processes, such as torchrun, sets ``OMP_NUM_THREADS=1`` where nobody has set
it, so that a step would leave most CPUs idle. Where it says by ``LOCAL_WORLD_SIZE`` how many
processes there are on the machine, each uses its share of the CPUs instead.

With PyTorch, whose threads these are too, they are awake between steps. Without it NumPy's BLAS has
threads of its own, and while one kind waits for work, awake, the other lacks processors: by default
GNU's OpenMP waits for milliseconds, and a training loop may take twice as long. So ours soon sleep
then, and are woken for less small steps only.
"""

import importlib
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from steepest.kernels import topology

TURNS = 8
"""Parts for each thread, where they are taken in turn."""

_BINDING = {"OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"}
"""What tells OpenMP to keep threads where they are."""

_CGROUP = Path("/sys/fs/cgroup")
_asked: int | None = None
_origin = "STEEPEST_NUM_THREADS"
_limit: int | None = None
_forked = False
_team: Any = None
_shared = True
"""Whether the threads are OpenMP's, and so PyTorch's, too."""
_least: int | None = None

# Elements from which on a sweep is worth more than one thread, if they are awake and if not.
SMALL = 1 << 15
"""A sweep over fewer elements is always one thread's."""

_AWAKE, _ASLEEP = SMALL, 1 << 18


def quota(cgroup: Path = _CGROUP) -> float:
    """The CPUs that the cgroup (version 2 or 1) grants; infinite without a quota."""
    try:
        granted, period = (cgroup / "cpu.max").read_text().split()
        return math.inf if granted == "max" else int(granted) / int(period)
    except (OSError, ValueError):
        pass
    try:
        granted_us = int((cgroup / "cpu/cpu.cfs_quota_us").read_text())
        period_us = int((cgroup / "cpu/cpu.cfs_period_us").read_text())
        return granted_us / period_us if granted_us > 0 else math.inf
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def limited_to() -> frozenset[int]:
    """The CPUs that this process may run on, by its affinity.

    Where OpenMP keeps its threads on CPUs of their own, that is also done with the one that has
    loaded it: its affinity says only where it is kept, and OpenMP knows of the others.
    """
    bound = team().bound() if _BINDING & os.environ.keys() else ()
    if bound:
        return frozenset(bound)
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def in_turn(machine: topology.Topology, cpus: frozenset[int]) -> bool:
    """Whether the threads of a large step take parts in turn, and have none of their own.

    Where cores are of two kinds, equal parts would all wait for the slowest; but not where memory
    has several nodes, and each thread is best near its own part.
    """
    return machine.unequal(cpus) and machine.counted(cpus)["memory_nodes"] <= 1


def limit() -> int:
    """The most threads this process can run at a time: its CPU affinity and its cgroup's quota."""
    cpus = len(limited_to())
    return max(1, min(cpus, math.ceil(min(quota(), cpus))))


def _local_processes() -> int:
    """How many processes a launcher has started on this machine, if it has left each one thread;
    else 0."""
    found = os.environ.get("LOCAL_WORLD_SIZE", "")
    starved = os.environ.get("OMP_NUM_THREADS") == "1"
    return int(found) if starved and found.isdecimal() else 0


def _setting() -> tuple[int, str]:
    """The number of threads that nobody has asked steepest for, and where it comes from."""
    n = team().max_threads()
    if n:
        return n, "OpenMP's own setting"
    found = os.environ.get("OMP_NUM_THREADS", "")  # as others in the process take it
    if found.isdecimal() and int(found):
        return int(found), "OMP_NUM_THREADS"
    return _limit or limit(), "the CPUs that this process may use"


def granted() -> tuple[int, str]:
    """The number of threads that a large step uses, and where that number comes from."""
    global _limit
    if _forked:
        return 1, "a child made by fork uses one"
    if _limit is None:
        _limit = limit()
    if _asked is not None:
        n, origin = _asked, _origin
    else:
        n, origin = _setting()
        if n == 1 and (processes := _local_processes()):
            n = max(1, _limit // processes)
            origin = f"the share of each of {processes} processes (LOCAL_WORLD_SIZE)"
    if n > _limit:
        return _limit, f"the CPUs that this process may use; {origin} is {n}"
    return n, origin


def _checked(n: object, origin: str) -> int:
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"{origin} = {n!r}: expected a whole number of at least 1")
    return n


def set_num_threads(n: int | None) -> None:
    """Sets the number of threads of every later step; None returns to the default.

    Raises ValueError unless n is a whole number of at least 1. More threads than CPUs are not
    started; ``get_num_threads`` tells how many are.

    >>> import steepest as st
    >>> st.set_num_threads(1)
    >>> st.get_num_threads()
    1
    >>> st.set_num_threads(None)
    """
    global _asked, _limit, _origin
    _asked = None if n is None else _checked(n, "number of threads")
    _limit, _origin = limit(), "set_num_threads"


def get_num_threads() -> int:
    """The number of threads that a large step uses."""
    return granted()[0]


def team() -> Any:
    """The module ``team``, and OpenMP with it; loaded when first asked for.

    GNU's OpenMP reads when it is loaded how long its threads wait for work before they sleep. It is
    told to be brief, unless PyTorch is there or the environment says something.
    """
    global _team, _shared
    if _team is None:
        brief = "torch" not in sys.modules and not any(
            name in os.environ for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
        )
        if brief:
            os.environ["GOMP_SPINCOUNT"] = "1000"
        try:
            _team = importlib.import_module("steepest.kernels.team")
        finally:
            if brief:
                del os.environ["GOMP_SPINCOUNT"]
        _shared = bool(_team.openmp())
        if in_turn(topology.here(), limited_to()):
            _team.take_turns(TURNS, 1)
    return _team


def workers(elements: int) -> int:
    """The number of threads of a sweep over so many elements."""
    least = _least or (_AWAKE if "torch" in sys.modules and _shared else _ASLEEP)
    return get_num_threads() if elements >= least else 1


@contextmanager
def forced(n: int) -> Iterator[None]:
    """n threads for a while, even where the machine has fewer CPUs; for tests."""
    global _asked, _limit, _least
    before = _asked, _limit, _least
    _asked = _limit = n
    _least = _AWAKE
    try:
        yield
    finally:
        _asked, _limit, _least = before


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

_environment = os.environ.get("STEEPEST_NUM_THREADS")
if _environment:
    _asked = _checked(
        int(_environment) if _environment.isdecimal() else _environment, "STEEPEST_NUM_THREADS"
    )
