"""Checks that a rule keeps the promises of this library; see docs/own-rules.md."""

from steepest.extension.testing import *
from steepest.extension.testing import __all__ as __all__
