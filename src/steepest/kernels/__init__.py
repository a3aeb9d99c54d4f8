"""Everything compiled, and what chooses and governs it.

GNU's OpenMP reads when it is loaded how long its threads spin for the next work before they sleep:
milliseconds, by default, in which they keep the processors from NumPy's own threads; a training
loop on plain arrays may take twice as long for it. Where this package is the first to load it, and
the environment asks for nothing else, they spin for a tenth of a millisecond. That is long enough
for the operations of PyTorch, which may come to use the same threads.
"""

import os


def _load_openmp() -> None:
    quiet = not any(name in os.environ for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"))
    if quiet:
        os.environ["GOMP_SPINCOUNT"] = "10000"
    try:
        from steepest.kernels import machine  # noqa: F401  (linked with OpenMP)
    finally:
        if quiet:
            del os.environ["GOMP_SPINCOUNT"]


_load_openmp()
