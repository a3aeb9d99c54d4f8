"""Which instruction-set level the kernels run at.

The levels are the same sources compiled three times: ``base`` (any CPU of the platform), ``v3``
(x86-64 with AVX2) and ``v4`` (with AVX-512). The best one that this CPU runs is taken, unless the
environment variable ``STEEPEST_ISA`` names one. A level is checked before its modules are imported.
"""

import importlib
import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from steepest.kernels import machine

LEVELS = ("base", "v3", "v4")
FAMILIES = (
    "sgd",
    "adaptive",
    "adam",
    "adam_variants",
    "sign",
    "averaged",
    "layerwise",
    "parameter_free",
    "factored",
    "prepared",
)


@dataclass(frozen=True, eq=False)
class Kernels:
    """The compiled functions of one level, by name, as capsules."""

    level: str
    rules: dict[str, tuple[Any, Any, tuple[Any, ...]]]
    stages: dict[str, tuple[Any, Any, bool]]
    measures: dict[str, tuple[Any, Any]]
    codecs: dict[str, tuple[Any, Any, Any, Any]]
    folds: dict[str, tuple[Any, Any]]
    spread: tuple[Any, Any]


def available() -> tuple[str, ...]:
    """The levels that were built and that this CPU runs, the best last."""
    return tuple(
        level
        for level in LEVELS
        if machine.runs(level) and find_spec(f"steepest.kernels.stages_{level}") is not None
    )


def load(level: str) -> Kernels:
    """The kernels of a level. Raises ValueError if it is unknown or cannot run here."""
    if level not in LEVELS:
        raise ValueError(f"instruction-set level {level!r}: expected one of {', '.join(LEVELS)}")
    if level not in available():
        raise ValueError(
            f"instruction-set level {level!r} cannot be used: this CPU and this build have "
            f"{', '.join(available())}; unset STEEPEST_ISA to take the best"
        )
    *families, stages, codecs, tables = (
        importlib.import_module(f"steepest.kernels.{source}_{level}")
        for source in (*FAMILIES, "stages", "codecs", "tables")
    )
    rules = {name: entry for family in families for name, entry in family.RULES.items()}
    return Kernels(
        level, rules, stages.STAGES, stages.MEASURES, codecs.CODECS, tables.FOLDS, tables.SPREAD
    )


def use(level: str) -> None:
    """Takes a level from here on; optimizers follow at their next step."""
    global current
    current = load(level)


current = load(os.environ.get("STEEPEST_ISA") or available()[-1])
