"""Which instruction-set level the kernels run at, and whose rules there are.

The levels are the same sources compiled three times: ``base`` (any CPU of the platform), ``v3``
(x86-64 with AVX2) and ``v4`` (with AVX-512). The best one that this CPU runs is taken, unless the
environment variable ``STEEPEST_ISA`` names one. A level is checked before its modules are imported.

The rules are this library's and those of the packages that were registered.
"""

import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from steepest.kernels import capsules, leveled, machine

LEVELS = ("base", "v3", "v4")
TABLES = ("OPERATIONS", "MEASURES", "CODECS", "COMBINERS", "SPREADS", "STORED")
"""What modules of ``leveled`` offer beside their RULES: dicts by name, joined."""

Rule = tuple[Any, Any, tuple[tuple[Any, ...], ...]]


class Rules(dict[str, Rule]):
    """The rules of one level by name. Raises LookupError for one that is not there."""

    def __init__(self, level: str) -> None:
        super().__init__()
        self.level = level
        self.modules: dict[str, str] = {}
        """Where each rule comes from."""

    def __missing__(self, name: str) -> Rule:
        places = ", ".join(dict.fromkeys(self.modules.values()))
        raise LookupError(
            f"there is no compiled rule {name!r} at level {self.level!r}; looked in {places}. A "
            "class names the module of its rules in its attribute `kernels`"
        )

    def take(self, module: ModuleType) -> None:
        """Adds the rules of a module, all or none.

        Raises TypeError for what are no rules of this contract, ValueError for a name that another
        module has taken.
        """
        found = getattr(module, "RULES", None)
        if not isinstance(found, dict) or not found:
            raise TypeError(
                f'{module.__name__} has no rules: expected RULES = {{"name": rule(f, f), ...}}'
            )
        for name, entry in found.items():
            _check(name, entry, module.__name__)
            owner = self.modules.get(name, module.__name__)
            if owner != module.__name__:
                raise ValueError(
                    f"{module.__name__} has a rule {name!r}, which {owner} has already; give it "
                    "another name"
                )
        self.update(found)
        self.modules |= dict.fromkeys(found, module.__name__)


@dataclass(frozen=True, eq=False)
class Kernels:
    """The compiled functions of one level, by name, as capsules."""

    level: str
    rules: Rules
    operations: dict[str, tuple[Any, Any, bool]]
    measures: dict[str, tuple[Any, Any]]
    codecs: dict[str, tuple[Any, Any, Any, Any]]
    combiners: dict[str, tuple[Any, Any]]
    spreads: dict[str, tuple[Any, Any]]
    stored: dict[str, tuple[Any, ...]]
    """The loops of rules over arrays as they are stored, for each of ``stored_loops.SETS``."""


def available() -> tuple[str, ...]:
    """The levels that were built and that this CPU runs, the best last."""
    return tuple(level for level in LEVELS if machine.runs(level) and sources(level))


def sources(level: str) -> list[str]:
    """The names of the files of ``leveled`` that were built for a level."""
    end = f"_{level}"
    modules = (module.name for module in iter_modules(leveled.__path__))
    return sorted(name.removesuffix(end) for name in modules if name.endswith(end))


def load(level: str) -> Kernels:
    """The kernels of a level. Raises ValueError if it is unknown or cannot run here."""
    if level not in LEVELS:
        raise ValueError(f"instruction-set level {level!r}: expected one of {', '.join(LEVELS)}")
    if level not in available():
        raise ValueError(
            f"instruction-set level {level!r} cannot be used: this CPU and this build have "
            f"{', '.join(available())}; unset STEEPEST_ISA to take the best"
        )
    rules = Rules(level)
    tables: dict[str, dict[Any, Any]] = {name: {} for name in TABLES}
    for source in sources(level):
        module = importlib.import_module(f"{leveled.__name__}.{source}_{level}")
        if hasattr(module, "RULES"):
            rules.take(module)
        for name, table in tables.items():
            table |= getattr(module, name, {})
    for package in _registered:
        rules.take(_module(package, level))
    return Kernels(level, rules, **{name.lower(): table for name, table in tables.items()})


def use(level: str) -> None:
    """Takes a level from here on; optimizers follow at their next step."""
    global current
    current = load(level)


def register(module: str) -> None:
    """Adds the rules of another package's compiled module, by its full name.

    The module is, at each level, the best of ``module_v4``, ``module_v3``, ``module_base`` and
    ``module`` that is not above the level: one build for all CPUs will do. Once more does nothing.
    Raises ImportError if there is none or it cannot be imported, TypeError for rules that do not
    fit this version of steepest, ValueError for names that are taken.
    """
    if module not in _registered:
        current.rules.take(_module(module, current.level))
        _registered.append(module)


def _module(name: str, level: str) -> ModuleType:
    for candidate in _candidates(name, level):
        if find_spec(candidate) is not None:
            return importlib.import_module(candidate)
    raise ModuleNotFoundError(
        f"there is no module of compiled rules {name!r}: looked for "
        f"{', '.join(_candidates(name, level))}; is the package built and installed?",
        name=name,
    )


def _candidates(name: str, level: str) -> Iterator[str]:
    """The modules that may run at a level, the best first."""
    for lower in reversed(LEVELS[: LEVELS.index(level) + 1]):
        yield f"{name}_{lower}"
    yield name


def _check(name: object, entry: object, module: str) -> None:
    """Raises TypeError unless the entry of RULES is a rule for this contract."""
    what = f"{module}: rule {name!r}"
    if not (
        isinstance(name, str)
        and isinstance(entry, tuple)
        and len(entry) == 3
        and isinstance(entry[2], tuple)
        and all(isinstance(reduction, tuple) and len(reduction) in (3, 5) for reduction in entry[2])
    ):
        raise TypeError(f"{what} is {entry!r}: expected what rule(f, f) of rules.pxd returns")
    wanted = list(zip(entry[:2], capsules.RULE, strict=True))
    for reduction in entry[2]:
        loops = zip(reduction[:2], capsules.SURVEY[:2], strict=True)
        wanted += [] if reduction[:2] == (None, None) else loops
        by_rows = len(reduction) == 5
        wanted += (
            zip(reduction[3:], capsules.TABLE, strict=True)
            if by_rows
            else [(reduction[2], capsules.SURVEY[2])]
        )
    for capsule, expected in wanted:
        found = capsules.name(capsule)
        if found == expected:
            continue
        kind, _, contract = expected.rpartition(".")
        if found is not None and found.rpartition(".")[0] == kind:
            raise TypeError(
                f"{what} was compiled for contract {found.rpartition('.')[2]}; this steepest has "
                f"contract {contract}: build the package again with this steepest"
            )
        given = f"{capsule!r}" if found is None else f"a capsule {found!r}"
        raise TypeError(f"{what} has {given} where a capsule {expected!r} was expected")


_registered: list[str] = []
current = load(os.environ.get("STEEPEST_ISA") or available()[-1])
