"""What is known of a rule: its formula, states, bytes, source, taken from its class."""

import inspect
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from steepest.core.optimizer import Optimizer

__all__ = ["Facts", "bytes_moved", "facts"]

_SIDE = 256
"""Of the matrix that a rule is tried on; what it keeps besides whole arrays is small beside it."""


@dataclass(frozen=True)
class Facts:
    """A rule in words and numbers, with its default hyper-parameters.

    read, written: bytes of float32 arrays per parameter and step. needs: what the update of an
    element looks at. paper: the first of the `source` that has a year.
    """

    rule: str
    name: str
    summary: str
    formula: str
    states: tuple[str, ...]
    read: float
    written: float
    needs: str
    source: str
    paper: str


def facts(cls: type[Optimizer]) -> Facts:
    """The facts of a rule's class.

    >>> import steepest as st
    >>> found = facts(st.AdamW)
    >>> found.states, found.read, found.written, found.needs
    (('exp_avg', 'exp_avg_sq'), 16.0, 12.0, 'element-wise')
    >>> found.paper
    'Loshchilov and Hutter 2017, arXiv:1711.05101'
    """
    make: Any = cls
    optimizer: Optimizer = make(np.zeros((_SIDE, _SIDE), np.float32))
    read, written = bytes_moved(optimizer)
    states = tuple(key for key in optimizer.state["0"] if key != "step")
    return Facts(
        rule=cls.rule,
        name=cls.__name__,
        summary=inspect.cleandoc(cls.__doc__ or "").partition("\n")[0],
        formula=cls.formula,
        states=states,
        read=round(read / _SIDE**2, 1),
        written=round(written / _SIDE**2, 1),
        needs=cls.needs,
        source=cls.source,
        paper=_paper(cls.source),
    )


def bytes_moved(optimizer: Optimizer) -> tuple[int, int]:
    """The bytes that a step cannot but read and write, once each: (read, written).

    Gradients are read; parameters and states are read and written, but for states that are only
    read. Clipping by a norm reads the gradients once more.
    """
    params = sum(p.nbytes for group in optimizer.param_groups for p in group["params"])
    read = written = params
    for state in optimizer.state.values():
        for key, x in state.items():
            if key != "step":
                read += x.nbytes
                written += 0 if key in (*optimizer.read_only, "initial") else x.nbytes
    return params + read, written


def _paper(source: str) -> str:
    """Authors, year and arXiv id of the first work that a source names, as far as it does."""
    dated = [part.strip() for part in source.split(";") if re.search(r"\b(19|20)\d\d\b", part)]
    first = dated[0] if dated else source.partition(";")[0]
    found = re.match(r".*?arXiv:[\w.]+\d|.*?\b(?:19|20)\d\d\b", first)
    return found[0] if found else first
