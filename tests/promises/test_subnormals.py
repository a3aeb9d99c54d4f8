"""Subnormal numbers: they are numbers, until at every 64th step those of averages and parameters
become zero; none makes a step infinite; what they cost is measured."""

import numpy as np
import pytest
import subnormals
from cases import (
    BEST,
    BY_RULE,
    CONFIGURATIONS,
    DTYPES,
    EACH_LEVEL,
    LEVELS,
    STAGES,
    brief,
    fitting,
    label,
    use_threads,
)

import steepest as st
from steepest.extension.testing import equals_reference, same_bits
from steepest.kernels import dispatch
from steepest.memory import formats
from steepest.optimizers import RULES
from steepest.subnormals import EVERY, MOVING_AVERAGES

LAYERS = [(r, a) for r, a in CONFIGURATIONS if RULES[r].needs in ("layer-wise", "global")]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("level", LEVELS)
def test_no_step_but_these_flushes(level, dtype):
    """The smallest number there is moves a parameter, and is halved to the nearest even one."""
    dispatch.use(level)
    smallest = np.finfo(dtype).smallest_subnormal
    w = np.arange(40).astype(dtype) * smallest
    st.SGD(w, lr=1.0).step(np.full(40, smallest))
    np.testing.assert_array_equal(w, np.arange(-1, 39) * smallest)
    opt = st.SGD({"w": w}, lr=1.0, momentum=0.5)
    opt.step({"w": np.full(40, 3 * smallest)})
    opt.step({"w": np.zeros(40, dtype)})
    np.testing.assert_array_equal(opt.state["w"]["momentum_buffer"], 2 * smallest)


@pytest.mark.parametrize("size", [1e-45, 1e-43, 1e-40, 3e-39])
@pytest.mark.parametrize("rule", [r for r, c in RULES.items() if c.needs != "matrix"])
def test_vanishing_gradients_leave_parameters_finite(rule, size):
    """Beside them a ratio of norms is larger than float32's largest number, and infinity times a
    gradient of 0 is NaN."""
    for lr in (0.01, 1.0):
        w = np.array([[1.0, -2.0, 3.0], [4.0, 5.0, 6.0]], np.float32)
        opt = RULES[rule](w, lr=lr)
        for _ in range(20):
            with np.errstate(under="ignore"):
                opt.step((np.array([[1, 0, -2], [3, 4, 5]]) * size).astype(np.float32))
        assert np.isfinite(w).all()


@pytest.mark.parametrize(
    "arguments", [{"momentum": 0.0}, {}, {"nesterov": True}], ids=["plain", "momentum", "nesterov"]
)
def test_a_large_trust_coefficient_leaves_them_finite(arguments):
    w, g = np.array([100.0, -200.0], np.float32), np.array([0.0, 1e-45], np.float32)
    st.LARS(w, lr=10.0, trust_coefficient=1.0, eps=0.0, **arguments).step(g)
    assert w[0] == 100.0 and np.isfinite(w[1])


def vanishing(rng, n):
    """Gradients and parameters of all sizes, many of both below the normal numbers."""
    return rng.standard_normal(n) * 10.0 ** rng.uniform(-46, 0, n) * (rng.random(n) < 0.8)


def tiny(rng, n):
    """Numbers that are subnormal as float32; the first may be the whole length of the array."""
    x = np.round(rng.standard_normal(n) * 100) * 1e-45
    x[:1] = 1.0 if rng.random() < 0.5 else 1e-44
    return x


@pytest.mark.parametrize("draw", [vanishing, tiny], ids=lambda f: f.__name__)
@pytest.mark.parametrize(("rule", "arguments"), LAYERS, ids=label)
def test_norms_of_subnormal_numbers_have_the_bits_of_the_reference(rule, arguments, draw):
    for level in BEST:
        dispatch.use(level)
        for dtype in DTYPES:
            equals_reference(RULES[rule], arguments, dtype, (7, 331), 3, draw)


@pytest.mark.parametrize("rule", ["adamw", "muon"])
def test_what_a_step_costs_is_measured(rule, capsys):
    """The figures are for a report: how long it took is no matter of a test."""
    found = subnormals.measure(rule, "float32", steps=subnormals.PORTION)
    assert found.normal > 0 and found.worst > 0 and found.state > 0
    if rule == "adamw":
        assert found.subnormal == 0, "after some thousand steps every number is normal or zero"
    assert subnormals.table([found])[-1].startswith(f"| `{rule}` | float32 |")


@pytest.mark.parametrize(("rule", "arguments"), LAYERS, ids=label)
def test_infinite_parameters_have_the_bits_of_the_reference(rule, arguments):
    """Found by a mutant: what keeps a finite ratio in float32's range leaves an infinite one. The
    gradients are finite: NaN would hide what becomes of a norm."""
    gradients = False

    def one_infinite(rng, n):
        nonlocal gradients
        x = rng.standard_normal(n)
        if not gradients:
            x[n // 2] = np.inf
        gradients = True
        return x

    for dtype in DTYPES:
        gradients = False
        equals_reference(RULES[rule], arguments, dtype, (331,), 2, one_infinite)


@pytest.mark.parametrize("rule", ["dog", "ldog", "dowg"])
def test_without_eps_and_gradients_nothing_is_divided_by_zero(rule):
    """Found by a mutant: the sum of squares is 0 then, and so is the rate."""
    w = np.array([1.0, -2.0], np.float32)
    opt = RULES[rule](w, eps=0.0)
    for _ in range(2):
        opt.step(np.zeros(2, np.float32))
    np.testing.assert_array_equal(w, [1.0, -2.0])
    opt.step(np.ones(2, np.float32))
    assert np.isfinite(w).all()


# Every 64th step


def decayed(rng, n):
    """What averages come to when gradients vanish: numbers around the end of the normal ones, of
    either type, whose squares may be there too, and zeros of both signs."""
    least = np.array([1e-46, 1e-41, 1e-24, 1e-325, 1e-312, 1e-165, 1e-3])
    most = np.array([1e-41, 1e-36, 1e-18, 1e-312, 1e-306, 1e-153, 1.0])
    k = rng.integers(len(least), size=n)
    with np.errstate(under="ignore"):
        low = np.log10(np.maximum(least[k], 1e-323))
        x = rng.choice([-1.0, 1.0], n) * 10.0 ** rng.uniform(low, np.log10(most[k]))
    return np.where(rng.random(n) < 0.1, np.copysign(0.0, x), x)


FIRST = dict(reversed([x for x in CONFIGURATIONS if x[1].get("momentum") != 0.0]))
FOR_MATRICES = [rule for rule, cls in RULES.items() if cls.least_axes]
NUMBERED = [pytest.param(i, *x.values, marks=x.marks) for i, x in enumerate(BY_RULE)]
SHAPES = (0, 1, 7, 331, (5, 1), (3, 40), (2, 3, 1, 1))


@pytest.mark.parametrize(
    ("rule", "arguments"), brief(CONFIGURATIONS, list(FIRST.items())), ids=label
)
@pytest.mark.parametrize("level", EACH_LEVEL)
def test_what_is_flushed_has_the_bits_of_the_reference(rule, arguments, level):
    dispatch.use(level)
    use_threads(3)
    for dtype in DTYPES:
        equals_reference(RULES[rule], arguments, dtype, SHAPES, EVERY, decayed)


PROJECTING = {
    "regularize": (st.regularize.toward_initial(0.1), st.regularize.max_norm(0.7, axis=0)),
    "lookahead": st.average.lookahead(2, 0.37), "ema": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("rule", FOR_MATRICES)
def test_rules_for_matrices_alone_have_its_bits_too(rule):
    for dtype in DTYPES:
        equals_reference(RULES[rule], {}, dtype, ((5, 3), (1, 4), (3, 40)), EVERY, decayed)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("number", "rule", "arguments"), NUMBERED, ids=label)
def test_with_options_around_it(number, rule, arguments):
    """A set of options for each rule in float32; the test below has them all in float64."""
    for options in [*STAGES, PROJECTING][number % 12 :: 12]:
        given = fitting(rule, arguments, options)
        equals_reference(RULES[rule], given, DTYPES[0], SHAPES, EVERY, decayed)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("rule", "arguments"), FIRST.items(), ids=label)
@pytest.mark.parametrize("options", [*STAGES, PROJECTING], ids="+".join)
def test_with_every_set_of_options(rule, arguments, options):
    given = fitting(rule, arguments, options)
    equals_reference(RULES[rule], given, DTYPES[1], SHAPES, EVERY + 1, decayed)


IN_FORMATS = (
    ("bfloat16", {}),
    ("bfloat16", {"master": "split16"}),
    ("bfloat16", {"rounding": "stochastic"}),
    ("float16", {"master": "float32"}),
    ("float32", {"state_dtype": "bfloat16"}),
    ("float32", {"state_dtype": "q8"}),
)
_EACH = [
    (rule, arguments, *x)
    for rule, arguments in FIRST.items()
    if rule in MOVING_AVERAGES and not RULES[rule].prepares
    for x in IN_FORMATS
]


@pytest.mark.parametrize(
    ("rule", "arguments", "of_p", "options"), brief(_EACH, _EACH[::5]), ids=label
)
def test_in_other_formats(rule, arguments, of_p, options):
    dtypes = formats.named(of_p), formats.named("float32")
    equals_reference(RULES[rule], arguments | options, dtypes, (7, 4099, (3, 128)), EVERY, decayed)


@pytest.mark.parametrize("rule", MOVING_AVERAGES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_averages_get_to_zero(rule, dtype):
    """At the first 64th step at which they are subnormal, and at no other."""
    least = np.finfo(dtype).smallest_normal
    h = {"momentum": 0.9} if "momentum" in RULES[rule].fields else {}
    shape = (7, 2) if RULES[rule].prepares else (7,)
    opt = RULES[rule]({"w": np.ones(shape, dtype)}, **h)
    zero = {"w": np.zeros(shape, dtype)}
    opt.step(zero)
    opt.state["w"]["step"][...] = EVERY - 3
    averages = [x for key, x in opt.state["w"].items() if key in MOVING_AVERAGES[rule]]
    assert averages
    for t in range(EVERY - 2, EVERY + 3):
        for x in averages:
            x[...] = least / 2
        opt.step(zero)
        subnormal = [((x != 0) & (np.abs(x) < least)).any() for x in averages]
        assert not any(subnormal) if t % EVERY == 0 else any(subnormal)


@pytest.mark.parametrize("dtype", DTYPES)
def test_parameters_get_to_zeros_of_their_sign(dtype):
    least = np.finfo(dtype).smallest_normal
    before = np.array([0.0, -0.0, 0.5, -0.5, 1.0, -1.0, np.inf, -np.inf, np.nan, 1 / least])
    p = (before * least).astype(dtype)
    p[6:9] = before[6:9]
    opt, zero = st.SGD({"w": p}, lr=1e-3), {"w": np.zeros(10, dtype)}
    twin = p.copy()
    for _ in range(EVERY - 1):
        opt.step(zero)
    same_bits(p, twin)
    opt.step(zero)
    twin[2:4] = 0.0, -0.0
    same_bits(p, twin)


@pytest.mark.parametrize(
    ("rule", "eps"),
    [("adam", 0.0), ("adam", 0), ("adam", lambda t: 0.0), ("came", (0.0, 1e-16)), ("lamb", 0.0)],
    ids=label,
)
def test_a_rule_that_would_divide_by_zero_keeps_them(rule, eps):
    """With eps = 0 it is they that keep an element without gradients from 0 / 0."""
    w, zero = np.ones(5, np.float32), np.zeros(5, np.float32)
    opt = RULES[rule]({"w": w}, lr=1e-3, eps=eps)
    opt.step({"w": np.full(5, 1e-3, np.float32)})
    opt.state["w"]["step"][...] = EVERY - 1
    for x in (opt.state["w"]["exp_avg"], opt.state["w"]["exp_avg_sq"]):
        x[...] = 1e-42
    for _ in range(2):
        opt.step({"w": zero})
    assert np.isfinite(w).all() and (opt.state["w"]["exp_avg_sq"] > 0).all()


@pytest.mark.parametrize("eps", [0, 0.0, 1e-8])
def test_the_reference_does_so_too(eps):
    for dtype in DTYPES:
        equals_reference(st.Adam, {"eps": eps}, dtype, SHAPES, EVERY, decayed)


def test_a_step_that_is_verified_flushes_what_the_reference_does():
    rng = np.random.default_rng(0)
    for rule in ("adamw", "lamb", "prodigy", "adammini"):
        w = decayed(rng, 3000).astype(np.float32).reshape(60, 50)
        opt = RULES[rule](w)
        check = opt.verify(1.0)
        for _ in range(EVERY + 1):
            opt.step(decayed(rng, 3000).astype(np.float32).reshape(60, 50))
        assert check.elements == (EVERY + 1) * 3000


KEPT = {
    "adagrad": {"sum"},
    "rprop": {"prev", "step_size"},
    "madgrad": {"grad_sum_sq"},
    "ftrl": {"accumulator"},
    "adam": {"max_exp_avg_sq"},
    "adamw": {"max_exp_avg_sq"},
    "adan": {"previous_grad"},
    "sm3": {"accumulator_0"},
    "normuon": {"second_momentum_buffer"},
    "psgdkron": {"waited"},
    "shampoo": {"sum"},
}
"""States that are no averages: sums, the largest so far, and what stood before."""


@pytest.mark.parametrize("rule", RULES)
def test_every_state_is_an_average_or_is_known_not_to_be_one(rule):
    """So that whoever adds a rule says which of its states decay."""
    cls, found = RULES[rule], set()
    for of, arguments in [*CONFIGURATIONS, *((x, {}) for x in FOR_MATRICES)]:
        if of == rule:
            h = {name: field.default for name, field in cls.fields.items()} | arguments
            found |= {*cls.states(h), *(cls.beside(h) if cls.factors else ())}
    averages = {*MOVING_AVERAGES.get(rule, ())}
    assert found - {*cls.points} == averages | KEPT.get(rule, set())


def test_flushing_fits_beside_all_options_at_once():
    """The engine has room for the operations of every option and these."""
    w = np.ones((4, 5), np.float32)
    opt = st.Prodigy(
        {"w": w},
        clip=(st.clip.adaptive(0.05), st.clip.value(0.7)),
        filter=(st.filters.mars(0.3), st.filters.grokfast(0.7), st.filters.mask()),
        regularize=(
            st.regularize.toward_initial(0.1), st.regularize.l1(0.1, proximal=True),
            st.regularize.box(-1, 1), st.regularize.max_norm(3.0),
        ),
        average=st.average.tail(0), ema=0.5, l1=0.1, maximize=True,
    )  # fmt: skip
    for _ in range(EVERY + 1):
        opt.step({"w": w * 0.1})
    assert opt.state["w"]["step"] == EVERY + 1
