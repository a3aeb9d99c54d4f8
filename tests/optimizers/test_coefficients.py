"""What h[0], h[1], ... of a kernel are: the class says it, the kernel names them alike.

That their values are right is what the tests of exactness show, by references without coefficients.
"""

import re
from pathlib import Path

import numpy as np
import pytest
from cases import CONFIGURATIONS, label

from steepest.optimizers import RULES

SOURCES = sorted(Path(__file__).parents[2].glob("src/steepest/kernels/**/*.pyx"))
ELEMENTWISE = [x for x in CONFIGURATIONS if RULES[x[0]].needs == "element-wise"]
OVERWRITTEN = {"schedulefreesgd": {1, 2, 3}, "schedulefreeadamw": {1, 2, 3}}
"""Coefficients that the rule computes others from, in their places, before its loop."""


def in_kernels():
    """The names of each kernel's coefficients by their numbers, from the lines that cast them."""
    found = {}
    for source in SOURCES:
        text = source.read_text(encoding="utf-8")
        for name, body in re.findall(r"^cdef void (\w+)\((.*?)(?=^\S|\Z)", text, re.S | re.M):
            cast = re.findall(r"(\w+) = <real>h\[(\d+)\]", body)
            found.setdefault(name, {int(i): x for x, i in cast})
    return found


KERNELS = in_kernels()


@pytest.mark.parametrize("rule", {rule: None for rule, _ in ELEMENTWISE})
def test_class_and_kernel_name_coefficients_alike(rule):
    for kernel, names in RULES[rule].coefficient_names.items():
        said = dict(enumerate(names.split()))
        for i in OVERWRITTEN.get(kernel, ()):
            del said[i]
        known = {i: x for i, x in KERNELS[kernel].items() if i not in OVERWRITTEN.get(kernel, ())}
        assert said == known, kernel


@pytest.mark.parametrize(("rule", "arguments"), ELEMENTWISE, ids=label)
def test_there_are_as_many_coefficients_as_names(rule, arguments):
    cls = RULES[rule]
    for opt in (cls(np.ones(3), **arguments), cls(np.ones(3))):
        h = opt._groups[0].h | {"by_rows": False}
        for t in (1, 2, 1000):
            kernel, numbers = cls.coefficients(h, t)
            assert len(numbers) == len(cls.coefficient_names[kernel].split()), kernel


@pytest.mark.parametrize("rule", {rule: None for rule, _ in ELEMENTWISE})
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
