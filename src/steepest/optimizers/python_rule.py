"""A rule of one's own as a Python function, in the same optimizers as all others."""

import copy
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from steepest.core.common_options import OPTIONS
from steepest.core.group_keys import GROUP_KEYS
from steepest.core.hyper_parameters import Check, Flag, Weight, several, within
from steepest.core.optimizer import KW_ONLY, RULES, Optimizer
from steepest.core.rule import OWN
from steepest.memory.arrays import Array

__all__ = ["rule"]

_TAKEN = {"step", "ema", "average", "slow", "initial", "mask", "grokfast", "last_grad"}
"""Entries of a parameter's state that are not the rule's: its count, and what options keep."""

Range = tuple[float, float, bool]
"""Lowest, highest, whether that is allowed."""

_USUAL: dict[str, Check] = {
    **dict.fromkeys(
        ("lr", "eps", "lr_decay", "momentum", "momentum_decay", "initial_accumulator_value", "a",
         "b", "beta", "d", "d0", "d_coef", "etas", "init_estim_sq_dist", "lambd", "lambda1",
         "lambda2", "r", "reps_rel", "step_sizes", "t0", "trust_coefficient", "weight_lr_power"),
        within(0),
    ),
    **dict.fromkeys(("beta1", "beta3", "betas"), within(0, 1, below=True)),
    **dict.fromkeys(("alpha", "rho"), within(0, 1)),
    **dict.fromkeys(("clip_threshold", "norm_bounds"), within(0, finite=False)),
    "growth_rate": within(1, finite=False),
    "beta2_decay": within(-math.inf, 0, finite=False),
}  # fmt: skip
"""What the hyper-parameters of functions may be unless ``ranges`` say so: those whose names have
one meaning in most rules."""

BLOCK = 1 << 15
"""Elements of one call of an element-wise function: its temporary arrays stay in the cache."""


def rule(
    function: Callable[..., None] | None = None,
    *,
    states: tuple[str, ...] = (),
    needs: Literal["element-wise", "layer-wise"] = "element-wise",
    decay_mode: Literal["l2", "decoupled"] = "l2",
    ranges: Mapping[str, Range] | None = None,
) -> Any:
    """Turns a function of the reference's shape into an optimizer: at once, in NumPy.

        function(p, g, state, t, *, lr, ...) changes p and the arrays of state in place

    p, g and the state arrays, which begin as zeros, are copies of the parameter's own type; t
    counts from 1; what is keyword-only is a hyper-parameter, a number, a flag or a tuple of
    numbers, with its default. Schedules, clipping, penalties, averages, groups and checkpoints are
    around it as around every rule, and a step whose function raises changes nothing. A function
    that has written nothing at its first call raises TypeError: ``p = p - ...`` is not in place. An
    element-wise function gets slices of 1-d arrays, a layer-wise one whole arrays. weight_decay
    comes by itself; a function with an argument ``decay`` gets its decoupled weight instead.
    ``ranges`` are (lowest, highest, whether that is allowed) by hyper-parameter.

    Raises TypeError for a function of another shape, ValueError for the name of a rule that exists.
    The optimizer it makes raises what all optimizers raise.

    >>> import numpy as np, steepest as st
    >>> @st.rule(states=("momentum_buffer",))
    ... def heavyball(p, g, state, t, *, lr=0.1, momentum=0.9):
    ...     v = state["momentum_buffer"]
    ...     v *= momentum
    ...     v += g
    ...     p -= lr * v
    >>> w = np.array([1.0, -2.0])
    >>> opt = heavyball(w, lr=0.5, clip=st.clip.value(1.0))
    >>> for _ in range(2):
    ...     opt.step(np.array([0.5, -8.0]))
    >>> w
    array([ 0.275, -0.55 ])

    The shape of the functions is that of ``steepest.reference``.
    """
    if function is None:
        return lambda f: rule(f, states=states, needs=needs, decay_mode=decay_mode, ranges=ranges)
    hyper = _hyper(function)
    _check_arguments(states, needs, decay_mode, ranges or {}, hyper)
    name = function.__name__
    if name.lower() in RULES:
        raise ValueError(f"rule {name!r} exists; give the function another name")
    made: Any = type(
        name,
        (PythonRule,),
        {
            "__doc__": function.__doc__,
            "__module__": function.__module__,
            "__qualname__": function.__qualname__,
            "function": staticmethod(function),
            "own_states": tuple(states),
            "needs": needs,
            "decay_mode": decay_mode,
            "own_decay": "decay" in inspect.signature(function).parameters,
            "arguments": tuple(hyper),
            "__annotations__": {
                "_": KW_ONLY,
                **{key: _type(key, x, ranges or {}) for key, x in hyper.items()},
                "weight_decay": Weight,
            },
            **{key: x for key, x in hyper.items() if x is not inspect.Parameter.empty},
            "weight_decay": 0.0,
        },
    )
    OWN[name.lower()] = made
    return made


def _hyper(function: Callable[..., None]) -> dict[str, Any]:
    """The hyper-parameters of a function and their defaults."""
    parameters = inspect.signature(function).parameters
    first = [x.name for x in parameters.values() if x.kind is not x.KEYWORD_ONLY]
    if first != ["p", "g", "state", "t"]:
        raise TypeError(
            f"{function.__name__}({', '.join(parameters)}): expected the arguments p, g, state, t, "
            "and hyper-parameters after a *"
        )
    if "weight_decay" in parameters:
        raise TypeError(
            f"{function.__name__} has an argument weight_decay, which every optimizer has: leave "
            "it out, or name it decay for its decoupled weight"
        )
    hyper = {x.name: x.default for x in parameters.values() if x.kind is x.KEYWORD_ONLY}
    hyper.pop("decay", None)
    for key, x in hyper.items():
        numbers = x if isinstance(x, tuple) else (x,)
        if x is not inspect.Parameter.empty and not all(
            isinstance(number, (int, float)) for number in numbers
        ):
            raise TypeError(f"{key} = {x!r}: expected a number, a flag or a tuple of numbers")
    if "lr" not in hyper:
        raise TypeError(f"{function.__name__} has no hyper-parameter lr")
    return hyper


def _check_arguments(
    states: Any, needs: Any, decay_mode: Any, ranges: Mapping[str, Any], hyper: Mapping[str, Any]
) -> None:
    """Raises TypeError or ValueError for arguments of ``rule`` that would change nothing, or
    something else."""
    if not isinstance(states, (tuple, list)) or not all(isinstance(x, str) for x in states):
        raise TypeError(f"states = {states!r}: expected a tuple of names")
    for key in states:
        if key in _TAKEN or states.count(key) > 1:
            raise ValueError(
                f"states = {states!r}: {key!r} is "
                + ("taken by what is around every rule" if key in _TAKEN else "there twice")
                + "; give it another name"
            )
    for name, value, known in (
        ("needs", needs, ("element-wise", "layer-wise")),
        ("decay_mode", decay_mode, ("l2", "decoupled")),
    ):
        if value not in known:
            raise ValueError(f"{name} = {value!r}: expected one of {', '.join(known)}")
    for key in hyper:
        if key in OPTIONS or key in GROUP_KEYS:
            raise TypeError(
                f"{key!r} is no name for a hyper-parameter: every optimizer has it; give another"
            )
    unknown = [key for key in ranges if key not in hyper]
    if unknown:
        raise ValueError(
            f"ranges: there is no hyper-parameter {unknown[0]!r}; there are {', '.join(hyper)}"
        )


def _type(key: str, default: Any, ranges: Mapping[str, Range]) -> Any:
    """The type of a hyper-parameter of a function, which has that default."""
    if isinstance(default, bool):
        return Flag
    number = _USUAL.get(key, within(-math.inf))
    if key in ranges:
        low, high, closed = ranges[key]
        number = within(low, high, below=not closed, finite=False)
    if isinstance(default, tuple):
        return Annotated[tuple[Any, ...], several(len(default), number)]
    return Annotated[Any, number]


class PythonRule(Optimizer, registered=False):
    """An optimizer whose rule is a Python function."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__(registered=False)

    prepares = True
    in_place = True
    function: ClassVar[Callable[..., None]]
    own_states: ClassVar[tuple[str, ...]]
    arguments: ClassVar[tuple[str, ...]]
    writes: ClassVar[bool] = False
    """Whether the function has been seen to change its arrays."""

    @classmethod
    def states(cls, h: Mapping[str, Any]) -> tuple[str, ...]:
        return cls.own_states

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        raise NotImplementedError  # such a rule has no kernel: `prepare` is its step

    @classmethod
    def prepare(
        cls, name: str, p: Array, g: Array, state: dict[str, Array], t: int, h: Mapping[str, Any]
    ) -> None:
        hyper = {key: h[key] for key in cls.arguments}
        if cls.own_decay:
            hyper["decay"] = h["decay"]
        if cls.needs != "element-wise":
            cls._call(p, g, state, t, hyper)
            return
        if p.ndim == 1 and p.size <= BLOCK:
            cls._call(p, g, state, t, hyper)
            return
        flat = {key: x.reshape(-1) for key, x in state.items()}
        for start in range(0, p.size, BLOCK):
            part = slice(start, start + BLOCK)
            own = {key: x[part] for key, x in flat.items()}
            cls._call(p.reshape(-1)[part], g.reshape(-1)[part], own, t, hyper)

    @classmethod
    def _call(
        cls, p: Array, g: Array, state: dict[str, Array], t: int, hyper: Mapping[str, Any]
    ) -> None:
        before = None if cls.writes or not p.size else copy.deepcopy((p, g, state))
        given = dict(state)
        result = cls.function(p, g, given, t, **hyper)
        if result is not None:
            raise TypeError(
                f"{cls.__name__} returned a {type(result).__name__}; "
                "expected None: it has to change p in place"
            )
        replaced = [key for key, x in state.items() if given.get(key) is not x]
        for key in replaced:  # another array in place of the state's
            state[key][...] = _real(given.get(key), state[key], key)
        if before is not None:
            if not replaced and _alike({"p": p, **state}, {"p": before[0], **before[2]}):
                cls._check_writes(*before, t, hyper)
            cls.writes = True

    @classmethod
    def _check_writes(
        cls, p: Array, g: Array, state: dict[str, Array], t: int, hyper: Mapping[str, Any]
    ) -> None:
        """Raises TypeError if the function, which has changed nothing, did not write either: to
        arrays that are read-only it could not have done so, be it what was there already."""
        for x in (p, *state.values()):
            x.flags.writeable = False
        try:
            cls.function(p, g, state, t, **hyper)
        except Exception:
            return
        raise TypeError(
            f"{cls.__name__} returned None and wrote neither to p nor to its state; it has "
            "to change p in place: p -= ... or p[...] = ..., since p = ... makes another array"
        )


def _real(x: Any, like: Array, key: str) -> Any:
    """What a function has put into its state. Raises TypeError for what is no array of reals."""
    if not np.can_cast(np.result_type(x), like.dtype, "same_kind"):
        raise TypeError(
            f"state {key!r} was replaced by a {type(x).__name__} of {np.result_type(x)}; expected "
            f"{like.dtype}, as the parameter has"
        )
    return x


def _alike(some: Mapping[str, Array], others: Mapping[str, Array]) -> bool:
    return all(np.array_equal(x, others[key], equal_nan=True) for key, x in some.items())
