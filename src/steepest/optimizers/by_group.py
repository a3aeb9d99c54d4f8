"""Several rules in one optimizer: one state, one plan, one parallel region."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Unpack

from steepest.arrays import Array
from steepest.optimizers.base import Optimizer, Options
from steepest.optimizers.selection import VECTORS, Selection

__all__ = ["ByGroup"]


class ByGroup(Optimizer, registered=False):
    """One optimizer in which each parameter goes by the rule that its name asks for.

    ``rules`` says what goes by which rule, the first that fits: patterns of names such as
    ``"*.bias"``, or ``"vectors"`` for what has fewer than two dimensions, with a dict of the
    ``"rule"`` and its hyper-parameters; what is left out has the rule's own default. Everything
    else is as in one optimizer: gradients keep the structure of ``params``, options hold for all,
    ``clip.global_norm`` measures all gradients together, a step is whole or not at all, and
    ``state_dict`` is one. Groups with a key ``"rule"`` may also be given to any optimizer.

    Raises ValueError for an unknown rule or hyper-parameter, for a parameter that no pattern fits
    and for a pattern that fits no parameter.

    >>> import numpy as np, steepest as st
    >>> params = {"head.weight": np.ones((2, 2)), "head.bias": np.ones(2)}
    >>> opt = st.ByGroup(params, {
    ...     "vectors": {"rule": "sgd", "lr": 0.5},
    ...     "*": {"rule": "lion", "lr": 0.25, "weight_decay": 1.0},
    ... })
    >>> opt.step({"head.weight": np.ones((2, 2)), "head.bias": np.ones(2)})
    >>> params["head.weight"].tolist(), params["head.bias"].tolist()
    ([[0.5, 0.5], [0.5, 0.5]], [0.5, 0.5])

    The form of a group's ``"rule"`` is this project's.
    """

    def __init__(
        self,
        params: Any,
        rules: Mapping[str, Mapping[str, Any]],
        **options: Unpack[Options],
    ) -> None:
        if not isinstance(rules, Mapping) or not all(
            isinstance(pattern, str) and isinstance(chosen, Mapping) and "rule" in chosen
            for pattern, chosen in rules.items()
        ):
            raise TypeError(
                f"rules = {rules!r}: expected a dict of patterns of names, each with a rule and "
                'its hyper-parameters, such as {"*.bias": {"rule": "sgd", "lr": 0.1}}'
            )
        self._table = dict(rules)
        super().__init__(params, {}, options)

    def _selects(self, options: Options) -> Selection:
        return _Table(self._table, options, self._known)

    def _known(self) -> dict[str, tuple[str, ...]]:
        return {name: rule._hyper_names for name, rule in self._rules.items()}

    def states(self, h: Mapping[str, Any]) -> tuple[str, ...]:
        raise NotImplementedError  # every group has a rule of its own

    def coefficients(self, h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        raise NotImplementedError


class _Table(Selection):
    """The rules by patterns of names, and the options ``exclude`` and ``overrides`` within them."""

    def __init__(
        self, table: Mapping[str, Mapping[str, Any]], options: Options, known: Any
    ) -> None:
        super().__init__(options.get("exclude", ()), options.get("overrides", {}))
        self._table = list(table.items())
        self._known = known

    def check(self, names: Sequence[str], known: Sequence[str]) -> None:
        hyper = self._known()
        everything = {name for own in hyper.values() for name in own}
        super().check(names, [*known, *sorted(everything - set(known))])
        for pattern, changes in self._table:
            allowed = ("rule", *hyper.get(changes["rule"], ()))
            unknown = [key for key in changes if key not in allowed]
            if unknown:
                raise ValueError(
                    f"rules[{pattern!r}]: {changes['rule']} has no hyper-parameter {unknown[0]!r}; "
                    f"it has {', '.join(allowed[1:])}"
                )

    def split(
        self, names: Sequence[str], params: Sequence[Array]
    ) -> list[tuple[dict[str, Any], list[int]]]:
        used: dict[int, list[int]] = {}
        for i, (name, p) in enumerate(zip(names, params, strict=True)):
            fitting = (
                k
                for k, (pattern, _) in enumerate(self._table)
                if (p.ndim < 2 if pattern == VECTORS else fnmatchcase(name, pattern))
            )
            first = next(fitting, None)
            if first is None:
                raise ValueError(
                    f"no rule for parameter {name!r}; a last pattern '*' takes what is left"
                )
            used.setdefault(first, []).append(i)
        idle = [pattern for k, (pattern, _) in enumerate(self._table) if k not in used]
        if idle:
            raise ValueError(f"rules[{idle[0]!r}] has no parameter left to go by it")
        parts = []
        for k, members in used.items():
            chosen = super().split([names[i] for i in members], [params[i] for i in members])
            for changes, part in chosen:
                parts.append((dict(self._table[k][1]) | changes, [members[i] for i in part]))
        return parts
