"""What changes an optimizer or a file, while one allocation fails: old or new, never between.

``python tests/helpers/failing_memory.py`` is run with ``faults.ALLOCATOR`` preloaded, and lets
those of NumPy and of the compiled modules fail; ``test_out_of_memory.py`` lets those of Python.
"""

import copy
import ctypes
import os
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

import steepest as st

SHAPES: dict[str, tuple[int, ...]] = {"w": (7, 6), "b": (5,), "n": ()}

Change = Callable[[Any], Any]


def arrays(seed: int, **shapes: tuple[int, ...]) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    every = SHAPES | shapes
    return {k: np.asarray(rng.standard_normal(s), np.float32) for k, s in every.items()}


def made(cls: Any = st.AdamW, steps: int = 1, **options: Any) -> Any:
    shapes = {"w": (70, 61)} if options.get("state_dtype") == "q8" else {}
    opt = cls(arrays(0, **shapes), **options)
    for t in range(steps):
        opt.step(arrays(1 + t, **shapes))
    return opt


STEPS: dict[str, tuple[Any, dict[str, Any]]] = {
    "schedule": (st.AdamW, {"lr": st.schedules.cosine(0.1, steps=9), "ema": 0.9}),
    "clip": (st.SGD, {"momentum": 0.9, "clip": (st.clip.global_norm(1.0), st.clip.value(0.5))}),
    "history": (st.AdamW, {"clip": st.clip.percentile(50), "nonfinite": "skip"}),
    "first": (st.Adan, {"steps": 0}),
    "units": (
        st.SGD,
        {"regularize": st.regularize.max_norm(2.0), "filter": st.filters.centralize()},
    ),
    "lamb": (st.LAMB, {}),
    "adafactor": (st.Adafactor, {}),
    "prodigy": (st.Prodigy, {}),
    "muon": (st.Muon, {"steps": 0}),
    "q8": (st.AdamW, {"state_dtype": "q8"}),
}


def stepped(name: str) -> tuple[Any, Change, Callable[[Any], str]]:
    cls, options = STEPS[name]
    grads = arrays(9, **({"w": (70, 61)} if name == "q8" else {}))
    return (lambda: made(cls, **options)), (lambda opt: opt.step(grads)), (lambda opt: opt.digest())


def seen(opt: Any) -> str:
    """All that an optimizer has, as text."""
    return repr((opt.digest(), opt.clip_history, opt.param_groups))


def changes(folder: str) -> dict[str, tuple[Callable[[], Any], Change, Callable[[Any], str]]]:
    """(what makes an optimizer, what is done to it, what is looked at) by name."""
    other = made(steps=3, clip=st.clip.percentile(50), lr=0.5)
    state, path = other.state_dict(), os.path.join(folder, "new")
    st.save(path, other)
    target = os.path.join(folder, "target")

    def with_file() -> Any:
        opt = made(clip=st.clip.percentile(50))
        st.save(target, opt)
        opt.step(arrays(5))
        return opt

    def in_file(opt: Any) -> str:
        assert set(os.listdir(folder)) <= {"new", "target"}, os.listdir(folder)
        return repr(st.checkpoint.read(target).state_dict["updates"])

    def grown(opt: Any) -> None:
        opt.add_param_group({"params": {"c": np.ones(3), "d": np.ones((2, 2), np.float32)}})

    def base() -> Any:
        return made(clip=st.clip.percentile(50))

    return {
        **{f"step {name}": stepped(name) for name in STEPS},
        "load_state_dict": (base, lambda opt: opt.load_state_dict(state), seen),
        "add_param_group": (base, grown, seen),
        "load": (base, lambda opt: st.load(path, opt), seen),
        "save": (with_file, lambda opt: st.save(target, opt), in_file),
        "deepcopy": (base, copy.deepcopy, seen),
        "digest": (base, lambda opt: opt.digest(), seen),
        "functional": (bound, in_chunks, lambda own: repr(own[:3])),
    }


_CHUNK = [arrays(9)["b"]]


def bound() -> Any:
    """A rule over memory of the caller's, bound and stepped once, as a whole and in chunks."""
    params = list(arrays(0).values())
    states, counts = st.functional.new_states("adamw", params)
    own = params, states, counts, st.functional.prepare("adamw", params, states, counts)
    own[3].step(list(arrays(1).values()))
    in_chunks(own)
    return own


def in_chunks(own: Any) -> None:
    """A step of one chunk: each is old or new by itself."""
    own[3].step(_CHUNK, 1, 2, lr=0.5)


def check(
    name: str, folder: str, fails: Callable[[int, Callable[[], Any]], bool], stride: int = 1
) -> int:
    """Lets each allocation of a change fail, or each `stride`-th, one at a time. Raises
    AssertionError where that leaves
    something between old and new, or an optimizer that does not go on. How many failed."""
    make, change, look = changes(folder)[name]
    opt = make()
    old = look(opt)
    change(opt)
    new = look(opt)
    failed, fine = 0, 0
    for n in range(1, 100_000, stride):
        opt = make()
        ended = fails(n, lambda opt=opt: change(opt))  # type: ignore[misc]
        found = look(opt)
        assert found in (old, new), f"{name}: allocation {n} failed: neither old nor new"
        assert ended or found == new, f"{name}: allocation {n} failed, in silence"
        if ended:
            change(opt) if found == old else None
            assert found == new or look(opt) == new, f"{name}: {n}: it does not go on"
        failed, fine = failed + ended, 0 if ended else fine + 1
        if fine > 20:
            return failed
    raise AssertionError(f"{name}: there is no end")


if __name__ == "__main__":
    library = ctypes.CDLL(None)
    library.allocations.restype = library.allocations.argtypes = None
    library.allocations.argtypes, library.allocations.restype = [ctypes.c_long], ctypes.c_long

    def fails(n: int, call: Callable[[], Any]) -> bool:
        library.allocations(n)
        try:
            call()
        except Exception:  # MemoryError, or what NumPy makes of it in places
            return True
        finally:
            library.allocations(0)
        return False

    with tempfile.TemporaryDirectory() as folder:
        for name in changes(folder):
            print(name, check(name, folder, fails), flush=True)
