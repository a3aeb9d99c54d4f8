"""Sharpness-aware minimisation: gradients from the worst point nearby, steps by any optimizer."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from steepest.core import internal
from steepest.core.sweeps import Perturbation
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
    |p| + 0.01 where |p| stands above. A copy of the parameters is kept from the first step on.

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
        self._way: Perturbation | None = None
        self._kept: list[tuple[Array, Array]] | None = None
        """In a copy that was made while the parameters were moved: where they were."""

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
        if not self._is_away():
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
        if self._is_away():
            raise RuntimeError("the parameters are perturbed already: call step or restore first")
        internal.follow_tensors(self.optimizer)
        flat = list(internal.flattened(self.optimizer, grads))
        way = self._bound(flat)
        rho = _RHO.at(self.rho, self.optimizer.updates, "SAM", "rho")
        norm = _adaptive_norm(way.params, flat) if self.adaptive else way.norm()
        way.move(rho / (norm + TINY), self.adaptive)

    def restore(self) -> None:
        """Puts the parameters back where they were before ``perturb``; does nothing otherwise."""
        if self._way is not None and self._way.away:
            try:
                for before, now in internal.follow_tensors(self.optimizer):
                    self._way.replace(before, now)
            finally:
                self._way.restore()
        if self._kept is not None:
            for p, before in self._kept:
                p[...] = before
            self._kept = None

    def _is_away(self) -> bool:
        return self._kept is not None or (self._way is not None and self._way.away)

    def _bound(self, flat: list[Any]) -> Perturbation:
        """The way to p' with these gradients, one for each parameter in the order of the groups."""
        groups = self.optimizer.param_groups
        way = self._way
        if way is None or not way.bind(groups, flat):
            way = Perturbation(groups)
            if not way.bind(groups, flat):
                raise RuntimeError("a parameter changed during the step")
            self._way = way
        return way

    def __getstate__(self) -> dict[str, Any]:
        """Copies bind memory of their own."""
        kept = self._kept if self._way is None else self._way.before() or self._kept
        return vars(self) | {"_way": None, "_kept": kept}

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


@machine.in_default_mode
def _adaptive_norm(params: list[Any], grads: list[Any]) -> float:
    """The Euclidean norm of |p| g over all parameters that have a gradient."""
    with np.errstate(all="ignore"):
        pairs = [(p, g) for p, g in zip(params, grads, strict=True) if g is not None]
        each = [
            np.abs(formats.decoded(arrays.as_array(p, "a parameter")))
            * formats.decoded(arrays.as_array(g, "a gradient"))
            for p, g in pairs
        ]
        return math.hypot(*map(_length, each))


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
