"""Filters: to the last bit as the reference, equal to others' versions, and part of the state."""

import copy
import math

import numpy as np
import pytest
from cases import (
    BY_RULE,
    DTYPES,
    LEVELS,
    brief,
    label,
    reference_hyper,
    same_bits,
    use_threads,
)
from layouts import SHAPES, laid_out

import steepest as st
from steepest import reference
from steepest.extension.testing import reference_step, shared_numbers
from steepest.kernels import dispatch
from steepest.optimizers import RULES

C, F, R = st.clip, st.filters, st.regularize

EACH = [
    (F.centralize(),),
    (F.centralize(axis=-1),),
    (F.centralize(axis=None),),
    (F.grokfast(0.7, 1.3),),
    (F.mask(),),
    (F.mars(0.3, 0.9, 5.0),),
    (F.centralize(), F.mars(1.0, 0.5, 3.0), F.grokfast(0.6, 3.0), F.mask()),
]
LAYOUTS = ("C", "F", "reversed", "strided")


def run(rule, arguments, filters, dtype, kind="C", shapes=SHAPES, steps=3, factor=1.0, **options):
    """Steps parameters of all shapes, and each by the reference; compares the bits."""
    rng = np.random.default_rng(1)
    start = [np.asarray(rng.standard_normal(s), dtype) for s in shapes]
    params = [laid_out(x, kind) for x in start]
    twins = [x.copy() for x in start]
    opt = RULES[rule](params, **arguments, filter=filters, **options)
    for state in opt.state.values():
        if "mask" in state:
            state["mask"][...] = rng.random(state["mask"].shape) < 0.7
    states = [{k: x.copy() for k, x in s.items()} for s in opt.state.values()]
    hyper, shared = reference_hyper(opt), shared_numbers(opt)
    for t in range(1, steps + 1):
        grads = [np.asarray(rng.standard_normal(s), dtype) for s in shapes]
        given = [laid_out(g, kind) for g in grads]
        opt.step(given)
        reference_step(opt, twins, grads, states, t, shared, **hyper)
        for g, x in zip(grads, given, strict=True):
            same_bits(x, g, "the caller's gradient")
    for p, twin, own, state in zip(params, twins, opt.state.values(), states, strict=True):
        same_bits(p, twin, f"{rule} {filters} {p.shape}")
        for key in own.keys() - {"step"}:
            same_bits(own[key], state[key], f"state {key}")
        if "mask" in own:
            assert not p[own["mask"] == 0].any()


@pytest.mark.parametrize("filters", EACH, ids=repr)
@pytest.mark.parametrize("dtype", brief(DTYPES, DTYPES[:1]), ids=label)
def test_each_equals_the_reference_on_every_level_layout_and_thread_count(filters, dtype):
    for i, kind in enumerate(LAYOUTS):
        dispatch.use(LEVELS[i % len(LEVELS)])
        use_threads(1 + i % 3)
        run("sgd", {"lr": 0.1, "momentum": 0.9}, filters, dtype, kind, ema=0.5)


@pytest.mark.parametrize(("rule", "arguments"), BY_RULE, ids=label)
def test_all_together_around_every_rule(rule, arguments):
    for dtype in DTYPES:
        run(
            rule, arguments, EACH[-1], dtype, shapes=((), (0, 5), (30, 25), (5, 3, 7)), l1=0.01,
            ema=0.9, maximize=True, clip=(C.adaptive(0.05, axis=-1), C.value(0.7)),
            regularize=(R.toward_initial(0.06), R.l1(0.02, proximal=True), R.box(-1.0, 0.8),
                        R.group_lasso(0.01, axis=-1), R.max_norm(2.0), R.simplex(3.0)),
        )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=label)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.0, 1e30, 1e-40])
def test_special_values(value, dtype):
    g = np.ones((4, 5), dtype)
    g[1, 2] = value
    g[2] = -0.0
    p = np.ones((4, 5), dtype)
    twin = p.copy()
    masks = np.ones((4, 5), bool)
    masks[1, 2] = False
    opt = st.SGD(p, lr=0.1, filter=(F.centralize(), F.grokfast(), F.mask(masks)))
    state = {k: x.copy() for k, x in opt.state["0"].items()}
    with np.errstate(all="ignore"):
        for t in (1, 2):
            opt.step(g)
            reference.step("sgd", twin, g, state, t, **reference_hyper(opt))
    same_bits(p, twin)
    assert p[1, 2] == 0 and np.isfinite(p[[0, 2, 3]]).all()


def test_scaling_by_norms_comes_first_and_measures_raw_gradients():
    g = np.array([[3.0, 5.0], [-1.0, 1.0]])
    w = np.zeros((2, 2))
    opt = st.SGD(w, lr=1.0, clip=C.global_norm(3.0), filter=F.centralize())
    opt.step(g)
    assert opt.last_norm == 6.0
    factor = 3.0 / (6.0 + 1e-6)
    same_bits(w, -(factor * g - np.array([[factor * 4.0], [0.0]])))


def test_centralised_then_clipped_then_amplified():
    w = np.zeros((1, 2))
    filters = (F.centralize(), F.grokfast(0.5, 1.0))
    opt = st.SGD(w, lr=1.0, clip=C.value(1.0), filter=filters, l1=0.25)
    w[...] = 4.0
    opt.step(np.array([[9.0, 5.0]]))
    same_bits(w, 4.0 - np.array([[2.25, -1.75]]))


@pytest.mark.parametrize("maximize", [False, True])
def test_vectors_are_not_centralised(maximize):
    rng = np.random.default_rng(0)
    grads = [np.asarray(rng.standard_normal(s)) for s in ((), (7,), (1, 7), (7, 1))]
    params = [np.zeros_like(g) for g in grads]
    st.SGD(params, lr=1.0, filter=F.centralize(), maximize=maximize).step(grads)
    for p, g in zip(params[:2], grads[:2], strict=True):
        same_bits(p, g if maximize else -g)
    # The mean of seven is rounded twice; that of one is exact.
    np.testing.assert_allclose(params[2].sum(), 0.0, atol=1e-15)
    assert not params[3].any()


def test_numbers_may_be_schedules():
    rng = np.random.default_rng(0)
    w, twin = np.ones(4), np.ones(4)
    opt = st.SGD(w, lr=0.1, filter=F.grokfast(lambda t: 0.5 / (t + 1), lambda t: 2.0 * t))
    state = {"grokfast": np.full(4, np.nan)}
    for t in range(4):
        g = rng.standard_normal(4)
        opt.step(g)
        now = F.grokfast(0.5 / (t + 1), 2.0 * t)
        hyper = reference_hyper(opt) | {"filter": (now,)}
        reference.step("sgd", twin, g, state, t + 1, **hyper)
    same_bits(w, twin)
    opt.param_groups[0]["filter"] = F.grokfast(lambda t: 2.0)
    with pytest.raises(ValueError, match=r"grokfast: alpha = 2.0: expected a number in \[0, 1\]"):
        opt.step(g)


def test_a_filter_that_comes_later_begins_with_the_first_gradient_it_sees():
    w = np.zeros(1)
    opt = st.SGD(w, lr=1.0)
    opt.step(np.array([1.0]))
    opt.param_groups[0]["filter"] = F.grokfast(0.5, 1.0)
    opt.step(np.array([2.0]))
    assert w == -5.0 and opt.state["0"]["grokfast"] == 2.0


# Masks


def test_masked_elements_become_zero_and_stay_so_whatever_stands_around_the_rule():
    rng = np.random.default_rng(0)
    for rule in RULES:
        w = rng.standard_normal((30, 20))
        kept = rng.random((30, 20)) < 0.5
        opt = RULES[rule](
            w, lr=0.1, weight_decay=0.1, l1=0.1, ema=0.0, filter=F.mask(kept),
            regularize=(R.toward_initial(0.5, decoupled=True), R.box(0.5, 2.0), R.simplex()),
        )  # fmt: skip
        for _ in range(3):
            opt.step(rng.standard_normal(w.shape))
            assert not w[~kept].any() and w[kept].any()
            same_bits(opt.state["0"]["ema"], w)


def test_the_rules_state_does_not_grow_where_masked():
    opt = st.Adam(np.ones(3), weight_decay=0.5, l1=0.5, filter=F.mask([1, 0, 1]))
    opt.step(np.array([1.0, np.nan, 1.0]))
    assert opt.state["0"]["exp_avg"][1] == 0 and opt.state["0"]["exp_avg"][0] != 0


def test_masks_by_name_and_in_groups():
    rng = np.random.default_rng(0)
    params = {"a": {"w": np.ones((2, 3)), "b": np.ones(3)}, "c": np.ones(4)}
    masks = {"a.w": np.array([[1, 0, 1], [0, 1, 1]]), "c": np.array([True, True, False, True])}
    opt = st.AdamW(params, lr=0.1, weight_decay=0.1, filter=F.mask(masks), exclude="vectors")
    assert len(opt.param_groups) == 2
    for _ in range(2):
        opt.step({"a": {"w": rng.standard_normal((2, 3)), "b": rng.standard_normal(3)},
                  "c": rng.standard_normal(4)})  # fmt: skip
    np.testing.assert_array_equal(params["a"]["w"] != 0, masks["a.w"] != 0)
    np.testing.assert_array_equal(params["c"] != 0, masks["c"])
    assert (params["a"]["b"] != 0).all()
    same_bits(opt.state["a.b"]["mask"], np.ones(3))


def test_masks_are_copied_and_may_be_changed_in_the_state():
    given = np.array([True, True, False])
    w = np.ones(3)
    opt = st.SGD(w, lr=0.0, filter=F.mask(given))
    given[:] = False
    opt.step(np.zeros(3))
    assert w.tolist() == [1, 1, 0]
    opt.state["0"]["mask"][0] = 0
    opt.step(np.zeros(3))
    assert w.tolist() == [0, 1, 0]


def test_other_masks_in_a_live_group():
    w = np.ones(3)
    opt = st.SGD(w, lr=0.0, filter=F.mask([1, 1, 0]))
    opt.step(np.zeros(3))
    opt.param_groups[0]["filter"] = F.mask([0, 1, 0])
    same_bits(opt.state_dict()["state"]["0"]["mask"], np.array([0.0, 1.0, 0.0]))
    opt.step(np.zeros(3))
    assert w.tolist() == [0, 1, 0]
    opt.param_groups[0]["filter"] = F.mask()  # none of its own: those of the state
    opt.step(np.zeros(3))
    same_bits(opt.state["0"]["mask"], np.array([0.0, 1.0, 0.0]))
    opt.param_groups[0]["filter"] = (F.mask([0, 0]),)
    with pytest.raises(ValueError, match=r"mask of parameter '0' has shape \(2,\)"):
        opt.step(np.zeros(3))
    opt.param_groups[0]["filter"] = F.mask()
    opt.step(np.zeros(3))
    same_bits(opt.state["0"]["mask"], np.array([0.0, 1.0, 0.0]))
    opt.param_groups[0]["filter"] = ()  # a step without forgets them, as a saved state does
    opt.step(np.zeros(3))
    opt.param_groups[0]["filter"] = F.mask()
    opt.step(np.zeros(3))
    same_bits(opt.state["0"]["mask"], np.ones(3))


# As part of the state


def made(params):
    filters = (F.centralize(), F.grokfast(0.5, 1.5), F.mask({"w": np.eye(3, 4) == 0}))
    return st.Adam(params, lr=0.1, filter=filters)


@pytest.mark.parametrize("way", ["state_dict", "file", "deepcopy"])
def test_a_run_goes_on_where_it_stopped(way, tmp_path):
    rng = np.random.default_rng(0)
    grads = [{"w": rng.standard_normal((3, 4)), "b": rng.standard_normal(4)} for _ in range(6)]
    start = {"w": rng.standard_normal((3, 4)), "b": rng.standard_normal(4)}
    whole = copy.deepcopy(start)
    opt = made(whole)
    for g in grads:
        opt.step(g)
    part = copy.deepcopy(start)
    first = made(part)
    for g in grads[:3]:
        first.step(g)
    if way == "deepcopy":
        resumed = copy.deepcopy(first)
        part = dict(zip(("w", "b"), resumed.param_groups[0]["params"], strict=True))
    else:
        other = copy.deepcopy(part)
        resumed = st.Adam(other)
        if way == "file":
            st.save(tmp_path / "x", first, part)
            for p in other.values():
                p[...] = 0
            st.load(tmp_path / "x", resumed, other)
        else:
            resumed.load_state_dict(first.state_dict())
        part = other
    for g in grads[3:]:
        resumed.step(g)
    for name in whole:
        same_bits(part[name], whole[name])
        for key, x in opt.state[name].items():
            same_bits(np.asarray(resumed.state[name][key]), np.asarray(x), key)


def test_a_state_from_before_there_were_filters_is_taken():
    opt = st.SGD(np.ones(2), momentum=0.5)
    old = opt.state_dict()
    del old["param_groups"][0]["filter"]
    fresh = st.SGD(np.ones(2), momentum=0.5)
    fresh.load_state_dict(old)
    assert fresh.param_groups[0]["filter"] == ()


# Wrong arguments


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: F.grokfast(1.5), ValueError, r"grokfast: alpha = 1.5: expected a number in \[0,"),
        (lambda: F.grokfast(lamb=-1), ValueError, "lamb = -1: expected a finite number of at"),
        (lambda: F.centralize("rows"), TypeError, "axis = 'rows': expected the number of an axis"),
        (lambda: F.mask({"w": [0, 2]}), ValueError, "expected 0 or 1 in every element of 'w'"),
        (lambda: F.mask({"w": [0, np.nan]}), ValueError, "expected 0 or 1 in every element"),
        (lambda: F.mask({"w": ["a"]}), TypeError, "expected arrays of bools, or of 0 and 1"),
        (lambda: F.mask(lambda t: 0), TypeError, "expected arrays of bools"),
        (lambda: st.SGD(np.ones(2), filter="mask"), TypeError, "filter = 'mask': expected one of"),
        (lambda: st.SGD(np.ones(2), filter=[C.value(1)]), TypeError, "expected one of st.filters"),
        (lambda: st.SGD(np.ones(2), filter=(F.mask(), F.grokfast())), ValueError,
         "at most one each of centralize, mars, grokfast, mask, in this order"),
        (lambda: st.SGD(np.ones(2), filter=(F.mask(), F.mask())), ValueError, "at most one each"),
        (lambda: st.SGD(np.ones((2, 2)), filter=F.centralize(2)), ValueError, "parameter '0': axi"),
        (lambda: st.SGD({"w": np.ones(2)}, filter=F.mask({"v": [1, 0]})), ValueError,
         "masks of 'v', which are no parameters; expected some of 'w'"),
        (lambda: st.SGD({"w": np.ones(2)}, filter=F.mask({"w": [1]})), ValueError,
         r"mask of parameter 'w' has shape \(1,\); expected the parameter's \(2,\)"),
    ],
)  # fmt: skip
def test_wrong_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_filters_are_values():
    assert F.grokfast(1) == F.grokfast(1.0) != F.grokfast(0.5)
    assert F.centralize() == F.centralize(0)
    assert repr(F.mask([True])) == "mask()"
    assert list(F.FILTERS) == ["centralize", "mars", "grokfast", "mask"]


# Others' versions, in float64. Their means are summed in another order: a few roundings.


def ours(options, grads, start, rule=st.AdamW, **arguments):
    w = start.copy()
    opt = rule(w, **arguments, filter=options)
    for g in grads:
        opt.step(g)
    return w


def drawn(shape=(6, 5, 4), steps=30):
    rng = np.random.default_rng(0)
    return rng.standard_normal((steps, *shape)), rng.standard_normal(shape)


def torch_path(grads, start, change, **arguments):
    torch = pytest.importorskip("torch")
    p = torch.nn.Parameter(torch.from_numpy(start.copy()))
    opt = torch.optim.AdamW([p], **arguments)
    for g in grads:
        p.grad = torch.from_numpy(g.copy())
        change(p)
        opt.step()
    return p.detach().numpy()


HYPER = {"lr": 0.013, "betas": (0.83, 0.98), "eps": 3e-5, "weight_decay": 0.07}


@pytest.mark.torch
def test_centralize_equals_pytorch_optimizer():
    pytest.importorskip("torch")
    peers = pytest.importorskip("pytorch_optimizer")
    from pytorch_optimizer.optimizer.gradient_centralization import centralize_gradient

    assert peers
    grads, start = drawn()
    peer = torch_path(grads, start, lambda p: centralize_gradient(p.grad), **HYPER)
    np.testing.assert_allclose(ours(F.centralize(), grads, start, **HYPER), peer, rtol=1e-12)


@pytest.mark.torch
def test_centralize_equals_optax():
    optax = pytest.importorskip("optax")
    import jax

    jax.config.update("jax_enable_x64", True)
    for shape in ((6, 5, 4), (6, 5), (6,)):
        grads, start = drawn(shape)
        transform = optax.chain(optax.centralize(), optax.sgd(0.1))
        p, state = jax.numpy.asarray(start), transform.init(jax.numpy.asarray(start))
        for g in grads:
            updates, state = transform.update(jax.numpy.asarray(g), state, p)
            p = optax.apply_updates(p, updates)
        found = ours(F.centralize(), grads, start, st.SGD, lr=0.1)
        np.testing.assert_allclose(found, np.asarray(p), rtol=1e-12, atol=1e-14)


@pytest.mark.torch
def test_grokfast_equals_pytorch_optimizers_filter():
    torch = pytest.importorskip("torch")
    peers = pytest.importorskip("pytorch_optimizer.optimizer.grokfast")
    grads, start = drawn((7,))
    means = None

    def change(p):
        nonlocal means
        model = torch.nn.Module()
        model.p = p
        means = peers.gradfilter_ema(model, means, alpha=0.93, lamb=1.7)

    peer = torch_path(grads, start, change, **HYPER)
    found = ours(F.grokfast(0.93, 1.7), grads, start, **HYPER)
    np.testing.assert_allclose(found, peer, rtol=1e-12)  # 30 steps; theirs is a lerp


@pytest.mark.torch
@pytest.mark.parametrize(("kind", "rule"), [("adamw", st.AdamW), ("lion", st.Lion)])
def test_mars_equals_pytorch_optimizer(kind, rule):
    torch = pytest.importorskip("torch")
    peers = pytest.importorskip("pytorch_optimizer")
    grads, start = drawn((6, 20))
    if kind == "adamw":
        grads[:10] *= 0.01  # some norms under 1
    p = torch.nn.Parameter(torch.from_numpy(start.copy()))
    peer = peers.MARS(
        [p], lr=0.013, betas=(0.83, 0.98), gamma=0.31, mars_type=kind, eps=3e-5, weight_decay=0.07
    )
    for g in grads:
        p.grad = torch.from_numpy(g.copy())
        peer.step()
    arguments = {"lr": 0.013, "betas": (0.83, 0.98), "weight_decay": 0.07}
    if kind == "adamw":  # there eps is added before the division by the root of 1 - beta2 ** t
        arguments |= {"eps": 3e-5, "convention": "keras"}
    if kind == "lion":  # there the direction is the sign of the momentum itself
        arguments["betas"] = (0.83, 0.83)
    found = ours(F.mars(0.31, 0.83), grads, start, rule, **arguments)
    rtol = 1e-7 if kind == "adamw" else 1e-11  # it adds 1e-15 under the root
    np.testing.assert_allclose(found, p.detach().numpy(), rtol=rtol)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_masks_equal_torchs_pruning(name):
    """Whose parameter is weight_orig times the mask: what is not masked has the same path."""
    torch = pytest.importorskip("torch")
    prune = pytest.importorskip("torch.nn.utils.prune")
    rng = np.random.default_rng(0)
    start, kept = rng.standard_normal((5, 4)), rng.random((5, 4)) < 0.6
    x, y = rng.standard_normal((30, 20, 4)), rng.standard_normal((30, 20, 5))
    layer = torch.nn.Linear(4, 5, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(start))
    prune.custom_from_mask(layer, "weight", torch.from_numpy(kept))
    peer = getattr(torch.optim, name)(layer.parameters(), lr=0.05, weight_decay=0.1)
    w = start * kept
    opt = getattr(st, name)(w, lr=0.05, weight_decay=0.1, filter=F.mask(kept))
    for a, b in zip(x, y, strict=True):
        peer.zero_grad()
        ((layer(torch.from_numpy(a)) - torch.from_numpy(b)) ** 2).sum().backward()
        peer.step()
        opt.step(2.0 * (a @ w.T - b).T @ a)
    layer(torch.from_numpy(a))  # which multiplies by the mask
    found = layer.weight.detach().numpy()
    assert not w[~kept].any()
    np.testing.assert_allclose(w, found, rtol=1e-11)  # products of matrices in another order


def test_none_is_no_filter():
    assert st.SGD(np.ones(2), filter=None).param_groups[0]["filter"] == ()
