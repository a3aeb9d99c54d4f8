"""What all torch optimizers here share: torch's groups and state outside, our optimizer inside.

torch's ``param_groups`` and ``state`` are the truth, as with torch's own classes: whoever writes to
them is heard. Inside is a ``steepest.Optimizer`` over the memory of the same tensors, whose groups
take over torch's hyper-parameters at every step, and whose state arrays are the memory of torch's
state tensors. When parameters, groups or states are others than before, it is made anew.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from importlib import import_module
from typing import Any, ClassVar

import numpy as np

from steepest.core import internal, trees
from steepest.core.group_keys import check_borrowed
from steepest.extras import require
from steepest.kernels import machine
from steepest.memory import arrays
from steepest.torch import copies, layout, shards, views
from steepest.torch.compilation import uncompiled
from steepest.torch.inner import WithInner, check_face, judge, own_group
from steepest.torch.states import Marks, States

torch: Any = require("torch", extra="torch", purpose="steepest.torch")

__all__ = ["Optimizer"]

_BASE = import_module("torch.optim.optimizer")
_PRE_HOOKS, _POST_HOOKS = _BASE._global_optimizer_pre_hooks, _BASE._global_optimizer_post_hooks
_profiler_enabled = torch.autograd._profiler_enabled

# So that torch.load reads state dicts with them, weights_only as it is by default.
torch.serialization.add_safe_globals(layout.values())


class Optimizer(WithInner):
    """Base of all torch optimizers here; see ``steepest.torch.AdamW`` for one to use."""

    face: ClassVar[Mapping[str, Any]]
    """Arguments of torch's class that choose an implementation, and their defaults."""
    __signature__: ClassVar[Any]
    _step_supports_amp_scaling = True
    """That ``torch.amp.GradScaler`` leaves unscaling and skipping to the step."""
    _in_backward: Any = None
    """What steps the parameters in the backward pass, if something does."""

    def __init__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        given = dict(self.__signature__.bind(params, *args, **kwargs).arguments)
        del given["params"]
        given |= given.pop("options", {})
        outlets = given.pop("copies", None)
        face = {name: given.pop(name, usual) for name, usual in self.face.items()}
        check_face(face)
        self._inner: Any = None
        self._zero = shards.dealer()
        if self._zero is not None:
            shards.check_given(given | {"copies": outlets})
        params = list(params) if hasattr(params, "__next__") else params
        super().__init__(params, {})
        uncompiled(self._step_all.__code__)
        groups, self.param_groups = self.param_groups, []
        grouped = trees.is_groups(params)
        self._copy_of = copies.given_for_all(groups, outlets, grouped, self._copy_of)
        self._marks = Marks()
        self.state = States(self._marks)
        self._watched = self.state
        self._begin(groups, given, face)

    def _begin(
        self, groups: list[dict[str, Any]], given: dict[str, Any], face: dict[str, Any]
    ) -> None:
        names = self._names(groups)
        tensors = dict(zip(names, (p for g in groups for p in g["params"]), strict=True))
        full = [g for g in groups if g["params"]]
        each = iter(names)
        given_groups = [self._given_group(g, [next(each) for _ in g["params"]]) for g in full]
        if not full:
            nothing = np.zeros((1,) * max(1, self.rule.least_axes))
            given_groups = [{"params": {"none": nothing}}]
        options = {key: views.numbers(x) for key, x in given.items()}
        inner, origins = internal.following(self.rule, given_groups, options)
        self._inner = inner
        self.defaults = inner.defaults | face
        if self.rule.rule in layout.DECOUPLED:
            layout.agree(self.defaults)
        self.defaults |= {key: x for key, x in given.items() if isinstance(x, torch.Tensor)}
        parts: list[list[dict[str, Any]]] = [[] for _ in full]
        for filled, number in zip(inner.param_groups, origins, strict=True):
            if full:
                parts[number].append(self._filled(filled, full[number], tensors))
        part = iter(parts)
        parts_of: list[int] = []
        for i, group in enumerate(groups):
            own = own_group(group, next(part)) if group["params"] else [self._empty_group(group)]
            self.param_groups += own
            parts_of += [i] * len(own)
        self._parts_of = parts_of
        self._company = shards.found(self.param_groups, self._zero)
        if self._company is not None:
            self._company.check(inner, self.param_groups)
        self._empty()
        self._expose_early()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters, at any time; what it does not say is as in ``defaults``."""
        # ZeroRedundancyOptimizer puts all arguments into its groups.
        if isinstance(param_group, Mapping) and self._zero is None:
            check_borrowed(self.rule, param_group)
        outlets = None
        if isinstance(param_group, Mapping) and "copies" in param_group:
            param_group = dict(param_group)  # whose keys go into state dicts
            outlets = param_group.pop("copies")
        if self._inner is None:  # torch's constructor, which checks all groups first
            super().add_param_group(param_group)
            own = copies.given(self.param_groups[-1], outlets)
            self._copy_of = {**self._copy_of, **own}
            return
        kept = list(self.param_groups)
        group = self._as_torch_has_it(param_group)
        inner = self._current()
        self._stale = True
        internal.rule_of(inner, group)
        judge(inner, strictly=True)
        if not group["params"]:
            self._parts_of = self._with_parts(len(kept), 1)
            self.param_groups.append(self._empty_group(group))
            return
        if self._in_backward is not None:
            self._in_backward.check_new(group)
        first = len(inner.param_groups)
        names = self._names([*kept, group])[-len(group["params"]) :]
        before = self._copy_of
        try:
            self._copy_of = {**before, **copies.given(group, outlets)}
            inner.add_param_group(self._given_group(group, names))
        except BaseException:
            self._copy_of = before
            raise
        tensors = dict(zip(names, group["params"], strict=True))
        parts = [self._filled(filled, group, tensors) for filled in inner.param_groups[first:]]
        self._parts_of = self._with_parts(len(kept), len(parts))
        self.param_groups += own_group(group, parts)
        self._expose_early()
        if self._in_backward is not None:
            self._in_backward.attach()

    def _as_torch_has_it(self, param_group: dict[str, Any]) -> dict[str, Any]:
        """A new group as torch's ``add_param_group`` makes and checks it beside the others, without
        defaults: in a stand-in, so that nothing here has to be put back."""
        stand_in: Any = object.__new__(type(self))
        stand_in.__dict__.update(self.__dict__, param_groups=list(self.param_groups), defaults={})
        super(Optimizer, stand_in).add_param_group(param_group)
        group: dict[str, Any] = stand_in.param_groups[-1]
        return group

    def _with_parts(self, groups: int, parts: int) -> list[int]:
        """``_parts_of`` with those of another group, behind the groups that there are."""
        known = self._parts_of if len(self._parts_of) == groups else range(groups)
        return [*known, *[groups] * parts]

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

    def _step_all(self, given: Sequence[Any] | None = None) -> None:
        """Steps all parameters that have a gradient: their own, or that in `given`."""
        inner = self._current()
        company = self._company
        if company is not None:
            company.joins(inner, self.param_groups)
        tensors = self._tensors
        grads = [p.grad for p in tensors] if given is None else list(given)
        for i, _, _ in self._special:
            if grads[i] is not None:
                grads[i] = self._special_gradient(i, grads[i])
        told = self.__dict__
        if told.get("found_inf") is not None and self._skips(inner):
            return
        scale = told.get("grad_scale")
        factor = 1.0 if scale is None else inverse(scale)
        if not inner.param_groups:
            if company is not None:
                company.rest()
            return
        stepped = tensors
        if any(map(_is_none, grads)):
            stepped = [p for p, g in zip(tensors, grads, strict=True) if g is not None]
        if self._sharing:
            self._began = inner.updates
        self._behind = True
        try:
            plan = internal.flat_step(inner, grads, factor)
        except (TypeError, ValueError):
            if company is not None or [p.dtype for p in tensors] == self._dtypes:
                raise
            self._stale = True  # as by model.double(), after which torch goes on
            self._step_all(given)
            return
        views.changed(stepped)
        if self._copy_of:
            views.changed([self._copy_of[p] for p in stepped if p in self._copy_of])
        for follower in self._sharing:
            follower.give_back()
        if plan is not self._plan_seen or (
            self._waiting and any(grads[i] is not None for i in self._waiting)
        ):
            self._catch_up()
        self._behind = False

    def _special_gradient(self, i: int, grad: Any) -> Any:
        """A gradient as the optimizer inside takes it, of a parameter that is not as inside."""
        what = f"gradient of parameter {self._by_index[i]!r}"
        shards.check_gradient(grad, self._tensors[i], what)
        return views.array(grad, what)

    def _gradient(self, i: int, grad: Any) -> Any:
        """A gradient as the optimizer inside takes it."""
        return self._special_gradient(i, grad) if any(i == k for k, _, _ in self._special) else grad

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
        inner = self._current()
        flat = [p.grad for p in self._tensors] if tensors is None else list(tensors)
        if len(flat) != len(self._tensors):
            raise ValueError(f"{len(flat)} tensors for {len(self._tensors)} parameters")
        what = f"{name}() for parameter"
        flat = [
            None if x is None else views.array(x, f"{what} {key!r}")
            for key, x in zip(self._by_index, flat, strict=True)
        ]
        each = iter(flat)
        self._behind = True
        getattr(inner, name)(
            [{k: next(each) for k in g["param_names"]} for g in inner.param_groups]
        )
        self._catch_up()
        states = internal.unmarked_state(inner)
        for i in [i for i in self._waiting if flat[i] is not None]:  # before its first step
            self._expose_one(i, self._tensors[i], states[self._by_index[i]])
            self._waiting.remove(i)

    # What our optimizers have beside

    def averaged(self) -> dict[str, Any]:
        """The averaged parameters by name (their number, if they have none): new tensors.

        They are the rule's own where it keeps an average; else those of ``average=`` or ``ema=``.
        Raises ValueError where a group has neither.
        """
        inner = self._current()
        if internal.current_plan(inner) is None:
            internal.build_plan(inner)
        averages = _over_arrays(inner).averaged()
        tensors = dict(zip(self._by_index, self._tensors, strict=True))
        return {name: views.tensor(x, tensors[name]) for name, x in averages.items()}

    def digest(self) -> str:
        """SHA-256 of parameters, states and counts; that of the class of ``steepest`` over equal
        arrays of equal names, which are the numbers of the parameters where none are given. See
        ``steepest.AdamW.digest``. States that there are not yet count as they begin.
        """
        inner = self._current()
        if internal.current_plan(inner) is None:
            internal.build_plan(inner)
        return str(_over_arrays(inner).digest())

    def verify(self, share: float = 0.001, *, seed: int = 0) -> Any:
        """From now on, a part of each step is computed again by the reference, and compared; see
        ``steepest.AdamW.verify``."""
        return self._current().verify(share, seed=seed)

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


def _over_arrays(inner: Any) -> Any:
    """The optimizer inside, to be looked at, with arrays in place of tensors in its groups."""
    over = copy.copy(inner)
    over.param_groups = [
        group | {"params": [arrays.as_array(p, "a parameter") for p in group["params"]]}
        for group in inner.param_groups
    ]
    return over


@machine.in_default_mode
def inverse(scale: Any) -> float:
    """The inverse of what a ``torch.amp.GradScaler`` has scaled the loss by."""
    number = float(scale)
    if not 0.0 < number < math.inf:
        raise ValueError(f"grad_scale = {number!r}: expected a number above 0")
    return 1.0 / number


def _is_none(x: Any) -> bool:
    return x is None


@internal.inside.register
def _inside(optimizer: Optimizer) -> Any:
    return optimizer._inner
