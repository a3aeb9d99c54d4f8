"""Code on several processes over gloo, for the tests of ``steepest.torch``.

One process imports torch and then forks the processes of each job, so that a job takes no more than
its own time. They meet in a file. None outlives its job, nor the host the test module.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path

TIMEOUT = 120


class Host:
    """The process that forks, as the tests see it."""

    def __init__(self):
        own = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        self._run = subprocess.Popen(
            [sys.executable, __file__], env=os.environ | own, start_new_session=True, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def together(self, n, code, folder, expected=None, seconds=60):
        """Runs code on n processes; `expected` are their exit codes, 0 where all reach the end.

        `seconds` are how long they wait for each other.
        """
        job = {"n": n, "code": code, "folder": str(folder), "seconds": seconds}
        self._run.stdin.write(json.dumps(job) + "\n")
        self._run.stdin.flush()
        told = json.loads(self._run.stdout.readline())
        words = "\n".join(
            f"--- {path.name}\n{path.read_text()}" for path in sorted(Path(folder).glob("rank*"))
        )
        assert told == (expected or [0] * n), f"{told}\n{words}"
        return words

    def close(self):
        """Ends the host, and whatever it may have left."""
        with contextlib.suppress(BrokenPipeError):
            self._run.stdin.close()
        try:
            self._run.wait(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(self._run.pid, signal.SIGKILL)
            self._run.wait()
        finally:
            self._run.stdout.close()


def hosted():
    """A host, for a fixture; skips where torch has no gloo."""
    import pytest

    torch = pytest.importorskip("torch")
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("torch has no gloo")
    host = Host()
    yield host
    host.close()


def main():
    import torch._dynamo  # which DTensors need, and import late
    import torch.distributed.checkpoint.state_dict
    import torch.distributed.fsdp
    import torch.distributed.optim  # noqa: F401

    import steepest.torch  # noqa: F401

    for number, line in enumerate(sys.stdin):
        job = json.loads(line)
        for path in Path(job["folder"]).glob("rank*"):
            path.unlink()
        pids = []
        for rank in range(job["n"]):
            pid = os.fork()
            if not pid:
                _child(rank, number, job)
            pids.append(pid)
        print(json.dumps(_ends(pids)), flush=True)


def _ends(pids):
    """The exit codes of all; -9 for those that had to be killed."""
    last = time.monotonic() + TIMEOUT
    codes = {}
    while len(codes) < len(pids):
        late = time.monotonic() > last
        for pid in pids:
            if pid not in codes:
                if late:
                    os.kill(pid, signal.SIGKILL)
                done, status = os.waitpid(pid, 0 if late else os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return [codes[pid] for pid in pids]


def _child(rank, number, job):
    code = 1
    try:
        folder = Path(job["folder"])
        words = os.open(folder / f"rank{rank}", os.O_CREAT | os.O_WRONLY)
        os.dup2(words, 1)
        os.dup2(words, 2)
        os.chdir(folder)
        warnings.simplefilter("error")
        # From torch.distributed.checkpoint itself, before 2.11.
        warnings.filterwarnings("ignore", "TypedStorage is deprecated")
        _work(rank, number, job)
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _work(rank, number, job):
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    import steepest as st

    torch.set_num_threads(1)
    st.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{job['folder']}/meeting{number}", rank=rank,
        world_size=job["n"], timeout=timedelta(seconds=job["seconds"]),
    )  # fmt: skip
    own = {"__name__": "job", "torch": torch, "dist": dist, "st": st, "rank": rank,
           "size": job["n"]}  # fmt: skip
    exec(compile(job["code"], "job", "exec"), own)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
