"""What a package with rules of its own builds and tests with; see docs/own-rules.md."""

from steepest.core.optimizer import Number, Optimizer, Options
from steepest.extension.build import get_include
from steepest.kernels.scalars import one_minus_power

__all__ = ["Number", "Optimizer", "Options", "get_include", "one_minus_power"]
