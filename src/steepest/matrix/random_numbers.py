"""Random numbers as a pure function of a seed and two counters: any step can be repeated alone."""

import numpy as np

from steepest.matrix.linalg import Matrix


def normals(
    shape: tuple[int, ...], dtype: np.dtype[np.floating], seed: int, stream: int, count: int
) -> Matrix:
    """Standard normal numbers for a seed, a parameter's index and a count of steps.

    Drawn in double and rounded to dtype, so that float32 and float64 see the same numbers. They
    are those of NumPy's Philox generator, which only a release of NumPy may change.

    >>> a, b = (normals((2,), np.dtype("f8"), seed=0, stream=1, count=7) for _ in range(2))
    >>> bool((a == b).all())
    True
    """
    # The count is the highest word, so that the numbers of two counts lie 2¹⁹² blocks apart.
    key = np.array([seed % 2**64, stream % 2**64], np.uint64)
    bits = np.random.Philox(key=key, counter=np.array([0, 0, 0, count % 2**64], np.uint64))
    return np.asarray(np.random.Generator(bits).standard_normal(shape), dtype)
