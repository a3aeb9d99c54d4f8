"""The arrays of a model by name: those that are saved, and those that a file is loaded into."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from steepest.checkpoint.error import CheckpointError
from steepest.core import internal, trees
from steepest.kernels import sources
from steepest.memory import arrays, formats
from steepest.memory.arrays import Array
from steepest.optimizers import LBFGS, Optimizer


@runtime_checkable
class Sharded(Protocol):
    """An optimizer whose state is sharded over processes, all of which save and load together."""

    @property
    def rule(self) -> str: ...

    @property
    def param_groups(self) -> list[Any]: ...

    def as_one(self, work: Callable[[Any], None]) -> None:
        """Calls work in one of the processes, with an optimizer that has the whole state; raises in
        all processes what is raised there."""
        ...

    def together(self) -> AbstractContextManager[None]:
        """A block that raises in all processes where it raises in one."""
        ...


Saved = Optimizer | LBFGS | Sharded


def by_name(optimizer: Saved, params: Any) -> dict[str, Array]:
    """The optimizer's parameters, and the other arrays of `params`, each once.

    Raises TypeError for what is not an array, CheckpointError where two arrays have one name.
    """
    internal.follow_tensors(optimizer)
    named = {
        name: p
        for group in optimizer.param_groups
        for name, p in zip(group["param_names"], group["params"], strict=True)
    }
    if params is None:
        return named
    places = {_place(p) for p in named.values()}
    _, names, leaves = trees.flatten(params)
    for name, leaf in zip(names, leaves, strict=True):
        x = arrays.as_array(leaf, f"params {name!r}", writable=True)
        place = _place(x)
        if name in named and _place(named[name]) != place:
            raise CheckpointError(
                f"params {name!r} is another array than the one of that name that the optimizer "
                "updates; give the same array, or names of their own to others"
            )
        if name not in named and not (x.size and place in places):
            named[name] = x
            places.add(place)
    return named


def _place(x: Array) -> tuple[Any, ...]:
    """What two arrays have in common if and only if they are views of the same elements."""
    return sources.start(x), x.shape, x.strides, x.dtype


def fitting(
    targets: Mapping[str, Array], values: Mapping[str, Array], path: str
) -> list[tuple[Array, Array]]:
    """The arrays with the values to be copied into them, alike in type. Raises CheckpointError
    unless every value has an array that it can be copied into, and no array is without a value."""
    if missing := targets.keys() - values.keys():
        raise CheckpointError(f"{path} lacks the parameters {listed(missing)}")
    if unknown := values.keys() - targets.keys():
        raise CheckpointError(
            f"{path} has parameters without an array to load them into: {listed(unknown)}; give "
            "the arrays for them as params=, or use steepest.checkpoint.read"
        )
    for name, x in targets.items():
        value = values[name]
        same = x.dtype == value.dtype or formats.alike(x.dtype, value.dtype)
        if not same or x.shape != value.shape:
            raise CheckpointError(
                f"{path}: parameter {name!r} is {value.dtype} of shape {value.shape}; "
                f"the array to load it into is {x.dtype} of shape {x.shape}"
            )
        if not x.flags.writeable or arrays.overlaps_itself(x):
            raise CheckpointError(
                f"parameter {name!r} is read-only or has elements that share memory; "
                "make it a writable array of its own"
            )
    try:
        arrays.disjoint_bounds([(f"parameter {name!r}", x) for name, x in targets.items()])
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    return [(x, values[name].view(x.dtype)) for name, x in targets.items()]


def listed(names: set[str]) -> str:
    """Names for a message: the first five, and how many more."""
    shown = sorted(names)
    return ", ".join(map(repr, shown[:5])) + (f" and {len(shown) - 5} more" if shown[5:] else "")
