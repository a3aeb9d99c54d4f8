"""The ``name:arguments`` syntax of optimizers, schedules and clipping.

Arguments are written as in Python, and are literals only: ``sgd:momentum=0.9, nesterov=True``.
"""

import ast
import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from steepest.cli.errors import UsageError
from steepest.fields import nearest
from steepest.models.initializers import INITIALIZERS
from steepest.models.losses import LOSSES
from steepest.models.networks import MLP
from steepest.optimizers import RULES, Optimizer
from steepest.options import clip
from steepest.schedules import SCHEDULES, Schedule

# Schedules of a learning rate; the others are made of schedules, or for other things.
RATES = {
    name: cls
    for name, cls in SCHEDULES.items()
    if next(iter(inspect.signature(cls).parameters)) == "lr"
}

# Learning rates at which `steepest train digits` works well; other rules use their own default.
LEARNING_RATES = {
    "sgd": 0.1,
    "ftrl": 0.1,
    "adamw": 0.003,
    "came": 0.003,
    "signsgd": 0.001,
    "signum": 0.001,
    "sophia": 0.001,
    "lion": 0.001,
    "shampoo": 0.1,
}

# Words that look like the name of a rule and are values.
_VALUES = {"True", "False", "None"}


def call(option: str, text: str, known: Mapping[str, Any]) -> tuple[str, list[Any], dict[str, Any]]:
    """Takes ``name:arguments`` apart; a class may be called as in Python. Raises UsageError.

    >>> call("--optimizer", "sgd:0.1, momentum=0.9", RULES)
    ('sgd', [0.1], {'momentum': 0.9})
    >>> call("--optimizer", "AdamW", RULES)
    ('adamw', [], {})
    """
    name, _, inside = text.partition(":")
    name = named_as(name, known)
    if name not in known:
        expected = f"expected one of {', '.join(known)}{nearest(name, known)}"
        raise UsageError(f"{option} {text}: {expected}")
    try:
        found: Any = ast.parse(f"f({inside})", mode="eval").body
        if ast.dump(getattr(found, "func", found)) != "Name(id='f', ctx=Load())":
            raise SyntaxError(inside)  # such as f(1) + (2)
        positional = [ast.literal_eval(x) for x in found.args]
        named = {str(x.arg): ast.literal_eval(x.value) for x in found.keywords if x.arg}
        if len(named) < len(found.keywords):
            raise SyntaxError(inside)  # the same name twice, or **
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise UsageError(
            f"{option} {text}: expected {name}, or {name}:arguments written as in Python"
        ) from None
    return name, positional, named


def named_as(text: str, known: Mapping[str, Any]) -> str:
    """The name of what may be called by its class, too; the text where there is no such name."""
    name = text.strip().replace("-", "_")
    classes = {getattr(x, "__name__", key): key for key, x in known.items()}
    return name if name in known else classes.get(name, name)


def made(
    option: str,
    text: str,
    make: Callable[..., Any],
    fixed: Sequence[Any] = (),
    positional: Sequence[Any] = (),
    named: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """The object of that name, made of the arguments that are ``fixed`` here and those of the text.

    Raises UsageError for arguments that it does not take.
    """
    wrong = _wrong(option, make, len(fixed), len(positional), named)
    if wrong:
        raise UsageError(f"{option} {text}: {make.__name__} {wrong}")
    try:
        return make(*fixed, *positional, **named)
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"{option} {text}: {error}") from None


def _wrong(
    option: str, make: Callable[..., Any], fixed: int, count: int, named: Mapping[str, Any]
) -> str:
    """What is wrong with the number and the names of arguments; empty if nothing is.

    >>> _wrong("--clip", clip.norm, 0, 0, {})
    'needs max_norm; write  --clip norm:MAX_NORM'
    """
    known = list(inspect.signature(make).parameters.values())
    own = {x.name: x for x in known[fixed:] if x.kind is not x.VAR_KEYWORD}
    takes = f"it takes {', '.join(own)}"
    refused = {x.name for x in known[:fixed]}
    if all(x.kind is not x.VAR_KEYWORD for x in known):
        refused |= named.keys() - own.keys()
    unknown = [name for name in named if name in refused]
    if unknown:
        return f"has no argument {unknown[0]!r}; {takes}{nearest(unknown[0], own)}"
    unnamed = [x.name for x in own.values() if x.kind is x.POSITIONAL_OR_KEYWORD]
    if count > len(unnamed):
        return f"takes {len(unnamed) or 'no'} argument{'s' * (len(unnamed) > 1)} by place; {takes}"
    twice = [name for name in unnamed[:count] if name in named]
    if twice:
        return f"has {twice[0]} twice, by place and by name"
    given = {*unnamed[:count], *named}
    missing = [x for x in own.values() if x.default is x.empty and x.name not in given]
    if missing:
        by_place = [] if named else unnamed
        words = [(x.name, x.name.upper()) for x in missing]
        shown = ", ".join(y if x in by_place else f"{x}={y}" for x, y in words)
        write = f"add  {shown}" if given else f"write  {option} {make.__name__}:{shown}"
        return f"needs {' and '.join(x.name for x in missing)}; {write}"
    return ""


def pieces(text: str, marks: str = ",") -> list[str]:
    """Takes a list apart at the marks outside of brackets; each piece keeps the mark before it.

    >>> pieces("(0.9, 0.99), 1; 2", ",;")
    ['(0.9, 0.99)', ', 1', '; 2']
    """
    found = [""]
    depth = 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter in marks and depth == 0:
            found.append("")
        found[-1] += letter
    return found


def several(text: str) -> list[str]:
    """Takes a list of ``name:arguments`` apart, at commas or semicolons.

    A comma inside brackets, or before what is no name, belongs to the arguments.

    >>> several("sgd:momentum=0.9, nesterov=True, adam:betas=(0.8, 0.99), lion")
    ['sgd:momentum=0.9, nesterov=True', 'adam:betas=(0.8, 0.99)', 'lion']
    """
    first, *others = pieces(text, ",;")
    found = [first.strip()]
    for piece in others:
        name = re.match(r"\s*([A-Za-z_][\w-]*)\s*(:|$)", piece[1:])
        argument = not name or name[1] in _VALUES
        if piece[0] == "," and argument and ":" in found[-1]:
            found[-1] += piece
        else:
            found.append(piece[1:].strip())
    return found


def rate(text: str, lr: float | None, option: str = "--optimizer") -> float:
    """The learning rate asked for, or that of the rule. Raises UsageError."""
    rule = call(option, text, RULES)[0]
    given = lr if lr is not None else LEARNING_RATES.get(rule)
    return float(
        inspect.signature(RULES[rule]).parameters["lr"].default if given is None else given
    )


def schedule(text: str, lr: float, updates: int) -> Schedule:
    """The schedule of the learning rate; one called steps is as long as the run."""
    name, positional, named = call("--schedule", text, RATES)
    if "lr" in named:
        raise UsageError(f"--schedule {text}: give lr as --lr")
    fields = [field.name for field in dataclasses.fields(RATES[name])]
    if "steps" in fields and not positional:
        named.setdefault("steps", updates)
    found: Schedule = made("--schedule", text, RATES[name], (lr,), positional, named)
    return found


def optimizer(
    text: str, params: Any, options: Mapping[str, Any], option: str = "--optimizer"
) -> Optimizer:
    """The optimizer over params, with the options that have options of their own."""
    rule, positional, named = call(option, text, RULES)
    plural = "s" if option.endswith("s") else ""
    if positional:
        raise UsageError(f"{option} {text}: give lr as --lr{plural}, other arguments by name")
    for name in ("lr", "weight_decay", "clip", "ema"):
        if name in named:
            own = "--" + name.replace("_", "-") + (plural if name == "lr" else "")
            raise UsageError(f"{option} {text}: give {name} as {own}")
    if rule == "asgd" and "t0" in named and "ema" not in options:
        raise UsageError(f"{option} {text}: t0 is for the averaged parameters, which need --ema")
    found: Optimizer = made(option, text, RULES[rule], (params,), (), named | dict(options))
    return found


def clipping(text: str) -> clip.Clip:
    """The clipping of the gradients."""
    kind, positional, named = call("--clip", text, clip.CLIPS)
    found: clip.Clip = made("--clip", text, clip.CLIPS[kind], (), positional, named)
    return found


def network(
    inputs: int, hidden: Sequence[int], classes: int, loss: str | None, init: str | None
) -> MLP:
    """The network for a regression, with no classes, or for classes."""
    objective = None
    options: dict[str, Any] = {}
    if loss is not None:
        objective, positional, options = call("--loss", loss, LOSSES)
        if positional:
            raise UsageError(f"--loss {loss}: give arguments by name, such as huber:delta=0.5")
        if options.keys() - {"delta"}:
            raise UsageError(f"--loss {loss}: the only argument of a loss is huber:delta=0.5")
    if init is not None:
        weights, *arguments = call("--init", init, INITIALIZERS)
        if any(arguments):
            raise UsageError(f"--init {init}: {weights} takes no arguments")
        if weights == "zeros" and hidden:
            raise UsageError("--init zeros: a network with hidden layers would stay at 0")
        init = weights
    if objective == "logistic" and classes != 2:
        raise UsageError(f"--loss {loss}: it is for two classes, and there are {classes}")
    outputs = max(1, classes if objective != "logistic" else 1)
    task = "classification" if classes else "regression"
    sizes = (inputs, *hidden, outputs)
    options["weights"] = init
    found: MLP = made("--loss", str(loss), MLP, (sizes, task, objective), (), options)
    return found
