"""What a package with rules of its own builds and tests with; see docs/own-rules.md."""

from steepest.core.hyper_parameters import *
from steepest.core.hyper_parameters import __all__ as _types
from steepest.core.optimizer import KW_ONLY, Argument, Optimizer
from steepest.extension.build import get_include
from steepest.kernels.scalars import one_minus_power

__all__ = ["KW_ONLY", "Argument", "Optimizer", "get_include", "one_minus_power"]
__all__ += _types
