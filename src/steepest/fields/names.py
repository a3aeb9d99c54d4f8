"""What a name that there is not may have meant."""

import difflib
from collections.abc import Iterable

__all__ = ["nearest"]


def nearest(word: str, known: Iterable[str]) -> str:
    """A question for the end of an error message; empty where no name is near.

    >>> nearest("cosin", ["constant", "cosine"]), nearest("x", ["cosine"])
    ('; did you mean cosine?', '')
    >>> nearest("adamn", ["adam", "adamw", "adagrad"])
    '; did you mean adam or adamw?'
    """
    names = list(known)
    near = difflib.get_close_matches(word, names, n=3, cutoff=0.8)
    near = sorted(near or difflib.get_close_matches(word, names, n=1))
    return f"; did you mean {' or '.join(near)}?" if near else ""
