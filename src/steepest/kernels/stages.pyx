"""What may be done to a block while it is in L1, before the rule or after it, and what may be
measured of it. Compiled once per instruction-set level; the same limits as in ``rules.pyx``.

A stage says in STAGES whether it makes a new gradient (``out``). A measure adds up in LANES
doubles, element i in lane i modulo LANES, and folds the lanes in halves: the same tree on every
level, so that the sum does not depend on the vector width.
"""
from cpython.pycapsule cimport PyCapsule_New

from steepest.kernels.contract cimport (
    LANES, larger, magnitude, measure_double, measure_float, real, sign, stage_double, stage_float,
)

STAGES = {}
MEASURES = {}


cdef object entry(stage_float of_float, stage_double of_double, bint makes_gradient):
    return (PyCapsule_New(<void *>of_float, "steepest.stage", NULL),
            PyCapsule_New(<void *>of_double, "steepest.stage", NULL), makes_gradient)


cdef object measure(measure_float of_float, measure_double of_double):
    return (PyCapsule_New(<void *>of_float, "steepest.measure", NULL),
            PyCapsule_New(<void *>of_double, "steepest.measure", NULL))


# Stages that make the next gradient

cdef void scale(real *restrict p, const real *restrict g, real *restrict out, real *restrict x,
                Py_ssize_t n, const double *h) noexcept nogil:
    cdef real factor = <real>h[0]
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = factor * g[i]

STAGES["scale"] = entry(scale, scale, True)


cdef void clip_value(real *restrict p, const real *restrict g, real *restrict out,
                     real *restrict x, Py_ssize_t n, const double *h) noexcept nogil:
    cdef real limit = <real>h[0]
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = limit if g[i] > limit else (-limit if g[i] < -limit else g[i])

STAGES["clip_value"] = entry(clip_value, clip_value, True)


cdef void l2(real *restrict p, const real *restrict g, real *restrict out, real *restrict x,
             Py_ssize_t n, const double *h) noexcept nogil:
    cdef real weight = <real>h[0]
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = g[i] + weight * p[i]

STAGES["l2"] = entry(l2, l2, True)


cdef void l1(real *restrict p, const real *restrict g, real *restrict out, real *restrict x,
             Py_ssize_t n, const double *h) noexcept nogil:
    cdef real weight = <real>h[0]
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = g[i] + weight * sign(p[i])

STAGES["l1"] = entry(l1, l1, True)


# Stages on the parameter or on an array of their own

cdef void ema(real *restrict p, const real *restrict g, real *restrict out, real *restrict x,
              Py_ssize_t n, const double *h) noexcept nogil:
    cdef real keep = <real>h[0], fresh = <real>h[1]
    cdef Py_ssize_t i
    for i in range(n):
        x[i] = keep * x[i] + fresh * p[i]

STAGES["ema"] = entry(ema, ema, False)


# Measures

cdef double sum_squares(const real *restrict g, Py_ssize_t n, double scale) noexcept nogil:
    cdef double lane[LANES]
    cdef double x
    cdef Py_ssize_t i, j, width = LANES, whole = n // LANES
    for j in range(LANES):
        lane[j] = 0
    for i in range(whole):
        for j in range(LANES):
            x = scale * <double>g[i * LANES + j]
            lane[j] += x * x
    for j in range(n - whole * LANES):
        x = scale * <double>g[whole * LANES + j]
        lane[j] += x * x
    while width > 1:
        width = width // 2
        for j in range(width):
            lane[j] += lane[j + width]
    return lane[0]

MEASURES["sum_squares"] = measure(sum_squares, sum_squares)


cdef double largest(const real *restrict g, Py_ssize_t n, double scale) noexcept nogil:
    """The largest magnitude; NaN if there is one."""
    cdef double most = 0
    cdef Py_ssize_t i
    for i in range(n):
        most = larger(scale * <double>magnitude(g[i]), most)
    return most

MEASURES["largest"] = measure(largest, largest)
