"""The specification: every rule in plain NumPy, written to be read.

A function here takes hyper-parameters and t, not prepared coefficients, and changes the parameter
and its state in place. The compiled kernels equal it to the last bit, which is why the order of
the operations and the roundings matter: scalars are computed in double and rounded once, by
``real``, to the parameter's type; everything else happens in that type.

``step`` is all that an optimizer does to one parameter; ``norm`` is what clipping measures.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from steepest.reference import adam, adam_variants, adaptive, averaged, sgd, sign, stages
from steepest.reference.measures import norm as norm
from steepest.reference.types import Array, State

__all__ = ["RULES", "norm", "step"]

# Every function of a family that takes (p, g, state, t, ...) is a rule.
RULES: dict[str, Callable[..., None]] = {
    name: function
    for family in (sgd, adaptive, adam, adam_variants, sign, averaged)
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
    regularize: Sequence[Any] = (),
    filter: Sequence[Any] = (),
    clip: Any = None,
    factor: float = 1.0,
    count: int | None = None,
    **hyper: Any,
) -> None:
    """The t-th step (from 1) of one parameter, with everything around the rule.

    Hyper-parameters are as in an optimizer's group. `factor` scales the gradient; it is what
    clipping by norms computed, from all gradients, while `clip` does here what it does to single
    elements and units. `regularize` and `filter` are sequences of penalties and filters; all are
    evaluated after `count` updates (t - 1 unless given). The gradient is not changed.
    """
    count = t - 1 if count is None else count
    extra: dict[str, Any] = {}
    for penalty in regularize:
        for kind, weight in penalty.terms(count).items():
            extra[kind] = extra[kind] + weight if kind in extra else weight
    factor = -factor if maximize else factor
    l2 = (weight_decay if decay_mode == "l2" else 0.0) + extra.get("l2", 0.0)
    l1 += extra.get("l1", 0.0)
    decay = (0.0 if decay_mode == "l2" else weight_decay) + extra.get("decoupled", 0.0)
    raw = g
    if factor != 1.0:
        g = stages.scale(g, factor)
    filters = {type(f).__name__: f for f in filter}
    if "centralize" in filters:
        g = stages.centralize(g, filters["centralize"].axis, raw, factor)
    for c in clip if isinstance(clip, tuple) else (clip,):
        if type(c).__name__ == "adaptive":
            limit, eps = c.at("limit", count), c.at("eps", count)
            g = stages.adaptive(g, p, limit, eps, c.axis, raw, factor)
        elif type(c).__name__ == "value":
            g = stages.clip_value(g, c.at("limit", count))
    if "grokfast" in filters:
        f = filters["grokfast"]
        g = stages.grokfast(g, state["grokfast"], f.at("alpha", count), f.at("lamb", count))
    if l2:
        g = stages.l2(g, p, l2)
    if "toward" in extra:
        g = stages.toward(g, p, state["initial"], extra["toward"])
    if l1:
        g = stages.l1(g, p, l1)
    if "toward_decoupled" in extra:
        stages.pull(p, state["initial"], lr, extra["toward_decoupled"])
    if "mask" in filters:
        g = stages.hide(g, state["mask"])
    function = RULES[rule]
    if "keep" in inspect.signature(function).parameters:  # a rule with a decay of its own
        hyper["keep"] = 1.0 - lr * decay if decay else 1.0
    elif decay:
        stages.decay(p, lr, decay)
    function(p, g, state, t, lr=lr, **hyper)
    if "mask" in filters:
        stages.zero(p, state["mask"])
    if "proximal_l1" in extra:
        stages.soft_threshold(p, lr, extra["proximal_l1"], extra.get("proximal_l2", 0.0))
    for low, high in extra.get("box", []):
        stages.box(p, low, high)
    for weight, axis in extra.get("group_lasso", []):
        stages.group_lasso(p, lr, weight, axis)
    for limit, axis in extra.get("max_norm", []):
        stages.max_norm(p, limit, axis)
    for _, axis in extra.get("unit_norm", []):
        stages.unit_norm(p, axis)
    for total, axis in extra.get("simplex", []):
        stages.simplex(p, total, axis)
    if "mask" in filters:
        stages.zero(p, state["mask"])
    if ema is not None:
        stages.ema(state["ema"], p, ema)
