"""Python values as JSON, and back to equal values of the same types.

JSON has no tuple, infinity, NumPy number or schedule. These become objects with one key that
begins with ``$``:

    {"$tuple": [...]}    {"$float": "inf"}    {"$numpy": ["float32", 0.1]}
    {"$dict": [[key, value], ...]}           for keys that are no strings or begin with $
    {"$object": ["schedules.cosine", {field: value}]}
    {"$generator": ["PCG64", state, seed sequence]}             a numpy.random.Generator

An object is made by its class, which checks the fields. Only the classes that ``classes`` lists can
be named: a file never says what to import or call. Finite floats read back to the same bits.
"""

import json
import math
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from steepest import nesting, schedules
from steepest.checkpoint import random_generators
from steepest.checkpoint.container import parse
from steepest.checkpoint.error import CheckpointError
from steepest.fields import arguments
from steepest.options import average, clip, filters, regularize

_NUMPY: dict[str, type[np.generic]] = {
    kind.__name__: kind
    for kind in (
        np.bool_, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32,
        np.uint64, np.float16, np.float32, np.float64, np.str_,
    )
}  # fmt: skip


def classes() -> dict[str, type[Any]]:
    """The classes whose objects can be stored, by name.

    Those of ``steepest.schedules.SCHEDULES``, to which your own schedule may be added, the frozen
    dataclasses of ``steepest.average``, ``clip``, ``filters`` and ``regularize``, and the clips,
    filters and penalties of your own that have been defined.
    """
    named: dict[str, type[Any]] = {f"schedules.{k}": c for k, c in schedules.SCHEDULES.items()}
    for module in (average, clip, filters, regularize):
        named |= _frozen(module)
    families: dict[str, Mapping[str, type[Any]]] = {
        "clip": clip.CLIPS, "filters": filters.FILTERS, "regularize": regularize.PENALTIES,
    }  # fmt: skip
    for family, kinds in families.items():
        named |= {f"{family}.{name}": kind for name, kind in kinds.items()}
    return named


def _frozen(module: ModuleType) -> Iterator[tuple[str, type[Any]]]:
    short = module.__name__.rpartition(".")[2]
    for name, found in vars(module).items():
        if isinstance(found, type) and found.__module__.startswith(module.__name__):
            made = getattr(found, "__dataclass_params__", None)
            if made is not None and made.frozen:
                yield f"{short}.{name}", found


def dumps(value: Any, what: str) -> str:
    """The value as JSON. Raises CheckpointError naming the part of `what` that cannot be stored."""
    try:
        nesting.check(value)
        return json.dumps(_encoded(value, what), allow_nan=False)
    except RecursionError:
        raise CheckpointError(f"{what} is nested too deeply, or contains itself") from None
    except CheckpointError:
        raise
    except ValueError as error:  # an integer of more digits than Python turns into text
        raise CheckpointError(f"{what}: {error}") from None


def loads(text: str, what: str) -> Any:
    """The value that `dumps` has written. Raises CheckpointError for any other text."""
    tree = parse(text, what)
    try:
        return _decoded(tree, classes())
    except RecursionError:
        raise CheckpointError(f"{what} is nested too deeply") from None
    except CheckpointError as error:
        raise CheckpointError(f"{what}: {error}") from None
    except Exception as error:  # whatever a class says of fields that do not suit it
        raise CheckpointError(f"{what}: {type(error).__name__}: {error}") from error


def _encoded(x: Any, what: str) -> Any:
    kind = type(x)
    if x is None or kind in (bool, int, str):
        return x
    if kind is float:
        return x if math.isfinite(x) else {"$float": repr(x)}
    if isinstance(x, np.generic):
        if _NUMPY.get(kind.__name__) is kind:
            return {"$numpy": [kind.__name__, _encoded(x.item(), what)]}
    elif isinstance(x, dict):
        return _encoded_dict(x, what)
    elif isinstance(x, (list, tuple)):
        items = [_encoded(y, f"{what}[{i}]") for i, y in enumerate(x)]
        return items if isinstance(x, list) else {"$tuple": items}
    elif kind is np.random.Generator:
        return {"$generator": _encoded(random_generators.parts(x, what), what)}
    else:
        name = next((name for name, known in classes().items() if known is kind), None)
        if name is not None:
            return {"$object": [name, *_parts(x, what)]}
    raise CheckpointError(f"{what} = {x!r} cannot be stored in a file; {_advice(x)}")


def _encoded_dict(x: dict[Any, Any], what: str) -> Any:
    pairs = [(key, _encoded(y, f"{what}[{key!r}]")) for key, y in x.items()]
    if all(type(key) is str and not key.startswith("$") for key in x):
        return dict(pairs)
    return {"$dict": [[_encoded(key, f"a key of {what}"), y] for key, y in pairs]}


def _parts(x: Any, what: str) -> list[Any]:
    """The arguments that make an object again and, if it changes with time, its state."""
    parts = [{name: _encoded(y, f"{what}.{name}") for name, y in arguments(x).items()}]
    if hasattr(x, "state_dict"):
        parts.append(_encoded(x.state_dict(), f"{what}.state_dict()"))
    return parts


def _advice(x: Any) -> str:
    if isinstance(x, np.ndarray):
        return "give arrays as arrays={name: array}, and a random generator itself"
    if callable(x):
        return (
            "of all callables only the schedules of steepest.schedules can: use one of them, or "
            "add a frozen dataclass of your own to steepest.schedules.SCHEDULES, or put a number "
            "in its place while saving"
        )
    return "expected numbers, strings, None, and lists, tuples and dicts of them"


def _decoded(x: Any, known: dict[str, type[Any]]) -> Any:
    if isinstance(x, list):
        return [_decoded(y, known) for y in x]
    if not isinstance(x, dict):
        return x
    if not any(key.startswith("$") for key in x):
        return {key: _decoded(y, known) for key, y in x.items()}
    (key, content), *more = x.items()
    if more:
        raise CheckpointError(f"{key} next to {more[0][0]!r}; expected it alone")
    if key == "$float" and content in ("inf", "-inf", "nan"):
        return float(content)
    if not isinstance(content, list):
        raise CheckpointError(f"{key} with {content!r}, which has no meaning")
    items = [_decoded(y, known) for y in content]
    if key == "$tuple":
        return tuple(items)
    if key == "$dict":
        pairs = dict(items)
        if len(pairs) != len(items):
            raise CheckpointError("a dict has a key twice")
        return pairs
    if key == "$numpy":
        name, value = items
        return _NUMPY[name](value)
    if key == "$generator":
        return random_generators.made(*items)
    if key == "$object":
        return _made(items, known)
    raise CheckpointError(f"{key} has no meaning")


def _made(items: list[Any], known: dict[str, type[Any]]) -> Any:
    name, fields, *state = items
    if name not in known:
        raise CheckpointError(f"an object of kind {name!r}, which this version does not have")
    made = known[name](**fields)
    if state:
        made.load_state_dict(*state)
    return made
