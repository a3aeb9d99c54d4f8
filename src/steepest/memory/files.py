"""Memory that lies in files: the arrays of states that are larger than memory.

The files have no names. A file of that kind is made in a folder, opened, and unlinked at once
(O_TMPFILE, where there is such a thing); the system frees it when its last array is gone, however
the process ends. So nothing is left behind, no two users of a folder can meet, and no file can be
taken for something to resume from, which it could not be: a crash in mid-step leaves some elements
before the step and some after it. What lasts is a checkpoint.

A file holds the arrays of many parameters, one after the other in the order in which they were
asked for; each begins at its own place in a cache line. Each new file is as long as all before it
together, so that there are few however the arrays come; what is not in use yet is a hole. The room
for arrays is allocated before there is anything in it: a full disk is an OSError, and not a SIGBUS
in the middle of a sweep.
"""

import errno
import math
import mmap
import os
import tempfile
from collections.abc import Iterable
from typing import IO, Any

import numpy as np

from steepest.memory import arrays, formats
from steepest.memory.arrays import LINE, Array

_BLOCK = 1 << 20  # bytes that are copied, or written as zeros, at a time
_NOT_THERE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


class Scratch:
    """Arrays in files without names in one folder.

    A pickle or a copy of it is one for the same folder, with files of its own.
    """

    _file: IO[bytes] | None = None  # there also where an interrupt ends the constructor

    def __init__(self, folder: str | bytes | os.PathLike[Any]) -> None:
        self.folder = os.path.abspath(os.fsdecode(folder))
        self._process = os.getpid()
        self._memory: Array = np.empty(0, np.uint8)
        self._used = self._reserved = self._before = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder,)

    def _close(self) -> None:
        """Arrays keep their file for themselves; this is what allocates more of it."""
        if self._file is not None:
            self._file.close()

    __del__ = _close

    def new(self) -> "Scratch":
        """Another one for the same folder."""
        return type(self)(self.folder)

    def check_process(self) -> None:
        """Raises RuntimeError in a forked child, which shares the files with its parent."""
        if os.getpid() != self._process:
            raise RuntimeError(
                f"the state lies in files in {self.folder!r} that this process shares with its "
                "parent: make an optimizer here, or load a state, which gives it files of its own"
            )

    def reserve(self, sizes: Iterable[int]) -> None:
        """Makes room for the next arrays, of so many bytes each, in one file.

        Raises OSError naming the folder and the bytes where it cannot be had.
        """
        nbytes = sum(_lines(size) for size in sizes)
        if not nbytes:
            return
        try:
            if self._file is None or self._used + nbytes > self._memory.size:
                self._begin(nbytes)
            _allocate(self._file, self._used, nbytes)  # type: ignore[arg-type]
        except OSError as error:
            why = f"{error.strerror or error} (for {nbytes:,} bytes of state)"
            raise OSError(error.errno, why, self.folder) from error
        self._reserved = self._used + nbytes

    def _begin(self, nbytes: int) -> None:
        """A new file, with this much room or more."""
        if os.path.exists(self.folder) and not os.path.isdir(self.folder):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        os.makedirs(self.folder, exist_ok=True)
        size = max(nbytes, self._before + self._memory.size)
        file = tempfile.TemporaryFile(dir=self.folder, buffering=0)  # noqa: SIM115
        try:
            file.truncate(size)
            memory = np.frombuffer(mmap.mmap(file.fileno(), size), np.uint8)
        except BaseException:
            file.close()
            raise
        self._close()
        self._before += self._memory.size
        self._file, self._memory, self._used, self._reserved = file, memory, 0, 0

    def _room(self, nbytes: int) -> Array:
        """Zeros, as bytes from the start of a cache line: room for an array of so many bytes
        wherever in that line it begins."""
        if self._used + _lines(nbytes) > self._reserved:
            self.reserve([nbytes])
        begin, self._used = self._used, self._used + _lines(nbytes)
        return self._memory[begin : self._used]

    def zeros_like(self, p: Array, dtype: np.dtype[Any] | None = None) -> Array:
        """As ``arrays.zeros_like``."""
        return self._like(p, dtype or formats.computed(p))

    def _like(self, x: Array, dtype: np.dtype[Any]) -> Array:
        return arrays.zeros_like(x, self._room(x.size * dtype.itemsize), dtype)

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Zeros in C order."""
        return np.ndarray(shape, dtype, self._room(math.prod(shape) * dtype.itemsize).data)

    def copy(self, x: Array) -> Array:
        """The array in a file. What is zero in it is not written."""
        fresh = self._like(x, x.dtype)
        new, old = arrays.in_memory_order(fresh).reshape(-1), arrays.in_memory_order(x).reshape(-1)
        step = _BLOCK // x.itemsize
        for start in range(0, x.size, step):
            part = old[start : start + step]
            if part.view(np.uint8).any():
                new[start : start + step] = part
        return fresh


def _lines(nbytes: int) -> int:
    """The room for an array of so many bytes: whole cache lines, so that the next one finds the
    start of a line, too."""
    return -(-nbytes // LINE) * LINE + LINE


def lies_in_file(x: Any) -> bool:
    """Whether the array's memory is that of a file."""
    while isinstance(x, (np.ndarray, memoryview)):
        x = x.base if isinstance(x, np.ndarray) else x.obj
    return isinstance(x, mmap.mmap)


def _allocate(file: IO[bytes], start: int, nbytes: int) -> None:
    """Has the file system set these bytes aside. Raises OSError if it has not got them."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), start, nbytes)
            return
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
    zeros = memoryview(bytes(min(nbytes, _BLOCK)))
    file.seek(start)
    while nbytes:
        nbytes -= file.write(zeros[: min(nbytes, _BLOCK)])
