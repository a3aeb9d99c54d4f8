"""The option ``copies``: tensors that a step writes the new parameters to, beside these."""

from collections.abc import Mapping, Sequence
from typing import Any

from steepest.core import trees
from steepest.extras import require
from steepest.torch import views

torch: Any = require("torch", extra="torch", purpose="steepest.torch")

__all__ = ["array", "given", "given_for_all", "places"]


def given_for_all(
    groups: Sequence[Mapping[str, Any]], copies: Any, grouped: bool, known: Mapping[Any, Any]
) -> dict[Any, Any]:
    """The copies of all groups' parameters, by parameter, with those that are `known`; if
    `grouped`, each group has a part of `copies`. Raises TypeError or ValueError for those that do
    not fit."""
    if copies is None:
        return dict(known)
    parts = trees.take(_list_of(groups), copies, "copies") if grouped else [copies]
    found: dict[Any, Any] = {}
    for group, part in zip(groups, parts, strict=True):
        found |= given(group, part)
    if not known.keys().isdisjoint(found):
        raise ValueError("copies of a parameter are given twice: as an argument and in its group")
    return {**known, **found}


def given(group: Mapping[str, Any], copies: Any) -> dict[Any, Any]:
    """The copies of a group's parameters, by parameter: one tensor, or one or None for each of
    them, in their order or by name. Raises TypeError or ValueError for those that do not fit."""
    if copies is None:
        return {}
    params = group["params"]
    if isinstance(copies, torch.Tensor):
        copies = [copies]
    if hasattr(copies, "__next__"):
        copies = list(copies)
    names = group.get("param_names")
    shape = _list_of(params)
    if names is not None and (isinstance(copies, Mapping) or any(map(_named, copies))):
        shape = trees.Node(True, list(names), shape.children)
    return {
        p: x for p, x in zip(params, trees.take(shape, copies, "copies"), strict=True)
        if x is not None
    }  # fmt: skip


def array(x: Any, name: str) -> Any:
    """The copy of a parameter as the optimizer inside takes it: the tensor, or an array over its
    memory. Raises TypeError if it cannot be written."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"copy of parameter {name!r} is a {type(x).__name__}; expected a tensor")
    own = views.array(x, f"copy of parameter {name!r}", writable=True)
    return x if views.ordinary(x) else own


def places(copies: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    """Those that the engine does not look at itself, with their places; see ``views.place``."""
    return [(x, views.place(x)) for x in copies.values() if not views.ordinary(x)]


def _list_of(items: Sequence[Any]) -> trees.Node:
    return trees.Node(False, list(range(len(items))), [None] * len(items))


def _named(x: Any) -> bool:
    return isinstance(x, tuple)
