"""Which hyper-parameters a parameter gets by its name."""

from collections.abc import Callable, Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from steepest.memory.arrays import Array

__all__ = ["VECTORS", "RuleTable", "Selection"]

VECTORS = "vectors"

# What `exclude` switches off.
_NOTHING: dict[str, Any] = {"weight_decay": 0.0, "l1": 0.0, "regularize": ()}


NamesOf = Callable[[Mapping[str, Any]], Sequence[str]]
"""The function that gives the hyper-parameters of the rule of a group."""


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

    def check(
        self,
        groups: Sequence[Mapping[str, Any]],
        names_of: NamesOf,
    ) -> None:
        """Raises ValueError for patterns without a parameter, and for hyper-parameters that the
        rules of their parameters do not know; `names_of` gives those of the rule of a group."""
        names = [name for group in groups for name in group["param_names"]]
        for pattern, changes in self._rules:
            own = [group for group in groups if _fits(pattern, group)]
            if pattern == VECTORS and not own:
                what = "exclude" if changes is _NOTHING else "overrides"
                raise ValueError(f'{what} of "vectors": no parameter has fewer than two dimensions')
            _check_pattern(pattern, names)
            known = list(dict.fromkeys(key for group in own for key in names_of(group)))
            unknown = [key for key in changes if key not in known]
            if unknown and changes is not _NOTHING:
                raise ValueError(
                    f"overrides of {pattern!r}: there is no hyper-parameter {unknown[0]!r}; "
                    f"there are {', '.join(known)}"
                )

    def split(
        self,
        group: Mapping[str, Any],
        names: Sequence[str],
        params: Sequence[Array],
        names_of: NamesOf,
    ) -> list[tuple[dict[str, Any], list[int]]]:
        """Parameters of a new group that get the same changes: (the changes, which parameters)."""
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


def _fits(pattern: str, group: Mapping[str, Any]) -> bool:
    """Whether a pattern is one of a parameter of the group."""
    return any(
        p.ndim < 2 if pattern == VECTORS else fnmatchcase(name, pattern)
        for name, p in zip(group["param_names"], group["params"], strict=True)
    )


def _check_pattern(pattern: str, names: Sequence[str]) -> None:
    if pattern != VECTORS and not any(fnmatchcase(name, pattern) for name in names):
        shown = ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "")
        raise ValueError(f"no parameter has a name like {pattern!r}; there are {shown}")


class RuleTable(Selection):
    """Rules by patterns of names, the first that fits, and ``exclude`` and ``overrides`` within.

    With `rest`, what no pattern fits uses the optimizer's own rule, and there may be no vectors.

    What the table says for a rule stands before what a group says, unless no part of the group
    would take it otherwise: so a group all of AdamW's, say, has a rate of its own.
    """

    def __init__(
        self,
        table: Mapping[str, Mapping[str, Any]],
        options: Mapping[str, Any],
        rest: bool = False,
    ) -> None:
        super().__init__(options.get("exclude", ()), options.get("overrides", {}))
        self._table = list(table.items())
        self._rest = rest

    def check(
        self,
        groups: Sequence[Mapping[str, Any]],
        names_of: NamesOf,
    ) -> None:
        names = [name for group in groups for name in group["param_names"]]
        super().check(groups, names_of)
        for pattern, changes in self._table:
            if self._rest:
                _check_pattern(pattern, names)
            allowed = ("rule", *names_of(changes))
            unknown = [key for key in changes if key not in allowed]
            if unknown:
                raise ValueError(
                    f"rules[{pattern!r}]: {changes['rule']} has no hyper-parameter {unknown[0]!r}; "
                    f"it has {', '.join(allowed[1:])}"
                )

    def split(
        self,
        group: Mapping[str, Any],
        names: Sequence[str],
        params: Sequence[Array],
        names_of: NamesOf,
    ) -> list[tuple[dict[str, Any], list[int]]]:
        if "rule" in group:  # which then says what its parameters use
            return super().split(group, names, params, names_of)
        same = [id(changes) for _, changes in self._table]
        # Patterns with the same dict make one group; the last is the optimizer's own rule.
        alike = [*map(same.index, same), len(same)]
        used: set[int] = set()
        found: dict[int, list[int]] = {}
        for i, (name, p) in enumerate(zip(names, params, strict=True)):
            fitting = (
                k
                for k, (pattern, _) in enumerate(self._table)
                if (p.ndim < 2 if pattern == VECTORS else fnmatchcase(name, pattern))
            )
            first = next(fitting, len(self._table) if self._rest else None)
            if first is None:
                raise ValueError(
                    f"no rule for parameter {name!r}; a last pattern '*' takes what is left"
                )
            used.add(first)
            found.setdefault(alike[first], []).append(i)
        idle = [pattern for k, (pattern, _) in enumerate(self._table) if k not in used]
        if idle and not self._rest:
            raise ValueError(f"rules[{idle[0]!r}] has no parameter left to use it")
        parts = []
        tables = {k: dict(self._table[k][1]) if k < len(self._table) else {} for k in found}
        left = _left(group, tables.values(), names_of)
        for k, members in found.items():
            own_names, own_params = [names[i] for i in members], [params[i] for i in members]
            chosen = super().split(group, own_names, own_params, names_of)
            own = tables[k] | {key: group[key] for key in left & tables[k].keys()}
            parts += [(own | changes, [members[i] for i in part]) for changes, part in chosen]
        return parts


def _left(
    group: Mapping[str, Any], tables: Collection[Mapping[str, Any]], names_of: NamesOf
) -> set[str]:
    """The keys of a group that would have no effect if the tables of its parts stood first."""
    taken = [names_of({**group, **table}) for table in tables]
    return {
        key
        for key in group
        if not any(
            key in names and key not in table for names, table in zip(taken, tables, strict=True)
        )
    }
