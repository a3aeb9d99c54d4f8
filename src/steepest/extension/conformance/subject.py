"""What a check is given: one optimizer under test, with numbers to feed it, and comparisons."""

import unittest
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NoReturn

import numpy as np

from steepest.extension.conformance.adapters import Adapter, Candidate
from steepest.extension.conformance.children import CAN_FORK, Ended, in_child
from steepest.memory.arrays import Array

__all__ = ["CHECKS", "COUNTS", "SHAPES", "DoesNotApply", "Subject", "check", "same"]

SHAPES: Mapping[str, tuple[int, ...]] = {
    "matrix": (7, 5), "vector": (11,), "kernel": (4, 3, 2, 2), "row": (1, 9),
}  # fmt: skip
"""The parameters of most checks: an odd number of elements, one axis of one, four axes."""

STEPS = 7
"""Of most checks: enough for the change of regime of RAdam."""

COUNTS = ("step", "count", "updates", "iteration", "gradient_step", "k", "mini_step")
"""What numbers of a state dict that count steps are called."""

CHECKS: dict[str, Callable[["Subject"], None]] = {}
"""All checks by name."""


class DoesNotApply(unittest.SkipTest):
    """Raised by a check that does not apply, with the reason; pytest and unittest skip it."""


def check(function: Callable[["Subject"], None]) -> Callable[["Subject"], None]:
    """Puts a check into the list."""
    CHECKS[function.__name__] = function
    return function


class Subject:
    """One optimizer under test."""

    def __init__(self, adapter: Adapter, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> None:
        self.adapter, self.shapes = adapter, dict(shapes)
        self.needs = adapter.needs

    # What applies

    def skip(self, reason: str) -> NoReturn:
        """The check does not apply."""
        raise DoesNotApply(reason)

    def asks_for(self, *features: str) -> None:
        """Skips where the library has not what the check is about."""
        for feature in features:
            if feature in self.adapter.lacks:
                raise DoesNotApply(self.adapter.lacks[feature])

    # Numbers

    def params(
        self, dtype: Any = np.float32, shapes: Mapping[str, tuple[int, ...]] | None = None
    ) -> dict[str, Array]:
        """Parameters, the same at every call, and for a name whatever the others are."""
        return {
            name: _drawn(name, 0, shape).astype(dtype)
            for name, shape in (shapes or self.shapes).items()
        }

    def grads(self, params: Mapping[str, Array], t: int) -> dict[str, Array]:
        """The gradients of step t."""
        return {name: _drawn(name, t, p.shape).astype(p.dtype) for name, p in params.items()}

    # Optimizers

    def make(self, params: Mapping[str, Array] | None = None, **arguments: Any) -> Candidate:
        """A new optimizer, of the usual parameters if of no others."""
        return self.adapter.make(self.params() if params is None else params, **arguments)

    def steps(self, opt: Candidate, first: int = 1, last: int = STEPS) -> Candidate:
        """Steps `first` to `last`."""
        params = opt.params()
        for t in range(first, last + 1):
            opt.step(self.grads(params, t))
        return opt

    def run(
        self, params: Mapping[str, Array] | None = None, last: int = STEPS, **arguments: Any
    ) -> Candidate:
        """A new optimizer after its first steps."""
        return self.steps(self.make(params, **arguments), 1, last)

    def refused(self, work: Callable[[], Any], what: str, opt: Candidate | None = None) -> None:
        """AssertionError unless the work raises, and leaves that optimizer as it was."""
        before = None if opt is None else snapshot(opt)
        try:
            work()
        except Exception:
            if opt is not None and before is not None:
                unchanged(opt, before, f"refused after half of a step: {what}: ")
            return
        raise AssertionError(f"not refused: {what}")

    def guarded(self, work: Callable[[], Any]) -> Ended:
        """Work that may crash the process: in a child where there may be one, on one thread, since
        others may not survive a fork."""
        if CAN_FORK and "fork" not in self.adapter.lacks:
            with self.adapter.threads(1) if "threads" not in self.adapter.lacks else nullcontext():
                return in_child(work)
        try:
            return Ended("returned", work())
        except Exception as error:
            return Ended("raised", f"{type(error).__name__}: {error}")

    # State dicts, whatever they are made of

    def leaves(
        self, tree: Any, path: tuple[Any, ...] = ()
    ) -> Iterator[tuple[tuple[Any, ...], Any]]:
        """All leaves of a state dict: (path, leaf)."""
        for key, x in _children(tree):
            yield from self.leaves(x, (*path, key))
        if not _is_tree(tree):
            yield path, tree

    def arrays(self, tree: Any) -> dict[tuple[Any, ...], Array]:
        """All arrays and numbers of a state dict, as copies."""
        found = ((path, self.adapter.array(leaf)) for path, leaf in self.leaves(tree))
        return {path: x.copy() for path, x in found if x is not None}

    def changed(self, tree: Any, change: Callable[[tuple[Any, ...], Array], Array | None]) -> Any:
        """A state dict in which some arrays are others; `change` returns None for what stays."""

        def walk(x: Any, path: tuple[Any, ...]) -> Any:
            if isinstance(x, dict):
                return {key: walk(y, (*path, key)) for key, y in x.items()}
            if _is_tree(x):
                made = [walk(y, (*path, key)) for key, y in _children(x)]
                return type(x)(*made) if hasattr(x, "_fields") else type(x)(made)
            array = self.adapter.array(x)
            new = None if array is None else change(path, array)
            return x if new is None else self.adapter.leaf(new, x)

        return walk(tree, ())


def _drawn(name: str, t: int, shape: tuple[int, ...]) -> Array:
    rng = np.random.default_rng([t, zlib.crc32(name.encode())])
    drawn: Array = np.asarray(rng.standard_normal(shape))
    return drawn


def _is_tree(x: Any) -> bool:
    return isinstance(x, dict | list | tuple)


def _children(x: Any) -> list[tuple[Any, Any]]:
    if isinstance(x, dict):
        return list(x.items())
    if hasattr(x, "_fields"):
        return list(zip(x._fields, x, strict=True))
    return list(enumerate(x)) if isinstance(x, list | tuple) else []


def dotted(path: tuple[Any, ...]) -> str:
    """A place in a state dict, as it is named in messages."""
    return ".".join(map(str, path))


# Comparisons

Snapshot = tuple[dict[str, Array], dict[str, dict[str, Array]]]


def snapshot(opt: Candidate) -> Snapshot:
    """Copies of parameters and state."""
    return opt.params(), opt.state()


def same(actual: Candidate, expected: Candidate, what: str, names: Sequence[str] = ()) -> None:
    """AssertionError unless parameters and state of two optimizers have the same bits."""
    compare(snapshot(actual), snapshot(expected), what, names)


def unchanged(opt: Candidate, before: Snapshot, what: str, names: Sequence[str] = ()) -> None:
    """AssertionError unless the optimizer is as it was."""
    compare(snapshot(opt), before, what, names)


def compare(actual: Snapshot, expected: Snapshot, what: str, names: Sequence[str] = ()) -> None:
    """AssertionError unless the bits are the same, of all parameters or of those named."""
    for name in names or expected[0]:
        same_array(actual[0][name], expected[0][name], f"{what}parameter {name!r}")
        mine, other = actual[1].get(name, {}), expected[1].get(name, {})
        assert mine.keys() == other.keys(), (
            f"{what}state of parameter {name!r} has {sorted(mine)}; expected {sorted(other)}"
        )
        for key in other:
            same_array(mine[key], other[key], f"{what}state {key!r} of parameter {name!r}")


def same_array(actual: Array, expected: Array, what: str) -> None:
    """AssertionError unless two arrays have the same type, shape and bits; NaN equals NaN."""
    assert actual.dtype == expected.dtype, f"{what} is {actual.dtype}; expected {expected.dtype}"
    assert actual.shape == expected.shape, f"{what} has {actual.shape}; expected {expected.shape}"
    if actual.dtype.kind not in "fc":
        assert (actual == expected).all(), f"{what} differs: {actual} and {expected}"
        return
    with np.errstate(all="ignore"):
        equal = (actual == expected) & (np.signbit(actual) == np.signbit(expected))
        equal |= np.isnan(actual) & np.isnan(expected)
        if not equal.all():
            most = float(np.nanmax(abs(actual.astype(np.float64) - expected)))
            raise AssertionError(
                f"{what} differs in {np.sum(~equal)} of {actual.size} elements, by {most:.3g} at "
                "most"
            )
