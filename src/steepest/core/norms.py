"""What the norms of a step's gradients lead to: factors, a skipped step, an error, a memory."""

import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from steepest.fields import scalar
from steepest.kernels.engine import Plan
from steepest.memory.arrays import Array
from steepest.options.clip import Clip

__all__ = ["Clipping", "Norms", "Peers", "checked_history", "clips", "joined"]

History = dict[str, list[float]]


def clips(clip: Clip | tuple[Clip, ...] | None) -> tuple[Clip, ...]:
    """The clips that the value of ``clip=`` stands for, in the order in which they work."""
    return clip if isinstance(clip, tuple) else () if clip is None else (clip,)


def checked_history(given: Any) -> History:
    """A copy of a history that was saved. Raises TypeError or ValueError for anything else."""
    try:
        history = {str(key): [scalar(norm) for norm in norms] for key, norms in given.items()}
    except (AttributeError, TypeError, ValueError):
        raise TypeError(f"clip_history = {given!r}: expected lists of norms by clip") from None
    for key, norms in history.items():
        if not all(0.0 <= norm < math.inf for norm in norms):
            raise ValueError(f"clip_history of {key!r}: expected finite norms of at least 0")
    return history


class Norms(NamedTuple):
    """What was measured of a step's gradients."""

    total: float
    """Of all together; with clips of several orders, of the first's."""
    each: list[float]
    parts: list[list[float]]
    """For each domain, of each of its parts."""

    def times(self, factor: float) -> "Norms":
        """Those of the same gradients times a factor of at least 0."""
        return Norms(
            self.total * factor,
            [x * factor for x in self.each],
            [[x * factor for x in part] for part in self.parts],
        )


class Peers(Protocol):
    """Those who, each with an optimizer of its own, step other parts of the same parameters.

    Their optimizers have the same groups of as many parameters each, and step at the same time.
    """

    def norms(self, own: Array) -> Array:
        """The norms that each of them has measured, a row each, in the same order for all: `own`
        are those of this one, float64."""
        ...

    def ready(self) -> None:
        """Returns once all are ready to change what they have; raises where one is not. Called
        once in a step that does not raise, also in one that is skipped."""
        ...


def _power(x: Array, exponent: float) -> Array:
    """x to a power: a product or square root where it is one, else as the C library gives it.

    NumPy's own loops for other powers differ by its version and by what the processor can do, and
    those who join their norms must come to the same bits.
    """
    if exponent in (0.5, 1.0, 2.0):
        return np.asarray(x**exponent)
    return np.reshape([math.pow(each, exponent) for each in x.ravel().tolist()], x.shape)


def joined(norms: Array, order: float) -> Array:
    """The norms of whole gradients from those of their parts, a row for each who has parts.

        ‖g‖ₚ = max · (Σ (‖part‖ₚ / max)ᵖ)^(1/p)

    Exact where only one part is not 0; infinite or NaN only where a part is, as all norms here.

    >>> joined(np.array([[3.0, 0.1, 0.0], [4.0, 0.0, 0.0]]), 2.0)
    array([5. , 0.1, 0. ])
    """
    largest: Array = norms.max(axis=0)
    usual = (largest > 0.0) & (largest < math.inf)
    if order == math.inf or not usual.any():
        return largest
    some = np.where(usual, largest, 1.0)
    with np.errstate(over="ignore", under="ignore"):
        shares = np.where(usual, norms, 0.0) / some
        root = _power(np.sum(_power(shares, order), axis=0), 1.0 / order)
        whole = np.minimum(some * root, sys.float_info.max)
    return np.where(usual, whole, largest)


class _Domain:
    """A clip and the parameters that have it, by number, in parts that are measured together."""

    def __init__(self, clip: Clip, key: str, parts: list[list[int]], count: int) -> None:
        self.clip = clip
        self.key = key
        self.parts = parts
        self.members = [i for part in parts for i in part]
        self.one = clip.parts == "all" and len(self.members) == count
        """Whether all parameters are measured together."""

    def measured(self, plan: Plan, total: float, each: list[float]) -> list[float]:
        """The norms of the parts, once the plan has measured with the clip's order."""
        if self.one:
            return [total]
        if self.clip.parts == "each":
            return each if len(each) == len(self.members) else [each[i] for i in self.members]
        return [plan.together(part) for part in self.parts]


def _parts(clip: Clip, groups: Sequence[tuple[Any, int, int]]) -> list[list[int]]:
    """The parameters that have the clip, in the parts that are measured together."""
    parts: dict[int, list[int]] = {}
    first = 0
    for value, count, given in groups:
        if clip in clips(value):
            for i in range(first, first + count):
                part = i if clip.parts == "each" else given if clip.parts == "group" else 0
                parts.setdefault(part, []).append(i)
        first += count
    return list(parts.values())


class Clipping:
    """The clips of all groups, by the parameters that share one."""

    def __init__(self, groups: Sequence[tuple[Any, int, int]]) -> None:
        """`groups` are the value of clip=, the number of parameters, and the number of the group
        that was given, of which this one may be a part."""
        different: list[Clip] = []
        for value, _, _ in groups:
            different += [c for c in clips(value) if c.order is not None and c not in different]
        self.count = sum(count for _, count, _ in groups)
        self.domains: list[_Domain] = []
        keys: dict[str, int] = {}
        for clip in sorted(different, key=lambda clip: clip.rank):
            again = keys[clip.key] = keys.get(clip.key, 0) + 1
            key = clip.key if again == 1 else f"{clip.key} ({again})"
            self.domains.append(_Domain(clip, key, _parts(clip, groups), self.count))
        self.orders = list(dict.fromkeys(d.clip.order for d in self.domains if d.clip.order))
        self.orders = self.orders or [2.0]
        self.only = len(self.domains) == 1 and self.domains[0].one
        """Whether there is one clip, and it is for all parameters together."""
        self.watching = [domain for domain in self.domains if not domain.clip.rank]
        """The domains that look for spikes; they stand first."""
        self.kept: dict[float, dict[int, tuple[float, int, float]]] | None = None
        """By orders: what was measured of each parameter in this step, if that is to be kept."""
        self.sweeps = any(domain.clip.sweeps for domain in self.domains)
        self.memories = [domain for domain in self.domains if domain.clip.memory]
        """The domains whose clips remember norms."""
        self.following = [
            (d.key, None if d.one else d.members) for d in self.domains if not d.clip.sweeps
        ]
        """Domains whose clips need the norms of this step only at the next."""

    def first_step(self, history: History) -> bool:
        """Whether a clip that uses an earlier norm has none yet."""
        return any(not history.get(key) for key, _ in self.following)

    def measure(
        self, plan: Plan, workers: int, peers: Peers | None = None, measured: bool = False
    ) -> Norms:
        """The norms of this step; with `peers`, of the gradients that they have parts of.
        `measured`: the plan has measured each gradient already, with the first order."""
        own = self._measured(plan, workers, measured)
        return own if peers is None else self._joined(own, peers)

    def _joined(self, own: Norms, peers: Peers) -> Norms:
        """What all measured, put together; the same for all of them."""
        rows = [[own.total], own.each, *own.parts]
        orders = [self.orders[0]] * 2 + [domain.clip.order or 2.0 for domain in self.domains]
        measured = peers.norms(np.array([x for row in rows for x in row]))
        ends = np.cumsum([len(row) for row in rows])
        cut = np.split(measured, ends[:-1], axis=1)
        total, each, *parts = (
            joined(x, order).tolist() for x, order in zip(cut, orders, strict=True)
        )
        return Norms(total[0], each, parts)

    def _measured(self, plan: Plan, workers: int, measured: bool) -> Norms:
        total, each = plan.norms(workers, self.orders[0], measured)
        if self.kept is not None:
            self.kept[self.orders[0]] = plan.measures()
        if self.only:
            return Norms(total, each, [[total]])
        parts: list[list[float]] = [[]] * len(self.domains)
        now = total, each
        for order in self.orders:
            if order != self.orders[0]:
                now = plan.norms(workers, order)
                if self.kept is not None:
                    self.kept[order] = plan.measures()
            for k, domain in enumerate(self.domains):
                if domain.clip.order == order:
                    parts[k] = domain.measured(plan, *now)
        return Norms(total, each, parts)

    def spike(self, norms: Norms, history: History, count: int) -> str:
        """Why the step is to be skipped; empty if it is not."""
        for domain, parts in zip(self.watching, norms.parts, strict=False):
            reason = domain.clip.spike(parts[0], history.get(domain.key, ()), count)
            if reason:
                return reason
        return ""

    def factors(
        self, norms: Norms | None, history: History, count: int
    ) -> float | list[float] | None:
        """The factor of all gradients, or of each; None where nothing is scaled.

        Without norms, by those of earlier steps.
        """
        if self.only and norms:
            domain = self.domains[0]
            return domain.clip.factors(norms.parts[0], history.get(domain.key, ()), count)[0]
        factors: list[float] | None = None
        for k, domain in enumerate(self.domains):
            if not domain.clip.rank:
                continue
            known = norms.parts[k] if norms else [math.nan]
            own = domain.clip.factors(known, history.get(domain.key, ()), count)
            if domain.one:
                return own[0]  # a parameter has one clip that scales, so this is the only one
            if len(own) == self.count:
                return own
            factors = factors or [1.0] * self.count
            for part, factor in zip(domain.parts, own, strict=True):
                for i in part:
                    factors[i] = factor
        return factors

    def remembered(self, norms: Norms, history: History, skipped: bool = False) -> History:
        """The histories of the clips that keep one, with this step's norms; of a step that is
        `skipped`, only those that decide what is."""
        return {
            domain.key: domain.clip.remembered(parts[0], history.get(domain.key, ()))
            for domain, parts in zip(self.domains, norms.parts, strict=True)
            if domain.clip.memory and not (skipped and domain.clip.rank)
        }
