"""Steps do not take more instructions than they took when that was recorded, by formats."""

import json
import shutil
import sys

import pytest

from bench import instructions

RECORD = json.loads(instructions.RECORD.read_text())


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != "linux", reason="valgrind counts on Linux")
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind counts the instructions")
@pytest.mark.skipif(instructions.compiler() != RECORD["compiler"], reason="of another compiler")
@pytest.mark.parametrize("case", instructions.CASES)
def test_no_more_instructions_than_recorded(case):
    found = instructions.per_element(instructions.CASES[case])
    assert 1 < found <= 1.05 * RECORD[case]
