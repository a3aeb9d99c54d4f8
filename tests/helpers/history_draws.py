"""Draws histories: what an optimizer is made of, and what happens to it, as plain data.

A history is a dict that JSON can hold, so that it can be printed, stored, run again and made
smaller. Arguments are Python expressions over ``st``, ``np``, ``inf`` and ``folder``:

    {"seed": 7, "rule": "adamw", "given": {"lr": "0.01", "clip": "st.clip.norm(0.7)"},
     "groups": [{"own": {"lr": "0.1"}, "arrays": {"a0": {"shape": [3, 4], "dtype": "float32",
                                                         "layout": "F", "draw": "normal"}}}],
     "events": [{"do": "step", "id": 0, "draw": "normal", "layout": "C"},
                {"do": "set", "group": 0, "key": "lr", "value": "0.02"}]}

What is in an array or a gradient follows from the seed, the event's id and the array's name, so
that the rest stays what it is when one of them is dropped. ``history_runs`` says what events do.
"""

import math
import random
from collections.abc import Iterator
from typing import Any

from cases import CONFIGURATIONS, LEVELS, MATRICES_ONLY, hyper

from steepest.codecs import MASTERS
from steepest.core.constructor import EMPTY
from steepest.optimizers import RULES
from steepest.options import decay

History = dict[str, Any]

SHAPES = [
    (), (1,), (3,), (7,), (0,), (2, 0), (1, 5), (6, 1), (4, 3), (5, 9), (3, 2, 4), (2, 1, 3, 2),
    (33,), (513,), (70, 9),
]  # fmt: skip
LONG = [(2, 2100), (4100,), (9001,), (64, 128), (33, 131), (260, 130)]
FORMATS = ("float32", "float64", "bfloat16", "float16")
SHORT = FORMATS[2:]
LAYOUTS = ("F", "reversed", "strided", "shifted", "mapped", "inner", "turned")
OF_GRADIENTS = (*LAYOUTS, "readonly", "spread", "odd")
ROWS = {"adafactor", "came", "sm3", "adammini"}
OF_MATRICES = {"muon": {"momentum": 0.83, "ns_steps": 2}, "normuon": {"momentum": 0.83}}
TURNS = ("dict", "file", "pickle", "copy")
MODES = ("upward", "downward", "toward zero", "flushing")

LRS = ("0.0137", "0.3", "1e-4", "1.0", "0.0")
SCHEDULES = (
    "st.schedules.cosine({0}, steps=7, warmup=2)", "st.schedules.exponential({0}, 0.87)",
    "st.schedules.linear({0}, 5)", "st.schedules.inverse_time({0}, 0.7)",
    "st.schedules.step({0}, 2)", "st.schedules.plateau({0}, patience=0)",
    "st.schedules.one_cycle({0}, 7)",
)  # fmt: skip
LIMITS = ("1e-30", "0.05", "0.7", "3.0", "inf", "st.schedules.exponential(0.7, 0.87)")
WEIGHTS = ("0.0", "0.03", "0.9", "st.schedules.linear(0.3, 4)")


def history(seed: int, rule: str | None = None) -> History:
    """The history of a seed, of a rule if that is given."""
    return Draw(seed, rule).history()


class Draw:
    """Makes the choices of one history."""

    def __init__(self, seed: int, rule: str | None) -> None:
        self.seed = seed
        self.r = random.Random(seed)
        self.names = 0
        drawn = self.r.choice(list(RULES))
        self.rule = rule or drawn
        self.cls = RULES[self.rule]
        self.matrix = self.cls.needs == "matrix"

    def some(self, share: float) -> bool:
        return self.r.random() < share

    def of(self, choices: Any) -> Any:
        return self.r.choice(list(choices))

    def history(self) -> History:
        self.kind = self.of(["one", "one", "one", "mixed", "mixed", "short"])
        self.dtype = self.of(SHORT if self.kind == "short" else FORMATS[:2])
        self.value = self.of(["normal"] * 6 + ["wide", "wide", "special"])
        self.long = self.some(0.25)
        arrays = self.arrays(self.r.randint(1, 5))
        formats = self.formats(arrays)
        h = self.arguments() | formats
        self.by_units = not formats.keys() & {"master", "rounding"}
        h |= self.options(h, 0.16)
        groups = [{"own": {}, "arrays": arrays}]
        groups += [self.group(h) for _ in range(self.r.choice([0, 0, 0, 1, 2]))]
        if self.some(0.12):
            h["overrides"] = "{" + f"{self.of(arrays)!r}: {self.changes(h)}" + "}"
        if self.some(0.1):
            h["exclude"] = repr(self.of(arrays))
        if self.some(0.2):
            h["nonfinite"] = repr(self.of(["raise", "skip"]))
        if self.some(0.04):
            h["state_dir"] = "folder"
        events = self.events(h, [*groups])
        return {
            "seed": self.seed,
            "rule": self.rule,
            "given": h,
            "groups": groups,
            "events": events,
        }

    # Arrays

    def arrays(self, count: int) -> dict[str, Any]:
        return dict(self.array() for _ in range(count))

    def array(self) -> tuple[str, Any]:
        shapes = SHAPES + (LONG if self.long and not self.matrix else [])
        dtype = self.of(FORMATS) if self.kind == "mixed" else self.dtype
        layout = self.of(LAYOUTS) if self.some(0.4) else "C"
        self.names += 1
        return f"a{self.names - 1}", {
            "shape": list(self.of(shapes)), "dtype": dtype, "layout": layout,
            "draw": self.value if self.some(0.7) else "normal",
        }  # fmt: skip

    def formats(self, arrays: Any) -> dict[str, str]:
        """How states and parameters of 16 bits are stored."""
        found: dict[str, str] = {}
        h = {name: field.default for name, field in self.cls.fields.items()}
        own = (
            []
            if self.matrix
            else [*{*self.cls.states(h), *self.cls.beside(h)} - {*self.cls.points}]
        )
        if own and self.some(0.35):
            choices = list(FORMATS)
            long = [x for x in arrays.values() if math.prod(x["shape"]) >= 4096]
            if any(x["shape"][-1] % 128 == 0 for x in long) or (long and self.rule not in ROWS):
                choices += ["q8"] * 4
            name = self.of(choices)
            found["state_dtype"] = repr(name if self.some(0.6) else {self.of(own): name})
        short = {x["dtype"] for x in arrays.values()} & {*SHORT}
        if short and self.some(0.5):
            masters = [name for name, kind in MASTERS.items() if {*kind.states} & short]
            if self.some(0.5) or not masters:
                found["rounding"] = "'stochastic'"
                if self.some(0.5):
                    found["rounding_seed"] = "12345"
            else:
                found["master"] = repr(self.of(masters))
        return found

    def group(self, h: Any) -> dict[str, Any]:
        own = self.changing(h) if self.some(0.6) else {}
        if self.some(0.15):
            own["rule"] = repr(self.other_rule(h))
        return {"own": own, "arrays": self.arrays(self.r.randint(1, 3))}

    def other_rule(self, h: Any) -> str:
        """A rule that may have the options, for a group of its own."""
        simple = "lookahead" not in h and "cautious" not in str(h) and "state_dtype" not in h
        kinds = ["element-wise", "layer-wise"] if simple else ["element-wise"]
        fits = [
            rule
            for rule, cls in RULES.items()
            if cls.needs in kinds and (simple or (cls.additive and cls.may_be_moved))
        ]
        return self.of(fits)

    # Arguments

    def arguments(self) -> dict[str, str]:
        """Those of the rule: of a configuration of the tests, or its defaults, and some drawn."""
        known = [given for rule, given in CONFIGURATIONS if rule == self.rule]
        if self.rule in MATRICES_ONLY:
            known = [hyper(self.rule, OF_MATRICES[self.rule])]
        needed = {x.name for x in self.cls.fields.values() if x.default is EMPTY} - {"params"}
        given = self.of(known) if self.some(0.8) or self.matrix or needed else {}
        h = {name: repr(value) for name, value in given.items()}
        for name, found in self.cls.ranges.items():
            if name in ("l1", "peak_lr", "ema") or not self.some(0.15):
                continue
            if name in ("momentum", "dampening") or name in self.cls.alike:
                continue
            h[name] = self.number(name, found)
        return h

    def number(self, name: str, found: Any) -> str:
        """A number within a range, or several where the field has several, or a schedule."""
        default = self.cls.fields[name].default
        if name == "lr":
            rate = self.of(LRS)
            return self.of(SCHEDULES).format(rate) if self.some(0.4) and rate != "0.0" else rate
        if isinstance(default, tuple):
            if name == "betas":
                several = [self.of(["0.83", "0.5", "0.9871", "0.0"]) for _ in default]
                return f"({', '.join(several)})"
            return repr(default)
        if name == "weight_decay":
            return self.of(["0.0", "0.07", "0.9", "st.schedules.linear(0.3, 4)"])
        if default is None:
            return "None"
        low, high = max(found.low, -2.0), min(found.high, 2.0)
        return repr(low + (high - low) * self.of([0.013, 0.37, 0.71]))

    def changes(self, h: Any) -> str:
        return "{" + ", ".join(f"{k!r}: {x}" for k, x in self.changing(h).items()) + "}"

    def changing(self, h: Any) -> dict[str, str]:
        """Hyper-parameters that a group has of its own."""
        found = {}
        if self.some(0.7):
            found["lr"] = self.number("lr", None)
        if self.some(0.3):
            found["weight_decay"] = self.of(["0.0", "0.07", "0.9"])
        mode = {"decay_mode": h["decay_mode"]} if "decay_mode" in h else {}
        found |= self.options(h | {"decay_mode": "'l2'"} | mode, 0.07, of_group=True)
        return found

    def options(self, h: Any, share: float, of_group: bool = False) -> dict[str, str]:
        cls, found = self.cls, {}
        if self.some(share):
            found["l1"] = self.of(WEIGHTS)
        if self.some(share):
            found["maximize"] = "True"
        if self.some(share):
            found["ema"] = self.of(["0.0", "0.93", "st.schedules.linear(0.5, 4, end=0.9)"])
        if self.some(share):
            found["average"] = f"st.average.tail({self.of([0, 1, 3])}, {self.of([1, 2])})"
        if self.some(share) and cls.may_be_moved:
            found["lookahead"] = (
                f"st.average.lookahead({self.of([1, 2, 3])}, {self.of([0.0, 0.37, 1.0])})"
            )
        if self.some(2 * share):
            found["clip"] = self.clip()
        if self.some(share):
            found["regularize"] = self.penalties()
        if self.some(1.5 * share):
            found["filter"] = self.filters()
        if self.some(2 * share) and not of_group:
            modes = decay.OWN if cls.own_decay else decay.MODES
            modes = [m for m in modes if cls.may_be_moved or m not in decay.AFTER]
            modes = [m for m in modes if cls.additive or m != "cautious"]
            mode = self.of(modes)
            found["decay_mode"] = repr(mode)
            if mode in decay.PEAKED:
                found["peak_lr"] = self.of(["0.5", "1.0"])
            h.setdefault("weight_decay", "0.07")
        if self.some(share) and cls.additive and "cautious" not in str(found | h):
            found["cautious"] = "True"
        return found

    def axis(self) -> int | None:
        return self.of([0, None, -1] if self.by_units else [0, None])

    def clip(self) -> str:
        chosen = []
        if self.some(0.15):
            chosen.append(f"st.clip.skip_spikes({self.of([0.1, 2.0])}, {self.of([1, 2, 4])})")
        if self.some(0.7):
            limit = self.of(LIMITS)
            kind = self.of(["norm", "group_norm", "global_norm", "percentile", "previous_norm"])
            if kind == "percentile":
                limit = f"{self.of([0.0, 30.0, 100.0])}, {self.of([1, 3])}"
            elif kind != "previous_norm" and self.some(0.5):
                limit += f", p={self.of(['1.0', '2.0', 'inf', '3.0', '0.7', '900.0'])}"
            chosen.append(f"st.clip.{kind}({limit})")
        if self.some(0.3):
            limit = self.of([x for x in LIMITS if x != "inf"])
            chosen.append(f"st.clip.adaptive({limit}, {self.of([1e-3, 1.0])}, {self.axis()})")
        if self.some(0.3) or not chosen:
            chosen.append(f"st.clip.value({self.of(LIMITS)})")
        return chosen[0] if len(chosen) == 1 else f"({', '.join(chosen)})"

    def penalties(self) -> str:
        w, both = self.of(WEIGHTS), self.of([True, False])
        kinds = [
            f"l1({w}, {both})", f"l2({w})", f"elastic_net({w}, 0.3, {both})", f"decoupled({w})",
            f"toward_initial({w}, {both})", f"group_lasso({w}, {self.axis()})",
            f"max_norm({w}, {self.axis()})", "non_negative()", "box(-0.4, 0.3)",
            f"unit_norm({self.axis()})", f"simplex({self.of([1.0, 3.7])}, {self.axis()})",
        ]  # fmt: skip
        chosen = [f"st.regularize.{x}" for x in self.r.sample(kinds, self.r.choice([1, 1, 2, 3]))]
        return f"({', '.join(chosen)},)"

    def filters(self) -> str:
        chosen = []
        if self.some(0.4):
            chosen.append(f"st.filters.centralize({self.axis()})")
        if self.some(0.4):
            chosen.append(f"st.filters.mars({self.of([0.025, 0.7])}, {self.of([0.5, 0.95])})")
        if self.some(0.4):
            chosen.append(
                f"st.filters.grokfast({self.of(['0.0', '0.7'])}, {self.of(['0.0', '1.7'])})"
            )
        if self.some(0.4) or not chosen:
            chosen.append("st.filters.mask()")
        return f"({', '.join(chosen)},)"

    # Events

    def events(self, h: Any, groups: Any) -> list[Any]:
        found = []
        for number in range(self.r.choice([1, 2, 3, 4, 6, 9])):
            found += self.between(h, groups)
            found.append(self.step(number, groups))
        return found

    def between(self, h: Any, groups: Any) -> Iterator[dict[str, Any]]:
        if self.some(0.06) and sum(len(g["arrays"]) for g in groups) < 8:
            new = self.group(h)
            groups.append(new)
            yield {"do": "add", "group": new} | self.interrupted(0.3)
        if self.some(0.15):
            yield {"do": "again", "way": self.of(TURNS)} | self.interrupted(0.25)
        if "plateau" in str(h) and self.some(0.4):
            yield {"do": "observe", "value": self.of([0.5, 1.0, 2.0])}
        if self.cls.takes and self.some(0.4):
            yield {"do": "hessian", "id": 1000 + self.r.randrange(1000)}
        if self.some(0.14):  # last: a state that nothing asks for is not saved
            keys = ["lr", "lr", "weight_decay", "clip", "maximize", "l1", "regularize", "ema"]
            keys += ["filter", "lookahead", "average", "momentum", "amsgrad"]
            yield self.set(self.of(keys))

    def set(self, key: str) -> dict[str, Any]:
        if key == "lr":
            value = self.number("lr", None)
        elif key in ("weight_decay", "l1"):
            value = self.of(WEIGHTS)
        elif key in ("maximize", "amsgrad"):
            value = self.of(["True", "False"])
        elif key == "momentum":
            value = self.of(["0.0", "0.5"])
        elif key == "ema":
            value = self.of(["None", "0.5"])
        elif key == "lookahead":
            value = (
                self.of(["None", "st.average.lookahead(2, 0.5)"])
                if self.cls.may_be_moved
                else "None"
            )
        elif key == "average":
            value = self.of(["None", "st.average.tail(1)"])
        else:
            some = {"clip": self.clip, "regularize": self.penalties, "filter": self.filters}[key]
            value = some() if self.some(0.7) else "None"
        return {"do": "set", "group": self.r.randrange(3), "key": key, "value": value}

    def interrupted(self, share: float) -> dict[str, int]:
        """At which line of the package the call is ended, once; there may be fewer."""
        if not self.some(share):
            return {}
        return {"interrupt": int(math.exp(self.r.uniform(0, math.log(1500))))}

    def step(self, number: int, groups: Any) -> dict[str, Any]:
        event: dict[str, Any] = {"do": "step", "id": number, "draw": "normal"}
        if self.some(0.3):
            event["draw"] = self.of(["wide", "special", "tiny", "huge", "zero"])
        if self.some(0.3):
            event["dtype"] = self.of(FORMATS)
        if self.some(0.5):
            event["layout"] = self.of(OF_GRADIENTS)
        names = [name for g in groups for name in g["arrays"]]
        if self.some(0.2):
            event["without"] = self.r.sample(names, self.r.randint(1, len(names)))
        if self.some(0.08):
            event["bad"] = {self.of(names): self.of(["nan", "inf", "-inf"])}
        if self.some(0.3):
            event["threads"] = self.of([2, 3, 4])
        if self.some(0.3):
            event["level"] = self.of(LEVELS)
        if self.some(0.15):
            event["mode"] = self.of(MODES)
        if self.some(0.06):
            event["fork"] = True
        if self.some(0.2) and not self.matrix:
            event["errors"] = True
        return event | self.interrupted(0.12)
