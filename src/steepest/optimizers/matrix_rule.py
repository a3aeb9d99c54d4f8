"""What the matrix rules share: a direction on NumPy's BLAS, computed before the step commits."""

import zlib
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from steepest.core.optimizer import Optimizer
from steepest.memory import arrays
from steepest.memory.arrays import Array

__all__: list[str] = []


class MatrixRule(Optimizer, registered=False):
    """An optimizer whose step is  p ← p - lr · d  with a direction d of ``steepest.matrix``.

    BLAS runs outside the engine's parallel region, with threads of its own. The plan holds two
    arrays of the size of a parameter, its gradient as the prologue makes it and its next value; a
    step makes d, the new states and what the rule needs meanwhile, all freed after it.
    """

    needs = "matrix"
    prepares = True

    @staticmethod
    @abstractmethod
    def begun(shape: tuple[int, ...], dtype: Any, h: Mapping[str, Any]) -> dict[str, Array]:
        """All states of a parameter as they begin."""

    @staticmethod
    @abstractmethod
    def direction(
        name: str, g: Array, state: Mapping[str, Array], t: int, h: Mapping[str, Any]
    ) -> tuple[Array, dict[str, Array]]:
        """d, and the states that change, in new arrays."""

    @classmethod
    def initial(cls, key: str, p: Array, h: Mapping[str, Any]) -> Array:
        return cls.begun(p.shape, arrays.computed(p), h)[key]

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        raise NotImplementedError  # such a rule has no kernel: `prepare` is its step

    @classmethod
    def prepare(
        cls, name: str, p: Array, g: Array, state: dict[str, Array], t: int, h: Mapping[str, Any]
    ) -> None:
        with np.errstate(all="ignore"):
            d, new = cls.direction(name, g, state, t, h)
            np.multiply(d, p.dtype.type(h["lr"]), out=g)
            np.subtract(p, g, out=p)
        state.update({key: np.asarray(x, order="C") for key, x in new.items()})


def stream(name: str) -> int:
    """The number of a parameter's random stream: the same in whatever group or order it is.

    >>> stream("head.weight")
    2154464288
    """
    return zlib.crc32(name.encode())
