"""Regularisation around the rule: L1, L2, decoupled decay; and the averaged shadow.

A stage is (name in ``kernels.stages``, coefficients, number of its own array or 0).
"""

from collections.abc import Mapping
from typing import Any

Stage = tuple[str, tuple[float, ...], int]

DECAY_MODES = ("l2", "decoupled")


def before(h: Mapping[str, Any]) -> list[Stage]:
    """The stages in front of the rule for the hyper-parameters h, in this order.

    l2:  g ← g + weight_decay · p
    l1:  g ← g + l1 · sign(p)
    """
    stages: list[Stage] = []
    if h["weight_decay"] and h["decay_mode"] == "l2":
        stages.append(("l2", (h["weight_decay"],), 0))
    if h["l1"]:
        stages.append(("l1", (h["l1"],), 0))
    return stages


def keep(h: Mapping[str, Any]) -> float:
    """What decoupled decay leaves of the parameter: p ← (1 - lr · weight_decay) · p."""
    decoupled = h["weight_decay"] and h["decay_mode"] == "decoupled"
    return 1.0 - h["lr"] * h["weight_decay"] if decoupled else 1.0


def after(h: Mapping[str, Any], operand: int) -> list[Stage]:
    """The stages behind the rule: ema ← decay · ema + (1 - decay) · p, kept in `operand`."""
    return [("ema", (h["ema"], 1.0 - h["ema"]), operand)] if h["ema"] is not None else []
