"""Bugs in the arithmetic of updates: counts, bias corrections, eps, decay, low precision."""

from fractions import Fraction

import numpy as np
import pytest
from museum import fails_with

import steepest as st

ADAM = "optimizers/adam.py"
OF_ADAM = ("leveled/adam", "base")


@fails_with(
    ADAM,
    'step = h["lr"] / one_minus_power(b1, t)\n            rest',
    'step = h["lr"] / one_minus_power(b1, 1)\n            rest',
)
def test_olmo_core_317_the_step_of_the_bias_correction_goes_on():
    """A step count that never rose left the moments without their correction: steps were 2.2 times
    as large as asked for (allenai/OLMo-core#317). With a constant gradient every step of Adam is
    lr."""
    w = np.zeros(2)
    opt = st.Adam(w, lr=0.125, eps=0.0)
    for t in range(1, 9):
        opt.step(np.array([3.0, -0.5]))
        np.testing.assert_allclose(w, [-0.125 * t, 0.125 * t], rtol=1e-13)  # rounding, 8 times


@fails_with(
    "core/group_program.py", "self._coefficients(self.h, t)", "self._coefficients(self.h, t - 1)"
)
@pytest.mark.parametrize("cls", [st.Adam, st.NAdam, st.Adamax], ids=lambda x: x.__name__)
def test_keras_10129_the_first_step_is_number_one(cls):
    """A patch for Adam counted from 0 and would have divided by 1 - β⁰ = 0 in its first step, which
    the review saw (keras-team/keras#10129)."""
    w = np.ones(3)
    opt = cls(w, lr=0.5)
    opt.step(np.array([1.0, -2.0, 0.0]))
    assert np.isfinite(w).all() and w[2] == 1.0 and (w[:2] != 1.0).all()


@fails_with(
    "kernels/engine/plan.pyx",
    "s.entries[s.active[i]].count[0] += 1",
    "s.entries[s.active[i]].count[0] += s.actives",
    ("engine/plan", None),
)
def test_flashlight_143_the_count_rises_once_a_step():
    """The counter of Adam rose inside the loop over the parameters, and so by their number in each
    step (flashlight/flashlight#143)."""
    params = [np.ones(n) for n in (3, 1, 2)]
    opt = st.Adam(params)
    for _ in range(4):
        opt.step([np.ones(p.shape) for p in params])
    assert [int(state["step"]) for state in opt.state.values()] == [4, 4, 4]


@fails_with(
    "kernels/leveled/adam.pyx",
    """        m[i] = mi
        v[i] = vi
        p[i] = k * p[i] - step * mi / (root(vi) * unbias + eps)

RULES["adam"]""",
    """        m[i] = step * mi
        v[i] = vi
        p[i] = k * p[i] - step * mi / (root(vi) * unbias + eps)

RULES["adam"]""",
    OF_ADAM,
)
def test_holocron_1_the_correction_is_not_left_in_the_moments():
    """RAdam divided its moment in place, and so corrected it again at every step
    (frgfm/Holocron#1)."""
    opt = st.Adam(np.zeros(1), betas=(0.5, 0.75))
    for _ in range(3):
        opt.step(np.ones(1))
    assert opt.state["0"]["exp_avg"] == 1 - 0.5**3
    assert opt.state["0"]["exp_avg_sq"] == 1 - 0.75**3


@fails_with(
    "kernels/engine/plan.pyx",
    "s.entries[s.active[i]].count[0] += 1",
    "s.entries[s.active[i]].count[0] = <int64_t><float>(s.entries[s.active[i]].count[0] + 1)",
    ("engine/plan", None),
)
@pytest.mark.parametrize("t", [255, 2047, 2**24, 2**31 - 1, 2**53], ids=hex)
def test_ao_4915_a_count_does_not_stop_where_a_float_would(t):
    """A counter that was made in the default type stopped at 256 where that was bfloat16
    (pytorch/ao#4915)."""
    opt = st.AdamW(np.zeros(2, np.uint16), dtype="bfloat16")
    opt.state["0"]["step"][...] = t
    for _ in range(3):
        opt.step(np.zeros(2, np.float32))
    assert opt.state["0"]["step"] == t + 3


@fails_with(
    ADAM,
    '"optax" and h["amsgrad"]:\n                early = 1.0 / rest\n            else:\n'
    "                unbias = 1.0 / math.sqrt(rest)",
    '"optax" and h["amsgrad"]:\n                early = 1.0 / rest\n            else:\n'
    "                unbias = 1.0 / math.sqrt(one_minus_power(b2, min(t, 2048)))",
)
def test_deepspeed_8496_the_bias_correction_goes_on_past_2048():
    """A step counter of 16 bits froze, and the correction with it: at 256 in bfloat16, at 2048 in
    float16 (deepspeedai/DeepSpeed#8496)."""
    for t in (2050, 9000):
        _, h = st.Adam.coefficients({"lr": 1.0, "betas": (0.9, 0.9999), "eps": 0.0, "amsgrad": False,
                                     "bias_correction": True, "convention": "torch"}, t)  # fmt: skip
        assert h[5] == pytest.approx(1 / np.sqrt(-np.expm1(t * np.log(0.9999))), rel=1e-12)


@fails_with(
    ADAM,
    "            rest = one_minus_power(b2, t)\n            if",
    """
            rest, power = 1.0, 1.0
            for _ in range(t):
                power *= b2
            rest = 1.0 - power
            if""",
)
def test_deepspeed_7819_powers_of_beta_are_no_running_product():
    """Powers were now a running product and now computed anew, so that parts of a model had other
    corrections in one step (deepspeedai/DeepSpeed#7819)."""
    h = {"lr": 1.0, "betas": (0.9, 0.999), "eps": 0.0, "amsgrad": True, "bias_correction": True,
         "convention": "optax"}  # fmt: skip
    for t in range(1, 300, 7):
        early = st.Adam.coefficients(h, t)[1][7]
        assert early == 1.0 / float(1 - Fraction(0.999) ** t)


@fails_with(
    "core/group_program.py", "if has_only(group, self._keys, self._items):", "if self._keys:"
)
def test_tt_metal_53212_betas_are_those_of_the_step():
    """Loading a state computed the powers before it put the betas of the state in place
    (tenstorrent/tt-metal#53212). Here betas are written in between."""
    w, twin, g = np.ones(3), np.ones(3), np.array([0.5, -2.0, 1.0])
    opt, other = st.Adam(w), st.Adam(twin, betas=(0.5, 0.75))
    for o in (opt, other):
        o.step(np.zeros(3))
        o.state["0"]["step"][...] = 4
    opt.param_groups[0]["betas"] = (0.5, 0.75)
    for _ in range(3):
        opt.step(g)
        other.step(g)
    assert np.array_equal(w, twin)


@fails_with(
    "kernels/engine/plan.pyx",
    "            t = e.count[0] + 1",
    "            t = self.updates[0] + 1",
    ("engine/plan", None),
)
def test_deepspeed_8471_each_parameter_has_its_own_count():
    """The count of one parameter was used for all of its type, which was wrong for those that had
    no gradient at times (deepspeedai/DeepSpeed#8471)."""
    late, alone = np.ones(2), np.ones(2)
    both, one = st.Adam([np.ones(2), late]), st.Adam(alone)
    for _ in range(5):
        both.step([np.ones(2), None])
    both.step([None, np.full(2, 0.25)])
    one.step(np.full(2, 0.25))
    assert np.array_equal(late, alone)


@fails_with(
    "kernels/engine/plan.pyx",
    "            if not e.active:\n                continue\n            e.scale = 1.0",
    "            if not e.active or not e.size:\n"
    "                continue\n            e.scale = 1.0",
    ("engine/plan", None),
)
def test_transformer_engine_3318_a_group_of_empty_arrays_counts_its_steps():
    """A group that is empty on one process did not count there. Its checkpoint had null for the
    step, and another process that loaded it was corrected wrongly (NVIDIA/TransformerEngine#3318).
    Here arrays without elements count like others."""
    empty = {"params": {"e": np.ones((0, 3))}}
    opt = st.AdamW([empty, {"params": {"w": np.ones(2)}}])
    opt.step([{"e": np.ones((0, 3))}, {"w": np.ones(2)}])
    assert opt.state["e"]["step"] == opt.state["w"]["step"] == 1
    opt.load_state_dict(opt.state_dict())


@fails_with(
    ADAM,
    'step, unbias, h["eps"])\n        return ("amsgrad"',
    'step, unbias, 0.0 if h["eps"] < 3e-8 else h["eps"])\n        return ("amsgrad"',
)
@pytest.mark.parametrize("rule", ["Adam", "AdamW"])
def test_optax_1754_eps_does_not_vanish_in_float16(rule):
    """An eps that float16 rounds to 0 made 0 / 0 where a gradient was 0
    (google-deepmind/optax#1754)."""
    w = np.ones(4, np.float16)
    opt = getattr(st, rule)(w, lr=0.5, eps=1e-8, weight_decay=0.0)
    opt.step(np.array([0.0, 0.0, 1.0, 0.0], np.float16))
    assert w.tolist() == [1.0, 1.0, 0.5, 1.0]


@fails_with(
    "optimizers/sign.py",
    '    decay_mode = "decoupled"\n\n    lr: Rate = 1e-4\n    betas',
    '    decay_mode = "l2"\n\n    lr: Rate = 1e-4\n    betas',
)
def test_bitsandbytes_1992_the_decay_of_lion_is_decoupled():
    """Lion in 32 bits added its decay to the gradient, before the sign
    (bitsandbytes-foundation/bitsandbytes#1992); tests with a weight decay of 0 do not see it."""
    w = np.array([2.0, -4.0])
    opt = st.Lion(w, lr=0.25, weight_decay=0.5)
    opt.step(np.zeros(2))
    assert w.tolist() == [2.0 * 0.875, -4.0 * 0.875] and not opt.state["0"]["exp_avg"].any()


@fails_with(
    ADAM,
    '(b1, b2), step, unbias, early = h["betas"], h["lr"], 1.0, 1.0\n',
    '(b1, b2), step, unbias, early = h["betas"], h["lr"], 1.0, 1.0\n'
    "        b2 = int(b2 * 256) / 256\n",
)
def test_tt_metal_55935_beta2_keeps_all_its_digits():
    """β₂ = 0.999 was cut to 0.99609 in bfloat16, which tests by correlation cannot see
    (tenstorrent/tt-metal#55935)."""
    opt = st.Adam(np.zeros(1, np.float32), betas=(0.9, 0.999))
    opt.step(np.ones(1, np.float32))
    assert opt.state["0"]["exp_avg_sq"] == np.float32(1 - 0.999)


@fails_with(
    "optimizers/layerwise.py",
    'ratio = (*h["norm_bounds"], float(h["adapt"]))',
    'ratio = (0.0, float("inf"), float(h["adapt"]))',
)
def test_bitsandbytes_1998_a_bound_of_lamb_is_not_ignored():
    """LAMB took max_unorm and used 1.0 (bitsandbytes-foundation/bitsandbytes#1998). Here a bound
    that binds changes the step."""
    free, bound = np.full(4, 8.0), np.full(4, 8.0)
    st.LAMB(free, lr=0.5).step(np.ones(4))
    st.LAMB(bound, lr=0.5, norm_bounds=(0.0, 1.0)).step(np.ones(4))
    assert not np.array_equal(free, bound)


@fails_with("core/group_program.py", "            if x is not old:\n", "            if False:\n")
def test_pytorch_52911_a_rate_that_is_written_is_used():
    """Reported as pytorch/pytorch#52911, of a factor that a closure had captured: a new value is
    not seen where the old one was kept. Here a rate is written between two steps."""
    w = np.zeros(1)
    opt = st.SGD(w, lr=1.0)
    opt.step(np.ones(1))
    opt.param_groups[0]["lr"] = 0.25
    opt.step(np.ones(1))
    assert w == -1.25


@fails_with(
    "memory/arrays.py",
    "    if formats.found(x.dtype) is None:\n        hint",
    '    if formats.found(x.dtype) is None and x.dtype.kind != "c":\n        hint',
)
@pytest.mark.parametrize("real", [True, False], ids=["gradient", "parameter"])
def test_pytorch_59998_complex_numbers_are_refused(real):
    """The second moment of a complex gradient was made of g · g, which is not the square of its
    size (pytorch/pytorch#59998). Here complex arrays are refused by name."""
    w = np.ones(2, float if real else complex)
    with pytest.raises(TypeError, match=r"of parameter|parameter '0' has dtype complex128"):
        st.Adam(w).step(np.ones(2, complex))
    assert (w == 1).all()


@fails_with("kernels/contract.pxd", "    return x if x != x else most", "    return most", OF_ADAM)
def test_coreclr_1714_a_nan_is_the_largest():
    """The processor's maximum gives its second operand where one is NaN, so that max(a, b) and
    max(b, a) differed (dotnet/coreclr#1714, of Vector4.Max). Here NaN wins, as in NumPy."""
    for opt in (st.Adam(np.ones(3), amsgrad=True), st.Adamax(np.ones(3))):
        opt.step(np.array([np.nan, 1.0, 1.0]))
        opt.step(np.ones(3))
        key = "max_exp_avg_sq" if opt.rule == "adam" else "exp_inf"
        assert np.isnan(opt.state["0"][key]).tolist() == [True, False, False]


CODES = (("leveled/codecs", "base"), OF_ADAM)


@fails_with(
    "kernels/groups.pxd",
    """    }
    #define steepest_raised(x, k, low) ((x) + ((steepest_words)((k) != 0) & (low)))""",
    """    }
    #define steepest_raised(x, k, low) ((x) + (low))""",
    *CODES,
)
def test_unsloth_zoo_962_a_moment_of_zero_is_stored_as_zero():
    """What quantizing made of a zero was divided by eps, and elements without a gradient drifted
    (unslothai/unsloth-zoo#962)."""
    w, g = np.ones(4096, np.float32), np.zeros(4096, np.float32)
    g[::3] = 1.0
    opt = st.AdamW(w, lr=0.01, state_dtype="q8", weight_decay=0.0)
    for _ in range(60):
        opt.step(g)
    assert (w[g == 0] == 1).all() and (w[g != 0] < 1).all()


@fails_with(
    "kernels/stored.pxd",
    "    return <uint8_t>(exponent if exponent > <uint32_t>LOWEST else <uint32_t>LOWEST)",
    "    return <uint8_t>(exponent if exponent > <uint32_t>LOWEST else <uint32_t>255)",
    *CODES,
)
def test_slime_2256_a_block_of_zeros_has_a_scale():
    """A block of weights that were all 0 got the scale 0 on conversion to 8 bits, and 0 / 0
    (THUDM/slime#2256). Here blocks of states."""
    w = np.ones(4096, np.float32)
    opt = st.AdamW(w, lr=0.01, state_dtype="q8", weight_decay=0.0)
    for place in (200, 1000, 3000):  # in blocks of 128 that had only zeros before
        g = np.zeros(4096, np.float32)
        g[place] = 1e-3
        opt.step(g)
        assert np.isfinite(w).all() and w[place] < 0.999
    assert np.flatnonzero(w != 1).tolist() == [200, 1000, 3000]


@fails_with(
    "core/state_formats.py",
    "        if name is None or name in formats.SCALED:\n            return formats.computed(p)",
    "        if name is None or name in formats.SCALED:\n            return p.dtype",
)
def test_flashoptim_2_states_are_not_rounded_to_the_parameters_type():
    """Kernels cut states of float32 to the parameter's type in every step before they stored them
    (databricks/flashoptim#2)."""
    opt = st.AdamW(np.ones(2, np.float16), betas=(0.9, 0.9995))
    for _ in range(200):
        opt.step(np.ones(2, np.float16))
    v = opt.state["0"]["exp_avg_sq"]
    assert v.dtype == np.float32
    assert v == pytest.approx(1 - 0.9995**200, rel=1e-4)  # of rounding in float32, 200 times


@fails_with(
    "core/group_program.py",
    'return self.rounding == "stochastic" and codecs.is_short',
    "return False and codecs.is_short",
)
def test_ao_1124_stochastic_rounding_moves_what_nearest_would_not():
    """An update much smaller than its weight is lost in bfloat16 when rounded to the nearest, for
    which rounding that is right on the mean was added (pytorch/ao#1124). 1/1024 is a quarter of the
    unit below 1."""
    w = np.full(40_000, 0x3F80, np.uint16)  # 1.0
    st.SGD(w, lr=1.0, dtype="bfloat16", rounding="stochastic").step(
        np.full(40_000, 2.0**-10, np.float32)
    )
    values = (w.astype(np.uint32) << 16).view(np.float32)
    assert set(values.tolist()) == {1.0, 1.0 - 2.0**-8}
    sigma = 2.0**-8 * np.sqrt(0.25 * 0.75 / w.size)
    assert abs(values.astype(float).mean() - (1 - 2.0**-10)) < 5 * sigma
