"""L-BFGS: the one optimizer here that evaluates the function itself, several times in a step.

It is no ``Optimizer``: a step takes a function instead of gradients, and its vectors stand for all
parameters at once. It has the same face: names, ``param_groups`` (one), ``state``, state dicts,
checkpoints, atomic steps. It is NumPy throughout, so there is no second, readable form of it.

A step writes nothing that the steps before have left: history, direction and gradient of the new
state are in other rows of memory. One assignment makes them the state at the end.
"""

import copy
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np

from steepest.core import digests, given_tensors, group_keys, internal, trees
from steepest.core.hyper_parameters import Number, within
from steepest.core.state_formats import bits_of
from steepest.fields import Call, continued
from steepest.kernels import machine
from steepest.memory import arrays
from steepest.memory.arrays import Array
from steepest.optimizers.lbfgs import vectors
from steepest.optimizers.lbfgs.iterations import Closure, Iterations, Memory, Pair

__all__ = ["LBFGS"]


class LBFGS:
    """L-BFGS: quasi-Newton steps from the last changes of the gradient, for smooth functions.

        d = -H g, H from the last pairs s = x₊ - x, y = g₊ - g by the two-loop recursion
        x ← x + t · d, t = lr or by line search (first step: min(1, 1 / Σ|g|) · lr)

    lr: step length, or the line search's first try; a number or a schedule of the steps done.
    max_iter: iterations in a step. max_eval: evaluations in a step, 1.25 max_iter unless given;
    the line search may need one more. tolerance_grad: stop once no element of the gradient is
    larger. tolerance_change: stop once no parameter moves more, or the loss changes less.
    history_size: pairs kept, each of two copies of the parameters. line_search_fn: None, or
    "strong_wolfe", without which a step may well go up. maximize: go up instead of down.

    All parameters are one vector and one group; groups with an lr of their own are refused. The
    vector is float64 if a parameter is, else float32; parameters of 16 bits are rounded each time
    they are written. dtype: "bfloat16" if arrays of uint16 hold its bits. Raises TypeError or
    ValueError for arguments out of range.

    >>> import numpy as np, steepest as st
    >>> x = np.array([-1.2, 1.0])
    >>> def rosenbrock():
    ...     a, b = 1 - x[0], x[1] - x[0] ** 2
    ...     return a**2 + 100 * b**2, np.array([-2 * a - 400 * x[0] * b, 200 * b])
    >>> opt = st.LBFGS(x, max_iter=100, line_search_fn="strong_wolfe")
    >>> round(opt.step(rosenbrock), 1)
    24.2
    >>> x.round(4), opt.n_iter, opt.func_evals
    (array([1., 1.]), 35, 43)

    Liu, Nocedal 1989, doi:10.1007/BF01589116; stopping rules and counts are torch.optim.LBFGS's.
    """

    rule = "lbfgs"

    def __init__(
        self,
        params: Any,
        lr: Number = 1.0,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: str | None = None,
        maximize: bool = False,
        dtype: str | None = None,
    ) -> None:
        hyper = {
            "lr": lr,
            "max_iter": max_iter,
            "max_eval": max_eval,
            "tolerance_grad": tolerance_grad,
            "tolerance_change": tolerance_change,
            "history_size": history_size,
            "line_search_fn": line_search_fn,
            "maximize": maximize,
        }
        self.defaults: dict[str, Any] = _checked_hyper(hyper)
        self._grouped = trees.is_groups(params)
        group = params[0] if self._grouped else {"params": params}
        if self._grouped and len(params) > 1:
            raise ValueError(
                f"LBFGS has one group of parameters, not {len(params)}: its vectors run over all"
            )
        shape, names, leaves = trees.flatten(group["params"])
        if not names:
            raise ValueError("params is empty; give at least one parameter")
        group_keys.check_own(group, "its group", "lbfgs", list(hyper))
        names = trees.own_names(group, names)
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"parameter name {twice!r} is given twice; names must differ")
        self._shape: trees.Shape = trees.Node(False, [0], [shape]) if self._grouped else shape
        self._names = names
        self._bits = bits_of(dtype)
        params = self._arrays(names, leaves)
        _disjoint(params, names)
        filled = hyper | dict(group)
        chosen = {"params": params, "param_names": list(names)}
        self.param_groups: list[dict[str, Any]] = [filled | _checked_hyper(filled) | chosen]
        self._given_tensors = given_tensors.given(None, names, leaves, params)
        self._like = [(p.shape, p.dtype) for p in params]
        self._rows = vectors.Rows(sum(p.size for p in params), vectors.common_type(params))
        self._memory = Memory()
        self._lock = machine.Lock()

    def add_param_group(self, group: Mapping[str, Any]) -> NoReturn:
        """Raises ValueError: there is one group."""
        raise ValueError("LBFGS has one group of parameters; give all of them to the constructor")

    # What it has done

    @property
    def updates(self) -> int:
        """The number of steps done so far; what schedules are evaluated at."""
        return self._memory.updates

    @property
    def func_evals(self) -> int:
        """The number of evaluations in all steps."""
        return self._memory.func_evals

    @property
    def n_iter(self) -> int:
        """The number of iterations in all steps."""
        return self._memory.n_iter

    @property
    def state(self) -> dict[str, dict[str, Array]]:
        """Copies of each parameter's part of the vectors, by name; empty before the first step.

        ``"d"``, the last direction; ``"prev_grad"``, the gradient where it began; ``"old_dirs"``
        and ``"old_stps"``, the changes of the gradient and the steps of the history, oldest first.
        """
        memory, params = self._memory, self.param_groups[0]["params"]
        found: dict[str, dict[str, Array]] = {name: {} for name in self._names}
        if memory.d is None or memory.prev_grad is None:
            return found
        for key, row in (("d", memory.d), ("prev_grad", memory.prev_grad)):
            for name, part in zip(self._names, vectors.parts(row, params), strict=True):
                found[name][key] = part.copy()
        for key in ("old_dirs", "old_stps"):
            for name, p in zip(self._names, params, strict=True):
                found[name][key] = np.empty((len(memory.pairs), *p.shape), self._rows.dtype)
            for i, pair in enumerate(memory.pairs):
                row = pair.y if key == "old_dirs" else pair.s
                for name, part in zip(self._names, vectors.parts(row, params), strict=True):
                    found[name][key][i] = part
        return found

    # The step

    def step(self, closure: Closure) -> float:
        """Changes the parameters in place by up to max_iter iterations; returns the first loss.

        closure: a function that returns loss and gradients, of the same structure as ``params``,
        at the parameters as they are when it is called. It is called again and again, with the
        parameters changed in place meanwhile. A gradient that is None counts as zeros.

        After an exception, the closure's or Ctrl-C too, parameters and state are as before the
        call. Raises TypeError or ValueError for what does not fit; FloatingPointError where loss
        or gradient is infinite or NaN, except that a line search turns back from such a point;
        RuntimeError when called while another thread, or the closure, steps this optimizer.
        """
        if not callable(closure):
            raise TypeError(
                f"step was given a {type(closure).__name__}; LBFGS needs a function that returns "
                "(loss, gradients) at the parameters as they are, since it evaluates several times"
            )
        loss: float = machine.alone(self._lock, self._step, closure, "step() of this optimizer")
        return loss

    def _step(self, closure: Closure) -> float:
        before = self._memory
        h = _checked_hyper(self.param_groups[0], before.updates)
        params = self._checked()
        self._rows.begin(before.rows())
        start = self._rows.take()
        vectors.gather(params, start)
        try:
            work = Iterations(closure, params, self._names, self._shape, self._rows, h, self._bits)
            self._memory = work.run(start, before)
        except BaseException:
            if self._memory is before:
                vectors.scatter(start, params)
            raise
        return work.first_loss

    def _checked(self) -> list[Array]:
        """The live parameters, which may be other arrays of the same shapes and types."""
        self._follow_tensors()
        given = self.param_groups[0]["params"]
        if len(given) != len(self._names):
            raise ValueError(f"the group has {len(given)} parameters; expected {len(self._names)}")
        params = self._arrays(self._names, given)
        for name, p, (shape, dtype) in zip(self._names, params, self._like, strict=True):
            if p.shape != shape or p.dtype != dtype:
                raise ValueError(
                    f"parameter {name!r} is {p.dtype} of shape {p.shape}; "
                    f"it was {dtype} of shape {shape} when the optimizer was made"
                )
        _disjoint(params, self._names)
        return params

    def _follow_tensors(self) -> list[tuple[Array, Array]]:
        """As that of ``Optimizer``."""
        if self._given_tensors is None:
            return []
        return self._given_tensors.follow(given_tensors.parameters(self.param_groups))

    def _arrays(self, names: list[str], given: Sequence[Any]) -> list[Array]:
        """What was given as parameters, as arrays that may be updated in place."""
        return [arrays.parameter(x, name, self._bits) for name, x in zip(names, given, strict=True)]

    # State in and out

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything that a resumed run needs, except the parameters.

        ``{"rule", "updates", "skipped", "func_evals", "n_iter", "t", "H_diag", "prev_loss", "ro",
        "state": {name: {key: array}}, "param_groups": [...]}``; "skipped" is always 0.
        """
        memory = self._memory
        return {
            "rule": self.rule,
            "updates": memory.updates,
            "skipped": 0,
            "func_evals": memory.func_evals,
            "n_iter": memory.n_iter,
            "t": memory.t,
            "H_diag": memory.h_diag,
            "prev_loss": memory.prev_loss,
            "ro": [pair.ro for pair in memory.pairs],
            "state": self.state,
            "param_groups": [
                {key: copy.deepcopy(x) for key, x in group.items() if key != "params"}
                for group in self.param_groups
            ],
        }

    def digest(self) -> str:
        """SHA-256 of parameters, state and counts; see ``Optimizer.digest``."""
        [group] = self.param_groups
        named = dict(zip(group["param_names"], self._checked(), strict=True))
        return digests.digest(named, self.state_dict(), [])

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over a copy of what ``state_dict`` gave; parameters are matched by name.

        Raises KeyError, TypeError or ValueError, and changes nothing, if rule, names, keys, shapes
        or dtypes differ; RuntimeError while a step is under way.
        """
        self._load_with(state_dict, [])

    def _load_with(self, state_dict: Mapping[str, Any], also: Sequence[Call]) -> None:
        """``load_state_dict``, and calls that are made in the same moment."""
        given = state_dict, also
        machine.alone(self._lock, self._take_over, given, "step() of this optimizer")

    def _take_over(self, given: tuple[Mapping[str, Any], Sequence[Call]]) -> None:
        state_dict, also = given
        if state_dict["rule"] != self.rule:
            raise ValueError(f"state of rule {state_dict['rule']!r} given to {self.rule!r}")
        groups = state_dict["param_groups"]
        if [g["param_names"] for g in groups] != [self._names]:
            raise ValueError("the state's groups have other parameter names than this optimizer's")
        loaded = {key: copy.deepcopy(x) for key, x in groups[0].items() if key != "params"}
        loaded |= _checked_hyper(loaded)
        (held,), told = continued(self.param_groups, [loaded])
        self._rows.begin(self._memory.rows())
        memory = self._loaded(state_dict)
        group = self.param_groups[0]
        machine.at_once(
            [(dict.update, (group, held)), (setattr, (self, "_memory", memory)), *told, *also]
        )

    def _loaded(self, given: Mapping[str, Any]) -> Memory:
        """The memory of a state dict, in rows that are not those of the present one."""
        plain = Memory(
            updates=_count("updates", given["updates"], 0),
            func_evals=_count("func_evals", given["func_evals"], 0),
            n_iter=_count("n_iter", given["n_iter"], 0),
            t=float(given["t"]),
            h_diag=float(given["H_diag"]),
            prev_loss=float(given["prev_loss"]),
        )
        ro = [float(x) for x in given["ro"]]
        state = {name: given["state"][name] for name in self._names}
        if not ro and not any(state.values()):
            return plain
        expected = {"d", "prev_grad", "old_dirs", "old_stps"}
        for name, own in state.items():
            if set(own) != expected:
                raise ValueError(
                    f"state of parameter {name!r} has keys {sorted(own)}; "
                    f"expected {sorted(expected)}"
                )
        return replace(
            plain,
            d=self._loaded_row(state, "d"),
            prev_grad=self._loaded_row(state, "prev_grad"),
            pairs=tuple(
                Pair(
                    self._loaded_row(state, "old_dirs", i, len(ro)),
                    self._loaded_row(state, "old_stps", i, len(ro)),
                    ro[i],
                )
                for i in range(len(ro))
            ),
        )

    def _loaded_row(
        self, state: Mapping[str, Mapping[str, Any]], key: str, i: int = 0, count: int | None = None
    ) -> Array:
        """One vector of all parameters' parts, checked: the i-th of `count`, if told."""
        row = self._rows.take()
        params = self.param_groups[0]["params"]
        for name, part in zip(self._names, vectors.parts(row, params), strict=True):
            x = np.asarray(arrays.unmasked(state[name][key], f"state {key!r} of {name!r}"))
            shape = part.shape if count is None else (count, *part.shape)
            if x.shape != shape or x.dtype != row.dtype:
                raise ValueError(
                    f"state {key!r} of parameter {name!r} is {x.dtype} of shape {x.shape}; "
                    f"expected {row.dtype} of shape {shape}"
                )
            part[...] = x if count is None else x[i]
        return row

    def __getstate__(self) -> dict[str, Any]:
        kept = self.__dict__.copy()
        for name in ("_lock", "_memory", "_rows"):
            del kept[name]
        return kept | {"saved": self.state_dict()}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        saved = kept.pop("saved")
        self.__dict__.update(kept)
        params = self.param_groups[0]["params"]
        self._rows = vectors.Rows(sum(p.size for p in params), vectors.common_type(params))
        self._memory = Memory()
        self._lock = machine.Lock()
        self.load_state_dict(saved)

    def __repr__(self) -> str:
        group = self.param_groups[0]
        shown = ", ".join(f"{name}={group[name]!r}" for name in self.defaults)
        return f"LBFGS(\n  group 0: {len(group['params'])} parameters, {shown}\n)"


def _disjoint(params: list[Array], names: list[str]) -> None:
    arrays.disjoint_bounds(
        [(f"parameter {name!r}", p) for name, p in zip(names, params, strict=True)]
    )


# Arguments


@internal.load_with.register
def _load_lbfgs(optimizer: LBFGS, state_dict: Mapping[str, Any], also: Sequence[Call]) -> None:
    optimizer._load_with(state_dict, also)


def _checked_hyper(hyper: Mapping[str, Any], updates: int | None = None) -> dict[str, Any]:
    """Checked arguments, and the value of a schedule after so many steps; None keeps schedules."""
    rate = within(0)
    lr = hyper["lr"]
    found = {"lr": rate.check(lr, "", "lr") if updates is None else rate.at(lr, updates, "", "lr")}
    found["max_iter"] = _count("max_iter", hyper["max_iter"], 1)
    given = hyper["max_eval"]
    found["max_eval"] = (
        found["max_iter"] * 5 // 4 if given is None else _count("max_eval", given, 1)
    )
    for name in ("tolerance_grad", "tolerance_change"):
        found[name] = _tolerance(name, hyper[name])
    found["history_size"] = _count("history_size", hyper["history_size"], 1)
    found["line_search_fn"] = hyper["line_search_fn"]
    if found["line_search_fn"] not in (None, "strong_wolfe"):
        raise ValueError(
            f"line_search_fn = {found['line_search_fn']!r}: expected None or 'strong_wolfe'"
        )
    found["maximize"] = hyper.get("maximize", False)  # checkpoints may come from before it
    if not isinstance(found["maximize"], bool):
        raise TypeError(f"maximize = {found['maximize']!r}: expected True or False")
    return found


def _count(name: str, value: Any, least: int) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} = {value!r}: expected an integer") from None
    if number < least:
        raise ValueError(f"{name} = {number}: expected {least} or more")
    return number


def _tolerance(name: str, value: Any) -> float:
    try:
        if isinstance(value, (bool, str)):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} = {value!r}: expected a number") from None
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} = {number!r}: expected a number in [0, inf)")
    return number
