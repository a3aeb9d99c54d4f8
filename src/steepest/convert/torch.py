"""To and from state dicts of ``torch.optim``, and of packages that write the same layout."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from steepest import codecs
from steepest.convert import common, torch_layout
from steepest.convert.common import Found, Taken
from steepest.convert.torch_layout import LAYOUTS
from steepest.extras import require
from steepest.optimizers import Optimizer

__all__ = ["check_layout", "from_torch", "take_over", "tensors_of", "to_torch", "written"]


def from_torch(
    state_dict: Mapping[str, Any],
    optimizer: Optimizer,
    *,
    names: Sequence[str] | None = None,
    keep: bool | Collection[str] = False,
    step: int | None = None,
) -> None:
    """Gives an optimizer the state and the hyper-parameters of one of ``torch.optim``.

    state_dict: what PyTorch's ``state_dict()`` gave, of tensors or of arrays; those of torchao,
    whose quantised tensors are dequantised, too. States are stored as ``state_dtype`` says; a
    master begins as for a new optimizer. names: the names here of PyTorch's parameters, in
    its order; if left out, they are matched by the ``param_names`` of its groups, and if there are
    none, in order. keep: hyper-parameters that stay as they are here, or True for all; schedules
    stay anyway. step: the number of steps done, for SGD and Muon, which do not store it; needed if
    a schedule here depends on it.

    Raises ValueError or TypeError, naming parameter and key, if rule, names, keys or shapes differ;
    nothing was changed then. The parameters' values are not part of a state dict.

    >>> import numpy as np, steepest as st
    >>> moments = {"exp_avg": np.array([0.5, 0.0]), "exp_avg_sq": np.array([0.25, 0.0])}
    >>> group = {"lr": 0.1, "betas": (0.9, 0.99), "params": [0]}
    >>> opt = st.Adam({"w": np.zeros(2)})
    >>> torch_state = {"state": {0: {"step": 7, **moments}}, "param_groups": [group]}
    >>> st.convert.from_torch(torch_state, opt)
    >>> opt.updates, opt.param_groups[0]["lr"], opt.state["w"]["exp_avg"]
    (7, 0.1, array([0.5, 0. ]))
    """
    common.only_rule(optimizer, LAYOUTS, "torch.optim")
    read = (torch_layout.group_from, torch_layout.state_from)
    take_over(state_dict, optimizer, *read, names=names, keep=keep, step=step)


def take_over(
    state_dict: Mapping[str, Any],
    optimizer: Optimizer,
    read_group: Callable[[str, Mapping[str, Any], int], dict[str, Any]],
    read_state: Callable[[str, Mapping[str, Any], str, Mapping[str, Any]], Found | None],
    *,
    package: str = "torch.optim",
    convention: str = "torch",
    names: Sequence[str] | None,
    keep: bool | Collection[str],
    step: int | None = None,
) -> None:
    """Puts in a state dict of PyTorch's layout. read_group: (rule, group, its number) to
    hyper-parameters here. read_state: (rule, the group's numbers, name, state) to a state here."""
    owner, number = _matched(state_dict, optimizer, names)
    theirs = [read_group(optimizer.rule, g, i) for i, g in enumerate(state_dict["param_groups"])]
    groups = common.merged(optimizer, _hyper(theirs, optimizer, number), keep)
    found: dict[str, Found] = {}
    programs = common.programs(optimizer, groups, step or 0)
    for program, group in zip(programs, optimizer.param_groups, strict=True):
        for name in group["param_names"]:
            state = state_dict["state"].get(owner[name], {})
            if not isinstance(state, Mapping):
                raise TypeError(
                    f"state of parameter {name!r} is a {type(state).__name__}, not a dict"
                )
            one = read_state(program.rule.rule, program.h, name, state)
            if one is not None:
                found[name] = one
    common.put_in(optimizer, groups, found, package=package, convention=convention, step=step)


def _matched(
    state_dict: Mapping[str, Any], optimizer: Optimizer, names: Sequence[str] | None
) -> tuple[dict[str, Any], dict[str, int]]:
    """For each name here the key of its state there, and the number of its group there."""
    check_layout(state_dict)
    theirs = [(key, i) for i, g in enumerate(state_dict["param_groups"]) for key in g["params"]]
    keys = [key for key, _ in theirs]
    if strange := [key for key in state_dict["state"] if key not in keys]:
        raise ValueError(f"state dict: state {strange[0]!r} belongs to no parameter of its groups")
    ours = _names(state_dict["param_groups"], optimizer, names)
    if len(ours) != len(theirs) or len(set(keys)) != len(keys):
        raise ValueError(
            f"the state dict has {len(theirs)} parameters; the optimizer here has {len(ours)}"
        )
    pairs = zip(ours, theirs, strict=True)
    owner, number = {}, {}
    for name, (key, group) in pairs:
        owner[name], number[name] = key, group
    return owner, number


def check_layout(state_dict: Any) -> None:
    """Raises ValueError for what is no state dict of PyTorch's layout."""
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
        raise ValueError(
            'this is not a state dict of torch.optim: it lacks "state" or "param_groups"'
        )
    state, groups = state_dict["state"], state_dict["param_groups"]
    if not isinstance(state, Mapping):
        raise ValueError(f"state dict: its state is a {type(state).__name__}; expected a dict")
    if not isinstance(groups, (list, tuple)):
        raise ValueError(
            f"state dict: its param_groups are a {type(groups).__name__}; expected a list of dicts"
        )
    for i, group in enumerate(groups):
        if not isinstance(group, Mapping) or not (
            _are_keys(group.get("params")) and _are_keys(group.get("param_names", ()))
        ):
            raise ValueError(
                f"group {i} of the state dict = {group!r}: expected a dict with a list of numbers "
                "or names as params, and as param_names if there are some"
            )


def _are_keys(x: Any) -> bool:
    return isinstance(x, (list, tuple)) and all(isinstance(key, (int, str)) for key in x)


def _names(
    theirs: Sequence[Mapping[str, Any]], optimizer: Optimizer, names: Sequence[str] | None
) -> list[str]:
    """The names here in the order of PyTorch's parameters."""
    if names is not None:
        return common.in_order(optimizer, names)
    named = [name for g in theirs for name in g.get("param_names", ())]
    if not named and all(isinstance(key, str) for g in theirs for key in g["params"]):
        named = [key for g in theirs for key in g["params"]]  # of torch.distributed.checkpoint
    if named:
        try:
            return common.in_order(optimizer, named)
        except ValueError as error:
            raise ValueError(f"param_names of the state dict, as {error}; or give names=") from None
    groups = optimizer.param_groups
    if [len(g["params"]) for g in theirs] == [len(g["params"]) for g in groups] or len(groups) == 1:
        return [name for g in groups for name in g["param_names"]]
    if len(theirs) == 1:
        return common.in_order(optimizer)
    raise ValueError(
        "the parameters are in other groups than here, and the state dict has no names: give "
        "names=, the names here in PyTorch's order"
    )


def _hyper(
    theirs: Sequence[Mapping[str, Any]], optimizer: Optimizer, number: Mapping[str, int]
) -> list[dict[str, Any]]:
    """The hyper-parameters for each group here. Raises ValueError where parameters of one group
    here are in groups there that differ."""
    hyper = []
    for i, group in enumerate(optimizer.param_groups):
        first, *others = [dict(theirs[number[name]]) for name in group["param_names"]]
        for other in others:
            if differing := [key for key in first if other.get(key) != first[key]]:
                raise ValueError(
                    f"group {i} here has parameters of groups there that differ in {differing[0]}: "
                    "make the optimizer with the same groups"
                )
        hyper.append(first)
    return hyper


def to_torch(
    optimizer: Optimizer, *, tensors: bool = True, param_names: bool = False
) -> dict[str, Any]:
    """The optimizer's state as ``load_state_dict`` of PyTorch's class takes it.

    PyTorch's optimizer needs the same groups with parameters in the same order as here. Numbers are
    those of the next step: a schedule becomes its present value. tensors: False for arrays, without
    PyTorch. param_names: whether groups have their parameters' names, as PyTorch writes them for
    optimizers made of ``named_parameters()``.

    States are of float32 or float64, whatever they are stored as here. Averages (``ema``,
    ``average``), masters and clips are left out. Raises ValueError for other options that
    PyTorch's class lacks, such as another convention, ``lookahead`` or another mode of decay.

    >>> import numpy as np, steepest as st
    >>> opt = st.SGD([np.zeros(2)], lr=0.1, momentum=0.9)
    >>> opt.step([np.array([1.0, -2.0])])
    >>> st.convert.to_torch(opt, tensors=False)["state"]
    {0: {'momentum_buffer': array([ 1., -2.])}}
    """
    common.only_rule(optimizer, LAYOUTS, "torch.optim")
    whole = written(
        optimizer,
        lambda one: torch_layout.group_to(optimizer.rule, one.h, one.group),
        lambda one: torch_layout.state_to(optimizer.rule, one),
        param_names=param_names,
    )
    return tensors_of(whole) if tensors else whole


def written(
    optimizer: Optimizer,
    group_to: Callable[[Taken], dict[str, Any]],
    state_to: Callable[[Taken], dict[str, Any]],
    *,
    package: str = "torch.optim",
    convention: str = "torch",
    param_names: bool = False,
) -> dict[str, Any]:
    """A state dict of PyTorch's layout. group_to: the group of a parameter there, without its
    parameters. state_to: its state there, empty for one that has had no step."""
    groups: list[dict[str, Any]] = []
    state: dict[int, dict[str, Any]] = {}
    for number, one in enumerate(common.take_out(optimizer, package, convention)):
        if one.group == len(groups):
            groups.append(group_to(one) | {"params": []})
            if param_names:
                groups[-1]["param_names"] = []
        groups[one.group]["params"].append(number)
        if param_names:
            groups[one.group]["param_names"].append(one.name)
        if own := state_to(one):
            state[number] = own
    return {"state": state, "param_groups": groups}


def tensors_of(state_dict: dict[str, Any]) -> dict[str, Any]:
    """The same with tensors in place of the arrays of its states."""
    torch = require("torch", "torch", "state dicts of tensors (there is tensors=False)")

    def tensors(x: Any) -> Any:
        if isinstance(x, dict):
            return {key: tensors(one) for key, one in x.items()}
        if not isinstance(x, (np.ndarray, np.generic)):
            return x
        if codecs.is_bfloat16(x.dtype):
            return torch.from_numpy(np.array(x).view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(np.array(x))

    return {**state_dict, "state": tensors(state_dict["state"])}
