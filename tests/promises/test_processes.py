"""The life of a process: its children, its threads, its end, its processors, what else it imports.

Each program runs in an interpreter of its own, and prints digests of what it has stepped.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest

import steepest as st
from steepest.kernels import threads

OPENMP = bool(threads.team().openmp())
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

STEPS = """
import hashlib, json, os, sys, threading
import numpy as np, steepest as st
from steepest.kernels import threads

N = 300_000  # a sweep of several threads, with others asleep or awake

def begun(rule="AdamW"):
    return getattr(st, rule)(np.linspace(-1.0, 1.0, N), lr=0.01)

def stepped(opt, steps=3):
    p = opt.param_groups[0]["params"][0]
    for _ in range(steps):
        opt.step(np.cos(p))
    return digest(opt)

def digest(opt):
    h = hashlib.sha256(opt.param_groups[0]["params"][0].tobytes())
    for x in opt.state["0"].values():
        h.update(np.asarray(x).tobytes())
    return h.hexdigest()
"""


def run(folder: Path, code: str, before: str = "", **environment: str):
    """What a program prints last, as JSON, and what it says on standard error."""
    path = folder / "program.py"
    path.write_text(before + STEPS + code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-P", str(path)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


# Children


@pytest.mark.exhaustive
@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_children_of_every_kind_step_with_the_same_bits(tmp_path, method):
    """Before and after the parent's own threads have worked; by fork, with one thread."""
    code = f"""
import multiprocessing

def child(_):
    return stepped(begun()), st.get_num_threads()

if __name__ == "__main__":
    if {method!r} not in multiprocessing.get_all_start_methods():
        print(json.dumps(None))
        sys.exit()
    context = multiprocessing.get_context({method!r})
    with context.Pool(2) as pool:
        early = pool.map(child, range(2))
    st.set_num_threads(2)
    threads._limit = 2
    here = stepped(begun())
    with context.Pool(2) as pool:
        late = pool.map(child, range(2))
    print(json.dumps([here, early, late]))
"""
    found, errors = run(tmp_path, code)
    if found is None:
        pytest.skip(f"this system has no {method}")
    here, early, late = found
    assert {bits for bits, _ in [*early, *late]} == {here}
    if method == "fork":
        assert {count for _, count in late} == {1}
    assert "Traceback" not in errors


@FORKS
@pytest.mark.exhaustive
def test_a_child_forked_in_the_middle_of_parallel_steps_is_whole(tmp_path):
    """Other threads sweep, in parallel, at the moment of the fork: the child's copy of their
    optimizers may be in the middle of a step, its own are not."""
    code = """
import signal, time
st.set_num_threads(2)
threads._limit = 2
mine, others = begun(), [begun() for _ in range(2)]
expected = stepped(begun(), 2)
stop = threading.Event()

def work(opt):
    while not stop.is_set():
        stepped(opt, 1)

workers = [threading.Thread(target=work, args=(opt,)) for opt in others]
[x.start() for x in workers]
children = []
for _ in range(6):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(0 if stepped(mine, 2) == expected else 3)
    children.append(child)
codes = [os.waitpid(child, 0)[1] for child in children]
stop.set()
[x.join() for x in workers]
print(json.dumps([codes, stepped(mine, 2) == expected]))
"""
    (codes, same), _ = run(tmp_path, code, PYTHONWARNINGS="ignore")
    assert codes == [0] * 6 and same


# Threads of Python


def test_threads_with_optimizers_of_their_own_get_the_bits_of_one():
    """Each also with several threads of OpenMP."""
    rules = [st.AdamW, st.Lion, st.SGD, st.LAMB]

    def stepped(rule):
        w = np.linspace(-1.0, 1.0, 100_000)
        opt = rule(w, lr=0.01)
        for _ in range(8):
            opt.step(np.cos(w))
        return hashlib.sha256(w.tobytes()).hexdigest()

    def work(i):
        meet.wait()
        found[i] = stepped(rules[i])

    expected = [stepped(rule) for rule in rules]
    with threads.forced(2):
        meet, found = threading.Barrier(len(rules)), [None] * len(rules)
        workers = [threading.Thread(target=work, args=(i,)) for i in range(len(rules))]
        for x in workers:
            x.start()
        for x in workers:
            x.join()
    assert found == expected


def test_threads_with_one_optimizer_take_turns_or_are_refused():
    """A step is whole or a RuntimeError: the count is that of the steps that returned."""
    w = np.zeros(50_000)
    opt = st.SGD(w, lr=1.0)
    given = np.full(w.shape, -1.0)
    meet, done, refused = threading.Barrier(4), [0] * 4, [0] * 4

    def work(i):
        meet.wait()
        for _ in range(50):
            try:
                opt.step(given)
            except RuntimeError:
                refused[i] += 1
            else:
                done[i] += 1

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    with threads.forced(2):
        for x in workers:
            x.start()
        for x in workers:
            x.join()
    assert sum(done) + sum(refused) == 200 and sum(done) > 0
    assert opt.updates == sum(done) == opt.state["0"]["step"]
    np.testing.assert_array_equal(w, float(sum(done)))


# The end


ENDS = {
    "a live optimizer": "opt = begun(); stepped(opt)",
    "a step in atexit": """
import atexit
opt = begun()
expected = stepped(begun())
atexit.register(lambda: print(json.dumps(stepped(opt) == expected), flush=True))
""",
    "a step when it is freed": """
class Owner:
    def __del__(self):
        print(json.dumps(self.stepped(self.opt) == self.expected), flush=True)
owner = Owner()
owner.opt, owner.stepped, owner.expected = begun(), stepped, stepped(begun())
""",
    "a module's last object": """
class Owner:
    def __init__(self): self.opt = begun("LAMB")
    def __del__(self):
        try:
            self.opt.step(np.ones(N))
        except Exception:  # modules may be gone by then
            pass
        print("true", flush=True)
sys.modules["kept"] = Owner()
""",
    "daemons that step": """
opts = [begun() for _ in range(3)]
begin = threading.Barrier(4)
def work(opt):
    stepped(opt, 1)
    begin.wait()
    while True:
        stepped(opt, 1)
[threading.Thread(target=work, args=(opt,), daemon=True).start() for opt in opts]
begin.wait()
""",
    "a process that ends in a step": """
w = np.ones(N)
def lr(t): os._exit(0)
print("true", flush=True)
st.SGD(w, lr=lr)
""",
}


@pytest.mark.parametrize("code", ENDS.values(), ids=ENDS)
def test_an_interpreter_ends_well(tmp_path, code):
    found, errors = run(tmp_path, f"print('true')\n{code}", STEEPEST_NUM_THREADS="2")
    assert found is True and errors == ""


# What else is imported


@LINUX
@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(
    "other",
    [
        pytest.param("torch", marks=pytest.mark.torch),
        pytest.param("sklearn.ensemble", marks=pytest.mark.exhaustive),
        pytest.param("numba", marks=pytest.mark.torch),
    ],
)
def test_other_packages_with_threads_may_come_before_or_after(tmp_path, other, first):
    """The bits are those without them, and there is one runtime for ours and PyTorch's threads.
    The wheels of scikit-learn bring one under a name of its own, which they alone call; numba's ask
    for the system's by its file's name, `libgomp.so.1.0.0`, to which no bundled one answers."""
    pytest.importorskip(other.partition(".")[0])
    warm = {
        "torch": "import torch; torch.ones(1_000_000).add_(1)",
        "sklearn.ensemble": """
from sklearn.ensemble import HistGradientBoostingClassifier as Model
import numpy
Model(max_iter=2).fit(numpy.arange(400.0).reshape(-1, 1), numpy.arange(400) % 2)
""",
        "numba": """
import numba, numpy
numba.config.THREADING_LAYER = "omp"
@numba.njit(parallel=True)
def total(x):
    s = 0.0
    for i in numba.prange(len(x)):
        s += x[i]
    return s
total(numpy.ones(10_000))
""",
    }[other]
    last = """
st.set_num_threads(2)
threads._limit = 2
bits = stepped(begun())
WARM
again = stepped(begun())
with open("/proc/self/maps") as file:
    paths = {line.split()[-1] for line in file if "/" in line}
runtimes = [x for x in paths if os.path.basename(x).startswith(("libgomp", "libomp", "libiomp"))]
print(json.dumps([bits, again, runtimes]))
"""
    plain, _ = run(tmp_path, last.replace("WARM", ""))
    code = last.replace("WARM", "" if first else warm)
    found, errors = run(tmp_path, code, before=warm if first else "")
    assert found[:2] == [plain[0]] * 2 and errors == ""
    own = [x for x in found[2] if "scikit_learn" not in x]
    if other == "numba" and len(own) == 2:
        own = [x for x in own if os.path.basename(x) != "libgomp.so.1.0.0"]
    assert len(own) == 1 and os.path.basename(own[0]).startswith("libgomp.so.1"), found


# Processors


@LINUX
def test_no_more_threads_than_the_processors_that_are_allowed(tmp_path):
    """By affinity, which is set before and after the import, and by count of the system's tasks."""
    code = """
allowed = sorted(os.sched_getaffinity(0))
os.sched_setaffinity(0, allowed[:1])
before = len(os.listdir("/proc/self/task"))
stepped(begun())
print(json.dumps([st.get_num_threads(), len(os.listdir("/proc/self/task")) - before]))
"""
    assert run(tmp_path, code)[0] == [1, 0]
    pinned = f"import os; os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[:1]})\n"
    assert run(tmp_path, code, before=pinned, STEEPEST_NUM_THREADS="8")[0] == [1, 0]


@LINUX
@pytest.mark.parametrize(("granted", "expected"), [("100000 100000", 1), ("250000 100000", 3)])
def test_no_more_threads_than_the_cgroup_grants(tmp_path, granted, expected):
    """A quota is one of the kernel's files; here it is a file like it, and eight processors."""
    (tmp_path / "cpu.max").write_text(granted)
    code = f"""
os.sched_getaffinity = lambda pid: set(range(8))
from pathlib import Path
threads.quota.__defaults__ = (Path({str(tmp_path)!r}),)
before = len(os.listdir("/proc/self/task"))
stepped(begun())
print(json.dumps([st.get_num_threads(), len(os.listdir("/proc/self/task")) - before]))
"""
    found, _ = run(tmp_path, code, OMP_NUM_THREADS="8")
    assert found[0] == expected
    assert found[1] == expected - 1 or not OPENMP  # others start threads as they see fit


UNCOUNTED = {
    "nothing": ({}, 8, "CPUs"),
    "a number": ({"OMP_NUM_THREADS": "3"}, 3, "OMP_NUM_THREADS"),
    "no number": ({"OMP_NUM_THREADS": "many"}, 8, "CPUs"),
    "zero": ({"OMP_NUM_THREADS": "0"}, 8, "CPUs"),
    "too many": ({"OMP_NUM_THREADS": "20"}, 8, "OMP_NUM_THREADS is 20"),
    "a launcher of two": ({"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}, 4, "LOCAL_WORLD_SIZE"),
}


@pytest.mark.parametrize(("environment", "expected", "why"), UNCOUNTED.values(), ids=UNCOUNTED)
def test_threads_of_a_library_without_a_setting(monkeypatch, environment, expected, why):
    """As those of Grand Central Dispatch; eight processors."""
    monkeypatch.setattr(threads, "_team", types.SimpleNamespace(max_threads=lambda: 0))
    monkeypatch.setattr(threads, "_limit", 8)
    monkeypatch.setattr(threads, "_asked", None)
    for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    number, by = threads.granted()
    assert number == expected
    assert why in by


SETTING = "OpenMP" if OPENMP else "OMP_NUM_THREADS"
SHARES = {
    "a launcher of two": ({"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}, 4, "LOCAL_WORLD_SIZE"),
    "of three": ({"LOCAL_WORLD_SIZE": "3", "OMP_NUM_THREADS": "1"}, 2, "LOCAL_WORLD_SIZE"),
    "of more than there are CPUs": ({"LOCAL_WORLD_SIZE": "9", "OMP_NUM_THREADS": "1"}, 1, "LOCAL"),
    "its user's number": ({"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "3"}, 3, SETTING),
    "none": ({"OMP_NUM_THREADS": "1"}, 1, SETTING),
    "a wish": (
        {"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", "STEEPEST_NUM_THREADS": "1"},
        1,
        "STEEPEST_NUM_THREADS",
    ),
    "no number": ({"LOCAL_WORLD_SIZE": "two", "OMP_NUM_THREADS": "1"}, 1, SETTING),
}


@LINUX
@pytest.mark.parametrize(("environment", "expected", "why"), SHARES.values(), ids=SHARES)
def test_a_process_of_a_launcher_uses_its_share(tmp_path, environment, expected, why):
    """torchrun sets OMP_NUM_THREADS=1 for several processes where nobody has; eight processors."""
    code = """
os.sched_getaffinity = lambda pid: set(range(8))
threads.quota.__defaults__ = (__import__("pathlib").Path("/nowhere"),)
before = len(os.listdir("/proc/self/task"))
stepped(begun())
said = st.info()
print(json.dumps([said["threads"], len(os.listdir("/proc/self/task")) - before,
                  said["threads_by"]]))
"""
    unset = {"STEEPEST_NUM_THREADS": ""}
    (number, started, by), _ = run(tmp_path, code, **(unset | environment))
    assert number == expected
    assert started == expected - 1 or not OPENMP
    assert why in by
