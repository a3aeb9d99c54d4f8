"""A mapping that remembers what was read of it."""

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["Asked"]


class Asked(Mapping[str, Any]):
    """A mapping that remembers which of its keys were read.

    What a pure function makes of it stays the same as long as these do.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._all = given
        self._read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self._read.add(key)
        return self._all[key]

    def __contains__(self, key: object) -> bool:
        self._read.add(str(key))
        return key in self._all

    def __iter__(self) -> Iterator[str]:
        self._read.update(self._all)
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    @property
    def keys_read(self) -> frozenset[str]:
        """The keys that were read so far."""
        return frozenset(self._read)
