"""The specification: every rule in plain NumPy, written to be read.

A function here takes hyper-parameters and t, not prepared coefficients, and changes the parameter
and its state in place. The compiled kernels equal it to the last bit, which is why the order of
the operations and the roundings matter: scalars are computed in double and rounded once, by
``real``, to the parameter's type; everything else happens in that type.

``step`` is all that an optimizer does to one parameter; ``norm`` is what clipping measures.
"""

import inspect
from collections.abc import Callable, Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, TypeVar

from steepest.codecs import decoded
from steepest.reference.operation_order import StepOptions
from steepest.reference.reductions import norm as norm
from steepest.reference.stored import Stored
from steepest.subnormals import EVERY, averages_flushed, flush

__all__ = ["RULES", "norm", "register", "step"]

_Rule = TypeVar("_Rule", bound=Callable[..., None])

ONE, ALL = ["p", "g", "state", "t"], ["params", "grads", "states", "steps"]


def _is_rule(function: object) -> bool:
    """Whether it is a function that takes (p, g, state, t, ...), or lists of them."""
    if not inspect.isfunction(function):
        return False
    return list(inspect.signature(function).parameters)[:4] in (ONE, ALL)


_FAMILIES = [import_module(found.name) for found in iter_modules(__path__, f"{__name__}.")]

RULES: dict[str, Callable[..., None]] = {
    name: function
    for family in _FAMILIES
    for name, function in vars(family).items()
    if _is_rule(function) and function.__module__ == family.__name__
}
"""Every such function of a module here is a rule; a global rule takes lists."""


def register(function: _Rule) -> _Rule:
    """Adds the reference of another package's rule, under the function's name; a decorator.

    Raises TypeError unless it is a function of (p, g, state, t, *, lr, ...), ValueError if another
    module has given a reference of this name.
    """
    if not _is_rule(function):
        raise TypeError(f"reference {function!r}: expected a function of (p, g, state, t, *, ...)")
    name = function.__name__
    known = RULES.get(name, function)
    if known.__module__ != function.__module__:
        raise ValueError(
            f"{function.__module__} gives a reference {name!r}, which {known.__module__} has "
            "already; give the rule another name"
        )
    RULES[name] = function
    return function


def step(
    rule: str,
    p: Any,
    g: Any,
    state: Any,
    t: Any,
    *,
    lr: float,
    weight_decay: float = 0.0,
    decay_mode: str = "l2",
    l1: float = 0.0,
    maximize: bool = False,
    ema: float | None = None,
    lookahead: Any = None,
    average: Any = None,
    peak_lr: float | None = None,
    cautious: bool = False,
    regularize: Sequence[Any] = (),
    filter: Sequence[Any] = (),
    clip: Any = None,
    factor: float | Sequence[float] = 1.0,
    count: int | None = None,
    name: str = "0",
    state_dtype: Any = None,
    master: str | None = None,
    rounding: str = "nearest",
    rounding_seed: int = 0,
    number: int | Sequence[int] = 0,
    **hyper: Any,
) -> None:
    """The t-th step (from 1) of one parameter: prologue operations, rule, epilogue operations.

    Hyper-parameters are as in an optimizer's group. `factor` scales the gradient; it is what
    clipping by norms computed, from all gradients, while `clip` does here what it does to single
    elements and units. `regularize` and `filter` are sequences of penalties and filters; all are
    evaluated after `count` updates (t - 1 unless given). Random numbers follow from the parameter's
    `name`. The gradient is not changed. Where t is a multiple of 64, subnormal numbers of the
    parameter and of the rule's moving averages become zero (see ``steepest.subnormals``).

    Arrays may be of any format: all are decoded to float32, or to float64 where the parameter or a
    format of `state_dtype` is that, and what has changed is encoded at the end. With a `master`
    parameters of 16 bits have the rest of their bits, or their numbers, in the state. They are
    rounded by random numbers where `rounding` is "stochastic", and so are states of uint8 with
    scales beside them; these numbers follow from `rounding_seed`, t and the parameter's `number` in
    its optimizer.

    A global rule takes lists of parameters, gradients, states and steps, and ``shared=``, the dict
    of its numbers for all parameters; also a list as `factor`.
    """
    together = isinstance(p, list)
    each = list(zip(p, g, state, t, strict=True)) if together else [(p, g, state, t)]
    factors = factor if isinstance(factor, Sequence) else [factor] * len(each)
    numbers = number if isinstance(number, Sequence) else range(number, number + len(each))
    stored = [
        Stored(x, z, state_dtype, master, rounding, (rounding_seed, k, steps))
        for (x, _, z, steps), k in zip(each, numbers, strict=True)
    ]
    each = [
        (s.p, decoded(y, s.real), s.state, k) for s, (_, y, _, k) in zip(stored, each, strict=True)
    ]
    if together:
        p, state = [x for x, _, _, _ in each], [z for _, _, z, _ in each]
    else:
        p, _, state, _ = each[0]
    options = StepOptions(
        lr=lr, weight_decay=weight_decay, decay_mode=decay_mode, l1=l1, ema=ema,
        lookahead=lookahead, average=average, peak_lr=peak_lr, regularize=regularize,
        filters={type(f).__name__: f for f in filter}, clip=clip, cautious=cautious,
        factor=1.0, count=each[0][3] - 1 if count is None else count,
    )  # fmt: skip
    function = _known(rule)
    takes = inspect.signature(function).parameters
    if "name" in takes:
        hyper["name"] = name
    if "decay" in takes:  # the rule applies decay itself, by its weight,
        hyper["decay"] = options.decay
    elif "keep" in takes:  # or by the decay factor
        hyper["keep"] = options.decay_factor
    shrinks = not {"decay", "keep"} & set(takes)
    gradients = []
    for (x, y, z, _), scale in zip(each, factors, strict=True):
        options.factor = -scale if maximize else scale
        gradients.append(options.prologue(x, y, z))
    aside = [options.decoupled_decay(x) if shrinks else x for x, _, _, _ in each]
    function(p, gradients if together else gradients[0], state, t, lr=lr, **hyper)
    for (x, _, z, k), y, kept in zip(each, gradients, aside, strict=True):
        options.epilogue(x, y, z, k, kept)
        if k % EVERY == 0:
            eps = hyper.get("eps", takes["eps"].default if "eps" in takes else None)
            for array in (x, *(z[key] for key in averages_flushed(rule, eps) if key in z)):
                flush(array)
    for s in stored:
        s.encode()


def _known(rule: str) -> Callable[..., None]:
    if rule not in RULES:
        raise LookupError(
            f"there is no reference of rule {rule!r}; give one with steepest.reference.register"
        )
    return RULES[rule]
