"""NumPy's random generators as JSON values, and back.

A generator becomes [name of its bit generator, its state, its seed sequence or None]. The seed
sequence is what ``spawn`` uses. Positions within a generator's buffer, which NumPy takes as they
come, are checked: one from a damaged file would make it read beyond the buffer.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from steepest.checkpoint.error import CheckpointError

__all__ = ["made", "parts"]

_KINDS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64,
    )
}  # fmt: skip
_MOST_POOL = 1024


def parts(generator: np.random.Generator, what: str) -> list[Any]:
    """What makes the generator again: numbers, strings, lists, tuples and dicts. Raises
    CheckpointError for one whose bit generator is not NumPy's."""
    bits = generator.bit_generator
    name = type(bits).__name__
    if _KINDS.get(name) is not type(bits):
        raise CheckpointError(
            f"{what} uses the bit generator {name}; expected one of {', '.join(_KINDS)}"
        )
    return [name, _plain(bits.state), _seeds(getattr(bits, "seed_seq", None))]


def _plain(x: Any) -> Any:
    """Arrays as lists of Python's integers."""
    if isinstance(x, dict):
        return {key: _plain(y) for key, y in x.items()}
    return x.tolist() if isinstance(x, (np.ndarray, np.generic)) else x


def _seeds(sequence: Any) -> list[Any] | None:
    if type(sequence) is not np.random.SeedSequence:
        return None
    entropy: Any = sequence.entropy
    if not isinstance(entropy, int):
        entropy = [int(x) for x in np.asarray(entropy, object).reshape(-1)]
    key = [int(x) for x in sequence.spawn_key]
    return [entropy, key, sequence.pool_size, sequence.n_children_spawned]


def made(name: Any, state: Any, seeds: Any) -> np.random.Generator:
    """The generator with this state. Raises CheckpointError, or what NumPy raises, for another."""
    if name not in _KINDS:
        raise CheckpointError(f"a generator of kind {name!r}, which this version does not have")
    position, size = _place(name, state)
    if type(position) is not int or not 0 <= position <= size:
        raise CheckpointError(f"a generator at {position!r}; expected a place from 0 to {size}")
    bits = _KINDS[name](0 if seeds is None else _sequence(*seeds))
    bits.state = _arrays(state)
    if _plain(bits.state) != state:
        raise CheckpointError(f"a generator {name} with an invalid state")
    return np.random.Generator(bits)


def _place(name: str, state: Mapping[str, Any]) -> tuple[Any, int]:
    """Where in its buffer the generator is, and the buffer's size."""
    if name == "MT19937":
        return state["state"]["pos"], 624
    return (state["buffer_pos"], 4) if name == "Philox" else (0, 0)


def _arrays(x: Any) -> Any:
    if isinstance(x, dict):
        return {key: _arrays(y) for key, y in x.items()}
    return np.array(x, np.uint64) if isinstance(x, list) else x


def _sequence(entropy: Any, key: Any, pool: Any, spawned: Any) -> np.random.SeedSequence:
    if type(pool) is not int or not 4 <= pool <= _MOST_POOL:
        raise CheckpointError(f"a seed sequence with a pool of {pool!r}")
    return np.random.SeedSequence(
        entropy, spawn_key=tuple(key), pool_size=pool, n_children_spawned=spawned
    )
