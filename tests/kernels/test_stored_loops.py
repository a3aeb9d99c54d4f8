"""Loops over arrays as they are stored: which there are, what they are made of, when they run.

That they have the bits of decode, rule and encode is tested with all formats, in
``tests/promises/test_exactness_of_formats.py``.
"""

import numpy as np
import pytest

import steepest as st
from steepest import codecs
from steepest.kernels import dispatch, stored_loops
from steepest.kernels.engine import CHUNK_SIZE
from steepest.optimizers import RULES

RULE = """
cdef void toy(real *restrict p, const real *restrict g, real *restrict m, real *restrict b,
              real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
              const double *h) noexcept nogil:
    \"\"\"Words about p and m.\"\"\"
    cdef real lr = <real>h[0], f = <real>factor, k = <real>keep  # of p
    cdef Py_ssize_t i
    for i in range(n):
        m[i] = m[i] + f * g[i]  # not read again
        p[i] = k * p[i] - lr * (
            f * g[i])

RULES["toy"] = rule(toy, toy)
"""


def test_a_loop_reads_and_writes_what_is_stored():
    made = stored_loops.with_stored_loops(RULE)
    assert made.startswith(RULE)
    assert 'STORED["toy"] = (' in made
    _, _, loop = made.partition("cdef inline void toy_bfloat16_loop(")
    assert loop.partition("cdef void")[0].endswith(
        """
    for i in range(n):
        m[i] = m[i] + f * from_bfloat16(g[i])
        p[i] = to_bfloat16(k * from_bfloat16(p[i]) - lr * (
            f * from_bfloat16(g[i])))


"""
    )
    states = made.partition("toy_bfloat16_states_loop(")[2]
    assert "m[i] = to_bfloat16(from_bfloat16(m[i]) + f * from_bfloat16(g[i]))" in states
    assert "real" not in made[len(RULE) :].replace("decode", "")


def loop_of_8_bits(last):
    """The loop with states of 8 bits of a rule whose last statement is this."""
    rule = RULE.replace(
        """        m[i] = m[i] + f * g[i]  # not read again
        p[i] = k * p[i] - lr * (
            f * g[i])
""",
        f"""        mi = m[i] + f * g[i]
        m[i] = mi
        {last}
""",
    )
    made = stored_loops.with_stored_loops(rule)
    return made.partition("cdef inline void toy_q8_loop(")[2].partition("cdef void")[0]


def test_a_long_function_has_a_loop_by_itself():
    loop = loop_of_8_bits("p[i] = k * p[i] - lr * arctan(mi)")
    first, second = loop.split("for i in range(GROUP):")[1:]
    assert "kept_mi.x[i] = mi\n" in first and "arctan" not in first
    read, called = "mi = kept_mi.x[i]\n", "p[first_ + i] = k * p[first_ + i] - lr * arctan(mi)\n"
    assert read in second.partition(called)[0]
    assert "kept" not in loop_of_8_bits("p[i] = k * p[i] - lr * arctan(g[i])")
    loop = loop_of_8_bits("p[i] = k * p[i] - lr * root(mi)")
    assert loop.count("for i in range(GROUP):") == 1
    squares = RULE.replace("m[i] = m[i] + f * g[i]  #", "vi = v[i]\n        v[i] = vi  #")
    squares = squares.replace("restrict m", "restrict v").replace("f * g[i])", "arctan(root(vi)))")
    made = stored_loops.with_stored_loops(squares)
    assert "arctan(new_v.x[i])" in made.partition("cdef inline void toy_q8_loop(")[2]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("lr * (\n            f * g[i])", "lr * m[i]"),  # read after it was written: it is rounded
        ("f * g[i]  #", "g[i + 1]  #"),
        ("        m[i] =", "        if m[i]:\n            m[i] ="),
        ("<real>h[0]", "p[0]"),
        ("    for i in range(n):", "    for i in range(2):\n        pass\n    for i in range(n):"),
        ("rule(toy, toy)", "rule(toy, toy, (reduction(x, x, y),))"),
        ("rule(toy, toy)", "rule(toy, other)"),
        ("f * g[i]  #", "f * sum(g, i)  #"),
    ],
)
def test_what_is_of_another_kind_is_left(before, after):
    assert before in RULE
    text = RULE.replace(before, after, 1)
    assert stored_loops.with_stored_loops(text) == text


def test_every_element_wise_rule_has_them():
    for rule, cls in RULES.items():
        if cls.needs == "element-wise" and not cls.prepares:
            opt = cls(np.ones(3, np.float32))
            kernel, _ = cls.coefficients(opt._groups[0].h | {"by_rows": False}, 1)
            reductions = dispatch.current.rules[kernel][2]
            assert reductions or kernel in dispatch.current.stored, rule
    for squares, *loops in dispatch.current.stored.values():
        assert len(loops) == len(stored_loops.SETS)
        assert squares in range(1 << 4)
    [both, none] = (dispatch.current.stored[rule][-1] for rule in ("madgrad", "lion"))
    assert both is not None and none is None  # squares among other states, and no squares


@pytest.fixture
def unused(monkeypatch):
    """Makes the three passes impossible: whoever decodes divides by zero elements."""
    taken = dispatch.load(dispatch.current.level)
    monkeypatch.setattr(dispatch, "current", taken)
    for name in ("bfloat16", "split16_bfloat16", "q8", "q8_square"):
        taken.codecs[name] = taken.codecs["float16"]  # which gives other numbers
    return taken


@pytest.mark.parametrize("which", stored_loops.SETS)
def test_they_run_where_they_may(unused, which):
    """With a wrong codec in its place, results are right only where none is asked."""
    p, g, m, v = stored_loops.SETS[which]
    if v != m and m == "float32":
        check_squares_alone()
        return
    rng = np.random.default_rng(0)

    def made(name, values):
        return values if name == "float32" else codecs.to_bfloat16(values)

    n = 2 * CHUNK_SIZE + (0 if m == "q8" else 7)  # a group that is not whole is no loop's
    values, slope = rng.standard_normal((2, n)).astype(np.float32)
    twin = codecs.decoded(made(p, values), np.float32)
    other, x = st.Lion(twin, lr=0.125), made(p, values)
    master = {"master": "split16"} if p == "split16" else {}
    opt = st.Lion(x, lr=0.125, state_dtype=m, **master)
    opt.step(made(g, slope))
    other.step(codecs.decoded(made(g, slope), np.float32))
    stored = codecs.split(twin)[0] if master else made(p, twin)
    expected = codecs.decoded(stored, np.float32)
    np.testing.assert_array_equal(codecs.decoded(x, np.float32), expected)


def check_squares_alone():
    """With squares of 8 bits beside other states of 32."""
    n = 2 * CHUNK_SIZE
    rng = np.random.default_rng(0)
    x, g = rng.standard_normal((2, n)).astype(np.float32)
    twin = x.copy()
    opt, other = st.AdamW(x, state_dtype={"exp_avg_sq": "q8"}), st.AdamW(twin)
    opt.step(g)
    other.step(g)
    np.testing.assert_array_equal(x, twin)  # the first step reads zeros
    np.testing.assert_array_equal(opt.state["0"]["exp_avg"], other.state["0"]["exp_avg"])
    root = np.sqrt(codecs.from_q8(
        opt.state["0"]["exp_avg_sq"], opt.state["0"]["exp_avg_sq_root_scale"], square=True
    ))  # fmt: skip
    exact = np.sqrt(other.state["0"]["exp_avg_sq"])
    # A root has 4 bits of mantissa, and what is below 2^-15 of the scale has the lowest code.
    np.testing.assert_allclose(root, exact, rtol=1 / 16, atol=2e-5 * exact.max())


def test_they_do_not_run_with_an_operation_or_a_stride(unused):
    g = codecs.to_bfloat16(np.full(8, 3.0, np.float32))
    for x, options in (
        (np.zeros(8, np.float32), {"clip": st.clip.value(9.0)}),
        (np.zeros(16, np.float32)[::2], {}),
        (np.zeros(8), {}),
    ):
        st.SGD(x, lr=1.0, **options).step(g)
        assert (x != -3.0).all()
