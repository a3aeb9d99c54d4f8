"""Steps over memory that somebody else owns: no optimizer object, and no memory of our own.

``step`` takes parameters, gradients, states and counts as lists of arrays or tensors, and changes
all but the gradients in place. Whoever steps often, or in chunks while gradients arrive, binds the
memory once by ``prepare``. Both have the bits of the optimizer object.
"""

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from operator import is_
from typing import Any

import numpy as np

from steepest.core import internal
from steepest.kernels import machine
from steepest.kernels.engine import joint_norm
from steepest.memory import arrays
from steepest.memory.arrays import Array
from steepest.optimizers import Optimizer, by_name

__all__ = ["Prepared", "States", "new_states", "prepare", "step"]


class States(dict[str, list[Any]]):
    """State arrays by name: one for each parameter, None for one that has no such state.

    A dict of lists, which remembers what ``step`` has bound it to, so that a later step with the
    same arrays need not do so again. ``States(exp_avg=[...], exp_avg_sq=[...])`` makes one of
    arrays or tensors of yours.
    """

    bound: "Prepared | None" = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies are bound anew."""
        return type(self), (dict(self),)


def new_states(rule: str, params: Sequence[Any], **hyper: Any) -> tuple[States, Array]:
    """States and counts as a rule begins with: zeros, or what it says.

    rule: its name, as in ``by_name``. params: arrays or tensors, in any format. hyper: arguments of
    its class, such as ``state_dtype`` and ``master``, which decide what states there are. Returns
    the state arrays by name, each a list of one for each parameter (None where it has none), and an
    int64 array of counts.

    Raises what the class raises.

    >>> import numpy as np, steepest as st
    >>> states, counts = st.functional.new_states("adamw", [np.zeros(3), np.zeros((2, 2))])
    >>> {name: [x.shape for x in each] for name, each in states.items()}
    {'exp_avg': [(3,), (2, 2)], 'exp_avg_sq': [(3,), (2, 2)]}
    >>> counts
    array([0, 0])
    """
    given = _list_of(params, "params")
    made: Any = by_name(rule)
    optimizer = made(_named(given, 0), **hyper)
    each = internal.unmarked_state(optimizer)
    names = dict.fromkeys(key for state in each.values() for key in state if key != "step")
    found = States({key: [each[str(i)].get(key) for i in range(len(given))] for key in names})
    return found, np.zeros(len(given), np.int64)


def step(
    rule: str,
    params: Sequence[Any],
    grads: Sequence[Any],
    states: Mapping[str, Sequence[Any]],
    counts: Any,
    *,
    copies: Sequence[Any] | None = None,
    grad_scale: float = 1.0,
    **hyper: Any,
) -> None:
    """One step of a rule, in place.

        state, p ← rule(state, p, grad_scale · g),  count ← count + 1

    rule: its name. params: arrays or tensors, of any format. grads: as many, of the same shapes, in
    any format; None leaves a parameter, its states and its count alone. states: arrays by name, as
    from ``new_states``. counts: steps done, an int64 array with one element for each parameter, or
    a list of such arrays without axes. copies: where parameters are also written to, in other
    formats. grad_scale: what gradients are multiplied by. hyper: arguments of the rule's class, all
    of them; those left out are its defaults.

    It checks and binds the memory, some 80 microseconds for each parameter; a step with the same
    arrays and the same ``States`` does not do so again. No array is allocated, but by rules of
    matrices. Raises TypeError or ValueError for what does not fit, and changes nothing then.

    >>> import numpy as np, steepest as st
    >>> w = [np.array([1.0, -2.0])]
    >>> states, counts = st.functional.new_states("sgd", w, momentum=0.9)
    >>> st.functional.step("sgd", w, [np.ones(2)], states, counts, lr=0.5, momentum=0.9)
    >>> w[0], states["momentum_buffer"][0], counts
    (array([ 0.5, -2.5]), array([1., 1.]), array([1]))
    """
    bound = states.bound if isinstance(states, States) else None
    changed = (
        None if bound is None else bound._changed((rule, params, states, counts, copies), hyper)
    )
    if bound is None or changed is None:
        bound, changed = prepare(rule, params, states, counts, copies=copies, **hyper), {}
        if bound.shared:
            raise ValueError(
                f"{rule} keeps numbers of all parameters between steps; bind it once with prepare()"
            )
        if isinstance(states, States):
            states.bound = bound
    bound.step(grads, grad_scale=grad_scale, **changed)


def prepare(
    rule: str,
    params: Sequence[Any],
    states: Mapping[str, Sequence[Any]],
    counts: Any,
    *,
    copies: Sequence[Any] | None = None,
    **hyper: Any,
) -> "Prepared":
    """A step that is bound to memory: all is checked now; arguments are as for ``step``.

    Schedules among `hyper` are evaluated at the count of the first parameter that is stepped.

    >>> import numpy as np, steepest as st
    >>> w = [np.ones(2, np.float32), np.ones(3, np.float32)]
    >>> states, counts = st.functional.new_states("lion", w)
    >>> bound = st.functional.prepare("lion", w, states, counts, lr=0.5)
    >>> bound.step([np.ones(3, np.float32)], first=1)  # a chunk, as soon as its gradients are there
    >>> bound.step([np.ones(2, np.float32)], last=1)
    >>> w[0], w[1], counts
    (array([0.5, 0.5], dtype=float32), array([0.5, 0.5, 0.5], dtype=float32), array([1, 1]))
    """
    return Prepared(rule, params, states, counts, copies, hyper)


class Prepared:
    """What ``prepare`` returns: a rule over memory that somebody else owns.

    Different ranges of the parameters may be stepped by different threads at the same time. The
    memory has to stay where it is: bind again after moving it.
    """

    def __init__(
        self,
        rule: str,
        params: Sequence[Any],
        states: Mapping[str, Sequence[Any]],
        counts: Any,
        copies: Sequence[Any] | None,
        hyper: Mapping[str, Any],
    ) -> None:
        self._rule, self._cls, self._hyper = rule, by_name(rule), dict(hyper)
        for key in _OF_OBJECTS & self._hyper.keys():
            raise TypeError(
                f"{key}: parameters have no names here; bind those that take other numbers by "
                "themselves"
            )
        self._params = _list_of(params, "params")
        n = len(self._params)
        self._copies = None if copies is None else _list_of(copies, "copies", n)
        self._counts = _counters(counts, n)
        self._states = _states(states, n)
        self._given = (
            list(counts) if isinstance(counts, (list, tuple)) else [counts],
            {key: list(each) for key, each in states.items()},
        )
        self._parts: dict[tuple[int, int], Optimizer] = {}
        self._held = machine.Held(n)
        whole = self._part(0, n)
        clipping = internal.clipping_of(whole)
        self._joint = (
            whole.needs == "global"
            or bool(internal.shared_numbers(whole))
            or any(x.clip.sweeps and x.clip.parts != "each" for x in clipping.domains)
            or whole.nonfinite != "propagate"
        )
        self._remembers = [domain.key for domain in clipping.memories]
        self.clip_history: dict[str, list[float]] = {}
        """What clips remember: ``previous_norm`` the norm of the last step of all parameters. To go
        on with a run that was saved, set it to what it was."""
        self._round: dict[int, tuple[Any, float]] = {}
        self._measured: dict[int, Any] = {}
        self._collecting = threading.Lock()

    def __len__(self) -> int:
        return len(self._params)

    def step(
        self,
        grads: Sequence[Any],
        first: int = 0,
        last: int | None = None,
        *,
        grad_scale: float = 1.0,
        **hyper: Any,
    ) -> None:
        """Steps the parameters from `first` to before `last` (the end if None), from any thread.

        grads: one for each of these, None to leave one alone. grad_scale: what they are multiplied
        by, such as a clip's factor or 1 over a loss's scale. hyper: numbers in place of those given
        to ``prepare``, for this step.

        The first step over a range binds it; later ones allocate nothing. Raises IndexError for a
        range that is none; TypeError or ValueError for gradients or numbers that do not fit, or a
        part of what the rule, a clip or ``nonfinite`` looks at as a whole; RuntimeError while
        another thread steps some of the same parameters. Nothing is changed then.
        """
        first, last = self._range(first, last)
        if self._joint and (first, last) != (0, len(self)):
            raise ValueError(
                f"parameters {first} to {last} of {len(self)}: {self._cls.__name__} with these "
                "arguments looks at all gradients together; step all at once, or measure parts by "
                "norm() and give grad_scale"
            )
        if self._remembers and not self.clip_history and (first, last) != (0, len(self)):
            raise ValueError(
                f"parameters {first} to {last} of {len(self)}: clip = previous_norm has no norm of "
                "a step before; step all at once the first time"
            )
        given = _list_of(grads, "grads", last - first)
        self._alone(first, last, self._stepped, (first, last, given, float(grad_scale), hyper))

    def _stepped(self, given: tuple[int, int, list[Any], float, Mapping[str, Any]]) -> None:
        first, last, grads, factor, hyper = given
        part = self._part(first, last)
        if last > first:
            internal.set_updates(part, self._counts[first])
        if self._remembers:
            part.clip_history = {key: list(norms) for key, norms in self.clip_history.items()}
        if hyper:
            self._step_with(part, grads, factor, hyper)
        else:
            internal.flat_step(part, grads, factor)
        if self._remembers:
            self._remember(part, first, last, factor)

    def _remember(self, part: Optimizer, first: int, last: int, factor: float) -> None:
        """Keeps what a step has measured, until each parameter has been stepped."""
        if (first, last) == (0, len(self)):
            self.clip_history = {key: list(norms) for key, norms in part.clip_history.items()}
            self._round = {}
            return
        measures = _measures(part)
        with self._collecting:
            for i in range(first, last):
                self._round[i] = measures.get(i - first), factor
            if len(self._round) == len(self):
                norm = _joint([self._round[i] for i in range(len(self))])
                if math.isfinite(norm):
                    self.clip_history = {key: [norm] for key in self._remembers}
                self._round = {}

    def _step_with(
        self, part: Optimizer, grads: list[Any], factor: float, hyper: Mapping[str, Any]
    ) -> None:
        """A step with other numbers, which are taken back."""
        group = part.param_groups[0]
        unknown = [key for key in hyper if key in _OWN or key not in group]
        if unknown:
            raise TypeError(f"{self._cls.__name__} has no hyper-parameter {unknown[0]!r}")
        before = {key: group[key] for key in hyper}
        try:
            group.update(hyper)
            internal.flat_step(part, grads, factor)
        finally:
            group.update(before)

    def norm(self, grads: Sequence[Any], first: int = 0, last: int | None = None) -> float:
        """The Euclidean norm of gradients, of the parameters from `first` to before `last`.

        For clipping by the norm of all gradients where they arrive in chunks: measure each chunk as
        it arrives, and when the last is there, step all with
        ``grad_scale = min(1, limit / total_norm())``. Nothing is changed.

        >>> import numpy as np, steepest as st
        >>> w = [np.zeros(2), np.zeros(1)]
        >>> bound = st.functional.prepare("sgd", w, {}, np.zeros(2, np.int64))
        >>> bound.norm([np.array([0.0, 3.0])], last=1), bound.norm([np.array([4.0])], first=1)
        (3.0, 4.0)
        >>> bound.total_norm()
        5.0
        """
        first, last = self._range(first, last)
        given = _list_of(grads, "grads", last - first)
        return float(self._alone(first, last, self._normed, (first, last, given)))

    def _normed(self, given: tuple[int, int, list[Any]]) -> float:
        first, last, grads = given
        part = self._part(first, last)
        norm = internal.norm_of(part, grads)
        measures = _measures(part)
        for i in range(first, last):
            self._measured[i] = measures.get(i - first)
        return norm

    def total_norm(self) -> float:
        """The norm of all gradients together that ``norm`` has measured last of each parameter.

        With the bits that a step over all of them finds, whatever the chunks and their order.
        """
        known = self._measured
        return joint_norm([x for i in range(len(self)) if (x := known.get(i)) is not None], 2.0)

    def _alone(self, first: int, last: int, function: Callable[[Any], Any], given: Any) -> Any:
        """Calls a function, unless another thread is at some of these parameters."""
        what = f"a step over some of parameters {first} to {last}"
        return machine.alone_with(self._held, first, last, function, given, what)

    @property
    def shared(self) -> dict[str, float]:
        """The numbers that the rule keeps of all parameters, such as d of Prodigy."""
        whole = self._part(0, len(self))
        return dict(internal.shared_numbers(whole))

    def _range(self, first: int, last: int | None) -> tuple[int, int]:
        stop = len(self) if last is None else int(last)
        start = int(first)
        if not 0 <= start <= stop <= len(self):
            raise IndexError(
                f"parameters {first} to {last}: expected a range within 0 to {len(self)}"
            )
        return start, stop

    def _part(self, first: int, last: int) -> Optimizer:
        """The optimizer over a range, bound when it is first asked for."""
        part = self._parts.get((first, last))
        if part is None:
            copies = None
            if self._copies is not None:
                copies = _named(self._copies[first:last], first)
            states = {
                str(i): {"step": self._counts[i], **self._states[i]} for i in range(first, last)
            }
            part = internal.over_states(
                self._cls, _named(self._params[first:last], first), states,
                self._hyper | ({} if copies is None else {"copies": copies}),
                first if self._parts else None,
            )  # fmt: skip
            self._parts[first, last] = part
        return part

    def _changed(self, given: tuple[Any, ...], hyper: Mapping[str, Any]) -> dict[str, Any] | None:
        """The numbers among `hyper` that are others than those bound; None if more is another."""
        rule, params, states, counts, copies = given
        before, held = self._given
        if not (
            rule == self._rule
            and _same(counts if isinstance(counts, (list, tuple)) else [counts], before)
            and (copies is None) == (self._copies is None)
            and _same(copies or (), self._copies or ())
            and hyper.keys() == self._hyper.keys()
            and states.keys() == held.keys()
            and _same(params, self._params)
            and all(_same(states[key], each) for key, each in held.items())
        ):
            return None
        found = {key: x for key, x in hyper.items() if x is not self._hyper[key]}
        if not all(type(x) is type(self._hyper[key]) is float for key, x in found.items()):
            return None
        return found


def _measures(part: Optimizer) -> dict[int, Any]:
    """What the last step, or measuring, of an optimizer has found of each gradient."""
    plan = internal.current_plan(part)
    return {} if plan is None else plan.measures()


def _joint(measures: list[tuple[Any, float]]) -> float:
    """The norm of gradients together, from what was measured of each before it was multiplied by a
    factor."""
    factors = {factor for _, factor in measures}
    norms = [
        joint_norm([x for x, own in measures if x is not None and own == factor], 2.0) * factor
        for factor in factors
    ]
    return norms[0] if len(norms) == 1 else math.hypot(*norms)


_OWN = ("params", "param_names")
_OF_OBJECTS = {"exclude", "overrides", "state_dir"}
"""Arguments of an optimizer that owns its states, and whose parameters have names."""


def _list_of(given: Any, what: str, n: int | None = None) -> list[Any]:
    if not isinstance(given, (list, tuple)):
        raise TypeError(f"{what} is a {type(given).__name__}; expected a list of arrays")
    if n is not None and len(given) != n:
        raise ValueError(f"{len(given)} {what} for {n} parameters")
    return list(given)


def _same(xs: Sequence[Any], ys: Sequence[Any]) -> bool:
    """Whether these are the very same objects."""
    return len(xs) == len(ys) and all(map(is_, xs, ys))


def _named(given: Sequence[Any], first: int) -> dict[str, Any]:
    return {str(first + i): x for i, x in enumerate(given)}


def _counters(counts: Any, n: int) -> list[Array]:
    """The counts as arrays without axes, in the caller's memory."""
    if isinstance(counts, (list, tuple)):
        found = [arrays.as_array(x, f"count {i}") for i, x in enumerate(counts)]
        fits = all(x.shape == () for x in found)
    else:
        whole = arrays.as_array(counts, "counts")
        fits = whole.ndim == 1
        found = [whole[i : i + 1].reshape(()) for i in range(len(whole))] if fits else []
    if len(found) != n or not fits:
        raise ValueError(f"counts: expected {n}, one for each parameter")
    for x in found:
        if x.dtype != np.int64 or not x.flags.writeable:
            raise TypeError("counts: expected writable memory of int64, which steps count up in")
    return found


def _states(given: Mapping[str, Sequence[Any]], n: int) -> list[dict[str, Array]]:
    """The state arrays of each parameter by name, in the caller's memory."""
    if not isinstance(given, Mapping):
        raise TypeError(f"states is a {type(given).__name__}; expected a dict of lists by name")
    found: list[dict[str, Array]] = [{} for _ in range(n)]
    for key, each in given.items():
        for i, x in enumerate(_list_of(each, f"states {key!r}", n)):
            if x is not None:
                what = f"state {key!r} of parameter {str(i)!r}"
                found[i][key] = arrays.as_array(x, what, writable=True)
    return found
