"""A step does not depend on the caller's floating-point mode, and leaves it as it is."""

import contextlib

import numpy as np
import pytest
from cases import CONFIGURATIONS, DTYPES, MATRICES_ONLY, label, same_bits, use_threads
from float_modes import ARM, MODES, X86

import steepest as st
from steepest.kernels import machine
from steepest.optimizers import RULES

STICKY = 0x3F if X86 else 0
ALL = [*CONFIGURATIONS, *((rule, {}) for rule in MATRICES_ONLY)]
SHAPES = [(6, 5), (7,)]

pytestmark = pytest.mark.skipif(not (X86 or ARM), reason="no floating-point mode to set here")


@contextlib.contextmanager
def mode(bits):
    """Runs the body in another floating-point mode, and sees that it stays that."""
    before = machine.float_mode()
    asked = before | bits
    machine.set_float_mode(asked)
    try:
        yield
        after = machine.float_mode()
    finally:
        machine.set_float_mode(before)
    assert after & ~STICKY == asked & ~STICKY


def arrays(shapes, dtype, seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {f"{i}": (rng.standard_normal(s) * scale).astype(dtype) for i, s in enumerate(shapes)}


def stepped(make, bits, dtype, scale=1.0, shapes=SHAPES, steps=3):
    """Parameters and state after steps in a mode."""
    params = arrays(shapes, dtype, 0, scale)
    grads = [arrays(shapes, dtype, 1 + t, scale) for t in range(steps)]
    opt = make(params)
    for g in grads:
        with mode(bits):
            opt.step(g)
    state = {} if isinstance(opt, Wrapped) else opt.state
    return [*params.values(), *(x for own in state.values() for x in own.values())]


def check(make, dtype, **options):
    expected = stepped(make, 0, dtype, **options)
    for name, bits in MODES.items():
        for x, y in zip(stepped(make, bits, dtype, **options), expected, strict=True):
            same_bits(x, y, name)


def rule_of(rule, hyper):
    shapes = [SHAPES[0]] if RULES[rule].least_axes > 1 else SHAPES
    return (lambda params: RULES[rule](params, **hyper)), shapes


@pytest.mark.parametrize(("rule", "hyper"), ALL, ids=label)
def test_rules(rule, hyper):
    make, shapes = rule_of(rule, hyper)
    check(make, np.float32, shapes=shapes)


@pytest.mark.parametrize(("rule", "hyper"), ALL, ids=label)
def test_rules_on_numbers_whose_squares_are_subnormal(rule, hyper):
    make, shapes = rule_of(rule, hyper)
    check(make, np.float64, shapes=shapes, scale=1e-158)


CLIPS = [
    st.clip.value(0.3),
    st.clip.norm(0.7),
    st.clip.norm(0.7, p=3.3),
    st.clip.norm(0.7, p=1.0),
    st.clip.global_norm(0.7),
    st.clip.global_norm(st.schedules.exponential(0.7, 0.87)),
    st.clip.group_norm(0.7),
    st.clip.adaptive(0.013),
    st.clip.percentile(30.0, window=3),
    st.clip.previous_norm(0.7),
    st.clip.skip_spikes(3.0, window=3),
    (st.clip.skip_spikes(3.0), st.clip.global_norm(0.7), st.clip.value(0.3)),
]
FILTERS = [
    st.filters.centralize(),
    st.filters.grokfast(0.9, 1.7),
    st.filters.mars(0.025, 0.9),
    st.filters.mask(),
]
PENALTIES = [
    st.regularize.l1(0.013, proximal=True),
    st.regularize.elastic_net(0.013, 0.3),
    st.regularize.group_lasso(0.13),
    st.regularize.max_norm(0.7),
    st.regularize.unit_norm(),
    st.regularize.simplex(0.7),
    st.regularize.toward_initial(0.13, decoupled=True),
]
OPTIONS = [
    *({"clip": x} for x in CLIPS),
    *({"filter": x} for x in FILTERS),
    *({"regularize": x} for x in PENALTIES),
    {"cautious": True},
    {"maximize": True, "clip": st.clip.global_norm(0.7)},
    {"ema": 0.93},
    {"average": st.average.tail(start=1)},
    {"lookahead": st.average.lookahead(2, 0.7)},
    {"decay_mode": "decoupled", "weight_decay": 0.13},
    {"nonfinite": "raise"},
    {"lr": st.schedules.cosine(0.1, steps=7, warmup=3)},
    {"lr": st.schedules.one_cycle(0.1, 7)},
    {"lr": st.schedules.inverse_time(0.1, 0.7)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=repr)
def test_options(options):
    for dtype in DTYPES:
        check(lambda params: st.Adam(params, **{"lr": 0.1} | options), dtype)


def test_threads():
    use_threads(2)
    make = lambda params: st.LAMB(params, lr=0.1, clip=st.clip.global_norm(0.7))  # noqa: E731
    check(make, np.float32, shapes=[(300, 301), (7,)])


def test_a_step_that_raises_puts_the_mode_back():
    @st.rule
    def failing(p, g, state, t, *, lr=0.1):
        raise ArithmeticError

    for step in (
        lambda: failing(np.ones(3)).step(np.ones(3)),
        lambda: st.SGD(np.ones(3)).step(np.ones(4)),
        lambda: st.SGD(np.ones(3), nonfinite="raise").step(np.full(3, np.nan)),
    ):
        for bits in MODES.values():
            with mode(bits), pytest.raises((ArithmeticError, ValueError)):
                step()


class Wrapped:
    """An optimizer whose step is another function of the gradients."""

    def __init__(self, step):
        self.step = step


def test_hessians():
    def make(params):
        opt = st.Sophia(params, lr=0.1)

        def step(grads):
            opt.update_hessian(grads)
            opt.step(grads)

        return Wrapped(step)

    check(make, np.float32)


def test_lbfgs():
    def make(params):
        opt = st.LBFGS(params, lr=0.7, line_search_fn="strong_wolfe")
        return Wrapped(lambda grads: opt.step(lambda: quadratic(params, grads)))

    check(make, np.float64)


def quadratic(params, grads):
    """A loss and gradients of the parameters, in the default mode as all of the step."""
    return (
        float(np.add.reduce([np.vdot(p, p) / 3 + np.vdot(p, grads[k]) for k, p in params.items()])),
        {k: p * (2 / 3) + grads[k] for k, p in params.items()},
    )


def test_accumulation():
    def make(params):
        accumulator, opt = st.Accumulator(params), st.SGD(params, lr=0.1)
        others = arrays(SHAPES, np.float32, 9)

        def step(grads):
            for g, weight in ((grads, 3.0), (others, 1.7), (grads, 2.9)):
                accumulator.add(g, weight)
            norms.append(accumulator.norm())
            opt.step(accumulator.take())

        return Wrapped(step)

    norms = []
    check(make, np.float32)
    assert len(norms) == 3 * (1 + len(MODES)) and len(set(norms)) == 3


def test_sharpness_aware_steps():
    def make(params):
        sam = st.SAM(st.SGD(params, lr=0.1), rho=0.13)

        def step(grads):
            sam.perturb(grads)
            perturbed.append({k: p.copy() for k, p in params.items()})
            sam.step(grads)

        return Wrapped(step)

    perturbed = []
    check(make, np.float32)
    for i, points in enumerate(perturbed):
        for key, p in points.items():
            same_bits(p, perturbed[i % 3][key])


# PyTorch


def torch_steps(bits, in_backward, **options):
    torch = pytest.importorskip("torch")
    import steepest.torch as stt

    params = [torch.nn.Parameter(torch.tensor(x)) for x in arrays(SHAPES, np.float32, 0).values()]
    opt = stt.Adam(params, **{"lr": 0.1} | options)
    opt.grad_scale = torch.tensor(3.0)
    handle = stt.step_in_backward(opt) if in_backward else None
    for t in range(4):
        grads = [torch.tensor(x) for x in arrays(SHAPES, np.float32, 1 + t).values()]
        loss = sum((p * g).sum() for p, g in zip(params, grads, strict=True))
        if handle is None:
            loss.backward()
        with mode(bits):
            loss.backward() if handle else opt.step()
        opt.zero_grad()
    return [p.detach().numpy() for p in params]


@pytest.mark.torch
@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"clip": st.clip.norm(0.7)},
        {"clip": st.clip.previous_norm(0.7)},
        {"weight_decay": 0.13},
        {"lr": st.schedules.cosine(0.1, steps=7, warmup=3)},
    ],
    ids=repr,
)
def test_torch(options, in_backward):
    expected = torch_steps(0, in_backward, **options)
    for name, bits in MODES.items():
        for x, y in zip(torch_steps(bits, in_backward, **options), expected, strict=True):
            same_bits(x, y, name)
