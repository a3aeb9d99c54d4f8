"""Averages of the parameters beside any rule: Lookahead, and the mean of a run's end.

Each is a value, given as an option of the optimizer or of a group, and happens inside the step,
after the rule and the penalties: first ``lookahead=``, then ``average=`` and ``ema=``. Steps are
counted for each parameter: one without a gradient stands still.

>>> import numpy as np, steepest as st
>>> w = np.array([8.0])
>>> opt = st.SGD(w, lr=1.0, average=st.average.tail(start=2))
>>> for _ in range(4):
...     opt.step(np.array([1.0]))
>>> w, opt.averaged()["0"]
(array([4.]), array([4.5]))
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from steepest.fields import Number, Range, Scheduled, Value
from steepest.options.operations import Operation

__all__ = ["lookahead", "tail"]


@dataclass(frozen=True)
class lookahead(Value):
    """Lookahead: k steps forward, one step back.

        slow ← slow + alpha · (p - slow),  p ← slow    after every k-th step of a parameter

    The slow weights are state ``"slow"`` and begin as the parameter; the rule's own state stays as
    it is. k >= 1, fixed; alpha in [0, 1]: with 1 nothing changes but the state, with 0 the
    parameter keeps coming back to where it began. Raises TypeError or ValueError for anything else.

    >>> import numpy as np, steepest as st
    >>> w = np.array([8.0])
    >>> opt = st.SGD(w, lr=1.0, lookahead=st.average.lookahead(k=2, alpha=0.5))
    >>> for _ in range(3):
    ...     opt.step(np.array([1.0]))
    >>> w, opt.state["0"]["slow"]
    (array([6.]), array([7.]))

    Zhang et al. 2019, arXiv:1907.08610, algorithm 1.
    """

    k: Annotated[int, Range(int, 1)] = 5
    alpha: Annotated[Number, Scheduled(Range(float, 0, 1))] = 0.5


@dataclass(frozen=True)
class tail(Value):
    """The mean of the points that the parameter passes from a step on, each of the same weight.

        x ← x + (p - x) / n    at steps t = start + every · n,  n = 1, 2, ...

    The mean x is state ``"average"``; ``averaged()`` gives it, and the parameter while there is
    none. With every=1 that is Polyak's mean of a tail, with the length of a cycle of rates
    stochastic weight averaging (SWA). Statistics of batch normalisation have to be taken anew for
    it. start >= 0, every >= 1. Raises TypeError or ValueError for anything else.

    Polyak and Juditsky 1992; Izmailov et al. 2018, arXiv:1803.05407, algorithm 1.
    """

    start: Annotated[int, Range(int, 0)] = 0
    every: Annotated[int, Range(int, 1)] = 1

    def points(self, t: int) -> int:
        """How many points the mean is of, after step t."""
        return max(0, (t - self.start) // self.every)


def checked(kind: type[Value], name: str) -> Any:
    """What checks the option `name`: a value of one kind, or None."""

    def check(value: Any) -> Value | None:
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"{name} = {value!r}: expected st.average.{kind.__name__}(...) or None")
        return value

    return check


def arrays(h: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the arrays that the options need."""
    options = {"slow": h["lookahead"], "average": h["average"], "ema": h["ema"]}
    return tuple(name for name, option in options.items() if option is not None)


def operations(h: Mapping[str, Any], count: int, t: int) -> list[Operation]:
    """The last epilogue operations of a parameter's t-th step, after `count` updates."""
    found: list[Operation] = []
    ahead, mean, ema = h["lookahead"], h["average"], h["ema"]
    if ahead is not None and t % ahead.k == 0:
        found.append(("lookahead", (ahead.at("alpha", count),), "slow"))
        if h["masked"]:  # the slow weights may have begun elsewhere
            found.append(("zero", (), "mask"))
    if mean is not None and mean.points(t) > mean.points(t - 1):
        found.append(("mean", (1.0 / mean.points(t),), "average"))
    if ema is not None:
        found.append(("ema", (ema, 1.0 - ema), "ema"))
    return found


def kept(h: Mapping[str, Any], t: int) -> str | None:
    """The name of the array that holds a parameter's average after t steps: that of the tail, else
    the moving one. None as long as it is the parameter itself. Raises LookupError without any."""
    if h["average"] is not None:
        return "average" if h["average"].points(t) else None
    if h["ema"] is not None:
        return "ema"
    raise LookupError
