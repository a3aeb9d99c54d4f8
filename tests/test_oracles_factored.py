"""Rules by rows and columns, in float64, against implementations by others.

The tolerance 1e-12 is for 100 steps of differently ordered roundings in float64.
"""

import numpy as np
import pytest
from cases import reference_hyper
from test_oracles_signs_and_averages import assert_close, torch_path

import steepest as st
from steepest import reference

SHAPES = [(5,), (7, 4), (1, 6), (6, 1), (3, 4, 5), (2, 3, 3, 3)]


def path(opt, p, grads):
    """The parameter after each step of the reference, with this optimizer's hyper-parameters."""
    p = p.copy()
    state = {key: x.copy() for key, x in opt.state["0"].items()}
    found = []
    for t, g in enumerate(grads, 1):
        reference.step(opt.rule, p, g, state, t, **reference_hyper(opt))
        found.append(p.copy())
    return np.array(found)


def problem(shape):
    rng = np.random.default_rng(0)
    grads = rng.standard_normal((100, *shape)) * np.linspace(0.1, 3.0, 100).reshape(
        -1, *[1] * len(shape)
    )
    return rng.standard_normal(shape), grads


@pytest.mark.torch
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"lr": 0.3, "beta2_decay": -0.6, "eps": (0.4, 0.9), "d": 1.7, "weight_decay": 0.07},
    ],
)
def test_adafactor_is_torchs(shape, maximize, arguments):
    torch = pytest.importorskip("torch")
    start, grads = problem(shape)
    opt = st.Adafactor(start.copy(), maximize=maximize, **arguments)
    theirs, _ = torch_path(
        lambda p: torch.optim.Adafactor(p, maximize=maximize, **arguments), grads, start
    )
    assert_close(path(opt, start, grads), theirs)


@pytest.mark.torch
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_adafactors_state_is_torchs(shape):
    torch = pytest.importorskip("torch")
    start, grads = problem(shape)
    p = start.copy()
    opt = st.Adafactor(p)
    for g in grads:
        opt.step(g)
    _, theirs = torch_path(torch.optim.Adafactor, grads, start)
    (their_state,) = theirs.state_dict()["state"].values()
    assert opt.state["0"].keys() == their_state.keys()
    for key, x in their_state.items():
        assert opt.state["0"][key].shape == x.shape
        np.testing.assert_allclose(opt.state["0"][key], x.numpy(), rtol=1e-12)


@pytest.mark.torch
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {"relative_step": True, "lr": None}),
        ({"warmup_init": True}, {"relative_step": True, "lr": None, "warmup_init": True}),
        (
            {"lr": 0.3, "relative_step": False, "scale_parameter": False, "beta1": 0.8,
             "eps": (1e-3, 0.2), "d": 0.7, "beta2_decay": -0.6, "weight_decay": 0.07},
            {"lr": 0.3, "relative_step": False, "scale_parameter": False, "beta1": 0.8,
             "eps": (1e-3, 0.2), "clip_threshold": 0.7, "decay_rate": -0.6, "weight_decay": 0.07},
        ),
        (
            {"lr": 0.3, "relative_step": False, "eps": (1e-3, 0.9), "weight_decay": 0.07},
            {"lr": 0.3, "relative_step": False, "eps": (1e-3, 0.9), "weight_decay": 0.07},
        ),
    ],
)  # fmt: skip
def test_adafactors_paper_form_is_that_of_transformers(shape, maximize, ours, theirs):
    optimization = pytest.importorskip("transformers").optimization
    start, grads = problem(shape)
    opt = st.Adafactor(start.copy(), form="paper", maximize=maximize, **ours)
    other, _ = torch_path(
        lambda p: optimization.Adafactor(p, **theirs), -grads if maximize else grads, start
    )
    assert_close(path(opt, start, grads), other)
