"""Arrays in every memory layout."""

import numpy as np

# Large enough together for several threads.
SHAPES = (
    (), (3,), (0, 5), (4, 0), (1, 9), (9, 1), (70, 130), (5, 3, 7), (2, 5000), (4100, 2), (301, 31)
)  # fmt: skip


def laid_out(x, kind):
    """The same values in another memory layout."""
    if kind == "F":
        return np.array(x, order="F")
    if kind == "reversed":
        room = np.zeros(x.shape, x.dtype)[(slice(None, None, -1),) * x.ndim]
    elif kind == "strided":
        room = np.zeros((*x.shape, 3), x.dtype)[..., 1]
    else:
        room = np.zeros(x.shape, x.dtype)
    room = np.asarray(room) if x.ndim else np.zeros((), x.dtype)
    room[...] = x
    return room
