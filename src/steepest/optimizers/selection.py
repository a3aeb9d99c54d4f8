"""Which hyper-parameters a parameter gets by its name."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from steepest.arrays import Array

__all__ = ["Selection"]

VECTORS = "vectors"

# What `exclude` switches off.
_NOTHING: dict[str, Any] = {"weight_decay": 0.0, "l1": 0.0, "regularize": ()}


class Selection:
    """The options ``exclude`` and ``overrides``: patterns of names, or the word ``"vectors"``."""

    def __init__(
        self, exclude: str | Sequence[str], overrides: Mapping[str, Mapping[str, Any]]
    ) -> None:
        patterns = [exclude] if isinstance(exclude, str) else exclude
        if not isinstance(patterns, (tuple, list)) or not all(isinstance(x, str) for x in patterns):
            raise TypeError(f'exclude = {exclude!r}: expected "vectors" or patterns of names')
        if not isinstance(overrides, Mapping) or not all(
            isinstance(pattern, str) and isinstance(changes, Mapping)
            for pattern, changes in overrides.items()
        ):
            raise TypeError(
                f"overrides = {overrides!r}: expected hyper-parameters by patterns of names, such "
                'as {"head.*": {"lr": 1e-4}}'
            )
        self._rules = [(pattern, _NOTHING) for pattern in patterns] + list(overrides.items())

    def check(self, names: Sequence[str], known: Sequence[str]) -> None:
        """Raises ValueError for patterns without a parameter, and unknown hyper-parameters."""
        for pattern, changes in self._rules:
            if pattern != VECTORS and not any(fnmatchcase(name, pattern) for name in names):
                shown = ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "")
                raise ValueError(f"no parameter has a name like {pattern!r}; there are {shown}")
            unknown = [key for key in changes if key not in known]
            if unknown and changes is not _NOTHING:
                raise ValueError(
                    f"overrides of {pattern!r}: there is no hyper-parameter {unknown[0]!r}; "
                    f"there are {', '.join(known)}"
                )

    def split(
        self, names: Sequence[str], params: Sequence[Array]
    ) -> list[tuple[dict[str, Any], list[int]]]:
        """Parameters that get the same changes: (the changes, which parameters)."""
        parts: dict[tuple[int, ...], list[int]] = {}
        for i, (name, p) in enumerate(zip(names, params, strict=True)):
            matching = (
                k
                for k, (pattern, _) in enumerate(self._rules)
                if (p.ndim < 2 if pattern == VECTORS else fnmatchcase(name, pattern))
            )
            parts.setdefault(tuple(matching), []).append(i)
        return [
            ({key: x for k in rules for key, x in self._rules[k][1].items()}, members)
            for rules, members in parts.items()
        ]
