"""``steepest list``: every optimizer and its formula."""

import argparse
import inspect
import textwrap
from typing import Any

from steepest.optimizers import RULES, Optimizer


def add(commands: Any) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser("list", help="the optimizers and their formulas")
    parser.add_argument("--markdown", action="store_true", help="as the table of the README")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the rules."""
    if arguments.markdown:
        print("| class | what it does | formula |\n|---|---|---|")
        for cls in RULES.values():
            formula = "<br>".join(
                f"`{' '.join(line.split())}`" for line in cls.formula.splitlines()
            )
            print(f"| `{cls.__name__}` | {_summary(cls)} | {formula} |")
        return 0
    width = max(map(len, RULES))
    for rule, cls in RULES.items():
        print(f"{rule:<{width}}  {_summary(cls)}")
        print(textwrap.indent(cls.formula, " " * (width + 4)), end="\n\n")
    return 0


def _summary(cls: type[Optimizer]) -> str:
    """The first line of a rule's documentation."""
    return inspect.cleandoc(cls.__doc__ or "").partition("\n")[0]
