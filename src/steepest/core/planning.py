"""The plan of an optimizer: what the engine is told of parameters, states and gradients.

Nothing of the caller's is written here. A plan is made anew when a parameter, a state or what a
group asks for is another than before; gradients are looked at in every step.
"""

from typing import Any

import numpy as np

from steepest.core.group_program import GroupProgram
from steepest.core.groups import WithGroups
from steepest.core.norms import Clipping
from steepest.core.scalar_states import packed_scalars
from steepest.core.standstill import rounds_away
from steepest.core.state import WatchedDict, counter
from steepest.kernels import dispatch
from steepest.kernels.engine import Plan
from steepest.memory import arrays
from steepest.memory.arrays import Array

__all__ = ["WithPlan"]


class WithPlan(WithGroups, registered=False):
    """Parameters in groups, and the plan of a step over them and their states."""

    _left: list[tuple[str, str]]
    """The states that the groups no longer ask for: (parameter, key)."""
    _to_prepare: dict[int, Any]
    """For rules in Python, by the number of a parameter: what a step of it is prepared from."""

    def _resolved(self, flat: list[Any]) -> Plan:
        """The plan, with this step's gradients bound."""
        if self._given_tensors is not None or self._given_copies is not None:
            self._follow_tensors()
        plan = self._plan
        if plan is None or self._changes.any or self._plan_kernels is not dispatch.current:
            plan = self._built()
        groups = self.param_groups
        params = groups[0]["params"] if len(groups) == 1 else self._params()
        stale = plan.resolve(params, flat, self._state_shown)
        if stale is None:  # an array was replaced, moved, laid out anew or made read-only
            plan = self._built()
            stale = plan.resolve(self._params(), flat, self._state_shown)
            if stale is None:
                raise RuntimeError("a parameter or its state changed during the step")
        if stale:
            self._rebind(plan, flat, stale)
        return plan

    def _forget(self) -> None:
        """Takes away what is left: if it is asked for again, a saved run does not have it."""
        for name, key in () if self._states_lent else self._left:
            dict.pop(self._state.get(name, {}), key, None)  # unmarked: the plan does not use it
        self._left = []

    def _params(self) -> list[Any]:
        """The live parameters of all groups: arrays, or what shares its memory as one."""
        if len(self.param_groups) == 1:
            return self.param_groups[0]["params"]  # type: ignore[no-any-return]
        return [p for group in self.param_groups for p in group["params"]]

    def _built(self) -> Plan:
        """A new plan over the parameters and the state as they are now, all checked."""
        self._plan = None  # whatever ends this early, no old plan goes with new arrays
        plan = Plan(dispatch.current, len(self._names), self._updates, self._part_from or 0)
        written: list[tuple[str, Array]] = []
        replaced: dict[str, dict[str, Array]] = {}
        cuts: list[list[tuple[int | None, Array | None]]] = []
        besides: list[dict[int, tuple[str, Array | None]]] = []
        places: list[tuple[GroupProgram, str]] = []
        rounded: set[int] = set()
        left: list[tuple[str, str]] = []
        self._make_room(self._files, self.param_groups, self._groups, self._state)
        for number, (group, program) in enumerate(
            zip(self.param_groups, self._groups, strict=True)
        ):
            ordered = program.in_c_order
            for name, x in zip(group["param_names"], group["params"], strict=True):
                p = arrays.parameter(x, name)
                program.check_axes(p, name)
                keys, blocks = program.keys(p), program.computing_type(p)
                state = dict(self._state.get(name, {}))
                state["step"] = counter(state.get("step", 0), name)
                for key in keys:
                    if key not in state or (key == "mask" and program.other_masks):
                        state[key] = self._new_array(key, p, name, program)
                    state[key] = program.checked(state[key], p, name, key)
                numbers = packed_scalars(state, program, name)
                replaced[name] = state
                if rounds_away(program, p):
                    rounded.add(len(places))
                places.append((program, name))
                matrices = program.rule.matrices(p, program.h)
                operands = program.by_elements if matrices is None else program.by_rows
                own = tuple(state[key] for key in operands.bound)
                written.append((f"parameter {name!r}", p))
                outlet = None
                if name in self._copies:
                    copy = arrays.copy_of(self._copies[name], p, name)
                    written.append((f"copy of parameter {name!r}", copy))
                    outlet = (self._copies[name], copy, arrays.copy_walk(copy, p, ordered))
                shown = {
                    key: state[key] for key in ("step", *keys, *program.rule.scalars(program.h))
                }
                left += [(name, key) for key in state if key not in shown]
                written += [(f"state {key!r} of parameter {name!r}", x) for key, x in shown.items()]
                cut: list[tuple[int | None, Array | None]] = [(axis, None) for axis in program.axes]
                if program.rule.prepares:
                    own = (*(np.zeros(p.shape, blocks) for _ in range(2)), *own)
                for k, key in enumerate(program.makes):
                    axis = program.axes[k]
                    of_units, spread = arrays.unit_factors(
                        p, axis, blocks, of_matrices=key == "means"
                    )
                    cut[k] = (axis, of_units)
                    own += (spread,)
                cuts.append(cut)
                table = None
                if matrices is not None:
                    factors, spreads = arrays.factors(matrices, p, blocks)
                    own = (*spreads, *own)
                    shape = (matrices.count, matrices.rows, matrices.columns)
                    table = (*shape, factors, tuple(state[key] for key in matrices.states))
                beside = program.beside(p, state)
                walks = arrays.layout((p, *own), p, cut, ordered, blocks, beside)
                besides.append(beside)
                plan.add(
                    number, (p, *own), state["step"], operands.taken, walks, numbers, table, x,
                    tuple(shown.values()), program.seed(p), outlet,
                )  # fmt: skip
        plan.guard(arrays.disjoint_bounds(written))
        for name, state in replaced.items():
            if isinstance(self._state.get(name), WatchedDict):
                self._state[name].update(state)
            else:
                self._state[name] = WatchedDict(state, self._changes)
        each = zip(self._groups, self.param_groups, self._given, strict=True)
        self._clipping = Clipping(
            [(program.clip, len(group["params"]), given) for program, group, given in each]
        )
        self._cuts, self._besides, self._places, self._written = cuts, besides, places, written
        self._to_prepare = {}
        self._rounded, self._left = rounded, [] if self._borrows_groups else left
        self._preparing = any(program.rule.prepares for program in self._groups)
        self._join()
        self._measured = bool(self._clipping.domains) or self._nonfinite != "propagate"
        self._joins = self._preparing or bool(self._keeping)
        self._changes.any = False
        for program in self._groups:
            program.stale = program.other_masks = False
        plan.told = self._told
        self._plan, self._plan_kernels = plan, dispatch.current
        return plan

    def _join(self) -> None:
        """Says which groups share the numbers that their rules keep, and their sums."""
        first: dict[str, int] = {}
        self._domains = [
            first.setdefault(program.rule.rule, number) if program.together else number
            for number, program in enumerate(self._groups)
        ]
        self._sharing = any(number != domain for number, domain in enumerate(self._domains))
        self._keeping = [
            (group, program.shared, domain)
            for group, program, domain in zip(
                self.param_groups, self._groups, self._domains, strict=True
            )
            if program.shared
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
                        f"{domain}, {first[key]!r}; they use the same"
                    )
            program = self._groups[number]
            for key in program.rule.alike:
                x, y = program.h[key], self._groups[domain].h[key]
                if x != y:
                    raise ValueError(
                        f"{key} of group {number} = {x!r}: expected that of group {domain}, {y!r}; "
                        f"groups of {program.rule.rule} share what follows from it"
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
                for what, x in self._written:
                    if arrays.share_memory(g, x):
                        raise ValueError(
                            f"gradient of parameter {names[i]!r} shares memory with {what}; "
                            "give a copy"
                        )
            program = self._places[i][0]
            layout = arrays.layout(
                own, g, self._cuts[i], program.in_c_order, program.computing_type(own[0]),
                self._besides[i],
            )  # fmt: skip
            plan.bind_gradient(i, g, layout)
        self._plan = plan
