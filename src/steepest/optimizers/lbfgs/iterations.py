"""The iterations of one step of L-BFGS, from one memory to the next."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from steepest.core import trees
from steepest.memory import arrays, formats
from steepest.memory.arrays import Array
from steepest.optimizers.lbfgs import vectors
from steepest.optimizers.lbfgs.line_search import Point, StrongWolfe

Closure = Callable[[], tuple[Any, Any]]

_CURVED = 1e-10  # a pair with a smaller y·s is not kept; PyTorch's

# Evaluations of one line search after its first. One that needs more is at the limit of rounding;
# PyTorch 2.13 would let it spend all of max_eval there (before, this was its limit too).
_TRIALS = 25


class Pair(NamedTuple):
    """A step s, the change y of the gradient along it, and 1 / y·s."""

    y: Array
    s: Array
    ro: float


@dataclass(frozen=True)
class Memory:
    """What a step leaves to the next. d, the direction, and prev_grad are None before the first."""

    updates: int = 0
    func_evals: int = 0
    n_iter: int = 0
    t: float = 0.0
    h_diag: float = 1.0
    prev_loss: float = 0.0
    d: Array | None = None
    prev_grad: Array | None = None
    pairs: tuple[Pair, ...] = ()

    def rows(self) -> list[Array]:
        single = [x for x in (self.d, self.prev_grad) if x is not None]
        return single + [x for pair in self.pairs for x in (pair.y, pair.s)]


class Iterations:
    """One call of ``step``: the iterations."""

    def __init__(
        self,
        closure: Closure,
        params: list[Array],
        names: list[str],
        shape: trees.Shape,
        rows: vectors.Rows,
        h: Mapping[str, Any],
        bits: str | None = None,
    ) -> None:
        """`bits` is the format of gradients of uint16."""
        self.closure, self.params, self.names, self.shape = closure, params, names, shape
        self.rows, self.h, self.bits = rows, h, bits
        self.sign = -1.0 if h["maximize"] else 1.0
        self.first_loss = math.nan
        self.evaluations = 0

    def run(self, start: Array, memory: Memory) -> Memory:
        """Iterates from `start`, where the parameters are, until there is a reason to stop."""
        loss, g = self._usable(self._evaluate())
        self.first_loss = self.sign * loss
        memory = replace(memory, updates=memory.updates + 1)
        if vectors.largest(g) > self.h["tolerance_grad"]:
            x = self.rows.take()
            np.copyto(x, start)
            memory = self._iterate(x, loss, g, memory)
        return replace(memory, func_evals=memory.func_evals + self.evaluations)

    def _iterate(self, x: Array, loss: float, g: Array, memory: Memory) -> Memory:
        h = self.h
        for i in range(1, h["max_iter"] + 1):
            memory = self._directed(memory, loss, g)
            d = memory.d
            assert d is not None
            slope = vectors.dot(g, d)
            if not slope <= -h["tolerance_change"]:  # no descent; also where it is NaN
                return replace(memory, t=0.0)
            start = Point(0.0, loss, g, slope)
            if h["line_search_fn"] is None:
                self._move(x, memory.t, d, x)
                if i == h["max_iter"]:  # the next step will evaluate there
                    return memory
                loss, g = self._usable(self._evaluate())
            else:
                found = self._searched(x, d, memory.t, start)
                memory = replace(memory, t=found.t)
                loss, g = found.f, found.g
                self._move(x, memory.t, d, x)
            if (
                i == h["max_iter"]
                or self.evaluations >= h["max_eval"]
                or vectors.largest(g) <= h["tolerance_grad"]
                or abs(memory.t) * vectors.largest(d) <= h["tolerance_change"]
                or abs(loss - start.f) < h["tolerance_change"]
            ):
                break
        return memory

    def _directed(self, memory: Memory, loss: float, g: Array) -> Memory:
        """The memory with the step before in its history, a new direction, and a first length."""
        rows, lr = self.rows, self.h["lr"]
        pairs, h_diag, t = memory.pairs, memory.h_diag, lr
        if memory.d is None or memory.prev_grad is None:
            t = min(1.0, 1.0 / vectors.total(g)) * lr
        else:
            s = vectors.scaled(memory.d, memory.t, rows.take())
            y = vectors.difference(g, memory.prev_grad, rows.take())
            curvature = vectors.dot(y, s)
            if curvature > _CURVED:
                surplus = max(0, len(pairs) + 1 - self.h["history_size"])
                for old in pairs[:surplus]:
                    rows.give(old.y)
                    rows.give(old.s)
                pairs = (*pairs[surplus:], Pair(y, s, 1.0 / curvature))
                h_diag = curvature / vectors.dot(y, y)
            else:
                rows.give(y)
                rows.give(s)
            rows.give(memory.d)
            rows.give(memory.prev_grad)
        d = _two_loops(g, pairs, h_diag, rows.take())
        return replace(
            memory, n_iter=memory.n_iter + 1, t=t, h_diag=h_diag, prev_loss=loss,
            d=d, prev_grad=g, pairs=pairs,
        )  # fmt: skip

    def _searched(self, x: Array, d: Array, first: float, start: Point) -> Point:
        """The point that the line search finds on the direction d from x."""
        trial = self.rows.take()

        def evaluate(t: float) -> Point:
            self._move(x, t, d, trial)
            loss, g = self._evaluate()
            return Point(t, loss, g, vectors.dot(g, d))

        search = StrongWolfe(
            evaluate,
            start,
            vectors.largest(d),
            self.h["tolerance_change"],
            min(_TRIALS, self.h["max_eval"] - self.evaluations),
            lambda point: self.rows.give(point.g),
        )
        found = search.search(first)
        self.rows.give(trial)
        return found

    def _move(self, x: Array, t: float, d: Array, out: Array) -> None:
        """out ← x + t · d, and the parameters too."""
        if out is not x:
            np.copyto(out, x)
        vectors.add_scaled(out, t, d)
        vectors.scatter(out, self.params)

    def _evaluate(self) -> tuple[float, Array]:
        """Loss and gradient at the parameters as they are; negative where it maximizes."""
        self.evaluations += 1
        answer = self.closure()
        if not (isinstance(answer, (tuple, list)) and len(answer) == 2):
            raise TypeError(
                f"the function returned a {type(answer).__name__}; expected (loss, gradients)"
            )
        g = self.rows.take()
        leaves = trees.take(self.shape, answer[1])
        named = zip(self.names, self.params, leaves, vectors.parts(g, self.params), strict=True)
        for name, p, leaf, part in named:
            if leaf is None:
                part[...] = 0
                continue
            leaf = leaf if self.bits is None else arrays.of_bits(leaf, self.bits)
            part[...] = formats.decoded(arrays.gradient(leaf, p, name))
        if self.sign < 0.0:
            np.negative(g, out=g)
        return self.sign * _loss(answer[0]), g

    def _usable(self, evaluated: tuple[float, Array]) -> tuple[float, Array]:
        """The same; raises FloatingPointError where something in it is infinite or NaN."""
        loss, g = evaluated
        where = f"in evaluation {self.evaluations} of the step; nothing was changed"
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {self.sign * loss} {where}")
        if not math.isfinite(vectors.largest(g)):
            parts = zip(self.names, vectors.parts(g, self.params), strict=True)
            bad = next(name for name, part in parts if not np.isfinite(part).all())
            raise FloatingPointError(
                f"gradient of parameter {bad!r} has an infinite or NaN element {where}"
            )
        return loss, g


def _two_loops(g: Array, pairs: tuple[Pair, ...], h_diag: float, out: Array) -> Array:
    """out ← -H g, where H is h_diag updated by the pairs, oldest first."""
    np.negative(g, out=out)
    shares: list[float] = []
    for y, s, ro in reversed(pairs):
        shares.append(vectors.dot(s, out) * ro)
        vectors.add_scaled(out, -shares[-1], y)
    vectors.scaled(out, h_diag, out)
    for (y, s, ro), share in zip(pairs, reversed(shares), strict=True):
        vectors.add_scaled(out, share - vectors.dot(y, out) * ro, s)
    return out


def _loss(value: Any) -> float:
    try:
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError):
        raise TypeError(
            f"the function returned a loss of type {type(value).__name__}; expected one number"
        ) from None
