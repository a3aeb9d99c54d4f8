"""Gradient descent, with momentum or without; see ``rules.pxd`` for what all rules share."""
from steepest.kernels.contract cimport real
from steepest.kernels.rules cimport rule

RULES = {}


cdef void sgd(real *restrict p, const real *restrict g, real *restrict a, real *restrict b,
              real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
              const double *h) noexcept nogil:
    cdef real lr = <real>h[0]
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        p[i] = k * p[i] - lr * gi

RULES["sgd"] = rule(sgd, sgd)


cdef void momentum(real *restrict p, const real *restrict g, real *restrict m, real *restrict b,
                   real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
                   const double *h) noexcept nogil:
    cdef real lr = <real>h[0], mu = <real>h[1], fresh = <real>h[2], mi
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        mi = mu * m[i] + fresh * gi
        m[i] = mi
        p[i] = k * p[i] - lr * mi

RULES["momentum"] = rule(momentum, momentum)


cdef void nesterov(real *restrict p, const real *restrict g, real *restrict m, real *restrict b,
                   real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
                   const double *h) noexcept nogil:
    cdef real lr = <real>h[0], mu = <real>h[1], fresh = <real>h[2], mi
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        gi = fresh * gi  # 1 where lr is not within m: there is no dampening here
        mi = mu * m[i] + gi
        m[i] = mi
        p[i] = k * p[i] - lr * (gi + mu * mi)

RULES["nesterov"] = rule(nesterov, nesterov)


cdef void qhm(real *restrict p, const real *restrict g, real *restrict m, real *restrict b,
              real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
              const double *h) noexcept nogil:
    cdef real mu = <real>h[0], fresh = <real>h[1], plain = <real>h[2], mean = <real>h[3], mi
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        mi = mu * m[i] + fresh * gi
        m[i] = mi
        p[i] = k * p[i] - (plain * gi + mean * mi)

RULES["qhm"] = rule(qhm, qhm)
