"""The engine: the plan of a step and its sweeps; compiled once.

`plan` holds the rest together: `entries` binds arrays, `programs` takes what Python says of a step,
`sweeps` runs over the elements of all parameters, by `blocks`, `units` and `tiles`; `norms` and
`reductions` combine what sweeps have measured. They are functions on the structs of `structs`.
"""

from steepest.kernels.engine.plan import (
    BLOCK_SIZE,
    CHUNK_SIZE,
    LARGE_STEP,
    SPARE_OPERAND,
    UNIT_OPERATION_LIMIT,
    Plan,
    joint_norm,
)

__all__ = [
    "BLOCK_SIZE",
    "CHUNK_SIZE",
    "LARGE_STEP",
    "SPARE_OPERAND",
    "UNIT_OPERATION_LIMIT",
    "Plan",
    "joint_norm",
]
