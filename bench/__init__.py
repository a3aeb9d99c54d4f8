"""Comparative benchmarks: cases, rivals, a runner that writes JSON, a report that reads it.

PyTorch is loaded before steepest, so that OpenMP's threads, which both use, wait for work as long
as PyTorch's users know it.
"""

import contextlib

with contextlib.suppress(ModuleNotFoundError):
    import torch  # noqa: F401
