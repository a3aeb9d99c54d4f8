"""Each parameter stepped in the backward pass, as soon as its gradient is there.

A hook on each parameter runs the optimizer's own plan with the gradients of all others None. All
hooks of one backward pass use the hyper-parameters, the count of updates and the remembered norms
that its first one has found, and count one update together.
"""

import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from steepest.core import internal
from steepest.core.norms import clips as clips_of
from steepest.core.split_update import SplitUpdate
from steepest.extras import require
from steepest.kernels import machine
from steepest.options import clip as clips
from steepest.torch import views
from steepest.torch.optimizer import Optimizer, inverse

torch: Any = require("torch", extra="torch", purpose="steepest.torch")

__all__ = ["Each", "Hooks", "InBackward", "check", "check_group", "check_pass", "step_in_backward"]


def step_in_backward(optimizer: Optimizer) -> "InBackward":
    """Steps each parameter in ``backward()``, as soon as its gradient is there, and frees it.

    What comes out are the bits of ``backward()`` and ``step()``, but the gradients of a model are
    never in memory together. ``remove()`` of what is returned, or the end of its ``with``, ends it.
    That, or the optimizer, has to be kept.

    Every backward pass is an update. ``step()`` only calls its closure. Gradients are clipped by
    ``value``, ``norm``, ``adaptive`` or ``previous_norm``; the first pass with the latter keeps all
    gradients and steps at its end, for there is no norm yet. If a backward pass fails, those
    parameters that had their gradient are stepped, each as a whole, and the exception names the
    parameter whose step has failed.

    Raises ValueError for what cannot be known before all gradients are there: clips by the norm of
    several, rules of global sums such as Prodigy, ``nonfinite="skip"``; and if a parameter has a
    gradient already. Raises RuntimeError if the optimizer does so already; in ``backward()``, with
    ``create_graph`` or inside another backward pass, as of ``checkpoint(use_reentrant=True)``.

    >>> import torch, steepest as st
    >>> from steepest.torch import AdamW, step_in_backward
    >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    >>> with step_in_backward(AdamW([w], lr=0.1, clip=st.clip.norm(1.0))):
    ...     (w * w).sum().backward()
    >>> w.detach(), w.grad
    (tensor([ 0.8990, -1.8980]), None)
    """
    return InBackward(optimizer)


class InBackward:
    """What ``step_in_backward`` has set up."""

    def __init__(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"step_in_backward({type(optimizer).__name__}): expected an optimizer of "
                "steepest.torch"
            )
        if optimizer._in_backward is not None:
            raise RuntimeError("this optimizer steps in the backward pass already")
        self.optimizer = optimizer
        self._hooks = Hooks(self, GONE)
        self._task: int | None = None
        self._each = Each(optimizer)
        check(optimizer._current(), optimizer._company)
        self.check_done("step_in_backward()")
        self.attach()
        optimizer._in_backward = self

    def remove(self) -> None:
        """Takes all hooks away; the optimizer steps in ``step()`` again."""
        self._hooks.remove()
        if self.optimizer._in_backward is self:
            self.optimizer._in_backward = None

    def __enter__(self) -> "InBackward":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.remove()

    def attach(self) -> None:
        """Puts hooks on the optimizer's parameters that have none."""
        for group in self.optimizer.param_groups:
            self._hooks.attach(group["params"])

    def check_step(self) -> None:
        """Raises where ``step()`` would have something left to do."""
        if getattr(self.optimizer, "found_inf", None) is not None:
            raise RuntimeError(
                "a GradScaler with step_in_backward: the backward pass has stepped with gradients "
                "that the scaler comes too late to unscale; for a constant scale, set "
                "optimizer.grad_scale instead"
            )
        self.check_done("step()")

    def check_done(self, what: str) -> None:
        """Raises ValueError if a parameter has a gradient that no backward pass will step."""
        for name, p in self.optimizer._named():
            if p.grad is not None:
                raise ValueError(
                    f"{what}: parameter {name!r} has a gradient that came before or beside the "
                    "backward passes that step; set it to None, as zero_grad() does"
                )

    def check_new(self, group: Mapping[str, Any]) -> None:
        """Raises ValueError for a new group that cannot be stepped in the backward pass."""
        inner = self.optimizer._inner
        check_group(internal.rule_of(inner, group), group.get("clip", inner.defaults["clip"]))

    # In a backward pass

    def hook(self, p: Any) -> None:
        """Steps a parameter that has got its gradient."""
        if p.grad is None:
            return
        task = torch._C._current_graph_task_id()
        if task != self._task:
            self._begin(task)
        each = self._each
        if each.update.waits:
            return
        i = each.index.get(p)
        if i is None:  # no longer in a group
            return
        each.step(i, p.grad)
        p.grad = None

    @machine.in_default_mode
    def _begin(self, task: int) -> None:
        """What is the same for all parameters of a backward pass."""
        check_pass("step_in_backward")
        each = self._each
        if each.begin():
            self.attach()
        if each.update.waits or each.update.measures:
            torch.autograd.Variable._execution_engine.queue_callback(self._end)
        self._task = task

    @machine.in_default_mode
    def _end(self) -> None:
        """After a backward pass that has not failed: the norms of all gradients together."""
        if self._each.update.waits:
            self._task = None
            self.optimizer._step_all()
            for p in self._each.index:
                p.grad = None
            return
        self._each.update.end()


GONE = (
    "the optimizer that step_in_backward was given is gone, and with it the steps in the backward "
    "pass; keep it, or what step_in_backward returned, or call remove()"
)


class Each:
    """The steps of an optimizer's parameters, each for itself, that are one update together."""

    update: SplitUpdate

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.index: dict[Any, int] = {}
        """The parameters' places in the order of the groups."""
        self._tensors: list[Any] = []

    def begin(self) -> bool:
        """A new update, with the numbers as they are now; whether there are other parameters than
        before. Raises what a step raises for them, and ValueError as ``check`` does."""
        optimizer = self.optimizer
        optimizer._check_mode()
        if [p.dtype for p in optimizer._tensors] != optimizer._dtypes:  # as by model.double()
            optimizer._stale = True
        self._inner = inner = optimizer._current()
        check(inner, optimizer._company)
        others = self._tensors is not optimizer._tensors
        if others:
            self._tensors = optimizer._tensors
            self.index = {p: i for i, p in enumerate(self._tensors)}
            self._special = {i for i, _, _ in optimizer._special}
            self._flat: list[Any] = [None] * len(self._tensors)
        self._sharing = [x for x in optimizer._followers if x.program.shared]
        scale = getattr(optimizer, "grad_scale", None)
        self.update = SplitUpdate(inner, 1.0 if scale is None else inverse(scale))
        optimizer._opt_called = True  # for torch's schedulers, which look for a step
        return others

    def step(self, i: int, grad: Any) -> None:
        """Steps one parameter, at the count at which the update began. Raises what a step raises;
        a note names the parameter, which is as before then."""
        try:
            self._step(i, self._tensors[i], grad)
        except Exception as error:
            name = self.optimizer._by_index[i]
            error.add_note(
                f"in the step of parameter {name!r} in the backward pass; it was not changed, "
                "those whose gradients came before have been stepped"
            )
            raise

    def _step(self, i: int, p: Any, grad: Any) -> None:
        optimizer, inner, flat = self.optimizer, self._inner, self._flat
        flat[i] = (
            views.array(grad, f"gradient of parameter {optimizer._by_index[i]!r}")
            if i in self._special
            else grad
        )
        optimizer._began = -1
        optimizer._behind = True
        try:
            plan = self.update.step(i, flat)
        finally:
            flat[i] = None
        views.changed([p, optimizer._copy_of[p]] if p in optimizer._copy_of else [p])
        for follower in self._sharing:
            follower.give_back()
        if plan is not optimizer._plan_seen:
            optimizer._catch_up()
        elif i in optimizer._waiting:
            optimizer._waiting.remove(i)
            state = internal.unmarked_state(inner)[optimizer._by_index[i]]
            optimizer._expose_one(i, p, state)
        optimizer._behind = False


class Hooks:
    """Hooks on parameters that call ``owner.hook`` with one whose gradient has been accumulated.

    They do not keep the owner, and so the parameters, alive for ever; where it is gone, they take
    themselves away, with a RuntimeError if there is a text for one.
    """

    def __init__(self, owner: Any, gone: str = "") -> None:
        self._owner, self._gone = weakref.ref(owner), gone
        self._handles: list[Any] = []
        self._hooked: set[Any] = set()

    def attach(self, params: Iterable[Any]) -> None:
        """Puts hooks on those that have none."""
        call = _calls(self._owner, self._handles, self._gone)
        for p in params:
            if p not in self._hooked:
                frozen = not p.requires_grad
                if frozen:  # torch takes hooks of others only, and keeps them
                    p.requires_grad_(True)
                self._handles.append(p.register_post_accumulate_grad_hook(call))
                self._hooked.add(p)
                if frozen:
                    p.requires_grad_(False)

    def remove(self) -> None:
        """Takes all away."""
        _remove(self._handles)
        self._hooked = set()


def _calls(known: Any, hooks: list[Any], gone: str) -> Callable[[Any], None]:
    """A hook for the owner to whom a weak reference is `known`."""

    def hook(p: Any) -> None:
        found = known()
        if found is not None:
            found.hook(p)
            return
        _remove(hooks)
        if gone:
            raise RuntimeError(gone)

    return hook


def _remove(hooks: list[Any]) -> None:
    while hooks:
        hooks.pop().remove()


def check_pass(what: str) -> None:
    """Raises RuntimeError in a backward pass whose graph or gradients are needed after a step."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"backward(create_graph=True) with {what}: the parameters that the graph needs would "
            "change; use torch.autograd.grad for the inner derivatives"
        )
    if _nested():
        raise RuntimeError(
            f"a backward pass inside another one with {what}: it cannot be told how many there "
            "will be; use checkpoint(..., use_reentrant=False)"
        )


def _nested() -> bool:
    """Whether this is in a backward pass that another one has begun."""
    frame: Any = sys._getframe()
    found = 0
    while frame is not None:
        found += frame.f_code is torch.autograd.backward.__code__
        frame = frame.f_back
    return found > 1


def check(inner: Any, company: Any) -> None:
    """Raises ValueError for what needs all gradients before the first parameter is stepped."""
    if inner.nonfinite == "skip":
        raise ValueError(
            "nonfinite='skip' with step_in_backward: the first parameters are stepped before the "
            "gradients of the last are known; expected 'propagate' or 'raise'"
        )
    if company is not None or internal.steps_with_peers(inner):
        raise ValueError(
            "step_in_backward of an optimizer that steps parts of parameters: the others' parts "
            "are needed at the same time"
        )
    programs = internal.group_programs(inner)
    for group, program in zip(inner.param_groups, programs, strict=True):
        check_group(program.rule, group["clip"])


def check_group(rule: Any, clip: Any) -> None:
    if rule.needs == "global":
        raise ValueError(
            f"{rule.cls.__name__} with step_in_backward: its step needs sums over all "
            "gradients, which are not known before the last one is there"
        )
    for one in clips_of(clips.checked(clip)):
        if one.sweeps and one.parts != "each":
            raise ValueError(
                f"clip = {one!r} with step_in_backward: the norm of several gradients is not known "
                "before the last one is there; expected st.clip.value, norm, adaptive, or "
                "previous_norm, which uses the norm of the step before"
            )
