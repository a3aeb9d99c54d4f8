"""Values that change with time, as ``schedules.plateau`` does: they have ``state_dict`` and
``load_state_dict``. Such a value stands in a group alone, in a tuple or in a field of a value.
"""

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

__all__ = ["Call", "arguments", "continued", "described", "snapshot"]


def described(x: Any) -> str:
    """As `repr`, but of the fields where a dataclass has the usual one.

    That marks what it is in the middle of, to cut recursion short, and Ctrl-C at the wrong moment
    leaves the mark: then it is ``...`` for ever, which will not do for a text that is compared.
    """
    if not is_dataclass(x) or not hasattr(type(x).__repr__, "__wrapped__"):
        return repr(x)
    shown = ", ".join(f"{f.name}={described(getattr(x, f.name))}" for f in fields(x) if f.repr)
    return f"{type(x).__qualname__}({shown})"


def arguments(x: Any) -> dict[str, Any]:
    """What an object was made with, but for what is in an optimizer's state: its fields have the
    names of its class's arguments."""
    kept: frozenset[str] = getattr(x, "in_state", frozenset())
    names = inspect.signature(type(x)).parameters
    return {name: getattr(x, name, None) for name in names if name not in kept}


def _changing(x: Any) -> Iterator[Any]:
    """The objects in a value that change with time, in an order that depends on nothing else."""
    if hasattr(x, "load_state_dict"):
        yield x
    elif isinstance(x, (tuple, list)):
        for part in x:
            yield from _changing(part)
    elif is_dataclass(x):
        for part in arguments(x).values():
            yield from _changing(part)


def _changes(x: Any) -> bool:
    return next(_changing(x), None) is not None


def _alike(x: Any, y: Any) -> bool:
    """Whether two values differ at most in the state of what changes with time."""
    if type(x) is not type(y):
        return False
    if isinstance(x, (tuple, list)):
        return len(x) == len(y) and all(map(_alike, x, y))
    if is_dataclass(x) or hasattr(x, "load_state_dict"):
        other = arguments(y)
        return all(_alike(part, other[name]) for name, part in arguments(x).items())
    return x is y or bool(np.all(x == y))


def snapshot(x: Any) -> Any:
    """The value, or a copy where something in it changes with time."""
    return copy.deepcopy(x) if _changes(x) else x


Call = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function and its arguments; see ``machine.at_once``."""


def continued(
    groups: Iterable[Mapping[str, Any]], loaded: Iterable[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], list[Call]]:
    """What groups hold once `loaded` ones have come, and calls that bring what they hold there.

    What changes with time stays, and gets the state of what comes in its place, so that whoever
    holds it goes on with the one that is used. What was made otherwise gives way; so does what
    would get two different states.
    """
    held: list[dict[str, Any]] = []
    told: dict[int, tuple[Any, Any]] = {}
    for group, new in zip(groups, loaded, strict=True):
        held.append(dict(new))
        for key, x in new.items():
            here = group.get(key)
            if not _changes(here) or not _alike(here, x):
                continue
            pairs = zip(_changing(here), _changing(x), strict=True)
            states = [(live, other.state_dict()) for live, other in pairs]
            if all(told.get(id(live), (live, state))[1] == state for live, state in states):
                told |= {id(live): (live, state) for live, state in states}
                held[-1][key] = here
    return held, [_told(live, state) for live, state in told.values()]


def _told(live: Any, state: Any) -> Call:
    """The call that gives an object a state, which a copy of it has taken first."""
    fresh = copy.deepcopy(live)
    fresh.load_state_dict(state)
    return dict.update, (vars(live), vars(fresh))
