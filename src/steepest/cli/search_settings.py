"""The settings of a search, and the record from which it can be continued."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from steepest.cli import defaults, folders, search_space, syntax
from steepest.cli.errors import UsageError
from steepest.cli.search_space import Spaces
from steepest.cli.settings import Settings
from steepest.data.datasets import Dataset
from steepest.optimizers import RULES
from steepest.tuning import METHODS, Distribution
from steepest.tuning.search import Method

TRIALS = 20
HIDDEN = "***"


@dataclass(frozen=True)
class Search:
    """A search: the settings that all trials share, the space, and how it is searched.

    ``min_epochs`` is 0 until ``filled``; ``trials`` is None for a grid, whose points are counted;
    ``storage`` is None for a database in the folder of the search, ``study`` for a name made of
    data and settings.
    """

    settings: Settings
    space: Spaces
    method: Method
    trials: int | None
    prune: bool
    min_epochs: int
    storage: str | None
    study: str | None

    @classmethod
    def given(cls, arguments: Mapping[str, Any]) -> "Search":
        """The search that is asked for. Raises UsageError."""
        fixed = Settings.given(arguments)
        settings = Settings(**fixed)
        texts = arguments.get("space", []), arguments.get("grid", [])
        spaces = search_space.given([*texts[0], *texts[1]], settings, list(fixed))
        only_grids = bool(texts[1]) and not texts[0]
        method = arguments.get("method", "grid" if only_grids else "tpe")
        rule = syntax.call("--optimizer", settings.optimizer, RULES)[0]
        return cls(
            settings=settings,
            space=spaces or search_space.default(rule, [*fixed, *_arguments(settings)]),
            method=method,
            trials=arguments.get("trials", None if method == "grid" else TRIALS),
            prune=arguments.get("prune", True),
            min_epochs=arguments.get("min_epochs", 0),
            storage=arguments.get("storage"),
            study=arguments.get("study"),
        )

    @classmethod
    def resumed(cls, folder: Path, record: Mapping[str, Any], given: Mapping[str, Any]) -> "Search":
        """The search that was begun in a folder, with more trials where they are asked for.

        Raises UsageError where anything else that is given now is not what it was.
        """
        try:
            saved = cls.from_json(record.get("search"))
        except (ValueError, TypeError, KeyError):
            raise UsageError(f"{folder / folders.CONFIG} is not that of a search") from None
        settings = Settings.given(given)
        settings.pop("data", None)  # may have been moved; the digest tells whether it is the same
        folders.agree(folder, settings, dataclasses.asdict(saved.settings))
        texts = [*given.get("space", []), *given.get("grid", [])]
        own = {name: given[name] for name in ("method", "prune", "min_epochs") if name in given}
        if texts:
            own["space"] = search_space.given(texts, saved.settings, [])
        folders.agree(folder, own, dataclasses.asdict(saved))
        changes = {name: given[name] for name in ("trials", "storage", "study") if name in given}
        found = dataclasses.replace(saved, **changes)
        if "data" in given:
            found = dataclasses.replace(
                found, settings=dataclasses.replace(found.settings, data=given["data"])
            )
        if found.storage is not None and HIDDEN in found.storage:
            raise UsageError(f"--storage is missing: the password of {found.storage} is not kept")
        return found

    def filled(self, dataset: Dataset) -> "Search":
        """The search with the defaults of these data where nothing is said. Raises UsageError."""
        settings = defaults.filled(self.settings, dataset)
        least = max(1, (settings.epochs or 1) // 10)
        return dataclasses.replace(self, settings=settings, min_epochs=self.min_epochs or least)

    def to_json(self) -> dict[str, Any]:
        """The search as JSON has it; without the password of a database."""
        found = dataclasses.asdict(self) | {"settings": self.settings.to_json()}
        return found | {"storage": self.storage and _without_password(self.storage)}

    @classmethod
    def from_json(cls, record: Any) -> "Search":
        """The search that was recorded. Raises ValueError, TypeError or KeyError."""
        found = cls(**record | {"settings": Settings.from_json(record["settings"])})
        if found.method not in METHODS or not isinstance(found.space, dict):
            raise ValueError("expected a search")
        found.distributions()
        return found

    def distributions(self) -> dict[str, Distribution]:
        """The space as the search takes it. Raises UsageError."""
        rule = syntax.call("--optimizer", self.settings.optimizer, RULES)[0]
        return {
            name: search_space.distribution(name, text, rule) for name, text in self.space.items()
        }

    def name(self, dataset: Dataset) -> str:
        """The name of the study: the one asked for, or one that equal runs have in common."""
        if self.study is not None:
            return self.study
        shared = self.settings.to_json() | {"data": dataset.digest}
        digest = hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()
        return f"{dataset.name}-{self.settings.optimizer.partition(':')[0]}-{digest[:8]}"


def _arguments(settings: Settings) -> list[str]:
    """What the optimizer's text says of its arguments already."""
    _, _, named = syntax.call("--optimizer", settings.optimizer, RULES)
    return [*named, *(("beta1", "beta2") if "betas" in named else ())]


def _without_password(url: str) -> str:
    """The URL of a database, fit to be written down.

    >>> _without_password("mysql://me:secret@host/db"), _without_password("sqlite:///a.db")
    ('mysql://me:***@host/db', 'sqlite:///a.db')
    """
    password = urlsplit(url).password
    return url.replace(f":{password}@", f":{HIDDEN}@") if password else url
