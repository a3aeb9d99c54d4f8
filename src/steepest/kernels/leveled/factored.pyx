"""Rules with row and column reductions of matrices: see ``rules.pxd`` for what all rules share.

The loop of such a reduction writes terms, which the engine adds up by rows and columns. What
finalizes them makes factors of rows and columns, which the loops that follow get for each element,
as a and b. So a second moment is kept in as many numbers as there are rows and columns.
"""
from libc.math cimport sqrt

from steepest.kernels.contract cimport LANES, MAXDIMS, Matrices, larger, real, root
from steepest.kernels.rules cimport (
    axis_finalizer, axis_reduction, empty, folded, reduction, rule,
)

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


cdef inline void averaged(real *restrict state, const double *restrict sums, Py_ssize_t n,
                          double count, double eps, double old, double fresh) noexcept nogil:
    """States take in the means of sums over `count` squares, plus eps."""
    cdef Py_ssize_t i
    for i in range(n):
        state[i] = <real>(old * <double>state[i] + fresh * (sums[i] / count + eps))


cdef inline double mean(const real *state, Py_ssize_t n) noexcept nogil:
    """Added up one after the other."""
    cdef double together = 0
    cdef Py_ssize_t j
    for j in range(n):
        together += <double>state[j]
    return together / <double>n


cdef inline void inverse_roots(real *restrict factor, const double *restrict x,
                               Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        factor[i] = <real>(1.0 / sqrt(x[i]))


cdef inline void inverse_state_roots(real *restrict factor, const real *restrict x,
                                     Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        factor[i] = <real>(1.0 / sqrt(<double>x[i]))


cdef inline void second_moments(Matrices *x, real *row, real *column, Py_ssize_t first,
                                Py_ssize_t last, int state, double eps, double bound, double old,
                                double fresh) noexcept nogil:
    """The states of rows and columns, of two numbers, take in what was found of them, plus eps. The
    factors of rows are 1 / √(state / mean of them), which is at least `bound`; of columns
    1 / √state. Loops go over all matrices where they can: these may be as small as 3 x 3."""
    cdef Py_ssize_t k, j, start = first * x.rows, n = (last - first) * x.rows
    cdef real *rows = <real *>x.state[state]
    cdef real *columns = <real *>x.state[state + 1]
    cdef double unit
    averaged(rows + start, x.row + start, n, <double>x.columns, eps, old, fresh)
    if x.rows == 1:
        for k in range(first, last):
            unit = <double>rows[k]
            x.row[k] = unit / (bound if unit < bound else unit)
    else:
        for k in range(first, last):
            unit = mean(rows + k * x.rows, x.rows)
            unit = bound if unit < bound else unit
            for j in range(k * x.rows, (k + 1) * x.rows):
                x.row[j] = <double>rows[j] / unit
    inverse_roots(row + start, x.row + start, n)
    start, n = first * x.columns, (last - first) * x.columns
    if x.step == x.columns:
        averaged(columns + start, x.column + start, n, <double>x.rows, eps, old, fresh)
    else:
        for k in range(first, last):
            averaged(columns + k * x.columns, x.column + k * x.step, x.columns, <double>x.rows,
                     eps, old, fresh)
    inverse_state_roots(column + start, columns + start, n)


# Adafactor: h = (1 - w, w, eps1, paper, eps2, rho, d, scale, decay, lr, b1, 1 - b1); finalized:
# step (12), what decay leaves of p (13). A negative eps1 is the type's own epsilon.

cdef inline double least(const real *x, double eps) noexcept nogil:
    if eps < 0:
        return 2.0 ** -23 if real is float else 2.0 ** -52
    return eps


cdef void adafactor_axes(Matrices *x, real *row, real *column, Py_ssize_t first, Py_ssize_t last,
                         const double *h) noexcept nogil:
    cdef double old = h[0], fresh = h[1], eps1 = h[2], paper = h[3], eps = least(row, eps1)
    second_moments(x, row, column, first, last, 0, eps if paper else 0.0, 0.0 if paper else eps,
                   old, fresh)


cdef inline void adafactor_row(const real *restrict p, const real *restrict g,
                               const real *restrict row, const real *restrict column, real f,
                               real cap, double *sizes, double *steps, Py_ssize_t n) noexcept nogil:
    cdef real s
    cdef double x
    cdef Py_ssize_t i
    for i in range(n):
        x = <double>p[i]
        sizes[i] += x * x
        s = row[i] * column[i]
        x = <double>((cap if s > cap else s) * (f * g[i]))
        steps[i] += x * x


cdef void adafactor_reduction(const real *restrict p, const real *restrict g, real *restrict row,
                              real *restrict column, real *restrict c, real *restrict d,
                              Py_ssize_t n, double factor, double keep, const double *h,
                              double *sums) noexcept nogil:
    cdef double eps1 = h[2], paper = h[3]
    cdef real cap = <real>(1.0 / (0.0 if paper else least(p, eps1))), f = <real>factor
    cdef double sizes[LANES]
    cdef double steps[LANES]
    cdef Py_ssize_t i, k, whole = n // LANES
    empty(sizes)
    empty(steps)
    for i in range(whole):
        k = i * LANES
        adafactor_row(p + k, g + k, row + k, column + k, f, cap, sizes, steps, LANES)
    k = whole * LANES
    adafactor_row(p + k, g + k, row + k, column + k, f, cap, sizes, steps, n - k)
    sums[0] += folded(sizes)
    sums[1] += folded(steps)
    sums[2] += <double>n


cdef void adafactor_finalize(const double *sums, double *own, double *h) noexcept nogil:
    cdef double paper = h[3], eps2 = h[4], rho = h[5], d = h[6], scale = h[7], decay = h[8]
    cdef double lr = h[9], n = sqrt(sums[2]), size = sqrt(sums[0]) / n
    cdef double ratio = sqrt(sums[1]) / (n * d), alpha = rho, step, left
    if scale:
        alpha = (size if size > eps2 else eps2) * alpha
    step = alpha / ratio if ratio > 1 else alpha
    left = 1.0 - decay * (alpha if paper else lr)
    h[12] = step
    h[13] = left


cdef void adafactor(real *restrict p, const real *restrict g, real *restrict row,
                    real *restrict column, real *restrict c, real *restrict d, Py_ssize_t n,
                    double factor, double keep, const double *h) noexcept nogil:
    cdef double eps1 = h[2], paper = h[3]
    cdef real cap = <real>(1.0 / (0.0 if paper else least(p, eps1))), f = <real>factor, s
    cdef real step = <real>h[12], left = <real>h[13]
    cdef Py_ssize_t i
    for i in range(n):
        s = row[i] * column[i]
        p[i] = left * p[i] - step * ((cap if s > cap else s) * (f * g[i]))

RULES["adafactor"] = rule(adafactor, adafactor, (
    axis_reduction("squares", gradients, gradients, adafactor_axes, adafactor_axes, blind=True),
    reduction(adafactor_reduction, adafactor_reduction, adafactor_finalize)))


cdef void adafactor_momentum(real *restrict p, const real *restrict g, real *restrict row,
                             real *restrict column, real *restrict m, real *restrict d,
                             Py_ssize_t n, double factor, double keep,
                             const double *h) noexcept nogil:
    cdef double eps1 = h[2], paper = h[3]
    cdef real cap = <real>(1.0 / (0.0 if paper else least(p, eps1))), f = <real>factor, s, mi
    cdef real step = <real>h[12], left = <real>h[13], b1 = <real>h[10], fresh1 = <real>h[11]
    cdef Py_ssize_t i
    for i in range(n):
        s = row[i] * column[i]
        mi = b1 * m[i] + fresh1 * (step * ((cap if s > cap else s) * (f * g[i])))
        m[i] = mi
        p[i] = left * p[i] - mi

RULES["adafactor_momentum"] = rule(adafactor_momentum, adafactor_momentum, (
    axis_reduction("squares", gradients, gradients, adafactor_axes, adafactor_axes, blind=True),
    reduction(adafactor_reduction, adafactor_reduction, adafactor_finalize)))


cdef inline real adafactor_direction(real g, real v, real eps) noexcept nogil:
    cdef real size = root(v)
    return g / (eps if size < eps else size)


cdef inline void adafactor_vector_row(const real *restrict p, const real *restrict g,
                                      real *restrict v, real f, real eps, const double *h,
                                      double *sizes, double *steps, Py_ssize_t n) noexcept nogil:
    cdef double eps1 = h[2], paper = h[3]
    cdef real old = <real>h[0], fresh = <real>h[1], added = <real>(eps1 if paper else 0.0), gi, vi
    cdef double x
    cdef Py_ssize_t i
    for i in range(n):
        x = <double>p[i]
        sizes[i] += x * x
        gi = f * g[i]
        vi = old * v[i] + fresh * (gi * gi + added)
        v[i] = vi
        x = <double>adafactor_direction(gi, vi, eps)
        steps[i] += x * x


cdef void adafactor_vector_reduction(const real *restrict p, const real *restrict g,
                                     real *restrict v, real *restrict b, real *restrict c,
                                     real *restrict d, Py_ssize_t n, double factor, double keep,
                                     const double *h, double *sums) noexcept nogil:
    cdef double eps1 = h[2], paper = h[3]
    cdef real eps = <real>(0.0 if paper else least(p, eps1)), f = <real>factor
    cdef double sizes[LANES]
    cdef double steps[LANES]
    cdef Py_ssize_t i, k, whole = n // LANES
    empty(sizes)
    empty(steps)
    for i in range(whole):
        k = i * LANES
        adafactor_vector_row(p + k, g + k, v + k, f, eps, h, sizes, steps, LANES)
    k = whole * LANES
    adafactor_vector_row(p + k, g + k, v + k, f, eps, h, sizes, steps, n - k)
    sums[0] += folded(sizes)
    sums[1] += folded(steps)
    sums[2] += <double>n


cdef void adafactor_vector(real *restrict p, const real *restrict g, real *restrict v,
                           real *restrict b, real *restrict c, real *restrict d, Py_ssize_t n,
                           double factor, double keep, const double *h) noexcept nogil:
    cdef double eps1 = h[2], paper = h[3]
    cdef real eps = <real>(0.0 if paper else least(p, eps1)), f = <real>factor
    cdef real step = <real>h[12], left = <real>h[13]
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = left * p[i] - step * adafactor_direction(f * g[i], v[i], eps)

RULES["adafactor_vector"] = rule(adafactor_vector, adafactor_vector, (
    reduction(adafactor_vector_reduction, adafactor_vector_reduction, adafactor_finalize),))


cdef void adafactor_vector_momentum(real *restrict p, const real *restrict g, real *restrict v,
                                    real *restrict m, real *restrict c, real *restrict d,
                                    Py_ssize_t n, double factor, double keep,
                                    const double *h) noexcept nogil:
    cdef double eps1 = h[2], paper = h[3]
    cdef real eps = <real>(0.0 if paper else least(p, eps1)), f = <real>factor, mi
    cdef real step = <real>h[12], left = <real>h[13], b1 = <real>h[10], fresh1 = <real>h[11]
    cdef Py_ssize_t i
    for i in range(n):
        mi = b1 * m[i] + fresh1 * (step * adafactor_direction(f * g[i], v[i], eps))
        m[i] = mi
        p[i] = left * p[i] - mi

RULES["adafactor_vector_momentum"] = rule(adafactor_vector_momentum, adafactor_vector_momentum, (
    reduction(adafactor_vector_reduction, adafactor_vector_reduction, adafactor_finalize),))


# CAME: h = (b1, 1 - b1, b2, 1 - b2, b3, 1 - b3, eps1, eps2, threshold, lr); finalized: what is
# left of u (10).

cdef void came_moments(Matrices *x, real *row, real *column, Py_ssize_t first, Py_ssize_t last,
                       const double *h) noexcept nogil:
    cdef double b2 = h[2], fresh2 = h[3], eps1 = h[6]
    second_moments(x, row, column, first, last, 0, eps1, 0.0, b2, fresh2)


cdef void came_residuals(Matrices *x, real *row, real *column, Py_ssize_t first, Py_ssize_t last,
                         const double *h) noexcept nogil:
    cdef double b3 = h[4], fresh3 = h[5], eps2 = h[7]
    second_moments(x, row, column, first, last, 2, eps2, 0.0, b3, fresh3)


cdef inline void came_row(const real *restrict g, const real *restrict row,
                          const real *restrict column, real f, double *steps,
                          Py_ssize_t n) noexcept nogil:
    cdef double x
    cdef Py_ssize_t i
    for i in range(n):
        x = <double>((row[i] * column[i]) * (f * g[i]))
        steps[i] += x * x


cdef void came_reduction(const real *restrict p, const real *restrict g, real *restrict row,
                         real *restrict column, real *restrict m, real *restrict d, Py_ssize_t n,
                         double factor, double keep, const double *h, double *sums) noexcept nogil:
    cdef double steps[LANES]
    cdef Py_ssize_t i, k, whole = n // LANES
    empty(steps)
    for i in range(whole):
        k = i * LANES
        came_row(g + k, row + k, column + k, <real>factor, steps, LANES)
    k = whole * LANES
    came_row(g + k, row + k, column + k, <real>factor, steps, n - k)
    sums[0] += folded(steps)
    sums[1] += <double>n


cdef void came_finalize(const double *sums, double *own, double *h) noexcept nogil:
    cdef double threshold = h[8], ratio = sqrt(sums[0]) / (sqrt(sums[1]) * threshold)
    cdef double left = 1.0 if ratio < 1 else 1.0 / ratio
    h[10] = left


cdef void came_terms(const real *restrict p, const real *restrict g, real *restrict row,
                     real *restrict column, real *restrict m, real *restrict d, Py_ssize_t n,
                     double factor, double keep, const double *h,
                     real *restrict terms) noexcept nogil:
    cdef real b1 = <real>h[0], fresh1 = <real>h[1], left = <real>h[10], f = <real>factor, u, mi
    cdef Py_ssize_t i
    for i in range(n):
        u = left * ((row[i] * column[i]) * (f * g[i]))
        mi = b1 * m[i] + fresh1 * u
        m[i] = mi
        terms[i] = u - mi


cdef void came(real *restrict p, const real *restrict g, real *restrict row, real *restrict column,
               real *restrict m, real *restrict d, Py_ssize_t n, double factor, double keep,
               const double *h) noexcept nogil:
    cdef real lr = <real>h[9], k = <real>keep
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = k * p[i] - lr * ((row[i] * column[i]) * m[i])

RULES["came"] = rule(came, came, (
    axis_reduction("squares", gradients, gradients, came_moments, came_moments, blind=True),
    reduction(came_reduction, came_reduction, came_finalize),
    axis_reduction("squares", came_terms, came_terms, came_residuals, came_residuals)))


cdef inline void came_vector_row(const real *restrict g, real *restrict v, real f, const double *h,
                                 double *steps, Py_ssize_t n) noexcept nogil:
    cdef real b2 = <real>h[2], fresh2 = <real>h[3], eps1 = <real>h[6], gi, vi
    cdef double x
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        vi = b2 * v[i] + fresh2 * (gi * gi + eps1)
        v[i] = vi
        x = <double>(gi / root(vi))
        steps[i] += x * x


cdef void came_vector_reduction(const real *restrict p, const real *restrict g, real *restrict m,
                                real *restrict v, real *restrict c, real *restrict d, Py_ssize_t n,
                                double factor, double keep, const double *h,
                                double *sums) noexcept nogil:
    cdef double steps[LANES]
    cdef Py_ssize_t i, whole = n // LANES
    empty(steps)
    for i in range(whole):
        came_vector_row(g + i * LANES, v + i * LANES, <real>factor, h, steps, LANES)
    i = whole * LANES
    came_vector_row(g + i, v + i, <real>factor, h, steps, n - i)
    sums[0] += folded(steps)
    sums[1] += <double>n


cdef void came_vector(real *restrict p, const real *restrict g, real *restrict m, real *restrict v,
                      real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
                      const double *h) noexcept nogil:
    cdef real b1 = <real>h[0], fresh1 = <real>h[1], left = <real>h[10], lr = <real>h[9]
    cdef real f = <real>factor, k = <real>keep, mi
    cdef Py_ssize_t i
    for i in range(n):
        mi = b1 * m[i] + fresh1 * (left * (f * g[i] / root(v[i])))
        m[i] = mi
        p[i] = k * p[i] - lr * mi

RULES["came_vector"] = rule(came_vector, came_vector, (
    reduction(came_vector_reduction, came_vector_reduction, came_finalize),))


# SM3: h = (lr, beta, share of g², eps, mu, 1 - mu). The accumulators are one for each dimension;
# all but the last make the factors of rows.

cdef void sm3_factors(Matrices *x, real *row, real *column, Py_ssize_t first, Py_ssize_t last,
                      const double *h) noexcept nogil:
    """Of each row the least of its accumulators; of columns theirs."""
    cdef Py_ssize_t index[MAXDIMS]
    cdef Py_ssize_t i
    cdef int k, rest = x.states - 1
    cdef real least, other
    for k in range(rest):
        index[k] = 0
    for i in range(x.rows):
        least = (<real *>x.state[0])[index[0]]
        for k in range(1, rest):
            other = (<real *>x.state[k])[index[k]]
            least = smaller(other, least)
        row[i] = least
        following(x, index, rest)
    for i in range(x.columns):
        column[i] = (<real *>x.state[rest])[i]


cdef void sm3_axes(Matrices *x, real *row, real *column, Py_ssize_t first, Py_ssize_t last,
                   const double *h) noexcept nogil:
    """Each accumulator is the largest of its slice."""
    cdef Py_ssize_t index[MAXDIMS]
    cdef Py_ssize_t i
    cdef int k, rest = x.states - 1
    cdef real *state
    for k in range(rest):
        index[k] = 0
        state = <real *>x.state[k]
        for i in range(x.length[k]):
            state[i] = <real>0
    for i in range(x.rows):
        for k in range(rest):
            state = <real *>x.state[k] + index[k]
            state[0] = larger(<real>x.row[i], state[0])
        following(x, index, rest)
    for i in range(x.columns):
        (<real *>x.state[rest])[i] = <real>x.column[i]


cdef inline void following(Matrices *x, Py_ssize_t *index, int n) noexcept nogil:
    """The next row, as indices of the first n dimensions."""
    cdef int k = n - 1
    index[k] += 1
    while k > 0 and index[k] == x.length[k]:
        index[k] = 0
        k -= 1
        index[k] += 1


cdef inline real smaller(real x, real y) noexcept nogil:
    """The smaller of two; NaN if either is NaN."""
    cdef real least = x if x < y else y
    return x if x != x else least


cdef inline real sm3_direction(real g, real v, real eps) noexcept nogil:
    cdef real u = g / root(v + eps)
    return <real>0 if v == <real>0 else u


cdef void sm3_terms(const real *restrict p, const real *restrict g, real *restrict row,
                    real *restrict column, real *restrict m, real *restrict d, Py_ssize_t n,
                    double factor, double keep, const double *h,
                    real *restrict terms) noexcept nogil:
    cdef real beta = <real>h[1], share = <real>h[2], f = <real>factor, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        terms[i] = beta * smaller(row[i], column[i]) + share * (gi * gi)


cdef void sm3(real *restrict p, const real *restrict g, real *restrict row, real *restrict column,
              real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
              const double *h) noexcept nogil:
    cdef real lr = <real>h[0], beta = <real>h[1], share = <real>h[2], eps = <real>h[3]
    cdef real f = <real>factor, k = <real>keep, gi, v
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        v = beta * smaller(row[i], column[i]) + share * (gi * gi)
        p[i] = k * p[i] - lr * sm3_direction(gi, v, eps)

RULES["sm3"] = rule(sm3, sm3, (
    axis_finalizer(sm3_factors, sm3_factors),
    axis_reduction("largest", sm3_terms, sm3_terms, sm3_axes, sm3_axes)))


cdef void sm3_momentum(real *restrict p, const real *restrict g, real *restrict row,
                       real *restrict column, real *restrict m, real *restrict d, Py_ssize_t n,
                       double factor, double keep, const double *h) noexcept nogil:
    cdef real lr = <real>h[0], beta = <real>h[1], share = <real>h[2], eps = <real>h[3]
    cdef real mu = <real>h[4], fresh = <real>h[5], f = <real>factor, k = <real>keep, gi, v, mi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        v = beta * smaller(row[i], column[i]) + share * (gi * gi)
        mi = mu * m[i] + fresh * sm3_direction(gi, v, eps)
        m[i] = mi
        p[i] = k * p[i] - lr * mi

RULES["sm3_momentum"] = rule(sm3_momentum, sm3_momentum, (
    axis_finalizer(sm3_factors, sm3_factors),
    axis_reduction("largest", sm3_terms, sm3_terms, sm3_axes, sm3_axes)))


cdef void sm3_vector(real *restrict p, const real *restrict g, real *restrict v, real *restrict b,
                     real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
                     const double *h) noexcept nogil:
    cdef real lr = <real>h[0], beta = <real>h[1], share = <real>h[2], eps = <real>h[3]
    cdef real f = <real>factor, k = <real>keep, gi, vi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        vi = beta * v[i] + share * (gi * gi)
        v[i] = vi
        p[i] = k * p[i] - lr * sm3_direction(gi, vi, eps)

RULES["sm3_vector"] = rule(sm3_vector, sm3_vector)


cdef void sm3_vector_momentum(real *restrict p, const real *restrict g, real *restrict v,
                              real *restrict m, real *restrict c, real *restrict d, Py_ssize_t n,
                              double factor, double keep, const double *h) noexcept nogil:
    cdef real lr = <real>h[0], beta = <real>h[1], share = <real>h[2], eps = <real>h[3]
    cdef real mu = <real>h[4], fresh = <real>h[5], f = <real>factor, k = <real>keep, gi, vi, mi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        vi = beta * v[i] + share * (gi * gi)
        v[i] = vi
        mi = mu * m[i] + fresh * sm3_direction(gi, vi, eps)
        m[i] = mi
        p[i] = k * p[i] - lr * mi

RULES["sm3_vector_momentum"] = rule(sm3_vector_momentum, sm3_vector_momentum)


# Adam-mini: h = (b1, 1 - b1, b2, 1 - b2, unbias v, eps, step).

cdef void adammini_axes(Matrices *x, real *row, real *column, Py_ssize_t first, Py_ssize_t last,
                        const double *h) noexcept nogil:
    cdef double b2 = h[2], fresh2 = h[3], unbias = h[4], eps = h[5]
    cdef Py_ssize_t i
    cdef real *v = <real *>x.state[0]
    averaged(v, x.row, x.rows, <double>x.columns, 0.0, b2, fresh2)
    for i in range(x.rows):
        row[i] = <real>(1.0 / (sqrt(<double>v[i]) * unbias + eps))


cdef void adammini(real *restrict p, const real *restrict g, real *restrict row, real *restrict m,
                   real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
                   const double *h) noexcept nogil:
    cdef real b1 = <real>h[0], fresh1 = <real>h[1], step = <real>h[6]
    cdef real f = <real>factor, k = <real>keep, mi
    cdef Py_ssize_t i
    for i in range(n):
        mi = b1 * m[i] + fresh1 * (f * g[i])
        m[i] = mi
        p[i] = k * p[i] - step * (mi * row[i])

RULES["adammini"] = rule(adammini, adammini, (
    axis_reduction("squares", gradients, gradients, adammini_axes, adammini_axes, blind=True),))
