"""To and from the variables of Keras 3's optimizers, which are identified by their order alone.

``optimizer.variables`` are the count of steps, the learning rate (unless it is a schedule), and
then the states: for Adam the momentum and velocity of the first variable, those of the second, and
so on, and after these the third state of each. ``save_own_variables`` stores them by their numbers
in this order, and a file has them so.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from steepest.convert import common
from steepest.convert.common import Found, Taken
from steepest.memory.arrays import Array
from steepest.optimizers import Optimizer

__all__ = ["from_keras", "to_keras"]

_RULES: dict[str, tuple[tuple[str, ...], ...]] = {
    "sgd": (("momentum_buffer",),),
    "adagrad": (("sum",),),
    "rmsprop": (("square_avg",), ("momentum_buffer",), ("grad_avg",)),
    "adadelta": (("square_avg", "acc_delta"),),
    "ftrl": (("accumulator", "linear"),),
    "adam": (("exp_avg", "exp_avg_sq"), ("max_exp_avg_sq",)),
    "adamw": (("exp_avg", "exp_avg_sq"), ("max_exp_avg_sq",)),
    "adamax": (("exp_avg", "exp_inf"),),
    "nadam": (("exp_avg", "exp_avg_sq"),),
    "lion": (("exp_avg",),),
    "lamb": (("exp_avg", "exp_avg_sq"),),
    "adafactor": (("row_var", "col_var", "variance"),),
}
"""The states in Keras's order: those of one tuple come variable by variable."""


def _slots(rule: str, h: Mapping[str, Any]) -> list[tuple[str, ...]]:
    if rule == "adafactor":
        _check_adafactor(h)
        return list(_RULES[rule])
    own = set(h["states"])
    return [together for together in _RULES[rule] if set(together) <= own]


def _check_adafactor(h: Mapping[str, Any]) -> None:
    plain = {
        "form": "paper",
        "beta1": None,
        "relative_step": True,  # whatever Keras's own flag says
        "warmup_init": False,
        "scale_parameter": True,
    }
    for key, value in plain.items():
        if h[key] != value:
            raise ValueError(
                f"Keras's Adafactor is one with {key}={value!r}; here it is {h[key]!r}"
            )
    if h["weight_decay"]:
        raise ValueError("Keras's Adafactor decays by lr alone; leave weight_decay at 0 here")


def _each(optimizer: Optimizer, names: Sequence[str] | None) -> list[tuple[str, Array, Any]]:
    """(name, parameter, numbers of its group), in the order of Keras's variables."""
    common.only_rule(optimizer, _RULES, "Keras")
    groups = optimizer.state_dict()["param_groups"]
    programs = common.programs(optimizer, groups, optimizer.updates)
    known = {}
    for program, group in zip(programs, optimizer.param_groups, strict=True):
        common.check_same_formula(optimizer.rule, program.h, "keras")
        if optimizer.rule == "lamb" and program.h["weight_decay"]:
            raise ValueError(
                "Keras's Lamb has its decay outside the trust ratio; leave weight_decay at 0 here"
            )
        for name, p in zip(group["param_names"], group["params"], strict=True):
            known[name] = (name, p, program.h)
    each = [known[name] for name in common.in_order(optimizer, names)]
    if len({str(_slots(optimizer.rule, h)) for _, _, h in each}) > 1:
        raise ValueError("groups differ in their states; Keras has one rule for all variables")
    return each


def _places(each: Sequence[tuple[str, Array, Any]], rule: str) -> list[tuple[str, str]]:
    """The (name, key) of each of Keras's states in order."""
    slots = _slots(rule, each[0][2])
    return [(name, key) for together in slots for name, _, _ in each for key in together]


def _shape(p: Array, key: str) -> tuple[int, ...]:
    """Keras's shape of a state. Adafactor's rows and columns lack the axis that was summed; those
    of a vector are numbers without a meaning."""
    if key not in ("row_var", "col_var"):
        return p.shape
    if p.ndim < 2:
        return ()
    return p.shape[:-1] if key == "row_var" else (*p.shape[:-2], p.shape[-1])


# From Keras


def from_keras(
    variables: Sequence[Any] | Mapping[str, Any],
    optimizer: Optimizer,
    *,
    names: Sequence[str] | None = None,
    keep: bool | Collection[str] = False,
) -> None:
    """Gives an optimizer the state of one of Keras 3.

    variables: Keras's ``optimizer.variables``, their values, or what ``save_own_variables`` wrote,
    a dict with the keys "0", "1" ... (the group ``optimizer/vars`` of a file). names: the names
    here of Keras's trainable variables, in its order; if left out, that in which parameters were
    given here. keep: True or ["lr"] where the learning rate here is to stay; a schedule stays
    anyway.

    Other hyper-parameters are not among the variables: make the optimizer with the same numbers,
    ``convention="keras"`` for rules that have it, and weight decay as ``decay_mode="decoupled"``.

    SGD's velocity contains the learning rate there; for another convention than Keras's it is
    divided by the present one. Raises ValueError or TypeError, naming parameter and key, if their
    number or shapes differ; nothing was changed then.

    >>> import numpy as np, steepest as st
    >>> opt = st.SGD({"w": np.zeros(2)}, momentum=0.9, convention="keras")
    >>> st.convert.from_keras([7, 0.5, np.array([-0.25, 0.5])], opt)
    >>> opt.updates, opt.param_groups[0]["lr"], opt.state["w"]["momentum_buffer"]
    (7, 0.5, array([ 0.25, -0.5 ]))
    """
    each = _each(optimizer, names)
    rule = optimizer.rule
    values = _listed(variables)
    places = _places(each, rule)
    last = 1 if rule == "nadam" else 0  # the product of its momenta
    rated = len(values) - len(places) - last - 1
    if rated not in (0, 1):
        expected = len(places) + last
        raise ValueError(
            f"there are {len(values)} variables; expected iteration, learning_rate and {expected} "
            f"more for {rule} with {len(each)} parameters (with use_ema or accumulated gradients "
            "Keras has further ones, which have no counterpart here)"
        )
    step = common.count_of(values[0], "variable 0, iteration")
    hyper = {"lr": common.number_of(values[1], "variable 1, learning_rate")} if rated else {}
    groups = common.merged(optimizer, [hyper] * len(optimizer.param_groups), keep)
    programs = list(common.programs(optimizer, groups, step))
    of = {
        name: program.h
        for program, group in zip(programs, groups, strict=True)
        for name in group["param_names"]
    }
    param = {name: p for name, p, _ in each}
    found = {name: Found(step, {}) for name in param}
    for (name, key), x in zip(places, values[1 + rated :], strict=False):
        converted = _converted(x, param[name], name, key)
        if key == "momentum_buffer" and rule == "sgd":
            converted = converted * common.rescaled(of[name], "keras")
        if _exists(param[name], key, rule):
            found[name].arrays[key] = converted
    if last:
        _check_product(values[-1], each[0][2], step)
    common.put_in(
        optimizer, groups, found, package="Keras", convention="keras", updates=step, step=step
    )


def _listed(variables: Any) -> list[Any]:
    if hasattr(variables, "keys"):
        keys = list(variables.keys())
        try:
            ordered = sorted(keys, key=int)
        except (TypeError, ValueError):
            ordered = []
        if [str(key) for key in ordered] != [str(i) for i in range(len(keys))]:
            raise ValueError(f'variables has the keys {keys}; expected "0", "1" and so on')
        return [np.asarray(variables[key]) for key in ordered]
    if isinstance(variables, np.ndarray):  # whose rows may be more than memory has room for
        raise TypeError("variables is an array; expected a list of arrays")
    return list(variables)


def _exists(p: Array, key: str, rule: str) -> bool:
    """Whether Adafactor here has the state, of which Keras makes all three for any variable."""
    return rule != "adafactor" or (key == "variance") == (p.ndim < 2)


def _converted(x: Any, p: Array, name: str, key: str) -> Array:
    what = f"state {key!r} of parameter {name!r}"
    found = common.array_of(x, what)
    if found.shape != _shape(p, key):
        raise ValueError(f"{what} has shape {found.shape}; expected {_shape(p, key)}")
    if key == "row_var" and p.ndim > 1:
        return found[..., np.newaxis]
    return found[..., np.newaxis, :] if key == "col_var" and p.ndim > 1 else found


def _check_product(x: Any, h: Mapping[str, Any], step: int) -> None:
    given = common.number_of(x, "the last variable, the product of momenta")
    product = common.warmed(h["betas"][0], 1.0, step)
    if abs(given - product) > 1e-3 * product + 1e-30:  # single precision, step by step
        raise ValueError(
            f"the last variable, the product of momenta, is {given:g}; {step} steps with "
            f"betas[0] = {h['betas'][0]} give {product:g}"
        )


# To Keras


def to_keras(
    optimizer: Optimizer, *, names: Sequence[str] | None = None, learning_rate: bool = True
) -> dict[str, Array]:
    """The optimizer's state as ``load_own_variables`` of Keras's optimizer takes it.

    That optimizer must have been built for the same variables in the same order. Values are by the
    number of the variable; Keras casts them to its types. learning_rate: False where Keras's is a
    schedule. names: as for ``from_keras``.

    Raises ValueError for parameters that have done different numbers of steps (Keras has one
    count), and for what Keras lacks.
    """
    rule, each = optimizer.rule, _each(optimizer, names)
    taken = {one.name: one for one in common.take_out(optimizer, "Keras", "keras")}
    steps = {one.step for one in taken.values()}
    rates = {one.h["lr"] for one in taken.values()}
    for kind, different in (("done {} steps", steps), ("the learning rates {}", rates)):
        if len(different) > 1:
            raise ValueError(
                f"parameters have {kind.format(sorted(different))}; Keras has one for all"
            )
    step = next(iter(steps))
    values: list[Any] = [np.array(step, np.int64)]
    if learning_rate:
        values.append(np.array(next(iter(rates))))
    values += [_back(taken[name], key, rule) for name, key in _places(each, rule)]
    if rule == "nadam":
        values.append(np.array(common.warmed(each[0][2]["betas"][0], 1.0, step)))
    return {str(i): x for i, x in enumerate(values)}


def _back(one: Taken, key: str, rule: str) -> Array:
    shape = _shape(one.param, key)
    if not _exists(one.param, key, rule):
        return np.zeros(shape, one.param.dtype)
    x = one.state[key]
    if rule == "sgd":
        x = x * common.rescaled(one.h, "keras", back=True)
    return x.reshape(shape)
