"""Bugs of infinity, NaN and norms, and of the floating-point mode."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from museum import fails_with

import steepest as st
from steepest import reference
from steepest.kernels import dispatch, machine, threads

ROUND_UP, FLUSH = 0x5F80, 0x9FC0  # MXCSR


@fails_with("core/optimizer.py", "        if math.isfinite(norms.total):\n", "        if True:\n")
@pytest.mark.parametrize("policy", ["skip", "raise"])
def test_rlevo_184_one_nan_does_not_stay_in_the_moments(policy):
    """One gradient that was not finite made both moments NaN for ever
    (anthonytorlucci/rlevo#184)."""
    w = np.ones(3)
    opt = st.AdamW([w, np.ones(1)], nonfinite=policy)
    opt.step([np.ones(3), np.ones(1)])
    before = w.tobytes(), repr(opt.state_dict()["state"])
    bad = [np.array([1.0, np.nan, 1.0]), np.ones(1)]
    if policy == "raise":
        with pytest.raises(FloatingPointError, match="parameter '0'"):
            opt.step(bad)
    else:
        opt.step(bad)
        assert opt.skipped == 1 and "'0'" in opt.last_skip
    assert (w.tobytes(), repr(opt.state_dict()["state"])) == before


@fails_with(
    "kernels/engine/norms.pyx",
    "        return representable(sqrt(x), exponent)",
    "        return <float>representable(sqrt(x), exponent)",
    ("engine/norms", None),
)
@pytest.mark.parametrize(("dtype", "x"), [(np.float32, 3e38), (np.float64, 1e200)], ids=["4", "8"])
def test_pytorch_46849_large_gradients_are_not_clipped_to_zero(dtype, x):
    """The norm of finite gradients of 1e20 came out infinite, and clipping made them 0 without a
    word (pytorch/pytorch#46849, pytorch/pytorch#53843)."""
    w = np.zeros(4, dtype)
    st.SGD(w, lr=1.0, clip=st.clip.global_norm(1.0)).step(np.full(4, x, dtype))
    np.testing.assert_allclose(w, -0.5, rtol=1e-6)  # a rounding of float32


@fails_with(
    "core/norms.py",
    "        total, each = plan.norms(workers, self.orders[0], measured)\n",
    "        total, each = plan.norms(workers, self.orders[0], measured)\n"
    "        total = total if total < 256 else 65504.0\n",
)
def test_burn_5699_a_norm_in_float16_does_not_overflow():
    """300² is beyond float16: the norm was infinite and the gradient became 0
    (tracel-ai/burn#5699)."""
    w = np.zeros(2, np.float16)
    opt = st.SGD(w, lr=1.0, clip=st.clip.global_norm(1.0))
    opt.step(np.array([300.0, 400.0], np.float16))
    assert opt.last_norm == 500.0
    np.testing.assert_allclose(w, [-0.6, -0.8], rtol=1e-3)  # a rounding of float16


@fails_with(
    "kernels/engine/norms.pyx",
    "            total = larger(total, e.measured)",
    "            total = 1",
    ("engine/norms", None),
)
def test_torchrec_3199_the_largest_element_is_the_norm_of_order_infinity():
    """The total of order infinity was raised to the power 1 / ∞, which is always 1
    (meta-pytorch/torchrec#3199)."""
    opt = st.SGD([np.zeros(2), np.zeros(1)], lr=1.0,
                 clip=st.clip.global_norm(2.0, p=math.inf))  # fmt: skip
    opt.step([np.array([1.0, -8.0]), np.array([4.0])])
    assert opt.last_norm == 8.0
    w = opt.param_groups[0]["params"][0]
    np.testing.assert_allclose(w, [-0.25, 2.0], rtol=1e-6)  # the 1e-6 of the formula


@pytest.mark.skipif(machine.float_mode() == 0, reason="no control word on this processor")
@fails_with(
    "kernels/machine.pyx",
    "floatmode_leave(mode)\n        lock.held = False",
    "pass\n        lock.held = False",
    ("machine", None),
)
def test_llvm_57589_a_step_gives_the_mode_back():
    """A shared library that was linked with -ffast-math set the mode of the thread that loaded it,
    and left it so (llvm/llvm-project#57589)."""
    before = machine.float_mode()
    try:
        machine.set_float_mode(FLUSH)
        st.Adam(np.ones(3)).step(np.ones(3))
        assert machine.float_mode() & ~0x3F == FLUSH & ~0x3F
    finally:
        machine.set_float_mode(before)


IMPORTED = """
import json, numpy
from steepest.kernels import machine
before = machine.float_mode()
import steepest as st
st.AdamW(numpy.ones(10)).step(numpy.ones(10))
print(json.dumps([5e-324 * 1.0 != 0.0, machine.float_mode() & ~63 == before & ~63]))
"""


@fails_with(
    "core/optimizer.py",
    "        machine.alone(self._lock, self._step, grads, ",
    "        machine.set_float_mode(0x9FC0)\n        machine.alone(self._lock, self._step, grads, ",
)
def test_imops_37_loading_and_stepping_do_not_flush_subnormals():
    """Importing a module that was built with -ffast-math made subnormals 0 for the program
    (neuro-ml/imops#37)."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [True, True]


@pytest.mark.skipif(machine.float_mode() == 0, reason="no control word on this processor")
@fails_with(
    "kernels/machine.pyx",
    "    mode = floatmode_enter()\n    try:\n        return function(argument)",
    "    mode = floatmode_get()\n    try:\n        return function(argument)",
    ("machine", None),
)
def test_icon4py_694_a_step_does_not_depend_on_the_callers_mode():
    """Started from a Fortran program, NumPy warned that its smallest subnormal number is 0; the
    mode of the caller was suspected (C2SM/icon4py#694). Here with that, and with rounding
    upwards."""
    g = np.linspace(-1e-3, 1e-3, 50)

    def made():
        w = np.zeros((9, 50))
        limits = [1e-4 * (k + 1) / 3 for k in range(9)]
        return w, [
            st.SGD(row, lr=0.7, clip=st.clip.global_norm(x))
            for row, x in zip(w, limits, strict=True)
        ]

    expected, opts = made()
    for opt in opts:
        opt.step(g)
    before = machine.float_mode()
    for mode in (ROUND_UP, FLUSH):
        found, opts = made()  # arithmetic of the caller's own depends on the mode
        try:
            machine.set_float_mode(mode)
            for opt in opts:
                opt.step(g)
        finally:
            machine.set_float_mode(before)
        assert np.array_equal(found, expected)


@fails_with(
    "kernels/leveled/adam.pyx",
    "        p[i] = k * p[i] - (now * gi + ahead * mi) / (",
    "        p[i] = k * p[i] - (ahead * mi + now * gi * (<real>1 + <real>1e-7)) / (",
    ("leveled/adam", "base"),
)
@pytest.mark.parametrize("level", dispatch.available())
def test_numpy_23523_every_instruction_set_gives_the_same_bits(level):
    """With AVX-512 sines, exponentials and logarithms differ in the last digits from those without
    (numpy/numpy#23523). Digests of one run, on every level."""
    dispatch.use(level)
    w = np.linspace(-1, 1, 301, dtype=np.float32)
    opt = st.NAdam(w, lr=0.01, weight_decay=0.1)
    for t in range(20):
        opt.step(((np.arange(301) * (t + 1) % 17 - 8) / 64).astype(np.float32))
    twin = np.linspace(-1, 1, 301, dtype=np.float32)
    state = {key: np.zeros(301, np.float32) for key in ("exp_avg", "exp_avg_sq")}
    for t in range(20):
        g = ((np.arange(301) * (t + 1) % 17 - 8) / 64).astype(np.float32)
        reference.step("nadam", twin, g, state, t + 1, lr=0.01, weight_decay=0.1,
                       betas=(0.9, 0.999), eps=1e-8, momentum_decay=4e-3)  # fmt: skip
    assert w.tobytes() == twin.tobytes()


@fails_with(
    "core/optimizer.py",
    "            norms = clipping.measure(plan, workers, self._peers, self._measured_ahead is plan)\n",
    "            norms = clipping.measure(plan, workers, self._peers, self._measured_ahead is plan)\n"
    "            norms = norms.times(1.0 + 1e-16 * 3 * (workers > 1))\n",
)
def test_xgboost_7313_a_norm_does_not_depend_on_the_number_of_threads():
    """The order of an OpenMP reduction is not fixed, and so were not the sums
    (dmlc/xgboost#7313)."""
    g = np.random.default_rng(0).standard_normal(400_000)
    found = set()
    for n in (1, 2, 3, 5):
        with threads.forced(n):
            opt = st.SGD(np.zeros(400_000), clip=st.clip.global_norm(1.0))
            opt.step(g)
            found.add(opt.last_norm)
    assert len(found) == 1


@fails_with(
    "reference/operations.py",
    "np.where(g < -real(limit), -real(limit), g)",
    "np.where(g < -real(limit), -real(limit), np.nan_to_num(g))",
)
def test_automodel_825_a_nan_is_not_clipped_to_a_number():
    """Norms that processes added up in bfloat16 became NaN (NVIDIA-NeMo/Automodel#825). A NaN must
    be seen behind a clip; the kernel and the reference agree on it."""
    w, twin = np.zeros(3), np.zeros(3)
    g = np.array([np.nan, 5.0, -np.inf])
    st.SGD(w, lr=1.0, clip=st.clip.value(1.0)).step(g)
    reference.step("sgd", twin, g, {}, 1, lr=1.0, momentum=0.0, dampening=0.0, nesterov=False,
                   clip=st.clip.value(1.0))  # fmt: skip
    assert np.isnan(w[0]) and w[1:].tolist() == [-1.0, 1.0]
    np.testing.assert_array_equal(w, twin)
