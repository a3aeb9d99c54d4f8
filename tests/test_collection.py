"""The tests themselves: what is collected is the same in every process."""

import os
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import pytest


@pytest.mark.exhaustive
def test_names_hang_on_no_clock_hash_or_folder(tmp_path) -> None:
    """The processes of pytest-xdist collect at different seconds, with other hashes, and refuse to
    run where one name differs."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-m", "", "--collect-only", "-q"]
    root = Path(__file__).parents[1]
    runs = [
        subprocess.Popen(
            [*command, *arguments],
            env=os.environ | environment,
            cwd=root,
            stdout=subprocess.PIPE,
            text=True,
        )
        for arguments, environment in (
            ([], {"PYTHONHASHSEED": "1"}),
            (["-p", "another_day"], {"PYTHONHASHSEED": "2", "TMPDIR": str(tmp_path)}),
        )
    ]
    one, other = (run.communicate(timeout=300)[0].splitlines()[:-1] for run in runs)
    assert [run.returncode for run in runs] == [0, 0], one[-5:] + other[-5:]
    assert len(one) > 10_000
    assert [pair for pair in zip_longest(one, other) if pair[0] != pair[1]] == []
