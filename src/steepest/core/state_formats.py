"""In which formats the states of a group are stored: the option ``state_dtype``."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from steepest import codecs
from steepest.memory import formats

__all__ = ["StateFormats", "bits_of", "checked", "checked_master"]

Names = str | None | tuple[tuple[str, str], ...]


def checked(value: Any) -> Names:
    """``state_dtype`` as groups have it: None, the name of a format, or pairs (state, name).

    Raises TypeError or ValueError for anything else.
    """
    if value is None:
        return None
    pairs = tuple(value.items()) if isinstance(value, Mapping) else value
    if isinstance(pairs, (tuple, list)):
        if not all(len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
            raise TypeError(f"state_dtype = {value!r}: expected names of states with a dtype each")
        return tuple((key, _name(x)) for key, x in pairs)
    return _name(value)


def _name(x: Any) -> str:
    """The name of a format: ``"q8"``, ``"float16"``, ``numpy.float16`` or ``torch.float16``."""
    if isinstance(x, str):
        name = x
    else:
        try:
            name = np.dtype(x).name
        except TypeError:
            name = str(x).removeprefix("torch.")
    known = [*formats.names(), *formats.SCALED]
    if name not in known:
        raise ValueError(f"state_dtype = {x!r}: expected one of {', '.join(known)}")
    return name


def checked_master(value: str | None) -> str | None:
    """``master`` as groups have it. Raises ValueError for one that there is not."""
    if value is None or value in codecs.MASTERS:
        return value
    known = ", ".join(map(repr, codecs.MASTERS))
    raise ValueError(f"master = {value!r}: expected None or one of {known}")


def bits_of(dtype: str | None) -> str | None:
    """What arrays of uint16 hold, as the argument ``dtype`` says. Raises ValueError."""
    if dtype in (None, "bfloat16"):
        return dtype
    raise ValueError(
        f'dtype = {dtype!r}: expected None, or "bfloat16" for arrays of uint16 that hold its bits'
    )


class StateFormats:
    """The dtypes of the state arrays of one group that have the shape of their parameter."""

    def __init__(self, names: Names, points: tuple[str, ...]) -> None:
        """`points` are the states that begin as copies of the parameter: a format for all states
        is none for these, whose changes would be lost in it."""
        self._points = points
        self._all = names if isinstance(names, str) else None
        self.named = dict(names) if isinstance(names, tuple) else {}
        chosen = {self._all, *self.named.values()}
        self._wide = "float64" in chosen
        self.scales = not chosen.isdisjoint(formats.SCALED)
        """Whether one is asked for whose elements share scales."""

    @property
    def chosen(self) -> bool:
        """Whether any was asked for."""
        return self._all is not None or bool(self.named)

    def name(self, key: str, of_rule: bool) -> str | None:
        """The name of what was asked for a state, which may be the rule's or an operation's."""
        known = self.named.get(key)
        return self._all if known is None and of_rule and key not in self._points else known

    def blocks(self, p: Any) -> np.dtype[Any]:
        """The type in which blocks of a parameter and its states are computed."""
        return formats.FLOAT64 if self._wide else formats.computed(p)

    def scaled(self, key: str, size: int, of_rule: bool) -> formats.Scaled | None:
        """The format of a state of a parameter of `size` elements, if it is one with scales."""
        known = formats.SCALED.get(self.name(key, of_rule) or "")
        return None if known is None or size < known.least else known

    def of(self, key: str, p: Any, of_rule: bool) -> np.dtype[Any]:
        """The dtype of a state of a parameter that has no scales."""
        name = self.name(key, of_rule)
        if name is None or name in formats.SCALED:
            return formats.computed(p)
        return formats.named(name)
