"""Rules that estimate their learning rate. The global ones take lists of all parameters."""

import math
from collections.abc import Iterable, Iterator
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from steepest.reference.adam import one_minus_power
from steepest.reference.reductions import magnitudes, products, squares
from steepest.reference.stored import next_pass
from steepest.reference.types import Array, State


def larger(x: float, y: float) -> float:
    """The larger of two; NaN if either is NaN."""
    return x if y <= x or math.isnan(x) else y


def added(terms: Iterable[float]) -> float:
    """The sum, one term after the other; the built-in ``sum`` compensates from Python 3.12 on."""
    return reduce(add, terms, 0.0)


def descend(params: list[Array], grads: list[Array], rate: float, decay: float) -> None:
    for p, g in zip(params, grads, strict=True):
        real = p.dtype.type
        p[...] = real(1.0 - rate * decay) * p - real(rate) * g


def distance(params: list[Array], states: list[State]) -> float:
    """The squared distance from where the parameters began."""
    return added(squares(p - s["x0"]) for p, s in zip(params, states, strict=True))


def dog(
    params: list[Array], grads: list[Array], states: list[State], steps: list[int], *,
    shared: dict[str, Any], lr: float, reps_rel: float, eps: float, decay: float,
) -> None:  # fmt: skip
    """DoG."""
    if shared["rbar"] == 0.0:
        shared["rbar"] = reps_rel * (1.0 + math.sqrt(added(squares(p) for p in params)))
    shared["rbar"] = larger(shared["rbar"], math.sqrt(distance(params, states)))
    shared["sum_squares"] += added(squares(g) for g in grads)
    divisor = math.sqrt(shared["sum_squares"] + eps)
    descend(params, grads, lr * shared["rbar"] / divisor if divisor else 0.0, decay)


def ldog(
    p: Array, g: Array, state: State, t: int, *,
    lr: float, reps_rel: float, eps: float, decay: float,
) -> None:  # fmt: skip
    """LDoG: DoG for a parameter alone."""
    own = {key: float(state[key]) for key in ("rbar", "sum_squares")}
    dog([p], [g], [state], [t], shared=own, lr=lr, reps_rel=reps_rel, eps=eps, decay=decay)
    for key, x in own.items():
        state[key][...] = x


def dowg(
    params: list[Array], grads: list[Array], states: list[State], steps: list[int], *,
    shared: dict[str, Any], lr: float, init_estim_sq_dist: float | None, eps: float, decay: float,
) -> None:  # fmt: skip
    """DoWG; `shared` begins with the first distance."""
    far = larger(shared["estim_sq_dist"], distance(params, states))
    shared["estim_sq_dist"] = far
    shared["weighted_sq_norm_grads"] += far * added(squares(g) for g in grads)
    divisor = math.sqrt(shared["weighted_sq_norm_grads"]) + eps
    descend(params, grads, lr * far / divisor if divisor else 0.0, decay)


Each = Iterator[tuple[Array, Array, State, float]]


def unbiased(
    params: list[Array], grads: list[Array], states: list[State], steps: list[int],
    lr: float | list[float], betas: tuple[float, float], use_bias_correction: bool, d: float,
) -> Each:  # fmt: skip
    """Every parameter, gradient and state, and d times lr with Adam's correction."""
    rates = lr if isinstance(lr, list) else [lr] * len(params)
    for p, g, state, t, rate in zip(params, grads, states, steps, rates, strict=True):
        if use_bias_correction:
            rest = math.sqrt(one_minus_power(betas[1], t))
            rate = rate * (rest / one_minus_power(betas[0], t))
        yield p, g, state, rate * d


def prodigy(
    params: list[Array], grads: list[Array], states: list[State], steps: list[int], *,
    shared: dict[str, Any], lr: float | list[float], betas: tuple[float, float],
    beta3: float | None, eps: float, use_bias_correction: bool, safeguard_warmup: bool, d0: float,
    d_coef: float, growth_rate: float, decay: float,
) -> None:  # fmt: skip
    """Prodigy; `lr` may be a list of the parameters' own."""
    b1, b2 = betas
    b3 = math.sqrt(b2) if beta3 is None else beta3
    d = shared["d"]
    every = list(unbiased(params, grads, states, steps, lr, betas, use_bias_correction, d))
    numerator = denominator = 0.0
    for p, g, state, step in every:
        real = p.dtype.type
        m, v, s = state["exp_avg"], state["exp_avg_sq"], state["s"]
        weight = d / d0 * step
        fresh = d / d0 * d if safeguard_warmup and step != 0.0 else weight
        m[...] = real(b1) * m + real((1.0 - b1) * d) * g
        v[...] = real(b2) * v + real((1.0 - b2) * (d * d)) * (g * g)
        s[...] = real(b3) * s + real(fresh) * g
        numerator += products(real(weight) * g, state["p0"] - p)
        denominator += magnitudes(s)
        next_pass(state, "exp_avg", "exp_avg_sq", "s")
    shared["d_numerator"] = b3 * shared["d_numerator"] + numerator
    if denominator != 0.0:
        found = d_coef * shared["d_numerator"] / denominator
        if d == d0:
            d = max(d, found)
        shared["d_max"] = max(shared["d_max"], found)
        d = shared["d"] = min(shared["d_max"], d * growth_rate)
    for p, _, state, step in every:
        real = p.dtype.type
        divisor = np.sqrt(state["exp_avg_sq"]) + real(d * eps)
        p[...] = real(1.0 - step * decay) * p - real(step) * state["exp_avg"] / divisor


def dadaptadam(
    params: list[Array], grads: list[Array], states: list[State], steps: list[int], *,
    shared: dict[str, Any], lr: float | list[float], betas: tuple[float, float], eps: float,
    use_bias_correction: bool, d0: float, growth_rate: float, decay: float,
) -> None:  # fmt: skip
    """D-Adapted Adam; `lr` may be a list of the parameters' own. `shared` begins with d0."""
    b1, b2 = betas
    b3 = math.sqrt(b2)
    d = shared["d"]
    every = list(unbiased(params, grads, states, steps, lr, betas, use_bias_correction, d))
    numerator = denominator = 0.0
    for p, g, state, step in every:
        real = p.dtype.type
        m, v, s = state["exp_avg"], state["exp_avg_sq"], state["s"]
        x = real(step) * g
        numerator += products(x, s / (np.sqrt(v) + real(eps)))
        m[...] = real(b1) * m + real(1.0 - b1) * x
        v[...] = real(b2) * v + real(1.0 - b2) * (g * g)
        s[...] = real(b3) * s + real(1.0 - b3) * x
        denominator += magnitudes(s)
        next_pass(state, "exp_avg", "exp_avg_sq", "s")
    shared["numerator_weighted"] = b3 * shared["numerator_weighted"] + (1.0 - b3) * numerator
    denominator = (1.0 - b3) * denominator
    if denominator != 0.0:
        found = shared["numerator_weighted"] / denominator
        shared["d"] = max(d, min(found, d * growth_rate))
    for p, _, state, step in every:
        real = p.dtype.type
        divisor = np.sqrt(state["exp_avg_sq"]) + real(eps)
        p[...] = real(1.0 - step * decay) * p - state["exp_avg"] / divisor
