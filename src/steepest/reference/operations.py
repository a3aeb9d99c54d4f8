"""The prologue operations, which change the gradient before the rule, and the epilogue operations,
which change the parameter after it."""

import math

import numpy as np

from steepest.reference.reductions import added, squares
from steepest.reference.reductions import unit_norm as norm_of
from steepest.reference.types import Array

BEFORE = ("decoupled", "independent", "lr_relative", "corrected", "palm")
AFTER = ("decoupled_after", "proximal")
"""The modes of weight decay that shrink the parameter, before the rule or after it."""


def scale(g: Array, factor: float) -> Array:
    real = g.dtype.type
    scaled: Array = real(factor) * g
    return scaled


def clip_value(g: Array, limit: float) -> Array:
    """Each element limited to [-limit, limit]; NaN stays NaN."""
    real = g.dtype.type
    return np.where(g > real(limit), real(limit), np.where(g < -real(limit), -real(limit), g))


def l2(g: Array, p: Array, weight: float) -> Array:
    """The gradient of weight/2 · ‖p‖² added."""
    real = g.dtype.type
    added: Array = g + real(weight) * p
    return added


def l1(g: Array, p: Array, weight: float) -> Array:
    """A subgradient of weight · ‖p‖₁ added: 0 where p is 0."""
    real = g.dtype.type
    added: Array = g + real(weight) * np.sign(p)
    return added


def toward(g: Array, p: Array, initial: Array, weight: float) -> Array:
    """The gradient of weight/2 · ‖p - initial‖² added."""
    real = g.dtype.type
    added: Array = g + real(weight) * (p - initial)
    return added


def shrink(p: Array, factor: float) -> None:
    """Decoupled decay: the parameter times a decay factor."""
    p[...] = p.dtype.type(factor) * p


def decayed(mode: str, weight_decay: float, lr: float, peak_lr: float | None) -> float:
    """The share of the parameter that decays in a step."""
    if mode == "independent":
        return weight_decay
    if lr == 0.0 or weight_decay == 0.0:
        return 0.0
    if mode == "lr_relative":
        assert peak_lr is not None
        return weight_decay * (lr / peak_lr)
    if mode == "corrected":
        assert peak_lr is not None
        return weight_decay * (lr * (lr / peak_lr))
    if mode == "palm":
        return weight_decay * (lr * lr)
    return weight_decay * lr


def cautious(p: Array, aside: Array, against: float, along: float) -> None:
    """Decay of the elements that the rule does not move away from 0: p is what it adds to them."""
    real = p.dtype.type
    away = np.where(aside > 0, p, -p)
    p[...] = np.where(away <= 0, real(along), real(against)) * aside + p


def pull(p: Array, initial: Array, lr: float, weight: float) -> None:
    """Decoupled decay toward the initial point."""
    real = p.dtype.type
    p[...] = real(1.0 - lr * weight) * p + real(lr * weight) * initial


def soft_threshold(p: Array, lr: float, l1: float, l2: float) -> None:
    """The proximal step of l1 · ‖p‖₁ + l2/2 · ‖p‖²."""
    real = p.dtype.type
    rest = np.abs(p) - real(lr * l1)
    factor = real(1.0 / (1.0 + lr * l2))
    p[...] = np.where(rest < 0, real(0), factor * (rest * np.sign(p)))


def group_lasso(p: Array, lr: float, weight: float, axis: int | None) -> None:
    """The proximal step of weight · Σ √n ‖u‖₂ over the units u of n elements."""
    for u in units(p, axis):
        norm = norm_of(u)
        limit = lr * weight * math.sqrt(u.size)
        factor = 1.0 if norm != norm else 0.0 if norm <= limit else 1.0 - limit / norm
        if factor != 1.0:
            u[...] = p.dtype.type(factor) * u


def max_norm(p: Array, limit: float, axis: int | None) -> None:
    """Units longer than the limit scaled down to it."""
    for u in units(p, axis):
        norm = norm_of(u)
        if norm > limit:
            u[...] = p.dtype.type(limit / norm) * u


def adaptive(
    g: Array, p: Array, limit: float, eps: float, axis: int | None, raw: Array, factor: float
) -> Array:
    """Units of g scaled down to limit · max(‖p_u‖, eps); g is factor · raw, and its norms are
    those of raw times |factor|."""
    clipped = np.array(g)
    for u, of_raw, of_p in zip(units(clipped, axis), units(raw, axis), units(p, axis), strict=True):
        norm = norm_of(of_p)
        most = limit * (eps if norm < eps else norm)
        norm = abs(factor) * norm_of(of_raw)
        u[...] = u.dtype.type(most / max(norm, 1e-6) if norm > most else 1.0) * u
    return clipped


def centralize(g: Array, axis: int | None, raw: Array, factor: float) -> Array:
    """The mean of each unit subtracted; g is factor · raw, and its means those of raw times it."""
    if g.ndim < 2:
        return g
    centred = np.array(g)
    for u, of_raw in zip(units(centred, axis), units(raw, axis), strict=True):
        with np.errstate(over="ignore", invalid="ignore"):
            mean = added(of_raw.astype(np.float64).ravel()) / of_raw.size
        u[...] = u - u.dtype.type(factor * mean)
    return centred


def mars(g: Array, last: Array, gamma: float, beta: float, max_norm: float) -> Array:
    """The change since the last gradient added, and the norm of the sum limited to max_norm."""
    real = g.dtype.type
    corrected: Array = real(gamma * (beta / (1.0 - beta))) * (g - last) + g
    last[...] = g
    norm = math.sqrt(squares(corrected))
    held = max_norm / norm if norm > max_norm else 1.0
    corrected *= real(held)
    return corrected


def agree(p: Array, g: Array, aside: Array, decay_factor: float) -> None:
    """p, what the rule adds to `aside`, where that is against the gradient, scaled by the inverse
    of the share of such elements."""
    real = p.dtype.type
    agrees = p * g < 0
    share = np.count_nonzero(agrees) / p.size if p.size else 1.0
    scaled = real(1.0 / max(share, 1e-3)) * p
    p[...] = real(decay_factor) * aside + np.where(agrees, scaled, real(0))


def grokfast(g: Array, mean: Array, alpha: float, lamb: float) -> Array:
    """The running mean of the gradient, NaN before there is one, added to it."""
    real = g.dtype.type
    mean[...] = np.where(np.isnan(mean), g, real(alpha) * mean + real(1.0 - alpha) * g)
    amplified: Array = g + real(lamb) * mean
    return amplified


def hide(g: Array, mask: Array) -> Array:
    """0 where the mask is."""
    return np.where(mask == 0, g.dtype.type(0), g)


def zero(p: Array, mask: Array) -> None:
    """Elements whose mask is 0 become 0."""
    p[...] = np.where(mask == 0, p.dtype.type(0), p)


def box(p: Array, low: float, high: float) -> None:
    """Each element limited to [low, high]; NaN stays NaN."""
    real = p.dtype.type
    p[...] = np.where(p < real(low), real(low), np.where(p > real(high), real(high), p))


def unit_norm(p: Array, axis: int | None) -> None:
    """Units divided by their norms, in double."""
    for u in units(p, axis):
        norm = norm_of(u)
        if 0 < norm < math.inf:
            u[...] = u.astype(np.float64) / norm


def simplex(p: Array, total: float, axis: int | None) -> None:
    """Units projected onto the simplex of a sum by Michelot's algorithm, in double: the
    threshold is below the largest element by at most the total; the elements above a lower bound of
    it give a better bound, until these are the same elements."""
    for u in units(p, axis):
        x = u.astype(np.float64)
        if not np.isfinite(x).all():
            continue
        top = x.max()
        x = x - top
        rest = -total
        above = x > rest
        while True:
            better = (added(np.where(above, x, 0.0).ravel()) - total) / np.count_nonzero(above)
            if not better > rest:
                break
            rest = better
            count, above = np.count_nonzero(above), x > rest
            if np.count_nonzero(above) == count:
                break
        u[...] = np.where(x - rest > 0, x - rest, 0.0)


def units(x: Array, axis: int | None) -> list[Array]:
    """Views of the part of x at each index along the axis, or of all of x if it is one unit."""
    if x.size == 0:
        return []
    return [x] if axis is None or x.ndim < 2 else list(np.moveaxis(x, axis, 0))


def ema(shadow: Array, p: Array, rate: float) -> None:
    """The exponential moving average of the parameter."""
    real = p.dtype.type
    shadow[...] = real(rate) * shadow + real(1.0 - rate) * p


def lookahead(slow: Array, p: Array, t: int, k: int, alpha: float) -> None:
    """At every k-th step the slow weights move toward the parameter, which is then set to them."""
    if t % k == 0:
        slow[...] = slow + p.dtype.type(alpha) * (p - slow)
        p[...] = slow


def tail(average: Array, p: Array, t: int, start: int, every: int) -> None:
    """The mean of the parameter after each `every`-th step beyond `start`."""
    if t > start and (t - start) % every == 0:
        n = (t - start) // every
        average[...] = p if n == 1 else average + p.dtype.type(1.0 / n) * (p - average)
