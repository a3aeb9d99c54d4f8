"""Sharpness-aware minimisation: gradients from the worst point nearby, steps by any optimizer."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from steepest.core import internal
from steepest.fields import Number, Range, Scheduled, Truth
from steepest.kernels import machine
from steepest.memory import arrays, formats
from steepest.memory.arrays import Array
from steepest.optimizers import Optimizer

__all__ = ["SAM"]

# Keeps the division by the norm defined: the authors' number.
TINY = 1e-12

_RHO = Scheduled(Range(float, 0))


class SAM:
    """Sharpness-aware minimisation around an optimizer, with two gradients a step.

        p' = p + rho · g / ‖g‖                 the perturbed parameters
        p' = p + rho · p² g / ‖|p| g‖          adaptive: the same when a layer is rescaled
        p ← the optimizer's step from p with the gradient at p'

    ‖ ‖ is the Euclidean norm over all gradients together, in double, plus 1e-12. Where a group
    maximizes, p' lies the other way. The parameters come back from a copy, to the same bits.

    rho: the size of the neighbourhood, at least 0, or a schedule of the optimizer's count of
    updates. For the adaptive form the authors use values ten times those of the plain one, and
    |p| + 0.01 where |p| stands above.

    >>> import numpy as np, steepest as st
    >>> w = np.array([3.0, 4.0])
    >>> opt = st.SAM(st.SGD(w, lr=0.5), rho=1.0)
    >>> opt.step(lambda: (float(w @ w) / 2, w.copy()))
    12.5
    >>> w.round(6)
    array([1.2, 1.6])

    Foret et al. 2020, arXiv:2010.01412, equation 3; Kwon et al. 2021, arXiv:2102.11600.
    """

    def __init__(self, optimizer: Optimizer, rho: Number = 0.05, adaptive: bool = False) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"optimizer is a {type(optimizer).__name__}; expected one of steepest's, made "
                "over the parameters, such as st.SGD(params, lr=0.1)"
            )
        self.optimizer = optimizer
        """The optimizer that does the steps. Save and load this one."""
        self.rho = _RHO.check(rho, "SAM", "rho")
        self.adaptive: bool = Truth().check(adaptive, "SAM", "adaptive")
        self._kept: list[tuple[Array, Array]] | None = None

    def step(self, grads: Any) -> Any:
        """One step, from a function or from gradients.

        A function ``closure()`` returns (loss, gradients) at the parameters as they are. It is
        called twice, at p and at p'; what it returned first as loss is returned. Otherwise these
        are the gradients at p', where ``perturb`` has put the parameters; None is returned.

        The parameters are back at p before the optimizer steps, also where it raises. With a
        function they are after any exception, Ctrl-C too; with ``perturb`` call ``restore`` where
        the gradients at p' fail. A gradient that is None leaves its parameter where it is. Raises
        what the optimizer's step raises, TypeError for a function that returns no pair, and
        RuntimeError for gradients without ``perturb`` before.
        """
        if callable(grads):
            return self._closed(grads)
        if self._kept is None:
            raise RuntimeError("step(grads) before perturb(grads): give step a function, or both")
        self.restore()
        self.optimizer.step(grads)
        return None

    def _closed(self, closure: Callable[[], tuple[Any, Any]]) -> Any:
        loss, grads = _pair(closure())
        try:
            try:
                self.perturb(grads)
                _, grads = _pair(closure())
            finally:
                self.restore()
        except BaseException:
            self.restore()  # where Ctrl-C came while the parameters went back
            raise
        self.optimizer.step(grads)
        return loss

    def perturb(self, grads: Any) -> None:
        """Moves the parameters to p', for gradients at p with the structure of ``params``.

        Then comes ``step`` with the gradients there, or ``restore``. Raises TypeError or ValueError
        for gradients that do not fit, RuntimeError when called twice; nothing is moved then.
        """
        if self._kept is not None:
            raise RuntimeError("the parameters are perturbed already: call step or restore first")
        moved = self._moved(self._resolved(grads))
        try:
            self._kept = [(p, p.copy()) for p, _ in moved]
            for p, there in moved:
                p[...] = there
        except BaseException:
            self.restore()
            raise

    def restore(self) -> None:
        """Puts the parameters back where they were before ``perturb``; does nothing otherwise."""
        if self._kept is not None:
            for p, before in self._kept:
                p[...] = before
            self._kept = None

    def _resolved(self, grads: Any) -> list[tuple[Array, Array, bool]]:
        """The parameters that have a gradient, with it, and whether they climb."""
        opt = self.optimizer
        flat = internal.flattened(opt, grads)
        own = [
            (name, p, bool(group["maximize"]))
            for group in opt.param_groups
            for name, p in zip(group["param_names"], group["params"], strict=True)
        ]
        return [
            (p, formats.decoded(arrays.gradient(g, p, name)), climbs)
            for (name, p, climbs), g in zip(own, flat, strict=True)
            if g is not None
        ]

    @machine.in_default_mode
    def _moved(self, given: list[tuple[Array, Array, bool]]) -> list[tuple[Array, Array]]:
        """The parameters and the points where they are to go."""
        with np.errstate(all="ignore"):
            every = [(p, formats.decoded(p), g, climbs) for p, g, climbs in given]
            lengths = [_length(np.abs(x) * g if self.adaptive else g) for _, x, g, _ in every]
            rho = _RHO.at(self.rho, self.optimizer.updates, "SAM", "rho")
            scale = rho / (math.hypot(*lengths) + TINY)
            moved = []
            for p, x, g, climbs in every:
                way = x * x * g if self.adaptive else g
                there = x + x.dtype.type(-scale if climbs else scale) * way
                moved.append((p, formats.encoded(there, p.dtype)))
            return moved

    # What belongs to the optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's."""
        return self.optimizer.param_groups

    @property
    def state(self) -> dict[str, dict[str, Array]]:
        """The optimizer's: there is no other."""
        return self.optimizer.state

    @property
    def updates(self) -> int:
        """The optimizer's."""
        return self.optimizer.updates

    def averaged(self) -> dict[str, Array]:
        """The optimizer's averaged parameters."""
        return self.optimizer.averaged()

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """The optimizer's; the parameters come back first."""
        self.restore()
        self.optimizer.load_state_dict(state_dict)

    def __repr__(self) -> str:
        return f"SAM({self.optimizer!r}, rho={self.rho!r}, adaptive={self.adaptive!r})"


def _pair(returned: Any) -> tuple[Any, Any]:
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise TypeError(f"closure() returned {returned!r}; expected (loss, gradients)")
    return returned


def _length(x: Array) -> float:
    """The Euclidean norm, in double; the squares may leave its range."""
    flat = np.ravel(x).astype(np.float64)
    total = float(np.sum(flat * flat))
    if 1e-280 < total < 1e300:
        return math.sqrt(total)
    largest = float(np.max(np.abs(flat), initial=0.0))
    if not 0.0 < largest < math.inf:
        return largest
    return largest * math.sqrt(float(np.sum((flat / largest) ** 2)))
