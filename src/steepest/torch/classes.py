"""One class per rule: its signature is the rule's, with what torch's own class takes beside."""

import inspect
from typing import Any

from steepest.extras import require
from steepest.optimizers import ScheduleFreeSGD
from steepest.torch.optimizer import Optimizer
from steepest.torch.schedule_free import ScheduleFree

torch: Any = require("torch", extra="torch", purpose="steepest.torch")

__all__ = ["FACE", "made"]

FACE = ("foreach", "fused", "capturable", "differentiable")
"""Arguments of torch's classes that choose an implementation, of which there is one here."""


def made(rule: Any, module: str) -> type[Optimizer]:
    """The class of torch optimizers of a rule."""
    theirs = getattr(torch.optim, rule.__name__, None)
    signature = _signature(rule, theirs)
    face = {name: x.default for name, x in signature.parameters.items() if name in FACE}
    members = {
        "rule": rule,
        "face": face,
        "__doc__": _documentation(rule),
        "__module__": module,
        "__signature__": signature,
    }
    for name in rule.takes:
        members[name] = _forward(rule, name)
    if hasattr(theirs, "share_memory"):
        members["share_memory"] = _share_memory
    base = ScheduleFree if issubclass(rule, ScheduleFreeSGD) else Optimizer
    return type(rule.__name__, (base,), members)


def _signature(rule: Any, theirs: Any) -> inspect.Signature:
    """The rule's own arguments in their order, torch's where torch has more."""
    own = list(inspect.signature(rule).parameters.values())
    names = {x.name for x in own}
    more = []
    if theirs is not None:
        more = [x for x in inspect.signature(theirs).parameters.values() if x.name not in names]
    more = [x.replace(annotation=Any) for x in more if x.name in (*FACE, "maximize")]
    kinds = (
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
        inspect.Parameter.VAR_KEYWORD,
    )
    return inspect.Signature([x for kind in kinds for x in (*own, *more) if x.kind == kind])


def _documentation(rule: Any) -> str:
    return (
        f"``steepest.{rule.__name__}`` as a ``torch.optim.Optimizer``; see there for its formula, "
        "arguments and source.\n\n"
        "The options that all optimizers share (clip, ema, l1, ...) are given by keyword. foreach "
        "and fused change nothing; capturable and differentiable raise ValueError."
    )


def _forward(rule: Any, name: str) -> Any:
    method = getattr(rule, name)

    def forward(self: Optimizer, tensors: Any = None) -> None:
        self._forward(name, tensors)

    forward.__name__ = name
    forward.__qualname__ = f"{rule.__name__}.{name}"
    forward.__doc__ = (
        f"{(method.__doc__ or '').partition(chr(10))[0]}\n\n"
        "Takes one tensor for each parameter, in the order of the groups, or None for those that "
        "are left alone; without an argument, the parameters' ``grad``."
    )
    return forward


def _share_memory(self: Optimizer) -> None:
    """Moves the states, but for the counts, into memory that processes share."""
    self._current()
    for p, state in self.state.items():
        if isinstance(p, torch.Tensor):
            for key, x in state.items():
                if key != "step" and isinstance(x, torch.Tensor):
                    x.share_memory_()


_share_memory.__name__ = "share_memory"
