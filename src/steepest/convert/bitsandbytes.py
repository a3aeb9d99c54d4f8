"""From the optimizers of bitsandbytes, which write PyTorch's layout; states of 8 or 32 bits."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from steepest.convert import common, torch_layout
from steepest.convert.common import Found
from steepest.convert.torch import take_over
from steepest.memory.arrays import Array
from steepest.optimizers import Optimizer

__all__ = ["from_bitsandbytes"]

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
    common.only_rule(optimizer, _TENSORS, "bitsandbytes")
    take_over(
        state_dict, optimizer, _bits_group, _bits_state,
        package="bitsandbytes", names=names, keep=keep,
    )  # fmt: skip


def _bits_group(rule: str, group: Mapping[str, Any], number: int) -> dict[str, Any]:
    keys = ("lr", "weight_decay") if rule == "lion" else ("lr", "weight_decay", "eps")
    found = torch_layout.numbers(group, keys, number)
    if "betas" in group:  # of which newer versions have more than two
        found["betas"] = torch_layout.numbers(group, ("betas",), number)["betas"][:2]
    return found


def _bits_state(
    rule: str, h: Mapping[str, Any], name: str, state: Mapping[str, Any]
) -> Found | None:
    if not state:
        return None
    step, rest = common.counted({**state, **state.get(_WRAPPED, {})}, name)
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
        raise ValueError(
            f"state of parameter {name!r} has {sorted(rest)}, which {rule} does not have"
        )
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
