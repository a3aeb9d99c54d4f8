"""What is known of a rule: its formula, states, bytes, source, taken from its class."""

import inspect
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from steepest.core.optimizer import Optimizer
from steepest.memory import formats

__all__ = ["Facts", "bytes_moved", "bytes_stored", "facts"]

_SIDE = 256
"""Of the matrix that a rule is tried on; what it keeps besides whole arrays is small beside it."""


@dataclass(frozen=True)
class Facts:
    """A rule in words and numbers, with its default hyper-parameters.

    For each element of a parameter: stored, the bytes of the parameter, its gradient and its
    states; read and written, those that a step reads and writes. needs: what the update of an
    element looks at. paper: the first of the `source` that has a year.
    """

    rule: str
    name: str
    summary: str
    formula: str
    states: tuple[str, ...]
    stored: tuple[float, float, float]
    read: float
    written: float
    needs: str
    source: str
    paper: str


def facts(
    cls: type[Optimizer], dtype: str = "float32", grad_dtype: str | None = None, **options: Any
) -> Facts:
    """The facts of a rule's class, for parameters of a format.

    grad_dtype: that of gradients, the parameters' unless given. options: arguments of the class,
    such as ``state_dtype`` and ``master``. Raises ValueError for what does not go together.

    >>> import steepest as st
    >>> found = facts(st.AdamW)
    >>> found.states, found.stored, found.read, found.written, found.needs
    (('exp_avg', 'exp_avg_sq'), (4.0, 4.0, 8.0), 16.0, 12.0, 'element-wise')
    >>> found.paper
    'Loshchilov and Hutter 2017, arXiv:1711.05101'
    >>> facts(st.AdamW, "bfloat16", master="split16").stored
    (2.0, 2.0, 10.0)
    """
    make: Any = cls
    gradient = formats.named(dtype if grad_dtype is None else grad_dtype)
    optimizer: Optimizer = make(np.zeros((_SIDE, _SIDE), formats.named(dtype)), **options)
    read, written = bytes_moved(optimizer, gradient)
    states = tuple(key for key in optimizer.state["0"] if key != "step")
    return Facts(
        rule=cls.rule,
        name=cls.__name__,
        summary=inspect.cleandoc(cls.__doc__ or "").partition("\n")[0],
        formula=cls.formula,
        states=states,
        stored=_each(bytes_stored(optimizer, gradient)),
        read=_each((read,))[0],
        written=_each((written,))[0],
        needs=cls.needs,
        source=cls.source,
        paper=_paper(cls.source),
    )


def _each(counts: tuple[int, ...]) -> Any:
    """Numbers of bytes, for each element."""
    return tuple(round(n / _SIDE**2, 1) for n in counts)


def bytes_stored(
    optimizer: Optimizer, gradient: np.dtype[Any] | None = None
) -> tuple[int, int, int]:
    """The bytes of all parameters, of their gradients, and of their states without the counts.

    gradient: the type of gradients, the parameters' unless given.
    """
    params, gradients = _own(optimizer, gradient)
    every = (own.items() for own in optimizer.state.values())
    states = [x.nbytes for items in every for key, x in items if key != "step"]
    return params, gradients, sum(states)


def _own(optimizer: Optimizer, gradient: np.dtype[Any] | None) -> tuple[int, int]:
    """The bytes of all parameters, and of their gradients."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [p.size * (p.dtype if gradient is None else gradient).itemsize for p in params]
    return sum(p.nbytes for p in params), sum(gradients)


def bytes_moved(optimizer: Optimizer, gradient: np.dtype[Any] | None = None) -> tuple[int, int]:
    """The bytes that a step cannot but read and write, once each: (read, written).

    Gradients are read; parameters and states are read and written, but for states that are only
    read. Clipping by a norm reads the gradients once more. gradient: the type of gradients, the
    parameters' unless given.
    """
    params, gradients = _own(optimizer, gradient)
    read = written = params
    for state in optimizer.state.values():
        for key, x in state.items():
            if key != "step":
                read += x.nbytes
                written += 0 if key in (*optimizer.read_only, "initial") else x.nbytes
    return gradients + read, written


def _paper(source: str) -> str:
    """Authors, year and arXiv id of the first work that a source names, as far as it does."""
    dated = [part.strip() for part in source.split(";") if re.search(r"\b(19|20)\d\d\b", part)]
    first = dated[0] if dated else source.partition(";")[0]
    found = re.match(r".*?arXiv:[\w.]+\d|.*?\b(?:19|20)\d\d\b", first)
    return found[0] if found else first
