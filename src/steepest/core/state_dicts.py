"""The state of an optimizer, out and in: state dicts, copies, pickles."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from steepest.core.common_options import GROUP_OPTIONS
from steepest.core.group_program import GroupProgram, states_of_operations
from steepest.core.held_rule import HeldRule
from steepest.core.norms import checked_history
from steepest.core.planning import WithPlan
from steepest.core.scalar_states import packed_scalars
from steepest.core.state import WatchedDict, counter
from steepest.core.verification import attach
from steepest.fields import Call, continued
from steepest.kernels import machine
from steepest.memory import arrays
from steepest.memory.arrays import Array
from steepest.memory.files import Scratch, lies_in_file
from steepest.options import filters

__all__ = ["WithStateDict"]


class WithStateDict(WithPlan, registered=False):
    """An optimizer whose state can be taken out and put back."""

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

    def _lent(self) -> dict[str, Any]:
        """``state_dict`` with the optimizer's own arrays: copies might be larger than memory.

        Raises what loading it would raise, such as ValueError for a schedule that never was in
        range.
        """
        for group in self.param_groups:
            GroupProgram.loaded(self._rule_of(group), group, self.updates)
        return self._state_dict(np.asarray)

    def _needed_state(self, given: Callable[[Any], Array]) -> dict[str, dict[str, Array]]:
        """The state that the groups, as they are now, ask for: a group that was changed
        since the last step may want other arrays than there are."""
        needed: dict[str, dict[str, Array]] = {}
        for group, now in zip(self.param_groups, self._groups, strict=True):
            rule = self._rule_of(group)
            h = {name: rule.checked(name, group[name], None) for name in rule.hyper_names}
            renewed = filters.renewed(now.masks, filters.masks(h["filter"])) or now.other_masks
            for name, p in zip(group["param_names"], group["params"], strict=True):
                state = self._state.get(name, {})
                needed[name] = {"step": np.array(state.get("step", 0))}
                own = (*rule.state_names(p, h), *states_of_operations(h), *now.keys_beside(p))
                for key in own:
                    if key in state and not (key == "mask" and renewed):
                        needed[name][key] = given(state[key])
                    else:
                        program = GroupProgram(rule, group, self.updates)
                        needed[name][key] = np.array(self._begun(key, p, name, program))
                for key in rule.scalars(h):
                    begun = state[key] if key in state else rule.initial_number(key, h)
                    needed[name][key] = np.array(begun, np.float64)
        return needed

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over a copy of what ``state_dict`` gave; parameters are matched by name.

        A schedule that changes with time, such as a plateau, stays the same object and gets the
        state of the one in its place, unless that was made with other arguments.

        Raises KeyError, TypeError or ValueError, and changes nothing, if rule, names, keys, shapes
        or dtypes differ; RuntimeError while a step is under way.
        """
        self._load(state_dict, [])

    def _load(self, state_dict: Mapping[str, Any], also: Sequence[Call]) -> None:
        """``load_state_dict``, and calls that are made in the same moment."""
        given = state_dict, also
        machine.alone(self._lock, self._take_over, given, "step() of this optimizer")

    def _take_over(self, given: tuple[Mapping[str, Any], Sequence[Call]]) -> None:
        state_dict, also = given
        calls = self._taking(state_dict)
        self._ready()
        machine.at_once([*calls, *also])

    def _taking(self, state_dict: Mapping[str, Any]) -> list[Call]:
        """The calls that take over a state, of which all is made and checked here."""
        _check_layout(state_dict)
        if state_dict["rule"] != self.rule:
            raise ValueError(f"state of rule {state_dict['rule']!r} given to {self.rule!r}")
        groups = state_dict["param_groups"]
        if [g["param_names"] for g in groups] != [g["param_names"] for g in self.param_groups]:
            raise ValueError("the state's groups have other parameter names than this optimizer's")
        fresh: list[dict[str, Any]] = []
        programs: list[GroupProgram] = []
        state: dict[str, WatchedDict] = {}
        skipped = int(counter(np.array(state_dict.get("skipped", 0)), "skipped"))
        updates = counter(np.array(state_dict["updates"]), "all")
        history = checked_history(state_dict.get("clip_history", {}))
        files = None if self._files is None else self._files.new()
        for group, loaded in zip(self.param_groups, groups, strict=True):
            rule, hyper = self._loaded(group, loaded)
            extra = {key: copy.deepcopy(loaded[key]) for key in loaded if key != "params"}
            program = GroupProgram.loaded(rule, hyper, int(updates))
            numbers = {
                key: program.number(key, loaded.get(key), len(fresh)) for key in program.shared
            }
            fresh.append(extra | hyper | numbers)
            programs.append(program)
            self._make_room(files, [group], [program], {})
            for name, p in zip(group["param_names"], group["params"], strict=True):
                state[name] = self._loaded_state(state_dict["state"][name], p, name, program, files)
        held, told = continued(self.param_groups, fresh)
        new = {
            "_plan": None,
            "_state": WatchedDict(state, self._changes),
            "_groups": programs,
            "_files": files,
            "_updates": updates,
            "skipped": skipped,
            "clip_history": history,
        }
        into: list[Call] = [
            (dict.update, pair) for pair in zip(self.param_groups, held, strict=True)
        ]
        return [*into, *told, (dict.update, (self.__dict__, new))]

    def _loaded_state(
        self,
        given: Mapping[str, Any],
        p: Array,
        name: str,
        program: GroupProgram,
        files: Scratch | None,
    ) -> WatchedDict:
        """A copy of the state that was given for a parameter, checked."""
        program.check_axes(p, name)
        keys = ("step", *program.keys(p))
        scalars = program.rule.scalars(program.h)
        if set(given) != {*keys, *scalars}:
            raise ValueError(
                f"state of parameter {name!r} has keys {sorted(given)}; "
                f"expected {sorted([*keys, *scalars])}"
            )
        state = WatchedDict({"step": counter(np.array(given["step"]), name)}, self._changes)
        for key in keys[1:]:
            x = program.checked(np.array(arrays.unmasked(given[key], key)), p, name, key)
            if (
                program.whole(key, p)
                or x.shape != p.shape
                or (program.rule.prepares and program.of_rule(key))
            ):
                state[key] = x if files is None else files.copy(x)
                continue
            dtype = program.state_type(key, p)  # x may have one that is equal, but not the same
            state[key] = (arrays if files is None else files).zeros_like(p, dtype=dtype)
            state[key][...] = x
        for key in scalars:
            state[key] = np.array(given[key])
        packed_scalars(state, program, name)
        return state

    def _loaded(
        self, group: Mapping[str, Any], loaded: Mapping[str, Any]
    ) -> tuple[HeldRule, dict[str, Any]]:
        """The rule of a group, and the hyper-parameters that a state has for it, checked."""
        rule = self._rule_of(group)
        if loaded.get("rule", self.rule) != rule.rule:
            raise ValueError(f"state of rule {loaded.get('rule')!r} given to {rule.rule!r}")
        # An older state may lack a newer option.
        usual = {"convention": next(iter(rule.conventions), None)}
        known = GROUP_OPTIONS | usual | dict(loaded)
        return rule, rule.all_checked({name: known[name] for name in rule.hyper_names})

    def __getstate__(self) -> dict[str, Any]:
        kept = self.__dict__.copy()
        for name in ("_plan", "_plan_kernels", "_lock", "_cuts", "_clipping", "_places", "_written",
                     "_to_prepare", "_besides", "_keeping", "_sharing", "_go"):  # fmt: skip
            kept.pop(name, None)  # what belongs to a plan, which a copy builds anew
        return kept

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self.__dict__.update(kept)
        self._plan = self._plan_kernels = None
        self._lock = machine.Lock()
        if self._verification is not None:
            attach(self)
        if self._files is not None:  # a pickle brings its arrays in memory
            brought = [at for at in self._state_arrays() if not lies_in_file(at[0][at[1]])]
            self._files.reserve([state[key].nbytes for state, key in brought])
            for state, key in brought:
                state[key] = self._files.copy(state[key])

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
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
        for group, program in zip(self.param_groups, self._groups, strict=True):
            for name, p in zip(group["param_names"], group["params"], strict=True):
                state = self._state.get(name, {})
                for key in program.keys(p):
                    if isinstance(state.get(key), np.ndarray):
                        yield state, key


def _check_layout(state_dict: Any) -> None:
    """Raises KeyError or TypeError unless the parts of a state dict are of their kinds."""
    _mapping(state_dict, "the state dict")
    _text(state_dict["rule"], "rule")
    groups = state_dict["param_groups"]
    if not isinstance(groups, (list, tuple)):
        raise TypeError(f"param_groups is a {type(groups).__name__}; expected a list of dicts")
    for i, group in enumerate(groups):
        _mapping(group, f"param_groups[{i}]")
        if not isinstance(group["param_names"], (list, tuple)):
            raise TypeError(f"param_groups[{i}]['param_names']: expected a list of names")
        for name in group["param_names"]:
            _text(name, f"param_groups[{i}]['param_names']")
        if "rule" in group:
            _text(group["rule"], f"param_groups[{i}]['rule']")
    _mapping(state_dict["state"], "state")
    for name, own in state_dict["state"].items():
        _mapping(own, f"state of parameter {name!r}")


def _mapping(given: Any, what: str) -> None:
    if not isinstance(given, Mapping):
        raise TypeError(f"{what} is a {type(given).__name__}; expected a dict")


def _text(given: Any, what: str) -> None:
    if not isinstance(given, str):  # an array, compared with a name, would say nothing
        raise TypeError(f"{what} has a {type(given).__name__}; expected a name")
