"""``steepest info``: version, instruction set, threads."""

import argparse
from typing import Any

from steepest.core.information import info


def add(commands: Any) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser("info", help="version, instruction set, threads")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints what is running."""
    facts = info()
    width = max(map(len, facts))
    for name, value in facts.items():
        shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
        print(f"{name:<{width}}  {shown}")
    return 0
