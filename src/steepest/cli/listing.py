"""``steepest list``: every optimizer, its formula, states, bytes and source."""

import argparse
import re
import textwrap
from collections.abc import Mapping
from typing import Any

from steepest.cli import syntax
from steepest.cli.errors import UsageError
from steepest.core.description import Facts, facts
from steepest.optimizers import RULES, Optimizer

_FORMATS = ("dtype", "grad_dtype", "state_dtype", "master")


def add(commands: Any) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser("list", help="the optimizers: formulas, states, bytes, papers")
    parser.add_argument(
        "names", metavar="NAME", nargs="*", help="of the optimizers that are shown (default: all)"
    )
    parser.add_argument("--markdown", action="store_true", help="as the table of docs/rules.md")
    parser.add_argument("--dtype", metavar="FORMAT", help="of parameters (default: float32)")
    parser.add_argument(
        "--grad-dtype", metavar="FORMAT", help="of gradients (default: that of parameters)"
    )
    parser.add_argument(
        "--state-dtype", metavar="FORMAT", help="of states, or STATE=FORMAT for some, with commas"
    )
    parser.add_argument("--master", help="what is kept beside parameters of 16 bits")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the rules."""
    chosen = {key: value for key in _FORMATS if (value := getattr(arguments, key)) is not None}
    if "=" in chosen.get("state_dtype", ""):
        pairs = (text.partition("=") for text in chosen["state_dtype"].split(","))
        chosen["state_dtype"] = {key.strip(): name.strip() for key, _, name in pairs}
    found = {rule: _of(RULES[rule], chosen) for rule in _named(arguments.names) or RULES}
    rules = [x for x in found.values() if isinstance(x, Facts)]
    if not rules:
        raise UsageError(str(next(iter(found.values()))))
    if arguments.markdown:
        print("| class | what it does | formula | states | bytes | needs | paper |")
        print("|---|---|---|---|--:|---|---|")
        for rule in rules:
            print("|", " | ".join(cell.replace("|", r"\|") for cell in _cells(rule)), "|")
        return 0
    width = max(map(len, found))
    for name, x in found.items():
        rule = x if isinstance(x, Facts) else facts(RULES[name])
        numbers = _bytes(rule, chosen) if x is rule else [f"not in these formats: {x}"]
        print(f"{name:<{width}}  {rule.summary}")
        print(textwrap.indent(_details(rule, numbers), " " * (width + 4)), end="\n\n")
    return 0


def _named(texts: list[str]) -> list[str]:
    """The rules of these names. Raises UsageError."""
    names = []
    for text in texts:
        name, positional, named = syntax.call("list", text, RULES)
        if positional or named:
            raise UsageError(f"list {text}: expected the name alone, such as {name}")
        names.append(name)
    return names


def _of(cls: type[Optimizer], chosen: Mapping[str, Any]) -> Facts | ValueError:
    """The facts of a rule in the formats that were chosen, or why it does not have these."""
    try:
        return facts(cls, **chosen)
    except ValueError as error:
        return error


def _bytes(rule: Facts, chosen: Mapping[str, Any]) -> list[str]:
    """What the rule costs in bytes, in words."""
    told = [chosen.get("dtype", "float32")]
    for key, what in (("grad_dtype", "gradient"), ("state_dtype", "states"), ("master", "master")):
        x = chosen.get(key)
        if x is not None:
            named = ", ".join(map(" ".join, x.items())) if isinstance(x, Mapping) else x
            told.append(f"{what} {named}")
    words = ", ".join(told)
    parameter, gradient, states = rule.stored
    return [
        f"bytes per parameter ({words}): {parameter + gradient + states:g} "
        f"({parameter:g} itself, {gradient:g} gradient, {states:g} states)",
        f"bytes per parameter and step ({words}): {_total(rule)} "
        f"({rule.read:g} read, {rule.written:g} written)",
    ]


def _details(rule: Facts, numbers: list[str]) -> str:
    return "\n".join(
        [
            rule.formula,
            f"states: {', '.join(rule.states) or 'none'}",
            *numbers,
            f"needs: {rule.needs}",
            f"source: {rule.source}",
        ]
    )


def _cells(rule: Facts) -> list[str]:
    lines = (" ".join(line.split()) for line in rule.formula.splitlines())
    link = r"[arXiv:\1](https://arxiv.org/abs/\1)"
    return [
        f"`{rule.name}`",
        rule.summary,
        "<br>".join(f"`{line}`" for line in lines),
        "<br>".join(f"`{state}`" for state in rule.states) or "–",
        _total(rule),
        rule.needs,
        re.sub(r"arXiv:([\d.]+\d)", link, rule.paper),
    ]


def _total(rule: Facts) -> str:
    return f"{rule.read + rule.written:g}"
