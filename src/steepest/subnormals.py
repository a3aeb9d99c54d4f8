"""Subnormal numbers are kept for a while: every so many steps those of averages become zero.

The average of gradients that stay 0 decays until it is subnormal and, rounded to the nearest, never
gets to 0: 0.9 of the four smallest numbers is the four smallest numbers. Processors are slow with
them, some by a factor of a hundred, and at these sizes they mean nothing.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["EVERY", "averages_flushed", "flush"]

EVERY = 64
"""At every such step of a parameter, subnormal numbers become zero."""

_ADAM = ("exp_avg", "exp_avg_sq")

MOVING_AVERAGES: Mapping[str, tuple[str, ...]] = {
    "sgd": ("momentum_buffer",),
    "qhm": ("momentum_buffer",),
    "rmsprop": ("square_avg", "grad_avg", "momentum_buffer"),
    "adadelta": ("square_avg", "acc_delta"),
    "adam": _ADAM,
    "adamw": _ADAM,
    "adamax": ("exp_avg", "exp_inf"),
    "nadam": _ADAM,
    "radam": _ADAM,
    "adabelief": ("exp_avg", "exp_avg_var"),
    "yogi": _ADAM,
    "laprop": _ADAM,
    "adopt": _ADAM,
    "ademamix": ("exp_avg_fast", "exp_avg_slow", "exp_avg_sq"),
    "adan": ("exp_avg", "exp_avg_diff", "exp_avg_sq"),
    "adamatan2": _ADAM,
    "sophia": ("exp_avg", "hessian"),
    "grams": _ADAM,
    "signum": ("momentum_buffer",),
    "lion": ("exp_avg",),
    "schedulefreeadamw": ("exp_avg_sq",),
    "lamb": _ADAM,
    "lars": ("momentum_buffer",),
    "novograd": ("exp_avg",),
    "stableadamw": _ADAM,
    "prodigy": (*_ADAM, "s"),
    "dadaptadam": (*_ADAM, "s"),
    "adafactor": ("exp_avg", "variance"),
    "came": _ADAM,
    "sm3": ("momentum_buffer",),
    "adammini": ("exp_avg",),
    "muon": ("momentum_buffer",),
    "normuon": ("momentum_buffer",),
    "soap": _ADAM,
    "shampoo": ("momentum_buffer",),
    "psgdkron": ("momentum_buffer",),
    "galore": _ADAM,
    "apollo": _ADAM,
}
"""By rule, the states of the parameter's shape that decay where gradients are 0."""


def averages_flushed(rule: str, eps: Any) -> tuple[str, ...]:
    """The states in which subnormal numbers become zero: none where `eps`, or one of several, is 0,
    since it is they that keep the rule from dividing by zero."""
    if any(x == 0 for x in (eps if isinstance(eps, tuple) else (eps,))):
        return ()
    return MOVING_AVERAGES.get(rule, ())


def flush(x: Any) -> None:
    """Puts zeros, with their signs, where numbers are below the smallest normal one."""
    below = np.abs(x) < np.finfo(x.dtype).smallest_normal
    x[...] = np.where(below, np.copysign(np.zeros_like(x), x), x)
