"""To and from the optimizers of DeepSpeed, which write PyTorch's layout."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from steepest.convert import common, torch_layout
from steepest.convert.common import Found, Taken
from steepest.convert.torch import take_over, tensors_of, written
from steepest.optimizers import Optimizer

__all__ = ["from_deepspeed", "to_deepspeed"]

_RULES = ("adam", "adamw", "lion")
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
        step, arrays = common.counted(state, name)
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
    return torch_layout.numbers(group, keys, number)


def to_deepspeed(optimizer: Optimizer, *, tensors: bool = True) -> dict[str, Any]:
    """The state of an Adam, AdamW or Lion as ``DeepSpeedCPUAdam`` or ``DeepSpeedCPULion`` loads it:
    PyTorch's layout, steps as Python's integers, states in single precision.

    Make the one there with ``adamw_mode`` as here. Raises what ``to_torch`` raises, and ValueError
    for what DeepSpeed lacks: ``amsgrad``, ``maximize``.
    """
    common.only_rule(optimizer, _RULES, "DeepSpeed")
    whole = written(optimizer, _group_to, _state_to, package="DeepSpeed", convention="deepspeed")
    return tensors_of(whole) if tensors else whole


def _group_to(one: Taken) -> dict[str, Any]:
    for key in ("amsgrad", "maximize"):
        if one.h.get(key):
            raise ValueError(f"DeepSpeed has no {key}, which group {one.group} uses")
    keys = ("lr", "betas", "eps", "weight_decay", "bias_correction", "amsgrad")
    return {key: one.h[key] for key in keys if key in one.h}


def _state_to(one: Taken) -> dict[str, Any]:
    if not one.step:
        return {}
    return {"step": one.step, **{key: common.single(one, key) for key in one.state}}
