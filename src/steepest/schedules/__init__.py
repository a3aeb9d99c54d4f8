"""Schedules: hyper-parameters as functions of the number of updates done so far.

A schedule is called with `t`, 0 at the first update, and answers with a float. It is pure: the
value depends on `t` and on how the schedule was made, on nothing else. So a resumed run continues
exactly, and any update can be looked up at any time. Every hyper-parameter of every optimizer
accepts one, and any other callable `t -> float` in its place. The exceptions are `plateau` and
`greedy`, which watch a metric and have a state.

>>> from steepest import schedules
>>> lr = schedules.cosine(1e-3, steps=10_000, warmup=500)
>>> lr(0), lr(499), lr(10_000)
(2e-06, 0.001, 0.0)
>>> print(lr)
cosine(lr=0.001, steps=10000, end=0.0, warmup=500)
    c    = ((1 + cos(2π cycles u)) / 2)^exponent
    s(t) = lr c + end (1 - c)
    u    = min(t / (steps - warmup), 1)

Warm-up is common to all. `warmup=w` puts `w` updates in front, by default on a straight line up to
the schedule's first value, and the schedule itself begins after them:

    value(t) = s(0) (a + (1 - a) rise((t + warmup_from) / w))    for t < w
               s(t - w)                                          for t >= w
    rise(x)  = x (linear), (1 - cos(π x)) / 2 (cosine), 1 - √(1 - x) (1-sqrt)

with a = warmup_start, 0 by default, and rise = warmup_shape. With warmup_from = 1, the default,
the first update is small but not zero, and update `w - 1` has the full first value. (Goyal et al.
2017, arXiv:1706.02677, section 2.2.) PyTorch, optax and Hugging Face count from 0, which wastes
the first update where a is 0: warmup_from=0 does as they do.
"""

from steepest.schedules.ademamix import ademamix_alpha, ademamix_beta3
from steepest.schedules.annealing import cosine, cosine_cycles, linear, polynomial, rex
from steepest.schedules.averages import ema_warmup
from steepest.schedules.base import Schedule, product, total
from steepest.schedules.batches import growing, rounded
from steepest.schedules.combine import clip, maximum, minimum, sequence, shift
from steepest.schedules.cycles import cosine_restarts, cyclic, one_cycle, one_cycle_momentum
from steepest.schedules.decays import (
    exponential,
    inverse_sqrt,
    inverse_time,
    multi_step,
    noam,
    step,
)
from steepest.schedules.metric_driven import greedy, plateau
from steepest.schedules.piecewise import interpolate, piecewise
from steepest.schedules.stable import constant, warmup_stable_decay

__all__ = [
    "SCHEDULES",
    "Schedule",
    "constant",
    "warmup_stable_decay",
    "inverse_sqrt",
    "noam",
    "inverse_time",
    "exponential",
    "step",
    "multi_step",
    "piecewise",
    "interpolate",
    "linear",
    "polynomial",
    "cosine",
    "cosine_cycles",
    "rex",
    "cosine_restarts",
    "cyclic",
    "one_cycle",
    "one_cycle_momentum",
    "plateau",
    "greedy",
    "ademamix_alpha",
    "ademamix_beta3",
    "ema_warmup",
    "growing",
    "rounded",
    "sequence",
    "shift",
    "clip",
    "minimum",
    "maximum",
    "product",
    "total",
]

SCHEDULES: dict[str, type[Schedule]] = {
    name: globals()[name] for name in __all__ if name not in ("SCHEDULES", "Schedule")
}
"""Every schedule by its name, from simple to elaborate."""
