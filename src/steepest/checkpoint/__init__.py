"""Checkpoints: parameters, optimizer and whatever else a run needs to continue, in one file.

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

The file is a safetensors file, which many tools read. Its arrays are called

    w                     the parameter "w" of the optimizer, or a further one of ``params``
    optimizer/w/exp_avg   the state "exp_avg" of the parameter "w"
    arrays/order          the array "order" of ``arrays``

Its metadata is ``format``, ``version`` (of the format), ``steepest`` (the version that wrote it),
``rule``; as JSON ``groups`` (the parameter groups, see ``json_values``), ``optimizer`` (its counts)
and ``extra``; and the digests ``sha256`` and ``sha256_metadata`` (see ``container``).
"""

import contextlib
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata as installed
from typing import Any

import numpy as np

from steepest.checkpoint import container, json_values, named_arrays
from steepest.checkpoint.error import CheckpointError as CheckpointError
from steepest.core import internal
from steepest.fields import Call
from steepest.memory.arrays import Array, as_array
from steepest.memory.files import Scratch
from steepest.optimizers import Optimizer

__all__ = ["Checkpoint", "CheckpointError", "load", "read", "save"]

_FORMAT, _VERSION = "steepest.checkpoint", "1"

Path = str | os.PathLike[str]


@dataclass(frozen=True, eq=False, repr=False)
class Checkpoint:
    """The contents of a file.

    params: the parameters' values by name. state_dict: as ``Optimizer.state_dict`` gave it.
    extra: the dict given to ``save``. arrays: the further arrays given to ``save``, by name.
    """

    params: dict[str, Array]
    state_dict: dict[str, Any]
    extra: dict[str, Any]
    arrays: dict[str, Array]

    def __repr__(self) -> str:
        told = [f"{len(self.params)} parameters", f"rule {self.state_dict['rule']!r}"]
        told += [f"extra {', '.join(self.extra)}"] if self.extra else []
        told += [f"{len(self.arrays)} further arrays"] if self.arrays else []
        return f"Checkpoint({'; '.join(told)})"


# Saving


def save(
    path: Path,
    optimizer: named_arrays.Saved,
    params: Any = None,
    *,
    extra: Mapping[str, Any] | None = None,
    arrays: Mapping[str, Any] | None = None,
) -> None:
    """Writes parameters and state of an optimizer to a file, which is replaced as a whole.

    params: the model's arrays, nested as for an optimizer, if there are more than the optimizer
    steps. extra: a dict of numbers, strings, None, lists, tuples, dicts and NumPy's random
    generators. arrays: further arrays by name.

    Raises CheckpointError for what cannot be stored, such as a learning rate that is your own
    function; TypeError for what is not an array; ValueError for a schedule that never was in range,
    which could not be loaded; OSError. After any exception, Ctrl-C or a kill there is the old file
    or the new one.
    """
    if isinstance(optimizer, named_arrays.Sharded):
        optimizer.as_one(lambda whole: save(path, whole, params, extra=extra, arrays=arrays))
        return
    for name, given in (("extra", extra), ("arrays", arrays)):
        if given is not None and not isinstance(given, Mapping):
            raise TypeError(f"{name} is a {type(given).__name__}; expected a dict")
    state = (
        internal.own_state_dict(optimizer)
        if isinstance(optimizer, Optimizer)
        else optimizer.state_dict()
    )
    stored = _stored(named_arrays.by_name(optimizer, params), state.pop("state"), arrays or {})
    metadata = {
        "format": _FORMAT,
        "version": _VERSION,
        "steepest": _installed_version(),
        "rule": state.pop("rule"),
        "groups": json_values.dumps(state.pop("param_groups"), "param_groups"),
        "optimizer": json_values.dumps(state, "optimizer"),
        "extra": json_values.dumps(dict(extra or {}), "extra"),
    }
    container.write(path, stored, metadata)


@functools.cache
def _installed_version() -> str:
    """The version of this package, read once from a file of the installation."""
    return installed.version("steepest")


def _stored(
    params: Mapping[str, Array], state: Mapping[str, Any], arrays: Mapping[str, Any]
) -> dict[str, Array]:
    """All arrays by their names in the file."""
    stored: dict[str, Array] = {}
    for name, x in params.items():
        if name.startswith(("optimizer/", "arrays/")):
            raise CheckpointError(f"a parameter cannot have the name {name!r}; rename it")
        stored[name] = x
    for name, own in state.items():
        for key, x in own.items():
            if "/" in key:
                raise CheckpointError(f"a state cannot have the name {key!r}; rename it")
            stored[f"optimizer/{name}/{key}"] = np.asarray(x)
    for name, x in arrays.items():
        if not isinstance(name, str):
            raise TypeError(f"arrays has the key {name!r}; expected names, which are strings")
        stored[f"arrays/{name}"] = as_array(x, f"arrays[{name!r}]")
    return stored


# Reading


def read(path: Path) -> Checkpoint:
    """The contents of a file, fully checked, without an optimizer to put them into.

    Raises FileNotFoundError, or CheckpointError for anything but a whole, undamaged checkpoint of
    a format version that this version of steepest knows.
    """
    return _found(path, None)


def _found(path: Path, files: Scratch | None) -> Checkpoint:
    stored, metadata = container.read(path, files)
    where = os.fsdecode(path)
    _check_version(metadata, where)
    groups, counts, extra = (
        json_values.loads(metadata[key], f"{where}: {key}")
        for key in ("groups", "optimizer", "extra")
    )
    if not (_are_groups(groups) and _are_counts(counts) and isinstance(extra, dict)):
        raise CheckpointError(f"{where}: groups, optimizer or extra lacks its expected form")
    params: dict[str, Array] = {}
    arrays: dict[str, Array] = {}
    state: dict[str, dict[str, Array]] = {
        name: {} for group in groups for name in group["param_names"]
    }
    for name, x in stored.items():
        kind, slash, rest = name.partition("/")
        if not slash or kind not in ("optimizer", "arrays"):
            params[name] = x
            continue
        if kind == "arrays":
            arrays[rest] = x
            continue
        owner, slash, key = rest.rpartition("/")
        if not slash or owner not in state:
            raise CheckpointError(f"{where}: state {key!r} of an unknown parameter {owner!r}")
        state[owner][key] = x
    if missing := state.keys() - params.keys():
        raise CheckpointError(f"{where} lacks the parameters {named_arrays.listed(missing)}")
    whole = {**counts, "rule": metadata["rule"], "state": state, "param_groups": groups}
    return Checkpoint(params, whole, extra, arrays)


def _check_version(metadata: Mapping[str, str], where: str) -> None:
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(f"{where} is a safetensors file, but not a checkpoint of steepest")
    if metadata.get("version") != _VERSION:
        raise CheckpointError(
            f"{where} has format version {metadata.get('version')}; this version of steepest reads "
            f"version {_VERSION}: install the one that wrote it, {metadata.get('steepest')}"
        )
    if missing := {"rule", "groups", "optimizer", "extra"} - metadata.keys():
        raise CheckpointError(f"{where}: the metadata lacks {named_arrays.listed(missing)}")


def _are_groups(groups: Any) -> bool:
    return isinstance(groups, list) and all(
        isinstance(group, dict)
        and isinstance(group.get("param_names"), list)
        and all(isinstance(name, str) for name in group["param_names"])
        for group in groups
    )


def _are_counts(counts: Any) -> bool:
    return isinstance(counts, dict) and all(
        type(counts.get(key)) is int and 0 <= counts[key] < 2**62 for key in ("updates", "skipped")
    )


# Loading


def load(path: Path, optimizer: named_arrays.Saved, params: Any = None) -> Checkpoint:
    """Puts a file's parameters into the optimizer's arrays, and its state into the optimizer.

    Arrays are matched by name and filled in place. params: as given to ``save``. The optimizer
    must be of the same class and have parameters of the same names, shapes and dtypes in the same
    groups; its hyper-parameters become those of the file. Returns what ``read`` returns; its arrays
    are in files, too, if the optimizer has a ``state_dir``.

    Raises FileNotFoundError, or CheckpointError if anything is wrong or does not fit; then, as
    after any other exception, nothing was changed.
    """
    where = os.fsdecode(path)
    folder = getattr(optimizer, "state_dir", None)
    with _together(optimizer):
        found = _found(path, None if folder is None else Scratch(folder))
        rule = found.state_dict["rule"]
        if rule != optimizer.rule:
            raise CheckpointError(
                f"{where} has the rule {rule!r}; the optimizer has {optimizer.rule!r}"
            )
        named = named_arrays.by_name(optimizer, params)
        pairs = named_arrays.fitting(named, found.params, where)
        state_dict = _reordered(found.state_dict, optimizer, where)
        copying: list[Call] = [(np.ndarray.__setitem__, (x, ..., value)) for x, value in pairs]
    try:
        internal.load_with(optimizer, state_dict, copying)
    except (MemoryError, OSError):
        raise
    except KeyError as error:
        raise CheckpointError(f"{where} lacks {error}") from error
    except Exception as error:  # whatever a schedule or a check says of values from the file
        raise CheckpointError(f"{where}: {error}") from error
    return found


def _together(optimizer: named_arrays.Saved) -> contextlib.AbstractContextManager[None]:
    if isinstance(optimizer, named_arrays.Sharded):
        return optimizer.together()
    return contextlib.nullcontext()


def _reordered(
    state_dict: dict[str, Any], optimizer: named_arrays.Saved, where: str
) -> dict[str, Any]:
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
