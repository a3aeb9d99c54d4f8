"""What may be done to a block while it is in L1, before the rule or after it, and what may be
measured of it. Compiled once per instruction-set level; the same limits as in ``rules.pxd``.

An operation says in OPERATIONS whether it makes a new gradient (``out``). A measure adds up in
LANES doubles, element i in lane i modulo LANES, and folds the lanes in halves: the same tree on
every level, so that the sum does not depend on the vector width.
"""
from cpython.pycapsule cimport PyCapsule_New
from libc.float cimport DBL_MIN, FLT_MIN
from libc.math cimport pow
from libc.stdint cimport INT32_MAX, INT64_MAX, int32_t, int64_t
from libc.string cimport memcpy, memset

from steepest.kernels.contract cimport (
    LANES, magnitude, measure_double, measure_float, operation_double, operation_float, real, sign,
)
from steepest.kernels.streams cimport stream_copy

OPERATIONS = {}
MEASURES = {}


cdef object entry(operation_float of_float, operation_double of_double, bint makes_gradient):
    return (PyCapsule_New(<void *>of_float, "steepest.operation", NULL),
            PyCapsule_New(<void *>of_double, "steepest.operation", NULL), makes_gradient)


cdef object measure(measure_float of_float, measure_double of_double):
    return (PyCapsule_New(<void *>of_float, "steepest.measure", NULL),
            PyCapsule_New(<void *>of_double, "steepest.measure", NULL))


# Operations that make the next gradient

cdef void scale(real *restrict p, const real *restrict g, real *restrict out, real *restrict x,
                Py_ssize_t n, const double *h) noexcept nogil:
    cdef real factor = <real>h[0]
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = factor * g[i]

OPERATIONS["scale"] = entry(scale, scale, True)


cdef void clip_value(real *restrict p, const real *restrict g, real *restrict out, real *restrict x,
                     Py_ssize_t n, const double *h) noexcept nogil:
    cdef real limit = <real>h[0]
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = limit if g[i] > limit else (-limit if g[i] < -limit else g[i])

OPERATIONS["clip_value"] = entry(clip_value, clip_value, True)


cdef void l2(real *restrict p, const real *restrict g, real *restrict out, real *restrict x,
             Py_ssize_t n, const double *h) noexcept nogil:
    cdef real weight = <real>h[0]
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = g[i] + weight * p[i]

OPERATIONS["l2"] = entry(l2, l2, True)


cdef void times_square(real *restrict p, const real *restrict g, real *restrict out,
                       real *restrict x, Py_ssize_t n, const double *h) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = p[i] * p[i] * g[i]

OPERATIONS["times_square"] = entry(times_square, times_square, True)


cdef void l1(real *restrict p, const real *restrict g, real *restrict out, real *restrict x,
             Py_ssize_t n, const double *h) noexcept nogil:
    cdef real weight = <real>h[0]
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = g[i] + weight * sign(p[i])

OPERATIONS["l1"] = entry(l1, l1, True)


cdef void toward(real *restrict p, const real *restrict g, real *restrict out, real *restrict x,
                 Py_ssize_t n, const double *h) noexcept nogil:
    cdef real weight = <real>h[0]
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = g[i] + weight * (p[i] - x[i])

OPERATIONS["toward"] = entry(toward, toward, True)


cdef void scale_each(real *restrict p, const real *restrict g, real *restrict out, real *restrict x,
                     Py_ssize_t n, const double *h) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = x[i] * g[i]

OPERATIONS["scale_each"] = entry(scale_each, scale_each, True)


cdef void subtract_each(real *restrict p, const real *restrict g, real *restrict out,
                        real *restrict x, Py_ssize_t n, const double *h) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = g[i] - x[i]

OPERATIONS["subtract_each"] = entry(subtract_each, subtract_each, True)


cdef void grokfast(real *restrict p, const real *restrict g, real *restrict out, real *restrict x,
                   Py_ssize_t n, const double *h) noexcept nogil:
    """The mean x is NaN before it has seen a gradient."""
    cdef real keep = <real>h[0], fresh = <real>h[1], weight = <real>h[2], xi
    cdef Py_ssize_t i
    for i in range(n):
        xi = keep * x[i] + fresh * g[i]
        xi = g[i] if x[i] != x[i] else xi
        x[i] = xi
        out[i] = g[i] + weight * xi

OPERATIONS["grokfast"] = entry(grokfast, grokfast, True)


cdef void mars(real *restrict p, const real *restrict g, real *restrict out, real *restrict x,
               Py_ssize_t n, const double *h) noexcept nogil:
    """x is the last gradient."""
    cdef real weight = <real>h[0], gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = g[i]
        out[i] = weight * (gi - x[i]) + gi
        x[i] = gi

OPERATIONS["mars"] = entry(mars, mars, True)
OPERATIONS["hold"] = entry(scale, scale, True)  # by what the norm before it comes to


cdef void hide(real *restrict p, const real *restrict g, real *restrict out, real *restrict x,
               Py_ssize_t n, const double *h) noexcept nogil:
    cdef real gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = g[i]
        out[i] = <real>0 if x[i] == <real>0 else gi

OPERATIONS["hide"] = entry(hide, hide, True)


# Operations on the parameter or on an array of their own

cdef void pull(real *restrict p, const real *restrict g, real *restrict out, real *restrict x,
               Py_ssize_t n, const double *h) noexcept nogil:
    cdef real keep = <real>h[0], drawn = <real>h[1]
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = keep * p[i] + drawn * x[i]

OPERATIONS["pull"] = entry(pull, pull, False)


cdef void soft_threshold(real *restrict p, const real *restrict g, real *restrict out,
                         real *restrict x, Py_ssize_t n, const double *h) noexcept nogil:
    cdef real threshold = <real>h[0], keep = <real>h[1], rest
    cdef Py_ssize_t i
    for i in range(n):
        rest = magnitude(p[i]) - threshold
        p[i] = <real>0 if rest < <real>0 else keep * (rest * sign(p[i]))

OPERATIONS["soft_threshold"] = entry(soft_threshold, soft_threshold, False)


cdef void flush(real *restrict p, const real *restrict g, real *restrict out, real *restrict x,
                Py_ssize_t n, const double *h) noexcept nogil:
    """Subnormal numbers of x, or of p without one, become zeros of their sign."""
    cdef real *y = p if x == NULL else x
    cdef real least = <real>(FLT_MIN if real is float else DBL_MIN), yi, zero
    cdef Py_ssize_t i
    for i in range(n):
        yi = y[i]
        zero = <real>0 * yi
        y[i] = zero if magnitude(yi) < least else yi

OPERATIONS["flush"] = entry(flush, flush, False)


cdef void multiply(real *restrict p, const real *restrict g, real *restrict out, real *restrict x,
                   Py_ssize_t n, const double *h) noexcept nogil:
    cdef real factor = <real>h[0]
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = factor * p[i]

OPERATIONS["multiply"] = entry(multiply, multiply, False)


cdef void keep(real *restrict p, const real *restrict g, real *restrict out, real *restrict x,
               Py_ssize_t n, const double *h) noexcept nogil:
    cdef double past = h[0]  # whether past the caches
    stream_copy(x, p, n * sizeof(real), past != 0.0)

OPERATIONS["keep"] = entry(keep, keep, False)


cdef void set_aside(real *restrict p, const real *restrict g, real *restrict out, real *restrict x,
                    Py_ssize_t n, const double *h) noexcept nogil:
    memcpy(x, p, n * sizeof(real))
    memset(p, 0, n * sizeof(real))

OPERATIONS["set_aside"] = entry(set_aside, set_aside, False)


cdef void cautious(real *restrict p, const real *restrict g, real *restrict out, real *restrict x,
                   Py_ssize_t n, const double *h) noexcept nogil:
    """p is what the rule adds to the parameter x that was set aside."""
    cdef real against = <real>h[0], along = <real>h[1], away
    cdef Py_ssize_t i
    for i in range(n):
        away = p[i] if x[i] > <real>0 else -p[i]
        p[i] = (along if away <= <real>0 else against) * x[i] + p[i]

OPERATIONS["cautious"] = entry(cautious, cautious, False)


cdef void agree(real *restrict p, const real *restrict g, real *restrict out, real *restrict x,
                Py_ssize_t n, const double *h) noexcept nogil:
    """p is what the rule adds to the parameter x that was set aside."""
    cdef real keep = <real>h[0], factor = <real>h[1], pi
    cdef Py_ssize_t i
    for i in range(n):
        pi = p[i]
        p[i] = keep * x[i] + (factor * pi if pi * g[i] < <real>0 else <real>0)

OPERATIONS["agree"] = entry(agree, agree, False)


cdef void divide(real *restrict p, const real *restrict g, real *restrict out, real *restrict x,
                 Py_ssize_t n, const double *h) noexcept nogil:
    """In double: the inverse of a small divisor may be beyond float."""
    cdef double divisor = h[0]
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = <real>(<double>p[i] / divisor)

OPERATIONS["divide"] = entry(divide, divide, False)


cdef void lower(real *restrict p, const real *restrict g, real *restrict out, real *restrict x,
                Py_ssize_t n, const double *h) noexcept nogil:
    """In double, down by two numbers whose sum may have fewer digits, and no further than 0."""
    cdef double first = h[0], second = h[1], rest
    cdef Py_ssize_t i
    for i in range(n):
        rest = <double>p[i] - first - second
        p[i] = <real>(rest if rest > <double>0 else <double>0)

OPERATIONS["lower"] = entry(lower, lower, False)


cdef void box(real *restrict p, const real *restrict g, real *restrict out, real *restrict x,
              Py_ssize_t n, const double *h) noexcept nogil:
    cdef real low = <real>h[0], high = <real>h[1]
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = low if p[i] < low else (high if p[i] > high else p[i])

OPERATIONS["box"] = entry(box, box, False)


cdef void zero(real *restrict p, const real *restrict g, real *restrict out, real *restrict x,
               Py_ssize_t n, const double *h) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = <real>0 if x[i] == <real>0 else p[i]

OPERATIONS["zero"] = entry(zero, zero, False)


cdef void ema(real *restrict p, const real *restrict g, real *restrict out, real *restrict x,
              Py_ssize_t n, const double *h) noexcept nogil:
    cdef real keep = <real>h[0], fresh = <real>h[1]
    cdef Py_ssize_t i
    for i in range(n):
        x[i] = keep * x[i] + fresh * p[i]

OPERATIONS["ema"] = entry(ema, ema, False)


cdef void lookahead(real *restrict p, const real *restrict g, real *restrict out, real *restrict x,
                    Py_ssize_t n, const double *h) noexcept nogil:
    cdef real alpha = <real>h[0], xi
    cdef Py_ssize_t i
    for i in range(n):
        xi = x[i] + alpha * (p[i] - x[i])
        x[i] = xi
        p[i] = xi

OPERATIONS["lookahead"] = entry(lookahead, lookahead, False)


cdef void mean(real *restrict p, const real *restrict g, real *restrict out, real *restrict x,
               Py_ssize_t n, const double *h) noexcept nogil:
    cdef real share = <real>h[0]
    cdef bint first = h[0] == 1.0
    cdef Py_ssize_t i
    for i in range(n):
        x[i] = p[i] if first else x[i] + share * (p[i] - x[i])

OPERATIONS["mean"] = entry(mean, mean, False)


# Measures

# The square of a float is exact in double. So a sum has the same bits whether square and sum are
# rounded in one instruction, where there is one, or in two.
cdef extern from *:
    """
    #if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    #define STEEPEST_PLUS_EXACT_SQUARE(sum, x) __builtin_fma(x, x, sum)
    #else
    #define STEEPEST_PLUS_EXACT_SQUARE(sum, x) ((sum) + (x) * (x))
    #endif
    """
    double plus_exact_square "STEEPEST_PLUS_EXACT_SQUARE"(double total, double x) noexcept nogil


cdef enum:
    SQUARES, EXACT_SQUARES, MAGNITUDES, POWERS, ELEMENTS, ABOVE, COUNT


cdef inline double term(int kind, double x, double scale, double order) noexcept nogil:
    """What an element adds: a power of scale * x, or what of x - scale is above the order."""
    if kind == ELEMENTS:
        return x
    if kind == ABOVE:
        return x - scale if x - scale > order else <double>0
    if kind == COUNT:
        return <double>1 if x - scale > order else <double>0
    x = scale * x
    if kind == SQUARES:
        return x * x
    if kind == MAGNITUDES:
        return magnitude(x)
    return pow(magnitude(x), order)


cdef inline double plus(int kind, double total, double x, double scale,
                        double order) noexcept nogil:
    if kind == EXACT_SQUARES:
        return plus_exact_square(total, x)
    return total + term(kind, x, scale, order)


cdef inline double added(int kind, const real *restrict g, Py_ssize_t n, double scale,
                         double order) noexcept nogil:
    """The sum of the terms of g; `kind` is a literal where this is called."""
    cdef double lane[LANES]
    cdef Py_ssize_t i, j, width = LANES, whole = n // LANES
    for j in range(LANES):
        lane[j] = 0
    for i in range(whole):
        for j in range(LANES):
            lane[j] = plus(kind, lane[j], <double>g[i * LANES + j], scale, order)
    for j in range(n - whole * LANES):
        lane[j] = plus(kind, lane[j], <double>g[whole * LANES + j], scale, order)
    while width > 1:
        width = width // 2
        for j in range(width):
            lane[j] += lane[j + width]
    return lane[0]


cdef double sum_squares(const real *restrict g, Py_ssize_t n, double scale,
                        double order) noexcept nogil:
    if real is float and scale == <double>1:
        return added(EXACT_SQUARES, g, n, scale, order)
    return added(SQUARES, g, n, scale, order)

MEASURES["sum_squares"] = measure(sum_squares, sum_squares)


cdef double sum_magnitudes(const real *restrict g, Py_ssize_t n, double scale,
                           double order) noexcept nogil:
    return added(MAGNITUDES, g, n, scale, order)

MEASURES["sum_magnitudes"] = measure(sum_magnitudes, sum_magnitudes)


cdef double sum_powers(const real *restrict g, Py_ssize_t n, double scale,
                       double order) noexcept nogil:
    return added(POWERS, g, n, scale, order)

MEASURES["sum_powers"] = measure(sum_powers, sum_powers)


cdef double sum_elements(const real *restrict g, Py_ssize_t n, double scale,
                         double order) noexcept nogil:
    return added(ELEMENTS, g, n, scale, order)

MEASURES["sum"] = measure(sum_elements, sum_elements)


cdef double sum_above(const real *restrict g, Py_ssize_t n, double scale,
                      double order) noexcept nogil:
    return added(ABOVE, g, n, scale, order)

MEASURES["sum_above"] = measure(sum_above, sum_above)


cdef double count_above(const real *restrict g, Py_ssize_t n, double scale,
                        double order) noexcept nogil:
    return added(COUNT, g, n, scale, order)

MEASURES["count_above"] = measure(count_above, count_above)


cdef double maximum(const real *restrict g, Py_ssize_t n, double scale,
                    double order) noexcept nogil:
    """The largest element, by lanes for the vectors' sake; none may be NaN."""
    cdef real lane[LANES]
    cdef real most
    cdef Py_ssize_t i, j, whole = n // LANES
    for j in range(LANES):
        lane[j] = g[0]
    for i in range(whole):
        for j in range(LANES):
            lane[j] = g[i * LANES + j] if g[i * LANES + j] > lane[j] else lane[j]
    most = lane[0]
    for j in range(1, LANES):
        most = lane[j] if lane[j] > most else most
    for j in range(whole * LANES, n):
        most = g[j] if g[j] > most else most
    return <double>most

MEASURES["maximum"] = measure(maximum, maximum)


cdef double largest(const real *restrict g, Py_ssize_t n, double scale,
                    double order) noexcept nogil:
    """The largest magnitude; NaN if there is one. Without their sign bit, floats are in the order
    of their bits, NaN last; and integers, unlike floats, have a maximum that vectorises."""
    cdef int32_t narrow, most_narrow = 0
    cdef int64_t wide, most_wide = 0
    cdef real most
    cdef Py_ssize_t i
    if real is float:
        for i in range(n):
            memcpy(&narrow, &g[i], sizeof(float))
            narrow &= INT32_MAX
            most_narrow = narrow if narrow > most_narrow else most_narrow
        memcpy(&most, &most_narrow, sizeof(float))
    else:
        for i in range(n):
            memcpy(&wide, &g[i], sizeof(double))
            wide &= INT64_MAX
            most_wide = wide if wide > most_wide else most_wide
        memcpy(&most, &most_wide, sizeof(double))
    return scale * <double>most

MEASURES["largest"] = measure(largest, largest)
