"""The state of all torch optimizers here, out and in: state dicts, and what a pickle has."""

import copy
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from steepest.extras import require
from steepest.kernels import machine
from steepest.optimizers.state import Changes
from steepest.torch import layout, shards, views
from steepest.torch.uncompiled import uncompiled
from steepest.values import continued, snapshot

torch: Any = require("torch", extra="torch", purpose="steepest.torch")

__all__ = ["Saving"]


class Saving(torch.optim.Optimizer):  # type: ignore[misc]
    """The part of an ``Optimizer`` that saves and loads."""

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
        inner = self._ready()
        state: dict[Any, Any] = {}
        groups, steps = [], {}
        index: dict[Any, int] = {}
        for group in self.param_groups:
            for p in group["params"]:
                index.setdefault(p, len(index))
        for place in self._places:
            h = {k: place.live.rule._settle(k, place.inner[k], inner.updates) for k in place.names}
            for p in place.group["params"]:
                own = self.state.get(p)
                if not own:
                    continue
                laid = layout.state_to_torch(place.live.rule.rule, own, h)
                if laid:
                    state[index[p]] = laid
                if "step" not in laid:
                    steps[index[p]] = int(own["step"])
        state |= {key: x for key, x in self.state.items() if not isinstance(key, torch.Tensor)}
        for group in self.param_groups:
            rule = self._inner._rule_of(group).rule
            packed = layout.group_to_torch(rule, group)
            packed = {key: snapshot(x) for key, x in packed.items() if key != "params"}
            groups.append(packed | {"params": [index[p] for p in group["params"]]})
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
        machine.alone(self._inner._lock, self._load, loaded, "step() of this optimizer")
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def _load(self, loaded: Mapping[str, Any]) -> None:
        before = self._ready()
        saved = copy.deepcopy(loaded["param_groups"])
        sizes = [len(group["params"]) for group in self.param_groups]
        if [len(group["params"]) for group in saved] != sizes:
            raise ValueError(
                f"the state's groups have {[len(group['params']) for group in saved]} parameters; "
                f"expected {sizes}"
            )
        record = saved[0].pop(layout.RECORD, {}) if saved else {}
        groups = []
        for group, found in zip(self.param_groups, saved, strict=True):
            rule = before._rule_of(group)
            if found.get("rule", rule.rule) != rule.rule:
                raise ValueError(f"state of rule {found['rule']!r} given to {rule.rule!r}")
            new = layout.group_from_torch(rule.rule, found, group)
            new |= {key: group[key] for key in self.face if key in group}
            groups.append(new | {"params": group["params"]})
        groups, told = continued(self.param_groups, groups)
        numbers = [i for group in saved for i in group["params"]]
        names = self._names(groups)
        states = self._loaded_states(
            loaded["state"], record, dict(zip(numbers, names, strict=True))
        )
        tensors = [p for group in groups for p in group["params"]]
        by_tensor = {p: states[name] for p, name in zip(tensors, names, strict=True)}
        inner, places, _ = self._built(groups, names, by_tensor)
        updates = record.get("updates")
        if updates is None:
            updates = max((int(x["step"]) for x in states.values() if x), default=0)
        inner._updates[...] = updates
        inner.skipped = int(record.get("skipped", 0))
        inner.clip_history = {
            str(key): [float(x) for x in norms]
            for key, norms in record.get("clip_history", {}).items()
        }
        for place in places:
            live = place.live
            for name, p in zip(place.inner["param_names"], place.group["params"], strict=True):
                if by_tensor[p]:
                    _check_keys(by_tensor[p], live, views.array(p, f"parameter {name!r}"), name)
        inner._built()
        rest = {k: x for k, x in loaded["state"].items() if k not in set(numbers)}
        fresh: defaultdict[Any, Any] = defaultdict(dict)
        for p, name in zip(tensors, names, strict=True):
            if by_tensor[p]:
                fresh[p] = {key: views.tensor(x, p) for key, x in inner._state[name].items()}
        fresh.update(rest)
        self.param_groups[:] = groups
        self.state = fresh
        self._inner = inner._again()
        self._stale = True
        machine.at_once(told)

    def _loaded_states(
        self, loaded: Mapping[Any, Any], record: Mapping[str, Any], names: Mapping[Any, str]
    ) -> dict[str, dict[str, Any]]:
        """Copies of the loaded states by name, in our layout."""
        steps = record.get("steps", {})
        states: dict[str, dict[str, Any]] = {name: {} for name in names.values()}
        rules = {
            name: place.live.rule.rule
            for place in self._places
            for name in place.inner["param_names"]
        }
        for i, name in names.items():
            given = loaded.get(i)
            if given:
                step = steps.get(i, record.get("updates", 1))
                found = layout.state_from_torch(rules[name], given, name, step)
                states[name] = {
                    key: x.detach().to("cpu", copy=True) if isinstance(x, torch.Tensor) else x
                    for key, x in found.items()
                }
            elif i in steps:
                states[name] = {"step": steps[i]}
        return states

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_inner": self._inner._again()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        uncompiled(self._step_all.__code__)
        self.defaults.pop("differentiable", None)
        self.defaults |= {key: x for key, x in self.face.items() if key not in self.defaults}
        self._zero = None
        self._company = shards.found(self.param_groups, None)
        self._changes = Changes()
        self._again()
        self._watched = None


def _check_keys(state: Mapping[str, Any], live: Any, p: Any, name: str) -> None:
    """Raises ValueError for a loaded state that lacks what the rule needs, or has more."""
    own = {*live.rule_keys(p), *live.rule.scalars(live.h)}
    lacking = own - state.keys()
    unknown = state.keys() - own - {"step", *live.of_stages}
    if (lacking and state["step"]) or unknown:
        raise ValueError(
            f"state of parameter {name!r} has keys {sorted(state)}; "
            f"expected {sorted({'step', *own, *live.of_stages})}"
        )
