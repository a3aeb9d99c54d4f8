"""What all torch optimizers here share: torch's groups and state outside, our optimizer inside.

torch's ``param_groups`` and ``state`` are the truth, as with torch's own classes: whoever writes to
them is heard. Inside is a ``steepest.Optimizer`` over the memory of the same tensors, whose groups
take over torch's hyper-parameters at every step, and whose state arrays are the memory of torch's
state tensors. When parameters, groups or states are others than before, it is made anew.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from importlib import import_module
from operator import is_, itemgetter, setitem
from typing import Any, ClassVar

import numpy as np

from steepest.core.group_keys import check_borrowed
from steepest.core.selection import Selection
from steepest.extras import require
from steepest.kernels import machine
from steepest.memory import arrays
from steepest.torch import layout, shards, views
from steepest.torch.compilation import uncompiled
from steepest.torch.state_dicts import Saving
from steepest.torch.states import (
    Marks,
    State,
    States,
    Unwatched,
    adopted,
    lent,
    lie_as,
    pairs,
    peek,
)

torch: Any = require("torch", extra="torch", purpose="steepest.torch")

__all__ = ["Optimizer"]

_BASE = import_module("torch.optim.optimizer")
_PRE_HOOKS, _POST_HOOKS = _BASE._global_optimizer_pre_hooks, _BASE._global_optimizer_post_hooks
_profiler_enabled = torch.autograd._profiler_enabled

# So that torch.load reads state dicts with them, weights_only as it is by default.
torch.serialization.add_safe_globals(layout.values())

_OWN = ("params", "param_names")
_NONE = object()
_PLAIN = (float, int, str, type(None))


class _Place:
    """A group of torch's and the group inside that follows it."""

    def __init__(self, group: dict[str, Any], inner: dict[str, Any], live: Any, rule: Any) -> None:
        self.group, self.inner, self.live = group, inner, live
        self.params = group["params"]
        self.names = rule.hyper_names
        self.flagged = rule.rule in layout.DECOUPLED
        self.at = self.names.index("decay_mode")
        self.get = itemgetter(*self.names, *([layout.FLAG] * self.flagged))
        self.seen: tuple[Any, ...] = ()
        self.objects: list[int] = []
        """The places of what may be equal to something else and change in another way."""

    def sync(self) -> None:
        """Takes over the hyper-parameters that torch's group has now."""
        values = self.get(self.group)
        try:
            same = values == self.seen
        except (RuntimeError, ValueError):  # tensors or arrays of several numbers
            same = False
        if same and self.objects:
            same = all(values[i] is self.seen[i] for i in self.objects)
        if not same:
            self._take(values)
        if self.live.shared:
            for key in self.live.shared:
                if key in self.group:
                    self.inner[key] = views.numbers(self.group[key])

    def _take(self, values: tuple[Any, ...]) -> None:
        """Takes over hyper-parameters of which some are others than before."""
        before, self.seen = self.seen or (_NONE,) * len(values), ()
        if self.flagged and (
            values[-1] is not before[-1] or values[self.at] is not before[self.at]
        ):
            layout.agree(self.group, self.inner["decay_mode"])
            values = self.get(self.group)
        constant = True
        for name, x, old in zip(self.names, values, before, strict=False):
            if type(x) is float:
                self.inner[name] = x
            elif x is not old:
                self.inner[name] = views.numbers(x)
                constant = constant and not _changing(x)
        if constant:
            self.seen = values
            self.objects = [i for i, x in enumerate(values) if not _plain(x)]

    def give_back(self) -> None:
        """Hands the numbers that the rule keeps of the group to torch's."""
        for key in self.live.shared:
            self.group[key] = self.inner[key]


class Optimizer(Saving):
    """Base of all torch optimizers here; see ``steepest.torch.AdamW`` for one to use."""

    rule: ClassVar[Any]
    """The class of ``steepest`` that it goes by."""
    face: ClassVar[Mapping[str, Any]]
    """Arguments of torch's class that choose an implementation, and their defaults."""
    __signature__: ClassVar[Any]
    state: Any
    param_groups: list[dict[str, Any]]
    defaults: dict[str, Any]
    _step_supports_amp_scaling = True
    """That ``torch.amp.GradScaler`` leaves unscaling and skipping to the step."""
    _pairs: tuple[list[Any], list[Any]] | None
    """The tensors of the state and the arrays inside that lie as they do; None if not known."""
    _unwatched: list[Unwatched]
    _in_backward: Any = None
    """What steps the parameters in the backward pass, if something does."""

    def __init__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        given = dict(self.__signature__.bind(params, *args, **kwargs).arguments)
        del given["params"]
        given |= given.pop("options", {})
        face = {name: given.pop(name, usual) for name, usual in self.face.items()}
        _check_face(face)
        self._inner: Any = None
        self._zero = shards.dealer()
        if self._zero is not None:
            shards.check_given(given)
        super().__init__(params, {})
        uncompiled(self._step_all.__code__)
        groups, self.param_groups = self.param_groups, []
        self._marks = Marks()
        self.state = States(self._marks)
        self._watched: Any = self.state
        self._begin(groups, given, face)

    def _begin(
        self, groups: list[dict[str, Any]], given: dict[str, Any], face: dict[str, Any]
    ) -> None:
        names = self._names(groups)
        tensors = dict(zip(names, (p for g in groups for p in g["params"]), strict=True))
        self._inner = inner = object.__new__(self.rule)
        inner._early, inner._borrows_groups = False, True
        full = [g for g in groups if g["params"]]
        each = iter(names)
        given_groups = [self._given_group(g, [next(each) for _ in g["params"]]) for g in full]
        if not full:
            nothing = np.zeros((1,) * max(1, self.rule.least_axes))
            given_groups = [{"params": {"none": nothing}}]
        inner.__init__(given_groups, **{key: views.numbers(x) for key, x in given.items()})
        self.defaults = inner.defaults | face
        if self.rule.rule in layout.DECOUPLED:
            layout.agree(self.defaults)
        self.defaults |= {key: x for key, x in given.items() if isinstance(x, torch.Tensor)}
        parts: list[list[dict[str, Any]]] = [[] for _ in full]
        for filled, number in zip(inner.param_groups, inner._given, strict=True):
            if full:
                parts[number].append(self._filled(filled, full[number], tensors))
        part = iter(parts)
        for group in groups:
            self.param_groups += (
                _own(group, next(part)) if group["params"] else [self._empty_group(group)]
            )
        self._company = shards.found(self.param_groups, self._zero)
        if self._company is not None:
            self._company.check(inner, self.param_groups)
        self._again()
        self._expose_early()

    def _expose_early(self) -> None:
        """Makes the states of rules whose states torch makes with the parameters."""
        if self.rule.rule in layout.EARLY:
            inner = self._ready()
            if inner.param_groups:
                inner._built()
                self._expose(inner)

    def _given_group(self, group: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
        """A group as our optimizers take it: numbers, and arrays by name."""
        _check_face(group)
        made = {key: views.numbers(x) for key, x in group.items() if key not in _OWN}
        if made.get("rule", self.rule.rule) in layout.DECOUPLED:
            layout.check(made)
            layout.agree(made)
            made.pop(layout.FLAG, None)
        made["params"] = {
            name: _parameter(p, name, self.rule)
            for name, p in zip(names, group["params"], strict=True)
        }
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
        filled = self._inner._filled(values, {}, [], [], [])
        return _own(group, [self._filled(filled, group, {})])[0]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters, at any time; what it does not say is as in ``defaults``."""
        # ZeroRedundancyOptimizer puts all arguments into its groups.
        if isinstance(param_group, Mapping) and self._zero is None:
            check_borrowed(self.rule, param_group)
        if self._inner is None:  # torch's constructor, which checks all groups first
            super().add_param_group(param_group)
            return
        kept, defaults = list(self.param_groups), self.defaults
        self.defaults = {}
        try:
            super().add_param_group(param_group)
            group = self.param_groups[-1]
        finally:
            self.param_groups[:] = kept
            self.defaults = defaults
        inner = self._ready()
        self._stale = True
        inner._rule_of(group)
        _judge(inner, strictly=True)
        if not group["params"]:
            self.param_groups.append(self._empty_group(group))
            return
        if self._in_backward is not None:
            self._in_backward.check_new(group)
        first = len(inner.param_groups)
        names = self._names([*kept, group])[-len(group["params"]) :]
        inner.add_param_group(self._given_group(group, names))
        tensors = dict(zip(names, group["params"], strict=True))
        parts = [self._filled(filled, group, tensors) for filled in inner.param_groups[first:]]
        self.param_groups += _own(group, parts)
        self._expose_early()
        if self._in_backward is not None:
            self._in_backward.attach()

    # The optimizer inside

    def _again(self) -> None:
        """Empties the optimizer inside; the next use makes it anew."""
        self._inner = self._inner._again()
        self._places: list[_Place] = []
        self._tensors: list[Any] = []
        self._special: list[tuple[int, Any, Any]] = []
        self._dtypes: list[Any] = []
        self._stale = True

    def _ready(self) -> Any:
        """The optimizer inside, over the parameters, groups and states as they are now."""
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
            or len(self._places) != len(full)
            or (self._special and any(views.place(p) != place for _, p, place in self._special))
        ):
            self._rebuild(list(tensors))
        for place, group in zip(self._places, full, strict=True):
            if place.group is not group:
                self._complete(group)
                place.group, place.seen = group, ()
            place.sync()
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
        for place in self._places:
            if place.flagged:
                layout.agree(place.group, place.inner["decay_mode"])
        for group in self.param_groups:
            self._complete(group)
        names = self._names(self.param_groups)
        marks = self._marks
        steps = dict.fromkeys(names, max(self._inner.updates, 1))
        dtypes = [p.dtype for p in tensors]
        same = len(tensors) == len(self._tensors) and all(map(is_, tensors, self._tensors))
        each = zip(names, dtypes, self._dtypes if same else dtypes, strict=True)
        retyped = frozenset(name for name, now, before in each if now != before)
        inner, places, special = self._built(self.param_groups, names, self.state, steps, retyped)
        if not inner.updates:  # states that were put here, not loaded
            inner._updates[...] = max((int(x["step"]) for x in inner._state.values()), default=0)
        self._inner, self._places, self._special = inner, places, special
        self._sharing = [place for place in places if place.live.shared]
        self._company = shards.found(self.param_groups, self._zero)
        if self._company is not None:
            self._company.check(inner, self.param_groups)
        self._tensors, self._by_index = tensors, names
        self._watched = self.state
        self._made = [
            pairs(self.state.get(p), inner._state[name])
            for name, p in zip(names, tensors, strict=True)
        ]
        self._pairs = None
        self._unwatched = self._look_around()
        self._waiting: list[int] = []
        self._plan_seen: Any = None
        self._dtypes = dtypes
        marks.any, marks.written = True, False
        self._stale = False

    def _exposed(self) -> None:
        """After something was put into the state here: that is what it has now."""
        self._pairs = None
        if self._unwatched:
            self._unwatched = self._look_around()

    def _look_around(self) -> list[Unwatched]:
        """The dicts in the state, and the state itself, that do not mark changes for this one."""
        whole = self.state
        found = [] if getattr(whole, "marks", None) is self._marks else [Unwatched(whole)]
        for p, x in whole.items():
            if isinstance(p, torch.Tensor) and getattr(x, "changes", None) is not self._marks:
                found.append(Unwatched(x))
        return found

    def _built(
        self,
        groups: list[dict[str, Any]],
        names: list[str],
        states: Mapping[Any, Any],
        steps: Mapping[str, int],
        retyped: frozenset[str] = frozenset(),
    ) -> tuple[Any, list[_Place], list[tuple[int, Any, Any]]]:
        """An optimizer for inside, of groups and states; `steps` are the counts of states that do
        not say theirs, and those of `retyped` parameters are of another precision."""
        inner = self._inner._again()
        selection, inner._selection = inner._selection, Selection((), {})
        each = iter(names)
        full = [(g, [next(each) for _ in g["params"]]) for g in groups if g["params"]]
        for group, own in full:
            given = self._given_group(group, own)
            if "convention" not in inner._rule_of(given).hyper_names:
                given.pop("convention", None)  # of the other groups' rule
            _judge(inner, strictly=False)
            inner.add_param_group(given)
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
        inner._selection = selection
        places = [
            _Place(group, live, known, inner._rule_of(live))
            for (group, _), live, known in zip(full, inner.param_groups, inner._groups, strict=True)
        ]
        for place in places:
            for name, p in zip(place.inner["param_names"], place.group["params"], strict=True):
                state = states.get(p)
                if state:
                    inner._state[name].update(
                        adopted(place.live, p, state, name, steps[name], name in retyped)
                    )
        return inner, places, special

    def _expose(self, inner: Any) -> None:
        """Puts tensors over the state arrays into torch's state."""
        self._waiting = []
        early = self.rule.rule in layout.EARLY
        for i, (name, p) in enumerate(zip(self._by_index, self._tensors, strict=True)):
            state = inner._state[name]
            if not early and not self._made[i] and not state["step"]:
                self._waiting.append(i)
            else:
                self._expose_one(i, p, state)
        self._plan_seen = inner._plan

    def _expose_one(self, i: int, p: Any, state: Mapping[str, Any]) -> None:
        """Puts tensors over the arrays of a parameter's state into torch's state of it; those that
        were there keep being it."""
        own = self.state.get(p)
        if own is None:
            own = self.state[p] if isinstance(self.state, defaultdict) else {}
            dict.__setitem__(self.state, p, own)
        made = self._made[i]
        put = dict.__setitem__ if isinstance(own, State) else setitem
        for key, x in state.items():
            tensor, array = made.get(key) or (peek(own, key), None)
            if array is x:
                continue
            fresh = views.tensor(x, p)
            if type(tensor) is torch.Tensor and tensor.is_floating_point() == (x.dtype.kind == "f"):
                tensor.data = fresh
            else:
                tensor = fresh
                put(own, key, tensor)
            made[key] = (tensor, x)
        self._exposed()

    # The step

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates all parameters that have a gradient; the closure's loss, if there is one.

        After an exception parameters and states are as they were. Raises TypeError or ValueError
        for gradients, parameters or hyper-parameters that are not fit, naming them.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._in_backward is not None:
            self._in_backward.check_step()
        elif self._company is None:
            self._step_all()
        else:
            with self._company.stepping():
                self._step_all()
        return loss

    _observed_step = torch.optim.Optimizer.profile_hook_step(_step)

    @wraps(_step)
    def step(self, *args: Any, **kwargs: Any) -> Any:
        if (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _PRE_HOOKS
            or _POST_HOOKS
            or _profiler_enabled()
        ):
            return self._observed_step(*args, **kwargs)
        return self._step(*args, **kwargs)

    step.hooked = True  # type: ignore[attr-defined]  # for torch, which would put its own around it

    def _step_all(self) -> None:
        """Steps all parameters that have a gradient."""
        inner = self._ready()
        company = self._company
        if company is not None:
            company.joins(inner, self.param_groups)
        tensors = self._tensors
        grads = [p.grad for p in tensors]
        for i, _, _ in self._special:
            if grads[i] is not None:
                what = f"gradient of parameter {self._by_index[i]!r}"
                shards.check_gradient(grads[i], tensors[i], what)
                grads[i] = views.array(grads[i], what)
        given = self.__dict__
        if given.get("found_inf") is not None and self._skips(inner):
            return
        scale = given.get("grad_scale")
        inner._unscale = 1.0 if scale is None else inverse(scale)
        if not inner.param_groups:
            if company is not None:
                company.rest()
            return
        stepped = tensors
        if any(map(_is_none, grads)):
            stepped = [p for p, g in zip(tensors, grads, strict=True) if g is not None]
        try:
            machine.alone(inner._lock, inner._flat_step, grads, "step() of this optimizer")
        except (TypeError, ValueError):
            if company is not None or [p.dtype for p in tensors] == self._dtypes:
                raise
            self._stale = True  # as by model.double(), after which torch goes on
            self._step_all()
            return
        views.changed(stepped)
        for place in self._sharing:
            place.give_back()
        if inner._plan is not self._plan_seen or (
            self._waiting and any(grads[i] is not None for i in self._waiting)
        ):
            self._expose(inner)

    def _check_mode(self) -> None:
        """Raises RuntimeError where the parameters are not those of training."""

    def _skips(self, inner: Any) -> bool:
        """Whether a ``torch.amp.GradScaler`` has found that the step must not be done."""
        bad = bool(self.found_inf)
        if self._company is not None:
            bad = self._company.any(bad)
        if not bad:
            return False
        inner.skipped += 1
        inner.last_skip = "the GradScaler has found an infinite or NaN gradient"
        return True

    def _forward(self, name: str, tensors: Any) -> None:
        """Calls a method of the optimizer inside that takes arrays as ``step`` takes gradients."""
        inner = self._ready()
        flat = [p.grad for p in self._tensors] if tensors is None else list(tensors)
        if len(flat) != len(self._tensors):
            raise ValueError(f"{len(flat)} tensors for {len(self._tensors)} parameters")
        what = f"{name}() for parameter"
        flat = [
            None if x is None else views.array(x, f"{what} {key!r}")
            for key, x in zip(self._by_index, flat, strict=True)
        ]
        each = iter(flat)
        getattr(inner, name)(
            [{k: next(each) for k in g["param_names"]} for g in inner.param_groups]
        )
        self._expose(inner)

    # What our optimizers have beside

    def averaged(self) -> dict[str, Any]:
        """The averaged parameters by name (their number, if they have none): new tensors.

        They are the rule's own where it keeps an average; else those of ``average=`` or ``ema=``.
        Raises ValueError where a group has neither.
        """
        inner = self._ready()
        if inner._plan is None:
            inner._built()
        over = copy.copy(inner)
        over.param_groups = [
            group | {"params": [arrays.as_array(p, "a parameter") for p in group["params"]]}
            for group in inner.param_groups
        ]
        tensors = dict(zip(self._by_index, self._tensors, strict=True))
        return {name: views.tensor(x, tensors[name]) for name, x in over.averaged().items()}

    @property
    def updates(self) -> int:
        """The number of steps done so far; what schedules are evaluated at."""
        return int(self._inner.updates)

    @property
    def skipped(self) -> int:
        """The number of steps that were skipped for non-finite gradients or spikes."""
        return int(self._inner.skipped)

    @property
    def last_skip(self) -> str:
        """Why the last skipped step was."""
        return str(self._inner.last_skip)

    @property
    def clip_history(self) -> dict[str, list[float]]:
        """The norms that clips remember."""
        return dict(self._inner.clip_history)

    @property
    def last_norm(self) -> float | None:
        """The norm of all gradients at the last step that measured it."""
        norm: float | None = self._inner.last_norm
        return norm

    @property
    def last_norms(self) -> dict[str, float]:
        """The norm of each gradient at that step, by parameter."""
        return dict(self._inner.last_norms)


def _own(group: dict[str, Any], parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups that were made of one; that itself unless it was split."""
    if len(parts) > 1:
        return parts
    group.update(parts[0])
    return [group]


def _judge(inner: Any, strictly: bool) -> None:
    """Makes the optimizer inside check numbers as for a constructor or, as torch does what stands
    in its groups later, take them as they are."""
    for rule in inner._rules.values():
        rule.judge(strictly, strictly or not hasattr(torch.optim, rule.cls.__name__))


@machine.in_default_mode
def inverse(scale: Any) -> float:
    """The inverse of what a ``torch.amp.GradScaler`` has scaled the loss by."""
    number = float(scale)
    if not 0.0 < number < math.inf:
        raise ValueError(f"grad_scale = {number!r}: expected a number above 0")
    return 1.0 / number


def _is_none(x: Any) -> bool:
    return x is None


def _plain(x: Any) -> bool:
    """Whether a hyper-parameter is a number, a word or several, equal to what has its value."""
    return all(map(_plain, x)) if isinstance(x, tuple) else isinstance(x, _PLAIN)


def _changing(x: Any) -> bool:
    """Whether a hyper-parameter may get another value in place."""
    return isinstance(x, (list, torch.Tensor)) or (isinstance(x, tuple) and any(map(_changing, x)))


def _check_face(face: Mapping[str, Any]) -> None:
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
            f"{what} is complex; {rule.__name__} goes by rows and columns, which are those of real "
            "numbers: give it to another rule, such as AdamW"
        )
    return views.array(p, what, writable=True)
