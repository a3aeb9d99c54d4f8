"""To and from states of optax: trees of named tuples, one for each part of a chain.

A part is recognised by the name of its tuple, so that optax is not needed. Of a chain, the parts
that scale by a rule are converted; those without a state, such as clipping and decay, are ignored;
counts of schedules are converted, too; any other part with a state is refused.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from steepest import nesting
from steepest.convert import common
from steepest.convert.common import Found, Taken
from steepest.core import trees
from steepest.memory.arrays import Array
from steepest.optimizers import Optimizer

__all__ = ["from_optax", "to_optax"]

Part = tuple[str, dict[str, str]]
"""The name of a tuple, and of its fields the states here."""

_ADAM: Part = ("ScaleByAdamState", {"mu": "exp_avg", "nu": "exp_avg_sq"})
_AMSGRAD: Part = (
    "ScaleByAmsgradState",
    {"mu": "exp_avg", "nu": "exp_avg_sq", "nu_max": "max_exp_avg_sq"},
)
_TRACE: Part = ("TraceState", {"trace": "momentum_buffer"})
_PARTS: dict[str, list[Part]] = {
    "sgd": [],
    "adagrad": [("ScaleByRssState", {"sum_of_squares": "sum"})],
    "rmsprop": [("ScaleByRmsState", {"nu": "square_avg"})],
    "adadelta": [("ScaleByAdaDeltaState", {"e_g": "square_avg", "e_x": "acc_delta"})],
    "adam": [_ADAM],
    "adamw": [_ADAM],
    "adamax": [("ScaleByAdamState", {"mu": "exp_avg", "nu": "exp_inf"})],
    "nadam": [_ADAM],
    "radam": [_ADAM],
    "adabelief": [("ScaleByBeliefState", {"mu": "exp_avg", "nu": "exp_avg_var"})],
    "yogi": [_ADAM],
    "adan": [
        (
            "ScaleByAdanState",
            {"m": "exp_avg", "v": "exp_avg_diff", "n": "exp_avg_sq", "g": "previous_grad"},
        )
    ],
    "lion": [("ScaleByLionState", {"mu": "exp_avg"})],
    "lamb": [_ADAM],
    "novograd": [("ScaleByNovogradState", {"mu": "exp_avg", "nu": "exp_avg_sq"})],
}
_CENTERED: Part = ("ScaleByRStdDevState", {"mu": "grad_avg", "nu": "square_avg"})
_COUNTERS = ("ScaleByScheduleState", "WeightDecaySchedule", "WrappedScheduleState")
"""Parts that hold the count of all updates, and nothing else."""
_INJECTED = ("InjectHyperparamsState", "InjectStatefulHyperparamsState")
_AROUND = ("MaskedState", *_INJECTED)
"""Parts that hold another state, as ``inner_state``."""


def _parts(rule: str, h: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The parts of a chain that the rule with these numbers is."""
    parts = dict(_PARTS[rule])
    if h.get("amsgrad"):
        parts = dict([_AMSGRAD])
    if h.get("centered"):
        parts = dict([_CENTERED])
    if rule in ("sgd", "rmsprop") and h["momentum"]:
        parts |= dict([_TRACE])
    return parts


def _sign(rule: str, part: str) -> float:
    """In RMSprop optax's trace is of steps, which descend; ours is of what is subtracted."""
    return -1.0 if (rule, part) == ("rmsprop", "TraceState") else 1.0


def _all_visited(state: Any, seen: Callable[[str, Any], Any]) -> Any:
    """A copy of a chain's state whose parts are what `seen` gives for (name, part). Raises
    TypeError for what is none, ValueError for one that contains itself."""
    try:
        nesting.check(state)
        return _visited(state, seen, "opt_state")
    except RecursionError:
        raise ValueError("opt_state is nested too deeply, or contains itself") from None


def _visited(node: Any, seen: Callable[[str, Any], Any], where: str) -> Any:
    made: Any = type(node)
    name = made.__name__
    if hasattr(node, "_fields"):
        if not node._fields:
            return node
        if name in _AROUND:
            changed = {"inner_state": _visited(node.inner_state, seen, f"{where}.inner_state")}
            if hasattr(node, "hyperparams_states"):
                inner = _visited(node.hyperparams_states, seen, f"{where}.hyperparams_states")
                changed["hyperparams_states"] = inner
            node = node._replace(**changed)
            return seen(name, node) if name in _INJECTED else node
        return seen(name, node)
    if isinstance(node, (tuple, list)):
        return made(_visited(x, seen, f"{where}[{i}]") for i, x in enumerate(node))
    if isinstance(node, Mapping):
        return made({k: _visited(x, seen, f"{where}[{k!r}]") for k, x in node.items()})
    raise TypeError(
        f"{where} is a {name}, not a state of optax; give what tx.init or tx.update returned"
    )


def _foreign(name: str, rule: str, wanted: Mapping[str, Any]) -> ValueError:
    parts = " and ".join(wanted) or "no state"
    return ValueError(
        f"opt_state has a {name}; {rule} with these hyper-parameters is {parts} in optax"
    )


def _numbers(optimizer: Optimizer) -> Iterator[dict[str, Any]]:
    groups = optimizer.state_dict()["param_groups"]
    for program in common.programs(optimizer, groups, optimizer.updates):
        yield program.h


def _wanted(optimizer: Optimizer) -> dict[str, dict[str, str]]:
    """The parts, which must be the same for all groups."""
    common.only_rule(optimizer, _PARTS, "optax")
    first, *others = [_parts(optimizer.rule, h) for h in _numbers(optimizer)]
    if any(parts != first for parts in others):
        raise ValueError("groups differ in their states; optax has one chain for all parameters")
    return first


def from_optax(opt_state: Any, optimizer: Optimizer, *, step: int | None = None) -> None:
    """Gives an optimizer the state of optax's transformation of the same name.

    opt_state: what ``tx.init`` or ``tx.update`` gave, of ``optax.adamw`` and such or a chain with
    one in it; parameters are matched by their names, the paths in optax's trees. There are no
    hyper-parameters in it, so make the optimizer with the same numbers, and ``convention="optax"``
    for rules that have it. step: the number of steps done, where optax counts none: for SGD,
    Adagrad, RMSprop and Adadelta without a schedule, and needed only if a schedule here needs it.

    Raises ValueError or TypeError, naming parameter and key, if names, shapes or parts differ;
    nothing was changed then.

    >>> import numpy as np, steepest as st
    >>> from collections import namedtuple
    >>> ScaleByLionState = namedtuple("ScaleByLionState", "count mu")  # as optax has it
    >>> opt = st.Lion({"w": np.zeros(2)})
    >>> st.convert.from_optax((ScaleByLionState(7, {"w": np.array([0.5, 0.0])}), ()), opt)
    >>> opt.updates, opt.state["w"]["exp_avg"]
    (7, array([0.5, 0. ]))
    """
    rule, wanted = optimizer.rule, _wanted(optimizer)
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    found = {name: Found(None, {}) for name in names}
    seen: list[str] = []
    counts: list[int] = []

    def take(part: str, node: Any) -> Any:
        if part in wanted:
            for field, key in wanted[part].items():
                tree = dict(zip(*_leaves(getattr(node, field), names, part, field), strict=True))
                for name in names:
                    what = f"state {key!r} of parameter {name!r} ({part}.{field})"
                    found[name].arrays[key] = common.array_of(tree[name], what) * _sign(rule, part)
            seen.append(part)
        elif part not in (*_COUNTERS, *_INJECTED):
            raise _foreign(part, rule, wanted)
        if (count := _count(node)) is not None:
            counts.append(count)
            if part in wanted:
                for one in found.values():
                    one.step = count
        return node

    _all_visited(opt_state, take)
    if sorted(seen) != sorted(wanted):
        raise ValueError(
            f"opt_state has {seen or 'no parts with a state'}; expected {list(wanted)}, each once"
        )
    if len(set(counts)) > 1:
        raise ValueError(f"opt_state counts {sorted(set(counts))} steps; expected the same in all")
    known = counts[0] if counts else None
    for one in found.values():
        one.step = known if one.step is None else one.step
    groups = common.merged(optimizer, None, True)
    for h in _numbers(optimizer):
        if rule == "sgd" and h["momentum"]:
            _scale(found.values(), common.rescaled(h, "optax"))
            break
    common.put_in(optimizer, groups, found, package="optax", convention="optax", step=step)


def _scale(found: Any, factor: float) -> None:
    for one in found:
        one.arrays["momentum_buffer"] = one.arrays["momentum_buffer"] * factor


def _count(node: Any) -> int | None:
    for field in ("count", "t"):
        if field in node._fields:
            return common.count_of(getattr(node, field), f"{type(node).__name__}.{field}")
    return None


def _leaves(tree: Any, names: list[str], part: str, field: str) -> tuple[list[str], list[Any]]:
    _, found, leaves = trees.flatten(tree)
    if sorted(found) != sorted(names):
        missing, unknown = sorted(set(names) - set(found)), sorted(set(found) - set(names))
        raise ValueError(f"{part}.{field}: missing {missing}, unknown {unknown} parameters")
    return found, leaves


# To optax


def to_optax(optimizer: Optimizer, opt_state: Any) -> Any:
    """The optimizer's state as one of optax.

    opt_state: what ``tx.init(params)`` gave, which says of what parts the state is. Returns a new
    one of the same parts, trees, types and arrays; hyper-parameters that optax was given by
    ``inject_hyperparams`` stay.

    Raises ValueError or TypeError for other parts or parameters, for parameters that have done
    different numbers of steps (optax has one count), and for what optax lacks.
    """
    rule, wanted = optimizer.rule, _wanted(optimizer)
    taken = {one.name: one for one in common.take_out(optimizer, "optax", "optax")}
    names = list(taken)
    seen: list[str] = []
    steps = {one.step for one in taken.values()}

    def give(part: str, node: Any) -> Any:
        if part not in (*wanted, *_COUNTERS, *_INJECTED):
            raise _foreign(part, rule, wanted)
        changed: dict[str, Any] = {}
        for field, key in wanted.get(part, {}).items():
            found, leaves = _leaves(getattr(node, field), names, part, field)
            fresh = iter(
                _like(leaf, _array(taken[name], key, part), name, key)
                for name, leaf in zip(found, leaves, strict=True)
            )
            changed[field] = _refilled(getattr(node, field), fresh)
        if part in wanted:
            seen.append(part)
        for field in ("count", "t"):
            if field in node._fields:
                changed[field] = _number(getattr(node, field), _steps(part, field))
        return node._replace(**changed)

    def _steps(part: str, field: str) -> int:
        if part not in wanted:
            return optimizer.updates
        if len(steps) != 1:
            raise ValueError(
                f"parameters have done {sorted(steps)} steps; optax has one {part}.{field} for all"
            )
        return next(iter(steps))

    def _array(one: Taken, key: str, part: str) -> Array:
        factor = _sign(rule, part)
        if rule == "sgd":
            factor *= common.rescaled(one.h, "optax", back=True)
        found: Array = one.state[key] * factor
        return found

    filled = _all_visited(opt_state, give)
    if sorted(seen) != sorted(wanted):
        raise ValueError(
            f"opt_state has {seen or 'no parts with a state'}; expected {list(wanted)}, each once"
        )
    return filled


def _like(leaf: Any, x: Array, name: str, key: str) -> Any:
    """x with the type of a leaf of optax's tree: an array of JAX, or of NumPy."""
    dtype = np.dtype(leaf.dtype)
    if np.shape(leaf) != x.shape:
        raise ValueError(
            f"state {key!r} of parameter {name!r} has shape {x.shape}; in opt_state "
            f"{np.shape(leaf)}"
        )
    if dtype.kind == "f":
        x = common.checked(x, np.empty(x.shape, dtype), name, key)
    else:  # bfloat16 and such, of JAX
        x = x.astype(dtype)
    return leaf.at[...].set(x) if hasattr(leaf, "at") else x


def _number(leaf: Any, value: int) -> Any:
    if hasattr(leaf, "at"):
        return leaf.at[...].set(np.array(value, np.dtype(leaf.dtype)))
    return np.asarray(value, getattr(leaf, "dtype", np.int64))


def _refilled(tree: Any, leaves: Iterator[Any]) -> Any:
    """A tree of the same form, with other leaves in the order of ``trees.flatten``."""
    made: Any = type(tree)
    if hasattr(tree, "_fields"):
        return made(*(_refilled(x, leaves) for x in tree))
    if isinstance(tree, Mapping):
        return made({key: _refilled(x, leaves) for key, x in tree.items()})
    if isinstance(tree, (list, tuple)):
        return made(_refilled(x, leaves) for x in tree)
    return next(leaves)
