"""Runs that cannot be saved or resumed, and what their errors say."""

import copy
import errno
import math
import os

import numpy as np
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
from steepest.checkpoint import CheckpointError
from steepest.training import fit, resuming


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
    monkeypatch.setattr(resuming, "CHUNK", 100)
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
    with pytest.raises(CheckpointError, match=r"does not hold a run of fit.*load it with st\.load"):
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
        with pytest.raises(CheckpointError, match=r"not hold a run|a run with data"):
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
