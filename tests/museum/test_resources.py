"""Bugs of memory, of subnormal numbers, and of the instruction set."""

import tracemalloc

import numpy as np
import pytest
from museum import fails_with

import steepest as st
from steepest.kernels import dispatch, machine

OPTIMIZER = "core/optimizer.py"


def growth(call, times):
    """The bytes of Python and NumPy that so many calls leave behind, and the most in between."""
    for _ in range(20):
        call()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(times):
            call()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return after - before, peak - before


@fails_with(
    OPTIMIZER,
    "        climbing, rows = False, plan.rows()\n",
    "        climbing, rows = False, plan.rows()\n        self.__dict__.setdefault('_log', [])"
    ".append([count])\n",
)
def test_fireants_107_steps_leave_nothing_behind():
    """Every registration left its memory behind, since its optimizer held itself, and a loop of
    them ran out of memory (rohitrango/FireANTs#107). Here a loop of steps."""
    opt = st.AdamW(np.ones(8), lr=st.schedules.cosine(0.1, steps=99), clip=st.clip.global_norm(1.0))
    left, _ = growth(lambda: opt.step(np.ones(8)), 300)
    assert left < 4096


@fails_with(
    OPTIMIZER,
    "        self._flat_step(flat if self._in_order",
    "        flat = [None if g is None else g.copy() for g in flat]\n"
    "        self._flat_step(flat if self._in_order",
)
def test_pytorch_97712_a_step_takes_no_copies():
    """A step over lists of parameters took memory for results in between, as large as all of them
    (pytorch/pytorch#97712)."""
    w, g = np.ones(500_000), np.ones(500_000)
    opt = st.AdamW(w, weight_decay=0.1, clip=st.clip.value(0.5))
    _, peak = growth(lambda: opt.step(g), 3)
    assert peak < w.nbytes // 20


@fails_with("kernels/dispatch.py", "    if level not in available():\n", "    if False:\n")
def test_stable_diffusion_1351_an_instruction_set_that_is_not_there_is_refused(monkeypatch):
    """A program ended with `Illegal instruction` on a processor that seems to have AVX and no AVX2
    (leejet/stable-diffusion.cpp#1351)."""
    level = dispatch.available()[-1]
    monkeypatch.setattr(machine, "runs", lambda asked: asked != level)
    with pytest.raises(ValueError, match="cannot be used"):
        dispatch.load(level)


@fails_with(
    "kernels/floatmode.pxd",
    "    #define STEEPEST_FLOATMODE_DEFAULT 0x1f80ULL  /* nearest",
    "    #define STEEPEST_FLOATMODE_DEFAULT 0x9fc0ULL  /* nearest",
    ("machine", None),
    ("engine/sweeps", None),
)
def test_dfdx_59_moments_that_die_away_are_computed_and_not_flushed():
    """Training with Adam became slower and slower with subnormal numbers, and flushing them to 0
    cured it (chelsea0x3b/dfdx#59). Here moments follow the formula down to 0."""
    m = np.full(16, 2.0**-1020)
    opt = st.SGD(np.ones(16), momentum=0.5)
    opt.step(np.zeros(16))
    opt.state["0"]["momentum_buffer"][...] = m
    for k in range(1, 60):
        opt.step(np.zeros(16))
        expected = 2.0 ** (-1020 - k) if k <= 54 else 0.0
        assert (opt.state["0"]["momentum_buffer"] == expected).all(), k
