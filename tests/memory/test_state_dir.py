"""State arrays in files: the same bits as in memory, little memory, and nothing left behind."""

import copy
import errno
import gc
import os
import pickle
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from cases import CONFIGURATIONS, DTYPES, MATRICES_ONLY, hyper, label, misaligned, use_threads
from faults import interrupted_at

import steepest as st
from steepest.checkpoint import read
from steepest.memory import arrays
from steepest.memory.files import Scratch, lies_in_file
from steepest.optimizers import RULES

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
MB = 1 << 20

SHAPES = {
    "embedding/ö.weight": (24, 10), "kernel": (4, 3, 2, 2), "vector": (9,), "scale": (),
    "empty": (0, 5),
}  # fmt: skip


def start(dtype, shapes, seed=1):
    rng = np.random.default_rng(seed)
    return {
        name: np.asarray(rng.standard_normal(shape), dtype, order="F")
        for name, shape in shapes.items()
    }


def in_files(opt):
    """Whether each state array lies in a file, by key."""
    counted = {"step", *(key for live in opt._groups for key in live.rule.scalars(live.h))}
    return {
        (name, key): lies_in_file(x)
        for name, own in opt.state.items()
        for key, x in own.items()
        if key not in counted
    }


def steps(opt, params, count, begin=0):
    for step in range(begin, begin + count):
        grads = start(np.float64, {k: p.shape for k, p in params.items()}, 100 + step)
        opt.step({k: g.astype(params[k].dtype) for k, g in grads.items()})


def wide(folder=None, n=4, rule=st.AdamW, **options):
    """An optimizer whose states take n · 2 MB."""
    params = {f"{i}": np.ones(MB // 4, np.float32) for i in range(n)}
    opt = rule(params, state_dir=folder, **options)
    opt.step(halves(params))
    return params, opt


def halves(params):
    return {name: np.full_like(p, 0.5) for name, p in params.items()}


# The bits


@pytest.mark.parametrize("dtype", DTYPES, ids=label)
@pytest.mark.parametrize(
    ("rule", "arguments"),
    CONFIGURATIONS + [(rule, hyper(rule, {})) for rule in MATRICES_ONLY],
    ids=label,
)
def test_every_rule_has_the_bits_of_states_in_memory(tmp_path, rule, arguments, dtype):
    shapes = SHAPES
    if rule in MATRICES_ONLY:
        shapes = {name: shape for name, shape in SHAPES.items() if len(shape) > 1}
    options = {"ema": 0.9, "clip": None}
    if RULES[rule].may_be_moved:
        options["lookahead"] = st.average.lookahead(2)
    runs = []
    for folder in (None, tmp_path):
        params = start(dtype, shapes)
        opt = RULES[rule](params, **(arguments | options), state_dir=folder)
        found = in_files(opt)
        assert found and all(x == (folder is not None) for x in found.values())
        steps(opt, params, 4)
        assert in_files(opt) == found
        runs.append((params, opt.state_dict()))
    np.testing.assert_equal(runs[0], runs[1])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("rule", ["adamw", "lamb", "adafactor", "prodigy"])
def test_threads_give_the_same_bits(tmp_path, rule, threads):
    use_threads(threads)
    runs = []
    for folder in (None, tmp_path):
        params = start(np.float32, {"a": (300, 200), "b": (70_000,), "c": (3,)})
        opt = RULES[rule](params, state_dir=folder, clip=st.clip.global_norm(1.0))
        steps(opt, params, 3)
        runs.append((params, opt.state_dict()))
    np.testing.assert_equal(runs[0], runs[1])


def test_what_states_begin_with_is_written_to_the_bit():
    """Zeros are left unwritten; a negative zero is none."""
    x = np.zeros(3 * MB, np.float32)
    x[2 * MB - 1] = -0.0
    scratch = Scratch("x")
    scratch._room = lambda nbytes: np.zeros(nbytes + arrays.LINE, np.uint8)
    assert scratch.copy(x).tobytes() == x.tobytes()


def test_hyper_parameters_that_need_arrays_later_have_them_in_files_too(tmp_path):
    params, opt = wide(tmp_path)
    for group in opt.param_groups:
        group["ema"], group["amsgrad"] = 0.9, True
    opt.step(halves(params))
    found = in_files(opt)
    assert len(found) == 4 * 4 and all(found.values())


def test_new_masks_lie_in_files_too(tmp_path):
    params = {"w": np.ones(5)}
    opt = st.SGD(params, filter=st.filters.mask({"w": np.array([1, 0, 1, 0, 1.0])}),
                 state_dir=tmp_path)  # fmt: skip
    opt.step({"w": np.ones(5)})
    opt.param_groups[0]["filter"] = st.filters.mask({"w": np.array([0, 1, 0, 0, 0.0])})
    opt.step({"w": np.ones(5)})
    assert all(in_files(opt).values())
    assert opt.state["w"]["mask"].tolist() == [0, 1, 0, 0, 0]


# Where they lie


def test_arrays_lie_in_one_file_in_the_order_of_the_sweep(tmp_path):
    params = {f"{i}{j}": np.ones((3, 70 + i)) for j in "wb" for i in range(50)}
    opt = st.AdamW(params, ema=0.9, exclude=["*b"], state_dir=tmp_path)
    opt.step(halves(params))
    swept = [
        opt.state[name][key].__array_interface__["data"][0]
        for group in opt.param_groups
        for name in group["param_names"]
        for key in ("exp_avg", "exp_avg_sq", "ema")
    ]
    assert len(opt.param_groups) == 2 and swept == sorted(swept)
    assert swept[-1] - swept[0] < 300 * (8 * 3 * 120 + 64)
    addresses = [opt._plan.arrays(i)[0] for i in range(len(params))]
    assert all(x.base is p for x, p in zip(addresses, opt._params(), strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=label)
@pytest.mark.parametrize("offset", [0, 1, 5, 16])
def test_arrays_are_aligned_as_their_parameter(tmp_path, dtype, offset):
    w = misaligned(np.ones(70, dtype), offset)
    params = {"a": np.ones(3, np.float32), "b": np.ones(3, np.float64), "w": w}
    opt, opt2 = (st.AdamW(params, state_dir=tmp_path) for _ in range(2))
    opt2.load_state_dict(opt.state_dict())
    for x in (*opt.state["w"].values(), *opt2.state["w"].values()):
        if x.ndim:
            addresses = [y.__array_interface__["data"][0] % 64 for y in (x, w)]
            assert addresses[0] == addresses[1]
    assert all(x.flags.carray for own in opt.state.values() for x in own.values())


@LINUX
@pytest.mark.parametrize("at_once", [True, False])
def test_many_arrays_take_few_files(tmp_path, at_once):
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    params = [{"params": {f"{i}": np.ones(i % 7 + 1)}} for i in range(300)]
    opt = st.AdamW(params if at_once else params[:1], state_dir=tmp_path)
    for group in () if at_once else params[1:]:
        opt.add_param_group(group)
    many = st.AdamW({str(i): np.ones(3) for i in range(5000)}, state_dir=tmp_path)
    assert len(os.listdir("/proc/self/fd")) - before < 40
    del opt, many
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("kind", [str, Path, os.fsencode], ids=["str", "Path", "bytes"])
def test_a_folder_is_made_and_stays_where_it_was(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    opt = st.AdamW(np.ones(3), state_dir=kind("new/päth"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    opt.add_param_group({"params": {"b": np.ones(300)}})
    assert opt.state_dir == str(tmp_path / "new" / "päth")
    assert [x.name for x in tmp_path.rglob("*")] == ["new", "elsewhere", "päth"]
    assert all(in_files(opt).values())
    assert st.AdamW(np.ones(3)).state_dir is None


def test_two_optimizers_share_a_folder(tmp_path):
    _, opt = wide(tmp_path)
    before = opt.state_dict()
    other_params, other = wide(tmp_path)
    other.step(halves(other_params))
    np.testing.assert_equal(opt.state_dict(), before)


# What fails


@pytest.mark.parametrize("bad", [3, 1.5, ["x"], True])
def test_what_is_no_path_is_refused(bad):
    with pytest.raises(TypeError, match=r"state_dir = .*: expected the path of a folder, or None"):
        st.AdamW(np.ones(3), state_dir=bad)


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(NotADirectoryError) as caught:
        st.AdamW(np.ones(3), state_dir=tmp_path / "x")
    assert caught.value.filename == str(tmp_path / "x")


def test_arguments_are_checked_before_there_is_a_folder(tmp_path):
    with pytest.raises(ValueError, match="lr = -1"):
        st.AdamW(np.ones(3), lr=-1.0, state_dir=tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system has no such call")
def test_a_full_disk_is_an_error_at_construction_and_changes_nothing(tmp_path, monkeypatch):
    params, opt = wide(tmp_path, n=2)
    st.save(tmp_path / "run", opt)
    before, copies = opt.state_dict(), copy.deepcopy(params)

    def full(descriptor, offset, length):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    expected = rf"No space left on device \(for {4 * MB + 4 * 64:,} bytes of state\)"
    group = {"params": {"new": np.ones(MB, np.float32)[: MB // 2]}}

    def wants_more():
        opt.param_groups[0]["ema"] = 0.9
        opt.step(halves(params))

    for call in (
        lambda: st.AdamW(params, state_dir=tmp_path),
        lambda: opt.add_param_group(group),
        lambda: opt.load_state_dict(before),
        lambda: copy.deepcopy(opt),
        lambda: pickle.loads(pickle.dumps(opt)),
        lambda: st.load(tmp_path / "run", opt),
        wants_more,
    ):
        with pytest.raises(OSError, match="No space left on device") as caught:
            call()
        assert caught.value.filename == str(tmp_path)
        assert opt._names == ["0", "1"]
    opt.param_groups[0]["ema"] = None
    np.testing.assert_equal(opt.state_dict(), before)
    np.testing.assert_equal(params, copies)
    with pytest.raises(OSError, match=expected):
        st.AdamW(params, state_dir=tmp_path)
    assert [x.name for x in tmp_path.iterdir()] == ["run"]


@LINUX
def test_the_kernel_refuses_files_that_are_too_long(tmp_path):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (MB, hard))
        with pytest.raises(OSError, match=r"too large \(for [\d,]+ bytes of state\)"):
            st.AdamW(np.ones(MB), state_dir=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lacking", ["call", "support", "nameless"])
def test_systems_and_file_systems_that_have_less(tmp_path, monkeypatch, lacking):
    """No call to allocate, a file system without it, or without files that never had a name."""

    def refuse(descriptor, offset, length):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    if lacking == "call":
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    elif lacking == "support":
        monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    else:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
        monkeypatch.setattr("tempfile._O_TMPFILE_WORKS", False)
    params, opt = wide(tmp_path)
    opt.add_param_group({"params": {"more": np.ones(MB)}})
    plain_params, plain = wide()
    plain.add_param_group({"params": {"more": np.ones(MB)}})
    np.testing.assert_equal((opt.state_dict(), params), (plain.state_dict(), plain_params))
    assert not list(tmp_path.iterdir())
    if lacking != "nameless" and sys.platform == "linux":
        assert os.fstat(opt._files._file.fileno()).st_blocks * 512 >= 16 * MB


# Copies, processes


@pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_has_files_of_its_own(tmp_path, how):
    params, opt = wide(tmp_path, ema=0.9)
    before = opt.state_dict()
    other = how(opt)
    assert all(in_files(other).values()) and other.state_dir == opt.state_dir
    np.testing.assert_equal(other.state_dict(), before)
    other.step(halves(params))
    np.testing.assert_equal(opt.state_dict(), before)


def in_child(function):
    """What the function returns in a forked child, or the name of its exception."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = str(function())
        except BaseException as error:
            answer = type(error).__name__
        finally:
            os.write(writing, answer.encode())
            os._exit(0)
    os.close(writing)
    assert os.waitpid(child, 0)[1] == 0
    with os.fdopen(reading, "rb") as file:
        return file.read().decode()


@FORK
# Another test of this process may have started JAX, which warns of any fork.
@pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning")
def test_a_forked_child_cannot_change_the_parents_state(tmp_path):
    use_threads(1)
    params, opt = wide(tmp_path)
    _, hessian = wide(tmp_path, rule=st.Sophia)
    saved = opt.state_dict()
    assert in_child(lambda: opt.step(halves(params))) == "RuntimeError"
    assert in_child(lambda: hessian.update_hessian(halves(params))) == "RuntimeError"

    def load_and_step():
        opt.load_state_dict(saved)
        opt.step(halves(params))
        return opt.updates

    assert in_child(load_and_step) == "2"

    def copy_and_step():
        other = copy.deepcopy(opt)
        other.step(halves(params))
        return other.updates

    assert in_child(copy_and_step) == "2"
    np.testing.assert_equal(opt.state_dict(), saved)
    opt.step(halves(params))


KILLED = """
import os, signal, sys, numpy as np, steepest as st
opt = st.AdamW(np.ones(100_000), state_dir=sys.argv[1])
opt.step(np.ones(100_000))
os.kill(os.getpid(), signal.SIGKILL)
"""


@FORK
def test_a_killed_process_leaves_nothing(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path], timeout=60, check=False)
    assert done.returncode == -9
    assert not list(tmp_path.iterdir())


# Memory

LIMITED = """
import re, resource, sys
import numpy as np, steepest as st

def states(folder=None):
    return st.AdamW(params, ema=0.9, state_dir=folder)

st.set_num_threads(1)
params = {str(i): np.ones(1 << 20, np.float32) for i in range(8)}
grads = {name: np.full(1 << 20, 0.5, np.float32) for name in params}
small = st.AdamW({"x": np.ones(3)})
small.step({"x": np.ones(3)})
status = open("/proc/self/status").read()
used = int(re.search(r"VmData:\\s+(\\d+)", status)[1]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (used + (24 << 20),) * 2)
try:
    states()
except MemoryError:
    print("too large for memory")
opt = states(sys.argv[1])
for _ in range(3):
    opt.step(grads)
st.save(sys.argv[2], opt)
other = states(sys.argv[1])
st.load(sys.argv[2], other)
assert all((x == y).all() for name in params for x, y in zip(
    opt.state[name].values(), other.state[name].values(), strict=True))
print(other.updates, sum(x.nbytes for own in other.state.values() for x in own.values()) >> 20)
"""


@LINUX
def test_states_larger_than_memory_are_trained_saved_and_loaded(tmp_path):
    """With 24 MB left for the process's own memory, 96 MB of states: what is in files that are
    shared does not count, as it can be written back."""
    run = [sys.executable, "-c", LIMITED, tmp_path / "states", tmp_path / "run"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "too large for memory\n3 96\n"), done.stderr
    assert not list((tmp_path / "states").iterdir())


def peak(call):
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("folder", ["states", None])
def test_saving_takes_the_memory_of_a_part_of_an_array(tmp_path, folder):
    _, opt = wide(folder and tmp_path / folder)
    assert peak(lambda: st.save(tmp_path / "run", opt)) < 1.2 * MB
    np.testing.assert_equal(read(tmp_path / "run").state_dict["state"], opt.state_dict()["state"])


def test_loading_takes_the_memory_of_an_array(tmp_path):
    _, opt = wide(tmp_path / "states")
    st.save(tmp_path / "run", opt)
    _, other = wide(tmp_path / "states")
    found = []
    assert peak(lambda: found.append(st.load(tmp_path / "run", other))) < 2.2 * MB
    np.testing.assert_equal(other.state_dict(), opt.state_dict())
    assert all(lies_in_file(x) for x in found[0].params.values())
    assert all(in_files(other).values())


@pytest.mark.parametrize("rule", ["adamw", "adagrad", "soap"])
def test_making_takes_the_memory_of_an_array(tmp_path, rule):
    """Or of the states of one parameter, where the rule makes them together."""
    shape = (256, 512)
    params = {str(i): np.ones(shape, np.float32) for i in range(16)}
    opt = []
    taken = peak(lambda: opt.append(RULES[rule](params, ema=0.9, state_dir=tmp_path)))
    assert taken < {"adamw": 0.7, "adagrad": 0.7, "soap": 6}[rule] * MB
    held = sum(x.nbytes for own in opt[0].state.values() for x in own.values())
    assert held > 16 * MB - 1


def test_copying_takes_the_memory_of_an_array_beside_the_parameters(tmp_path):
    params, opt = wide(tmp_path, n=8)
    copies = []
    taken = peak(lambda: copies.append(copy.deepcopy(opt)))
    assert taken < sum(p.nbytes for p in params.values()) + 1.2 * MB
    np.testing.assert_equal(copies[0].state_dict(), opt.state_dict())


def test_an_interrupt_while_files_are_made_is_quiet(tmp_path, monkeypatch):
    """Nothing is reported by what is deleted half made."""
    told, made, n = [], [], 1
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    while interrupted_at(n, lambda: made.append(Scratch(tmp_path))):
        gc.collect()
        n += 1
    assert n > 3 and not told
