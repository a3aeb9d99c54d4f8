"""What is running: version, instruction-set level, threads, OpenMP runtime."""

import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from steepest.kernels import dispatch, threads


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


def info() -> dict[str, Any]:
    """Version, level, threads and OpenMP of this process, to print or to log.

    >>> import steepest as st
    >>> sorted(st.info())[:4]
    ['cpu', 'cpus', 'level', 'levels']
    """
    number, origin = threads.granted()
    return {
        "steepest": version("steepest"),
        "python": sys.version.split()[0],
        "numpy": np.__version__,
        "cpu": f"{platform.system()} {platform.machine()}",
        "cpus": threads.limit(),
        "level": dispatch.current.level,
        "levels": list(dispatch.available()),
        "threads": number,
        "threads_by": origin,
        "threads_of": threads.team().threads_of(),
        "openmp": threads.team().openmp(),
        "openmp_runtimes": openmp_runtimes(),
    }
