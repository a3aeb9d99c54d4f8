"""Checkpoints: parameters, optimizer and whatever else a run needs to go on, in one file.

>>> import numpy as np, steepest as st, tempfile, os
>>> path = os.path.join(tempfile.mkdtemp(), "run.safetensors")
>>> w = np.array([1.0, 2.0])
>>> opt = st.AdamW({"w": w}, lr=st.schedules.cosine(0.1, steps=100))
>>> opt.step({"w": np.array([0.5, -0.5])})
>>> st.save(path, opt, extra={"epoch": 1})

>>> again = np.zeros(2)
>>> opt2 = st.AdamW({"w": again}, lr=1.0)
>>> st.load(path, opt2).extra, opt2.updates, opt2.param_groups[0]["lr"]
({'epoch': 1}, 1, cosine(lr=0.1, steps=100, end=0.0))
>>> bool((again == w).all())
True

The file is a safetensors file, which many tools read; what its arrays are called:

    w                     the parameter "w" of the optimizer, or a further one of ``params``
    optimizer/w/exp_avg   the state "exp_avg" of the parameter "w"
    arrays/order          the array "order" of ``arrays``

and its metadata: ``format``, ``version`` (of the format), ``steepest`` (the version that wrote it),
``rule``; as JSON ``groups`` (the parameter groups, see ``values``), ``optimizer`` (its counts),
``extra``, and the digests ``sha256`` and ``sha256_metadata`` (see ``container``).
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata as installed
from typing import Any

import numpy as np

from steepest import arrays as checks
from steepest.arrays import Array
from steepest.checkpoint import container, values
from steepest.checkpoint.error import CheckpointError as CheckpointError
from steepest.optimizers import Optimizer, structure

__all__ = ["Checkpoint", "CheckpointError", "load", "read", "save"]

_FORMAT, _VERSION = "steepest.checkpoint", "1"

Path = str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a file holds.

    params: the parameters' values by name. state_dict: as ``Optimizer.state_dict`` gave it.
    extra: the dict given to ``save``. arrays: the further arrays given to ``save``, by name.
    """

    params: dict[str, Array]
    state_dict: dict[str, Any]
    extra: dict[str, Any]
    arrays: dict[str, Array]


def save(
    path: Path,
    optimizer: Optimizer,
    params: Any = None,
    *,
    extra: Mapping[str, Any] | None = None,
    arrays: Mapping[str, Any] | None = None,
) -> None:
    """Writes parameters and state of an optimizer to a file, replacing it as a whole or not at all.

    params: the model's arrays, nested as for an optimizer, if it has more than the optimizer
    steps. extra: a dict of numbers, strings, None, lists, tuples and dicts. arrays: further arrays
    by name.

    Raises CheckpointError for what cannot be stored, such as a learning rate that is a function of
    one's own, TypeError for what is no array, OSError. After any exception, Ctrl-C or a kill there
    is the file that was there before, or the new one.
    """
    state = optimizer.state_dict()
    stored = _own(optimizer)
    stored |= _further(optimizer, params)
    for name in stored:
        if name.startswith(("optimizer/", "arrays/")):
            raise CheckpointError(f"a parameter cannot have the name {name!r}; rename it")
    for name, own in state.pop("state").items():
        for key, x in own.items():
            if "/" in key:
                raise CheckpointError(f"a state cannot have the name {key!r}; rename it")
            stored[f"optimizer/{name}/{key}"] = x
    for name, x in (arrays or {}).items():
        stored[f"arrays/{name}"] = checks.as_array(x, f"arrays[{name!r}]")
    metadata = {
        "format": _FORMAT,
        "version": _VERSION,
        "steepest": installed.version("steepest"),
        "rule": state.pop("rule"),
        "groups": values.dumps(state.pop("param_groups"), "param_groups"),
        "optimizer": values.dumps(state, "optimizer"),
        "extra": values.dumps(dict(extra or {}), "extra"),
    }
    # Copies: what is written is what the digests are of, whatever another thread does meanwhile.
    container.write(path, {k: np.array(x, order="C") for k, x in stored.items()}, metadata)


def read(path: Path) -> Checkpoint:
    """What a file holds, fully checked, without an optimizer to put it into.

    Raises FileNotFoundError, or CheckpointError for anything that is not a whole, undamaged
    checkpoint of a format version that this version knows.
    """
    stored, metadata = container.read(path)
    where = os.fsdecode(path)
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(f"{where} is a safetensors file, but no checkpoint of steepest")
    if metadata.get("version") != _VERSION:
        raise CheckpointError(
            f"{where} has format version {metadata.get('version')}; this version of steepest reads "
            f"version {_VERSION}: install the one that wrote it, {metadata.get('steepest')}"
        )
    missing = {"rule", "groups", "optimizer", "extra"} - metadata.keys()
    if missing:
        raise CheckpointError(f"{where}: the metadata lacks {', '.join(sorted(missing))}")
    groups, counts, extra = (
        values.loads(metadata[key], f"{where}: {key}") for key in ("groups", "optimizer", "extra")
    )
    if not isinstance(counts, dict) or not isinstance(extra, dict) or not _are_groups(groups):
        raise CheckpointError(f"{where}: groups, optimizer or extra is not what it should be")
    names = [name for group in groups for name in group["param_names"]]
    params: dict[str, Array] = {}
    further: dict[str, Array] = {}
    state: dict[str, dict[str, Array]] = {name: {} for name in names}
    for name, x in stored.items():
        kind, _, rest = name.partition("/")
        if kind == "arrays" and rest:
            further[rest] = x
        elif kind == "optimizer" and "/" in rest:
            owner, _, key = rest.rpartition("/")
            if owner not in state:
                raise CheckpointError(f"{where}: state {key!r} of an unknown parameter {owner!r}")
            state[owner][key] = x
        else:
            params[name] = x
    if missing := state.keys() - params.keys():
        raise CheckpointError(f"{where} lacks the parameters {_listed(missing)}")
    state_dict = {"rule": metadata["rule"], **counts, "state": state, "param_groups": groups}
    return Checkpoint(params, state_dict, extra, further)


def load(path: Path, optimizer: Optimizer, params: Any = None) -> Checkpoint:
    """Puts a file's parameters into the optimizer's arrays, and its state into the optimizer.

    Arrays are matched by name. params: as given to ``save``. The optimizer must be of the same
    class and have parameters of the same names, shapes and dtypes in the same groups; its
    hyper-parameters become those of the file. Returns what ``read`` returns.

    Raises FileNotFoundError, or CheckpointError if anything is wrong or does not fit; then nothing
    was changed.
    """
    found = read(path)
    where = os.fsdecode(path)
    if found.state_dict["rule"] != optimizer.rule:
        raise CheckpointError(
            f"{where} is of rule {found.state_dict['rule']!r}; the optimizer's is "
            f"{optimizer.rule!r}"
        )
    targets = _own(optimizer) | _further(optimizer, params)
    _check_names(found, targets, where)
    for name, x in targets.items():
        value = found.params[name]
        if x.dtype != value.dtype or x.shape != value.shape:
            raise CheckpointError(
                f"{where}: parameter {name!r} is {value.dtype} of shape {value.shape}; "
                f"the array to load it into is {x.dtype} of shape {x.shape}"
            )
        if not x.flags.writeable or checks.overlaps_itself(x):
            raise CheckpointError(f"parameter {name!r} is read-only or has elements that share")
    checks.disjoint_bounds([(f"parameter {name!r}", x) for name, x in targets.items()])
    state_dict = _reordered(found.state_dict, optimizer, where)
    plateaus = [
        (number, key, x)
        for number, group in enumerate(optimizer.param_groups)
        for key, x in group.items()
        if hasattr(x, "load_state_dict")
    ]
    with _uninterrupted():
        try:
            optimizer.load_state_dict(state_dict)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{where}: {error}") from error
        for name, x in targets.items():
            np.copyto(x, found.params[name])
        for number, key, x in plateaus:
            _continue(x, optimizer.param_groups[number], key)
    return found


def _own(optimizer: Optimizer) -> dict[str, Array]:
    """The optimizer's parameters by name."""
    return {
        name: p
        for group in optimizer.param_groups
        for name, p in zip(group["param_names"], group["params"], strict=True)
    }


def _further(optimizer: Optimizer, params: Any) -> dict[str, Array]:
    """The arrays of `params` that are none of the optimizer's, by name."""
    if params is None:
        return {}
    own = _own(optimizer)
    places = {_place(p) for p in own.values()}
    _, names, leaves = structure.flatten(params)
    further: dict[str, Array] = {}
    for name, leaf in zip(names, leaves, strict=True):
        x = checks.as_array(leaf, f"params {name!r}")
        if _place(x) in places:
            continue
        if name in own:
            raise CheckpointError(
                f"params {name!r} is another array than the optimizer's parameter of that name; "
                "give the arrays that the optimizer updates"
            )
        if name in further:
            raise CheckpointError(f"params has the name {name!r} twice; names must differ")
        further[name] = x
    return further


def _place(x: Array) -> tuple[Any, ...]:
    return x.__array_interface__["data"][0], x.shape, x.strides, x.dtype


def _are_groups(groups: Any) -> bool:
    return isinstance(groups, list) and all(
        isinstance(group, dict)
        and isinstance(group.get("param_names"), list)
        and all(isinstance(name, str) for name in group["param_names"])
        for group in groups
    )


def _check_names(found: Checkpoint, targets: Mapping[str, Array], where: str) -> None:
    if missing := targets.keys() - found.params.keys():
        raise CheckpointError(f"{where} lacks the parameters {_listed(missing)}")
    if unknown := found.params.keys() - targets.keys():
        raise CheckpointError(
            f"{where} has parameters that are nowhere to put: {_listed(unknown)}; give the arrays "
            "for them as params=, or use read"
        )


def _listed(names: set[str]) -> str:
    shown = sorted(names)
    return ", ".join(map(repr, shown[:5])) + (f" and {len(shown) - 5} more" if shown[5:] else "")


def _reordered(state_dict: dict[str, Any], optimizer: Optimizer, where: str) -> dict[str, Any]:
    """The state with each group's names in the optimizer's order, which may be another."""
    groups, live = state_dict["param_groups"], optimizer.param_groups
    same = len(groups) == len(live) and all(
        sorted(a["param_names"]) == sorted(b["param_names"])
        for a, b in zip(groups, live, strict=True)
    )
    if not same:
        raise CheckpointError(f"{where} has the parameters in other groups than the optimizer")
    ordered = [a | {"param_names": b["param_names"]} for a, b in zip(groups, live, strict=True)]
    return state_dict | {"param_groups": ordered}


def _continue(x: Any, group: dict[str, Any], key: str) -> None:
    """Gives a schedule that changes with time the loaded state and its place, so that whoever
    holds it goes on with the one that is used. Another schedule in the file stays."""
    loaded: Any = group.get(key)
    if type(loaded) is type(x) and values.arguments(loaded) == values.arguments(x):
        x.load_state_dict(loaded.state_dict())
        group[key] = x


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Holds back Ctrl-C until the end, so that what is inside is done wholly."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    held: list[Any] = []
    try:
        signal.signal(signal.SIGINT, lambda *arguments: held.append(arguments))
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held:
            before(*held[0])
