"""Muon and NorMuon in float64 against torch's formula, optax and pytorch_optimizer, and torch's
own class within bfloat16.
"""

import math

import numpy as np
import pytest
from matrix_rules import CLOSE, gradients, path, start, torch_path

from steepest.matrix import muon, newton_schulz

EXHAUSTIVE = pytest.mark.exhaustive
JORDAN = (3.4445, -4.775, 2.0315)
OTHER = [(4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (2.8769, -3.1427, 1.2046)]


def torch_muon(g, buffer, hyper):
    """torch/optim/_muon.py without its cast to bfloat16."""
    buffer += (1 - hyper["momentum"]) * (g - buffer)
    u = g + hyper["momentum"] * (buffer - g) if hyper["nesterov"] else buffer
    x = u.T if len(u) > u.shape[1] else u
    x = x / max(np.sqrt((x * x).sum()), hyper["eps"])
    a, b, c = hyper["ns_coefficients"]
    for _ in range(hyper["ns_steps"]):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x.T if len(u) > u.shape[1] else x
    rows, columns = g.shape
    if hyper["adjust_lr_fn"] == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns)) * x
    if hyper["adjust_lr_fn"] == "spectral_unclamped":
        return math.sqrt(rows / columns) * x
    return math.sqrt(max(1, rows / columns)) * x


TORCH_HYPER = [
    {"momentum": 0.8, "nesterov": True, "ns_coefficients": JORDAN, "eps": 1e-7, "ns_steps": 5}
    | {"adjust_lr_fn": None},
    {"momentum": 0.9, "nesterov": False, "ns_coefficients": OTHER[0], "eps": 50.0, "ns_steps": 3}
    | {"adjust_lr_fn": "match_rms_adamw"},
    {"momentum": 0.0, "nesterov": True, "ns_coefficients": OTHER[2], "eps": 0.0, "ns_steps": 0}
    | {"adjust_lr_fn": "original"},
    {"momentum": 0.7, "nesterov": True, "ns_coefficients": OTHER[1], "eps": 1e-7, "ns_steps": 2}
    | {"adjust_lr_fn": "spectral_unclamped"},
]
MATRICES = [(8, 8), (12, 5), (5, 12), (1, 7), (7, 1)]


def ours(h):
    """The arguments of torch's Muon as those of the direction."""
    names = {"ns_coefficients": "coefficients"}
    return {names.get(k, k): v for k, v in h.items()}


@pytest.mark.parametrize("hyper", TORCH_HYPER)
@pytest.mark.parametrize("shape", MATRICES, ids=str)
def test_muon_equals_the_formula_of_torch(shape, hyper):
    grads, p, buffer = gradients(shape, 10), start(shape), np.zeros(shape)
    expected = []
    for g in grads:
        p = p * (1 - 0.1 * 0.3) - 0.1 * torch_muon(g, buffer, hyper)
        expected.append(p)
    found = path(
        muon.initial_states, muon.direction, grads, start(shape), 0.1, decay=0.3, **ours(hyper)
    )
    np.testing.assert_allclose(found, expected, **CLOSE)


@pytest.mark.torch
@pytest.mark.parametrize("hyper", TORCH_HYPER[:2])
@pytest.mark.parametrize("shape", [(16, 16), (24, 10), (10, 24)], ids=str)
def test_muon_is_as_near_to_torch_as_bfloat16_is(shape, hyper):
    """torch iterates in bfloat16, of 8 bits: a relative error of 2⁻⁸ per product, several times
    amplified by three to five steps. A step of one ulp more or less is not what this tests."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("torch.optim._muon")
    grads = gradients(shape, 6, np.float32)

    def make(p):
        return torch.optim.Muon([p], lr=0.1, weight_decay=0.3, **hyper)

    expected = torch_path(make, grads, start(shape, np.float32))
    found = path(
        muon.initial_states,
        muon.direction,
        grads,
        start(shape, np.float32),
        0.1,
        decay=0.3,
        **ours(hyper),
    )
    moved = np.diff(expected, axis=0)
    error = np.diff(found, axis=0) - moved
    assert np.linalg.norm(error) < 0.04 * np.linalg.norm(moved)


@pytest.mark.torch
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(
    ("shape", "steps", "consistent_rms"),
    [
        ((12, 5), {"ns_steps": 4}, 0.2),
        pytest.param((8, 8), {"ns_steps": 3, "ns_coeffs": OTHER}, None, marks=EXHAUSTIVE),
        pytest.param((5, 12), {"ns_steps": 4}, None, marks=EXHAUSTIVE),
    ],
    ids=str,
)
def test_muon_equals_optax(shape, steps, nesterov, consistent_rms):
    """optax has another shape factor, √(columns / rows), because its matrices are applied from the
    right, adds eps to the norm, here 0, and corrects the bias of both parts of Nesterov's mean:
    u = μ m / (1 - μᵗ⁺¹) + (1 - μ) g / (1 - μᵗ), which differs in direction from torch's in early
    steps. Without nesterov the correction is a factor, which the iteration divides out."""
    optax = pytest.importorskip("optax")
    import jax

    jax.config.update("jax_enable_x64", True)
    mu, lr = 0.8, 0.1
    opt = optax.contrib.muon(
        lr, beta=mu, eps=0.0, nesterov=nesterov, consistent_rms=consistent_rms, **steps
    )
    grads, p = gradients(shape, 8), jax.numpy.asarray(start(shape))
    state, expected = opt.init(p), [start(shape)]
    for g in grads:
        updates, state = opt.update(jax.numpy.asarray(g), state, p)
        p = optax.apply_updates(p, updates)
        expected.append(np.asarray(p))
    triples = newton_schulz.schedule(steps.get("ns_coeffs", "jordan"), steps["ns_steps"])
    m = np.zeros(shape)
    rows, columns = shape
    for t, g in enumerate(grads, 1):
        m = mu * m + (1 - mu) * g
        late = mu * m / (1 - mu ** (t + 1)) + (1 - mu) * g / (1 - mu**t)
        u = late if nesterov else m
        factor = (
            0.2 * math.sqrt(max(shape)) if consistent_rms else math.sqrt(max(1, columns / rows))
        )
        d = newton_schulz.orthogonalize(u, triples, 0.0, scale=factor)
        np.testing.assert_allclose(expected[t], expected[t - 1] - lr * d, **CLOSE)
    if not nesterov:
        found = path(
            muon.initial_states,
            muon.direction,
            [g.T for g in grads],
            start(shape).T,
            lr,
            momentum=mu,
            nesterov=False,
            eps=0.0,
            ns_steps=steps["ns_steps"],
            coefficients=steps.get("ns_coeffs", "jordan"),
            adjust_lr_fn="match_rms_adamw" if consistent_rms else None,
        )
        np.testing.assert_allclose(found.transpose(0, 2, 1), expected[1:], **CLOSE)


@pytest.mark.torch
@pytest.mark.parametrize("shape", [(8, 8), (12, 5), (5, 12)], ids=str)
@pytest.mark.parametrize(
    "weights", [(3.4445, -4.775, 2.0315), OTHER, "polar_express"], ids=["one", "list", "named"]
)
def test_the_iteration_equals_that_of_pytorch_optimizer(shape, weights):
    """Its "polar_express" is the authors' list without a margin; here the list is given to both.
    Both repeat the last triple of a short list."""
    torch = pytest.importorskip("torch")
    matrix = pytest.importorskip("pytorch_optimizer.optimizer.utils.matrix")
    g = gradients(shape, 1)[0]
    theirs = matrix.zero_power_via_newton_schulz_5(
        torch.from_numpy(g.copy()), 6, weights=weights, dtype=torch.float64, safety_factor=1.1
    )
    listed = matrix.get_newton_schulz_weights(weights)
    triples = newton_schulz.schedule(listed, 6)
    found = newton_schulz.orthogonalize(g, triples, 1e-7, margin=1.1)
    np.testing.assert_allclose(found, theirs.numpy(), **CLOSE)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_polar_express_brings_singular_values_near_one(dtype):
    """On [1e-3, 1], for which they are the best, the five polynomials stay within 0.14 of 1, as
    evaluating them finds; with matrices there is rounding, 1e-4 of each value in float32."""
    rng = np.random.default_rng(0)
    u, _ = np.linalg.qr(rng.standard_normal((40, 30)))
    v, _ = np.linalg.qr(rng.standard_normal((30, 30)))
    values = np.geomspace(0.005, 1.0, 30)
    x = np.concatenate(
        [values / np.linalg.norm(values) / newton_schulz.MARGIN, np.linspace(1e-3, 0.98, 10_000)]
    )
    for a, b, c in newton_schulz.POLAR_EXPRESS:
        x = a * x + b * x**3 + c * x**5
    assert np.abs(x - 1).max() < 0.145
    g = ((u * values) @ v.T).astype(dtype)
    triples = newton_schulz.schedule("polar_express", 5)
    o = newton_schulz.orthogonalize(g, triples, 1e-7, margin=newton_schulz.MARGIN)
    found = np.linalg.svd(o.astype(np.float64), compute_uv=False)
    rtol = 1e-4 if dtype == np.float32 else 1e-10
    np.testing.assert_allclose(found, np.sort(x[:30])[::-1], rtol=rtol)
    # The singular vectors stay.
    np.testing.assert_allclose((u.T @ o @ v).diagonal(), x[:30], rtol=10 * rtol)


@pytest.mark.torch
@pytest.mark.parametrize("shape", [(8, 3, 3, 3), (4, 30)], ids=str)
def test_weights_of_convolutions_are_matrices_of_their_first_axis(shape):
    grads = gradients(shape, 5)
    flat = [g.reshape(shape[0], -1) for g in grads]
    found = path(muon.initial_states, muon.direction, grads, start(shape), 0.1, momentum=0.7)
    expected = path(
        muon.initial_states,
        muon.direction,
        flat,
        start(shape).reshape(shape[0], -1),
        0.1,
        momentum=0.7,
    )
    assert (found.reshape(expected.shape) == expected).all()


@pytest.mark.torch
@pytest.mark.parametrize("scale", ["preserve_norm", "match_rms"])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", [(8, 8), (12, 5), (5, 12), (6, 2, 3)], ids=str)
def test_normuon_equals_pytorch_optimizer(shape, nesterov, scale, monkeypatch):
    """In float64: its iteration is made to keep the type, as it runs in bfloat16 otherwise."""
    peers = pytest.importorskip("pytorch_optimizer")
    module = pytest.importorskip("pytorch_optimizer.optimizer.muon.normuon")
    torch = pytest.importorskip("torch")
    iteration = module.zero_power_via_newton_schulz_5

    def exact(g, **hyper):
        return iteration(g, dtype=torch.float64, **hyper)

    monkeypatch.setattr(module, "zero_power_via_newton_schulz_5", exact)
    hyper = {"momentum": 0.8, "beta2": 0.7, "nesterov": nesterov, "ns_steps": 4, "eps": 1e-3}

    def make(p):
        groups = [{"params": [p], "use_muon": True}]
        return peers.NorMuon(
            groups,
            lr=0.1,
            weight_decay=0.3,
            update_scale=scale,
            ns_coeffs=OTHER,
            foreach=False,
            **hyper,
        )

    grads = gradients(shape, 8)
    expected = torch_path(make, grads, start(shape))
    found = path(
        muon.normuon_states,
        muon.normuon_direction,
        grads,
        start(shape),
        0.1,
        decay=0.3,
        coefficients=OTHER,
        adjust_lr_fn="match_rms_adamw" if scale == "match_rms" else None,
        **hyper,
    )
    np.testing.assert_allclose(found, expected, **CLOSE)


@pytest.mark.parametrize(("shape", "times"), [((5, 12), math.sqrt(5 / 12)), ((12, 5), 1.0)])
def test_normuon_unclamped_is_shorter_where_a_matrix_is_wide(shape, times):
    g, state = gradients(shape, 1)[0], muon.normuon_states(shape, np.float64)
    clamped, _ = muon.normuon_direction(g, state, 1)
    found, _ = muon.normuon_direction(g, state, 1, adjust_lr_fn="spectral_unclamped")
    np.testing.assert_allclose(found, times * clamped, **CLOSE)


@pytest.mark.parametrize(
    "coefficients", ["cubic", (1.0, 2.0), [], [(1.0, 2.0)], (1.0, 2.0, np.nan), [[]]], ids=str
)
def test_coefficients_that_are_none_are_refused(coefficients):
    with pytest.raises(ValueError, match="coefficients = "):
        newton_schulz.schedule(coefficients, 5)


def test_products_with_the_own_transpose_are_symmetric_to_the_bit():
    """They are where NumPy gives them to SYRK, which computes one half and copies it."""
    x = np.random.default_rng(0).standard_normal((300, 200)).astype(np.float32)
    for side in (x, x.T):
        a = np.empty((len(side), len(side)), np.float32)
        np.matmul(side, side.T, out=a)
        assert (a == a.T).all()
