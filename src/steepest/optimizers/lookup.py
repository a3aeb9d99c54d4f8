"""A rule by its name, as it comes from a configuration or a command line."""

from steepest.core.optimizer import RULES, Optimizer
from steepest.fields import nearest

__all__ = ["by_name"]


def by_name(name: str) -> type[Optimizer]:
    """The class of a rule, by its name: ``"adamw"``, ``"AdamW"`` and ``"adam-w"`` are one.

    name: in capital or small letters, with or without ``-`` and ``_``. ``steepest list`` and
    ``optimizers.RULES`` have all of them, those of other packages, too.

    Raises ValueError for a name that no rule has, with the nearest ones; TypeError for no text.

    >>> import numpy as np, steepest as st
    >>> st.by_name("schedule_free_sgd")
    <class 'steepest.optimizers.averaged.ScheduleFreeSGD'>
    >>> st.by_name("sgd")(np.zeros(3), lr=0.1, momentum=0.9).rule
    'sgd'
    >>> st.by_name("prodgy")
    Traceback (most recent call last):
    ValueError: optimizer 'prodgy': there is no such rule; did you mean prodigy?
    """
    if not isinstance(name, str):
        raise TypeError(f"optimizer {name!r}: expected the name of a rule")
    known = {_plain(key): rule for key, rule in RULES.items()}
    known = {_plain(rule.__name__): rule for rule in RULES.values()} | known
    found = known.get(_plain(name))
    if found is None:
        hint = nearest(_plain(name), known) or "; steepest list has all of them"
        raise ValueError(f"optimizer {name!r}: there is no such rule{hint}")
    return found


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", "").replace("_", "")
