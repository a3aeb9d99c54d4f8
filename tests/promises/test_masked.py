"""Masked arrays: nothing here sees a mask, so that whoever is given one refuses it by name."""

import numpy as np
import pytest

import steepest as st
from steepest.models import losses

X = np.arange(6.0).reshape(3, 2)
Y = np.array([1.0, 2.0, 3.0])


def masked(x):
    return np.ma.array(x, mask=np.arange(np.size(x)).reshape(np.shape(x)) == 1)


def loss(params, x, y):
    return np.mean((x @ params["w"] - y) ** 2)


def fitted(data, **rest):
    st.fit(loss, {"w": np.zeros(2)}, data, st.SGD, epochs=1, **rest)


def lr_found(data):
    st.find_lr(loss, {"w": np.zeros(2)}, data, st.SGD)


def loaded(opt, change):
    state = opt.state_dict()
    change(state["state"])
    opt.load_state_dict(state)


def momentum(state):
    state["w"]["momentum_buffer"] = masked(np.zeros(2))


def minimized(fun, jac):
    scipy = pytest.importorskip("scipy.optimize")
    scipy.minimize(fun, Y, jac=jac, method=st.scipy_method(st.Adam))


def converted():
    state = {0: {"momentum_buffer": masked(np.zeros(2))}}
    group = {"lr": 0.1, "momentum": 0.5, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False}
    given = {"state": state, "param_groups": [group | {"params": [0]}]}
    st.convert.from_torch(given, st.SGD([np.zeros(2)], momentum=0.5))


CASES = {
    "the inputs of fit": ("data[0]", lambda: fitted((masked(X), Y))),
    "the targets of fit": ("data[1]", lambda: fitted((X, masked(Y)))),
    "the validation of fit": ("validation[1]", lambda: fitted((X, Y), validation=(X, masked(Y)))),
    "the data of find_lr": ("data[1]", lambda: lr_found((X, masked(Y)))),
    "a filter's mask": (
        "the array of 'w'", lambda: st.filters.mask({"w": masked(np.array([True, False]))})
    ),
    "a state that is loaded": (
        "momentum_buffer", lambda: loaded(st.SGD({"w": np.zeros(2)}, momentum=0.5), momentum)
    ),
    "a state that is converted": ("state 'momentum_buffer'", converted),
    "what fun returns": (
        "what fun returned", lambda: minimized(lambda x: masked(x[:1]), lambda x: x)
    ),
    "what jac returns": ("what jac returned", lambda: minimized(lambda x: x @ x, masked)),
    "a prediction": ("an argument of a loss", lambda: losses.squared(masked(Y), Y)),
    "a target": ("an argument of a loss", lambda: losses.squared(Y, masked(Y))),
    "labels": ("label", lambda: losses.logistic(Y, masked(np.array([0, 1, 1])))),
    "classes": ("classes", lambda: losses.cross_entropy(X, masked(np.array([0, 1, 1])))),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_mask_is_never_dropped(case):
    what, call = CASES[case]
    with pytest.raises(TypeError) as caught:
        call()
    assert f"{what}" in str(caught.value)
    assert "is a MaskedArray, whose mask would be ignored; give a plain array" in str(caught.value)
