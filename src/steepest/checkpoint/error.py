"""The one error of checkpoints."""


class CheckpointError(ValueError):
    """A checkpoint cannot be written, read or loaded; the message says why."""
