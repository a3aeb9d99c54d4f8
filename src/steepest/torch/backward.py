"""Each parameter stepped in the backward pass, as soon as its gradient is there.

A hook on each parameter runs the optimizer's own plan with the gradients of all others None. All
hooks of one backward pass use the hyper-parameters, the count of updates and the remembered norms
that its first one has found, and count one update together.
"""

import sys
import weakref
from collections.abc import Callable, Mapping
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

__all__ = ["InBackward", "step_in_backward"]


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
        self._hooked: set[Any] = set()
        self._hooks: list[Any] = []
        self._task: int | None = None
        self._tensors: list[Any] = []
        _check(optimizer._current(), optimizer._company)
        self.check_done("step_in_backward()")
        self.attach()
        optimizer._in_backward = self

    def remove(self) -> None:
        """Takes all hooks away; the optimizer steps in ``step()`` again."""
        _remove(self._hooks)
        self._hooked = set()
        if self.optimizer._in_backward is self:
            self.optimizer._in_backward = None

    def __enter__(self) -> "InBackward":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.remove()

    def attach(self) -> None:
        """Puts hooks on the optimizer's parameters that have none."""
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                if p not in self._hooked:
                    frozen = not p.requires_grad
                    if frozen:  # torch takes hooks of others only, and keeps them
                        p.requires_grad_(True)
                    self._hooks.append(p.register_post_accumulate_grad_hook(_calls(self)))
                    self._hooked.add(p)
                    if frozen:
                        p.requires_grad_(False)

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
        _check_group(internal.rule_of(inner, group), group.get("clip", inner.defaults["clip"]))

    # In a backward pass

    def hook(self, p: Any) -> None:
        """Steps a parameter that has got its gradient."""
        if p.grad is None:
            return
        task = torch._C._current_graph_task_id()
        if task != self._task:
            self._begin(task)
        if self._update.waits:
            return
        i = self._index.get(p)
        if i is None:  # no longer in a group
            return
        try:
            self._step(i, p)
        except Exception as error:
            name = self.optimizer._by_index[i]
            error.add_note(
                f"in the step of parameter {name!r} in the backward pass; it was not changed, "
                "those whose gradients came before have been stepped"
            )
            raise
        p.grad = None

    @machine.in_default_mode
    def _begin(self, task: int) -> None:
        """What is the same for all parameters of a backward pass."""
        if torch.is_grad_enabled():
            raise RuntimeError(
                "backward(create_graph=True) with step_in_backward: the parameters that the graph "
                "needs would change; use torch.autograd.grad for the inner derivatives"
            )
        if _nested():
            raise RuntimeError(
                "a backward pass inside another one with step_in_backward: it cannot be told how "
                "many there will be; use checkpoint(..., use_reentrant=False)"
            )
        optimizer = self.optimizer
        optimizer._check_mode()
        self._inner = inner = optimizer._current()
        _check(inner, optimizer._company)
        if self._tensors is not optimizer._tensors:
            self._tensors = optimizer._tensors
            self._index = {p: i for i, p in enumerate(self._tensors)}
            self._special = {i for i, _, _ in optimizer._special}
            self._flat: list[Any] = [None] * len(self._tensors)
            self.attach()
        self._sharing = [x for x in optimizer._followers if x.program.shared]
        scale = getattr(optimizer, "grad_scale", None)
        self._update = SplitUpdate(inner, 1.0 if scale is None else inverse(scale))
        if self._update.waits or self._update.measures:
            torch.autograd.Variable._execution_engine.queue_callback(self._end)
        optimizer._opt_called = True  # for torch's schedulers, which look for a step
        self._task = task

    def _step(self, i: int, p: Any) -> None:
        """The step of one parameter, at the count at which the pass began."""
        optimizer, inner, flat = self.optimizer, self._inner, self._flat
        flat[i] = (
            views.array(p.grad, f"gradient of parameter {optimizer._by_index[i]!r}")
            if i in self._special
            else p.grad
        )
        try:
            plan = self._update.step(i, flat)
        finally:
            flat[i] = None
        views.changed([p, optimizer._copy_of[p]] if p in optimizer._copy_of else [p])
        for follower in self._sharing:
            follower.give_back()
        if plan is not optimizer._plan_seen:
            optimizer._expose(inner)
        elif i in optimizer._waiting:
            optimizer._waiting.remove(i)
            state = internal.unmarked_state(inner)[optimizer._by_index[i]]
            optimizer._expose_one(i, p, state)

    @machine.in_default_mode
    def _end(self) -> None:
        """After a backward pass that has not failed: the norms of all gradients together."""
        if self._update.waits:
            self._task = None
            self.optimizer._step_all()
            for p in self._tensors:
                p.grad = None
            return
        self._update.end()


def _calls(handle: InBackward) -> Callable[[Any], None]:
    """A hook that does not keep the optimizer, and so the parameters, alive for ever."""
    known, hooks = weakref.ref(handle), handle._hooks

    def hook(p: Any) -> None:
        found = known()
        if found is None:
            _remove(hooks)
            raise RuntimeError(
                "the optimizer that step_in_backward was given is gone, and with it the steps in "
                "the backward pass; keep it, or what step_in_backward returned, or call remove()"
            )
        found.hook(p)

    return hook


def _remove(hooks: list[Any]) -> None:
    while hooks:
        hooks.pop().remove()


def _nested() -> bool:
    """Whether this is in a backward pass that another one has begun."""
    frame: Any = sys._getframe()
    found = 0
    while frame is not None:
        found += frame.f_code is torch.autograd.backward.__code__
        frame = frame.f_back
    return found > 1


def _check(inner: Any, company: Any) -> None:
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
        _check_group(program.rule, group["clip"])


def _check_group(rule: Any, clip: Any) -> None:
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
