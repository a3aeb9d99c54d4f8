"""A run that was stopped goes on with the same bits as if it had not been."""

import copy
import dataclasses
import doctest
import errno
import json
import math
import os
import signal
import subprocess
import sys
import threading
from importlib import import_module

import numpy as np
import pytest

import steepest as st
from steepest import checkpoint, schedules
from steepest.checkpoint import CheckpointError
from steepest.training import fit, resuming
from steepest.training.run import Run
from steepest.training.stopping import Shield, Watch

TIMES = ("seconds", "optimizer_seconds")


def data(n=23, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    return x, x @ np.array([1.0, -2.0, 0.5]) + 0.3 + rng.normal(0, 0.5, n)


def start(dtype=np.float64):
    return {"net": {"w": np.full(3, 0.5, dtype)}, "b": np.zeros((), dtype)}


def loss(p, x, y):
    return ((x @ p["net"]["w"] + p["b"] - y) ** 2).mean()


def value_and_grad(p, x, y):
    error = x @ p["net"]["w"] + p["b"] - y
    dtype = p["b"].dtype
    w, b = (2 / len(x) * (x.T @ error)).astype(dtype), np.array(2 * error.mean(), dtype)
    return (error**2).mean(), {"net": {"w": w}, "b": b}


class Stop(Exception):
    """The process ends here; nothing of it is left but its files."""


class Train:
    """fit over the same problem, with arguments changed; parameters and history stay readable."""

    def __init__(self, make, dtype=np.float64, **arguments):
        self.params = start(dtype)
        self.optimizer = make(self.params)
        self.calls = 0
        self.stop_at, self.how = None, Stop
        self.arguments = {"epochs": 4, "value_and_grad": self.gradient, "seed": 3} | arguments
        self.history = None

    def gradient(self, p, x, y):
        self.calls += 1
        if self.calls == self.stop_at:
            raise self.how
        return value_and_grad(p, x, y)

    def run(self, **arguments):
        self.history = fit(
            loss, self.params, data(), self.optimizer, **(self.arguments | arguments)
        )
        return self

    def outcome(self):
        rows = [{k: v for k, v in row.items() if k not in TIMES} for row in self.history.rows]
        told = (self.history.stopped, self.history.message, self.history.best_epoch)
        state = self.optimizer.state_dict()
        arrays = [self.params["net"]["w"], self.params["b"]]
        arrays += [x for own in state["state"].values() for x in own.values()]
        return (
            repr(rows),  # repr, not ==: NaN equals NaN here, and 1 is not 1.0
            [list(row) for row in self.history.rows],
            told,
            [(x.dtype, x.shape, x.tobytes()) for x in arrays],
            state["updates"],
            state["skipped"],
            repr(state["param_groups"]),
        )


def adamw(p):
    lr = schedules.cosine(0.05, steps=40, warmup=3)
    return st.AdamW(p, lr=lr, weight_decay=0.1, ema=0.8, clip=st.clip.global_norm(1.0))


def momentum(p):
    return st.SGD(p, lr=0.03, momentum=0.9)


def ragged(p):
    groups = [{"params": {"net": p["net"]}, "lr": 0.02}, {"params": {"b": p["b"]}, "l1": 0.01}]
    return st.RMSprop(groups, lr=0.01)


HELD_OUT = data(9, seed=5)
METRICS = {"size": lambda p, x, y: np.abs(p["net"]["w"]).sum(), "odd": lambda p, x, y: math.nan}
CASES = {
    "full batch": (momentum, {}),
    "mini-batch": (adamw, {"batch_size": 5}),
    "float32": (adamw, {"batch_size": 5, "dtype": np.float32}),
    "unshuffled": (momentum, {"batch_size": 7, "shuffle": False}),
    "growing batch": (momentum, {"batch_size": schedules.linear(2, steps=15, end=9)}),
    "accumulated": (adamw, {"batch_size": 3, "accumulate": 3}),
    "noise scale": (momentum, {"batch_size": 3, "accumulate": 2, "noise_scale": True}),
    "validation": (adamw, {"batch_size": 6, "validation": HELD_OUT, "metrics": METRICS}),
    "averaged": (adamw, {"batch_size": 6, "validation": HELD_OUT, "use_ema": True, "patience": 9}),
    "best": (momentum, {"batch_size": 2, "validation": HELD_OUT, "patience": 2, "epochs": 9}),
}


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
from test_resuming import CASES, Train

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
        command = [sys.executable, "-c", CHILD, os.path.dirname(__file__), str(path), str(calls)]
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


# What goes wrong


def test_a_loss_that_is_not_finite_leaves_the_last_good_file(tmp_path) -> None:
    path, kept = tmp_path / "run", []

    class Diverging(Train):
        def gradient(self, p, x, y):
            value, grads = super().gradient(p, x, y)
            return (math.nan if self.calls == 18 else value), grads

    train = Diverging(adamw, batch_size=5, checkpoint=path)
    with pytest.warns(RuntimeWarning, match="loss = nan in epoch 4"):
        train.run(epochs=9, callbacks=[lambda e: kept.append(copy.deepcopy(e.optimizer))])
    assert train.history.stopped == "nonfinite"
    found = checkpoint.read(path)
    assert found.state_dict["updates"] == 15
    again = Train(adamw, batch_size=5, checkpoint=path).run(resume=True)
    assert again.outcome() == Train(adamw, batch_size=5).run().outcome()


def test_a_divergence_after_resuming_goes_back_as_far_as_without(tmp_path) -> None:
    def diverging(**arguments):
        train = Train(momentum, batch_size=5, **arguments)
        usual = train.gradient

        def gradient(p, x, y):
            value, grads = usual(p, x, y)
            return (math.nan if train.optimizer.updates == 15 else value), grads

        train.arguments["value_and_grad"] = gradient
        return train

    whole = diverging()
    with pytest.warns(RuntimeWarning, match="loss = nan in epoch 4"):
        whole.run()
    first = diverging(checkpoint=tmp_path / "run")
    first.stop_at = 16
    with pytest.raises(Stop):
        first.run()
    again = diverging(checkpoint=tmp_path / "run")
    with pytest.warns(RuntimeWarning, match="loss = nan in epoch 4"):
        again.run(resume=True)
    assert again.outcome() == whole.outcome()


def full_disk(monkeypatch, after):
    """Writing to a file fails from the given call of os.replace on."""
    usual, calls = os.replace, []

    def replace(source, target):
        calls.append(target)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        usual(source, target)

    monkeypatch.setattr(os, "replace", replace)


def test_a_full_disk(tmp_path, monkeypatch) -> None:
    path = tmp_path / "run"
    twice = Train(adamw, batch_size=5, epochs=2).run()
    train = Train(adamw, batch_size=5, checkpoint=path)
    with monkeypatch.context() as patch:
        full_disk(patch, after=2)  # the start and the first epoch are written
        message = "could not be written after 2 epochs: No space left .*; the one before is intact"
        with pytest.raises(OSError, match=message) as caught:
            train.run()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert train.optimizer.updates == 10
    assert train.params["net"]["w"].tobytes() == twice.params["net"]["w"].tobytes()
    assert checkpoint.read(path).state_dict["updates"] == 5
    again = Train(adamw, batch_size=5, checkpoint=path).run(resume=True)
    assert again.outcome() == Train(adamw, batch_size=5).run().outcome()


def test_a_full_disk_at_ctrl_c(tmp_path, monkeypatch) -> None:
    train = Train(adamw, batch_size=5, checkpoint=tmp_path / "run")
    train.stop_at, train.how = 8, KeyboardInterrupt
    full_disk(monkeypatch, after=2)
    with pytest.raises(KeyboardInterrupt) as caught:
        train.run()
    assert "could not be written after 1 epochs" in caught.value.__notes__[0]
    assert train.optimizer.updates == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 6}, "batch_size = 5; this one has 6"),
        ({"batch_size": schedules.constant(5)}, r"batch_size = 5; this one has constant\(lr=5"),
        ({"batch_size": lambda t: 5}, "batch_size = 5; this one has function .*<lambda>"),
        ({"accumulate": 2}, "accumulate = 1; this one has 2"),
        ({"seed": 4}, "seed = 3; this one has 4"),
        ({"shuffle": False}, "shuffle = True; this one has False"),
        ({"validation": HELD_OUT}, "validation = None; this one has"),
        ({"min_delta": 0.5}, "min_delta = 0.0; this one has 0.5"),
        ({"use_ema": True, "metrics": METRICS}, "use_ema = False; this one has True"),
        ({"accumulate": 2, "noise_scale": True}, "give the same, or resume=False to begin anew"),
    ],
)
def test_other_settings_are_refused(tmp_path, change, message) -> None:
    path = tmp_path / "run"
    Train(adamw, batch_size=5, checkpoint=path).run()
    other = Train(adamw, batch_size=5, checkpoint=path)
    before = copy.deepcopy((other.params, other.optimizer.state_dict()))
    with pytest.raises(CheckpointError, match=message):
        other.run(**({"resume": True} | change))
    after = (other.params, other.optimizer.state_dict())
    assert repr(after) == repr(before)


def test_other_data_is_refused(tmp_path) -> None:
    p, path = start(), tmp_path / "run"
    fit(loss, p, data(), momentum, epochs=1, checkpoint=path)
    for other in (data(seed=1), data(24), (data()[0].astype(np.float32), data()[1])):
        with pytest.raises(CheckpointError, match="is of a run with data = "):
            fit(loss, p, other, momentum, epochs=2, checkpoint=path, resume=True)


@pytest.mark.parametrize("what", ["x", "y", "validation"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_sample_is_compared(tmp_path, what, order) -> None:
    def arrays():
        x, y = data(1000)
        held_out = data(500, seed=1)
        return {"x": np.asarray(x, order=order), "y": y, "validation": held_out[1]}, held_out[0]

    def run(found, inputs, **arguments):
        held_out = (inputs, found["validation"])
        p = start()
        fit(loss, p, (found["x"], found["y"]), momentum, epochs=2, validation=held_out,
            value_and_grad=value_and_grad, checkpoint=tmp_path / "run", **arguments)  # fmt: skip

    run(*arrays())
    run(*arrays(), resume=True)
    for place in (1, 250, 498):
        found, inputs = arrays()
        found[what][place] += 1e-9
        name = "validation" if what == "validation" else "data"
        with pytest.raises(CheckpointError, match=f"with SHA-256 of {name} = "):
            run(found, inputs, resume=True)


def test_every_piece_of_the_data_is_in_its_digest(monkeypatch) -> None:
    x = np.arange(60.0).reshape(20, 3)
    whole = resuming._digest(x)
    monkeypatch.setattr(resuming, "PIECE", 100)
    assert resuming._digest(x) == resuming._digest(np.asfortranarray(x)) == whole
    changed = {resuming._digest(np.where(np.arange(60).reshape(20, 3) == i, -1.0, x))
               for i in range(60)}  # fmt: skip
    assert len(changed | {whole}) == 61


def with_lr(lr, **hyper):
    return lambda p: st.AdamW(p, lr=lr, **hyper)


def masking(i):
    return st.filters.mask({"net.w": np.arange(3) == i})


COSINE = with_lr(schedules.cosine(0.05, steps=4))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (with_lr(0.01), with_lr(0.02), "lr = 0.01 in group 0; this one has 0.02; give the same"),
        (COSINE, with_lr(schedules.cosine(0.05, steps=8)), r"lr = cosine\(.*steps=4.*steps=8"),
        (COSINE, with_lr(0.05), r"lr = cosine\(.* in group 0; this one has 0.05"),
        (with_lr(schedules.plateau(0.1)), with_lr(schedules.plateau(0.2)), r"lr = plateau\(lr=0.1"),
        (with_lr(0.1, weight_decay=0.1), with_lr(0.1, weight_decay=0.2), "weight_decay = 0.1"),
        (with_lr(0.1, betas=(0.8, 0.9)), with_lr(0.1), r"betas = \(0.8, 0.9\) .* \(0.9, 0.999\)"),
        (with_lr(0.1), with_lr(0.1, clip=st.clip.value(1.0)), r"clip = None .* value\(limit=1.0"),
        (with_lr(0.1, ema=0.9), with_lr(0.1), "ema = 0.9 in group 0; this one has None"),
        (with_lr(0.1), with_lr(0.1, ema=0.9), "ema = None in group 0; this one has 0.9"),
        (with_lr(0.1), with_lr(0.1, maximize=True), "maximize = False"),
        (with_lr(0.1), with_lr(0.1, overrides={"b": {"lr": 0.2}}), "in other groups"),
        (with_lr(0.1, overrides={"b": {"lr": 0.2}}), with_lr(0.1, overrides={"b": {"lr": 0.3}}),
         "lr = 0.2 in group 1; this one has 0.3"),
        (with_lr(0.1), with_lr(0.1, nonfinite="skip"), "nonfinite = propagate; this one has skip"),
        (with_lr(0.1, filter=masking(0)), with_lr(0.1, filter=masking(1)),
         r"filter = \(mask\(masks={net.w: "),
        (momentum, lambda p: st.SGD(p, lr=0.03), "momentum = 0.9 in group 0; this one has 0.0"),
    ],
)  # fmt: skip
def test_other_hyper_parameters_are_refused(tmp_path, before, after, message) -> None:
    path = tmp_path / "run"
    Train(before, checkpoint=path).run()
    other = Train(after, checkpoint=path)
    with pytest.raises(CheckpointError, match=message):
        other.run(resume=True, epochs=8)
    assert (other.calls, other.optimizer.updates) == (0, 0)
    again = Train(before, checkpoint=path).run(resume=True, epochs=8)
    assert len(again.history) == 8


def test_words_of_hyper_parameters() -> None:
    words = resuming._words
    assert words(schedules.plateau(0.1)) == words(schedules.plateau(0.1, patience=10))
    watching = schedules.plateau(schedules.cosine(0.1, steps=4, end=1e-3), factor=0.2)
    watching.observe(1.0)
    assert words(watching) == "plateau(lr=cosine(lr=0.1, steps=4, end=0.001), factor=0.2)"
    clips = (st.clip.global_norm(1.0, p=2.0), st.clip.value(2))
    assert words(clips) == "(global_norm(max_norm=1.0), value(limit=2.0))"
    assert words([np.float32(0.5), None, True]) == "(0.5, None, True)"
    assert words(masking(0)) != words(masking(1))
    assert words(words) == "function _words"


def test_the_noise_scale_may_not_look_back_further(tmp_path) -> None:
    arguments = CASES["noise scale"][1] | {"checkpoint": tmp_path / "run"}
    Train(momentum, **arguments).run()
    with pytest.raises(CheckpointError, match=r"decay of noise_scale = 0\.99; this one has 0\.5"):
        Train(momentum, **arguments).run(resume=True, noise_scale=st.NoiseScale(0.5))


def test_the_same_optimizer_goes_on_after_its_rate_was_changed(tmp_path) -> None:
    def slower(epoch):
        epoch.optimizer.param_groups[0]["lr"] *= 0.5

    train = Train(momentum, checkpoint=tmp_path / "run", callbacks=[slower])
    for resumed in (False, True, True):
        train.run(resume=resumed, epochs=4 + 2 * resumed)
    assert train.history["lr"] == [0.03 * 0.5**n for n in range(6)]
    new = Train(momentum, checkpoint=tmp_path / "run", callbacks=[slower])
    new.run(resume=True, epochs=7)  # as it began
    assert new.history["lr"][-1] == 0.03 * 0.5**6


def test_a_file_of_an_older_version_goes_on(tmp_path) -> None:
    """It tells nothing of hyper-parameters as they began, nor of every sample."""
    path = tmp_path / "run"
    whole = Train(adamw, batch_size=5, epochs=6).run()
    first = Train(adamw, batch_size=5, checkpoint=path).run()
    found = checkpoint.read(path)
    training = found.extra["training"]
    del training["hyper"]
    for name in resuming.LATER:
        del training["settings"][name]
    extra = {"training": training}
    checkpoint.save(path, first.optimizer, first.params, extra=extra, arrays=found.arrays)
    again = Train(adamw, batch_size=5, checkpoint=path).run(resume=True, epochs=6)
    assert again.outcome() == whole.outcome()


def test_text_as_data(tmp_path) -> None:
    def run(*words, **arguments):
        x = np.array(words, dtype=object)
        w = np.zeros(1)
        fit(
            None, w, x, st.SGD(w, lr=1.0), checkpoint=tmp_path / "run",
            value_and_grad=lambda w, x: (1.0, np.array([float(len(x[0]))])), **arguments,
        )  # fmt: skip
        return w[0]

    assert run("one", "three", epochs=1, shuffle=False) == -3.0
    assert run("one", "three", epochs=2, shuffle=False, resume=True) == -6.0
    with pytest.raises(CheckpointError, match="with data = "):
        run("two", "three", epochs=3, shuffle=False, resume=True)


def test_files_that_hold_no_run(tmp_path) -> None:
    path = tmp_path / "run"
    train = Train(momentum, checkpoint=path)
    st.save(path, train.optimizer, extra={"mine": 1})
    with pytest.raises(CheckpointError, match=r"holds no run of fit.*load it with st\.load"):
        train.run(resume=True)
    path.write_bytes(b"garbage")
    with pytest.raises(CheckpointError):
        train.run(resume=True)
    Train(st.Adam, checkpoint=path).run(epochs=1)
    with pytest.raises(CheckpointError, match="rule 'adam'"):
        train.run(resume=True)
    assert train.optimizer.updates == train.calls == 0


NO_MEMORY = [None, 3, "x", {"a": 1}]
PLACES = [
    ("settings",), ("hyper",), ("progress",), ("rows",), ("watch",), ("noise",), ("rows", 0),
    ("rows", 0, "epoch"), ("rows", 0, "loss"), ("progress", "epoch"), ("progress", "position"),
    ("watch", "best"), ("watch", "best_epoch"), ("watch", "waited"), ("watch", "reference"),
    ("noise", "decay"), ("noise", "count"), ("noise", "signal"),
]  # fmt: skip
SOUND = {(("watch", "best_epoch"), None), (("watch", "best_epoch"), 3), (("watch", "waited"), 3),
         (("noise", "count"), 3), (("noise", "signal"), 3), (("rows", 0, "epoch"), 3),
         (("progress", "epoch"), 3), (("progress", "position"), 3)}  # fmt: skip
NUMBERS = {("watch", "best"), ("watch", "reference"), ("rows", 0, "loss")}


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
def test_a_memory_that_makes_no_sense_changes_nothing(tmp_path, place) -> None:
    path = tmp_path / "run"
    arguments = CASES["noise scale"][1] | {"checkpoint": path, "validation": HELD_OUT}
    first = Train(momentum, **arguments).run(epochs=2)
    found = checkpoint.read(path)
    other = Train(momentum, **arguments)
    before = repr((other.params, other.optimizer.state_dict()))
    for value in NO_MEMORY:
        number = isinstance(value, (int, float)) and place in NUMBERS
        if number or (isinstance(value, (int, type(None))) and (place, value) in SOUND):
            continue
        training = copy.deepcopy(found.extra["training"])
        inside = training
        for key in place[:-1]:
            inside = inside[key]
        inside[place[-1]] = value
        extra = {"training": training}
        checkpoint.save(path, first.optimizer, first.params, extra=extra, arrays=found.arrays)
        with pytest.raises(
            CheckpointError, match=r"no run of fit|no run that can go on|a run with data"
        ):
            other.run(resume=True)
        assert repr((other.params, other.optimizer.state_dict())) == before
        assert (other.calls, other.history) == (0, None)


def test_kept_parameters_that_do_not_fit_change_nothing(tmp_path) -> None:
    path = tmp_path / "run"
    first = Train(momentum, checkpoint=path).run(epochs=2)
    found = checkpoint.read(path)
    for name, x in [("good.net.w", np.zeros(1)), ("good.b", np.zeros((), np.float32))]:
        arrays = found.arrays | {name: x}
        checkpoint.save(path, first.optimizer, first.params, extra=found.extra, arrays=arrays)
        with pytest.raises(CheckpointError, match=f"array '{name}' has shape"):
            Train(momentum, checkpoint=path).run(resume=True)
    arrays = {"good.b": found.arrays["good.b"]}
    checkpoint.save(path, first.optimizer, first.params, extra=found.extra, arrays=arrays)
    with pytest.raises(CheckpointError, match=r"it lacks 'good\.net\.w'"):
        Train(momentum, checkpoint=path).run(resume=True)


def test_a_run_anew_takes_the_files_place_when_an_epoch_is_done(tmp_path) -> None:
    path = tmp_path / "run"
    Train(momentum, batch_size=5, checkpoint=path).run()
    before = path.read_bytes()
    train = Train(momentum, batch_size=5, checkpoint=path)
    train.stop_at, train.how = 1, KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        train.run()
    assert path.read_bytes() == before
    Train(momentum, batch_size=5, checkpoint=path, epochs=1).run()
    assert checkpoint.read(path).state_dict["updates"] == 5


def test_without_a_file_a_run_begins_at_its_start(tmp_path) -> None:
    path = tmp_path / "run"
    resumed = Train(adamw, checkpoint=path).run(resume=True)
    assert resumed.outcome() == Train(adamw).run().outcome()
    with pytest.raises(ValueError, match="resume=True needs the file"):
        Train(adamw).run(resume=True)
    with pytest.raises(FileNotFoundError, match="the folder does not exist; make it first"):
        Train(adamw).run(checkpoint=tmp_path / "no" / "run")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        Train(adamw).run(checkpoint=tmp_path)
    with pytest.raises(ValueError, match="checkpoint_every = 0: expected 1 or more"):
        Train(adamw).run(checkpoint=path, checkpoint_every=0)


def test_what_cannot_be_saved_is_said_before_training(tmp_path) -> None:
    train = Train(lambda p: st.SGD(p, lr=lambda t: 0.1), checkpoint=tmp_path / "run")
    with pytest.raises(CheckpointError, match="lr"):
        train.run()
    assert train.calls == 0


# The shield and the watch


def test_a_shield_puts_ctrl_c_off() -> None:
    shield, done = Shield(), []

    def press():
        with shield:
            signal.raise_signal(signal.SIGINT)
            done.append("inside")
        done.append("after")

    with shield.raised():
        with pytest.raises(KeyboardInterrupt):
            press()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert done == ["inside"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_shield_in_another_thread_does_nothing(tmp_path) -> None:
    train = Train(adamw, batch_size=5, checkpoint=tmp_path / "run")
    thread = threading.Thread(target=train.run)
    thread.start()
    thread.join()
    assert train.outcome() == Train(adamw, batch_size=5).run().outcome()


def test_a_shield_leaves_an_ignored_ctrl_c_ignored() -> None:
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Shield().raised():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, usual)


def test_the_watch_of_a_run_that_never_improves() -> None:
    watch = Watch(patience=2)
    for epoch in (1, 2):
        watch.look({"epoch": epoch, "loss": math.inf})
    assert watch.best_epoch is None
    assert watch.verdict({"epoch": 2, "loss": math.inf})[0] == "patience"


@pytest.mark.parametrize("name", ["resuming", "run", "stopping", "sampling", "arguments"])
def test_examples(name) -> None:
    assert doctest.testmod(import_module(f"steepest.training.{name}")).failed == 0
