import csv
import math

import numpy as np
import pytest
from regression_line import exact, line, line_and_grad, noisy, start

import steepest as st
from steepest.training import Epoch, fit
from steepest.training.history import History


def test_callbacks_see_the_epoch_and_can_stop() -> None:
    p = start()
    seen: list[Epoch] = []
    calls = []

    def enough(epoch: Epoch) -> bool:
        return epoch.loss < 0.5

    optimizer = st.SGD(p, lr=0.1)
    history = fit(
        line,
        p,
        exact(),
        optimizer,
        epochs=50,
        validation=exact(),
        metrics={"slope": lambda p, x, y: p["w"]},
        callbacks=[seen.append, enough, lambda epoch: calls.append(epoch.epoch)],
    )
    assert (history.stopped, history.message) == (
        "callback",
        f"stopped by enough after epoch {len(seen)}",
    )
    assert history["loss"][-1] < 0.5 <= history["loss"][-2]
    assert calls == history["epoch"]
    last = seen[-1]
    assert (last.epoch, last.epochs) == (len(seen), 50)
    assert last.params is p
    assert last.optimizer is optimizer
    assert last.history is history
    assert last.row == history.rows[-1]
    assert last.val_loss == line(p, *exact())
    assert last.metrics == {"slope": float(p["w"]), "val_slope": float(p["w"])}


@pytest.mark.parametrize("last", [1, 3])
def test_a_callback_that_replaces_a_parameter_is_refused(last) -> None:
    def replace(epoch):
        if epoch.epoch == last:
            epoch.params["w"] = np.full((), 9.0)

    p = start()
    opt = st.SGD(p, lr=0.1)
    with pytest.raises(ValueError, match=r"parameter 'w' was replaced .*\['w'\]\[\.\.\.\] = value"):
        fit(line, p, exact(), opt, epochs=3, callbacks=[replace])
    assert opt.updates == last


def test_other_ways_to_replace_a_parameter_are_refused_too() -> None:
    def losing(epoch):
        del epoch.params["b"]

    def elsewhere(epoch):
        epoch.optimizer.param_groups[0]["params"][0] = np.zeros(())

    for callback, message in [(losing, "parameters were replaced"), (elsewhere, "param_groups")]:
        p = start()
        with pytest.raises(ValueError, match=message):
            fit(line, p, exact(), st.SGD(p, lr=0.1), epochs=3, callbacks=[callback])

    def replacing(p, x, y):
        p["b"] = p["b"] * 1.0
        return line_and_grad(p, x, y)

    p = start()
    with pytest.raises(ValueError, match="parameter 'b' was replaced"):
        fit(line, p, exact(), st.SGD(p, lr=0.1), epochs=3, value_and_grad=replacing)


def test_a_callback_may_write_into_a_parameter() -> None:
    def write(epoch):
        epoch.params["w"][...] = 9.0

    p = start()
    fit(line, p, exact(), st.SGD(p, lr=0.1), epochs=3, callbacks=[write])
    assert p["w"] == 9.0


NOTHING = {"w": None, "b": None}


@pytest.mark.parametrize("grads", [None, NOTHING, list(NOTHING.items())])
@pytest.mark.parametrize("window", [{}, {"batch_size": 8}, {"batch_size": 8, "accumulate": 2}])
def test_gradients_that_are_all_none_are_refused(grads, window) -> None:
    p = start()
    opt = st.SGD(p, lr=0.1)
    with pytest.raises(ValueError, match="value_and_grad returned no gradient: every one is None"):
        fit(line, p, exact(), opt, epochs=2, value_and_grad=lambda *_: (1.0, grads), **window)
    assert (opt.updates, p) == (0, start())
    for search in (st.find_lr, st.find_batch_size):
        options = {"optimizer": st.SGD} if search is st.find_lr else {}
        with pytest.raises(ValueError, match="returned no gradient"):
            search(line, p, exact(), value_and_grad=lambda *_: (1.0, grads), **options)


def test_some_gradients_may_be_none() -> None:
    def half(p, x, y):
        loss, grads = line_and_grad(p, x, y)
        return loss, grads | {"w": None}

    p = start()
    fit(line, p, exact(), st.SGD(p, lr=0.1), epochs=2, value_and_grad=half)
    assert p["w"] == start()["w"] and p["b"] != start()["b"]


def test_no_validation_means_no_val_loss() -> None:
    seen = []
    p = start()
    fit(line, p, exact(), st.SGD(p), epochs=1, callbacks=[seen.append])
    assert seen[0].val_loss is None


def test_columns() -> None:
    p = start()
    x, y = exact()
    lr = st.schedules.exponential(0.1, 0.5)
    norms = []

    def value_and_grad(p, x, y):
        loss, grads = line_and_grad(p, x, y)
        norms.append(math.hypot(grads["w"], grads["b"]))
        return loss, grads

    history = fit(
        line,
        p,
        (x[:30], y[:30]),
        st.SGD(p, lr=lr, clip=st.clip.global_norm(0.5)),
        epochs=2,
        batch_size=12,
        validation=(x[30:], y[30:]),
        metrics={"n": lambda p, x, y: len(x)},
        value_and_grad=value_and_grad,
    )
    assert history.columns == [
        "epoch", "loss", "lr", "grad_norm", "val_loss", "n", "val_n", "seconds",
        "optimizer_seconds",
    ]  # fmt: skip
    assert history["epoch"] == [1, 2]
    assert history["lr"] == [lr(2), lr(5)]  # three updates an epoch
    assert (history["n"], history["val_n"]) == ([30, 30], [10, 10])
    # Two ways to sum two squares.
    np.testing.assert_allclose(
        history["grad_norm"], [np.mean(norms[:3]), np.mean(norms[3:])], rtol=1e-15
    )
    for row in history.rows:
        assert 0 < row["optimizer_seconds"] < row["seconds"]


def test_columns_that_are_not_there() -> None:
    history = History([{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0, "grad_norm": 3.0}])
    np.testing.assert_array_equal(history["grad_norm"], [math.nan, 3.0])
    with pytest.raises(KeyError, match="'lss': expected one of epoch, loss, grad_norm"):
        history["lss"]


def test_csv_reads_back_exactly(tmp_path) -> None:
    p = start()
    history = fit(line, p, noisy(), st.SGD(p, lr=0.1), epochs=3, batch_size=64)
    history.to_csv(tmp_path / "history.csv")
    with open(tmp_path / "history.csv", newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert rows == history.rows


@pytest.mark.parametrize("validation", [None, exact()], ids=["training", "validation"])
def test_plot(tmp_path, validation) -> None:
    p = start()
    history = fit(
        line,
        p,
        exact(),
        st.SGD(p, lr=0.1, clip=st.clip.norm(1.0)),
        epochs=5,
        validation=validation,
        metrics={"slope": lambda p, x, y: p["w"]},
    )
    figure = history.plot(tmp_path / "curves.png", title="a line")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    axes = [ax for ax in figure.axes if ax.get_visible()]
    titles = ["Loss", "Slope", "Learning rate", "Gradient norm before clipping"]
    assert [ax.get_title() for ax in axes] == titles
    assert {ax.get_xlabel() for ax in axes} == {"epoch"}
    assert figure.get_suptitle() == "a line"
    curves = {line.get_label(): list(line.get_ydata()) for line in axes[0].lines}
    assert curves["training"] == history["loss"]
    assert ("validation" in curves) == (validation is not None)


def test_plot_without_an_epoch() -> None:
    with pytest.raises(ValueError, match="no epoch has finished"):
        History().plot()


def test_progress_bar(capsys) -> None:
    p = start()
    fit(line, p, exact(), st.SGD(p, lr=0.1), epochs=3, batch_size=10, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "epoch 3" in err
    assert "12/12" in err
    assert "loss " in err
    fit(line, p, exact(), st.SGD(p, lr=0.1), epochs=3)
    assert capsys.readouterr() == ("", "")


# What a prompt shows


def test_results_are_summaries() -> None:
    """One line, whatever the number of epochs, trials and updates."""
    x = np.linspace(-1, 1, 200)
    y = 2 * x + np.sin(50 * x)
    p = {"w": np.zeros(())}

    def loss(p, x, y):
        return ((p["w"] * x - y) ** 2).mean()

    seen = []
    history = st.fit(
        loss, p, (x, y), st.SGD(p, lr=0.1), epochs=300, validation=(x, y), patience=3,
        metrics={"rmse": lambda p, x, y: 0.5}, callbacks=[seen.append],
    )  # fmt: skip
    last = history.rows[-1]
    assert repr(history) == (
        f"History({len(history)} epochs: loss {last['loss']:.4g}, val_loss {last['val_loss']:.4g}, "
        f"rmse 0.5, val_rmse 0.5; best epoch {history.best_epoch}; stopped by {history.stopped})"
    )
    assert repr(seen[0]).startswith("Epoch(1 of 300: loss 1.") and "array" not in repr(seen[0])
    assert repr(st.History()) == "History(no epochs)"
    assert repr(st.History([{"epoch": 1, "loss": 2.0}])) == "History(1 epoch: loss 2)"
    p["w"] -= 20.0
    found = st.find_lr(loss, p, (x, y), st.SGD, batch_size=10)
    updates = f"{len(found.rates)} updates from 1e-06 to"
    assert repr(found).startswith(f"LRFound(lr {found.lr:.3g}; {updates}")
    nothing = st.find_lr(loss, p, (x, y), st.SGD, low=1e-12, high=1e-10, steps=20)
    assert nothing.steepest is None and repr(nothing).startswith(
        "LRFound(no lr; 20 updates from 1e"
    )
    size = st.find_batch_size(loss, p, (x, y))
    assert repr(size).startswith(
        f"BatchSize(size {size.size}; {len(size.tried)} sizes tried, up to"
    )
    assert repr(size).endswith(f"; stopped by {size.stopped}; {size.message})")
    for result in (history, found, nothing, size):
        assert "\n" not in repr(result) and len(repr(result)) < 250
