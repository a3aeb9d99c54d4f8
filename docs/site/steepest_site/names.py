"""Which names the API reference has: all public ones, found in the package itself.

A rule, and a name in the ``__all__`` of a room, need no line here. A name of ``steepest`` that no
room claims, and a module that is neither a room nor internal, are errors: ``unclaimed`` has them,
and a test and the build fail.
"""

import ast
import importlib.util
import inspect
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import steepest as st
from steepest.optimizers import RULES


@dataclass(frozen=True)
class Room:
    """A page of the reference: a public module, and names of ``steepest`` that are defined in it.

    name: of the module, and of the page. title: of the page. homes: where names of ``steepest``
    that belong here are defined, besides. text: in place of the module's docstring.
    """

    name: str
    title: str
    homes: tuple[str, ...] = ()
    text: str = ""


ROOMS = (
    Room("schedules", "Schedules"),
    Room("clip", "Clipping"),
    Room("filters", "Filters"),
    Room("regularize", "Regularisation"),
    Room("average", "Averages"),
    Room("training", "Training", ("steepest.training",)),
    Room("logs", "Logs"),
    Room("tuning", "Tuning", ("steepest.tuning",)),
    Room("models", "Models"),
    Room("losses", "Losses"),
    Room("initializers", "Initial values"),
    Room("data", "Data"),
    Room("sklearn", "Estimators for scikit-learn"),
    Room("functional", "Steps over memory of others"),
    Room("torch", "PyTorch"),
    Room("mpi", "MPI"),
    Room("checkpoint", "Checkpoints", ("steepest.checkpoint",)),
    Room("convert", "Converters"),
    Room("codecs", "Codecs"),
    Room("reference", "Rules in NumPy"),
    Room("extension", "Rules of your own", ("steepest.extension",)),
    Room("testing", "Tests of rules and optimizers", ("steepest.core.verification",)),
    Room(
        "", "Threads and versions", ("steepest.kernels", "steepest.core.information"),
        "What a process has, and how many threads its steps use.",
    ),
)  # fmt: skip
"""In the order of the reference; the optimizers come before them."""

INTERNAL = (
    "cli", "core", "extras", "fields", "kernels", "matrix", "memory", "nesting", "subnormals",
)  # fmt: skip
"""Modules that are no part of the interface of Python."""

SPREAD = ("optimizers", "options")
"""Packages whose contents have places of their own: the rules, and four rooms."""

OPTIONAL = {"sklearn", "torch"}
"""Rooms whose import needs a package that may be absent; their names are read in the source."""


def module_of(room: Room) -> ModuleType | None:
    """The room's module, or None where it has none, or needs a package that is absent."""
    if not room.name:
        return None
    if hasattr(st, room.name):
        module: ModuleType = getattr(st, room.name)
        return module
    try:
        return import_module(f"steepest.{room.name}")
    except ImportError:
        if room.name in OPTIONAL:
            return None
        raise


def public(module: ModuleType) -> list[str]:
    """Its public names in their order: ``__all__``, or what a package without one re-exports."""
    if hasattr(module, "__all__"):
        return list(dict.fromkeys(module.__all__))
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    ]


def listed_in_source(module: str) -> list[str]:
    """The ``__all__`` of a module that need not be importable, of strings."""
    found = importlib.util.find_spec(module)
    assert found is not None and found.origin is not None
    for node in ast.parse(Path(found.origin).read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return list(ast.literal_eval(node.value))
    raise LookupError(f"{module} has no __all__")


def top() -> dict[str, Any]:
    """The public names of ``steepest`` that are no modules."""
    values = {name: getattr(st, name) for name in dir(st) if not name.startswith("_")}
    return {name: value for name, value in values.items() if not inspect.ismodule(value)}


def families() -> dict[str, list[str]]:
    """The rules by family: the module that defines them, in the order of the library."""
    found: dict[str, list[str]] = {}
    for rule in RULES.values():
        found.setdefault(rule.__module__, []).append(f"steepest.{rule.__name__}")
    return found


def beside() -> list[str]:
    """The base of all optimizers first, and what is nearly a rule."""
    rules = {rule.__name__ for rule in RULES.values()}
    homes = ("steepest.optimizers.", "steepest.core.optimizer")
    found = [
        f"steepest.{name}"
        for name, value in top().items()
        if name not in rules and value.__module__.startswith(homes)
    ]
    return sorted(found, key=lambda path: (path != "steepest.Optimizer", path.lower()))


def entries(room: Room) -> list[str]:
    """The names of a room as the reference has them: ``steepest.fit``, ``steepest.clip.norm``."""
    optimizers = beside()
    names = [
        f"steepest.{name}"
        for name, value in top().items()
        if value.__module__.startswith(room.homes) and f"steepest.{name}" not in optimizers
    ]
    if room.name == "torch":  # whose list is the same without PyTorch
        more = ["InBackward", "Offload", "Optimizer", "by_name", "step_in_backward"]
        return [f"steepest.torch.{x}" for x in (*more, *(r.__name__ for r in RULES.values()))]
    if room.name in OPTIONAL:
        return [f"steepest.{room.name}.{x}" for x in listed_in_source(f"steepest.{room.name}")]
    module = module_of(room)
    if module is None:
        return names
    own = [x for x in public(module) if getattr(st, x, None) is not getattr(module, x)]
    return names + [f"steepest.{room.name}.{name}" for name in own]


def everything() -> Iterator[str]:
    """Every name of the reference, in its order."""
    for rules in families().values():
        yield from rules
    yield from beside()
    for room in ROOMS:
        yield from entries(room)


def unclaimed() -> list[str]:
    """Public names and modules that the reference lacks."""
    known = set(everything())
    rooms = {room.name for room in ROOMS}
    names = [f"steepest.{name}" for name in top() if f"steepest.{name}" not in known]
    modules = {found.name for found in pkgutil.iter_modules(st.__path__)}
    modules |= {name for name in dir(st) if inspect.ismodule(getattr(st, name))}
    modules -= {name for name in modules if name.startswith("_")}
    missing = modules - rooms - {*INTERNAL, *SPREAD}
    return names + sorted(f"steepest.{name}" for name in missing)


# Arguments


def ranges(value: Any) -> dict[str, str]:
    """What each argument may be, in words: "" where its type does not say."""
    fields = getattr(value, "fields", None)
    if isinstance(fields, dict) and inspect.isclass(value):
        everywhere = value.__name__ == "CommonOptions"
        return {k: in_words(x.check) for k, x in fields.items() if everywhere or not x.option}
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return {}
    return {x.name: in_words(*getattr(x.annotation, "__metadata__", ())[:1]) for x in parameters}


def in_words(check: Any = None) -> str:
    """What a check of a field says that it expects; "" where it has no text for it."""
    if hasattr(check, "rule"):  # a convention, of those of the rule
        return "one of " + ", ".join(map(repr, check.names)) if check.names else ""
    text = str(check or "")
    return "" if re.match(r"<|\w+\(", text) else text
