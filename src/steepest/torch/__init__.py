"""Every optimizer as a ``torch.optim.Optimizer``: the same names and arguments, stepped in place.

>>> import torch
>>> from steepest.torch import AdamW
>>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
>>> optimizer = AdamW([w], lr=0.1)
>>> (w * w).sum().backward()
>>> optimizer.step()
>>> w.detach()
tensor([ 0.8990, -1.8980])
"""

from typing import Any

from steepest.optimizers import RULES
from steepest.optimizers import by_name as _by_name
from steepest.torch.backward import InBackward as InBackward
from steepest.torch.backward import step_in_backward as step_in_backward
from steepest.torch.classes import made
from steepest.torch.offload import Offload as Offload
from steepest.torch.optimizer import Optimizer as Optimizer

__all__ = [
    "InBackward",
    "Offload",
    "Optimizer",
    "by_name",
    "step_in_backward",
    *(rule.__name__ for rule in RULES.values()),
]


def by_name(name: str) -> type[Optimizer]:
    """The class of a rule by its name, as ``steepest.by_name``; raises as it does.

    >>> import torch
    >>> by_name("adamw")([torch.nn.Parameter(torch.zeros(2))], lr=0.1).defaults["lr"]
    0.1
    """
    cls: type[Optimizer] = __getattr__(_by_name(name).__name__)
    return cls


def __getattr__(name: str) -> Any:
    """The class of a rule, made when it is first asked for, so that a rule may be added later."""
    for rule in RULES.values():
        if rule.__name__ == name:
            globals()[name] = cls = made(rule, __name__)
            return cls
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *(rule.__name__ for rule in RULES.values())})
