"""Muon and NorMuon, with AdamW in the same optimizer for what is not a matrix."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np

from steepest.core.hyper_parameters import Check, Choice, Eps, Factor, Flag, Range, Rate, Weight
from steepest.core.optimizer import KW_ONLY, Argument
from steepest.core.selection import VECTORS, RuleTable, Selection
from steepest.extras import require
from steepest.matrix import muon, newton_schulz
from steepest.memory.arrays import Array
from steepest.optimizers import bfloat16
from steepest.optimizers.adam import AdamW
from steepest.optimizers.matrix_rule import MatrixRule

__all__ = ["Muon", "NorMuon"]

ADAMW: dict[str, Any] = {"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-10, "weight_decay": 0.0}
"""The AdamW beside Muon: the defaults of its authors."""


class Triples(Check):
    """The coefficients of the iteration: a name, one triple or several.

    "ns_coefficients", [3, -3.2, 1.2], None)
    (3.0, -3.2, 1.2)
    """

    def check(self, value: Any, owner: str, name: str) -> Any:
        if isinstance(value, str):
            return Choice(("jordan", "polar_express")).check(value, owner, name)
        try:
            if np.iscomplexobj(value):
                raise TypeError
            newton_schulz.schedule(value, 1)
            table = np.asarray(value, np.float64)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(
                f"{name} = {value!r}: expected 'jordan', 'polar_express', three finite numbers, or "
                "a list of such"
            ) from None
        return tuple(table.tolist()) if table.ndim == 1 else tuple(map(tuple, table.tolist()))


Coefficients = Annotated[str | Sequence[float] | Sequence[Sequence[float]], Triples()]
Steps = Annotated[int, Range(int, 0, 99)]
Adjustment = Annotated[
    str | None, Choice((None, "original", "match_rms_adamw", "spectral_unclamped"))
]
Precision = Annotated[str | None, Choice((None, "bfloat16"))]


def iteration(h: Mapping[str, Any]) -> Callable[..., Array]:
    """The function that brings singular values near 1."""
    return newton_schulz.orthogonalize if h["ns_dtype"] is None else bfloat16.orthogonalize


class WithAdamW(MatrixRule, registered=False):
    """A rule for matrices, and AdamW for everything else in the same optimizer."""

    least_axes = 2
    beside_rules = ("adamw",)

    @staticmethod
    def idle(h: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
        found: dict[str, tuple[str, Any]] = {}
        if h["momentum"] == 0:
            found["nesterov"] = "without momentum", False
        if h["ns_steps"] == 0 and h["ns_coefficients"] != "polar_express":  # which has a margin
            found["ns_coefficients"] = "with ns_steps=0", newton_schulz.JORDAN
        return found

    @staticmethod
    def check(h: Mapping[str, Any]) -> None:
        if h["ns_dtype"] is not None:
            require("torch", extra="torch", purpose=f"ns_dtype={h['ns_dtype']!r}")

    @staticmethod
    def selection(given: Mapping[str, Any]) -> Selection:
        adamw, patterns = given.get("adamw"), given.get("adamw_for", ())
        if adamw is not None and not isinstance(adamw, Mapping):
            raise TypeError(f"adamw = {adamw!r}: expected a dict of AdamW's hyper-parameters")
        patterns = [patterns] if isinstance(patterns, str) else patterns
        if not isinstance(patterns, (tuple, list)) or not all(isinstance(x, str) for x in patterns):
            raise TypeError(f"adamw_for = {patterns!r}: expected patterns of names")
        chosen = {"rule": "adamw", **ADAMW, **(adamw or {})}
        names = list(AdamW.checks)
        unknown = [key for key in adamw or {} if key not in names]
        if unknown:
            raise ValueError(
                f"adamw: there is no hyper-parameter {unknown[0]!r}; there are {', '.join(names)}"
            )
        table = dict.fromkeys((VECTORS, *patterns), chosen)
        return RuleTable(table, given, rest=True)


class Muon(WithAdamW):
    """Muon: momentum whose singular values are all brought near 1; AdamW for vectors.

        m ← momentum · m + (1 - momentum) · g
        u = momentum · m + (1 - momentum) · g  with nesterov, else m
        p ← (1 - lr · weight_decay) · p - lr · factor · NS(u / max(‖u‖, eps))

    NS is ns_steps rounds of X ← (aI + bA + cA²) X, A = XXᵀ, in p's type; ``ns_dtype="bfloat16"``
    runs them in bfloat16 as torch.optim.Muon does, with PyTorch's matrix products: less exact, and
    faster where the processor multiplies bfloat16. ns_coefficients are three numbers, a list of
    such, one for each round (the last is repeated), ``"jordan"`` or ``"polar_express"``. For r rows
    and c columns the factor is √max(1, r/c), or 0.2 √max(r, c) with adjust_lr_fn
    ``"match_rms_adamw"``, for AdamW's rates, or √(r/c) with ``"spectral_unclamped"``. A parameter
    of more than two axes, such as the weight of a convolution, is a matrix of its first axis times
    all others.

    What has fewer than two axes, and what has a name like one of ``adamw_for`` (embeddings, heads),
    uses AdamW with the hyper-parameters ``adamw``, a dict; what it leaves out is that of Muon's
    authors: lr 3e-4, betas (0.9, 0.95), eps 1e-10, weight_decay 0. These are groups of their own,
    with the key ``"rule"``; a group that is given with that key uses that rule. What a group says
    that has no matrices (lr, betas) stands before ``adamw``. momentum is in [0, 1), ns_steps a
    whole number below 100. Bits repeat on one machine; see docs/matrix-rules.md.

    Raises ValueError for hyper-parameters out of range, nesterov without momentum, and patterns
    that fit no parameter.

    >>> import numpy as np, steepest as st
    >>> params = {"w": np.zeros((2, 2)), "b": np.zeros(2)}
    >>> opt = st.Muon(params, lr=0.5, adamw={"lr": 0.25})
    >>> opt.step({"w": np.diag([4.0, 3.0]), "b": np.array([2.0, -2.0])})
    >>> params["w"].diagonal().round(3)
    array([-0.56 , -0.361])
    >>> params["b"].round(3)
    array([-0.25,  0.25])

    Jordan et al. 2024, kellerjordan.github.io/posts/muon; formula and defaults as torch.optim.Muon;
    factors: Liu et al. 2025, arXiv:2502.16982; polar_express: Amsel et al. 2025, arXiv:2505.16932.
    """

    decay_mode = "decoupled"

    lr: Rate = 1e-3
    weight_decay: Weight = 0.1
    momentum: Factor = 0.95
    nesterov: Flag = True
    ns_coefficients: Coefficients = newton_schulz.JORDAN
    eps: Eps = 1e-7
    ns_steps: Steps = 5
    adjust_lr_fn: Adjustment = None
    _: KW_ONLY
    ns_dtype: Precision = None
    adamw: Argument[Mapping[str, Any] | None] = None
    adamw_for: Argument[str | Sequence[str]] = ()

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",)

    @staticmethod
    def begun(shape: tuple[int, ...], dtype: Any, h: Mapping[str, Any]) -> dict[str, Array]:
        return muon.initial_states(shape, dtype)

    @staticmethod
    def direction(
        name: str, g: Array, state: Mapping[str, Array], t: int, h: Mapping[str, Any]
    ) -> tuple[Array, dict[str, Array]]:
        names = ("momentum", "nesterov", "eps", "ns_steps", "adjust_lr_fn")
        own = {key: h[key] for key in names} | {"iterate": iteration(h)}
        return muon.direction(g, dict(state), t, coefficients=h["ns_coefficients"], **own)


class NorMuon(WithAdamW):
    """NorMuon: Muon with the rows of its direction brought to like sizes; AdamW for vectors.

        o = NS(u / max(‖u‖, ns_eps))                  u and NS as in Muon
        vᵢ ← beta2 · vᵢ + (1 - beta2) · mean oᵢⱼ²     i the row
        ôᵢⱼ = oᵢⱼ / (√vᵢ + eps)
        p ← (1 - lr · weight_decay) · p - lr · factor · ô / (‖ô‖ + eps)

    For r rows and c columns the factor is √max(1, r/c) ‖o‖, which keeps the length of Muon's step,
    as in the authors' code; with adjust_lr_fn ``"spectral_unclamped"`` it is √(r/c) ‖o‖, and with
    ``"match_rms_adamw"`` 0.2 √(r c), as in the paper. ``adamw``, ``adamw_for`` and all else as in
    Muon; momentum and beta2 are in [0, 1). Raises ValueError for hyper-parameters out of range,
    nesterov without momentum, and patterns that fit no parameter.

    >>> import numpy as np, steepest as st
    >>> w = np.zeros((2, 2))
    >>> st.NorMuon(w, lr=0.5).step(np.diag([4.0, 3.0]))
    >>> w.diagonal().round(3)
    array([-0.471, -0.471])

    Li et al. 2025, arXiv:2510.05491, algorithm 1; factor and defaults as the authors' code.
    """

    decay_mode = "decoupled"

    lr: Rate = 0.02
    weight_decay: Weight = 0.0
    momentum: Factor = 0.95
    beta2: Factor = 0.95
    nesterov: Flag = True
    ns_coefficients: Coefficients = newton_schulz.JORDAN
    eps: Eps = 1e-10
    ns_eps: Eps = 1e-7
    ns_steps: Steps = 5
    adjust_lr_fn: Adjustment = None
    _: KW_ONLY
    ns_dtype: Precision = None
    adamw: Argument[Mapping[str, Any] | None] = None
    adamw_for: Argument[str | Sequence[str]] = ()

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer", "second_momentum_buffer")

    @staticmethod
    def begun(shape: tuple[int, ...], dtype: Any, h: Mapping[str, Any]) -> dict[str, Array]:
        return muon.normuon_states(shape, dtype)

    @staticmethod
    def direction(
        name: str, g: Array, state: Mapping[str, Array], t: int, h: Mapping[str, Any]
    ) -> tuple[Array, dict[str, Array]]:
        names = ("momentum", "beta2", "nesterov", "eps", "ns_eps", "ns_steps", "adjust_lr_fn")
        own = {key: h[key] for key in names} | {"iterate": iteration(h)}
        return muon.normuon_direction(g, dict(state), t, coefficients=h["ns_coefficients"], **own)
