"""Models for tables, their losses, how their parameters begin, and models that were trained."""

from steepest.models import networks, trained
from steepest.models.networks import *
from steepest.models.trained import *

__all__ = [*networks.__all__, *trained.__all__]
