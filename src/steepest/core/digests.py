"""The digest of an optimizer: one short text for all the bits that a run has come to."""

import hashlib
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np

from steepest.codecs import is_bfloat16
from steepest.memory.arrays import Array

__all__ = ["canonical", "digest"]

_BATCH = 1 << 16
"""How many elements are hashed at a time."""

# The bits of infinity: what is above them, without the sign, is NaN.
_INFINITE = {
    "float64": 0x7FF0_0000_0000_0000,
    "float32": 0x7F80_0000,
    "bfloat16": 0x7F80,
    "float16": 0x7C00,
}


def digest(
    params: Mapping[str, Array], state_dict: Mapping[str, Any], kept: Iterable[tuple[str, float]]
) -> str:
    """SHA-256 of parameters, states and counts in one canonical form, as 64 hexadecimal digits.

    kept: the numbers that rules keep of groups, by name. All else of ``state_dict`` is in it but
    the groups: what a user gives is in them. Names are sorted; elements are in C order, the lowest
    byte first; every NaN counts as one and the same.
    """
    total = hashlib.sha256(f"steepest 1\nrule {state_dict['rule']}\n".encode())
    rest = state_dict.keys() - {"rule", "state", "param_groups"}
    for name in sorted(rest):
        total.update(f"{name} {_text(state_dict[name])}\n".encode())
    for name, x in kept:
        total.update(f"{name} {_text(x)}\n".encode())
    for name in sorted(params):
        _add(total, f"{name!r}", params[name])
        own = state_dict["state"].get(name, {})
        for key in sorted(own):
            _add(total, f"{name!r} {key}", np.asarray(own[key]))
    return total.hexdigest()


def _text(value: Any) -> str:
    """A number, or dicts and lists of such, with all digits of floating-point numbers."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key!r}:{_text(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_text, value)) + "]"
    return repr(float(value)) if isinstance(value, float) else repr(value)


def _add(total: Any, name: str, x: Array) -> None:
    total.update(f"{name} {_name(x.dtype)} {x.shape}\n".encode())
    unsigned = np.dtype(f"u{x.dtype.itemsize}")
    parts: Any = np.nditer(
        x.view(unsigned), ["external_loop", "buffered", "zerosize_ok"], order="C",
        op_dtypes=[unsigned.newbyteorder("<")], casting="equiv", buffersize=_BATCH,
    )  # fmt: skip
    infinite = _INFINITE.get(_name(x.dtype))
    for part in parts:
        total.update(np.ascontiguousarray(_with_one_nan(part, infinite)))


def canonical(x: Array) -> Array:
    """The bits of an array as unsigned integers; those of any NaN are the same."""
    return _with_one_nan(x.view(f"u{x.dtype.itemsize}"), _INFINITE.get(_name(x.dtype)))


@cache
def _name(dtype: np.dtype[Any]) -> str:
    return "bfloat16" if is_bfloat16(dtype) else dtype.name


def _with_one_nan(bits: Array, infinite: int | None) -> Array:
    if infinite is None:
        return bits
    unsigned: Any = bits.dtype.type
    nan = (bits & unsigned(np.iinfo(unsigned).max >> 1)) > infinite
    return np.where(nan, unsigned(infinite + 1), bits) if nan.any() else bits
