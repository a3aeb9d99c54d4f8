"""Scripts on several MPI processes, for the tests of ``steepest.mpi``."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

START = """
import sys
import numpy as np
import steepest as st
from mpi4py import MPI
comm = MPI.COMM_WORLD
rank, size = comm.rank, comm.size
"""

BESIDE = Path(sys.executable).parent


def mpiexec() -> str | None:
    """The command that starts MPI programs: the one beside this Python, or any other."""
    return shutil.which("mpiexec", path=f"{BESIDE}{os.pathsep}{os.environ.get('PATH', '')}")


def launch(n, script, *arguments, cwd, timeout=120):
    """Runs a script on n processes; fails where it does not end in time. Leaves none behind."""
    command = [mpiexec(), "-n", str(n), sys.executable, "-m", "mpi4py", str(script), *arguments]
    # Not what this process may have got from an MPI of its own.
    own = {k: x for k, x in os.environ.items() if not k.startswith(("PMI", "MPI", "HYDRA"))}
    own |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    run = subprocess.Popen(
        command, cwd=cwd, env=own, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        out, err = run.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        out, err = run.communicate()
        raise AssertionError(f"did not end within {timeout} s\n{out}\n{err}") from None
    return run.returncode, out, err


def together(n, code, folder):
    """Runs code on n processes, which must all reach its end."""
    script = folder / "script.py"
    script.write_text(START + code + "\nopen(f'reached the end {rank}', 'w').close()\n")
    status, out, err = launch(n, script, cwd=folder)
    assert status == 0, out + err
    ends = sorted(folder.glob("reached the end *"))
    assert len(ends) == n, out + err
    for end in ends:
        end.unlink()
