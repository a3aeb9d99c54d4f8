"""To and from the optimizers of bitsandbytes, which write PyTorch's layout; states of 8 or 32 bits.

    {"step": 7, "__bnb_optimizer_quant_state__": {"state1": .., "qmap1": .., "absmax1": .., ..}}

Parameters of fewer than 4096 numbers have states of single precision, without qmap and absmax.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from steepest.convert import block_codecs, common, torch_layout
from steepest.convert.block_codecs import BITSANDBYTES
from steepest.convert.common import Found, Taken
from steepest.convert.torch import take_over, tensors_of, written
from steepest.memory.arrays import Array
from steepest.optimizers import Optimizer

__all__ = ["from_bitsandbytes", "to_bitsandbytes"]

_WRAPPED = "__bnb_optimizer_quant_state__"
_SMALL = 4096
_BLOCKS = (256, 2048)
"""How many numbers share a factor: in versions from 0.45 on, and in older ones."""
_IGNORED = {"gnorm_vec", "unorm_vec"}
"""What its own clipping by percentiles and by norms of steps remembers."""


@dataclass(frozen=True)
class _Layout:
    """How a rule is written there.

    betas: the hyper-parameter that they are, or the one that is the first of two. states: those of
    here, in order; an inner tuple is one array there. decoupled: whether weight decay is, also in
    its Adam. plain: what hyper-parameters must be, since there are none there.
    """

    betas: str | None
    states: tuple[tuple[str, ...], ...]
    decoupled: bool = False
    plain: Mapping[str, Any] = field(default_factory=dict)


_LAYOUTS = {
    "sgd": _Layout("momentum", (("momentum_buffer",),), plain={"nesterov": False}),
    "adagrad": _Layout(None, (("sum",),), plain={"initial_accumulator_value": 0.0}),
    "rmsprop": _Layout("alpha", (("square_avg",),), plain={"momentum": 0.0, "centered": False}),
    "adam": _Layout("betas", (("exp_avg",), ("exp_avg_sq",)), True, {"amsgrad": False}),
    "adamw": _Layout("betas", (("exp_avg",), ("exp_avg_sq",)), True, {"amsgrad": False}),
    "ademamix": _Layout("betas", (("exp_avg_fast", "exp_avg_slow"), ("exp_avg_sq",)), True),
    "lion": _Layout("betas", (("exp_avg",),), True),
}
"""By the name of the rule here, in the order of the registry. Its LARS and LAMB have norms only
where states have 32 bits, and then other formulas."""
_PLAIN = {"maximize": False, "lr_decay": 0.0, "dampening": 0.0}


def from_bitsandbytes(
    state_dict: Mapping[str, Any],
    optimizer: Optimizer,
    *,
    names: Sequence[str] | None = None,
    keep: bool | Collection[str] = False,
) -> None:
    """Gives an optimizer the state of one of bitsandbytes, of 32 or 8 bits: an SGD with momentum,
    Adagrad, RMSprop, Adam, AdamW, AdEMAMix or Lion.

    States of 8 bits become the numbers qmap[code] · absmax[block], which bitsandbytes itself would
    compute with, stored as ``state_dtype`` here says. The state dict may be nested, as newer
    versions write it, or flat.

    Weight decay of Adam, AdamW, AdEMAMix and Lion is decoupled there, also in Adam. On the CPU it
    comes before the step, on a GPU after that of all but Lion, which ``decay_mode=
    "decoupled_after"`` does here; else ``decay_mode`` becomes ``"decoupled"``. names, keep: as for
    ``from_torch``.

    Raises what ``from_torch`` raises, and ValueError for states that are quantised as a whole, not
    by blocks, and for a warm-up of alpha or β₃ that the optimizer here has no schedule for.
    """
    common.only_rule(optimizer, _LAYOUTS, "bitsandbytes")
    after = all(g["decay_mode"] == "decoupled_after" for g in optimizer.param_groups)

    def group(rule: str, group: Mapping[str, Any], number: int) -> dict[str, Any]:
        _check_warm_up(optimizer, group, number, keep)
        return _group_from(rule, group, number, after)

    take_over(
        state_dict, optimizer, group, _state_from, package="bitsandbytes", names=names, keep=keep
    )  # fmt: skip


def to_bitsandbytes(optimizer: Optimizer, *, bits: int = 8, tensors: bool = True) -> dict[str, Any]:
    """The state of an SGD with momentum, Adagrad, RMSprop, Adam, AdamW, AdEMAMix or Lion as
    ``load_state_dict`` of bitsandbytes' class takes it.

    bits: 8 for the classes whose names end so, 32 for states in single precision. Each number gets
    the nearest code of bitsandbytes' own tables; what came of such codes, and has not changed, gets
    them back. Parameters of fewer than 4096 numbers have states of 32 bits in both.

    Raises what ``to_torch`` raises, and ValueError for numbers that are not finite, which have no
    code.

    >>> import numpy as np, steepest as st
    >>> opt = st.Lion([np.zeros(4096, np.float32)])
    >>> opt.step([np.linspace(-1, 1, 4096)])
    >>> [own] = st.convert.to_bitsandbytes(opt, tensors=False)["state"].values()
    >>> {key: x.shape for key, x in own["__bnb_optimizer_quant_state__"].items()}
    {'state1': (4096,), 'qmap1': (256,), 'absmax1': (16,)}
    """
    common.only_rule(optimizer, _LAYOUTS, "bitsandbytes")
    if bits not in (8, 32):
        raise ValueError(f"bits = {bits!r}: expected 8 or 32")
    rule = optimizer.rule
    whole = written(
        optimizer,
        lambda one: _group_to(rule, one),
        lambda one: _state_to(rule, one, bits),
        package="bitsandbytes",
    )
    return tensors_of(whole) if tensors else whole


# Groups


def _check_warm_up(
    optimizer: Optimizer, group: Mapping[str, Any], number: int, keep: bool | Collection[str]
) -> None:
    """Raises ValueError for a warm-up there which is none here."""
    for theirs, ours, made in (
        ("t_alpha", "alpha", "alpha=st.schedules.ademamix_alpha"),
        ("t_beta3", "betas", "β₃ = st.schedules.ademamix_beta3"),
    ):
        stay = all(common.kept(ours, g.get(ours), keep) for g in optimizer.param_groups)
        if group.get(theirs) and not stay:
            raise ValueError(
                f"{theirs} of group {number} = {group[theirs]!r}, a warm-up: make the optimizer "
                f"with {made}, or keep={[ours]}"
            )


def _group_from(rule: str, group: Mapping[str, Any], number: int, after: bool) -> dict[str, Any]:
    layout = _LAYOUTS[rule]
    keys = ["lr", "weight_decay"]
    keys += [] if rule in ("sgd", "lion") else ["eps"]
    keys += ["alpha"] if rule == "ademamix" else []
    found = torch_layout.numbers(group, keys, number)
    if layout.betas is not None and "betas" in group:
        betas = torch_layout.value(group["betas"], f"betas of group {number}")
        if not isinstance(betas, tuple) or len(betas) < 2:
            raise ValueError(f"betas of group {number} = {betas!r}: expected two or three numbers")
        several = betas[:3] if rule == "ademamix" else betas[:2]
        found[layout.betas] = several if layout.betas == "betas" else betas[0]
    found["decay_mode"] = "l2"
    if layout.decoupled:
        found["decay_mode"] = "decoupled_after" if after and rule != "lion" else "decoupled"
    return found


def _group_to(rule: str, one: Taken) -> dict[str, Any]:
    layout, h = _LAYOUTS[rule], one.h
    where = f"bitsandbytes' {rule} (group {one.group})"
    _check_plain(rule, h, where)
    modes = ("decoupled", "decoupled_after") if layout.decoupled else ("l2",)
    if h["weight_decay"] and h["decay_mode"] not in modes:
        raise ValueError(f"{where} has no weight_decay with decay_mode = {h['decay_mode']!r}")
    if rule == "sgd" and not h["momentum"]:
        raise ValueError(f"{where} has no momentum = 0")
    betas = (0.0, 0.0) if layout.betas is None else h[layout.betas]
    group = {
        "lr": h["lr"],
        "betas": betas if isinstance(betas, tuple) else (betas, 0.0),
        "eps": h.get("eps", 0.0),
        "weight_decay": h["weight_decay"],
    }
    if len(layout.states) == 2:
        group |= {"alpha": h.get("alpha", 0.0), "t_alpha": None, "t_beta3": None}
    return group


def _check_plain(rule: str, h: Mapping[str, Any], where: str) -> None:
    for key, plain in {**_PLAIN, **_LAYOUTS[rule].plain}.items():
        if key in h and h[key] != plain:
            raise ValueError(f"{where} has no {key}; here it is {h[key]!r}")


# States


def _state_from(
    rule: str, h: Mapping[str, Any], name: str, state: Mapping[str, Any]
) -> Found | None:
    _check_plain(rule, h, f"bitsandbytes' {rule}")
    if not state:
        return None
    step, rest = common.counted({**state, **state.get(_WRAPPED, {})}, name)
    rest = {key: x for key, x in rest.items() if key not in _IGNORED and key != _WRAPPED}
    arrays: dict[str, Array] = {}
    for number, keys in enumerate(_LAYOUTS[rule].states, 1):
        parts = {
            part: rest.pop(f"{part}{number}")
            for part in ("state", "qmap", "absmax", "max", "new_max")
            if f"{part}{number}" in rest
        }
        if "state" not in parts:
            raise ValueError(f"state of parameter {name!r} has no 'state{number}'")
        found = _floating(parts, keys, f"state 'state{number}' of parameter {name!r}")
        arrays |= dict(zip(keys, found, strict=True))
    if rest:
        raise ValueError(
            f"state of parameter {name!r} has {sorted(rest)}, which {rule} does not have"
        )
    if rule == "sgd":
        arrays["momentum_buffer"] = arrays["momentum_buffer"] * common.rescaled(h, "torch")
    return Found(step, arrays)


def _floating(parts: Mapping[str, Any], keys: Sequence[str], what: str) -> list[Array]:
    """The numbers of states: as they are, or qmap[code] · absmax[block]. One array there is several
    here, along its first axis, if there are several keys."""
    codes = common.array_of(parts["state"], what)
    several = len(keys) > 1
    if several and codes.shape[:1] != (len(keys),):
        raise ValueError(f"{what} has shape {codes.shape}; expected {len(keys)} along axis 0")
    if codes.dtype != np.uint8:
        return list(codes) if several else [codes]
    if not {"qmap", "absmax"} <= parts.keys():
        raise ValueError(f"{what} is quantised as a whole; expected qmap and absmax, by blocks")
    table = common.array_of(parts["qmap"], f"qmap of {what}")
    largest = common.array_of(parts["absmax"], f"absmax of {what}")
    size = codes[0].size if several else codes.size
    ahead = (len(keys),) if several else ()
    sizes = [block for block in _BLOCKS if largest.shape == (*ahead, -(-size // block))]
    if table.shape != (256,) or not sizes:
        raise ValueError(
            f"{what}: qmap has shape {table.shape}, absmax {largest.shape}; expected (256,) and a "
            f"factor for each 256 or 2048 of {size} numbers"
        )
    pairs = zip(codes, largest, strict=True) if several else [(codes, largest)]
    return [block_codecs.decoded(table, own, factors, sizes[0]) for own, factors in pairs]


def _state_to(rule: str, one: Taken, bits: int) -> dict[str, Any]:
    if not one.step:
        return {}
    parts: dict[str, Array] = {}
    for number, keys in enumerate(_LAYOUTS[rule].states, 1):
        states = [common.single(one, key) for key in keys]
        if rule == "sgd":
            states = [x * np.float32(common.rescaled(one.h, "torch", back=True)) for x in states]
        if bits == 32 or one.param.size < _SMALL:
            parts[f"state{number}"] = _stacked(states)
            continue
        codec = BITSANDBYTES[number == 1]  # the first is signed, whatever it holds
        for key, x in zip(keys, states, strict=True):
            common.check_finite(x, one.name, key)
        codes, factors = zip(*map(codec.encoded, states), strict=True)
        parts[f"state{number}"] = _stacked(codes)
        parts[f"qmap{number}"] = codec.numbers.copy()
        parts[f"absmax{number}"] = _stacked(factors)
    return {"step": one.step, _WRAPPED: parts}


def _stacked(x: Sequence[Array]) -> Array:
    return np.stack(x) if len(x) > 1 else x[0]
