"""The options that every optimizer takes beside the hyper-parameters of its rule."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from steepest.core.hyper import Number
from steepest.options import average as averages
from steepest.options.clip import Clip
from steepest.options.filters import Filter
from steepest.options.regularize import Penalty

__all__ = ["GROUP_OPTIONS", "Options"]


class Options(TypedDict, total=False):
    """Options that every optimizer takes, by keyword.

    clip: one of ``st.clip``, or a tuple of them. regularize: one of ``st.regularize``, or several.
    filter: one of ``st.filters``, or a tuple of them.
    l1: weight of the L1 penalty. decay_mode: whether weight_decay enters the gradient (``"l2"``)
    or shrinks the parameter (``"decoupled"``), or another of ``steepest.options.decay.MODES``;
    peak_lr: the largest lr, for the modes that go by it. maximize: climb instead of descend.
    cautious: move only elements that the rule moves against their gradient, by as much more as
    there are fewer
    (arXiv:2411.16085). ema: decay rate
    of an averaged copy of the parameters, kept as state ``"ema"``. average: ``st.average.tail``,
    their mean from a step on. lookahead: ``st.average.lookahead``. nonfinite: what an infinite or
    NaN gradient does: ``"propagate"``, ``"raise"`` FloatingPointError, or ``"skip"`` the step and
    count it in ``skipped``. state_dir: a folder, in files of which the state arrays then lie, so
    that they may be larger than memory; see docs/state-dir.md.

    exclude: parameters that weight_decay, l1 and regularize leave alone: ``"vectors"`` (what has
    fewer than two dimensions: biases, scales of norms), or patterns of names such as ``"*.bias"``.
    overrides: hyper-parameters of some parameters, by such patterns: ``{"head.*": {"lr": 1e-4}}``.
    Both split the parameters into ``param_groups``; gradients keep the structure of ``params``, and
    ``clip.group_norm`` measures the parts of a group together.
    """

    clip: Clip | tuple[Clip, ...] | None
    regularize: Penalty | Sequence[Penalty] | None
    filter: Filter | Sequence[Filter] | None
    exclude: str | Sequence[str]
    overrides: Mapping[str, Mapping[str, Any]]
    l1: Number
    decay_mode: Literal[
        "l2", "decoupled", "decoupled_after", "independent", "lr_relative", "corrected", "palm",
        "cautious", "proximal",
    ]  # fmt: skip
    peak_lr: Number | None
    maximize: bool
    ema: Number | None
    average: averages.tail | None
    lookahead: averages.lookahead | None
    cautious: bool
    nonfinite: Literal["propagate", "raise", "skip"]
    state_dir: str | os.PathLike[str] | None


# Options that a group may have of its own.

GROUP_OPTIONS: dict[str, Any] = {
    "l1": 0.0,
    "decay_mode": "l2",
    "peak_lr": None,
    "regularize": (),
    "filter": (),
    "clip": None,
    "maximize": False,
    "ema": None,
    "average": None,
    "lookahead": None,
    "cautious": False,
}
