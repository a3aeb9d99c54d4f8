"""States of 8 bits through steepest.torch: the NumPy door's bits, state dicts, other optimizers."""

import numpy as np
import pytest

import steepest as st
from steepest import codecs

torch = pytest.importorskip("torch")
stt = pytest.importorskip("steepest.torch")

pytestmark = pytest.mark.torch

SHAPE = (70, 64)


def model(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    made = torch.nn.Sequential(torch.nn.Linear(64, 70), torch.nn.ReLU(), torch.nn.Linear(70, 3))
    return made.to(dtype)


def trained(module, optimizer, steps, seed=1):
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        x = torch.randn(32, 64, generator=generator)
        optimizer.zero_grad()
        target = x[:, :3] - x[:, 3:6]
        loss = (module(x.to(next(module.parameters()).dtype)).float() - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_the_bits_are_those_of_numpy():
    p = torch.nn.Parameter(torch.randn(SHAPE))
    twin = p.detach().numpy().copy()
    optimizer = stt.AdamW([p], lr=0.01, state_dtype="q8", rounding_seed=3)
    other = st.AdamW([twin], lr=0.01, state_dtype="q8", rounding_seed=3)
    for _ in range(4):
        p.grad = torch.randn(SHAPE)
        optimizer.step()
        other.step([p.grad.numpy()])
    np.testing.assert_array_equal(p.detach().numpy(), twin)
    for key, x in other.state["0"].items():
        if key != "step":
            np.testing.assert_array_equal(optimizer.state[p][key].numpy(), x)


@pytest.mark.parametrize(
    "options", [{}, {"master": "split16"}, {"rounding": "stochastic"}], ids=str
)
def test_a_model_of_16_bits_learns(options):
    module = model(torch.bfloat16)
    optimizer = stt.AdamW(module.parameters(), lr=0.01, state_dtype="q8", **options)
    losses = trained(module, optimizer, 150)
    assert np.mean(losses[-10:]) < 0.3 * losses[0]
    state = optimizer.state[module[0].weight]
    assert state["exp_avg"].dtype == torch.uint8
    assert state["exp_avg_sq_root_scale"].shape == (35,)
    assert optimizer.state[module[0].bias]["exp_avg"].dtype == torch.float32  # a small one


def test_a_state_dict_goes_on_with_the_same_bits(tmp_path):
    module = model()
    optimizer = stt.AdamW(module.parameters(), lr=0.01, state_dtype="q8", rounding_seed=5)
    trained(module, optimizer, 3)
    torch.save((module.state_dict(), optimizer.state_dict()), tmp_path / "x.pt")
    again = model(seed=9)
    other = stt.AdamW(again.parameters(), lr=0.5, state_dtype="q8", rounding_seed=5)
    of_module, of_optimizer = torch.load(tmp_path / "x.pt")
    again.load_state_dict(of_module)
    other.load_state_dict(of_optimizer)
    assert trained(module, optimizer, 3, seed=2) == trained(again, other, 3, seed=2)
    for p, q in zip(module.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_state_of_torchs_own_is_rounded_to_nearest():
    module = model()
    theirs = torch.optim.AdamW(module.parameters(), lr=0.01)
    trained(module, theirs, 3)
    ours = stt.AdamW(module.parameters(), lr=0.01, state_dtype="q8")
    ours.load_state_dict(theirs.state_dict())
    p = module[0].weight
    for key, scale, square in (
        ("exp_avg", "exp_avg_scale", False), ("exp_avg_sq", "exp_avg_sq_root_scale", True),
    ):  # fmt: skip
        exact = theirs.state[p][key].numpy()
        codes, scales = codecs.to_q8(exact, square)
        np.testing.assert_array_equal(ours.state[p][key].numpy(), codes)
        np.testing.assert_array_equal(ours.state[p][scale].numpy(), scales)
    losses = trained(module, ours, 100, seed=2)
    assert np.mean(losses[-10:]) < 0.5 * losses[0]


def test_gradients_that_are_not_finite_are_skipped():
    p = torch.nn.Parameter(torch.ones(SHAPE))
    optimizer = stt.AdamW([p], lr=0.01, state_dtype="q8", nonfinite="skip")
    p.grad = torch.ones(SHAPE)
    optimizer.step()
    kept = {key: x.clone() for key, x in optimizer.state[p].items() if torch.is_tensor(x)}
    p.grad = torch.full(SHAPE, torch.inf)
    optimizer.step()
    assert all(torch.equal(optimizer.state[p][key], x) for key, x in kept.items())


def test_scales_have_the_rows_of_their_parameter():
    """Where rows are of whole groups; flat ones, as they were before, are taken over."""
    p = torch.nn.Parameter(torch.randn(40, 256))
    q = torch.nn.Parameter(p.detach().clone())
    optimizer, other = (stt.AdamW([x], lr=0.01, state_dtype="q8") for x in (p, q))
    p.grad = torch.randn(40, 256)
    optimizer.step()
    saved = optimizer.state_dict()
    for key in "exp_avg_scale", "exp_avg_sq_root_scale":
        assert saved["state"][0][key].shape == (40, 2)
        saved["state"][0][key] = saved["state"][0][key].reshape(-1)
    other.load_state_dict(saved)
    q.data.copy_(p.data)
    q.grad = p.grad
    for _ in range(2):
        inner = optimizer._current()
        assert optimizer.state[p]["exp_avg_scale"].any()
        assert optimizer._current() is inner  # looked at, and found as it was
        optimizer.step()
        other.step()
    assert torch.equal(p, q)
    for key, x in optimizer.state[p].items():
        assert torch.equal(other.state[q][key], x)
        assert other.state[q][key].shape == x.shape
    optimizer.state[p]["exp_avg_scale"] = torch.zeros(3, dtype=torch.uint8)
    with pytest.raises(ValueError, match="'exp_avg_scale' of parameter '0' is uint8 of shape"):
        optimizer.step()
