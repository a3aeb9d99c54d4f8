"""Optimizers of arrays over PyTorch's tensors, which may get other memory: ``p.data = ...``."""

import copy
import pickle
import weakref

import numpy as np
import pytest
from cases import same_bits

import steepest as st
from steepest.memory import arrays

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

DOORS = ["AdamW", "Lion", "Muon", "functional", "SAM", "LBFGS"]
TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def drawn(dtype, trained, seed=0):
    made = torch.Generator().manual_seed(seed)
    return [
        torch.nn.Parameter(torch.randn(shape, generator=made).to(dtype), trained)
        for shape in ((4, 3), (5,))
    ]


def elsewhere(p):
    p.data = p.detach().clone()


def bits(params):
    return [p.detach().contiguous().view(torch.uint8).numpy() for p in params]


def stepping(door, params):
    """A step by one of the doors, for gradients as tensors."""
    if door == "functional":
        bound = st.functional.prepare("adamw", params, *st.functional.new_states("adamw", params))
        return lambda grads: bound.step(grads, lr=0.1)
    if door == "SAM":
        sam = st.SAM(st.SGD(params, lr=0.1, momentum=0.9), rho=0.3)
        return lambda grads: sam.step(lambda: (0.0, grads))
    if door == "LBFGS":
        opt = st.LBFGS(params, lr=0.1, max_iter=1)
        return lambda grads: opt.step(lambda: (0.0, grads))
    return getattr(st, door)(params, lr=0.1).step


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
def test_steps_follow_a_tensor_to_other_memory(dtype, trained, door):
    moved, still = drawn(dtype, trained), drawn(dtype, trained)
    one, other = stepping(door, moved), stepping(door, still)
    for t in range(4):
        grads = [g.detach() for g in drawn(dtype, False, seed=t + 1)]
        if t:
            elsewhere(moved[t % 2])
        left = [torch.full_like(p, 7.0) for p in moved for _ in range(50)]  # where it was, if free
        one(grads)
        other(grads)
        for a, b in zip(bits(moved), bits(still), strict=True):
            same_bits(a, b, f"step {t + 1}")
        assert all((x == 7.0).all() for x in left)


def test_steps_follow_a_copy_to_other_memory():
    params = [p.detach() for p in drawn(torch.float32, False)]
    copies = [p.bfloat16() for p in params]
    opt = st.AdamW(params, lr=0.1, copies=copies)
    for t in range(4):
        elsewhere(copies[t % 2])
        if t > 1:
            elsewhere(params[t % 2])
        opt.step([g.detach() for g in drawn(torch.float32, False, seed=t + 1)])
        for p, x in zip(params, copies, strict=True):
            assert torch.equal(x, p.bfloat16()), t
    copies[0].data = torch.zeros(1, dtype=torch.bfloat16)
    before = bits(params)
    with pytest.raises(
        ValueError, match=r"copy of parameter '0' is bfloat16 of shape \(1,\); it w"
    ):
        opt.step(params)
    assert all(map(np.array_equal, bits(params), before)) and opt.updates == 4


@pytest.mark.parametrize("given", [torch.tensor, lambda x: torch.nn.Parameter(torch.tensor(x))])
def test_an_array_over_a_tensor_holds_its_memory(given):
    """Also where the tensor itself gets another, and until the array goes."""
    memory = np.arange(4.0)
    w = given([0.0])
    w.data = torch.from_numpy(memory)
    alive = weakref.ref(memory)
    del memory
    own = arrays.as_array(w, "w")
    w.data = torch.zeros(4, dtype=torch.float64)
    assert alive() is not None and own.tolist() == [0.0, 1.0, 2.0, 3.0]
    del own
    assert alive() is None


def test_what_a_tensor_was_is_let_go_by_the_next_step():
    memory = np.ones(4)
    w = torch.from_numpy(memory)
    alive = weakref.ref(memory)
    del memory
    twin = np.ones(4)
    opt, other = st.AdamW(w, lr=0.5), st.AdamW(twin, lr=0.5)
    for _ in range(2):
        opt.step(torch.ones(4, dtype=torch.float64))
        other.step(np.ones(4))
        elsewhere(w)
    opt.step(torch.ones(4, dtype=torch.float64))
    other.step(np.ones(4))
    assert alive() is None
    same_bits(w.numpy(), twin)


def test_digests_averages_and_checkpoints_are_of_the_memory_that_it_has(tmp_path):
    params = {"w": torch.tensor([3.0, 4.0])}
    opt, twin = st.SGD(params), st.SGD({"w": np.array([5.0, 6.0], np.float32)})
    free, mean = st.ScheduleFreeSGD(params), st.SGD(params, average=st.average.tail(start=9))
    before = opt.digest()
    params["w"].data = torch.tensor([5.0, 6.0])
    assert opt.digest() == twin.digest() != before
    assert mean.averaged()["w"].tolist() == [5.0, 6.0]
    written = np.array([3.0, 4.0], np.float32)
    still = st.ScheduleFreeSGD({"w": written})
    written[:] = 5.0, 6.0
    same_bits(free.averaged()["w"], still.averaged()["w"])
    params["w"].data = torch.tensor([7.0, 8.0])
    st.checkpoint.save(tmp_path / "run", opt)
    assert st.checkpoint.read(tmp_path / "run").params["w"].tolist() == [7.0, 8.0]


def test_tensors_that_no_longer_fit_are_refused_and_nothing_changes():
    w, b = torch.tensor([3.0, 4.0]), torch.tensor([2.0])
    opt = st.AdamW({"w": w, "b": b}, lr=0.5)
    grads = {"w": torch.ones(2), "b": torch.ones(1)}
    opt.step(grads)
    kept = b.tolist()
    elsewhere(b)
    for other, message in (
        (torch.zeros(3), r"'w' is float32 of shape \(3,\); it was float32 of shape \(2,\) when"),
        (torch.zeros(2, dtype=torch.float64), "'w' is float64 of shape"),
    ):
        w.data = other
        with pytest.raises((TypeError, ValueError), match=message):
            opt.step(grads)
        assert opt.updates == 1 and b.tolist() == kept
    w.data = torch.tensor([3.0, 4.0])
    opt.step(grads)
    assert opt.updates == 2 and b.tolist() != kept


def test_another_array_in_the_group_is_the_parameter_then():
    w, other = torch.tensor([3.0, 4.0]), np.array([1.0, 1.0], np.float32)
    opt = st.SGD(w, lr=0.5)
    opt.param_groups[0]["params"][0] = other
    elsewhere(w)
    opt.step(np.ones(2, np.float32))
    assert other.tolist() == [0.5, 0.5] and w.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_have_arrays_of_their_own(copied):
    w = torch.tensor([3.0, 4.0])
    opt = st.SGD(w, lr=0.5)
    twin = copied(opt)
    elsewhere(w)
    twin.step(np.ones(2, np.float32))
    assert w.tolist() == [3.0, 4.0]
    assert twin.param_groups[0]["params"][0].tolist() == [2.5, 3.5]
