"""Where NumPy is told to raise, what becomes too small to be told from 0 is no error."""

import numpy as np
import pytest

import steepest as st
from steepest import data, models
from steepest.models import initializers, losses
from steepest.models.networks import MLP
from steepest.optimizers import RULES
from steepest.options import average, clip, filters, regularize

TYPES = [np.float16, np.float32, np.float64]
LARGE = {np.float16: 40.0, np.float32: 150.0, np.float64: 1000.0}


@pytest.fixture(autouse=True)
def raising():
    with np.errstate(all="raise"):
        yield


def quietly(f):
    """What a function gives where nothing is raised."""
    with np.errstate(all="ignore"):
        return f()


def logits(dtype):
    big, tiny = LARGE[dtype], float(np.finfo(dtype).tiny)
    return np.array([[big, -big, 0.0], [-big, big, 0.0], [tiny, -tiny, 0.0]], dtype)


def same(f):
    np.testing.assert_array_equal(f(), quietly(f))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("table", [losses.LOSSES, losses.GRADIENTS], ids=["value", "gradient"])
def test_losses(dtype, table) -> None:
    z, classes = logits(dtype), np.array([0, 1, 0])
    small = z[2] * dtype(2)
    same(lambda: table["cross_entropy"](z, classes))
    same(lambda: table["cross_entropy"](z, classes, smoothing=0.25))
    same(lambda: table["logistic"](z[:, 0], classes))
    for name in ("squared", "absolute", "huber"):
        same(lambda name=name: table[name](small, np.zeros(3, dtype)))
    same(lambda: losses.sigmoid(z))
    same(lambda: losses.softmax(z))


def test_losses_still_overflow_aloud() -> None:
    with pytest.raises(FloatingPointError, match="overflow"):
        losses.squared(np.array([1e200]), np.array([0.0]))


NETS = [
    MLP((3, 4, 3), "classification"),
    MLP((3, 4, 3), "classification", activation="tanh"),
    MLP((3, 4, 1), "classification"),
    MLP((3, 4, 1), "regression"),
]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("size", ["tiny", "large"])
def test_models(dtype, net, size) -> None:
    large = LARGE[dtype] if net.task == "classification" else 4.0  # its square is within float16
    by = large if size == "large" else float(np.finfo(dtype).tiny)
    params = net.initial(0, dtype)
    params["layer1"]["weight"][:, 0] = 1.0
    x, y = np.full((2, 3), by / 4, dtype), np.array([0, 1])
    same(lambda: net.predict(params, x))
    if net.task == "classification":
        same(lambda: net.predict_proba(params, x))
    same(lambda: net.loss(params, x, y))
    value, grads = net.value_and_grad(params, x, y)
    again = quietly(lambda: net.value_and_grad(params, x, y))
    assert value == again[0] and grads.keys() == again[1].keys()


def test_measures() -> None:
    y = np.array([1e-200, 2e-200, 4e-200])
    same(lambda: models.rmse(y, 2 * y))
    same(lambda: models.r_squared(y, 2 * y))
    same(lambda: models.log_loss(np.array([[1.0, 1e-320], [0.5, 0.5]]), np.array([0, 1])))


def test_tables(tmp_path) -> None:
    path = tmp_path / "table.csv"
    rows = [f"{i % 3}e-200,{1e60 if i == 7 else i * 1e-3},{i / 8}" for i in range(60)]
    path.write_text("\n".join(["a,b,y", *rows]) + "\n")
    # Squares of the first column are below double; of the second, most are far below the largest.
    assert np.isfinite(data.table(path, "y", seed=1).train.x).all()


@pytest.mark.parametrize("name", initializers.INITIALIZERS)
def test_initializers(name) -> None:
    for dtype in TYPES:
        same(lambda dtype=dtype: initializers.INITIALIZERS[name](
            np.random.default_rng(0), (300, 200), dtype))  # fmt: skip


def vanishing(dtype, shape, seed):
    """Numbers of all sizes down to the smallest."""
    rng = np.random.default_rng(seed)
    low = np.log10(float(np.finfo(dtype).smallest_subnormal))
    return quietly(
        lambda: (rng.standard_normal(shape) * 10 ** rng.uniform(low, 0, shape)).astype(dtype)
    )


def stepped(make, dtype):
    p = {"w": vanishing(dtype, (6, 5), 1)}
    opt = make(p)
    for t in range(4):
        opt.step({"w": vanishing(dtype, (6, 5), t)})
    return p["w"]


OPTIONS = {
    "none": {},
    "decay": {"weight_decay": 0.1},
    "vanishing decay": {"weight_decay": 1e-300, "lr": 1e-300},
    "ema": {"ema": 0.9},
    "average": {"average": average.tail(2)},
    "lookahead": {"lookahead": average.lookahead(2)},
    "clipped": {"clip": (clip.norm(1e-30), clip.value(1e-30))},
    "adaptively": {"clip": clip.adaptive(1e-30)},
    "globally": {"clip": clip.global_norm(1e-30)},
    "percentile": {"clip": clip.percentile()},
    "skip": {"nonfinite": "skip"},
    "filter": {"filter": (filters.centralize(), filters.grokfast())},
    "l1": {"regularize": regularize.l1(1e-30)},
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rules(name, dtype) -> None:
    same(lambda: stepped(RULES[name], dtype))


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", ["adamw", "lamb", "soap"])
def test_options(name, option) -> None:
    for dtype in (np.float32, np.float64):
        same(lambda dtype=dtype: stepped(
            lambda p: RULES[name](p, **{"lr": 0.1} | OPTIONS[option]), dtype))  # fmt: skip


@pytest.mark.parametrize("frequency", [1, 2])
def test_soap_takes_its_decay_from_infinite_parameters(frequency) -> None:
    """The factor of the decay is 0, and 0 times infinity is NaN, without an error."""
    w = np.full((3, 3), np.inf)
    opt = st.SOAP(w, lr=1.0, weight_decay=1.0, precondition_frequency=frequency)
    for _ in range(2):
        opt.step(np.ones((3, 3)))
    assert np.isnan(w).all()


def test_rules_of_ones_own() -> None:
    @st.rule
    def vanishing_squares(p, g, state, t, *, lr=1.0):
        p -= lr * g * g

    w = np.ones(3)
    vanishing_squares(w).step(np.full(3, 1e-200))
    assert w.tolist() == [1.0] * 3


def test_training_by_autograd() -> None:
    def trained():
        p = np.array([[1000.0, -1000.0], [0.0, 0.0]])
        data = np.eye(2), np.array([0, 1])

        def by_classes(p, x, y):
            return losses.cross_entropy(x @ p, y)

        def by_odds(p, x, y):
            return losses.logistic((x @ p)[:, 0], y)

        for loss in (by_classes, by_odds):
            st.fit(loss, p, data, st.SGD, epochs=3)
            st.find_lr(loss, p, data, st.SGD)
            st.find_batch_size(loss, p, data, limit=1)
        return p

    same(trained)


def test_a_vanishing_gradient_is_not_taken_for_divergence() -> None:
    def value_and_grad(p, x):
        tiny = np.float64(1e-200)
        return ((p - x) ** 2).mean() + tiny * tiny, np.array(2 * (p - x).mean())

    found = st.find_lr(None, np.zeros(()), np.ones(4), st.SGD, value_and_grad=value_and_grad)
    assert 1 <= found.diverged < 5
