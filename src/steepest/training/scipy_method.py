"""Every optimizer as a method of ``scipy.optimize.minimize``.

    f, g = fun(x), jac(x)
    stop if a criterion is met
    x ← the optimizer's step with g, then clipped to the bounds; again

These are first-order rules, whose step length is given, without a line search: the function may
rise between steps. Where gradients are exact and cheap, SciPy's L-BFGS-B
needs far fewer steps; these methods are for rough, noisy or large functions, and for comparisons.
"""

import copy
import inspect
import math
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from steepest.extras import require
from steepest.fields import count, real
from steepest.memory.arrays import Array, unmasked
from steepest.optimizers import RULES, Optimizer

__all__ = ["ScipyMethod", "scipy_method"]

Function = Callable[..., Any]

CONVERGED, MAXITER, NONFINITE, HALTED = 0, 1, 2, 99

EPSILON = float(np.finfo(np.float64).eps)

_TOLERANCE = "a number", lambda x: not math.isnan(x)

# The values of so many steps must be within ftol: with momentum, one small change is common.
WINDOW = 10

# Arguments of an optimizer that contradict, or cannot change, what is returned.
REFUSED = {
    "maximize": "minimize -fun instead",
    "ema": "the result is the last point",
    "average": "the result is the last point",
    "nonfinite": "infinite and NaN gradients end the search",
}


def scipy_method(rule: type[Optimizer] | str, *, steps: int = 1000, **hyper: Any) -> "ScipyMethod":
    """A method for ``scipy.optimize.minimize(fun, x0, jac=..., method=...)``.

    rule: an optimizer's class, or its name, such as "adam".
    steps: how many at most, unless ``options={"maxiter": ...}`` says otherwise.
    hyper: the optimizer's arguments: lr, betas, clip, ...; numbers or schedules. weight_decay is 0
        unless given, as it moves the minimum. maximize, ema, average and nonfinite are refused.

    Raises what the optimizer's constructor raises, and ValueError or TypeError for an unknown
    rule. The method needs SciPy; ``ScipyMethod`` describes it and its options.

    >>> import numpy as np, steepest as st
    >>> from scipy.optimize import minimize
    >>> method = st.scipy_method(st.SGD, lr=0.1, momentum=0.5)
    >>> result = minimize(lambda x: ((x - 3) ** 2).sum(), [0.0, 1.0],
    ...                   jac=lambda x: 2 * (x - 3), method=method)
    >>> result.x.round(4), result.success, result.nit
    (array([3., 3.]), True, 36)
    """
    cls = _rule(rule)
    for name in hyper.keys() & REFUSED.keys():
        raise TypeError(f"scipy_method takes no argument {name!r}: {REFUSED[name]}")
    if "weight_decay" in inspect.signature(cls).parameters:
        hyper.setdefault("weight_decay", 0.0)
    method = ScipyMethod(cls, count("steps", steps, 0), hyper)
    method.optimizer(np.zeros(1))  # wrong arguments raise now, not at the first use
    return method


@dataclass(frozen=True)
class ScipyMethod:
    """The result of ``scipy_method``: a callable that SciPy accepts as a method.

    x0 becomes float64 and is left as it is. Without ``jac``, gradients are forward differences
    over eps max(1, |x|), which cost n further evaluations each.

    ``bounds``: x0 and every later point are clipped to them, and differences stay within them.
    ``constraints`` are refused with ValueError. hess and hessp are not used: RuntimeWarning.

    Options: maxiter; gtol, 1e-5: converged once no element of the gradient is larger, counting
    only what does not push out of the bounds; ftol, None: converged once the values of the last 10
    steps are within ftol max(1, |fun|); eps, 1.5e-8; disp: prints the outcome. ``tol`` sets gtol.
    Other options are not used: OptimizeWarning.

    The result has x, fun, jac, nit, nfev, njev, success (status 0), message and status:

        0   converged
        1   maxiter steps are done
        2   fun or its gradient became infinite or NaN
        99  the callback raised StopIteration

    x is the last point; after status 2, it is the finite one with the lowest fun.
    """

    rule: type[Optimizer]
    steps: int
    hyper: dict[str, Any]

    def optimizer(self, x: Array) -> Optimizer:
        """A new optimizer of x; the state of its schedules is not shared between runs."""
        return self.rule(x, **copy.deepcopy(self.hyper))

    def __call__(
        self,
        fun: Function,
        x0: Any,
        args: tuple[Any, ...] = (),
        jac: Function | None = None,
        hess: Any = None,
        hessp: Any = None,
        bounds: Any = None,
        constraints: Any = (),
        callback: Function | None = None,
        **options: Any,
    ) -> Any:
        scipy = require("scipy.optimize", "scipy", "scipy_method")
        name = self.rule.__name__
        for what, given in (("hess", hess), ("hessp", hessp)):
            if given is not None:
                warnings.warn(f"Method {name} does not use {what}.", RuntimeWarning, stacklevel=3)
        if np.any(constraints):
            raise ValueError(
                f"method {name} cannot handle constraints; "
                "use bounds, add a penalty to fun, or take method='SLSQP'"
            )
        if np.iscomplexobj(x0):
            raise TypeError("x0 is complex; expected real numbers")
        given = {key: value for key, value in options.items() if value is not None}
        if "tol" in given:
            given = {"gtol": given.pop("tol")} | given
        unknown = sorted(given.keys() - _Options.__annotations__.keys())
        if unknown:
            message = f"Unknown solver options: {', '.join(unknown)}"
            warnings.warn(message, scipy.OptimizeWarning, stacklevel=3)
        known = {key: value for key, value in given.items() if key not in unknown}
        chosen = _Options(**({"maxiter": self.steps} | known))

        start = np.asarray(x0, np.float64).reshape(-1)
        lower, upper = _box(bounds, start.size)
        problem = _Problem(fun, jac, args, lower, upper, chosen.eps)
        x = np.clip(start, lower, upper)
        tell = _teller(callback, scipy.OptimizeResult)
        result = scipy.OptimizeResult(_search(problem, x, self.optimizer(x), chosen, tell))
        if chosen.disp:
            print(result.message)
            for key in ("fun", "nit", "nfev", "njev"):
                print(f"    {key}: {result[key]}")
        return result


@dataclass
class _Options:
    """The options, and their defaults."""

    maxiter: int
    gtol: float = 1e-5
    ftol: float | None = None
    eps: float = EPSILON**0.5
    disp: bool = False

    def __post_init__(self) -> None:
        self.maxiter = count("maxiter", self.maxiter, 0)
        self.gtol = real("gtol", self.gtol, *_TOLERANCE)
        if self.ftol is not None:
            self.ftol = real("ftol", self.ftol, *_TOLERANCE)
        self.eps = real(
            "eps", self.eps, f"a number > {EPSILON:.1e}", lambda x: EPSILON < x < math.inf
        )


@dataclass
class _Problem:
    """The function to be minimised, its gradient, and how often they were evaluated."""

    fun: Function
    jac: Function | None
    args: tuple[Any, ...]
    lower: Array
    upper: Array
    eps: float
    nfev: int = 0
    njev: int = 0

    def value(self, x: Array) -> float:
        self.nfev += 1
        found = self.fun(x.copy(), *self.args)  # a copy: the function may change it
        found = np.asarray(unmasked(found, "what fun returned"))
        if found.size != 1:
            raise ValueError(f"fun returned an array of shape {found.shape}; expected one number")
        return float(found.item())

    def gradient(self, x: Array, f: float) -> Array:
        self.njev += 1
        if self.jac is None:
            return self._differences(x, f)
        g = unmasked(self.jac(x.copy(), *self.args), "what jac returned")
        g = np.array(g, np.float64)
        if g.size != x.size:
            raise ValueError(f"jac returned an array of shape {g.shape}; expected {x.shape}")
        return g.reshape(-1)

    def _differences(self, x: Array, f: float) -> Array:
        """Forward differences, or backward ones where the upper bound is nearer than the step."""
        step = self.eps * np.maximum(1.0, np.abs(x))
        forward = (x + step <= self.upper) | (self.upper - x >= x - self.lower)
        away = np.clip(np.where(forward, x + step, x - step), self.lower, self.upper)
        g = np.zeros_like(x)
        for i in np.flatnonzero(away != x):  # bounds that are equal leave no room, and need none
            there = x.copy()
            there[i] = away[i]
            g[i] = (self.value(there) - f) / (away[i] - x[i])
        return g

    def slope(self, x: Array, g: Array) -> float:
        """The largest element of g, without what pushes out of the bounds."""
        inside = np.clip(g, x - self.upper, x - self.lower)
        return float(np.abs(inside).max(initial=0.0))

    def result(
        self, point: tuple[Array, float, Array], nit: int, status: int, message: str
    ) -> dict[str, Any]:
        x, f, g = point
        return {
            "x": x,
            "fun": f,
            "jac": g,
            "nit": nit,
            "nfev": self.nfev,
            "njev": self.njev,
            "success": status == CONVERGED,
            "status": status,
            "message": message,
        }


def _search(
    problem: _Problem,
    x: Array,
    optimizer: Optimizer,
    chosen: _Options,
    tell: Callable[[Array, float], bool],
) -> dict[str, Any]:
    """Steps, changing x in place, until there is a reason to stop; the fields of the result."""
    watching = [v for v in optimizer.param_groups[0].values() if hasattr(v, "observe")]
    recent: deque[float] = deque(maxlen=WINDOW + 1)
    best: tuple[Array, float, Array] | None = None
    nit = 0
    while True:
        f = problem.value(x)
        g = problem.gradient(x, f) if math.isfinite(f) else np.full_like(x, math.nan)
        if not np.isfinite(g).all():
            what = "the gradient is not finite" if math.isfinite(f) else f"fun is {f}"
            hint = "x is the best point before" if best else "start elsewhere"
            message = f"After {nit} steps {what}; {hint}."
            return problem.result(best or (x, f, g), nit, NONFINITE, message)
        if best is None or f < best[1]:
            best = x.copy(), f, g
        recent.append(f)
        if nit and not tell(x, f):
            return problem.result((x, f, g), nit, HALTED, "The callback raised StopIteration.")
        reason = _reason(chosen, problem.slope(x, g), recent, nit)
        if reason is not None:
            return problem.result((x, f, g), nit, *reason)
        for schedule in watching:
            schedule.observe(f)
        optimizer.step(g)
        np.clip(x, problem.lower, problem.upper, out=x)
        nit += 1


def _reason(
    chosen: _Options, slope: float, recent: deque[float], nit: int
) -> tuple[int, str] | None:
    """Why to stop at a finite point, if so: status and message."""
    if slope <= chosen.gtol:
        return CONVERGED, f"The gradient is within gtol = {chosen.gtol:g}."
    spread = max(recent) - min(recent) if len(recent) > WINDOW else math.inf
    if chosen.ftol is not None and spread <= chosen.ftol * max(1.0, abs(recent[-1])):
        return CONVERGED, f"The values of {WINDOW} steps are within ftol = {chosen.ftol:g}."
    if nit >= chosen.maxiter:
        return MAXITER, f"All {nit} steps are done, without convergence."
    return None


def _teller(callback: Function | None, result: Any) -> Callable[[Array, float], bool]:
    """A function that calls the callback, of either form, and returns whether to continue."""
    if callback is None:
        return lambda x, f: True
    try:
        named = set(inspect.signature(callback).parameters) == {"intermediate_result"}
    except ValueError:  # some built-in functions have no signature
        named = False

    def tell(x: Array, f: float) -> bool:
        try:
            if named:
                callback(intermediate_result=result(x=x.copy(), fun=f))
            else:
                callback(x.copy())
        except StopIteration:
            return False
        return True

    return tell


def _box(bounds: Any, n: int) -> tuple[Array, Array]:
    """Lower and upper bounds of n variables. Raises ValueError."""
    if bounds is None:
        return np.full(n, -math.inf), np.full(n, math.inf)
    if hasattr(bounds, "lb"):
        low, high = bounds.lb, bounds.ub
    else:
        pairs = list(bounds)
        if len(pairs) != n:
            raise ValueError(f"bounds has {len(pairs)} pairs for {n} variables")
        low = [-math.inf if a is None else a for a, _ in pairs]
        high = [math.inf if b is None else b for _, b in pairs]
    lower, upper = (np.broadcast_to(np.asarray(x, np.float64), n) for x in (low, high))
    wrong = np.flatnonzero(~(lower <= upper))
    if wrong.size:
        i = wrong[0]
        raise ValueError(f"bounds of variable {i}: {lower[i]} to {upper[i]}; expected low <= high")
    return lower, upper


def _rule(rule: type[Optimizer] | str) -> type[Optimizer]:
    if isinstance(rule, str):
        if rule.lower() not in RULES:
            raise ValueError(f"rule {rule!r}: expected one of {', '.join(RULES)}")
        rule = RULES[rule.lower()]
    if not (isinstance(rule, type) and issubclass(rule, Optimizer)):
        raise TypeError(f"rule = {rule!r}: expected an optimizer's class, such as st.Adam, or name")
    if rule.least_axes > 1:
        raise ValueError(
            f"{rule.__name__} is for matrices; a point is a vector, which it leaves to AdamW: give "
            "'adamw'"
        )
    return rule
