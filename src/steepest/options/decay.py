"""The modes of ``weight_decay``, given to any optimizer as ``decay_mode=``.

With λ = weight_decay, lr the rate of the step, and peak the largest rate (``peak_lr``):

    l2                g ← g + λ · p                     in the gradient
    decoupled         p ← (1 - λ · lr) · p              before the rule
    independent       p ← (1 - λ) · p                   before the rule
    lr_relative       p ← (1 - λ · lr / peak) · p       before the rule
    corrected         p ← (1 - λ · lr² / peak) · p      before the rule
    palm              p ← (1 - λ · lr²) · p             before the rule
    cautious          p ← (1 - λ · lr) · p              where the rule moves p toward 0, or not
    decoupled_after   p ← (1 - λ · lr) · p              after the rule
    proximal          p ← p / (1 + λ · lr)              after the rule

The rate is ``lr`` itself, not that of a single element. peak is the group's lr when it was given to
the optimizer, unless ``peak_lr=`` says otherwise; where lr is a schedule, it has to.
"""

from collections.abc import Mapping
from typing import Any

from steepest.options.operations import Operation

__all__ = [
    "MODES", "NUMBERS", "check_additive", "check_cautious", "check_movable", "check_own",
    "check_peak", "epilogue", "factor", "prologue", "weight_in_rule", "with_peak",
]  # fmt: skip

MODES = (
    "l2", "decoupled", "decoupled_after", "independent", "lr_relative", "corrected", "palm",
    "cautious", "proximal",
)  # fmt: skip
"""Every mode; the first two are those of PyTorch."""

AFTER = ("decoupled_after", "proximal")
"""The modes that move the parameter after the rule."""
OWN = ("l2", "decoupled", *AFTER)
"""The modes of rules with decay in their own formula."""
PEAKED = ("lr_relative", "corrected")
"""The modes that use the largest rate."""
NUMBERS = frozenset({"lr", "weight_decay", "peak_lr"})
"""The numbers that ``factor`` and ``weight_in_rule`` depend on."""


def with_peak(h: Mapping[str, Any]) -> dict[str, Any]:
    """Hyper-parameters of a new group, with the present rate as the largest where none is given."""
    missing = h["decay_mode"] in PEAKED and h["peak_lr"] is None and not callable(h["lr"])
    return {**h, "peak_lr": h["lr"]} if missing else dict(h)


def check_peak(peak_lr: Any, modes: set[str]) -> None:
    """Raises ValueError for a peak_lr that is given to groups of which none has a use for it."""
    if peak_lr is not None and not modes & set(PEAKED):
        raise ValueError(
            f"peak_lr = {peak_lr!r} has no effect with decay_mode "
            f"{', '.join(map(repr, sorted(modes)))}; expected one of {', '.join(PEAKED)}"
        )


def check_movable(rule: str, h: Mapping[str, Any]) -> None:
    """Raises ValueError for options that move the parameter after a rule that computes its average
    from the parameter and its state."""
    if h["decay_mode"] in AFTER:
        raise ValueError(
            f"decay_mode = {h['decay_mode']!r}: {rule} cannot be moved after its step, its average "
            f"depends on it; expected one of {', '.join(m for m in MODES if m not in AFTER)}"
        )
    if h["lookahead"] is not None:
        raise ValueError(
            f"lookahead = {h['lookahead']!r}: {rule} cannot be moved after its step, and has an "
            "average of its own; expected None"
        )


def check_additive(rule: str, h: Mapping[str, Any]) -> None:
    """Raises ValueError for a mode that has to know what the rule adds to the parameter, with a
    rule that does something else."""
    if h["decay_mode"] == "cautious":
        raise ValueError(
            f"decay_mode = 'cautious': {rule} does not add a step to the parameter; "
            f"expected one of {', '.join(m for m in MODES if m != 'cautious')}"
        )


def check_cautious(rule: str, h: Mapping[str, Any], additive: bool) -> None:
    """Raises ValueError for ``cautious=True`` where it cannot be."""
    if not h["cautious"]:
        return
    if not additive:
        raise ValueError(f"cautious = True: {rule} does not add a step to the parameter")
    if h["decay_mode"] == "cautious":
        raise ValueError(
            "cautious = True and decay_mode = 'cautious': expected one of them; decoupled decay "
            "works with cautious updates"
        )


def check_own(rule: str, h: Mapping[str, Any]) -> None:
    """Raises ValueError for a mode that a rule with decay in its own formula does not have."""
    if h["decay_mode"] not in OWN:
        raise ValueError(
            f"decay_mode = {h['decay_mode']!r}: {rule} has decay in its own formula; "
            f"expected one of {', '.join(OWN)}"
        )


def weight_in_rule(h: Mapping[str, Any], decoupled: float) -> float:
    """The weight of the decay in a rule's own formula."""
    return float((h["weight_decay"] if h["decay_mode"] == "decoupled" else 0.0) + decoupled)


_NOT_BEFORE = ("l2", "cautious", *AFTER)
"""The modes that do not shrink the parameter before the rule."""


def factor(h: Mapping[str, Any], decoupled: float) -> float:
    """The decay factor, by which the parameter is multiplied before the rule; `decoupled` is the
    weight of penalties."""
    mode, lr = h["decay_mode"], h["lr"]
    if mode == "cautious" and h["weight_decay"]:
        return 1.0  # the parameter is set aside; ``epilogue`` does all
    weight = 0.0 if mode in _NOT_BEFORE else h["weight_decay"]
    if not weight and not decoupled:
        return 1.0
    if mode == "decoupled":
        return float(1.0 - lr * (weight + decoupled))
    if not weight:  # nothing then depends on the largest lr
        rate = 0.0
    else:
        rate = 1.0 if mode == "independent" else lr * lr if mode == "palm" else _relative(h)
    return float(1.0 - (weight * rate + lr * decoupled))


def _relative(h: Mapping[str, Any]) -> float:
    """The rate by which one of the modes that know the largest rate decays; 0 for others."""
    if h["decay_mode"] not in PEAKED:
        return 0.0
    lr, peak = h["lr"], h["peak_lr"]
    if peak is None or (peak == 0.0 and lr):
        raise ValueError(
            f"decay_mode = {h['decay_mode']!r} uses the largest lr: expected peak_lr, a number "
            f"greater than 0, to be given where lr is a schedule or 0 at first; it is {peak!r}"
        )
    share = lr / peak if lr else 0.0
    return float(h["lr"] * share if h["decay_mode"] == "corrected" else share)


def prologue(h: Mapping[str, Any]) -> list[Operation]:
    """The prologue operation right before the rule, for a mode that has one."""
    if h["cautious"] or (h["decay_mode"] == "cautious" and h["weight_decay"]):
        return [("set_aside", (), "spare")]
    return []


def epilogue(h: Mapping[str, Any], decoupled: float) -> list[Operation]:
    """The epilogue operation right after the rule, for a mode that has one."""
    mode = h["decay_mode"]
    first: list[Operation] = (
        [("agree", (factor(h, decoupled), 1.0), "spare")] if h["cautious"] else []
    )
    if mode == "cautious" and h["weight_decay"]:
        along = h["lr"] * (h["weight_decay"] + decoupled)
        return [("cautious", (1.0 - h["lr"] * decoupled, 1.0 - along), "spare")]
    if mode not in AFTER or not h["weight_decay"]:
        return first
    drawn = h["lr"] * h["weight_decay"]
    left = 1.0 / (1.0 + drawn) if mode == "proximal" else 1.0 - drawn
    return [*first, ("multiply", (left,), None)]
