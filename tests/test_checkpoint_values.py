"""Hyper-parameters, schedules and whatever else is stored as JSON come back as they were."""

import dataclasses
import doctest
import math
import signal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as hs

import steepest as st
from steepest import regularize, schedules
from steepest.checkpoint import CheckpointError, read, save, values

json_able = hs.recursive(
    hs.none()
    | hs.booleans()
    | hs.integers()
    | hs.floats(allow_nan=False)
    | hs.text()
    | hs.sampled_from(["$", "$tuple", "\ud800", np.float32(0.1), np.int8(-3), np.bool_(True)])
    | hs.builds(np.float64, hs.floats(allow_nan=False))
    | hs.builds(schedules.cosine, hs.floats(0, 1), steps=hs.integers(1, 9)),
    lambda inner: (
        hs.lists(inner, max_size=3)
        | hs.lists(inner, max_size=3).map(tuple)
        | hs.dictionaries(hs.text() | hs.integers() | hs.sampled_from(["$dict"]), inner, max_size=3)
    ),
    max_leaves=8,
)


def same(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    elif isinstance(a, float):
        assert (a, math.copysign(1, a)) == (b, math.copysign(1, b))
    else:
        assert a == b


@settings(max_examples=300, deadline=None)
@given(json_able)
def test_values_come_back_with_their_types_and_bits(value):
    same(value, values.loads(values.dumps(value, "x"), "x"))


@pytest.mark.parametrize("x", [math.nan, np.float32("nan"), np.float64("-inf"), -0.0, 5e-324])
def test_special_floats_come_back(x):
    y = values.loads(values.dumps(x, "x"), "x")
    assert type(x) is type(y)
    np.testing.assert_array_equal(x, y)
    assert np.signbit(x) == np.signbit(y)


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_every_schedule_can_be_stored(tmp_path, monkeypatch, name):
    """The first that the examples of its documentation make."""
    kind, made, check = schedules.SCHEDULES[name], [], schedules.Schedule.__post_init__
    monkeypatch.setattr(schedules.Schedule, "__post_init__", lambda x: (check(x), made.append(x)))
    names = vars(schedules).copy()
    for example in doctest.DocTestParser().get_examples(kind.__doc__):
        exec(example.source, names)
    schedule = next(x for x in made if type(x) is kind)
    opt = st.SGD({"w": np.ones(2)}, lr=schedule, weight_decay=schedule)
    save(tmp_path / "run", opt)
    group = read(tmp_path / "run").state_dict["param_groups"][0]
    assert group["lr"] == schedule and type(group["lr"]) is kind
    assert [group["weight_decay"](t) for t in range(30)] == [schedule(t) for t in range(30)]


def test_clips_can_be_stored():
    for clip in (st.clip.value(0.5), st.clip.norm(1.5), st.clip.global_norm(0.1)):
        back = values.loads(values.dumps(clip, "x"), "x")
        assert back == clip and type(back) is type(clip)


@pytest.mark.parametrize("frozen", [True, False])
def test_of_other_objects_only_frozen_dataclasses_can_be_stored(monkeypatch, frozen):
    kind = dataclasses.make_dataclass("kind", ["x"], frozen=frozen)
    kind.__module__ = "steepest.regularize"
    monkeypatch.setattr(regularize, "kind", kind, raising=False)
    if frozen:
        assert values.loads(values.dumps(kind((1, 2)), "x"), "x") == kind((1, 2))
    else:
        with pytest.raises(CheckpointError, match="cannot be stored"):
            values.dumps(kind((1, 2)), "x")


def test_schedules_in_schedules_can_be_stored(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class joined:
        parts: tuple
        at: tuple = ()

    monkeypatch.setitem(schedules.SCHEDULES, "joined", joined)
    nested = joined((schedules.constant(1.0), joined((schedules.linear(0.1, steps=5),))), (3, 7))
    assert values.loads(values.dumps({"lr": nested}, "x"), "x") == {"lr": nested}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda t: 0.1, r"\['tag'\] = <function .* cannot be stored in a file; of all callables"),
        ((0.9, math.cos), r"\['tag'\]\[1\] = <built-in function cos> cannot"),
        ({"deep": [object()]}, r"\['tag'\]\['deep'\]\[0\] = <object .*expected numbers, strings"),
        (np.ones(2), "give arrays as arrays="),
        (np.longdouble(1), "expected numbers"),
        (1j, "expected numbers"),
        (signal.SIGINT, "expected numbers"),
    ],
)  # fmt: skip
def test_what_cannot_be_stored_is_refused_by_group_and_name(tmp_path, value, message):
    opt = st.SGD([{"params": {"v": np.ones(1)}}, {"params": {"w": np.ones(2)}}], lr=0.1)
    save(tmp_path / "run", opt)
    before = (tmp_path / "run").read_bytes()
    opt.param_groups[1]["tag"] = value
    with pytest.raises(CheckpointError, match=message) as caught:
        save(tmp_path / "run", opt)
    assert str(caught.value).startswith("param_groups")
    assert (tmp_path / "run").read_bytes() == before
    assert [x.name for x in tmp_path.iterdir()] == ["run"]


def test_integers_too_long_for_python_to_write_are_refused():
    with pytest.raises(CheckpointError, match=r"^x: .* digits"):
        values.dumps({"n": 10**5000}, "x")


def test_values_that_contain_themselves_are_refused(tmp_path):
    loop = []
    loop.append(loop)
    with pytest.raises(CheckpointError, match="extra is nested too deeply, or contains itself"):
        save(tmp_path / "run", st.SGD(np.ones(1)), extra={"x": loop})
