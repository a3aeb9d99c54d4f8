"""The folder of a run: made once, and written so that a file is whole or not there."""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from steepest.cli.errors import UsageError, reason

CONFIG = "config.json"
PART = ".part-"


def new(out: Path | None, name: str) -> Path:
    """The new folder of the run. Raises UsageError if it cannot be made or has files in it."""
    folder = out or _unused(Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not _empty(folder):
            raise UsageError(f"folder {folder} is not empty; give another one with --out")
    except OSError as error:
        raise UsageError(f"folder {folder} cannot be made: {reason(error)}") from None
    return folder


def _empty(folder: Path) -> bool:
    """Whether there is nothing but what a killed process may have left unfinished."""
    return all(path.name.startswith(PART) for path in folder.iterdir())


def _unused(folder: Path) -> Path:
    """The folder, or one with a number after it where another run began in the same second."""
    found, i = folder, 1
    while found.exists():
        i += 1
        found = folder.with_name(f"{folder.name}-{i}")
    return found


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to; what is there at the end takes the place of ``path``.

    Until then, and for good if anything goes wrong, ``path`` stays as it was. Raises UsageError
    where the system refuses.
    """
    if not path.name:
        raise UsageError(f"{path} is a folder; give the name of a file")
    part = path.with_name(PART + path.name)
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {reason(error)}") from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_json(path: Path, record: Any) -> None:
    """Writes JSON; numbers that are not finite, for which it has no word, become null."""
    with replacing(path) as part:
        part.write_text(json.dumps(_spoken(record), indent=2) + "\n", encoding="utf-8")


def _spoken(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _spoken(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_spoken(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> Any:
    """Reads JSON. Raises UsageError where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {reason(error)}") from None
    except ValueError:
        raise UsageError(f"{path} is not the JSON of a run") from None


def begun(folder: Path, command: str) -> dict[str, Any] | None:
    """What config.json says of the run that is in a folder; None where there is nothing.

    Raises UsageError where the folder holds anything else.
    """
    if not (folder / CONFIG).exists():
        try:
            if not folder.exists() or _empty(folder):
                return None
        except OSError as error:
            raise UsageError(f"folder {folder} cannot be read: {reason(error)}") from None
        raise UsageError(f"folder {folder} has no {CONFIG}; there is no run to continue")
    record = read_json(folder / CONFIG)
    if not isinstance(record, dict) or record.get("command") != command:
        raise UsageError(f"{folder / CONFIG} is not that of steepest {command}")
    return record


def agree(folder: Path, given: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Raises UsageError if anything that is given now is not what it was."""
    for name, value in given.items():
        if value != saved.get(name):
            raise UsageError(
                f"--{name.replace('_', '-')} {value}: the run in {folder} was begun with "
                f"{saved.get(name)}, and keeps its settings"
            )
