"""How arrays are stored. A format says once what NumPy calls an element, in which type blocks of
them are computed, which codec turns one into the other, and what checkpoints call it.

Rules know no formats: the engine hands them blocks of float32 or float64. A further format is one
`Format`, registered, and one codec of its name in ``kernels/leveled/codecs.pyx``.

bfloat16 has two dtypes, see ``steepest.codecs``; both are one format here.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest import codecs
from steepest.kernels import sources

Array = NDArray[Any]

__all__ = [
    "FORMATS",
    "SCALED",
    "Format",
    "Scaled",
    "alike",
    "borrowed",
    "computed",
    "decoded",
    "encoded",
    "named",
    "names",
    "of",
    "register",
    "wider",
]

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


@dataclass(frozen=True)
class Format:
    """How the elements of an array are stored.

    name: what errors call it, and its codec in CODECS. dtype: NumPy's type of a stored element, by
    which a format is found; no two formats share one. computed: float32 or float64, the type of the
    blocks that rules get, unless another array of the parameter needs the wider one. code: the name
    of the type in a checkpoint. dlpack: the code and bits by which DLPack knows it, for tensors.
    decode, encode: the codec in NumPy, which has the same bits: arrays of any shape, stored to
    `computed`, and float32 or float64 to stored. They return a new array, or the same where nothing
    is to be done.

    Arrays whose dtype is that of the blocks are borrowed, not decoded, where their blocks are
    contiguous and aligned.
    """

    name: str
    dtype: np.dtype[Any]
    computed: np.dtype[Any]
    code: str
    dlpack: tuple[int, int]
    decode: Callable[[Array], Array]
    encode: Callable[[Array], Array]


@dataclass(frozen=True)
class Scaled:
    """A format of states: codes, and a scale for each group of neighbours in C order.

    name: what the option ``state_dtype`` calls it. dtype: that of codes and scales. group: how many
    elements share a scale. least: states of fewer elements stay as they are without it. codec: the
    codecs of states that have a sign, and of squares. encode: numbers, and whether they are
    squares, as (codes, scales), rounded to nearest. decode: these, and whether they are of squares,
    as float32.
    """

    name: str
    dtype: np.dtype[Any]
    group: int
    least: int
    codec: tuple[str, str]
    encode: Callable[[Array, bool], tuple[Array, Array]]
    decode: Callable[[Array, Array, bool], Array]


SCALED: dict[str, Scaled] = {}
"""All formats with scales by name."""

SCALE, ROOT_SCALE = "_scale", "_root_scale"
"""What the names of scales end with: those of a state, and those of a state's square roots."""

FORMATS: dict[np.dtype[Any], Format] = {}
"""The formats that parameters, gradients and states may have, by dtype; see `register`."""


def register(x: Format) -> None:
    """Makes arrays of the format's dtype parameters, gradients and states that can be stepped.

    Raises ValueError for a computing type that rules have not, or a dtype that another has.
    """
    if x.computed not in (FLOAT32, FLOAT64):
        raise ValueError(
            f"format {x.name!r} is computed in {x.computed}; expected float32 or float64"
        )
    if FORMATS.get(x.dtype, x) != x:
        raise ValueError(f"{x.dtype} is how {FORMATS[x.dtype].name!r} is stored already")
    sources.know(x.dtype, *x.dlpack)
    FORMATS[x.dtype] = x


def found(dtype: Any) -> Format | None:
    """The format of arrays of a dtype; None if there is none."""
    known = FORMATS.get(dtype)
    if known is None and getattr(dtype, "name", None) == "bfloat16":  # of ml_dtypes
        first = FORMATS[codecs.BFLOAT16]
        known = _standard(first.name, dtype, first.computed, first.code, first.dlpack)
        register(known)
    return known


def of(x: Array) -> Format:
    """The format of an array. Raises TypeError for a dtype that is not one's."""
    known = found(x.dtype)
    if known is None:
        raise TypeError(f"arrays of {x.dtype} cannot be stepped; expected {expected()}")
    return known


def alike(x: np.dtype[Any], y: np.dtype[Any]) -> bool:
    """Whether two dtypes are of one format: ``BFLOAT16`` and that of ml_dtypes."""
    one, other = found(x), found(y)
    return one is not None and other is not None and one.name == other.name


def computed(x: Array) -> np.dtype[Any]:
    """The type in which blocks of x are computed; that of x itself if it has no format."""
    known = found(x.dtype)
    return x.dtype if known is None else known.computed


def wider(dtypes: Iterable[np.dtype[Any]]) -> np.dtype[Any]:
    """The type in which blocks of several arrays are computed: float64 if one of them is that."""
    return FLOAT64 if FLOAT64 in dtypes else FLOAT32


def borrowed(x: Array) -> bool:
    """Whether blocks of x need no codec, where they are contiguous and aligned."""
    return x.dtype == computed(x)


def decoded(x: Array) -> Array:
    """The numbers of an array of any format: the array itself, or a new one of `computed`."""
    known = found(x.dtype)
    return x if known is None else known.decode(x)


def encoded(x: Array, dtype: np.dtype[Any]) -> Array:
    """Numbers as an array of a format's dtype: x itself if it is one."""
    return x if x.dtype == dtype else FORMATS[dtype].encode(decoded(x))


def names() -> list[str]:
    """The names of all formats."""
    return list(dict.fromkeys(x.name for x in FORMATS.values()))


def named(name: str) -> np.dtype[Any]:
    """The dtype of new arrays of a format. Raises ValueError for an unknown name."""
    if name == "bfloat16":
        return _new_bfloat16()
    for x in FORMATS.values():
        if x.name == name:
            return x.dtype
    raise ValueError(f"format {name!r}: expected one of {', '.join(names())}")


@cache
def _new_bfloat16() -> np.dtype[Any]:
    try:
        # No dependency, so type checkers may or may not find it.
        import ml_dtypes  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return codecs.BFLOAT16
    made = found(np.dtype(ml_dtypes.bfloat16))
    assert made is not None
    return made.dtype


def expected() -> str:
    """The names of all formats, for errors: ``float32 or float64``."""
    *first, last = names()
    return f"{', '.join(first)} or {last}"


_FLOATING, _BRAIN = 2, 4  # DLPack's codes


def _standard(
    name: str, dtype: np.dtype[Any], computed: np.dtype[Any], code: str, dlpack: tuple[int, int]
) -> Format:
    """A format whose codec in NumPy is that of ``steepest.codecs``."""

    def decode(x: Array) -> Array:
        return x if dtype == computed else codecs.decoded(x, computed)

    def encode(x: Array) -> Array:
        return x if x.dtype == dtype else codecs.encoded(x, dtype)

    return Format(name, dtype, computed, code, dlpack, decode, encode)


register(_standard("float32", FLOAT32, FLOAT32, "F32", (_FLOATING, 32)))
register(_standard("float64", FLOAT64, FLOAT64, "F64", (_FLOATING, 64)))
register(_standard("bfloat16", codecs.BFLOAT16, FLOAT32, "BF16", (_BRAIN, 16)))
register(_standard("float16", np.dtype(np.float16), FLOAT32, "F16", (_FLOATING, 16)))

SCALED["q8"] = Scaled(
    "q8", np.dtype(np.uint8), codecs.GROUP, 4096, ("q8", "q8_square"),
    codecs.to_q8, codecs.from_q8,
)  # fmt: skip
