"""Makes a history that fails smaller, greedily, as long as it fails in the same way."""

import copy
import time
from collections.abc import Callable, Iterator
from typing import Any

History = dict[str, Any]


def shrunk(history: History, fails: Callable[[History], bool], seconds: float = 60.0) -> History:
    """The smallest that was found within a time: one thing after the other is left away, until
    nothing can be. `fails` says whether a history still fails."""
    end = time.monotonic() + seconds
    again = True
    while again:
        again = False
        for candidate in smaller(history):
            if time.monotonic() > end:
                return history
            if fails(candidate):
                history, again = candidate, True
                break
    return history


def size(history: History) -> int:
    """How much there is in a history, to compare two."""
    return len(repr(history))


def smaller(history: History) -> Iterator[History]:
    """Histories with a thing less, those with much less first."""
    events = history["events"]
    for half in (events[len(events) // 2 :], events[: len(events) // 2]):
        if 0 < len(half) < len(events):
            yield changed(history, events=half)
    for i in range(len(events) - 1, -1, -1):
        if len(events) > 1:
            yield changed(history, events=events[:i] + events[i + 1 :])
    groups = history["groups"]
    for i in range(len(groups) - 1, -1, -1):
        if len(groups) > 1:
            yield changed(history, groups=groups[:i] + groups[i + 1 :])
    yield from _within(history, "given")
    for place in _places(history):
        yield from _in_group(history, place)
    for i, event in enumerate(events):
        for key in event.keys() - {"do", "id", "draw", "way", "group", "key", "value"}:
            yield _at(history, ("events", i), {k: x for k, x in event.items() if k != key})
        if event.get("draw", "normal") != "normal":
            yield _at(history, ("events", i, "draw"), "normal")


def changed(history: History, **parts: Any) -> History:
    """A copy with other parts."""
    return copy.deepcopy({**history, **parts})


def _at(history: History, place: tuple[Any, ...], value: Any) -> History:
    made = copy.deepcopy(history)
    inner: Any = made
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return made


def _within(history: History, *place: Any) -> Iterator[History]:
    """Without one of the keys of the dict at a place."""
    inner: Any = history
    for key in place:
        inner = inner[key]
    for key in list(inner):
        yield _at(history, place, {k: x for k, x in inner.items() if k != key})


def _places(history: History) -> Iterator[tuple[Any, ...]]:
    """Where groups are."""
    for i in range(len(history["groups"])):
        yield "groups", i
    for i, event in enumerate(history["events"]):
        if event["do"] == "add":
            yield "events", i, "group"


def _in_group(history: History, place: tuple[Any, ...]) -> Iterator[History]:
    group: Any = history
    for key in place:
        group = group[key]
    yield from _within(history, *place, "own")
    if len(group["arrays"]) > 1:
        yield from _within(history, *place, "arrays")
    for name, x in group["arrays"].items():
        at = (*place, "arrays", name)
        for key, plain in (("layout", "C"), ("draw", "normal"), ("dtype", "float32")):
            if x.get(key, plain) != plain:
                yield _at(history, (*at, key), plain)
        for i, n in enumerate(x["shape"]):
            for fewer in {n // 2, n - 1} - {n, -1, 0}:
                yield _at(history, (*at, "shape", i), fewer)
            yield _at(history, (*at, "shape"), x["shape"][:i] + x["shape"][i + 1 :])
