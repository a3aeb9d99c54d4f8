"""Bugs of threads, forks, signals, and of steps that end half way."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from faults import interrupted_at, lines_of
from museum import fails_with
from package_copy import ROOT

import steepest as st
from steepest.kernels import threads

OPTIMIZER = "core/optimizer.py"
ALONE = '        machine.alone(self._lock, self._step, grads, "step() of this optimizer")\n'

FORKED = """
import os, numpy, steepest as st
from steepest.kernels import threads
threads._least, threads._limit, threads._asked = threads._AWAKE, 2, 2
params = [numpy.ones(200_000), numpy.ones(200_000)]
opts = [st.Adam(p) for p in params]
opts[0].step(numpy.ones(200_000))
child = os.fork()
if child == 0:
    opts[0].step(numpy.ones(200_000))
    opts[1].step(numpy.ones(200_000))
    os._exit(0 if params[0].sum() < params[1].sum() < 200_000 else 1)
print(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@fails_with("kernels/threads.py", "    _forked = True\n", "    _forked = False\n")
def test_lightgbm_1789_a_forked_child_steps():
    """A child of a process whose OpenMP threads had run hung (lightgbm-org/LightGBM#1789,
    facebookresearch/faiss#5206)."""
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", FORKED], text=True,
                          stdout=subprocess.PIPE, start_new_session=True) as process:  # fmt: skip
        try:
            text, _ = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert text.split() == ["0"]


@fails_with(
    "kernels/threads.py",
    'return math.inf if granted == "max" else int(granted) / int(period)',
    "return math.inf",
)
def test_xgboost_7653_the_quota_of_a_container_counts(tmp_path):
    """As many threads as the host has processors, in a container that may use one, took 90 times as
    long (dmlc/xgboost#7653, scikit-learn/scikit-learn#20477)."""
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert threads.quota(tmp_path) == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert threads.quota(tmp_path) == float("inf")


@fails_with(
    "kernels/machine.pyx",
    "    if lock.held and lock.since == forks:\n",
    "    if False:\n",
    ("machine", None),
)
def test_cpython_153852_one_step_of_an_optimizer_at_a_time():
    """Objects that threads read and wrote at the same time without a lock: 15 races in one report
    (python/cpython#153852). Here a second step meanwhile is an error, and the first is whole."""
    inside, go_on, errors = threading.Event(), threading.Event(), []

    def lr(t):
        inside.set()
        assert go_on.wait(20)
        return 0.5

    w = np.ones(2)
    opt = st.SGD(w, lr=0.5)
    opt.param_groups[0]["lr"] = lr
    other = threading.Thread(target=opt.step, args=(np.ones(2),))
    other.start()
    try:
        assert inside.wait(20)
        opt.param_groups[0]["lr"] = 0.5
        with pytest.raises(RuntimeError, match="another thread"):
            opt.step(np.ones(2))
    finally:
        go_on.set()
        other.join()
    assert w.tolist() == [0.5, 0.5] and not errors


@fails_with(
    OPTIMIZER,
    ALONE,
    "        import threading\n        with self.__dict__.setdefault('_one', "
    "threading.Lock()):\n    " + ALONE,
)
def test_cython_5564_a_step_does_not_wait_for_another():
    """A parallel loop never ended: a thread waited for others with the interpreter's lock in its
    hand, for which they waited (cython/cython#5564)."""
    second = []

    def lr(t):
        def step():
            try:
                opt.step(np.ones(2))
            except RuntimeError as error:
                second.append(error)

        other = threading.Thread(target=step, daemon=True)
        other.start()
        other.join(3)
        return 0.5

    opt = st.SGD(np.ones(2))
    opt.param_groups[0]["lr"] = lr
    opt.step(np.ones(2))
    assert second and all("another thread" in str(error) for error in second)


@fails_with(
    "kernels/leveled/sign.pyx",
    "void signsgd(real *restrict p, const real *restrict g, real "
    "*restrict a, real *restrict b,\n                  real *restrict c, real *restrict d, "
    "Py_ssize_t n, double factor, double keep,\n                  const double *h) noexcept "
    "nogil:",
    "void signsgd(real *restrict p, const real *restrict g, real *restrict a, real "
    "*restrict b,\n                  real *restrict c, real *restrict d, Py_ssize_t n, double "
    "factor, double keep,\n                  const double *h) nogil:",
)
def test_cython_4709_no_kernel_can_raise():
    """A function that could raise made a parallel loop hang (cython/cython#4709)."""
    folder = Path(st.__file__).parent / "kernels" / "leveled"
    if not any(folder.glob("*.pyx")):
        folder = ROOT / "src" / "steepest" / "kernels" / "leveled"
    heads = [
        head
        for path in folder.glob("*.pyx")
        for head in re.findall(
            r"^cdef (?:inline )?(?:void|real) \w+\([^)]*\)[^:\n]*:", path.read_text(), re.M
        )
    ]
    assert len(heads) > 100
    assert [head for head in heads if not head.endswith("noexcept nogil:")] == []


def pair():
    return {"a": np.ones(2), "b": np.ones(2)}


@fails_with(
    OPTIMIZER,
    "        self._go(flat, count)\n\n    def _take_hyper",
    "        self._updates += 1\n        self._go(flat, count)\n        self._updates -= 1\n\n"
    "    def _take_hyper",
)
def test_cython_5720_ctrl_c_leaves_a_step_undone_or_done():
    """Compiled code does not look for Ctrl-C (cython/cython#5720), and some ignored it for a whole
    run (andyrimmer/Platypus#40). Here it comes at lines all through a step."""

    def made():
        params = pair()
        return params, st.Adam(params, lr=st.schedules.exponential(0.5, 0.5))

    def seen(params, opt):
        return repr((params, opt.updates, opt.state_dict()["state"]))

    grads = pair()
    params, opt = made()
    found = {seen(params, opt)}
    count = lines_of(lambda: opt.step(grads))
    found.add(seen(params, opt))
    assert len(found) == 2
    for n in range(1, count + 1, max(count // 50, 1)):
        params, opt = made()
        interrupted_at(n, lambda opt=opt: opt.step(grads))
        assert seen(params, opt) in found


@fails_with(
    OPTIMIZER,
    "        self._go(flat, count)\n\n    def _take_hyper",
    "        for i in range(len(flat)):\n            self._go([g if i == j else None for j, g in "
    "enumerate(flat)], count)\n\n    def _take_hyper",
)
@pytest.mark.parametrize(
    "bad", [np.ones(3), "text", np.ones(2, int)], ids=["shape", "kind", "type"]
)
def test_aidotnet_1633_an_error_leaves_all_parameters_as_they_were(bad):
    """A step that ran out of memory was to be tried again, but part of the parameters might be
    updated by then, as a review said (ooples/AiDotNet#1633)."""
    params = pair()
    opt = st.Adam(params)
    before = repr((params, opt.state_dict()))
    with pytest.raises((TypeError, ValueError), match="'b'"):
        opt.step({"a": np.ones(2), "b": bad})
    assert repr((params, opt.state_dict())) == before


@fails_with(
    "kernels/machine.pyx",
    "    if lock.held and lock.since == forks:\n",
    "    if False:\n",
    ("machine", None),
)
def test_scrypto_45_a_step_inside_a_step_is_refused():
    """A method that was called again from inside itself: what the inner call changed, the outer one
    overwrote (radixdlt/radixdlt-scrypto#45, which then forbade it)."""

    def lr(t):
        if depth:
            depth.clear()
            with pytest.raises(RuntimeError, match="further up"):
                opt.step(np.ones(2))
        return 0.5

    depth: list[int] = []
    opt = st.SGD(np.ones(2), lr=lr)
    depth.append(1)
    opt.step(np.ones(2))
    assert opt.updates == 1 and not depth
