"""Rules that find their own rate from sums over all parameters: see ``rules.pxd`` for what all
rules share, and for reductions. An estimate that is NaN leaves the one before in place, unless a
comment says otherwise."""
from libc.math cimport sqrt

from steepest.kernels.contract cimport LANES, magnitude, real, root
from steepest.kernels.rules cimport empty, finalizer, folded, reduction, rule, squares

RULES = {}


# DoG: h = (lr, eps, reps_rel, decay); finalized: first whether to begin (4), then the rate in place
# of lr, what decay leaves of p in place of eps. Kept: the largest distance from the start, which
# NaN stays in, and the sum of all squared gradients.

cdef void dog_begin(const double *sums, double *own, double *h) noexcept nogil:
    cdef double first = 1.0 if own[0] == 0 else 0.0
    h[4] = first


cdef inline void dog_row(const real *restrict p, const real *restrict g, const real *restrict start,
                         real f, double *far, double *steep, Py_ssize_t n) noexcept nogil:
    cdef double x, y
    cdef Py_ssize_t i
    for i in range(n):
        x = <double>(p[i] - start[i])
        y = <double>(f * g[i])
        far[i] += x * x
        steep[i] += y * y


cdef void dog_reduction(const real *restrict p, const real *restrict g, real *restrict start,
                        real *restrict b, real *restrict c, real *restrict d, Py_ssize_t n,
                        double factor, double keep, const double *h, double *sums) noexcept nogil:
    cdef real f = <real>factor
    cdef double first = h[4]
    cdef double far[LANES]
    cdef double steep[LANES]
    cdef Py_ssize_t i, k, whole = n // LANES
    empty(far)
    empty(steep)
    for i in range(whole):
        k = i * LANES
        dog_row(p + k, g + k, start + k, f, far, steep, LANES)
    k = whole * LANES
    dog_row(p + k, g + k, start + k, f, far, steep, n - k)
    sums[0] += folded(far)
    sums[1] += folded(steep)
    if first != 0:
        sums[2] += squares(p, n)


cdef void dog_finalize(const double *sums, double *own, double *h) noexcept nogil:
    cdef double lr = h[0], eps = h[1], reps_rel = h[2], decay = h[3]
    cdef double distance = sqrt(sums[0]), divisor, rate, left
    if own[0] == 0:
        own[0] = reps_rel * (1.0 + sqrt(sums[2]))
    own[0] = own[0] if distance <= own[0] or own[0] != own[0] else distance
    own[1] += sums[1]
    divisor = sqrt(own[1] + eps)
    rate = lr * own[0] / divisor if divisor != 0 else 0
    left = 1.0 - rate * decay
    h[0] = rate
    h[1] = left


cdef void dog(real *restrict p, const real *restrict g, real *restrict start, real *restrict b,
              real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
              const double *h) noexcept nogil:
    cdef real rate = <real>h[0], left = <real>h[1], f = <real>factor
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = left * p[i] - rate * (f * g[i])

RULES["dog"] = RULES["ldog"] = rule(
    dog, dog, (finalizer(dog_begin), reduction(dog_reduction, dog_reduction, dog_finalize))
)


# DoWG: h = (lr, eps, decay); finalized as for DoG. Kept: the largest distance², and the
# sum of all squared gradients, each times the distance² of its time.

cdef void dowg_begin(const double *sums, double *own, double *h) noexcept nogil:
    cdef double first = 0.0
    h[4] = first


cdef void dowg_finalize(const double *sums, double *own, double *h) noexcept nogil:
    cdef double lr = h[0], eps = h[1], decay = h[2], divisor, rate, left
    own[0] = own[0] if sums[0] <= own[0] or own[0] != own[0] else sums[0]
    own[1] += own[0] * sums[1]
    divisor = sqrt(own[1]) + eps
    rate = lr * own[0] / divisor if divisor != 0 else 0
    left = 1.0 - rate * decay
    h[0] = rate
    h[1] = left

RULES["dowg"] = rule(
    dog, dog, (finalizer(dowg_begin), reduction(dog_reduction, dog_reduction, dowg_finalize))
)


# Prodigy: h = (b1, 1 - b1, b2, 1 - b2, b3, rate, eps, decay, d0, d_coef, growth_rate, whether to
# safeguard), where the rate is lr, unbiased if asked for; finalized first: what a gradient adds to
# m (1), v (3), the numerator (12), s (13), and the rate times d (5); then eps times the new d (6),
# and what decay leaves of p (7). Kept: d, the largest d found, and the numerator.

cdef void prodigy_begin(const double *sums, double *own, double *h) noexcept nogil:
    cdef double fresh1 = h[1], fresh2 = h[3], rate = h[5], d0 = h[8], safeguard = h[11]
    cdef double d = own[0], ratio = own[0] / d0, step = rate * d, weight = ratio * step
    cdef double fresh3 = ratio * d if safeguard != 0 and step != 0 else weight
    fresh1 = fresh1 * d
    fresh2 = fresh2 * (d * d)
    h[1] = fresh1
    h[3] = fresh2
    h[5] = step
    h[12] = weight
    h[13] = fresh3


cdef inline void prodigy_row(const real *restrict p, const real *restrict g, real *restrict m,
                             real *restrict v, real *restrict s, const real *restrict start, real f,
                             const double *h, double *along, double *sizes,
                             Py_ssize_t n) noexcept nogil:
    cdef real b1 = <real>h[0], fresh1 = <real>h[1], b2 = <real>h[2], fresh2 = <real>h[3]
    cdef real b3 = <real>h[4], weight = <real>h[12], fresh3 = <real>h[13], gi, si
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        si = b3 * s[i] + fresh3 * gi
        m[i] = b1 * m[i] + fresh1 * gi
        v[i] = b2 * v[i] + fresh2 * (gi * gi)
        s[i] = si
        along[i] += <double>(weight * gi) * <double>(start[i] - p[i])
        sizes[i] += <double>magnitude(si)


cdef void prodigy_reduction(const real *restrict p, const real *restrict g, real *restrict m,
                            real *restrict v, real *restrict s, real *restrict start, Py_ssize_t n,
                            double factor, double keep, const double *h,
                            double *sums) noexcept nogil:
    cdef double along[LANES]
    cdef double sizes[LANES]
    cdef Py_ssize_t i, k, whole = n // LANES
    empty(along)
    empty(sizes)
    for i in range(whole):
        k = i * LANES
        prodigy_row(p + k, g + k, m + k, v + k, s + k, start + k, <real>factor, h, along, sizes,
                    LANES)
    k = whole * LANES
    prodigy_row(p + k, g + k, m + k, v + k, s + k, start + k, <real>factor, h, along, sizes, n - k)
    sums[0] += folded(along)
    sums[1] += folded(sizes)


cdef void prodigy_finalize(const double *sums, double *own, double *h) noexcept nogil:
    cdef double b3 = h[4], step = h[5], eps = h[6], decay = h[7]
    cdef double d0 = h[8], d_coef = h[9], growth_rate = h[10], found, most, left
    own[2] = b3 * own[2] + sums[0]
    if sums[1] != 0:
        found = d_coef * own[2] / sums[1]
        if own[0] == d0 and found > own[0]:
            own[0] = found
        own[1] = found if found > own[1] else own[1]
        most = own[0] * growth_rate
        own[0] = most if most < own[1] else own[1]
    eps = own[0] * eps
    left = 1.0 - step * decay
    h[6] = eps
    h[7] = left


cdef void prodigy(real *restrict p, const real *restrict g, real *restrict m, real *restrict v,
                  real *restrict s, real *restrict start, Py_ssize_t n, double factor, double keep,
                  const double *h) noexcept nogil:
    cdef real step = <real>h[5], eps = <real>h[6], left = <real>h[7]
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = left * p[i] - step * m[i] / (root(v[i]) + eps)

RULES["prodigy"] = rule(
    prodigy, prodigy,
    (finalizer(prodigy_begin), reduction(prodigy_reduction, prodigy_reduction, prodigy_finalize)),
)


# D-Adapted Adam: h = (b1, 1 - b1, b2, 1 - b2, b3, 1 - b3, rate, eps, decay, growth_rate), where b3
# is the root of b2, and the rate is as for Prodigy; finalized first: the rate times d (6); then
# what decay leaves of p (8). Kept: d and the numerator.

cdef void dadaptadam_begin(const double *sums, double *own, double *h) noexcept nogil:
    cdef double rate = h[6], step = rate * own[0]
    h[6] = step


cdef inline void dadaptadam_row(const real *restrict g, real *restrict m, real *restrict v,
                                real *restrict s, real f, const double *h, double *along,
                                double *sizes, Py_ssize_t n) noexcept nogil:
    cdef real b1 = <real>h[0], fresh1 = <real>h[1], b2 = <real>h[2], fresh2 = <real>h[3]
    cdef real b3 = <real>h[4], fresh3 = <real>h[5], step = <real>h[6], eps = <real>h[7]
    cdef real gi, xi, si
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        xi = step * gi
        along[i] += <double>xi * <double>(s[i] / (root(v[i]) + eps))
        si = b3 * s[i] + fresh3 * xi
        m[i] = b1 * m[i] + fresh1 * xi
        v[i] = b2 * v[i] + fresh2 * (gi * gi)
        s[i] = si
        sizes[i] += <double>magnitude(si)


cdef void dadaptadam_reduction(const real *restrict p, const real *restrict g, real *restrict m,
                               real *restrict v, real *restrict s, real *restrict d, Py_ssize_t n,
                               double factor, double keep, const double *h,
                               double *sums) noexcept nogil:
    cdef double along[LANES]
    cdef double sizes[LANES]
    cdef Py_ssize_t i, k, whole = n // LANES
    empty(along)
    empty(sizes)
    for i in range(whole):
        k = i * LANES
        dadaptadam_row(g + k, m + k, v + k, s + k, <real>factor, h, along, sizes, LANES)
    k = whole * LANES
    dadaptadam_row(g + k, m + k, v + k, s + k, <real>factor, h, along, sizes, n - k)
    sums[0] += folded(along)
    sums[1] += folded(sizes)


cdef void dadaptadam_finalize(const double *sums, double *own, double *h) noexcept nogil:
    cdef double b3 = h[4], fresh3 = h[5], step = h[6], decay = h[8], growth_rate = h[9]
    cdef double found, most, left, divisor = fresh3 * sums[1]
    own[1] = b3 * own[1] + fresh3 * sums[0]
    if divisor != 0:
        found = own[1] / divisor
        most = own[0] * growth_rate
        found = most if most < found else found
        own[0] = found if found > own[0] else own[0]
    left = 1.0 - step * decay
    h[8] = left


cdef void dadaptadam(real *restrict p, const real *restrict g, real *restrict m, real *restrict v,
                     real *restrict s, real *restrict d, Py_ssize_t n, double factor, double keep,
                     const double *h) noexcept nogil:
    cdef real eps = <real>h[7], left = <real>h[8]
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = left * p[i] - m[i] / (root(v[i]) + eps)

RULES["dadaptadam"] = rule(
    dadaptadam, dadaptadam,
    (finalizer(dadaptadam_begin),
     reduction(dadaptadam_reduction, dadaptadam_reduction, dadaptadam_finalize)),
)
