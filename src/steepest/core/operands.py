"""The arrays of a parameter in the order in which a rule and the stages around it take them."""

from dataclasses import dataclass
from typing import Any

from steepest.kernels.engine import SPARE_OPERAND

__all__ = ["Operands", "Staged", "operands"]


@dataclass(frozen=True)
class Operands:
    """The arrays of the group's parameters that have the parameter's shape, and the stages that go
    by their numbers; one for parameters that the rule takes by elements, one for those that it
    takes by rows and columns."""

    bound: tuple[str, ...]
    """The states: the rule's and then those of stages."""
    taken: int
    """How many arrays the rule itself takes."""
    place: dict[str | None, int]
    """The operand number of each array."""
    before: list["Staged"]
    after: list["Staged"]
    late: list["Staged"]


Staged = tuple[str, tuple[float, ...], int]
"""A stage as the plan takes it: name, coefficients, the number of its own array or 0."""


def operands(
    first: int,
    own: tuple[str, ...],
    of_stages: tuple[str, ...],
    makes: tuple[str, ...],
    stages: Any,
) -> Operands:
    """The rule takes `first` arrays that are no states, and then its own; stages are (name,
    numbers, name of its own array or None)."""
    bound = (*own, *of_stages)
    place: dict[str | None, int] = {name: 2 + first + i for i, name in enumerate((*bound, *makes))}
    place |= {None: 0, "spare": SPARE_OPERAND}
    before, after, late = (
        [(stage, numbers, place[own]) for stage, numbers, own in some] for some in stages
    )
    return Operands(bound, first + len(own), place, before, after, late)
