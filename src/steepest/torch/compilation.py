"""What ``torch.compile`` leaves alone: a step is a graph break, as one of torch's own fused classes
is, and runs as it does without it."""

from functools import cache
from importlib import import_module
from types import CodeType
from typing import Any

__all__ = ["uncompiled"]


@cache
def uncompiled(*entries: CodeType) -> None:
    """Has this package's functions never compiled; nor others, such as schedules and rules in
    Python, that are called from where `entries` are. It takes no time from a step, as a decorator
    of torch would."""
    dynamo: Any = import_module("torch._dynamo")
    dynamo.trace_rules.add("steepest")
    frames = dynamo.eval_frame
    if hasattr(frames, "set_code_exec_strategy"):  # not in older ones, where others are compiled
        skip = dynamo.types.FrameAction.SKIP
        for code in entries:
            frames.set_code_exec_strategy(code, dynamo.types.FrameExecStrategy(skip, skip))
