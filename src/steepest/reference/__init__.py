"""The specification: every rule in plain NumPy, written to be read.

A function here takes hyper-parameters and t, not prepared coefficients, and changes the parameter
and its state in place. The compiled kernels equal it to the last bit, which is why the order of
the operations and the roundings matter: scalars are computed in double and rounded once, by
``real``, to the parameter's type; everything else happens in that type.

``step`` is all that an optimizer does to one parameter; ``norm`` is what clipping measures.
"""

import inspect
from collections.abc import Callable
from typing import Any

from steepest.reference import adam, adaptive, sgd, sign, stages
from steepest.reference.measures import norm as norm
from steepest.reference.types import Array, State

__all__ = ["RULES", "norm", "step"]

# Every function of a family that takes (p, g, state, t, ...) is a rule.
RULES: dict[str, Callable[..., None]] = {
    name: function
    for family in (sgd, adaptive, adam, sign)
    for name, function in vars(family).items()
    if inspect.isfunction(function)
    and list(inspect.signature(function).parameters)[:4] == ["p", "g", "state", "t"]
}


def step(
    rule: str,
    p: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float,
    weight_decay: float = 0.0,
    decay_mode: str = "l2",
    l1: float = 0.0,
    maximize: bool = False,
    ema: float | None = None,
    clip_value: float | None = None,
    factor: float = 1.0,
    **hyper: Any,
) -> None:
    """The t-th step (from 1) of one parameter, with everything around the rule.

    `factor` scales the gradient; it is what clipping by norm computed. The gradient is not changed.
    """
    factor = -factor if maximize else factor
    if factor != 1.0:
        g = stages.scale(g, factor)
    if clip_value is not None:
        g = stages.clip_value(g, clip_value)
    if weight_decay and decay_mode == "l2":
        g = stages.l2(g, p, weight_decay)
    if l1:
        g = stages.l1(g, p, l1)
    if weight_decay and decay_mode == "decoupled":
        stages.decay(p, lr, weight_decay)
    RULES[rule](p, g, state, t, lr=lr, **hyper)
    if ema is not None:
        stages.ema(state["ema"], p, ema)
