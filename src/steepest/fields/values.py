"""Frozen values with checked fields: what clips, filters, penalties and averages are."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from steepest.fields.checks import checks_of

__all__ = ["Number", "Value"]

Number = float | Callable[[int], float]
"""A number, or a schedule: a function of the number of updates done so far."""


@dataclass(frozen=True)
class Value:
    """A value whose fields are checked by what stands in their types."""

    in_state: ClassVar[frozenset[str]] = frozenset()
    """Fields that become part of an optimizer's state, and are saved there."""
    owner: ClassVar[str]
    """Its name in messages, such as ``clip.norm``."""

    family: ClassVar[dict[str, type[Any]] | None] = None
    """The classes of its family by name: a class enters by being defined, in that order."""

    def __init_subclass__(cls, family: dict[str, type[Any]] | None = None) -> None:
        """With `family`, the class is the base of one, which begins empty. A class whose name
        begins with an underscore does not enter. Raises TypeError for a name that is taken."""
        cls.owner = f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"
        if family is not None:
            cls.family = family
        elif cls.family is not None and not cls.__name__.startswith("_"):
            other = cls.family.setdefault(cls.__name__, cls)
            if other.__module__ != cls.__module__:
                raise TypeError(f"{other.owner} has this name already: call {cls.owner} otherwise")
            cls.family[cls.__name__] = cls  # in a notebook it may be defined again

    def __post_init__(self) -> None:
        for name, check in checks_of(type(self)).items():
            value = check.check(getattr(self, name), self.owner, name)
            object.__setattr__(self, name, value)

    def at(self, name: str, count: int) -> float:
        """The value of a field after `count` updates."""
        value = getattr(self, name)
        if type(value) is float:
            return value
        if not callable(value):
            return float(value)
        return float(checks_of(type(self))[name].at(value, count, self.owner, name))

    @property
    def variable(self) -> bool:
        """Whether a field is a schedule."""
        return any(callable(getattr(self, f.name)) for f in fields(self))
