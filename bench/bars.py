"""The speeds that the project promises, checked against results."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.cases import MODELS
from bench.measure import peak, ratio
from steepest.optimizers import RULES

TOLERATED = 0.02
"""The share of the parameters' bytes below which an allocation counts as noise."""


@dataclass(frozen=True)
class Bar:
    """The time of `over` divided by that of `under`, on one workload, and its bound."""

    rule: str
    case: str
    clipped: bool
    over: str
    under: str
    bound: float
    upper: bool = False
    hyper: Mapping[str, Any] = field(default_factory=dict)
    schedule: str | None = None

    @property
    def compared(self) -> str:
        return f"{self.over} / {self.under}"


# Of the stream's bandwidth: 1 / 1.25, and 1 / 1.6 for two sweeps.
_SHARE = {"element-wise": 0.8, "layer-wise": 0.625, "global": 0.625}

_FOREACH = {"rmsprop": 3.5, "nadam": 3.5, "radam": 3.5, "adamax": 3.5, "adadelta": 5.0}

BARS = [
    Bar("adamw", "large", False, "steepest", "torch fused", 1.05, upper=True),
    Bar("adamw", "1000x100", False, "torch fused", "steepest", 15.0),
    Bar("adamw", "1x10", False, "torch fused", "steepest", 10.0),
    Bar("adamw", "1x10", False, "torch fused", "steepest.torch", 2.5),
    Bar(
        "adamw",
        "1x10",
        False,
        "steepest",
        "steepest, constant",
        1.5,
        upper=True,
        schedule="cosine",
    ),
    *(
        Bar("adamw", case, False, "torch fused", "steepest.torch", 1.0, schedule="LambdaLR")
        for case in ("1x10", "mlp", "50x1000")
    ),
    Bar("adamw", "large", True, "torch fused", "steepest", 1.3),
    Bar("adamw", "large", False, "NumPy", "steepest", 10.0),
    Bar("adamw", "large", False, "stream", "steepest", 0.85),
    *(
        Bar(rule, "large", False, "torch foreach", "steepest", bound)
        for rule, bound in _FOREACH.items()
    ),
    *(
        Bar(rule, "large", False, "stream", "steepest", _SHARE[cls.needs])
        for rule, cls in RULES.items()
        if cls.needs in _SHARE and rule != "adamw"
    ),
    *(
        Bar(rule, "layers", False, "stream", "steepest", _SHARE["layer-wise"])
        for rule, cls in RULES.items()
        if cls.needs == "layer-wise"
    ),
    Bar("muon", "matrix", False, "torch single", "steepest", 1.0),
    Bar("muon", "matrix", False, "torch single", "steepest", 1.0, hyper={"ns_dtype": "bfloat16"}),
    *(
        Bar("adamw", model, clipped, rival, ours, 1.0)
        for model in MODELS
        for clipped in (False, True)
        for ours in ("steepest.torch", "steepest")
        for rival in ("torch fused", "torch foreach", "DeepSpeed")
    ),
]


@dataclass(frozen=True)
class Row:
    """A bar in words."""

    what: str
    required: str
    measured: str
    holds: str


def checked(entries: Sequence[dict[str, Any]]) -> Iterator[Row]:
    """A row for every bar; "not measured" where the results lack what it compares."""
    for bar in BARS:
        found = [
            e for e in entries
            if (e["rule"], e["case"], e["clip"] is not None) == (bar.rule, bar.case, bar.clipped)
            and (e["hyper"], e["schedule"]) == (bar.hyper, bar.schedule)
            and {bar.over, bar.under} <= e["rivals"].keys()
        ]  # fmt: skip
        sign = "≤" if bar.upper else "≥"
        required = f"{sign} {bar.bound:g}"
        if not found:
            clipped = " with clipping" if bar.clipped else ""
            clipped += f" with {bar.schedule}" if bar.schedule else ""
            options = "".join(f" {key} {value}" for key, value in bar.hyper.items())
            what = f"{bar.rule}{options}{clipped}, {bar.case}: {bar.compared}"
            yield Row(what, required, "not measured", "–")
            continue
        [entry] = found
        rows = entry["rivals"]
        value = ratio(rows[bar.over]["seconds"], rows[bar.under]["seconds"]).median
        holds = value <= bar.bound if bar.upper else value >= bar.bound
        yield Row(
            f"{entry['title']}, {entry['case_title']}: {bar.compared}",
            required, f"{value:.4g}", "yes" if holds else "no",
        )  # fmt: skip
    yield _allocation(entries)


def _allocation(entries: Sequence[dict[str, Any]]) -> Row:
    what = "every rule and case with the stream: bytes allocated in a step / bytes of parameters"
    required = f"≤ {TOLERATED:g}"
    shares = []
    for entry in entries:
        for name in ("steepest", "steepest.torch"):
            allocated = entry["rivals"].get(name, {}).get("allocated")
            if allocated is not None:
                shares.append(peak(allocated) / entry["parameter_bytes"])
    if not shares:
        return Row(what, required, "not measured", "–")
    return Row(what, required, f"{max(shares):.2g}", "yes" if max(shares) <= TOLERATED else "no")
