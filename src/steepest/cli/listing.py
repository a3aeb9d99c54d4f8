"""``steepest list``: every optimizer, its formula, states, bytes and source."""

import argparse
import re
import textwrap
from typing import Any

from steepest.core.description import Facts, facts
from steepest.optimizers import RULES


def add(commands: Any) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser("list", help="the optimizers: formulas, states, bytes, papers")
    parser.add_argument("--markdown", action="store_true", help="as the table of the README")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the rules."""
    rules = [facts(cls) for cls in RULES.values()]
    if arguments.markdown:
        print("| class | what it does | formula | states | bytes | needs | paper |")
        print("|---|---|---|---|--:|---|---|")
        for rule in rules:
            print("|", " | ".join(cell.replace("|", r"\|") for cell in _cells(rule)), "|")
        return 0
    width = max(len(rule.rule) for rule in rules)
    for rule in rules:
        print(f"{rule.rule:<{width}}  {rule.summary}")
        print(textwrap.indent(_details(rule), " " * (width + 4)), end="\n\n")
    return 0


def _details(rule: Facts) -> str:
    return "\n".join(
        [
            rule.formula,
            f"states: {', '.join(rule.states) or 'none'}",
            f"bytes per parameter and step (float32): {_total(rule)} "
            f"({rule.read:g} read, {rule.written:g} written)",
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
