"""Names for the types that every reference rule takes."""

from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
State = dict[str, Array]
