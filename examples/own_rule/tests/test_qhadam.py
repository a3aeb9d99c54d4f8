"""QHAdam's kernel equals its reference, and its reference does what the paper says."""

import numpy as np
import pytest
import qhadam.reference
from qhadam import QHAdam

import steepest as st
from steepest.extension.testing import check_rule

ODD = {"lr": 0.0137, "betas": (0.83, 0.9871), "nus": (0.61, 0.87), "eps": 3e-5}


@pytest.mark.parametrize("weight_decay", [0.0, 0.07])
def test_the_kernel_equals_the_reference(weight_decay):
    check_rule(QHAdam, ODD | {"weight_decay": weight_decay})


def test_with_nus_of_one_it_is_adam():
    rng = np.random.default_rng(0)
    w, twin = np.ones(100), np.ones(100)
    opt = QHAdam(w, betas=(0.9, 0.999), nus=(1.0, 1.0))
    adam = st.Adam(twin)
    for _ in range(50):
        g = rng.standard_normal(100)
        opt.step(g)
        adam.step(g)
    np.testing.assert_allclose(w, twin, rtol=1e-13)  # other roundings of the same formula


def test_with_nus_of_zero_it_steps_by_the_gradient_over_its_magnitude():
    w = np.zeros(3)
    QHAdam(w, lr=0.25, nus=(0.0, 0.0), eps=0.0).step(np.array([3.0, -0.5, 1e-6]))
    np.testing.assert_array_equal(w, [-0.25, 0.25, -0.25])


def test_nus_above_one_are_refused():
    with pytest.raises(ValueError, match=r"nus\[0\] = 1\.5"):
        QHAdam(np.zeros(3), nus=(1.5, 1.0))


def test_rosenbrock():
    w = np.array([-1.2, 1.0])
    opt = QHAdam(w, lr=0.02)
    for _ in range(5000):
        x, y = w
        opt.step(np.array([400 * x * (x * x - y) + 2 * (x - 1), 200 * (y - x * x)]))
    x, y = w
    assert 100 * (y - x * x) ** 2 + (1 - x) ** 2 < 1e-3  # 24.2 at the start


def test_it_is_listed():
    assert st.optimizers.RULES["qhadam"] is QHAdam and qhadam.reference.qhadam
