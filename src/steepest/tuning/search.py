"""The search itself: candidates, trials, and what becomes of errors."""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from steepest.extras import require
from steepest.fields import count, real
from steepest.training.arguments import scalar
from steepest.training.history import History
from steepest.tuning.results import Record, State, Stopped, Tuned
from steepest.tuning.space import Distribution, Space
from steepest.tuning.study import ERROR, Claim, Study, without_log
from steepest.tuning.trial import Pruned, Trial, beaten, below_median, is_rung

__all__ = ["METHODS", "Method", "Objective", "tune"]

Method = Literal["grid", "random", "tpe", "halving"]
METHODS: tuple[Method, ...] = ("grid", "random", "tpe", "halving")
Objective = Callable[[dict[str, Any], Trial], Any]

_SECONDS = "more than 0 seconds, or None", lambda x: x > 0
POLL = 0.5  # seconds between looks at what other processes do


def tune(
    objective: Objective,
    space: Mapping[str, Distribution | Sequence[Any]],
    method: Method = "tpe",
    trials: int | None = None,
    *,
    seed: int = 0,
    storage: str | Path | None = None,
    study: str = "study",
    prune: bool = True,
    min_epochs: int = 1,
    timeout: float | None = None,
    progress: bool = False,
) -> Tuned:
    """Searches for the hyper-parameters with the lowest held-out loss.

    objective: function ``objective(values, trial)`` that trains with a dict of values and returns
        the loss on held-out data; or the ``History`` of an ``st.fit`` with ``validation``, which
        counts with its lowest val_loss. It makes fresh parameters and a fresh optimizer for every
        candidate. With ``callbacks=[trial.callback]`` for ``fit``, or ``trial.report(loss,
        epoch)`` after each epoch, a hopeless trial ends early.
    space: for each name a distribution, ``st.tuning.uniform``, ``log_uniform``, ``integer`` or
        ``choice``, or a list of values. For a grid, a list, or a distribution with ``points=``.
    method: ``"grid"``, every combination, in order; ``"random"``; ``"tpe"``, random at first, then
        near the better ones (tree-structured Parzen estimator); ``"halving"``, random candidates
        of which one in 3 continues beyond ``min_epochs``, 3, 9, ... times as many epochs
        (asynchronous successive halving).
    trials: how many candidates, in all, those of earlier calls and of other processes with the
        same storage included. For a grid there is nothing to give. May be None with a timeout.
    seed: the candidates come from (seed, number of the candidate), those of TPE also from the
        trials before; so a search that was stopped continues as if it had not been.
    storage: None for memory; a path ending in .db, .sqlite or .sqlite3, or a folder, for an SQLite
        file (in the folder: ``tuning.db``); or a database URL as Optuna takes it. Calls with the
        same storage and study share the work, at the same time or one after the other.
    study: the name of the search in the storage.
    prune: end a trial early whose best loss so far is worse than the median of the others' at that
        epoch, after 5 are done; for ``"halving"``, at the rungs.
    min_epochs: epochs that every trial gets, 1 or more.
    timeout: begin no new trial after so many seconds.
    progress: show a progress bar (tqdm) on the standard error.

    A trial *fails*, and the search continues, where the loss is infinite or NaN, where ``fit``
    stopped with a non-finite loss, and for an ArithmeticError (such as FloatingPointError) or a
    ValueError; only a ValueError of the first trial this call begins ends the search, like every
    other exception at any time: those are mistakes in the program. The trial they end is done
    again by the next call with this storage. RuntimeWarnings of the objective are not shown.

    Ctrl-C ends the search, and what has been found is returned; the trial it ends is done again by
    the next call. So is a trial whose process was killed: on Linux it is noticed at once, in other
    cases after a minute without sign of life; after 3 such attempts the trial has failed. Where
    other processes are at the last trials, the call waits for them.

    Returns a ``Tuned``. Raises TypeError or ValueError for arguments that do not fit, StudyError (a
    ValueError) where the stored search has another space, method, seed, prune or min_epochs, or is
    a study of Optuna's that maximizes or has several objectives, and MissingExtra (an ImportError)
    without Optuna.

    >>> import steepest as st
    >>> def objective(values, trial):
    ...     return (values["x"] - 2) ** 2 + values["y"]
    >>> space = {"x": st.tuning.uniform(0, 4, points=5), "y": [1, 3]}
    >>> tuned = st.tune(objective, space, method="grid")
    >>> tuned.best, tuned.best_loss, len(tuned)
    ({'x': 2.0, 'y': 1}, 1.0, 10)

    Sources: Bergstra and Bengio 2012, "Random Search for Hyper-Parameter Optimization"; Bergstra
    et al. 2011, "Algorithms for Hyper-Parameter Optimization" (TPE); Li et al. 2018,
    arXiv:1810.05934 (asynchronous successive halving); Akiba et al. 2019, arXiv:1907.10902
    (Optuna, which this builds on).
    """
    search = _Search(
        objective,
        Space(space),
        method,
        trials,
        count("seed", seed, 0),
        prune,
        count("min_epochs", min_epochs, 1),
        timeout,
    )
    return search.run(storage, study, progress)


class _Search:
    """A call of ``tune``."""

    def __init__(
        self,
        objective: Objective,
        space: Space,
        method: Method,
        trials: int | None,
        seed: int,
        prune: bool,
        min_epochs: int,
        timeout: float | None,
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"method = {method!r}: expected one of {', '.join(METHODS)}")
        self.objective = objective
        self.space = space
        self.method = method
        self.seed = seed
        self.prune = prune
        self.min_epochs = min_epochs
        self.timeout = math.inf if timeout is None else real("timeout", timeout, *_SECONDS)
        self.points = space.grid() if method == "grid" else []
        self.total = self._total(trials)
        self.begun = 0

    def _total(self, trials: int | None) -> float:
        if self.method == "grid":
            if trials is not None and trials != len(self.points):
                raise ValueError(
                    f"trials = {trials}: the grid has {len(self.points)} points; leave trials out"
                )
            return len(self.points)
        if trials is not None:
            return count("trials", trials, 1)
        if self.timeout == math.inf:
            raise ValueError(f'trials is missing: method="{self.method}" needs trials or a timeout')
        return math.inf

    @property
    def settings(self) -> dict[str, Any]:
        """What must be the same in all calls that share a study."""
        return {
            "space": self.space.describe(),
            "method": self.method,
            "seed": None if self.method == "grid" else self.seed,
            "prune": self.prune,
            "min_epochs": self.min_epochs,
        }

    def run(self, storage: str | Path | None, name: str, progress: bool) -> Tuned:
        end = time.monotonic() + self.timeout
        study = Study(storage, name, self.settings)
        try:
            found = partial(self._records, study)
            with without_log(study.optuna), _bar(self.total, found, progress) as show:
                try:
                    stopped = self._loop(study, end, show)
                except KeyboardInterrupt:
                    stopped = "interrupted"
                records = self._records(study)
        finally:
            study.close()
        return Tuned(records, self.space.distributions, stopped, self._message(records, stopped))

    def _loop(self, study: Study, end: float, show: Callable[[], None]) -> Stopped:
        show()
        while time.monotonic() < end:
            claim = study.claim(self.total)
            if claim is not None:
                self._trial(study, claim)
            elif study.running(self.total):
                time.sleep(POLL)
            else:
                return "trials"
            show()
        return "timeout"

    def _trial(self, study: Study, claim: Claim) -> None:
        """Runs one trial and records what came of it."""
        self.begun += 1
        try:
            with study.beating(claim):
                trial = self._begin(study, claim)
                state, loss, error = self._outcome(trial, study.optuna.TrialPruned)
        except BaseException:
            study.interrupt(claim)
            raise
        if state == "failed":
            study.fail(claim, error)
        elif state == "pruned":
            study.pruned(claim, loss)
        else:
            study.done(claim, loss)

    def _outcome(self, trial: Trial, pruned: type[Exception]) -> tuple[State, float, str]:
        """State, loss and error of a trial. Raises what ends the search."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                return "done", _loss(self.objective(dict(trial.values), trial)), ""
        except (Pruned, pruned):
            return "pruned", trial.reports[max(trial.reports)] if trial.reports else math.nan, ""
        except (ArithmeticError, ValueError) as error:
            if self.begun == 1 and not isinstance(error, ArithmeticError):
                raise
            return "failed", math.nan, f"{type(error).__name__}: {error}"

    def _begin(self, study: Study, claim: Claim) -> Trial:
        """The values of a candidate, and where to report its losses."""
        distributions = {
            name: x.optuna(study.optuna.distributions)
            for name, x in self.space.distributions.items()
        }
        if self.method == "tpe":
            seed = int(np.random.SeedSequence((self.seed, claim.candidate)).generate_state(1)[0])
            stored = study.suggest(claim, distributions, seed)
        else:
            stored = (
                self.points[claim.candidate]
                if self.points
                else self.space.draw(self.seed, claim.candidate)
            )
            study.record(claim, distributions, stored)
        done = study.done_reports() if self.prune and self.method != "halving" else []

        def hopeless(reports: dict[int, float]) -> bool:
            epoch = max(reports)
            study.report(claim, epoch, reports[epoch])
            if not self.prune:
                return False
            if self.method == "halving":
                at_rung = is_rung(epoch, self.min_epochs)
                return at_rung and beaten(reports[epoch], study.reports_at(epoch, claim))
            return epoch >= self.min_epochs and below_median(reports, done)

        return Trial(claim.candidate, self.space.decode(stored), hopeless)

    # Results

    def _records(self, study: Study) -> list[Record]:
        """The candidates' trials, those of longer searches too; but what runs beyond this one may
        be a claim about to be given up, of a process that saw one candidate too few."""
        running = study.optuna.trial.TrialState.RUNNING
        return [
            self._record(study, candidate, trial)
            for candidate, trial in sorted(study.standing().items())
            if not study.lost(trial) and (candidate < self.total or trial.state != running)
        ]

    def _record(self, study: Study, candidate: int, trial: Any) -> Record:
        states = study.optuna.trial.TrialState
        error = trial.user_attrs.get(ERROR, "")
        complete = len(trial.params) == len(self.space.distributions)
        loss = None if error or trial.state == states.RUNNING else trial.value
        names = {states.COMPLETE: "done", states.PRUNED: "pruned", states.RUNNING: "running"}
        duration = trial.duration
        return Record(
            number=candidate,
            values=self.space.decode(trial.params) if complete else {},
            loss=loss,
            state="failed" if error else names[trial.state],  # type: ignore[arg-type]
            seconds=None if duration is None else duration.total_seconds(),
            reports=dict(sorted(trial.intermediate_values.items())),
            message=error,
        )

    def _message(self, records: Sequence[Record], stopped: str) -> str:
        """How the search went, in words."""
        finished = [r for r in records if r.state != "running"]
        asked = "" if self.total == math.inf else f" of {self.total:.0f}"
        text = f"{len(finished)}{asked} trials"
        counts = {s: sum(r.state == s for r in records) for s in ("pruned", "failed", "running")}
        parts = [f"{n} {state}" for state, n in counts.items() if n]
        if parts:
            text += f" ({', '.join(parts)})"
        if stopped != "trials":
            text += {"timeout": ", then the time was up", "interrupted": ", then interrupted"}[
                stopped
            ]
        best = Tuned(list(records), self.space.distributions).best_trial
        if best is not None:
            return f"{text}; lowest loss {best.loss:.6g} in trial {best.number}"
        errors = [r.message for r in records if r.message]
        return f"{text}; none is done" + (f", the last error: {errors[-1]}" if errors else "")


def _loss(result: Any) -> float:
    """The loss that an objective returned. Raises FloatingPointError if it is not finite."""
    if isinstance(result, History):
        if result.stopped == "nonfinite":
            raise FloatingPointError(result.message)
        if "val_loss" not in result.columns:
            raise ValueError(
                "the objective returned a History without val_loss: give fit validation=, data "
                "that is held out"
            )
        return min(result["val_loss"])
    try:
        loss = scalar(result, "loss")
    except (TypeError, ValueError):
        raise TypeError(
            f"the objective returned {result!r}; expected the loss, one number, or a History"
        ) from None
    if not math.isfinite(loss):
        raise FloatingPointError(f"loss = {loss}")
    return loss


@contextmanager
def _bar(
    total: float, records: Callable[[], Sequence[Record]], show: bool
) -> Iterator[Callable[[], None]]:
    """A function that shows how far the search is."""
    if not show:
        yield lambda: None
        return
    tqdm = require("tqdm.auto", "train", "progress=True").tqdm
    with tqdm(total=None if total == math.inf else int(total), unit="trial") as bar:

        def update() -> None:
            found = records()
            losses = [r.loss for r in found if r.state == "done" and r.loss is not None]
            if losses:
                bar.set_postfix(best=f"{min(losses):.4g}", refresh=False)
            bar.n = sum(r.state != "running" for r in found)
            bar.refresh()

        yield update
