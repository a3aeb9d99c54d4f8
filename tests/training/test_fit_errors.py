import doctest
import subprocess
import sys

import numpy as np
import pytest
from regression_line import exact, line, start

import steepest as st
from steepest import training
from steepest.extras import MissingExtra
from steepest.training import batches, fit, history
from steepest.training.history import History


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "epochs = 0: expected 1 or more"),
        ({"epochs": 2.5}, TypeError, "epochs = 2.5: expected an integer"),
        ({"batch_size": 0}, ValueError, "batch_size = 0: expected 1 or more"),
        ({"batch_size": "8"}, TypeError, "batch_size = '8': expected an integer"),
        ({"patience": 0}, ValueError, "patience = 0: expected 1 or more"),
        ({"seed": -1}, ValueError, "seed = -1: expected 0 or more"),
        ({"min_delta": -0.1}, ValueError, "min_delta = -0.1: expected 0 or more"),
        ({"data": (np.zeros(3), np.zeros(4))}, ValueError, r"shapes \(3,\), \(4,\); expected"),
        ({"data": (np.zeros(0), np.zeros(0))}, ValueError, "data has no samples"),
        ({"data": (1.0, 2.0)}, TypeError, r"data\[0\] is one value"),
        ({"data": 3.0}, TypeError, "data is a float; expected a tuple of arrays"),
        ({"validation": (np.zeros(0),)}, ValueError, "validation has no samples"),
        ({"data": (), "batch_size": 2}, ValueError, "batch_size = 2: expected None"),
        ({"data": (), "batch_size": lambda t: 2}, ValueError, "expected None for a loss without"),
        ({"use_ema": True}, ValueError, "use_ema=True has no effect without validation or metrics"),
        ({"use_ema": True, "validation": exact()}, ValueError, r"with ema=0\.999 or average="),
        ({"metrics": {"loss": line}}, ValueError, "metric 'loss'.*rename it"),
        ({"metrics": {"val_x": line}}, ValueError, "metric 'val_x'.*rename it"),
        ({"optimizer": st.SGD(start())}, ValueError, "made with other arrays than params"),
        ({"optimizer": lambda p: st.SGD(p["w"])}, ValueError, "made with other arrays"),
        ({"params": {"w": 0.0}, "optimizer": lambda p: st.SGD(np.zeros(1))}, TypeError,
         "parameter 'w' is a float; expected an array"),
        ({"loss": lambda p, x, y: (p["w"] * x - y) ** 2}, ValueError,
         r"loss has shape \(40,\); expected one number"),
        ({"value_and_grad": lambda p, x, y: (x, {})}, ValueError, r"loss has shape \(40,\)"),
    ],
)  # fmt: skip
def test_wrong_arguments_change_nothing(change, error, message) -> None:
    p = start()
    arguments = {"loss": line, "params": p, "data": exact(), "epochs": 2}
    arguments |= {"optimizer": lambda p: st.SGD(p, lr=0.1)} | change
    with pytest.raises(error, match=message):
        fit(**arguments)
    assert p == start()


def test_batches_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="batch_size = 0: expected 1 or more"):
        list(batches((np.zeros(3),), 0))
    with pytest.raises(ValueError, match="expected equal first lengths"):
        list(batches((np.zeros(3), np.zeros(2)), 1))


@pytest.mark.parametrize(
    ("missing", "call", "purpose"),
    [
        ("autograd", lambda p: fit(line, p, exact(), st.SGD, epochs=1), "a loss without"),
        ("tqdm.auto", lambda p: fit(line, p, exact(), st.SGD, epochs=1, progress=True), "progress"),
        ("matplotlib.figure", lambda p: History([{"loss": 1.0}]).plot(), "History.plot"),
    ],
)
def test_missing_packages(monkeypatch, missing, call, purpose) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    p = start()
    with pytest.raises(MissingExtra, match=rf"{purpose}.*pip install .* \[train\]"):
        call(p)
    assert p == start()


def test_optional_packages_are_imported_late() -> None:
    code = (
        "import sys, steepest.training, steepest.cli, steepest.data, steepest.models;"
        "print(sorted(sys.modules.keys() & {'autograd', 'matplotlib', 'pandas', 'sklearn', "
        "'scipy', 'tqdm', 'torch'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_examples() -> None:
    for module in (training, training.loop, training.sampling):
        assert doctest.testmod(module).failed == 0
    assert doctest.testmod(history).failed == 0
