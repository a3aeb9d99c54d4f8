"""Gradient clipping, given to any optimizer as ``clip=``.

``value`` limits every element; ``norm`` and ``global_norm`` scale a gradient, or all of them
together, down to a Euclidean norm. The norm is measured by one sweep over the gradients; the
clipping itself costs no pass over memory: it happens while the block is in L1. The caller's
gradients are not changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from steepest.regularize import Stage

# PyTorch's guard against a zero norm.
_GUARD = 1e-6


def _positive(x: float, what: str) -> float:
    if isinstance(x, bool) or not isinstance(x, (int, float)) or not x > 0:
        raise ValueError(f"clip: {what} = {x!r}; expected a number greater than 0")
    return float(x)


@dataclass(frozen=True)
class Clip:
    """How gradients are clipped: a stage, or factors made of the measured norms."""

    limit: float

    measured = False

    def stages(self) -> list[Stage]:
        return []

    def factors(self, total: float, norms: Sequence[float]) -> list[float]:
        """The factor of each gradient, from the norm of all together and of each."""
        return [1.0] * len(norms)

    def _factor(self, norm: float) -> float:
        return min(1.0, self.limit / (norm + _GUARD))


class _Value(Clip):
    def stages(self) -> list[Stage]:
        return [("clip_value", (self.limit,), 0)]


class _Norm(Clip):
    measured = True

    def factors(self, total: float, norms: Sequence[float]) -> list[float]:
        return [self._factor(norm) for norm in norms]


class _GlobalNorm(Clip):
    measured = True

    def factors(self, total: float, norms: Sequence[float]) -> list[float]:
        return [self._factor(total)] * len(norms)


def value(limit: float) -> Clip:
    """Limits every element of the gradients to [-limit, limit].

        g ← min(max(g, -limit), limit)

    NaN stays NaN. Raises ValueError unless limit > 0.

    >>> import numpy as np, steepest as st
    >>> w = np.zeros(2)
    >>> st.SGD(w, lr=1.0, clip=st.clip.value(0.5)).step(np.array([3.0, -0.25]))
    >>> w
    array([-0.5 ,  0.25])
    """
    return _Value(_positive(limit, "limit"))


def norm(max_norm: float) -> Clip:
    """Scales each parameter's gradient down to a Euclidean norm of at most max_norm.

        g ← g · min(1, max_norm / (‖g‖₂ + 1e-6))

    for each parameter by itself. The norms before clipping are in ``opt.last_norms``. Raises
    ValueError unless max_norm > 0.

    >>> import numpy as np, steepest as st
    >>> w = np.zeros(2)
    >>> opt = st.SGD(w, lr=1.0, clip=st.clip.norm(1.0))
    >>> opt.step(np.array([3.0, 4.0]))
    >>> w.round(5), opt.last_norm
    (array([-0.6, -0.8]), 5.0)
    """
    return _Norm(_positive(max_norm, "max_norm"))


def global_norm(max_norm: float) -> Clip:
    """Scales all gradients together down to a Euclidean norm of at most max_norm.

        g ← g · min(1, max_norm / (‖all g‖₂ + 1e-6))

    As ``torch.nn.utils.clip_grad_norm_``, which also has the 1e-6. The norm before clipping is in
    ``opt.last_norm``. Raises ValueError unless max_norm > 0. Pascanu et al. 2013, arXiv:1211.5063.

    >>> import numpy as np, steepest as st
    >>> a, b = np.zeros(1), np.zeros(1)
    >>> opt = st.SGD([a, b], lr=1.0, clip=st.clip.global_norm(1.0))
    >>> opt.step([np.array([3.0]), np.array([-4.0])])
    >>> a.round(5), b.round(5), opt.last_norm
    (array([-0.6]), array([0.8]), 5.0)
    """
    return _GlobalNorm(_positive(max_norm, "max_norm"))
