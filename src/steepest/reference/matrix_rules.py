"""The matrix rules: directions of ``steepest.matrix``, which are plain NumPy and are what the
optimizers call too. Their bits are those of one machine's BLAS."""

import zlib
from typing import Any

from steepest.matrix import kron, low_rank
from steepest.matrix import muon as orthogonal
from steepest.matrix import shampoo as roots
from steepest.matrix import soap as rotated
from steepest.reference.types import Array, State


def muon(
    p: Array, g: Array, state: State, t: int, *,
    lr: float, ns_coefficients: Any, ns_dtype: str | None = None, **hyper: Any,
) -> None:  # fmt: skip
    """Muon, for two axes or more, in p's type."""
    _in_own_type(ns_dtype)
    _descend(p, state, lr, orthogonal.direction(g, state, t, coefficients=ns_coefficients, **hyper))


def normuon(
    p: Array, g: Array, state: State, t: int, *,
    lr: float, ns_coefficients: Any, ns_dtype: str | None = None, **hyper: Any,
) -> None:  # fmt: skip
    """NorMuon, for two axes or more, in p's type."""
    _in_own_type(ns_dtype)
    own = hyper | {"coefficients": ns_coefficients}
    _descend(p, state, lr, orthogonal.normuon_direction(g, state, t, **own))


def _in_own_type(ns_dtype: str | None) -> None:
    """Raises ValueError for a type that NumPy does not have."""
    if ns_dtype is not None:
        raise ValueError(f"ns_dtype = {ns_dtype!r}: the reference iterates in the parameter's type")


def soap(
    p: Array, g: Array, state: State, t: int, *, lr: float, decay: float, **hyper: Any
) -> None:
    """SOAP; its first step leaves p as it is."""
    if t > 1 and decay:
        p *= p.dtype.type(1.0 - lr * decay)
    _descend(p, state, lr, rotated.direction(g, state, t, **hyper))


def shampoo(p: Array, g: Array, state: State, t: int, *, lr: float, **hyper: Any) -> None:
    """Shampoo."""
    _descend(p, state, lr, roots.direction(g, state, t, **hyper))


def psgdkron(
    p: Array, g: Array, state: State, t: int, *, lr: float, name: str, **hyper: Any
) -> None:
    """PSGD-Kron; its random numbers follow from the parameter's name."""
    begun = ("max_size_triangular", "min_ndim_triangular", "memory_save_mode", "precond_init_scale")
    own = {key: x for key, x in hyper.items() if key not in begun}
    found = kron.direction(g, state, t, stream=zlib.crc32(name.encode()), **own)
    _descend(p, state, lr, found)


def galore(p: Array, g: Array, state: State, t: int, *, lr: float, **hyper: Any) -> None:
    """GaLore."""
    _descend(p, state, lr, low_rank.galore_direction(g, state, t, **hyper))


def apollo(p: Array, g: Array, state: State, t: int, *, lr: float, name: str, **hyper: Any) -> None:
    """APOLLO; its projections follow from the parameter's name."""
    stream = zlib.crc32(name.encode())
    _descend(p, state, lr, low_rank.apollo_direction(g, state, t, stream=stream, **hyper))


def _descend(p: Array, state: State, lr: float, found: tuple[Array, State]) -> None:
    d, new = found
    p -= p.dtype.type(lr) * d
    for key, x in new.items():
        state[key][...] = x
