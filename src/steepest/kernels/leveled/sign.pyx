"""Rules that use signs; see ``rules.pxd`` for what all rules share."""
from steepest.kernels.contract cimport real, sign
from steepest.kernels.rules cimport rule

RULES = {}


cdef void signsgd(real *restrict p, const real *restrict g, real *restrict a, real *restrict b,
                  real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
                  const double *h) noexcept nogil:
    cdef real lr = <real>h[0]
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        p[i] = k * p[i] - lr * sign(gi)

RULES["signsgd"] = rule(signsgd, signsgd)


cdef void signum(real *restrict p, const real *restrict g, real *restrict m, real *restrict b,
                 real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
                 const double *h) noexcept nogil:
    cdef real lr = <real>h[0], mu = <real>h[1], fresh = <real>h[2], mi
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        mi = mu * m[i] + fresh * gi
        m[i] = mi
        p[i] = k * p[i] - lr * sign(mi)

RULES["signum"] = rule(signum, signum)


cdef void lion(real *restrict p, const real *restrict g, real *restrict m, real *restrict b,
               real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
               const double *h) noexcept nogil:
    cdef real lr = <real>h[0], b1 = <real>h[1], fresh1 = <real>h[2]
    cdef real b2 = <real>h[3], fresh2 = <real>h[4], ci
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        ci = b1 * m[i] + fresh1 * gi
        m[i] = b2 * m[i] + fresh2 * gi
        p[i] = k * p[i] - lr * sign(ci)

RULES["lion"] = rule(lion, lion)
