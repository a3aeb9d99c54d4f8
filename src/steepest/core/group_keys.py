"""Which keys a parameter group may have.

A key that no rule knows changes nothing, so it is refused here. In PyTorch's groups the keys of
schedulers and trainers live, too (``initial_lr``, ``max_momentum``, ``lr_scale``, ``name``): there
only what must be a slip of the pen is refused.
"""

import difflib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from steepest.core.common_options import GROUP_OPTIONS
from steepest.core.rule import RULES

__all__ = ["GROUP_KEYS", "check_borrowed", "check_own"]

GROUP_KEYS = ("params", "param_names", "rule")
"""What a group has beside hyper-parameters."""

_WHOLE = ("exclude", "overrides", "nonfinite", "state_dir", "dtype", "adamw", "adamw_for", "rules")
"""Arguments that hold for an optimizer, not for one of its groups."""

_CLOSE = 0.85
"""The ``difflib`` ratio from which on a foreign key is taken for a misspelt one."""


def check_own(group: Mapping[str, Any], where: str, rule: str, known: Sequence[str]) -> None:
    """Raises ValueError for a key of a group that its rule does not know."""
    for key in group:
        if key in known or key in GROUP_KEYS:
            continue
        _check_of_whole(key, where)
        raise ValueError(
            f"{where}: {rule} has no hyper-parameter {key!r}; it has {', '.join(known)}"
            f"{_meant(key, known, 0.6)}"
        )


def check_borrowed(cls: Any, group: Mapping[str, Any]) -> None:
    """Raises ValueError for a key of one of PyTorch's groups that is almost an argument of the
    class, or that holds for the whole optimizer.

    Keys that another rule knows stay, as do those with the whole name among their words:
    ``initial_lr``, ``weight_decay_norm``.
    """
    asked = (*cls.beside_rules, group.get("rule"))
    known = {*GROUP_OPTIONS, *_arguments(cls)}.union(
        *(_arguments(RULES[name]) for name in asked if name in RULES)
    )
    for key in group:
        _check_of_whole(key, "a group")
        near = "" if key in known or key in GROUP_KEYS else _meant(key, known, _CLOSE)
        if near and not any(key in _arguments(rule) for rule in RULES.values()):
            raise ValueError(
                f"key {key!r} of a group has no effect; keys of other programs may be there, "
                f"but not ones so like an argument{near}"
            )


def _arguments(cls: Any) -> set[str]:
    if not hasattr(cls, "fields"):  # L-BFGS, whose constructor is written by hand
        return inspect.signature(cls).parameters.keys() - {"params"}
    return {x.name for x in cls.fields.values() if not x.option} - {"params"}


def _check_of_whole(key: Any, where: str) -> None:
    if key in _WHOLE:
        raise ValueError(f"{where} has a key {key!r}; give it to the constructor, for all groups")


def _meant(key: Any, known: Iterable[str], ratio: float) -> str:
    """What may have been meant by a key, as part of a message; empty if nothing is like it."""
    near = difflib.get_close_matches(str(key).lower(), list(known), 1, ratio)
    if not near or (ratio == _CLOSE and f"_{near[0]}_" in f"_{key}_"):
        return ""
    return f"; did you mean {near[0]!r}?"
