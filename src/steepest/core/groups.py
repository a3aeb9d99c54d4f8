"""The parameters of an optimizer: groups, what each group uses, and state as it begins."""

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np

from steepest import codecs
from steepest.core import trees
from steepest.core.constructor import bound
from steepest.core.given_tensors import GivenTensors, given, parameters
from steepest.core.group_keys import GROUP_KEYS, check_own
from steepest.core.group_program import GroupProgram
from steepest.core.held_rule import HeldRule, checked_defaults, other_rule
from steepest.core.norms import Peers
from steepest.core.rule import Rule
from steepest.core.scalar_states import new_scalars
from steepest.core.standstill import Standstill
from steepest.core.state import Changes, WatchedDict, counters
from steepest.core.state_formats import bits_of
from steepest.core.verification import Verification
from steepest.kernels import dispatch, machine
from steepest.kernels.engine import Plan
from steepest.memory import arrays, formats
from steepest.memory.arrays import Array
from steepest.memory.files import Scratch
from steepest.options import decay, filters

__all__ = ["WithGroups"]

_POLICIES = ("propagate", "raise", "skip")


class WithGroups(Rule, registered=False):
    """A rule with parameters in groups, each with a program, and their states."""

    _early = True
    """Whether states are made with the parameters, and not by the first plan."""
    _borrows_groups = False
    """Whether groups are another library's, in which keys of other programs live."""
    _files: Scratch | None = None
    """Where state arrays lie, if not in memory."""
    _peers: Peers | None = None
    """Those who step other parts of the parameters; None where this optimizer has them whole."""
    _state_shown = False
    """Whether others may hold the state's arrays, and so may change how they lie."""
    _states_lent = False
    """Whether the states are the caller's: none is made, and none is let go."""
    _part_from: int | None = None
    """The number of the first parameter, where these are a part of others with the same
    arguments."""
    _measured_ahead: Plan | None = None
    """The plan that has measured all gradients of the present step before it began."""
    _told: Callable[[list[int]], None] | None = None
    """Who is told by a step what has been stepped, by numbers in the order of the groups."""
    _unscale = 1.0
    """What gradients are multiplied with before all else, by who has scaled the loss."""
    _verification: Verification | None = None
    """What part of each step is computed again."""
    _bits: str | None = None
    """The format whose bits arrays of uint16 hold."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        """Takes the arguments that the class's fields say."""
        cls: Any = type(self)
        if "convention" in keywords and "convention" not in cls.fields:
            raise ValueError(self._not_a_convention(keywords["convention"]))
        given = self.translated(bound(cls, args, keywords))
        params = given["params"]
        self._nonfinite: str = given.get("nonfinite", "propagate")
        if self._nonfinite not in _POLICIES:
            raise ValueError(
                f"nonfinite = {self._nonfinite!r}: expected one of {', '.join(_POLICIES)}"
            )
        self._files = files_in(given.get("state_dir"))
        self._bits = bits_of(given.get("dtype"))
        self.defaults: dict[str, Any] = checked_defaults(cls, given)
        self.param_groups: list[dict[str, Any]] = []
        self._changes = Changes()
        self._state = WatchedDict({}, self._changes)
        self.skipped = 0
        self.last_skip = ""
        self.clip_history: dict[str, list[float]] = {}
        self.last_norm: float | None = None
        self._last_norms: list[float] = []
        self._updates = np.zeros((), np.int64)
        self._shapes: list[trees.Shape] = []
        self._shape: trees.Shape = None
        self._grouped = trees.is_groups(params)
        self._groups: list[GroupProgram] = []
        self._rules: dict[str, HeldRule] = {self.rule: HeldRule(cls, self.defaults)}
        self._given: list[int] = []
        self._names: list[str] = []
        self._copies: dict[str, Any] = {}
        self._given_tensors: GivenTensors | None = None
        self._given_copies: GivenTensors | None = None
        self._order: list[int] = []
        self._in_order = True
        self._selection = self.selection(given)
        self._plan: Plan | None = None
        self._plan_kernels: dispatch.Kernels | None = None
        self._lock = machine.Lock()
        self._standstill = Standstill()
        for group in groups_with_copies(params, given.get("copies")):
            self.add_param_group(group)
        if self._part_from is not None:  # what follows was looked at for all of them
            return
        self._selection.check(self.param_groups, self._names_of)
        for group in self.param_groups:
            filters.check_names(group["filter"], self._names)
        self._check_master(self.defaults["master"])
        self._check_rounding(self.defaults["rounding"])
        own = [g for g in self.param_groups if g.get("rule", self.rule) == self.rule]
        self._check_idle(self.defaults, self.defaults, own)
        self._check_scales(self.defaults["state_dtype"], self.defaults["rounding_seed"])
        decay.check_peak(given.get("peak_lr"), {g["decay_mode"] for g in self.param_groups})

    def _check_master(self, master: str | None) -> None:
        """Raises ValueError where no parameter has the master that was asked for."""
        pairs = zip(self.param_groups, self._groups, strict=True)
        if master is not None and not any(
            program.master_keys(arrays.as_array(p, "a parameter"))
            for group, program in pairs
            for p in group["params"]
        ):
            names = " or ".join(codecs.MASTERS[master].states)
            raise ValueError(f"master = {master!r} has no effect: no parameter is {names}")

    def _check_rounding(self, rounding: str) -> None:
        """Raises ValueError where no parameter is rounded in the way that was asked for."""
        if rounding != "nearest" and not any(
            codecs.is_short(arrays.as_array(p, "a parameter").dtype)
            for group in self.param_groups
            for p in group["params"]
        ):
            raise ValueError(
                f"rounding = {rounding!r} has no effect: no parameter is bfloat16 or float16"
            )

    def _check_scales(self, state_dtype: Any, seed: int) -> None:
        """Raises ValueError where no state has the format with scales that was asked for, or
        nothing is rounded by a seed that was given."""
        if self._borrows_groups:
            return
        pairs = zip(self.param_groups, self._groups, strict=True)
        each = [
            (program, arrays.as_array(p, "a parameter"))
            for group, program in pairs
            for p in group["params"]
        ]
        # What has no elements here may have some on another rank.
        random = any(program.seed(p) is not None or p.size == 0 for program, p in each)
        asked = [state_dtype] if isinstance(state_dtype, str) else dict(state_dtype or ()).values()
        for known in formats.SCALED.values():
            if known.name in asked and not random:
                by_rows = any(program.rule.factors for program in self._groups)
                which = f"{known.least} elements or more"
                if by_rows:
                    which = f"a state of {which}, in rows of a multiple of {known.group}"
                raise ValueError(
                    f"state_dtype = {known.name!r} has no effect: no parameter has {which}; "
                    "others keep states without it"
                )
        if seed and not random:
            raise ValueError(
                f"rounding_seed = {seed} has no effect: nothing is rounded stochastically; "
                "leave it at 0"
            )

    def _names_of(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """The hyper-parameters of the rule that a group uses."""
        return self._rule_of(group).hyper_names

    @property
    def hyper_names(self) -> tuple[str, ...]:
        return tuple(self.checks)

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Adds parameters, with hyper-parameters of their own where the group has them.

        Gradients are then a list with the
        gradients of each group, as if all groups had been given to the constructor; ``exclude`` and
        ``overrides`` hold for the new parameters too. ``"copies"`` has the structure of
        ``"params"``. Raises what the constructor raises, and RuntimeError while a step is under
        way.
        """
        machine.alone(self._lock, self._add, group, "step() of this optimizer")

    def _add(self, group: Mapping[str, Any]) -> None:
        """Adds a group: makes and checks all that is new, then puts it in at once."""
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError(f'parameter group {group!r}: expected a dict with a key "params"')
        group = dict(group)
        copies = group.pop("copies", None)
        shape, names, leaves = trees.flatten(group["params"], len(self._names))
        if not names:
            raise ValueError("params is empty; give at least one parameter")
        names = trees.own_names(group, names)
        added = [arrays.parameter(x, k, self._bits) for k, x in zip(names, leaves, strict=True)]
        taken = set(self._names)
        for name in names:
            if name in taken:
                raise ValueError(f"parameter name {name!r} is given twice; names must differ")
            taken.add(name)
        copies = trees.take(shape, copies, "copies")
        outlets = self._outlets(copies, names, added)
        first = len(self._names)
        split = self._selection.split(group, names, added, self._names_of)
        self._check_keys(group, [changes for changes, _ in split])
        groups = [self._filled(group, changes, part, names, added) for changes, part in split]
        programs = [GroupProgram(self._rule_of(filled), filled, self.updates) for filled in groups]
        for filled, program in zip(groups, programs, strict=True):
            self._share(filled, program)
        self._make_room(self._files, groups, programs, {})
        state = {}
        for filled, program in zip(groups, programs, strict=True):
            steps = counters(len(filled["params"]))
            for name, p, step in zip(filled["param_names"], filled["params"], steps, strict=True):
                state[name] = self._new_state(p, name, step, program)
        named = [
            (f"parameter {name!r}", arrays.as_array(p, f"parameter {name!r}"))
            for g in [*self.param_groups, *groups]
            for name, p in zip(g["param_names"], g["params"], strict=True)
        ]
        named += [
            (f"copy of parameter {name!r}", arrays.as_array(x, f"copy of parameter {name!r}"))
            for name, x in {**self._copies, **outlets}.items()
        ]
        arrays.disjoint_bounds(named)
        for filled, (_, part) in zip(groups, split, strict=True):
            for k, i in enumerate(part):
                if (
                    isinstance(leaves[i], np.ndarray) and leaves[i].dtype == added[i].dtype
                ):  # as it was given, where that is a subclass
                    filled["params"][k] = leaves[i]
        order = [*self._order, *(first + i for _, part in split for i in part)]
        shapes = [*self._shapes, shape]
        new = {
            "_plan": None,
            "_names": [*self._names, *state],
            "_copies": {**self._copies, **outlets},
            **self._given_with_more(names, (leaves, added), (copies, outlets)),
            "_given": [*self._given, *[len(self._shapes)] * len(groups)],
            "_order": order,
            "_in_order": order == sorted(order),
            "_shapes": shapes,
            "_shape": (
                trees.Node(False, list(range(len(shapes))), shapes)
                if self._grouped or len(shapes) > 1
                else shape
            ),
            "_groups": [*self._groups, *programs],
        }
        machine.at_once(
            [
                (list.extend, (self.param_groups, groups)),
                (dict.update, (self._state, state)),
                (dict.update, (self.__dict__, new)),
            ]
        )

    def _given_with_more(
        self,
        names: Sequence[str],
        params: tuple[Sequence[Any], Sequence[Array]],
        copies: tuple[Sequence[Any], Mapping[str, Any]],
    ) -> dict[str, GivenTensors | None]:
        """The tensors that were given, with those of new groups: what was given as `params` and
        `copies`, and the arrays that it is."""
        if self._borrows_groups:
            return {}
        which = [i for i, x in enumerate(copies[0]) if x is not None]
        copied = [names[i] for i in which]
        tensors, own = [copies[0][i] for i in which], [copies[1][name] for name in copied]
        return {
            "_given_tensors": given(self._given_tensors, names, *params),
            "_given_copies": given(self._given_copies, copied, tensors, own, "copy of parameter"),
        }

    def _follow_tensors(self) -> list[tuple[Array, Array]]:
        """Takes tensors that were given where they lie now: arrays that gave way in the groups, and
        those in their places."""
        copies = self._given_copies
        if copies and copies.follow((self._copies, name, name) for name in self._copies):
            self._plan = None
        if self._given_tensors is None:
            return []
        return self._given_tensors.follow(parameters(self.param_groups))

    def _outlets(
        self, copies: Sequence[Any], names: Sequence[str], params: Sequence[Array]
    ) -> dict[str, Any]:
        """The copies of those new parameters that have one, checked, by name."""
        found: dict[str, Any] = {}
        for x, name, p in zip(copies, names, params, strict=True):
            if x is not None:
                own = arrays.copy_of(x, p, name, self._bits)
                whole = isinstance(x, np.ndarray) and x.dtype == own.dtype
                found[name] = x if whole or self._borrows_groups else own
        return found

    def _check_keys(self, group: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> None:
        """Raises ValueError for a key of a group that the rules of its parts do not know."""
        if self._borrows_groups:
            return
        rules = [self._rule_of({**group, **changes}) for changes in parts]
        if "convention" in group and not any("convention" in r.hyper_names for r in rules):
            raise ValueError(rules[0]._not_a_convention(group["convention"]))
        known = dict.fromkeys(name for rule in rules for name in rule.group_names())
        names = " and ".join(dict.fromkeys(rule.rule for rule in rules))
        check_own(group, f"group {len(self._shapes)}", names, list(known))

    def _filled(
        self,
        group: Mapping[str, Any],
        changes: Mapping[str, Any],
        part: Sequence[int],
        names: Sequence[str],
        added: Sequence[Array],
    ) -> dict[str, Any]:
        """A group of some of the parameters, with all hyper-parameters."""
        chosen = {"params": [added[i] for i in part], "param_names": [names[i] for i in part]}
        given = dict(group) | dict(changes)
        rule = self._rule_of(given)
        if not self._borrows_groups:  # of a group in parts, each has what its own rule knows
            known = (*GROUP_KEYS, *rule.group_names())
            given = {key: x for key, x in given.items() if key in known}
        filled = rule.defaults | given | chosen
        if "convention" in filled and "convention" not in rule.hyper_names:
            raise ValueError(rule._not_a_convention(filled["convention"]))
        hyper = rule.all_checked({name: filled[name] for name in rule.hyper_names})
        if not given.keys() >= {*rule.hyper_names}:  # else it was another optimizer's
            rule._check_idle(hyper, given, [hyper])
        return filled | decay.with_peak(hyper)

    def _rule_of(self, group: Mapping[str, Any]) -> HeldRule:
        """The rule that a group uses: this optimizer's, or that of its ``"rule"``."""
        name = group.get("rule", self.rule)
        if name not in self._rules:
            self._rules[name] = other_rule(name, self.defaults, group)
        return self._rules[name]

    def _share(self, filled: dict[str, Any], program: GroupProgram) -> None:
        """Gives a new group the numbers that its rule keeps of groups."""
        for key in program.shared:
            alike = (
                group[key]
                for group, known in zip(self.param_groups, self._groups, strict=True)
                if known.rule.rule == program.rule.rule and program.together
            )
            first = next(alike, program.rule.initial_number(key, program.h))
            filled[key] = program.number(key, filled.get(key, first))

    def _again(self) -> Self:
        """An optimizer like this one without its groups: same settings, same counts of updates."""
        again = copy.copy(self)
        again.param_groups, again._groups = [], []
        again._changes = Changes()
        again._state = WatchedDict({}, again._changes)
        again._updates = self._updates.copy()
        again._shapes, again._shape = [], None
        again._given, again._names, again._order, again._copies = [], [], [], {}
        again._given_tensors = again._given_copies = None
        again.clip_history = {key: list(norms) for key, norms in self.clip_history.items()}
        return again

    def _new_state(self, p: Array, name: str, step: Array, program: GroupProgram) -> WatchedDict:
        program.check_axes(p, name)
        if not self._early:
            return WatchedDict({"step": step}, self._changes)
        fresh = {key: self._new_array(key, p, name, program) for key in program.keys(p)}
        return WatchedDict({"step": step} | fresh | new_scalars(program), self._changes)

    def _make_room(
        self,
        files: Scratch | None,
        groups: Sequence[Mapping[str, Any]],
        programs: Sequence[GroupProgram],
        known: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Makes room in the files, if any, for the arrays that the groups' parameters will have
        beside those they are known to have."""
        if files is None:
            return
        sizes: list[int] = []
        for group, program in zip(groups, programs, strict=True):
            for name, x in zip(group["param_names"], group["params"], strict=True):
                p = arrays.parameter(x, name)
                program.check_axes(p, name)
                has = set(known.get(name, {})) - ({"mask"} if program.other_masks else set())
                sizes += [program.nbytes(p, key) for key in program.keys(p) if key not in has]
        files.reserve(sizes)

    def _new_array(self, key: str, p: Array, name: str, program: GroupProgram) -> Array:
        """A state array as it begins, in a file if states are to be there."""
        if self._states_lent:
            raise lacking(key, name)
        begun = self._begun(key, p, name, program)
        return begun if self._files is None else self._files.copy(begun)

    def _begun(self, key: str, p: Array, name: str, program: GroupProgram) -> Array:
        """A state array as it begins: the rule's own, a filter's, or a copy of the parameter."""
        numbers = formats.decoded(p)
        if program.master is not None and key in program.master_keys(p):
            return np.require(program.master.split(numbers, p.dtype)[1], None, "C")
        in_groups = program.in_groups(
            key, p, lambda state: program.rule.initial(state, numbers, program.h)
        )
        if in_groups is not None:
            return in_groups
        if program.of_rule(key):
            begun: Array = program.rule.initial(key, numbers, program.h)
            if program.rule.prepares:  # its states have types of their own
                return begun
        else:
            begun = arrays.zeros_like(p)
            begun[...] = filters.initial(program.h["filter"], key, numbers, name)
        return formats.encoded(begun, program.state_type(key, p))

    @property
    def state(self) -> dict[str, dict[str, Array]]:
        """The state of each parameter by name: ``"step"``, its count, and the rule's arrays.

        An array may be changed in place, or another of the same type and shape put in its place; no
        two entries, counts included, may share memory.
        """
        self._state_shown = True
        return self._state

    @property
    def updates(self) -> int:
        """The number of steps done so far; what schedules are evaluated at."""
        return int(self._updates.item())

    def _ready(self) -> None:
        """What comes between the last that may fail and the first that changes something."""
        if self._peers is not None:
            self._peers.ready()


def lacking(key: str, name: str) -> ValueError:
    """What is wrong where a caller's states are not all there."""
    return ValueError(
        f"states lacks {key!r} for parameter {name!r}; functional.new_states makes what there has "
        "to be"
    )


def groups_with_copies(params: Any, copies: Any) -> list[Mapping[str, Any]]:
    """``params`` as groups, each with its part of ``copies``."""
    if not trees.is_groups(params):
        return [{"params": params, "copies": copies}]
    shape = trees.Node(False, list(range(len(params))), [None] * len(params))
    groups: list[Mapping[str, Any]] = list(params)
    for number, part in enumerate(trees.take(shape, copies, "copies")):
        if part is not None:
            if groups[number].get("copies") is not None:
                raise ValueError(f"copies of group {number} are given twice: as an argument and in "
                                 "the group")  # fmt: skip
            groups[number] = {**groups[number], "copies": part}
    return groups


def files_in(folder: Any) -> Scratch | None:
    """Where state arrays are to lie: in files in a folder, or None for memory."""
    if folder is None:
        return None
    try:
        return Scratch(os.fspath(folder))
    except TypeError:
        raise TypeError(f"state_dir = {folder!r}: expected the path of a folder, or None") from None
