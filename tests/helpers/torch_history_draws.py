"""Draws histories of ``steepest.torch``: as ``history_draws``, with what happens in PyTorch.

Half of them have only what a class of ``torch.optim`` has, too, which then steps beside it.
"""

import inspect
from typing import Any

import torch
from cases import CONFIGURATIONS
from history_draws import Draw, History

from steepest.optimizers import RULES

LAYOUTS = ("F", "strided", "inner", "shifted")
TURNS = ("dict", "save", "copy", "pickle", "theirs", "numpy")
FORMATS = ("float32", "float64", "bfloat16", "float16")
SCHEDULERS = (
    "StepLR(o, 2, 0.7)", "ExponentialLR(o, 0.87)", "CosineAnnealingLR(o, 5)",
    "LinearLR(o, 0.3, total_iters=4)", "ReduceLROnPlateau(o, factor=0.5, patience=0)",
    "CyclicLR(o, 0.001, 0.1, 2, cycle_momentum=False)", "PolynomialLR(o, 6)",
    "SequentialLR(o, [ConstantLR(o, 0.5), ExponentialLR(o, 0.9)], [2])",
)  # fmt: skip

NOT_BESIDE = {"muon"}
"""Rules that PyTorch computes in another precision, or rounds otherwise."""


def in_torch(rule: str, given: Any) -> bool:
    """Whether ``torch.optim`` has the rule with these arguments, whose defaults are the same."""
    theirs = getattr(torch.optim, RULES[rule].__name__, None)
    if theirs is None or rule in NOT_BESIDE:
        return False
    return {*given} <= {*inspect.signature(theirs).parameters}


BESIDE = sorted({rule for rule, given in CONFIGURATIONS if in_torch(rule, given)} | {"rprop"})


def history(seed: int, rule: str | None = None) -> History:
    """The history of a seed, of a rule if that is given."""
    return TorchDraw(seed, rule).history()


class TorchDraw(Draw):
    """Makes the choices of one history."""

    layouts = LAYOUTS

    def __init__(self, seed: int, rule: str | None) -> None:
        super().__init__(seed, rule)
        self.beside = self.some(0.5) and (rule is None or rule in BESIDE)
        if self.beside and rule is None:
            self.rule = self.of(BESIDE)
            self.cls, self.matrix = RULES[self.rule], False

    def history(self) -> History:
        drawn = super().history()
        drawn["given"].pop("state_dir", None)
        late = self.beside and self.rule == "asgd"  # where torch takes a rate one step later
        if self.some(0.35) and "schedules" not in repr(drawn) and not late:
            drawn["scheduler"] = self.of(SCHEDULERS)
        by_name = self.rule in ("psgdkron", "apollo")  # whose random numbers follow from names
        return drawn | {"named": by_name or self.some(0.3)}

    def array(self) -> tuple[str, Any]:
        name, x = super().array()
        if x["layout"] not in LAYOUTS:
            x["layout"] = "C"
        return name, x | ({"dtype": self.dtype, "draw": "normal"} if self.beside else {})

    def formats(self, arrays: Any) -> dict[str, str]:
        self.dtype = self.dtype if self.dtype in FORMATS[:2] or not self.beside else "float32"
        if self.beside:
            for x in arrays.values():
                x["dtype"] = self.dtype
            return {}
        return super().formats(arrays)

    def arguments(self) -> dict[str, str]:
        if not self.beside:
            return super().arguments()
        known = [given for rule, given in CONFIGURATIONS if rule == self.rule]
        known = [given for given in known if in_torch(self.rule, given)] or [{"lr": 0.01}]
        h = {name: repr(value) for name, value in self.of(known).items()}
        if self.some(0.3):
            h["lr"] = self.of(["0.3", "0.01", "1e-4"])
        return h

    def number(self, name: str, found: Any) -> str:
        if self.beside and name == "lr":
            return self.of(["0.03", "0.3", "1e-3"])
        return super().number(name, found)

    def options(self, h: Any, share: float, of_group: bool = False) -> dict[str, str]:
        if self.beside:
            return {"maximize": "True"} if self.some(share) else {}
        return super().options(h, share, of_group)

    def other_rule(self, h: Any) -> str:
        return self.rule

    def changing(self, h: Any) -> dict[str, str]:
        found = super().changing(h)
        if "weight_decay" in found and self.rule == "rprop" and self.beside:
            del found["weight_decay"]
        return found

    # Events

    def step(self, number: int, groups: Any) -> dict[str, Any]:
        event = super().step(number, groups)
        if event.get("layout") not in (*LAYOUTS, "spread"):
            event.pop("layout", None)
        for key in ("dtype", "level", "fork", "errors"):
            event.pop(key, None)
        if self.beside:
            event |= {"draw": "normal"}
            event.pop("bad", None)
        if self.some(0.2):
            event["closure"] = True
        if self.some(0.15):
            event["clipped"] = 0.7  # by torch's clip_grad_norm_
        if self.some(0.3):
            event["zero"] = self.of([True, False])  # set_to_none of zero_grad
        return event

    def between(self, h: Any, groups: Any) -> Any:
        for event in super().between(h, groups):
            if event["do"] == "again":
                turns = TURNS if self.beside else TURNS[:4]
                event["way"] = self.of(turns)
            if event["do"] == "set" and self.beside and self.rule != "asgd":
                event |= {"key": "lr", "value": self.number("lr", None)}
            if event["do"] in ("again", "add", "hessian") or (
                event["do"] == "set" and not (self.beside and event["key"] != "lr")
            ):
                yield event
        if self.some(0.1):
            names = [name for group in groups for name in group["arrays"]]
            yield {"do": self.of(["data", "freeze", "thaw"]), "name": self.of(names)}
