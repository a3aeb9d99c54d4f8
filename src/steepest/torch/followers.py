"""The groups of the optimizer inside, which follow torch's."""

from collections.abc import Iterator
from operator import itemgetter
from typing import Any

import numpy as np

from steepest.extras import require
from steepest.memory.arrays import Array
from steepest.torch import layout, views

torch: Any = require("torch", extra="torch", purpose="steepest.torch")

__all__ = ["Follower"]

_NONE = object()
_PLAIN = (float, int, str, type(None))


class Follower:
    """A group of torch's, the group inside that follows it, and the program of that."""

    def __init__(
        self, group: dict[str, Any], inner: dict[str, Any], program: Any, rule: Any
    ) -> None:
        self.group, self.inner, self.program = group, inner, program
        self.params = group["params"]
        self.names = rule.hyper_names
        self.flagged = rule.rule in layout.DECOUPLED
        self.at = self.names.index("decay_mode")
        self.get = itemgetter(*self.names, *([layout.FLAG] * self.flagged))
        self.seen: tuple[Any, ...] = ()
        self.objects: list[int] = []
        """The places of what may be equal to something else and change in another way."""

    def sync(self) -> None:
        """Takes over the hyper-parameters that torch's group has now."""
        values = self.get(self.group)
        try:
            same = values == self.seen
        except (RuntimeError, ValueError):  # tensors or arrays of several numbers
            same = False
        if same and self.objects:
            same = all(values[i] is self.seen[i] for i in self.objects)
        if not same:
            self._take(values)
        if self.program.shared:
            for key in self.program.shared:
                if key in self.group:
                    self.inner[key] = views.numbers(self.group[key])

    def _take(self, values: tuple[Any, ...]) -> None:
        """Takes over hyper-parameters of which some are others than before."""
        before, self.seen = self.seen or (_NONE,) * len(values), ()
        if self.flagged and (
            values[-1] is not before[-1] or values[self.at] is not before[self.at]
        ):
            layout.agree(self.group, self.inner["decay_mode"])
            values = self.get(self.group)
        constant = True
        for name, x, old in zip(self.names, values, before, strict=False):
            if type(x) is float:
                self.inner[name] = x
            elif x is not old:
                self.inner[name] = views.numbers(x)
                constant = constant and not _changing(x)
        if constant:
            self.seen = values
            self.objects = [i for i, x in enumerate(values) if not _plain(x)]

    def all_checked(self, count: int) -> dict[str, Any]:
        """The hyper-parameters after `count` updates, as numbers."""
        rule = self.program.rule
        return {name: rule.checked(name, self.inner[name], count) for name in self.names}

    def each(self) -> Iterator[tuple[str, Any, Array]]:
        """The parameters with their names, and as arrays."""
        own = self.inner
        for name, p, x in zip(own["param_names"], self.group["params"], own["params"], strict=True):
            yield name, p, x if isinstance(x, np.ndarray) else views.array(x, f"parameter {name!r}")

    def give_back(self) -> None:
        """Hands the numbers that the rule keeps of the group to torch's."""
        for key in self.program.shared:
            self.group[key] = self.inner[key]


def _plain(x: Any) -> bool:
    """Whether a hyper-parameter is a number, a word or several, equal to what has its value."""
    return all(map(_plain, x)) if isinstance(x, tuple) else isinstance(x, _PLAIN)


def _changing(x: Any) -> bool:
    """Whether a hyper-parameter may get another value in place."""
    return isinstance(x, (list, torch.Tensor)) or (isinstance(x, tuple) and any(map(_changing, x)))
