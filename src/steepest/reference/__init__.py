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

from steepest.reference import (
    adam,
    adam_variants,
    adaptive,
    averaged,
    factored,
    layerwise,
    parameter_free,
    sgd,
    sign,
    stages,
)
from steepest.reference.measures import norm as norm
from steepest.reference.types import Array, State

__all__ = ["RULES", "norm", "step"]

# Every function of a family that takes (p, g, state, t, ...) is a rule; one that goes by sums over
# all parameters takes lists of them.
RULES: dict[str, Callable[..., None]] = {
    name: function
    for family in (
        sgd,
        adaptive,
        adam,
        adam_variants,
        sign,
        averaged,
        layerwise,
        parameter_free,
        factored,
    )
    for name, function in vars(family).items()
    if inspect.isfunction(function)
    and list(inspect.signature(function).parameters)[:4]
    in (["p", "g", "state", "t"], ["params", "grads", "states", "steps"])
}


def step(
    rule: str,
    p: Any,
    g: Any,
    state: Any,
    t: Any,
    *,
    lr: float,
    weight_decay: float = 0.0,
    decay_mode: str = "l2",
    l1: float = 0.0,
    maximize: bool = False,
    ema: float | None = None,
    regularize: Sequence[Any] = (),
    clip: Any = None,
    factor: float = 1.0,
    count: int | None = None,
    **hyper: Any,
) -> None:
    """The t-th step (from 1) of one parameter, with everything around the rule.

    Hyper-parameters are as in an optimizer's group. `factor` scales the gradient; it is what
    clipping by norms computed, from all gradients, while `clip` does here what it does to single
    elements and units. `regularize` is a sequence of penalties, evaluated after `count` updates
    (t - 1 unless given). The gradient is not changed.

    A rule that goes by sums over all parameters takes lists of parameters, gradients, states and
    steps, and ``shared=``, the dict of the numbers that it keeps.
    """
    together = isinstance(p, list)
    if count is None:
        count = (t[0] if together else t) - 1
    extra: dict[str, Any] = {}
    for penalty in regularize:
        for kind, weight in penalty.terms(count).items():
            extra[kind] = extra[kind] + weight if kind in extra else weight
    factor = -factor if maximize else factor
    l2 = (weight_decay if decay_mode == "l2" else 0.0) + extra.get("l2", 0.0)
    l1 += extra.get("l1", 0.0)
    decay = (0.0 if decay_mode == "l2" else weight_decay) + extra.get("decoupled", 0.0)
    function = RULES[rule]
    takes = inspect.signature(function).parameters
    each = list(zip(p, g, state, strict=True)) if together else [(p, g, state)]
    staged = [before(x, y, z, lr, l2, l1, extra, clip, factor, count) for x, y, z in each]
    if "decay" in takes:  # a rule with a decay of its own,
        hyper["decay"] = decay
    elif "keep" in takes:  # which may be by what it leaves
        hyper["keep"] = 1.0 - lr * decay if decay else 1.0
    elif decay:
        for x, _, _ in each:
            stages.decay(x, lr, decay)
    function(p, staged if together else staged[0], state, t, lr=lr, **hyper)
    for x, _, z in each:
        after(x, z, lr, extra, ema)


def before(
    p: Array, g: Array, state: State, lr: float, l2: float, l1: float, extra: dict[str, Any],
    clip: Any, factor: float, count: int,
) -> Array:  # fmt: skip
    """The gradient as the rule gets it; draws p towards its beginning where that is asked for."""
    raw = g
    if factor != 1.0:
        g = stages.scale(g, factor)
    for c in clip if isinstance(clip, tuple) else (clip,):
        if type(c).__name__ == "adaptive":
            limit, eps = c.at("limit", count), c.at("eps", count)
            g = stages.adaptive(g, p, limit, eps, c.axis, raw, factor)
        elif type(c).__name__ == "value":
            g = stages.clip_value(g, c.at("limit", count))
    if l2:
        g = stages.l2(g, p, l2)
    if "toward" in extra:
        g = stages.toward(g, p, state["initial"], extra["toward"])
    if l1:
        g = stages.l1(g, p, l1)
    if "toward_decoupled" in extra:
        stages.pull(p, state["initial"], lr, extra["toward_decoupled"])
    return g


def after(p: Array, state: State, lr: float, extra: dict[str, Any], ema: float | None) -> None:
    """What is done to the parameter, and to arrays that follow it, after the rule."""
    if "proximal_l1" in extra:
        stages.soft_threshold(p, lr, extra["proximal_l1"], extra.get("proximal_l2", 0.0))
    for weight, axis in extra.get("group_lasso", []):
        stages.group_lasso(p, lr, weight, axis)
    for limit, axis in extra.get("max_norm", []):
        stages.max_norm(p, limit, axis)
    if ema is not None:
        stages.ema(state["ema"], p, ema)
