"""Views of a sharded optimizer with whole parameters in place of one rank's parts."""

from collections.abc import Iterator, MutableMapping
from typing import Any

from steepest.memory.arrays import Array

__all__ = ["UnshardedGroup", "UnshardedOptimizer"]


class UnshardedGroup(MutableMapping[str, Any]):
    """A live group with whole parameters in place of this rank's parts."""

    def __init__(self, group: dict[str, Any], params: list[Array]) -> None:
        self._group, self._params = group, params

    def __getitem__(self, key: str) -> Any:
        return self._params if key == "params" else self._group[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._refuse(key)
        self._group[key] = value

    def __delitem__(self, key: str) -> None:
        self._refuse(key)
        del self._group[key]

    def _refuse(self, key: str) -> None:
        if key in ("params", "param_names"):
            raise TypeError(f"{key} of a sharded optimizer cannot change; make a new one")

    def __iter__(self) -> Iterator[str]:
        return iter(self._group)

    def __len__(self) -> int:
        return len(self._group)

    def __repr__(self) -> str:
        return repr(dict(self))


class UnshardedOptimizer:
    """A sharded optimizer as one process would have it: what is saved."""

    def __init__(self, param_groups: list[UnshardedGroup], state_dict: dict[str, Any]) -> None:
        self.param_groups = param_groups
        self._state_dict = state_dict

    def state_dict(self) -> dict[str, Any]:
        return self._state_dict
