"""What all converters share: reading arrays, matching parameters, and loading a state.

A converter first collects, for each parameter here, its count of steps and its arrays. ``put_in``
then checks names, keys, shapes and types, and gives everything to ``load_state_dict``, which is
atomic.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steepest import codecs
from steepest.core import internal
from steepest.core.group_program import GroupProgram
from steepest.memory import formats
from steepest.memory.arrays import Array, unmasked
from steepest.optimizers import Optimizer

__all__ = ["Found", "Taken", "array_of", "check_finite", "check_same_formula", "checked",
           "count_of", "counted", "in_order", "kept", "programs", "merged", "number_of",
           "only_rule", "put_in", "rescaled", "single", "take_out", "warmed"]  # fmt: skip

_AVERAGES = ("ema", "average")
"""Arrays that no step reads: they are not converted."""
_OPTIONS = ("l1", "regularize", "filter", "lookahead", "cautious")
"""Options that change steps and that no other package has."""


@dataclass
class Found:
    """What another package keeps of one parameter. step: None where it does not count."""

    step: int | None
    arrays: dict[str, Any]


@dataclass
class Taken:
    """One parameter here. h: the numbers of its group, schedules evaluated for the next step.
    state: float32 or float64, whatever they are stored as. master: what ``master=`` keeps."""

    name: str
    param: Array
    group: int
    h: dict[str, Any]
    step: int
    state: dict[str, Array]
    master: dict[str, Array]


# Arrays and numbers of other packages


def array_of(x: Any, what: str) -> Array:
    """x as a NumPy array: an array, a tensor of any device, a variable. Quantised tensors are
    dequantised. Raises TypeError for anything else."""
    if hasattr(x, "full_tensor"):
        raise TypeError(f"{what} is split over processes; gather it first, with full_tensor()")
    if hasattr(x, "dequantize") and hasattr(x, "codes"):
        x = x.dequantize()
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        x = x.float() if "bfloat16" in str(x.dtype) else x
    unmasked(x, what)
    try:
        found = x.numpy() if hasattr(x, "numpy") else np.asarray(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{what} is a {type(x).__name__}, not an array: {error}") from error
    if not isinstance(found, (np.ndarray, np.generic)):
        raise TypeError(f"{what} is a {type(x).__name__}, not an array")
    array = np.asarray(found)
    if array.dtype == object:
        raise TypeError(f"{what} is a {type(x).__name__} of Python's objects, not of numbers")
    return codecs.from_bfloat16(array) if codecs.is_bfloat16(array.dtype) else array


def number_of(x: Any, what: str) -> float:
    """x as a number. Raises TypeError or ValueError."""
    found = array_of(x, what)
    if found.shape not in ((), (1,)) or found.dtype.kind not in "iuf":
        raise ValueError(f"{what} = {x!r}: expected one number")
    return float(found.reshape(()))


def count_of(x: Any, what: str) -> int:
    """x, a number or a tensor of one, as a count of steps. Raises TypeError or ValueError."""
    number = number_of(x, what)
    if not (math.isfinite(number) and number == int(number) and 0 <= number < 2**53):
        raise ValueError(f"{what} = {number!r}: expected a count of steps")
    return int(number)


def counted(state: Mapping[str, Any], name: str) -> tuple[int, dict[str, Any]]:
    """The count of steps in the state of a parameter, and the rest of that state."""
    if "step" not in state:
        raise ValueError(f"state of parameter {name!r} has no step, only {sorted(state)}")
    rest = {key: x for key, x in state.items() if key != "step"}
    return count_of(state["step"], f"step of parameter {name!r}"), rest


def checked(x: Any, like: Array, name: str, key: str) -> Array:
    """x as the state `key` of a parameter: of the shape of `like`, and stored as that is.

    Raises ValueError for another shape and for numbers beyond that format, TypeError for what is
    not floating.
    """
    what = f"state {key!r} of parameter {name!r}"
    found = array_of(x, what)
    if found.dtype.kind != "f":
        raise TypeError(f"{what} has dtype {found.dtype}; expected floating numbers")
    if found.shape != like.shape:
        raise ValueError(f"{what} has shape {found.shape}; expected {like.shape}")
    cast = np.array(formats.encoded(found, like.dtype))
    if not np.array_equal(np.isfinite(formats.decoded(cast)), np.isfinite(found)):
        raise ValueError(
            f"{what} has numbers beyond {formats.of(like).name}; keep it in a wider format"
        )
    return cast


def check_finite(x: Array, name: str, key: str) -> None:
    """Raises ValueError for a state that has no codes."""
    if not np.isfinite(x).all():
        raise ValueError(
            f"state {key!r} of parameter {name!r} has numbers that are not finite, "
            "for which there are no codes"
        )


def single(taken: Taken, key: str) -> Array:
    """A state in single precision. Raises ValueError for numbers beyond that."""
    x = taken.state[key]
    return checked(x, np.empty(x.shape, np.float32), taken.name, key)


# Matching parameters


def in_order(optimizer: Optimizer, names: Sequence[str] | None = None) -> list[str]:
    """The optimizer's names in the order of `names`, or else in the order in which its parameters
    were given (``exclude`` and ``overrides`` sort them into groups). Raises ValueError unless
    `names` are all of its names."""
    own = [name for group in optimizer.param_groups for name in group["param_names"]]
    if names is None:
        given = sorted(zip(internal.given_order(optimizer), own, strict=True))
        return [name for _, name in given]
    names = list(names)
    if sorted(names) != sorted(own):
        missing, unknown = sorted(set(own) - set(names)), sorted(set(names) - set(own))
        raise ValueError(
            f"names: missing {missing}, unknown {unknown}; expected each name of the optimizer once"
        )
    return names


# Conventions

_SAME_STEPS: dict[str, tuple[set[str], ...]] = {
    "sgd": ({"torch", "optax", "keras", "paper"},),  # `rescaled` sees to lr
    "adagrad": ({"torch", "paper"}, {"optax"}, {"keras"}),
    "rmsprop": ({"torch"}, {"optax", "keras", "paper"}),
    "adam": ({"torch", "optax", "paper"}, {"keras"}),
    "adamw": ({"torch", "optax"}, {"keras"}),
    "adamax": ({"torch", "optax"}, {"keras"}),
    "yogi": ({"paper", "optax"},),  # they differ only in how m starts
}
"""Conventions of a rule that make the same steps from the same state."""


_BIAS: dict[str, Any] = {"bias_correction": True}
_FEW: dict[str, Any] = {
    **_BIAS, "maximize": False, "lr_decay": 0.0, "dampening": 0.0, "grad_averaging": False,
    "adapt": True, "norm_bounds": (0.0, math.inf),
}  # fmt: skip
_PLAIN: dict[str, dict[str, Any]] = {"torch": _BIAS, "deepspeed": {}, "optax": _FEW, "keras": _FEW}
"""What other hyper-parameters must be, since the package lacks them."""


def check_same_formula(rule: str, h: Mapping[str, Any], package: str) -> None:
    """Raises ValueError where the package's rule of this name takes other steps with the same
    numbers: because of the convention, or because the package lacks an option."""
    for key, plain in _PLAIN[package].items():
        if key in h and h[key] != plain:
            raise ValueError(f"{package} has no {key} of {rule}; here it is {h[key]!r}")
    own = h.get("convention")
    if own is None:
        return
    if package == "deepspeed":
        package = "torch"
    if h.get("eps_inside_sqrt"):
        own = "keras"
    exact = rule in ("adam", "adamw") and h["amsgrad"] and "optax" in (own, package)
    equal = ({own},) if exact else _SAME_STEPS.get(rule, ({own},))
    if not any({own, package} <= names for names in equal):
        raise ValueError(
            f"{package} has another formula of {rule}: make the optimizer with "
            f"convention={package!r} (here it is {h['convention']!r}; see docs/conventions.md)"
        )


def rescaled(h: Mapping[str, Any], package: str, back: bool = False) -> float:
    """The factor from the package's velocity of SGD to ours; with `back`, from ours to theirs.

    In Keras and papers lr is inside it, in Keras with the other sign. Where the two differ in this,
    the factor is the present lr, which is exact as long as lr does not change. Raises ValueError
    where lr is 0.
    """
    inside, theirs = h["convention"] in ("keras", "paper"), package == "keras"
    sign = -1.0 if theirs else 1.0
    if inside == theirs:
        return sign
    if h["lr"] == 0.0:
        raise ValueError(
            "the velocity of SGD cannot be converted while lr is 0: "
            "it contains lr on one of the two sides"
        )
    return sign * float(h["lr"]) if inside != back else sign / float(h["lr"])


def warmed(beta: float, decay: float, t: int) -> float:
    """NAdam's μ₁ · … · μₜ."""
    product = 1.0
    for i in range(1, t + 1):
        product *= beta * (1.0 - 0.5 * math.pow(0.96, i * decay))
        if product == 0.0:
            break
    return product


# In and out


def _scheduled(x: Any) -> bool:
    return callable(x) or (isinstance(x, tuple) and any(map(callable, x)))


def kept(key: str, own: Any, keep: bool | Collection[str]) -> bool:
    """Whether a hyper-parameter stays as it is here."""
    return keep is True or _scheduled(own) or (not isinstance(keep, bool) and key in keep)


def merged(
    optimizer: Optimizer,
    hyper: Sequence[Mapping[str, Any]] | None,
    keep: bool | Collection[str],
) -> list[dict[str, Any]]:
    """The groups' dicts with the hyper-parameters of others; schedules and what is kept stay."""
    if isinstance(keep, str):
        raise TypeError(f"keep = {keep!r}: expected True, or a list of names")
    groups = [{k: x for k, x in g.items() if k != "params"} for g in optimizer.param_groups]
    for group, other in zip(groups, hyper or [{}] * len(groups), strict=True):
        taken = {k: x for k, x in other.items() if not kept(k, group.get(k), keep)}
        group.update(taken)
    return groups


def only_rule(optimizer: Any, rules: Collection[str], package: str) -> None:
    """Raises TypeError or ValueError for an optimizer that the package has no counterpart of."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer is a {type(optimizer).__name__}; it has no state to convert")
    for group in optimizer.param_groups:
        rule = group.get("rule", optimizer.rule)
        if rule not in rules or rule != optimizer.rule:
            raise ValueError(
                f"{package} has no {optimizer.rule} with groups of {rule} that could be converted; "
                f"there are {', '.join(rules)}"
            )


def programs(
    optimizer: Optimizer, groups: Sequence[Mapping[str, Any]], count: int
) -> Iterator[Any]:
    """For each group: its rule with its numbers after `count` updates."""
    for group in groups:
        yield GroupProgram(internal.rule_of(optimizer, group), group, count)


def put_in(
    optimizer: Optimizer,
    groups: list[dict[str, Any]],
    found: Mapping[str, Found],
    *,
    package: str,
    convention: str = "torch",
    step: int | None = None,
    updates: int | None = None,
) -> None:
    """Gives the optimizer the state of each parameter in `found`, and to others a new one.

    groups: as ``merged`` gave them. step: the count where the package has none. Raises ValueError
    or TypeError, naming parameter and key; nothing was changed then.
    """
    stepped = [x.step for x in found.values() if x.step is not None]
    count = updates if updates is not None else max(stepped, default=step or 0)
    if updates is None and step is None and any(x.step is None for x in found.values()):
        count = max(count, 1)
    state: dict[str, dict[str, Any]] = {}
    for program, own, group in zip(
        programs(optimizer, groups, count), optimizer.param_groups, groups, strict=True
    ):
        check_same_formula(program.rule.rule, program.h, convention)
        for name, p in zip(own["param_names"], own["params"], strict=True):
            state[name] = _state(optimizer, program, group, name, p, found.get(name), step, package)
    state_dict = optimizer.state_dict()
    state_dict |= {"state": state, "param_groups": groups, "updates": count, "skipped": 0}
    optimizer.load_state_dict(state_dict | {"clip_history": {}})


def _state(
    optimizer: Optimizer,
    program: Any,
    group: Mapping[str, Any],
    name: str,
    p: Array,
    given: Found | None,
    step: int | None,
    package: str,
) -> dict[str, Any]:
    if lacking := [k for k in program.operation_states if given is None or k not in given.arrays]:
        raise ValueError(
            f"{package} has no state {lacking[0]!r} of parameter {name!r}, which the options here "
            "ask for; make the optimizer without them"
        )
    fresh = internal.new_state(optimizer, program, name, p)
    rule = program.rule
    if given is None:
        return fresh
    del fresh["step"]
    beside = {key: fresh.pop(key) for key in program.keys_beside(p)}
    beside |= {key: given.arrays.pop(key) for key in beside if key in given.arrays}
    if set(given.arrays) != set(fresh):
        raise ValueError(
            f"parameter {name!r} has the states {sorted(given.arrays)} there; {rule.rule} with "
            f"these hyper-parameters has {sorted(fresh)}"
        )
    t = given.step if given.step is not None else step
    if t is None:
        timed = [k for k in rule.hyper_names if _scheduled(group[k])]
        if timed or group.get("lr_decay"):
            raise ValueError(
                f"{package} does not store how many steps {rule.rule} has done, and "
                f"{(timed or ['lr_decay'])[0]} here depends on it: give step="
            )
        t = 1
    arrays: dict[str, Array] = {}
    for key, x in given.arrays.items():
        scaled = program.scaled(key, p)
        if scaled is None:
            arrays[key] = checked(x, fresh[key], name, key)
            continue
        numbers = checked(x, np.empty(p.shape, np.float32), name, key)
        codes = scaled.encode(numbers, key in rule.squares)
        arrays[key], beside[program.scale_key(key)] = codes
    return {"step": t, **arrays, **beside}


def take_out(optimizer: Optimizer, package: str, convention: str) -> list[Taken]:
    """All parameters, in the order of the groups. Raises ValueError for what the package lacks."""
    state_dict = optimizer.state_dict()
    taken = []
    rules = programs(optimizer, state_dict["param_groups"], optimizer.updates)
    for i, (program, group) in enumerate(zip(rules, optimizer.param_groups, strict=True)):
        check_same_formula(program.rule.rule, program.h, convention)
        for option in _OPTIONS:
            if program.h[option]:
                raise ValueError(f"{package} has no {option}, which group {i} uses")
        for name, p in zip(group["param_names"], group["params"], strict=True):
            own = {k: x for k, x in state_dict["state"][name].items() if k not in _AVERAGES}
            step = int(own.pop("step"))
            beside = {key: own.pop(key) for key in program.keys_beside(p)}
            state = {key: _numbers(program, p, key, x, beside) for key, x in own.items()}
            masters = {key: beside[key] for key in program.master_keys(p)}
            taken.append(Taken(name, p, i, program.h, step, state, masters))
    return taken


def _numbers(program: Any, p: Array, key: str, x: Array, beside: Mapping[str, Array]) -> Array:
    """A state of the parameter p in float32 or float64, however it is stored."""
    scaled = program.scaled(key, p)
    if scaled is None:
        return formats.decoded(x)
    found: Array = scaled.decode(x, beside[program.scale_key(key)], key in program.rule.squares)
    return found
