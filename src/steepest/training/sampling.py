"""Batches: which samples come together, and in which order."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from steepest.fields import count
from steepest.memory.arrays import Array

Size = int | Callable[[int], float]
"""A batch size, or a schedule of it: a function of the number of updates done so far."""


def batches(
    data: Sequence[Array],
    batch_size: Size | None = None,
    *,
    epoch: int = 1,
    seed: int = 0,
    shuffle: bool = True,
    start: int = 0,
    updates: int = 0,
) -> Iterator[tuple[Array, ...]]:
    """Cuts arrays of the same length into batches, for one epoch.

    Every sample comes once; the last batch may be smaller. ``batch_size=None`` gives all of the
    data as one batch, in its own order. With ``shuffle`` the order is that of
    ``numpy.random.default_rng((seed, epoch)).permutation(n)``: it is a function of seed and epoch,
    so these two and ``start``, the number of samples that are done, are all there is to save in
    order to continue in the middle of an epoch.

    A schedule as ``batch_size`` is called with ``updates`` for the first batch, ``updates + 1`` for
    the next, and so on, each time just before the batch is cut; see ``size_at``. Raises ValueError
    for arrays of different lengths or a batch size below 1.

    >>> import numpy as np
    >>> x = np.arange(5)
    >>> [b.tolist() for b, in batches((x,), 2, shuffle=False)]
    [[0, 1], [2, 3], [4]]
    >>> [b.tolist() for b, in batches((x,), 2, seed=1, epoch=3)]
    [[0, 4], [2, 3], [1]]
    >>> [b.tolist() for b, in batches((x,), 2, seed=1, epoch=3, start=2)]
    [[2, 3], [1]]
    >>> [b.tolist() for b, in batches((x,), lambda t: 2**t, shuffle=False)]
    [[0], [1, 2], [3, 4]]
    """
    n = length(data) if data else 0
    epoch, seed, start = count("epoch", epoch, 0), count("seed", seed, 0), count("start", start, 0)
    if batch_size is None:
        if start == 0:
            yield tuple(data)
        return
    if not callable(batch_size):
        batch_size = count("batch_size", batch_size, 1)
    order = np.random.default_rng((seed, epoch)).permutation(n) if shuffle else None
    while start < n:
        stop = start + size_at(batch_size, updates)
        chosen = slice(start, stop) if order is None else order[start:stop]
        yield tuple(x[chosen] for x in data)
        start, updates = stop, updates + 1


def size_at(batch_size: Size, updates: int) -> int:
    """The batch size after so many updates; a schedule's value is rounded to the nearest integer.

    Raises ValueError where a schedule gives no number that is 1 or more.

    >>> from steepest import schedules
    >>> growing = schedules.linear(16, steps=100, end=64)
    >>> [size_at(growing, t) for t in (0, 10, 50, 1000)]
    [16, 21, 40, 64]
    """
    if not callable(batch_size):
        return batch_size
    value = float(batch_size(updates))
    if not 1 <= value < math.inf:
        raise ValueError(f"batch_size schedule: {value} after {updates} updates; expected >= 1")
    return round(value)


def length(data: Sequence[Array]) -> int:
    """The number of samples. Raises ValueError for arrays of different lengths."""
    lengths = {len(x) for x in data}
    if len(lengths) != 1:
        shapes = ", ".join(str(x.shape) for x in data)
        raise ValueError(f"data has arrays of shapes {shapes}; expected equal first lengths")
    return lengths.pop()
