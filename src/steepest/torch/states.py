"""The ``state`` of a torch optimizer: one object for life, watched in place.

torch's optimizers look into ``state`` at every step, so whoever writes there is heard: by putting
an entry in, by writing into a tensor, or by giving a tensor other memory (``x.data = y``, ``set_``,
``share_memory_``). To look at each tensor at each step would cost more than the step of small ones.
So the dicts mark that they were written to, or read: memory can only change in the hands of who has
read a tensor here, and tensors are looked at as long as someone else may hold one.
"""

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from operator import is_
from typing import Any

import numpy as np

from steepest.core.state import Changes, Marking, WatchedDict
from steepest.extras import require
from steepest.kernels import sources
from steepest.memory.arrays import Array
from steepest.torch import layout, views

torch: Any = require("torch", extra="torch", purpose="steepest.torch")

__all__ = [
    "Marks",
    "State",
    "States",
    "Unwatched",
    "adopted",
    "keys_of",
    "lent",
    "lie_as",
    "pairs",
    "peek",
]

_REFERENCES = 3
"""What holds a tensor of the state here: the state, the pair it is in, and the list that asks."""


class Marks(Changes):
    """What has happened to the dicts that share this mark."""

    def __init__(self) -> None:
        super().__init__()  # `any` is whether they have been touched
        self.written = True


class State(WatchedDict):
    """The state of a parameter, which marks that it was written to, or that a value was read."""

    changes: Marks | None

    def mark(self) -> None:
        if self.changes is not None:
            self.changes.any = self.changes.written = True

    def _read(self) -> None:
        if self.changes is not None:
            self.changes.any = True

    def __getitem__(self, key: str) -> Any:
        self._read()
        return super().__getitem__(key)

    def __iter__(self) -> Iterator[str]:  # without it, dict(x) and {**x} read the values unheard
        return super().__iter__()

    def __or__(self, other: Any) -> Any:
        self._read()
        return super().__or__(other)

    def __ror__(self, other: Any) -> Any:
        self._read()
        return super().__ror__(other)

    def get(self, *arguments: Any) -> Any:
        self._read()
        return super().get(*arguments)

    def values(self) -> Any:
        self._read()
        return super().values()

    def items(self) -> Any:
        self._read()
        return super().items()

    def copy(self) -> dict[str, Any]:
        self._read()
        return super().copy()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """In a file it is what torch.load knows, weights_only or not."""
        return OrderedDict, (), None, None, iter(self.items())

    def __copy__(self) -> dict[str, Any]:
        return self.copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> "State":
        marks: Any = copy.deepcopy(self.changes, memo)
        memo[id(self)] = made = State({}, marks)
        dict.update(made, {key: copy.deepcopy(value, memo) for key, value in self.items()})
        return made


class States(Marking, defaultdict[Any, Any]):
    """The state of all parameters, which marks that one was put in or taken out."""

    def __init__(self, marks: Marks) -> None:
        super().__init__(dict)
        self.marks = marks

    def __missing__(self, key: Any) -> State:
        made = State({}, self.marks)
        dict.__setitem__(self, key, made)  # of an empty state there is nothing to take over
        return made

    def copy(self) -> Any:
        return defaultdict(dict, self)

    def __copy__(self) -> Any:
        return self.copy()

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def __ror__(self, other: Any) -> Any:
        return other | self.copy()

    def watch(self) -> None:
        """Makes the dicts that a pickle brings such that mark changes."""
        for key, value in self.items():
            if isinstance(key, torch.Tensor) and type(value) is OrderedDict:
                dict.__setitem__(self, key, State(value, self.marks))

    def __reduce__(self) -> Any:
        return type(self), (self.marks,), None, None, iter(self.items())

    def mark(self) -> None:
        self.marks.any = self.marks.written = True


class Unwatched:
    """A dict that is not one of these, and what it had; it is compared at every step."""

    def __init__(self, given: Any) -> None:
        self.given = given
        self.keys, self.values = list(given), list(given.values())

    def changed(self) -> bool:
        """Whether it has others now."""
        now = self.given
        return (
            len(now) != len(self.keys)
            or not all(map(is_, now, self.keys))
            or not all(map(is_, now.values(), self.values))
        )


def keys_of(program: Any, p: Any) -> set[str]:
    """What the state of a parameter has of the rule and of its options."""
    return {
        "step",
        *program.rule_keys(p),
        *program.rule.scalars(program.h),
        *program.operation_states,
        *program.keys_beside(p),
    }


def adopted(
    program: Any, p: Any, own: Array, state: Any, name: str, step: int, retyped: bool
) -> dict[str, Any]:
    """A state of torch's as one of ours: arrays over the same memory, of the parameter's type.

    `own` is the parameter p as an array. Of entries that are not the rule's, those that may become
    so, when an option is set later.
    """
    found = layout.state_from_torch(program.rule.rule, state, name, step)
    keys, scalars = keys_of(program, own), program.rule.scalars(program.h)
    if "step" not in state and not (keys - {"step"}) & found.keys():
        return {}
    made = {}
    found |= _in_groups(found, program, own)
    scales = program.scale_keys(own)
    for key, x in found.items():
        if key in keys:
            what = f"state {key!r} of parameter {name!r}"
            if key not in scalars and key != "step":
                x = _retyped(x, p, program.state_type(key, own), retyped)
            made[key] = views.scales(x, p, what) if key in scales else views.state(x, what)
        elif isinstance(x, torch.Tensor) and x.shape == p.shape and views.ordinary(x):
            made[key] = views.array(x, key, writable=True)
    return made


def _in_groups(found: Mapping[str, Any], program: Any, p: Array) -> dict[str, Any]:
    """Codes and scales in the place of states of floats, as other optimizers have them."""
    made = {}
    for key in program.rule_keys(p):
        x = found.get(key)
        if isinstance(x, torch.Tensor) and x.is_floating_point() and program.scaled(key, p):
            local = views.local(x.detach()).to("cpu", torch.float32)
            numbers = local.numpy().reshape(p.shape)
            for own in (key, program.scale_key(key)):
                made[own] = torch.from_numpy(program.in_groups(own, p, lambda _, x=numbers: x))
    return made


_SHORT = (torch.bfloat16, torch.float16)


def _retyped(x: Any, p: Any, dtype: Any, anew: bool) -> Any:
    """A state in the format that it has here, where it comes from another one: its parameter's
    precision has changed, as by ``model.double()``, or one of the two has 16 bits, as states have
    that torch's own classes keep of such parameters."""
    if not isinstance(x, torch.Tensor) or not (x.is_floating_point() or x.is_complex()):
        return x
    wanted = views.type_of(dtype)
    if not anew and x.dtype not in _SHORT and wanted not in _SHORT:
        return x
    if x.is_complex() and p.is_complex() and wanted not in _SHORT:
        wanted = wanted.to_complex()
    return x.to(wanted)


def peek(state: Any, key: str) -> Any:
    """An entry of the state of a parameter, which is not marked as read."""
    return dict.get(state, key) if isinstance(state, State) else state.get(key)


def pairs(state: Any, own: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The tensors of a parameter's state with the arrays inside that lie as they do."""
    if not state:
        return {}
    found = {key: (peek(state, key), x) for key, x in own.items()}
    return {
        key: pair
        for key, pair in found.items()
        if all(map(isinstance, pair, (torch.Tensor, np.ndarray))) and lie_as([pair[0]], [pair[1]])
    }


def lie_as(tensors: list[Any], arrays: list[Array]) -> bool:
    """Whether each tensor of a state lies as the array beside it does."""
    return sources.lie_as(tensors, arrays) or all(map(_lies_as, tensors, arrays))


def _lies_as(x: Any, there: Array) -> bool:
    try:
        here = views.state(x, "a state")
    except (TypeError, ValueError, RuntimeError):
        return False
    if here.dtype == np.uint8 and there.ndim == 1:
        here = here.reshape(-1)  # scales, which a tensor has by rows
    if here.dtype != there.dtype or here.shape != there.shape:
        return False
    return not here.size or bool(here.__array_interface__ == there.__array_interface__)


def lent(tensors: list[Any]) -> bool:
    """Whether somebody else may hold one of the tensors of a state."""
    return sources.held_beside(tensors, _REFERENCES)
