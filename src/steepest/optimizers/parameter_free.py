"""Rules that find their own rate from sums over all parameters: DoG."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

from steepest.arrays import Array
from steepest.optimizers.averaged import copy_of
from steepest.optimizers.base import Number, Optimizer, Options
from steepest.optimizers.hyper import Range

__all__ = ["DoG"]


class DoG(Optimizer):
    """DoG, distance over gradients: gradient descent that finds its own rate.

        r ← max(r, ‖p - x0‖),  r = reps_rel · (1 + ‖x0‖) at first
        G ← G + ‖g‖²
        p ← p - lr · r / √(G + eps) · g

    The norms are those of all parameters together, x0 is where they began. r and G are in each of
    ``param_groups`` as ``"rbar"`` and ``"sum_squares"``. Raises ValueError for hyper-parameters out
    of range.

    >>> import numpy as np, steepest as st
    >>> w = np.array([1.0, -2.0])
    >>> opt = st.DoG(w, reps_rel=0.1, eps=0.0)
    >>> opt.step(np.array([3.0, -4.0]))
    >>> w.round(4), round(opt.param_groups[0]["rbar"], 4)
    (array([ 0.8058, -1.7411]), 0.3236)

    Ivgi et al. 2023, arXiv:2302.12022; defaults as the authors' package dog.
    """

    needs = "global"
    read_only = ("x0",)
    ranges: ClassVar[Mapping[str, Range]] = {
        "rbar": (0.0, math.inf, False),
        "sum_squares": (0.0, math.inf, False),
    }

    def __init__(
        self,
        params: Any,
        lr: Number = 1.0,
        reps_rel: Number = 1e-6,
        weight_decay: Number = 0.0,
        eps: Number = 1e-8,
        **options: Unpack[Options],
    ) -> None:
        hyper = {"lr": lr, "reps_rel": reps_rel, "weight_decay": weight_decay, "eps": eps}
        super().__init__(params, hyper, options)

    def states(self, h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("x0",)

    def shared(self, h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("rbar", "sum_squares")

    def initial(self, key: str, p: Array, h: Mapping[str, Any]) -> Array:
        return copy_of(p)

    def coefficients(self, h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        return "dog", (h["lr"], h["eps"], h["reps_rel"])
