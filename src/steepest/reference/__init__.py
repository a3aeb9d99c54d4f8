"""The specification: every rule in plain NumPy, written to be read.

A function here takes hyper-parameters and t, not prepared coefficients, and changes the parameter
and its state in place. The compiled kernels equal it to the last bit, which is why the order of
the operations and the roundings matter: scalars are computed in double and rounded once, by
``real``, to the parameter's type; everything else happens in that type.

``step`` is all that an optimizer does to one parameter; ``norm`` is what clipping measures.
"""

import inspect
from collections.abc import Callable, Mapping
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
    penalties: Mapping[str, Any] | None = None,
    clip_value: float | None = None,
    adaptive: tuple[float, float, int | None] | None = None,
    factor: float = 1.0,
    **hyper: Any,
) -> None:
    """The t-th step (from 1) of one parameter, with everything around the rule.

    `factor` scales the gradient; it is what clipping by norm computed. `adaptive` is (limit, eps,
    axis). `penalties` are weights by kind: "l1", "l2", "decoupled", "proximal_l1", "proximal_l2",
    "toward", "toward_decoupled" (toward state "initial"), and lists of (number, axis) as
    "group_lasso" and "max_norm". The gradient is not changed.
    """
    extra = penalties or {}
    factor = -factor if maximize else factor
    l2 = (weight_decay if decay_mode == "l2" else 0.0) + extra.get("l2", 0.0)
    l1 += extra.get("l1", 0.0)
    decay = (0.0 if decay_mode == "l2" else weight_decay) + extra.get("decoupled", 0.0)
    if factor != 1.0:
        g = stages.scale(g, factor)
    if adaptive is not None:
        g = stages.adaptive(g, p, *adaptive)
    if clip_value is not None:
        g = stages.clip_value(g, clip_value)
    if l2:
        g = stages.l2(g, p, l2)
    if "toward" in extra:
        g = stages.toward(g, p, state["initial"], extra["toward"])
    if l1:
        g = stages.l1(g, p, l1)
    if "toward_decoupled" in extra:
        stages.pull(p, state["initial"], lr, extra["toward_decoupled"])
    if decay:
        stages.decay(p, lr, decay)
    RULES[rule](p, g, state, t, lr=lr, **hyper)
    if "proximal_l1" in extra:
        stages.soft_threshold(p, lr, extra["proximal_l1"], extra.get("proximal_l2", 0.0))
    for weight, axis in extra.get("group_lasso", []):
        stages.group_lasso(p, lr, weight, axis)
    for limit, axis in extra.get("max_norm", []):
        stages.max_norm(p, limit, axis)
    if ema is not None:
        stages.ema(state["ema"], p, ema)
