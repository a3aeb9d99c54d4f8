import copy
import doctest
import math
import pickle
import sys

import numpy as np
import pytest
from scipy.optimize import (
    Bounds,
    LinearConstraint,
    OptimizeResult,
    OptimizeWarning,
    basinhopping,
    dual_annealing,
    minimize,
    rosen,
    rosen_der,
)

import steepest as st
from steepest.extras import MissingExtra
from steepest.training import scipy_method as module
from steepest.training.scipy_method import scipy_method

A = np.diag([1.0, 3.0, 10.0]) + 0.3
B = np.array([1.0, -2.0, 0.5])
SOLUTION = np.linalg.solve(A, B)
SGD = scipy_method(st.SGD, lr=0.08, momentum=0.5)


def quadratic(x):
    return x @ A @ x / 2 - B @ x


def slope(x):
    return A @ x - B


def both(x):
    return quadratic(x), slope(x)


def nan_from(limit):
    """A parabola that is NaN beyond a limit, and its gradient."""

    def fun(x):
        return float(((x - 3) ** 2).sum()) if (x < limit).all() else math.nan

    return fun, lambda x: 2 * (x - 3)


# It finds minima


@pytest.mark.parametrize(
    ("rule", "hyper"),
    [
        ("sgd", {"lr": 1e-3, "momentum": 0.9, "nesterov": True}),
        ("adam", {"lr": 0.02}),
        (st.AdamW, {"lr": st.schedules.cosine(0.1, steps=3000)}),
        (st.Adamax, {"lr": 0.02}),
    ],
    ids=str,
)
def test_rosenbrock(rule, hyper):
    method = scipy_method(rule, steps=10_000, **hyper)
    result = minimize(rosen, [-1.2, 1.0], jac=rosen_der, method=method)
    assert result.success and result.status == 0
    # A gradient within 1e-5, in a valley whose least curvature is 0.4.
    np.testing.assert_allclose(result.x, 1.0, atol=2.5e-5 * 2)
    assert np.abs(result.jac).max() <= 1e-5


def test_a_quadratic():
    result = minimize(quadratic, np.ones(3), jac=slope, method=SGD)
    assert isinstance(result, OptimizeResult)
    assert result.keys() == {
        "x", "fun", "jac", "nit", "nfev", "njev", "success", "status", "message",
    }  # fmt: skip
    np.testing.assert_allclose(result.x, SOLUTION, atol=1e-5)
    assert result.fun == quadratic(result.x)
    np.testing.assert_array_equal(result.jac, slope(result.x))
    assert (result.success, result.status) == (True, 0)
    assert result.nfev == result.njev == result.nit + 1
    assert result.message == "The gradient is within gtol = 1e-05."


def test_least_squares():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 4))
    y = rng.normal(size=40)
    result = minimize(
        lambda w: ((x @ w - y) ** 2).mean(), np.zeros(4),
        jac=lambda w: 2 / 40 * x.T @ (x @ w - y),
        method=scipy_method("sgd", lr=0.3), tol=1e-12,
    )  # fmt: skip
    np.testing.assert_allclose(result.x, np.linalg.lstsq(x, y)[0], rtol=1e-10)


def test_the_steps_are_the_optimizers():
    path = [np.ones(3)]
    minimize(quadratic, path[0], jac=slope, method=scipy_method("adam", steps=20, lr=0.1),
             callback=path.append)  # fmt: skip
    x = np.ones(3)
    opt = st.Adam(x, lr=0.1)
    for seen in path[1:]:
        opt.step(slope(x))
        np.testing.assert_array_equal(seen, x)
    assert len(path) == 21


def test_decay_is_off_unless_given():
    start = np.ones(3)
    free = minimize(quadratic, start, jac=slope, method=scipy_method(st.AdamW, lr=0.05))
    np.testing.assert_allclose(free.x, SOLUTION, atol=1e-5)
    assert free.success
    bound = scipy_method(st.AdamW, lr=0.05, weight_decay=0.5)
    decayed = minimize(quadratic, start, jac=slope, method=bound)
    assert np.abs(decayed.x) @ np.ones(3) < np.abs(SOLUTION).sum() - 0.05


# Forms of arguments


@pytest.mark.parametrize(
    ("fun", "jac"), [(both, True), (quadratic, slope), (lambda x: [quadratic(x)], slope)]
)
def test_gradients_given_in_either_form(fun, jac):
    calls = []

    def counted(x, *args):
        calls.append(x)
        return fun(x, *args)

    result = minimize(counted, np.ones(3), jac=jac, method=SGD)
    expected = minimize(quadratic, np.ones(3), jac=slope, method=SGD)
    np.testing.assert_array_equal(result.x, expected.x)
    assert isinstance(result.fun, float)
    assert len(calls) == result.nfev == result.nit + 1


@pytest.mark.parametrize("jac", [None, False, "2-point"])
def test_without_a_gradient_there_are_differences(jac):
    points = []

    def fun(x):
        points.append(x)
        return quadratic(x)

    result = minimize(fun, np.ones(3), jac=jac, method=SGD)
    assert result.success
    np.testing.assert_allclose(result.x, SOLUTION, atol=1e-5)
    # Half a curvature of 10 times the step of 1.5e-8, and roundings of 1e-16 over the step.
    np.testing.assert_allclose(result.jac, slope(result.x), atol=3e-7)
    assert result.njev == result.nit + 1
    assert len(points) == result.nfev == 4 * result.njev


def test_the_step_of_the_differences():
    result = minimize(
        lambda x: x[0] ** 2 + x[1] ** 2, [1.0, -100.0], method=SGD,
        options={"eps": 1e-3, "maxiter": 0},
    )  # fmt: skip
    # Of x², (2 x h + h²) / h with h = 1e-3 max(1, |x|); roundings of 1e4 · 2e-16 over 1e-3.
    np.testing.assert_allclose(result.jac, [2 + 1e-3, -200 + 0.1], rtol=0, atol=2e-9)


@pytest.mark.parametrize("given", [(2.0, 5.0), [2.0, 5.0]])
def test_further_arguments(given):
    if isinstance(given, tuple):
        result = minimize(
            lambda x, a, b: ((x - a) ** 2).sum() + b, np.zeros(2), args=given,
            jac=lambda x, a, b: 2 * (x - a), method=SGD,
        )  # fmt: skip
    else:  # one argument, which SciPy puts into a tuple
        result = minimize(
            lambda x, c: ((x - c[0]) ** 2).sum() + c[1], np.zeros(2), args=given,
            jac=lambda x, c: 2 * (x - c[0]), method=SGD,
        )  # fmt: skip
    np.testing.assert_allclose(result.x, 2.0, atol=1e-5)
    assert result.fun == pytest.approx(5.0)


@pytest.mark.parametrize("x0", [[1, 1, 1], np.ones(3, int), np.ones(3, np.float32), (1.0,) * 3])
def test_starts(x0):
    before = copy.copy(x0)
    result = minimize(quadratic, x0, jac=slope, method=SGD)
    np.testing.assert_array_equal(x0, before)
    assert result.x.dtype == np.float64
    np.testing.assert_array_equal(
        result.x, minimize(quadratic, np.ones(3), jac=slope, method=SGD).x
    )


def test_a_number_as_start():
    result = minimize(lambda x: (x - 2) ** 2, 0.0, jac=lambda x: 2 * (x - 2), method=SGD)
    np.testing.assert_allclose(result.x, [2.0], atol=1e-5)


def test_the_start_and_the_function_are_left_alone():
    """A function may change its argument, and keep what it was given or gave."""
    start = np.ones(3)
    kept, grads = [], []

    def fun(x):
        value = quadratic(x)
        kept.append(x.copy())
        x[:] = math.nan
        return value

    def jac(x):
        grads.append(slope(x))
        x[:] = math.nan
        return grads[-1]

    result = minimize(fun, start, jac=jac, method=SGD)
    np.testing.assert_array_equal(start, 1.0)
    np.testing.assert_allclose(result.x, SOLUTION, atol=1e-5)
    for x, g in zip(kept, grads, strict=True):
        np.testing.assert_array_equal(g, slope(x))


# Callbacks


def test_both_forms_of_callback():
    points, results = [], []

    def new(intermediate_result):
        results.append(intermediate_result)

    for callback in (points.append, new):
        run = minimize(quadratic, np.ones(3), jac=slope, method=SGD, callback=callback)
    assert len(points) == len(results) == run.nit
    for x, result in zip(points, results, strict=True):
        np.testing.assert_array_equal(x, result.x)
        assert result.fun == quadratic(x)
    np.testing.assert_array_equal(points[-1], run.x)


def test_a_callback_may_stop_and_change_what_it_is_given():
    calls = 0

    def callback(x):
        nonlocal calls
        calls += 1
        x[:] = math.nan
        if calls == 3:
            raise StopIteration

    result = minimize(quadratic, np.ones(3), jac=slope, method=SGD, callback=callback)
    assert (result.nit, result.status, result.success) == (3, 99, False)
    assert result.message == "The callback raised StopIteration."
    assert result.fun == quadratic(result.x)


def test_other_exceptions_pass():
    def callback(x):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        minimize(quadratic, np.ones(3), jac=slope, method=SGD, callback=callback)


# Criteria


def test_the_most_steps():
    short = scipy_method("sgd", steps=5, lr=1e-3)
    result = minimize(quadratic, np.ones(3), jac=slope, method=short)
    assert (result.nit, result.status, result.success) == (5, 1, False)
    assert result.message == "All 5 steps are done, without convergence."
    for maxiter in (0, 7):
        result = minimize(
            quadratic, np.ones(3), jac=slope, method=short, options={"maxiter": maxiter}
        )
        assert (result.nit, result.nfev) == (maxiter, maxiter + 1)
    result = minimize(quadratic, np.ones(3), jac=slope, method=short, options={"maxiter": None})
    assert result.nit == 5


@pytest.mark.parametrize(
    ("tol", "options", "gtol"),
    [
        (None, {}, 1e-5),
        (1e-3, {}, 1e-3),
        (None, {"gtol": 1e-8}, 1e-8),
        (1e-3, {"gtol": 1e-8}, 1e-8),
    ],
)
def test_the_gradient_that_is_small_enough(tol, options, gtol):
    sizes = []

    def jac(x):
        sizes.append(np.abs(slope(x)).max())
        return slope(x)

    result = minimize(quadratic, np.ones(3), jac=jac, method=SGD, tol=tol, options=options)
    assert result.success
    assert sizes[-1] <= gtol < min(sizes[:-1])


def test_a_start_at_the_minimum():
    result = minimize(quadratic, SOLUTION, jac=slope, method=SGD)
    assert result.success and result.nit == 0 and result.nfev == 1
    np.testing.assert_array_equal(result.x, SOLUTION)


def test_values_that_settle():
    values = []

    def fun(x):
        values.append(quadratic(x))
        return values[-1]

    options = {"gtol": 0.0, "ftol": 1e-6}
    result = minimize(fun, np.ones(3), jac=slope, method=SGD, options=options)
    assert result.success and result.message == "The values of 10 steps are within ftol = 1e-06."

    def spread(end):
        return max(values[end - 11 : end]) - min(values[end - 11 : end])

    assert spread(len(values)) <= 1e-6 < spread(len(values) - 1)
    later = minimize(quadratic, np.ones(3), jac=slope, method=SGD, options={"gtol": 1e-12})
    assert later.nit > result.nit


def test_values_that_settle_are_relative_to_large_ones():
    def run(scale):
        return minimize(
            lambda x: scale + quadratic(x), np.ones(3), jac=slope, method=SGD,
            options={"gtol": 0.0, "ftol": 1e-6},
        ).nit  # fmt: skip

    assert run(1e6) < run(0.0)


# What is not finite


def test_a_function_that_becomes_nan():
    fun, jac = nan_from(2.0)
    result = minimize(fun, np.zeros(2), jac=jac, method=scipy_method("sgd", lr=0.2))
    # 0, 1.2, 1.92, 2.352
    assert (result.status, result.success, result.nit) == (2, False, 3)
    np.testing.assert_allclose(result.x, 1.92)
    assert result.fun == fun(result.x)
    np.testing.assert_array_equal(result.jac, jac(result.x))
    assert result.message == "After 3 steps fun is nan; x is the best point before."


def test_the_best_point_is_not_always_the_last():
    """Too long steps climb until the function overflows."""
    with np.errstate(over="ignore"):
        result = minimize(
            lambda x: float((x**2).sum()), [1.0], jac=lambda x: 2 * x,
            method=scipy_method("sgd", steps=5000, lr=1.5),
        )  # fmt: skip
    assert (result.status, result.fun) == (2, 1.0)
    assert result.x.tolist() == [1.0]
    assert "fun is inf" in result.message


def test_a_gradient_may_always_be_the_same_array():
    fun, jac = nan_from(2.0)
    buffer = np.zeros(2)

    def again(x):
        buffer[:] = jac(x)
        return buffer

    result = minimize(fun, np.zeros(2), jac=again, method=scipy_method("sgd", lr=0.2))
    buffer[:] = 0
    np.testing.assert_array_equal(result.jac, jac(result.x))


def test_a_start_that_is_not_finite():
    fun, jac = nan_from(-1.0)
    result = minimize(fun, np.zeros(2), jac=jac, method=SGD)
    assert (result.status, result.nit, result.njev) == (2, 0, 0)
    assert math.isnan(result.fun) and result.x.tolist() == [0.0, 0.0]
    assert result.message == "After 0 steps fun is nan; start elsewhere."


def test_a_gradient_that_is_not_finite():
    def jac(x):
        return 2 * (x - 3) if x[0] < 2 else np.full(1, math.inf)

    result = minimize(lambda x: (x[0] - 3) ** 2, 0.0, jac=jac, method=scipy_method("sgd", lr=0.2))
    assert (result.status, result.nit) == (2, 3)
    assert "the gradient is not finite" in result.message
    np.testing.assert_allclose(result.x, 1.92)


# Bounds


@pytest.mark.parametrize(
    "bounds",
    [
        [(None, 0.1), (0.0, None), (-1.0, 1.0)],
        Bounds([-np.inf, 0.0, -1.0], [0.1, np.inf, 1.0]),
        ([-1.0, 0.1], [0.0, 2.0], [-1.0, 1.0]),
    ],
    ids=["pairs", "Bounds", "lists"],
)
@pytest.mark.parametrize("jac", [slope, None])
def test_bounds(bounds, jac):
    seen = []

    def fun(x):
        seen.append(x)
        return quadratic(x)

    expected = minimize(quadratic, np.ones(3), jac=slope, bounds=bounds, method="L-BFGS-B")
    result = minimize(fun, np.ones(3), jac=jac, bounds=bounds, method=SGD)
    assert result.success
    np.testing.assert_allclose(result.x, expected.x, atol=2e-5)
    low, high = np.array([-np.inf, 0.0, -1.0]), np.array([0.1, np.inf, 1.0])
    assert all((x >= low).all() and (x <= high).all() for x in seen)
    assert (result.x[:2] == [0.1, 0.0]).all()


def test_bounds_that_leave_no_room():
    bounds = [(0.5, 0.5), (0.0, 1e-12), (None, None)]
    result = minimize(quadratic, np.zeros(3), bounds=bounds, method=SGD)
    assert result.success
    assert result.x[0] == 0.5 and 0 <= result.x[1] <= 1e-12
    rest = (B[2] - A[2, 0] * 0.5) / A[2, 2]
    np.testing.assert_allclose(result.x[2], rest, atol=1e-5)


def test_one_bound_for_all():
    result = minimize(quadratic, np.ones(3), jac=slope, bounds=Bounds(0.0, 0.05), method=SGD)
    np.testing.assert_array_equal(result.x[:2], [0.05, 0.0])


# Schedules and state


class Recorder:
    """A schedule that remembers, as those that watch a metric do."""

    def __init__(self):
        self.seen = []

    def observe(self, value):
        self.seen.append(value)

    def __call__(self, t):
        assert len(self.seen) == (t + 1 if self.seen else 0)
        return 0.1 / (1 + len(self.seen))


def test_schedules_that_watch_are_told_the_value_and_begin_anew():
    recorder = Recorder()
    method = scipy_method("sgd", lr=recorder)
    first = minimize(quadratic, np.ones(3), jac=slope, method=method, options={"maxiter": 9})
    again = minimize(quadratic, np.ones(3), jac=slope, method=method, options={"maxiter": 9})
    assert recorder.seen == []
    np.testing.assert_array_equal(first.x, again.x)
    x, values = np.ones(3), []
    for k in range(9):
        values.append(quadratic(x))
        x -= 0.1 / (2 + k) * slope(x)
    np.testing.assert_allclose(first.x, x, rtol=1e-13)


def test_schedules_see_the_step():
    lr = st.schedules.linear(0.1, steps=10)
    method = scipy_method("sgd", steps=10, lr=lr)
    result = minimize(quadratic, np.ones(3), jac=slope, method=method)
    x = np.ones(3)
    for t in range(10):
        x -= lr(t) * slope(x)
    np.testing.assert_allclose(result.x, x, rtol=1e-13)


def test_a_method_can_be_pickled():
    method = pickle.loads(pickle.dumps(SGD))
    result = minimize(quadratic, np.ones(3), jac=slope, method=method)
    np.testing.assert_allclose(result.x, SOLUTION, atol=1e-5)


# Inside global searches


def wavy(x):
    return float((x**2).sum() + 2 * np.sin(4 * x).sum())


def wavy_slope(x):
    return 2 * x + 8 * np.cos(4 * x)


LOWEST = -0.3695683  # of the waves, where 4 cos(4 x) = -x


def test_basinhopping():
    local = {"method": scipy_method("adam", lr=0.05, steps=500), "jac": wavy_slope}
    result = basinhopping(wavy, [2.0, -2.0], niter=15, stepsize=1.0, minimizer_kwargs=local, rng=1)
    np.testing.assert_allclose(result.x, LOWEST, atol=1e-3)
    assert result.lowest_optimization_result.success


def test_dual_annealing():
    bounds = [(-3.0, 3.0)] * 2
    method = scipy_method("sgd", lr=0.02, momentum=0.5, steps=200)
    local = {"method": method, "jac": wavy_slope, "bounds": bounds}
    result = dual_annealing(wavy, bounds, maxiter=100, minimizer_kwargs=local, rng=1)
    np.testing.assert_allclose(result.x, LOWEST, atol=1e-3)
    assert result.njev > 100


# Messages


def test_the_outcome_is_printed(capsys):
    result = minimize(quadratic, np.ones(3), jac=slope, method=SGD, options={"disp": True})
    assert capsys.readouterr().out.splitlines() == [
        "The gradient is within gtol = 1e-05.",
        f"    fun: {result.fun}",
        f"    nit: {result.nit}",
        f"    nfev: {result.nfev}",
        f"    njev: {result.njev}",
    ]
    minimize(quadratic, np.ones(3), jac=slope, method=SGD)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"hess": lambda x: A}, RuntimeWarning, "Method SGD does not use hess."),
        ({"hessp": lambda x, p: A @ p}, RuntimeWarning, "Method SGD does not use hessp."),
        ({"options": {"speed": 3, "c1": 1}}, OptimizeWarning, "Unknown solver options: c1, speed"),
    ],
)
def test_what_is_ignored_is_told(arguments, kind, message):
    with pytest.warns(kind, match=message) as caught:
        result = minimize(quadratic, np.ones(3), jac=slope, method=SGD, **arguments)
    assert result.success
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"constraints": LinearConstraint(np.eye(3), 0, 1)}, ValueError, "cannot handle constr"),
        ({"constraints": {"type": "eq", "fun": quadratic}}, ValueError, "use bounds, add a pen"),
        ({"bounds": [(0, 1)]}, ValueError, "bounds has 1 pairs for 3 variables"),
        ({"bounds": [(0, 1), (2, 1), (0, 1)]}, ValueError, "variable 1: 2.0 to 1.0; expected"),
        ({"bounds": Bounds([0, 0, math.nan], 1)}, ValueError, "variable 2: nan to 1.0"),
        ({"jac": lambda x: np.ones(2)}, ValueError, r"jac returned .* shape \(2,\); expected \(3,"),
        ({"options": {"maxiter": 1.5}}, TypeError, "maxiter = 1.5: expected an integer"),
        ({"options": {"maxiter": -1}}, ValueError, "maxiter = -1: expected 0 or more"),
        ({"options": {"eps": 0.0}}, ValueError, "eps = 0.0: expected a number > 2.2e-16"),
        ({"x0": np.ones(3) * 1j}, TypeError, "x0 is complex; expected real numbers"),
        ({"fun": slope}, ValueError, r"fun returned an array of shape \(3,\); expected one"),
    ],
)
def test_what_cannot_be_used(arguments, error, message):
    given = {"fun": quadratic, "x0": np.ones(3), "jac": slope, "method": SGD} | arguments
    with pytest.raises(error, match=message):
        minimize(**given)


@pytest.mark.parametrize(
    ("rule", "arguments", "error", "message"),
    [
        ("adamm", {}, ValueError, "rule 'adamm': expected one of sgd, "),
        (dict, {}, TypeError, "expected an optimizer's class, such as st.Adam, or name"),
        (st.Adam(np.zeros(1)), {}, TypeError, "expected an optimizer's class"),
        (st.Adam, {"steps": -1}, ValueError, "steps = -1: expected 0 or more"),
        (st.Adam, {"lr": -1.0}, ValueError, "lr"),
        (st.Adam, {"speed": 1}, TypeError, "Adam has no argument 'speed'"),
        (st.Adam, {"maximize": True}, TypeError, "'maximize': minimize -fun instead"),
        (st.Adam, {"ema": 0.9}, TypeError, "'ema': the result is the last point"),
        (st.Adam, {"nonfinite": "skip"}, TypeError, "'nonfinite': infinite and NaN gradients"),
    ],
    ids=str,
)
def test_what_is_no_method(rule, arguments, error, message):
    with pytest.raises(error, match=message):
        scipy_method(rule, **arguments)


def test_a_missing_scipy_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(MissingExtra, match=r"pip install scipy, or .* \[scipy\]"):
        SGD(quadratic, np.ones(3), jac=slope)


def test_examples():
    assert doctest.testmod(module).failed == 0
