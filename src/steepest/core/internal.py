"""What the rest of the library does with an optimizer beside what its users do.

PyTorch classes, process groups, converters and checkpoints come in here: names with an underscore
are touched in ``core`` alone. Functions, and not methods, so that ``dir(optimizer)`` stays what is
for users.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import singledispatch
from typing import Any

from steepest.core import trees
from steepest.core.group_program import GroupProgram
from steepest.core.groups import lacking
from steepest.core.held_rule import HeldRule
from steepest.core.norms import Clipping, Peers
from steepest.core.optimizer import Optimizer
from steepest.core.selection import Selection
from steepest.core.state import WatchedDict, counters
from steepest.fields import Call
from steepest.kernels import machine, threads
from steepest.kernels.engine import Plan
from steepest.memory.arrays import Array, same_memory

__all__ = [
    "add_whole_group",
    "bring_up_to_date",
    "build_plan",
    "change_alone",
    "clipping_of",
    "current_plan",
    "filled_group",
    "flat_step",
    "flattened",
    "following",
    "given_order",
    "group_programs",
    "held_rules",
    "inside",
    "kept_numbers",
    "load_with",
    "loaded_programs",
    "measure_ahead",
    "measured_by",
    "measures_all",
    "new_state",
    "norm_of",
    "over_states",
    "own_state_dict",
    "parameter_at",
    "parameter_count",
    "planned_step",
    "rule_of",
    "set_peers",
    "set_updates",
    "shared_numbers",
    "steps_with_peers",
    "telling",
    "unmarked_state",
    "without_groups",
]


# Rules and groups


def rule_of(optimizer: Optimizer, group: Mapping[str, Any]) -> HeldRule:
    """The rule that a group uses. Raises ValueError for one that there is not."""
    return optimizer._rule_of(group)


def held_rules(optimizer: Optimizer) -> list[HeldRule]:
    """All rules that the optimizer has had groups of."""
    return list(optimizer._rules.values())


def group_programs(optimizer: Optimizer) -> Sequence[GroupProgram]:
    """What each group asked for at the last step, or when it was added."""
    return optimizer._groups


def clipping_of(optimizer: Optimizer) -> Clipping:
    """The clips of all groups, and the norms that they use, once there is a plan."""
    return optimizer._clipping


def kept_numbers(optimizer: Optimizer) -> list[tuple[str, float]]:
    """The numbers that rules keep of groups, by name."""
    return optimizer._kept_numbers()


def filled_group(optimizer: Optimizer, group: Mapping[str, Any]) -> dict[str, Any]:
    """A group without parameters, with all hyper-parameters; it is not added."""
    return optimizer._filled(group, {}, [], [], [])


def add_whole_group(optimizer: Optimizer, group: Mapping[str, Any], given: int) -> None:
    """``add_param_group`` of parameters that ``exclude`` and ``overrides`` have been asked of;
    `given` is the number of the group that this one is a part of, of those that were given."""
    selection, optimizer._selection = optimizer._selection, Selection((), {})
    try:
        optimizer.add_param_group(group)
    finally:
        optimizer._selection = selection
    optimizer._given[-1] = given


# Gradients in the order of the groups


def flattened(optimizer: Optimizer, tree: Any, where: str = "grads") -> list[Any]:
    """The leaves of a tree of the structure of ``params``, in the order of the groups."""
    flat = trees.take(optimizer._shape, tree, where)
    return flat if optimizer._in_order else [flat[i] for i in optimizer._order]


def follow_tensors(optimizer: Any) -> list[tuple[Array, Array]]:
    """Takes tensors that were given to an optimizer as parameters where they lie now: arrays that
    gave way in its groups, and those in their places."""
    follow = getattr(optimizer, "_follow_tensors", None)
    pairs: list[tuple[Array, Array]] = [] if follow is None else follow()
    return pairs


def given_order(optimizer: Optimizer) -> list[int]:
    """For each parameter in the order of the groups: its place in ``params``."""
    return optimizer._order


# Steps


def flat_step(optimizer: Optimizer, grads: list[Any], factor: float) -> Plan | None:
    """A step with gradients in the order of the groups, times a factor; the plan it used.

    Alone, and in the default floating-point mode. Raises what ``step`` raises.
    """
    optimizer._unscale = factor
    machine.alone(optimizer._lock, optimizer._flat_step, grads, "step() of this optimizer")
    return optimizer._plan


def planned_step(
    optimizer: Optimizer, grads: list[Any], measured: bool
) -> tuple[float | None, Call]:
    """The call that takes a step, which cannot fail and is made later, beside others.

    Also the norm of all gradients if it is to be measured. For element-wise rules without clips;
    gradients are in the order of the groups. The caller has to be in ``change_alone``.
    """
    count = optimizer._updates.item()
    optimizer._take_hyper(count)
    plan = optimizer._resolved(grads)
    for row, (number, t, by_rows) in enumerate(plan.rows()):
        program = optimizer._groups[number]
        program.tell(plan, row, count, t, optimizer._domains[number], by_rows)
    workers = threads.workers(plan.elements())
    norm = plan.norm(workers) if measured else None
    plan.rescale(optimizer._climbing(1.0))
    plan.factors(workers)
    return norm, (plan.commit, (workers,))


def change_alone(
    optimizer: Optimizer,
    function: Callable[[Any], Any],
    argument: Any,
    what: str = "step() of this optimizer",
) -> None:
    """Calls a function that changes the optimizer: in one thread at a time, as its steps are, and
    in the default floating-point mode. Raises RuntimeError, which names `what`, in another."""
    machine.alone(optimizer._lock, function, argument, what)


def set_updates(optimizer: Optimizer, count: int | Array) -> None:
    """Says how many steps were done."""
    optimizer._updates[...] = count


def set_peers(optimizer: Optimizer, peers: Peers | None) -> None:
    """Says who steps other parts of the parameters; None if the optimizer has them whole."""
    optimizer._peers = peers


def steps_with_peers(optimizer: Optimizer) -> bool:
    """Whether others step other parts of the parameters."""
    return optimizer._peers is not None


# Plans


@singledispatch
def inside(optimizer: Any) -> Optimizer:
    """The optimizer that another one has inside, or itself. Raises TypeError where there is none.

    Whoever keeps it elsewhere than in ``optimizer`` registers where.
    """
    found = getattr(optimizer, "optimizer", None)
    if found is None:
        raise TypeError(
            f"a {type(optimizer).__name__} has no plan of steps; expected an optimizer of steepest "
            "or steepest.torch, other than LBFGS"
        )
    return inside(found)


@inside.register
def _itself(optimizer: Optimizer) -> Optimizer:
    return optimizer


def parameter_count(optimizer: Optimizer) -> int:
    """How many parameters there are, in all groups."""
    return len(optimizer._names)


def parameter_at(optimizer: Optimizer, i: int) -> tuple[str, Array]:
    """The name and the array of a parameter, by its place in the order of the groups, once there is
    a plan."""
    assert optimizer._plan is not None
    return optimizer._names[i], optimizer._plan.arrays(i)[0]


def current_plan(optimizer: Optimizer) -> Plan | None:
    """The plan of the last step; None if the next one makes another."""
    return optimizer._plan


def build_plan(optimizer: Optimizer) -> Plan:
    """A new plan. All parameters and states are checked, and states made that there are not."""
    return optimizer._built()


def bring_up_to_date(optimizer: Optimizer) -> None:
    """Checks all states and makes those that there are not, where anyone may have changed some.

    Raises RuntimeError where they lie in files of another process.
    """
    optimizer._check_process()
    if optimizer._plan is None or optimizer._changes.any or optimizer._state_shown:
        optimizer._built()


# An optimizer over the memory of another library


def following(
    cls: type[Optimizer], groups: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
) -> tuple[Optimizer, list[int]]:
    """An optimizer of a class that follows another library's groups, in which keys of other
    programs may be; its states are made by the first plan.

    Also, for each of its groups, the number of the one that it was made of.
    """
    made = _marked(cls, groups, options, _early=False, _borrows_groups=True)
    return made, made._given


def over_states(
    cls: type[Optimizer],
    params: Mapping[str, Any],
    states: Mapping[str, Mapping[str, Any]],
    options: Mapping[str, Any],
    part_from: int | None,
) -> Optimizer:
    """An optimizer over parameters and states of the caller's, bound to their memory; where they
    are a part of others, `part_from` is the number of the first.

    Raises TypeError or ValueError for states that are missing, that the rule does not have, or that
    it could not use where they lie.
    """
    made = _marked(cls, params, options, _early=False, _states_lent=True, _part_from=part_from)
    for name, state in states.items():
        made._state[name] = WatchedDict(state, made._changes)
    made._built()
    for name, key in made._left:
        raise ValueError(
            f"states has {key!r} for parameter {name!r}, which {cls.__name__} with these arguments "
            "does not have"
        )
    for name, state in states.items():
        for key, x in made._state[name].items():
            if key not in state:
                raise lacking(key, name)
            if not same_memory(x, state[key]):
                raise ValueError(
                    f"state {key!r} of parameter {name!r} cannot be used where it lies; take the "
                    "arrays of functional.new_states, or arrays in C order"
                )
    return made


def _marked(
    cls: type[Optimizer], params: Any, options: Mapping[str, Any], **marks: Any
) -> Optimizer:
    """An optimizer with marks that have to stand before its groups are added."""
    made = object.__new__(cls)
    vars(made).update(marks)
    made.__init__(params, **options)  # type: ignore[misc]
    return made


def norm_of(optimizer: Optimizer, grads: list[Any]) -> float:
    """The norm of gradients in the order of the groups; nothing is changed."""

    def measure(given: list[Any]) -> None:
        plan = optimizer._resolved(given)
        plan.rows()
        found.append(plan.norm(threads.workers(plan.elements())))

    found: list[float] = []
    change_alone(optimizer, measure, grads, "norm() of this optimizer")
    return found[0]


def measures_all(optimizer: Optimizer) -> bool:
    """Whether the next step measures its gradients before all else. Raises what it would raise for
    hyper-parameters, parameters and states."""
    optimizer._take_hyper(optimizer._updates.item())
    if optimizer._plan is None:
        optimizer._built()
    return optimizer._clipping.sweeps or optimizer._nonfinite != "propagate"


def measure_ahead(optimizer: Optimizer, grads: list[Any]) -> Plan:
    """Measures gradients for the coming step, of those parameters for which they are not None.

    Where the plan that is returned has measured all, a step with the same gradients, in the same
    memory, need not do so: that is said by ``measured_by``. Nothing is changed.
    """

    def measure(given: list[Any]) -> None:
        plan = optimizer._resolved(given)
        plan.rows()
        plan.norms(threads.workers(plan.elements()), optimizer._clipping.orders[0])
        found.append(plan)

    found: list[Plan] = []
    change_alone(optimizer, measure, grads, "the norms of this optimizer")
    return found[0]


@contextmanager
def measured_by(optimizer: Optimizer, plan: Plan | None) -> Iterator[None]:
    """For steps inside: whether a plan has measured all of their gradients ahead."""
    optimizer._measured_ahead = plan
    try:
        yield
    finally:
        optimizer._measured_ahead = None


@contextmanager
def telling(optimizer: Optimizer, told: Callable[[list[int]], None]) -> Iterator[None]:
    """For a step inside: who is told what has been stepped, by numbers in the order of the groups,
    while others may still be to come. It must not use the optimizer. What it raises, the step
    raises when all is done."""
    optimizer._told = told
    if optimizer._plan is not None:
        optimizer._plan.told = told
    try:
        yield
    finally:
        optimizer._told = None
        if optimizer._plan is not None:
            optimizer._plan.told = None


def shared_numbers(optimizer: Optimizer) -> list[tuple[str, float]]:
    """The numbers that the first group's rule keeps of all parameters, by name."""
    group = optimizer.param_groups[0]
    return [(key, group[key]) for key in optimizer._groups[0].shared]


def without_groups(optimizer: Optimizer) -> Optimizer:
    """An optimizer like this one, to which groups are yet to be added: same settings, same counts
    of updates and skipped steps, same remembered norms."""
    return optimizer._again()


# State


def unmarked_state(optimizer: Optimizer) -> Mapping[str, WatchedDict]:
    """``state``, for who does not change it: no step has to look at it again for that."""
    return optimizer._state


def new_state(optimizer: Optimizer, program: GroupProgram, name: str, p: Array) -> dict[str, Any]:
    """The state of a parameter as it begins, in files if states are to be there."""
    [step] = counters(1)
    return dict(optimizer._new_state(p, name, step, program))


def own_state_dict(optimizer: Optimizer) -> dict[str, Any]:
    """``state_dict`` with the optimizer's own arrays: copies might be larger than memory.

    Raises what loading it would raise, such as ValueError for a schedule that never was in range.
    """
    return optimizer._lent()


def loaded_programs(
    optimizer: Optimizer, groups: Sequence[Mapping[str, Any]], count: int
) -> list[GroupProgram]:
    """What the groups of a state dict of `count` updates ask for. Raises what loading them would
    raise."""
    pairs = zip(optimizer.param_groups, groups, strict=True)
    return [GroupProgram.loaded(*optimizer._loaded(*pair), count) for pair in pairs]


@singledispatch
def load_with(optimizer: Any, state_dict: Mapping[str, Any], also: Sequence[Call]) -> None:
    """``load_state_dict``, and calls that are made in the same moment, and only if it succeeds.

    Whoever is no ``Optimizer`` but loads checkpoints registers how.
    """
    raise TypeError(f"a {type(optimizer).__name__} cannot load a checkpoint")


@load_with.register
def _load_whole(optimizer: Optimizer, state_dict: Mapping[str, Any], also: Sequence[Call]) -> None:
    optimizer._load(state_dict, also)
