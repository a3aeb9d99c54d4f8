"""The record of a search, in memory or in a database, which several processes may share.

A search consists of candidates 0, 1, 2, ... A *trial* is one attempt at a candidate, a row of
Optuna's. Usually there is one per candidate; when a process is killed or interrupted in the middle
of a trial, the trial counts as *lost*, and another one, which names it, takes its place.

Nothing is locked for this. Making a row is atomic and gives it the next number, and from the rows
alone every process computes the same ``standing``: which row counts for which candidate. A process
that has made a row checks whether it counts for a candidate that was wanted. If two processes try
the same candidate at the same time, both make a row; the lower number counts, the other is dropped.

A running trial is known to be lost as soon as its process is gone, where that can be looked up (on
Linux, by the same user); else when its process has not increased its counter of beats for a minute.
Clocks of different machines are not compared.
"""

import math
import os
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steepest.extras import require

__all__ = ["Claim", "Study", "StudyError", "standing", "without_log", "without_warnings"]

ATTEMPTS = 3  # a candidate whose process is killed so often is given up
BEAT = 10.0  # seconds between signs of life
SILENCE = 60.0  # seconds without one after which a trial is lost
OPENING = 5  # tries to open a database that another process may be making
SUFFIXES = (".db", ".sqlite", ".sqlite3")

# Attributes of a trial
OWNER, BEATS, RETRY, ATTEMPT = "owner", "beats", "retry of", "attempt"
ERROR, INTERRUPTED = "error", "interrupted"
SETTINGS = "steepest"  # attribute of a study


class StudyError(ValueError):
    """A stored search that has other settings, or that cannot be opened."""


@dataclass(frozen=True)
class Claim:
    """A trial that this process is to run."""

    candidate: int
    id: int
    known: Mapping[str, Any] = field(default_factory=dict)
    """Values, as stored, that an earlier attempt has recorded."""


def standing(trials: list[Any]) -> dict[int, Any]:
    """The trial that counts for each candidate.

    A pure function of the trials, in the order of their numbers, so that all processes agree.
    """
    found: dict[int, Any] = {}
    candidates: dict[int, int] = {}
    fresh = 0
    for trial in trials:
        retried = trial.user_attrs.get(RETRY)
        if retried is None:
            candidate, fresh = fresh, fresh + 1
        else:
            candidate = candidates.get(retried, -1)
            if candidate < 0 or found[candidate].number != retried:
                continue  # another process was first
        candidates[trial.number] = candidate
        found[candidate] = trial
    return found


class Study:
    """A search's record. ``storage`` is as in ``tune``."""

    def __init__(self, storage: str | Path | None, name: str, settings: Mapping[str, Any]) -> None:
        self.optuna = require("optuna", "tune", "st.tune")
        self.given = storage
        self.url = _url(storage)
        self.name = name
        self._watch = _Watch()
        self._seen: dict[int, Any] = {}
        self._owner = _process(os.getpid())
        with without_log(self.optuna), without_warnings():
            self._backend = self._opened()
            self.storage = self.optuna.storages.get_storage(self._backend)
            self.study = self.optuna.create_study(
                storage=self.storage, study_name=name, direction="minimize", load_if_exists=True
            )
        self.id = self.storage.get_study_id_from_name(name)
        self._states = self.optuna.trial.TrialState
        try:
            self._agree(settings)
        except StudyError:
            self.close()
            raise

    def close(self) -> None:
        """Gives the connections back."""
        if self.url is not None:
            self.storage.remove_session()
            self._backend.engine.dispose()

    @property
    def shared(self) -> bool:
        """Whether other processes may take part."""
        return self.url is not None

    # Claims

    def claim(self, total: float) -> Claim | None:
        """A candidate below `total` that nobody has done or is doing; None if there is none."""
        while True:
            trials = self.standing()
            wanted = [c for c, t in trials.items() if c < total and self.lost(t)]
            if not wanted and len(trials) >= total:
                return None
            lost = trials[min(wanted)] if wanted else None
            id, attempt = self._create(lost)
            mine = [c for c, t in self.standing().items() if t._trial_id == id]
            claim = Claim(mine[0] if mine else -1, id, lost.params if lost is not None else {})
            if not 0 <= claim.candidate < total:
                self.interrupt(claim)  # another process was first
            elif attempt > ATTEMPTS:
                self.fail(claim, f"its process was killed {ATTEMPTS} times in the middle of it")
            else:
                return claim

    def _create(self, lost: Any | None) -> tuple[int, int]:
        """A new running trial, in the place of a lost one where there is one.

        Returns its id, and which attempt at its candidate it is.
        """
        attempt, place = 1, {}
        params, distributions = {}, {}
        if lost is not None:
            if lost.state == self._states.RUNNING:
                self._tell(lost._trial_id, self._states.FAIL)
            params, distributions = lost.params, lost.distributions  # the same candidate again
            killed = not lost.user_attrs.get(INTERRUPTED, False)
            attempt = lost.user_attrs[ATTEMPT] + int(killed)
            place = {RETRY: lost.number}
        template = self.optuna.trial.create_trial(
            state=self._states.RUNNING,
            params=params,
            distributions=distributions,
            user_attrs={OWNER: self._owner, ATTEMPT: attempt} | place,
        )
        return self.storage.create_new_trial(self.id, template), attempt

    def standing(self) -> dict[int, Any]:
        """See the function of this name; as the database has it now."""
        self._seen = standing(self.storage.get_all_trials(self.id, deepcopy=False))
        return self._seen

    def lost(self, trial: Any) -> bool:
        """Whether a trial ended, or will end, without an answer."""
        if trial.state == self._states.FAIL:
            return ERROR not in trial.user_attrs
        if trial.state != self._states.RUNNING:
            return False
        owner = trial.user_attrs.get(OWNER, {})
        if owner.get("machine") == self._owner["machine"] != "":
            return bool(_process(owner["pid"]) != owner)
        return self._watch.silent(trial.number, trial.user_attrs.get(BEATS, 0), time.monotonic())

    def running(self, total: float) -> bool:
        """Whether a candidate below `total` is being done, here or elsewhere."""
        trials = [t for c, t in self.standing().items() if c < total]
        return any(t.state == self._states.RUNNING for t in trials)

    # What a trial tries

    def record(
        self, claim: Claim, distributions: Mapping[str, Any], stored: Mapping[str, Any]
    ) -> None:
        """Records the values of a candidate, as stored, where they are not yet."""
        for name, distribution in distributions.items():
            if name not in claim.known:
                value = distribution.to_internal_repr(stored[name])
                self.storage.set_trial_param(claim.id, name, value, distribution)

    def suggest(self, claim: Claim, distributions: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """Values near those of the better trials, as stored, and records them."""
        with without_warnings():
            sampler = self.optuna.samplers.TPESampler(
                seed=seed, multivariate=True, constant_liar=True
            )
            # Loaded anew, as Optuna's study remembers the trials that it has seen.
            study = self.optuna.load_study(
                study_name=self.name, storage=self.storage, sampler=sampler
            )
            trial = self.optuna.trial.Trial(study, claim.id)
            return {name: trial._suggest(name, x) for name, x in distributions.items()}

    def report(self, claim: Claim, epoch: int, loss: float) -> None:
        """Records the loss after an epoch."""
        with self._unless_finished():
            self.storage.set_trial_intermediate_value(claim.id, epoch, loss)

    def done_reports(self) -> list[dict[int, float]]:
        """The losses by epoch of every trial that was done when the last claim was made."""
        done = [t for t in self._seen.values() if t.state == self._states.COMPLETE]
        return [t.intermediate_values for t in done]

    def reports_at(self, epoch: int, claim: Claim) -> list[float]:
        """The losses that the other candidates had at an epoch."""
        others = [t for c, t in self.standing().items() if c != claim.candidate]
        return [t.intermediate_values[epoch] for t in others if epoch in t.intermediate_values]

    # What a trial comes to

    def done(self, claim: Claim, loss: float) -> None:
        """Records the loss of a trial."""
        self._tell(claim.id, self._states.COMPLETE, [loss])

    def pruned(self, claim: Claim, loss: float) -> None:
        """Records that a trial was stopped early, at the loss it had reported last, or NaN."""
        self._tell(claim.id, self._states.PRUNED, None if math.isnan(loss) else [loss])

    def fail(self, claim: Claim, error: str) -> None:
        """Records that a candidate does not work.

        To Optuna this is a pruned trial: its samplers learn from those, and ignore failed ones.
        """
        self._attribute(claim, ERROR, error)
        self._tell(claim.id, self._states.PRUNED)

    def interrupt(self, claim: Claim) -> None:
        """Gives a trial up; it is repeated when the search continues."""
        self._attribute(claim, INTERRUPTED, True)
        self._tell(claim.id, self._states.FAIL)

    def _attribute(self, claim: Claim, name: str, value: Any) -> None:
        with self._unless_finished():
            self.storage.set_trial_user_attr(claim.id, name, value)

    def _tell(self, id: int, state: Any, values: list[float] | None = None) -> None:
        with self._unless_finished():
            self.storage.set_trial_state_values(id, state, values)

    def _unless_finished(self) -> AbstractContextManager[Any]:
        """Another process may have ended a trial: it takes over one that is silent for too long."""
        return suppress(self.optuna.exceptions.UpdateFinishedTrialError)

    @contextmanager
    def beating(self, claim: Claim) -> Iterator[None]:
        """Signs of life, from a thread, while a trial runs."""
        if not self.shared:
            yield
            return
        stop = threading.Event()
        thread = threading.Thread(target=self._beat, args=(claim, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _beat(self, claim: Claim, stop: threading.Event) -> None:
        count = 0
        while not stop.wait(BEAT):
            count += 1
            try:
                self._backend.set_trial_user_attr(claim.id, BEATS, count)
            except self.optuna.exceptions.UpdateFinishedTrialError:
                return
            except self.optuna.exceptions.StorageInternalError:
                pass  # the database is busy or away; the next beat may get through

    # Opening

    def _opened(self) -> Any:
        """The storage; several processes may be making the same database."""
        if self.url is None:
            return self.optuna.storages.InMemoryStorage()
        options: dict[str, Any] = {"pool_pre_ping": True}
        if self.url.startswith("sqlite"):
            options = {"connect_args": {"timeout": 60}}
        sqlalchemy = require("sqlalchemy", "tune", "a database")
        for attempt in range(1, OPENING + 1):
            try:
                return self.optuna.storages.RDBStorage(self.url, engine_kwargs=options)
            except (sqlalchemy.exc.SQLAlchemyError, self.optuna.exceptions.OptunaError) as error:
                if attempt == OPENING:
                    reason = str(error).splitlines()[0]
                    raise StudyError(f"storage {self.given} cannot be opened: {reason}") from error
                time.sleep(0.1 * attempt)
        raise AssertionError("unreachable")

    def _agree(self, settings: Mapping[str, Any]) -> None:
        """Raises StudyError if the study has other aims, or was begun with other settings."""
        aims = [direction.name.lower() for direction in self.study.directions]
        if aims != ["minimize"]:
            has = "maximizes" if aims == ["maximize"] else f"has {len(aims)} objectives"
            raise StudyError(
                f"study {self.name!r} in {self.given} {has}, and a search minimizes one loss; "
                "give another name with study="
            )
        begun = bool(self.study.get_trials(deepcopy=False))  # first: settings come before trials
        if SETTINGS not in self.study.user_attrs:
            if begun:
                raise StudyError(
                    f"study {self.name!r} in {self.given} was not made by steepest; "
                    "give another name with study="
                )
            self.study.set_user_attr(SETTINGS, settings)
        stored = self.study.user_attrs[SETTINGS]
        for name, value in settings.items():
            before = stored.get(name)
            same = (
                list(before.items()) == list(value.items()) if name == "space" else before == value
            )
            if not same:
                raise StudyError(
                    f"study {self.name!r} in {self.given} was begun with {name} = {before!r}, "
                    f"not {value!r}; give the same, or another name with study="
                )


@contextmanager
def without_log(optuna: Any) -> Iterator[None]:
    """Optuna without its log lines."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)


@contextmanager
def without_warnings() -> Iterator[None]:
    """Optuna without warnings that parts of it are experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _url(storage: str | Path | None) -> str | None:
    """The database as a URL; a folder is made where it is missing."""
    if storage is None or (isinstance(storage, str) and "://" in storage):
        return storage
    path = Path(storage)
    if path.suffix not in SUFFIXES:
        path /= "tuning.db"
    path.parent.mkdir(parents=True, exist_ok=True)
    sqlalchemy = require("sqlalchemy", "tune", "a database")
    url = sqlalchemy.engine.URL.create("sqlite", database=path.absolute().as_posix())
    text: str = url.render_as_string()
    return text.replace("{", "{{").replace("}", "}}")  # Optuna takes it for a template


@dataclass
class _Watch:
    """Which trials have stopped to count on their beats, by this process's own clock."""

    seen: dict[int, tuple[int, float]] = field(default_factory=dict)

    def silent(self, number: int, beats: int, now: float) -> bool:
        """Whether a trial's beats have been the same for too long."""
        before, since = self.seen.get(number, (-1, now))
        if before != beats:
            since = now
        self.seen[number] = (beats, since)
        return now - since > SILENCE


def _process(pid: int) -> dict[str, Any]:
    """What tells a live process from all others, on all machines; {} for one that is gone.

    A process id alone may be used again, or belong to another container.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = os.readlink("/proc/self/ns/pid")
        user = os.getuid()
    except (OSError, AttributeError):  # not Linux
        return {"machine": "", "pid": pid}
    try:
        line = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    state, *rest = line.rpartition(")")[2].split()
    if state in "ZX":  # killed, and its parent has not asked yet
        return {}
    return {"machine": f"{boot} {namespace} {user}", "pid": pid, "start": rest[18]}
