import copy
import doctest
import gc
import inspect
import math
import pickle
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from faults import interrupted_at
from scipy.optimize import line_search, minimize, rosen, rosen_der
from sklearn.datasets import load_breast_cancer

import steepest as st
from steepest import codecs
from steepest.optimizers import RULES, lbfgs
from steepest.optimizers.lbfgs import line_search as search_module
from steepest.optimizers.lbfgs import vectors
from steepest.optimizers.lbfgs.line_search import Point, StrongWolfe, cubic

WOLFE = "strong_wolfe"
SEARCHES = [None, WOLFE]
SHORT = [np.dtype(ml_dtypes.bfloat16), codecs.BFLOAT16, np.dtype(np.float16)]

# The functions: value and gradient, and where to begin


def rosenbrock(x):
    return float(rosen(x)), rosen_der(x)


def quadratic(condition, n=30):
    """An ellipsoid with axes in directions of their own."""
    rng = np.random.default_rng(1)
    turned = np.linalg.qr(rng.standard_normal((n, n)))[0]
    a = (turned * np.geomspace(1, condition, n)) @ turned.T
    a = (a + a.T) / 2
    b = rng.standard_normal(n)
    return lambda x: (float(x @ (a @ x) / 2 - b @ x), a @ x - b)


def logistic():
    """Logistic regression with a little weight decay."""
    x, y = load_breast_cancer(return_X_y=True)
    x = np.c_[(x - x.mean(0)) / x.std(0), np.ones(len(x))]
    sign = 2.0 * y - 1

    def both(w):
        margin = sign * (x @ w)
        p = 1 / (1 + np.exp(margin))
        loss = np.logaddexp(0, -margin).mean() + 5e-4 * w @ w
        return float(loss), -(x.T @ (sign * p)) / len(y) + 1e-3 * w

    return both


PROBLEMS = {
    "rosenbrock2": (rosenbrock, np.array([-1.2, 1.0])),
    "rosenbrock20": (rosenbrock, np.tile([-1.2, 1.0], 10)),
    "round": (quadratic(10.0), np.zeros(30)),
    "long": (quadratic(1e6), np.zeros(30)),
    "logistic": (logistic(), np.zeros(31)),
}

OTHER = {
    "lr": 0.5, "max_iter": 7, "max_eval": 11, "tolerance_grad": 1e-4, "tolerance_change": 1e-6,
    "history_size": 3,
}  # fmt: skip


def run(function, x, calls, **arguments):
    """Where the function was evaluated, the losses returned, and the optimizer."""
    points = []
    opt = st.LBFGS(x, **arguments)

    def closure():
        points.append(x.copy())
        return function(x)

    return points, [opt.step(closure) for _ in range(calls)], opt


def same(a, b):
    """Whether two state dicts are equal to the last bit."""
    assert a.keys() == b.keys()
    for key in a.keys() - {"state"}:
        assert a[key] == b[key], key
    assert a["state"].keys() == b["state"].keys()
    for name, own in a["state"].items():
        assert own.keys() == b["state"][name].keys()
        for key, x in own.items():
            np.testing.assert_array_equal(x, b["state"][name][key], strict=True)
    return True


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_maximizing_is_minimizing_the_negative(problem, search):
    function, x0 = PROBLEMS[problem]

    def negative(x):
        loss, g = function(x)
        return -loss, -g

    x, y = x0.copy(), x0.copy()
    expected, losses, _ = run(function, x, 2, line_search_fn=search, max_iter=5)
    points, found, opt = run(negative, y, 2, line_search_fn=search, max_iter=5, maximize=True)
    np.testing.assert_array_equal(points, expected)
    np.testing.assert_array_equal(y, x)
    assert found == [-loss for loss in losses]
    assert opt.param_groups[0]["maximize"] is True


def test_a_loss_of_minus_infinity_is_told_as_it_is():
    opt = st.LBFGS(np.ones(1), maximize=True)
    with pytest.raises(FloatingPointError, match="the loss is -inf in evaluation 1"):
        opt.step(lambda: (-math.inf, np.ones(1)))


def test_a_state_from_before_maximize_loads():
    opt = st.LBFGS(np.ones(1))
    state = opt.state_dict()
    del state["param_groups"][0]["maximize"]
    other = st.LBFGS(np.ones(1))
    other.load_state_dict(state)
    assert other.param_groups[0]["maximize"] is False


@pytest.mark.torch
@pytest.mark.parametrize("search", SEARCHES)
def test_maximizing_is_pytorchs(search):
    torch = pytest.importorskip("torch")
    if "maximize" not in inspect.signature(torch.optim.LBFGS).parameters:
        assert torch.__version__ < "2.15"
        return
    function, x0 = PROBLEMS["round"]
    twin = Twin(lambda x: tuple(-v for v in function(x)), x0, line_search_fn=search, maximize=True)
    x = x0.copy()
    opt = st.LBFGS(x, line_search_fn=search, maximize=True)
    loss = opt.step(lambda: tuple(-v for v in function(x)))
    assert loss == pytest.approx(twin.step(), rel=1e-12)
    np.testing.assert_allclose(x, twin.value(), rtol=0, atol=1e-12 * np.abs(x).max())


# Against PyTorch


class Twin:
    """torch.optim.LBFGS over the same function, in float64."""

    def __init__(self, function, x0, **arguments):
        self.torch = pytest.importorskip("torch")
        self.x = self.torch.tensor(x0, requires_grad=True)
        self.opt = self.torch.optim.LBFGS([self.x], **arguments)
        self.function, self.points = function, []

    def value(self):
        return self.x.detach().numpy().copy()

    def closure(self):
        x = self.value()
        self.points.append(x)
        loss, g = self.function(x)
        self.x.grad = self.torch.from_numpy(np.array(g))
        return self.torch.tensor(loss, dtype=self.torch.float64)

    def step(self):
        return float(self.opt.step(self.closure))

    @property
    def state(self):
        return self.opt.state[self.x]

    def state_dict(self, like):
        """The state in this library's form."""
        s = self.state
        old = {key: np.array([x.numpy() for x in s[key]]) for key in ("old_dirs", "old_stps")}
        flat = {"d": s["d"].numpy(), "prev_grad": s["prev_flat_grad"].numpy()}
        return like.state_dict() | {
            "func_evals": s["func_evals"], "n_iter": s["n_iter"], "t": float(s["t"]),
            "H_diag": float(s["H_diag"]), "prev_loss": float(s["prev_loss"]),
            "ro": [float(x) for x in s["ro"]], "state": {"0": flat | old},
        }  # fmt: skip


# Calls, and evaluations of the long ellipsoid, after which rounding errors, which grow with every
# iteration where the function is long and narrow, are still within 1e-9 of the largest coordinate.
# That they are rounding errors is what the next test shows.
LONG = 12
CALLS = {"rosenbrock2": 2, "rosenbrock20": 1, "round": 2, "long": 1, "logistic": 4}


@pytest.mark.torch
@pytest.mark.parametrize("arguments", [{}, OTHER], ids=["defaults", "others"])
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_evaluations_are_pytorchs(problem, search, arguments):
    """The same points in the same number; 1e-12 for the well-conditioned."""
    function, x0 = PROBLEMS[problem]
    calls = CALLS[problem] if not arguments else 4
    twin = Twin(function, x0, line_search_fn=search, **arguments)
    first = [twin.step() for _ in range(calls)]
    x = x0.copy()
    points, losses, opt = run(function, x, calls, line_search_fn=search, **arguments)
    assert len(points) == len(twin.points) == opt.func_evals == twin.state["func_evals"]
    assert opt.n_iter == twin.state["n_iter"]
    tight = 1e-12 if problem in ("round", "logistic") else 1e-9
    compared = LONG if problem == "long" else None
    for mine, theirs in list(zip(points, twin.points, strict=True))[:compared]:
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=tight * np.abs(theirs).max())
    np.testing.assert_allclose(losses, first, rtol=1e-7 if problem == "long" else tight, atol=tight)


@pytest.mark.torch
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_step_from_pytorchs_state_is_pytorchs(problem, search):
    """From the same state, all along the way: errors have no time to grow.

    A step from a state of PyTorch's has three iterations; the condition number of 1e6 alone makes
    of a rounding error, 1e-16, up to 1e-10.
    """
    function, x0 = PROBLEMS[problem]
    twin = Twin(function, x0, max_iter=3, max_eval=20, line_search_fn=search)
    x = x0.copy()
    opt = st.LBFGS(x, max_iter=3, max_eval=20, line_search_fn=search)
    for _ in range(30):
        twin.step()
        opt.step(lambda: function(x))
        assert (opt.func_evals, opt.n_iter) == (twin.state["func_evals"], twin.state["n_iter"])
        there = twin.value()
        tolerance = 1e-9 if problem == "long" else 1e-11
        np.testing.assert_allclose(x, there, rtol=0, atol=tolerance * np.abs(there).max())
        x[...] = there
        opt.load_state_dict(twin.state_dict(opt))


@pytest.mark.torch
@pytest.mark.parametrize("trials", [0, 1, 3, 25])
def test_the_line_search_tries_the_steps_of_pytorchs(trials):
    """On waves of random frequencies over a parabola: all turns of the search occur."""
    torch = pytest.importorskip("torch")
    torchs = pytest.importorskip("torch.optim.lbfgs")
    rng = np.random.default_rng(trials)
    most = 0
    for _ in range(150):
        height, phase, first = rng.normal(size=3), rng.uniform(0, 6, 3), 10 ** rng.uniform(-4, 1)
        frequency = 10 ** rng.uniform(-1, 1.5, 3)

        def wave(t, height=height, phase=phase, frequency=frequency):
            angle = frequency * t + phase
            loss = float(height @ np.sin(angle)) + 0.05 * t * t
            return loss, float(height @ (frequency * np.cos(angle))) + 0.1 * t

        loss, slope = wave(0.0)
        if slope >= 0:
            continue
        mine, theirs = [], []

        def evaluate(t, wave=wave, mine=mine):
            mine.append(t)
            return Point(t, wave(t)[0], np.empty(0), wave(t)[1])

        def torch_evaluate(x, t, d, wave=wave, theirs=theirs):
            theirs.append(float(t))
            f, s = wave(float(t))
            return f, torch.tensor([s], dtype=torch.float64)

        g = torch.tensor([slope], dtype=torch.float64)
        ones = torch.ones(1, dtype=torch.float64)
        _, _, t, count = torchs._strong_wolfe(
            torch_evaluate, None, first, ones, loss, g, g.dot(ones), max_ls=trials
        )
        start = Point(0.0, loss, np.empty(0), slope)
        search = StrongWolfe(evaluate, start, 1.0, 1e-9, trials, lambda point: None)
        found = search.search(first)
        assert search.evaluations == count == len(mine)
        np.testing.assert_allclose(mine, theirs, rtol=1e-9)
        np.testing.assert_allclose(found.t, float(t), rtol=1e-9)
        most = max(most, count)
    assert min(trials, 6) < most <= trials + 1


@pytest.mark.torch
def test_where_pytorch_goes_on_after_nan_the_search_turns_back():
    """x - log x from 3, with a first step that leads to -11/3: PyTorch takes longer ones."""

    def function(x):
        with np.errstate(invalid="ignore"):
            return float((x - np.log(x)).sum()), 1 - 1 / x

    arguments = {"lr": 10.0, "line_search_fn": WOLFE}
    twin = Twin(function, np.array([3.0]), **arguments)
    twin.step()
    assert twin.value()[0] < -1e6
    x = np.array([3.0])
    points, _, _ = run(function, x, 1, **arguments)
    np.testing.assert_allclose(points[1], -11 / 3, rtol=1e-15)
    np.testing.assert_allclose(x, 1.0, atol=1e-4)


@pytest.mark.torch
def test_a_direction_that_was_not_taken_is_no_step():
    """Where the first direction is no descent, PyTorch yet remembers a step along it."""
    slopes = iter([1e-5, 1.0])

    def function(x):  # another batch, another gradient
        return 0.0, np.array([next(slopes)])

    twin = Twin(function, np.array([0.0]), tolerance_change=1e-6, max_iter=1)
    twin.step()
    assert twin.value() == 0.0 and float(twin.state["t"]) > 0
    slopes = iter([1e-5, 1.0])
    x = np.zeros(1)
    _, _, opt = run(function, x, 1, tolerance_change=1e-6, max_iter=1)
    assert x == 0.0 and opt.state_dict()["t"] == 0.0


@pytest.mark.torch
@pytest.mark.parametrize(
    "arguments", [{"history_size": 0}, {"max_eval": 0, "line_search_fn": WOLFE}], ids=str
)
def test_arguments_that_break_pytorch_are_refused(arguments):
    function, x0 = PROBLEMS["rosenbrock2"]
    twin = Twin(function, x0, **arguments)
    with pytest.raises((IndexError, UnboundLocalError)):
        twin.step()
    with pytest.raises(ValueError, match="expected 1 or more"):
        st.LBFGS(x0.copy(), **arguments)


@pytest.mark.torch
def test_a_model_of_pytorchs():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1).double()
    x = torch.randn(20, 3, dtype=torch.float64)
    y = x @ torch.tensor([[1.0], [2.0], [-3.0]], dtype=torch.float64) + 0.5
    opt = st.LBFGS(dict(model.named_parameters()), line_search_fn=WOLFE)

    def closure():
        model.zero_grad()
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        return loss, {name: p.grad for name, p in model.named_parameters()}

    opt.step(closure)
    # from a loss within tolerance_change = 1e-9 of 0
    np.testing.assert_allclose(model.weight.detach().numpy(), [[1, 2, -3]], atol=1e-4)


# Against SciPy


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_minimum_is_that_of_l_bfgs_b(problem):
    function, x0 = PROBLEMS[problem]
    options = {"maxiter": 300, "ftol": 0, "gtol": 1e-7}
    theirs = minimize(function, x0, jac=True, method="L-BFGS-B", options=options)
    x = x0.copy()
    _, _, opt = run(
        function, x, 1, max_iter=300, tolerance_change=0, tolerance_grad=1e-7, line_search_fn=WOLFE
    )
    # 31 slopes of 1e-7 where the least curvature is 1e-3: 31 · 1e-14 / 2e-3 above the minimum.
    assert function(x)[0] <= theirs.fun + 2e-10
    if problem != "long":  # there neither comes to so small a gradient: it is 1e6 rounding errors
        assert np.abs(function(x)[1]).max() <= 1e-7
        np.testing.assert_allclose(x, theirs.x, atol=1e-7 / 1e-3)  # the least curvature is 1e-3
    assert opt.func_evals < 1.5 * theirs.nfev


def test_a_search_at_the_limit_of_rounding_ends():
    """There no step is flat enough; PyTorch spends all of max_eval on one search."""
    function, x0 = PROBLEMS["round"]
    arguments = {"max_iter": 2000, "tolerance_change": 0, "tolerance_grad": 0}
    _, _, opt = run(function, x0.copy(), 1, **arguments, line_search_fn=WOLFE)
    assert opt.func_evals < 200


@pytest.mark.parametrize("first", [1e-4, 0.02, 1.0, 50.0])
def test_the_line_search_meets_the_conditions(first):
    """Whatever step it begins with, on Rosenbrock's function down the gradient."""
    x, f, g = np.array([-1.2, 1.0]), *rosenbrock(np.array([-1.2, 1.0]))
    d = -g / np.abs(g).sum()

    def evaluate(t):
        value, slope = rosenbrock(x + t * d)
        return Point(t, value, slope, float(slope @ d))

    start = Point(0.0, f, g, float(g @ d))
    dropped = []
    search = StrongWolfe(evaluate, start, 1.0, 1e-9, 25, dropped.append)
    found = search.search(first)
    assert found.f <= f + 1e-4 * found.t * start.slope
    assert abs(found.slope) <= 0.9 * abs(start.slope)
    assert found is not start
    assert len(dropped) == search.evaluations - 1  # all other points were let go
    assert not any(point is found for point in dropped)
    assert line_search(rosen, rosen_der, x, d)[0] is not None  # SciPy finds one too


def test_a_search_without_trials_takes_the_lower_of_two():
    def search(first):
        def evaluate(t):
            return Point(t, (t - 1) ** 2, np.empty(0), 2 * (t - 1))

        searching = StrongWolfe(evaluate, evaluate(0.0), 1.0, 1e-9, 0, lambda point: None)
        return searching.search(first).t, searching.evaluations

    assert search(1.5) == (1.5, 1)
    assert search(2.5) == (0.0, 1)


def test_an_interval_too_short_to_matter_ends_the_search():
    def evaluate(t):
        return Point(t, abs(t - 1e-3), np.empty(0), math.copysign(1.0, t - 1e-3))

    search = StrongWolfe(evaluate, evaluate(0.0), 1.0, 0.1, 100, lambda point: None)
    assert search.search(1.0).t < 0.1
    assert search.evaluations < 5


@pytest.mark.parametrize("swapped", [False, True])
def test_cubic_finds_the_minimum_of_a_cubic(swapped):
    def point(t):  # minimum at 2, maximum at -1
        return Point(t, t**3 / 3 - t**2 / 2 - 2 * t, np.empty(0), t**2 - t - 2)

    a, b = point(0.0), point(3.0)
    if swapped:
        a, b = b, a
    assert cubic(a, b, 0.0, 3.0) == pytest.approx(2.0, rel=1e-15)
    assert cubic(a, b, 2.5, 3.0) == 2.5
    assert cubic(a, b, 0.0, 1.0) == 1.0


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((0.0, 0.0, 1.0), (1.0, 1.0, 1.0)),  # a line
        ((0.0, 1.0, -1.0), (1.0, math.inf, math.nan)),
        ((0.0, 1.0, -1.0), (1.0, math.inf, -1.0)),
        ((0.0, 1.0, 0.0), (1.0, 1.0, 0.0)),  # flat: 0 / 0
        ((1.0, 1.0, -1.0), (1.0, 1.0, -1.0)),  # one point
    ],
)
def test_cubic_takes_the_middle_otherwise(a, b):
    points = [Point(t, f, np.empty(0), slope) for t, f, slope in (a, b)]
    assert cubic(*points, 2.0, 4.0) == 3.0


# The vectors


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 100_003])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums(size, dtype):
    rng = np.random.default_rng(size)
    x, y = rng.standard_normal((2, size)).astype(dtype)
    products = x.astype(np.longdouble) * y
    # Each block's sum is of one type, with an error of far less than 4096 of its units.
    bound = 16 * np.finfo(dtype).eps * float(np.abs(products).sum())
    assert abs(vectors.dot(x, y) - float(products.sum())) <= bound
    assert vectors.largest(x) == (float(np.abs(x).max()) if size else 0.0)
    np.testing.assert_allclose(vectors.total(x), math.fsum(np.abs(x).tolist()), rtol=1e-12)
    expected = x + dtype(0.3) * y
    vectors.add_scaled(x, 0.3, y)
    np.testing.assert_array_equal(x, expected, strict=True)


def test_a_long_float32_sum_is_as_good_as_its_blocks():
    """One float32 sum of this would be off by more than 1e-5."""
    x = np.random.default_rng(0).random(4_000_000, dtype=np.float32)
    exact = float((x.astype(np.float64) ** 2).sum())
    assert abs(vectors.dot(x, x) - exact) < 1e-8 * exact


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("scale", [1e-300, 1e150, 1e300])
def test_numbers_that_overflow_end_in_a_finite_point(search, scale):
    """Without a warning; what cannot be computed is no step."""
    x = np.array([1.0, 2.0, -3.0])
    opt = st.LBFGS(x, line_search_fn=search)

    def closure():
        with np.errstate(all="ignore"):
            return float(scale * (x @ x) / 2), scale * x

    for _ in range(3):
        opt.step(closure)
    assert np.isfinite(x).all() and np.linalg.norm(x) <= np.sqrt(14) * (1 + 1e-15)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_largest(bad):
    assert not math.isfinite(vectors.largest(np.array([1.0, bad, 2.0])))


def test_rows_are_used_again():
    rows = vectors.Rows(5, np.dtype(np.float32))
    a, b = rows.take(), rows.take()
    assert a.__array_interface__["data"][0] % 64 == 0
    rows.give(a)
    assert rows.take() is a
    rows.begin([a])
    rows.give(a)  # kept
    assert rows.take() is b
    assert rows.take() is not a


# Parameters and gradients of any form


@pytest.mark.parametrize("search", SEARCHES)
def test_structures_are_one_vector(search):
    """Arrays, lists, dicts, nested, strided, of no elements: the same bits."""
    function, x0 = PROBLEMS["rosenbrock20"]
    whole = x0.copy()
    run(function, whole, 3, line_search_fn=search)
    memory = np.zeros((6, 8))
    p = {"a": [memory[::2, 1::2], x0[12:15].copy()], "none": np.zeros((0, 3)), "z": x0[15:].copy()}
    p["a"][0][...] = x0[:12].reshape(3, 4)
    opt = st.LBFGS(p, line_search_fn=search)

    def closure():
        flat = np.concatenate([p["a"][0].ravel(), p["a"][1], p["z"]])
        loss, g = function(flat)
        return loss, {
            "a": [np.asfortranarray(g[:12].reshape(3, 4)), g[12:15]],
            "none": None, "z": g[:14:-1][::-1],
        }  # fmt: skip

    for _ in range(3):
        opt.step(closure)
    np.testing.assert_array_equal(p["a"][0].ravel(), whole[:12])
    np.testing.assert_array_equal(p["a"][1], whole[12:15])
    np.testing.assert_array_equal(p["z"], whole[15:])
    assert opt.param_groups[0]["param_names"] == ["a.0", "a.1", "none", "z"]
    assert opt.state["a.0"]["d"].shape == (3, 4)
    assert opt.state["none"]["old_dirs"].shape[1:] == (0, 3)
    assert not memory[1::2].any() and not memory[:, ::2].any()


def test_one_group_with_its_own_arguments():
    x = np.array([-1.2, 1.0])
    opt = st.LBFGS([{"params": [x], "max_iter": 4}])
    group = opt.param_groups[0]
    group["note"] = "mine"
    assert (group["max_iter"], group["max_eval"], group["note"]) == (4, 5, "mine")
    opt.step(lambda: (rosenbrock(x)[0], [[rosenbrock(x)[1]]]))
    assert opt.n_iter == 4
    with pytest.raises(ValueError, match="one group of parameters, not 2"):
        st.LBFGS([{"params": [np.zeros(1)]}, {"params": [np.zeros(1)]}])
    with pytest.raises(ValueError, match="one group"):
        opt.add_param_group({"params": [np.zeros(1)]})


def test_a_gradient_of_none_is_zeros():
    x, y = np.array([1.0]), np.array([5.0])
    opt = st.LBFGS([x, y])
    opt.step(lambda: (float(x[0] ** 2), [2 * x, None]))
    assert abs(x[0]) < 1e-4 and y == 5.0
    assert opt.step(lambda: (3.0, None)) == 3.0  # at a minimum already
    assert (opt.state["1"]["old_stps"] == 0).all()


@pytest.mark.parametrize("search", SEARCHES)
def test_nothing_to_optimise(search):
    opt = st.LBFGS(np.zeros((0, 2)), line_search_fn=search)
    assert opt.step(lambda: (1.0, np.zeros((0, 2)))) == 1.0
    assert (opt.func_evals, opt.n_iter, opt.updates) == (1, 0, 1)


@pytest.mark.parametrize("search", SEARCHES)
def test_float32(search):
    """Vectors of its type; the minimum as exact as the type allows."""
    function, x0 = PROBLEMS["round"]
    exact = x0.copy()
    run(function, exact, 10, line_search_fn=search)
    x = x0.astype(np.float32)
    opt = st.LBFGS(x, line_search_fn=search)

    def closure():
        loss, g = function(x.astype(np.float64))
        return loss, g.astype(np.float32)

    for _ in range(10):
        opt.step(closure)
    np.testing.assert_allclose(x, exact, atol=2e-5)  # 4 digits more than 1/√eps in float32
    assert opt.state["0"]["d"].dtype == np.float32


def test_both_types_together():
    """The vector is float64; each parameter keeps its type, and is rounded to it once."""
    a, b = np.array([-1.2], np.float32), np.array([1.0])
    opt = st.LBFGS({"a": a, "b": b}, max_iter=60, line_search_fn=WOLFE)

    def closure():
        loss, g = rosenbrock(np.array([float(a[0]), b[0]]))
        return loss, {"a": g[:1].astype(np.float32), "b": g[1:]}

    opt.step(closure)
    np.testing.assert_allclose([a[0], b[0]], 1.0, atol=1e-3)
    assert opt.state["a"]["old_dirs"].dtype == np.float64


def coarse(function, dtype):
    """The function over numbers of float32, with gradients rounded to a format."""

    def both(numbers):
        loss, g = function(numbers.astype(np.float64))
        return loss, codecs.encoded(g, dtype)

    return both


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("dtype", SHORT, ids=str)
def test_parameters_of_16_bits_are_float32_rounded_once(dtype, search):
    """To the bit: float32 vectors, of a function that sees them rounded. Each step begins at the
    rounded numbers."""
    for problem in ("rosenbrock20", "round", "logistic"):
        function, x0 = PROBLEMS[problem]
        function = coarse(function, dtype)
        short = codecs.encoded(x0 + 0.3, dtype)
        whole = codecs.decoded(short, np.float32)

        def rounded(whole=whole):
            return codecs.decoded(codecs.encoded(whole, dtype), np.float32)

        def there(function=function, rounded=rounded):
            loss, g = function(rounded())
            return loss, codecs.decoded(g, np.float32)

        arguments = {"line_search_fn": search, "max_iter": 6}
        opt, twin = st.LBFGS(short, **arguments), st.LBFGS(whole, **arguments)
        losses = []
        for _ in range(4):
            losses.append(
                opt.step(
                    lambda function=function, short=short: function(
                        codecs.decoded(short, np.float32)
                    )
                )
            )
            assert losses[-1] == twin.step(there)
            whole[...] = rounded()
            np.testing.assert_array_equal(codecs.decoded(short, np.float32), whole)
        assert same(opt.state_dict(), twin.state_dict())
        assert opt.state["0"]["old_dirs"].dtype == np.float32
        assert search is None or losses[-1] < losses[0]


@pytest.mark.parametrize("dtype", SHORT, ids=str)
def test_in_16_bits_it_comes_as_near_as_they_allow(dtype):
    """Curvatures are 1 to 10; gradients are as coarse as parameters. A distance of u units costs
    at most 10 / 2 u²."""
    function, x0 = PROBLEMS["round"]
    exact = x0.copy()
    run(function, exact, 5, line_search_fn=WOLFE)
    x = codecs.encoded(x0, dtype)
    opt = st.LBFGS(x, line_search_fn=WOLFE)
    short = coarse(function, dtype)
    for _ in range(10):
        opt.step(lambda: short(codecs.decoded(x, np.float32)))
    unit = np.abs(exact).max() * (2.0**-11 if dtype == np.float16 else 2.0**-8)
    found = codecs.decoded(x, np.float64)
    assert function(found)[0] - function(exact)[0] < 5 * len(x) * (2 * unit) ** 2


def test_all_types_together():
    """The vector is of the widest computing type, and each parameter is rounded to its own."""
    kinds = [*SHORT, np.dtype(np.float32)]
    for last in (np.float32, np.float64):
        params = [codecs.encoded(np.array([0.7]), kind) for kind in kinds] + [np.ones(1, last)]
        opt = st.LBFGS(params, max_iter=3)

        def closure(params=params):
            x = [codecs.decoded(p, np.float64) for p in params]
            return sum(float(v[0] ** 2) for v in x), [2 * v for v in x]

        assert opt.step(closure) > 1.0 > opt.step(closure)
        assert all(own["d"].dtype == last for own in opt.state.values())
        assert [p.dtype for p in params] == [*kinds, last]


def test_the_bits_of_bfloat16():
    """Arrays of uint16 hold them where dtype= says so, parameters and gradients alike."""
    numbers = np.array([3.0, -4.0], np.float32)
    bits = codecs.encoded(numbers, codecs.BFLOAT16).view(np.uint16)
    typed = numbers.astype(ml_dtypes.bfloat16)
    for x, dtype in ((bits, "bfloat16"), (typed, None)):
        opt = st.LBFGS({"w": x}, lr=0.3, max_iter=2, dtype=dtype)
        for _ in range(2):
            opt.step(lambda x=x: (1.0, {"w": x.copy()}))
    np.testing.assert_array_equal(bits, typed.view(np.uint16))
    assert (typed != numbers).all()
    with pytest.raises(TypeError, match="'0' has dtype uint16; expected float32, float64, bfloat"):
        st.LBFGS(bits)
    with pytest.raises(ValueError, match="dtype = 'float16': expected None, or \"bfloat16\""):
        st.LBFGS(bits, dtype="float16")


@pytest.mark.parametrize("dtype", SHORT, ids=str)
def test_after_an_error_16_bits_are_as_before(dtype):
    x = codecs.encoded(np.array([0.3, -0.0, 1e-40, 4.0]), dtype)
    before = x.view(np.uint16).copy()
    opt = st.LBFGS(x, max_iter=3)
    calls = iter(range(9))

    def closure():
        if next(calls) == 1:
            assert (x.view(np.uint16)[[0, 3]] != before[[0, 3]]).all()
            raise ZeroDivisionError
        return 1.0, np.float32([1.0, 0.0, 0.0, 1.0])

    with pytest.raises(ZeroDivisionError):
        opt.step(closure)
    np.testing.assert_array_equal(x.view(np.uint16), before)


@pytest.mark.torch
def test_a_model_of_pytorchs_in_bfloat16():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1).bfloat16()
    x = torch.randn(50, 3, dtype=torch.bfloat16)
    y = x @ torch.tensor([[1.0], [2.0], [-3.0]], dtype=torch.bfloat16) + 0.5
    opt = st.LBFGS(dict(model.named_parameters()), line_search_fn=WOLFE)

    def closure():
        model.zero_grad()
        loss = ((model(x).float() - y.float()) ** 2).mean()
        loss.backward()
        return loss, {name: p.grad for name, p in model.named_parameters()}

    first = opt.step(closure)
    assert closure()[0].item() < 1e-3 * first
    assert model.weight.dtype == torch.bfloat16
    # a unit of 3 is 1/64; activations of the model are rounded as well
    np.testing.assert_allclose(model.weight.detach().float().numpy(), [[1, 2, -3]], atol=1 / 16)


def test_a_gradient_may_be_the_parameter_itself():
    x = np.array([3.0, -4.0])
    st.LBFGS(x).step(lambda: (float(x @ x) / 2, x))
    np.testing.assert_allclose(x, 0.0, atol=1e-14)


def test_a_gradient_array_may_be_used_again():
    function, x0 = PROBLEMS["rosenbrock20"]
    x, y, g = x0.copy(), x0.copy(), np.zeros(20)
    run(function, x, 2, line_search_fn=WOLFE)

    def closure():
        loss, g[...] = function(y)
        return loss, g

    opt = st.LBFGS(y, line_search_fn=WOLFE)
    for _ in range(2):
        opt.step(closure)
    np.testing.assert_array_equal(x, y)


# Arguments


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lr": -1.0}, ValueError, "lr = -1.0: expected a finite number of at least 0"),
        ({"lr": "1"}, TypeError, "lr = '1': expected a finite number"),
        ({"max_iter": 0}, ValueError, "max_iter = 0: expected 1 or more"),
        ({"max_iter": 2.0}, TypeError, "max_iter = 2.0: expected an integer"),
        ({"max_iter": True}, TypeError, "max_iter = True: expected an integer"),
        ({"max_eval": 0}, ValueError, "max_eval = 0"),
        ({"history_size": 0}, ValueError, "history_size = 0"),
        ({"tolerance_grad": -1.0}, ValueError, "tolerance_grad = -1.0"),
        ({"tolerance_change": math.nan}, ValueError, "tolerance_change = nan"),
        ({"tolerance_change": None}, TypeError, "tolerance_change = None: expected a number"),
        ({"line_search_fn": "wolfe"}, ValueError, "line_search_fn = 'wolfe': expected None or"),
        ({"weight_decay": 0.1}, TypeError, "weight_decay"),
        ({"maximize": 1}, TypeError, "maximize = 1: expected True or False"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        st.LBFGS(np.zeros(2), **arguments)
    if error is ValueError:  # and when a group is changed
        opt = st.LBFGS(np.zeros(2))
        opt.param_groups[0] |= arguments
        with pytest.raises(error, match=message):
            opt.step(lambda: (0.0, np.zeros(2)))


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ([], ValueError, "params is empty"),
        (np.zeros(2, np.int64), TypeError, "parameter '0' has dtype int64"),
        ({"w": [1.0]}, TypeError, "parameter 'w.0' is a float"),
        ([np.zeros(2)] + [np.zeros(2).view()] * 2, ValueError, "share memory"),
        ({"a": {"b": np.zeros(1)}, "a.b": np.zeros(1)}, ValueError, "'a.b' is given twice"),
    ],
)
def test_wrong_parameters(params, error, message):
    with pytest.raises(error, match=message):
        st.LBFGS(params)


@pytest.mark.parametrize("name", OTHER)
def test_every_argument_changes_the_result(name):
    function, x0 = PROBLEMS["rosenbrock20"]
    value = {"tolerance_grad": 30.0, "tolerance_change": 0.5}.get(name, OTHER[name])
    x, y = x0.copy(), x0.copy()
    run(function, x, 1)
    run(function, y, 1, **{name: value})
    assert (x != y).any()


def test_the_rate_may_be_a_schedule():
    x, y = np.array([-1.2, 1.0]), np.array([-1.2, 1.0])
    opt = st.LBFGS(x, lr=st.schedules.linear(0.1, steps=4, end=0.5), max_iter=2)
    other = st.LBFGS(y, lr=0.0, max_iter=2)
    for lr in (0.1, 0.2, 0.3, 0.4):
        other.param_groups[0]["lr"] = lr
        opt.step(lambda: rosenbrock(x))
        other.step(lambda: rosenbrock(y))
        np.testing.assert_allclose(x, y, rtol=1e-14)  # of the schedule's own rounding


def test_a_history_that_was_made_shorter():
    function, x0 = PROBLEMS["rosenbrock20"]
    _, _, opt = run(function, x0.copy(), 1, line_search_fn=WOLFE, max_iter=8)
    assert len(opt.state_dict()["ro"]) == 7
    opt.param_groups[0]["history_size"] = 2
    x = opt.param_groups[0]["params"][0]
    opt.step(lambda: function(x))
    assert opt.state["0"]["old_dirs"].shape == opt.state["0"]["old_stps"].shape == (2, 20)


def test_a_small_move_ends_a_step_though_the_loss_falls_much():
    x = np.zeros(1)
    _, _, opt = run(lambda x: (1e6 * float(x[0]), np.array([1e6])), x, 1, lr=1e-3,
                    tolerance_change=0.01)  # fmt: skip
    assert opt.n_iter == 1 and opt.func_evals == 2
    np.testing.assert_allclose(x, -1e-3, rtol=1e-12)


@pytest.mark.parametrize(("scale", "kept"), [(1.0, True), (1e-11, False)])
def test_pairs_of_little_curvature_are_not_kept(scale, kept):
    """By PyTorch's absolute measure: a tiny loss is never learned."""
    _, _, opt = run(
        lambda x: (scale * float(x @ x) / 2, scale * x), np.full(2, 3.0), 1,
        max_iter=3, tolerance_grad=0, tolerance_change=0,
    )  # fmt: skip
    assert bool(opt.state_dict()["ro"]) == kept


def test_one_evaluation_more_than_max_eval():
    """The line search's; PyTorch's rule, too."""
    function, x0 = PROBLEMS["rosenbrock2"]
    _, _, opt = run(function, x0.copy(), 1, max_eval=4, lr=30.0, line_search_fn=WOLFE)
    assert opt.func_evals == 5
    _, _, opt = run(function, x0.copy(), 1, max_eval=4)
    assert opt.func_evals == 4


# A step is whole or not at all


def started(search=WOLFE, **arguments):
    """An optimizer in the middle of its way, its parameters and the function."""
    p = {"a": np.array([-1.2, 1.0]), "b": np.full(2, 0.5)}
    opt = st.LBFGS(p, line_search_fn=search, **{"max_iter": 3, "history_size": 2} | arguments)

    def closure():
        loss, g = rosenbrock(np.concatenate([p["a"], p["b"]]))
        return loss, {"a": g[:2], "b": g[2:]}

    opt.step(closure)
    return opt, p, closure


def spoiled(closure, after, spoil):
    """The closure, but what it returns after so many calls goes through `spoil`."""
    count = iter(range(1000))
    return lambda: spoil(*closure()) if next(count) >= after else closure()


def stop(loss, g):
    raise ZeroDivisionError("stop")


def with_b(value):
    return lambda loss, g: (loss, {"a": g["a"], "b": value})


FAULTS = {
    "raises": (stop, ZeroDivisionError, "stop"),
    "shape": (with_b(np.zeros(3)), ValueError, r"gradient of parameter 'b' has shape \(3,\)"),
    "dtype": (with_b(np.zeros(2, int)), TypeError, "gradient of parameter 'b' has dtype int64"),
    "list": (with_b([0.0, 0.0]), TypeError, "gradient of parameter 'b' is a list"),
    "keys": (lambda loss, g: (loss, {"a": g["a"]}), ValueError, r"missing \['b'\]"),
    "loss alone": (lambda loss, g: loss, TypeError, r"returned a float; expected \(loss, grad"),
    "no loss": (lambda loss, g: (None, g), TypeError, "a loss of type NoneType; expected one"),
    "losses": (lambda loss, g: (np.ones(2), g), TypeError, "a loss of type ndarray"),
}
NONFINITE = {
    "loss": (lambda loss, g: (math.nan, g), FloatingPointError, "the loss is nan in evaluation"),
    "gradient": (
        with_b(np.array([0.0, math.inf])), FloatingPointError,
        "gradient of parameter 'b' has an infinite or NaN element in evaluation",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "search", "after"),
    [(fault, search, after) for fault in FAULTS for search in SEARCHES for after in (0, 1, 2)]
    # a search turns back from these, as the next test shows
    + [(fault, None, after) for fault in NONFINITE for after in (0, 1, 2)]
    + [(fault, WOLFE, 0) for fault in NONFINITE],
)
def test_after_an_error_all_is_as_before(fault, search, after):
    spoil, error, message = (FAULTS | NONFINITE)[fault]
    opt, p, closure = started(search)
    before, state = copy.deepcopy(p), opt.state_dict()
    with pytest.raises(error, match=message):
        opt.step(spoiled(closure, after, spoil))
    np.testing.assert_equal(p, before)
    assert same(opt.state_dict(), state)
    twin, q, other = started(search)
    opt.step(closure)
    twin.step(other)
    np.testing.assert_equal(p, q)


@pytest.mark.parametrize("fault", NONFINITE)
def test_a_search_among_infinities_stays(fault):
    opt, p, closure = started()
    before = copy.deepcopy(p)
    opt.step(spoiled(closure, 1, NONFINITE[fault][0]))
    np.testing.assert_equal(p, before)
    assert opt.state_dict()["t"] == 0.0
    opt.step(closure)
    assert closure()[0] < rosenbrock(np.concatenate([before["a"], before["b"]]))[0]


@pytest.mark.parametrize("search", SEARCHES)
def test_ctrl_c_at_any_line(search):
    """Parameters and state are both old or both new."""
    outcomes = set()
    new, q, closure = started(search, max_iter=2)
    old = copy.deepcopy(q), new.state_dict()
    new.step(closure)
    for n in range(1, 10_000):
        opt, p, closure = started(search, max_iter=2)
        ended = interrupted_at(n, lambda opt=opt, closure=closure: opt.step(closure))
        done = opt.updates == 2
        outcomes.add((ended, done))
        expected, state = (q, new.state_dict()) if done else old
        np.testing.assert_equal(p, expected)
        assert same(opt.state_dict(), state)
        if not ended:
            break
    assert (True, False) in outcomes and (False, True) in outcomes


def test_the_function_may_not_step():
    opt, _, closure = started()
    with pytest.raises(RuntimeError, match="inside step"):
        opt.step(lambda: opt.step(closure))
    opt.step(closure)


def test_gradients_in_place_of_the_function():
    with pytest.raises(TypeError, match=r"step was given a ndarray; LBFGS needs a function"):
        st.LBFGS(np.zeros(2)).step(np.zeros(2))


@pytest.mark.parametrize("changed", ["shape", "type", "number", "shared"])
def test_parameters_that_were_exchanged(changed):
    opt, p, closure = started()
    opt.param_groups[0]["params"] = {
        "shape": [p["a"], np.zeros(3)], "type": [p["a"], np.zeros(2, np.float32)],
        "number": [p["a"]], "shared": [p["a"], p["a"]],
    }[changed]  # fmt: skip
    with pytest.raises(ValueError, match="parameter"):
        opt.step(closure)


@pytest.mark.parametrize("search", SEARCHES)
def test_memory_does_not_grow(search):
    n = 20_000
    scale, x = np.geomspace(1.0, 100.0, n), np.ones(n)

    def closure():
        return float((scale * x) @ x) / 2, scale * x

    tracemalloc.start()
    try:
        opt = st.LBFGS(x, max_iter=4, history_size=3, line_search_fn=search, tolerance_change=0)
        for _ in range(25):
            opt.step(closure)
        gc.collect()
        # Two for each old and new pair, then direction and gradient, old and new, and the search's.
        assert tracemalloc.get_traced_memory()[0] < (2 * (3 + 4) + 10) * x.nbytes
    finally:
        tracemalloc.stop()
    assert opt.n_iter > 50


# State


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("how", ["dict", "file", "pickle"])
@pytest.mark.parametrize("cut", [0, 1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_a_run_cut_in_two_has_the_same_bits(how, cut, search, dtype, tmp_path):
    x0 = PROBLEMS["rosenbrock20"][1].astype(dtype)

    def made(x0):
        p = {"a": x0[:7].reshape(7, 1).copy(), "none": np.zeros(0, dtype), "b": x0[7:].copy()}

        def closure():
            x = np.concatenate([p["a"][:, 0], p["b"]]).astype(np.float64)
            loss, g = rosenbrock(x)
            g = g.astype(dtype)
            return loss, {"a": g[:7, None], "none": p["none"], "b": g[7:]}

        rate = st.schedules.cosine(0.9, steps=20)
        return st.LBFGS(p, rate, max_iter=4, history_size=5, line_search_fn=search), p, closure

    whole, p, closure = made(x0)
    first, q, early = made(x0)
    for _ in range(6):
        whole.step(closure)
    for _ in range(cut):
        first.step(early)
    second, r, late = made(np.zeros_like(x0))
    if how == "pickle":
        second = pickle.loads(pickle.dumps(first))
        for x, name in zip(second.param_groups[0]["params"], r, strict=True):
            np.testing.assert_array_equal(x, q[name])
            r[name] = x
    elif how == "file":
        st.save(tmp_path / "run", first)
        st.load(tmp_path / "run", second)
    else:
        second.load_state_dict(first.state_dict())
        for name in r:
            r[name][...] = q[name]
    assert same(second.state_dict(), first.state_dict())
    for _ in range(6 - cut):
        second.step(late)
    np.testing.assert_equal(r, p)
    assert same(second.state_dict(), whole.state_dict())


def test_a_file_with_the_parameters_in_another_order(tmp_path):
    opt, p, _ = started()
    st.save(tmp_path / "run", opt)
    q = {"b": np.zeros(2), "a": np.zeros(2)}
    again = st.LBFGS(q)
    st.load(tmp_path / "run", again)
    np.testing.assert_equal(q, p)
    np.testing.assert_equal(again.state, opt.state)


def test_state_is_a_copy():
    opt, _, _ = started()
    state = opt.state_dict()
    for own in (opt.state, opt.state_dict()["state"]):
        own["a"]["d"][...] = 7
        own["b"]["old_dirs"][...] = 7
    assert same(opt.state_dict(), state)
    again, _, _ = started()
    again.load_state_dict(state)
    state["state"]["a"]["d"][...] = 7
    assert (again.state["a"]["d"] != 7).all()


def rewritten(state, changes):
    state = copy.deepcopy(state)
    own = state["state"]["b"]
    for key, value in changes.items():
        (own if key in own else state)[key] = value
    return state


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rule": "adam"}, ValueError, "state of rule 'adam' given to 'lbfgs'"),
        ({"d": np.zeros(3)}, ValueError, "state 'd' of parameter 'b' is float64 of shape"),
        ({"d": np.zeros(2, np.float32)}, ValueError, "is float32 of shape"),
        ({"old_dirs": np.zeros((7, 2))}, ValueError, "is float64 of shape .7, 2.; expected"),
        ({"n_iter": -1}, ValueError, "n_iter = -1: expected 0 or more"),
        ({"param_groups": []}, ValueError, "other parameter names"),
        ({"state": {"a": {}}}, KeyError, "b"),
        ({"state": {"a": {}, "b": {}}}, ValueError, "state of parameter 'a' has keys"),
    ],
)
def test_a_wrong_state_changes_nothing(changes, error, message):
    opt, _, _ = started()
    state = opt.state_dict()
    with pytest.raises(error, match=message):
        opt.load_state_dict(rewritten(state, changes))
    assert same(opt.state_dict(), state)


# Among the others


def test_it_is_no_rule_of_the_list():
    assert "lbfgs" not in RULES
    assert not issubclass(st.LBFGS, st.Optimizer)


@pytest.mark.parametrize("given", ["class", "object"])
def test_fit_says_why_not(given):
    p = {"w": np.zeros(2)}
    optimizer = st.LBFGS if given == "class" else st.LBFGS(p)
    with pytest.raises(TypeError, match="LBFGS evaluates the function itself"):
        st.fit(lambda p, x: 0.0, p, (np.zeros(3),), optimizer, epochs=1)


def test_what_is_shown():
    opt = st.LBFGS([np.zeros(2), np.zeros(3)], max_iter=8)
    assert repr(opt) == (
        "LBFGS(\n  group 0: 2 parameters, lr=1.0, max_iter=8, max_eval=10, tolerance_grad=1e-07, "
        "tolerance_change=1e-09, history_size=100, line_search_fn=None, maximize=False\n)"
    )


@pytest.mark.parametrize("module", [lbfgs, vectors, search_module])
def test_the_examples(module):
    failures, _ = doctest.testmod(module)
    assert failures == 0
