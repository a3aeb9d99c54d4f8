"""Rules that use norms over a whole parameter: see ``rules.pxd`` for what all rules share, and
for reductions, which sum such norms up before the update. A norm that is NaN, or infinite because a
square left the range of double, makes NaN (or 0) of the whole parameter's step, as it does when a
framework computes it. A rate that becomes larger than the type's largest number, as beside
subnormal gradients, is that number: an infinite one would make NaN of elements that are 0."""
from libc.float cimport FLT_MAX
from libc.math cimport INFINITY, sqrt

from steepest.kernels.contract cimport LANES, magnitude, real, root
from steepest.kernels.rules cimport empty, folded, reduction, rule

RULES = {}


cdef inline real rate(double x, const real *of) noexcept nogil:
    """A finite number in the type of the array, where it is at most the type's largest."""
    if real is float:
        if x > FLT_MAX and x < INFINITY:
            return FLT_MAX
    return <real>x


# LAMB: h = (b1, 1 - b1, b2, 1 - b2, unbias m, unbias v, eps, decay, lr, bounds of the parameter's
# norm, whether to adapt); finalized: lr times ratio.

cdef inline real lamb_direction(real p, real m, real v, real scale, real unbias, real eps,
                                real decay) noexcept nogil:
    return scale * m / (root(v) * unbias + eps) + decay * p


cdef inline void lamb_row(const real *restrict p, const real *restrict g, real *restrict m,
                          real *restrict v, real f, const double *h, double *length, double *taken,
                          Py_ssize_t n) noexcept nogil:
    cdef real b1 = <real>h[0], fresh1 = <real>h[1], b2 = <real>h[2], fresh2 = <real>h[3]
    cdef real scale = <real>h[4], unbias = <real>h[5], eps = <real>h[6], decay = <real>h[7]
    cdef real gi, mi, vi
    cdef double x
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        mi = b1 * m[i] + fresh1 * gi
        vi = b2 * v[i] + fresh2 * (gi * gi)
        m[i] = mi
        v[i] = vi
        x = <double>lamb_direction(p[i], mi, vi, scale, unbias, eps, decay)
        taken[i] += x * x
        x = <double>p[i]
        length[i] += x * x


cdef void lamb_reduction(const real *restrict p, const real *restrict g, real *restrict m,
                         real *restrict v, real *restrict c, real *restrict d, Py_ssize_t n,
                         double factor, double keep, const double *h, double *sums) noexcept nogil:
    cdef double length[LANES]
    cdef double taken[LANES]
    cdef Py_ssize_t i, k, whole = n // LANES
    empty(length)
    empty(taken)
    for i in range(whole):
        k = i * LANES
        lamb_row(p + k, g + k, m + k, v + k, <real>factor, h, length, taken, LANES)
    k = whole * LANES
    lamb_row(p + k, g + k, m + k, v + k, <real>factor, h, length, taken, n - k)
    sums[0] += folded(length)
    sums[1] += folded(taken)


cdef void lamb_finalize(const double *sums, double *own, double *h) noexcept nogil:
    cdef double lr = h[8], low = h[9], high = h[10], adapt = h[11]
    cdef double length = sqrt(sums[0]), taken = sqrt(sums[1]), step = lr
    length = low if length < low else length
    length = high if length > high else length
    if adapt != 0 and length != 0 and taken != 0:
        step = lr * (length / taken)
    h[8] = step


cdef void lamb(real *restrict p, const real *restrict g, real *restrict m, real *restrict v,
               real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
               const double *h) noexcept nogil:
    cdef real scale = <real>h[4], unbias = <real>h[5], eps = <real>h[6], decay = <real>h[7]
    cdef real step = rate(h[8], p)
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = p[i] - step * lamb_direction(p[i], m[i], v[i], scale, unbias, eps, decay)

RULES["lamb"] = rule(lamb, lamb, (reduction(lamb_reduction, lamb_reduction, lamb_finalize),))


# LARS: h = (lr, decay, momentum, trust coefficient, eps, whether to adapt, whether to clip);
# finalized: lr times ratio.

cdef inline void norms_row(const real *restrict p, const real *restrict g, real f, real kept,
                           double *length, double *slope, Py_ssize_t n) noexcept nogil:
    cdef double x, y
    cdef Py_ssize_t i
    for i in range(n):
        x = <double>(kept * p[i])
        y = <double>(f * g[i])
        length[i] += x * x
        slope[i] += y * y


cdef void norms_reduction(const real *restrict p, const real *restrict g, real *restrict m,
                          real *restrict b, real *restrict c, real *restrict d, Py_ssize_t n,
                          double factor, double keep, const double *h, double *sums) noexcept nogil:
    """The sums of squares of the parameter and of the gradient."""
    cdef double length[LANES]
    cdef double slope[LANES]
    cdef Py_ssize_t i, k, whole = n // LANES
    empty(length)
    empty(slope)
    for i in range(whole):
        k = i * LANES
        norms_row(p + k, g + k, <real>factor, <real>keep, length, slope, LANES)
    k = whole * LANES
    norms_row(p + k, g + k, <real>factor, <real>keep, length, slope, n - k)
    sums[0] += folded(length)
    sums[1] += folded(slope)


cdef void lars_finalize(const double *sums, double *own, double *h) noexcept nogil:
    cdef double lr = h[0], decay = h[1], trust = h[3], eps = h[4], adapt = h[5], clip = h[6]
    cdef double length = sqrt(sums[0]), slope = sqrt(sums[1]) + decay * sqrt(sums[0]), ratio, step
    if adapt == 0 or length == 0 or slope == 0:
        return
    ratio = trust * length / (slope + eps)
    if clip != 0 and ratio > lr:
        return  # the local rate lr * (ratio / lr) would be more than lr
    step = ratio if clip != 0 else lr * ratio
    h[0] = step


cdef void lars_plain(real *restrict p, const real *restrict g, real *restrict m, real *restrict b,
                     real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
                     const double *h) noexcept nogil:
    cdef real step = rate(h[0], p), decay = <real>h[1], f = <real>factor
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = p[i] - step * (f * g[i] + decay * p[i])

RULES["lars_plain"] = rule(lars_plain, lars_plain,
                           (reduction(norms_reduction, norms_reduction, lars_finalize),))


cdef void lars(real *restrict p, const real *restrict g, real *restrict m, real *restrict b,
               real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
               const double *h) noexcept nogil:
    cdef real step = rate(h[0], p), decay = <real>h[1], mu = <real>h[2], f = <real>factor, mi
    cdef Py_ssize_t i
    for i in range(n):
        mi = mu * m[i] + step * (f * g[i] + decay * p[i])
        m[i] = mi
        p[i] = p[i] - mi

RULES["lars"] = rule(lars, lars, (reduction(norms_reduction, norms_reduction, lars_finalize),))


cdef void lars_nesterov(real *restrict p, const real *restrict g, real *restrict m,
                        real *restrict b, real *restrict c, real *restrict d, Py_ssize_t n,
                        double factor, double keep, const double *h) noexcept nogil:
    cdef real step = rate(h[0], p), decay = <real>h[1], mu = <real>h[2], f = <real>factor, mi, si
    cdef Py_ssize_t i
    for i in range(n):
        si = step * (f * g[i] + decay * p[i])
        mi = mu * m[i] + si
        m[i] = mi
        p[i] = p[i] - (si + mu * mi)

RULES["lars_nesterov"] = rule(lars_nesterov, lars_nesterov,
                              (reduction(norms_reduction, norms_reduction, lars_finalize),))


# NovoGrad: h = (b1, share of the new direction, b2, 1 - b2, eps, decay, lr), at the first step 0
# for b2; finalized: 1 / (√v + eps) in place of eps. Kept: v, one number.

cdef inline void novograd_row(const real *restrict g, real f, double *slope,
                              Py_ssize_t n) noexcept nogil:
    cdef double x
    cdef Py_ssize_t i
    for i in range(n):
        x = <double>(f * g[i])
        slope[i] += x * x


cdef void novograd_reduction(const real *restrict p, const real *restrict g, real *restrict m,
                             real *restrict b, real *restrict c, real *restrict d, Py_ssize_t n,
                             double factor, double keep, const double *h,
                             double *sums) noexcept nogil:
    cdef double slope[LANES]
    cdef Py_ssize_t i, whole = n // LANES
    empty(slope)
    for i in range(whole):
        novograd_row(g + i * LANES, <real>factor, slope, LANES)
    novograd_row(g + whole * LANES, <real>factor, slope, n - whole * LANES)
    sums[0] += folded(slope)


cdef void novograd_finalize(const double *sums, double *own, double *h) noexcept nogil:
    cdef double old = h[2], fresh = h[3], eps = h[4], divisor, inverse
    own[0] = old * own[0] + fresh * sums[0]
    divisor = sqrt(own[0]) + eps
    inverse = 1.0 / divisor if divisor != 0 else 0
    h[4] = inverse


cdef void novograd(real *restrict p, const real *restrict g, real *restrict m, real *restrict b,
                   real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
                   const double *h) noexcept nogil:
    cdef real b1 = <real>h[0], share = <real>h[1], inverse = <real>h[4], decay = <real>h[5]
    cdef real lr = <real>h[6], f = <real>factor, mi
    cdef Py_ssize_t i
    for i in range(n):
        mi = b1 * m[i] + share * (inverse * (f * g[i]) + decay * p[i])
        m[i] = mi
        p[i] = p[i] - lr * mi

RULES["novograd"] = rule(novograd, novograd,
                         (reduction(novograd_reduction, novograd_reduction, novograd_finalize),))


# StableAdamW: h = (b1', 1 - b1', b2', 1 - b2', lr, eps, eps², threshold, decay), where b' depends
# on the step; finalized: the rate in place of lr, what decay leaves of p in place of decay.

cdef inline void stableadamw_row(const real *restrict g, real *restrict m, real *restrict v, real f,
                                 const double *h, double *surprise, Py_ssize_t n) noexcept nogil:
    cdef real old1 = <real>h[0], share1 = <real>h[1], old2 = <real>h[2], share2 = <real>h[3]
    cdef real least = <real>h[6], gi, vi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        vi = old2 * v[i] + share2 * (gi * gi)
        m[i] = old1 * m[i] + share1 * gi
        v[i] = vi
        surprise[i] += <double>magnitude(gi * gi / (least if vi < least else vi))


cdef void stableadamw_reduction(const real *restrict p, const real *restrict g, real *restrict m,
                                real *restrict v, real *restrict c, real *restrict d, Py_ssize_t n,
                                double factor, double keep, const double *h,
                                double *sums) noexcept nogil:
    cdef double surprise[LANES]
    cdef Py_ssize_t i, k, whole = n // LANES
    empty(surprise)
    for i in range(whole):
        k = i * LANES
        stableadamw_row(g + k, m + k, v + k, <real>factor, h, surprise, LANES)
    k = whole * LANES
    stableadamw_row(g + k, m + k, v + k, <real>factor, h, surprise, n - k)
    sums[0] += folded(surprise)
    sums[1] += <double>n


cdef void stableadamw_finalize(const double *sums, double *own, double *h) noexcept nogil:
    cdef double lr = h[4], threshold = h[7], decay = h[8]
    cdef double rms = sqrt(sums[0] / sums[1]), step = lr, left
    if not rms <= threshold:
        step = lr * (threshold / rms)
    left = 1.0 - step * decay
    h[4] = step
    h[8] = left


cdef void stableadamw(real *restrict p, const real *restrict g, real *restrict m, real *restrict v,
                      real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
                      const double *h) noexcept nogil:
    cdef real step = <real>h[4], eps = <real>h[5], left = <real>h[8]
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = left * p[i] - step * m[i] / (root(v[i]) + eps)

RULES["stableadamw"] = rule(
    stableadamw, stableadamw,
    (reduction(stableadamw_reduction, stableadamw_reduction, stableadamw_finalize),),
)


# Fromage: h = (lr, 1 / √(1 + lr²)); finalized: lr times ratio.

cdef void fromage_finalize(const double *sums, double *own, double *h) noexcept nogil:
    cdef double lr = h[0], length = sqrt(sums[0]), slope = sqrt(sums[1]), step = lr
    if length != 0 and slope != 0:
        step = lr * (length / slope)
    h[0] = step


cdef void fromage(real *restrict p, const real *restrict g, real *restrict a, real *restrict b,
                  real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
                  const double *h) noexcept nogil:
    cdef real step = rate(h[0], p), left = <real>h[1], f = <real>factor, k = <real>keep
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = left * (k * p[i] - step * (f * g[i]))

RULES["fromage"] = rule(fromage, fromage,
                        (reduction(norms_reduction, norms_reduction, fromage_finalize),))
