"""The Newton-Schulz iteration in bfloat16, which NumPy does not have, by PyTorch."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from steepest.extras import require
from steepest.matrix.linalg import Matrix, norm
from steepest.matrix.newton_schulz import Triple, divided

__all__ = ["orthogonalize"]

_BAND = 256  # rows: fewer make products slower than what they save


def orthogonalize(
    g: Matrix, triples: Sequence[Triple], eps: float, *, margin: float = 1.0, scale: float = 1.0
) -> Matrix:
    """``newton_schulz.orthogonalize`` with the iteration in bfloat16, by PyTorch's matrix products,
    which use the processor's own where it has them. The result is right to 1 to 5 % of its norm.

    Raises MissingExtra (an ImportError) without PyTorch.
    """
    torch: Any = require("torch", extra="torch", purpose='ns_dtype="bfloat16"')
    if g.size == 0:
        return np.zeros_like(g)
    length = norm(g)
    if not math.isfinite(length):
        return np.full_like(g, math.nan)
    x = torch.from_numpy(divided(g, max(margin * length, eps))).to(torch.bfloat16)
    wide = g.shape[0] <= g.shape[1]
    x = x if wide else x.T
    with torch.no_grad():
        for a, b, c in triples:
            gram = _symmetric(torch, x, x.T)
            x = torch.addmm(x, _symmetric(torch, gram, gram, c, b), x, beta=a)
        found: Matrix = (x if wide else x.T).to(torch.from_numpy(g[:0]).dtype).numpy()
    return np.asarray(found * g.dtype.type(scale))


def _symmetric(torch: Any, x: Any, y: Any, alpha: float = 1.0, beta: float = 0.0) -> Any:
    """beta x + alpha x y, which is symmetric, for an x at least as wide as high: in bands of rows,
    each from the diagonal on."""
    n = len(x)
    found = x.new_empty((n, n))
    for start in range(0, n, _BAND):
        stop = min(start + _BAND, n)
        torch.addmm(
            x[start:stop, start:n], x[start:stop], y[:, start:], alpha=alpha, beta=beta,
            out=found[start:stop, start:],
        )  # fmt: skip
        if stop < n:
            found[stop:, start:stop] = found[start:stop, stop:].T
    return found
