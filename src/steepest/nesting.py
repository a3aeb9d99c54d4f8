"""How deeply containers lie in each other. Functions that walk them call themselves, and where a
program has raised the interpreter's limit, that does not protect the stack any more."""

from collections.abc import Mapping
from typing import Any

__all__ = ["DEEPEST", "check"]

DEEPEST = 200
"""So many containers may lie in each other."""


def check(tree: Any) -> None:
    """Raises RecursionError where dicts, lists and tuples lie in each other more than DEEPEST deep,
    as those do that contain themselves. One that lies in several places is walked once."""
    heights: dict[int, int] = {}
    kept: list[Any] = []  # so that no other object gets the id of one that was seen

    def height(x: Any, depth: int) -> int:
        if not isinstance(x, (Mapping, list, tuple)):
            return 0
        found = heights.get(id(x))
        if found is None:
            if depth >= DEEPEST:
                raise RecursionError
            found = 1
            kept.append(x)
            for child in x.values() if isinstance(x, Mapping) else x:
                found = max(found, 1 + height(child, depth + 1))
            heights[id(x)] = found
        if depth + found > DEEPEST:
            raise RecursionError
        return found

    height(tree, 0)
