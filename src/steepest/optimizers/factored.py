"""Rules that go by the rows and columns of matrices: Adafactor."""

import math
from collections.abc import Mapping
from typing import Any, Literal, Unpack

from steepest.arrays import Array, Matrices
from steepest.optimizers.base import Number, Optimizer, Options

__all__ = ["Adafactor"]


class Adafactor(Optimizer):
    """Adafactor: RMSprop that keeps a row and a column of a matrix's second moments.

        r ← β r + (1 - β) · means of g² over rows;  c likewise over columns;  β = 1 - tᵏ
        u ← g / max(√(r c / max(mean r, eps₁)), eps₁)
        α ← max(eps₂, RMS(p)) · min(lr, 1/√t)
        p ← (1 - lr · weight_decay) · p - α · u / max(1, RMS(u) / d)

    with k = beta2_decay. A parameter of more than two dimensions is a batch of matrices over its
    last two; one of fewer keeps all its second moments. ``eps[0] = None`` is the type's own
    epsilon (1e-30 in the paper's form).

    ``form="paper"`` adds eps₁ to g² instead of bounding by it, and weight_decay is taken times α,
    as in Hugging Face Transformers. ``relative_step=False`` takes lr in place of min(lr, 1/√t), and
    ``warmup_init=True`` at most 1e-6 t; the paper's own steps are those of the default lr.
    ``scale_parameter=False`` leaves out max(eps₂, RMS(p)). `beta1` averages the steps. Raises
    ValueError for hyper-parameters out of range, or for ``warmup_init`` without ``relative_step``.

    >>> import numpy as np, steepest as st
    >>> w = np.array([[3.0, -4.0], [1.0, 0.0]])
    >>> st.Adafactor(w, lr=0.5).step(np.array([[0.25, -8.0], [0.5, 1.0]]))
    >>> w.round(4)
    array([[ 2.6144, -3.0245],
           [-0.0869, -0.1718]])

    Shazeer & Stern 2018, arXiv:1804.04235; form and defaults as torch.optim.Adafactor.
    """

    decay_mode = "decoupled"
    needs = "matrix"
    own_decay = True
    factors = 2
    counts = {"eps": 2}
    optional = frozenset({"eps", "beta1"})

    def __init__(
        self,
        params: Any,
        lr: Number = 1e-2,
        beta2_decay: Number = -0.8,
        eps: tuple[Number | None, Number] = (None, 1e-3),
        d: Number = 1.0,
        weight_decay: Number = 0.0,
        *,
        beta1: Number | None = None,
        form: Literal["torch", "paper"] = "torch",
        relative_step: bool = True,
        warmup_init: bool = False,
        scale_parameter: bool = True,
        **options: Unpack[Options],
    ) -> None:
        hyper = {
            "lr": lr,
            "beta2_decay": beta2_decay,
            "eps": eps,
            "d": d,
            "weight_decay": weight_decay,
            "beta1": beta1,
            "form": form,
            "relative_step": relative_step,
            "warmup_init": warmup_init,
            "scale_parameter": scale_parameter,
        }
        super().__init__(params, hyper, options)

    def check(self, h: Mapping[str, Any]) -> None:
        if h["warmup_init"] and not h["relative_step"]:
            raise ValueError("warmup_init has no effect without relative_step")
        if h["eps"][1] is None:
            raise ValueError("eps = (.., None): expected a number; only the first may be None")

    def states(self, h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("variance", *self.beside(h))

    def beside(self, h: Mapping[str, Any]) -> tuple[str, ...]:
        return () if h["beta1"] is None else ("exp_avg",)

    def matrices(self, p: Array, h: Mapping[str, Any]) -> Matrices | None:
        if p.ndim < 2:
            return None
        *batch, rows, columns = p.shape
        row, column = (*batch, rows, 1), (*batch, 1, columns)
        states = {"row_var": row, "col_var": column}
        return Matrices(math.prod(batch), rows, columns, (row, column), states)

    def coefficients(self, h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        paper = h["form"] == "paper"
        lr, eps1 = h["lr"], h["eps"][0]
        if eps1 is None:
            eps1 = 1e-30 if paper else -1.0
        w = t ** h["beta2_decay"]
        rho = min(lr, 1.0 / math.sqrt(t)) if h["relative_step"] else lr
        if h["warmup_init"]:
            rho = min(rho, 1e-6 * t)
        moments = (1.0 - w, w, eps1, float(paper), h["eps"][1], rho, h["d"])
        b1 = h["beta1"]
        numbers = (*moments, float(h["scale_parameter"]), h["decay"], lr, b1 or 0.0, 1.0 - (b1 or 0.0))
        vector = "" if h["by_rows"] else "_vector"
        return f"adafactor{vector}" + ("" if b1 is None else "_momentum"), numbers
