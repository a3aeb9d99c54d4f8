"""The delay of Ctrl-C, and the stopping rules by themselves."""

import doctest
import math
import signal
import threading
from importlib import import_module

import pytest
from interrupted_runs import Train, adamw

from steepest.training.stopping import Shield, Watch


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
