"""Which programs of the gallery are executed, and what the pages of the others say."""

import ast
import importlib.util
import re
import shutil
from pathlib import Path
from typing import Any

from steepest_site.links import ROOT

FOLDER = ROOT / "examples" / "gallery"

PROGRAMS = {"plot_09_mpi": ("mpi4py", "mpiexec")}
"""What an example starts as a program of its own, so that no import tells of it."""


def examples() -> list[Path]:
    """The programs in their order."""
    return sorted(FOLDER.glob("plot_*.py"))


def needed(example: Path) -> list[str]:
    """The modules that a program imports, by the first part of their names, and what it starts."""
    found = []
    for node in ast.walk(ast.parse(example.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(node.module or "")
    # What a search, and the reading of a table, import when they are called.
    found += ["optuna"] if "st.tune(" in example.read_text("utf-8") else []
    return sorted({name.partition(".")[0] for name in found} | {*PROGRAMS.get(example.stem, ())})


def missing(example: Path) -> list[str]:
    """What of it is not installed."""
    return [
        name
        for name in needed(example)
        if importlib.util.find_spec(name) is None and shutil.which(name) is None
    ]


def executed() -> str:
    """A pattern of the programs whose needs are there; the others are shown, and not executed."""
    names = [re.escape(example.name) for example in examples() if not missing(example)]
    return rf"/({'|'.join(names)})$" if names else r"(?!)"


def tidy(made: Path) -> None:
    """Removes what earlier programs have left in the folder of pages."""
    names = {example.stem for example in examples()}
    for old in made.glob("plot_*"):
        if old.name.partition(".")[0] not in names:
            old.unlink()


def said(app: Any, page: str, text: list[str]) -> None:
    """Puts what is not installed at the head of the page of a program that is not executed."""
    example = FOLDER / f"{page.rpartition('/')[2]}.py"
    if page.startswith("gallery/plot_") and (absent := missing(example)):
        found = re.search(r"^(.+)\n={3,}\n", text[0], re.M)
        assert found is not None
        what = ", ".join(absent)
        note = f"\n.. note:: Not executed when this site was built: {what} was not there.\n"
        text[0] = text[0][: found.end()] + note + text[0][found.end() :]
