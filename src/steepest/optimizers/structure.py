"""Trees of arrays: what ``params`` and ``grads`` may look like, and the names of their leaves."""

from collections.abc import Mapping, Sequence
from typing import Any

LEAF = None

# A tree's shape: LEAF, or (whether it is a mapping, [(key, shape)...]).
Shape = Any


def _named_pairs(tree: Any) -> bool:
    return bool(tree) and all(
        isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], str) for x in tree
    )


def is_groups(params: Any) -> bool:
    """Whether params is a list of groups ``{"params": ..., "lr": ...}``."""
    return (
        isinstance(params, Sequence)
        and not isinstance(params, str)
        and len(params) > 0
        and all(isinstance(group, Mapping) and "params" in group for group in params)
    )


def flatten(tree: Any, first_number: int = 0) -> tuple[Shape, list[str], list[Any]]:
    """The shape of a tree, and the names and values of its leaves in order.

    A leaf's name is its path, joined by dots. Numbers of the outermost list start at
    `first_number`; a single array is named like a list's first.
    """
    names: list[str] = []
    leaves: list[Any] = []

    def walk(tree: Any, path: tuple[str, ...], first: int) -> Shape:
        if hasattr(tree, "__next__"):
            tree = list(tree)
        if isinstance(tree, (set, frozenset)):
            raise TypeError("params is a set, which has no order; give a list or a dict")
        if isinstance(tree, (list, tuple)) and _named_pairs(tree):
            tree = dict(tree)
        if isinstance(tree, Mapping):
            return True, [(key, walk(x, (*path, str(key)), 0)) for key, x in tree.items()]
        if isinstance(tree, (list, tuple)):
            return False, [(i, walk(x, (*path, str(first + i)), 0)) for i, x in enumerate(tree)]
        names.append(".".join(path) if path else str(first))
        leaves.append(tree)
        return LEAF

    return walk(tree, (), first_number), names, leaves


def take(shape: Shape, tree: Any, leaves: list[Any], where: str = "grads") -> None:
    """Appends the leaves of a tree of the given shape to `leaves`; an absent subtree is None.

    Raises TypeError or ValueError, naming the place, if the tree has another shape.
    """
    if shape is LEAF:
        leaves.append(tree)
        return
    mapping, children = shape
    if tree is None:
        for _, child in children:
            take(child, None, leaves, where)
        return
    if mapping:
        if not isinstance(tree, Mapping):
            if not (isinstance(tree, (list, tuple)) and _named_pairs(tree)):
                raise TypeError(f"{where} is a {type(tree).__name__}; expected a dict like params")
            tree = dict(tree)
        if len(tree) != len(children) or any(key not in tree for key, _ in children):
            expected = [key for key, _ in children]
            missing = [key for key in expected if key not in tree]
            unknown = [key for key in tree if key not in expected]
            raise ValueError(
                f"{where} has other keys than params: missing {missing}, unknown {unknown}; "
                "give None for a parameter without a gradient"
            )
    else:
        if not isinstance(tree, (list, tuple)):
            if hasattr(tree, "__next__"):
                tree = list(tree)
            else:
                raise TypeError(
                    f"{where} is a {type(tree).__name__}; expected a list of {len(children)} "
                    "like params"
                )
        if len(tree) != len(children):
            raise ValueError(f"{where} has {len(tree)} entries; expected {len(children)}, as params")
    for key, child in children:
        if child is LEAF:
            leaves.append(tree[key])
        else:
            take(child, tree[key], leaves, f"{where}[{key!r}]")
