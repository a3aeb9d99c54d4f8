"""Damaged and hostile input: checkpoints, state dicts, other packages' states, models of a run.

    python tests/long/fuzz.py --minutes 10 --seed 1
    python tests/long/fuzz.py --target files --seed 1 --only 123     one case again, with its fault

A case is drawn from (target, seed, number) alone. It is something valid that was changed: bits and
lengths of a file; its header, with lengths and digests made right again, so that the reader goes
on; keys, types, shapes and numbers of the trees inside. What must follow is that which is
documented: everything is taken over, or the error that says why not, and nothing has changed.
Another exception, a crash, a case of more than ten seconds and one that allocates more than its
size allows are faults.

Cases run in a process of their own, so that one which dies is found, too.
"""

import argparse
import contextlib
import copy
import io
import json
import multiprocessing
import random
import signal
import sys
import tempfile
import time
import traceback
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import steepest as st
from steepest import cli
from steepest.checkpoint import CheckpointError, container, read

SECONDS = 10  # that a case may take
CAP = 8 << 30  # bytes of address space of a process, more than any case needs
ROOM = 32 << 20  # bytes that a case may allocate beside a multiple of its input


# Changing a tree of lists, dicts and values


class Odd:
    """An object that nothing here knows."""


def circle() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


JSON: list[Any] = [
    None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e308, 1e-320, 2**31, 2**53, 2**62, 2**63, 2**64,
    -(2**63), 10**30, 10**400, "", "a", "w", "\ud800", "x" * 10_000, [], {}, [[]], [0.9], [0.9, 2],
    {"$float": "nan"}, {"$float": "inf"}, {"$tuple": []}, {"$tuple": [0.9, 0.999]}, {"$dict": []},
    {"$dict": [[{"$tuple": []}, 1]]}, {"$numpy": ["float64", 0.5]}, {"$numpy": ["int8", 10**9]},
    {"$numpy": ["str_", 5]}, {"$generator": ["PCG64", {}, None]}, {"$object": ["os.system", {}]},
    {"$object": ["schedules.constant", {"lr": 0.5}]}, {"$object": ["clip.norm", {"limit": 1.0}]},
    {"$object": ["schedules.cosine", {"lr": 1.0, "steps": 2**62}]},
    {"$object": ["schedules.piecewise", {"values": [1, 2], "steps": [3]}]},
    {"$object": ["regularize.l2", {"weight": 0.1}]}, {"$object": ["schedules.constant"]},
]  # fmt: skip
"""What takes the place of a value in a file."""

PYTHON: list[Callable[[], Any]] = [
    *(lambda x=x: x for x in JSON[:31]),
    Odd, lambda: Odd, circle, lambda: lambda t: 0.1, lambda: b"bytes", lambda: {1, 2}, lambda: 1j,
    lambda: range(3), lambda: float("nan"), lambda: float("inf"), lambda: np.float64("nan"),
    lambda: np.zeros(0), lambda: np.array(None), lambda: np.array([Odd()]),
    lambda: np.zeros(3, "U4"),
    lambda: np.broadcast_to(np.zeros(()), (2**30, 2**20)), lambda: np.zeros((2, 0, 2**40)),
    lambda: np.zeros(3, ">f8"), lambda: np.zeros(3, "M8[s]"), lambda: np.zeros((1,) * 40),
    lambda: np.array(2.5), lambda: np.array(-1), lambda: np.array(2**63, np.uint64),
    lambda: np.ma.masked_array([1.0, 2.0, 3.0], [0, 1, 0]), lambda: np.zeros(3, "f4,f4"),
    lambda: np.array([1, 2, 3], np.complex64), lambda: iter([1]), lambda: (x for x in [1.0]),
    lambda: memoryview(b"abcd"), lambda: np.zeros(3, bool), lambda: np.full(3, np.inf),
]  # fmt: skip
"""What takes the place of a value in a dict."""


def places(tree: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) inside a tree."""
    if depth > 12 or isinstance(tree, (str, bytes)):
        return
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if type(tree) is list else ()
    for key in keys:
        yield tree, key
        yield from places(tree[key], depth + 1)


def changed(tree: Any, rng: random.Random, odd: Callable[[], Any]) -> Any:
    """The tree, which is changed in place, or what takes its place."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        found = list(places(tree))
        if not found or rng.random() < 0.02:
            return odd()
        holder, key = rng.choice(found)
        what = rng.randrange(8)
        if what < 4:
            holder[key] = odd()
        elif what == 4:
            del holder[key]
        elif what == 5:
            other, place = rng.choice(found)
            with contextlib.suppress(KeyError, IndexError, TypeError, MemoryError):
                holder[key] = copy.deepcopy(other[place])
        elif what == 6 and isinstance(holder, list):
            with contextlib.suppress(IndexError, TypeError, MemoryError):
                holder.insert(rng.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
        elif isinstance(holder, dict):
            name = rng.choice(["", "new", "a", "w", "step", "lr", "$object", 0, None])
            try:
                holder[name if odd is not None else str(name)] = holder.pop(key)
            except TypeError:
                continue
        number = holder.get(key) if isinstance(holder, dict) else None
        if isinstance(number, (int, float)) and rng.random() < 0.3:
            holder[key] = rng.choice([number + 1, -number, number * 2**40, [number], str(number)])
    return tree


# Files


def optimizers() -> list[tuple[Callable[[], Any], dict[str, Any]]]:
    """What makes an optimizer over fresh parameters, and what else is saved with it."""

    def params(dtype: Any = np.float64) -> dict[str, np.ndarray]:
        return {"w": np.linspace(-1, 1, 6).reshape(2, 3).astype(dtype), "b": np.ones(3, dtype)}

    rng = np.random.default_rng(1)
    old = np.random.Generator(np.random.MT19937(1))
    cosine, plateau = st.schedules.cosine, st.schedules.plateau
    return [
        (lambda: st.SGD(params(), lr=0.1, momentum=0.9), {}),
        (
            lambda: st.AdamW(
                params(), lr=cosine(0.1, steps=50), amsgrad=True, ema=0.9, clip=st.clip.norm(1.0)
            ),
            {"extra": {"epoch": 3, "rng": rng, "old": old, "t": (1, {2: "a"}, float("inf"))}},
        ),
        (
            lambda: st.Adam(
                {"w": np.linspace(-1, 1, 4096, dtype=np.float32), "b": np.ones(3, np.float32)},
                lr=plateau(0.1, patience=2), state_dtype="q8",
            ),
            {},
        ),
        (
            lambda: st.Lion(params(np.float32), state_dtype="bfloat16", l1=1e-4),
            {"arrays": {"order": np.arange(4), "mask": np.array([True, False])}},
        ),
        (lambda: st.Muon({"w": np.ones((4, 3))}, lr=0.01), {"extra": {"n": np.float32(0.1)}}),
        (lambda: st.LDoG(params()), {}),
        (lambda: st.Prodigy(params(np.float32)), {}),
        (lambda: st.Adafactor({"w": np.ones((4, 3)), "b": np.ones(())}), {}),
        (
            lambda: st.SGD([{"params": {"w": np.ones(3)}}, {"params": {"v": np.ones(2)}, "lr": 1}]),
            {"extra": {"nested": [[[{"a": [1, 2, {"b": None}]}]]]}},
        ),
    ]  # fmt: skip


def gradients(opt: Any) -> list[dict[str, np.ndarray]] | dict[str, np.ndarray]:
    groups = [
        {
            name: np.full(p.shape, 0.25, p.dtype)
            for name, p in zip(g["param_names"], g["params"], strict=True)
        }
        for g in opt.param_groups
    ]
    return groups if len(groups) > 1 else groups[0]


class Files:
    """Checkpoints, into ``read`` and ``load``."""

    errors = (CheckpointError, ValueError)

    def __init__(self, folder: Path) -> None:
        self.path = folder / "case.safetensors"
        self.made = [make for make, _ in optimizers()]
        self.valid: list[bytes] = []
        for make, more in optimizers():
            opt = make()
            for _ in range(3):
                step(opt)
            st.save(self.path, opt, **more)
            self.valid.append(self.path.read_bytes())
        self.parts = [self.split(x) for x in self.valid]

    @staticmethod
    def split(data: bytes) -> tuple[dict[str, Any], bytes]:
        """Header and data of a file; the values of its metadata that are JSON are parsed, too."""
        n = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + n])
        for key in ("groups", "optimizer", "extra", "sha256"):
            header["__metadata__"][key] = json.loads(header["__metadata__"][key])
        return header, data[8 + n :]

    @staticmethod
    def joined(header: Any, data: bytes, seals: bool = True) -> bytes:
        """The file, with digests and lengths that are right as far as that can be."""
        metadata = header.get("__metadata__") if isinstance(header, dict) else None
        if isinstance(metadata, dict):
            if seals:
                metadata["sha256"] = digests(header, data)
            for key, x in metadata.items():
                if not isinstance(x, str):
                    metadata[key] = json.dumps(x)
            if seals:
                with contextlib.suppress(AttributeError, TypeError, UnicodeError):
                    metadata["sha256_metadata"] = container._seal(metadata)
        text = json.dumps(header).encode("utf-8", "surrogatepass")
        return len(text).to_bytes(8, "little") + text + data

    def draw(self, rng: random.Random) -> tuple[int, bytes]:
        which = rng.randrange(len(self.valid))
        kind = rng.randrange(6)
        if kind == 0:
            return which, self.bytes_changed(rng, self.valid[which])
        header, data = copy.deepcopy(self.parts[which][0]), self.parts[which][1]
        metadata = header["__metadata__"]
        odd = lambda: copy.deepcopy(rng.choice(JSON))  # noqa: E731
        if kind == 1:  # what arrays there are
            entries = {key: x for key, x in header.items() if key != "__metadata__"}
            entries = changed(entries, rng, odd)
            if isinstance(entries, dict):
                header = {"__metadata__": metadata} | {str(k): x for k, x in entries.items()}
            data = data + bytes(rng.choice((0, 0, 0, 1, 8, 4096)))
        elif kind == 2:  # groups, counts, what else was saved
            key = rng.choice(("groups", "groups", "optimizer", "extra", "rule", "version"))
            donor = self.parts[rng.randrange(len(self.parts))][0]["__metadata__"]
            if rng.random() < 0.1:
                metadata[key] = copy.deepcopy(donor[key])
            elif isinstance(metadata[key], str):
                metadata[key] = rng.choice(("adam", "sgd", "", "2", "lion", "muon"))
            else:
                metadata[key] = changed(metadata[key], rng, odd)
        elif kind == 3:  # the arrays' numbers
            new = bytearray(data)
            for _ in range(rng.choice((1, 2, 8, len(new)))):
                new[rng.randrange(len(new))] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
            data = bytes(new)
        elif kind == 4:  # everything else of the header
            metadata.pop(rng.choice(list(metadata))) if rng.random() < 0.3 else None
            header = changed(header, rng, odd)
        else:
            return which, self.text_changed(rng, header, data)
        return which, self.joined(header, data)

    def bytes_changed(self, rng: random.Random, data: bytes) -> bytes:
        new = bytearray(data)
        for _ in range(rng.choice((1, 1, 3, 30))):
            at, what = rng.randrange(len(new) + 1), rng.randrange(5)
            if what == 0 and at < len(new):
                new[at] ^= 1 << rng.randrange(8)
            elif what == 1:
                new = new[:at]
            elif what == 2:
                other = rng.choice(self.valid)
                new = new[:at] + other[rng.randrange(len(other)) :]
            elif what == 3:
                new[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 8, 100))))
            else:
                length = rng.choice((0, 1, 2**31, 2**63 - 1, 2**64 - 1, 10**8, len(new)))
                new[:8] = length.to_bytes(8, "little")
        return bytes(new)

    def text_changed(self, rng: random.Random, header: Any, data: bytes) -> bytes:
        """The header as text: duplicate keys, deep nesting, long numbers, other spellings."""
        valid = self.joined(header, data)
        n = int.from_bytes(valid[:8], "little")
        text = valid[8 : 8 + n].decode()
        at = rng.randrange(len(text))
        put = rng.choice((
            '"w": 1,', "[" * 50_000, '{"a":' * 50_000, "9" * 5000, "NaN", "1e999",
            "\\ud800", "\x00",
            '"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},', "\ufeff", "-", ",", "}",
        ))  # fmt: skip
        place = rng.choice((at, 1, text.find("{", at) + 1, text.find(":", at) + 1))
        found = (text[:place] + put + text[place:]).encode("utf-8", "surrogatepass")
        return len(found).to_bytes(8, "little") + found + data

    def check(self, case: tuple[int, bytes]) -> str:
        which, data = case
        self.path.write_bytes(data)
        opt = self.made[which]()
        before = seen(opt)
        try:
            found = read(self.path)
        except CheckpointError:
            found = None
        try:
            loaded = st.load(self.path, opt)
        except CheckpointError:
            assert seen(opt) == before, "an error, and the optimizer has changed"
            return "refused" if found is None else "read, not loaded"
        assert found is not None, "what cannot be read was loaded"
        for name, x in found.params.items():
            assert loaded.params[name].tobytes() == x.tobytes()
        for group in opt.param_groups:
            for name, p in zip(group["param_names"], group["params"], strict=True):
                assert p.tobytes() == found.params[name].tobytes(), "loaded in part"
        stepped(opt)
        return "loaded"

    def size(self, case: tuple[int, bytes]) -> int:
        return len(case[1])


def digests(header: dict[str, Any], data: bytes) -> Any:
    """The digests of the arrays that a header tells of; an empty text where it tells of none."""
    found: dict[str, str] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        found[name] = ""
        with contextlib.suppress(Exception):
            begin, end = entry["data_offsets"]
            dtype = container.stored_types()[entry["dtype"]]
            x = np.frombuffer(data[begin:end], dtype).reshape(entry["shape"])
            found[name] = container.digest(x)
    return found


def step(opt: Any) -> None:
    opt.step(gradients(opt))


def stepped(opt: Any) -> None:
    """A step after what was accepted; a schedule or a state may be out of range for it."""
    with np.errstate(all="ignore"), contextlib.suppress(ValueError):
        step(opt)


def seen(opt: Any) -> Any:
    """All of an optimizer that a load may change."""
    arrays = [(p.tobytes(), p.shape) for g in opt.param_groups for p in g["params"]]
    state = {
        name: {key: np.asarray(x).tobytes() for key, x in own.items()}
        for name, own in opt.state.items()
    }
    hyper = [{k: repr(x) for k, x in g.items() if k != "params"} for g in opt.param_groups]
    return arrays, state, hyper, opt.updates


# Dicts


class StateDicts:
    """``load_state_dict`` of the optimizers of NumPy arrays."""

    # A copy of an array that repeats one element may be larger than memory.
    errors: tuple[type[Exception], ...] = (KeyError, TypeError, ValueError, MemoryError)

    def __init__(self, folder: Path) -> None:
        self.made = [make for make, _ in optimizers()]
        self.valid = []
        for make in self.made:
            opt = make()
            step(opt)
            self.valid.append(opt.state_dict())

    def draw(self, rng: random.Random) -> tuple[int, Any]:
        which = rng.randrange(len(self.valid))
        given = copy.deepcopy(self.valid[which])
        return which, changed(given, rng, lambda: rng.choice(PYTHON)())

    def take(self, which: int, given: Any, opt: Any) -> None:
        opt.load_state_dict(given)

    def check(self, case: tuple[int, Any]) -> str:
        which, given = case
        opt = self.made[which]()
        before = seen(opt)
        try:
            self.take(which, given, opt)
        except self.errors:
            assert seen(opt) == before, "an error, and the optimizer has changed"
            return "refused"
        stepped(opt)
        return "taken over"

    def size(self, case: tuple[int, Any]) -> int:
        return 1 << 60  # what is promised of memory is promised of files


def lists(x: Any) -> Any:
    """A tree whose tuples are lists, so that it can be changed anywhere."""
    if isinstance(x, dict):
        return {key: lists(y) for key, y in x.items()}
    return [lists(y) for y in x] if isinstance(x, (list, tuple)) else x


class ScaleByAdamState(NamedTuple):
    """What optax calls so."""

    count: Any
    mu: Any
    nu: Any


def as_optax_has_it(given: Any) -> Any:
    if isinstance(given, dict) and {"count", "mu", "nu"} <= given.keys():
        return ScaleByAdamState(given["count"], given["mu"], given["nu"]), given.get("more")
    return given


class Converters(StateDicts):
    """What is given to ``st.convert.from_...``."""

    errors = (TypeError, ValueError, MemoryError)

    def __init__(self, folder: Path) -> None:
        self.made, self.valid, self.takers = [], [], []
        convert = st.convert

        def case(
            make: Callable[[], Any], give: Callable[[Any], Any], take: Callable[..., Any]
        ) -> None:
            opt = make()
            step(opt)
            self.made.append(make)
            self.valid.append(lists(give(opt)))
            self.takers.append(take)

        def w(dtype: Any = np.float64) -> dict[str, np.ndarray]:
            return {"w": np.linspace(-1, 1, 6).reshape(2, 3).astype(dtype), "b": np.ones(3, dtype)}

        for make in (
            lambda: st.AdamW(w(), lr=0.01, amsgrad=True),
            lambda: st.SGD(w(), lr=0.1, momentum=0.9),
            lambda: st.Adafactor(w()),
            lambda: st.RMSprop(w(), lr=0.1, momentum=0.9, centered=True),
        ):
            case(make, lambda x: convert.to_torch(x, tensors=False), convert.from_torch)
        for rule in (st.AdamW, st.Lion, st.AdEMAMix):
            make = lambda rule=rule: rule(w(np.float32), lr=0.01)  # noqa: E731
            case(
                make, lambda x: convert.to_bitsandbytes(x, tensors=False), convert.from_bitsandbytes
            )
        case(
            lambda: st.AdamW(w(), lr=0.01),
            lambda x: convert.to_deepspeed(x, tensors=False),
            convert.from_deepspeed,
        )
        case(
            lambda: st.AdamW(w(np.float32), lr=0.01),
            lambda x: convert.to_flashoptim(x, tensors=False),
            convert.from_flashoptim,
        )
        for make in (
            lambda: st.Adam(w(), lr=0.01, convention="keras"),
            lambda: st.SGD(w(), lr=0.01, momentum=0.9),
        ):
            case(
                make,
                lambda x: [1, 0.01, *(np.zeros(p.shape) for p in x.param_groups[0]["params"])] * 2,
                convert.from_keras,
            )
        case(
            lambda: st.Adam(w(), lr=0.01),
            lambda x: {"count": np.array(1), "mu": w(), "nu": w(), "more": []},
            lambda given, opt: convert.from_optax(as_optax_has_it(given), opt),
        )

    def take(self, which: int, given: Any, opt: Any) -> None:
        self.takers[which](given, opt)


class Runs:
    """The folder of a run, into ``steepest predict``."""

    errors = ()

    def __init__(self, folder: Path) -> None:
        self.folder, self.table = folder / "run", folder / "new.csv"
        rows = [f"{i % 7 - 3},{i % 5},{'xyz'[i % 3]},{i % 2}" for i in range(40)]
        text = "\n".join(["a,b,c,target", *rows]) + "\n"
        self.table.write_text(text, encoding="utf-8")
        command = ["train", str(self.table), "--target", "target", "--epochs", "1", "--quiet"]
        with contextlib.redirect_stdout(io.StringIO()):
            code = cli.main([*command, "--out", str(self.folder)])
        assert code == 0
        self.files = {
            name: (self.folder / name).read_bytes() for name in ("config.json", "params.npz")
        }
        self.files["new.csv"] = self.table.read_bytes()
        with np.load(self.folder / "params.npz") as file:
            self.arrays = dict(file)

    def draw(self, rng: random.Random) -> dict[str, bytes]:
        case = dict(self.files)
        name = rng.choice(list(case))
        if name == "config.json" and rng.random() < 0.8:
            tree = changed(json.loads(case[name]), rng, lambda: copy.deepcopy(rng.choice(JSON)))
            case[name] = json.dumps(tree).encode("utf-8", "surrogatepass")
        elif name == "params.npz" and rng.random() < 0.8:
            arrays = dict(self.arrays)
            key = rng.choice(list(arrays))
            new = rng.choice(PYTHON[31:])()
            if isinstance(new, np.ndarray) and new.nbytes < 1 << 20:
                arrays[key] = new
            else:
                arrays.pop(key)
            written = io.BytesIO()
            np.savez(written, **arrays)
            case[name] = written.getvalue()
        else:
            data = bytearray(case[name])
            for _ in range(rng.choice((1, 4, 40))):
                at = rng.randrange(len(data))
                data[at : at + rng.choice((0, 1, 9))] = rng.choice(
                    (b"\x00", b"\xff", b",", b"\n", b'"', b"=1+1", b"1e999", b"\xef\xbb\xbf", b"")
                )
                data = data or bytearray(b"\n")
            case[name] = bytes(data)
        return case

    def check(self, case: dict[str, bytes]) -> str:
        for name in ("config.json", "params.npz"):
            (self.folder / name).write_bytes(case[name])
        self.table.write_bytes(case["new.csv"])
        said, told = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(told):
            code = cli.main(["predict", str(self.folder), str(self.table)])
        assert code in (0, 2), f"exit code {code}"
        if code == 2:
            assert told.getvalue().startswith("steepest: error: "), told.getvalue()
            assert not said.getvalue(), "an error, and predictions"
        return "predicted" if code == 0 else "refused"

    def size(self, case: dict[str, bytes]) -> int:
        return sum(map(len, case.values()))


class Torch(StateDicts):
    """``load_state_dict`` of the optimizers of PyTorch's tensors."""

    def __init__(self, folder: Path) -> None:
        import torch

        import steepest.torch as stt

        def params() -> list[Any]:
            made = [torch.ones(2, 3), torch.ones(3)]
            for p in made:
                p.requires_grad_(True)
                p.grad = torch.full_like(p, 0.25)
            return made

        self.made = [
            lambda: stt.AdamW(params(), lr=0.01, amsgrad=True),
            lambda: stt.SGD(params(), lr=0.1, momentum=0.9),
            lambda: stt.Lion(params(), state_dtype="q8"),
        ]
        self.valid = []
        for make in self.made:
            opt = make()
            opt.step()
            self.valid.append(opt.state_dict())

    def check(self, case: tuple[int, Any]) -> str:
        which, given = case
        opt = self.made[which]()
        opt.step()
        before = self.seen(opt)
        try:
            opt.load_state_dict(given)
        except self.errors:
            assert self.seen(opt) == before, "an error, and the optimizer has changed"
            return "refused"
        with contextlib.suppress(ValueError, TypeError, KeyError):
            opt.step()
        return "taken over"

    @staticmethod
    def seen(opt: Any) -> Any:
        arrays = [p.detach().numpy().tobytes() for g in opt.param_groups for p in g["params"]]
        hyper = [{k: repr(x) for k, x in g.items() if k != "params"} for g in opt.param_groups]
        return arrays, repr(opt.state_dict()["state"]), hyper


TARGETS = {
    "files": Files, "state_dicts": StateDicts, "converters": Converters, "runs": Runs,
    "torch": Torch,
}  # fmt: skip


# Running


class Late(BaseException):
    """A case has taken too long."""


def late(*_: Any) -> None:
    raise Late


def tried(target: Any, name: str, seed: int, number: int) -> tuple[str, str]:
    """The outcome of a case, and its fault, which is empty if there is none."""
    case = target.draw(random.Random(f"{name} {seed} {number}"))
    before = None
    if hasattr(signal, "SIGALRM"):
        before = signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
    if tracemalloc.is_tracing():
        tracemalloc.reset_peak()
    held = tracemalloc.get_traced_memory()[0]
    try:
        outcome = target.check(case)
    except Late:
        return "late", f"took more than {SECONDS} s"
    except Exception:
        return "fault", traceback.format_exc(limit=-4)
    finally:
        if hasattr(signal, "SIGALRM"):
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    if tracemalloc.is_tracing():
        most = tracemalloc.get_traced_memory()[1] - held
        if most > ROOM + 64 * target.size(case):
            return "memory", f"allocated {most:,} bytes for an input of {target.size(case):,}"
    return outcome, ""


def worked(name: str, seed: int, numbers: range, until: float, pipe: Any) -> None:
    """The cases of a process: each is named before it runs, and told of after."""
    tracemalloc.start(1)
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (CAP, CAP))
    with tempfile.TemporaryDirectory() as folder, np.errstate(all="ignore"):
        target = TARGETS[name](Path(folder))
        for number in numbers:
            if time.monotonic() > until:
                break
            pipe.send((number, None, ""))
            pipe.send((number, *tried(target, name, seed, number)))
    pipe.send((None, None, ""))


def run(name: str, seed: int, most: int, until: float) -> tuple[dict[str, int], list[str]]:
    """How often each outcome came, and the faults."""
    outcomes: dict[str, int] = {}
    faults: list[str] = []
    start = 0
    while start < most and time.monotonic() < until:
        here, there = multiprocessing.get_context("spawn").Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(
            target=worked, args=(name, seed, range(start, most), until, there)
        )
        process.start()
        there.close()
        number: int | None = start
        try:
            while number is not None:
                number, outcome, fault = here.recv()
                if outcome is not None:
                    outcomes[outcome] = outcomes.get(outcome, 0) + 1
                if fault:
                    faults.append(f"{name} --seed {seed} --only {number}: {fault}")
                    print(faults[-1], flush=True)
                start = start if number is None or outcome is None else number + 1
        except EOFError:
            process.join()
            if number is None or (number == start and not outcomes):
                raise RuntimeError(f"the cases of {name} cannot be made") from None
            start = number + 1
            faults.append(f"{name} --seed {seed} --only {number}: ended {process.exitcode}")
            print(faults[-1], flush=True)
        if number is None or len(faults) > 200:
            break
    return outcomes, faults


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="for all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=10**9, help="of each target, at most")
    parser.add_argument("--target", choices=tuple(TARGETS), action="append")
    parser.add_argument("--only", type=int, help="run this case of a target here, and nothing else")
    parser.add_argument("--report", type=Path, help="a file for the report")
    arguments = parser.parse_args(argv)
    names = arguments.target or list(TARGETS)
    if arguments.only is not None:
        with tempfile.TemporaryDirectory() as folder:
            target = TARGETS[names[0]](Path(folder))
            print(*tried(target, names[0], arguments.seed, arguments.only), sep="\n")
        return 0
    lines, faults = [], []
    for name in names:
        began = time.monotonic()
        share = arguments.minutes * 60 / len(names)
        outcomes, found = run(name, arguments.seed, arguments.cases, began + share)
        counts = ", ".join(f"{n:,} {outcome}" for outcome, n in sorted(outcomes.items()))
        minutes = (time.monotonic() - began) / 60
        lines.append(f"| {name} | {sum(outcomes.values()):,} | {counts} | {minutes:.1f} |")
        faults += found
        print(lines[-1], flush=True)
    given = " ".join(sys.argv[1:] if argv is None else argv)
    text = "\n".join([
        "# Fuzzing", "", f"`python tests/long/fuzz.py {given}`", "",
        "| target | cases | outcomes | minutes |", "|---|---|---|---|", *lines, "",
        f"{len(faults)} faults." if faults else "No faults.", "",
    ])  # fmt: skip
    if arguments.report:
        arguments.report.write_text(text, encoding="utf-8")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
