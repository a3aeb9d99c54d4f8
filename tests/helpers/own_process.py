"""Code in a process of its own: where a crash, or memory, is what a test looks at.

How much memory a process of tests has says little: thousands of tests leave theirs behind, and the
system takes back what has not been used for long.
"""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
_BEGUN = f"""
import sys
sys.path[:0] = [{str(TESTS / "helpers")!r}, {str(TESTS / "long")!r}, {str(TESTS.parent)!r}]
"""


def run(code: str, **environment: str) -> str:
    """What the code prints. Raises AssertionError with what it says where it fails."""
    done = subprocess.run(
        [sys.executable, "-c", _BEGUN + code], capture_output=True, text=True, check=False,
        timeout=300, env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
