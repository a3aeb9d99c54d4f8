"""Work in a child process, which may crash or hang."""

import faulthandler
import os
import pickle
import select
import signal
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["CAN_FORK", "Ended", "in_child"]

CAN_FORK = hasattr(os, "fork")


class Ended(NamedTuple):
    """How it ended: "returned" with its value, "raised" with the error's text, "died" of a signal,
    or "hung"."""

    how: str
    value: Any


def in_child(work: Callable[[], Any], seconds: float = 30.0) -> Ended:
    """Calls a function in a child made by ``fork``; it is killed after so many seconds."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads that the child will not have
        child = os.fork()
    if child == 0:
        _be_child(work, writing)
    os.close(writing)
    answer, hung = _read(reading, time.monotonic() + seconds)
    os.close(reading)
    if hung:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if hung:
        return Ended("hung", f"for {seconds:g} seconds")
    if os.WIFSIGNALED(status):
        return Ended("died", signal.Signals(os.WTERMSIG(status)).name)
    try:
        how, value = pickle.loads(answer)
    except Exception:
        return Ended("died", f"status {os.waitstatus_to_exitcode(status)}")
    return Ended(how, value)


def _be_child(work: Callable[[], Any], writing: int) -> None:
    """The whole life of the child; says nothing on the parent's terminal."""
    status = 1
    faulthandler.disable()
    try:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 2)
        try:
            told = ("returned", work())
        except BaseException as error:
            told = ("raised", f"{type(error).__name__}: {error}")
        answer = pickle.dumps(told)
        while answer:
            answer = answer[os.write(writing, answer) :]
        status = 0
    finally:
        os._exit(status)


def _read(reading: int, until: float) -> tuple[bytes, bool]:
    """All that the child writes, and whether it had not finished in time."""
    parts: list[bytes] = []
    while True:
        left = until - time.monotonic()
        if left <= 0 or not select.select([reading], [], [], left)[0]:
            return b"".join(parts), True
        part = os.read(reading, 1 << 16)
        if not part:
            return b"".join(parts), False
        parts.append(part)
