"""Optimizers of other packages that write PyTorch's layout: DeepSpeed's, bitsandbytes'."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from steepest.convert import common, torch_layout
from steepest.convert.common import Found
from steepest.convert.torch import take_over, tensors_of
from steepest.memory.arrays import Array
from steepest.optimizers import Optimizer

__all__ = ["from_bitsandbytes", "from_deepspeed", "to_deepspeed"]

_RULES = ("adam", "adamw", "lion")


def _numbers(group: Mapping[str, Any], keys: Sequence[str], number: int) -> dict[str, Any]:
    return {
        key: torch_layout.value(group[key], f"{key} of group {number}")
        for key in keys
        if key in group
    }


def _counted(state: Mapping[str, Any], name: str) -> tuple[int, dict[str, Any]]:
    """The step, and the rest of a state."""
    if "step" not in state:
        raise ValueError(f"state of parameter {name!r} has no step, only {sorted(state)}")
    rest = {key: x for key, x in state.items() if key != "step"}
    return common.count_of(state["step"], f"step of parameter {name!r}"), rest


# DeepSpeed

_ZERO = {
    "base_optimizer_state", "ds_version", "fp32_flat_groups", "fp32_groups_flat",
    "param_slice_mappings", "partition_count", "single_partition_of_fp32_groups", "zero_stage",
}  # fmt: skip
_MERGE = "merge the partitions of all processes first, with DeepSpeed's ds_to_universal.py"


def from_deepspeed(
    state_dict: Mapping[str, Any],
    optimizer: Optimizer,
    *,
    names: Sequence[str] | None = None,
    keep: bool | Collection[str] = False,
) -> None:
    """Gives an Adam, AdamW or Lion the state of a ``DeepSpeedCPUAdam`` or ``DeepSpeedCPULion``.

    state_dict: of the optimizer itself, with a state for each parameter. Whether decay is decoupled
    (``adamw_mode``) is not in it: the class here says so. names, keep: as for ``from_torch``.

    Raises what ``from_torch`` raises, and ValueError for the flattened partitions of ZeRO: they are
    to be merged first, with DeepSpeed's ``ds_to_universal.py``.
    """
    common.only_rule(optimizer, _RULES, "DeepSpeed")
    whole = state_dict if isinstance(state_dict, Mapping) else {}
    inner = whole.get("optimizer_state_dict", {})
    if zero := sorted(_ZERO & {*whole, *(inner if isinstance(inner, Mapping) else ())}):
        raise ValueError(f"a checkpoint of ZeRO, with {zero[0]!r}: {_MERGE}")
    shapes = {
        name: p.shape
        for group in optimizer.param_groups
        for name, p in zip(group["param_names"], group["params"], strict=True)
    }

    def state(rule: str, h: Mapping[str, Any], name: str, state: Mapping[str, Any]) -> Found | None:
        if not state:
            return None
        step, arrays = _counted(state, name)
        for key, x in arrays.items():
            if len(np.shape(x)) == 1 and len(shapes[name]) != 1:
                raise ValueError(
                    f"state {key!r} of parameter {name!r} is flat, of shape {tuple(np.shape(x))}; "
                    f"expected {shapes[name]}. If it is a partition of ZeRO, {_MERGE}"
                )
        return Found(step, arrays)

    take_over(
        state_dict, optimizer, _deepspeed_group, state,
        package="DeepSpeed", convention="deepspeed", names=names, keep=keep,
    )  # fmt: skip


def _deepspeed_group(rule: str, group: Mapping[str, Any], number: int) -> dict[str, Any]:
    if group.get("amsgrad"):
        raise ValueError(f"amsgrad of group {number} is set; DeepSpeed has none")
    keys = ["lr", "betas", "weight_decay"]
    if rule != "lion":
        keys += ["eps", "bias_correction"]
    return _numbers(group, keys, number)


def to_deepspeed(optimizer: Optimizer, *, tensors: bool = True) -> dict[str, Any]:
    """The state of an Adam, AdamW or Lion as ``DeepSpeedCPUAdam`` or ``DeepSpeedCPULion`` loads it:
    PyTorch's layout, steps as Python's integers, states in single precision.

    Make the one there with ``adamw_mode`` as here. Raises what ``to_torch`` raises, and ValueError
    for what DeepSpeed lacks: ``amsgrad``, ``maximize``.
    """
    common.only_rule(optimizer, _RULES, "DeepSpeed")
    groups: list[dict[str, Any]] = []
    state: dict[int, dict[str, Any]] = {}
    for number, one in enumerate(common.take_out(optimizer, "DeepSpeed", "deepspeed")):
        for key in ("amsgrad", "maximize"):
            if one.h.get(key):
                raise ValueError(f"DeepSpeed has no {key}, which group {one.group} goes by")
        if one.group == len(groups):
            keys = ("lr", "betas", "eps", "weight_decay", "bias_correction", "amsgrad")
            groups.append({key: one.h[key] for key in keys if key in one.h} | {"params": []})
        groups[one.group]["params"].append(number)
        if one.step:
            arrays = {
                key: common.checked(x, np.empty(x.shape, np.float32), one.name, key)
                for key, x in one.state.items()
            }
            state[number] = {"step": one.step, **arrays}
    whole = {"state": state, "param_groups": groups}
    return tensors_of(whole) if tensors else whole


# bitsandbytes

_WRAPPED = "__bnb_optimizer_quant_state__"
_BLOCKS = (256, 2048)
"""How many numbers share a factor: in versions from 0.45 on, and in older ones."""
_TENSORS = {
    "adam": {"exp_avg": "1", "exp_avg_sq": "2"},
    "adamw": {"exp_avg": "1", "exp_avg_sq": "2"},
    "lion": {"exp_avg": "1"},
}
_IGNORED = {"gnorm_vec", "unorm_vec"}
"""What its own clipping by percentiles and by norms of steps remembers."""


def from_bitsandbytes(
    state_dict: Mapping[str, Any],
    optimizer: Optimizer,
    *,
    names: Sequence[str] | None = None,
    keep: bool | Collection[str] = False,
) -> None:
    """Gives an Adam, AdamW or Lion the state of one of bitsandbytes, of 32 or 8 bits.

    States of 8 bits become floating numbers, qmap[code] · absmax[block]: what bitsandbytes itself
    would compute with. Training then goes on without rounding to 8 bits. Its AdamW decays after the
    step, as ``decay_mode="decoupled_after"`` does here. names, keep: as for ``from_torch``.

    Raises what ``from_torch`` raises, and ValueError for states that are quantised as a whole, not
    by blocks.
    """
    common.only_rule(optimizer, _RULES, "bitsandbytes")
    take_over(
        state_dict, optimizer, _bits_group, _bits_state,
        package="bitsandbytes", names=names, keep=keep,
    )  # fmt: skip


def _bits_group(rule: str, group: Mapping[str, Any], number: int) -> dict[str, Any]:
    keys = ("lr", "weight_decay") if rule == "lion" else ("lr", "weight_decay", "eps")
    found = _numbers(group, keys, number)
    if "betas" in group:  # of which newer versions have more than two
        found["betas"] = _numbers(group, ("betas",), number)["betas"][:2]
    return found


def _bits_state(
    rule: str, h: Mapping[str, Any], name: str, state: Mapping[str, Any]
) -> Found | None:
    if not state:
        return None
    step, rest = _counted({**state, **state.get(_WRAPPED, {})}, name)
    rest = {key: x for key, x in rest.items() if key not in _IGNORED and key != _WRAPPED}
    arrays = {}
    for key, number in _TENSORS[rule].items():
        parts = {
            part: rest.pop(part + number)
            for part in ("state", "qmap", "absmax", "max", "new_max")
            if part + number in rest
        }
        if "state" not in parts:
            raise ValueError(f"state of parameter {name!r} has no 'state{number}'")
        arrays[key] = _floating(parts, f"state 'state{number}' of parameter {name!r}")
    if rest:
        raise ValueError(f"state of parameter {name!r} has {sorted(rest)}, which {rule} has not")
    return Found(step, arrays)


def _floating(parts: Mapping[str, Any], what: str) -> Array:
    """The numbers of a state: as they are, or qmap[code] · absmax[block]."""
    codes = common.array_of(parts["state"], what)
    if codes.dtype != np.uint8:
        return codes
    if not {"qmap", "absmax"} <= parts.keys():
        raise ValueError(f"{what} is quantised as a whole; expected qmap and absmax, by blocks")
    table = common.array_of(parts["qmap"], f"qmap of {what}")
    largest = common.array_of(parts["absmax"], f"absmax of {what}")
    sizes = [size for size in _BLOCKS if largest.shape == (-(-codes.size // size),)]
    if table.shape != (256,) or not sizes:
        raise ValueError(
            f"{what}: qmap has shape {table.shape}, absmax {largest.shape}; expected (256,) and a "
            f"factor for each 256 or 2048 of {codes.size} numbers"
        )
    factors = np.repeat(largest, sizes[0])[: codes.size]
    numbers: Array = table[codes.reshape(-1)] * factors
    return numbers.reshape(codes.shape)
