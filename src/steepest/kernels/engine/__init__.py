"""The engine: the plan of a step and its sweeps; compiled once."""

from steepest.kernels.engine.plan import (
    BLOCK_SIZE,
    CHUNK_SIZE,
    SPARE_OPERAND,
    UNIT_STAGE_LIMIT,
    Plan,
)

__all__ = ["BLOCK_SIZE", "CHUNK_SIZE", "SPARE_OPERAND", "UNIT_STAGE_LIMIT", "Plan"]
