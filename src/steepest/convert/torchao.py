"""To the optimizers of torchao, which write PyTorch's layout with tensors of 8 and 4 bits.

From them ``from_torch`` takes the state: such a tensor has a ``dequantize()``.
"""

import importlib
from typing import Any

import numpy as np

from steepest.convert import common, torch_layout
from steepest.convert.block_codecs import (
    TORCHAO_4BIT,
    TORCHAO_8BIT,
    TORCHAO_FP8,
    packed,
)
from steepest.convert.common import Taken
from steepest.convert.torch import tensors_of, written
from steepest.extras import MissingExtra, require
from steepest.memory.arrays import Array
from steepest.optimizers import Optimizer

__all__ = ["to_torchao"]

_RULES = ("adam", "adamw")
_SMALL = 4096
_CODECS = {"8bit": TORCHAO_8BIT, "4bit": TORCHAO_4BIT, "fp8": TORCHAO_FP8}


def to_torchao(optimizer: Optimizer, *, states: str = "8bit") -> dict[str, Any]:
    """The state of an Adam or AdamW as ``load_state_dict`` of torchao's class takes it.

    states: ``"8bit"`` for ``Adam8bit`` and ``AdamW8bit``, ``"4bit"`` for those of 4 bits, ``"fp8"``
    for ``AdamFp8`` and ``AdamWFp8``, with blocks of the size that is their default. Codes are those
    that torchao itself would give; what came of codes, and has not changed, gets them back. As in
    torchao, states of fewer than 4096 numbers, or of no whole number of blocks, are plain tensors.

    Make the one there with Adam's or AdamW's decay, as here, and with the same ``amsgrad``. Its
    rate becomes a tensor, which it needs.

    Raises what ``to_torch`` raises, ValueError for numbers that are not finite, which have no code,
    and MissingExtra, an ImportError, without torchao.
    """
    common.only_rule(optimizer, _RULES, "torchao")
    if states not in _CODECS:
        raise ValueError(f"states = {states!r}: expected one of {', '.join(map(repr, _CODECS))}")
    torch = require("torch", "torch", "to_torchao")
    _module(states)

    def group(one: Taken) -> dict[str, Any]:
        h = one.h
        if h["maximize"]:
            raise ValueError(f"torchao cannot maximize, as group {one.group} does")
        mode = "decoupled" if optimizer.rule == "adamw" else "l2"
        if h["weight_decay"] and h["decay_mode"] != mode:
            raise ValueError(
                f"torchao's {type(optimizer).__name__} (group {one.group}) has no weight_decay "
                f"with decay_mode = {h['decay_mode']!r}"
            )
        keys = ("betas", "eps", "weight_decay", "amsgrad")
        return {"lr": torch.tensor(h["lr"], dtype=torch.float32)} | {key: h[key] for key in keys}

    def state(one: Taken) -> dict[str, Any]:
        own = torch_layout.state_to(optimizer.rule, one)
        for key in one.state if own else ():
            own[key] = common.single(one, key)
            codec = _CODECS[states][key == "exp_avg"]
            if own[key].size >= _SMALL and own[key].size % codec.block == 0:
                common.check_finite(own[key], one.name, key)
                own[key] = _quantised(states, key == "exp_avg", own[key])
        return own

    return tensors_of(written(optimizer, group, state, package="torchao"))


def _module(states: str) -> Any:
    """torchao's module of a kind of tensors."""
    try:
        return importlib.import_module(f"torchao.optim.subclass_{states}")
    except ModuleNotFoundError as error:
        if error.name != "torchao":
            raise
        raise MissingExtra(
            "to_torchao needs the package torchao: run  pip install torchao"
        ) from error


def _quantised(states: str, signed: bool, x: Array) -> Any:
    """torchao's tensor of an array."""
    torch = require("torch", "torch", "to_torchao")
    module = _module(states)
    codec = _CODECS[states][signed]
    codes, factors = codec.encoded(x)
    scale = torch.from_numpy(factors)
    if states == "fp8":
        bits = torch.from_numpy(codes).view(torch.float8_e4m3fn)
        return module.OptimStateFp8(bits, scale, dtype=torch.float32)
    numbers = torch.from_numpy(codec.numbers.copy())
    if states == "4bit":
        halves = torch.from_numpy(np.ascontiguousarray(packed(codes)))
        return module.OptimState4bit(
            halves, scale, numbers, signed, torch.Size(x.shape), dtype=torch.float32
        )
    return module.OptimState8bit(
        torch.from_numpy(codes), scale, numbers, signed, dtype=torch.float32
    )
