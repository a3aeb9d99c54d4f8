"""Rules that find their own rate from sums over all parameters: see ``rules.pxd`` for what all
rules share, and for surveys."""
from libc.math cimport sqrt

from steepest.kernels.contract cimport BLOCK, real
from steepest.kernels.rules cimport rule, squares, survey

RULES = {}


# DoG: h = (lr, eps, reps_rel); settled: the rate in place of lr. Kept: the largest distance from
# the start, and the sum of all squared gradients.

cdef void dog_survey(const real *restrict p, const real *restrict g, real *restrict start,
                     real *restrict b, real *restrict c, real *restrict d, Py_ssize_t n,
                     double factor, double keep, const double *h, double *sums) noexcept nogil:
    cdef real f = <real>factor, k = <real>keep, pi
    cdef real far[BLOCK]
    cdef real gradient[BLOCK]
    cdef real point[BLOCK]
    cdef Py_ssize_t i
    for i in range(n):
        pi = k * p[i]
        far[i] = pi - start[i]
        gradient[i] = f * g[i]
        point[i] = pi
    sums[0] += squares(far, n)
    sums[1] += squares(gradient, n)
    sums[2] += squares(point, n)


cdef void dog_settle(const double *sums, double *own, double *h) noexcept nogil:
    cdef double distance = sqrt(sums[0])
    if own[0] == 0:
        own[0] = h[2] * (1.0 + sqrt(sums[2]))
    own[0] = own[0] if distance <= own[0] else distance
    own[1] += sums[1]
    h[0] = h[0] * own[0] / sqrt(own[1] + h[1])


cdef void dog(real *restrict p, const real *restrict g, real *restrict start, real *restrict b,
              real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
              const double *h) noexcept nogil:
    cdef real rate = <real>h[0], f = <real>factor, k = <real>keep
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = k * p[i] - rate * (f * g[i])

RULES["dog"] = rule(dog, dog, (survey(dog_survey, dog_survey, dog_settle),))
