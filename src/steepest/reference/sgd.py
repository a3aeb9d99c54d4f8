"""Gradient descent, with momentum and Nesterov's."""

from steepest.reference.types import Array, State


def sgd(
    p: Array, g: Array, state: State, t: int, *,
    lr: float, momentum: float, dampening: float, nesterov: bool, convention: str = "torch",
) -> None:  # fmt: skip
    """Gradient descent."""
    real = p.dtype.type
    if "momentum_buffer" not in state:
        p[...] = p - real(lr) * g
        return
    v = state["momentum_buffer"]
    if convention in ("keras", "paper"):
        change = real(lr) * g
        v[...] = real(momentum) * v + change
        p[...] = p - (change + real(momentum) * v if nesterov else v)
        return
    fresh = 1.0 if t == 1 else 1.0 - dampening
    v[...] = real(momentum) * v + real(fresh) * g
    direction = g + real(momentum) * v if nesterov else v
    p[...] = p - real(lr) * direction


def qhm(p: Array, g: Array, state: State, t: int, *, lr: float, momentum: float, nu: float) -> None:
    """Quasi-hyperbolic momentum."""
    real = p.dtype.type
    m = state["momentum_buffer"]
    m[...] = real(momentum) * m + real(1.0 - momentum) * g
    p[...] = p - (real(lr * (1.0 - nu)) * g + real(lr * nu) * m)
