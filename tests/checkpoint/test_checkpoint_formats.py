"""Checkpoints of each format: damaged, cut and interrupted as those of float32 are."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import brief

import steepest as st
from steepest import codecs
from steepest.checkpoint import CheckpointError, read, save

MADE = {
    "bfloat16": ("bfloat16", {"state_dtype": "bfloat16"}, 40),
    "float16": ("float16", {"state_dtype": "float16"}, 40),
    "split16": ("bfloat16", {"master": "split16"}, 40),
    "split8": ("bfloat16", {"master": "split8"}, 40),
    "kahan": ("float16", {"master": "kahan"}, 40),
    "q8": ("float32", {"state_dtype": "q8"}, 4096),
}
"""Format of the parameter, options, size."""
POSIX = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks processes and kills them")


def made(kind):
    """An optimizer after a step, and its parameter."""
    name, options, size = MADE[kind]
    dtype = codecs.BFLOAT16 if name == "bfloat16" else np.dtype(name)
    rng = np.random.default_rng(0)
    p = codecs.encoded(rng.standard_normal(size), dtype)
    opt = st.AdamW({"w": p}, lr=0.1, **options)
    opt.step({"w": rng.standard_normal(size).astype(np.float32)})
    return opt, p


@pytest.mark.parametrize("kind", MADE)
def test_flipped_bits_and_cut_files_are_refused(kind, tmp_path):
    opt, p = made(kind)
    save(tmp_path / "x", opt, {"w": p})
    data = (tmp_path / "x").read_bytes()
    read(tmp_path / "x")
    for bit in range(0, 8 * len(data), 41 if len(data) < 5000 else 1009):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        (tmp_path / "x").write_bytes(changed)
        with pytest.raises(CheckpointError):
            read(tmp_path / "x")
    for n in range(0, len(data), 1 + len(data) // 50):
        (tmp_path / "x").write_bytes(data[:n])
        with pytest.raises(CheckpointError):
            read(tmp_path / "x")


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np, steepest as st
sys.path[:0] = {paths!r}
from faults import Calls
from test_checkpoint_formats import made
from steepest.checkpoint import atomic, load, read, save

path = Path({path!r})
opt, p = made({kind!r})
save(path, opt, {{"w": p}}, extra={{"which": "old"}})
old = path.read_bytes()
g = np.ones(p.size, np.float32)
opt.step({{"w": g}})

def kill(function, arguments):
    os.kill(os.getpid(), signal.SIGKILL)

seen = []
for n in range(1, 100):
    path.write_bytes(old)
    child = os.fork()
    if child == 0:
        atomic.os = Calls(n, kill)
        save(path, opt, {{"w": p}}, extra={{"which": "new"}})
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    again, q = made({kind!r})
    load(path, again, {{"w": q}})
    which = read(path).extra["which"]
    if which == "old":
        again.step({{"w": g}})
    assert q.tobytes() == p.tobytes(), n
    for key, x in opt.state["w"].items():
        assert again.state["w"][key].tobytes() == x.tobytes(), (n, key)
    seen.append(which)
    if status == 0:
        break
print(len(seen), sorted(set(seen)))
"""


@POSIX
@pytest.mark.parametrize("kind", brief(MADE, ["q8"]))
def test_a_process_killed_at_any_call_leaves_one_that_goes_on(kind, tmp_path):
    """The old file or the new one; a run that goes on from it has the same bits."""
    here = Path(__file__).parent
    paths = [str(here), str(here.parent / "helpers")]
    code = KILLED.format(paths=paths, path=str(tmp_path / "run"), kind=kind)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    n, rest = done.stdout.split(maxsplit=1)
    assert int(n) > 9
    assert rest == "['new', 'old']\n"
