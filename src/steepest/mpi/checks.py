"""Which optimizers can be sharded, what they need whole, and what all ranks must have in common."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from steepest.core import internal
from steepest.core.group_program import GroupProgram
from steepest.optimizers import Optimizer
from steepest.options import filters

__all__ = [
    "check_copies",
    "check_masks",
    "check_rules",
    "checked",
    "needs_whole",
    "settings_of",
]


def needs_whole(program: GroupProgram) -> bool:
    """Whether something of the group needs whole parameters. Norms do not: they are combined."""
    sums = program.sums_arrays or bool(program.units) or bool(program.h["cautious"])
    return sums or program.rule.prepares or program.scales


def settings_of(optimizer: Optimizer) -> list[str]:
    """The hyper-parameters as text that is the same in every process."""
    facts = [f"{optimizer.updates} updates, nonfinite={optimizer.nonfinite!r}"]
    for i, group in enumerate(optimizer.param_groups):
        rule = internal.rule_of(optimizer, group)
        facts += [f"{key}={group[key]!r} in group {i}" for key in rule.hyper_names]
    return [re.sub(r" at 0x[0-9a-fA-F]+", "", fact) for fact in facts]


def checked(made: Any) -> Optimizer:
    """The optimizer that was made. Raises TypeError for anything else."""
    if not isinstance(made, Optimizer):
        raise TypeError(
            f"make gave a {type(made).__name__}; expected the class of an optimizer, such as "
            "st.AdamW"
        )
    return made


def check_rules(optimizer: Optimizer) -> None:
    """Raises ValueError for a rule whose sums would be over all ranks."""
    for program in internal.group_programs(optimizer):
        if program.rule.needs == "global":
            raise ValueError(
                f"{program.rule.cls.__name__} needs sums over all parameters, which no rank has: "
                "take another rule, or let every rank have all state, with gradients from "
                "st.mpi.mean"
            )


def check_copies(hyper: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> None:
    """Raises ValueError for copies, of which a rank would write the part that it steps."""
    if any(x.get("copies") is not None for x in (hyper, *groups)):
        raise ValueError(
            "copies of parameters that are stepped in parts: make them of the parameters after the "
            "step"
        )


def check_masks(value: Any) -> None:
    """Raises ValueError for masks, which have the shapes of whole parameters."""
    if isinstance(value, filters.mask) and value.masks is not None:
        raise ValueError(
            "masks are given as whole arrays, of which no rank has all: give filters.mask() and "
            "load a state that has them"
        )
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for x in value:
            check_masks(x)
