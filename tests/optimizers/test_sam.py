"""SAM: its formula, others' implementation, and parameters that always come back."""

import copy
import itertools
import math
import pickle

import numpy as np
import pytest
import traced
from cases import DTYPES, label, same_bits
from faults import interrupted_at

import steepest as st
from steepest import reference
from steepest.kernels.engine import LARGE_STEP
from steepest.memory import formats


def quadratic(rng, dtype=np.float64):
    """Parameters of several shapes, and a function of them that returns loss and gradients."""
    shapes = {"a": (3, 4), "b": (5,), "c": ()}
    params = {k: np.asarray(rng.standard_normal(s), dtype) for k, s in shapes.items()}
    scales = {k: np.asarray(rng.uniform(0.5, 3, s), dtype) for k, s in shapes.items()}

    def closure():
        grads = {k: scales[k] * p for k, p in params.items()}
        return sum(float((scales[k] * p * p).sum()) / 2 for k, p in params.items()), grads

    return params, closure


def perturbed(params, grads, rho, adaptive):
    """The formula, in the order of the operations of SAM."""
    real = next(iter(params.values())).dtype.type
    lengths = []
    for k, g in grads.items():
        x = (np.abs(params[k]) * g if adaptive else g).astype(np.float64).ravel()
        lengths.append(math.sqrt(float(np.sum(x * x))))
    norm = math.hypot(*lengths) if adaptive else reference.norm(list(grads.values()))[0]
    scale = rho / (norm + 1e-12)
    return {
        k: p + real(scale) * (p * p * grads[k] if adaptive else grads[k]) for k, p in params.items()
    }


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=label)
def test_both_forms_are_the_formula_to_the_last_bit(dtype, adaptive):
    params, closure = quadratic(np.random.default_rng(0), dtype)
    twins = {k: p.copy() for k, p in params.items()}
    other = st.Adam(twins, lr=0.1, weight_decay=0.1)
    sam = st.SAM(st.Adam(params, lr=0.1, weight_decay=0.1), rho=0.7, adaptive=adaptive)
    for t in range(6):
        loss, grads = closure()
        grads = {k: g.copy() for k, g in grads.items()}
        before = {k: p.copy() for k, p in params.items()}
        there = perturbed(params, grads, 0.7, adaptive)
        if t % 2:
            assert sam.step(closure) == loss
        else:
            sam.perturb(grads)
            for k, p in params.items():
                same_bits(p, there[k])
            worst = closure()[1]
            sam.restore()
            for k, p in params.items():
                same_bits(p, before[k])
            sam.perturb(grads)
            sam.step(worst)
        for k, x in there.items():
            params[k][...], before[k] = x, params[k].copy()
        worst = closure()[1]
        for k, x in before.items():
            params[k][...] = x
        other.step(worst)
        for k, p in params.items():
            same_bits(p, twins[k], f"{k} after step {t + 1}")
    assert sam.updates == 6 and sam.state is sam.optimizer.state


@pytest.mark.torch
@pytest.mark.parametrize("adaptive", [False, True])
def test_equals_pytorch_optimizer(adaptive):
    """Theirs measures the norm in float32: 1e-6 of the perturbation, carried through 50 steps."""
    torch = pytest.importorskip("torch")
    peers = pytest.importorskip("pytorch_optimizer")
    rng = np.random.default_rng(1)
    start, scale = rng.standard_normal(7), rng.uniform(0.5, 3, 7)
    p = torch.nn.Parameter(torch.from_numpy(start.copy()))
    peer = peers.SAM(
        [p], torch.optim.SGD, rho=0.31, adaptive=adaptive, lr=0.05, momentum=0.9,
    )  # fmt: skip
    w = start.copy()
    sam = st.SAM(st.SGD(w, lr=0.05, momentum=0.9), rho=0.31, adaptive=adaptive)

    def closure():
        p.grad = torch.from_numpy(scale) * p.detach()

    for _ in range(50):
        closure()
        peer.step(closure)
        sam.step(lambda: (0.0, scale * w))
        np.testing.assert_allclose(w, p.detach().numpy(), rtol=1e-5, atol=1e-6)
    assert np.abs(w - start).max() > 0.5


def test_parameters_come_back_when_the_function_raises():
    params, closure = quadratic(np.random.default_rng(0))
    sam = st.SAM(st.SGD(params, lr=0.1), rho=0.5)
    before = {k: p.copy() for k, p in params.items()}
    for error in (ValueError, KeyboardInterrupt):
        calls = itertools.count()

        def failing(error=error, calls=calls):
            if next(calls):
                assert all((params[k] != before[k]).all() for k in params)
                raise error
            return closure()

        with pytest.raises(error):
            sam.step(failing)
        for k, p in params.items():
            same_bits(p, before[k])
    with pytest.raises(TypeError, match=r"closure\(\) returned 1.0; expected \(loss, gradients\)"):
        sam.step(lambda: 1.0)
    assert sam.updates == 0


def test_parameters_come_back_after_ctrl_c_at_any_line():
    whole = None
    for n in itertools.count(1):
        params, closure = quadratic(np.random.default_rng(0))
        sam = st.SAM(st.SGD(params, lr=0.1), rho=0.5)
        before = np.concatenate([p.ravel() for p in params.values()])
        if whole is None:
            twins, twin_closure = quadratic(np.random.default_rng(0))
            st.SAM(st.SGD(twins, lr=0.1), rho=0.5).step(twin_closure)
            whole = np.concatenate([p.ravel() for p in twins.values()])
        ended = interrupted_at(n, lambda sam=sam, closure=closure: sam.step(closure))
        now = np.concatenate([p.ravel() for p in params.values()])
        same_bits(now, whole if sam.updates else before, f"Ctrl-C at line {n}")
        if not ended:
            break
    assert n > 50 and sam.updates == 1


def test_parameters_without_a_gradient_stay_where_they_are():
    a, b = np.array([3.0, 4.0]), np.array([1.0])
    sam = st.SAM(st.SGD([a, b], lr=1.0), rho=5.0)
    sam.perturb([None, None])
    sam.restore()
    assert a.tolist() == [3.0, 4.0] and b == 1.0
    sam.perturb([np.array([3.0, 4.0]), None])
    np.testing.assert_allclose(a, [6.0, 8.0], rtol=1e-12)  # the norm is 5 + 1e-12
    assert b == 1.0
    sam.step([np.ones(2), None])
    assert a.tolist() == [2.0, 3.0] and b == 1.0
    sam.perturb([None, None])
    sam.step(None)
    assert a.tolist() == [2.0, 3.0] and sam.updates == 2


def some(rng, params):
    """Gradients of some of the parameters, which of them drawn."""
    return [rng.standard_normal(p.shape) if rng.random() < 0.5 else None for p in params]


def test_which_parameters_have_gradients_may_change_at_every_step():
    """What is moved is what comes back, and nothing else, however often the choice changes."""
    rng = np.random.default_rng(0)
    params = [rng.standard_normal(n) for n in (5, 40_000, 1, 7)]
    sam = st.SAM(st.SGD(params, lr=0.0), rho=0.5)
    for _ in range(60):
        before, grads = [p.copy() for p in params], some(rng, params)
        sam.perturb(grads)
        for p, was, g in zip(params, before, grads, strict=True):
            assert np.array_equal(p, was) == (g is None)
        sam.step(some(rng, params)) if rng.random() < 0.5 else sam.restore()
        for p, was in zip(params, before, strict=True):
            same_bits(p, was)
        if rng.random() < 0.3:  # others write parameters, too
            params[int(rng.integers(4))][...] = rng.standard_normal()


def test_the_choice_of_gradients_changes_and_ctrl_c_comes_at_any_line():
    for n in itertools.count(1):
        rng = np.random.default_rng(0)
        params = [rng.standard_normal(3) for _ in range(3)]
        one, *_, last = grads = [rng.standard_normal(3) for _ in range(3)]
        sam = st.SAM(st.SGD(params, lr=0.0), rho=0.5)
        sam.perturb([one, None, last])
        sam.restore()
        before = [p.copy() for p in params]

        def other(sam=sam, grads=grads):
            sam.perturb([None, *grads[1:]])
            sam.restore()

        ended = interrupted_at(n, other)
        for again in ([None, None, None], [None, *grads[1:]], [one, None, last], grads):
            sam.restore()
            for p, was in zip(params, before, strict=True):
                same_bits(p, was, f"Ctrl-C at line {n}")
            sam.perturb(again)
        if not ended:
            break
    assert n > 30


def test_groups_that_climb_are_perturbed_downhill():
    a, b = np.array([3.0]), np.array([4.0])
    sam = st.SAM(
        st.SGD([{"params": a}, {"params": b, "maximize": True}], lr=1.0), rho=5.0
    )  # fmt: skip
    sam.perturb([np.array([3.0]), np.array([4.0])])
    np.testing.assert_allclose([a[0], b[0]], [6.0, 0.0], atol=1e-11)


@pytest.mark.parametrize("size", [1e200, 1e-200, 0.0])
def test_norms_beyond_the_range_of_squares(size):
    w = np.zeros(4)
    sam = st.SAM(st.SGD(w, lr=1.0), rho=2.0)
    sam.perturb(np.full(4, size))
    # 1e-200 vanishes beside the 1e-12 that is added to the norm.
    np.testing.assert_allclose(w, 1.0 if size == 1e200 else 0.0, rtol=1e-12, atol=1e-150)


def test_gradients_in_the_order_of_the_parameters_as_given():
    """With `exclude`, groups have another order than the parameters."""
    params = {"a": np.ones(2), "b": np.ones((2, 2)), "c": np.ones(2)}
    grads = {"a": np.full(2, 1.0), "b": np.full((2, 2), 2.0), "c": np.full(2, 3.0)}
    sam = st.SAM(st.SGD(params, lr=1.0, weight_decay=0.1, exclude="vectors"), rho=6.0)
    sam.perturb(grads)
    for k, p in params.items():
        np.testing.assert_allclose(p, 1 + grads[k], rtol=1e-12)  # the norm is 6


def test_rho_may_be_a_schedule_and_the_state_is_the_optimizers(tmp_path):
    def run(params, closure, sam, steps):
        for _ in range(steps):
            sam.step(closure)

    def make(params):
        return st.SAM(
            st.AdamW(params, lr=0.1, ema=0.9), rho=st.schedules.linear(0.5, 6), adaptive=True
        )

    params, closure = quadratic(np.random.default_rng(0))
    twins, twin_closure = quadratic(np.random.default_rng(0))
    whole, part = make(params), make(twins)
    run(params, closure, whole, 6)
    run(twins, twin_closure, part, 3)
    st.save(tmp_path / "run", part.optimizer)
    for p in twins.values():
        p[...] = 0
    resumed = make(twins)
    st.load(tmp_path / "run", resumed.optimizer)
    again = make(twins)
    again.load_state_dict(resumed.state_dict())
    run(twins, twin_closure, again, 3)
    for k, p in params.items():
        same_bits(p, twins[k])
        same_bits(whole.averaged()[k], again.averaged()[k])
    assert again.param_groups is again.optimizer.param_groups
    assert repr(again).startswith("SAM(AdamW(") and repr(again).endswith("adaptive=True)")
    again.rho = lambda t: -1.0
    with pytest.raises(ValueError, match=r"SAM: rho = -1\.0: expected a finite number"):
        again.step(twin_closure)
    for k, p in params.items():
        same_bits(p, twins[k])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rho": -1.0}, ValueError, "SAM: rho = -1.0: expected a finite number of at least 0"),
        ({"rho": "1"}, TypeError, "SAM: rho = '1': expected a finite number"),
        ({"rho": math.nan}, ValueError, "rho = nan"),
        ({"adaptive": 1}, TypeError, "SAM: adaptive = 1: expected True or False"),
        ({"optimizer": st.SGD}, TypeError, "optimizer is a ABCMeta; expected one of steepest's"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        st.SAM(**{"optimizer": st.SGD(np.zeros(1)), **arguments})


def test_wrong_gradients_and_calls_move_nothing():
    w = {"w": np.ones(2)}
    sam = st.SAM(st.SGD(w, lr=1.0))
    with pytest.raises(RuntimeError, match=r"step\(grads\) before perturb\(grads\)"):
        sam.step({"w": np.ones(2)})
    with pytest.raises(ValueError, match="gradient of parameter 'w' has shape"):
        sam.perturb({"w": np.ones(3)})
    assert w["w"].tolist() == [1.0, 1.0]
    sam.perturb({"w": np.ones(2)})
    with pytest.raises(RuntimeError, match="perturbed already"):
        sam.perturb({"w": np.ones(2)})
    with pytest.raises(ValueError, match="other keys"):
        sam.step({"v": np.ones(2)})
    assert w["w"].tolist() == [1.0, 1.0] and sam.updates == 0


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("of", ["float32", "bfloat16", "float16"])
def test_arrays_of_any_format_and_layout_are_moved_and_come_back(of, adaptive):
    """As NumPy would, in float32, rounded once."""
    rng = np.random.default_rng(0)

    def drawn(shape):
        return formats.encoded(rng.standard_normal(shape).astype(np.float32), formats.named(of))

    params = [drawn((700, 31))[::2, ::-1], np.asfortranarray(drawn((40, 50))), drawn(()), drawn(0)]
    grads = [drawn(p.shape) for p in params]
    before = [p.copy() for p in params]
    sam = st.SAM(st.SGD(params, lr=0.5), rho=0.3, adaptive=adaptive)
    for _ in range(2):
        sam.perturb(grads)
        x = [formats.decoded(p) for p in before]
        g = [formats.decoded(y) for y in grads]
        if adaptive:
            each = [np.abs(a) * b for a, b in zip(x, g, strict=True)]
            norm = math.hypot(*(math.sqrt(np.sum(y.astype(np.float64) ** 2)) for y in each))
        else:
            norm = reference.norm(g)[0]
        scale = np.float32(0.3 / (norm + 1e-12))
        for p, a, b in zip(params, x, g, strict=True):
            there = a + scale * (a * a * b if adaptive else b)
            same_bits(p, formats.encoded(np.asarray(there), p.dtype))
        sam.restore()
        for p, a in zip(params, before, strict=True):
            same_bits(p, a)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_made_while_the_parameters_are_moved_comes_back_by_itself(copied):
    w = np.array([3.0, 4.0])
    sam = st.SAM(st.SGD(w, lr=0.5), rho=1.0)
    sam.perturb(w.copy())
    other = copied(sam)
    [p] = other.param_groups[0]["params"]
    assert p is not w and p[0] > 3.0
    other.restore()
    np.testing.assert_array_equal(p, [3.0, 4.0])
    assert w[0] > 3.0
    sam.step(w.copy())
    with pytest.raises(RuntimeError, match="before perturb"):
        other.step(p)


def test_later_steps_allocate_no_arrays():
    params = [np.ones(100_000, np.float32) for _ in range(3)]
    grads = [np.ones(100_000, np.float32) for _ in range(3)]
    sam = st.SAM(st.SGD(params, lr=1e-9))

    def step():
        sam.perturb(grads)
        sam.step(grads)

    _, most = traced.taken(step)
    assert most < 40_000  # an array has 400 000 bytes


@pytest.mark.torch
@pytest.mark.parametrize("trained", [False, True])
def test_tensors_that_lie_elsewhere_by_now_come_back_where_they_are(trained):
    torch = pytest.importorskip("torch")
    w, b = (torch.nn.Parameter(torch.tensor(x), trained) for x in ([3.0, 4.0], [2.0]))
    sam = st.SAM(st.SGD([w, b], lr=0.0), rho=1.0)
    for _ in range(3):
        sam.perturb([w.detach().clone(), b.detach().clone()])
        w.data = w.detach().clone()
        others = [torch.tensor([5.0, 6.0]) for _ in range(100)]  # where w was, if it was freed
        sam.restore()
        assert (w.tolist(), b.tolist()) == ([3.0, 4.0], [2.0])
        assert all(x.tolist() == [5.0, 6.0] for x in others)
    sam.perturb([w.detach().clone(), b.detach().clone()])
    w.data = torch.zeros(3)
    with pytest.raises(ValueError, match=r"'0' is float32 of shape \(3,\); it was float32 of sha"):
        sam.restore()
    assert (w.tolist(), b.tolist()) == ([0.0, 0.0, 0.0], [2.0])


def test_an_array_of_another_shape_by_now_does_not_come_back():
    a, b = np.array([3.0, 4.0]), np.array([2.0])
    sam = st.SAM(st.SGD([a, b], lr=0.0), rho=1.0)
    sam.perturb([a.copy(), b.copy()])
    a.resize((3,), refcheck=False)
    with pytest.raises(RuntimeError, match=r"be put back: '0' has shape \(3,\) and dtype float64"):
        sam.restore()
    assert b.tolist() == [2.0]


@pytest.mark.torch
def test_tensors_are_moved_too():
    torch = pytest.importorskip("torch")
    w = torch.tensor([3.0, 4.0])
    sam = st.SAM(st.SGD([w], lr=0.5), rho=1.0)
    sam.perturb([w.clone()])
    torch.testing.assert_close(w, torch.tensor([3.6, 4.8]))
    sam.step([w.clone()])
    torch.testing.assert_close(w, torch.tensor([1.2, 1.6]))


def test_a_gradient_that_is_a_parameter_moves_nothing():
    """It would change on the way."""
    w, b = np.array([3.0, 4.0]), np.array([1.0])
    sam = st.SAM(st.SGD([w, b], lr=0.5))
    for grads in ([w, b.copy()], [w[::-1], b.copy()], [np.ones(2), w[:1]]):
        with pytest.raises(ValueError, match="shares memory with a parameter; give a copy"):
            sam.perturb(grads)
    np.testing.assert_array_equal(w, [3.0, 4.0])
    sam.perturb([np.ones(2), b.copy()])
    sam.step([np.ones(2), b.copy()])


@pytest.mark.parametrize("layout", ["aligned", "shifted", "strided", "short"])
def test_large_parameters_come_back_to_the_same_bits(layout):
    """Copies of more than caches hold are written past these, line by line."""
    n = LARGE_STEP + 77
    rng = np.random.default_rng(0)
    room = rng.standard_normal(2 * n, np.float32)
    p = {"aligned": room[:n], "shifted": room[3 : n + 3], "strided": room[::2]}.get(layout)
    if p is None:
        p = room[:n].astype(np.float16)
    before, around = p.copy(), room.copy()
    g = rng.standard_normal(n, np.float32)
    sam = st.SAM(st.SGD(p, lr=0.0), rho=0.5)
    scale = np.float32(0.5 / math.sqrt(math.fsum(g.astype(float) ** 2)))
    moved = (before.astype(np.float32) + scale * g).astype(p.dtype)
    for _ in range(2):
        sam.perturb(g)
        same_bits(p, moved)
        assert (p != before).mean() > (0.5 if layout != "short" else 0.01)
        sam.step(g)
        same_bits(p, before)
        assert room.tobytes() == around.tobytes()
