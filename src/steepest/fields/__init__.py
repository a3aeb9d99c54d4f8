"""Checked fields of rules, options and schedules: a field's type says what it may be.

    max_norm: Annotated[Number, Scheduled(Range(float, 0, above=True, finite=False))]

``checks`` has what may stand there, ``values`` the frozen values with such fields that clips,
filters, penalties and averages are. Beside them: checks of plain arguments of functions
(``scalars``), the nearest of some names (``names``), and values with a state, which change with
time (``stateful``).
"""

from steepest.fields.checks import (
    Axis,
    Check,
    Choice,
    Many,
    Maybe,
    Range,
    Scheduled,
    Truth,
    checks_of,
    scalar,
)
from steepest.fields.names import nearest
from steepest.fields.scalars import count, real
from steepest.fields.stateful import Call, arguments, continued, described, snapshot
from steepest.fields.values import Number, Value

__all__ = [
    "Axis",
    "Call",
    "Check",
    "Choice",
    "Many",
    "Maybe",
    "Number",
    "Range",
    "Scheduled",
    "Truth",
    "Value",
    "arguments",
    "checks_of",
    "continued",
    "count",
    "described",
    "nearest",
    "real",
    "scalar",
    "snapshot",
]
