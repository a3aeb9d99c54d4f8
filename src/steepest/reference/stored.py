"""How the arrays of a step are stored, and when: between passes over memory, and at its end."""

from typing import Any

import numpy as np

from steepest.codecs import (
    MASTERS,
    decoded,
    encoded,
    from_q8,
    is_short,
    noise,
    noise_base,
    stochastic,
    to_q8,
)
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

    def __init__(
        self,
        p: Array,
        state: State,
        state_dtype: Any,
        master: str | None,
        rounding: str,
        random: tuple[int, int, int],
    ) -> None:
        """`random` are the seed of what is rounded stochastically, the parameter's number, and the
        count of its steps."""
        self.real: Any = np.float64 if p.dtype == np.float64 or _wide(state_dtype) else np.float32
        self._p, self._kept = p, state
        self._random, self._passes = random, 0
        self._stochastic = rounding == "stochastic" and is_short(p.dtype)
        self._master = None if master is None else MASTERS[master]
        self.p = self._decoded_parameter()
        self.state = Numbers(self)
        kept = "" if self._master is None else self._master.key
        self._scales = {key: scale for key in state if (scale := _scale_of(key, state))}
        rest = {*state} - {kept, *self._scales.values()}
        self.state.update({key: self._state_numbers(key) for key in state if key in rest})
        self._decoded = {key for key, x in self.state.items() if x is not state[key]}

    def _decoded_parameter(self) -> Array:
        if self._master is None or self._master.key not in self._kept:
            return self._numbers(self._p)
        return np.array(self._master.joined(self._p, self._kept[self._master.key]), self.real)

    def _encode_parameter(self) -> None:
        if self._stochastic:
            base = noise_base(*self._random, self._passes + 1 if self._passes else 0)
            self._p[...] = stochastic(self.p, self._p.dtype, base)
            self._passes += 1
            return
        if self._master is None or self._master.key not in self._kept:
            self._p[...] = encoded(self.p, self._p.dtype)
            return
        exact = encoded(self.p, np.dtype(np.float32))
        self._p[...], self._kept[self._master.key][...] = self._master.split(exact, self._p.dtype)

    def _numbers(self, x: Array) -> Array:
        exact = x.dtype.kind in "iub" or x.dtype in (np.float64, self.real)
        return x if exact else decoded(x, self.real)

    def _state_numbers(self, key: str) -> Array:
        scale = self._scales.get(key)
        if scale is None:
            return self._numbers(self._kept[key])
        square = scale.endswith(_ROOT_SCALE)
        return from_q8(self._kept[key], self._kept[scale], square).astype(self.real)

    def _encode_state(self, key: str, x: Array) -> None:
        """Stores the numbers of a state that is stored otherwise."""
        scale = self._scales.get(key)
        if scale is None:
            self._kept[key][...] = encoded(x, self._kept[key].dtype)
            return
        square = scale.endswith(_ROOT_SCALE)
        bits = noise(noise_base(*self._random, 1), x.size)
        self._kept[key][...], self._kept[scale][...] = to_q8(x, square, bits)

    def encode(self) -> None:
        """Stores what has changed."""
        if self.p is not self._p:
            self._encode_parameter()
        for key, x in self.state.items():
            if key in self._decoded:
                self._encode_state(key, x)
            else:
                self._kept[key] = x

    def reread(self, *keys: str) -> None:
        """Makes of numbers what is read once they have been stored: of the states that are named,
        or of the parameter."""
        for key in keys:
            x = self.state[key]
            if x is not self._kept[key]:
                self._encode_state(key, x)
                x[...] = self._state_numbers(key)
        if not keys and self.p is not self._p:
            self._encode_parameter()
            self.p[...] = self._decoded_parameter()


def next_pass(state: State, *keys: str) -> None:
    """Ends a pass over memory: the next one reads what this one has stored of the states that are
    named; of the parameter where none is."""
    if isinstance(state, Numbers):
        state.stored.reread(*keys)


_SCALE, _ROOT_SCALE = "_scale", "_root_scale"


def _scale_of(key: str, state: State) -> str:
    """The scales of a state with codes of 8 bits: of itself, or of its roots; else empty."""
    if state[key].dtype != np.uint8:
        return ""
    return next((key + end for end in (_SCALE, _ROOT_SCALE) if key + end in state), "")


def _wide(state_dtype: Any) -> bool:
    """Whether a format of states is float64."""
    if isinstance(state_dtype, str) or state_dtype is None:
        return state_dtype == "float64"
    return "float64" in dict(state_dtype).values()
