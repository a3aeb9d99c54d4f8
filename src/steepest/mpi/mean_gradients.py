"""Mean gradients for optimizers that every rank has whole."""

from typing import Any

from steepest.core import trees
from steepest.memory import arrays, formats
from steepest.mpi.exchange import BUCKET, Exchange, check_bucket
from steepest.mpi.layout import layout
from steepest.mpi.process_group import ProcessGroup

__all__ = ["mean"]


def mean(grads: Any, *, comm: Any = None, bucket_bytes: int = BUCKET) -> Any:
    """The mean over all ranks of arrays of the same structure, as new arrays of that structure.

        mean = (((g₀ + g₁) + g₂) + ...) / n      in the arrays' type, with the same bits everywhere

    Means of arrays of 16 bits are float32, not rounded again; optimizers take them as they are.

    For optimizers that a ``Sharded`` cannot be: those of global rules, SAM, LBFGS. Every rank then
    has all state. None stays None, and has to be None on all ranks. comm: a communicator of mpi4py,
    by default all processes. All ranks call it together.

    Raises MissingExtra without mpi4py; TypeError or ValueError on all ranks for what are no arrays
    of a format, or where the ranks differ in names, shapes or types.

    >>> import numpy as np, steepest as st
    >>> from mpi4py import MPI
    >>> st.mpi.mean({"w": np.array([1.0, 2.0]), "b": None}, comm=MPI.COMM_SELF)
    {'w': array([1., 2.]), 'b': None}
    """
    ranks = ProcessGroup(comm)
    with ranks.together():
        check_bucket(bucket_bytes)
        shape, names, leaves = trees.flatten(grads)
        given = [
            None if g is None else arrays.as_array(g, f"gradient {name!r}")
            for name, g in zip(names, leaves, strict=True)
        ]
        some = [g for g in given if g is not None]
        for g, name in zip(given, names, strict=True):
            if g is not None:
                arrays.of_a_format(g, f"gradient {name!r}")
        means = [arrays.zeros_like(g) for g in some]
        pieces = layout(some, [False] * len(some), ranks.size)
        exchange = back = Exchange(ranks, some, pieces, bucket_bytes)
        if not all(map(formats.borrowed, some)):
            back = Exchange(ranks, means, pieces, bucket_bytes)
    ranks.check_same(
        [f"bucket_bytes={bucket_bytes}"]
        + [
            f"gradient {name!r}, "
            + ("None" if g is None else f"{formats.of(g).name} of shape {g.shape}")
            for g, name in zip(given, names, strict=True)
        ]
    )
    own = [
        next((piece.of(x) for piece in cut if piece.rank == ranks.rank), None)
        for x, cut in zip(means, pieces, strict=True)
    ]
    exchange.mean(some, own)
    back.gather(means)
    done = iter(means)
    return trees.tree(shape, iter([None if g is None else next(done) for g in given]))
