"""To and from the optimizers of FlashOptim, which write PyTorch's layout; states of 8 bits in
blocks of 32, and what a parameter of 16 bits lacks as error bits beside it.

    {"step": 7, "exp_avg::quantized": int8, "exp_avg::scales": float16, .., "error_bits": ..}

Error bits are what a parameter lacks over half a unit in its last place, times 127 or 32767.
PyTorch casts the states it loads to the parameter's type, so 8 error bits are written as numbers of
that type, and what has 16 bits as if it were of that type.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from steepest.codecs import MASTERS, Master
from steepest.convert import common, torch_layout
from steepest.convert.block_codecs import FLASHOPTIM
from steepest.convert.common import Found, Taken
from steepest.convert.torch import check_layout, take_over, tensors_of, written
from steepest.extras import require
from steepest.memory import formats
from steepest.memory.arrays import Array
from steepest.optimizers import Optimizer

__all__ = ["from_flashoptim", "to_flashoptim"]

_ADAM = ("lr", "betas", "eps", "weight_decay"), ("exp_avg", "exp_avg_sq")
_RULES = {
    "sgd": (("lr", "momentum", "dampening", "weight_decay"), ("momentum_buffer",)),
    "adam": _ADAM,
    "adamw": _ADAM,
    "lion": (("lr", "betas", "weight_decay"), ("exp_avg",)),
}
"""The hyper-parameters and states of a rule, which have the same names here."""
_SIGNED = {"momentum_buffer": True, "exp_avg": True, "exp_avg_sq": False}
_PLAIN = {"amsgrad": False, "maximize": False}
_WIDTHS = {None: 0, 24: 3, 32: 4}
"""How many bytes a parameter and its error bits have together, by ``master_weight_bits``."""
_MOST = {1: 127, 2: 32767}
"""The largest error bits, by their bytes."""
_FORMATS = {"bfloat16": (7, 127), "float16": (10, 15)}
"""The bits of the mantissa and the bias of the exponent."""


def from_flashoptim(
    state_dict: Mapping[str, Any],
    optimizer: Optimizer,
    *,
    names: Sequence[str] | None = None,
    keep: bool | Collection[str] = False,
    step: int | None = None,
) -> None:
    """Gives an SGD, Adam, AdamW or Lion the state of one of FlashOptim, compressed or not.

    Whether decay is decoupled and whether momentum is Nesterov's is not in it: the class and its
    arguments here say so. Error bits become the master, so parameters of 16 bits here need one.
    ``"float32"`` holds every number that error bits can make; others the nearest they have, off by
    a unit in the last place where a number is half way between two of the parameter's. The
    parameters must be those that the state belongs to. For parameters of float32 here error bits
    are left out: load what ``get_fp32_model_state_dict`` there gave. names, keep, step: as for
    ``from_torch``; SGD and Lion do not store the step.

    Raises what ``from_torch`` raises, and ValueError for error bits of a parameter of 16 bits that
    has no master here.
    """
    common.only_rule(optimizer, _RULES, "FlashOptim")
    check_layout(state_dict)
    params = {
        name: p
        for group in optimizer.param_groups
        for name, p in zip(group["param_names"], group["params"], strict=True)
    }
    width = {
        key: torch_layout.value(group.get("master_bytewidth"), f"master_bytewidth of group {i}")
        for i, group in enumerate(state_dict["param_groups"])
        for key in group["params"]
    }
    state = {
        key: {**own, "width": width.get(key)} if isinstance(own, Mapping) and own else own
        for key, own in state_dict["state"].items()
    }

    def read(rule: str, h: Mapping[str, Any], name: str, own: Mapping[str, Any]) -> Found | None:
        return _state_from(rule, h, name, own, params[name])

    take_over(
        {**state_dict, "state": state}, optimizer, _group_from, read,
        package="FlashOptim", names=names, keep=keep, step=step,
    )  # fmt: skip


def to_flashoptim(
    optimizer: Optimizer,
    *,
    quantize: bool = True,
    master_weight_bits: int | None = 24,
    tensors: bool = True,
) -> dict[str, Any]:
    """The state of an SGD, Adam, AdamW or Lion as ``load_state_dict`` of FlashOptim's class takes
    it.

    quantize, master_weight_bits: as of the one there, which is to have this class's decay and the
    same parameters. Masters here are written as error bits; where there is none, a parameter begins
    without error there. Codes are those that FlashOptim itself would give; what came of codes, and
    has not changed, gets them back.

    Raises what ``to_torch`` raises, and ValueError for numbers that are not finite or beyond the
    float16 that its scales are.
    """
    common.only_rule(optimizer, _RULES, "FlashOptim")
    if master_weight_bits not in _WIDTHS:
        raise ValueError(f"master_weight_bits = {master_weight_bits!r}: expected None, 24 or 32")
    width, rule = _WIDTHS[master_weight_bits], optimizer.rule

    def group(one: Taken) -> dict[str, Any]:
        own = _group_to(rule, one)
        return own | {"master_bytewidth": width, "quantize": bool(quantize)}

    def state(one: Taken) -> dict[str, Any]:
        return _state_to(rule, one, quantize, width) if one.step else {}

    whole = written(optimizer, group, state, package="FlashOptim")
    return tensors_of(whole) if tensors else whole


# Groups


def _group_from(rule: str, group: Mapping[str, Any], number: int) -> dict[str, Any]:
    return torch_layout.numbers(group, _RULES[rule][0], number)


def _group_to(rule: str, one: Taken) -> dict[str, Any]:
    h, where = one.h, f"FlashOptim's {rule} (group {one.group})"
    _check_plain(h, where)
    modes = {"adamw": ("decoupled",), "lion": ("decoupled",)}.get(rule, ("l2", "decoupled"))
    if h["weight_decay"] and h["decay_mode"] not in modes:
        raise ValueError(f"{where} has no weight_decay with decay_mode = {h['decay_mode']!r}")
    return {key: h[key] for key in _RULES[rule][0]} | {"initial_lr": h["lr"]}


def _check_plain(h: Mapping[str, Any], where: str) -> None:
    for key, plain in _PLAIN.items():
        if key in h and h[key] != plain:
            raise ValueError(f"{where} has no {key}; here it is {h[key]!r}")


# States


def _state_from(
    rule: str, h: Mapping[str, Any], name: str, state: Mapping[str, Any], p: Array
) -> Found | None:
    _check_plain(h, f"FlashOptim's {rule}")
    rest = dict(state)
    width, bits = rest.pop("width", 0), rest.pop("error_bits", None)
    without = rule == "sgd" and not h["momentum"]  # it has no other state, whatever was done
    if not rest and not without:
        return None
    step = None
    if rule in ("adam", "adamw"):
        step, rest = common.counted(rest, name)
    arrays: dict[str, Array] = {}
    for key in _RULES[rule][1]:
        what = f"state {key!r} of parameter {name!r}"
        codes, scales = rest.pop(f"{key}::quantized", None), rest.pop(f"{key}::scales", None)
        if codes is not None and scales is not None:
            arrays[key] = _dequantised(codes, scales, _SIGNED[key], what)
        elif codes is not None or scales is not None:
            raise ValueError(f"{what} needs both '{key}::quantized' and '{key}::scales'")
    found = Found(step, arrays | rest)
    if rule == "sgd" and "momentum_buffer" in found.arrays:
        x = common.array_of(found.arrays["momentum_buffer"], f"velocity of parameter {name!r}")
        found.arrays["momentum_buffer"] = x * common.rescaled(h, "torch")
    if bits is not None and formats.of(p).name in _FORMATS:
        found.arrays |= _master_from(bits, width, h["master"], p, name)
    return found


def _state_to(rule: str, one: Taken, quantize: bool, width: int) -> dict[str, Any]:
    state: dict[str, Any] = {}
    if rule in ("adam", "adamw"):
        state["step"] = np.array(one.step, np.int64)
    for key in one.state:
        x = common.single(one, key)
        if rule == "sgd":
            x = x * np.float32(common.rescaled(one.h, "torch", back=True))
        if not quantize:
            state[key] = x
            continue
        common.check_finite(x, one.name, key)
        codes, factors = FLASHOPTIM[_SIGNED[key]].encoded(x)
        with np.errstate(over="ignore"):
            scales = factors.astype(np.float16)
        if not np.isfinite(scales).all():
            raise ValueError(
                f"state {key!r} of parameter {one.name!r} has numbers beyond float16, which "
                "FlashOptim's scales are"
            )
        state[f"{key}::quantized"] = codes.view(np.int8) if _SIGNED[key] else codes
        state[f"{key}::scales"] = _as_if(scales, one.param)
    whole = _whole(one) if width else None
    if whole is not None:
        errors = _errors(whole, one.param, _MOST[width - 2])
        few = formats.encoded(errors.astype(np.float32), one.param.dtype)
        state["error_bits"] = _as_if(errors, one.param) if width == 4 else few
    return state


def _dequantised(codes: Any, scales: Any, signed: bool, what: str) -> Array:
    given = common.array_of(codes, what)
    found = np.empty(0, np.int8 if signed else np.uint8)
    if given.dtype.kind in "iuf":
        with np.errstate(invalid="ignore"):
            found = given.astype(found.dtype)
    if not np.array_equal(found, given):
        raise ValueError(f"{what} has codes of {given.dtype} that are not of 8 bits")
    factors = common.array_of(scales, f"scales of {what}")
    if "bfloat16" in str(getattr(scales, "dtype", "")):  # float16, written as if of that type
        factors = _bits(scales).view(np.float16)
    codec = FLASHOPTIM[signed]
    if factors.shape != (-(-found.size // codec.block),):
        raise ValueError(
            f"{what} has {factors.shape} scales; expected one for each 32 of {found.size} numbers"
        )
    return codec.decoded(found.view(np.uint8), factors.astype(np.float32))


def _as_if(x: Array, p: Array) -> Array:
    """What has 16 bits, as if it were of the parameter's type, if that has 16 bits, too."""
    return x.view(p.dtype) if p.dtype.itemsize == 2 else x


def _bits(x: Any) -> Array:
    """The bits of a tensor or array whose numbers have 16."""
    if hasattr(x, "detach"):
        torch = require("torch", "torch", "a state of tensors")
        found: Array = x.detach().cpu().contiguous().view(torch.int16).numpy()
        return found
    return np.ascontiguousarray(x).view(np.int16)


# Error bits


def _master_from(bits: Any, width: Any, master: str | None, p: Array, name: str) -> dict[str, Any]:
    what = f"error_bits of parameter {name!r}"
    if master is None:
        raise ValueError(
            f"{what}: make the optimizer with a master, such as 'float32', or 'split8', which "
            "takes no more memory; here it is None"
        )
    errors = common.array_of(bits, what)
    if errors.shape != p.shape:
        raise ValueError(f"{what} have shape {errors.shape}; expected {p.shape}")
    size = errors.dtype.itemsize if errors.dtype.kind == "i" else None
    if size is None and width in (3, 4):
        size = width - 2
        errors = _bits(bits) if size == 2 else errors
    if size not in _MOST or not (np.abs(errors.astype(np.int64)) <= _MOST[size] + 1).all():
        raise ValueError(
            f"{what} have dtype {errors.dtype}, in a group with master_bytewidth = {width!r}; "
            "expected 8 or 16 bits"
        )
    whole = _corrected(errors, p, _MOST[size])
    return {MASTERS[master].key: _kept(whole, p, MASTERS[master], what)}


def _kept(whole: Array, p: Array, master: Master, what: str) -> Array:
    """The state of a master that has the number nearest to it.

    A number half way between two of the parameter's format may go with either; where the master
    would have it go with the other, it is moved by a unit: of float32's last place, or of 24 bits.
    0 has no sign but its own.
    """
    if master.state_type(p.dtype) == np.float32:
        return np.array(whole, np.float32, order="C")
    near = formats.decoded(p)
    whole = np.where((near == 0) & (np.signbit(near) != np.signbit(whole)), near, whole)
    whole = np.asarray(whole, np.float32)
    short, state = master.split(whole, p.dtype)
    for part in (2.0**-15, 2.0**-7):
        other = formats.decoded(short) != near
        moved, again = master.split(np.asarray(whole + (near - whole) * np.float32(part)), p.dtype)
        short, state = np.where(other, moved, short), np.where(other, again, state)
    if (formats.decoded(short) != near).any():
        raise ValueError(
            f"{what} are not within half a unit in the parameter's last place: the parameter is "
            "not that of the state"
        )
    return np.array(state, order="C")


def _whole(one: Taken) -> Array | None:
    """The parameter and what its master adds; None if it has none."""
    if not one.master:
        return None
    master = MASTERS[one.h["master"]]
    return master.joined(one.param, one.master[master.key])


def _errors(whole: Array, p: Array, most: int) -> Array:
    """What a parameter lacks over half a unit in its last place, times `most`; half away from 0."""
    near, scale = _near(p)
    with np.errstate(invalid="ignore", over="ignore"):
        part = np.clip(np.ldexp(whole - near, -scale), -1, 1) * np.float32(most)
    away = np.copysign(np.floor(np.abs(part) + np.float32(0.5)), part)
    found: Array = np.nan_to_num(away).astype(np.int16)
    return found


def _corrected(errors: Array, p: Array, most: int) -> Array:
    """A parameter and what it lacks, in single precision."""
    near, scale = _near(p)
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        found: Array = near + np.ldexp(errors.astype(np.float32) / np.float32(most), scale)
    return found


def _near(p: Array) -> tuple[Array, Array]:
    """The numbers of a parameter of 16 bits, and the exponent of half a unit in the last place."""
    mantissa, bias = _FORMATS[formats.of(p).name]
    exponent = (np.ascontiguousarray(p).view(np.uint16) & 0x7FFF).astype(np.int32) >> mantissa
    return formats.decoded(p), np.maximum(exponent, 1) - bias - mantissa - 1
