"""The operations that options put before and after the rule, as the engine takes them."""

from typing import Annotated

from steepest.fields import Axis

__all__ = ["Operation", "UnitOperation", "Units"]

Operation = tuple[str, tuple[float, ...], str | None]
"""Its name in ``kernels.operations``, its coefficients, the name of its own array or None."""
UnitOperation = tuple[str, tuple[float, float]]
"""One that works on units, with the norm or sum of each: its name and its two coefficients."""
Units = Annotated[int | None, Axis()]
"""The axis whose indices have a unit each; None for the whole array as one unit."""
