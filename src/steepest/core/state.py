"""The state of an optimizer: dicts that tell when they are changed, and step counters."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from steepest.memory.arrays import Array


class Changes:
    """Whether anything was put into or taken out of the dicts that share this mark."""

    def __init__(self) -> None:
        self.any = True


class Marking(dict[Any, Any]):
    """A dict that calls ``mark`` before every change of its keys or values."""

    def mark(self) -> None:
        raise NotImplementedError

    def __setitem__(self, key: Any, value: Any) -> None:
        self.mark()
        super().__setitem__(key, value)

    def __delitem__(self, key: Any) -> None:
        self.mark()
        super().__delitem__(key)

    def __ior__(self, other: Any) -> Any:  # type: ignore[misc]
        self.mark()
        return super().__ior__(other)

    def clear(self) -> None:
        self.mark()
        super().clear()

    def pop(self, *arguments: Any) -> Any:
        self.mark()
        return super().pop(*arguments)

    def popitem(self) -> tuple[Any, Any]:
        self.mark()
        return super().popitem()

    def setdefault(self, key: Any, default: Any = None) -> Any:
        self.mark()
        return super().setdefault(key, default)

    def update(self, *arguments: Any, **items: Any) -> None:
        self.mark()
        super().update(*arguments, **items)


class WatchedDict(Marking):
    """A dict that marks every change of its keys or values, so that a plan made of them is not
    used any more. (The arrays in it are changed in place without a mark: they are the same.)"""

    changes: Changes | None = None

    def __init__(self, items: Mapping[str, Any], changes: Changes) -> None:
        super().__init__(items)
        self.changes = changes

    def mark(self) -> None:
        if self.changes is not None:  # None while being unpickled
            self.changes.any = True


def counters(n: int) -> list[Array]:
    """n step counters at 0: 0-d arrays side by side in memory."""
    together = np.zeros(n, np.int64)
    return [together[i : i + 1].reshape(()) for i in range(n)]


def counter(value: Any, name: str) -> Array:
    """A step counter as the engine wants it. Raises ValueError for what is no step count."""
    if type(value) is np.ndarray and value.dtype == np.int64 and value.shape == ():
        checked: Array = value if value.flags.writeable else value.copy()
    else:
        try:
            if np.ndim(value) != 0:  # which NumPy before 2.4 takes for a number, with a warning
                raise ValueError
            exact = int(value)
            if exact != value:
                raise ValueError
            checked = np.array(exact, np.int64)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"step of parameter {name!r} = {value!r}: expected a count") from None
    if not 0 <= checked < 2**62:
        raise ValueError(f"step of parameter {name!r} = {checked}: expected a count from 0 to 2^62")
    return checked
