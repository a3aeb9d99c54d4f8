"""Faults to inject: system calls that fail or kill, Ctrl-C at a chosen line, and memory that there
is not.

A test loops over n until nothing fails any more, so that every point is met.
"""

import ctypes
import importlib
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


def out_of_memory(n, call):
    """Whether the n-th allocation by Python that the call makes, which fails, has ended it.

    By a MemoryError, or what NumPy and Python themselves make of that in places."""
    testcapi = importlib.import_module("_testcapi")
    try:
        testcapi.set_nomemory(n, n + 1)
        call()
    except Exception:
        return True
    finally:
        testcapi.remove_mem_hooks()
    return False


ALLOCATOR = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Allocations by modules of this package and of NumPy are counted, and the chosen one fails. */

static long chosen = 0, seen = 0;
static __thread int inside = 0;

long allocations(long n) { long before = seen; seen = 0; chosen = n; return before; }

static int fails(void *caller) {
    Dl_info found;
    int ours;
    if (chosen == 0 || inside) return 0;
    inside = 1;
    ours = dladdr(caller, &found) && found.dli_fname
        && (strstr(found.dli_fname, "steepest") || strstr(found.dli_fname, "_multiarray_umath"));
    inside = 0;
    if (!ours || ++seen != chosen) return 0;
    errno = ENOMEM;
    return 1;
}

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

#define HERE __builtin_return_address(0)
void *malloc(size_t n) { return fails(HERE) ? NULL : __libc_malloc(n); }
void *calloc(size_t n, size_t m) { return fails(HERE) ? NULL : __libc_calloc(n, m); }
void *realloc(void *p, size_t n) { return fails(HERE) ? NULL : __libc_realloc(p, n); }
void *aligned_alloc(size_t a, size_t n) { return fails(HERE) ? NULL : __libc_memalign(a, n); }
int posix_memalign(void **p, size_t a, size_t n) {
    if (fails(HERE)) return ENOMEM;
    *p = __libc_memalign(a, n);
    return *p ? 0 : ENOMEM;
}
"""
"""To be preloaded: it makes one allocation of NumPy's or of the compiled modules fail."""


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
