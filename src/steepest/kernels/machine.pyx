"""What this machine and this process allow: instruction sets, floating-point mode.

Compiled once, for the baseline, so that it can be imported before a level is chosen.
"""

import os

cdef extern from *:
    """
    #if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
    #define HAS(feature) (__builtin_cpu_supports(feature) != 0)
    static int steepest_runs_v3(void) {
        __builtin_cpu_init();
        return HAS("avx2") && HAS("bmi") && HAS("bmi2") && HAS("fma");
    }
    static int steepest_runs_v4(void) {
        return steepest_runs_v3() && HAS("avx512f") && HAS("avx512bw") && HAS("avx512cd")
            && HAS("avx512dq") && HAS("avx512vl");
    }
    #undef HAS
    #else
    static int steepest_runs_v3(void) { return 0; }
    static int steepest_runs_v4(void) { return 0; }
    #endif
    """
    int steepest_runs_v3() nogil
    int steepest_runs_v4() nogil

import functools

from cpython.bytearray cimport PyByteArray_AS_STRING
from libc.string cimport memset

from steepest.kernels.floatmode cimport (
    floatmode_enter, floatmode_get, floatmode_leave, floatmode_set,
)


def runs(str level):
    """Whether this CPU and operating system run code of that level: base, v3 or v4."""
    if level == "v4":
        return bool(steepest_runs_v4())
    if level == "v3":
        return bool(steepest_runs_v3())
    return level == "base"


def float_mode():
    """The calling thread's floating-point control word (MXCSR or FPCR; 0 elsewhere)."""
    return floatmode_get()


def set_float_mode(unsigned long long mode):
    """Sets the calling thread's floating-point control word. For tests."""
    floatmode_set(mode)


cdef long forks = 0  # that this process came from


def _forked():
    global forks
    forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


cdef class Lock:
    """Held by one caller of ``alone`` at a time. A forked process finds it free: the thread that
    holds it stays behind."""
    cdef bint held
    cdef long since


def alone(Lock lock, function, argument, str what):
    """Calls the function, in the default floating-point mode, unless another thread, or this one
    further up, holds the lock.

    Compiled code is not interrupted: Ctrl-C cannot come between taking the lock and what gives it
    back.
    """
    cdef unsigned long long mode
    if lock.held and lock.since == forks:
        raise RuntimeError(f"another thread, or this one further up, is inside {what}")
    lock.held, lock.since = True, forks
    mode = floatmode_enter()
    try:
        return function(argument)
    finally:
        floatmode_leave(mode)
        lock.held = False


cdef class Held:
    """Which of `n` things callers of ``alone_with`` hold. A forked process finds all free."""
    cdef bytearray flags
    cdef long since

    def __cinit__(self, Py_ssize_t n):
        self.flags = bytearray(n)
        self.since = forks


def alone_with(Held held, Py_ssize_t first, Py_ssize_t last, function, argument, str what):
    """Calls the function, unless another thread, or this one further up, holds one of the things
    from `first` to before `last`, which are held meanwhile. Uninterrupted, as ``alone`` is."""
    cdef unsigned char *flags
    cdef Py_ssize_t i
    if not 0 <= first <= last <= len(held.flags):
        raise IndexError(f"{first} to {last} of {len(held.flags)}")
    flags = <unsigned char *>PyByteArray_AS_STRING(held.flags)
    if held.since != forks:
        memset(flags, 0, len(held.flags))
        held.since = forks
    for i in range(first, last):
        if flags[i]:
            raise RuntimeError(f"another thread, or this one further up, is inside {what}")
    memset(flags + first, 1, last - first)
    try:
        return function(argument)
    finally:
        memset(flags + first, 0, last - first)


def at_once(list calls):
    """Makes the calls, each (function, arguments), with nothing in between.

    Signal handlers, Ctrl-C's among them, run between two lines of Python. There is none here as
    long as the functions are Python's or NumPy's compiled ones: setattr, dict.update, list.extend,
    ndarray.__setitem__. So what was made and checked before comes wholly or not at all.
    """
    for function, arguments in calls:
        function(*arguments)


def in_default_mode(function):
    """The function, but it runs in the default floating-point mode and puts the caller's back."""
    @functools.wraps(function)
    def wrapped(*arguments, **keywords):
        cdef unsigned long long mode = floatmode_enter()
        try:
            return function(*arguments, **keywords)
        finally:
            floatmode_leave(mode)
    return wrapped
