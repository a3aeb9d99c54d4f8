"""Faults to inject: system calls that fail or kill, and Ctrl-C at a chosen line.

A test loops over n until nothing fails any more, so that every point is met.
"""

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


def interrupted_at(n, call):
    """Whether the call was ended by Ctrl-C at the n-th line of this package that it runs."""
    count = itertools.count(1)

    def watch(frame, event, arg):
        if not frame.f_globals.get("__name__", "").startswith("steepest."):
            return None
        if event == "line" and next(count) == n:
            signal.raise_signal(signal.SIGINT)
        return watch

    before = signal.getsignal(signal.SIGINT)  # ignored in a process that a shell put behind
    handler = signal.default_int_handler
    signal.signal(signal.SIGINT, handler)
    sys.settrace(watch)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
        assert signal.getsignal(signal.SIGINT) is handler
        signal.signal(signal.SIGINT, before)
    return False
