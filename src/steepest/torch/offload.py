"""Models on any device whose optimizer, with its states and masters, lies in main memory.

A hook on each parameter begins to copy its gradient as soon as the backward pass has it. A thread
waits for the copy, steps the parameter's twin in main memory, and sends it back, while the backward
pass goes on. Where a parameter lies in main memory itself, it is its own twin.
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from steepest.core import internal
from steepest.extras import require
from steepest.kernels import machine
from steepest.torch import views
from steepest.torch.backward import Each, Hooks, check, check_group, check_pass
from steepest.torch.links import Link, link_to
from steepest.torch.optimizer import Optimizer

torch: Any = require("torch", extra="torch", purpose="steepest.torch")

__all__ = ["Offload"]

_SCALER = ("grad_scale", "found_inf")
"""What a ``torch.amp.GradScaler`` sets before a step."""
_FORWARDED = (
    "averaged", "clip_history", "digest", "last_norm", "last_norms", "last_skip", "skipped",
    "updates", "verify",
)  # fmt: skip
_MOVING = ("eval", "train")
"""Methods of schedule-free classes, which write into the parameters."""


class Offload(torch.optim.Optimizer):  # type: ignore[misc]
    """An optimizer in main memory, for a model on any device, that steps while gradients arrive.

    params: a ``torch.nn.Module``, of which the parameters that require gradients are taken, or what
    an optimizer takes. cls: a class of ``steepest.torch``; `hyper` are its arguments. Twins of the
    parameters, in the model's dtype, lie in main memory with their states; ``optimizer`` is the
    object over them. Parameters of 16 bits have ``master="float32"``, unless `hyper` has another
    master, None for none, or ``rounding``.

    Each parameter is stepped as soon as its gradient has arrived, and written back. ``step()``
    waits for the last; then all have the bits of `cls` over the same model. in_backward: None does
    so where the rule and the clips look at each parameter for itself; else, as for
    ``clip.global_norm``, gradients are copied and measured as they arrive, and ``step()`` steps.
    True raises ValueError in place of that; False always steps in ``step()``, as a GradScaler needs
    it.

    Stepped in backward, each backward pass is one update, and its gradients are freed; gradients of
    several passes are accumulated in ``with offload.no_sync():``, which is around all but the last.
    Until ``step()`` the model must not be used. If a step fails, ``step()`` raises what it raised:
    parameters whose gradients came before have been stepped, later ones not, and their gradients
    are gone. ``averaged``, ``digest``, ``updates``, ``skipped``, ``last_norm`` and what else the
    classes have beside are there, too. A copy of an Offload, or a pickle, is refused: take
    ``state_dict``, which is that of `cls`.

    Raises TypeError for a `cls` of others and for shards, and what `cls` raises.

    >>> import torch
    >>> from steepest.torch import AdamW, Offload
    >>> model = torch.nn.Linear(2, 1, bias=False).to(torch.bfloat16)
    >>> offload = Offload(model, AdamW, lr=0.001, state_dtype={"exp_avg": torch.bfloat16})
    >>> model(torch.ones(2, dtype=torch.bfloat16)).sum().backward()
    >>> offload.step()
    >>> {key: x.dtype for key, x in offload.state[model.weight].items() if x.dim()}
    {'exp_avg': torch.bfloat16, 'exp_avg_sq': torch.float32, 'master': torch.float32}

    Ren et al., ZeRO-Offload, arXiv:2101.06840.
    """

    optimizer: Optimizer
    _step_supports_amp_scaling = True
    _made = False
    _whole = False
    """Whether the present update is stepped in ``step()``."""
    _freeing = False
    """Whether gradients are freed in each update, those of the present one in ``step()``."""
    _stepping = False
    """Whether numbers that the rule keeps of groups may be in those inside alone."""

    def __init__(
        self,
        params: Any,
        cls: Any,
        *,
        in_backward: bool | None = None,
        **hyper: Any,
    ) -> None:
        if not (isinstance(cls, type) and issubclass(cls, Optimizer)):
            raise TypeError(f"cls = {cls!r}: expected a class of steepest.torch, such as AdamW")
        if isinstance(params, torch.nn.Module):
            params = [(name, p) for name, p in params.named_parameters() if p.requires_grad]
        self._asked = in_backward
        self._links: dict[Any, Link] = {}
        self._twins: dict[Any, Any] = {}
        self._written: dict[Any, Any] = {}
        """The version and the place of a parameter that has a twin, when they were last equal."""
        given = self._twins_of(params)
        if not hyper.keys() & {"master", "rounding"} and any(map(_short, self._twins)):
            hyper["master"] = "float32"
        self.optimizer = inner = cls(given, **hyper)
        if in_backward:
            check(inner._current(), inner._company)
        super().__init__(self._shown(inner.param_groups), {})
        self.defaults = inner.defaults
        self._made = True
        self._worker: tuple[int, ThreadPoolExecutor] | None = None
        self._last: Future[None] | None = None
        self._failed: BaseException | None = None
        self._collecting = self._begun = False
        self._lock = threading.Lock()
        self._taken: set[Any] = set()
        self._sent: list[Any] = []
        self._task: int | None = None
        self._each = Each(inner)
        self._fetched: dict[Any, tuple[Any, int, Callable[[], Any]]] = {}
        self._measuring: dict[Any, int] | None = None
        """The parameters' places, where gradients that are copied are measured as they arrive."""
        self._measured: dict[Any, Any] = {}
        """By what plan each was."""
        self._hooks = Hooks(self)
        self._attach()

    # Twins

    def _twins_of(self, params: Any) -> Any:
        """What an optimizer is given, with twins in place of tensors."""
        if isinstance(params, torch.Tensor):
            return self._twin(params)
        if isinstance(params, tuple):  # a name and a tensor
            return tuple(self._twins_of(x) if isinstance(x, torch.Tensor) else x for x in params)
        if isinstance(params, Mapping):
            own = params.get("params", [])
            return {**params, "params": self._twins_of(own)}
        return [self._twins_of(x) for x in params]

    def _twin(self, p: Any) -> Any:
        """The parameter's twin in main memory."""
        known = self._twins.get(p)
        if known is None:
            if hasattr(p, "to_local"):
                raise TypeError(
                    f"a parameter is a {type(p).__name__}; expected whole tensors: fully_shard has "
                    "its CPUOffloadPolicy, with a class of steepest.torch"
                )
            known = self._twins[p] = self._link(p).twin(p) if p.is_leaf else p
            self._written[p] = _version(p)
        return known

    def _link(self, p: Any) -> Link:
        found = self._links.get(p.device)
        if found is None:
            found = self._links[p.device] = self._link_to(p.device)
        return found

    def _link_to(self, device: Any) -> Link:
        """How tensors come from a device and back to it."""
        return link_to(device)

    def _pull(self) -> None:
        """Makes the twins equal to the parameters that others have written since the last step."""
        for p, twin in self._twins.items():
            if twin is not p and self._written[p] != _version(p):
                self._link(p).pull(p, twin)
                self._written[p] = _version(p)

    # Groups

    def _shown(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Groups of twins with the model's parameters in their place."""
        models = {twin: p for p, twin in self._twins.items()}
        return [{**group, "params": [models[x] for x in group["params"]]} for group in groups]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters; what it does not say is as in ``defaults``."""
        if not self._made:
            super().add_param_group(param_group)
            return
        self._wait()
        self._follow()
        inner = self.optimizer
        count = len(inner.param_groups)
        if self._asked and isinstance(param_group, Mapping):
            rule = internal.rule_of(inner._inner, param_group)
            check_group(rule, param_group.get("clip", inner.defaults["clip"]))
        inner.add_param_group(self._twins_of(param_group))
        self.param_groups += self._shown(inner.param_groups[count:])
        self._attach()

    def _follow(self) -> None:
        """Gives the optimizer inside the groups as they are now."""
        if self._stepping:
            self._show_kept()
        inner = self.optimizer
        if len(inner.param_groups) != len(self.param_groups):
            inner.param_groups[:] = [{} for _ in self.param_groups]
        for group, own in zip(self.param_groups, inner.param_groups, strict=True):
            for key in own.keys() - group.keys():
                del own[key]
            twins = [self._twin(p) for p in group["params"]]
            own.update(group, params=twins)
        inside = inner.__dict__
        inside.pop("grad_scale", None)
        if "grad_scale" in vars(self):
            inside["grad_scale"] = self.grad_scale

    def _give_back(self) -> None:
        """Shows in the groups all that those inside have."""
        for group, own in zip(self.param_groups, self.optimizer.param_groups, strict=True):
            group.update({key: x for key, x in own.items() if key != "params"})

    def _show_kept(self) -> None:
        """Shows in the groups the numbers that the rule keeps of them; what else a group has may
        have been set since the step began."""
        shared = self.optimizer._kept_keys()
        for group, own in zip(self.param_groups, self.optimizer.param_groups, strict=False):
            keys = [key for key in own if key in shared or key not in group]
            group.update({key: own[key] for key in keys})
        self._stepping = False

    def _attach(self) -> None:
        for group in self.param_groups:
            self._hooks.attach(group["params"])

    @property
    def state(self) -> Mapping[Any, Any]:
        """The states by the model's parameters; they lie in main memory."""
        self._wait()
        own = self.optimizer.state
        models = {twin: p for p, twin in self._twins.items()}
        return _States({models.get(x, x): state for x, state in own.items()})

    @state.setter
    def state(self, value: Any) -> None:  # by torch's constructor, and its __setstate__
        if self._made:
            raise AttributeError("the states are those of .optimizer; see load_state_dict")

    # In a backward pass

    def hook(self, p: Any) -> None:
        """Begins the step of a parameter that has got its gradient."""
        if p.grad is None or self._collecting or self._failed is not None:
            return
        with self._lock:  # a pass has a thread for each device
            self._enter(torch._C._current_graph_task_id())
        if self._whole:
            ready = self._link(p).fetch(p.grad, p)
            self._fetched[p] = p.grad, p.grad._version, ready
            if self._measuring is not None and self._twins[p] is not p:
                self._last = self._thread().submit(self._measure, p, ready)
        else:
            self._take(p)

    def _enter(self, task: int) -> None:
        """At a gradient of a backward pass: begins an update if this is its first."""
        if task == self._task:
            return
        if self._begun and not self._whole:
            raise RuntimeError(
                "a second backward pass before step(): the first has been an update already; to "
                "accumulate gradients of several passes, put all but the last into `with "
                "offload.no_sync():`, or give in_backward=False"
            )
        self._begin()
        if not self._whole:
            self._begun = False
            check_pass("Offload")
        self._begun, self._task = True, task

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Around a backward pass whose gradients are only added up, where the parameters lie.

        As with ``torch.nn.parallel.DistributedDataParallel.no_sync``, the next pass outside, or
        ``step()``, steps with the sums.
        """
        before, self._collecting = self._collecting, True
        try:
            yield
        finally:
            self._collecting = before

    @machine.in_default_mode
    def _begin(self) -> None:
        """A new update, with groups, parameters and numbers as they are now."""
        self._wait()  # an update before may have been left by an exception
        self._join()
        self._follow()
        self._pull()
        inner = self.optimizer
        self._whole = self._asked is False
        if not self._whole:
            try:
                check(inner._current(), inner._company)
            except ValueError:
                if self._asked:
                    raise
                self._whole = True
        self._freeing = not self._whole
        if not self._whole:
            self._each.begin()
            self._whole = self._each.update.waits
        self._measuring = self._to_measure() if self._whole else None
        self._measured = {}
        self._begun, self._taken = True, set()
        self._stepping = not self._whole
        self._attach()

    def _to_measure(self) -> dict[Any, int] | None:
        """The parameters' places, if a step begins with measuring all gradients."""
        inner = self.optimizer
        own = inner._current()
        if inner._company is not None or not own.param_groups:
            return None
        try:
            if not internal.measures_all(own):
                return None
        except (TypeError, ValueError):  # which step() raises
            return None
        models = {twin: p for p, twin in self._twins.items()}
        return {models[x]: i for i, x in enumerate(inner._tensors)}

    def _take(self, p: Any) -> None:
        """Has a parameter stepped by the thread."""
        i = self._each.index.get(self._twins[p])
        if i is None:  # no longer in a group
            return
        ready = self._link(p).fetch(p.grad, p)
        views.changed([p])  # now: a pass that still needs it as it was has to raise
        self._taken.add(p)
        self._last = self._thread().submit(self._one, i, p, ready)
        p.grad = None

    def _one(self, i: int, p: Any, ready: Callable[[], Any]) -> None:
        """In the thread: waits for a gradient, steps, and sends the parameter back."""
        if self._failed is not None:
            return
        try:
            self._each.step(i, ready())
            self._send(p)
        except BaseException as error:  # which step() raises, in the thread that calls it
            self._failed = error

    def _measure(self, p: Any, ready: Callable[[], Any]) -> None:
        """In the thread: waits for a gradient, and measures it for the clips of the step."""
        self._measured.pop(p, None)
        places = self._measuring
        if places is None or p not in places:
            return
        inner = self.optimizer
        grads: list[Any] = [None] * len(places)
        try:
            grads[places[p]] = inner._gradient(places[p], ready())
            self._measured[p] = internal.measure_ahead(inner._inner, grads)
        except Exception:  # step(), which measures it then, raises what there is to be raised
            self._measured.pop(p, None)

    def _send(self, p: Any) -> None:
        twin = self._twins[p]
        if twin is not p:
            self._link(p).send(twin, p)
            self._sent.append(p)

    def _join(self) -> None:
        """Has what comes see the parameters that were sent."""
        for link in self._links.values():
            link.join()
        for p in self._sent:
            self._written[p] = _version(p)
        self._sent.clear()

    def _thread(self) -> ThreadPoolExecutor:
        """One thread, in the process that this is."""
        if self._worker is None or self._worker[0] != os.getpid():
            self._worker = os.getpid(), ThreadPoolExecutor(1, "steepest-offload")
        return self._worker[1]

    def _wait(self) -> None:
        """Until the thread has nothing to do."""
        last = self._last
        if last is not None and self._worker is not None and self._worker[0] == os.getpid():
            last.result()
        self._last = None  # not before: Ctrl-C may end the wait, and another one has to follow

    # The step

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Ends the update: all parameters that had a gradient are stepped; the closure's loss.

        Raises what a step of the class raises; RuntimeError for a GradScaler where the backward
        pass has stepped already.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        try:
            self._finish()
        finally:
            self._begun, self._task, self._failed = False, None, None
            self._fetched.clear()
        return loss

    @machine.in_default_mode
    def _finish(self) -> None:
        self._wait()
        if not self._begun:
            self._begin()
        try:
            if not self._whole:
                self._end_pass()
            if self._whole or not self._taken:
                self._step_whole()
        finally:
            try:
                self._join()
            finally:
                self._show_kept()

    def _end_pass(self) -> None:
        """Steps what the backward pass has left, and waits for what it has begun."""
        if vars(self).get("found_inf") is not None:
            raise RuntimeError(
                "a GradScaler with an Offload that steps in the backward pass: the scaler comes "
                "too late to unscale its gradients; give in_backward=False"
            )
        left = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if self._failed is None:
            for p in left:
                if p not in self._taken:
                    self._take(p)
        self._wait()
        if self._failed is not None:
            raise self._failed
        if self._each.update.measures:
            self._each.update.end()
        if any(p.grad is not None for p in left):
            raise RuntimeError(
                "a parameter has got another gradient after its step, as of a pass that was "
                "refused; all were stepped once: call zero_grad()"
            )

    def _step_whole(self) -> None:
        """Steps all parameters together, with all as it is now and not in the backward pass."""
        self._follow()
        self._pull()
        inner = self.optimizer
        inner._current()
        models = {twin: p for p, twin in self._twins.items()}
        params = [models[x] for x in inner._tensors]
        arriving = [None if p.grad is None else self._arriving(p) for p in params]
        grads = [None if ready is None else ready() for ready in arriving]
        own = inner.__dict__
        own.update({key: vars(self)[key] for key in _SCALER if key in vars(self)})
        stepped = [p for p in params if p.grad is not None]
        plans = {self._measured.get(p) for p in stepped} if self._as_fetched(stepped) else {None}
        plan = plans.pop() if len(plans) == 1 else None
        left = dict.fromkeys(stepped)

        def told(numbers: list[int]) -> None:
            for i in numbers:
                left.pop(params[i], None)
                self._send(params[i])

        self._stepping = True
        try:
            with (
                internal.measured_by(inner._inner, plan),
                internal.telling(inner._inner, told),
            ):
                inner._step_all(grads)
        finally:
            for key in _SCALER:
                own.pop(key, None)
        for p in left:  # by an optimizer inside that was made anew
            self._send(p)
        if self._freeing:
            for p in stepped:
                p.grad = None

    def _as_fetched(self, params: list[Any]) -> bool:
        """Whether all gradients are as they were when they were measured."""
        return all(map(self._is_as_fetched, params))

    def _is_as_fetched(self, p: Any) -> bool:
        # A scaler's unscale_ changes gradients without giving them a new version.
        unscaled = "found_inf" in vars(self) and vars(self).get("grad_scale") is None
        if p not in self._fetched or unscaled:
            return False
        grad, version, _ = self._fetched[p]
        return grad is p.grad and version == grad._version

    def _arriving(self, p: Any) -> Callable[[], Any]:
        """The gradient of a parameter, copied now unless it is as it was in the backward pass."""
        return self._fetched[p][2] if self._is_as_fetched(p) else self._link(p).fetch(p.grad, p)

    def synchronize(self) -> None:
        """Waits until all steps and copies that were begun have ended.

        Raises what one of them has raised, which ``step()`` does, too.
        """
        self._wait()
        self._join()
        for link in self._links.values():
            link.synchronize()
        if self._failed is not None:
            raise self._failed

    # What the optimizer inside has

    def state_dict(self) -> dict[str, Any]:
        """The state dict of the class: parameters are not in it, but masters are."""
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        self._wait()
        self._follow()
        made = self.optimizer.state_dict()
        for hook in self._optimizer_state_dict_post_hooks.values():
            made = hook(self, made) or made
        return made

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over what ``state_dict`` gave, of this class or the one inside; see there."""
        loaded = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            loaded = hook(self, loaded) or loaded
        self._wait()
        self._follow()
        self.optimizer.load_state_dict(loaded)
        self._give_back()
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def __getattr__(self, name: str) -> Any:
        """What the optimizer inside has beside a step."""
        inner = self.__dict__.get("optimizer")
        if inner is None or not (name in _FORWARDED or name in _MOVING):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        found = getattr(inner, name)
        self._wait()
        self._follow()
        return self._moving(found) if name in _MOVING else found

    def _moving(self, method: Callable[[], None]) -> Callable[[], None]:
        """A method that writes into the twins, and then sends them."""

        def moved() -> None:
            method()
            self._give_back()
            for p in self._twins:
                self._send(p)
            self._join()

        return moved

    def __reduce__(self) -> Any:
        """Its thread, and the twins, have no copies."""
        raise TypeError(
            "an Offload cannot be copied or pickled; take its state_dict(), and a new Offload of "
            "the other model"
        )


class _States(dict[Any, Any]):
    """The states of an optimizer by other keys, to be read."""

    def __missing__(self, key: Any) -> dict[str, Any]:
        return {}

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TypeError("the states are those of .optimizer; write into these, or load_state_dict")


def _short(p: Any) -> bool:
    return p.dtype in (torch.bfloat16, torch.float16)


def _version(p: Any) -> tuple[int, int]:
    return p._version, p.data_ptr()
