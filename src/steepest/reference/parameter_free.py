"""Rules that find their own rate from sums over all parameters, which are given as lists."""

import math
from typing import Any

from steepest.reference.measures import squares
from steepest.reference.types import Array, State


def dog(
    params: list[Array], grads: list[Array], states: list[State], steps: list[int], *,
    shared: dict[str, Any], lr: float, reps_rel: float, eps: float,
) -> None:  # fmt: skip
    """DoG."""
    if shared["rbar"] == 0.0:
        shared["rbar"] = reps_rel * (1.0 + math.sqrt(sum(squares(p) for p in params)))
    far = math.sqrt(sum(squares(p - s["x0"]) for p, s in zip(params, states, strict=True)))
    shared["rbar"] = shared["rbar"] if far <= shared["rbar"] else far
    shared["sum_squares"] += sum(squares(g) for g in grads)
    rate = lr * shared["rbar"] / math.sqrt(shared["sum_squares"] + eps)
    for p, g in zip(params, grads, strict=True):
        real = p.dtype.type
        p[...] = p - real(rate) * g
