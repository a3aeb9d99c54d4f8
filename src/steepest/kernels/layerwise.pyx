"""Rules that go by norms over a whole parameter: see ``rules.pxd`` for what all rules share, and
for surveys, which sum such norms up before the update."""
from libc.math cimport sqrt

from steepest.kernels.contract cimport BLOCK, real, root
from steepest.kernels.rules cimport rule, squares, survey

RULES = {}


# LAMB: h = (b1, 1 - b1, b2, 1 - b2, unbias m, unbias v, eps, decay, lr); settled: lr times ratio.

cdef inline real lamb_direction(real p, real m, real v, real scale, real unbias, real eps,
                                real decay) noexcept nogil:
    return scale * m / (root(v) * unbias + eps) + decay * p


cdef void lamb_survey(const real *restrict p, const real *restrict g, real *restrict m,
                      real *restrict v, real *restrict c, real *restrict d, Py_ssize_t n,
                      double factor, double keep, const double *h, double *sums) noexcept nogil:
    cdef real b1 = <real>h[0], fresh1 = <real>h[1], b2 = <real>h[2], fresh2 = <real>h[3]
    cdef real scale = <real>h[4], unbias = <real>h[5], eps = <real>h[6], decay = <real>h[7]
    cdef real f = <real>factor, gi, mi, vi
    cdef real direction[BLOCK]
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        mi = b1 * m[i] + fresh1 * gi
        vi = b2 * v[i] + fresh2 * (gi * gi)
        m[i] = mi
        v[i] = vi
        direction[i] = lamb_direction(p[i], mi, vi, scale, unbias, eps, decay)
    sums[0] += squares(p, n)
    sums[1] += squares(direction, n)


cdef void lamb_settle(const double *sums, double *own, double *h) noexcept nogil:
    if sums[0] > 0 and sums[1] > 0:
        h[8] = h[8] * (sqrt(sums[0]) / sqrt(sums[1]))


cdef void lamb(real *restrict p, const real *restrict g, real *restrict m, real *restrict v,
               real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
               const double *h) noexcept nogil:
    cdef real scale = <real>h[4], unbias = <real>h[5], eps = <real>h[6], decay = <real>h[7]
    cdef real step = <real>h[8]
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = p[i] - step * lamb_direction(p[i], m[i], v[i], scale, unbias, eps, decay)

RULES["lamb"] = rule(lamb, lamb, (survey(lamb_survey, lamb_survey, lamb_settle),))
