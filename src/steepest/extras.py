"""Optional packages, imported when they are first needed."""

import importlib
from typing import Any

# Packages whose modules have another name.
PACKAGES = {"sklearn": "scikit-learn"}


class MissingExtra(ImportError):
    """A package of one of the extras is not installed; the message says what to install."""


def require(module: str, extra: str, purpose: str) -> Any:
    """The imported module; `purpose` says in the error what it is needed for.

    Raises MissingExtra, an ImportError, naming the ``pip install`` that is missing: that of the
    package, since a ``pip install steepest[...]`` would ask an index that may not have steepest.

    >>> require("csv", extra="train", purpose="reading tables").__name__
    'csv'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise MissingExtra(
            f"{purpose} needs the package {package}: run  pip install "
            f"{PACKAGES.get(package, package)}, or install steepest with its extra [{extra}]"
        ) from error
