import csv
import doctest
import math
import subprocess
import sys
import warnings

import numpy as np
import optuna
import pytest

import steepest as st
from steepest import tuning
from steepest.extras import MissingExtra
from steepest.tuning import (
    Record,
    Tuned,
    integer,
    log_uniform,
    results,
    search,
    space,
    tune,
    uniform,
)


def hill(values, trial):
    """Lowest, 0, at lr = 0.01 and width = 16."""
    return abs(math.log10(values["lr"]) + 2) + abs(values["width"] - 16) / 16


SPACE = {"lr": log_uniform(1e-4, 1.0, points=5), "width": [4, 8, 16, 32]}


def losses(tuned):
    return [t.loss for t in tuned.trials]


def candidates(tuned):
    return [t.values for t in tuned.trials]


# What is found


def test_a_grid_finds_the_best_point() -> None:
    tuned = tune(hill, SPACE, method="grid")
    assert tuned.best == {"lr": pytest.approx(0.01, rel=1e-12), "width": 16}
    assert len(tuned) == 20 and tuned.stopped == "trials"
    assert tuned.best_loss == min(losses(tuned)) == pytest.approx(0, abs=1e-12)
    assert [t.number for t in tuned.trials] == list(range(20))
    assert {t.state for t in tuned.trials} == {"done"}


@pytest.mark.parametrize(
    ("method", "trials", "within"),
    [("random", 60, 0.4), ("tpe", 60, 0.25), ("halving", 60, 0.4)],
)
def test_a_search_comes_near_the_best_point(method, trials, within) -> None:
    tuned = tune(hill, SPACE, method=method, trials=trials)
    assert len(tuned) == trials
    assert tuned.best_loss == hill(tuned.best, None) < within


def test_tpe_beats_random_search() -> None:
    """On the mean over seeds; it is 14 times better here, and no better when it learns nothing."""

    def mean(method):
        return np.mean([tune(hill, SPACE, method, 50, seed=s).best_loss for s in range(5)])

    assert mean("tpe") < 0.3 * mean("random")


def test_a_real_training_is_tuned() -> None:
    """Fresh parameters for every candidate, the batch size among what is searched."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, 120)
    y = 1.5 * x + 0.8 + 0.1 * rng.standard_normal(120)
    starts = []

    def value_and_grad(p, x, y):
        error = p["w"] * x + p["b"] - y
        grads = {"w": np.array(2 * (error * x).mean()), "b": np.array(2 * error.mean())}
        return (error**2).mean(), grads

    def loss(p, x, y):
        return value_and_grad(p, x, y)[0]

    def objective(values, trial):
        p = {"w": np.zeros(()), "b": np.zeros(())}
        starts.append(float(p["w"]))
        return st.fit(
            loss, p, (x[:80], y[:80]), st.SGD(p, lr=values["lr"]), epochs=10,
            batch_size=values["batch_size"], value_and_grad=value_and_grad,
            validation=(x[80:], y[80:]), callbacks=[trial.callback],
        )  # fmt: skip

    grid = {"lr": [1e-3, 0.1, 1e40], "batch_size": [8, None]}
    tuned = tune(objective, grid, "grid", prune=False)
    assert tuned.best == {"lr": 0.1, "batch_size": 8}
    assert tuned.best_loss < 0.02 < losses(tuned)[0]  # the noise has 0.01
    assert starts == [0.0] * 6
    assert [t.state for t in tuned.trials] == ["done"] * 4 + ["failed"] * 2
    assert tuned.trials[4].message.startswith("FloatingPointError: ")
    assert list(tuned.trials[0].reports) == list(range(1, 11))
    assert tuned.trials[0].loss == min(tuned.trials[0].reports.values())


# Candidates


@pytest.mark.parametrize("method", ["random", "halving"])
def test_candidates_do_not_depend_on_how_many_there_are(method) -> None:
    few, many = tune(hill, SPACE, method, 5), tune(hill, SPACE, method, 9)
    assert candidates(many)[:5] == candidates(few)


def test_random_and_halving_try_the_same_candidates() -> None:
    assert candidates(tune(hill, SPACE, "random", 5)) == candidates(tune(hill, SPACE, "halving", 5))


@pytest.mark.parametrize("method", ["random", "tpe", "halving"])
def test_the_seed_decides(method) -> None:
    first = tune(hill, SPACE, method, 15, seed=1)
    assert candidates(tune(hill, SPACE, method, 15, seed=1)) == candidates(first)
    assert candidates(tune(hill, SPACE, method, 15, seed=2)) != candidates(first)


def test_choices_are_the_very_objects() -> None:
    schedule, given = st.schedules.constant(0.1), []
    tune(
        lambda values, trial: given.append(values["x"]) or 0.0,
        {"x": [schedule, None, (0.9, 0.99)]},
        "grid",
    )
    assert given[0] is schedule and given[1:] == [None, (0.9, 0.99)]


def test_an_objective_may_change_its_values() -> None:
    def objective(values, trial):
        return values.pop("x")

    assert tune(objective, {"x": [2, 1]}, "grid").best == {"x": 1}


# Pruning


def steady(values, trial):
    """The loss is x at every epoch."""
    for epoch in range(1, 28):
        trial.report(values["x"], epoch)
    return values["x"]


ORDERED = {"x": [5.0, 4.0, 3.0, 2.0, 1.0, 9.0, 0.5]}


def test_a_trial_worse_than_the_median_is_pruned() -> None:
    tuned = tune(steady, ORDERED, "grid")
    assert [t.state for t in tuned.trials] == ["done"] * 5 + ["pruned", "done"]
    pruned = tuned.trials[5]
    assert (pruned.loss, pruned.reports) == (9.0, {1: 9.0})
    assert tuned.best == {"x": 0.5}


def test_every_trial_gets_min_epochs() -> None:
    tuned = tune(steady, ORDERED, "grid", min_epochs=4)
    assert list(tuned.trials[5].reports) == [1, 2, 3, 4]


def test_prune_false_prunes_nothing() -> None:
    for method in ("grid", "halving"):
        trials = None if method == "grid" else 8
        tuned = tune(steady, ORDERED, method, trials, prune=False)
        assert {t.state for t in tuned.trials} == {"done"}


def test_halving_stops_at_rungs_of_threes() -> None:
    tuned = tune(steady, {"x": uniform(0, 1)}, "halving", 60)
    epochs = [len(t.reports) for t in tuned.trials]
    assert set(epochs) == {1, 3, 9, 27}
    first, second = epochs.count(1), epochs.count(3)
    # One in three goes on; the first ones meet few others.
    assert 60 * 2 / 3 - 6 <= first <= 60 * 2 / 3 + 6
    assert second > epochs.count(9) + epochs.count(27)


def test_halving_counts_from_min_epochs() -> None:
    tuned = tune(steady, {"x": uniform(0, 1)}, "halving", 60, min_epochs=2)
    assert {len(t.reports) for t in tuned.trials} == {2, 6, 18, 27}


def test_a_pruned_trial_is_never_the_best() -> None:
    def objective(values, trial):
        if values["x"] == 2:
            trial.report(-100.0, 1)
            raise tuning.Pruned
        return values["x"]

    tuned = tune(objective, {"x": [3, 2, 4]}, "grid")
    assert tuned.best == {"x": 3} and tuned.trials[1].state == "pruned"
    assert tuned.trials[1].loss == -100


@pytest.mark.parametrize("error", [tuning.Pruned, optuna.TrialPruned])
def test_an_objective_may_prune_itself(error) -> None:
    def objective(values, trial):
        raise error

    tuned = tune(objective, {"x": [1]}, "grid")
    assert tuned.trials == [Record(0, {"x": 1}, None, "pruned", tuned.trials[0].seconds)]
    assert tuned.best_trial is None


def test_the_callback_reports_the_monitored_loss() -> None:
    seen = []

    class Epoch:
        def __init__(self, epoch, loss, val_loss):
            self.epoch, self.loss, self.val_loss = epoch, loss, val_loss

    def objective(values, trial):
        trial.callback(Epoch(1, 3.0, None))
        trial.callback(Epoch(2, 3.0, 2.0))
        seen.append(trial.reports)
        return 1.0

    tuned = tune(objective, {"x": [1]}, "grid")
    assert seen == [{1: 3.0, 2: 2.0}] == [tuned.trials[0].reports]


def test_epochs_are_reported_in_order() -> None:
    def objective(values, trial):
        trial.report(1.0, 2)
        trial.report(1.0, 2)

    with pytest.raises(ValueError, match="epoch = 2: expected more than 2, the last one reported"):
        tune(objective, {"x": [1]}, "grid")


# Errors


def raising(error, at=2):
    def objective(values, trial):
        if values["x"] == at:
            raise error
        return float(values["x"])

    return objective


@pytest.mark.parametrize(
    "error",
    [FloatingPointError("inf"), OverflowError("big"), ValueError("bad"), np.linalg.LinAlgError()],
    ids=lambda e: type(e).__name__,
)
def test_a_failing_candidate_is_recorded_and_the_search_goes_on(error) -> None:
    tuned = tune(raising(error), {"x": [1, 2, 3]}, "grid")
    assert [t.state for t in tuned.trials] == ["done", "failed", "done"]
    failed = tuned.trials[1]
    assert failed.loss is None and failed.message == f"{type(error).__name__}: {error}"
    assert "1 failed" in tuned.message


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("how", ["returned", "reported"])
def test_a_loss_that_is_not_finite_fails(loss, how) -> None:
    def objective(values, trial):
        if values["x"] == 2:
            if how == "returned":
                return loss
            trial.report(1.0, 1)
            trial.report(loss, 2)
        return 1.0

    tuned = tune(objective, {"x": [2, 1]}, "grid")
    assert [t.state for t in tuned.trials] == ["failed", "done"]
    where = "" if how == "returned" else " in epoch 2"
    assert tuned.trials[0].message == f"FloatingPointError: loss = {loss}{where}"


@pytest.mark.parametrize("error", [TypeError("x"), KeyError("x"), RuntimeError("x"), SystemExit()])
def test_a_mistake_in_the_program_ends_the_search(error) -> None:
    with pytest.raises(type(error)):
        tune(raising(error), {"x": [1, 2, 3]}, "grid")


def test_a_value_error_of_the_first_trial_ends_the_search() -> None:
    with pytest.raises(ValueError, match="wrong shape"):
        tune(raising(ValueError("wrong shape"), at=1), {"x": [1, 2]}, "grid")


def test_divergence_in_the_first_trial_does_not() -> None:
    tuned = tune(raising(FloatingPointError("inf"), at=1), {"x": [1, 2]}, "grid")
    assert tuned.best == {"x": 2}


def test_warnings_of_a_diverging_trial_are_not_shown() -> None:
    def objective(values, trial):
        return float(np.float64(1e308) * values["x"])

    assert [t.state for t in tune(objective, {"x": [1, 1000]}, "grid").trials] == ["done", "failed"]


def test_other_warnings_are() -> None:
    def objective(values, trial):
        warnings.warn("mind the gap", UserWarning, stacklevel=1)
        return 1.0

    with pytest.warns(UserWarning, match="mind the gap"):
        tune(objective, {"x": [1]}, "grid")


@pytest.mark.parametrize("result", [None, "low", [1.0, 2.0], np.ones(2)])
def test_an_objective_returns_one_number(result) -> None:
    with pytest.raises(TypeError, match="expected the loss, one number, or a History"):
        tune(lambda values, trial: result, {"x": [1]}, "grid")


@pytest.mark.parametrize("loss", [np.float32(0.5), np.array(0.5), 1, True])
def test_any_number_is_a_loss(loss) -> None:
    assert tune(lambda values, trial: loss, {"x": [1]}, "grid").best_loss == loss


def test_a_history_needs_held_out_data() -> None:
    def objective(values, trial):
        return st.History([{"epoch": 1, "loss": 1.0}])

    with pytest.raises(ValueError, match="a History without val_loss: give fit validation="):
        tune(objective, {"x": [1]}, "grid")


def test_no_best_is_said() -> None:
    tuned = tune(raising(FloatingPointError("too far"), at=1), {"x": [1]}, "grid")
    assert tuned.best_trial is None
    for name in ("best", "best_loss"):
        with pytest.raises(ValueError, match=r"there is no best: 1 of 1 trials .* too far"):
            getattr(tuned, name)


def test_ctrl_c_keeps_what_is_done() -> None:
    tuned = tune(raising(KeyboardInterrupt(), at=3), {"x": [2, 1, 3, 0]}, "grid")
    assert tuned.stopped == "interrupted" and tuned.best == {"x": 1} and len(tuned) == 2
    assert tuned.message == "2 of 4 trials, then interrupted; lowest loss 1 in trial 1"


def test_the_timeout_begins_no_new_trial(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(search.time, "monotonic", lambda: now[0])

    def objective(values, trial):
        now[0] += 10
        return values["x"]

    tuned = tune(objective, {"x": uniform(0, 1)}, "random", timeout=25)
    assert len(tuned) == 3 and tuned.stopped == "timeout"
    assert tuned.message.startswith("3 trials, then the time was up; lowest loss ")


# What is refused


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "bayes"}, ValueError, "method = 'bayes': expected one of grid, random, tpe"),
        ({"method": "random"}, ValueError, 'trials is missing: method="random" needs trials or'),
        ({"method": "grid", "trials": 7}, ValueError, "trials = 7: the grid has 20 points"),
        ({"trials": 0}, ValueError, "trials = 0: expected 1 or more"),
        ({"trials": 1.5}, TypeError, "trials = 1.5: expected an integer"),
        ({"trials": 1, "seed": -1}, ValueError, "seed = -1: expected 0 or more"),
        ({"trials": 1, "min_epochs": 0}, ValueError, "min_epochs = 0: expected 1 or more"),
        ({"trials": 1, "timeout": 0}, ValueError, "timeout = 0: expected more than 0 seconds"),
        ({"trials": 1, "timeout": math.nan}, ValueError, "timeout = nan"),
    ],
)
def test_wrong_arguments_are_refused(options, error, message) -> None:
    with pytest.raises(error, match=message):
        tune(hill, SPACE, **options)


def test_a_grid_needs_points() -> None:
    with pytest.raises(ValueError, match=r"space\['lr'\] = log_uniform\(.*a grid needs points="):
        tune(hill, {"lr": log_uniform(1e-3, 1), "width": [1]}, "grid")


def test_without_optuna_the_error_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtra, match=r"pip install optuna, or .* \[tune\]"):
        tune(hill, SPACE, "grid")


# What it leaves alone


def test_optunas_log_is_silent_and_its_level_comes_back(capsys) -> None:
    optuna.logging.set_verbosity(optuna.logging.INFO)
    try:
        tune(hill, SPACE, "tpe", 12)
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
    finally:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_the_global_random_state_is_left_alone() -> None:
    np.random.seed(1)  # noqa: NPY002
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    tune(hill, SPACE, "tpe", 12)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_importing_steepest_does_not_import_optuna() -> None:
    code = "import sys, steepest; print('optuna' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# The progress bar


def test_the_bar_shows_the_best_loss(capsys) -> None:
    tune(raising(FloatingPointError(), at=2), {"x": [3, 2, 1]}, "grid", progress=True)
    assert "3/3" in (shown := capsys.readouterr().err) and "best=1" in shown


def test_the_bar_has_no_end_without_a_number_of_trials(capsys) -> None:
    tuned = tune(raising(KeyboardInterrupt()), {"x": [1, 2]}, "random", timeout=60, progress=True)
    assert tuned.stopped == "interrupted" and "trial" in capsys.readouterr().err


# The result


def example():
    trials = [
        Record(0, {"lr": 0.1, "b": (1, 2)}, 2.5, "done", 1.0, {1: 3.0}),
        Record(1, {"lr": 0.01, "b": None}, 9.0, "pruned", 0.5, {1: 9.0}),
        Record(2, {"lr": 1.0, "b": None}, None, "failed", 0.25, message="FloatingPointError: inf"),
        Record(3, {"lr": 0.2, "b": None}, 0.1 + 0.2, "done", 1.0),
        Record(4, {}, None, "running"),
    ]
    distributions = {"lr": log_uniform(1e-3, 1.0), "b": space.choice([(1, 2), None])}
    return Tuned(trials, distributions)


def test_a_csv_file_has_a_line_per_trial(tmp_path) -> None:
    example().to_csv(tmp_path / "trials.csv")
    with open(tmp_path / "trials.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["trial", "state", "loss", "seconds", "lr", "b", "message"]
    assert [r["state"] for r in rows] == ["done", "pruned", "failed", "done", "running"]
    assert float(rows[3]["loss"]) == 0.1 + 0.2 and rows[2]["loss"] == ""
    assert rows[0]["b"] == "(1, 2)" and rows[2]["message"] == "FloatingPointError: inf"


def test_a_hyper_parameter_may_be_named_like_a_column(tmp_path) -> None:
    tuned = tune(lambda values, trial: values["loss"], {"loss": [0.5]}, "grid")
    tuned.to_csv(tmp_path / "trials.csv")
    header = (tmp_path / "trials.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header == "trial,state,loss,seconds,space.loss,message"


def test_the_picture_has_a_panel_for_the_trials_and_each_hyper_parameter(tmp_path) -> None:
    figure = example().plot(tmp_path / "trials.png", title="a search")
    assert (tmp_path / "trials.png").read_bytes().startswith(b"\x89PNG")
    trials, lr, b = figure.axes
    assert [ax.get_xlabel() for ax in figure.axes] == ["trial", "lr", "b"]
    assert lr.get_xscale() == "log" and b.get_xscale() == "linear"
    assert trials.get_yscale() == "log"
    assert [t.get_text() for t in b.get_xticklabels()] == ["(1, 2)", "None"]
    lowest = trials.get_lines()[0]
    assert lowest.get_ydata().tolist() == [2.5, 2.5, 0.1 + 0.2]


def test_a_trial_that_almost_diverged_does_not_hide_the_others() -> None:
    values = [1.0, 2.0, 3.0, 4.0, 1e30]
    tuned = tune(lambda values, trial: values["x"], {"x": values}, "grid")
    axes = tuned.plot().axes[0]
    assert axes.get_ylim()[1] < 1e3
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["done", "done, above", "lowest so far"]


def test_losses_below_zero_are_drawn_on_a_linear_axis() -> None:
    tuned = tune(lambda values, trial: values["x"], {"x": [-3.0, 1.0, 900.0]}, "grid")
    axes = tuned.plot().axes[0]
    assert axes.get_yscale() == "linear" and axes.get_ylim()[1] < 100


def test_the_picture_shows_eight_hyper_parameters_and_counts_them() -> None:
    for count, title in (8, "a search"), (11, "a search (8 of 11 hyper-parameters)"):
        names = [f"x{i}" for i in range(count)]
        tuned = tune(lambda values, trial: 1.0, {n: integer(1, 9) for n in names}, "random", 2)
        figure = tuned.plot(title="a search")
        shown = [ax.get_xlabel() for ax in figure.axes if ax.get_visible()]
        assert shown == ["trial", *names[: results.PANELS]]
        assert figure.get_suptitle() == title


def test_without_a_loss_there_is_no_picture() -> None:
    with pytest.raises(ValueError, match="there is nothing to plot"):
        Tuned([Record(0, {"x": 1}, None, "failed")], {"x": space.choice([1])}).plot()


@pytest.mark.parametrize(
    "module", [results, search, space, tuning.study, tuning.trial], ids=lambda m: m.__name__
)
def test_docstring_examples(module) -> None:
    assert doctest.testmod(module).failed == 0
