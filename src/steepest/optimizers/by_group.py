"""Several rules in one optimizer: one state, one plan, one parallel region."""

from collections.abc import Mapping
from typing import Any

from steepest.core.optimizer import Argument, Optimizer
from steepest.core.selection import RuleTable, Selection

__all__ = ["ByGroup"]


class ByGroup(Optimizer, registered=False):
    """One optimizer in which each parameter uses the rule that its name asks for.

    ``rules`` says what uses which rule, the first that fits: patterns of names such as
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

    rules: Argument[Mapping[str, Mapping[str, Any]]]

    @staticmethod
    def selection(given: Mapping[str, Any]) -> Selection:
        rules = given["rules"]
        if not isinstance(rules, Mapping) or not all(
            isinstance(pattern, str) and isinstance(chosen, Mapping) and "rule" in chosen
            for pattern, chosen in rules.items()
        ):
            raise TypeError(
                f"rules = {rules!r}: expected a dict of patterns of names, each with a rule and "
                'its hyper-parameters, such as {"*.bias": {"rule": "sgd", "lr": 0.1}}'
            )
        return RuleTable(dict(rules), given)

    @staticmethod
    def states(h: Mapping[str, Any]) -> tuple[str, ...]:
        raise NotImplementedError  # every group has a rule of its own

    @staticmethod
    def coefficients(h: Mapping[str, Any], t: int) -> tuple[str, tuple[float, ...]]:
        raise NotImplementedError
