import math

import numpy as np
import pytest
from regression_line import exact, line, line_and_grad, start

import steepest as st
from steepest.training import fit
from steepest.training.history import History


def losses_by_epoch(values):
    """Arguments of fit with given validation losses, one per epoch; p counts the updates."""
    p = np.zeros(1)
    queue = iter(values)

    def value_and_grad(p, x):
        return 1.0, -np.ones(1)

    return {
        "loss": lambda p, x: next(queue),
        "params": p,
        "data": np.zeros(1),
        "optimizer": st.SGD(p, lr=1.0),
        "value_and_grad": value_and_grad,
        "validation": np.zeros(1),
    }


def test_all_epochs() -> None:
    run = losses_by_epoch([3.0, 2.0, 2.5])
    history = fit(**run, epochs=3)
    assert (history.stopped, history.message) == ("epochs", "all 3 epochs are done")
    assert (len(history), history.best_epoch) == (3, 2)
    assert run["params"][0] == 3.0


def test_target_on_validation_data() -> None:
    history = fit(**losses_by_epoch([3.0, 2.0, 1.0, 0.5]), epochs=9, target=1.0)
    assert history.stopped == "target"
    assert history.message == "val_loss = 1 reached the target in epoch 3"
    assert history["val_loss"] == [3.0, 2.0, 1.0]


def test_target_on_training_data() -> None:
    p = start()
    history = fit(line, p, exact(), st.SGD(p, lr=0.1), epochs=10_000, target=1e-3)
    assert history.stopped == "target"
    assert history["loss"][-1] <= 1e-3 < history["loss"][-2]


VALUES = [5.0, 3.0, 4.0, 3.5, 2.9, 3.2, 3.1, 3.3, 1.0]


@pytest.mark.parametrize(
    ("patience", "min_delta", "epochs_run", "best"),
    [(2, 0.0, 4, 2), (3, 0.0, 8, 5), (3, 0.5, 5, 5), (1, 0.0, 3, 2), (4, 0.0, 9, 9)],
)
def test_patience(patience, min_delta, epochs_run, best) -> None:
    run = losses_by_epoch(VALUES)
    history = fit(**run, epochs=9, patience=patience, min_delta=min_delta)
    assert len(history) == epochs_run
    assert history.stopped == ("epochs" if epochs_run == 9 else "patience")
    assert history.best_epoch == best
    assert run["params"][0] == best
    assert history.message.endswith(f"; the parameters are those of epoch {best}")


def test_patience_says_since_when() -> None:
    history = fit(**losses_by_epoch(VALUES), epochs=9, patience=3, restore_best=False)
    assert history.message == "val_loss has not improved since epoch 5"


def test_parameters_stay_the_last_ones_if_asked() -> None:
    run = losses_by_epoch(VALUES)
    fit(**run, epochs=9, patience=2, restore_best=False)
    assert run["params"][0] == 4.0


def test_patience_without_validation_ends_when_converged() -> None:
    p = start()
    history = fit(line, p, exact(), st.SGD(p, lr=0.1), epochs=10_000, patience=5, min_delta=1e-9)
    assert history.stopped == "patience"
    assert history.message.startswith("loss has not improved since epoch")
    assert len(history) < 1000


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonfinite_loss_in_the_first_epoch(value) -> None:
    p = np.array([7.0])
    with pytest.warns(RuntimeWarning, match=f"loss = {value} in epoch 1; lower the learning rate"):
        history = fit(
            lambda p, x: value,
            p,
            np.zeros(4),
            st.SGD(p),
            epochs=5,
            value_and_grad=lambda p, x: (value, np.ones(1)),
        )
    assert (history.stopped, len(history), p[0]) == ("nonfinite", 0, 7.0)


def test_divergence_puts_back_parameters_with_a_finite_loss() -> None:
    x, y = exact()
    p = start()
    warned = pytest.warns(RuntimeWarning, match="loss = (inf|nan) in epoch")
    with warned, np.errstate(all="ignore"):
        history = fit(line, p, (x, y), st.SGD(p, lr=1e6), epochs=100, value_and_grad=line_and_grad)
    assert history.stopped == "nonfinite"
    assert history.message.endswith("lower the learning rate, or clip the gradients")
    assert 1 < len(history) < 100
    assert line(p, x, y) == history["loss"][-1]


def test_nonfinite_validation_loss() -> None:
    run = losses_by_epoch([3.0, math.nan])
    with pytest.warns(RuntimeWarning, match="val_loss = nan in epoch 2"):
        history = fit(**run, epochs=5)
    assert (history.stopped, len(history)) == ("nonfinite", 1)
    assert run["params"][0] == 1.0


def test_the_optimizers_own_error_comes_through() -> None:
    p = start()
    optimizer = st.SGD(p, lr=0.1, nonfinite="raise")
    with pytest.raises(FloatingPointError, match="gradient of parameter 'w'"):
        fit(
            line,
            p,
            exact(),
            optimizer,
            epochs=1,
            value_and_grad=lambda p, x, y: (1.0, {"w": np.array(np.nan), "b": np.array(0.0)}),
        )
    assert p == start()


def test_interrupt_comes_through_and_keeps_whole_updates() -> None:
    p = np.zeros(1)
    seen: list[History] = []

    def value_and_grad(p, x):
        if p[0] == 5.0:
            raise KeyboardInterrupt
        return 1.0, -np.ones(1)

    with pytest.raises(KeyboardInterrupt):
        fit(
            None,
            p,
            np.zeros(2),
            st.SGD(p, lr=1.0),
            epochs=9,
            batch_size=1,
            value_and_grad=value_and_grad,
            callbacks=[lambda e: seen.append(e.history)],
        )
    assert p[0] == 5.0
    assert (len(seen[0]), seen[0].stopped) == (2, "")
