"""On which memory nodes pages lie, where the system says so (Linux, by ``move_pages``)."""

import ctypes
import os
import platform
import sys
from collections.abc import Sequence

_MOVE_PAGES = {"x86_64": 279, "aarch64": 239}
"""The number of the system call."""
_UNKNOWN = -1000


def nodes(addresses: Sequence[int]) -> list[int] | None:
    """The node of the page of each address; negative for a page that nobody has written yet. None
    where the system does not say."""
    number = _MOVE_PAGES.get(platform.machine())
    if number is None or not sys.platform.startswith("linux"):
        return None
    size, count = os.sysconf("SC_PAGE_SIZE"), len(addresses)
    pages = (ctypes.c_void_p * count)(*[x // size * size for x in addresses])
    found = (ctypes.c_int * count)(*[_UNKNOWN] * count)
    # Without nodes to move to, the call only tells.
    call = ctypes.CDLL(None, use_errno=True).syscall
    failed = call(ctypes.c_long(number), 0, ctypes.c_ulong(count), pages, None, found, 0)
    return None if failed else list(found)
