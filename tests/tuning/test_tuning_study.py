"""Searches that are stopped, killed, continued and shared."""

import math
import os
import signal
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from cases import brief

import steepest as st
from steepest.tuning import METHODS, StudyError, integer, log_uniform, search, study, tune, uniform
from steepest.tuning.space import Space
from steepest.tuning.study import Study, standing

GRID = {"a": [1, 2, 3, 4], "b": [(0.9, 0.999), None, "x"]}
POINTS = [(a, b) for a in GRID["a"] for b in GRID["b"]]
SPACE = {"lr": log_uniform(1e-4, 1.0), "width": integer(1, 64, log=True), "b": GRID["b"]}


def bumpy(values, trial):
    loss = abs(math.log10(values["lr"]) + 2) + abs(values["width"] - 16) / 16
    for epoch in (1, 2, 3):
        trial.report(loss + 1 / epoch, epoch)
    return loss + (values["b"] is None)


def shown(tuned):
    return [(t.number, t.values, t.loss, t.state) for t in tuned.trials]


# A process that asks before every trial: it writes the trial's values, and goes on when it may.
WORKER = f"""
import sys, steepest as st

def objective(values, trial):
    print(trial.number, values["a"], repr(values["b"]), flush=True)
    trial.report(values["a"], 1)
    if sys.stdin.readline() == "":
        sys.exit("nobody is there")
    return values["a"]

tuned = st.tune(objective, {GRID!r}, method="grid", storage=sys.argv[1], prune=False)
print("end", len(tuned), tuned.stopped, flush=True)
"""


def worker(storage):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", WORKER, str(storage)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
    )  # fmt: skip


def go(process):
    process.stdin.write("go\n")
    process.stdin.flush()


def place(line):
    """The point of the grid that a worker's line names."""
    number, a, b = line.split(maxsplit=2)
    point = (int(a), eval(b))
    assert POINTS[int(number)] == point
    return point


@pytest.fixture
def elsewhere(monkeypatch):
    """Processes cannot be looked up, and are given up at once: as on another machine, later."""
    monkeypatch.setattr(study, "_process", lambda pid: {"machine": "", "pid": pid})
    monkeypatch.setattr(study, "SILENCE", -1.0)


# Killed


def killed_at(storage, n):
    """Runs a worker, kills it in the middle of its n-th trial, and returns what it had done."""
    process = worker(storage)
    done = []
    for _ in range(n - 1):
        done.append(place(process.stdout.readline()))
        go(process)
    begun = place(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL if hasattr(signal, "SIGKILL") else True
    return done, begun


def resumed(storage, **options):
    """Ends a worker's search here; returns the result and the points that were done."""
    points = []

    def objective(values, trial):
        points.append((values["a"], values["b"]))
        trial.report(values["a"], 1)
        return values["a"]

    return tune(objective, GRID, "grid", storage=storage, prune=False, **options), points


@pytest.mark.skipif(sys.platform != "linux", reason="a dead process is noticed at once on Linux")
@pytest.mark.parametrize("n", brief([1, 5, 12], [5]))
def test_a_killed_search_goes_on_with_no_point_lost_or_repeated(n, tmp_path) -> None:
    done, begun = killed_at(tmp_path / "search.db", n)
    tuned, points = resumed(tmp_path / "search.db")
    assert points[0] == begun  # which is done again
    assert done + points == POINTS
    assert [t.number for t in tuned.trials] == list(range(12))
    assert [t.loss for t in tuned.trials] == [a for a, _ in POINTS]
    assert [t.values for t in tuned.trials] == [{"a": a, "b": b} for a, b in POINTS]


def test_a_silent_search_goes_on_too(tmp_path, elsewhere) -> None:
    done, begun = killed_at(tmp_path, 3)
    tuned, points = resumed(tmp_path)
    assert points[0] == begun and done + points == POINTS
    assert len(tuned) == 12


def test_a_finished_search_does_nothing_more(tmp_path) -> None:
    first, _ = resumed(tmp_path)
    again, points = resumed(tmp_path)
    assert points == [] and again.trials == first.trials


def test_a_candidate_that_kills_its_process_is_given_up(tmp_path, elsewhere) -> None:
    for _ in range(study.ATTEMPTS):
        record = Study(tmp_path, "study", settings())
        assert record.claim(12).candidate == 0
        record.close()
    tuned, points = resumed(tmp_path)
    assert points == POINTS[1:]
    assert tuned.trials[0].state == "failed"
    assert tuned.trials[0].message == "its process was killed 3 times in the middle of it"


# Shared


def test_two_processes_share_the_work(tmp_path) -> None:
    processes = [worker(tmp_path / "shared.db") for _ in range(2)]
    lines = [[p.stdout.readline()] for p in processes]  # both have begun a trial
    for process in processes:
        process.stdin.write("go\n" * 12)
        process.stdin.flush()
    for process, own in zip(processes, lines, strict=True):
        own += process.stdout.read().splitlines()
        assert process.wait() == 0
        process.stdin.close()
        process.stdout.close()
    assert [own.pop() for own in lines] == ["end 12 trials"] * 2  # both know the whole result
    first, second = ([place(line) for line in own] for own in lines)
    assert first and second
    assert Counter(first + second) == Counter(POINTS)


def test_the_last_one_waits_for_the_others(tmp_path, monkeypatch) -> None:
    record = Study(tmp_path, "study", settings())
    claim = record.claim(12)
    states = []

    def sleep(seconds):
        states.append(seconds)
        if len(states) == 3:
            record.done(claim, 0.5)

    monkeypatch.setattr(search.time, "sleep", sleep)
    tuned, points = resumed(tmp_path)
    record.close()
    assert points == POINTS[1:] and states == [search.POLL] * 3
    assert tuned.best_loss == 0.5 and tuned.best_trial.number == 0


def test_running_trials_of_others_are_shown(tmp_path) -> None:
    record = Study(tmp_path, "study", settings())
    record.claim(12)

    def objective(values, trial):
        raise KeyboardInterrupt

    tuned = tune(objective, GRID, "grid", storage=tmp_path, prune=False)
    record.close()
    assert [(t.number, t.state, t.loss) for t in tuned.trials] == [(0, "running", None)]
    assert tuned.message == "0 of 12 trials (1 running), then interrupted; none is done"


def test_a_claim_of_one_too_many_is_not_shown(tmp_path) -> None:
    """Two processes that go for the last candidate both make a row; one is about to drop its."""
    record = Study(tmp_path, "study", settings())
    claims = []

    def objective(values, trial):
        if trial.number == 11:
            claims.append(record._create(None))
        return float(values["a"])

    tuned = tune(objective, GRID, "grid", storage=tmp_path, prune=False)
    assert len(claims) == 1 and len(record.standing()) == 13
    assert [t.number for t in tuned.trials] == list(range(12))
    record.close()


def test_a_trial_that_was_taken_over_does_not_count(tmp_path, elsewhere) -> None:
    """A process that was silent for too long ends its trial after another one has."""

    def slow(values, trial):
        if values["x"] == 1:
            tune(lambda values, trial: 10.0 * values["x"], space, "grid", storage=tmp_path)
        return float(values["x"])

    space = {"x": [1, 2]}
    tuned = tune(slow, space, "grid", storage=tmp_path)
    assert [t.loss for t in tuned.trials] == [10.0, 20.0]


@pytest.mark.parametrize("ending", ["prune", "fail", "interrupt"])
def test_however_it_ends(ending, tmp_path, elsewhere) -> None:
    errors = {"prune": st.tuning.Pruned, "fail": OverflowError, "interrupt": KeyboardInterrupt}

    def slow(values, trial):
        tune(lambda values, trial: 10.0 * values["x"], space, "grid", storage=tmp_path)
        raise errors[ending]

    space = {"x": [1, 2]}
    tune(slow, space, "grid", storage=tmp_path)
    tuned = tune(slow, space, "grid", storage=tmp_path)
    assert [(t.loss, t.state) for t in tuned.trials] == [(10.0, "done"), (20.0, "done")]


def test_a_running_trial_gives_signs_of_life(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(study, "BEAT", 1e-4)
    watching = Study(tmp_path, "study", settings())

    def beats():
        return watching.standing()[0].user_attrs.get(study.BEATS, 0)

    seen = []

    def objective(values, trial):
        while len(seen) < 3:  # each value comes once
            if (n := beats()) not in seen:
                seen.append(n)
        raise KeyboardInterrupt

    tune(objective, GRID, "grid", storage=tmp_path, prune=False)
    watching.close()
    assert seen == sorted(seen)


def test_a_trial_is_silent_when_it_no_longer_counts() -> None:
    watch = study._Watch()
    assert not watch.silent(4, 7, now=100.0)  # first seen
    assert not watch.silent(4, 7, now=100.0 + study.SILENCE)
    assert watch.silent(4, 7, now=100.1 + study.SILENCE)
    assert not watch.silent(4, 8, now=100.2 + study.SILENCE)
    assert not watch.silent(5, 8, now=1e6)
    assert not watch.silent(4, 8, now=100.2 + 2 * study.SILENCE)
    assert watch.silent(4, 8, now=100.3 + 2 * study.SILENCE)


@pytest.mark.skipif(sys.platform != "linux", reason="processes can be looked up on Linux")
def test_processes_are_told_apart() -> None:
    mine = study._process(os.getpid())
    assert mine == study._process(os.getpid()) != study._process(os.getppid())
    assert mine["machine"] == study._process(os.getppid())["machine"] != ""
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert study._process(child.pid) == {}  # dead, though its number is still taken
    child.wait()
    assert study._process(child.pid) == {}


def trials(*retried):
    """Trials by number, each with the one that it takes the place of."""
    return [
        SimpleNamespace(number=n, user_attrs={} if r is None else {study.RETRY: r})
        for n, r in enumerate(retried)
    ]


@pytest.mark.parametrize(
    ("retried", "expected"),
    [
        ((None, None, None), {0: 0, 1: 1, 2: 2}),
        ((None, 0, None), {0: 1, 1: 2}),
        ((None, 0, 1, None), {0: 2, 1: 3}),
        ((None, None, 0, 0, 1), {0: 2, 1: 4}),  # two went for 0: the first has it
        ((None, 0, 0, 2, None), {0: 1, 1: 4}),  # nor counts what takes the loser's place
        ((), {}),
    ],
)
def test_which_trial_stands_for_which_candidate(retried, expected) -> None:
    assert {c: t.number for c, t in standing(trials(*retried)).items()} == expected


def test_only_one_of_two_claims_of_a_lost_trial_counts(tmp_path, elsewhere, monkeypatch) -> None:
    """The other process looks, and claims, between this one's look and claim."""
    first, second = (Study(tmp_path, "study", settings()) for _ in range(2))
    first.claim(1)  # and is lost
    create, claims = Study._create, []

    def late(self, lost):
        monkeypatch.setattr(Study, "_create", create)
        claims.append(second.claim(1))
        monkeypatch.setattr(study, "SILENCE", 1e9)  # that one is alive
        return create(self, lost)

    monkeypatch.setattr(Study, "_create", late)
    assert first.claim(1) is None and claims[0].candidate == 0
    for record in (first, second):
        record.close()


def settings():
    """As ``resumed`` has them."""
    return search._Search(None, Space(GRID), "grid", None, 0, False, 1, None).settings


# Stopped and continued


@pytest.mark.parametrize("method", ["random", "tpe", "halving"])
@pytest.mark.parametrize("stop", brief([1, 13], [13]))
def test_a_stopped_search_goes_on_as_if_it_had_not_been(method, stop, tmp_path) -> None:
    def until(values, trial):
        if trial.number == stop:
            raise KeyboardInterrupt
        return bumpy(values, trial)

    whole = tune(bumpy, SPACE, method, 15)
    part = tune(until, SPACE, method, 15, storage=tmp_path)
    assert part.stopped == "interrupted" and shown(part) == shown(whole)[:stop]
    assert shown(tune(bumpy, SPACE, method, 15, storage=tmp_path)) == shown(whole)


@pytest.mark.parametrize("method", ["random", "tpe", "halving"])
def test_a_search_can_be_extended(method, tmp_path) -> None:
    tune(bumpy, SPACE, method, 7, storage=tmp_path)
    longer = tune(bumpy, SPACE, method, 12, storage=tmp_path)
    assert shown(longer) == shown(tune(bumpy, SPACE, method, 12))
    assert shown(tune(bumpy, SPACE, method, 3, storage=tmp_path)) == shown(longer)


def test_an_error_in_the_program_does_not_use_the_candidate_up(tmp_path) -> None:
    def broken(values, trial):
        raise TypeError("no such thing")

    for _ in range(2 * study.ATTEMPTS):
        with pytest.raises(TypeError, match="no such thing"):
            tune(broken, GRID, "grid", storage=tmp_path, prune=False)
    tuned, points = resumed(tmp_path)
    assert points == POINTS and len(tuned) == 12


def test_failed_and_pruned_trials_are_not_done_again(tmp_path) -> None:
    calls = []

    def objective(values, trial):
        calls.append(values["x"])
        if values["x"] == 1:
            raise FloatingPointError("too far")
        if values["x"] == 2:
            trial.report(5.0, 1)
            raise st.tuning.Pruned
        return float(values["x"])

    space = {"x": [1, 2, 3]}
    first = tune(objective, space, "grid", storage=tmp_path)
    again = tune(objective, space, "grid", storage=tmp_path)
    assert calls == [1, 2, 3] and again.trials == first.trials
    assert [t.state for t in again.trials] == ["failed", "pruned", "done"]
    assert again.trials[0].message == "FloatingPointError: too far"
    assert again.trials[1].reports == {1: 5.0} and again.trials[1].loss == 5.0


# Stored


@pytest.mark.parametrize("method", ["random", "tpe"])
def test_a_database_gives_what_memory_gives(method, tmp_path) -> None:
    schedules = [st.schedules.constant(0.1), st.schedules.cosine(0.1, steps=5)]
    space = {"lr": log_uniform(1e-4, 1.0), "n": integer(-3, 3), "s": schedules, "x": [np.tanh, ()]}

    def objective(values, trial):
        return values["lr"] * values["s"](0) + values["n"] + (values["x"] == ())

    memory = tune(objective, space, method, 15)
    stored = tune(objective, space, method, 15, storage=tmp_path)
    assert shown(stored) == shown(memory)
    assert {id(t.values["s"]) for t in stored.trials} == {id(s) for s in schedules}
    assert shown(tune(objective, space, method, 15, storage=tmp_path)) == shown(memory)


@pytest.mark.parametrize(
    ("given", "file"),
    [
        ("search.db", "search.db"),
        ("search.sqlite3", "search.sqlite3"),
        ("some/folder", "some/folder/tuning.db"),
        ("sqlite:///here.db", "here.db"),
        ("a.b", "a.b/tuning.db"),
        ("it's 100%20 {fun}? ü#&@:", "it's 100%20 {fun}? ü#&@:/tuning.db"),
    ],
)
def test_where_a_search_is_stored(given, file, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    tune(lambda values, trial: 1.0, {"x": [1]}, "grid", storage=given)
    assert (tmp_path / file).read_bytes().startswith(b"SQLite format 3")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [tmp_path / file]


def test_one_file_holds_several_searches(tmp_path) -> None:
    one = tune(lambda values, trial: 1.0, {"x": [1]}, "grid", storage=tmp_path, study="one")
    two = tune(lambda values, trial: 2.0, {"y": [1]}, "grid", storage=tmp_path, study="two")
    assert (one.best, two.best) == ({"x": 1}, {"y": 1})


def test_optuna_reads_what_is_stored(tmp_path) -> None:
    tuned = tune(bumpy, SPACE, "random", 8, storage=tmp_path)
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/tuning.db")
    loaded = optuna.load_study(study_name="study", storage=storage)
    assert loaded.best_value == tuned.best_loss
    assert loaded.best_params["lr"] == tuned.best["lr"]
    storage.remove_session()
    storage.engine.dispose()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": SPACE | {"lr": uniform(0, 1)}}, "with space = .*'log_uniform.*not .*'uniform"),
        ({"space": dict(reversed(SPACE.items()))}, "with space = "),
        ({"method": "tpe"}, "with method = 'random', not 'tpe'"),
        ({"seed": 3}, "with seed = 0, not 3"),
        ({"prune": False}, "with prune = True, not False"),
        ({"min_epochs": 2}, "with min_epochs = 1, not 2"),
    ],
    ids=["space", "order", "method", "seed", "prune", "min_epochs"],
)
def test_other_settings_are_refused(options, message, tmp_path) -> None:
    given = {"space": SPACE, "method": "random", "trials": 3, "storage": tmp_path}
    before = tune(bumpy, **given)
    with pytest.raises(StudyError, match=message) as caught:
        tune(bumpy, **(given | options))
    assert "give the same, or another name with study=" in str(caught.value)
    assert tune(bumpy, **given).trials == before.trials


def test_the_seed_of_a_grid_does_not_matter(tmp_path) -> None:
    resumed(tmp_path)
    assert len(resumed(tmp_path, seed=5)[0]) == 12


def test_a_study_of_somebody_elses_is_refused(tmp_path) -> None:
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/tuning.db")
    other = optuna.create_study(study_name="study", storage=storage)
    other.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    storage.remove_session()
    storage.engine.dispose()
    with pytest.raises(StudyError, match=r"study 'study' in .* was not made by steepest"):
        resumed(tmp_path)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("aims", "message"),
    [
        (["maximize"], "study 'study' in .* maximizes, and a search minimizes one loss; give an"),
        (["minimize", "minimize"], "study 'study' in .* has 2 objectives, and a search minimizes"),
        (["minimize", "maximize"], "has 2 objectives"),
    ],
)
def test_a_study_with_other_aims_is_refused(tmp_path, method, aims, message) -> None:
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/tuning.db")
    other = optuna.create_study(study_name="study", storage=storage, directions=aims)
    space = {"x": st.tuning.uniform(0, 1, points=2)}
    trials = None if method == "grid" else 2
    with pytest.raises(StudyError, match=message):
        tune(lambda values, trial: values["x"], space, method, trials, storage=tmp_path)
    assert (other.trials, other.user_attrs) == ([], {})
    storage.remove_session()
    storage.engine.dispose()


def test_an_empty_study_that_minimizes_is_taken(tmp_path) -> None:
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/tuning.db")
    optuna.create_study(study_name="study", storage=storage)
    storage.remove_session()
    storage.engine.dispose()
    assert len(tune(bumpy, SPACE, "random", 2, storage=tmp_path)) == 2


def test_a_file_that_is_no_database_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(study.time, "sleep", lambda seconds: None)
    (tmp_path / "notes.db").write_text("Dear diary, " * 100, encoding="utf-8")
    with pytest.raises(StudyError, match=r"storage .*notes.db cannot be opened: .*not a database"):
        resumed(tmp_path / "notes.db")


def test_a_database_that_is_being_made_is_opened(tmp_path, monkeypatch) -> None:
    """Two processes may find no tables; the second one to make them gets an error."""
    from sqlalchemy.exc import OperationalError

    make, waited = optuna.storages.RDBStorage.__init__, []

    def busy(self, *args, **options):
        if len(waited) < 2:
            raise OperationalError("CREATE TABLE studies", {}, Exception("already exists"))
        make(self, *args, **options)

    monkeypatch.setattr(optuna.storages.RDBStorage, "__init__", busy)
    monkeypatch.setattr(study.time, "sleep", waited.append)
    assert len(resumed(tmp_path)[0]) == 12 and len(waited) == 2
