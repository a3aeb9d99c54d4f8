"""Runs a history against three oracles: a contiguous twin, the reference, a twin that is saved and
loaded at every step.

``check`` runs it as it was drawn, with its memory layouts, threads, levels, floating-point modes,
forks and interrupts; again plainly, on contiguous arrays, one thread, the lowest level, with the
reference beside it as long as that knows what was drawn; and once more with a state dict, a file
and a pickle in turn after each step. After every event all three have the same bits. What is
refused is refused by all, and changes nothing.
"""

import contextlib
import copy
import functools
import math
import os
import pickle
import select
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from clip_factors import factors_of, memories
from faults import interrupted_at
from float_modes import MODES

import steepest as st
from steepest import codecs, reference
from steepest.core import internal
from steepest.kernels import dispatch, machine, threads
from steepest.memory import formats
from steepest.optimizers import RULES

Array = Any
History = dict[str, Any]
SENTINEL = 0xAB
REFUSALS = (ValueError, TypeError, FloatingPointError, np.linalg.LinAlgError)
PATIENCE = 60
"""Seconds after which a child that steps is taken to hang."""


BEST = dispatch.available()[-1]


@functools.cache
def kernels(level: str) -> dispatch.Kernels:
    """Those of a level, always the same, so that plans are kept from step to step."""
    return dispatch.load(level)


@contextlib.contextmanager
def at(level: str, workers: int) -> Iterator[None]:
    """At that level, with that many threads even where the machine has fewer CPUs."""
    before = dispatch.current
    dispatch.current = kernels(level)
    try:
        with threads.forced(workers):
            yield
    finally:
        dispatch.current = before


class Found(Exception):
    """A promise that was not kept: its kind, and what was seen."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(f"{kind}: {what}")
        self.kind, self.what = kind, what


# Arrays


def values(seed: list[int], shape: Any, draw: str) -> Array:
    """Numbers of a draw, as float64."""
    rng = np.random.default_rng(seed)
    n = math.prod(shape)
    x = rng.standard_normal(n)
    if draw in ("wide", "special"):
        if draw == "wide":
            x = x * 10.0 ** rng.uniform(-30, 12, n)
            x[rng.random(n) < 0.1] = 0.0
        else:
            some = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-42, -1e-310, 3e38, -1e-38]
            x = rng.choice(np.array(some), n)
        x[rng.random(n) < 0.05] = -0.0
    x = x * {"tiny": 1e-25, "huge": 1e18, "zero": 0.0}.get(draw, 1.0)
    return np.asarray(x).reshape(shape)


class Room:
    """An array in some layout, and the memory around it."""

    def __init__(self, exact: Array, dtype: Any, layout: str, folder: Path) -> None:
        stored = codecs.encoded(exact, np.dtype(dtype))
        if layout == "spread":  # one row for all, without a stride
            row = stored[:1] if stored.ndim and len(stored) else stored.reshape(stored.shape)
            self.bytes, self.array = None, np.broadcast_to(row, stored.shape)
            return
        n, size, shape = stored.size, stored.itemsize, stored.shape
        self.bytes = np.full(3 * n * size + 256, SENTINEL, np.uint8)
        start = -self.bytes.__array_interface__["data"][0] % 64 + 64
        start += {"shifted": size, "odd": 1}.get(layout, 0)
        if layout == "mapped":
            path = folder / f"mapped{len(os.listdir(folder))}"
            self.bytes.tofile(path)
            self.bytes, start = np.memmap(path, np.uint8, "r+"), 64
        order = "F" if layout in ("F", "turned") else "C"
        whole = [*shape, 2] if layout in ("strided", "turned") else list(shape)
        if layout == "inner" and shape:
            whole[-1] *= 2
        x = np.ndarray(whole, stored.dtype, self.bytes, start, order=order)
        if layout in ("strided", "turned"):
            x = x[..., 1]
        if layout == "inner" and shape:
            x = x[..., : shape[-1]]
        if layout == "reversed" and x.ndim:
            x = x[(slice(None, None, -1),) * x.ndim]
        if layout == "turned":
            x = x[::-1] if x.ndim else x
        self.array = x
        x[...] = stored
        if layout == "readonly":
            x.flags.writeable = False

    @classmethod
    def around(cls, array: Array) -> "Room":
        """That of an array of whose memory nothing is known."""
        made = object.__new__(cls)
        made.bytes, made.array = None, array
        return made

    def check(self, name: str) -> None:
        """Raises Found where something beside the array was written."""
        if self.bytes is None or not self.array.flags.writeable:
            return
        kept = self.array.copy()
        blank = np.full((*kept.shape, kept.itemsize), SENTINEL, np.uint8)
        self.array[...] = blank.view(kept.dtype).reshape(kept.shape)
        changed = np.flatnonzero(self.bytes != SENTINEL)
        self.array[...] = kept
        if changed.size:
            raise Found("outside", f"{changed.size} bytes around {name} were written")


def bits(x: Array, of: Array | None = None) -> tuple[str, tuple[int, ...], bytes]:
    """The bits of an array, whose NaN are all the same; of a remainder where `of` is no NaN."""
    x = np.array(x, order="C")
    if x.dtype.kind == "f" or x.dtype.kind == "V":
        numbers = x if x.dtype.kind == "f" else codecs.from_bfloat16(x)
        x.reshape(-1).view(f"u{x.itemsize}")[np.isnan(numbers).reshape(-1)] = 0x7FFF
    elif of is not None and x.dtype.kind == "i":
        x[np.isnan(codecs.decoded(np.array(of, order="C"), np.float64))] = 0
    return str(x.dtype), x.shape, x.tobytes()


def seen(opt: Any) -> dict[str, Any]:
    """Everything that a later step uses."""
    found: dict[str, Any] = {}
    for i, group in enumerate(opt.param_groups):
        for name, p in zip(group["param_names"], group["params"], strict=True):
            found[f"parameter {name}"] = bits(p)
            for key, x in internal.unmarked_state(opt).get(name, {}).items():
                of = p if key == "remainder" else None
                found[f"state {key} of {name}"] = bits(np.asarray(x), of)
        own = {key: x for key, x in group.items() if key != "params"}
        own |= {key: () for key in ("filter", "regularize") if own.get(key) is None}
        told = [(k, x.state_dict()) for k, x in own.items() if hasattr(x, "state_dict")]
        found[f"group {i}"] = repr((own, told))
    found["updates"], found["skipped"] = opt.updates, opt.skipped
    found["clip_history"] = repr(opt.clip_history)
    return found


def difference(actual: Any, expected: Any) -> str:
    """What differs between two of ``seen``, in a line; empty where nothing does."""
    if actual == expected:
        return ""
    keys = [k for k in {**expected, **actual} if actual.get(k) != expected.get(k)]
    # A group that was changed may have left a state behind, or be without one until the next step.
    keys = [k for k in keys if k in actual.keys() & expected or not k.startswith("state ")]
    if not keys:
        return ""
    first = keys[0]
    one, other = actual.get(first), expected.get(first)
    if isinstance(one, tuple) and isinstance(other, tuple) and one[:2] == other[:2]:
        size = max(1, len(one[2]) // max(1, math.prod(one[1])))
        places = [
            i for i in range(0, len(one[2]), size) if one[2][i : i + size] != other[2][i : i + size]
        ]
        at = places[0]
        one, other = (f"{x[0]} {x[2][at : at + size][::-1].hex()}" for x in (one, other))
        first += f", {len(places)} elements, of them {at // size}"
    if isinstance(one, str) and isinstance(other, str):
        at = next((i for i, (x, y) in enumerate(zip(one, other, strict=False)) if x != y), 0)
        one, other = (f"...{x[max(0, at - 60) : at + 60]}" for x in (one, other))
    return f"{first}: {str(one)[:400]}, expected {str(other)[:400]} ({len(keys)} differ)"


# Runs


class Run:
    """An optimizer that goes through a history.

    plain: on contiguous arrays, without what must not matter. saved: as plain, but saved and
    loaded after each step.
    """

    def __init__(self, history: History, folder: Path, way: str = "drawn") -> None:
        self.history, self.folder, self.way = history, folder, way
        folder.mkdir(exist_ok=True)
        self.given = [*history["groups"]]
        self.rooms: dict[str, Room] = {}
        self.turn = 0
        self.refused = ""
        self.counts: Counter[str] = Counter()
        self.grouped = len(self.given) > 1
        self.opt = self.made(self.rooms)
        self.reference = Reference(self) if way == "plain" else None

    def value(self, text: str) -> Any:
        return eval(
            text, {"st": st, "np": np, "inf": math.inf, "folder": str(self.folder / "states")}
        )

    def made(self, rooms: dict[str, Room], zero: bool = False) -> Any:
        """A new optimizer of all groups that there are; `zero`, on arrays of zeros."""
        cls = RULES[self.history["rule"]]
        groups = [self.group(group, rooms, zero) for group in self.given]
        given = {k: self.value(x) for k, x in self.history["given"].items()}
        return cls(groups if self.grouped else groups[0]["params"], **given)

    def group(self, group: Any, rooms: dict[str, Room], zero: bool = False) -> dict[str, Any]:
        params = {}
        for name, x in group["arrays"].items():
            if name not in rooms:
                exact = values(
                    [self.history["seed"], 1 << 20, int(name[1:])], x["shape"], x["draw"]
                )
                layout = "C" if self.way == "plain" else x["layout"]
                dtype = formats.named(x["dtype"])
                rooms[name] = Room(exact * 0 if zero else exact, dtype, layout, self.folder)
            params[name] = rooms[name].array
        return {"params": params} | {k: self.value(x) for k, x in group["own"].items()}

    def gradients(self, event: Any) -> tuple[Any, list[tuple[str, Room, Array]]]:
        """The tree that ``step`` takes, and what it is of."""
        held: list[tuple[str, Room, Array]] = []
        trees = []
        for group in self.given:
            tree: dict[str, Any] = {}
            for name, x in group["arrays"].items():
                if name in event.get("without", ()):
                    tree[name] = None
                    continue
                exact = values(
                    [self.history["seed"], event["id"], int(name[1:])], x["shape"], event["draw"]
                )
                layout = event.get("layout", "C")
                if layout == "spread" and exact.ndim and len(exact):
                    exact = np.broadcast_to(exact[:1], exact.shape).copy()
                if name in event.get("bad", {}) and exact.size:
                    exact[(0,) * exact.ndim] = float(event["bad"][name])
                    if layout == "spread" and exact.ndim:
                        exact[:] = exact[:1]
                dtype = formats.named(event.get("dtype", x["dtype"]))
                room = Room(exact, dtype, "C" if self.way == "plain" else layout, self.folder)
                held.append((name, room, room.array.copy()))
                tree[name] = room.array
            trees.append(tree)
        return trees if self.grouped else trees[0], held

    # What happens

    def happens(self, event: Any) -> Any:
        """What is seen after an event: (what was refused, all that a later step uses)."""
        getattr(self, event["do"])(event)
        if self.way == "saved" and event["do"] == "step" and self.refused == "":
            self.turn += 1
            self.again({"way": ("dict", "file", "pickle")[self.turn % 3]})
            self.refused = ""
        for name, room in self.rooms.items():
            room.check(name)
        return self.refused, seen(self.opt)

    def attempt(self, event: Any, call: Any, look: Any = None) -> bool:
        """Calls, perhaps interrupted, and again where that left all as it was; False if refused."""
        look = look or (lambda: seen(self.opt))
        before = look()
        self.refused = ""
        try:
            if "interrupt" in event and self.way == "drawn":
                if interrupted_at(event["interrupt"], call):
                    self.counts["interrupts"] += 1
                    if look() == before:
                        call()
            else:
                call()
        except REFUSALS as error:
            self.refused = type(error).__name__
            self.message = str(error)
            after = difference(look(), before)
            if after:
                raise Found("refusal", f"{self.refused} ({error}), but {after}") from None
            return False
        return True

    def step(self, event: Any) -> None:
        grads, held = self.gradients(event)
        drawn = self.way == "drawn"
        if self.reference:
            self.reference.before(event, {name: g for name, _, g in held})
        with contextlib.ExitStack() as around:
            if drawn:
                around.enter_context(at(event.get("level", BEST), event.get("threads", 1)))
                mode = machine.float_mode()
                around.callback(machine.set_float_mode, mode)
                asked = mode | MODES.get(event.get("mode"), 0)
            else:
                around.enter_context(at("base" if self.way == "plain" else BEST, 1))

            def call() -> None:
                if drawn:
                    machine.set_float_mode(asked)
                strict = "raise" if drawn and "errors" in event else "ignore"
                try:
                    with np.errstate(all=strict):
                        self.opt.step(grads)
                finally:
                    if drawn:
                        after = machine.float_mode()
                        machine.set_float_mode(mode)
                        if (after ^ asked) & ~0x3F:
                            raise Found("mode", f"{asked:#x} became {after:#x}")

            child = None
            if event.get("fork") and drawn and not self.shares_memory():
                child = self.forked(call)
            self.attempt(event, call)
        if child is not None and self.refused == "":
            now = difference(child, seen(self.opt))
            if now:
                raise Found("fork", f"a child's {now}")
        for name, room, kept in held:
            if bits(room.array) != bits(kept):
                raise Found("gradient", f"that of {name} was written")
            room.check(f"the gradient of {name}")
        if self.reference:
            self.reference.after(self.refused)

    def shares_memory(self) -> bool:
        """Whether a child would change arrays of this process, too."""
        mapped = any(isinstance(room.array, np.memmap) for room in self.rooms.values())
        return (
            mapped
            or any(x["layout"] == "mapped" for g in self.given for x in g["arrays"].values())
            or "state_dir" in self.history["given"]
        )

    def forked(self, call: Any) -> Any:
        """What a child sees that makes the call; None where it is refused."""
        self.counts["forks"] += 1
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                with os.fdopen(write, "wb") as file:
                    try:
                        call()
                        file.write(pickle.dumps(seen(self.opt)))
                    except REFUSALS:
                        file.write(pickle.dumps(None))
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as file:
            ready, _, _ = select.select([file], [], [], PATIENCE)
            if not ready:
                os.kill(child, signal.SIGKILL)
            told = file.read()
        _, status = os.waitpid(child, 0)
        if not ready or status or not told:
            raise Found(
                "fork", f"a child that steps ended with status {status:#x}, ready: {bool(ready)}"
            )
        return pickle.loads(told)

    def set(self, event: Any) -> None:
        group = self.opt.param_groups[event["group"] % len(self.opt.param_groups)]
        self.refused = ""
        if event["key"] in group:
            group[event["key"]] = self.value(event["value"])
            if self.reference:
                self.reference.changed(event["key"])

    def add(self, event: Any) -> None:
        rooms = {**self.rooms}
        group = self.group(event["group"], rooms)
        if self.attempt(event, lambda: self.opt.add_param_group(group)):
            self.rooms = rooms
            self.given.append(event["group"])
            self.grouped = True
            if self.reference:
                self.reference.take(event["group"]["arrays"])

    def hessian(self, event: Any) -> None:
        grads, _ = self.gradients({"id": event["id"], "draw": "normal"})
        self.attempt(event, lambda: self.opt.update_hessian(grads))
        if self.reference:
            self.reference.take_hessian()

    def observe(self, event: Any) -> None:
        self.refused = ""
        for group in self.opt.param_groups:
            if hasattr(group["lr"], "observe"):
                group["lr"].observe(self.value(str(event["value"])))

    def again(self, event: Any) -> None:
        """Goes on with another optimizer, made of what this one stores."""
        if self.way == "plain":
            self.refused = ""
            return
        before, stale, self.refused = seen(self.opt), self.refused, ""
        try:
            other, rooms = getattr(self, f"by_{event['way']}")(event)
        except REFUSALS as error:
            after = difference(seen(self.opt), before)
            if after:
                raise Found("refusal", f"{event['way']}: {error}, but {after}") from None
            if not stale:
                self.counts["not saved"] += 1
                raise Found(
                    "saved", f"by {event['way']}: {type(error).__name__}: {error}"
                ) from None
            return
        now = difference(seen(other), before)
        if now:
            raise Found("saved", f"by {event['way']}: {now}")
        self.opt, self.rooms = other, rooms
        self.counts["saves"] += 1

    def by_dict(self, event: Any) -> Any:
        saved = self.opt.state_dict()
        other = self.made(self.rooms)
        self.loads(event, other, lambda: other.load_state_dict(saved))
        return other, self.rooms

    def by_file(self, event: Any) -> Any:
        path = self.folder / "run.safetensors"
        st.save(path, self.opt)
        rooms: dict[str, Room] = {}
        other = self.made(rooms, zero=True)
        self.loads(event, other, lambda: st.load(path, other))
        return other, rooms

    def loads(self, event: Any, other: Any, call: Any) -> None:
        if "interrupt" in event and self.way == "drawn":
            before = seen(other)
            if not interrupted_at(event["interrupt"], call):
                return
            self.counts["interrupts"] += 1
            if seen(other) != before:
                return
        call()

    def by_pickle(self, event: Any) -> Any:
        return with_rooms(pickle.loads(pickle.dumps(self.opt)))

    def by_copy(self, event: Any) -> Any:
        return with_rooms(copy.deepcopy(self.opt))


def with_rooms(opt: Any) -> tuple[Any, dict[str, Room]]:
    """An optimizer that brought arrays of its own, and these."""
    groups = [zip(g["param_names"], g["params"], strict=True) for g in opt.param_groups]
    return opt, {name: Room.around(p) for group in groups for name, p in group}


# The reference


class Reference:
    """Steps the same parameters by ``steepest.reference``, as long as that knows what happens."""

    def __init__(self, run: Run) -> None:
        self.run, self.covers, self.why = run, True, ""
        self.params: dict[str, Array] = {}
        self.states: dict[str, dict[str, Array]] = {}
        self.history: dict[Any, list[float]] = {}
        self.count = self.skipped = 0
        self.steps = 0
        self.take([name for group in run.given for name in group["arrays"]])

    def take(self, names: Any) -> None:
        """Takes over new parameters and their states, as they begin."""
        for name in names:
            self.params[name] = self.run.rooms[name].array.copy()
            state = internal.unmarked_state(self.run.opt)[name]
            self.states[name] = {key: np.array(x) for key, x in state.items()}

    def take_hessian(self) -> None:
        for name, state in internal.unmarked_state(self.run.opt).items():
            for key in state:
                if "hessian" in key:
                    self.states[name][key] = np.array(state[key])

    def changed(self, key: str) -> None:
        if key not in ("lr", "weight_decay", "l1", "maximize", "clip"):
            self.gives_up(f"{key} was changed")  # which may bring states

    def gives_up(self, why: str) -> None:
        self.covers, self.why = False, self.why or why

    def before(self, event: Any, grads: dict[str, Array]) -> None:
        """Makes the step, before the optimizer does, but for taking it over."""
        if not self.covers:
            return
        opt, given = self.run.opt, self.run.given
        number = {name: i for i, group in enumerate(given) for name in group["arrays"]}
        groups = [(g, name) for g in opt.param_groups for name in g["param_names"]]
        of_group = [number[g["param_names"][0]] for g in opt.param_groups]
        policy = opt.nonfinite
        try:
            hypers = [self.hyper(g) for g, _ in groups]
            in_order = [
                self.decoded(grads.get(name), name, h)
                for (_, name), h in zip(groups, hypers, strict=True)
            ]
            bad = any(g is not None and not np.isfinite(g).all() for g in in_order)
            factors, fresh, spike = factors_of(opt, of_group, in_order, self.history, self.count)
        except REFUSALS:
            self.gives_up("a step that is refused")
            return
        if (bad and policy != "propagate") or spike:
            kept = {} if bad and policy == "raise" else fresh
            self.then = self.params, self.states, {
                c: x for c, x in kept.items() if type(c) is st.clip.skip_spikes
            }, 0, int(not (bad and policy == "raise"))  # fmt: skip
            return
        params = {k: p.copy() for k, p in self.params.items()}
        states = {k: {key: x.copy() for key, x in s.items()} for k, s in self.states.items()}
        each = [
            (g, name, h, factor, k)
            for k, ((g, name), h, factor) in enumerate(zip(groups, hypers, factors, strict=True))
            if grads.get(name) is not None
        ]
        self.shared: dict[str, Any] = {}
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                self.stepped(each, grads, params, states, len(groups))
            except REFUSALS as error:
                self.gives_up(f"the reference refuses: {error}")
                return
        self.then = params, states, fresh, 1, 0

    def stepped(self, each: Any, grads: Any, params: Any, states: Any, total: int) -> None:
        """The step of the reference on these."""
        opt = self.run.opt
        for _, name, *_ in each:
            states[name]["step"] += 1
        if opt.needs == "global":
            if len(each) < total:
                return self.gives_up("a gradient is missing for a global rule")
            hypers = [repr(h) for _, _, h, _, _ in each]
            if len({*hypers}) > 1 or len({factor for *_, factor, _ in each}) > 1:
                return self.gives_up("groups of a global rule differ")
            first = opt.param_groups[0]
            self.shared = {key: first[key] for key in opt.shared(first)}
            names = [name for _, name, *_ in each]
            steps = [int(states[name]["step"]) for name in names]
            reference.step(
                opt.rule, [params[n] for n in names], [grads[n] for n in names],
                [states[n] for n in names], steps, shared=self.shared, factor=each[0][3],
                count=self.count, **each[0][2],
            )  # fmt: skip
            return None
        for g, name, h, factor, k in each:
            t = int(states[name]["step"])
            rule = g.get("rule", opt.rule)
            if RULES[rule].needs == "global":
                return self.gives_up("a group has a global rule")
            if rule.startswith("schedulefree") and t != self.count + 1:
                return self.gives_up("steps of a schedule-free rule were left out")
            reference.step(
                rule, params[name], grads[name], states[name], t, **h, factor=factor,
                count=self.count, name=name, number=k,
            )  # fmt: skip
        return None

    def hyper(self, group: Any) -> dict[str, Any]:
        """A group's hyper-parameters at this step."""
        rule = internal.rule_of(self.run.opt, group)
        return {
            key: rule.checked(key, group[key], self.count) if key in rule.ranges else group[key]
            for key in rule.defaults
        }

    def decoded(self, g: Array | None, name: str, h: Any) -> Array | None:
        """A gradient in the type of its blocks."""
        if g is None:
            return None
        wide = self.params[name].dtype == np.float64 or "float64" in repr(h["state_dtype"])
        return codecs.decoded(g, np.float64 if wide else np.float32)

    def after(self, refused: str) -> None:
        """Compares with what the optimizer has done."""
        opt = self.run.opt
        if not self.covers:
            return
        raised = refused == "FloatingPointError"
        if refused and not raised:
            return
        self.params, self.states, fresh, done, skipped = self.then
        if raised and (done or skipped):
            raise Found("reference", "the step was refused, but there is no infinity or NaN")
        self.history |= fresh
        self.count += done
        self.skipped += skipped
        self.steps += done
        if (opt.updates, opt.skipped) != (self.count, self.skipped):
            counts = opt.updates, opt.skipped
            raise Found("reference", f"counts {counts}, expected {self.count, self.skipped}")
        known = [self.history[c] for c in memories(opt) if c in self.history]
        if set(map(repr, known)) - set(map(repr, opt.clip_history.values())):
            raise Found("reference", f"clip_history {opt.clip_history}, expected {known}")
        actual, expected = {}, {}
        for name, state in internal.unmarked_state(opt).items():
            p, q = self.run.rooms[name].array, self.params[name]
            actual[f"parameter {name}"], expected[f"parameter {name}"] = bits(p), bits(q)
            for key, x in state.items():
                what = f"state {key} of {name}"
                remains = key == "remainder"
                actual[what] = bits(np.asarray(x), p if remains else None)
                expected[what] = bits(self.states[name][key], q if remains else None)
        if done:
            for key, x in self.shared.items():
                first = opt.param_groups[0]
                actual[key], expected[key] = bits(np.array(first[key])), bits(np.array(x, float))
        if found := difference(actual, expected):
            raise Found("reference", found)


# All of a history


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Raises Found for what Python can only report, as from ``__del__``, but our interrupts."""
    reports: list[Any] = []
    before, sys.unraisablehook = sys.unraisablehook, reports.append
    try:
        yield
    finally:
        sys.unraisablehook = before
    bad = [x for x in reports if x.exc_type is not KeyboardInterrupt]
    if bad:
        raise Found("error", f"reported: {bad[0].exc_type.__name__}: {bad[0].exc_value}")


def check(history: History, folder: Path) -> Counter[str]:
    """Runs a history against its oracles; counts of what was done. Raises Found."""
    counts: Counter[str] = Counter(histories=1)
    with told(), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            runs = [begun(history, folder / way, way) for way in ("plain", "drawn", "saved")]
            refused = [x if isinstance(x, str) else "" for x in runs]
            if any(refused):
                if len({*refused}) > 1:
                    raise Found("refusal", f"plain, drawn, saved: {refused}")
                counts["refused"] += 1
                return counts
            for number, event in enumerate(history["events"]):
                results = [run.happens(event) for run in runs]
                for run, (refusal, now) in zip(runs[1:], results[1:], strict=True):
                    expected_refusal, expected = results[0]
                    kind = "contiguous" if run.way == "drawn" else "saved"
                    if refusal != expected_refusal:
                        why = getattr(runs[0] if expected_refusal else run, "message", "")
                        what = f"refused {refusal!r}, expected {expected_refusal!r}: {why}"
                        raise Found(kind, f"event {number}: {what}")
                    if found := difference(now, expected):
                        raise Found(kind, f"after event {number}, {event['do']}: {found}")
                counts["events"] += 1
                counts["steps"] += event["do"] == "step"
                counts["refused events"] += results[0][0] != ""
        except (Found, AssertionError):
            raise
        except Exception as error:
            where = error.__traceback__
            while where is not None and where.tb_next is not None:
                where = where.tb_next
            place = (
                f"{Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno}" if where else ""
            )
            raise Found("error", f"{type(error).__name__} at {place}: {error}") from error
    for run in runs:
        counts.update(run.counts)
    counts["steps beside the reference"] += runs[0].reference.steps
    return counts


def begun(history: History, folder: Path, way: str) -> Any:
    """The run, or what the constructor raised."""
    try:
        return Run(history, folder, way)
    except REFUSALS as error:
        return f"{type(error).__name__}: {error}"
