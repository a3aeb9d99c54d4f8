"""Rules that average the points they pass."""

from steepest.reference.types import Array, State


def asgd(
    p: Array, g: Array, state: State, t: int, *, lr: float, lambd: float, alpha: float, t0: float
) -> None:
    """Averaged SGD. The rates are those of torch.optim.ASGD, which computes them a step before."""
    real = p.dtype.type
    eta = lr / (1.0 + lambd * lr * (t - 1)) ** alpha
    mu = 1.0 / max(1.0, t - 1 - t0)
    ax = state["ax"]
    p[...] = real(1.0 - lambd * eta) * p - real(eta) * g
    ax[...] = p if mu == 1.0 else ax + real(mu) * (p - ax)
