"""The mutator makes what it says, and a mutant is killed by the tests of its file."""

import mutants as command
import pytest
from mutator import mutants
from package_copy import PackageCopy

PYTHON = '''
def step(p, g, state, t, *, lr: float = 0.5, betas: tuple[float, float]) -> None:
    """Adds 1 + 2 to b1."""
    b1, b2 = betas  # b1 + 1
    if lr < 0 or not t:
        raise ValueError(f"lr = {lr + 1}: expected 0")
    p[...] = b1 * p - np.sqrt(g) / max(lr, b2)
    state["n"] += 1
'''

CYTHON = '''
cdef enum:
    BLOCK = 1024
cdef void rule(real *restrict p, const real *restrict g, Py_ssize_t n, const double *h) noexcept:
    cdef real b1 = <real>h[0], b2 = <real>h[1]
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = b1 * p[i] - (<real>1 if g[i] > <real>0 else g[i])
cdef extern from *:
    """
    /* a + b */
    #if A < 2
    static int twice(const char *x, int k) { return k << 1; }
    """
    int twice(const char *x, int k) nogil
'''


def made(text):
    """The changed lines by operator."""
    found = {}
    for mutant in mutants(text):
        now = mutant.applied(text).splitlines()[mutant.line(text) - 1]
        found.setdefault(mutant.operator, set()).add(now.strip())
    return found


def test_mutants_of_python():
    found = made(PYTHON)
    assert found["sign"] == {
        "p[...] = b1 * p + np.sqrt(g) / max(lr, b2)", 'state["n"] -= 1',
    }  # fmt: skip
    assert found["product"] == {
        "p[...] = b1 / p - np.sqrt(g) / max(lr, b2)", "p[...] = b1 * p - np.sqrt(g) * max(lr, b2)",
    }  # fmt: skip
    assert found["neighbour"] == {
        "b2, b2 = betas  # b1 + 1", "b1, b1 = betas  # b1 + 1",
        "p[...] = b2 * p - np.sqrt(g) / max(lr, b2)", "p[...] = b1 * p - np.sqrt(g) / max(lr, b1)",
    }  # fmt: skip
    assert found["comparison"] == {"if lr <= 0 or not t:"}
    assert found["logic"] == {"if lr < 0 and not t:", "if lr < 0 or  t:"}
    assert found["check"] == {"if False:"}
    assert found["root"] == {"p[...] = b1 * p - (g) / max(lr, b2)"}
    assert found["choice"] == {"p[...] = b1 * p - np.sqrt(g) / min(lr, b2)"}
    assert found["arguments"] == {"p[...] = b1 * p - np.sqrt(g) / max(b2, lr)"}
    assert found["constant"] == {"if lr < 1 or not t:", 'state["n"] += 0'}
    assert found["statement"] == {"pass", "pass  # b1 + 1"}
    assert set(found) == {
        "sign", "product", "neighbour", "comparison", "logic", "check", "root", "choice",
        "arguments", "constant", "statement",
    }  # fmt: skip


def test_mutants_of_cython():
    found = made(CYTHON)
    assert found["index"] == {
        "cdef real b1 = <real>h[1], b2 = <real>h[1]", "cdef real b1 = <real>h[0], b2 = <real>h[2]",
        "cdef real b1 = <real>h[0], b2 = <real>h[0]",
    }  # fmt: skip
    assert found["bound"] == {"for i in range(n - 1):"}
    assert found["comparison"] == {"p[i] = b1 * p[i] - (<real>1 if g[i] >= <real>0 else g[i])"}
    assert found["bits"] == {"static int twice(const char *x, int k) { return k >> 1; }"}
    assert found["sign"] == {"p[i] = b1 * p[i] + (<real>1 if g[i] > <real>0 else g[i])"}
    assert found["product"] == {"p[i] = b1 / p[i] - (<real>1 if g[i] > <real>0 else g[i])"}


def test_the_same_seed_draws_the_same():
    subjects = command.AREAS["reference"]()
    first = [(s.file, m) for (s, m), _ in zip(command.drawn(subjects, 3), range(40), strict=False)]
    again = [(s.file, m) for (s, m), _ in zip(command.drawn(subjects, 3), range(40), strict=False)]
    assert first == again and len({m for _, m in first}) == 40
    assert len({file for file, _ in first}) == len(subjects)


@pytest.mark.parametrize("fault", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_a_mutant_of_a_reference_is_killed(tmp_path, fault):
    """And the same text without a fault is not."""
    copy = PackageCopy(tmp_path, ["base"])
    subject = next(x for x in command.AREAS["reference"]() if x.file == "reference/sign.py")
    if fault:
        copy.changed(subject.file, "p - p.dtype.type(lr) * np.sign(g)", "p - p.dtype.type(lr) * g")
    run = copy.run_code(subject.tests[0], 60, STEEPEST_ISA="base")
    assert run.failed == fault, run.text
