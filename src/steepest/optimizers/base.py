"""What all optimizers share: groups, state, and the atomic step.

A step first plans: gradients are resolved, every array, hyper-parameter and norm is checked, and
all that is needed is allocated. Nothing of the caller's is written meanwhile, so any exception
leaves parameters, state and counters as they were. Then one call of ``Plan.commit``, which cannot
fail, does the whole update and advances the counters.

What is a rule's own its class says: see ``optimizers.rules``.
"""

import copy
import inspect
import math
import operator
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from steepest import arrays, decay, filters
from steepest import average as averages
from steepest.arrays import Array
from steepest.clip import Clip
from steepest.kernels import dispatch, machine, threads
from steepest.kernels.engine import Plan
from steepest.optimizers import structure
from steepest.optimizers.clipping import Clipping, Norms, Peers, checked_history
from steepest.optimizers.hyper import Number, Schedule
from steepest.optimizers.live import LiveGroup, stage_arrays
from steepest.optimizers.numbers import new_scalars, packed_scalars
from steepest.optimizers.options import GROUP_OPTIONS, Options
from steepest.optimizers.rules import OWN, RULES, Rule
from steepest.optimizers.selection import Selection
from steepest.optimizers.state import Changes, WatchedDict, counter, counters
from steepest.scratch import Scratch, lies_in_file

__all__ = ["RULES", "Number", "Optimizer", "Options", "Schedule"]

_POLICIES = ("propagate", "raise", "skip")


class Optimizer(Rule, registered=False):
    """Base of all optimizers; see ``AdamW`` or ``SGD`` for one to use."""

    _early = True
    """Whether states are made with the parameters, and not by the first plan."""
    _files: Scratch | None = None
    """Where state arrays lie, if not in memory."""
    _peers: Peers | None = None
    """Those who step other parts of the parameters; None where this optimizer has them whole."""

    # Construction

    def __init__(self, params: Any, hyper: dict[str, Any], options: Options) -> None:
        if "convention" in options and "convention" not in hyper:
            raise ValueError(self._not_a_convention(dict(options)["convention"]))
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
        self._files = files_in(options.get("state_dir"))
        group_options = GROUP_OPTIONS | {"decay_mode": self.decay_mode}
        given: Mapping[str, Any] = options
        group_options |= {key: given[key] for key in GROUP_OPTIONS if key in given}
        self.defaults: dict[str, Any] = self._settled(hyper | group_options)
        self.param_groups: list[dict[str, Any]] = []
        self._changes = Changes()
        self._state = WatchedDict({}, self._changes)
        self.skipped = 0
        self.last_skip = ""
        self.clip_history: dict[str, list[float]] = {}
        self.last_norm: float | None = None
        self._last_norms: list[float] = []
        self._hyper_names = tuple(self.defaults)
        self._hyper_values = operator.itemgetter(*self._hyper_names)
        self._updates = np.zeros((), np.int64)
        self._shapes: list[structure.Shape] = []
        self._shape: structure.Shape = None
        self._grouped = structure.is_groups(params)
        self._groups: list[LiveGroup] = []
        self._rules: dict[str, Optimizer] = {self.rule: self._bare()}
        self._given: list[int] = []
        self._names: list[str] = []
        self._order: list[int] = []
        self._in_order = True
        self._selection = self._selects(options)
        self._plan: Plan | None = None
        self._plan_kernels: dispatch.Kernels | None = None
        self._lock = threading.Lock()
        if not self._grouped:
            params = [{"params": params}]
        for group in params:
            self.add_param_group(group)
        self._selection.check(self._names, self._hyper_names)
        for group in self.param_groups:
            filters.check_names(group["filter"], self._names)
        decay.check_peak(given.get("peak_lr"), {g["decay_mode"] for g in self.param_groups})

    def _selects(self, options: Options) -> Selection:
        """Which parameters get hyper-parameters of their own."""
        return Selection(options.get("exclude", ()), options.get("overrides", {}))

    def _split(
        self, group: Mapping[str, Any], names: Sequence[str], added: Sequence[Array]
    ) -> list[tuple[dict[str, Any], list[int]]]:
        """The parameters of a new group that get the same changes: (the changes, which)."""
        return self._selection.split(names, added)

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Adds parameters, with hyper-parameters of their own where the group has them.

        Keys that are no hyper-parameters are kept as they are. Gradients are then a list with the
        gradients of each group, as if all groups had been given to the constructor; ``exclude`` and
        ``overrides`` hold for the new parameters too. Raises what the constructor raises.
        """
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError(f'parameter group {group!r}: expected a dict with a key "params"')
        shape, names, leaves = structure.flatten(group["params"], len(self._names))
        if not names:
            raise ValueError("params is empty; give at least one parameter")
        added = [arrays.parameter(x, name) for name, x in zip(names, leaves, strict=True)]
        taken = set(self._names)
        for name in names:
            if name in taken:
                raise ValueError(f"parameter name {name!r} is given twice; names must differ")
            taken.add(name)
        first = len(self._names)
        split = self._split(group, names, added)
        groups = [self._filled(group, changes, part, names, added) for changes, part in split]
        lives = [LiveGroup(self._rule_of(filled), filled, self.updates) for filled in groups]
        for filled, live in zip(groups, lives, strict=True):
            self._share(filled, live)
        self._make_room(self._files, groups, lives, {})
        state = {}
        for filled, live in zip(groups, lives, strict=True):
            steps = counters(len(filled["params"]))
            for name, p, step in zip(filled["param_names"], filled["params"], steps, strict=True):
                state[name] = self._new_state(p, name, step, live)
        named = [
            (f"parameter {name!r}", arrays.as_array(p, f"parameter {name!r}"))
            for g in [*self.param_groups, *groups]
            for name, p in zip(g["param_names"], g["params"], strict=True)
        ]
        arrays.disjoint_bounds(named)
        self._plan = None
        self.param_groups += groups
        self._state.update(state)
        self._names += state
        self._given += [len(self._shapes)] * len(groups)
        self._order += [first + i for _, part in split for i in part]
        self._in_order = self._order == sorted(self._order)
        self._shapes.append(shape)
        self._shape = (
            structure.Node(False, list(range(len(self._shapes))), self._shapes)
            if self._grouped or len(self._shapes) > 1
            else shape
        )
        self._groups += lives

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
        given = dict(group) | dict(changes)
        rule = self._rule_of(given)
        filled = rule.defaults | given | chosen
        if "convention" in filled and "convention" not in rule._hyper_names:
            raise ValueError(rule._not_a_convention(filled["convention"]))
        hyper = rule._settled({name: filled[name] for name in rule._hyper_names})
        return filled | decay.with_peak(hyper)

    def _rule_of(self, group: Mapping[str, Any]) -> "Optimizer":
        """The rule that a group goes by: this optimizer's, or that of its ``"rule"``."""
        name = group.get("rule", self.rule)
        if name not in self._rules:
            self._rules[name] = other_rule(name, self.defaults, group)
        return self._rules[name]

    def _bare(self) -> "Optimizer":
        """The rule alone, without parameters, for groups to hold without holding this optimizer."""
        bare = object.__new__(type(self))
        bare.defaults = self.defaults
        bare._hyper_names, bare._hyper_values = self._hyper_names, self._hyper_values
        return bare

    def _share(self, filled: dict[str, Any], live: LiveGroup) -> None:
        """Gives a new group the numbers that its rule keeps of groups."""
        for key in live.shared:
            alike = (
                group[key]
                for group, known in zip(self.param_groups, self._groups, strict=True)
                if known.rule.rule == live.rule.rule and live.together
            )
            first = next(alike, live.rule.initial_number(key, live.h))
            filled[key] = live.number(key, filled.get(key, first))

    def _again(self) -> "Optimizer":
        """An optimizer like this one without its groups: same settings, same counts of updates."""
        again = copy.copy(self)
        again.param_groups, again._groups = [], []
        again._changes = Changes()
        again._state = WatchedDict({}, again._changes)
        again._updates = self._updates.copy()
        again._shapes, again._shape = [], None
        again._given, again._names, again._order = [], [], []
        again.clip_history = {key: list(norms) for key, norms in self.clip_history.items()}
        return again

    def _new_state(self, p: Array, name: str, step: Array, live: LiveGroup) -> WatchedDict:
        live.check_axes(p, name)
        if not self._early:
            return WatchedDict({"step": step}, self._changes)
        fresh = {key: self._new_array(key, p, name, live) for key in live.keys(p)}
        return WatchedDict({"step": step} | fresh | new_scalars(live), self._changes)

    def _make_room(
        self,
        files: Scratch | None,
        groups: Sequence[Mapping[str, Any]],
        lives: Sequence[LiveGroup],
        known: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Makes room in the files, if any, for the arrays that the groups' parameters will have
        beside those they are known to have."""
        if files is None:
            return
        sizes: list[int] = []
        for group, live in zip(groups, lives, strict=True):
            for name, x in zip(group["param_names"], group["params"], strict=True):
                p = arrays.parameter(x, name)
                live.check_axes(p, name)
                has = set(known.get(name, {})) - ({"mask"} if live.other_masks else set())
                sizes += [live.nbytes(p, key) for key in live.keys(p) if key not in has]
        files.reserve(sizes)

    def _new_array(self, key: str, p: Array, name: str, live: LiveGroup) -> Array:
        """A state array as it begins, in a file if states are to be there."""
        begun = self._begun(key, p, name, live)
        return begun if self._files is None else self._files.copy(begun)

    def _begun(self, key: str, p: Array, name: str, live: LiveGroup) -> Array:
        """A state array as it begins: the rule's own, a filter's, or a copy of the parameter."""
        if live.of_rule(key):
            begun: Array = live.rule.initial(key, p, live.h)
            return begun
        fresh = arrays.zeros_like(p)
        fresh[...] = filters.initial(live.h["filter"], key, p, name)
        return fresh

    # The step

    def averaged(self) -> dict[str, Array]:
        """The averaged parameters by name: copies, nothing is changed.

        They are the rule's own where it keeps an average; else those of ``average=``, else of
        ``ema=``. Raises ValueError where a group has neither.
        """
        points = {}
        for number, group in enumerate(self.param_groups):
            for name, p in zip(group["param_names"], group["params"], strict=True):
                state = self._state.get(name, {})
                try:
                    key = averages.kept(group, int(state.get("step", 0)))
                except LookupError:
                    raise ValueError(
                        f"group {number} keeps no averaged parameters; make the optimizer with "
                        "ema=0.999 or average=st.average.tail(start=1000), or take a rule that "
                        "averages, such as ScheduleFreeAdamW"
                    ) from None
                points[name] = arrays.zeros_like(p)
                points[name][...] = p if key is None else state.get(key, p)
        return points

    @property
    def state(self) -> dict[str, dict[str, Array]]:
        """The state of each parameter by name: ``"step"``, its count, and the rule's arrays.

        An array may be changed in place, or another of the same type and shape put in its place.
        """
        return self._state

    @property
    def last_norms(self) -> dict[str, float]:
        """The norm of each gradient of the last step that measured them, by parameter."""
        return dict(zip(self._names, self._last_norms, strict=False))

    @property
    def clip(self) -> Clip | tuple[Clip, ...] | None:
        """How gradients are clipped, where a group has no ``clip`` of its own."""
        return self.defaults["clip"]  # type: ignore[no-any-return]

    @property
    def nonfinite(self) -> str:
        """What non-finite gradients do; fixed at construction."""
        return self._nonfinite

    @property
    def state_dir(self) -> str | None:
        """The folder of the files that state arrays lie in; None if they lie in memory."""
        return None if self._files is None else self._files.folder

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
        machine.alone(self._lock, self._step, grads, "step() of this optimizer")

    def _step(self, grads: Any) -> None:
        self._check_process()
        flat = structure.take(self._shape, grads)
        if not self._in_order:
            flat = [flat[i] for i in self._order]
        self._flat_step(flat)

    def _flat_step(self, flat: list[Any]) -> None:
        """A step with the gradients in the order of the groups."""
        count = self._updates.item()
        groups = self._groups
        climbing = False
        for number, live in enumerate(groups):
            live.update(self.param_groups[number], count)
            if live.stale:
                self._plan = None
            if live.sign < 0:
                climbing = True
        plan = self._resolved(flat)
        self._check_shared()
        for row, (number, t, by_rows) in enumerate(plan.rows()):
            live = groups[number]
            live.program(plan, row, count, t, self._domains[number], by_rows)
        workers = threads.get_num_threads() if plan.large() else 1
        if self._clipping.domains or self._nonfinite != "propagate":
            self._clipped_step(plan, workers, count, climbing)
            return
        if climbing:
            plan.rescale(self._climbing(1.0))
        plan.factors(workers)
        if self._preparing:
            self._prepare(plan, workers)
        self._ready()
        plan.commit(workers, keeping=self._keeping)

    def _check_process(self) -> None:
        """Raises RuntimeError where a step would change the state of another process, too."""
        if self._files is not None:
            self._files.check_process()

    def _ready(self) -> None:
        """What comes between the last that may fail and the first that changes something."""
        if self._peers is not None:
            self._peers.ready()

    def _prepare(self, plan: Plan, workers: int) -> None:
        """Computes the steps that rules in Python prepare; nothing of the caller's changes."""
        plan.stage(workers)
        copies: list[tuple[Array, Array]] = []
        for i, t in plan.steps():
            live, name = self._places[i]
            if live.rule.prepares:
                g, p = plan.arrays(i)[1:3]
                state = {key: self._state[name][key] for key in live.rule_keys(p)}
                fresh = given(state, live.rule.copies)
                before = dict(fresh)
                try:
                    live.rule.prepare(name, p, g, fresh, t, live.h)
                except Exception as error:
                    error.add_note(f"in the step of parameter {name!r}; nothing was changed")
                    raise
                for key, x in state.items():
                    if live.rule.copies or fresh[key] is not before[key]:
                        copies.append((x, fresh[key]))
        plan.replace(copies)

    def _clipped_step(self, plan: Plan, workers: int, count: int, climbing: bool) -> None:
        """The rest of a step that goes by norms."""
        clipping, history = self._clipping, self.clip_history
        norms: Norms | None = None
        fresh: dict[str, list[float]] = {}
        asked = clipping.sweeps or self._nonfinite != "propagate" or self._peers is not None
        if asked or clipping.first_step(history):
            norms = clipping.measure(plan, workers, self._peers)
            self.last_norm, self._last_norms = norms.total, norms.each
            reason = self._nonfinite_gradient(norms) if self._nonfinite != "propagate" else ""
            if clipping.watching and not reason:
                reason = clipping.spike(norms, history, count)
            if clipping.memories:
                fresh = clipping.remembered(norms, history, skipped=reason != "")
            if reason:
                self._ready()
                history.update(fresh)
                self.skipped += 1
                self.last_skip = reason
                return
        factors = clipping.factors(norms, history, count)
        if climbing:
            factors = self._climbing(1.0 if factors is None else factors)
        if factors is not None:
            plan.rescale(factors)
        plan.factors(workers)
        if self._preparing:
            self._prepare(plan, workers)
        self._ready()
        if norms is not None or not clipping.following:
            plan.commit(workers, history, fresh, keeping=self._keeping)
            return
        measured = plan.commit(workers, history, fresh, clipping.following, self._keeping)
        if measured is not None:
            self.last_norm, self._last_norms = measured

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

    def _params(self) -> list[Any]:
        """The live parameters of all groups: arrays, or what shares its memory as one."""
        if len(self.param_groups) == 1:
            return self.param_groups[0]["params"]  # type: ignore[no-any-return]
        return [p for group in self.param_groups for p in group["params"]]

    def _built(self) -> Plan:
        """A new plan over the parameters and the state as they are now, all checked."""
        self._plan = None  # whatever ends this early, no old plan goes with new arrays
        plan = Plan(dispatch.current, len(self._names), self._updates)
        written: list[tuple[str, Array]] = []
        replaced: dict[str, dict[str, Array]] = {}
        cuts: list[list[tuple[int | None, Array | None]]] = []
        places: list[tuple[LiveGroup, str]] = []
        self._make_room(self._files, self.param_groups, self._groups, self._state)
        for number, (group, live) in enumerate(zip(self.param_groups, self._groups, strict=True)):
            ordered = live.in_c_order
            for name, x in zip(group["param_names"], group["params"], strict=True):
                p = arrays.parameter(x, name)
                live.check_axes(p, name)
                keys = live.keys(p)
                state = dict(self._state.get(name, {}))
                state["step"] = counter(state.get("step", 0), name)
                for key in keys:
                    if key not in state or (key == "mask" and live.other_masks):
                        state[key] = self._new_array(key, p, name, live)
                    state[key] = live.checked(state[key], p, name, key)
                numbers = packed_scalars(state, live, name)
                replaced[name] = state
                places.append((live, name))
                matrices = live.rule.matrices(p, live.h)
                operands = live.by_elements if matrices is None else live.by_rows
                own = tuple(state[key] for key in operands.bound)
                written.append((f"parameter {name!r}", p))
                written += [(f"state {key!r} of parameter {name!r}", state[key]) for key in keys]
                cut: list[tuple[int | None, Array | None]] = [(axis, None) for axis in live.axes]
                if live.rule.prepares:
                    own = (np.zeros(p.shape, p.dtype), np.zeros(p.shape, p.dtype), *own)
                for k, key in enumerate(live.makes):
                    axis = live.axes[k]
                    of_units, spread = arrays.unit_factors(p, axis, of_matrices=key == "means")
                    cut[k] = (axis, of_units)
                    own += (spread,)
                cuts.append(cut)
                table = None
                if matrices is not None:
                    factors, spreads = arrays.factors(matrices, p)
                    own = (*spreads, *own)
                    shape = (matrices.count, matrices.rows, matrices.columns)
                    table = (*shape, factors, tuple(state[key] for key in matrices.states))
                walks = arrays.layout((p, *own), p, cut, ordered)
                plan.add(number, (p, *own), state["step"], operands.taken, walks, numbers, table, x)
        plan.guard(arrays.disjoint_bounds(written))
        for name, state in replaced.items():
            if isinstance(self._state.get(name), WatchedDict):
                self._state[name].update(state)
            else:
                self._state[name] = WatchedDict(state, self._changes)
        each = zip(self._groups, self.param_groups, self._given, strict=True)
        self._clipping = Clipping(
            [(live.clip, len(group["params"]), given) for live, group, given in each]
        )
        for domain in self._clipping.memories:  # so that a commit only replaces
            self.clip_history.setdefault(domain.key, [])
        self._cuts, self._places = cuts, places
        self._preparing = any(live.rule.prepares for live in self._groups)
        self._join()
        self._changes.any = False
        for live in self._groups:
            live.stale = live.other_masks = False
        self._plan, self._plan_kernels = plan, dispatch.current
        return plan

    def _join(self) -> None:
        """Says which groups share the numbers that their rules keep, and their sums."""
        first: dict[str, int] = {}
        self._domains = [
            first.setdefault(live.rule.rule, number) if live.together else number
            for number, live in enumerate(self._groups)
        ]
        self._keeping = [
            (group, live.shared, domain)
            for group, live, domain in zip(
                self.param_groups, self._groups, self._domains, strict=True
            )
            if live.shared
        ]

    def _check_shared(self) -> None:
        """Raises ValueError where groups that share the numbers of their rule have others, or get
        to others."""
        for number, domain in enumerate(self._domains):
            if number == domain:
                continue
            group, first = self.param_groups[number], self.param_groups[domain]
            for key in self._groups[number].shared:
                if group[key] != first[key] and group[key] == group[key]:
                    raise ValueError(
                        f"{key} of group {number} = {group[key]!r}: expected that of group "
                        f"{domain}, {first[key]!r}; they go by the same"
                    )
            live = self._groups[number]
            for key in live.rule.alike:
                x, y = live.h[key], self._groups[domain].h[key]
                if x != y:
                    raise ValueError(
                        f"{key} of group {number} = {x!r}: expected that of group {domain}, {y!r}; "
                        f"groups of {live.rule.rule} share what follows from it"
                    )

    def _rebind(self, plan: Plan, flat: list[Any], stale: list[int]) -> None:
        """Checks the gradients that are new in type, layout or place, and binds them."""
        names = self._names
        self._plan = None  # until all are bound: a plan that is bound in part reads old memory
        for i in stale:
            own = plan.arrays(i)
            g = flat[i] = arrays.gradient(flat[i], own[0], names[i])
            low, high = arrays.byte_bounds(g)
            if g.size and plan.overlaps(low, high):
                for j, name in enumerate(names):
                    for x in (*plan.arrays(j), *plan.states_by_rows(j)):
                        if arrays.share_memory(g, x):
                            raise ValueError(
                                f"gradient of parameter {names[i]!r} shares memory with parameter "
                                f"{name!r} or its state; give a copy"
                            )
            ordered = self._places[i][0].in_c_order
            plan.bind_gradient(i, g, arrays.layout(own, g, self._cuts[i], ordered))
        self._plan = plan

    # Clipping

    def _nonfinite_gradient(self, norms: Norms) -> str:
        """Why the step is to be skipped; FloatingPointError if so asked; empty for finite norms."""
        if math.isfinite(norms.total):
            return ""
        each = zip(self._names, norms.each, strict=True)
        bad = next((f" of parameter {name!r}" for name, x in each if not math.isfinite(x)), None)
        reason = f"gradient{bad or ' of another process'} has an infinite or NaN element"
        if self._nonfinite == "skip":
            return reason
        raise FloatingPointError(
            f'{reason}; nothing was changed (nonfinite="skip" skips such steps)'
        )

    def _climbing(self, factors: float | list[float]) -> list[float]:
        """The factors with the signs of the groups that maximize."""
        if isinstance(factors, float):
            factors = [factors] * len(self._names)
        signs = [
            live.sign
            for live, group in zip(self._groups, self.param_groups, strict=True)
            for _ in group["params"]
        ]
        return [sign * x for sign, x in zip(signs, factors, strict=True)]

    # State in and out

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything that a resumed run needs, except the parameters.

        ``{"rule", "updates", "skipped", "clip_history", "state": {name: {key: array}},
        "param_groups": [...]}``, with names in the groups instead of arrays. The copies are in
        memory wherever the state is; ``st.save`` needs none.
        """
        return self._state_dict(np.array)

    def _state_dict(self, given: Callable[[Any], Array]) -> dict[str, Any]:
        """``state_dict``, with what `given` makes of each state array: a copy, or the array."""
        return {
            "rule": self.rule,
            "updates": self.updates,
            "skipped": self.skipped,
            "clip_history": {key: list(norms) for key, norms in self.clip_history.items()},
            "state": self._needed_state(given),
            "param_groups": [
                {key: copy.deepcopy(x) for key, x in group.items() if key != "params"}
                for group in self.param_groups
            ],
        }

    def _needed_state(self, given: Callable[[Any], Array]) -> dict[str, dict[str, Array]]:
        """The state that the groups, as they are now, ask for: a group that was changed
        since the last step may want other arrays than there are."""
        needed: dict[str, dict[str, Array]] = {}
        for group, now in zip(self.param_groups, self._groups, strict=True):
            rule = self._rule_of(group)
            h = {name: rule._settle(name, group[name], None) for name in rule._hyper_names}
            renewed = filters.renewed(now.masks, filters.masks(h["filter"])) or now.other_masks
            for name, p in zip(group["param_names"], group["params"], strict=True):
                state = self._state.get(name, {})
                needed[name] = {"step": np.array(state.get("step", 0))}
                for key in (*rule.state_names(p, h), *stage_arrays(h)):
                    if key in state and not (key == "mask" and renewed):
                        needed[name][key] = given(state[key])
                    else:
                        live = LiveGroup(rule, group, self.updates)
                        needed[name][key] = np.array(self._begun(key, p, name, live))
                for key in rule.scalars(h):
                    begun = state[key] if key in state else rule.initial_number(key, h)
                    needed[name][key] = np.array(begun, np.float64)
        return needed

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
        lives: list[LiveGroup] = []
        state: dict[str, WatchedDict] = {}
        skipped = int(state_dict.get("skipped", 0))
        updates = counter(np.array(state_dict["updates"]), "all")
        history = checked_history(state_dict.get("clip_history", {}))
        files = None if self._files is None else self._files.new()
        for group, loaded in zip(self.param_groups, groups, strict=True):
            rule, hyper = self._loaded(group, loaded)
            extra = {key: copy.deepcopy(loaded[key]) for key in loaded if key != "params"}
            live = LiveGroup(rule, hyper, int(updates))
            numbers = {key: live.number(key, loaded.get(key), len(fresh)) for key in live.shared}
            fresh.append(extra | hyper | numbers)
            lives.append(live)
            self._make_room(files, [group], [live], {})
            for name, p in zip(group["param_names"], group["params"], strict=True):
                given = state_dict["state"][name]
                live.check_axes(p, name)
                keys = ("step", *live.keys(p))
                scalars = live.rule.scalars(live.h)
                if set(given) != {*keys, *scalars}:
                    raise ValueError(
                        f"state of parameter {name!r} has keys {sorted(given)}; "
                        f"expected {sorted([*keys, *scalars])}"
                    )
                state[name] = WatchedDict({}, self._changes)
                state[name]["step"] = counter(np.array(given["step"]), name)
                for key in keys[1:]:
                    x = live.checked(np.array(given[key]), p, name, key)
                    if x.shape != p.shape or (rule.prepares and live.of_rule(key)):
                        state[name][key] = x if files is None else files.copy(x)
                        continue
                    fresh_array = (arrays if files is None else files).zeros_like(p)
                    fresh_array[...] = x
                    state[name][key] = fresh_array
                for key in scalars:
                    state[name][key] = np.array(given[key])
                packed_scalars(state[name], live, name)
        self._ready()
        self._plan = None
        for group, loaded in zip(self.param_groups, fresh, strict=True):
            group.update(loaded)
        self._state = WatchedDict(state, self._changes)
        self._groups, self._files = lives, files
        self._updates, self.skipped = updates, skipped
        self.clip_history = history

    def _loaded(
        self, group: Mapping[str, Any], loaded: Mapping[str, Any]
    ) -> tuple["Optimizer", dict[str, Any]]:
        """The rule of a group, and the hyper-parameters that a state has for it, checked."""
        rule = self._rule_of(group)
        if loaded.get("rule", self.rule) != rule.rule:
            raise ValueError(f"state of rule {loaded.get('rule')!r} given to {rule.rule!r}")
        # An older state may lack a newer option.
        usual = {"convention": next(iter(rule.conventions), None)}
        known = GROUP_OPTIONS | usual | dict(loaded)
        return rule, rule._settled({name: known[name] for name in rule._hyper_names})

    def __getstate__(self) -> dict[str, Any]:
        kept = self.__dict__.copy()
        for name in ("_plan", "_plan_kernels", "_lock", "_cuts", "_clipping", "_places",
                     "_keeping"):  # fmt: skip
            kept.pop(name, None)  # what belongs to a plan, which a copy builds anew
        return kept

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self.__dict__.update(kept)
        self._plan = self._plan_kernels = None
        self._lock = threading.Lock()
        if self._files is not None:  # a pickle brings its arrays in memory
            brought = [at for at in self._state_arrays() if not lies_in_file(at[0][at[1]])]
            self._files.reserve([state[key].nbytes for state, key in brought])
            for state, key in brought:
                state[key] = self._files.copy(state[key])

    def __deepcopy__(self, memo: dict[int, Any]) -> "Optimizer":
        made = object.__new__(type(self))
        memo[id(self)] = made
        kept = self.__getstate__()
        if self._files is not None:  # array by array into files of its own
            kept["_files"] = files = self._files.new()
            held = [state[key] for state, key in self._state_arrays()]
            files.reserve([x.nbytes for x in held])
            memo[id(files)] = files
            memo |= {id(x): files.copy(x) for x in held}
        made.__setstate__(copy.deepcopy(kept, memo))
        return made

    def _state_arrays(self) -> Iterator[tuple[dict[str, Any], str]]:
        """Where all state arrays are, in the order of a sweep: (the state of a parameter, key)."""
        for group, live in zip(self.param_groups, self._groups, strict=True):
            for name, p in zip(group["param_names"], group["params"], strict=True):
                state = self._state.get(name, {})
                for key in live.keys(p):
                    if isinstance(state.get(key), np.ndarray):
                        yield state, key

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}("]
        for i, group in enumerate(self.param_groups):
            rule = self._rule_of(group)
            shown = ", ".join(f"{name}={group[name]!r}" for name in rule._hyper_names)
            if rule.rule != self.rule:
                shown = f"rule={rule.rule!r}, {shown}"
            lines.append(f"  group {i}: {len(group['params'])} parameters, {shown}")
        return "\n".join([*lines, ")"])


def other_rule(name: str, defaults: Mapping[str, Any], group: Mapping[str, Any]) -> Optimizer:
    """Another rule for groups to go by: with its own defaults, and the options that all rules share
    as in `defaults`; `group` has what has no default. Raises ValueError for an unknown rule."""
    made: Any = RULES.get(name, OWN.get(name))
    if made is None:
        raise ValueError(f"rule {name!r} of a group: expected one of {', '.join([*RULES, *OWN])}")
    asked = inspect.signature(made).parameters.values()
    needed = {x.name for x in asked if x.default is x.empty and x.kind is not x.VAR_KEYWORD}
    needed -= {"params"}
    bare: Optimizer = made(
        np.zeros(1), **{key: group[key] for key in needed & group.keys()}
    )._bare()
    shared = {key: x for key, x in defaults.items() if key in GROUP_OPTIONS}
    own = {key: bare.defaults[key] for key in ("decay_mode", "peak_lr")}
    bare.defaults = bare.defaults | shared | own
    return bare


def files_in(folder: Any) -> Scratch | None:
    """Where state arrays are to lie: in files in a folder, or None for memory."""
    if folder is None:
        return None
    try:
        return Scratch(os.fspath(folder))
    except TypeError:
        raise TypeError(f"state_dir = {folder!r}: expected the path of a folder, or None") from None


def given(state: Mapping[str, Array], copies: bool) -> dict[str, Array]:
    """The state as a rule in Python gets it: copies, or views that cannot be written."""
    if copies:
        return {key: x.copy() for key, x in state.items()}
    views = {key: x.view() for key, x in state.items()}
    for view in views.values():
        view.flags.writeable = False
    return views
