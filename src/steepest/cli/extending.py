"""More epochs for a run that is done: ``steepest train --resume RUN --epochs N``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steepest import checkpoint
from steepest.cli.errors import UsageError
from steepest.cli.runs import Run


def more_epochs(folder: Path, record: Mapping[str, Any], asked: dict[str, Any]) -> int | None:
    """Takes ``epochs`` out of what is asked for if they are more than the run had.

    Raises UsageError for a run that ended before its epochs were done: more of them change nothing.
    """
    before, stopped = record.get("epochs"), record.get("stopped", "")
    if not isinstance(before, int) or asked.get("epochs", 0) <= before:
        return None
    if stopped not in ("", "interrupted", "epochs"):
        raise UsageError(
            f"--epochs {asked['epochs']}: the run in {folder} ended before its {before} epochs: "
            f"{record.get('message')}"
        )
    epochs: int = asked.pop("epochs")
    return epochs


def extend(path: Path, before: Run, after: Run) -> str:
    """Makes a checkpoint that of the longer run, and says what becomes of the learning rate.

    A schedule whose length is that of the run becomes that of the longer
    run from the next update on; any other stays as it is, and so does its state.

    Raises UsageError where there is no checkpoint, or it cannot be used.
    """
    if not path.exists():
        raise UsageError(
            f"{path}: there is no such file, from which the run would go on; train anew:  "
            f"{after.settings.command()}"
        )
    told = (
        f"from {before.settings.epochs} epochs to {after.settings.epochs}, as in a run of so many"
    )
    if repr(before.schedule) == repr(after.schedule):
        return told
    try:
        found = checkpoint.read(path)
        checkpoint.load(path, before.optimizer, before.params)
        for group in before.optimizer.param_groups:
            group["lr"] = after.schedule
        checkpoint.save(
            path, before.optimizer, before.params, extra=found.extra, arrays=found.arrays
        )
    except checkpoint.CheckpointError as error:
        raise UsageError(str(error)) from None
    return f"{told} from here on; the learning rate before was that of the shorter run"
