"""Frozen values with checked fields, each a number or a schedule: what clips and penalties are.

Some of what stands in a group changes with time, as ``schedules.plateau`` does: it has
``state_dict`` and ``load_state_dict``. It may stand alone, in a tuple or in a field of a value.
"""

import copy
import inspect
import math
import numbers
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar

import numpy as np

__all__ = [
    "Call",
    "Check",
    "Number",
    "Value",
    "arguments",
    "axis",
    "continued",
    "count",
    "described",
    "flag",
    "number",
    "real",
    "snapshot",
    "whole",
]

Number = float | Callable[[int], float]
Check = Callable[[Any], Any]
"""Returns the settled value of a field. Raises TypeError or ValueError saying what is expected."""


def number(
    low: float = 0.0, high: float = math.inf, *, above: bool = False, finite: bool = True
) -> Check:
    """A number from `low` (`above`: greater than it) to `high`; infinite only if not `finite`."""
    if high < math.inf:
        expected = f"a number in {'(' if above else '['}{low:g}, {high:g}]"
    else:
        expected = f"a number {'greater than' if above else 'of at least'} {low:g}"

    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (numbers.Real, float)):
            raise TypeError(f"expected {expected}")
        try:
            x = float(value)
        except OverflowError:  # an integer beyond double
            raise ValueError(f"expected {expected}") from None
        if not low <= x <= high or (above and x == low) or (finite and x == math.inf):
            raise ValueError(f"expected {expected}")
        return x

    return check


def whole(low: int) -> Check:
    """An integer of at least `low`."""

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise TypeError(f"expected an integer of at least {low}")
        if value < low:
            raise ValueError(f"expected an integer of at least {low}")
        return int(value)

    return check


def flag(value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError("expected True or False")
    return value


def real(name: str, value: Any, expected: str, holds: Callable[[float], bool]) -> float:
    """An argument as a float, also an array of one number without axes.

    Raises TypeError for what is no real number, ValueError where it does not hold what is expected.
    """
    settled = value.item() if getattr(value, "ndim", None) == 0 else value
    if isinstance(settled, bool) or not isinstance(settled, (numbers.Real, float)):
        raise TypeError(f"{name} = {value!r}: expected {expected}")
    try:
        x = float(settled)
        if holds(x):
            return x
    except OverflowError:  # an integer beyond double
        pass
    raise ValueError(f"{name} = {value!r}: expected {expected}")


def count(name: str, value: Any, low: int) -> int:
    """An argument as an integer not below `low`. Raises TypeError or ValueError."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} = {value!r}: expected an integer") from None
    if number < low:
        raise ValueError(f"{name} = {number}: expected {low} or more")
    return number


def axis(value: Any) -> int | None:
    """An axis, or None for the whole array."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, numbers.Integral)):
        raise TypeError("expected the number of an axis, or None for the whole array")
    return None if value is None else int(value)


@dataclass(frozen=True)
class Value:
    """A value that checks its fields by `checks`. Fields may be schedules, but for the `fixed`."""

    checks: ClassVar[Mapping[str, Check]] = {}
    fixed: ClassVar[frozenset[str]] = frozenset()
    in_state: ClassVar[frozenset[str]] = frozenset()
    """Fields that become part of an optimizer's state, and are saved there."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if not callable(value) or f.name in self.fixed:
                object.__setattr__(self, f.name, self._checked(f.name, value))

    def _checked(self, name: str, value: Any) -> Any:
        try:
            return self.checks[name](value)
        except (TypeError, ValueError) as error:
            message = f"{type(self).__name__}: {name} = {value!r}: {error}"
            raise type(error)(message) from None

    def at(self, name: str, count: int) -> float:
        """The value of a field after `count` updates."""
        value = getattr(self, name)
        if type(value) is float:
            return value
        return float(self._checked(name, value(count))) if callable(value) else float(value)

    @property
    def variable(self) -> bool:
        """Whether a field is a schedule."""
        return any(callable(getattr(self, f.name)) for f in fields(self))


def described(x: Any) -> str:
    """As `repr`, but of the fields where a dataclass has the usual one.

    That marks what it is in the middle of, to cut recursion short, and Ctrl-C at the wrong moment
    leaves the mark: then it is ``...`` for ever, which will not do for a text that is compared.
    """
    if not is_dataclass(x) or not hasattr(type(x).__repr__, "__wrapped__"):
        return repr(x)
    shown = ", ".join(f"{f.name}={described(getattr(x, f.name))}" for f in fields(x) if f.repr)
    return f"{type(x).__qualname__}({shown})"


# What changes with time


def arguments(x: Any) -> dict[str, Any]:
    """What an object was made with, but for what is in an optimizer's state: its fields have the
    names of its class's arguments."""
    kept: frozenset[str] = getattr(x, "in_state", frozenset())
    names = inspect.signature(type(x)).parameters
    return {name: getattr(x, name, None) for name in names if name not in kept}


def _changing(x: Any) -> Iterator[Any]:
    """The objects in a value that change with time, in an order that hangs on nothing else."""
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
