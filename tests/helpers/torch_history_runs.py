"""Runs a history of ``steepest.torch`` against the NumPy class, torch's own, and a saved twin.

The NumPy class has the same bits after every event. torch's class, where it has the rule and the
arguments, is near: both compute the same formula, with roundings in another order. The twin is
saved and loaded after each step: its state dict by itself, in a file, and in torch's own class.
"""

import copy
import io
import math
import os
import pickle
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faults import interrupted_at
from float_modes import MODES
from history_runs import REFUSALS, Found, bits, difference, told, values
from torch.optim import lr_scheduler
from torch_history_draws import in_torch

import steepest as st
import steepest.torch as stt
from steepest import convert
from steepest.core import internal
from steepest.kernels import machine
from steepest.memory import formats
from steepest.optimizers import RULES

History = dict[str, Any]

ULPS = {torch.float32: 256, torch.float64: 4096}
"""How far a parameter may be from that of torch's class, in units of the largest magnitude that it
has had or been moved by, times the number of steps: a step is within 2 ulp of either, and later
ones multiply what earlier ones differ by."""
LATE = {"asgd"}
"""Rules that use a new rate at once, and in torch one step later."""
LOOSE = {"nadam", "asgd"}
"""Rules whose products torch keeps in float32, for float64 parameters too."""


def tensor(exact: Any, name: str, layout: str) -> Any:
    """A tensor of these numbers, in some layout."""
    x = torch.tensor(exact).to(getattr(torch, name))
    if layout == "spread":
        return x[:1].expand(x.shape) if x.dim() and len(x) else x
    if layout == "F" and x.dim() > 1:
        return (
            x.permute(*range(x.dim() - 1, -1, -1)).contiguous().permute(*range(x.dim() - 1, -1, -1))
        )
    if layout == "strided":
        room = torch.zeros(*x.shape, 2, dtype=x.dtype)
        room[..., 1] = x
        return room[..., 1]
    if layout == "inner" and x.dim():
        room = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)
        room[..., : x.shape[-1]] = x
        return room[..., : x.shape[-1]]
    if layout == "shifted":
        room = torch.zeros(x.numel() + 1, dtype=x.dtype)
        room[1:] = x.reshape(-1)
        return room[1:].view(x.shape)
    return x


def numbers(x: Any) -> Any:
    """The array of a tensor, of bfloat16 too: a copy in C order."""
    x = x.detach().contiguous()
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().view(np.uint16).view(formats.named("bfloat16")).copy()
    return x.numpy().copy()


def seen(opt: Any) -> dict[str, Any]:
    """Everything of an optimizer of torch tensors that a later step uses, by position."""
    found: dict[str, Any] = {}
    k = 0
    for i, group in enumerate(opt.param_groups):
        for p in group["params"]:
            own = numbers(p)
            found[f"parameter {k}"] = bits(own)
            for key, x in opt.state.get(p, {}).items():
                if isinstance(x, torch.Tensor):
                    found[f"state {key} of {k}"] = bits(
                        numbers(x), own if key == "remainder" else None
                    )
            k += 1
        own = {key: x for key, x in group.items() if key not in ("params", "param_names")}
        own |= {key: () for key in ("filter", "regularize") if own.get(key) is None}
        told = [(key, x.state_dict()) for key, x in own.items() if hasattr(x, "state_dict")]
        found[f"group {i}"] = repr((sorted(own.items()), told))
    found["updates"], found["skipped"] = opt.updates, opt.skipped
    return found


class TorchRun:
    """An optimizer of tensors that goes through a history, with those beside it.

    saved: saved and loaded after each step, and without what must not matter.
    """

    def __init__(self, history: History, folder: Path, way: str) -> None:
        self.history, self.folder, self.way = history, folder, way
        folder.mkdir(exist_ok=True)
        self.given = [*history["groups"]]
        self.grouped = len(self.given) > 1
        self.cls = getattr(stt, RULES[history["rule"]].__name__)
        self.tensors: dict[str, Any] = {}
        self.frozen: set[str] = set()
        self.turn, self.refused = 0, ""
        self.counts: Counter[str] = Counter()
        for group in self.given:
            self.begin(group, self.tensors)
        self.opt = self.made(self.cls, self.tensors)
        self.scheduler = self.scheduled(self.opt)
        self.beside: NumPy | None = None
        self.theirs: Theirs | None = None
        hyper = {*history["given"], *(k for g in self.given for k in g["own"])}
        whole = all(p.dtype in ULPS for p in self.tensors.values())
        if history["rule"] in LATE and "scheduler" in history:
            whole = False
        near = Theirs.of(self) if whole and in_torch(history["rule"], hyper) else None
        self.in_torch = near is not None
        if way == "drawn":
            self.beside, self.theirs = NumPy(self), near

    def value(self, text: str) -> Any:
        return eval(text, {"st": st, "np": np, "inf": math.inf, "torch": torch})

    def begin(self, group: Any, tensors: dict[str, Any]) -> None:
        """Makes the parameters of a group."""
        for name, x in group["arrays"].items():
            exact = values([self.history["seed"], 1 << 20, int(name[1:])], x["shape"], x["draw"])
            layout = x["layout"] if self.way == "drawn" else "C"
            tensors[name] = torch.nn.Parameter(tensor(exact, x["dtype"], layout))

    def group(self, group: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """A group as torch takes it."""
        pairs = [(name, tensors[name]) for name in group["arrays"]]
        params = pairs if self.history.get("named") else [p for _, p in pairs]
        return {"params": params} | {k: self.value(x) for k, x in group["own"].items()}

    def made(self, cls: Any, tensors: dict[str, Any]) -> Any:
        """A new optimizer of a class."""
        groups = [self.group(group, tensors) for group in self.given]
        given = {k: self.value(x) for k, x in self.history["given"].items()}
        return cls(groups if self.grouped else groups[0]["params"], **self.named(given, tensors))

    def named(self, given: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
        """Arguments whose patterns of names are those of torch's parameters."""
        if self.history.get("named"):
            return given
        order = {name: str(i) for i, name in enumerate(tensors)}
        if "overrides" in given:
            given["overrides"] = {order[k]: x for k, x in given["overrides"].items()}
        if "exclude" in given:
            given["exclude"] = order[given["exclude"]]
        return given

    def scheduled(self, opt: Any) -> Any:
        """torch's scheduler of an optimizer, if the history has one."""
        text = self.history.get("scheduler")
        return eval(text, {**vars(lr_scheduler), "o": opt}) if text else None

    # What happens

    def happens(self, event: Any) -> Any:
        """What is seen after an event: (what was refused, all that a later step uses)."""
        self.refused = ""
        getattr(self, event["do"])(event)
        if self.way == "saved" and event["do"] == "step" and self.refused == "":
            self.turn += 1
            self.again({"way": ("dict", "save", "theirs")[self.turn % 3]})
        now = seen(self.opt)
        if self.beside:
            self.beside.compare(event)
        if self.theirs:
            self.theirs.compare()
        return self.refused, now

    def attempt(self, event: Any, call: Any) -> bool:
        """Calls, perhaps interrupted, and again where that left all as it was; False if refused."""
        before = seen(self.opt)
        try:
            if "interrupt" in event and self.way == "drawn":
                if interrupted_at(event["interrupt"], call):
                    self.counts["interrupts"] += 1
                    if difference(seen(self.opt), before) == "":
                        call()
            else:
                call()
        except REFUSALS as error:
            self.refused, self.message = type(error).__name__, str(error)
            if after := difference(seen(self.opt), before):
                raise Found("refusal", f"{self.refused} ({error}), but {after}") from None
            return False
        return True

    def gradients(self, event: Any) -> None:
        """Puts gradients into the tensors."""
        for group in self.given:
            for name, x in group["arrays"].items():
                p = self.tensors[name]
                if name in event.get("without", ()) or name in self.frozen:
                    p.grad = None
                    continue
                seed = [self.history["seed"], event["id"], int(name[1:])]
                exact = values(seed, x["shape"], event["draw"])
                layout = event.get("layout", "C")
                if layout == "spread" and exact.ndim and len(exact):
                    exact = np.broadcast_to(exact[:1], exact.shape).copy()
                if name in event.get("bad", {}) and exact.size:
                    exact[(slice(0, 1),) * exact.ndim] = float(event["bad"][name])
                    if layout == "spread" and exact.ndim:
                        exact[:] = exact[:1]
                own = layout if self.way == "drawn" and "clipped" not in event else "C"
                name_of_type = str(p.dtype).removeprefix("torch.")
                p.grad = tensor(exact, name_of_type, own)
        if "clipped" in event:
            torch.nn.utils.clip_grad_norm_([*self.tensors.values()], event["clipped"])

    def step(self, event: Any) -> None:
        self.gradients(event)
        drawn = self.way == "drawn"
        before = torch.get_num_threads()
        asked = machine.float_mode() | (MODES.get(event.get("mode"), 0) if drawn else 0)
        if self.beside:
            self.beside.ready()
        kept = {
            name: None if p.grad is None else numbers(p.grad) for name, p in self.tensors.items()
        }

        def call() -> None:
            mode = machine.float_mode()
            machine.set_float_mode(asked)
            try:
                if event.get("closure"):
                    loss = self.opt.step(lambda: torch.tensor(3.0))
                    if float(loss) != 3.0:
                        raise Found("error", f"the closure's loss became {loss}")
                else:
                    self.opt.step()
            finally:
                machine.set_float_mode(mode)

        torch.set_num_threads(event.get("threads", 1) if drawn else 1)
        try:
            done = self.attempt(event, call)
        finally:
            torch.set_num_threads(before)
        for name, g in kept.items():
            now = self.tensors[name].grad
            if (g is None) != (now is None) or (g is not None and bits(numbers(now)) != bits(g)):
                raise Found("gradient", f"that of {name} was written")
        if self.beside:
            self.beside.step(kept, self.refused)
        if self.theirs:
            self.theirs.step(kept, done)
        if self.scheduler is not None:
            self.follow(self.scheduler, event["id"])
        if "zero" in event:
            self.opt.zero_grad(set_to_none=event["zero"])
            for p in self.tensors.values():
                if p.grad is not None and (event["zero"] or bool((p.grad != 0).any())):
                    raise Found("gradient", "zero_grad left one")

    @staticmethod
    def follow(scheduler: Any, number: int) -> None:
        """A step of a scheduler, with a metric that grows and falls."""
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            scheduler.step([1.0, 0.7, 0.9, 0.8, 0.3][number % 5])
        else:
            scheduler.step()

    def set(self, event: Any) -> None:
        group = self.opt.param_groups[event["group"] % len(self.opt.param_groups)]
        if event["key"] in group:
            group[event["key"]] = self.value(event["value"])
            if self.history["rule"] in LATE:
                self.theirs = None
            if self.theirs:
                other = self.theirs.opt.param_groups[event["group"] % len(self.opt.param_groups)]
                if event["key"] in other:
                    other[event["key"]] = group[event["key"]]
                else:  # an option that torch does not have
                    self.theirs = None

    def add(self, event: Any) -> None:
        fresh = {**self.tensors}
        self.begin(event["group"], fresh)
        if self.scheduler is not None:
            return  # whose lists are as long as the groups were

        def call() -> None:  # with a dict of its own each time, as torch fills it
            self.opt.add_param_group(self.group(event["group"], fresh))

        if self.attempt(event, call):
            self.tensors = fresh
            self.given.append(event["group"])
            self.grouped = True
            if self.beside:
                self.beside.add(event["group"])
            own = event["group"]["own"]
            known = in_torch(self.history["rule"], own)
            if not known or any(callable(self.value(x)) for x in own.values()):
                self.theirs, self.in_torch = None, False  # torch's class has no such group
            if self.theirs:
                self.theirs.add(event["group"])

    def hessian(self, event: Any) -> None:
        self.gradients({"id": event["id"], "draw": "normal"})
        kept = {
            name: None if p.grad is None else numbers(p.grad) for name, p in self.tensors.items()
        }
        self.attempt(event, lambda: self.opt.update_hessian())
        if self.beside:
            self.beside.call("update_hessian", kept)

    def data(self, event: Any) -> None:
        """Other numbers in other memory; once there is a state, which may begin as a copy."""
        p = self.tensors.get(event["name"])
        if p is not None and p in self.opt.state:
            p.data = (p.data.double() * 0.5).to(p.dtype).clone()
            if self.beside:
                self.beside.takes(event["name"], p)
            if self.theirs:
                self.theirs.takes(event["name"], p)

    def freeze(self, event: Any) -> None:
        if (p := self.tensors.get(event["name"])) is not None:
            p.grad = None
            p.requires_grad_(False)
            self.frozen.add(event["name"])

    def thaw(self, event: Any) -> None:
        if (p := self.tensors.get(event["name"])) is not None:
            p.requires_grad_(True)
            self.frozen.discard(event["name"])

    # Another optimizer of what this one stores

    def again(self, event: Any) -> None:
        before, way = seen(self.opt), event["way"]
        if way in ("theirs", "numpy") and not self.in_torch:
            way = "pickle"
        try:
            opt, tensors, scheduler = getattr(self, f"by_{way}")()
        except REFUSALS as error:
            raise Found("saved", f"by {way}: {type(error).__name__}: {error}") from None
        if now := difference(seen(opt), before):
            raise Found("saved", f"by {way}: {now}")
        self.opt, self.tensors, self.scheduler = opt, tensors, scheduler
        self.counts["saves"] += 1

    def loaded(self, state: Any) -> Any:
        """A new optimizer, and scheduler, over the same tensors, with a state."""
        opt = self.made(self.cls, self.tensors)
        scheduler = self.scheduled(opt)
        opt.load_state_dict(state)
        if scheduler is not None:
            scheduler.load_state_dict(self.scheduler.state_dict())
        return opt, self.tensors, scheduler

    def by_dict(self) -> Any:
        return self.loaded(self.opt.state_dict())

    def by_save(self) -> Any:
        file = io.BytesIO()
        torch.save(self.opt.state_dict(), file)
        file.seek(0)
        return self.loaded(torch.load(file, weights_only=True))

    def by_copy(self) -> Any:
        tensors, opt, scheduler = copy.deepcopy((self.tensors, self.opt, self.scheduler))
        return opt, tensors, scheduler

    def by_pickle(self) -> Any:
        tensors, opt = pickle.loads(pickle.dumps((self.tensors, self.opt)))
        scheduler = None
        if self.scheduler is not None:
            kept = [{**group} for group in opt.param_groups]
            scheduler = self.scheduled(opt)
            for group, old in zip(opt.param_groups, kept, strict=True):
                group.update(old)
            scheduler.load_state_dict(self.scheduler.state_dict())
        return opt, tensors, scheduler

    def by_theirs(self) -> Any:
        """Through torch's own class, whose state dict has the same keys and numbers."""
        rule = RULES[self.history["rule"]].__name__
        theirs = self.made(getattr(torch.optim, rule), self.tensors)
        theirs.load_state_dict(self.opt.state_dict())
        state = theirs.state_dict()
        own = self.opt.state_dict()["param_groups"][0]
        if "steepest" in own:  # counts that torch has no place for
            state["param_groups"][0].setdefault("steepest", own["steepest"])
        return self.loaded(state)

    def by_numpy(self) -> Any:
        """Through the NumPy class, by the converters."""
        params = {name: numbers(p) for name, p in self.tensors.items()}
        rule = RULES[self.history["rule"]]
        groups = [
            {"params": {name: params[name] for name in group["arrays"]}}
            | {k: self.value(x) for k, x in group["own"].items()}
            for group in self.given
        ]
        given = {k: self.value(x) for k, x in self.history["given"].items()}
        other = rule(groups if self.grouped else groups[0]["params"], **given)
        convert.from_torch(self.opt.state_dict(), other, step=self.opt.updates)
        state = convert.to_torch(other)
        own = self.opt.state_dict()["param_groups"][0]
        if "steepest" in own:
            state["param_groups"][0].setdefault("steepest", own["steepest"])
        return self.loaded(state)


class NumPy:
    """The NumPy class beside, with the same bits."""

    def __init__(self, run: TorchRun) -> None:
        self.run = run
        self.params = {name: numbers(p) for name, p in run.tensors.items()}
        rule = RULES[run.history["rule"]]
        groups = [self.group(group) for group in run.given]
        given = {k: run.value(x) for k, x in run.history["given"].items()}
        self.grouped = len(groups) > 1
        self.opt = rule(groups if self.grouped else groups[0]["params"], **given)
        self.first = len(groups)

    def group(self, group: Any) -> dict[str, Any]:
        params = {name: self.params[name] for name in group["arrays"]}
        return {"params": params} | {k: self.run.value(x) for k, x in group["own"].items()}

    def add(self, group: Any) -> None:
        for name in group["arrays"]:
            self.params[name] = numbers(self.run.tensors[name])
        self.opt.add_param_group(self.group(group))
        self.grouped = True

    def takes(self, name: str, p: Any) -> None:
        self.params[name][...] = numbers(p)

    def tree(self, arrays: dict[str, Any]) -> Any:
        trees = [{name: arrays[name] for name in group["arrays"]} for group in self.run.given]
        return trees if self.grouped else trees[0]

    def call(self, name: str, arrays: dict[str, Any]) -> None:
        try:
            getattr(self.opt, name)(self.tree(arrays))
            refused = ""
        except REFUSALS as error:
            refused = type(error).__name__
        if refused != self.run.refused:
            raise Found("numpy", f"refused {refused!r}, torch's face {self.run.refused!r}")

    def ready(self) -> None:
        """Takes over what schedulers and others have written."""
        for own, theirs in zip(self.opt.param_groups, self.run.opt.param_groups, strict=True):
            for key in internal.rule_of(self.opt, own).defaults:
                if key in theirs and repr(own[key]) != repr(theirs[key]):
                    own[key] = theirs[key]

    def step(self, grads: dict[str, Any], refused: str) -> None:
        self.call("step", grads)

    def compare(self, event: Any) -> None:
        actual = seen(self.run.opt)
        expected: dict[str, Any] = {}
        position = 0
        for group in self.opt.param_groups:
            for name, p in zip(group["param_names"], group["params"], strict=True):
                expected[f"parameter {position}"] = bits(p)
                for key, x in internal.unmarked_state(self.opt)[name].items():
                    if x.dtype != np.uint8:
                        of = p if key == "remainder" else None
                        expected[f"state {key} of {position}"] = bits(np.asarray(x), of)
                position += 1
        expected["updates"], expected["skipped"] = self.opt.updates, self.opt.skipped
        kept = {key: x for key, x in actual.items() if key in expected}
        if event["do"] == "data":
            return
        missing = {key for key in expected if key not in kept and key.startswith("parameter")}
        if missing or (found := difference(kept, {k: expected[k] for k in kept})):
            raise Found("numpy", f"after {event['do']}: {missing or found}")


class Theirs:
    """torch's own class beside, which is near."""

    def __init__(self, run: TorchRun) -> None:
        self.run = run
        self.tensors = {name: copy.deepcopy(p) for name, p in run.tensors.items()}
        self.opt = run.made(getattr(torch.optim, RULES[run.history["rule"]].__name__), self.tensors)
        self.scheduler = run.scheduled(self.opt)
        self.largest = {name: self.size(p) for name, p in self.tensors.items()}
        self.steps = 0
        self.left = ""

    @classmethod
    def of(cls, run: TorchRun) -> "Theirs | None":
        """It, unless torch's class refuses what ours takes, such as Adafactor's d below 1."""
        try:
            return cls(run)
        except ValueError:
            return None

    @staticmethod
    def size(p: Any) -> float:
        return float(p.detach().abs().max()) if p.numel() else 0.0

    def add(self, group: Any) -> None:
        for name in group["arrays"]:
            self.tensors[name] = copy.deepcopy(self.run.tensors[name])
            self.largest[name] = self.size(self.tensors[name])
        self.opt.add_param_group(self.run.group(group, self.tensors))

    def takes(self, name: str, p: Any) -> None:
        self.tensors[name].data = p.data.clone()

    def step(self, grads: dict[str, Any], done: bool) -> None:
        if not done:
            return
        for own, theirs in zip(self.opt.param_groups, self.run.opt.param_groups, strict=True):
            if self.scheduler is None:
                own["lr"] = theirs["lr"]
            elif not math.isclose(own["lr"], theirs["lr"], rel_tol=1e-14):
                raise Found("torch", f"lr {theirs['lr']}, that of torch's class {own['lr']}")
        for name, g in grads.items():
            self.tensors[name].grad = None if g is None else torch.from_numpy(g.copy())
        self.opt.step()
        self.steps += 1
        if self.scheduler is not None:
            self.run.follow(self.scheduler, self.steps - 1)

    def compare(self) -> None:
        for name, theirs in self.tensors.items():
            ours = self.run.tensors[name]
            if not ours.numel() or math.isinf(self.largest[name]):
                continue
            finite = bool(torch.isfinite(ours).all()), bool(torch.isfinite(theirs).all())
            if not all(finite):  # nothing of what follows can be compared
                self.largest[name] = math.inf
                continue
            self.largest[name] = max(self.largest[name], self.size(ours), self.size(theirs))
            unit = torch.finfo(ours.dtype).eps * self.largest[name]
            least = 1e-7 if self.run.history["rule"] in LOOSE else 0.0
            allowed = max(ULPS[ours.dtype] * unit, least * self.largest[name]) * max(1, self.steps)
            far = float((ours.detach() - theirs.detach()).abs().max())
            if not far <= allowed:
                raise Found(
                    "torch", f"parameter {name} is {far:g} from torch's, allowed {allowed:g}"
                )


def check(history: History, folder: Path) -> Counter[str]:
    """Runs a history against its oracles; counts of what was done. Raises Found."""
    counts: Counter[str] = Counter(histories=1)
    with told(), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            runs = [begun(history, folder / way, way) for way in ("drawn", "saved")]
            refused = [x if isinstance(x, str) else "" for x in runs]
            if any(refused):
                if len({*refused}) > 1:
                    raise Found("refusal", f"drawn, saved: {refused}")
                counts["refused"] += 1
                return counts
            for number, event in enumerate(history["events"]):
                (refusal, now), (expected_refusal, expected) = [run.happens(event) for run in runs]
                if refusal != expected_refusal:
                    raise Found("saved", f"event {number}: {refusal!r}, saved {expected_refusal!r}")
                if found := difference(expected, now):
                    raise Found("saved", f"after event {number}, {event['do']}: {found}")
                counts["events"] += 1
                counts["steps"] += event["do"] == "step"
                counts["refused events"] += refusal != ""
        except (Found, AssertionError):
            raise
        except Exception as error:
            where = error.__traceback__
            while where is not None and where.tb_next is not None:
                where = where.tb_next
            place = f"{os.path.basename(where.tb_frame.f_code.co_filename)}:{where.tb_lineno}"
            raise Found("error", f"{type(error).__name__} at {place}: {error}") from error
    for run in runs:
        counts.update(run.counts)
    counts["steps beside torch.optim"] += runs[0].theirs.steps if runs[0].theirs else 0
    return counts


def begun(history: History, folder: Path, way: str) -> Any:
    """The run, or what the constructor raised."""
    try:
        return TorchRun(history, folder, way)
    except REFUSALS as error:
        return f"{type(error).__name__}: {error}"
