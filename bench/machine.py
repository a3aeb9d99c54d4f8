"""The facts of the machine that a result depends on."""

import importlib.metadata
import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from steepest.core import information


def available_memory() -> int:
    """The bytes that new arrays may take: what the system has left, within the cgroup's limit."""
    text = _read("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", text)
    if found:
        left = int(found[1]) * 1024
    elif hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        left = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    else:
        left = 4 * 2**30
    limit, used = _read("/sys/fs/cgroup/memory.max"), _read("/sys/fs/cgroup/memory.current")
    if limit.strip().isdecimal() and used.strip().isdecimal():
        left = min(left, int(limit) - int(used))
    return left


def facts(threads: int, torch: Any | None) -> dict[str, Any]:
    """CPU, threads, versions, OpenMP runtimes, load and huge pages, before anything is measured."""
    info = information.info()
    model = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    pages = re.search(r"\[(\w+)\]", _read("/sys/kernel/mm/transparent_hugepage/enabled"))
    return {
        **{key: info[key] for key in ("steepest", "python", "numpy", "level", "cpus")},
        "cpu": model[1] if model else platform.processor() or platform.machine(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": threads,
        "torch": str(torch.__version__) if torch is not None else None,
        "deepspeed": _version("deepspeed"),
        "openmp_runtimes": [Path(path).name for path in information.openmp_runtimes()],
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "transparent_huge_pages": pages[1] if pages else None,
        "available_memory": available_memory(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def stolen() -> tuple[int, int] | None:
    """CPU time since the start that the hypervisor gave to others, and all, in ticks (Linux)."""
    first = _read("/proc/stat").partition("\n")[0].split()[1:9]
    ticks = [int(x) for x in first]
    return (ticks[7], sum(ticks)) if len(ticks) == 8 else None


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
