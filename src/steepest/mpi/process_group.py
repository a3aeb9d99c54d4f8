"""A process group: processes that make the same calls together; where one fails, all fail."""

import contextlib
import hashlib
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from steepest.extras import require
from steepest.memory.arrays import Array

__all__ = ["RankError", "ProcessGroup"]


class RankError(RuntimeError):
    """Another rank has failed; the message says which, and why."""


class ProcessGroup:
    """The processes of an MPI communicator.

    Every method is collective: all ranks call it, in the same order. Ctrl-C and SystemExit are not
    told to the other ranks; ``python -m mpi4py`` ends all processes where one ends so.
    """

    def __init__(self, comm: Any = None) -> None:
        """comm: one of mpi4py; None for all processes."""
        self.mpi = require("mpi4py.MPI", extra="mpi", purpose="st.mpi")
        self.comm = self.mpi.COMM_WORLD if comm is None else comm
        if not isinstance(self.comm, self.mpi.Intracomm):
            raise TypeError(
                f"comm is a {type(comm).__name__}; expected a communicator such as "
                "mpi4py.MPI.COMM_WORLD"
            )
        self.rank: int = self.comm.Get_rank()
        self.size: int = self.comm.Get_size()
        self.committing = False
        """Whether all ranks are ready, and parameters and state are being changed."""

    def agree(self, error: Exception | None = None) -> None:
        """Returns where no rank has an error; else raises RankError on those that have none."""
        failed = np.array([error is not None], np.int32)
        some = np.zeros_like(failed)
        self.comm.Allreduce(failed, some, op=self.mpi.MAX)
        if not some[0]:
            return
        told = self.comm.allgather(None if error is None else f"{type(error).__name__}: {error}")
        if error is None:
            rank, text = next((i, x) for i, x in enumerate(told) if x is not None)
            raise RankError(f"rank {rank} of {self.size} failed, so no rank goes on: {text}")

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A block that raises on all ranks where it raises on one."""
        try:
            yield
        except RankError:
            raise  # which all ranks know of
        except Exception as error:
            self.agree(error)
            raise
        self.agree()

    @contextlib.contextmanager
    def stepping(self) -> Iterator[None]:
        """As ``together``, for a block that calls ``ready`` before it changes anything.

        A failure after that cannot be undone on the other ranks, so it ends all processes.
        """
        self.committing = False
        try:
            yield
        except RankError:
            raise
        except Exception as error:
            if not self.committing:
                self.agree(error)
            elif self.size > 1:
                traceback.print_exception(error)
                self.comm.Abort(1)
            raise

    def ready(self) -> None:
        """Returns once all ranks are ready to change parameters and state."""
        self.agree()
        self.committing = True

    def norms(self, own: Array) -> Array:
        """The norms that each rank has measured, a row for each rank."""
        self.agree()
        rows = np.empty((self.size, own.size))
        self.comm.Allgather(own, rows)
        return rows

    def largest(self, own: Array) -> Array:
        """The largest of all ranks' numbers, element by element."""
        most = np.empty_like(own)
        self.comm.Allreduce(own, most, op=self.mpi.MAX)
        return most

    def check_same(self, facts: Sequence[str]) -> None:
        """Raises ValueError on all ranks, saying what differs, unless all have the same facts."""
        text = "\n".join(facts)
        digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
        rows = np.empty((self.size, digest.size), np.uint8)
        self.comm.Allgather(digest.copy(), rows)
        if (rows == rows[0]).all():
            return
        first = self.comm.bcast(list(facts) if self.rank == 0 else None, root=0)
        told = self.comm.allgather(_difference(list(facts), first))
        rank, (own, other) = next((i, x) for i, x in enumerate(told) if x is not None)
        raise ValueError(f"the ranks differ: rank {rank} has {own}, rank 0 has {other}")


def _difference(own: list[str], other: list[str]) -> tuple[str, str] | None:
    """The first facts that differ."""
    rest = "nothing more"
    for i in range(max(len(own), len(other))):
        pair = own[i] if i < len(own) else rest, other[i] if i < len(other) else rest
        if pair[0] != pair[1]:
            return pair
    return None
