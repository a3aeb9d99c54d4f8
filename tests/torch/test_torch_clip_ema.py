"""Clipping and averages inside the step, against torch's functions around it."""

import copy
import math
import pickle

import numpy as np
import pytest

import steepest as st

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch")

import steepest.torch as stt  # noqa: E402

SHAPES = [(7, 5), (6,), (3, 4, 2), (1,)]


def parameters(dtype=np.float64):
    rng = np.random.default_rng(1)
    return [torch.nn.Parameter(torch.tensor(rng.standard_normal(s).astype(dtype))) for s in SHAPES]


def give(params, t):
    rng = np.random.default_rng(10 + t)
    for p in params:
        p.grad = torch.tensor(rng.standard_normal(p.shape)).to(p.dtype)


def close(params, others, dtype):
    # float64: both round the norm and one product in another order; float32: a few such steps
    tolerance = 1e-12 if dtype == np.float64 else 1e-5
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)


def run(optimizer, params, around=lambda params: None, steps=5):
    for t in range(steps):
        give(params, t)
        around(params)
        optimizer.step()


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))


def train(optimizer, net, after=lambda: None, steps=6):
    x = torch.arange(15, dtype=torch.float32).reshape(3, 5) / 10
    for _ in range(steps):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
        after()


KEYWORDS = {"lr": 0.05, "weight_decay": 0.1}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("max_norm", [0.3, 4.0, 1e3])
def test_global_norm_is_clip_grad_norm(p, max_norm, dtype):
    params, others = parameters(dtype), parameters(dtype)
    ours = stt.AdamW(params, clip=st.clip.global_norm(max_norm, p=p), **KEYWORDS)
    norms = []
    run(ours, params)
    run(
        torch.optim.AdamW(others, **KEYWORDS),
        others,
        lambda ps: norms.append(torch.nn.utils.clip_grad_norm_(ps, max_norm, norm_type=p).item()),
    )
    close(params, others, dtype)
    assert ours.last_norm == pytest.approx(norms[-1], rel=1e-6 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("way", ["straight", "pickle", "copy", "load"])
def test_the_parts_of_a_group_are_measured_together(way):
    """Those that exclude and overrides make, as in the NumPy class, whatever comes between."""
    options = {"lr": 0.5, "clip": st.clip.group_norm(0.7), "weight_decay": 0.1,
               "exclude": "vectors", "overrides": {"2": {"lr": 0.1}}}  # fmt: skip
    params, rng = parameters(), np.random.default_rng(1)
    more = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    arrays = {str(i): p.detach().numpy().copy() for i, p in enumerate((*params, *more))}
    ours = stt.SGD(params, **options)
    ours.add_param_group({"params": list(more)})
    groups = [{"params": {k: arrays[k] for k in keys}} for keys in ("0123", "45")]
    theirs = st.SGD(groups, **options)
    assert [len(group["params"]) for group in ours.param_groups] == [1, 2, 1, 1, 1]
    for t in range(4):
        if t == 2 and way == "pickle":
            params, more, ours = pickle.loads(pickle.dumps((params, more, ours)))
        elif t == 2 and way == "copy":
            params, more, ours = copy.deepcopy((params, more, ours))
        elif t == 2 and way == "load":
            ours.load_state_dict(ours.state_dict())
        grads = {k: rng.standard_normal(x.shape).astype(x.dtype) for k, x in arrays.items()}
        for k, p in enumerate((*params, *more)):
            p.grad = torch.tensor(grads[str(k)])
        ours.step()
        theirs.step([{k: grads[k] for k in keys} for keys in ("0123", "45")])
        for k, p in enumerate((*params, *more)):
            np.testing.assert_array_equal(p.detach().numpy(), arrays[str(k)])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_global_norm_keeps_the_size_that_an_adaptive_rule_does_not_show(dtype):
    params, others = parameters(dtype), parameters(dtype)
    run(stt.SGD(params, lr=0.5, clip=st.clip.global_norm(0.3)), params)
    run(
        torch.optim.SGD(others, lr=0.5),
        others,
        lambda ps: torch.nn.utils.clip_grad_norm_(ps, 0.3),
    )
    close(params, others, dtype)


def test_norm_is_clip_grad_norm_of_each():
    params, others = parameters(), parameters()
    run(stt.SGD(params, lr=0.5, clip=st.clip.norm(0.7)), params)
    run(
        torch.optim.SGD(others, lr=0.5),
        others,
        lambda ps: [torch.nn.utils.clip_grad_norm_(p, 0.7) for p in ps],
    )
    close(params, others, np.float64)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_value_is_clip_grad_value(dtype):
    params, others = parameters(dtype), parameters(dtype)
    run(stt.SGD(params, lr=0.5, clip=st.clip.value(0.4)), params)
    run(
        torch.optim.SGD(others, lr=0.5),
        others,
        lambda ps: torch.nn.utils.clip_grad_value_(ps, 0.4),
    )
    close(params, others, dtype)


def test_the_gradients_stay_as_they_are():
    params = parameters()
    give(params, 0)
    before = [p.grad.clone() for p in params]
    stt.SGD(params, lr=0.5, clip=(st.clip.global_norm(0.1), st.clip.value(0.01))).step()
    assert all(torch.equal(p.grad, g) for p, g in zip(params, before, strict=True))


def test_ema_is_that_of_an_averaged_model():
    # torch copies the parameters at the first update; here the average begins with them as they
    # were before the first step, so that it is the same from there on.
    net, other = model(), model()
    averaged = torch.optim.swa_utils.AveragedModel(
        other, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    averaged.update_parameters(other)
    ours = stt.AdamW(net.named_parameters(), ema=0.9, **KEYWORDS)
    theirs = torch.optim.AdamW(other.parameters(), **KEYWORDS)
    train(ours, net)
    train(theirs, other, lambda: averaged.update_parameters(other))
    found = ours.averaged()
    assert list(found) == [name for name, _ in net.named_parameters()]
    for name, p in averaged.module.named_parameters():
        torch.testing.assert_close(found[name], p.detach(), rtol=1e-5, atol=1e-6)


def test_a_tail_is_the_mean_of_an_averaged_model():
    net, other = model(), model()
    averaged = torch.optim.swa_utils.AveragedModel(other)
    ours = stt.SGD(net.named_parameters(), lr=0.3, average=st.average.tail(start=2))
    theirs = torch.optim.SGD(other.parameters(), lr=0.3)
    train(ours, net)
    count = iter(range(6))
    train(theirs, other, lambda: next(count) >= 2 and averaged.update_parameters(other))
    for name, p in averaged.module.named_parameters():
        torch.testing.assert_close(ours.averaged()[name], p.detach(), rtol=1e-5, atol=1e-6)


def test_averages_are_loaded_into_a_module():
    net, other = model(), model()
    optimizer = stt.SGD(net.named_parameters(), lr=0.3, ema=0.5)
    train(optimizer, net)
    kept = {name: p.clone() for name, p in net.state_dict().items()}
    other.load_state_dict(optimizer.averaged())
    for name, p in other.named_parameters():
        assert torch.equal(p, optimizer.averaged()[name]) and not torch.equal(p, kept[name])
    assert all(torch.equal(p, kept[name]) for name, p in net.state_dict().items())


def test_averages_without_names_go_by_numbers_and_are_copies():
    net = model()
    optimizer = stt.SGD(net.parameters(), lr=0.3, ema=0.5)
    train(optimizer, net)
    first = optimizer.averaged()
    assert list(first) == ["0", "1", "2", "3"]
    first["0"].zero_()
    assert optimizer.averaged()["0"].abs().sum() > 0
    assert torch.equal(optimizer.state[net[0].weight]["ema"], optimizer.averaged()["0"])


def test_no_averages_is_an_error():
    optimizer = stt.SGD(model().parameters(), lr=0.3)
    with pytest.raises(ValueError, match=r"ema=0\.999"):
        optimizer.averaged()
