"""A run that was stopped goes on with the same bits as if it had not been."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import interrupted_runs
import pytest
from interrupted_runs import (
    CASES,
    HELD_OUT,
    METRICS,
    Stop,
    Train,
    adamw,
    data,
    loss,
    momentum,
    start,
    value_and_grad,
)

import steepest as st
from steepest import checkpoint, schedules
from steepest.training import fit
from steepest.training.run import Run
from steepest.training.stopping import Watch

HELPERS = os.path.dirname(interrupted_runs.__file__)


@pytest.mark.parametrize("how", [Stop, KeyboardInterrupt])
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_resumed_run_is_the_uninterrupted_one(tmp_path, name, every, how) -> None:
    make, arguments = CASES[name]
    path = tmp_path / "run.safetensors"
    whole = Train(make, **arguments).run()
    arguments = arguments | {"checkpoint": path, "checkpoint_every": every}
    first = Train(make, **arguments)
    first.stop_at, first.how = 1 + 3 * whole.calls // 5, how
    with pytest.raises(how):
        first.run()
    again = Train(make, **arguments).run(resume=True)
    assert again.outcome() == whole.outcome()
    # An exception loses what came after the last whole number of `every` epochs; Ctrl-C only the
    # micro-batches of the update that it was in.
    lost = first.calls + again.calls - 1 - whole.calls
    if how is KeyboardInterrupt:
        assert 0 <= lost < arguments.get("accumulate", 1)
    else:
        assert lost >= 0


def test_ctrl_c_at_any_batch(tmp_path) -> None:
    make, arguments = CASES["averaged"]
    whole = Train(make, **arguments, epochs=3).run()
    for call in range(1, whole.calls + 1):
        path = tmp_path / f"{call}.safetensors"
        first = Train(make, **arguments, epochs=3, checkpoint=path, checkpoint_every=2)
        first.stop_at, first.how = call, KeyboardInterrupt
        with pytest.raises(KeyboardInterrupt):
            first.run()
        again = Train(make, **arguments, epochs=3, checkpoint=path, checkpoint_every=2)
        assert again.run(resume=True).outcome() == whole.outcome(), call
        assert first.calls + again.calls == whole.calls + 1


@pytest.mark.parametrize("moment", ["step", "validation", "metric", "watch", "callback"])
def test_ctrl_c_outside_of_the_gradients(tmp_path, monkeypatch, moment) -> None:
    """The signal itself, at the worst moment: just after the optimizer's commit, or while the
    averaged parameters are in place."""
    make, arguments = CASES["averaged"]
    arguments = arguments | {"checkpoint": tmp_path / "run", "metrics": {"m": METRICS["size"]}}
    whole = Train(make, **arguments).run()
    os.remove(tmp_path / "run")
    first = Train(make, **arguments)
    seen = []

    def interrupting(function):
        def called(*batch):
            result = function(*batch)
            seen.append(1)
            if len(seen) == 3:
                signal.raise_signal(signal.SIGINT)
            return result

        return called

    changed, minimised = {}, loss
    if moment == "step":
        first.optimizer.step = interrupting(first.optimizer.step)
    elif moment == "validation":
        minimised = interrupting(loss)
    elif moment == "metric":
        changed["metrics"] = {"m": interrupting(METRICS["size"])}
    elif moment == "watch":
        monkeypatch.setattr(Watch, "look", interrupting(Watch.look))
    else:
        changed["callbacks"] = [interrupting(lambda epoch: None)]
    with pytest.raises(KeyboardInterrupt):
        fit(minimised, first.params, data(), first.optimizer, **(first.arguments | changed))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    updates = {"step": 3, "validation": 12, "metric": 8, "watch": 12, "callback": 12}[moment]
    assert first.optimizer.updates == updates  # four an epoch; a metric is called twice in each
    assert checkpoint.read(tmp_path / "run").state_dict["updates"] == updates
    saved = checkpoint.read(tmp_path / "run").params
    assert saved["net.w"].tobytes() == first.params["net"]["w"].tobytes()
    again = Train(make, **arguments).run(resume=True)
    assert again.outcome() == whole.outcome()


def test_ctrl_c_while_the_averaged_parameters_are_taken_out_again(tmp_path, monkeypatch) -> None:
    make, arguments = CASES["averaged"]
    whole = Train(make, **arguments).run()
    first, seen, usual = Train(make, **arguments, checkpoint=tmp_path / "run"), [], Run.back

    def back(run):
        seen.append(1)
        if len(seen) == 3:
            signal.raise_signal(signal.SIGINT)
        usual(run)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "back", back)
        with pytest.raises(KeyboardInterrupt):
            first.run()
    again = Train(make, **arguments, checkpoint=tmp_path / "run").run(resume=True)
    assert again.outcome() == whole.outcome()
    assert first.calls + again.calls == whole.calls


CHILD = """
import json, os, signal, sys
sys.path.insert(0, sys.argv[1])
from interrupted_runs import CASES, Train

make, arguments = CASES["noise scale"]
class Mortal(Train):
    def gradient(self, p, x, y):
        if self.calls == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().gradient(p, x, y)
run = Mortal(make, **arguments, checkpoint=sys.argv[2], epochs=9).run(resume=True)
print(json.dumps([repr(run.outcome()), run.calls]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_killed_process(tmp_path) -> None:
    def child(path, calls):
        command = [sys.executable, "-c", CHILD, HELPERS, str(path), str(calls)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    whole = child(tmp_path / "whole.safetensors", -1)
    killed = child(tmp_path / "run.safetensors", 37)
    assert (killed.returncode, killed.stdout) == (-signal.SIGKILL, ""), killed.stderr
    resumed = child(tmp_path / "run.safetensors", -1)
    (one, all_calls), (two, calls) = json.loads(whole.stdout), json.loads(resumed.stdout)
    assert one == two
    # 8 batches an epoch: the four epochs that were finished are not trained again.
    assert (all_calls, calls) == (72, 40)


# What is kept


def test_the_file_is_written_every_so_many_epochs_and_at_the_end(tmp_path) -> None:
    path, seen = tmp_path / "run", []
    train = Train(momentum, checkpoint=path, checkpoint_every=2, epochs=5)
    train.run(callbacks=[lambda e: seen.append(checkpoint.read(path).state_dict["updates"])])
    assert seen == [0, 0, 2, 2, 4]
    found = checkpoint.read(path)
    assert found.state_dict["updates"] == 5
    assert [row["epoch"] for row in found.extra["training"]["rows"]] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", ["mini-batch", "best"])
def test_a_finished_run_is_not_trained_again(tmp_path, name) -> None:
    make, arguments = CASES[name]
    arguments = arguments | {"checkpoint": tmp_path / "run"}
    whole = Train(make, **arguments).run()
    before = (tmp_path / "run").read_bytes()
    again = Train(make, **arguments).run(resume=True)
    assert (again.calls, again.outcome()) == (0, whole.outcome())
    assert (tmp_path / "run").read_bytes() == before


def test_a_finished_run_can_go_on_longer(tmp_path) -> None:
    whole = Train(adamw, batch_size=5, epochs=7).run()
    Train(adamw, batch_size=5, epochs=3, checkpoint=tmp_path / "run").run()
    again = Train(adamw, batch_size=5, epochs=7, checkpoint=tmp_path / "run").run(resume=True)
    assert again.outcome() == whole.outcome()


def test_other_stopping_rules_are_applied_at_once(tmp_path) -> None:
    make, arguments = CASES["best"]
    arguments = arguments | {"checkpoint": tmp_path / "run"}
    assert Train(make, **arguments).run().history.stopped == "patience"
    patient = Train(make, **arguments).run(resume=True, patience=9)
    assert (patient.history.stopped, len(patient.history)) == ("epochs", 9)
    target = patient.history["val_loss"][-1]
    done = Train(make, **arguments).run(resume=True, patience=9, target=target)
    assert (done.history.stopped, done.calls) == ("target", 0)


def test_a_run_that_a_callback_stopped_goes_on(tmp_path) -> None:
    whole = Train(momentum, batch_size=5).run()
    first = Train(momentum, batch_size=5, checkpoint=tmp_path / "run", checkpoint_every=9)
    assert first.run(callbacks=[lambda e: e.epoch == 2]).history.stopped == "callback"
    again = Train(momentum, batch_size=5, checkpoint=tmp_path / "run")
    assert again.run(resume=True).outcome() == whole.outcome()


def test_the_optimizer_may_be_a_class(tmp_path) -> None:
    def trained(**arguments):
        p = start()
        history = fit(loss, p, data(), st.Adam, value_and_grad=value_and_grad, **arguments)
        return p["net"]["w"].tolist(), history["loss"]

    path = tmp_path / "run"
    trained(epochs=2, checkpoint=path)
    assert trained(epochs=5, checkpoint=path, resume=True) == trained(epochs=5)


def test_a_hyper_parameter_changed_by_a_callback_stays_changed(tmp_path) -> None:
    def slower(epoch):
        epoch.optimizer.param_groups[0]["lr"] *= 0.5

    whole = Train(momentum, callbacks=[slower]).run()
    first = Train(momentum, checkpoint=tmp_path / "run", callbacks=[slower])
    first.stop_at = 3
    with pytest.raises(Stop):
        first.run()
    again = Train(momentum, checkpoint=tmp_path / "run", callbacks=[slower])
    assert again.run(resume=True).outcome() == whole.outcome()


@dataclasses.dataclass
class Halving:
    """A schedule that looks at the loss."""

    lr: float
    seen: list = dataclasses.field(default_factory=list, init=False)

    def __call__(self, t):
        return self.lr * 0.5 ** len(self.seen)

    def observe(self, metric):
        self.seen.append(metric)

    def state_dict(self):
        return {"seen": list(self.seen)}

    def load_state_dict(self, state):
        self.seen = list(state["seen"])


def test_a_plateau_sees_the_monitored_loss_and_remembers_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(schedules.SCHEDULES, "halving", Halving)

    def make(p):
        return st.Adam(p, lr=Halving(0.1), betas=(0.9, Halving(0.9)))

    arguments = {"validation": HELD_OUT, "batch_size": 6}
    whole = Train(make, **arguments).run()
    group = whole.optimizer.param_groups[0]
    assert group["lr"].seen == group["betas"][1].seen == whole.history["val_loss"]
    assert whole.history["lr"] == [0.1, 0.05, 0.025, 0.0125]
    first = Train(make, **arguments, checkpoint=tmp_path / "run")
    first.stop_at, first.how = 10, KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        first.run()
    again = Train(make, **arguments, checkpoint=tmp_path / "run").run(resume=True)
    assert again.outcome() == whole.outcome()


def test_a_plateau_shared_by_groups_sees_each_loss_once() -> None:
    p, plateau = start(), Halving(0.01)
    opt = st.SGD([{"params": p["net"]}, {"params": {"b": p["b"]}}], lr=plateau)
    history = fit(
        lambda q, x, y: loss(p, x, y),
        [p["net"], {"b": p["b"]}],
        data(),
        opt,
        epochs=3,
        value_and_grad=lambda q, x, y: (
            value_and_grad(p, x, y)[0],
            [value_and_grad(p, x, y)[1]["net"], {"b": value_and_grad(p, x, y)[1]["b"]}],
        ),
    )
    assert plateau.seen == history["loss"]
