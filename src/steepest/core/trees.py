"""Trees of arrays: what ``params`` and ``grads`` may look like, and the names of their leaves."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steepest import nesting


@dataclass(frozen=True)
class Node:
    """The shape of a dict or list: its keys (numbers for a list) and the shapes of its children,
    where None is a leaf. `flat` where all are leaves."""

    mapping: bool
    keys: list[Any]
    children: list["Shape"]

    def __post_init__(self) -> None:
        object.__setattr__(self, "flat", all(child is None for child in self.children))

    flat: bool = False


Shape = Node | None


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
    `first_number`; a single array is named like a list's first. Raises TypeError for a set,
    ValueError for what contains itself.
    """
    names: list[str] = []
    leaves: list[Any] = []

    def walk(tree: Any, path: tuple[str, ...], first: int) -> Shape:
        if len(path) > nesting.DEEPEST:
            raise RecursionError
        if hasattr(tree, "__next__"):
            tree = list(tree)
        if isinstance(tree, (set, frozenset)):
            raise TypeError("params is a set, which has no order; give a list or a dict")
        if isinstance(tree, (list, tuple)) and _named_pairs(tree):
            tree = dict(tree)
        if isinstance(tree, Mapping):
            return Node(True, list(tree), [walk(x, (*path, str(k)), 0) for k, x in tree.items()])
        if isinstance(tree, (list, tuple)):
            children = [walk(x, (*path, str(first + i)), 0) for i, x in enumerate(tree)]
            return Node(False, list(range(len(tree))), children)
        names.append(".".join(path) if path else str(first))
        leaves.append(tree)
        return None

    try:
        return walk(tree, (), first_number), names, leaves
    except RecursionError:
        raise ValueError("params is nested too deeply, or contains itself") from None


def own_names(group: Mapping[str, Any], names: list[str]) -> list[str]:
    """The names of a group's parameters: its ``param_names``, or else those of its ``params``.

    Raises ValueError for others than as many different names.
    """
    given = group.get("param_names", names)
    if (
        not isinstance(given, (list, tuple))
        or not all(isinstance(name, str) for name in given)
        or len(given) != len(names)
    ):
        raise ValueError(
            f"param_names = {given!r}: expected a name for each of the group's {len(names)} "
            "parameters; or leave it out, and give params as a dict of names and arrays"
        )
    return list(given)


def take(shape: Shape, tree: Any, where: str = "grads") -> list[Any]:
    """The leaves of a tree of the given shape; those of a subtree that is None are None.

    Raises TypeError or ValueError, naming the place, if the tree has another shape.
    """
    if shape is None:
        return [tree]
    if tree is None:
        return [x for child in shape.children for x in take(child, None)]
    if type(tree) is not (dict if shape.mapping else list) or len(tree) != len(shape.keys):
        tree = _as_node(shape, tree, where)
    if shape.flat and not shape.mapping:
        return list(tree)
    try:
        branches = [tree[key] for key in shape.keys]
    except KeyError:
        raise _other_keys(shape, tree, where) from None
    if shape.flat:
        return branches
    leaves: list[Any] = []
    for key, child, branch in zip(shape.keys, shape.children, branches, strict=True):
        leaves += take(child, branch, f"{where}[{key!r}]")
    return leaves


def tree(shape: Shape, leaves: Iterator[Any]) -> Any:
    """Leaves in the shape that they were flattened from."""
    if shape is None:
        return next(leaves)
    children = [tree(child, leaves) for child in shape.children]
    return dict(zip(shape.keys, children, strict=True)) if shape.mapping else children


def _as_node(shape: Node, tree: Any, where: str) -> Any:
    """The tree as a dict or list of the shape's length, or the error that it is none."""
    if hasattr(tree, "__next__"):
        tree = list(tree)
    if shape.mapping:
        if isinstance(tree, (list, tuple)) and _named_pairs(tree):
            tree = dict(tree)
        if not isinstance(tree, Mapping):
            raise TypeError(f"{where} is a {type(tree).__name__}; expected a dict, as params")
        if len(tree) != len(shape.keys):
            raise _other_keys(shape, tree, where)
        return tree
    if not isinstance(tree, (list, tuple)):
        raise TypeError(
            f"{where} is a {type(tree).__name__}; expected a list of {len(shape.keys)}, as params"
        )
    if len(tree) != len(shape.keys):
        raise ValueError(f"{where} has {len(tree)} entries; expected {len(shape.keys)}, as params")
    return tree


def _other_keys(shape: Node, tree: Mapping[Any, Any], where: str) -> ValueError:
    missing = [key for key in shape.keys if key not in tree]
    unknown = [key for key in tree if key not in shape.keys]
    return ValueError(
        f"{where} has other keys than params: missing {missing}, unknown {unknown}; "
        "give None for a parameter without a gradient"
    )
