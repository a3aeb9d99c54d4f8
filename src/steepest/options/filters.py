"""What happens to gradients before any rule sees them, given to any optimizer as ``filter=``.

A filter is a value; ``filter`` takes one, or a tuple of them in the order of this list, as an
option of the optimizer or of a group: ``centralize`` takes the mean of each unit away, ``mars``
adds what has changed, ``grokfast`` amplifies what lasts, ``mask`` holds pruned elements at 0. They
cost no pass over memory, but for means and norms, and the caller's gradients are not changed.
Numbers may be schedules.

>>> import numpy as np, steepest as st
>>> w = np.zeros((2, 2))
>>> opt = st.SGD(w, lr=1.0, filter=st.filters.centralize())
>>> opt.step(np.array([[1.0, 3.0], [5.0, 5.0]]))
>>> w
array([[ 1., -1.],
       [ 0.,  0.]])

A gradient passes the operations in this order: scaled by norms (``clip``), which are those of
the gradients as given; centralised; clipped by ``clip.adaptive`` and ``clip.value``; corrected by
``mars``; amplified by ``grokfast``; penalties (``regularize``); masked; the rule.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np

from steepest.fields import Check, Number, Range, Scheduled, Value
from steepest.memory.arrays import unmasked
from steepest.options.operations import Operation, UnitOperation, Units

Share = Annotated[Number, Scheduled(Range(float, 0, 1))]
Weight = Annotated[Number, Scheduled(Range(float, 0))]


@dataclass(frozen=True)
class Masks(Check):
    """Arrays of True and False by name, or None; one without a name is the only parameter's."""

    def __str__(self) -> str:
        return "arrays of bools, or of 0 and 1, by parameter"

    def check(self, value: Any, owner: str, name: str) -> dict[str, Any] | None:
        if value is None:
            return None
        given = value if isinstance(value, Mapping) else {"0": value}
        masks = {}
        for key, x in given.items():
            try:
                own = np.asarray(unmasked(x, f"the array of {key!r}"))
            except (TypeError, ValueError) as error:
                raise type(error)(f"{owner}: {name} = {value!r}: {error}") from None
            if own.dtype.kind not in "biuf":
                raise self.refusal(TypeError, value, owner, name, f"{self}, as {key!r}")
            if not np.isin(own, (0, 1)).all():
                expected = f"0 or 1 in every element of {key!r}"
                raise self.refusal(ValueError, value, owner, name, expected)
            masks[str(key)] = own.astype(bool)
        return masks


FILTERS: dict[str, type["Filter"]] = {}
"""Every filter by its name."""


@dataclass(frozen=True)
class Filter(Value, family=FILTERS):
    """What is done to gradients."""

    rank: ClassVar[int]
    """The place in the order in which filters work."""
    arrays: ClassVar[tuple[str, ...]] = ()
    """The names of its state arrays."""
    makes: ClassVar[str] = ""
    """The array that its units make, of a number for each."""
    in_c_order: ClassVar[bool] = False
    """Whether it uses sums over the gradient, which depend on the order of its elements."""

    def initial(self, p: Any, name: str) -> Any:
        """What its state arrays begin with, for the parameter of that name."""
        return 0.0

    def operations(self, count: int) -> list[Operation]:
        """Its prologue operations, which come before those of the penalties."""
        return []

    def units(self, count: int) -> list[tuple[UnitOperation, int | None]]:
        """The unit operations that make numbers for the gradient's units, and their axes."""
        return []


@dataclass(frozen=True)
class centralize(Filter):
    """Takes the mean of each unit of a gradient away.

        g_u ← g_u - mean(g_u)

    The units are what lies at each index along `axis`: the rows of a matrix with axis 0 (the
    outputs of PyTorch's layers), its columns with -1; the whole array with None. Gradients of fewer
    than two dimensions stay as they are. The mean is that of the gradient as given, in double, in a
    fixed order, times what clipping by norms scales by. Raises TypeError for anything else than an
    axis or None.

    >>> import numpy as np, steepest as st
    >>> w = np.zeros((2, 2))
    >>> opt = st.SGD(w, lr=1.0, filter=st.filters.centralize(axis=-1))
    >>> opt.step(np.array([[1.0, 3.0], [5.0, 5.0]]))
    >>> w
    array([[ 2.,  1.],
           [-2., -1.]])

    Yong et al. 2020, arXiv:2004.01461, equation 1.
    """

    axis: Units = 0
    rank: ClassVar[int] = 0
    makes: ClassVar[str] = "means"

    def operations(self, count: int) -> list[Operation]:
        return [("subtract_each", (), "means")]

    def units(self, count: int) -> list[tuple[UnitOperation, int | None]]:
        return [(("centralize", (0.0, 0.0)), self.axis)]


@dataclass(frozen=True)
class mars(Filter):
    """MARS: adds what has changed since the last gradient, which makes its variance smaller.

        c ← g + gamma · beta / (1 - beta) · (g - last),  last ← g
        g ← c · min(1, max_norm / ‖c‖)

    last is state ``"last_grad"``, at first 0; ‖c‖ is the norm of one parameter's gradient. With
    AdamW behind it this is MARS-AdamW, with Lion MARS-Lion; beta is then their β₁. gamma >= 0,
    0 <= beta < 1, max_norm >= 0, which may be infinite. Raises TypeError or ValueError for anything
    else.

    >>> import numpy as np, steepest as st
    >>> w = np.zeros(2)
    >>> opt = st.SGD(w, lr=1.0, filter=st.filters.mars(gamma=1.0, beta=0.5, max_norm=10.0))
    >>> opt.step(np.array([1.0, 0.0]))
    >>> opt.step(np.array([3.0, 4.0]))
    >>> w, opt.state["0"]["last_grad"]
    (array([-7., -8.]), array([3., 4.]))

    Yuan et al. 2024, arXiv:2411.10438, algorithm 2 (MARS-approx); defaults as the authors' code.
    """

    gamma: Weight = 0.025
    beta: Annotated[Number, Scheduled(Range(float, 0, 1, below=True))] = 0.95
    max_norm: Annotated[Number, Scheduled(Range(float, 0, finite=False))] = 1.0
    rank: ClassVar[int] = 1
    arrays: ClassVar[tuple[str, ...]] = ("last_grad",)
    in_c_order: ClassVar[bool] = True

    def operations(self, count: int) -> list[Operation]:
        beta = self.at("beta", count)
        weight = self.at("gamma", count) * (beta / (1.0 - beta))
        held = ("hold", (self.at("max_norm", count),), None)
        return [("mars", (weight,), "last_grad"), held]


@dataclass(frozen=True)
class grokfast(Filter):
    """Amplifies what lasts in the gradients: adds their running mean.

        h ← alpha · h + (1 - alpha) · g, at first g
        g ← g + lamb · h

    h is state ``"grokfast"``, NaN until there is a gradient. 0 <= alpha <= 1, lamb >= 0. Raises
    TypeError or ValueError for anything else.

    >>> import numpy as np, steepest as st
    >>> w = np.zeros(1)
    >>> opt = st.SGD(w, lr=1.0, filter=st.filters.grokfast(alpha=0.5, lamb=1.0))
    >>> opt.step(np.array([1.0]))
    >>> opt.step(np.array([3.0]))
    >>> w, opt.state["0"]["grokfast"]
    (array([-7.]), array([2.]))

    Lee et al. 2024, arXiv:2405.20233, Grokfast-EMA; the start and the defaults as in the authors'
    code.
    """

    alpha: Share = 0.98
    lamb: Weight = 2.0
    rank: ClassVar[int] = 2
    arrays: ClassVar[tuple[str, ...]] = ("grokfast",)

    def initial(self, p: Any, name: str) -> Any:
        return np.nan

    def operations(self, count: int) -> list[Operation]:
        alpha = self.at("alpha", count)
        return [("grokfast", (alpha, 1.0 - alpha, self.at("lamb", count)), "grokfast")]


@dataclass(frozen=True, eq=False)
class mask(Filter):
    """Holds pruned elements at 0: the parameter is itself times its mask, at every step.

        g ← 0 and p ← 0    where the mask is 0

    `masks` are arrays of the parameters' shapes, of bools or of 0 and 1, by parameter name; one
    array for an only parameter. Parameters that are not named are not pruned. The masks become
    state ``"mask"`` (1 and 0 in the parameter's type) and are saved with it; they may be changed
    there in place at any time, so ``mask()``, all ones at first, is for masks that come later.
    Another ``mask`` with masks in a live group takes the place of those in the state.

    The rule sees neither gradient nor penalties of masked elements, so its state does not grow
    there. Norms and means are still those of the gradients as given. Raises TypeError or ValueError
    for what are no such arrays, and for names that the optimizer does not have.

    >>> import numpy as np, steepest as st
    >>> w = {"w": np.array([1.0, 2.0]), "b": np.array([1.0])}
    >>> opt = st.SGD(w, lr=0.5, filter=st.filters.mask({"w": np.array([True, False])}))
    >>> opt.step({"w": np.ones(2), "b": np.ones(1)})
    >>> w
    {'w': array([0.5, 0. ]), 'b': array([0.5])}

    As ``torch.nn.utils.prune``, whose mask multiplies the parameter; Han et al. 2015,
    arXiv:1506.02626.
    """

    masks: Annotated[Any, Masks()] = field(default=None, repr=False)
    __eq__ = object.__eq__  # arrays do not say whether they are equal
    __hash__ = object.__hash__
    in_state = frozenset({"masks"})
    rank: ClassVar[int] = 3
    arrays: ClassVar[tuple[str, ...]] = ("mask",)

    def initial(self, p: Any, name: str) -> Any:
        own = (self.masks or {}).get(name, True)
        if own is not True and own.shape != p.shape:
            raise ValueError(
                f"mask of parameter {name!r} has shape {own.shape}; "
                f"expected the parameter's {p.shape}"
            )
        return own

    def __getstate__(self) -> dict[str, Any]:  # without arrays, which torch.load does not take
        masks = self.masks and {name: (x.shape, x.tobytes()) for name, x in self.masks.items()}
        return {"masks": masks}

    def __setstate__(self, kept: Mapping[str, Any]) -> None:
        masks = kept["masks"] and {
            name: x if isinstance(x, np.ndarray) else np.frombuffer(x[1], bool).reshape(x[0]).copy()
            for name, x in kept["masks"].items()
        }
        object.__setattr__(self, "masks", masks)


def checked(value: Any) -> tuple[Filter, ...]:
    """One filter, several or None, as a tuple. Raises TypeError or ValueError for anything else."""
    if value is None:
        return ()
    filters = (value,) if isinstance(value, Filter) else value
    if not isinstance(filters, (tuple, list)) or not all(isinstance(x, Filter) for x in filters):
        raise TypeError(
            f"filter = {value!r}: expected one of "
            f"{', '.join(f'st.filters.{name}' for name in FILTERS)}, or a tuple of them"
        )
    ranks = [x.rank for x in filters]
    if ranks != sorted(set(ranks)):
        names = ", ".join(sorted(FILTERS, key=lambda name: FILTERS[name].rank))
        raise ValueError(f"filter = {value!r}: expected at most one each of {names}, in this order")
    return tuple(filters)


def in_order(filters: Sequence[Filter], clips: Iterable[Any]) -> list[Any]:
    """Filters and clips in the order in which their operations work."""
    return [
        *(x for x in filters if x.rank == centralize.rank),
        *clips,
        *(x for x in filters if x.rank != centralize.rank),
    ]


def arrays(filters: Sequence[Filter]) -> tuple[str, ...]:
    """The names of the state arrays that filters need."""
    return tuple(name for x in filters for name in x.arrays)


def masks(filters: Sequence[Filter]) -> mask | None:
    """The filter that masks, if there is one."""
    return next((x for x in filters if isinstance(x, mask)), None)


def renewed(old: mask | None, new: mask | None) -> bool:
    """Whether the masks of one filter have given way to those of another."""
    return old is not None and new is not None and new is not old and new.masks is not None


def initial(filters: Sequence[Filter], key: str, p: Any, name: str) -> Any:
    """What a state array of an operation begins with: a filter's, or else the parameter.

    Raises ValueError for a mask that does not fit.
    """
    for x in filters:
        if key in x.arrays:
            return x.initial(p, name)
    return p


def check_names(filters: Sequence[Filter], names: Sequence[str]) -> None:
    """Raises ValueError for masks of parameters that there are not."""
    held = masks(filters)
    unknown = sorted((held.masks or {}).keys() - set(names)) if held else []
    if unknown:
        raise ValueError(
            f"masks of {', '.join(map(repr, unknown))}, which are no parameters; "
            f"expected some of {', '.join(map(repr, names))}"
        )


__all__ = ["FILTERS", "Filter", *FILTERS]
