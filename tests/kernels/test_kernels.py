"""Scalars, levels, threads, floating-point mode, and what the compiled rules consist of."""

import math
import os
import re
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from cases import LEVELS, same_bits, use_threads

import steepest as st
from steepest.kernels import dispatch, machine, threads
from steepest.kernels.scalars import one_minus_power
from steepest.reference.adam import one_minus_power as reference_one_minus_power

BETAS = (0.0, 0.5, 0.9, 0.95, 0.99, 0.999, 0.9999, 1 - 2**-40, 0.1, 1e-9, 1e-300)


@pytest.mark.parametrize("beta", BETAS)
def test_powers_are_rounded_once(beta):
    for t in [*range(300), 1000, 12_345]:
        if t > 300 and beta not in (0.9, 0.999):
            continue
        exact = 1 - Fraction(beta) ** t
        assert one_minus_power(beta, t) == exact.numerator / exact.denominator, t


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("t", [0, 10**5, 10**6 + 1, 2**24 + 1, 2**31 - 1, 2**53 + 7, 2**62])
def test_powers_equal_the_reference_at_any_step(beta, t):
    assert one_minus_power(beta, t) == reference_one_minus_power(beta, t)


def test_every_level_of_this_cpu_is_built():
    expected = [level for level in dispatch.LEVELS if machine.runs(level)]
    if sys.platform == "linux":
        assert list(LEVELS) == expected
    assert LEVELS[0] == "base"


@pytest.mark.parametrize("level", ["v9", "", "V3"])
def test_unknown_levels_are_refused(level):
    with pytest.raises(ValueError, match=re.escape(repr(level))):
        dispatch.use(level)


def test_a_level_the_cpu_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(machine, "runs", lambda level: level == "base")
    with pytest.raises(ValueError, match="this CPU and this build have base"):
        dispatch.load("v3")


def test_levels_have_the_same_functions():
    tables = [dispatch.load(level) for level in LEVELS]
    for kind in ("rules", "operations", "measures", "codecs"):
        assert len({tuple(getattr(table, kind)) for table in tables}) == 1


def test_optimizers_follow_a_change_of_level():
    w = np.zeros(1000)
    opt = st.Adam(w)
    for level in LEVELS:
        dispatch.use(level)
        opt.step(np.ones(1000))
    assert opt.updates == len(LEVELS) and opt.state["0"]["step"] == len(LEVELS)


# Threads


@pytest.mark.parametrize("n", [0, -1, 1.5, "2", True])
def test_bad_thread_counts_are_refused(n):
    with pytest.raises(ValueError, match="expected a whole number of at least 1"):
        st.set_num_threads(n)


def test_no_more_threads_than_cpus():
    st.set_num_threads(10_000)
    assert st.get_num_threads() == threads.limit()
    st.set_num_threads(1)
    assert st.get_num_threads() == 1


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "max 100000"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        ({"cpu.max": "nonsense"}, math.inf),
        ({}, math.inf),
    ],
)
def test_the_cgroup_quota(tmp_path, files, cpus):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert threads.quota(tmp_path) == cpus


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_any_number_of_threads_covers_every_element_once(n):
    use_threads(n)
    rng = np.random.default_rng(n)
    sizes = [int(x) for x in rng.integers(0, 9_000, 60)] + [100_000, 1, 0, 4096]
    params = [np.zeros(size, np.float32) for size in sizes]
    opt = st.SGD(params, lr=1.0)
    for _ in range(3):
        opt.step([np.ones(size, np.float32) for size in sizes])
    for p in params:
        np.testing.assert_array_equal(p, -3.0)


# The floating-point mode

FLUSH, UPWARD = 0x8040, 0x4000  # flush subnormals and read them as zero; round towards +inf


@pytest.mark.skipif(machine.float_mode() == 0, reason="no MXCSR on this machine")
@pytest.mark.parametrize("bits", [FLUSH, UPWARD, FLUSH | UPWARD])
@pytest.mark.parametrize("n", [100, 200_000])
def test_the_callers_floating_point_mode_neither_matters_nor_changes(bits, n):
    rng = np.random.default_rng(0)
    start = rng.standard_normal(n).astype(np.float32) * np.float32(1e-38)
    g = rng.standard_normal(n).astype(np.float32) * np.float32(1e-39)
    results = []
    for mode in (machine.float_mode(), machine.float_mode() | bits):
        p = start.copy()
        opt = st.SGD(p, lr=0.7, momentum=0.9, clip=st.clip.global_norm(1.0))
        opt.step(g)
        before = machine.float_mode()
        machine.set_float_mode(mode)
        try:
            opt._plan.rows()
            opt.coefficients(opt._groups[0].h, 2)
            opt._plan.program(0, "momentum", (0.7, 0.9, 1.0), 1.0, [], [], [], [])
            opt._plan.commit(2)
            after = machine.float_mode()
        finally:
            machine.set_float_mode(before)
        assert after & ~0x3F == mode & ~0x3F
        results.append(p)
    assert (np.abs(results[0][results[0] != 0]) < np.finfo(np.float32).tiny).any()
    same_bits(results[1], results[0])


GNU_OPENMP = pytest.mark.skipif(
    not (threads.team().openmp() and sys.platform == "linux"), reason="needs GNU's OpenMP"
)


@GNU_OPENMP
@pytest.mark.parametrize(
    ("setting", "spins"),
    [
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "77"}, "77"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, "0"),
    ],
)
def test_openmps_threads_soon_sleep_unless_asked_otherwise(setting, spins) -> None:
    """GNU's OpenMP tells its settings, as it is loaded, if OMP_DISPLAY_ENV asks for that."""
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    inherited = {k: v for k, v in os.environ.items() if k not in names}
    done = loaded(inherited | setting)
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr


@pytest.mark.torch
@GNU_OPENMP
def test_openmps_threads_wait_as_pytorch_has_it() -> None:
    pytest.importorskip("torch")
    spins = [
        re.findall("GOMP_SPINCOUNT = .*", loaded(dict(os.environ), modules).stderr)
        for modules in ("torch", "torch, steepest", "steepest, torch")
    ]
    assert spins[0] == spins[1] == spins[2]


def loaded(environment, modules="steepest"):
    """A new process, after a step on several threads where steepest is there."""
    code = f"""
import os
import numpy as np
import {modules}
before = dict(os.environ)
if "steepest" in globals():
    assert "libgomp" not in open("/proc/self/maps").read() or "torch" in globals()
    steepest.AdamW(np.zeros(300_000)).step(np.ones(300_000))
    assert "libgomp" in open("/proc/self/maps").read() and os.environ == before
"""
    environment["OMP_DISPLAY_ENV"] = "VERBOSE"
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )


def test_threads_that_sleep_are_woken_for_larger_steps(monkeypatch) -> None:
    monkeypatch.setattr(threads, "_least", None)
    monkeypatch.setattr(threads, "get_num_threads", lambda: 7)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert [threads.workers(n) for n in (0, 2**15, 2**18 - 1, 2**18)] == [1, 1, 1, 7]
    monkeypatch.setitem(sys.modules, "torch", pytest)
    for shared, small in ((True, 7), (False, 1)):  # those of Grand Central Dispatch are not torch's
        monkeypatch.setattr(threads, "_shared", shared)
        found = [threads.workers(n) for n in (0, 2**15 - 1, 2**15, 2**18)]
        assert found == [1, 1, small, 7]


@pytest.mark.parametrize("rule", ["adamw", "lamb", "adafactor"])
@pytest.mark.parametrize("options", [{}, {"state_dtype": "q8"}, {"clip": st.clip.global_norm(1.0)}])
def test_many_more_threads_than_processors(rule, options) -> None:
    """Shares of up to 192 threads: some have no element, some end in the middle of an array."""
    shapes = [(700, 128), (5,), (0, 3), (40_000,), (), (64, 256), (3, 7, 11)]

    def run(count: int) -> str:
        rng = np.random.default_rng(3)
        params = [rng.standard_normal(s).astype(np.float32) for s in shapes]
        params = [np.asarray(p, np.float32) for p in params]
        with threads.forced(count):
            opt = st.by_name(rule)(params, lr=0.01, **options)
            for _ in range(3):
                opt.step([np.asarray(rng.standard_normal(s), np.float32) for s in shapes])
        return opt.digest()

    assert len({run(count) for count in (1, 2, 17, 64, 192)}) == 1
