"""Who is measured, each behind the same two calls: ``prepare``, outside the timing, and ``step``.

All rivals step parameters of their own, NumPy arrays with the same values, and get gradients of
the same values; PyTorch's are tensors in the memory of such arrays. Each keeps the state that it
makes by itself.
"""

import importlib
import inspect
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, ClassVar, Protocol

import numpy as np

from bench.cases import SCHEDULED, Workload
from bench.peers import Optax, PytorchOptimizer
from steepest import reference, schedules
from steepest.core.description import bytes_moved
from steepest.extension.testing import reference_hyper
from steepest.memory.arrays import Array
from steepest.optimizers import RULES, Optimizer
from steepest.options import clip


class Rival(Protocol):
    """One way to do a step."""

    name: str

    def prepare(self) -> None:
        """What a user's backward pass would have done: gives new gradients."""

    def step(self) -> None:
        """What is timed."""


def load_torch() -> Any | None:
    """PyTorch, or None where it is not installed."""
    try:
        return importlib.import_module("torch")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        return None


def parameters(workload: Workload, seed: int) -> list[Array]:
    """Normal numbers in float32: a few thousand different ones, repeated."""
    few = np.random.default_rng(seed).standard_normal(9973, np.float32)
    return [np.resize(few, shape) for shape in workload.case.shapes]


def _optimizer(workload: Workload, params: list[Array], clipped: bool) -> Optimizer:
    options = {"clip": clip.global_norm(workload.clip)} if clipped and workload.clip else {}
    optimizer: Any = RULES[workload.rule]
    made: Optimizer = optimizer(params, **{**workload.hyper, **options})
    return made


_RATE, _STEPS = 1e-3, 10**7


def _falling(t: int) -> float:
    """The factor of the rate that LambdaLR is given."""
    return 1.0 / (1.0 + 1e-6 * t)


def _scheduled(workload: Workload) -> Workload:
    """A workload of NumPy's optimizers, with the schedules among its hyper-parameters."""
    hyper = dict(workload.hyper)
    if workload.schedule == "cosine":
        hyper["lr"] = schedules.cosine(_RATE, steps=_STEPS)
    elif workload.schedule == "OneCycleLR":
        hyper["lr"] = schedules.one_cycle(_RATE, steps=_STEPS)
        hyper["betas"] = (schedules.one_cycle_momentum(_STEPS), 0.999)
    return replace(workload, hyper=hyper)


def _scheduler(workload: Workload, optimizer: Any, torch: Any) -> Any | None:
    """PyTorch's scheduler of a workload."""
    found = torch.optim.lr_scheduler
    if workload.schedule == "cosine":
        return found.CosineAnnealingLR(optimizer, _STEPS)
    if workload.schedule == "LambdaLR":
        return found.LambdaLR(optimizer, _falling)
    if workload.schedule == "OneCycleLR":
        return found.OneCycleLR(optimizer, _RATE, total_steps=_STEPS)
    return None


class Steepest:
    """This library."""

    name = "steepest"

    def __init__(self, workload: Workload, gradients: list[Array]) -> None:
        self.optimizer = _optimizer(_scheduled(workload), parameters(workload, 1), clipped=True)
        self.gradients, self.fresh = gradients, workload.case.fresh
        self.clipped = workload.clip is not None
        self.written = workload.schedule == "LambdaLR"

    def prepare(self) -> None:
        if self.fresh:
            self.gradients = [g.copy() for g in self.gradients]

    def step(self) -> None:
        if self.written:
            self.optimizer.param_groups[0]["lr"] = _RATE * _falling(self.optimizer.updates)
        self.optimizer.step(self.gradients)

    def bytes_moved(self) -> int:
        """What a step cannot but read and write, once each; the gradients are read twice if
        clipped: no norm is known before all were seen.
        """
        again = sum(g.nbytes for g in self.gradients) if self.clipped else 0
        return sum(bytes_moved(self.optimizer)) + again


class Constant(Steepest):
    """This library with a constant learning rate, beside one that changes."""

    name = "steepest, constant"

    def __init__(self, workload: Workload, gradients: list[Array]) -> None:
        super().__init__(replace(workload, schedule=None), gradients)


class Reference:
    """The library's specification: the same rule in plain NumPy.

    Clipping uses NumPy's own norm instead of the specification's slower, reproducible one.
    """

    name = "NumPy"

    def __init__(self, workload: Workload, gradients: list[Array]) -> None:
        optimizer = _optimizer(workload, parameters(workload, 1), clipped=False)
        [group] = optimizer.param_groups
        # A rule for matrices leaves vectors to another one.
        self.rule, self.clip = group.get("rule", workload.rule), workload.clip
        self.hyper = reference_hyper(optimizer)
        self.params: list[Array] = group["params"]
        self.states = [
            {key: x for key, x in optimizer.state[name].items() if key != "step"}
            for name in group["param_names"]
        ]
        self.together = optimizer.needs == "global"
        self.shared = {key: group[key] for key in optimizer.shared(self.hyper)}
        self.gradients, self.fresh = gradients, workload.case.fresh
        self.t = 0

    def prepare(self) -> None:
        if self.fresh:
            self.gradients = [g.copy() for g in self.gradients]

    def step(self) -> None:
        factor = 1.0
        if self.clip is not None:
            total = math.sqrt(sum(float(np.linalg.norm(g)) ** 2 for g in self.gradients))
            factor = min(1.0, self.clip / (total + 1e-6))
        self.t += 1
        if self.together:
            reference.step(
                self.rule, self.params, self.gradients, self.states, [self.t] * len(self.params),
                factor=factor, shared=self.shared, **self.hyper,
            )  # fmt: skip
            return
        each = zip(self.params, self.gradients, self.states, strict=True)
        for i, (p, g, state) in enumerate(each):
            reference.step(self.rule, p, g, state, self.t, factor=factor, name=str(i), **self.hyper)


class Torch:
    """PyTorch's optimizer of the same class name, with the same hyper-parameters.

    Clipping is ``torch.nn.utils.clip_grad_norm_``, which scales the gradients in place; this rival
    therefore has gradients of its own. In a training loop ``zero_grad`` lets go of the gradients;
    their memory stays, for ``prepare`` to give them again.
    """

    clips: ClassVar[bool] = False  # whether the optimizer does it by itself
    FLAGS: ClassVar[dict[str, dict[str, bool]]] = {
        "torch single": {"foreach": False, "fused": False},
        "torch foreach": {"foreach": True, "fused": False},
        "torch fused": {"fused": True},
    }

    def __init__(self, workload: Workload, gradients: list[Array], torch: Any, name: str) -> None:
        self.name = name
        self.fresh, self.max_norm = workload.case.fresh, None if self.clips else workload.clip
        self.loop = workload.case.model and bool(workload.clip)
        self.clip = torch.nn.utils.clip_grad_norm_
        self.foreach = True if name == "torch foreach" else None
        self.params = [torch.nn.Parameter(torch.from_numpy(p)) for p in parameters(workload, 1)]
        own = self.max_norm is not None
        self.gradients = [torch.from_numpy(g.copy() if own else g) for g in gradients]
        self._give(self.gradients)
        self.optimizer = self._made(workload, torch, gradients[0].ndim)
        self.scheduler = _scheduler(workload, self.optimizer, torch)

    def _made(self, workload: Workload, torch: Any, axes: int) -> Any:
        sample = np.zeros((1,) * axes, np.float32)
        [group] = _optimizer(workload, [sample], clipped=False).param_groups
        twin = getattr(torch.optim, RULES[group.get("rule", workload.rule)].__name__)
        takes = inspect.signature(twin).parameters
        hyper = {k: v for k, v in group.items() if k in takes and k != "params"}
        flags = {k: v for k, v in self.FLAGS[self.name].items() if k in takes}
        return twin(self.params, **hyper, **flags)

    def prepare(self) -> None:
        if self.fresh or self.loop:
            self._give([g.clone() for g in self.gradients] if self.fresh else self.gradients)

    def _give(self, gradients: list[Any]) -> None:
        for p, g in zip(self.params, gradients, strict=True):
            p.grad = g

    def step(self) -> None:
        if self.max_norm is not None:
            self.clip(self.params, self.max_norm, foreach=self.foreach)
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        if self.loop:
            self.optimizer.zero_grad()


class SteepestTorch(Torch):
    """This library behind PyTorch's interface: clipping is in the step, and writes no gradient."""

    name = "steepest.torch"
    clips = True

    def __init__(self, workload: Workload, gradients: list[Array], torch: Any) -> None:
        super().__init__(workload, gradients, torch, self.name)

    def _made(self, workload: Workload, torch: Any, axes: int) -> Any:
        module = importlib.import_module("steepest.torch")
        options = {"clip": clip.global_norm(workload.clip)} if workload.clip else {}
        return getattr(module, RULES[workload.rule].__name__)(
            self.params, **workload.hyper, **options
        )


class DeepSpeed(Torch):
    """DeepSpeedCPUAdam, the AdamW of ZeRO-Offload, which is compiled when it is first made."""

    name = "DeepSpeed"

    def __init__(self, workload: Workload, gradients: list[Array], torch: Any) -> None:
        super().__init__(workload, gradients, torch, self.name)

    def _made(self, workload: Workload, torch: Any, axes: int) -> Any:
        if workload.rule != "adamw":
            raise LookupError("measured with AdamW")
        module = importlib.import_module("deepspeed.ops.adam")
        [group] = _optimizer(workload, [np.zeros(1, np.float32)], clipped=False).param_groups
        hyper = {key: group[key] for key in ("lr", "betas", "eps", "weight_decay")}
        return module.DeepSpeedCPUAdam(self.params, adamw_mode=True, **hyper)


class Stream:
    """The yardstick: the rule's bytes, moved without its arithmetic.

    One buffer of half the bytes is multiplied by 1 in place, so that as much is read and written
    as the rule reads and writes: by PyTorch on all threads, or by NumPy in as many threads.
    """

    name = "stream"

    def __init__(self, bytes_moved: int, threads: int, torch: Any | None) -> None:
        buffer = np.ones(bytes_moved // 8, np.float32)
        self._stream: Callable[[], object]
        if torch is not None:
            tensor = torch.from_numpy(buffer)
            self._stream = lambda: tensor.mul_(1.0)
        else:
            pool, parts = ThreadPoolExecutor(threads), np.array_split(buffer, threads)
            self._stream = lambda: list(pool.map(_multiply, parts))

    def prepare(self) -> None:
        pass

    def step(self) -> None:
        self._stream()


def _multiply(x: Array) -> None:
    np.multiply(x, np.float32(1), out=x)


def yardstick(torch: Any | None) -> str:
    """What the stream is made of, in words."""
    return "torch.Tensor.mul_ in place" if torch is not None else "threaded numpy.multiply in place"


_ELSEWHERE = "measured in cases that are no real model's"


def rivals(
    workload: Workload, threads: int, torch: Any | None, peers: bool = False
) -> tuple[list[Any], dict[str, str]]:
    """All rivals of a workload, this library first; and who is absent, with the reason."""
    absent: dict[str, str] = {}
    gradients = parameters(workload, 2)
    ours = Steepest(workload, gradients)
    found: list[Rival] = [ours]
    if workload.schedule:
        found.append(Constant(workload, gradients))
        absent[Reference.name] = "measured with a constant rate"
    elif workload.case.model:
        absent[Reference.name] = _ELSEWHERE
    elif "ns_dtype" in workload.hyper:
        absent[Reference.name] = "the reference iterates in the parameter's type"
    elif workload.rule in reference.RULES:
        found.append(Reference(workload, gradients))
    else:
        absent[Reference.name] = "the reference has no such rule"
    for name in Torch.FLAGS:
        reason = _why_absent(workload, torch, name)
        if reason:
            absent[name] = reason
            continue
        try:
            found.append(Torch(workload, gradients, torch, name))
        except (RuntimeError, TypeError, ValueError) as error:
            absent[name] = f"torch: {error}"
    small = workload.rule == "adamw" and workload.case.name in SCHEDULED
    for cls in (SteepestTorch, DeepSpeed) if workload.case.model else (SteepestTorch,) * small:
        if torch is None:
            absent[cls.name] = "PyTorch is not installed"
            continue
        try:
            found.append(cls(workload, gradients, torch))
        except Exception as error:  # DeepSpeed compiles, which may fail in any way
            missing = isinstance(error, ModuleNotFoundError)
            absent[cls.name] = "not installed" if missing else f"{type(error).__name__}: {error}"
    for peer in (PytorchOptimizer, Optax) if peers else ():
        try:
            found.append(peer(workload, gradients, parameters(workload, 1)))
        except Exception as error:  # whatever a package says of what it cannot do
            absent[peer.name] = f"{type(error).__name__}: {error}"
    if workload.case.streams:
        found.append(Stream(ours.bytes_moved(), threads, torch))
    return found, absent


def _why_absent(workload: Workload, torch: Any | None, name: str) -> str | None:
    if torch is None:
        return "PyTorch is not installed"
    class_name = RULES[workload.rule].__name__
    twin = getattr(torch.optim, class_name, None)
    if twin is None:
        return f"torch.optim has no {class_name}"
    takes = inspect.signature(twin).parameters
    if name == "torch single":
        if workload.case.model:
            return _ELSEWHERE
        if workload.schedule:
            return "measured with a constant rate"
        spared = workload.rule != "adamw" and "foreach" in takes
        return "measured with AdamW, and where torch has no foreach" if spared else None
    flag = name.removeprefix("torch ")
    return None if flag in takes else f"torch.optim.{class_name} has no {flag}"
