"""All that decides the result of a run: options on the command line, a record in config.json."""

import dataclasses
import shlex
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steepest import data
from steepest.cli.errors import UsageError
from steepest.data import csv_files
from steepest.models.networks import Task

DIGITS = "digits"
SEPARATORS = {"tab": "\t", "\\t": "\t"}


@dataclass(frozen=True)
class Settings:
    """What a run is made of; two runs with equal settings have equal results.

    ``optimizer``, ``schedule``, ``clip`` and ``loss`` are in the syntax of ``steepest.cli.syntax``;
    ``lr`` and ``weight_decay`` are the rule's own where they are None, ``init`` and ``loss`` the
    model's; ``batch_size`` None means all samples, ``patience`` None all epochs, ``ema`` None that
    there are no averaged parameters. ``epochs`` and ``hidden`` None are for ``defaults`` to fill
    in, and so is ``separator`` with what is found in the file; it also has rates and decays other
    than the rules' own. A run that has begun has them all. ``raw`` is for tables of numbers alone.

    >>> settings = Settings("digits", lr=0.1, hidden=(64, 32))
    >>> Settings.from_json(settings.to_json()) == settings
    True
    """

    data: str
    target: str | None = None
    task: Task | None = None
    ignore: tuple[str, ...] = ()
    separator: str | None = None
    raw: bool = False
    optimizer: str = "adamw"
    lr: float | None = None
    schedule: str = "cosine"
    epochs: int | None = None
    batch_size: int | None = 64
    clip: str | None = None
    weight_decay: float | None = None
    hidden: tuple[int, ...] | None = None
    init: str | None = None
    loss: str | None = None
    accumulate: int = 1
    ema: float | None = None
    patience: int | None = None
    seed: int = 0

    @classmethod
    def given(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the parsed arguments that are settings."""
        names = [field.name for field in dataclasses.fields(cls)]
        found = {name: arguments[name] for name in names if name in arguments}
        return {name: tuple(x) if isinstance(x, list) else x for name, x in found.items()}

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON has them; a file with its whole path, to be found from anywhere."""
        found = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }
        return found if self.data == DIGITS else found | {"data": str(Path(self.data).absolute())}

    def command(self) -> str:
        """The command that makes this run.

        >>> Settings("my data.csv", target="y", hidden=(64, 32), batch_size=None).command()
        "steepest train 'my data.csv' --target y --batch-size full --hidden 64,32"
        """
        words = ["steepest", "train", self.data]
        for field in dataclasses.fields(self)[1:]:
            value = getattr(self, field.name)
            if value == field.default:
                continue
            option = "--" + field.name.replace("_", "-")
            if field.name == "raw":
                words.append(option)
            elif field.name == "ignore":
                words += [word for one in value for word in (option, one)]
            elif field.name == "hidden":
                words += [option, ",".join(map(str, value)) or "none"]
            else:
                words += [option, "full" if value is None else str(value)]
        return shlex.join(words)

    @classmethod
    def from_json(cls, record: Any) -> "Settings":
        """The settings that were recorded, also before tables could be other than numbers. Raises
        ValueError for anything else."""
        hints = typing.get_type_hints(cls)
        if isinstance(record, dict) and "raw" not in record:
            record = record | {"raw": True}
        if not isinstance(record, dict) or record.keys() != hints.keys():
            raise ValueError("expected exactly the settings of a run")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in record.items()
        }
        for name, value in values.items():
            if not _fits(value, hints[name]):
                raise ValueError(f"{name} = {value!r}: expected {hints[name]}")
        return cls(**values)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type as the fields of Settings have them."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, one) for one in inside)
    if origin is typing.Literal:
        return value in inside
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(one, inside[0]) for one in value)
    number = (int, float) if kind is float else kind
    return isinstance(value, number) and isinstance(value, bool) == (kind is bool)


def character(separator: str) -> str:
    """The character that --separator means. Raises UsageError.

    >>> character(";"), character("tab")
    (';', '\\t')
    """
    found = SEPARATORS.get(separator, separator)
    if not csv_files.separates(found):
        raise UsageError(f"--separator {separator!r}: expected one character, such as ';', or tab")
    return found


def load(settings: Settings) -> data.Dataset:
    """The data of a run. Raises UsageError or DataError."""
    return load_each(settings, [settings.seed])[settings.seed]


def load_each(settings: Settings, seeds: Sequence[int]) -> dict[int, data.Dataset]:
    """The data of runs with several seeds, read once. Raises UsageError or DataError."""
    if settings.data == DIGITS:
        for name in ("target", "task", "ignore"):
            if getattr(settings, name):
                raise UsageError(f"--{name} is for CSV files; the digits need none")
        return {seed: data.digits(seed=seed) for seed in seeds}
    separator = None if settings.separator is None else character(settings.separator)
    path = Path(settings.data)
    if not path.exists():
        raise UsageError(f"{path}: there is no such file; give a CSV file, or the word digits")
    if settings.target is None:
        raise UsageError("--target COLUMN is missing: which column is to be predicted?")
    content = csv_files.content(path)
    return {
        seed: data.table(
            path,
            settings.target,
            task=settings.task,
            ignore=settings.ignore,
            separator=separator,
            seed=seed,
            content=content,
            raw=settings.raw,
        )
        for seed in seeds
    }
