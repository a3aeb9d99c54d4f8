"""What the norms of a step's gradients lead to: factors, a skipped step, an error, a memory."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from steepest.clip import Clip, Measured, combined
from steepest.kernels.engine import Plan

__all__ = ["Clipping", "Norms", "clips"]

History = dict[str, list[float]]


def clips(clip: Clip | tuple[Clip, ...] | None) -> tuple[Clip, ...]:
    """The clips that the value of ``clip=`` stands for, in the order in which they work."""
    return clip if isinstance(clip, tuple) else () if clip is None else (clip,)


@dataclass
class Norms:
    """What was measured of a step's gradients."""

    total: float
    each: list[float]


@dataclass
class _Domain:
    """A clip and the parameters that have it, by number."""

    clip: Clip
    members: list[int] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)

    @property
    def key(self) -> str:
        """What its history is called."""
        return repr(self.clip)


class Clipping:
    """The clips of all groups, by the parameters that share one."""

    def __init__(self, of_groups: Sequence[tuple[Any, int]]) -> None:
        """`of_groups` are the value of clip= and the number of parameters, group by group."""
        domains: dict[Clip, _Domain] = {}
        first = 0
        for number, (value, count) in enumerate(of_groups):
            for clip in clips(value):
                if clip.order is not None:
                    domain = domains.setdefault(clip, _Domain(clip))
                    domain.members += range(first, first + count)
                    domain.groups += [number] * count
            first += count
        self.count = first
        self.domains = sorted(domains.values(), key=lambda domain: domain.clip.rank)
        self.orders = list(dict.fromkeys(d.clip.order for d in self.domains if d.clip.order))
        self.sweeps = any(domain.clip.sweeps for domain in self.domains)
        self.follows = any(not domain.clip.sweeps for domain in self.domains)
        """Whether a clip needs the norms of this step only at the next."""

    def first_step(self, history: History) -> bool:
        """Whether a clip that goes by an earlier norm has none yet."""
        return any(not d.clip.sweeps and not history.get(d.key) for d in self.domains)

    def measure(self, plan: Plan, workers: int) -> dict[float, Norms]:
        """The norms of this step by their order."""
        return {order: Norms(*plan.norms(workers, order)) for order in self.orders or [2.0]}

    def measured(self, domain: _Domain, norms: Norms, history: History, count: int) -> Measured:
        """What a domain's clip goes by."""
        each, total = norms.each, norms.total
        if len(domain.members) < self.count:
            each = [each[i] for i in domain.members]
            total = combined(each, domain.clip.order or 2.0)
        return Measured(total, each, domain.groups, history.get(domain.key, ()), count)

    def apply(
        self, norms: dict[float, Norms] | None, history: History, count: int
    ) -> tuple[list[float], str]:
        """The factor of each gradient, and why the step is to be skipped, if it is.

        Without norms, by those of earlier steps.
        """
        factors = [1.0] * self.count
        unknown = Norms(math.nan, [math.nan] * self.count)
        for domain in self.domains:
            known = norms[domain.clip.order or 2.0] if norms else unknown
            measured = self.measured(domain, known, history, count)
            spike = domain.clip.spike(measured)
            if spike:
                return factors, spike
            own = domain.clip.factors(measured)
            for i, factor in zip(domain.members, own, strict=True):
                factors[i] *= factor
        return factors, ""

    def remember(self, norms: dict[float, Norms], history: History) -> None:
        """Adds this step's norms to the histories of the clips that keep one."""
        for domain in self.domains:
            if domain.clip.memory:
                known = norms[domain.clip.order or 2.0]
                measured = self.measured(domain, known, history, 0)
                history[domain.key] = domain.clip.remembered(measured)
