"""Checks of fields: what they take, what they store, what they say."""

import gc
import math
import weakref
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated

import numpy as np
import pytest

from steepest.fields import (
    Axis,
    Choice,
    Many,
    Maybe,
    Range,
    Scheduled,
    Truth,
    Value,
    checks_of,
    scalar,
)

POSITIVE = Range(float, 0, above=True)
SHARE = Range(float, 0, 1, below=True)


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (Range(float), "a finite number"),
        (Range(float, finite=False), "a number, which may be infinite"),
        (Range(float, 0), "a finite number of at least 0"),
        (Range(float, 0, finite=False), "a number of at least 0"),
        (POSITIVE, "a finite number greater than 0"),
        (Range(float, high=0.5), "a finite number of at most 0.5"),
        (Range(float, high=0, below=True), "a finite number less than 0"),
        (Range(float, 0, 1), "a number in [0, 1]"),
        (SHARE, "a number in [0, 1)"),
        (Range(float, 0, 1, above=True), "a number in (0, 1]"),
        (Range(scalar, 0, 1, above=True, below=True), "a number in (0, 1)"),
        (Range(int), "an integer"),
        (Range(int, 1), "an integer of at least 1"),
        (Range(int, 1, 3), "an integer in [1, 3]"),
        (Choice(("a", None)), "one of 'a', None"),
        (Truth(), "True or False"),
        (Maybe(SHARE), "a number in [0, 1), or None"),
        (Maybe(Scheduled(SHARE)), "a number in [0, 1), or a schedule, or None"),
        (Many(SHARE, exactly=2), "a tuple of 2, each a number in [0, 1)"),
        (Range(int, 0, 2**62), "an integer in [0, 4611686018427387904]"),
    ],
)
def test_what_is_expected_in_words(check, text):
    assert str(check) == text


@pytest.mark.parametrize(
    ("check", "value", "stored"),
    [
        (POSITIVE, 5e-324, 5e-324),
        (Range(float, 0), 2, 2.0),
        (Range(float, 0), np.float32(0.5), 0.5),
        (Range(float, 0), Fraction(1, 4), 0.25),
        (Range(float, finite=False), -math.inf, -math.inf),
        (Range(scalar, 0), np.array(0.5, np.float32), 0.5),
        (Range(scalar, 0, finite=False), 10**400, math.inf),
        (Range(int, 1), np.int8(3), 3),
        (SHARE, 0, 0.0),
        (Choice(("a", "b")), np.str_("b"), "b"),
        (Choice((None, "b")), None, None),
        (Truth(), True, True),
        (Truth(numbers=True), 0, False),
        (Axis(), None, None),
        (Axis(), np.int64(-1), -1),
        (Maybe(SHARE), None, None),
        (Many(SHARE), np.array([0.5, 0.25]), (0.5, 0.25)),
        (Many(Maybe(SHARE), exactly=2), [None, 0], (None, 0.0)),
    ],
)
def test_what_is_stored(check, value, stored):
    found = check.check(value, "owner", "field")
    assert type(found) is type(stored) and found == stored
    assert check.at(value, 3, "owner", "field") == stored


@pytest.mark.parametrize(
    ("check", "value", "error", "message"),
    [
        (POSITIVE, 0, ValueError, "owner: field = 0: expected a finite number greater than 0"),
        (POSITIVE, math.inf, ValueError, "owner: field = inf: expected a finite number"),
        (Range(float, finite=False), math.nan, ValueError, "field = nan: expected a number, which"),
        (Range(float, finite=False), 10**400, ValueError, "0: expected a number, which may be inf"),
        (Range(float), np.array(1.0), TypeError, "expected a finite number"),
        (Range(float), np.True_, TypeError, "expected a finite number"),
        (SHARE, 1.0, ValueError, r"field = 1\.0: expected a number in \[0, 1\)"),
        (Range(float, 0, 1), -0.5, ValueError, r"expected a number in \[0, 1\]"),
        (Range(scalar), np.array([1.0]), TypeError, "expected a finite number"),
        (Range(scalar), np.array(True), TypeError, "expected a finite number"),
        (Range(scalar), "1", TypeError, "field = '1': expected a finite number"),
        (Range(scalar), 10**400, ValueError, "field = inf: expected a finite number"),
        (Range(scalar, 0), -(10**400), ValueError, "field = -inf: expected a finite number of"),
        (Range(int, 1), 1.0, TypeError, r"field = 1\.0: expected an integer of at least 1"),
        (Range(int, 1), True, TypeError, "field = True: expected an integer of at least 1"),
        (Range(int, 1), 0, ValueError, "field = 0: expected an integer of at least 1"),
        (Choice(("a", "b")), "c", ValueError, "field = 'c': expected one of 'a', 'b'"),
        (Truth(), 1, TypeError, "field = 1: expected True or False"),
        (Truth(numbers=True), 2, TypeError, "field = 2: expected True or False"),
        (Axis(), 0.5, TypeError, "expected the number of an axis, or None for the whole array"),
        (Maybe(SHARE), "x", TypeError, r"expected a number in \[0, 1\), or None"),
        (Scheduled(SHARE), "x", TypeError, r"expected a number in \[0, 1\), or a schedule"),
        (Many(SHARE), "12", TypeError, "field = '12': expected a tuple"),
        (Many(SHARE), (), ValueError, r"field = \(\): expected 1 or more"),
        (Many(SHARE, exactly=2), (0.5,), ValueError, r"field = \(0\.5,\): expected a tuple of 2"),
        (Many(SHARE, exactly=2), np.ones(2), TypeError, r"expected a tuple of 2, each a number in"),
        (Many(SHARE), iter([0.5, 2]), ValueError, r"field\[1\] = 2: expected a number in \[0, 1\)"),
        (Many(SHARE, increasing=True), (0.5, 0.5), ValueError, "each larger than the last"),
    ],
)  # fmt: skip
def test_what_is_refused(check, value, error, message):
    with pytest.raises(error, match=message):
        check.check(value, "owner", "field")


def test_a_lenient_check_takes_every_number():
    for check in (SHARE, Maybe(SHARE), Scheduled(SHARE)):
        assert [check.lenient().check(x, "", "x") for x in (-math.inf, 5)] == [-math.inf, 5.0]
        assert math.isnan(check.lenient().check(math.nan, "", "x"))
        with pytest.raises(TypeError, match="'1': expected a number, which may be infinite or NaN"):
            check.lenient().check("1", "", "x")
    assert Many(Scheduled(SHARE), exactly=2).lenient().check((2, 3), "", "x") == (2.0, 3.0)
    assert Choice(("a",)).lenient() == Choice(("a",))


def test_without_an_owner_the_field_comes_first():
    with pytest.raises(ValueError, match=r"^lr = -1: expected a finite number of at least 0$"):
        Range(float, 0).check(-1, "", "lr")


def test_a_schedule_is_stored_and_checked_when_it_is_used():
    check = Many(Maybe(Scheduled(SHARE)), exactly=3)
    rising = (lambda t: 0.25 * t, 0.5, None)
    assert check.check(rising, "", "betas") == rising
    assert check.at(rising, 3, "", "betas") == (0.75, 0.5, None)
    with pytest.raises(ValueError, match=r"^betas\[0\] = 1\.0: expected a number in \[0, 1\)$"):
        check.at(rising, 4, "", "betas")
    with pytest.raises(TypeError, match=r"betas\[1\] = 'x': .*, or a schedule, or None"):
        check.check((0.5, "x", None), "", "betas")


def test_checks_come_from_the_types_of_a_class_and_its_bases():
    class Base:
        a: Annotated[float, Range(float)]
        b: Annotated[float, "a remark", Range(float)]
        c: float

    class Narrowed(Base):
        a: Annotated[Annotated[float, Range(float)], SHARE]
        d: Annotated[int, Range(int)]

    assert list(checks_of(Narrowed).items()) == [
        ("a", SHARE),
        ("b", Range(float)),
        ("d", Range(int)),
    ]
    assert checks_of(Base)["a"] == Range(float)
    assert checks_of(Base) is checks_of(Base)


def test_checks_do_not_keep_a_class_alive():
    class Short:
        a: Annotated[float, Range(float)]

    checks_of(Short)
    gone = weakref.ref(Short)
    del Short
    gc.collect()
    assert gone() is None


def test_a_value_checks_its_fields_and_evaluates_them():
    @dataclass(frozen=True)
    class sample(Value):
        weight: Annotated[object, Scheduled(POSITIVE)]
        size: Annotated[int, Range(int, 1)] = 2

    assert sample(3) == sample(3.0, size=np.int64(2)) and not sample(3).variable
    assert sample(lambda t: t).variable and sample(lambda t: t).at("weight", 7) == 7.0
    assert type(sample(1).at("size", 0)) is float
    with pytest.raises(ValueError, match=r"^test_checks\.sample: weight = 0: expected a finite"):
        sample(lambda t: t).at("weight", 0)
    with pytest.raises(TypeError, match=r"sample: size = <function .*expected an integer of at l"):
        sample(1, size=lambda t: 1)
