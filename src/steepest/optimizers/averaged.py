"""Rules that average the points they pass: ASGD."""

from collections.abc import Mapping
from typing import Any, Unpack

from steepest import arrays
from steepest.arrays import Array
from steepest.optimizers.base import Number, Optimizer, Options

__all__ = ["ASGD"]


def _copy(p: Array) -> Array:
    copy = arrays.zeros_like(p)
    copy[...] = p
    return copy


class ASGD(Optimizer):
    """Averaged SGD: gradient descent, and the mean of the points it passes after step t0.

        η = lr / (1 + lambd · lr · (t - 1))^alpha
        p ← (1 - lambd · η) · p - η · g
        ax ← ax + (p - ax) / max(1, t - 1 - t0)

    The mean ax is state ``"ax"`` and is what ``averaged`` gives; up to step t0 + 2 it is p. η is a
    function of t and of the present lr. Raises ValueError for hyper-parameters out of range.

    >>> import numpy as np, steepest as st
    >>> w = np.array([8.0])
    >>> opt = st.ASGD(w, lr=1.0, lambd=0.0, t0=0.0)
    >>> for _ in range(4):
    ...     opt.step(np.array([1.0]))
    >>> w, opt.averaged()["0"]
    (array([4.]), array([5.]))

    Polyak and Juditsky 1992; Xu 2011, arXiv:1107.2490; formula and defaults as torch.optim.ASGD.
    """

    def __init__(
        self,
        params: Any,
        lr: Number = 1e-2,
        lambd: Number = 1e-4,
        alpha: Number = 0.75,
        t0: Number = 1e6,
        weight_decay: Number = 0.0,
        **options: Unpack[Options],
    ) -> None:
        hyper = {
            "lr": lr,
            "lambd": lambd,
            "alpha": alpha,
            "t0": t0,
            "weight_decay": weight_decay,
        }
        super().__init__(params, hyper, options)

    def averaged(self) -> dict[str, Array]:
        """The mean points by the names of their parameters: copies, no parameter is changed."""
        return {name: _copy(state["ax"]) for name, state in self.state.items()}

    def states(self, h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("ax",)

    def initial(self, key: str, p: Array, h: Mapping[str, Any]) -> Array:
        return _copy(p)

    def coefficients(self, h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        eta = h["lr"] / (1.0 + h["lambd"] * h["lr"] * (t - 1)) ** h["alpha"]
        return "asgd", (eta, 1.0 - h["lambd"] * eta, 1.0 / max(1.0, t - 1 - h["t0"]))
