"""What ``torch.compile`` leaves alone: a step is a graph break, as one of torch's own fused classes
is, and runs as it does without it."""

from functools import cache
from types import CodeType
from typing import Any

from steepest.extras import require

torch: Any = require("torch", extra="torch", purpose="steepest.torch")

__all__ = ["uncompiled"]


@cache
def uncompiled(*entries: CodeType) -> None:
    """Has this package's functions never compiled; nor others, such as schedules and rules in
    Python, that are called from where `entries` are. It takes no time from a step, as a decorator
    of torch would."""
    import torch._dynamo.trace_rules as rules

    rules.add("steepest")
    try:
        from torch._dynamo.types import FrameAction, FrameExecStrategy

        strategy = FrameExecStrategy(FrameAction.SKIP, FrameAction.SKIP)
        for code in entries:
            torch._C._dynamo.eval_frame.set_code_exec_strategy(code, strategy)
    except (AttributeError, ImportError):  # a torch before 2.7: others may be compiled
        pass
