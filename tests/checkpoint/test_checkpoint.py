"""What a checkpoint holds, and that a run goes on from it as if it had never stopped."""

import itertools
import json
import math
import signal
from pathlib import Path

import numpy as np
import pytest
from cases import CONFIGURATIONS, DTYPES, label, same_bits
from faults import interrupted_at, lines_of
from hypothesis import given, settings
from hypothesis import strategies as hs
from safetensors.numpy import load_file

import steepest as st
from steepest import schedules
from steepest.checkpoint import CheckpointError, atomic, container, load, read, save
from steepest.optimizers import RULES

GOLDEN = Path(__file__).parents[1] / "data" / "checkpoint_version_1.safetensors"


def model(dtype=np.float64, seed=0):
    """Parameters of all layouts: C and Fortran order, strided, reversed, 0-d, empty."""
    rng = np.random.default_rng(seed)
    wide = rng.normal(size=(4, 10)).astype(dtype)
    return {
        "layers": [
            {"w": rng.normal(size=(3, 4)).astype(dtype), "b": wide[:, ::3]},
            {"w": np.asfortranarray(rng.normal(size=(2, 3, 4)).astype(dtype)), "b": wide[::-1, 1]},
        ],
        "scale": np.array(rng.normal(), dtype),
        "nothing": np.zeros((0, 3), dtype),
    }


def leaves(p):
    return [p["layers"][0]["w"], p["layers"][0]["b"], p["layers"][1]["w"], p["layers"][1]["b"],
            p["scale"], p["nothing"]]  # fmt: skip


def grouped(p):
    """Two groups with names of their own."""
    return [{"params": {"layers": p["layers"]}, "lr": schedules.linear(0.03, steps=25, warmup=3)},
            {"params": {"scale": p["scale"], "nothing": p["nothing"]}, "l1": 0.25}]  # fmt: skip


def train(opt, p, steps):
    for _ in range(steps):
        w, b, w1, b1, scale, nothing = (np.cos(3 * x) + x for x in leaves(p))
        opt.step(
            [{"layers": [{"w": w, "b": b}, {"w": w1, "b": b1}]},
             {"scale": scale, "nothing": nothing}]
        )  # fmt: skip


def same_state(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].keys() == b[name].keys()
        for key in a[name]:
            same_bits(a[name][key], b[name][key], f"{name} {key}")


def same_run(a, p, b, q):
    for x, y in zip(leaves(p), leaves(q), strict=True):
        same_bits(x, y)
    same_state(a.state, b.state)
    assert (a.updates, a.skipped) == (b.updates, b.skipped)
    for mine, other in zip(a.param_groups, b.param_groups, strict=True):
        assert {k: x for k, x in mine.items() if k != "params"} == {
            k: x for k, x in other.items() if k != "params"
        }


# A run goes on


@pytest.mark.parametrize("dtype", DTYPES, ids=label)
@pytest.mark.parametrize(("rule", "hyper"), CONFIGURATIONS, ids=label)
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(tmp_path, rule, hyper, dtype):
    options = hyper | {
        "l1": schedules.constant(0.01, warmup=5),
        "ema": 0.9,
        "clip": st.clip.global_norm(2.0),
    }
    if "betas" in hyper:
        fixed = rule == "schedulefreeadamw"  # its average needs a fixed first beta
        first = 0.9 if fixed else schedules.inverse_time(0.9, k=0.01)
        options["betas"] = (first, *hyper["betas"][1:])
    p, q = model(dtype), model(dtype, seed=1)
    opt = RULES[rule](grouped(p), **options)
    train(opt, p, 10)
    save(tmp_path / "run", opt)
    train(opt, p, 10)

    kept = leaves(q)
    fresh = RULES[rule](grouped(q), **(hyper | {"ema": 0.5, "clip": options["clip"]}))
    train(fresh, q, 3)  # over another state, too
    load(tmp_path / "run", fresh)
    assert all(x is y for x, y in zip(kept, leaves(q), strict=True))
    train(fresh, q, 10)
    same_run(opt, p, fresh, q)


def test_the_dict_of_a_checkpoint_is_the_optimizers(tmp_path):
    p = model()
    opt = st.AdamW(grouped(p), nonfinite="skip")
    train(opt, p, 2)
    opt.step([{"layers": None}, {"scale": np.array(np.nan), "nothing": None}])
    save(tmp_path / "run", opt, extra={"epoch": 3}, arrays={"order": np.arange(5)})
    found, expected = read(tmp_path / "run"), opt.state_dict()
    same_state(found.state_dict.pop("state"), expected.pop("state"))
    assert found.state_dict == expected
    assert found.state_dict["skipped"] == 1
    assert found.extra == {"epoch": 3}
    assert found.arrays.keys() == {"order"}
    same_bits(found.arrays["order"], np.arange(5))
    assert list(found.params) == [name for g in opt.param_groups for name in g["param_names"]]
    for name, x in zip(found.params, leaves(p), strict=True):
        same_bits(found.params[name], np.ascontiguousarray(x).reshape(x.shape), name)


def test_what_is_read_is_nobodys(tmp_path):
    """Neither what was read nor the saved optimizer changes when the other does."""
    w = np.ones(3)
    opt = st.SGD({"w": w}, lr=0.5, momentum=0.9)
    save(tmp_path / "run", opt)
    found = load(tmp_path / "run", opt)
    opt.step({"w": np.ones(3)})
    np.testing.assert_array_equal(found.params["w"], 1.0)
    np.testing.assert_array_equal(found.state_dict["state"]["w"]["momentum_buffer"], 0.0)
    found.params["w"][...] = 7.0
    assert w[0] == 0.5


def test_what_another_thread_changes_while_saving_is_saved_with_its_digest(tmp_path, monkeypatch):
    """The file is sound whatever is written when."""
    w, order = np.ones(3), np.arange(3)
    opt = st.SGD({"w": w}, lr=0.5)
    write = atomic._write_all
    for n in range(1, 10):
        w[...], order[...], count = 1.0, np.arange(3), itertools.count(1)

        def late(descriptor, chunk, n=n, count=count):
            if next(count) == n:
                w[...] = 9.0
                order[...] = 9
            write(descriptor, chunk)

        monkeypatch.setattr(atomic, "_write_all", late)
        save(tmp_path / "run", opt, arrays={"order": order})
        found = read(tmp_path / "run")
        saved = (set(found.params["w"].tolist()), found.arrays["order"].tolist())
        assert saved in [({a}, b) for a in (1.0, 9.0) for b in ([0, 1, 2], [9, 9, 9])]
    assert next(count) < 10  # the header, each array, the header again: all were met


def test_other_readers_of_safetensors_find_the_parameters_by_name(tmp_path):
    p = model(np.float32)
    save(tmp_path / "run", st.Adam(grouped(p)))
    found = load_file(tmp_path / "run")
    same_bits(found["layers.1.w"], np.array(p["layers"][1]["w"], order="C"))
    same_bits(found["scale"], p["scale"])
    same_bits(found["optimizer/layers.0.b/exp_avg"], np.zeros((4, 4), np.float32))


def test_saving_twice_gives_the_same_bytes(tmp_path):
    opt = st.Adam(grouped(model()))
    save(tmp_path / "a", opt)
    save(tmp_path / "b", opt)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_of_format_version_1_is_read_for_ever():
    """The file in tests/data was written when the format was new; it must never be rewritten."""
    w, b = np.zeros((2, 3), np.float32), np.zeros(2)
    opt = st.AdamW([{"params": {"w": w}}, {"params": {"b": b}}], lr=1.0, amsgrad=True)
    mean = np.zeros(3, np.float16)
    found = load(GOLDEN, opt, {"w": w, "b": b, "mean": mean})
    assert w.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert b.tolist() == [-0.5, math.inf]
    assert mean.tolist() == [0.5, 1.5, 2.5]
    assert opt.updates == 3 and opt.skipped == 1
    assert {k: x.tolist() for k, x in opt.state["b"].items()} == {
        "step": 3, "exp_avg": [1.0, 2.0], "exp_avg_sq": [3.0, 4.0], "max_exp_avg_sq": [5.0, 6.0],
    }  # fmt: skip
    assert opt.param_groups[0]["lr"] == schedules.cosine(0.1, steps=100, warmup=10)
    assert opt.param_groups[1]["betas"] == (schedules.exponential(0.5, gamma=0.9), 0.75)
    assert opt.param_groups[1]["note"] == [1, (2, math.inf), {"deep": np.float32(0.1)}]
    assert found.extra == {"epoch": 7, "rng": {"state": 2**100 + 1}, 3: None}
    assert found.arrays["order"].tolist() == [2, 0, 1]


# Parameters that the optimizer does not step


def test_further_parameters_are_saved_and_loaded_in_place(tmp_path):
    def network(value):
        return {
            "w": np.full(3, value),
            "mean": np.full(2, value, np.float32),
            "seen": np.array(value, np.int64),
        }

    p, q = network(1.0), network(2.0)
    save(tmp_path / "run", st.SGD({"w": p["w"]}, lr=0.1), p)
    kept = dict(q)
    opt = st.SGD({"w": q["w"]}, lr=0.1)
    with pytest.raises(
        CheckpointError,
        match="array to load them into: 'mean', 'seen'; give the arrays",
    ):
        load(tmp_path / "run", opt)
    load(tmp_path / "run", opt, q)
    for name, x in q.items():
        assert x is kept[name]
        same_bits(x, p[name], name)


def test_parameters_under_other_names_than_the_optimizers_are_stored_once(tmp_path):
    w, frozen = np.ones(2), np.zeros(2)
    opt = st.SGD([w], lr=0.1)
    save(tmp_path / "run", opt, {"w": w, "frozen": frozen, "tied": frozen})
    assert list(read(tmp_path / "run").params) == ["0", "frozen"]
    load(tmp_path / "run", opt, {"w": w, "frozen": frozen, "tied": frozen})


def test_empty_arrays_are_never_the_same(tmp_path):
    w, base = np.ones(2), np.ones(3)
    opt = st.SGD({"w": w}, lr=0.1)
    save(tmp_path / "run", opt, {"w": w, "a": base[:0], "b": base[:0]})
    load(tmp_path / "run", opt, {"w": w, "a": np.zeros(0), "b": np.zeros(0)})


def test_another_array_under_the_name_of_a_parameter_is_refused(tmp_path):
    opt = st.SGD({"w": np.ones(2)}, lr=0.1)
    with pytest.raises(CheckpointError, match="params 'w' is another array than the one"):
        save(tmp_path / "run", opt, {"w": np.ones(2)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["optimizer/w/step", "optimizer/", "arrays/x"])
def test_names_that_mean_something_else_in_the_file_are_refused(tmp_path, name):
    with pytest.raises(CheckpointError, match=f"cannot have the name '{name}'"):
        save(tmp_path / "run", st.SGD({name: np.ones(2)}, lr=0.1))


def test_names_of_states_that_mean_something_else_in_the_file_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(st.SGD, "states", staticmethod(lambda h: ("a/b",)))
    opt = st.SGD({"w": np.ones(2)}, lr=0.1)
    with pytest.raises(CheckpointError, match="a state cannot have the name 'a/b'"):
        save(tmp_path / "run", opt)


@pytest.mark.parametrize("name", ["", "/", "optimizer", "a/b", "Optimizer/a", "é\n\x1f\x7f🙂", "."])
def test_any_other_name_comes_back(tmp_path, name):
    w = np.ones(2)
    save(tmp_path / "run", st.Adam({name: w, "z": np.ones(1)}, lr=0.1), arrays={name: w})
    fresh = st.Adam({name: np.zeros(2), "z": np.zeros(1)})
    found = load(tmp_path / "run", fresh)
    assert list(found.params) == [name, "z"] and list(found.arrays) == [name]


@pytest.mark.torch
def test_tensors_of_pytorch_are_saved_and_loaded_in_place(tmp_path):
    torch = pytest.importorskip("torch")
    p = {"w": torch.ones(3, requires_grad=True), "mean": torch.full((2,), 5.0)}
    opt = st.SGD({"w": p["w"]}, lr=0.5)
    save(tmp_path / "run", opt, p)
    opt.step({"w": torch.ones(3)})
    p["mean"].zero_()
    load(tmp_path / "run", opt, p)
    assert p["w"].tolist() == [1.0] * 3 and p["mean"].tolist() == [5.0] * 2


# What does not fit


class Given:
    """A file, and an optimizer that it fits, with a state of its own."""

    def __init__(self, folder):
        self.path = folder / "run"
        p = {"a": np.ones(3), "b": np.ones((2, 2), np.float32)}
        opt = st.AdamW(p, lr=0.1)
        opt.step({"a": np.ones(3), "b": np.ones((2, 2), np.float32)})
        save(self.path, opt, extra={"epoch": 1})
        self.fresh()
        self.before = self.seen()

    def fresh(self):
        self.params = {"a": np.full(3, 5.0), "b": np.full((2, 2), 6.0, np.float32)}
        self.opt = st.AdamW(self.params, lr=0.2)

    def seen(self):
        state = self.opt.state_dict()
        return {k: x.tobytes() for k, x in self.params.items()} | {
            "state": {n: {k: x.tobytes() for k, x in s.items()} for n, s in state["state"].items()},
            "rest": [state["updates"], state["skipped"], state["param_groups"]],
        }

    def refused(self, message, optimizer=None, params=None):
        with pytest.raises(CheckpointError, match=message):
            load(self.path, optimizer or self.opt, params)
        assert self.seen() == self.before

    def rewrite(self, metadata=(), arrays=()):
        """The same file with other contents and the right digests."""
        stored, texts = container.read(self.path)
        container.write(self.path, stored | dict(arrays), texts | dict(metadata))


@pytest.fixture
def file(tmp_path):
    return Given(tmp_path)


def test_another_rule_is_refused(file):
    file.refused("has the rule 'adamw'; the optimizer has 'adam'", st.Adam(file.params))


def test_missing_and_unknown_parameters_are_refused_by_name(file):
    p = file.params
    file.refused("lacks the parameters 'c'", st.AdamW(p | {"c": np.ones(1)}))
    file.refused("without an array to load them into: 'b'", st.AdamW({"a": p["a"]}))
    many = {f"p{i}": np.ones(1) for i in range(8)}
    file.refused("'p0', 'p1', 'p2', 'p3', 'p4' and 3 more", st.AdamW(p | many))


def test_other_shapes_and_dtypes_are_refused_by_name(file):
    b = file.params["b"]
    file.refused(
        r"'a' is float64 of shape \(3,\); the array to load it into is float64 of shape \(4,\)",
        st.AdamW({"a": np.ones(4), "b": b}),
    )
    file.refused("is float32 of shape", st.AdamW({"a": np.ones(3, np.float32), "b": b}))


def test_other_groups_are_refused(file):
    a, b = ({"params": {k: x}} for k, x in file.params.items())
    file.refused("in other groups", st.AdamW([a, b]))


def test_parameters_are_matched_by_name_in_any_order(file):
    p = {"b": np.zeros((2, 2), np.float32), "a": np.zeros(3)}
    opt = st.AdamW(p)
    load(file.path, opt)
    saved = read(file.path)
    for name in p:
        same_bits(p[name], saved.params[name], name)
    same_state(opt.state, saved.state_dict["state"])
    opt.step({"a": np.ones(3), "b": np.ones((2, 2), np.float32)})


def test_arrays_that_cannot_be_written_are_refused(file):
    file.params["a"].flags.writeable = False
    file.refused("'a' is read-only")
    file.params["a"].flags.writeable = True
    file.rewrite(arrays={"c": np.ones(3)})
    file.refused("'a' and parameter 'c' share memory", params={"c": file.params["a"][::-1]})
    repeated = np.lib.stride_tricks.as_strided(np.zeros(1), (3,), (0,))
    file.refused("'c' is read-only or has elements that share memory", params={"c": repeated})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "2"}, "format version 2; this version of steepest reads version 1"),
        ({"format": "pt"}, "not a checkpoint of steepest"),
        ({"optimizer": '{"updates": 1, "skipped": "x"}'}, "lacks its expected form"),
        ({"optimizer": '{"updates": 1}'}, "lacks its expected form"),
        ({"optimizer": '{"updates": -1, "skipped": 0}'}, "lacks its expected form"),
        ({"groups": "{}"}, "lacks its expected form"),
        ({"groups": "[]"}, "unknown parameter 'a'"),
        ({"groups": '[{"param_names": ["a", "b"]}]'}, "lacks 'lr'"),
        ({"groups": '[{"param_names": ["a", "b", "c"]}]'}, "lacks the parameters 'c'"),
        ({"extra": "[]"}, "lacks its expected form"),
        ({"extra": "{"}, "extra is no JSON"),
        ({"extra": '{"x": 1, "x": 2}'}, "extra has the key 'x' twice"),
        ({"extra": '{"x": NaN}'}, "extra has NaN"),
        ({"extra": "[" * 100_000}, "extra is nested too deeply"),
        ({"extra": '{"$float": "1"}'}, r"\$float with '1'"),
        ({"extra": '{"$tuple": [], "x": 1}'}, r"\$tuple next to 'x'"),
        ({"extra": '{"$new": []}'}, r"\$new has no meaning"),
        ({"extra": '{"$dict": [[[], 1]]}'}, "unhashable"),
        ({"extra": '{"$dict": [[1, 1], [1, 2]]}'}, "a key twice"),
        ({"extra": '{"$numpy": ["object", 1]}'}, "KeyError"),
        ({"extra": '{"$object": ["os.system", {"command": "true"}]}'}, "kind 'os.system'"),
        ({"extra": '{"$object": ["schedules.cosine", {"lr": -1, "steps": 2}]}'}, "lr = -1"),
        ({"extra": '{"$object": ["schedules.cosine", {"lr": 1, "steps": 2}, {}]}'}, "load_state"),
        ({"extra": '{"$object": ["schedules.cosine", {"code": 1}]}'}, "unexpected keyword"),
        ({"extra": '{"$object": []}'}, "not enough values"),
    ],
)  # fmt: skip
def test_metadata_that_makes_no_sense_is_refused(file, change, message):
    file.rewrite(change)
    file.refused(message)


def test_hyper_parameters_that_make_no_sense_are_refused(file):
    _, texts = container.read(file.path)
    for old, new, message in [
        ('"lr": 0.1', '"lr": -0.1', "lr = -0.1"),
        ('"lr": 0.1', '"lr": "fast"', "lr = 'fast'"),
        ('"lr": 0.1', f'"lr": 1{"0" * 400}', "lr = inf: expected a finite"),
        ('"amsgrad": false', '"amsgrad": 3', "amsgrad = 3"),
        ('"amsgrad": false', '"amsgrad": true', "max_exp_avg_sq"),
        ('{"$tuple": [0.9, 0.999]}', "[0.9]", "betas"),
    ]:
        assert old in texts["groups"]
        file.rewrite({"groups": texts["groups"].replace(old, new)})
        file.refused(message)


@pytest.mark.parametrize("key", ["format", "rule", "groups", "optimizer", "extra"])
def test_metadata_that_is_not_there_is_refused(file, key):
    stored, texts = container.read(file.path)
    del texts[key]
    container.write(file.path, stored, texts)
    file.refused("lacks" if key != "format" else "not a checkpoint of steepest")


@pytest.mark.parametrize(
    ("name", "x"),
    [
        ("optimizer/a/exp_avg", np.zeros(4)),
        ("optimizer/a/exp_avg", np.zeros(3, np.float32)),
        ("optimizer/a/step", np.array(1.5)),
        ("optimizer/a/step", np.array(-1)),
        ("optimizer/a/step", np.array([1, 2])),
        ("optimizer/a/new", np.zeros(3)),
        ("optimizer/c/step", np.array(1)),
    ],
)
def test_state_that_does_not_fit_is_refused(file, name, x):
    """A state of another size than its parameter would be written beyond its end."""
    file.rewrite(arrays={name: x})
    file.refused(f"{file.path}: ")


def put(tree, choose, value):
    """Puts the value in the place of a node of a JSON tree, chosen by the fractions `choose`."""
    while isinstance(tree, (dict, list)) and tree:
        keys = list(tree) if isinstance(tree, dict) else range(len(tree))
        key = keys[int(choose.pop() * len(keys))] if choose else keys[0]
        if not choose or not isinstance(tree[key], (dict, list)) or not tree[key]:
            tree[key] = value
            return
        tree = tree[key]


fractions = hs.lists(hs.floats(0, 1, exclude_max=True), min_size=1, max_size=5)
odd = hs.recursive(
    hs.none() | hs.booleans() | hs.integers() | hs.floats() | hs.text(max_size=3)
    | hs.sampled_from([{"$float": "nan"}, {"$object": ["schedules.constant", {"lr": 0.5}]}, "a"]),
    lambda inner: hs.lists(inner, max_size=2) | hs.dictionaries(hs.text(max_size=3), inner),
    max_leaves=4,
)  # fmt: skip


@settings(max_examples=200)
@given(hs.sampled_from(["groups", "optimizer", "extra"]), fractions, odd)
def test_whatever_the_metadata_says_nothing_or_all_is_loaded(tmp_path_factory, key, where, value):
    file = Given(tmp_path_factory.getbasetemp())
    _, texts = container.read(file.path)
    put(tree := json.loads(texts[key]), where, value)
    file.rewrite({key: json.dumps(tree)})
    try:
        load(file.path, file.opt)
    except CheckpointError:
        assert file.seen() == file.before
    else:
        assert file.params["a"].tobytes() == read(file.path).params["a"].tobytes()
        file.opt.step({"a": np.ones(3), "b": np.ones((2, 2), np.float32)})


# An interrupt between a file's last use and its closing: it is closed when it is freed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda x: x.name)
def test_a_signal_while_loading_leaves_all_old_or_all_new(file, number):
    """Interrupts at every ninth line that runs, and at each of the last, where things change."""
    lines = lines_of(lambda: load(file.path, file.opt))
    after = file.seen()
    seen = []
    for n in (*range(1, lines - 60, 9), *range(lines - 60, lines + 1)):
        file.fresh()
        assert interrupted_at(n, lambda: load(file.path, file.opt), number)
        seen.append(file.seen())
    assert len(seen) > 100
    assert seen.count(file.before) + seen.count(after) == len(seen)
    assert seen[0] == file.before and seen[-1] == after


# Schedules out of range

FALLING = schedules.piecewise((0.1, -0.1), (3,))


@pytest.mark.parametrize(
    "changed",
    [
        {"lr": FALLING},
        {"lr": schedules.piecewise((0.1, -0.1), (1,))},
        {"lr": schedules.exponential(1e300, 1e10)},
        {"weight_decay": FALLING},
        {"l1": FALLING},
        {"clip": st.clip.norm(FALLING)},
        {"clip": st.clip.value(FALLING)},
        {"regularize": (st.regularize.l2(FALLING),)},
    ],
    ids=repr,
)
def test_a_run_whose_schedule_is_out_of_range_can_be_saved_and_loaded(changed, tmp_path):
    opt = st.SGD({"w": np.ones(2)}, lr=0.1, momentum=0.9)
    for _ in range(3):
        opt.step({"w": np.ones(2)})
    opt.param_groups[0].update(changed)
    save(tmp_path / "x", opt)
    again = st.SGD({"w": np.zeros(2)}, lr=0.1, momentum=0.9)
    load(tmp_path / "x", again)
    assert again.param_groups[0] == opt.param_groups[0] | {
        "params": again.param_groups[0]["params"]
    }
    before = again.param_groups[0]["params"][0].copy()
    with pytest.raises((ValueError, OverflowError), match=r"expected a (finite )?number|too large"):
        again.step({"w": np.ones(2)})
    np.testing.assert_array_equal(again.param_groups[0]["params"][0], before)
    again.param_groups[0].update(dict.fromkeys(changed) | {"lr": 0.1, "weight_decay": 0, "l1": 0})
    again.param_groups[0]["regularize"] = ()
    again.step({"w": np.ones(2)})
    assert again.updates == 4


def test_a_schedule_that_never_was_in_range_is_refused_before_a_file_is_written(tmp_path):
    opt = st.SGD({"w": np.ones(2)}, lr=0.1)
    opt.param_groups[0]["lr"] = -schedules.constant(0.1)
    with pytest.raises(ValueError, match=r"lr = -0.1: expected a finite number of at least 0"):
        save(tmp_path / "x", opt)
    assert not list(tmp_path.iterdir())


# Schedules that change, and further arrays


class Falling:
    """A schedule that changes with what it observes; made with `lr`, like `plateau`."""

    def __init__(self, lr):
        self.lr = lr
        self.factor = 1.0

    def __call__(self, t):
        return self.lr * self.factor

    def observe(self, metric):
        self.factor *= 0.5

    def state_dict(self):
        return {"factor": self.factor}

    def load_state_dict(self, state):
        self.factor = state["factor"]


def test_a_schedule_that_changes_keeps_its_state_and_its_holder(tmp_path, monkeypatch):
    monkeypatch.setitem(schedules.SCHEDULES, "falling", Falling)
    opt = st.SGD({"w": np.ones(2)}, lr=Falling(0.1))
    opt.param_groups[0]["lr"].observe(3.0)
    save(tmp_path / "run", opt)

    held = Falling(0.1)
    again = st.SGD({"w": np.zeros(2)}, lr=held)
    load(tmp_path / "run", again)
    assert again.param_groups[0]["lr"] is held and held(0) == 0.05

    other = Falling(0.3)
    another = st.SGD({"w": np.zeros(2)}, lr=other)
    load(tmp_path / "run", another)
    assert another.param_groups[0]["lr"](0) == 0.05 and other(0) == 0.3


@pytest.mark.parametrize("x", [[1.0], "text", None])
def test_further_arrays_must_be_arrays(tmp_path, x):
    with pytest.raises(TypeError, match=r"arrays\['x'\] is a"):
        save(tmp_path / "run", st.SGD(np.ones(1)), arrays={"x": x})


@pytest.mark.parametrize("argument", ["extra", "arrays"])
def test_extra_and_arrays_are_dicts(tmp_path, argument):
    with pytest.raises(TypeError, match=f"{argument} is a list; expected a dict"):
        save(tmp_path / "run", st.SGD(np.ones(1)), **{argument: []})


def test_names_of_further_arrays_are_strings(tmp_path):
    with pytest.raises(TypeError, match="key 3"):
        save(tmp_path / "run", st.SGD(np.ones(1)), arrays={3: np.ones(1)})
