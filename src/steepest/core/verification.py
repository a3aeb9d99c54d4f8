"""Steps that are computed again in part by the reference, and compared bit by bit.

Only where every kernel equals its reference to the last bit can a single other bit be told from
rounding: it is an error of memory or processor, or of this library, or another thread has written.
"""

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from steepest.core.digests import canonical
from steepest.core.group_program import GroupProgram
from steepest.kernels.engine import Plan
from steepest.memory import arrays
from steepest.memory.arrays import Array
from steepest.options import clip, filters

__all__ = ["BLOCK", "CorruptionError", "Verification", "attach"]


BLOCK = 4096
"""How many neighbours are drawn together."""


class CorruptionError(RuntimeError):
    """A step has given other bits than the reference."""


class Verification:
    """What ``verify`` asks for, and what it has found so far.

    share: the part of the elements that are computed again. elements: how many were. All were as
    the reference has them: a step that finds another raises.
    """

    def __init__(self, share: float, seed: int) -> None:
        self.share, self.elements = share, 0
        self._random = np.random.default_rng(seed)

    def __repr__(self) -> str:
        return f"Verification(share={self.share}, elements={self.elements})"

    def chosen(self, parts: int) -> Sequence[int]:
        """Which of so many parts are computed again in this step."""
        count = int(self._random.binomial(parts, self.share))
        return sorted(self._random.choice(parts, count, replace=False).tolist()) if count else ()


@dataclass
class _Part:
    """Parameters with gradients and states as they were before a step: all of one, some
    blocks of it, or all of all where a rule sums over them."""

    program: GroupProgram
    names: list[str]
    numbers: list[int]
    steps: list[int]
    places: Sequence[slice] | None
    params: list[Array]
    grads: list[Array]
    states: list[dict[str, Array]]
    shared: dict[str, Any] | None

    def again(self, factors: Sequence[float], count: int) -> None:
        """The step by the reference, in place."""
        h, rule = self.program.h, self.program.rule
        hyper: dict[str, Any] = {name: h[name] for name in rule.defaults}
        # The reference climbs where it is asked to maximize, and the engine's factor does already.
        scales = [self.program.sign * x for x in factors]
        hyper |= {"factor": scales if self.shared is not None else scales[0], "count": count}
        from steepest import reference  # which few processes need

        with np.errstate(all="ignore"):
            if self.shared is not None:
                everything = (self.params, self.grads, self.states, self.steps)
                reference.step(
                    rule.rule, *everything, shared=self.shared, number=self.numbers, **hyper
                )
                return
            [p], [g], [state], [t] = self.params, self.grads, self.states, self.steps
            own: dict[str, Any] = {"name": self.names[0], "number": self.numbers[0]}
            reference.step(rule.rule, p, g, state, t, **own, **hyper)

    def elements(self) -> int:
        return sum(p.size for p in self.params)


def verified_step(
    held: "weakref.ref[Any]",
    step: Callable[[Any, list[Any], int], None],
    flat: list[Any],
    count: int,
) -> None:
    """A step of the optimizer, of which a part is computed again. Raises what the step raises, and
    then CorruptionError, the step having been done."""
    optimizer: Any = held()
    verification: Verification = optimizer._verification
    plan = optimizer._resolved(flat)
    parts = _parts(optimizer, plan, flat, verification)
    skipped = optimizer.skipped
    step(optimizer, flat, count)
    for part in parts:
        if optimizer.skipped == skipped:
            used = optimizer._plan or plan
            factors = [used.scale(i) for i in part.numbers]
            part.again(factors, count)
        _compare(optimizer, part, count + 1)
        verification.elements += part.elements()


def _parts(
    optimizer: Any, plan: Plan, flat: Sequence[Any], verification: Verification
) -> list[_Part]:
    """What is computed again in this step, copied before it."""
    plan.rows()  # which finds out whose gradients there are
    steps = plan.steps()
    global_steps = [(i, t) for i, t in steps if optimizer._places[i][0].together]
    found = []
    for i, t in steps:
        program, name = optimizer._places[i]
        if not _has_reference(program) or program.together:
            continue
        group = _group_of(optimizer, program)
        if program.shared and t != int(optimizer._updates) + 1:
            continue  # the numbers of a group follow all updates, the reference this parameter's
        live, state = _live(optimizer, i)
        places = None
        if _divisible(program, live, state):
            blocks = verification.chosen(-(-live.size // BLOCK))
            places = [slice(k * BLOCK, (k + 1) * BLOCK) for k in blocks]
            if not places:
                continue
        elif not verification.chosen(1):
            continue
        g = arrays.gradient(flat[i], live, name)
        kept = {key: _copy(x, places) for key, x in state.items() if key != "step"}
        kept |= {key: np.array(group[key]) for key in program.shared}
        p, g = _copy(live, places), _copy(g, places)
        found.append(_Part(program, [name], [i], [t], places, [p], [g], [kept], None))
    if global_steps and len(optimizer.param_groups) == 1 and verification.chosen(1):
        found.append(_together(optimizer, global_steps, flat))
    return found


def _together(optimizer: Any, steps: Sequence[tuple[int, int]], flat: Sequence[Any]) -> _Part:
    """All parameters of a rule that sums over them."""
    [group], [program] = optimizer.param_groups, optimizer._groups
    numbers = [i for i, _ in steps]
    names = [optimizer._places[i][1] for i in numbers]
    params, grads, states = [], [], []
    for i, name in zip(numbers, names, strict=True):
        live, state = _live(optimizer, i)
        params.append(_copy(live, None))
        grads.append(_copy(arrays.gradient(flat[i], live, name), None))
        states.append({key: _copy(x, None) for key, x in state.items() if key != "step"})
    shared = {key: group[key] for key in program.shared}
    return _Part(
        program, names, numbers, [t for _, t in steps], None, params, grads, states, shared
    )


def _has_reference(program: GroupProgram) -> bool:
    from steepest import reference

    return not program.rule.prepares and program.rule.rule in reference.RULES


def _group_of(optimizer: Any, program: GroupProgram) -> Mapping[str, Any]:
    number = next(k for k, x in enumerate(optimizer._groups) if x is program)
    group: Mapping[str, Any] = optimizer.param_groups[number]
    return group


def _live(optimizer: Any, i: int) -> tuple[Array, Mapping[str, Array]]:
    """The i-th parameter as an array, and its state."""
    name = optimizer._places[i][1]
    return arrays.parameter(optimizer._params()[i], name), optimizer._state[name]


def _divisible(program: GroupProgram, p: Array, state: Mapping[str, Array]) -> bool:
    """Whether each element's step depends on that element alone, and not on its place."""
    clips = program.h["clip"] if isinstance(program.h["clip"], tuple) else (program.h["clip"],)
    return (
        program.rule.needs == "element-wise"
        and not program.axes
        and not program.makes
        and program.seed(p) is None
        and not program.h["cautious"]
        and not any(isinstance(x, clip.adaptive) for x in clips)
        and not any(isinstance(x, filters.mars | filters.centralize) for x in program.h["filter"])
        and all(x.shape == p.shape for key, x in state.items() if key != "step" and x.ndim)
    )


def _copy(x: Array, places: Sequence[slice] | None) -> Array:
    """A copy in C order: of all elements, or of those at some places among them."""
    if places is None or x.ndim == 0:
        return np.array(x, order="C")
    flat = x.reshape(-1) if x.flags.c_contiguous else x.flat
    return np.concatenate([flat[place] for place in places])


def _compare(optimizer: Any, part: _Part, count: int) -> None:
    """Raises CorruptionError where a parameter or state is another than the reference has."""
    each = zip(part.numbers, part.names, part.params, part.states, strict=True)
    for i, name, p, own in each:
        live, state = _live(optimizer, i)
        pairs = [(f"parameter {name!r}", live, p)]
        pairs += [
            (f"state {key!r} of parameter {name!r}", x, own[key])
            for key, x in state.items()
            if key != "step"
        ]
        for what, x, expected in pairs:
            actual = _copy(x, part.places)
            other = canonical(actual).reshape(-1) != canonical(expected).reshape(-1)
            if other.any():
                at = int(np.flatnonzero(other)[0])
                at_all = np.arange(x.size)
                element = _copy(at_all, part.places if x.ndim else None)[at]
                where = tuple(map(int, np.unravel_index(element, x.shape)))
                raise CorruptionError(
                    f"{what} has {actual.reshape(-1)[at]} at {where} after update {count}, where "
                    f"the reference has {expected.reshape(-1)[at]}: an error of memory or "
                    "processor, a fault of the kernel, or another thread has written"
                )
    for key, x in (part.shared or {}).items():
        kept = optimizer.param_groups[0][key]
        if not (kept == x or (math.isnan(kept) and math.isnan(x))):
            raise CorruptionError(
                f"{key} is {kept} after update {count}, where the reference has {x}"
            )


def attach(optimizer: Any) -> None:
    """Makes the steps of an optimizer with a ``Verification`` verified ones, without a reference
    back to it, so that both are freed with its last user's."""
    step = type(optimizer)._go
    optimizer._go = partial(verified_step, weakref.ref(optimizer), step)
