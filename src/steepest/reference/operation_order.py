"""The operations of a step around the rule, in their order.

The *prologue* (filters, clips, penalties) makes the gradient that the rule gets; decoupled decay
comes next; the *epilogue* (projections, masks, averages) follows the rule.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from steepest.reference import operations
from steepest.reference.stored import next_pass
from steepest.reference.types import Array, State


@dataclass
class StepOptions:
    """The options of a group at one step, after `count` updates; `factor` scales the gradient."""

    lr: float
    weight_decay: float
    decay_mode: str
    l1: float
    ema: float | None
    lookahead: Any
    average: Any
    peak_lr: float | None
    regularize: Sequence[Any]
    filters: dict[str, Any]
    clip: Any
    cautious: bool
    factor: float
    count: int
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for penalty in self.regularize:
            for kind, weight in penalty.terms(self.count).items():
                self.extra[kind] = self.extra[kind] + weight if kind in self.extra else weight

    def _decays(self, modes: Sequence[str]) -> float:
        return self.weight_decay if self.decay_mode in modes else 0.0

    @property
    def decay(self) -> float:
        """The weight of decoupled decay in a rule's own formula."""
        return float(self._decays(["decoupled"]) + self.extra.get("decoupled", 0.0))

    @property
    def decay_factor(self) -> float:
        """What decoupled decay multiplies the parameter by, before the rule."""
        weight, decoupled = self._decays(operations.BEFORE), self.extra.get("decoupled", 0.0)
        if self.decay_mode == "decoupled":
            return float(1.0 - self.lr * (weight + decoupled))
        decayed = operations.decayed(self.decay_mode, weight, self.lr, self.peak_lr)
        return float(1.0 - (decayed + self.lr * decoupled))

    @property
    def decays_cautiously(self) -> bool:
        """Whether decay depends on what the rule does to each element."""
        return self.decay_mode == "cautious" and self.weight_decay != 0.0

    def prologue(self, p: Array, g: Array, state: State) -> Array:
        """The gradient as the rule gets it; decoupled decay toward the initial point changes p."""
        raw = g
        if self.factor != 1.0:
            g = operations.scale(g, self.factor)
        if "centralize" in self.filters:
            g = operations.centralize(g, self.filters["centralize"].axis, raw, self.factor)
        for c in self.clip if isinstance(self.clip, tuple) else (self.clip,):
            if type(c).__name__ == "adaptive":
                limit, eps = c.at("limit", self.count), c.at("eps", self.count)
                g = operations.adaptive(g, p, limit, eps, c.axis, raw, self.factor)
            elif type(c).__name__ == "value":
                g = operations.clip_value(g, c.at("limit", self.count))
        if "mars" in self.filters:
            m, count = self.filters["mars"], self.count
            numbers = (m.at("gamma", count), m.at("beta", count), m.at("max_norm", count))
            g = operations.mars(g, state["last_grad"], *numbers)
        if "grokfast" in self.filters:
            f, count = self.filters["grokfast"], self.count
            g = operations.grokfast(g, state["grokfast"], f.at("alpha", count), f.at("lamb", count))
        l2 = self._decays(["l2"]) + self.extra.get("l2", 0.0)
        if l2:
            g = operations.l2(g, p, l2)
        if "toward" in self.extra:
            g = operations.toward(g, p, state["initial"], self.extra["toward"])
        l1 = self.l1 + self.extra.get("l1", 0.0)
        if l1:
            g = operations.l1(g, p, l1)
        if "toward_decoupled" in self.extra:
            operations.pull(p, state["initial"], self.lr, self.extra["toward_decoupled"])
        return operations.hide(g, state["mask"]) if "mask" in self.filters else g

    def decoupled_decay(self, p: Array) -> Array:
        """Applies decay before the rule, and returns the parameter for the epilogue.

        If the epilogue has to see what the rule adds to each element, that is the parameter as it
        was, and p becomes 0.
        """
        if self.decays_cautiously or self.cautious:
            aside = p.copy()
            p[...] = 0
            return aside
        if self._decays(operations.BEFORE) or self.extra.get("decoupled", 0.0):
            operations.shrink(p, self.decay_factor)
        return p

    def epilogue(self, p: Array, g: Array, state: State, t: int, aside: Array) -> None:
        """Changes the parameter, and arrays such as averages, after the rule."""
        lr, extra, decoupled = self.lr, self.extra, self.extra.get("decoupled", 0.0)
        if self.cautious:
            operations.agree(p, g, aside, self.decay_factor)
        elif self.decays_cautiously:
            decays = 1.0 - lr * (self.weight_decay + decoupled)
            operations.cautious(p, aside, 1.0 - lr * decoupled, decays)
        if self._decays(operations.AFTER):
            drawn = lr * self.weight_decay
            proximal = self.decay_mode == "proximal"
            operations.shrink(p, 1.0 / (1.0 + drawn) if proximal else 1.0 - drawn)
        if "mask" in self.filters:
            operations.zero(p, state["mask"])
        if "proximal_l1" in extra:
            operations.soft_threshold(p, lr, extra["proximal_l1"], extra.get("proximal_l2", 0.0))
        for low, high in extra.get("box", []):
            operations.box(p, low, high)
        for weight, axis in extra.get("group_lasso", []):
            next_pass(state)
            operations.group_lasso(p, lr, weight, axis)
        for limit, axis in extra.get("max_norm", []):
            next_pass(state)
            operations.max_norm(p, limit, axis)
        for _, axis in extra.get("unit_norm", []):
            next_pass(state)
            operations.unit_norm(p, axis)
        for total, axis in extra.get("simplex", []):
            next_pass(state)
            operations.simplex(p, total, axis)
        if {"group_lasso", "max_norm", "unit_norm", "simplex"} & extra.keys():
            next_pass(state)
        if "mask" in self.filters:
            operations.zero(p, state["mask"])
        if self.lookahead is not None:
            alpha = self.lookahead.at("alpha", self.count)
            operations.lookahead(state["slow"], p, t, self.lookahead.k, alpha)
            if "mask" in self.filters:
                operations.zero(p, state["mask"])
        if self.average is not None:
            operations.tail(state["average"], p, t, self.average.start, self.average.every)
        if self.ema is not None:
            operations.ema(state["ema"], p, self.ema)
