"""A file is replaced as a whole: errors, Ctrl-C, full disks and kills at every point of a save."""

import errno
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from faults import Calls, interrupted_at

import steepest as st
from steepest.checkpoint import CheckpointError, atomic, read, save

POSIX = pytest.mark.skipif(os.name != "posix", reason="signals and modes of POSIX")


def small():
    opt = st.SGD({"w": np.array([1, 2, 3], np.float32)}, lr=0.1)
    opt.step({"w": np.array([1, 0, -1], np.float32)})
    return opt


def old_and_new(path):
    """An old file, and the call that replaces it."""
    opt = small()
    save(path, opt, extra={"which": "old"})
    return lambda: save(path, opt, extra={"which": "new"})


def full(call, arguments):
    if call is os.close:
        os.close(*arguments)  # a failing close closes all the same
    if call is os.write:
        os.write(arguments[0], arguments[1][:5])  # some bytes found room
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupt(call, arguments):
    raise KeyboardInterrupt


def no_memory(call, arguments):
    raise MemoryError


@POSIX
@pytest.mark.parametrize("fail", [full, interrupt, no_memory])
@pytest.mark.parametrize("exists", [True, False])
def test_a_call_that_fails_leaves_the_old_file_or_the_new(tmp_path, monkeypatch, fail, exists):
    path = tmp_path / "run"
    call = old_and_new(path)
    seen = []
    for n in range(1, 100):
        path.unlink(missing_ok=True)
        if exists:
            old_and_new(path)
        monkeypatch.setattr(atomic, "os", calls := Calls(n, fail))
        try:
            call()
            break
        except (OSError, KeyboardInterrupt, MemoryError) as error:
            caught = error
        finally:
            monkeypatch.undo()
        assert fail is not full or (caught.errno, caught.filename) == (errno.ENOSPC, str(path))
        seen.append(read(path).extra["which"] if path.exists() else None)
        names = [x.name for x in tmp_path.iterdir()]
        assert names == ([] if seen[-1] is None else ["run"]), f"left by call {n}: {names}"
    assert calls.left > 0
    assert len(seen) >= 9 and set(seen) == {"old" if exists else None, "new"}
    assert read(path).extra["which"] == "new"


@POSIX
def test_ctrl_c_at_any_line_of_saving_leaves_the_old_file_or_the_new(tmp_path):
    call = old_and_new(tmp_path / "run")
    old = (tmp_path / "run").read_bytes()
    call()
    new = (tmp_path / "run").read_bytes()
    seen = []
    for n in range(1, 100_000):
        (tmp_path / "run").write_bytes(old)
        if not interrupted_at(n, call):
            break
        seen.append((tmp_path / "run").read_bytes())
        assert [x.name for x in tmp_path.iterdir()] == ["run"], n
    assert len(seen) > 300 and seen[0] == old and seen[-1] == new
    assert seen.count(old) + seen.count(new) == len(seen)


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np, steepest as st
sys.path.insert(0, {tests!r})
from faults import Calls
from steepest.checkpoint import atomic, read, save

path = Path({path!r})
opt = st.SGD(np.ones(3), lr=0.1)
save(path, opt, extra={{"which": "old"}})
old = path.read_bytes()

def kill(function, arguments):
    if function is os.write:
        os.write(arguments[0], arguments[1][:{share}])
    os.kill(os.getpid(), signal.SIGKILL)

seen, most = [], 0
for n in range(1, 100):
    path.write_bytes(old)
    child = os.fork()
    if child == 0:
        atomic.os = Calls(n, kill)
        save(path, opt, extra={{"which": "new"}})
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    most = max(most, len(os.listdir(path.parent)))
    seen.append(read(path).extra["which"])
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL
print(len(seen), sorted(set(seen)), seen[0], seen[-1], most, os.listdir(path.parent))
"""


@POSIX
@pytest.mark.parametrize("share", [0, 5])
def test_a_process_killed_at_any_call_leaves_the_old_file_or_the_new(tmp_path, share):
    """What else it leaves, the next one to save removes."""
    tests = str(Path(__file__).parents[1] / "helpers")
    code = KILLED.format(tests=tests, path=str(tmp_path / "run"), share=share)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    n, rest = done.stdout.split(maxsplit=1)
    assert int(n) > 9
    assert rest == "['new', 'old'] old new 2 ['run']\n"


TRACED = """
import os, sys
from pathlib import Path
import numpy as np, steepest as st
sys.path.insert(0, {tests!r})
from faults import killed_at_stop
from steepest.checkpoint import read, save

path = Path({path!r})
opt = st.SGD(np.ones(3), lr=0.1)
save(path, opt, extra={{"which": "old"}})
old = path.read_bytes()
seen, most = [], 0
for n in range(1, 100_000):
    if {exists}:
        path.write_bytes(old)
    else:
        path.unlink(missing_ok=True)
    killed = killed_at_stop(n, lambda: save(path, opt, extra={{"which": "new"}}))
    if killed is None:
        sys.exit(77)
    most = max(most, len(os.listdir(path.parent)))
    seen.append(read(path).extra["which"] if path.exists() else "none")
    if not killed:
        break
print(len(seen), sorted(set(seen)), seen[0], seen[-1], most)
save(path, opt)
print(os.listdir(path.parent))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system calls of Linux")
@pytest.mark.parametrize("exists", [True, False])
def test_a_process_killed_at_any_system_call_leaves_the_old_file_or_the_new(tmp_path, exists):
    """Before and after each, whoever asks for it: Python, its libraries, the allocator."""
    tests = str(Path(__file__).parents[1] / "helpers")
    code = TRACED.format(tests=tests, path=str(tmp_path / "run"), exists=exists)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode == 77:
        pytest.skip("this system allows no tracing")
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    n, rest = first.split(maxsplit=1)
    assert int(n) > 40
    before = "old" if exists else "none"
    assert rest == f"['new', '{before}'] {before} new {2 if exists else 1}"
    assert last == "['run']"


@POSIX
def test_a_disk_that_is_full_at_any_byte_leaves_the_old_file(tmp_path):
    """The kernel itself refuses every write beyond the limit."""
    import resource

    path = tmp_path / "run"
    call = old_and_new(path)
    old = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for limit in range(0, len(old), 41):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            with pytest.raises(OSError, match="File too large") as caught:
                call()
            assert caught.value.filename == str(path)
            assert path.read_bytes() == old
            assert [x.name for x in tmp_path.iterdir()] == ["run"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_writing_goes_on_where_the_system_took_only_some_bytes(tmp_path, monkeypatch):
    class Sparing:
        def __getattr__(self, name):
            return getattr(os, name)

        def write(self, descriptor, chunk):
            return os.write(descriptor, chunk[:7])

    monkeypatch.setattr(atomic, "os", Sparing())
    save(tmp_path / "run", small())
    assert (
        read(tmp_path / "run").params["w"].tolist() == small().param_groups[0]["params"][0].tolist()
    )


def test_bytes_and_name_reach_the_disk_in_this_order(tmp_path, monkeypatch):
    order = []

    class Watched:
        def __getattr__(self, name):
            found = getattr(os, name)
            if name not in ("open", "write", "fsync", "replace", "close"):
                return found

            def call(*arguments):
                result = found(*arguments)
                order.append((name, arguments[0] if name != "open" else result))
                return result

            return call

    monkeypatch.setattr(atomic, "os", Watched())
    save(tmp_path / "run", small())
    names = [name for name, _ in order if name != "write"]
    assert names == ["open", "fsync", "close", "replace", "open", "fsync", "close"][: len(names)]
    assert len(names) == (7 if hasattr(os, "O_DIRECTORY") else 4)
    assert order[-1][1] == order[-2][1] == order[-3][1]


@POSIX
def test_permissions_are_those_that_open_gives_or_those_of_the_old_file(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    save(tmp_path / "run", small())
    expected = (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "run").stat().st_mode == expected
    (tmp_path / "run").chmod(0o640)
    save(tmp_path / "run", small())
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o640


@POSIX
def test_a_link_goes_on_pointing_to_the_file(tmp_path):
    (tmp_path / "there").mkdir()
    os.symlink(Path("there") / "run", tmp_path / "latest")
    save(tmp_path / "latest", small(), extra={"n": 1})
    save(tmp_path / "latest", small(), extra={"n": 2})
    assert (tmp_path / "latest").is_symlink()
    assert read(tmp_path / "there" / "run").extra == {"n": 2}


@POSIX
def test_a_link_to_nothing_gets_its_file_and_one_to_itself_is_refused(tmp_path):
    (tmp_path / "link").symlink_to("run")
    save(tmp_path / "link", small())
    assert (tmp_path / "link").is_symlink() and (tmp_path / "run").is_file()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links") as caught:
        save(tmp_path / "loop", small())
    assert caught.value.filename == str(tmp_path / "loop")
    with pytest.raises(CheckpointError, match=r"loop cannot be read: .*symbolic links"):
        read(tmp_path / "loop")


READ_ONLY = """
import os, sys
import numpy as np, steepest as st
folder = sys.argv[1]
path = os.path.join(folder, "run")
opt = st.SGD(np.ones(3))
st.save(path, opt, extra={"which": "old"})
st.load(path, opt)  # imports what there is to import, which another user may not read
os.chmod(folder, 0o555)
if os.geteuid() == 0:
    os.seteuid(65534)  # for root every folder can be written
try:
    st.save(path, opt, extra={"which": "new"})
except PermissionError as error:
    print(error.filename == path, st.load(path, opt).extra["which"], os.listdir(folder))
"""


@POSIX
def test_a_folder_that_cannot_be_written_keeps_its_file():
    with tempfile.TemporaryDirectory() as folder:  # which others than its owner can get to
        done = subprocess.run(
            [sys.executable, "-c", READ_ONLY, folder], capture_output=True, text=True, timeout=120
        )
        os.chmod(folder, 0o755)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True old ['run']\n"


@POSIX
def test_what_another_process_is_writing_is_left_alone(tmp_path):
    """Two processes may save to one path; the last to finish wins."""
    first = iter(range(2))

    def chunks():
        yield memoryview(b"first")
        if next(first) == 0:
            atomic.write(tmp_path / "run", [memoryview(b"second")])
            assert (tmp_path / "run").read_bytes() == b"second"
        yield memoryview(b", third")

    atomic.write(tmp_path / "run", chunks())
    assert (tmp_path / "run").read_bytes() == b"first, third"
    assert [x.name for x in tmp_path.iterdir()] == ["run"]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        save(tmp_path / "no" / "run", small())
    assert caught.value.filename == str(tmp_path / "no" / "run")


@pytest.mark.parametrize("kind", [str, Path, os.fsencode], ids=["str", "Path", "bytes"])
def test_paths_of_any_kind(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    save(kind("run"), small())
    assert read(kind("run")).state_dict["updates"] == 1
