"""States as torch's own classes lay them out, and back: functions alone.

torch's layout of a parameter is a dict: ``"step"`` is a 0-d float32 tensor (float64 if that is
torch's default dtype), missing for SGD and Muon; NAdam has the product of its momentums beside,
ASGD its present rate and weight, alike. Here ``"step"`` is a 0-d int64 tensor and the others follow
from it. All other keys are the same.
"""

from collections.abc import Mapping
from typing import Any

from steepest.checkpoint.former_names import former_name
from steepest.extras import require
from steepest.fields import Value
from steepest.optimizers.adam import warming
from steepest.schedules import Schedule
from steepest.schedules.metric_driven import State

torch: Any = require("torch", extra="torch", purpose="steepest.torch")

__all__ = [
    "DECOUPLED",
    "EARLY",
    "FLAG",
    "RECORD",
    "agree",
    "check",
    "group_from_torch",
    "names",
    "state_from_torch",
    "state_to_torch",
    "values",
]

RECORD = "steepest"
"""The key in the first group of a state dict of what torch has no place for."""

EARLY = ("adagrad",)
"""Rules whose state torch makes with the parameters, and not at their first step."""

_EXACT = 2**24  # counts up to this are float32 numbers
_STEPLESS = ("sgd", "muon")
_FOLLOWING = {"nadam": ("mu_product",), "asgd": ("eta", "mu")}
DECOUPLED = ("adam", "adamw", "nadam", "radam")
"""Rules whose groups have the flag ``decoupled_weight_decay``, which is a ``decay_mode`` here."""

FLAG = "decoupled_weight_decay"


def state_to_torch(rule: str, state: Mapping[str, Any], h: Mapping[str, Any]) -> dict[str, Any]:
    """The state of one parameter in torch's layout; arrays are the same tensors.

    `h` are the group's hyper-parameters as numbers.
    """
    if "step" not in state:  # nothing but what others have put there
        return dict(state)
    t = int(state["step"])
    double = torch.get_default_dtype() == torch.float64
    dtype = torch.float64 if double else torch.float32
    laid: dict[str, Any] = {}
    if rule not in _STEPLESS:
        exact = dtype if t <= _EXACT else torch.float64
        laid["step"] = torch.tensor(float(t), dtype=exact, device="cpu")
    if rule == "nadam":
        product = warming(h["betas"][0], h["momentum_decay"], t)[2] if t else 1.0
        laid["mu_product"] = torch.tensor(product, dtype=dtype, device="cpu")
    elif rule == "asgd":
        lr = h["lr"]
        eta = lr / (1.0 + h["lambd"] * lr * t) ** h["alpha"]
        laid["eta"] = torch.tensor(eta, dtype=dtype, device="cpu")
        laid["mu"] = torch.tensor(1.0 / max(1.0, t - h["t0"]), dtype=dtype, device="cpu")
    return laid | {key: x for key, x in state.items() if key != "step" and key not in laid}


def values() -> list[Any]:
    """The classes of values that may stand in a group: clips, penalties, filters, schedules, and
    what those remember that change with time; those that were elsewhere before also with the name
    that they had there, as ``torch.serialization.add_safe_globals`` takes them."""
    found: list[type[Any]] = [State]
    waiting: list[type[Any]] = [Value, Schedule]
    while waiting:
        more = waiting.pop().__subclasses__()
        found += more
        waiting += more
    former = ((kind, former_name(kind)) for kind in found)
    return [*found, *(pair for pair in former if pair[1])]


def state_from_torch(rule: str, state: Mapping[str, Any], name: str, step: int) -> dict[str, Any]:
    """The state of one parameter as it is here, from torch's layout or ours.

    `step` is the count of a rule that torch keeps none of. Raises ValueError for a count that is
    none, and TypeError for a state that is no dict.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"state of parameter {name!r} is a {type(state).__name__}; expected a dict")
    # An empty dict is what torch makes of a key that a flattened state dict lacks.
    given = {
        key: x for key, x in state.items() if x is not None and not (isinstance(x, dict) and not x)
    }
    found = given.pop("step", step)
    if isinstance(found, torch.Tensor) and not (found.dtype == torch.int64 and not found.dim()):
        if found.numel() != 1:
            raise ValueError(
                f"step of parameter {name!r} has shape {tuple(found.shape)}; expected one number"
            )
        found = found.item()
    for key in _FOLLOWING.get(rule, ()):
        given.pop(key, None)
    return {"step": found, **given}


def agree(group: dict[str, Any], before: str | None = None) -> None:
    """Makes a group's ``decay_mode`` and torch's flag say the same: what the flag says where it is
    alone, or where it is another than with the mode that there was `before`."""
    mode = group.get("decay_mode")
    flag = group.get(FLAG)
    if flag is not None and (mode is None or before not in (None, _mode(flag, before))):
        mode = group["decay_mode"] = _mode(flag, mode)
    if mode is not None:
        group[FLAG] = mode == "decoupled"


def check(group: Mapping[str, Any]) -> None:
    """Raises ValueError for a group that is given a flag and a mode that say different things."""
    if FLAG in group and "decay_mode" in group:
        flag, mode = group[FLAG], group["decay_mode"]
        if bool(flag) != (mode == "decoupled"):
            raise ValueError(
                f"a group with {FLAG} = {flag!r} and decay_mode = {mode!r}: expected one of them"
            )


def _mode(flag: Any, mode: str | None) -> str:
    """The mode that the flag says: `mode` itself if that is one of those it allows."""
    if flag:
        return "decoupled"
    return "l2" if mode in (None, "decoupled") else mode


def group_from_torch(
    rule: str, saved: Mapping[str, Any], group: Mapping[str, Any]
) -> dict[str, Any]:
    """The hyper-parameters of a loaded group: `saved`, and those of the `group` that has been here
    for what torch's own class does not know."""
    found = dict(saved)
    if rule in DECOUPLED:
        agree(found)
    return {key: x for key, x in group.items() if key not in found} | found


def names(groups: list[dict[str, Any]], index: Mapping[Any, int] | None = None) -> list[str]:
    """The names of all parameters: by their `index` if there is one, else those that were given,
    else their numbers; also where a program has put one flat tensor in the place of several."""
    if index is not None:
        return [str(index[p]) for group in groups for p in group["params"]]
    found: list[str] = []
    for group in groups:
        given, count = group.get("param_names") or [], len(group["params"])
        found += given if len(given) == count else [str(len(found) + i) for i in range(count)]
    return found
