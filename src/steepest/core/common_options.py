"""The arguments that every optimizer has beside the hyper-parameters of its rule."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY
from types import MappingProxyType
from typing import Annotated, Any, Literal

from steepest.core import state_formats
from steepest.core.constructor import Argument, WithFields
from steepest.core.hyper_parameters import Choice, Flag, Made, Maybe, Number, Seed, Weight, within
from steepest.options import average as averages
from steepest.options import clip as clips
from steepest.options import decay, filters
from steepest.options import regularize as penalties

__all__ = ["GROUP_OPTIONS", "OPTIONS", "CommonOptions"]


class CommonOptions(WithFields, options=True):
    """Options that every optimizer takes, by keyword.

    clip: one of ``st.clip``, or a tuple of them. regularize: one of ``st.regularize``, or several.
    filter: one of ``st.filters``, or a tuple of them.
    l1: weight of the L1 penalty. decay_mode: whether weight_decay enters the gradient (``"l2"``)
    or shrinks the parameter (``"decoupled"``), or another of ``steepest.options.decay.MODES``;
    peak_lr: the largest lr, for the modes that use it. maximize: climb instead of descend.
    cautious: move only elements that the rule moves against their gradient, by as much more as
    there are fewer
    (arXiv:2411.16085). ema: decay rate
    of an averaged copy of the parameters, kept as state ``"ema"``. average: ``st.average.tail``,
    their mean from a step on. lookahead: ``st.average.lookahead``. nonfinite: what an infinite or
    NaN gradient does: ``"propagate"``, ``"raise"`` FloatingPointError, or ``"skip"`` the step and
    count it in ``skipped``. state_dtype: how the rule's states are stored: ``"float32"``,
    ``"float64"``, ``"bfloat16"``, ``"float16"``, ``"q8"``, or one for each of some states by name;
    by default float32 for parameters of 16 bits, else as the parameter. rounding: how parameters of
    16 bits are rounded, to the ``"nearest"`` number or, ``"stochastic"``, to one of two such that
    the mean is exact. rounding_seed: that of the random numbers by which this and ``"q8"`` round.
    master: what makes parameters of 16 bits as precise as
    float32: ``"split16"``, the other half of the bits, or ``"float32"``, the numbers themselves, as
    a state; or more precise than they are: ``"split8"``, another eight bits, or ``"kahan"``, what
    their rounding has lost; see docs/formats.md. dtype:
    ``"bfloat16"`` where arrays of uint16 hold its bits. copies: arrays of any format, in the
    structure of ``params``, to which each step writes the new parameters, too (None for those
    without one); see docs/formats.md. state_dir: a folder, in files of which the
    state arrays then lie, so that they may be larger than memory; see docs/state-dir.md.

    exclude: parameters that weight_decay, l1 and regularize leave alone: ``"vectors"`` (what has
    fewer than two dimensions: biases, scales of norms), or patterns of names such as ``"*.bias"``.
    overrides: hyper-parameters of some parameters, by such patterns: ``{"head.*": {"lr": 1e-4}}``.
    Both split the parameters into ``param_groups``; gradients keep the structure of ``params``, and
    ``clip.group_norm`` measures the parts of a group together.
    """

    params: Argument[Any]
    _: KW_ONLY
    # Those with a check are hyper-parameters of every group.
    l1: Weight = 0.0
    decay_mode: Annotated[
        Literal[
            "l2", "decoupled", "decoupled_after", "independent", "lr_relative", "corrected", "palm",
            "cautious", "proximal",
        ],
        Choice(decay.MODES),
    ] = "l2"  # fmt: skip
    peak_lr: Annotated[Number | None, Maybe(within(0))] = None
    regularize: Annotated[
        penalties.Penalty | Sequence[penalties.Penalty] | None, Made(penalties.checked)
    ] = ()
    filter: Annotated[filters.Filter | Sequence[filters.Filter] | None, Made(filters.checked)] = ()
    clip: Annotated[clips.Clip | tuple[clips.Clip, ...] | None, Made(clips.checked)] = None
    maximize: Flag = False
    ema: Annotated[Number | None, Maybe(within(0, 1, below=True))] = None
    average: Annotated[
        averages.tail | None, Made(averages.checked(averages.tail, "average"))
    ] = None  # fmt: skip
    lookahead: Annotated[
        averages.lookahead | None, Made(averages.checked(averages.lookahead, "lookahead"))
    ] = None
    cautious: Flag = False
    state_dtype: Annotated[
        str | Mapping[str, str] | None, Made(state_formats.checked)
    ] = None  # fmt: skip
    master: Annotated[str | None, Made(state_formats.checked_master)] = None
    rounding: Annotated[
        Literal["nearest", "stochastic"], Choice(("nearest", "stochastic"))
    ] = "nearest"  # fmt: skip
    rounding_seed: Seed = 0
    exclude: Argument[str | Sequence[str]] = ()
    overrides: Argument[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})
    nonfinite: Argument[Literal["propagate", "raise", "skip"]] = "propagate"
    state_dir: Argument[str | os.PathLike[str] | None] = None
    dtype: Argument[str | None] = None
    copies: Argument[Any] = None


OPTIONS = tuple(name for name, field in CommonOptions.fields.items() if field.option)
"""The names of all options."""

GROUP_OPTIONS: dict[str, Any] = {
    name: field.default for name, field in CommonOptions.fields.items() if field.check
}
"""Options that a group may have of its own, and their defaults."""
