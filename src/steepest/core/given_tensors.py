"""Tensors that were given to an optimizer of arrays, which works over their memory."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

from steepest.memory import arrays
from steepest.memory.arrays import Array

__all__ = ["GivenTensors", "given", "parameters"]

_Places = Iterable[tuple[Any, Any, str]]


class _Given(NamedTuple):
    tensor: Any
    place: tuple[Any, ...]
    own: Array


class GivenTensors:
    """Tensors by the names of their parameters, and the arrays over their memory.

    A tensor may get other memory, as by ``p.data = ...``; its array then gives way to one that lies
    there. Where another array stands in its place by now, the tensor is not followed.
    """

    def __init__(self, known: Mapping[str, _Given], what: str) -> None:
        """`what` the tensors are, for messages."""
        self._known, self._what = dict(known), what

    def with_more(self, more: dict[str, _Given]) -> "GivenTensors":
        """These and others."""
        return GivenTensors(self._known | more, self._what)

    def follow(self, places: _Places) -> list[tuple[Array, Array]]:
        """Puts arrays over the memory that the tensors have now in their places, each (where, key
        or number there, name), and returns which gave way to which. Raises TypeError or ValueError,
        and changes nothing, where a tensor has another shape or dtype, or no memory that can be
        used."""
        if all(_place(x.tensor) == x.place for x in self._known.values()):
            return []
        moved = []
        for where, key, name in places:
            x, p = self._known.get(name), where[key]
            if x is None or p is not x.own or _place(x.tensor) == x.place:
                continue
            now = arrays.in_place(x.tensor, f"{self._what} {name!r}")
            if (now.shape, now.dtype) != (p.shape, p.dtype):
                raise ValueError(
                    f"{self._what} {name!r} is {now.dtype} of shape {now.shape}; it was {p.dtype} "
                    f"of shape {p.shape} when the optimizer was made"
                )
            moved.append((where, key, name, x._replace(place=_place(x.tensor), own=now)))
        pairs = [(where[key], x.own) for where, key, _, x in moved]
        for where, key, name, x in moved:
            self._known[name] = x
            where[key] = x.own
        return pairs

    def check(self) -> None:
        """For an optimizer that cannot follow: raises ValueError where a tensor lies elsewhere."""
        for name, x in self._known.items():
            if _place(x.tensor) != x.place:
                raise ValueError(
                    f"{self._what} {name!r} is a tensor that has other memory than when the "
                    "optimizer was made; make the optimizer with it as it is now, and load its "
                    "state"
                )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """None of them: the copies of arrays have memory of their own."""
        return type(self)({}, self._what)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ({}, self._what)


def given(
    before: GivenTensors | None,
    names: Iterable[str],
    tensors: Iterable[Any],
    own: Iterable[Array],
    what: str = "parameter",
) -> GivenTensors | None:
    """Those known before and the tensors among others, which are `own` as arrays; None if there are
    none. Tensors of integers that hold the bits of another format are left out."""
    found = {
        name: _Given(x, _place(x), p)
        for name, x, p in zip(names, tensors, own, strict=True)
        if arrays.is_torchs(x) and arrays.as_array(x, name).dtype == p.dtype
    }
    if before is None:
        return GivenTensors(found, what) if found else None
    return before.with_more(found)


def parameters(groups: Sequence[Mapping[str, Any]]) -> _Places:
    """The places of all parameters of the groups."""
    for group in groups:
        for k, name in enumerate(group["param_names"]):
            yield group["params"], k, name


def _place(tensor: Any) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
