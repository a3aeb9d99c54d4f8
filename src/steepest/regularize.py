"""Regularisation as stages around the rule: L1, L2, decoupled decay; and the averaged shadow.

A stage is (name in ``kernels.stages``, coefficients, number of its own array or 0).
"""

from collections.abc import Mapping
from typing import Any

Stage = tuple[str, tuple[float, ...], int]

DECAY_MODES = ("l2", "decoupled")


def before(h: Mapping[str, Any]) -> list[Stage]:
    """The stages in front of the rule for the hyper-parameters h, in this order.

    l2:         g ← g + weight_decay · p
    l1:         g ← g + l1 · sign(p)
    decoupled:  p ← (1 - lr · weight_decay) · p
    """
    stages: list[Stage] = []
    decay = h["weight_decay"]
    if decay and h["decay_mode"] == "l2":
        stages.append(("l2", (decay,), 0))
    if h["l1"]:
        stages.append(("l1", (h["l1"],), 0))
    if decay and h["decay_mode"] == "decoupled":
        stages.append(("decay", (1.0 - h["lr"] * decay,), 0))
    return stages


def after(h: Mapping[str, Any], operand: int) -> list[Stage]:
    """The stages behind the rule: ema ← decay · ema + (1 - decay) · p, kept in `operand`."""
    return [("ema", (h["ema"], 1.0 - h["ema"]), operand)] if h["ema"] is not None else []
