"""Constructors made of the fields of a class: one line says name, type, range and default.

    class Lion(Optimizer):
        lr: Rate = 1e-4
        betas: Betas = (0.9, 0.99)
        weight_decay: Weight = 0.0

Order, ``_: KW_ONLY`` and what a subclass declares again are as in dataclasses; type checkers and
editors see the same signature. A type with a ``Check`` makes a hyper-parameter, ``Argument`` an
argument that only the constructor sees.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Annotated, Any, ClassVar, TypeVar, dataclass_transform, get_origin

from steepest.core.hyper_parameters import Check, Dialect
from steepest.fields import nearest

__all__ = ["KW_ONLY", "Argument", "Field", "WithFields", "bound"]

EMPTY: Any = inspect.Parameter.empty


class _Argument:
    """Marks the type of an argument that is no hyper-parameter."""


T = TypeVar("T")
Argument = Annotated[T, _Argument()]
"""The type of an argument that is no hyper-parameter: ``adamw: Argument[dict | None] = None``."""


@dataclass(frozen=True)
class Field:
    """One argument of a class. check: None for what is no hyper-parameter. option: whether every
    class has it."""

    name: str
    annotation: Any
    check: Check | None
    default: Any
    keyword_only: bool
    option: bool


class _NotHere:
    """Stands for an argument in the class, where it is no attribute: groups have it, if any."""

    def __init__(self, name: str, in_groups: bool) -> None:
        self.name, self.in_groups = name, in_groups

    def __get__(self, instance: Any, owner: type) -> Any:
        groups = f"; each group has one: param_groups[0][{self.name!r}]" if self.in_groups else ""
        raise AttributeError(f"{owner.__name__!r} object has no attribute {self.name!r}{groups}")


@dataclass_transform()
class WithFields:
    """A class whose annotated fields are the arguments of its constructor."""

    fields: ClassVar[Mapping[str, Field]] = {}
    """All arguments, those of bases first."""
    _own_fields: ClassVar[Mapping[str, Field]] = {}

    def __init_subclass__(cls, options: bool = False, **others: Any) -> None:
        super().__init_subclass__(**others)
        found: dict[str, Field] = {}
        for base in reversed(cls.__mro__[1:]):
            found |= base.__dict__.get("_own_fields", {})
        cls._own_fields = _declared(cls, found, options)
        cls.fields = found = found | cls._own_fields
        if "convention" in found:
            dialect = Dialect(tuple(getattr(cls, "conventions", ())), cls.__name__)
            found["convention"] = replace(found["convention"], check=dialect)
        if "decay_mode" in found:  # which a class may say by itself
            mode = getattr(cls, "decay_mode", "l2")
            found["decay_mode"] = replace(found["decay_mode"], default=mode)
        # ``inspect`` looks for this attribute, which the type of a class does not declare.
        cls.__signature__ = _signature(found)  # type: ignore[attr-defined]


def _declared(cls: type, known: Mapping[str, Field], options: bool) -> dict[str, Field]:
    """The fields in a class's own body, whose defaults are taken out of it."""
    found: dict[str, Field] = {}
    keyword_only = False
    hints: dict[str, Any] = inspect.get_annotations(cls, eval_str=True)
    for name, hint in hints.items():
        if hint is KW_ONLY:
            keyword_only = True
            continue
        if hint is ClassVar or get_origin(hint) is ClassVar:
            continue
        marks = [x for x in getattr(hint, "__metadata__", ()) if isinstance(x, Check | _Argument)]
        if not marks:
            raise TypeError(
                f"{cls.__name__}.{name}: expected a type with a range, such as Rate, or ClassVar"
            )
        check = marks[-1] if isinstance(marks[-1], Check) else None
        default = cls.__dict__.get(name, known[name].default if name in known else EMPTY)
        option = options and keyword_only
        found[name] = Field(name, hint.__origin__, check, default, keyword_only, option)
        if name in cls.__dict__ and name != "decay_mode":
            setattr(cls, name, _NotHere(name, check is not None))
    return found


def _signature(fields: Mapping[str, Field]) -> inspect.Signature:
    """The arguments in their order; the options that every class has stand together."""
    kinds = inspect.Parameter
    own = [x for x in fields.values() if not x.option]
    parameters = [
        kinds(
            x.name,
            kinds.KEYWORD_ONLY if x.keyword_only else kinds.POSITIONAL_OR_KEYWORD,
            default=x.default,
            annotation=x.annotation,
        )
        for x in sorted(own, key=lambda x: x.keyword_only)
    ]
    return inspect.Signature([*parameters, kinds("options", kinds.VAR_KEYWORD, annotation=Any)])


def bound(
    cls: type[WithFields], args: Sequence[Any], keywords: Mapping[str, Any]
) -> dict[str, Any]:
    """What was given, by name. Raises TypeError where the arguments are not those of the class."""
    positional = [x.name for x in cls.fields.values() if not x.keyword_only]
    if len(args) > len(positional):
        raise TypeError(
            f"{cls.__name__} takes {len(positional)} positional arguments, "
            f"{', '.join(positional)}; {len(args)} were given"
        )
    given = dict(zip(positional, args, strict=False))
    twice = [name for name in keywords if name in given]
    if twice:
        raise TypeError(f"{cls.__name__} got {twice[0]!r} by position and by name")
    given |= keywords
    unknown = sorted(given.keys() - cls.fields.keys())
    if unknown:
        known = sorted(cls.fields.values(), key=lambda x: x.option)
        raise TypeError(
            f"{cls.__name__} has no argument {', '.join(map(repr, unknown))}; "
            f"it takes {', '.join(x.name for x in known if x.name != 'params')}"
            f"{nearest(unknown[0], cls.fields.keys() - {'params'})}"
        )
    missing = [x.name for x in cls.fields.values() if x.default is EMPTY and x.name not in given]
    if missing:
        raise TypeError(f"{cls.__name__} needs {', '.join(missing)}")
    return given
