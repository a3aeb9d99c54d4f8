"""Models for tables, their losses, and how their parameters begin."""

from steepest.models.networks import *
from steepest.models.networks import __all__ as __all__
