"""How much memory of Python's, NumPy's arrays included, a call takes once it is warm."""

import tracemalloc
from collections.abc import Callable
from typing import Any


def taken(call: Callable[[], Any], times: int = 10) -> tuple[int, int]:
    """Bytes that calls leave behind, and that they have at most meanwhile."""
    call()
    tracemalloc.start()
    try:
        call()
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(times):
            call()
        now, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return now - before, most - before
