"""How arrays are stored. A format says once what NumPy calls an element, in which type blocks of
them are computed, which codec turns one into the other, and what checkpoints call it.

Rules know no formats: the engine hands them blocks of float32 or float64. A further format is one
`Format`, registered, and one codec of its name in ``kernels/leveled/``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest.kernels import sources

Array = NDArray[Any]

__all__ = ["FORMATS", "Format", "borrowed", "computed", "of", "register"]


@dataclass(frozen=True)
class Format:
    """How the elements of an array are stored.

    name: what errors call it. dtype: NumPy's type of a stored element, by which a format is found;
    no two formats share one. computed: float32 or float64, the type of the blocks that rules get.
    codec: the name in CODECS of the functions that walk stored elements of any strides and make
    blocks of them. code: the name of the type in a checkpoint. dlpack: the code and bits by which
    DLPack knows it, for tensors. decode, encode: the codec in NumPy, which has the same bits; they
    take an array of any shape and return a new one, or the same where nothing is to be done.

    Arrays whose dtype is the computing type itself are borrowed, not decoded, where their blocks
    are contiguous and aligned.
    """

    name: str
    dtype: np.dtype[Any]
    computed: np.dtype[Any]
    codec: str
    code: str
    dlpack: tuple[int, int]
    decode: Callable[[Array], Array]
    encode: Callable[[Array], Array]


FORMATS: dict[np.dtype[Any], Format] = {}
"""The formats that parameters and gradients may have, by dtype; see `register`."""


def register(x: Format) -> None:
    """Makes arrays of the format's dtype parameters and gradients that can be stepped.

    Raises ValueError for a computing type that rules have not, or a dtype that another has.
    """
    if x.computed not in _COMPUTED:
        raise ValueError(
            f"format {x.name!r} is computed in {x.computed}; expected float32 or float64"
        )
    if FORMATS.get(x.dtype, x) != x:
        raise ValueError(f"{x.dtype} is how {FORMATS[x.dtype].name!r} is stored already")
    sources.know(x.dtype, *x.dlpack)
    FORMATS[x.dtype] = x


def of(x: Array) -> Format:
    """The format of an array. Raises TypeError for a dtype that is not one's."""
    try:
        return FORMATS[x.dtype]
    except KeyError:
        raise TypeError(f"arrays of {x.dtype} cannot be stepped; expected {expected()}") from None


def computed(x: Array) -> np.dtype[Any]:
    """The type in which blocks of x are computed; that of x itself if it has no format."""
    found = FORMATS.get(x.dtype)
    return x.dtype if found is None else found.computed


def borrowed(x: Array) -> bool:
    """Whether blocks of x need no codec, where they are contiguous and aligned."""
    return x.dtype == computed(x)


def expected() -> str:
    """The names of all formats, for errors: ``float32 or float64``."""
    *names, last = (x.name for x in FORMATS.values())
    return f"{', '.join(names)} or {last}"


def _same(x: Array) -> Array:
    return x


_COMPUTED: tuple[np.dtype[Any], ...] = (np.dtype(np.float32), np.dtype(np.float64))
_FLOATING = 2  # DLPack's code of IEEE 754's types

for _dtype, _code in zip(_COMPUTED, ("F32", "F64"), strict=True):
    register(
        Format(
            _dtype.name, _dtype, _dtype, "strided", _code, (_FLOATING, 8 * _dtype.itemsize),
            decode=_same, encode=_same,
        )
    )  # fmt: skip
