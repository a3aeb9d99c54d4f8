"""The state of all torch optimizers here, out and in: state dicts, and what a pickle has."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from steepest import nesting
from steepest.convert.torch import check_layout
from steepest.core import internal
from steepest.core.norms import checked_history
from steepest.core.state import counter
from steepest.extras import require
from steepest.fields import Call, continued, snapshot
from steepest.kernels import machine
from steepest.memory.arrays import Array
from steepest.torch import layout, shards, views
from steepest.torch.compilation import uncompiled
from steepest.torch.states import Marks, State, States, keys_of

torch: Any = require("torch", extra="torch", purpose="steepest.torch")

__all__ = ["Saving"]


class Saving(torch.optim.Optimizer):  # type: ignore[misc]
    """The part of an ``Optimizer`` that saves and loads."""

    _inner: Any
    _copy_of: Mapping[Any, Any]
    _parts_of: Sequence[int]
    """The tensors that parameters are also written to, by parameter."""
    _zero: Any
    """The ZeroRedundancyOptimizer that it is a part of, if any."""
    _company: Any
    """Those who step other parts of the parameters, if any; see ``shards``."""
    _step_all: Any
    """What steps all parameters."""

    def state_dict(self) -> dict[str, Any]:
        """What torch's own class would give: ``{"state", "param_groups"}``, with its keys, shapes
        and dtypes; the tensors share memory with the state, as there.

        What torch has no place for is under ``"steepest"`` in the first group: updates, skipped
        steps, norms that clips remember, and counts that torch's SGD and Muon do without.
        """
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        inner = self._current()
        state: dict[Any, Any] = {}
        steps: dict[int, int] = {}
        index: dict[Any, int] = {}
        for group in self.param_groups:
            for p in group["params"]:
                index.setdefault(p, len(index))
        for follower in self._followers:
            h = follower.all_checked(inner.updates)
            for p in follower.group["params"]:
                own = self.state.get(p)
                if not own:
                    continue
                laid = layout.state_to_torch(follower.program.rule.rule, own, h)
                if laid:
                    state[index[p]] = laid
                if "step" in own and "step" not in laid:
                    steps[index[p]] = int(own["step"])
        state |= {key: x for key, x in self.state.items() if not isinstance(key, torch.Tensor)}
        groups = [
            {key: snapshot(x) for key, x in group.items() if key != "params"}
            | {"params": [index[p] for p in group["params"]]}
            for group in self.param_groups
        ]
        groups[0][layout.RECORD] = {
            "updates": inner.updates,
            "skipped": inner.skipped,
            "clip_history": {key: list(x) for key, x in inner.clip_history.items()},
            "steps": steps,
        }
        made = {"state": state, "param_groups": groups}
        for hook in self._optimizer_state_dict_post_hooks.values():
            made = hook(self, made) or made
        return made

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over a copy of what ``state_dict`` gave, or that of torch's own class did.

        Parameters are matched by their place, as in torch. Raises KeyError, TypeError or ValueError
        and changes nothing if groups, keys, shapes or dtypes do not fit.
        """
        loaded = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            loaded = hook(self, loaded) or loaded
        internal.change_alone(self._inner, self._load, loaded)
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def _load(self, loaded: Mapping[str, Any]) -> None:
        check_layout(loaded)
        before = self._current()
        saved = copy.deepcopy(loaded["param_groups"])
        sizes = [len(group["params"]) for group in self.param_groups]
        if [len(group["params"]) for group in saved] != sizes:
            raise ValueError(
                f"the state's groups have {[len(group['params']) for group in saved]} parameters; "
                f"expected {sizes}"
            )
        record = _checked_record(saved[0].pop(layout.RECORD, {}) if saved else {})
        groups = []
        for group, found in zip(self.param_groups, saved, strict=True):
            rule = internal.rule_of(before, group)
            if found.get("rule", rule.rule) != rule.rule:
                raise ValueError(f"state of rule {found['rule']!r} given to {rule.rule!r}")
            new = layout.group_from_torch(rule.rule, found, group)
            new |= {key: group[key] for key in self.face if key in group}
            groups.append(new | {"params": group["params"]})
        groups, told = continued(self.param_groups, groups)
        numbers = [i for group in saved for i in group["params"]]
        names = self._names(groups)
        names_of = dict(zip(numbers, names, strict=True))
        states, steps = self._loaded_states(loaded["state"], record, names_of)
        tensors = [p for group in groups for p in group["params"]]
        by_tensor = {p: states[name] for p, name in zip(tensors, names, strict=True)}
        inner, followers, _ = self._inner_of(groups, names, by_tensor, steps)
        own = internal.unmarked_state(inner)
        begun = {name for name in names if own[name].keys() > {"step"}}
        begun |= {name for name in names if "step" in states[name]}
        updates = record.get("updates")
        if updates is None:
            updates = max((int(own[name]["step"]) for name in begun), default=0)
        internal.set_updates(inner, updates)
        inner.skipped = record.get("skipped", 0)
        inner.clip_history = checked_history(record.get("clip_history", {}))
        for follower in followers:
            for name, _, p in follower.each():
                if name in begun:
                    _check_keys(own[name], follower.program, p, name)
        internal.build_plan(inner)
        fresh: dict[Any, Any] = {}
        for p, name in zip(tensors, names, strict=True):
            made = own[name] if name in begun else {}
            if states[name]:
                fresh[p] = State(states[name], self._marks)
                fresh[p].update({key: views.tensor(x, p) for key, x in made.items()})
        fresh |= {k: x for k, x in loaded["state"].items() if k not in names_of}
        self._assign(groups, fresh, internal.without_groups(inner), told)

    def _assign(
        self,
        groups: list[dict[str, Any]],
        state: Mapping[Any, Any],
        inner: Any,
        told: list[Call],
    ) -> None:
        """Gives the groups and the state other contents, and makes the calls `told`, which cannot
        fail: the objects stay, for whoever holds them.
        An exception in between, as of Ctrl-C, leaves what there was."""
        held = [self.state, *self.param_groups]
        before, was = [dict(x) for x in held], self._inner
        try:
            self._stale, self._inner = True, inner
            _fill(held, [state, *groups])
            machine.at_once(told)
        except BaseException:
            self._inner = was
            _fill(held, before)
            raise

    def _loaded_states(
        self, loaded: Mapping[Any, Any], record: Mapping[str, Any], names: Mapping[Any, str]
    ) -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
        """By name: copies of the loaded states, and the counts of those that do not say theirs."""
        steps = record["steps"]
        states: dict[str, dict[str, Any]] = {name: {} for name in names.values()}
        counts = {name: steps.get(i, record.get("updates", 1)) for i, name in names.items()}
        rules = {
            name: follower.program.rule.rule
            for follower in self._followers
            for name in follower.inner["param_names"]
        }
        for i, name in names.items():
            given = loaded.get(i, {})
            if not isinstance(given, Mapping):
                kind = type(given).__name__
                raise TypeError(f"state of parameter {name!r} is a {kind}; expected a dict")
            if given:
                found = layout.state_from_torch(rules[name], given, name, counts[name])
                if "step" not in given and i not in steps:
                    del found["step"]
                try:
                    nesting.check(found)
                    states[name] = {key: _copied(x) for key, x in found.items()}
                except RecursionError:
                    raise ValueError(
                        f"state of parameter {name!r} is nested too deeply, or contains itself"
                    ) from None
            elif i in steps:
                states[name] = {"step": steps[i]}
        return states, counts

    def __getstate__(self) -> dict[str, Any]:
        inner = internal.without_groups(self._inner)
        own = {"_inner": inner, "_copy_of": dict(self._copy_of), "_parts_of": [*self._parts_of]}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "state" in self.__dict__:  # where torch has put it
            self.state = self.__dict__.pop("state")
        uncompiled(self._step_all.__code__)
        self.defaults.pop("differentiable", None)
        self.defaults |= {key: x for key, x in self.face.items() if key not in self.defaults}
        self._zero = None
        self._company = shards.found(self.param_groups, None)
        self._marks = Marks()
        if isinstance(self.state, States):
            self._marks = self.state.marks
            self.state.watch()
        self._watched = None
        self._empty()


def _checked_record(given: Any) -> dict[str, Any]:
    """What a state dict says beside what torch's has, its counts as numbers. Raises TypeError or
    ValueError for what it cannot say."""
    if not isinstance(given, Mapping):
        raise TypeError(f"{layout.RECORD} is a {type(given).__name__}; expected a dict")
    record = {key: x for key, x in given.items() if x is not None}
    for key in ("updates", "skipped"):
        if key in record:
            record[key] = int(counter(record[key], key))
    steps = record.get("steps", {})
    if not isinstance(steps, Mapping):
        raise TypeError(f"steps of {layout.RECORD} is a {type(steps).__name__}; expected a dict")
    return record | {"steps": {i: int(counter(t, str(i))) for i, t in steps.items()}}


def _check_keys(state: Mapping[str, Any], program: Any, p: Array, name: str) -> None:
    """Raises ValueError for a loaded state that lacks what the rule needs."""
    keys = keys_of(program, p)
    later = {*program.operation_states, *program.master_keys(p)}  # made where they lack
    if state["step"] and keys - later - state.keys():
        raise ValueError(
            f"state of parameter {name!r} has keys {sorted(state)}; expected {sorted(keys)}"
        )


def _copied(x: Any) -> Any:
    """A copy of an entry of a state, its tensors in main memory."""
    if isinstance(x, torch.Tensor):
        return x.detach().to("cpu", copy=True)
    if isinstance(x, Mapping):
        return {key: _copied(y) for key, y in x.items()}
    if type(x) in (list, tuple):
        return type(x)(map(_copied, x))
    return copy.deepcopy(x)


def _fill(dicts: Sequence[Any], contents: Sequence[Mapping[Any, Any]]) -> None:
    for x, content in zip(dicts, contents, strict=True):
        x.clear()
        x.update(content)
