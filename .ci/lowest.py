"""Prints the lowest declared version of every dependency as constraints for pip.

    python .ci/lowest.py > lowest.txt && pip install -c lowest.txt ".[test,mpi]"

Those of the build, which pip takes into an environment of its own, are held by PIP_CONSTRAINT, or
installed first and used with --no-build-isolation.
"""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

OTHERS = ("lint", "docs", "torch")
"""The extras whose versions are not run together with the rest."""


def requirements() -> Iterator[str]:
    text = Path(__file__).parents[1].joinpath("pyproject.toml").read_text(encoding="utf-8")
    settings = tomllib.loads(text)
    yield from settings["build-system"]["requires"]
    yield from settings["project"]["dependencies"]
    for extra, needed in settings["project"]["optional-dependencies"].items():
        if extra not in OTHERS:
            yield from needed


def lowest() -> dict[str, str]:
    """The lowest version by name. Raises ValueError for a requirement that gives none."""
    found: dict[str, str] = {}
    for requirement in requirements():
        if requirement.startswith("steepest["):
            continue
        match = re.fullmatch(r"([\w-]+)>=([\d.]+)(?:,<[\d.]+)?(?:; .*)?", requirement)
        if match is None:
            raise ValueError(
                f"{requirement!r}: expected NAME>=VERSION, with or without ,<VERSION and a marker"
            )
        name, version = match.groups()
        if found.setdefault(name, version) != version:
            raise ValueError(f"{name}: {found[name]} in one place, {version} in another")
    return found


if __name__ == "__main__":
    print(*(f"{name}=={version}" for name, version in lowest().items()), sep="\n")
