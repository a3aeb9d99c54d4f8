"""What all optimizers share: groups, state, and the atomic step.

A step first plans: gradients are resolved, every array, hyper-parameter and norm is checked, and
all that is needed is allocated. Nothing of the caller's is written meanwhile, so any exception
leaves parameters, state and counters as they were. Then one call of ``Plan.commit``, which cannot
fail, does the whole update and advances the counters.

A rule's class says what is its own: names and defaults of its hyper-parameters, its states, and
the rule and coefficients for given hyper-parameters and t.
"""

import copy
import inspect
import math
import operator
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypedDict

import numpy as np

from steepest import arrays, regularize
from steepest.arrays import Array
from steepest.clip import Clip
from steepest.kernels import dispatch, threads
from steepest.kernels.engine import Plan
from steepest.optimizers import structure
from steepest.optimizers.clipping import Clipping, Norms, clips
from steepest.optimizers.hyper import Number, Schedule, settle, variable
from steepest.optimizers.selection import Selection
from steepest.optimizers.state import Changes, WatchedDict, counter, counters
from steepest.regularize import Penalty

__all__ = ["RULES", "Number", "Optimizer", "Options", "Schedule"]

RULES: dict[str, type["Optimizer"]] = {}
"""Every optimizer by the name of its rule, from simple to elaborate."""


class Options(TypedDict, total=False):
    """Options that every optimizer takes, by keyword.

    clip: one of ``st.clip``, or a tuple of them. regularize: one of ``st.regularize``, or several.
    l1: weight of the L1 penalty. decay_mode: whether weight_decay enters the gradient (``"l2"``)
    or shrinks the parameter (``"decoupled"``). maximize: climb instead of descend. ema: decay rate
    of an averaged copy of the parameters, kept as state ``"ema"``. nonfinite: what an infinite or
    NaN gradient does: ``"propagate"``, ``"raise"`` FloatingPointError, or ``"skip"`` the step and
    count it in ``skipped``.

    exclude: parameters that weight_decay, l1 and regularize leave alone: ``"vectors"`` (what has
    fewer than two dimensions: biases, scales of norms), or patterns of names such as ``"*.bias"``.
    overrides: hyper-parameters of some parameters, by such patterns: ``{"head.*": {"lr": 1e-4}}``.
    Both split the parameters into ``param_groups``; gradients keep the structure of ``params``.
    """

    clip: Clip | tuple[Clip, ...] | None
    regularize: Penalty | Sequence[Penalty] | None
    exclude: str | Sequence[str]
    overrides: Mapping[str, Mapping[str, Any]]
    l1: Number
    decay_mode: Literal["l2", "decoupled"]
    maximize: bool
    ema: Number | None
    nonfinite: Literal["propagate", "raise", "skip"]


# Options that a group may have of its own.
_GROUP_OPTIONS: dict[str, Any] = {
    "l1": 0.0,
    "decay_mode": "l2",
    "regularize": (),
    "clip": None,
    "maximize": False,
    "ema": None,
}
_POLICIES = ("propagate", "raise", "skip")


_Staged = tuple[str, tuple[float, ...], int]
"""A stage as the plan takes it: name, coefficients, the number of its own array or 0."""


class _Group:
    """What a live group asks for at a step; remembered while its hyper-parameters stay the same."""

    h: dict[str, Any]
    keep: float
    before: list[_Staged]
    after: list[_Staged]
    late: list[_Staged]
    units: list[regularize.UnitStage]
    sign: float

    def __init__(self, optimizer: "Optimizer", group: Mapping[str, Any], count: int) -> None:
        self._seen: tuple[Any, ...] = ()
        self._variable = False
        self.states: tuple[str, ...] = ()
        """The state arrays: those of the rule, then those of stages."""
        self.axes: tuple[int | None, ...] = ()
        """The axis of the units of each unit stage."""
        self.makes_factors = False
        """Whether the first unit stage makes factors of the gradient."""
        self.clip: Any = None
        self.update(optimizer, group, count)

    def update(self, optimizer: "Optimizer", group: Mapping[str, Any], count: int) -> bool:
        """Evaluates and checks the group's hyper-parameters after `count` updates.

        Returns whether the group now needs a new plan: other arrays, units or clips.
        """
        seen = optimizer._hyper_values(group)
        try:
            if not self._variable and seen == self._seen:
                return False
        except ValueError:
            pass  # an array, which does not say whether it equals a number: `settle` will
        names = optimizer._hyper_names
        h = {name: settle(name, x, count) for name, x in zip(names, seen, strict=True)}
        given = dict(zip(names, seen, strict=True))
        optimizer.check(given)
        self._variable = any(variable(x) for x in seen)
        self._seen = seen
        self.h = h
        # A schedule may be 0 now and not later: what it needs is kept all along.
        h["states"] = optimizer.states(given)
        h["terms"] = regularize.terms(h["regularize"], count)
        self.sign = -1.0 if h["maximize"] else 1.0
        return self._stage(h, count)

    def _stage(self, h: Mapping[str, Any], count: int) -> bool:
        """Takes over the stages of clips and penalties. Returns whether arrays or units differ."""
        work = regularize.work(h)
        before = [stage for clip in clips(h["clip"]) for stage in clip.stages(count)]
        making = [unit for clip in clips(h["clip"]) for unit in clip.units(count)]
        states = h["states"] + work.arrays
        place = {name: 2 + i for i, name in enumerate((*states, "factors"))} | {None: 0}
        self.keep = work.keep
        self.before, self.after, self.late = (
            [(stage, numbers, place[own]) for stage, numbers, own in stages]
            for stages in (before + work.before, work.after, work.late)
        )
        self.units = [stage for stage, _ in making] + work.units
        was = (self.states, self.axes, self.makes_factors, self.clip)
        self.states = states
        self.axes = (*(axis for _, axis in making), *work.axes)
        self.makes_factors = bool(making)
        self.clip = h["clip"]
        return was != (self.states, self.axes, self.makes_factors, self.clip)


class Optimizer(ABC):
    """Base of all optimizers; see ``AdamW`` or ``SGD`` for one to use."""

    rule: ClassVar[str]
    decay_mode: ClassVar[str] = "l2"
    formula: ClassVar[str]
    source: ClassVar[str]

    def __init_subclass__(cls) -> None:
        cls.rule = cls.__name__.lower()
        paragraphs = inspect.cleandoc(cls.__doc__ or "").split("\n\n")
        cls.formula = inspect.cleandoc("\n" + paragraphs[1]) if len(paragraphs) > 1 else ""
        cls.source = " ".join(paragraphs[-1].split())
        RULES[cls.rule] = cls

    # What a rule's class defines

    @abstractmethod
    def states(self, h: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of the rule's state arrays, in the order in which the kernel takes them.

        `h` is as the group has it: numbers or schedules.
        """

    def initial(self, key: str, p: Array, h: Mapping[str, Any]) -> Array:
        """A new state array for the parameter p."""
        return arrays.zeros_like(p)

    @abstractmethod
    def coefficients(self, h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        """The kernel and its coefficients, in double, for the t-th step (from 1).

        `h` has the hyper-parameters' values at this step, and the rule's states as h["states"].
        """

    # Construction

    def __init__(self, params: Any, hyper: dict[str, Any], options: Options) -> None:
        unknown = sorted(options.keys() - Options.__annotations__.keys())
        if unknown:
            raise TypeError(
                f"{type(self).__name__} has no argument {', '.join(map(repr, unknown))}; "
                f"it takes {', '.join([*hyper, *Options.__annotations__])}"
            )
        self._nonfinite: str = options.get("nonfinite", "propagate")
        if self._nonfinite not in _POLICIES:
            raise ValueError(
                f"nonfinite = {self._nonfinite!r}: expected one of {', '.join(_POLICIES)}"
            )
        group_options = _GROUP_OPTIONS | {"decay_mode": self.decay_mode}
        given: Mapping[str, Any] = options
        group_options |= {key: given[key] for key in _GROUP_OPTIONS if key in given}
        self.defaults: dict[str, Any] = self._settled(hyper | group_options)
        self.param_groups: list[dict[str, Any]] = []
        self._changes = Changes()
        self._state = WatchedDict({}, self._changes)
        self.skipped = 0
        self.last_skip = ""
        self.clip_history: dict[str, list[float]] = {}
        self.last_norm: float | None = None
        self.last_norms: dict[str, float] = {}
        self._hyper_names = tuple(self.defaults)
        self._hyper_values = operator.itemgetter(*self._hyper_names)
        self._updates = np.zeros((), np.int64)
        self._shapes: list[structure.Shape] = []
        self._shape: structure.Shape = None
        self._grouped = structure.is_groups(params)
        self._groups: list[_Group] = []
        self._order: list[int] = []
        self._in_order = True
        self._selection = Selection(options.get("exclude", ()), options.get("overrides", {}))
        self._plan: Plan | None = None
        self._plan_kernels: dispatch.Kernels | None = None
        self._lock = threading.Lock()
        if not self._grouped:
            params = [{"params": params}]
        for group in params:
            self.add_param_group(group)
        self._selection.check(list(self._state), self._hyper_names)

    def _settled(self, hyper: Mapping[str, Any]) -> dict[str, Any]:
        settled = {name: settle(name, value, None) for name, value in hyper.items()}
        self.check(settled)
        return settled

    def check(self, h: Mapping[str, Any]) -> None:
        """Raises ValueError where hyper-parameters, numbers or schedules, do not go together."""

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Adds parameters, with hyper-parameters of their own where the group has them.

        Keys that are no hyper-parameters are kept as they are. Raises what the constructor raises.
        """
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError(f'parameter group {group!r}: expected a dict with a key "params"')
        shape, names, leaves = structure.flatten(group["params"], len(self.state))
        if not names:
            raise ValueError("params is empty; give at least one parameter")
        added = [arrays.parameter(x, name) for name, x in zip(names, leaves, strict=True)]
        taken = set(self.state)
        for name in names:
            if name in taken:
                raise ValueError(f"parameter name {name!r} is given twice; names must differ")
            taken.add(name)
        first = len(self.state)
        split = self._selection.split(names, added)
        groups = [self._filled(group, changes, part, names, added) for changes, part in split]
        lives = [_Group(self, filled, self.updates) for filled in groups]
        state = {}
        for filled, live in zip(groups, lives, strict=True):
            steps = counters(len(filled["params"]))
            for name, p, step in zip(filled["param_names"], filled["params"], steps, strict=True):
                state[name] = self._new_state(p, name, step, live)
        named = [
            (f"parameter {name!r}", p)
            for g in [*self.param_groups, *groups]
            for name, p in zip(g["param_names"], g["params"], strict=True)
        ]
        arrays.disjoint_bounds(named)
        self.param_groups += groups
        self.state.update(state)
        self._order += [first + i for _, part in split for i in part]
        self._in_order = self._order == sorted(self._order)
        self._shapes.append(shape)
        self._shape = (
            structure.Node(False, list(range(len(self._shapes))), self._shapes)
            if self._grouped or len(self._shapes) > 1
            else shape
        )
        self._groups += lives
        self._plan = None

    def _filled(
        self,
        group: Mapping[str, Any],
        changes: Mapping[str, Any],
        part: Sequence[int],
        names: Sequence[str],
        added: Sequence[Array],
    ) -> dict[str, Any]:
        """A live group of some of the parameters, with all hyper-parameters."""
        chosen = {"params": [added[i] for i in part], "param_names": [names[i] for i in part]}
        filled = self.defaults | dict(group) | dict(changes) | chosen
        return filled | self._settled({name: filled[name] for name in self._hyper_names})

    def _new_state(self, p: Array, name: str, step: Array, live: _Group) -> WatchedDict:
        for axis in live.axes:
            try:
                arrays.units(p, axis)
            except ValueError as error:
                raise ValueError(f"parameter {name!r}: {error}") from None
        fresh = {key: self._new_array(key, p, live.h) for key in live.states}
        return WatchedDict({"step": step} | fresh, self._changes)

    def _new_array(self, key: str, p: Array, h: Mapping[str, Any]) -> Array:
        if key in h["states"]:
            return self.initial(key, p, h)
        shadow = arrays.zeros_like(p)
        shadow[...] = p
        return shadow

    # The step

    @property
    def state(self) -> dict[str, dict[str, Array]]:
        """The state of each parameter by name: ``"step"``, its count, and the rule's arrays.

        An array may be changed in place, or another of the same type and shape put in its place.
        """
        return self._state

    @property
    def clip(self) -> Clip | tuple[Clip, ...] | None:
        """How gradients are clipped, where a group has no ``clip`` of its own."""
        return self.defaults["clip"]  # type: ignore[no-any-return]

    @property
    def nonfinite(self) -> str:
        """What non-finite gradients do; fixed at construction."""
        return self._nonfinite

    @property
    def updates(self) -> int:
        """The number of steps done so far; what schedules are evaluated at."""
        return int(self._updates.item())

    def step(self, grads: Any) -> None:
        """Updates all parameters in place with gradients of the same structure as ``params``.

        A gradient (or a whole subtree) that is None leaves its parameters, their state and their
        counters alone. After an exception everything is as it was before the call. Raises
        TypeError or ValueError for gradients that do not fit, FloatingPointError for non-finite
        ones if so asked, RuntimeError when called while another thread steps this optimizer.
        """
        if not self._lock.acquire(False):
            raise RuntimeError("another thread is inside step() of this optimizer")
        try:
            self._step(grads)
        finally:
            self._lock.release()

    def _step(self, grads: Any) -> None:
        flat = structure.take(self._shape, grads)
        if not self._in_order:
            flat = [flat[i] for i in self._order]
        count = self._updates.item()
        groups = self._groups
        climbing = False
        for number, live in enumerate(groups):
            if live.update(self, self.param_groups[number], count):
                self._plan = None
            if live.sign < 0:
                climbing = True
        plan = self._resolved(flat)
        for row, (number, t) in enumerate(plan.rows()):
            live = groups[number]
            rule, h = self.coefficients(live.h, t)
            plan.program(row, rule, h, live.keep, live.before, live.after, live.units, live.late)
        workers = threads.get_num_threads() if plan.large() else 1
        clipping = self._clipping
        factors: list[float] | None = None
        norms: dict[float, Norms] | None = None
        if clipping.domains or self._nonfinite != "propagate":
            if self._must_measure():
                norms = self._measured(plan, workers)
            factors, reason = self._clipped(norms, count)
            if reason:
                self._skip(reason, norms)
                return
        if climbing:
            factors = self._climbing(factors)
        if factors is not None:
            plan.rescale(factors)
        plan.factors(workers)
        if norms is None and clipping.follows:
            norms = self._remembered(2.0, plan.commit(workers, True))
        else:
            plan.commit(workers)
        if norms is not None:
            clipping.remember(norms, self.clip_history)

    def _resolved(self, flat: list[Any]) -> Plan:
        """The plan, with this step's gradients bound."""
        plan = self._plan
        if plan is None or self._changes.any or self._plan_kernels is not dispatch.current:
            plan = self._built()
        stale = plan.resolve(self._params(), flat)
        if stale is None:  # an array was replaced, moved or made read-only
            plan = self._built()
            stale = plan.resolve(self._params(), flat)
            if stale is None:
                raise RuntimeError("a parameter or its state changed during the step")
        if stale:
            self._rebind(plan, flat, stale)
        return plan

    def _params(self) -> list[Array]:
        """The live parameters of all groups."""
        if len(self.param_groups) == 1:
            return self.param_groups[0]["params"]  # type: ignore[no-any-return]
        return [p for group in self.param_groups for p in group["params"]]

    def _built(self) -> Plan:
        """A new plan over the parameters and the state as they are now, all checked."""
        plan = Plan(dispatch.current, len(self.state), self._updates)
        written: list[tuple[str, Array]] = []
        replaced: dict[str, dict[str, Array]] = {}
        cuts: list[list[tuple[int | None, Array | None]]] = []
        for number, (group, asked) in enumerate(zip(self.param_groups, self._groups, strict=True)):
            keys = asked.states
            for name, x in zip(group["param_names"], group["params"], strict=True):
                p = arrays.parameter(x, name)
                state = dict(self.state[name])
                state["step"] = counter(state.get("step", 0), name)
                for key in keys:
                    if key not in state:
                        state[key] = self._new_array(key, p, asked.h)
                    state[key] = arrays.state(state[key], p, name, key)
                replaced[name] = state
                own = tuple(state[key] for key in keys)
                written.append((f"parameter {name!r}", p))
                written += [(f"state {key!r} of parameter {name!r}", state[key]) for key in keys]
                cut: list[tuple[int | None, Array | None]] = [(axis, None) for axis in asked.axes]
                if asked.makes_factors:
                    factors, spread = arrays.unit_factors(p, asked.axes[0])
                    cut[0] = (asked.axes[0], factors)
                    own += (spread,)
                cuts.append(cut)
                walks = arrays.layout((p, *own), p, cut)
                plan.add(number, (p, *own), state["step"], len(asked.h["states"]), walks)
        plan.guard(arrays.disjoint_bounds(written))
        for name, state in replaced.items():
            if isinstance(self._state[name], WatchedDict):
                self._state[name].update(state)
            else:
                self._state[name] = WatchedDict(state, self._changes)
        self._changes.any = False
        each = zip(self.param_groups, self._groups, strict=True)
        self._clipping = Clipping([(asked.clip, len(group["params"])) for group, asked in each])
        self._cuts = cuts
        self._plan, self._plan_kernels = plan, dispatch.current
        return plan

    def _rebind(self, plan: Plan, flat: list[Any], stale: list[int]) -> None:
        """Checks the gradients that are new in type, layout or place, and binds them."""
        names = list(self.state)
        for i in stale:
            own = plan.arrays(i)
            g = flat[i] = arrays.gradient(flat[i], own[0], names[i])
            low, high = arrays.byte_bounds(g)
            if g.size and plan.overlaps(low, high):
                for j, name in enumerate(names):
                    for x in plan.arrays(j):
                        if arrays.share_memory(g, x):
                            raise ValueError(
                                f"gradient of parameter {names[i]!r} shares memory with parameter "
                                f"{name!r} or its state; give a copy"
                            )
            plan.bind_gradient(i, g, arrays.layout(own, g, self._cuts[i]))

    # Clipping

    def _must_measure(self) -> bool:
        """Whether the norms must be known before the step."""
        clipping = self._clipping
        return (
            self._nonfinite != "propagate"
            or clipping.sweeps
            or (clipping.follows and clipping.first_step(self.clip_history))
        )

    def _measured(self, plan: Plan, workers: int) -> dict[float, Norms]:
        """The norms of this step's gradients, by their order; the first are the last norms."""
        norms = self._clipping.measure(plan, workers)
        first = next(iter(norms.values()))
        self.last_norm, self.last_norms = (
            first.total,
            dict(zip(self.state, first.each, strict=True)),
        )
        return norms

    def _remembered(self, order: float, measured: Any) -> dict[float, Norms]:
        """The norms that were measured during the step, as `_measured` has them."""
        self.last_norm, each = measured
        self.last_norms = dict(zip(self.state, each, strict=True))
        return {order: Norms(*measured)}

    def _clipped(self, norms: dict[float, Norms] | None, count: int) -> tuple[list[float], str]:
        """The gradients' factors, and why the step is to be skipped, if it is.

        Raises FloatingPointError for non-finite gradients, if so asked.
        """
        if self._nonfinite != "propagate" and norms is not None:
            first = next(iter(norms.values()))
            if not math.isfinite(first.total):
                names = zip(self.state, first.each, strict=True)
                bad = next(name for name, x in names if not math.isfinite(x))
                reason = f"gradient of parameter {bad!r} has an infinite or NaN element"
                if self._nonfinite == "skip":
                    return [], reason
                raise FloatingPointError(
                    f'{reason}; nothing was changed (nonfinite="skip" skips such steps)'
                )
        return self._clipping.apply(norms, self.clip_history, count)

    def _skip(self, reason: str, norms: dict[float, Norms] | None) -> None:
        """Leaves the step out, and says so."""
        self.skipped += 1
        self.last_skip = reason
        if norms is not None:
            self._clipping.remember(norms, self.clip_history)

    def _climbing(self, factors: list[float] | None) -> list[float]:
        """The factors with the signs of the groups that maximize."""
        signs = [
            live.sign
            for live, group in zip(self._groups, self.param_groups, strict=True)
            for _ in group["params"]
        ]
        return [sign * x for sign, x in zip(signs, factors or [1.0] * len(signs), strict=True)]

    # State in and out

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything that a resumed run needs, except the parameters.

        ``{"rule", "updates", "skipped", "clip_history", "state": {name: {key: array}},
        "param_groups": [...]}``, with names in the groups instead of arrays.
        """
        return {
            "rule": self.rule,
            "updates": self.updates,
            "skipped": self.skipped,
            "clip_history": {key: list(norms) for key, norms in self.clip_history.items()},
            "state": {
                name: {key: np.array(x) for key, x in state.items()}
                for name, state in self.state.items()
            },
            "param_groups": [
                {key: copy.deepcopy(x) for key, x in group.items() if key != "params"}
                for group in self.param_groups
            ],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over a copy of what ``state_dict`` gave; parameters are matched by name.

        Raises KeyError, TypeError or ValueError, and changes nothing, if rule, names, keys, shapes
        or dtypes differ.
        """
        if state_dict["rule"] != self.rule:
            raise ValueError(f"state of rule {state_dict['rule']!r} given to {self.rule!r}")
        groups = state_dict["param_groups"]
        if [g["param_names"] for g in groups] != [g["param_names"] for g in self.param_groups]:
            raise ValueError("the state's groups have other parameter names than this optimizer's")
        fresh: list[dict[str, Any]] = []
        state: dict[str, WatchedDict] = {}
        updates = counter(np.array(state_dict["updates"]), "all")
        history = {
            str(key): [float(norm) for norm in norms]
            for key, norms in state_dict.get("clip_history", {}).items()
        }
        for group, loaded in zip(self.param_groups, groups, strict=True):
            known = _GROUP_OPTIONS | dict(loaded)  # an older state may lack a newer option
            hyper = self._settled({name: known[name] for name in self._hyper_names})
            extra = {key: copy.deepcopy(loaded[key]) for key in loaded if key != "params"}
            fresh.append(extra | hyper)
            asked = _Group(self, hyper, int(updates))
            for name, p in zip(group["param_names"], group["params"], strict=True):
                given = state_dict["state"][name]
                keys = ("step", *asked.states)
                if set(given) != set(keys):
                    raise ValueError(
                        f"state of parameter {name!r} has keys {sorted(given)}; "
                        f"expected {sorted(keys)}"
                    )
                state[name] = WatchedDict({}, self._changes)
                state[name]["step"] = counter(np.array(given["step"]), name)
                for key in keys[1:]:
                    x = arrays.state(np.array(given[key]), p, name, key)
                    state[name][key] = arrays.zeros_like(p)
                    state[name][key][...] = x
        for group, loaded in zip(self.param_groups, fresh, strict=True):
            group.update(loaded)
        self._plan = None
        self._state = WatchedDict(state, self._changes)
        self._groups = [_Group(self, group, int(updates)) for group in self.param_groups]
        self._updates, self.skipped = updates, int(state_dict.get("skipped", 0))
        self.clip_history = history

    def __getstate__(self) -> dict[str, Any]:
        kept = self.__dict__.copy()
        for name in ("_plan", "_plan_kernels", "_lock"):
            del kept[name]
        return kept

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self.__dict__.update(kept)
        self._plan = self._plan_kernels = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}("]
        for i, group in enumerate(self.param_groups):
            shown = ", ".join(f"{name}={group[name]!r}" for name in self._hyper_names)
            lines.append(f"  group {i}: {len(group['params'])} parameters, {shown}")
        return "\n".join([*lines, ")"])
