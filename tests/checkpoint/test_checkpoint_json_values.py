"""Hyper-parameters, schedules and whatever else is stored as JSON come back as they were."""

import dataclasses
import doctest
import json
import math
import signal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as hs

import steepest as st
from steepest import schedules
from steepest.checkpoint import CheckpointError, json_values, read, save
from steepest.options import regularize

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


@settings(max_examples=300)
@given(json_able)
def test_values_come_back_with_their_types_and_bits(value):
    same(value, json_values.loads(json_values.dumps(value, "x"), "x"))


@pytest.mark.parametrize("x", [math.nan, np.float32("nan"), np.float64("-inf"), -0.0, 5e-324])
def test_special_floats_come_back(x):
    y = json_values.loads(json_values.dumps(x, "x"), "x")
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
        back = json_values.loads(json_values.dumps(clip, "x"), "x")
        assert back == clip and type(back) is type(clip)


BITS = ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"]


def generator(name, seed=(3, 5)):
    """In the midst of a buffer and of a 64-bit number."""
    rng = np.random.Generator(getattr(np.random, name)(seed))
    rng.normal(size=3)
    rng.integers(9, dtype=np.int32)
    return rng


@pytest.mark.parametrize("name", BITS)
@pytest.mark.parametrize("seed", [7, (3, 5), None, np.random.SeedSequence(4).spawn(2)[1]], ids=str)
def test_generators_go_on_where_they_were(tmp_path, name, seed):
    rng = generator(name, seed)
    rng.spawn(2)
    opt = st.SGD(np.ones(1))
    save(tmp_path / "run", opt, extra={"rngs": [rng], "epoch": 1})
    again = st.load(tmp_path / "run", opt).extra["rngs"][0]
    assert type(again.bit_generator) is type(rng.bit_generator)
    for one, other in ((rng, again), (rng.spawn(1)[0], again.spawn(1)[0])):
        assert one.integers(2**31, size=700, dtype=np.int32).tolist() == (
            other.integers(2**31, size=700, dtype=np.int32).tolist()
        )
        np.testing.assert_array_equal(one.normal(size=9), other.normal(size=9))


def test_a_generator_with_a_key_of_its_own_goes_on(tmp_path):
    rng = np.random.Generator(np.random.Philox(key=3))
    again = json_values.loads(json_values.dumps(rng, "x"), "x")
    np.testing.assert_array_equal(rng.normal(size=9), again.normal(size=9))


def test_bit_generators_of_others_are_refused():
    class Own(np.random.PCG64):
        pass

    with pytest.raises(CheckpointError, match="x uses the bit generator Own; expected one of"):
        json_values.dumps(np.random.Generator(Own(1)), "x")


def at(place, value):
    def change(items):
        *path, last = place
        for step in path:
            items = items[step]
        items[last] = value

    return change


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("MT19937", at([1, "state", "pos"], 625)),
        ("MT19937", at([1, "state", "pos"], -1)),
        ("MT19937", at([1, "state", "pos"], True)),
        ("MT19937", at([1, "state", "key"], [1, 2])),
        ("MT19937", at([1, "state", "key", 5], 2**40)),
        ("Philox", at([1, "buffer_pos"], -5)),
        ("Philox", at([1, "buffer_pos"], 2**40)),
        ("Philox", at([1, "buffer"], [])),
        ("PCG64", at([1, "state", "state"], -1)),
        ("PCG64", at([1, "state", "inc"], 2**130)),
        ("PCG64", at([1, "bit_generator"], "MT19937")),
        ("PCG64", at([1, "has_uint32"], 7.5)),
        ("PCG64", at([1], {})),
        ("PCG64", at([1], [])),
        ("PCG64", at([0], "Generator")),
        ("PCG64", at([0], ["PCG64"])),
        ("PCG64", at([2, 2], 2**40)),
        ("PCG64", at([2, 2], 1)),
        ("PCG64", at([2, 0], -1)),
        ("PCG64", at([2, 3], "x")),
        ("PCG64", at([2], 5)),
    ],
)
def test_generators_that_are_none_are_refused(name, change):
    """Some of these NumPy would take, and then read beyond its buffers."""
    tree = json.loads(json_values.dumps(generator(name), "x"))
    json_values.loads(json.dumps(tree), "x")
    change(tree["$generator"])
    with pytest.raises(CheckpointError, match=r"^x: "):
        json_values.loads(json.dumps(tree), "x")


@pytest.mark.parametrize("frozen", [True, False])
def test_of_other_objects_only_frozen_dataclasses_can_be_stored(monkeypatch, frozen):
    kind = dataclasses.make_dataclass("kind", ["x"], frozen=frozen)
    kind.__module__ = regularize.__name__
    monkeypatch.setattr(regularize, "kind", kind, raising=False)
    if frozen:
        assert json_values.loads(json_values.dumps(kind((1, 2)), "x"), "x") == kind((1, 2))
    else:
        with pytest.raises(CheckpointError, match="cannot be stored"):
            json_values.dumps(kind((1, 2)), "x")


def test_schedules_in_schedules_can_be_stored(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class joined:
        parts: tuple
        at: tuple = ()

    monkeypatch.setitem(schedules.SCHEDULES, "joined", joined)
    nested = joined((schedules.constant(1.0), joined((schedules.linear(0.1, steps=5),))), (3, 7))
    assert json_values.loads(json_values.dumps({"lr": nested}, "x"), "x") == {"lr": nested}


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
        json_values.dumps({"n": 10**5000}, "x")


def test_values_that_contain_themselves_are_refused(tmp_path):
    loop = []
    loop.append(loop)
    with pytest.raises(CheckpointError, match="extra is nested too deeply, or contains itself"):
        save(tmp_path / "run", st.SGD(np.ones(1)), extra={"x": loop})
