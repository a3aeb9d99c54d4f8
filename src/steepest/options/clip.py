"""Gradient clipping, given to any optimizer, or to one of its groups, as ``clip=``.

``value`` limits every element. ``norm``, ``group_norm`` and ``global_norm`` scale the gradient of
a parameter, of a group, or all gradients together, down to a norm; ``percentile`` does so to what
has been usual, ``previous_norm`` by the norm of the step before, ``adaptive`` to a share of the
parameter's own norm, unit by unit. ``skip_spikes`` leaves a step out whose gradient is far too
large. Norms are measured by one sweep over the gradients (``previous_norm`` needs none); the
clipping itself costs no pass over memory: it happens while the block is in L1. The caller's
gradients are not changed.

Several clips may be given as a tuple; they go to work in the order of this list: ``skip_spikes``,
one of the norms, ``adaptive``, ``value``. A limit may be a schedule. "All gradients" are those of
the parameters that have the same clip: a group with another clip is measured by itself.

>>> import numpy as np, steepest as st
>>> w = {"body": np.zeros(2), "head": np.zeros(1)}
>>> opt = st.SGD(w, lr=1.0, clip=st.clip.global_norm(1.0), overrides={"head": {"clip": None}})
>>> opt.step({"body": np.array([3.0, 4.0]), "head": np.array([2.0])})
>>> w["body"].round(5), w["head"], opt.last_norms
(array([-0.6, -0.8]), array([-2.]), {'body': 5.0, 'head': 2.0})
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from steepest.fields import Number, Range, Scheduled, Value, described
from steepest.options.operations import Operation, UnitOperation, Units

Limit = Annotated[Number, Scheduled(Range(float, 0, above=True, finite=False))]
Positive = Annotated[Number, Scheduled(Range(float, 0, above=True))]
Window = Annotated[int, Range(int, 1)]

# PyTorch's guard against a zero norm.
_GUARD = 1e-6


CLIPS: dict[str, type["Clip"]] = {}
"""Every clip by its name."""


@dataclass(frozen=True)
class Clip(Value, family=CLIPS):
    """How gradients are clipped: by a factor for each that comes from norms, or by an operation."""

    rank: ClassVar[int] = 1
    """The place in the order in which clips work."""
    sweeps: ClassVar[bool] = True
    """Whether it must know this step's norms before the step."""
    parts: ClassVar[Literal["each", "group", "all"]] = "all"
    """Which gradients are measured together."""

    makes: ClassVar[str] = ""
    """The array that its units make, of a number for each."""

    @property
    def memory(self) -> int:
        """How many norms it remembers."""
        return 0

    @property
    def order(self) -> float | None:
        """The order p of the norm that is measured; None for no norm."""
        order: float = getattr(self, "p", 2.0)
        return order

    @property
    def key(self) -> str:
        """What its history is called: the same in every process, so without addresses."""
        return re.sub(r" at 0x[0-9a-fA-F]+", "", described(self))

    def factors(self, norms: Sequence[float], history: Sequence[float], count: int) -> list[float]:
        """The factor of each of the `parts`, from its norm, the norms remembered (the last one
        last) and the number of updates done."""
        return [1.0] * len(norms)

    def spike(self, norm: float, history: Sequence[float], count: int) -> str:
        """Why the step is to be left out; empty if it is not."""
        return ""

    def remembered(self, norm: float, history: Sequence[float]) -> list[float]:
        """The history with this step's norm, where that is a number."""
        known = [*history, norm] if math.isfinite(norm) else list(history)
        return known[-self.memory :]

    def operations(self, count: int) -> list[Operation]:
        """The prologue operations that clip elements."""
        return []

    def units(self, count: int) -> list[tuple[UnitOperation, int | None]]:
        """The unit operations that make factors, and their axes."""
        return []


def _factor(limit: float, norm: float) -> float:
    return limit / (norm + _GUARD) if norm + _GUARD > limit else 1.0


@dataclass(frozen=True)
class _ByNorm(Clip):
    """Scales what is measured together down to a norm of at most max_norm."""

    max_norm: Limit
    p: Annotated[float, Range(float, 0, above=True, finite=False)] = 2.0

    def factors(self, norms: Sequence[float], history: Sequence[float], count: int) -> list[float]:
        limit = self.at("max_norm", count)
        return [
            # `_factor` without the call: there may be thousands of norms
            limit / (norm + _GUARD) if norm + _GUARD > limit else 1.0
            for norm in norms
        ]


@dataclass(frozen=True)
class value(Clip):
    """Limits every element of the gradients to [-limit, limit].

        g ← min(max(g, -limit), limit)

    NaN stays NaN. Raises TypeError or ValueError unless limit > 0.

    >>> import numpy as np, steepest as st
    >>> w = np.zeros(2)
    >>> st.SGD(w, lr=1.0, clip=st.clip.value(0.5)).step(np.array([3.0, -0.25]))
    >>> w
    array([-0.5 ,  0.25])
    """

    limit: Limit
    rank: ClassVar[int] = 3
    sweeps: ClassVar[bool] = False

    @property
    def order(self) -> None:
        return None

    def operations(self, count: int) -> list[Operation]:
        return [("clip_value", (self.at("limit", count),), None)]


@dataclass(frozen=True)
class norm(_ByNorm):
    """Scales each parameter's gradient down to a norm of at most max_norm.

        g ← g · min(1, max_norm / (‖g‖ₚ + 1e-6))

    for each parameter by itself; p is 2, 1, math.inf or any other number above 0. The norms before
    clipping are in ``opt.last_norms``. Raises TypeError or ValueError unless max_norm, p > 0.

    >>> import numpy as np, steepest as st
    >>> w = np.zeros(2)
    >>> opt = st.SGD(w, lr=1.0, clip=st.clip.norm(1.0))
    >>> opt.step(np.array([3.0, 4.0]))
    >>> w.round(5), opt.last_norm
    (array([-0.6, -0.8]), 5.0)
    """

    parts: ClassVar[Literal["each", "group", "all"]] = "each"


@dataclass(frozen=True)
class group_norm(_ByNorm):
    """Scales the gradients of each group together down to a norm of at most max_norm.

        g ← g · min(1, max_norm / (‖all g of the group‖ₚ + 1e-6))

    A group is one that was given; parts of it that ``overrides`` or ``exclude`` made are measured
    together, as long as they have the same clip. p is 2, 1, math.inf or any other number above 0.
    Raises TypeError or ValueError unless max_norm, p > 0.

    >>> import numpy as np, steepest as st
    >>> a, b = np.zeros(2), np.zeros(1)
    >>> groups = [{"params": a}, {"params": b}]
    >>> opt = st.SGD(groups, lr=1.0, clip=st.clip.group_norm(1.0))
    >>> opt.step([np.array([3.0, 4.0]), np.array([0.5])])
    >>> a.round(5), b
    (array([-0.6, -0.8]), array([-0.5]))
    """

    parts: ClassVar[Literal["each", "group", "all"]] = "group"


@dataclass(frozen=True)
class global_norm(_ByNorm):
    """Scales all gradients together down to a norm of at most max_norm.

        g ← g · min(1, max_norm / (‖all g‖ₚ + 1e-6))

    As ``torch.nn.utils.clip_grad_norm_``, which also has the 1e-6; p is its ``norm_type``: 2, 1,
    math.inf or any other number above 0. The norm before clipping is in ``opt.last_norm``. Raises
    TypeError or ValueError unless max_norm, p > 0. Pascanu et al. 2013, arXiv:1211.5063.

    >>> import numpy as np, steepest as st
    >>> a, b = np.zeros(1), np.zeros(1)
    >>> opt = st.SGD([a, b], lr=1.0, clip=st.clip.global_norm(1.0))
    >>> opt.step([np.array([3.0]), np.array([-4.0])])
    >>> a.round(5), b.round(5), opt.last_norm
    (array([-0.6]), array([0.8]), 5.0)
    """


@dataclass(frozen=True)
class percentile(Clip):
    """Scales all gradients together down to what has been usual: a percentile of recent norms.

        g ← g · min(1, limit / (‖all g‖₂ + 1e-6))
        limit = the q-th percentile of the norms of the last `window` steps, this one among them

    between neighbours the percentile is interpolated on a straight line. The norms are kept in
    ``opt.clip_history`` and saved with the state; those that are infinite or NaN are not counted.
    0 <= q <= 100, window >= 1. Raises TypeError or ValueError for anything else. Seetharaman et al.
    2020, arXiv:2007.14469 (AutoClip), there with all norms so far and q = 10.

    >>> import numpy as np, steepest as st
    >>> w = np.zeros(1)
    >>> opt = st.SGD(w, lr=1.0, clip=st.clip.percentile(50))
    >>> for g in (1.0, 1.0, 9.0):
    ...     opt.step(np.array([g]))
    >>> w.round(5), opt.clip_history
    (array([-3.]), {'percentile(q=50.0, window=100)': [1.0, 1.0, 9.0]})
    """

    q: Annotated[Number, Scheduled(Range(float, 0, 100))] = 10.0
    window: Window = 100

    @property
    def memory(self) -> int:
        return self.window

    def factors(self, norms: Sequence[float], history: Sequence[float], count: int) -> list[float]:
        known = sorted(self.remembered(norms[0], history))
        if not known:
            return [1.0]
        place = (len(known) - 1) * self.at("q", count) / 100.0
        low = int(place)
        high = min(low + 1, len(known) - 1)
        limit = known[low] + (known[high] - known[low]) * (place - low)
        return [_factor(limit, norms[0])]


@dataclass(frozen=True)
class previous_norm(Clip):
    """Scales all gradients together by the norm of the step before; needs no sweep of its own.

        gₜ ← gₜ · min(1, max_norm / (‖all gₜ₋₁‖₂ + 1e-6))

    The norm of this step is measured while its gradients pass through the step, for the next one;
    so a gradient may be used as soon as it is there, before all others are known. Only the first
    step, which has none before it, measures first. The norm is kept in ``opt.clip_history``; one
    that is infinite or NaN is passed over. Raises TypeError or ValueError unless max_norm > 0.

    >>> import numpy as np, steepest as st
    >>> w = np.zeros(1)
    >>> opt = st.SGD(w, lr=1.0, clip=st.clip.previous_norm(1.0))
    >>> for g in (2.0, 4.0):
    ...     opt.step(np.array([g]))
    >>> w.round(5), opt.last_norm
    (array([-3.]), 4.0)
    """

    max_norm: Limit
    sweeps: ClassVar[bool] = False

    @property
    def memory(self) -> int:
        return 1

    def factors(self, norms: Sequence[float], history: Sequence[float], count: int) -> list[float]:
        last = history[-1] if history else norms[0]
        return [_factor(self.at("max_norm", count), last)]


@dataclass(frozen=True)
class adaptive(Clip):
    """Scales each unit of a gradient down to a share of the norm of the parameter's unit.

        g_u ← g_u · limit · max(‖p_u‖₂, eps) / ‖g_u‖₂    where that is less than g_u

    The units are what lies at each index along `axis`: the rows of a matrix with axis 0 (the
    outputs of PyTorch's layers), its columns with -1; the whole array with None and where it has
    fewer than two dimensions. limit > 0, eps > 0. Raises TypeError or ValueError for anything
    else. Brock et al. 2021, arXiv:2102.06171, equation 3; they leave the last layer out, which is
    ``overrides={"head.*": {"clip": None}}`` here.

    >>> import numpy as np, steepest as st
    >>> w = np.array([[3.0, 4.0], [0.0, 0.0]])
    >>> opt = st.SGD(w, lr=1.0, clip=st.clip.adaptive(0.1, eps=1.0))
    >>> opt.step(np.array([[0.0, 2.0], [2.0, 0.0]]))
    >>> w
    array([[ 3. ,  3.5],
           [-0.1,  0. ]])
    """

    limit: Limit = 0.01
    eps: Positive = 1e-3
    axis: Units = 0
    rank: ClassVar[int] = 2
    sweeps: ClassVar[bool] = False
    makes: ClassVar[str] = "factors"

    @property
    def order(self) -> None:
        return None

    def operations(self, count: int) -> list[Operation]:
        return [("scale_each", (), "factors")]

    def units(self, count: int) -> list[tuple[UnitOperation, int | None]]:
        operation = ("adaptive", (self.at("limit", count), self.at("eps", count)))
        return [(operation, self.axis)]


@dataclass(frozen=True)
class skip_spikes(Clip):
    """Leaves a step out whose gradient is far larger than usual.

        skip if ‖all g‖₂ > mean + sigma · standard deviation of the last `window` norms

    once half a window of them is known. A step that is left out changes nothing but
    ``opt.skipped``, which counts it, ``opt.last_skip``, which says why, and the norms that this
    clip knows (``opt.clip_history``), so that a lasting change of scale is not skipped forever;
    other clips do not remember it. sigma > 0,
    window >= 1. Raises TypeError or ValueError for anything else.

    >>> import numpy as np, steepest as st
    >>> w = np.zeros(1)
    >>> opt = st.SGD(w, lr=1.0, clip=st.clip.skip_spikes(sigma=3, window=4))
    >>> for g in (1.0, 1.1, 50.0, 0.9):
    ...     opt.step(np.array([g]))
    >>> w, opt.skipped
    (array([-3.]), 1)
    >>> opt.last_skip
    'the norm 50 is above 1.2, the mean of the last 2 and 3 standard deviations'
    """

    sigma: Positive = 6.0
    window: Window = 128
    rank: ClassVar[int] = 0

    @property
    def memory(self) -> int:
        return self.window

    def spike(self, norm: float, history: Sequence[float], count: int) -> str:
        n = len(history)
        if 2 * n < self.window:
            return ""
        mean = math.fsum(x / n for x in history)
        sigma = self.at("sigma", count)
        deviation = math.hypot(*((x - mean) / math.sqrt(n) for x in history))
        limit = mean + sigma * deviation
        if not norm > limit:
            return ""
        return (
            f"the norm {norm:.4g} is above {limit:.4g}, the mean of the last "
            f"{n} and {sigma:g} standard deviations"
        )


def checked(clip: Any) -> Clip | tuple[Clip, ...] | None:
    """The clip, or several as a tuple. Raises TypeError or ValueError for anything else."""
    if clip is None or isinstance(clip, Clip):
        return clip
    if not isinstance(clip, (tuple, list)) or not all(isinstance(x, Clip) for x in clip):
        raise TypeError(
            f"clip = {clip!r}: expected one of {', '.join(f'st.clip.{name}' for name in CLIPS)}, "
            "or a tuple of them"
        )
    ranks = [x.rank for x in clip]
    if ranks != sorted(set(ranks)):
        raise ValueError(
            f"clip = {clip!r}: expected at most one each of skip_spikes, a norm, adaptive and "
            "value, in this order"
        )
    return tuple(clip)


__all__ = ["CLIPS", "Clip", *CLIPS]
