"""Exhibits of the museum of regressions: a test, and the slip that brings its bug back."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType

from package_copy import ROOT, PackageCopy, Run

MUSEUM = ROOT / "tests" / "museum"


@dataclass(frozen=True)
class Slip:
    """In a file of the package `new` in the place of `old`, which stands there once; and the
    modules, with their level, that are compiled from it."""

    file: str
    old: str
    new: str
    modules: tuple[tuple[str, str | None], ...] = ()


def fails_with(
    file: str, old: str, new: str, *modules: tuple[str, str | None]
) -> Callable[[FunctionType], FunctionType]:
    """Says of a test which slip it must notice."""

    def mark(test: FunctionType) -> FunctionType:
        test.slip = Slip(file, old, new, modules)  # type: ignore[attr-defined]
        return test

    return mark


def run_with_slip(copy: PackageCopy, test: str, slip: Slip) -> Run:
    """The outcome of a test, ``test_state.py::test_...``, in a copy that has the slip meanwhile."""
    text = copy.read(slip.file)
    before = {x: copy.place(*x).read_bytes() for x in slip.modules}
    copy.changed(slip.file, slip.old, slip.new)
    try:
        for module in slip.modules:
            said = copy.built(*module)
            if isinstance(said, str):
                raise ValueError(f"the slip does not compile: {said}")
        level = {"STEEPEST_ISA": "base"} if slip.modules else {}
        return copy.run([str(MUSEUM / test), "-m", ""], **level)
    finally:
        copy.write(slip.file, text)
        for module, data in before.items():
            copy.place(*module).unlink()
            copy.place(*module).write_bytes(data)


def exhibits() -> dict[str, FunctionType]:
    """All tests of the museum by their place in it."""
    found: dict[str, FunctionType] = {}
    for path in sorted(MUSEUM.glob("test_*.py")):
        if path.stem in ("test_museum", "test_mutants"):  # of the machinery
            continue
        spec = importlib.util.spec_from_file_location(f"museum_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
        spec.loader.exec_module(module)  # type: ignore[union-attr]
        found |= {
            f"{Path(path).name}::{name}": value
            for name, value in vars(module).items()
            if name.startswith("test_") and callable(value)
        }
    return found
