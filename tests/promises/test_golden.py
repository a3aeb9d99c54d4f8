"""The bits of 50 steps are those of the file; ``golden.py`` prints and renews it."""

import golden
import pytest
from cases import LEVELS

from steepest.kernels import dispatch
from steepest.optimizers import RULES

KNOWN = {
    tuple(case): digest
    for *case, digest in (line.split(" ") for line in golden.FILE.read_text().splitlines())
}
IN_FILE = [rule for rule, cls in RULES.items() if cls.needs != "matrix"]


def check(rule, *, options):
    """Compares the digests of one rule, with the options around it or without."""
    known = {case: x for case, x in KNOWN.items() if case[0] == rule}
    if not options:
        known = {case: x for case, x in known.items() if case[2] not in golden.OPTIONS}
    arguments = {case[:3]: case[3] for case in golden.cases() if case[0] == rule}
    assert known.keys() <= arguments.keys() and known
    assert {case: golden.digest(*case[:2], arguments[case]) for case in known} == known


@pytest.mark.parametrize("rule", IN_FILE)
def test_the_bits_of_every_variant(rule):
    check(rule, options=False)


@pytest.mark.exhaustive
@pytest.mark.parametrize("rule", IN_FILE)
@pytest.mark.parametrize("level", LEVELS)
def test_the_bits_with_every_option(rule, level):
    dispatch.use(level)
    check(rule, options=True)


def test_no_case_is_missing_in_the_file():
    assert {rule for rule, *_ in KNOWN} == set(IN_FILE)
    every = {case[:3]: case[3] for case in golden.cases() if case[0] in IN_FILE}
    for case in every.keys() - KNOWN.keys():
        assert golden.digest(*case[:2], every[case]) is None, f"{case}: run golden.py --write"
