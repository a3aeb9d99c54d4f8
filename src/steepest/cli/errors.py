"""What may go wrong at the user's hands, told in one line."""


class UsageError(ValueError):
    """Arguments or files that cannot be used; the message says which and what to do."""


def reason(error: OSError) -> str:
    """What the system says about a file, in one line.

    >>> reason(OSError(28, "No space left on device"))
    'No space left on device'
    """
    return error.strerror or " ".join(str(error).split()) or type(error).__name__
