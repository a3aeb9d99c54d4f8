"""What changes with time inside a group: snapshots of it, and loading into it."""

import copy
import io
import math
import pickle

import numpy as np
import pytest

import steepest as st
from steepest import schedules
from steepest.schedules import cosine, greedy, plateau

PLACES = {
    "lr": lambda s: {"lr": s},
    "betas": lambda s: {"betas": (s, 0.99)},
    "clip": lambda s: {"clip": st.clip.norm(s)},
    "clips": lambda s: {"clip": (st.clip.skip_spikes(s), st.clip.value(2.0))},
    "regularize": lambda s: {"regularize": (st.regularize.l2(0.1), st.regularize.l1(s))},
    "lookahead": lambda s: {"lookahead": st.average.lookahead(k=2, alpha=s)},
    "filter": lambda s: {"filter": st.filters.grokfast(lamb=s)},
}
KINDS = {
    "plateau": lambda: plateau(0.5, factor=0.5, patience=0),
    "plateau around": lambda: plateau(cosine(0.5, steps=9), factor=0.5, patience=0),
    "greedy": lambda: greedy(0.5, patience=0, factor=0.5),
}
places = pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
doors = pytest.mark.parametrize("door", ["numpy", pytest.param("torch", marks=pytest.mark.torch)])


class Numpy:
    def __init__(self, **options):
        self.params = np.ones(2)
        self.opt = st.Adam(self.params, **options)

    def step(self):
        self.opt.step(np.full(2, 0.5))

    def numbers(self):
        return self.params

    def put(self, other):
        self.params[...] = other.params


class Torch:
    def __init__(self, **options):
        torch = pytest.importorskip("torch")
        from steepest.torch import Adam

        self.params = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.params.grad = torch.full((2,), 0.5, dtype=torch.float64)
        self.opt = Adam([self.params], **options)

    def step(self):
        self.opt.step()

    def numbers(self):
        return self.params.detach().numpy()

    def put(self, other):
        self.params.data.copy_(other.params.data)


def run(door, **options):
    return {"numpy": Numpy, "torch": Torch}[door](**options)


def observed(schedule, *metrics):
    for metric in metrics:
        schedule.observe(metric)
    return schedule


@doors
@places
@kinds
def test_a_snapshot_stays_and_loading_hands_it_to_the_object_that_is_there(door, place, kind):
    first = kind()
    one = run(door, **place(first))
    one.step()
    observed(first, 3.0, 4.0)
    saved = one.opt.state_dict()
    state = copy.deepcopy(first.state)
    held = kind()
    other = run(door, **place(held))
    other.opt.load_state_dict(saved)
    assert held.state == state
    other.put(one)
    observed(held, 5.0, 6.0)
    assert first.state == state != held.state
    other.opt.load_state_dict(saved)
    assert held.state == state  # the snapshot is as it was, and what was told goes on:
    for x in (one, other):
        observed(first if x is one else held, 7.0, 8.0)
        x.step()
    np.testing.assert_array_equal(one.numbers(), other.numbers())


@pytest.mark.torch
@places
@kinds
def test_torch_load_reads_what_was_saved(place, kind):
    torch = pytest.importorskip("torch")
    first = kind()
    one = run("torch", **place(first))
    one.step()
    observed(first, 3.0, 4.0)
    file = io.BytesIO()
    torch.save(one.opt.state_dict(), file)
    file.seek(0)
    held = kind()
    other = run("torch", **place(held))
    other.opt.load_state_dict(torch.load(file))  # weights_only, as is usual
    assert held.state == first.state
    other.put(one)
    for x in (one, other):
        x.step()
    np.testing.assert_array_equal(one.numbers(), other.numbers())


@pytest.mark.torch
@pytest.mark.parametrize("steps", [0, 1])
def test_torch_load_reads_masks(steps):
    torch = pytest.importorskip("torch")
    one = run("torch", filter=st.filters.mask(np.array([True, False])))
    for _ in range(steps):
        one.step()
    file = io.BytesIO()
    torch.save(one.opt.state_dict(), file)
    file.seek(0)
    other = run("torch")
    other.opt.load_state_dict(torch.load(file))
    other.step()
    assert other.params.tolist()[1] == 0.0 != other.params.tolist()[0]


@pytest.mark.parametrize("masks", [None, np.array([[True, False]]), {"a": np.ones(0), "b": [1]}])
@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_mask_can_be_copied_and_pickled(masks, way):
    mask = st.filters.mask(masks)
    np.testing.assert_equal(way(mask).masks, mask.masks)
    if masks is not None:
        assert all(x.dtype == bool and x.flags.writeable for x in way(mask).masks.values())


@doors
def test_what_was_made_otherwise_gives_way(door):
    saved = run(door, lr=observed(plateau(0.5, patience=0), 1.0, 2.0))
    held = plateau(0.5, patience=1)
    other = run(door, lr=held)
    other.opt.load_state_dict(saved.opt.state_dict())
    assert other.opt.param_groups[0]["lr"](0) == 0.05
    assert held == plateau(0.5, patience=1)


def groups(*rates):
    params = [{"params": {str(i): np.ones(1)}, "lr": lr} for i, lr in enumerate(rates)]
    return st.SGD(params, lr=0.1)


def test_one_object_in_several_groups_stays_one():
    both = plateau(0.5, patience=0)
    saved = groups(both, both)
    observed(both, 1.0, 2.0)
    held = plateau(0.5, patience=0)
    other = groups(held, held)
    other.load_state_dict(saved.state_dict())
    assert [group["lr"] for group in other.param_groups] == [held, held]
    assert all(group["lr"] is held for group in other.param_groups) and held(0) == 0.05


def test_one_object_does_not_get_two_states():
    saved = groups(plateau(0.5, patience=0), observed(plateau(0.5, patience=0), 1.0, 2.0))
    held = plateau(0.5, patience=0)
    other = groups(held, held)
    other.load_state_dict(saved.state_dict())
    assert [group["lr"](0) for group in other.param_groups] == [0.5, 0.05]
    assert other.param_groups[0]["lr"] is held


class Halved:
    """A schedule of somebody else's, without the arguments in attributes of their names."""

    def __init__(self, lr):
        self.now = [lr]

    def __call__(self, t):
        return self.now[-1]

    def state_dict(self):
        return {"now": self.now}

    def load_state_dict(self, state):
        self.now[:] = state["now"]


@doors
def test_a_schedule_of_somebody_elses(door):
    one, held = Halved(0.5), Halved(0.25)
    saved = run(door, lr=one).opt.state_dict()
    one.now.append(0.125)
    other = run(door, lr=held)
    other.opt.load_state_dict(saved)
    assert held.now == [0.5] and other.opt.param_groups[0]["lr"] is held


def test_lbfgs():
    one, held = plateau(0.5, patience=0), plateau(0.5, patience=0)
    saved = st.LBFGS(np.ones(2), lr=observed(one, 1.0, 2.0)).state_dict()
    other = st.LBFGS(np.ones(2), lr=held)
    other.load_state_dict(saved)
    assert other.param_groups[0]["lr"] is held and held(0) == 0.05


@places
def test_a_file_hands_it_to_the_object_that_is_there(place, tmp_path):
    first, held = (plateau(0.5, factor=0.5, patience=0) for _ in range(2))
    one, other = (run("numpy", **place(s)) for s in (first, held))
    one.step()
    observed(first, 3.0, 4.0)
    st.save(tmp_path / "x", one.opt)
    st.load(tmp_path / "x", other.opt)
    assert held.state == first.state and held(0) == 0.25


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_the_state_is_of_pythons_numbers(kind):
    lr = plateau(kind(0.5), patience=0)
    observed(lr, kind(3.0))
    lr.load_state_dict(lr.state_dict() | {"level": np.float64(0.5), "best": np.float64(2.0)})
    assert {type(x) for x in lr.state_dict().values()} == {float, int}
    assert math.isclose(lr(0), 0.5) and schedules.SCHEDULES["plateau"] is plateau
