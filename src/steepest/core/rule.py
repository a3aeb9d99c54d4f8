"""What a rule's class says: names, ranges and defaults of its hyper-parameters, its states, and the
kernel and coefficients for given hyper-parameters and t.

``Optimizer`` adds what all rules share: parameters in groups, state, and the atomic step.
"""

import inspect
import weakref
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from steepest.core.constructor import Field
from steepest.core.hyper_parameters import Check, Range, range_of
from steepest.core.selection import Selection
from steepest.kernels import dispatch
from steepest.memory import arrays
from steepest.memory.arrays import Array

__all__ = ["OWN", "RULES", "Rule"]

RULES: dict[str, type[Any]] = {}
"""Every optimizer by the name of its rule, from simple to elaborate."""

OWN: MutableMapping[str, type[Any]] = weakref.WeakValueDictionary()
"""Those made of Python functions by ``st.rule``, while they are in use."""


class Rule(ABC):
    """What a rule says of itself: its hyper-parameters, states, coefficients; no parameters."""

    rule: ClassVar[str]
    fields: ClassVar[Mapping[str, Field]]
    """The arguments of the constructor by name, those of bases first."""
    checks: ClassVar[Mapping[str, Check]] = {}
    """What each hyper-parameter of a group may be, in order: the rule's own, then all options."""
    lenient: ClassVar[Mapping[str, Check]] = {}
    """The same for numbers that are taken as they are."""
    ranges: ClassVar[Mapping[str, Range]] = {}
    """Those of numbers that may be scheduled."""
    may_be_moved: ClassVar[bool] = True
    """Whether anything but the rule may move the parameter after a step, as Lookahead does."""
    additive: ClassVar[bool] = True
    """Whether the rule adds to the parameter something that does not depend on where it is."""
    formula: ClassVar[str]
    source: ClassVar[str]
    kernels: ClassVar[str] = ""
    """The compiled module of a rule of another package, by its full name; see docs/own-rules.md."""
    needs: ClassVar[Literal["element-wise", "layer-wise", "global", "matrix"]] = "element-wise"
    """What an element's update looks at: itself, its whole array, all arrays, or a matrix."""
    least_axes: ClassVar[int] = 0
    """Parameters of fewer axes are not for this rule."""
    read_only: ClassVar[tuple[str, ...]] = ()
    """States that a step reads and does not write."""
    own_decay: ClassVar[bool] = False
    """Whether decoupled decay is in the rule's own formula: its weight is then h["decay"]."""
    alike: ClassVar[tuple[str, ...]] = ()
    """Hyper-parameters of a global rule in which its groups must not differ."""
    prepares: ClassVar[bool] = False
    """Whether ``prepare``, in Python, computes the step, which the engine then takes over."""
    conventions: ClassVar[Mapping[str, str]] = {}
    """The dialects of the formula, the default first: whose it is, and how it differs."""
    beside_rules: ClassVar[tuple[str, ...]] = ()
    """The rules by which it takes parameters that are not for its own."""
    takes: ClassVar[tuple[str, ...]] = ()
    """Methods that take one array for each parameter, as ``step`` does."""
    in_place: ClassVar[bool] = False
    """Whether ``prepare`` is given copies of the state, to be changed in place."""
    coefficient_names: ClassVar[Mapping[str, str]] = {}
    """What the numbers of ``coefficients`` are, by kernel: the names that it gives them."""
    checked_at_steps: ClassVar[bool] = False
    """Whether ``check`` is asked at each step, too, for what schedules have come to."""
    positive: ClassVar[tuple[str, ...]] = ()
    """The numbers of ``shared`` that are never below 0."""
    points: ClassVar[tuple[str, ...]] = ()
    """States that the parameter is made from, such as copies that it begins with, and that are so
    not in a format for all states."""
    squares: ClassVar[tuple[str, ...]] = ("exp_avg_sq",)
    """States that are squares and so never negative, such as second moments; in the kernel their
    names begin with v. Formats of 8 bits store their roots."""
    fixed: ClassVar[tuple[str, ...]] = ()
    """Hyper-parameters that give states their shapes: those of a group cannot change."""
    factors: ClassVar[int] = 0
    """What a rule that uses rows and columns takes beside its states: 1, factors of rows, or 2,
    factors of rows and of columns."""

    def __init_subclass__(cls, registered: bool = True) -> None:
        super().__init_subclass__()
        cls.rule = cls.__name__.lower()
        paragraphs = inspect.cleandoc(cls.__doc__ or "").split("\n\n")
        cls.formula = inspect.cleandoc("\n" + paragraphs[1]) if len(paragraphs) > 1 else ""
        cls.source = " ".join(paragraphs[-1].split())
        if cls.needs != "element-wise" or cls.prepares or cls.own_decay:
            cls.additive = False
        asked = sorted(
            getattr(cls, "fields", {}).values(), key=lambda x: (x.option, x.keyword_only)
        )
        cls.checks = {x.name: x.check for x in asked if x.check is not None}
        ranges = {name: range_of(check) for name, check in cls.checks.items()}
        cls.ranges = {name: x for name, x in ranges.items() if x is not None}
        cls.lenient = {
            name: check.lenient() if name in cls.ranges else check
            for name, check in cls.checks.items()
        }
        for name in ("states", "coefficients", "check"):
            if inspect.isfunction(cls.__dict__.get(name)):
                raise TypeError(
                    f"{cls.__name__}.{name} takes no self: write @staticmethod before it; a rule "
                    "is asked without an optimizer"
                )
        if cls.kernels:
            dispatch.register(cls.kernels)
        lacking = [name for name in ("lr", "weight_decay") if name not in cls.checks]
        if registered and lacking:
            raise TypeError(
                f"{cls.__name__} has no {' and no '.join(lacking)}: every rule has both fields, "
                "which schedules, decay and penalties use: weight_decay: Weight = 0.0"
            )
        if registered:
            RULES[cls.rule] = cls

    @staticmethod
    @abstractmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of the rule's state arrays, in the order in which the kernel takes them.

        `h` is as the group has it: numbers or schedules.
        """

    @staticmethod
    def shape_states(p: Array, h: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of the states that p has for its shape, beside those of ``states``; only where
        the rule ``prepares``."""
        return ()

    @classmethod
    def check_parameter(cls, p: Array, name: str) -> None:
        """Raises ValueError for a parameter that the rule is not for."""
        if p.ndim < cls.least_axes:
            raise ValueError(
                f"parameter {name!r} has shape {p.shape}; {cls.__name__} needs "
                f"{cls.least_axes} axes or more: let it use another rule, such as adamw"
            )

    @staticmethod
    def matrices(p: Array, h: Mapping[str, Any]) -> arrays.Matrices | None:
        """How the rule takes p by its rows and columns, and the states that hold numbers of
        these; None for a parameter that it takes by elements, with ``states``."""
        return None

    @staticmethod
    def beside(h: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of the states that a parameter has beside those of rows and columns, and that
        have its shape; the kernel takes them behind the factors."""
        return ()

    @classmethod
    def state_names(cls, p: Array, h: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of the rule's state arrays for the parameter p."""
        matrices = cls.matrices(p, h)
        if matrices is None:
            return (*cls.states(h), *cls.shape_states(p, h))
        return (*matrices.states, *cls.beside(h))

    @classmethod
    def initial(cls, key: str, p: Array, h: Mapping[str, Any]) -> Array:
        """A new state array for the parameter p."""
        matrices = cls.matrices(p, h)
        if matrices is not None and key in matrices.states:
            return np.zeros(matrices.states[key], arrays.computed(p))
        return arrays.zeros_like(p)

    @staticmethod
    def scalars(h: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of the numbers that the rule keeps of each parameter, as 0-d float64 states."""
        return ()

    @staticmethod
    def shared(h: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of the numbers that the rule keeps of a group (of all groups if it is global);
        they are in ``param_groups``."""
        return ()

    @staticmethod
    def initial_number(key: str, h: Mapping[str, Any]) -> float:
        """What a number of ``scalars`` or ``shared`` begins with."""
        return 0.0

    @classmethod
    def prepare(
        cls, name: str, p: Array, g: Array, state: dict[str, Array], t: int, h: Mapping[str, Any]
    ) -> None:
        """The step of a rule that ``prepares``: changes p in place, and puts new arrays into
        `state`, whose own are read-only, or changes them where the class says ``in_place``.

        p is a copy, times what decay leaves of it; g has been through the prologue and may be
        changed. What is raised here leaves the parameters and their state as they were.
        """
        raise NotImplementedError

    @staticmethod
    def idle(h: Mapping[str, Any]) -> Mapping[str, tuple[str, Any]]:
        """The arguments that change nothing beside the others: why, and what to leave them at.

        They are refused where they are given, not where a group comes to have them in training.
        """
        return {}

    @staticmethod
    @abstractmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        """The kernel and its coefficients, in double, for the t-th step (from 1).

        `h` has the hyper-parameters' values at this step, the rule's states as h["states"],
        the count of this update, from 1, as h["updates"], and as h["by_rows"] whether it is for
        parameters with ``matrices``, which have the states of h["beside"] instead.
        """

    @classmethod
    def _check_idle(
        cls, h: Mapping[str, Any], given: Collection[str], groups: Sequence[Mapping[str, Any]]
    ) -> None:
        """Raises ValueError for an argument that is given and changes nothing in any group."""
        if isinstance(h["state_dtype"], str) and "state_dtype" in given and not cls.prepares:
            has = {key for group in groups for key in (*cls.states(group), *cls.beside(group))}
            if not has - {*cls.points}:
                lacks = "no states"
                if has:
                    lacks += " of the parameter's shape but copies of it"
                raise ValueError(
                    f"state_dtype = {h['state_dtype']!r} has no effect: {cls.__name__}, as it is "
                    f"here, has {lacks}"
                )
        for name, (why, usual) in cls.idle(h).items():
            idle = all(name in cls.idle(group) for group in groups)
            if name in given and idle and h[name] != usual:
                raise ValueError(f"{name} = {h[name]!r} has no effect {why}; leave it at {usual!r}")

    @classmethod
    def _not_a_convention(cls, value: Any) -> str:
        has = ", ".join(map(repr, cls.conventions)) or "one form only; leave convention away"
        return f"convention = {value!r}: {cls.__name__} has {has}"

    @staticmethod
    def translated(given: dict[str, Any]) -> dict[str, Any]:
        """The arguments that were given, once those that are no hyper-parameters, such as
        PyTorch's ``decoupled_weight_decay``, have become hyper-parameters or options."""
        return given

    @staticmethod
    def selection(given: Mapping[str, Any]) -> Selection:
        """Which parameters get hyper-parameters of their own, by the arguments that were given."""
        return Selection(given.get("exclude", ()), given.get("overrides", {}))

    @staticmethod
    def check(h: Mapping[str, Any]) -> None:
        """Raises ValueError where hyper-parameters, numbers or schedules, do not go together."""
