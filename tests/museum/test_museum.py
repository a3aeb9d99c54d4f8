"""Every exhibit has a thread and a slip, and fails with it."""

import re

import pytest
from museum import exhibits, run_with_slip
from package_copy import PackageCopy

EXHIBITS = exhibits()
IN_PYTHON = [name for name, test in EXHIBITS.items() if not test.slip.modules]


def test_every_exhibit_says_what_happened_and_has_its_slip(tmp_path):
    copy = PackageCopy(tmp_path)
    assert len(EXHIBITS) >= 40
    thread = re.compile(r"#\d+|CVE-\d+")
    for name, test in EXHIBITS.items():
        assert thread.search(test.__doc__ or ""), f"{name}: the docstring names no thread"
    times = {n: copy.read(t.slip.file).count(t.slip.old) for n, t in EXHIBITS.items()}
    assert {n: k for n, k in times.items() if k != 1} == {}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    return PackageCopy(tmp_path_factory.mktemp("museum"))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", IN_PYTHON)
def test_an_exhibit_fails_with_its_slip(copy, name):
    """Those with slips in compiled code are seen by ``python tests/long/mutants.py --museum``."""
    run = run_with_slip(copy, name, EXHIBITS[name].slip)
    assert run.code == 1, run.text
