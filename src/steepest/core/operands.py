"""The arrays of a parameter in the order in which a rule and the operations around it take them."""

from dataclasses import dataclass
from typing import Any

from steepest.kernels.engine import SPARE_OPERAND

__all__ = ["Operands", "PlacedOperation", "operands"]


@dataclass(frozen=True)
class Operands:
    """The arrays of the group's parameters that have the parameter's shape, and the operations,
    which call theirs by number. One for parameters that the rule takes by elements, one for those
    that it takes by rows and columns."""

    bound: tuple[str, ...]
    """The states: the rule's and then those of operations."""
    taken: int
    """How many arrays the rule itself takes."""
    place: dict[str | None, int]
    """The operand number of each array."""
    before: list["PlacedOperation"]
    after: list["PlacedOperation"]
    late: list["PlacedOperation"]


PlacedOperation = tuple[str, tuple[float, ...], int]
"""An operation as the plan takes it: name, coefficients, the number of its own array or 0."""


def operands(
    first: int,
    own: tuple[str, ...],
    operation_states: tuple[str, ...],
    makes: tuple[str, ...],
    operations: Any,
) -> Operands:
    """The rule takes `first` arrays that are no states, and then its own; operations are (name,
    numbers, name of its own array or None)."""
    bound = (*own, *operation_states)
    place: dict[str | None, int] = {name: 2 + first + i for i, name in enumerate((*bound, *makes))}
    place |= {None: 0, "spare": SPARE_OPERAND}
    before, after, late = (
        [(name, numbers, place[own]) for name, numbers, own in some] for some in operations
    )
    return Operands(bound, first + len(own), place, before, after, late)
