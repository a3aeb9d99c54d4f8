"""Schedule-free optimizers, whose parameters are one point in training and another to evaluate."""

from collections.abc import Sequence
from typing import Any

from steepest.extras import require
from steepest.torch import views
from steepest.torch.optimizer import Optimizer

torch: Any = require("torch", extra="torch", purpose="steepest.torch")

__all__ = ["ScheduleFree"]

_MODE = "train_mode"
"""The key of a group, as in the package schedulefree; without it, it is in training."""


class ScheduleFree(Optimizer):
    """What the schedule-free classes have beside, as those of the package schedulefree."""

    def eval(self) -> None:
        """Puts the averages into the parameters, to evaluate or to save the model.

        Until ``train`` is called, ``step`` raises RuntimeError.
        """
        self._put(training=False)

    def train(self) -> None:
        """Puts the points of training back, as they were but for rounding. It begins so."""
        self._put(training=True)

    def _put(self, training: bool) -> None:
        for group in self.param_groups:
            if group.get(_MODE, True) != training:
                beta = float(views.numbers(self.rule.momentum_of(group)[1]))
                weight = 1.0 - beta if training else 1.0 - 1.0 / beta
                with torch.no_grad():
                    for p in group["params"]:
                        z = self.state[p].get("z") if p in self.state else None
                        if z is not None:
                            _move(p, z, weight)
                group[_MODE] = training

    def averaged(self) -> dict[str, Any]:
        """The averaged parameters by name (their number, if they have none): new tensors."""
        if self._training():
            return super().averaged()
        return {name: p.detach().clone() for name, p in self._named()}

    def _training(self) -> bool:
        return all(group.get(_MODE, True) for group in self.param_groups)

    def _step_all(self, given: Sequence[Any] | None = None) -> None:
        self._check_mode()
        super()._step_all(given)

    def _check_mode(self) -> None:
        if not self._training():
            raise RuntimeError(
                "a step after eval(), which has put the averages into the parameters: call train() "
                "first"
            )


def _move(p: Any, z: Any, weight: float) -> None:
    """p ← p + weight · (z - p). Where z is stored in another format, in the wider of the two, and
    rounded once."""
    if p.dtype == z.dtype:
        p.lerp_(z, weight)
        return
    if p.is_complex():  # in a format of 16 bits z is pairs of real numbers
        z = torch.view_as_complex(z.to(p.real.dtype))
    wide = torch.promote_types(p.dtype, z.dtype)
    p.copy_(torch.lerp(p.to(wide), z.to(wide), weight))
