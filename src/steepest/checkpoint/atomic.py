"""Files that are replaced atomically: a reader sees the old file or the new one.

The new file is written under a name of its own in the same folder, forced to the disk, and then
renamed over the old one, which the operating system does in one step. An error, Ctrl-C, a killed
process or a power cut leave one of the two files, complete. A killed process also leaves its
unfinished file; the next one to write the same path removes it.
"""

import contextlib
import errno
import glob
import hashlib
import os
import secrets
import stat
import sys
from collections.abc import Callable, Iterable

if sys.platform != "win32":
    import fcntl

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


Head = Callable[[], memoryview]


def write(
    path: str | os.PathLike[str], chunks: Iterable[memoryview], head: Head | None = None
) -> None:
    """Makes `path` a file with the bytes of all chunks, or changes nothing.

    A chunk is written before the next is asked for. `head`, asked for after all of them, gives the
    bytes that take the place of the first ones.

    Returns when the file and its name are on the disk. The file has the permissions of the one
    that it replaces, or those that ``open`` would give it; a symbolic link is followed, so that it
    goes on pointing to the same place. Raises OSError, naming `path`.
    """
    target = os.path.realpath(os.fsdecode(path))
    try:
        _write(target, chunks, head)
    except OSError as error:
        raise OSError(error.errno, error.strerror, target) from error


def _write(target: str, chunks: Iterable[memoryview], head: Head | None) -> None:
    folder, name = os.path.split(target)
    mode = _mode(target)
    mark = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
    _sweep(folder, mark)
    temporary = os.path.join(folder, f".{mark}-{secrets.token_hex(8)}.tmp")
    try:
        _fill(temporary, mode, chunks, head)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def _fill(
    temporary: str, mode: int | None, chunks: Iterable[memoryview], head: Head | None
) -> None:
    """Makes a new file with these bytes, and waits until the disk has them."""
    descriptor = os.open(temporary, _FLAGS, 0o666)
    try:
        _lock(descriptor)
        if mode is not None:
            os.chmod(temporary, mode)
        for chunk in chunks:
            _write_all(descriptor, chunk)
        if head is not None:
            os.lseek(descriptor, 0, os.SEEK_SET)
            _write_all(descriptor, head())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _mode(target: str) -> int | None:
    """The permissions of the file that is replaced; None if there is none."""
    try:
        status = os.stat(target)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EISDIR, "Is a directory")
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "Not a regular file")
    return stat.S_IMODE(status.st_mode)


def _write_all(descriptor: int, chunk: memoryview) -> None:
    """All bytes of the chunk: one call of ``write`` may take fewer, on Linux at most 2 GiB."""
    while chunk.nbytes:
        chunk = chunk[os.write(descriptor, chunk) :]


def _sync_folder(folder: str) -> None:
    """Forces the new name to the disk, on systems where a folder can be opened for that."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that have no such thing
            raise
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Marks the file as being written, for as long as this process lives and has it open."""
    if sys.platform != "win32":
        with contextlib.suppress(OSError):  # file systems without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sweep(folder: str, mark: str) -> None:
    """Removes what processes that were killed have left for this path."""
    for left in glob.glob(os.path.join(glob.escape(folder), f".{mark}-*.tmp")):
        with contextlib.suppress(OSError):
            descriptor = os.open(left, os.O_RDWR)
            try:
                if sys.platform != "win32":
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails if in use
                    os.unlink(left)
            finally:
                os.close(descriptor)
