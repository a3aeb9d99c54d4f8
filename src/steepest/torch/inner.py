"""The optimizer inside a torch optimizer: made of torch's groups and states, and shown in them."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from operator import is_, setitem
from types import MappingProxyType
from typing import Any, ClassVar

from steepest.core import internal
from steepest.extras import require
from steepest.torch import copies, layout, shards, views
from steepest.torch.followers import Follower
from steepest.torch.state_dicts import Saving
from steepest.torch.states import (
    Marks,
    State,
    Unwatched,
    adopted,
    lent,
    lie_as,
    pairs,
    peek,
)

torch: Any = require("torch", extra="torch", purpose="steepest.torch")

__all__ = ["WithInner", "check_face", "judge", "own_group"]

_OWN = ("params", "param_names")


class WithInner(Saving):
    """The part of an ``Optimizer`` that makes the optimizer inside, and keeps it up to date."""

    rule: ClassVar[Any]
    """The class of ``steepest`` whose rule it uses."""
    param_groups: list[dict[str, Any]]
    defaults: dict[str, Any]
    _pairs: tuple[list[Any], list[Any]] | None
    """The tensors of the state and the arrays inside that lie as they do; None if not known."""
    _unwatched: list[Unwatched]
    _marks: Marks
    _copy_of: Mapping[Any, Any] = MappingProxyType({})
    _parts_of: Sequence[int] = ()
    """For each group, the number of the one that it is a part of, of those that were given."""
    _watched: Any
    """The state that the optimizer inside was made of."""
    _behind = False
    """Whether a step was begun whose states may not be in ``state`` yet."""
    _began = -1
    """The count of updates when it was, of rules that keep numbers of groups."""
    _sharing: Sequence[Follower] = ()

    @property
    def state(self) -> Any:
        """The state of each parameter, as in torch: tensors over the memory of the states."""
        if self._behind:  # an exception, as of Ctrl-C, came after the update
            self._catch_up()
        return self.__dict__["_state"]

    @state.setter
    def state(self, state: Any) -> None:
        self.__dict__["_state"] = state

    # Groups

    def _given_group(self, group: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
        """A group as our optimizers take it: numbers, and arrays by name."""
        check_face(group)
        made = {key: views.numbers(x) for key, x in group.items() if key not in _OWN}
        if made.get("rule", self.rule.rule) in layout.DECOUPLED:
            layout.check(made)
            layout.agree(made)
            made.pop(layout.FLAG, None)
        made["params"] = {
            name: _parameter(p, name, self.rule)
            for name, p in zip(names, group["params"], strict=True)
        }
        found = {
            name: copies.array(self._copy_of[p], name)
            for name, p in zip(names, group["params"], strict=True)
            if p in self._copy_of
        }
        if found:
            made["copies"] = {name: found.get(name) for name in names}
        return made

    def _filled(
        self, filled: Mapping[str, Any], given: Mapping[str, Any], tensors: Mapping[str, Any]
    ) -> dict[str, Any]:
        """A group as torch's optimizers have it, of a filled one of ours."""
        made = {key: x for key, x in self.defaults.items() if key not in filled}
        made |= {key: x for key, x in filled.items() if key not in _OWN}
        for key, x in {**self.defaults, **given}.items():  # tensors stay tensors
            if isinstance(x, torch.Tensor) and made.get(key) == views.numbers(x):
                made[key] = x
        made["params"] = [tensors[name] for name in filled["param_names"]]
        if "param_names" in given:
            made["param_names"] = list(filled["param_names"])
        if made.get("rule", self.rule.rule) in layout.DECOUPLED:
            layout.agree(made)
        else:
            made.pop(layout.FLAG, None)
        return made

    def _empty_group(self, group: dict[str, Any]) -> dict[str, Any]:
        values = self._given_group(group, [])
        filled = internal.filled_group(self._inner, values)
        return own_group(group, [self._filled(filled, group, {})])[0]

    # Made anew

    def _empty(self) -> None:
        """Empties the optimizer inside; the next use makes it anew."""
        self._inner = internal.without_groups(self._inner)
        self._followers: list[Follower] = []
        self._tensors: list[Any] = []
        self._special: list[tuple[int, Any, Any]] = []
        self._places: list[tuple[Any, Any]] = []
        self._dtypes: list[Any] = []
        self._stale = True

    def _current(self) -> Any:
        """The optimizer inside, over the parameters, groups and states as they are now."""
        if self._behind:
            self._catch_up()
        groups = self.param_groups
        if len(groups) == 1:
            tensors = groups[0]["params"]
            full = groups if tensors else []
        else:
            full = [g for g in groups if g["params"]]
            tensors = [p for g in full for p in g["params"]]
        if (
            self._stale
            or self.state is not self._watched
            or (self._marks.any and self._changed())
            or len(tensors) != len(self._tensors)
            or not all(map(is_, tensors, self._tensors))
            or len(self._followers) != len(full)
            or (self._special and any(views.place(p) != place for _, p, place in self._special))
            or (self._places and any(views.place(x) != place for x, place in self._places))
        ):
            self._rebuild(list(tensors))
        for follower, group in zip(self._followers, full, strict=True):
            if follower.group is not group:
                self._complete(group)
                follower.group, follower.seen = group, ()
            follower.sync()
        return self._inner

    def _changed(self) -> bool:
        """Whether the state is another than the optimizer inside was made of, or lies elsewhere."""
        marks = self._marks
        if marks.written or any(x.changed() for x in self._unwatched):
            return True
        if self._pairs is None:
            known = [pair for made in self._made for pair in made.values()]
            self._pairs = [x for x, _ in known], [x for _, x in known]
        if not lie_as(*self._pairs):
            return True
        marks.any = bool(self._unwatched) or lent(self._pairs[0])
        return False

    def _complete(self, group: dict[str, Any]) -> None:
        """Gives a group what torch's groups always have, as in ``defaults``."""
        flagged = group.get("rule", self.rule.rule) in layout.DECOUPLED
        if flagged:
            layout.agree(group)
        for key, x in self.defaults.items():
            if key != layout.FLAG:
                group.setdefault(key, x)
        if flagged:
            layout.agree(group)

    def _names(self, groups: list[dict[str, Any]]) -> list[str]:
        """The names of all parameters of groups."""
        return layout.names(groups, None if self._zero is None else self._zero._param_to_index)

    def _named(self) -> Iterator[tuple[str, Any]]:
        """All parameters with their names."""
        each = iter(self._names(self.param_groups))
        return ((next(each), p) for group in self.param_groups for p in group["params"])

    def _rebuild(self, tensors: list[Any]) -> None:
        """Makes the optimizer inside anew, of torch's groups and states."""
        self._stale = True  # until all is there
        for follower in self._followers:
            if follower.flagged:
                layout.agree(follower.group, follower.inner["decay_mode"])
        for group in self.param_groups:
            self._complete(group)
        names = self._names(self.param_groups)
        marks = self._marks
        steps = dict.fromkeys(names, max(self._inner.updates, 1))
        dtypes = [p.dtype for p in tensors]
        same = len(tensors) == len(self._tensors) and all(map(is_, tensors, self._tensors))
        each = zip(names, dtypes, self._dtypes if same else dtypes, strict=True)
        retyped = frozenset(name for name, now, before in each if now != before)
        own = self.state
        inner, followers, special = self._inner_of(self.param_groups, names, own, steps, retyped)
        states = internal.unmarked_state(inner)
        if not inner.updates:  # states that were put here, not loaded
            updates = max((int(x["step"]) for x in states.values()), default=0)
            internal.set_updates(inner, updates)
        self._inner, self._followers, self._special = inner, followers, special
        self._sharing = [x for x in followers if x.program.shared]
        self._places = copies.places(self._copy_of)
        self._company = shards.found(self.param_groups, self._zero)
        if self._company is not None:
            self._company.check(inner, self.param_groups)
        self._tensors, self._by_index, self._dtypes = tensors, names, dtypes
        self._watched = self.state
        self._made = [
            pairs(self.state.get(p), states[name]) for name, p in zip(names, tensors, strict=True)
        ]
        self._pairs = None
        self._unwatched = self._look_around()
        self._waiting: list[int] = []
        self._plan_seen: Any = None
        marks.any, marks.written = True, False
        self._stale = False

    def _inner_of(
        self,
        groups: list[dict[str, Any]],
        names: list[str],
        states: Mapping[Any, Any],
        steps: Mapping[str, int],
        retyped: frozenset[str] = frozenset(),
    ) -> tuple[Any, list[Follower], list[tuple[int, Any, Any]]]:
        """An optimizer for inside, of groups and states; `steps` are the counts of states that do
        not say theirs, and those of `retyped` parameters are of another precision."""
        inner = internal.without_groups(self._inner)
        each = iter(names)
        full = [(g, [next(each) for _ in g["params"]]) for g in groups if g["params"]]
        known = self._parts_of if len(self._parts_of) == len(groups) else range(len(groups))
        parts_of = [i for i, g in zip(known, groups, strict=True) if g["params"]]
        for (group, own), number in zip(full, parts_of, strict=True):
            given = self._given_group(group, own)
            if "convention" not in internal.rule_of(inner, given).hyper_names:
                given.pop("convention", None)  # of the other groups' rule
            judge(inner, strictly=False)
            internal.add_whole_group(inner, given, number)
        special = []
        tensors = [p for group, _ in full for p in group["params"]]
        for i, p in enumerate(tensors):
            if not views.ordinary(p):
                special.append((i, p, views.place(p)))
        for (group, _), live in zip(full, inner.param_groups, strict=True):
            live["params"] = [
                p if views.ordinary(p) else x
                for p, x in zip(group["params"], live["params"], strict=True)
            ]
        programs = internal.group_programs(inner)
        followers = [
            Follower(group, live, program, internal.rule_of(inner, live))
            for (group, _), live, program in zip(full, inner.param_groups, programs, strict=True)
        ]
        inside = internal.unmarked_state(inner)
        for follower in followers:
            program = follower.program
            for name, p, x in follower.each():
                if (part := shards.part(p)) is not None:
                    program.set_part(x, *part)
                state = states.get(p)
                if state:
                    inside[name].update(
                        adopted(program, p, x, state, name, steps[name], name in retyped)
                    )
        return inner, followers, special

    # Shown in torch's state

    def _expose_early(self) -> None:
        """Makes the states of rules whose states torch makes with the parameters."""
        if self.rule.rule in layout.EARLY:
            inner = self._current()
            if inner.param_groups:
                internal.build_plan(inner)
                self._expose(inner)

    def _catch_up(self) -> None:
        """Shows the states of a step that has been done, and the numbers that its rule keeps."""
        if self._sharing and self._inner.updates != self._began:
            for follower in self._sharing:
                follower.give_back()
        self._expose(self._inner)
        self._behind = False

    def _kept_keys(self) -> set[str]:
        """The keys of the numbers that rules keep of groups, which have them as they are now."""
        if self._behind:
            self._catch_up()
        return {key for follower in self._sharing for key in follower.program.shared}

    def _expose(self, inner: Any) -> None:
        """Puts tensors over the state arrays into torch's state."""
        self._waiting = []
        states = internal.unmarked_state(inner)
        early = self.rule.rule in layout.EARLY
        for i, (name, p) in enumerate(zip(self._by_index, self._tensors, strict=True)):
            state = states[name]
            if not early and not self._made[i] and not state["step"]:
                self._waiting.append(i)
            else:
                self._expose_one(i, p, state)
        self._plan_seen = internal.current_plan(inner)

    def _expose_one(self, i: int, p: Any, state: Mapping[str, Any]) -> None:
        """Puts tensors over the arrays of a parameter's state into torch's state of it; those that
        were there keep being it."""
        whole = self.__dict__["_state"]
        own = whole.get(p)
        if own is None:
            own = whole[p] if isinstance(whole, defaultdict) else {}
            dict.__setitem__(whole, p, own)
        made = self._made[i]
        put = dict.__setitem__ if isinstance(own, State) else setitem
        for key, x in state.items():
            tensor, array = made.get(key) or (peek(own, key), None)
            if array is x:
                continue
            fresh = views.tensor(x, p)
            if (
                type(tensor) is torch.Tensor
                and tensor.is_floating_point() == fresh.is_floating_point()
            ):
                tensor.data = fresh
            else:
                tensor = fresh
                put(own, key, tensor)
            made[key] = (tensor, x)
        self._exposed()

    def _exposed(self) -> None:
        """After something was put into the state here: that is what it has now."""
        self._pairs = None
        if self._unwatched:
            self._unwatched = self._look_around()

    def _look_around(self) -> list[Unwatched]:
        """The dicts in the state, and the state itself, that do not mark changes for this one."""
        whole = self.__dict__["_state"]
        found = [] if getattr(whole, "marks", None) is self._marks else [Unwatched(whole)]
        for p, x in whole.items():
            if isinstance(p, torch.Tensor) and getattr(x, "changes", None) is not self._marks:
                found.append(Unwatched(x))
        return found


def own_group(group: dict[str, Any], parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups that were made of one; that itself unless it was split."""
    if len(parts) > 1:
        return parts
    group.update(parts[0])
    return [group]


def judge(inner: Any, strictly: bool) -> None:
    """Makes the optimizer inside check numbers as for a constructor or, as torch does what stands
    in its groups later, take them as they are."""
    for rule in internal.held_rules(inner):
        rule.judge(strictly, strictly or not hasattr(torch.optim, rule.cls.__name__))


def check_face(face: Mapping[str, Any]) -> None:
    """Raises ValueError for what torch's classes do on other devices or for derivatives."""
    for key in ("capturable", "differentiable"):
        if face.get(key):
            what = "CUDA graphs" if key == "capturable" else "derivatives of the step"
            raise ValueError(f"{key} = {face[key]!r}: there are no {what} here; leave it False")


def _parameter(p: Any, name: str, rule: Any) -> Any:
    """The parameter as an array that is stepped in place. Raises TypeError if it cannot be."""
    what = f"parameter {name!r}"
    if p.is_complex() and (rule.prepares or rule.factors):
        raise TypeError(
            f"{what} is complex; {rule.__name__} uses rows and columns, which are those of real "
            "numbers: give it to another rule, such as AdamW"
        )
    return views.array(p, what, writable=True)
