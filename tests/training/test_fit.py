import math

import numpy as np
import pytest
from regression_line import BATCH_SIZES, RULES, exact, line, line_and_grad, noisy, start

import steepest as st
from steepest.training import batches, fit

# The worked examples: linear regression


@pytest.mark.parametrize("batch_size", BATCH_SIZES.values(), ids=BATCH_SIZES)
@pytest.mark.parametrize("rule", RULES)
def test_exact_line_is_recovered(rule, batch_size) -> None:
    p = start()
    epochs = {None: 600, 1: 40, 8: 200}[batch_size]
    updates = epochs * {None: 1, 1: 40, 8: 5}[batch_size]
    lr = st.schedules.cosine(0.1, steps=updates)
    history = fit(
        line,
        p,
        exact(),
        RULES[rule](p, lr if rule != "adagrad" else 0.1),
        epochs=epochs,
        batch_size=batch_size,
        value_and_grad=line_and_grad,
    )
    # What is left after a number of updates that ends the fall; the data itself is exact.
    np.testing.assert_allclose([p["w"], p["b"]], [2, 1], rtol=1e-5)
    assert history.rows[-1]["loss"] < 1e-9
    assert len(history) == epochs


@pytest.mark.parametrize("batch_size", BATCH_SIZES.values(), ids=BATCH_SIZES)
@pytest.mark.parametrize("rule", RULES)
def test_noisy_line_is_recovered(rule, batch_size) -> None:
    x, y = noisy()
    p = start()
    epochs = {None: 600, 1: 10, 8: 30}[batch_size]
    updates = epochs * {None: 1, 1: 400, 8: 50}[batch_size]
    rate = RULES[rule](p, 0.1).defaults["lr"]
    optimizer = RULES[rule](p, 0.1)
    optimizer.param_groups[0]["lr"] = st.schedules.cosine(rate, steps=updates)
    fit(line, p, (x, y), optimizer, epochs=epochs, batch_size=batch_size, seed=5)
    w, b = np.linalg.lstsq(np.stack([x, np.ones_like(x)], axis=1), y)[0]
    # Full-batch descent reaches the least-squares line; batches leave a little of their noise.
    atol = 1e-4 if batch_size is None else 0.02
    np.testing.assert_allclose([p["w"], p["b"]], [w, b], atol=atol)
    # The line itself is known to about noise / sqrt(samples) = 0.005: three of these and the above.
    np.testing.assert_allclose([p["w"], p["b"]], [1.5, 0.8], atol=0.035)


# The loop


@pytest.mark.parametrize("batch_size", [None, 1, 7])
def test_fit_is_the_loop_written_by_hand(batch_size) -> None:
    data = noisy()
    p, q = start(0.3, -0.2), start(0.3, -0.2)
    by_fit = st.AdamW(p, lr=st.schedules.exponential(0.05, 0.99), weight_decay=0.1)
    by_hand = st.AdamW(q, lr=st.schedules.exponential(0.05, 0.99), weight_decay=0.1)
    history = fit(
        line,
        p,
        data,
        by_fit,
        epochs=3,
        batch_size=batch_size,
        seed=9,
        value_and_grad=line_and_grad,
    )
    losses = []
    for epoch in (1, 2, 3):
        total = 0.0
        for x, y in batches(data, batch_size, seed=9, epoch=epoch):
            loss, grads = line_and_grad(q, x, y)
            by_hand.step(grads)
            total += float(loss) * len(x)
        losses.append(total / 400)
    assert (p, history["loss"]) == (q, losses)
    assert by_fit.updates == by_hand.updates


def test_autograd_gives_the_gradients() -> None:
    p, q = start(0.3, -0.2), start(0.3, -0.2)
    by_autograd = fit(line, p, noisy(), st.SGD(p, lr=0.1), epochs=20, batch_size=50)
    given = fit(
        line, q, noisy(), st.SGD(q, lr=0.1), epochs=20, batch_size=50, value_and_grad=line_and_grad
    )
    # Autograd sums in another order.
    np.testing.assert_allclose(by_autograd["loss"], given["loss"], rtol=1e-12)
    np.testing.assert_allclose([p["w"], p["b"]], [q["w"], q["b"]], rtol=1e-12)


def test_nested_float32_parameters_with_autograd() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))  # float64, on purpose: gradients must come as float32 all the same
    y = np.tanh(x @ np.array([0.5, -1.0, 0.25]))
    p = {
        "layers": [
            {"w": rng.normal(size=(3, 8)).astype(np.float32), "b": np.zeros(8, np.float32)},
            {"w": rng.normal(size=(8, 1)).astype(np.float32) / 3, "b": np.zeros(1, np.float32)},
        ]
    }

    def loss(p, x, y):
        first, second = p["layers"]
        h = np.tanh(x @ first["w"] + first["b"])
        return np.mean(((h @ second["w"] + second["b"])[:, 0] - y) ** 2)

    history = fit(loss, p, (x, y), st.Adam(p, lr=0.03), epochs=60, batch_size=20)
    assert history["loss"][-1] < 0.01 < history["loss"][0]
    assert p["layers"][0]["w"].dtype == np.float32


def test_a_loss_without_data() -> None:
    p = np.array([-1.0, 1.5])

    def rosenbrock(p):
        return (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2

    history = fit(rosenbrock, p, (), st.Adam(p, lr=0.05), epochs=5000, target=1e-10)
    assert history.stopped == "target"
    # The valley is flat: f = 1e-10 allows an error of 1e-5 along it, and twice that in p[1].
    np.testing.assert_allclose(p, [1, 1], atol=2e-5)


def test_data_may_be_one_array_and_params_too() -> None:
    p = np.zeros(2)
    x = np.array([[1.0, 2.0], [3.0, 6.0]])
    fit(lambda p, x: ((p - x) ** 2).mean(), p, x, st.SGD(p, lr=0.5), epochs=60)
    # The error halves at each update: 2^-60 of it is left, less than the rounding.
    np.testing.assert_allclose(p, [2, 4], rtol=1e-15)


@pytest.mark.parametrize("make", [st.Adam, lambda p: st.Adam(p, lr=0.5)], ids=["class", "function"])
def test_optimizer_from_a_factory(make) -> None:
    p = start()
    seen = []
    fit(line, p, exact(), make, epochs=2, callbacks=[lambda e: seen.append(e.optimizer)])
    assert seen[0] is seen[1]
    assert seen[0].updates == 2
    assert seen[0].param_groups[0]["params"][0] is p["w"]


def test_optimizer_with_groups() -> None:
    w, b = np.zeros(()), np.zeros(())
    groups = [{"params": [w], "lr": 0.2}, {"params": [b], "lr": 0.1}]
    history = fit(
        lambda p, x, y: ((p[0][0] * x + p[1][0] - y) ** 2).mean(),
        [[w], [b]],
        exact(),
        st.SGD(groups),
        epochs=400,
    )
    np.testing.assert_allclose([w, b], [2, 1], rtol=1e-6)  # what 400 updates leave
    assert set(history["lr"]) == {0.2}


# Batches


@pytest.mark.parametrize("batch_size", [1, 3, 10, 11, 64])
def test_batches_hold_every_sample_once_and_stay_aligned(batch_size) -> None:
    x, y = np.arange(10), np.arange(10) * 10
    cut = list(batches((x, y), batch_size, seed=4, epoch=2))
    sizes = [len(a) for a, _ in cut]
    assert sizes == [batch_size] * (10 // batch_size) + [10 % batch_size] * (10 % batch_size > 0)
    assert all((b == 10 * a).all() for a, b in cut)
    order = np.concatenate([a for a, _ in cut])
    np.testing.assert_array_equal(order, np.random.default_rng((4, 2)).permutation(10))


def test_order_depends_on_seed_and_epoch() -> None:
    def order(seed, epoch):
        return tuple(
            int(i) for (b,) in batches((np.arange(20),), 6, seed=seed, epoch=epoch) for i in b
        )

    orders = {order(seed, epoch) for seed in range(4) for epoch in range(1, 5)}
    assert len(orders) == 16
    assert order(2, 3) == order(2, 3)


def test_without_shuffling_or_in_full_the_order_is_the_datas() -> None:
    x = np.arange(7)
    assert [b.tolist() for (b,) in batches((x,), 3, shuffle=False)] == [[0, 1, 2], [3, 4, 5], [6]]
    ((whole,),) = batches((x,), None, seed=3)
    assert whole is x


@pytest.mark.parametrize("epoch_order", [(1, 2, 3), (3,)])
def test_seed_decides_the_run(epoch_order) -> None:
    def run(seed):
        p = start()
        seen = []
        fit(
            line,
            p,
            noisy(),
            st.SGD(p, lr=0.1),
            epochs=2,
            batch_size=9,
            seed=seed,
            value_and_grad=lambda p, x, y: seen.append(x[0]) or line_and_grad(p, x, y),
        )
        return seen, float(p["w"])

    assert run(3) == run(3)
    assert run(3)[0] != run(4)[0]


@pytest.mark.parametrize("batch_size", [1, 4, lambda t: 1 + 2 * t])
@pytest.mark.parametrize("start", [0, 1, 5, 12, 99])
def test_an_epoch_can_be_gone_on_with_anywhere(batch_size, start) -> None:
    x = np.arange(13)

    def order(**arguments):
        parts = batches((x,), batch_size, seed=6, epoch=2, **arguments)
        return [int(i) for (b,) in parts for i in b]

    assert order(start=start) == order()[start:]
    assert list(batches((x,), None, start=13)) == []


def sizes_of(n=100, **arguments):
    """The sizes of the batches that a run sees, and its history."""
    seen, p = [], np.zeros(1)

    def value_and_grad(p, x):
        seen.append(len(x))
        return 1.0, np.ones(1)

    opt = arguments.pop("optimizer", st.SGD)(p)
    history = fit(None, p, np.zeros(n), opt, value_and_grad=value_and_grad, **arguments)
    return seen, history


def test_a_batch_size_that_grows() -> None:
    growing = st.schedules.linear(10, steps=8, end=50)
    seen, history = sizes_of(epochs=3, batch_size=growing)
    # 10, 15, 20, ...: what the schedule says after so many updates, and what is left of an epoch.
    assert seen == [10, 15, 20, 25, 30, 35, 40, 25, 50, 50]
    assert history["batch_size"] == [30, 45, 50]
    assert sum(seen) == 300


def test_a_batch_size_stands_still_within_a_window() -> None:
    seen, history = sizes_of(epochs=1, batch_size=lambda t: 3 + 0.6 * t, accumulate=3)
    assert seen == [3, 3, 3, 4, 4, 4, 4, 4, 4, 5, 5, 5, 5, 5, 5, 6, 6, 6, 7, 7, 5]
    assert history["batch_size"] == [7]


def test_a_batch_size_follows_the_updates_not_the_batches() -> None:
    """An optimizer that has stepped before, and one that skips every step."""
    seen, _ = sizes_of(
        n=9, epochs=1, batch_size=lambda t: 1 + t,
        optimizer=lambda p: [opt := st.SGD(p), opt.step(np.ones(1))][0],
    )  # fmt: skip
    assert seen == [2, 3, 4]
    p, seen = np.zeros(1), []
    fit(
        None, p, np.zeros(6), st.SGD(p, nonfinite="skip"), epochs=1, batch_size=lambda t: 2 + t,
        value_and_grad=lambda p, x: (float(seen.append(len(x)) or 1), np.array([np.nan])),
    )  # fmt: skip
    assert seen == [2, 2, 2]


@pytest.mark.parametrize("value", [0.99, -3, math.nan, math.inf])
def test_a_batch_size_that_cannot_be(value) -> None:
    with pytest.raises(ValueError, match=f"batch_size schedule: {value}.* after 2 updates"):
        sizes_of(epochs=1, batch_size=lambda t: value if t == 2 else 5)


def test_a_growing_batch_with_a_progress_bar(capsys) -> None:
    sizes_of(epochs=2, batch_size=lambda t: 20 + t, progress=True)
    assert "epoch 2" in capsys.readouterr().err


# Averaged parameters


def averaged_by_hand(p, data, held_out, epochs):
    """The run below written by hand: the validation losses, and the averages after each epoch."""
    opt = st.SGD(p, lr=0.3, ema=0.9)
    losses, averages = [], []
    for epoch in range(1, epochs + 1):
        for x, y in batches(data, 64, seed=1, epoch=epoch):
            opt.step(line_and_grad(p, x, y)[1])
        ema = {name: state["ema"].copy() for name, state in opt.state.items()}
        losses.append(line(ema, *held_out))
        averages.append(ema)
    return losses, averages


@pytest.mark.parametrize("patience", [None, 2])
def test_evaluation_with_averaged_parameters(patience) -> None:
    x, y = noisy()
    data, held_out = (x[:300], y[:300]), (x[300:], y[300:])
    p, q, seen = start(), start(), []
    history = fit(
        line, p, data, st.SGD(p, lr=0.3, ema=0.9), epochs=60, batch_size=64, seed=1,
        value_and_grad=line_and_grad, validation=held_out, use_ema=True, patience=patience,
        metrics={"w": lambda p, x, y: p["w"]},
        callbacks=[lambda e: seen.append(float(e.params["w"]))],
    )  # fmt: skip
    losses, averages = averaged_by_hand(q, data, held_out, len(history))
    assert history["val_loss"] == losses
    assert history["w"] == history["val_w"] == [float(ema["w"]) for ema in averages]
    assert seen[-1] == q["w"] != history["w"][-1]  # callbacks see the raw parameters
    if patience is None:
        assert p == q
    else:
        assert history.stopped == "patience"
        assert p == averages[history.best_epoch - 1]
        assert history.message.endswith(
            f"; the averaged parameters are those of epoch {history.best_epoch}"
        )


LINE = np.linspace(-1, 1, 20), np.linspace(-2, 2, 20)


@pytest.mark.parametrize(
    "loss",
    [
        lambda p, x, y: ((np.dot(x[:, None], p["w"]) - y) ** 2).mean(),
        lambda p, x, y: (np.asarray(p["w"]) * x - y).mean(),
        lambda p, x, y: np.concatenate([p["w"], x]).mean(),
        lambda p, x, y: float(p["w"][0]) * x.mean(),
        lambda p, x, y: math.exp(p["w"][0]) * x.mean(),
    ],
)
def test_what_autograd_cannot_follow_is_told(loss) -> None:
    p = {"w": np.ones(1)}
    with pytest.raises(TypeError, match=r"^autograd cannot follow the loss \(.*autograd\.numpy in"):
        fit(loss, p, LINE, st.SGD(p, lr=0.1), epochs=1)
    assert p["w"][0] == 1.0


@pytest.mark.parametrize(
    ("loss", "error"),
    [
        (lambda p, x, y: p["v"] * x, KeyError),
        (lambda p, x, y: p["w"] @ np.ones((3, 2)), ValueError),
        (lambda p, x, y: p["w"] + "text", TypeError),
        (lambda p, x, y: x * p["w"], ValueError),
    ],
)
def test_other_errors_of_a_loss_stay_what_they_are(loss, error) -> None:
    p = {"w": np.ones(1)}
    with pytest.raises(error) as caught:
        fit(loss, p, LINE, st.SGD(p, lr=0.1), epochs=1)
    assert "autograd cannot" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((LINE[0].astype(object), LINE[1]), r"data\[0\] has dtype object; expected numbers"),
        ((LINE[0], np.array([*LINE[1][1:], "x"], object)), r"data\[1\] .*, with 'x'; expected num"),
        ((np.array([[0.5, True]] * 20, object), LINE[1]), r"data\[0\] .*, column 1 has True; exp"),
        ((np.array([[None, 0.5]] * 20, object), LINE[1]), r"data\[0\] .*, column 0 has None; exp"),
    ],
)
def test_arrays_of_objects_are_told(data, message) -> None:
    p = {"w": np.ones(data[0].shape[-1] if data[0].ndim > 1 else 1)}

    def loss(p, x, y):
        return (((x @ p["w"] if x.ndim > 1 else x * p["w"]) - y) ** 2).mean()

    with pytest.raises(TypeError, match=message):
        fit(loss, p, data, st.SGD(p, lr=0.1), epochs=1)


def test_an_object_column_of_a_frame_is_named() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": pandas.array([1, 2] * 10, "Int64"), "b": [True, False] * 10})
    p = {"w": np.ones(2)}

    def loss(p, x, y):
        return ((x @ p["w"] - y) ** 2).mean()

    with pytest.raises(TypeError, match=r"column 'b' has True; .* booleans and pandas' nullable"):
        fit(loss, p, (frame, LINE[1]), st.SGD(p), epochs=1)
    fit(loss, p, (frame.astype(float), LINE[1]), st.SGD(p), epochs=1)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_averaged_parameters_make_room_after_an_exception(error) -> None:
    p, q = start(), start()
    opt = st.SGD(p, lr=0.3, ema=0.9)

    def failing(p, x, y):
        assert p["w"] == opt.state["w"]["ema"] != q["w"]
        raise error

    averaged_by_hand(q, exact(), exact(), 1)
    with pytest.raises(error):
        fit(
            line, p, exact(), opt, epochs=1, batch_size=64, seed=1, metrics={"m": failing},
            value_and_grad=line_and_grad, use_ema=True,
        )  # fmt: skip
    assert p == q


def test_a_validation_loss_that_is_not_finite_with_averaged_parameters() -> None:
    p = np.array([7.0])
    with pytest.warns(RuntimeWarning, match="val_loss = nan in epoch 1"):
        fit(
            lambda p, x: math.nan, p, np.zeros(4), st.SGD(p, lr=1.0, ema=0.5), epochs=5,
            value_and_grad=lambda p, x: (1.0, np.ones(1)), validation=np.zeros(1), use_ema=True,
        )  # fmt: skip
    assert p[0] == 7.0
