"""The hyper-parameters that ``steepest tune`` searches, written as ``NAME=VALUES``.

VALUES are a range, ``LOW..HIGH`` optionally followed by ``log`` and ``points=N``, of whole
numbers for what is whole; or a list, ``A,B,C``.
"""

import ast
import dataclasses
import difflib
import inspect
import math
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from steepest import tuning
from steepest.cli import arguments, syntax
from steepest.cli.errors import UsageError
from steepest.cli.settings import Settings
from steepest.optimizers import RULES

Spaces = dict[str, str]

# The learning rate is searched from the usual one divided by this to that times this.
AROUND = 30.0

COMMON = {
    "weight_decay": "1e-6..1e-1 log",
    "batch_size": "16,32,64,128",
    "hidden": "32..512 log",
}
# By the name of the argument of a rule; beta1 and beta2 are those of betas.
MOMENTA = {
    "momentum": "0.5..0.99",
    "alpha": "0.9..0.999",
    "rho": "0.8..0.99",
    "beta1": "0.8..0.99",
    "beta2": "0.95,0.99,0.999",
}


def _real(text: str) -> float:
    found = float(text)
    if not math.isfinite(found):
        raise ValueError(f"{text} is not finite")
    return found


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise ValueError(f"{text!r} is not a Python value") from None


def _layers(text: str) -> tuple[int, ...]:
    return arguments.hidden(text.replace("-", ","))


# Settings that can be searched, and how a value of each is written.
SETTINGS: dict[str, Callable[[str], Any]] = {
    "lr": arguments.number,
    "weight_decay": arguments.number,
    "batch_size": arguments.batch_size,
    "hidden": _layers,
    "schedule": str,
    "clip": str,
    "init": str,
    "loss": str,
    "accumulate": arguments.positive,
    "ema": arguments.share,
}
WHOLE = ("batch_size", "hidden", "accumulate")
WORDS = ("schedule", "clip", "init", "loss")


def default(rule: str, fixed: Sequence[str] = ()) -> Spaces:
    """The space of a rule, without what is fixed.

    >>> default("sgd", fixed=["batch_size"])["momentum"]
    '0.5..0.99'
    """
    lr = syntax.rate(rule, None)
    found = {"lr": f"{lr / AROUND:.2g}..{lr * AROUND:.2g} log", **COMMON}
    names = hyper_names(rule)
    found |= {name: text for name, text in MOMENTA.items() if name in names}
    if "betas" in names:  # AdEMAMix: its alpha is the weight of an average
        found.pop("alpha", None)
    if "alpha" in found:  # RMSprop: its mean square matters, momentum is an addition
        found.pop("momentum", None)
    return {name: text for name, text in found.items() if name not in fixed}


def hyper_names(rule: str) -> list[str]:
    """The arguments of a rule that can be searched; betas as beta1 and beta2, too."""
    names = [
        name
        for name, parameter in inspect.signature(RULES[rule]).parameters.items()
        if name not in ("params", *SETTINGS) and parameter.kind is not parameter.VAR_KEYWORD
    ]
    return [*names, "beta1", "beta2"] if "betas" in names else names


def given(texts: Sequence[str], base: Settings, fixed: Sequence[str]) -> Spaces:
    """The options ``NAME=VALUES`` by name. Raises UsageError."""
    rule, _, named = syntax.call("--optimizer", base.optimizer, RULES)
    known = [*SETTINGS, *hyper_names(rule)]
    found: Spaces = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f"{text}: expected NAME=VALUES with one of {', '.join(known)}{hint}")
        twice = name in found or name in fixed or name in named
        if twice or ("betas" in named and name in ("beta1", "beta2")):
            raise UsageError(f"{text}: {name} is given already; search it or fix it, once")
        distribution(name, values, rule)
        found[name] = values.strip()
    return found


def distribution(name: str, text: str, rule: str) -> tuning.Distribution:
    """What the search draws from. Raises UsageError.

    >>> distribution("lr", "1e-4..1e-1 log points=4", "adam").grid()[0]
    0.0001
    >>> distribution("hidden", "16,64-32,none", "adam").values
    ((16,), (64, 32), ())
    """
    try:
        if ".." in text:
            return _range(name, text, _whole(name, rule))
        read = SETTINGS.get(name, _literal)
        return tuning.choice([read(piece.lstrip(",").strip()) for piece in syntax.pieces(text)])
    except (ValueError, ArgumentTypeError) as error:
        raise UsageError(
            f"{name}={text}: {error}; expected LOW..HIGH, with log or points=N after it, or A,B,C"
        ) from None


def _whole(name: str, rule: str) -> bool:
    """Whether a hyper-parameter is an integer."""
    parameter = inspect.signature(RULES[rule]).parameters.get(name)
    return name in WHOLE or (parameter is not None and type(parameter.default) is int)


def _range(name: str, text: str, whole: bool) -> tuning.Distribution:
    ends, *words = text.split()
    if name in WORDS:
        raise ValueError(f"{name} is no number")
    read: Callable[[str], float] = SETTINGS.get(name, int if whole else _real)
    if name in WHOLE:
        read = arguments.positive  # no words such as full or none
    low, high = (read(end) for end in ends.split("..", 1))
    log = "log" in words
    if not low < high or (log and low <= 0):
        raise ValueError(f"the range is empty{' on a log scale' * log}")
    count = None
    for word in words:
        if word.startswith("points="):
            count = arguments.positive(word.removeprefix("points="))
        elif word != "log":
            raise ValueError(f"unknown word {word!r}")
    if whole:
        return tuning.integer(int(low), int(high), log=log, points=count)
    return (tuning.log_uniform if log else tuning.uniform)(low, high, points=count)


def candidate(base: Settings, values: Mapping[str, Any]) -> Settings:
    """The settings of a run with these values; those of the rule go into its arguments.

    >>> candidate(Settings("digits", optimizer="adam"), {"lr": 0.1, "beta1": 0.8}).optimizer
    'adam:betas=(0.8, 0.999)'
    """
    own = {name: value for name, value in values.items() if name in SETTINGS}
    hyper = {name: value for name, value in values.items() if name not in SETTINGS}
    if hyper.keys() & {"beta1", "beta2"}:
        rule = syntax.call("--optimizer", base.optimizer, RULES)[0]
        takes = inspect.signature(RULES[rule]).parameters
        if "betas" in takes:  # and no beta1 of its own
            usual = takes["betas"].default
            two = hyper.pop("beta1", usual[0]), hyper.pop("beta2", usual[1])
            hyper["betas"] = (*two, *usual[2:])
    if isinstance(own.get("hidden"), int):
        own["hidden"] = (own["hidden"],)
    text = ", ".join(f"{name}={value!r}" for name, value in hyper.items())
    if text:
        separator = ", " if ":" in base.optimizer else ":"
        own["optimizer"] = f"{base.optimizer}{separator}{text}"
    return dataclasses.replace(base, **own)
