"""Muon and AdamW in one optimizer: which parameter uses which, and with what."""

import sys

import numpy as np
import pytest
from cases import same_bits

import steepest as st
from steepest.extras import MissingExtra
from steepest.matrix import newton_schulz

SHAPES = {
    "embed": (9, 4),
    "w": (4, 6),
    "conv": (5, 2, 3, 3),
    "b": (6,),
    "scale": (),
    "head": (6, 3),
}


def arrays(seed):
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.standard_normal(shape)) for name, shape in SHAPES.items()}


def part(tree, names):
    return {name: tree[name] for name in names}


MATRICES, OTHERS = ("w", "conv", "head"), ("embed", "b", "scale")


@pytest.mark.parametrize("cls", [st.Muon, st.NorMuon])
def test_it_equals_two_optimizers(cls):
    rate, other = st.schedules.cosine(0.05, steps=6), st.schedules.linear(0.01, steps=6)
    own = {"betas": (0.7, 0.8), "eps": 1e-6, "weight_decay": 0.3, "lr": other}
    params, twins = arrays(1), arrays(1)
    opt = cls(params, lr=rate, weight_decay=0.2, adamw=own, adamw_for="emb*", ema=0.9)
    muon = cls(part(twins, MATRICES), lr=rate, weight_decay=0.2, ema=0.9)
    adamw = st.AdamW(part(twins, OTHERS), **own, ema=0.9)
    for seed in range(5):
        grads = arrays(seed)
        opt.step(grads)
        muon.step(part(grads, MATRICES))
        adamw.step(part(grads, OTHERS))
    for name, p in params.items():
        same_bits(p, twins[name], name)
        np.testing.assert_equal(opt.state[name], (muon.state | adamw.state)[name])


def test_the_adamw_beside_it_has_the_authors_defaults():
    opt = st.Muon(arrays(1), adamw={"weight_decay": 0.1})
    by = {g.get("rule", opt.rule): g for g in opt.param_groups}
    assert by["muon"]["param_names"] == ["embed", "w", "conv", "head"]
    assert by["adamw"]["param_names"] == ["b", "scale"]
    expected = {"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-10, "weight_decay": 0.1}
    assert {k: by["adamw"][k] for k in expected} == expected
    assert (by["muon"]["lr"], by["muon"]["weight_decay"]) == (1e-3, 0.1)
    assert "rule='adamw'" in repr(opt)


def test_all_that_goes_by_adamw_is_one_group():
    opt = st.Muon(arrays(1), adamw_for=["emb*", "head"])
    assert [g["param_names"] for g in opt.param_groups] == [
        ["embed", "b", "scale", "head"], ["w", "conv"]
    ]  # fmt: skip


def test_overrides_reach_both():
    opt = st.Muon(
        arrays(1), adamw_for=["emb*", "head"], exclude="vectors",
        overrides={"conv": {"ns_steps": 3}, "head": {"betas": (0.5, 0.5)}, "b": {"lr": 0.25}},
    )  # fmt: skip
    by = {name: g for g in opt.param_groups for name in g["param_names"]}
    assert by["conv"]["ns_steps"] == 3 and by["w"]["ns_steps"] == 5
    assert by["head"]["betas"] == (0.5, 0.5) and by["embed"]["betas"] == (0.9, 0.95)
    assert by["b"]["lr"] == 0.25 and by["scale"]["lr"] == 3e-4
    opt.step(arrays(2))


def test_a_group_says_its_own_rule_and_rates():
    tree = arrays(1)
    opt = st.Muon(
        [
            {"params": part(tree, ("w", "b")), "lr": 0.5},
            {"params": part(tree, ("embed", "scale")), "rule": "sgd", "lr": 0.1},
        ]
    )
    by = {name: g for g in opt.param_groups for name in g["param_names"]}
    assert by["w"]["lr"] == 0.5 and "rule" not in by["w"]
    assert (by["b"]["rule"], by["b"]["lr"]) == ("adamw", 3e-4)  # that of the group is Muon's
    assert by["scale"]["rule"] == by["embed"]["rule"] == "sgd"
    start, grads = arrays(1), arrays(2)
    opt.step([part(grads, ("w", "b")), part(grads, ("embed", "scale"))])
    same_bits(tree["scale"], start["scale"] - 0.1 * grads["scale"])
    opt.add_param_group({"params": {"head": tree["head"], "late": np.zeros(2)}})
    assert [g.get("rule") for g in opt.param_groups[-2:]] == [None, "adamw"]


def test_one_norm_clips_both():
    params, twins, grads = arrays(1), arrays(1), arrays(2)
    opt = st.Muon(params, lr=0.1, clip=st.clip.global_norm(0.5), ns_steps=0, eps=1e3)
    opt.step(grads)
    norm = np.sqrt(sum((g * g).sum() for g in grads.values()))
    np.testing.assert_allclose(opt.last_norm, norm, rtol=1e-13)
    scaled = {name: g * (0.5 / (norm + 1e-6)) for name, g in grads.items()}
    st.Muon(twins, lr=0.1, ns_steps=0, eps=1e3).step(scaled)
    for name in params:
        np.testing.assert_allclose(params[name], twins[name], rtol=1e-13)


def test_in_by_group():
    table = {
        "vectors": {"rule": "sgd", "lr": 0.1},
        "head": {"rule": "lion", "lr": 0.01},
        "*": {"rule": "muon", "lr": 0.02, "ns_coefficients": "polar_express"},
    }
    params, twins, grads = arrays(1), arrays(1), arrays(2)
    st.ByGroup(params, table).step(grads)
    names = ("embed", "w", "conv")
    alone = st.Muon(part(twins, names), lr=0.02, ns_coefficients="polar_express")
    alone.step(part(grads, names))
    for name in names:
        same_bits(params[name], twins[name])


def test_weights_of_convolutions_are_matrices_of_their_first_axis():
    conv, flat = np.ones((5, 2, 3, 3)), np.ones((5, 18))
    g = np.random.default_rng(0).standard_normal((5, 18))
    st.Muon(conv, lr=0.1).step(g.reshape(conv.shape))
    st.Muon(flat, lr=0.1).step(g)
    same_bits(conv.reshape(5, 18), flat)


def test_iterations_may_be_changed_on_the_way():
    w = np.ones((4, 3))
    opt = st.Muon(w, lr=0.1)
    g = np.random.default_rng(0).standard_normal((4, 3))
    opt.step(g)
    opt.param_groups[0]["ns_coefficients"] = [[3, -3.2, 1.2], [2, -1.5, 0.5]]
    opt.step(g)
    other = st.Muon(np.ones((4, 3)), lr=0.1, ns_coefficients=[[3, -3.2, 1.2], [2, -1.5, 0.5]])
    assert other.param_groups[0]["ns_coefficients"] == ((3.0, -3.2, 1.2), (2.0, -1.5, 0.5))
    opt.param_groups[0]["ns_coefficients"] = "cubic"
    with pytest.raises(ValueError, match="ns_coefficients = 'cubic'"):
        opt.step(g)


def test_a_point_of_scipys_is_a_vector():
    for rule in ("muon", st.NorMuon):
        with pytest.raises(ValueError, match="Muon is for matrices; a point is a vector"):
            st.scipy_method(rule, lr=0.1)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda p: st.Muon(p, adamw={"beta": 0.9}),
            ValueError,
            "adamw: there is no hyper-p.*'beta'",
        ),
        (lambda p: st.Muon(p, adamw={"lr": -1.0}), ValueError, "lr = -1.0"),
        (lambda p: st.Muon(p, adamw=0.1), TypeError, "adamw = 0.1: expected a dict"),
        (lambda p: st.Muon(p, adamw_for=3), TypeError, "adamw_for = 3: expected patterns"),
        (lambda p: st.Muon(p, adamw_for="hed"), ValueError, "no parameter has a name like 'hed'"),
        (
            lambda p: st.ByGroup(p, {"*": {"rule": "muon"}}),
            ValueError,
            r"parameter 'b' has shape \(6,\); Muon needs 2 axes or more",
        ),
    ],
)
def test_wrong_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make(arrays(1))


# The iteration in bfloat16

JORDAN = [(3.4445, -4.775, 2.0315)] * 5


def rough(g, triples=JORDAN, **options):
    from steepest.optimizers import bfloat16

    return bfloat16.orthogonalize(g, triples, 1e-7, **options)


@pytest.mark.torch
@pytest.mark.parametrize("shape", [(32, 32), (16, 64), (64, 16), (512, 512), (300, 700)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("triple", [JORDAN[0], (1.5, 0.0, -0.5)], ids=str)
def test_bfloat16_has_the_bits_of_torch(shape, dtype, triple) -> None:
    """Of a matrix whose norm is 1, so that its division by the norm is exact there and here."""
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("torch.optim._muon")
    g = (np.random.default_rng(0).integers(0, 2, shape) * 2 - 1).astype(dtype) / 32
    found = theirs._zeropower_via_newtonschulz(torch.from_numpy(g), triple, 5, 1e-7)
    same_bits(rough(g, [triple] * 5), found.to(torch.from_numpy(g).dtype).numpy())


@pytest.mark.torch
@pytest.mark.parametrize("shape", [(30, 30), (12, 40), (40, 12), (1, 7)])
def test_bfloat16_is_close_to_the_iteration_in_double(shape) -> None:
    """An entry of bfloat16 has 8 bits; fifteen products leave 1 to 5 % of the norm."""
    pytest.importorskip("torch")
    g = np.random.default_rng(1).standard_normal(shape) * 1e200
    exact = newton_schulz.orthogonalize(g, JORDAN, 1e-7, margin=1.02, scale=3.0)
    found = rough(g, margin=1.02, scale=3.0)
    assert found.dtype == np.float64
    assert 0 < np.linalg.norm(found - exact) < 0.06 * np.linalg.norm(exact)


@pytest.mark.torch
def test_bfloat16_at_the_edges() -> None:
    pytest.importorskip("torch")
    assert np.isnan(rough(np.array([[1.0, np.inf], [0.0, 1.0]]))).all()
    same_bits(rough(np.zeros((2, 3))), np.zeros((2, 3)))
    assert rough(np.zeros((0, 3))).shape == (0, 3)


@pytest.mark.torch
@pytest.mark.parametrize("rule", [st.Muon, st.NorMuon])
def test_a_step_in_bfloat16(rule) -> None:
    pytest.importorskip("torch")
    steps = []
    for ns_dtype in (None, "bfloat16", "bfloat16"):
        params = arrays(0)
        opt = rule(params, lr=0.1, weight_decay=0.0, ns_dtype=ns_dtype)
        opt.step(arrays(1))
        steps.append({name: x - arrays(0)[name] for name, x in params.items()})
    exact, found, again = steps
    for name in SHAPES:
        same_bits(found[name], again[name])
        if name in OTHERS and name != "embed":
            same_bits(found[name], exact[name])
        elif name in MATRICES:
            error = np.linalg.norm(found[name] - exact[name])
            assert 0 < error < 0.06 * np.linalg.norm(exact[name])


def test_bfloat16_needs_torch(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match="ns_dtype='bfloat16' needs"):
        st.Muon(np.zeros((2, 2)), ns_dtype="bfloat16")
    with pytest.raises(ValueError, match="expected one of None, 'bfloat16'"):
        st.Muon(np.zeros((2, 2)), ns_dtype="float16")
