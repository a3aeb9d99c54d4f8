"""What h[0], h[1], ... of a kernel are: the class says it, the kernel names them alike.

A kernel reads and writes coefficients only by name: ``name = h[i]``, with or without a cast, and
``h[i] = name`` where a finalizer makes them. So the name of each is known at each time: it is the
class's until a finalizer writes another number in its place. That their values are right is what
the tests of exactness show, by references without coefficients.
"""

import re
from pathlib import Path

import numpy as np
import pytest
from cases import CONFIGURATIONS, label

from steepest.optimizers import RULES, adam

FOLDER = Path(__file__).parents[2] / "src/steepest/kernels/leveled"
WITH_KERNELS = [x for x in CONFIGURATIONS if not RULES[x[0]].prepares]
UNREAD = {
    "lars_plain": "mu",
    "adafactor": "b1 fresh1",
    "adafactor_vector": "b1 fresh1",
    "came_vector": "b3 fresh3 eps2",
    "sm3": "mu fresh",
    "sm3_vector": "mu fresh",
}
"""What a class gives to all of its kernels, and this one does not look at."""

FUNCTION = re.compile(r"^cdef [\w ]+? (\w+)\([^)]*\) noexcept nogil:\n((?:    .*\n|\n)+)", re.M)
ENTRY = re.compile(r'^((?:RULES\["\w+"\] = )+)rule\((.*?)\)(?=\n\n|\n*\Z)', re.M | re.S)
USE = re.compile(r"\bh\[")
READ_OR_WRITTEN = re.compile(
    r"\b(?P<read>\w+) = (?:<real>|rate\()?h\[(?P<at>\d+)\](?:, p\))?(?=,|\n|  #)"
    r"|^    h\[(?P<to>\d+)\] = (?P<written>[a-z]\w*)$",
    re.M,
)


def uses(body):
    """What a function does with h, in order: (index, name, whether it is written)."""
    found = list(READ_OR_WRITTEN.finditer(body))
    assert len(found) == len(USE.findall(body)), f"h without a name in\n{body}"
    return [(int(x["at"] or x["to"]), x["read"] or x["written"], x["at"] is None) for x in found]


def with_called(function, bodies):
    """A function's name after those of the functions that it calls."""
    called = [x for x in re.findall(r"\b(\w+)\(", bodies[function]) if x in bodies]
    return [*dict.fromkeys(y for x in called for y in with_called(x, bodies)), function]


def in_kernels():
    """For each kernel the uses of h by its reductions, finalizers and loop, in order."""
    kernels = {}
    for source in sorted(FOLDER.glob("*.pyx")):
        text = source.read_text(encoding="utf-8")
        bodies = dict(FUNCTION.findall(text))
        followed = set()
        for targets, entry in ENTRY.findall(text):
            loop, *before = [x for x in dict.fromkeys(re.findall(r"\w+", entry)) if x in bodies]
            order = [y for x in (*before, loop) for y in with_called(x, bodies)]
            found = [use for x in order for use in uses(bodies[x])]
            kernels |= dict.fromkeys(re.findall(r'"(\w+)"', targets), found)
            followed |= {*order}
        if followed:  # else a file without rules
            assert len(USE.findall(text)) == sum(len(uses(bodies[x])) for x in followed), source
    return kernels


KERNELS = in_kernels()


def test_all_kernels_are_named():
    named = {kernel for rule, _ in WITH_KERNELS for kernel in RULES[rule].coefficient_names}
    assert named == KERNELS.keys() - {"take", "assign"}  # which are no rule's of its own


@pytest.mark.parametrize("rule", {rule: None for rule, _ in WITH_KERNELS})
def test_class_and_kernel_name_coefficients_alike(rule):
    for kernel, names in RULES[rule].coefficient_names.items():
        now = dict(enumerate(names.split()))
        unread = now.copy()
        for i, name, written in KERNELS[kernel]:
            if written:
                assert i not in unread, f"{kernel}: {unread[i]} is lost to {name}"
                now[i] = unread[i] = name
            else:
                assert now.get(i) == name, f"{kernel}: h[{i}] is {now.get(i)}, not {name}"
                unread.pop(i, None)
        assert " ".join(unread.values()) == UNREAD.get(kernel, ""), f"{kernel}: never read"


@pytest.mark.parametrize(("rule", "arguments"), WITH_KERNELS, ids=label)
def test_there_are_as_many_coefficients_as_names(rule, arguments):
    cls = RULES[rule]
    for opt in (cls(np.ones(3), **arguments), cls(np.ones(3))):
        for by_rows in (False, True) if cls.factors else (False,):
            h = opt._groups[0].h | {"by_rows": by_rows}
            for t in (1, 2, 1000):
                kernel, numbers = cls.coefficients(h, t)
                assert len(numbers) == len(cls.coefficient_names[kernel].split()), kernel


@pytest.mark.parametrize("rule", {rule: None for rule, _ in WITH_KERNELS})
def test_a_coefficient_with_the_name_of_a_hyper_parameter_is_that(rule):
    cls = RULES[rule]
    h = cls(np.ones(3))._groups[0].h
    meant = {key: x for key, x in h.items() if isinstance(x, float)}
    for i, beta in enumerate(h.get("betas", ()), 1):
        meant |= {f"b{i}": beta, f"fresh{i}": 1.0 - beta}
    kernel, numbers = cls.coefficients(h | {"by_rows": False}, 1)
    named = dict(zip(cls.coefficient_names[kernel].split(), numbers, strict=True))
    assert {key: x for key, x in named.items() if key in meant} == {
        key: x for key, x in meant.items() if key in named
    }


@pytest.mark.parametrize("b1", [0.0, 0.5, 0.83, 0.9, 0.9999])
@pytest.mark.parametrize("decay", [0.0, 0.004, 1.0])
def test_nadams_product_ends_where_a_factor_changes_nothing(b1, decay, monkeypatch):
    """Rounded to nearest, the smallest number times 0.9 is itself: a loaded count of 2²⁴ took
    seconds. The bits are those of all factors."""
    calls, warm = [], adam._warm
    monkeypatch.setattr(adam, "_warm", lambda *given: calls.append(0) or warm(*given))
    for t in (1, 7, 3000, 20_000):
        monkeypatch.setattr(adam, "_products", {})
        expected = 1.0
        for i in range(1, t + 1):
            expected *= warm(b1, decay, i)
        assert adam.warming(b1, decay, t)[2] == expected
    calls.clear()
    monkeypatch.setattr(adam, "_products", {})
    if b1 < 0.99:
        adam.warming(b1, decay, 2**24)
        assert len(calls) < 20_000
