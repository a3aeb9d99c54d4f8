"""The layout of ``torch.optim``'s state dicts, for every rule that PyTorch has; without PyTorch.

    {"state": {0: {"step": .., "exp_avg": ..}, ..}, "param_groups": [{"lr": .., "params": [0, ..]}]}

The numbers of ``params`` run over all groups. A parameter that has had no gradient has no state.
SGD and Muon count no steps. What PyTorch accumulates as a number (NAdam's product of momenta, the
rate and weight of ASGD) is a function of the step here, and is computed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from steepest.convert import common
from steepest.convert.common import Found, Taken
from steepest.matrix.newton_schulz import JORDAN
from steepest.memory import formats

__all__ = [
    "LAYOUTS",
    "Layout",
    "group_from",
    "group_to",
    "numbers",
    "state_from",
    "state_to",
    "value",
]


@dataclass(frozen=True)
class Layout:
    """How PyTorch's class of a rule writes its groups and states.

    name: the class. hyper: the hyper-parameters of a group, which have the same names here. flags:
    further keys with PyTorch's defaults. counts: whether it keeps a step. decoupled: whether weight
    decay is, or None where a flag of the group says so. computed: 0-d states that follow from the
    step.
    """

    name: str
    hyper: tuple[str, ...]
    flags: Mapping[str, Any] = field(default_factory=dict)
    counts: bool = True
    decoupled: bool | None = False
    computed: tuple[str, ...] = ()


_EACH = {"maximize": False, "foreach": None, "differentiable": False}
_CAPTURABLE = {**_EACH, "capturable": False}
_ADAM = {**_CAPTURABLE, "fused": None}

LAYOUTS = {
    "sgd": Layout(
        "SGD", ("lr", "momentum", "dampening", "weight_decay", "nesterov"),
        {**_EACH, "fused": None}, counts=False,
    ),
    "adagrad": Layout(
        "Adagrad", ("lr", "lr_decay", "eps", "weight_decay", "initial_accumulator_value"),
        {**_EACH, "fused": None},
    ),
    "rmsprop": Layout(
        "RMSprop", ("lr", "momentum", "alpha", "eps", "centered", "weight_decay"), _CAPTURABLE
    ),
    "adadelta": Layout("Adadelta", ("lr", "rho", "eps", "weight_decay"), _CAPTURABLE),
    "rprop": Layout("Rprop", ("lr", "etas", "step_sizes"), _CAPTURABLE),
    "adam": Layout(
        "Adam", ("lr", "betas", "eps", "weight_decay", "amsgrad"), _ADAM, decoupled=None
    ),
    "adamw": Layout(
        "AdamW", ("lr", "betas", "eps", "weight_decay", "amsgrad"), _ADAM, decoupled=None
    ),
    "adamax": Layout("Adamax", ("lr", "betas", "eps", "weight_decay"), _CAPTURABLE),
    "nadam": Layout(
        "NAdam", ("lr", "betas", "eps", "weight_decay", "momentum_decay"), _CAPTURABLE,
        decoupled=None, computed=("mu_product",),
    ),
    "radam": Layout(
        "RAdam", ("lr", "betas", "eps", "weight_decay"), _CAPTURABLE, decoupled=None
    ),
    "asgd": Layout(
        "ASGD", ("lr", "lambd", "alpha", "t0", "weight_decay"), _CAPTURABLE,
        computed=("eta", "mu"),
    ),
    "adafactor": Layout(
        "Adafactor", ("lr", "beta2_decay", "eps", "d", "weight_decay"),
        {"foreach": None, "maximize": False}, decoupled=True,
    ),
    "muon": Layout(
        "Muon",
        ("lr", "weight_decay", "momentum", "nesterov", "ns_coefficients", "eps", "ns_steps",
         "adjust_lr_fn"),
        counts=False, decoupled=True,
    ),
}  # fmt: skip
"""By the name of the rule here, in the order of the registry."""

_PLAIN = {
    "form": "torch",
    "beta1": None,
    "relative_step": True,
    "warmup_init": False,
    "scale_parameter": True,
}
"""What a rule here may have that PyTorch's class has not, and what it must be."""


# Groups


def group_from(rule: str, group: Mapping[str, Any], number: int = 0) -> dict[str, Any]:
    """The hyper-parameters here of one of PyTorch's groups. Numbers may be tensors. Keys of other
    kinds, such as ``initial_lr``, are not among them."""
    layout = LAYOUTS[rule]
    found = {
        key: value(group[key], f"{key} of group {number}") for key in layout.hyper if key in group
    }
    if layout.decoupled is None:
        decoupled = group.get("decoupled_weight_decay", rule == "adamw")
    else:
        decoupled = layout.decoupled
    found["decay_mode"] = "decoupled" if decoupled else "l2"
    found["maximize"] = bool(group.get("maximize", False))
    return found


def value(x: Any, what: str) -> Any:
    """A hyper-parameter, whose numbers may be tensors. Raises TypeError or ValueError."""
    if x is None or isinstance(x, (bool, str, int, float)):
        return x
    if isinstance(x, (tuple, list)):
        if any(isinstance(one, (tuple, list)) for one in x):
            raise ValueError(f"{what} = {x!r}: expected numbers, not lists of them")
        return tuple(value(one, what) for one in x)
    return common.number_of(x, what)


def numbers(group: Mapping[str, Any], keys: Sequence[str], number: int) -> dict[str, Any]:
    """Those hyper-parameters of a group that are among the keys."""
    return {key: value(group[key], f"{key} of group {number}") for key in keys if key in group}


def group_to(rule: str, h: Mapping[str, Any], number: int = 0) -> dict[str, Any]:
    """PyTorch's group, but for ``params``. Raises ValueError for what PyTorch's class lacks."""
    layout = LAYOUTS[rule]
    where = f"torch.optim.{layout.name} (group {number})"
    _check_plain(rule, h)
    weight, mode = h["weight_decay"], h["decay_mode"]
    modes = {None: ("l2", "decoupled"), True: ("decoupled",), False: ("l2",)}[layout.decoupled]
    if weight and (mode not in modes or "weight_decay" not in layout.hyper):
        raise ValueError(f"{where} has no weight_decay with decay_mode = {mode!r}")
    group = {key: h[key] for key in layout.hyper}
    if rule == "muon":
        group["ns_coefficients"] = _triple(group["ns_coefficients"], where)
    group |= dict(layout.flags)
    if "maximize" in layout.flags:
        group["maximize"] = h["maximize"]
    elif h["maximize"]:
        raise ValueError(f"{where} cannot maximize")
    if layout.decoupled is None:
        group["decoupled_weight_decay"] = mode == "decoupled"
    return group


def _check_plain(rule: str, h: Mapping[str, Any]) -> None:
    for key, plain in _PLAIN.items():
        if key in h and h[key] != plain:
            raise ValueError(
                f"torch.optim.{LAYOUTS[rule].name} has no {key}; here it is {h[key]!r}"
            )


def _triple(x: Any, where: str) -> tuple[float, ...]:
    triple = JORDAN if x == "jordan" else x
    if isinstance(triple, str) or not all(isinstance(one, float) for one in triple):
        raise ValueError(f"{where} takes three ns_coefficients; here they are {x!r}")
    return tuple(triple)


# States


def state_from(
    rule: str, h: Mapping[str, Any], name: str, state: Mapping[str, Any]
) -> Found | None:
    """One parameter's state from PyTorch's, for a group with the numbers h; None for one without.

    Raises ValueError for an entry that says other than what h gives, and for what PyTorch lacks.
    """
    layout = LAYOUTS[rule]
    _check_plain(rule, h)
    arrays = {key: x for key, x in state.items() if x is not None}
    if rule == "sgd" and not h["momentum"]:  # it has no state, however many steps were done
        return Found(None, {key: x for key, x in arrays.items() if key != "momentum_buffer"})
    if not arrays:
        return None
    step = None
    if layout.counts:
        if "step" not in arrays:
            raise ValueError(f"state of parameter {name!r} has no step, only {sorted(arrays)}")
        step = common.count_of(arrays.pop("step"), f"step of parameter {name!r}")
    for key in layout.computed:
        if key in arrays:
            given = common.number_of(arrays.pop(key), f"state {key!r} of parameter {name!r}")
            if key == "mu_product":
                _check_product(h, name, step or 0, given)
    if rule == "sgd":
        arrays = _velocity(h, name, arrays)
    return Found(step, arrays)


def _check_product(h: Mapping[str, Any], name: str, step: int, given: float) -> None:
    product = common.warmed(h["betas"][0], h["momentum_decay"], step)
    if abs(given - product) > 1e-3 * product + 1e-30:  # single precision, step by step
        raise ValueError(
            f"state 'mu_product' of parameter {name!r} is {given:g}; {step} steps with the group's "
            f"betas and momentum_decay give {product:g}, and here it is always what these give"
        )


def _velocity(h: Mapping[str, Any], name: str, arrays: dict[str, Any]) -> dict[str, Any]:
    """SGD's velocity as the convention here has it."""
    if "momentum_buffer" in arrays:
        scale = common.rescaled(h, "torch")
        what = f"state 'momentum_buffer' of parameter {name!r}"
        if scale != 1.0:
            arrays["momentum_buffer"] = common.array_of(arrays["momentum_buffer"], what) * scale
    return arrays


def state_to(rule: str, taken: Taken) -> dict[str, Any]:
    """PyTorch's state of one parameter, of arrays; empty for one that has had no step.

    Numbers are 0-d arrays, the step in single precision as in PyTorch (in double where that is too
    small).
    """
    layout, t, h = LAYOUTS[rule], taken.step, taken.h
    state: dict[str, Any] = dict(taken.state)
    if t == 0 and rule != "adagrad":  # whose state PyTorch makes with the optimizer
        return {}
    if rule == "sgd" and state:
        state["momentum_buffer"] = state["momentum_buffer"] * common.rescaled(h, "torch", back=True)
    if not layout.counts:
        return state
    single = np.float32(t)
    state["step"] = np.array(t, np.float32 if int(single) == t else np.float64)
    dtype = formats.computed(taken.param)
    if rule == "nadam":
        product = common.warmed(h["betas"][0], h["momentum_decay"], t)
        state["mu_product"] = np.array(product, dtype)
    elif rule == "asgd":
        eta = h["lr"] / (1.0 + h["lambd"] * h["lr"] * t) ** h["alpha"]
        state["eta"] = np.array(eta, dtype)
        state["mu"] = np.array(1.0 / max(1.0, t - h["t0"]), dtype)
    return state
