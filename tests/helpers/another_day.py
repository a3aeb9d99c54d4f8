"""A plugin of pytest: the clock is months ahead. Two collections that differ hold the time."""

import time

AHEAD = 10_000_000  # seconds: another month, day, hour, minute and second
_time, _time_ns, _localtime = time.time, time.time_ns, time.localtime

time.time = lambda: _time() + AHEAD
time.time_ns = lambda: _time_ns() + AHEAD * 10**9
time.localtime = lambda seconds=None: _localtime(time.time() if seconds is None else seconds)
