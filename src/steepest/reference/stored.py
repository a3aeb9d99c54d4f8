"""How the arrays of a step are stored, and when: between passes over memory, and at its end."""

from typing import Any

import numpy as np

from steepest.codecs import decoded, encoded, joined, split
from steepest.reference.types import Array, State

__all__ = ["Numbers", "Stored", "next_pass"]


class Numbers(dict[str, Array]):
    """The state of a parameter as the numbers that a rule computes with."""

    def __init__(self, stored: "Stored") -> None:
        super().__init__()
        self.stored = stored


class Stored:
    """A parameter and its state: as they are stored, and as numbers, `p` and `state`.

    What is stored in the type that a rule computes in is itself among the numbers.
    """

    def __init__(self, p: Array, state: State, state_dtype: Any, master: str | None) -> None:
        self.real: Any = np.float64 if p.dtype == np.float64 or _wide(state_dtype) else np.float32
        self._p, self._state = p, state
        self._key = {"split16": "remainder", "float32": "master"}.get(str(master), "")
        self.p = self._decoded_parameter()
        self.state = Numbers(self)
        rest = {key: x for key, x in state.items() if key != self._key}
        self.state.update({key: self._numbers(x) for key, x in rest.items()})
        self._decoded = {key for key, x in self.state.items() if x is not state[key]}

    def _decoded_parameter(self) -> Array:
        beside = self._state.get(self._key)
        if beside is None:
            return self._numbers(self._p)
        exact = joined(self._p, beside) if self._key == "remainder" else beside
        return np.array(exact, self.real)

    def _encode_parameter(self) -> None:
        beside = self._state.get(self._key)
        if beside is None:
            self._p[...] = encoded(self.p, self._p.dtype)
            return
        exact = encoded(self.p, np.dtype(np.float32))
        if self._key == "remainder":
            high, beside[...] = split(exact)
            self._p[...] = high.view(self._p.dtype)
        else:
            beside[...] = exact
            self._p[...] = encoded(exact, self._p.dtype)

    def _numbers(self, x: Array) -> Array:
        exact = x.dtype.kind in "iub" or x.dtype in (np.float64, self.real)
        return x if exact else decoded(x, self.real)

    def encode(self) -> None:
        """Stores what has changed."""
        if self.p is not self._p:
            self._encode_parameter()
        for key, x in self.state.items():
            if key in self._decoded:
                self._state[key][...] = encoded(x, self._state[key].dtype)
            else:
                self._state[key] = x

    def reread(self, *keys: str) -> None:
        """Makes of numbers what is read once they have been stored: of the states that are named,
        or of the parameter."""
        for key in keys:
            x, stored = self.state[key], self._state[key]
            if x is not stored:
                x[...] = decoded(encoded(x, stored.dtype), x.dtype)
        if not keys and self.p is not self._p:
            self._encode_parameter()
            self.p[...] = self._decoded_parameter()


def next_pass(state: State, *keys: str) -> None:
    """Ends a pass over memory: the next one reads what this one has stored of the states that are
    named; of the parameter where none is."""
    if isinstance(state, Numbers):
        state.stored.reread(*keys)


def _wide(state_dtype: Any) -> bool:
    """Whether a format of states is float64."""
    if isinstance(state_dtype, str) or state_dtype is None:
        return state_dtype == "float64"
    return "float64" in dict(state_dtype).values()
