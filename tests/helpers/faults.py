"""Faults to inject: system calls that fail or kill, and Ctrl-C at a chosen line.

A test loops over n until nothing fails any more, so that every point is met.
"""

import ctypes
import itertools
import os
import signal
import sys


class Calls:
    """The module ``os``, but the n-th of the calls that matter to a file is `fail`'s.

    fail: called with the function and its arguments in the place of the function.
    """

    MATTER = ("open", "write", "fsync", "close", "chmod", "replace", "stat")

    def __init__(self, n, fail):
        self.left, self.fail = n, fail

    def __getattr__(self, name):
        function = getattr(os, name)
        if name not in self.MATTER:
            return function

        def call(*arguments):
            self.left -= 1
            return self.fail(function, arguments) if self.left == 0 else function(*arguments)

        return call


def lines_of(call):
    """How many lines of this package the call runs."""
    count = itertools.count()
    _traced(call, lambda: next(count))
    return next(count)


def _traced(call, at_line):
    def watch(frame, event, arg):
        if not frame.f_globals.get("__name__", "").startswith("steepest."):
            return None
        if event == "line":
            at_line()
        return watch

    sys.settrace(watch)
    try:
        call()
    finally:
        sys.settrace(None)


def _ended(number, frame):
    raise SystemExit(number)


def interrupted_at(n, call, number=signal.SIGINT):
    """Whether the call was ended by Ctrl-C, or by another signal whose handler raises, at the n-th
    line of this package that it runs."""
    count = itertools.count(1)

    def at_line():
        if next(count) == n:
            signal.raise_signal(number)

    before = signal.getsignal(number)  # ignored in a process that a shell put behind
    handler = signal.default_int_handler if number == signal.SIGINT else _ended
    signal.signal(number, handler)
    try:
        _traced(call, at_line)
    except (KeyboardInterrupt, SystemExit):
        return True
    finally:
        assert signal.getsignal(number) is handler
        signal.signal(number, before)
    return False


TRACE_ME, TO_NEXT_CALL = 0, 24  # PTRACE_TRACEME and PTRACE_SYSCALL of Linux


def killed_at_stop(n, call):
    """Whether a child process that makes the call was killed at its n-th stop: the kernel stops it
    as it enters and as it leaves each system call. None where the system allows no tracing.

    For Linux, in a process without threads that matter.
    """
    trace = ctypes.CDLL(None, use_errno=True).ptrace
    trace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    trace.restype = ctypes.c_long
    child = os.fork()
    if child == 0:
        if trace(TRACE_ME, 0, None, None) != 0:
            os._exit(77)
        os.kill(os.getpid(), signal.SIGSTOP)
        call()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        return None
    for _ in range(n):
        if trace(TO_NEXT_CALL, child, None, None) != 0:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            return False
        assert os.WSTOPSIG(status) == signal.SIGTRAP
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True
