"""The bits of 50 and of 2000 steps are those of the files; ``golden.py`` prints and renews them."""

import golden
import pytest
from cases import A_RULE_OF_EACH_KIND, LEVELS, brief, use_threads

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


LONG = {
    (rule, name): digest
    for rule, name, digest in (
        line.split(" ") for line in golden.LONG_FILE.read_text().splitlines()
    )
}
EVERY = list(golden.long_cases())
NUMBERED = [(i, *x) for i, x in enumerate(EVERY)]
BRIEF = [
    (i, rule, name)
    for i, rule, name in NUMBERED
    if rule == "adamw" or (rule in A_RULE_OF_EACH_KIND and name == "float32-q8")
]


@pytest.mark.parametrize(("number", "rule", "name"), brief(NUMBERED, BRIEF))
def test_the_bits_of_long_runs(number, rule, name):
    """Each case at one level, with one number of threads; ``tests/long/bits.py`` draws others."""
    dispatch.use(LEVELS[number % len(LEVELS)])
    use_threads(1 + number % 8)
    assert golden.long_digest(rule, name) == LONG.get((rule, name))


def test_the_file_of_long_runs_has_no_other_case():
    assert LONG.keys() <= set(EVERY)
    assert {rule for rule, _ in LONG} == set(IN_FILE)
    assert {name for _, name in LONG} == set(golden.FORMATS)
