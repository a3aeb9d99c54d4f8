"""Rules that go by the rows and columns of matrices: see ``rules.pxd`` for what all rules share.

A tally of such a rule writes terms, which the engine adds up by rows and columns; what settles them
then makes factors of rows and columns, which the loops that follow get for each element, as a and
b. So a second moment is kept in as many numbers as there are rows and columns.
"""
from libc.math cimport sqrt

from steepest.kernels.contract cimport BLOCK, Table, real, root
from steepest.kernels.rules cimport rule, squares, survey, tally

RULES = {}


cdef void gradients(const real *restrict p, const real *restrict g, real *restrict a,
                    real *restrict b, real *restrict c, real *restrict d, Py_ssize_t n,
                    double factor, double keep, const double *h,
                    real *restrict terms) noexcept nogil:
    """The terms are the gradient itself."""
    cdef real f = <real>factor
    cdef Py_ssize_t i
    for i in range(n):
        terms[i] = f * g[i]


cdef inline double averaged(real *state, const double *sums, Py_ssize_t n, double count,
                            double eps, double old, double fresh) noexcept nogil:
    """n states take in the means of sums over `count` squares, plus eps; returns the mean of the
    states, added up one after the other."""
    cdef double together = 0
    cdef Py_ssize_t i
    for i in range(n):
        state[i] = <real>(old * <double>state[i] + fresh * (sums[i] / count + eps))
        together += <double>state[i]
    return together / <double>n


cdef inline void inverse_roots(real *factor, const real *state, Py_ssize_t n,
                               double unit) noexcept nogil:
    """1 / √(state / unit)"""
    cdef Py_ssize_t i
    for i in range(n):
        factor[i] = <real>(1.0 / sqrt(<double>state[i] / unit))


# Adafactor: h = (1 - w, w, eps1, paper, eps2, rho, d, scale, decay, lr, b1, 1 - b1); settled: step,
# keep. A negative eps1 is the type's own epsilon.

cdef inline double least(const real *x, double eps) noexcept nogil:
    if eps < 0:
        return 2.0 ** -23 if real is float else 2.0 ** -52
    return eps


cdef void adafactor_table(Table *x, real *row, real *column, Py_ssize_t first, Py_ssize_t last,
                          const double *h) noexcept nogil:
    cdef double eps = least(row, h[2]), added = eps if h[3] else 0.0, mean
    cdef Py_ssize_t k
    cdef real *rows
    cdef real *columns
    for k in range(first, last):
        rows = <real *>x.state[0] + k * x.rows
        columns = <real *>x.state[1] + k * x.columns
        mean = averaged(rows, x.row + k * x.rows, x.rows, <double>x.columns, added, h[0], h[1])
        averaged(columns, x.column + k * x.step, x.columns, <double>x.rows, added, h[0], h[1])
        inverse_roots(row + k * x.rows, rows, x.rows, eps if mean < eps and not h[3] else mean)
        inverse_roots(column + k * x.columns, columns, x.columns, 1.0)


cdef void adafactor_survey(const real *restrict p, const real *restrict g, real *restrict row,
                           real *restrict column, real *restrict c, real *restrict d, Py_ssize_t n,
                           double factor, double keep, const double *h,
                           double *sums) noexcept nogil:
    cdef real cap = <real>(1.0 / (0.0 if h[3] else least(p, h[2]))), f = <real>factor, s
    cdef real direction[BLOCK]
    cdef Py_ssize_t i
    for i in range(n):
        s = row[i] * column[i]
        direction[i] = (cap if s > cap else s) * (f * g[i])
    sums[0] += squares(p, n)
    sums[1] += squares(direction, n)
    sums[2] += <double>n


cdef void adafactor_settle(const double *sums, double *own, double *h) noexcept nogil:
    cdef double n = sqrt(sums[2]), size = sqrt(sums[0]) / n, ratio = sqrt(sums[1]) / (n * h[6])
    cdef double alpha = h[5]
    if h[7]:
        alpha = (size if size > h[4] else h[4]) * alpha
    h[12] = alpha / ratio if ratio > 1 else alpha
    h[13] = 1.0 - h[8] * (alpha if h[3] else h[9])


cdef void adafactor(real *restrict p, const real *restrict g, real *restrict row,
                    real *restrict column, real *restrict c, real *restrict d, Py_ssize_t n,
                    double factor, double keep, const double *h) noexcept nogil:
    cdef real cap = <real>(1.0 / (0.0 if h[3] else least(p, h[2]))), f = <real>factor, s
    cdef real step = <real>h[12], k = <real>h[13]
    cdef Py_ssize_t i
    for i in range(n):
        s = row[i] * column[i]
        p[i] = k * p[i] - step * ((cap if s > cap else s) * (f * g[i]))

RULES["adafactor"] = rule(adafactor, adafactor, (
    tally("squares", gradients, gradients, adafactor_table, adafactor_table),
    survey(adafactor_survey, adafactor_survey, adafactor_settle)))


cdef void adafactor_momentum(real *restrict p, const real *restrict g, real *restrict row,
                             real *restrict column, real *restrict m, real *restrict d,
                             Py_ssize_t n, double factor, double keep,
                             const double *h) noexcept nogil:
    cdef real cap = <real>(1.0 / (0.0 if h[3] else least(p, h[2]))), f = <real>factor, s, mi
    cdef real step = <real>h[12], k = <real>h[13], b1 = <real>h[10], fresh1 = <real>h[11]
    cdef Py_ssize_t i
    for i in range(n):
        s = row[i] * column[i]
        mi = b1 * m[i] + fresh1 * (step * ((cap if s > cap else s) * (f * g[i])))
        m[i] = mi
        p[i] = k * p[i] - mi

RULES["adafactor_momentum"] = rule(adafactor_momentum, adafactor_momentum, (
    tally("squares", gradients, gradients, adafactor_table, adafactor_table),
    survey(adafactor_survey, adafactor_survey, adafactor_settle)))


cdef inline real adafactor_direction(real g, real v, real eps) noexcept nogil:
    cdef real size = root(v)
    return g / (eps if size < eps else size)


cdef void adafactor_vector_survey(const real *restrict p, const real *restrict g, real *restrict v,
                                  real *restrict b, real *restrict c, real *restrict d,
                                  Py_ssize_t n, double factor, double keep, const double *h,
                                  double *sums) noexcept nogil:
    cdef real old = <real>h[0], fresh = <real>h[1], f = <real>factor, gi, vi
    cdef real eps = <real>(0.0 if h[3] else least(p, h[2])), added = <real>(h[2] if h[3] else 0.0)
    cdef real direction[BLOCK]
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        vi = old * v[i] + fresh * (gi * gi + added)
        v[i] = vi
        direction[i] = adafactor_direction(gi, vi, eps)
    sums[0] += squares(p, n)
    sums[1] += squares(direction, n)
    sums[2] += <double>n


cdef void adafactor_vector(real *restrict p, const real *restrict g, real *restrict v,
                           real *restrict b, real *restrict c, real *restrict d, Py_ssize_t n,
                           double factor, double keep, const double *h) noexcept nogil:
    cdef real eps = <real>(0.0 if h[3] else least(p, h[2])), f = <real>factor
    cdef real step = <real>h[12], k = <real>h[13]
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = k * p[i] - step * adafactor_direction(f * g[i], v[i], eps)

RULES["adafactor_vector"] = rule(adafactor_vector, adafactor_vector, (
    survey(adafactor_vector_survey, adafactor_vector_survey, adafactor_settle),))


cdef void adafactor_vector_momentum(real *restrict p, const real *restrict g, real *restrict v,
                                    real *restrict m, real *restrict c, real *restrict d,
                                    Py_ssize_t n, double factor, double keep,
                                    const double *h) noexcept nogil:
    cdef real eps = <real>(0.0 if h[3] else least(p, h[2])), f = <real>factor, mi
    cdef real step = <real>h[12], k = <real>h[13], b1 = <real>h[10], fresh1 = <real>h[11]
    cdef Py_ssize_t i
    for i in range(n):
        mi = b1 * m[i] + fresh1 * (step * adafactor_direction(f * g[i], v[i], eps))
        m[i] = mi
        p[i] = k * p[i] - mi

RULES["adafactor_vector_momentum"] = rule(adafactor_vector_momentum, adafactor_vector_momentum, (
    survey(adafactor_vector_survey, adafactor_vector_survey, adafactor_settle),))
