"""Checks that a rule keeps the promises of this library, and that any optimizer keeps those that
need no reference; see docs/own-rules.md and docs/conformance.md."""

from steepest.extension.conformance import *
from steepest.extension.conformance import __all__ as _of_optimizers
from steepest.extension.testing import *
from steepest.extension.testing import __all__ as _of_rules

__all__ = [*_of_rules, *_of_optimizers]
