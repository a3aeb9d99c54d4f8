"""Rules that average the points they pass; see ``rules.pxd`` for what all rules share."""
from steepest.kernels.contract cimport real
from steepest.kernels.rules cimport rule

RULES = {}


cdef void asgd(real *restrict p, const real *restrict g, real *restrict ax, real *restrict b,
               real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
               const double *h) noexcept nogil:
    cdef real eta = <real>h[0], shrink = <real>h[1], mu = <real>h[2], pi
    cdef real f = <real>factor, k = <real>keep, gi
    cdef bint restart = h[2] == 1.0
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        pi = shrink * (k * p[i]) - eta * gi
        ax[i] = pi if restart else ax[i] + mu * (pi - ax[i])
        p[i] = pi

RULES["asgd"] = rule(asgd, asgd)
