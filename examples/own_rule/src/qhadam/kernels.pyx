"""QHAdam as one loop over one block; see ``steepest/kernels/rules.pxd`` for what a rule takes."""
from steepest.kernels.contract cimport real, root
from steepest.kernels.rules cimport rule

RULES = {}


cdef void qhadam(real *restrict p, const real *restrict g, real *restrict m, real *restrict v,
                 real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
                 const double *h) noexcept nogil:
    cdef real b1 = <real>h[0], fresh1 = <real>h[1], now1 = <real>h[2], share1 = <real>h[3]
    cdef real b2 = <real>h[4], fresh2 = <real>h[5], now2 = <real>h[6], share2 = <real>h[7]
    cdef real lr = <real>h[8], eps = <real>h[9], mi, vi, over, under
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        mi = b1 * m[i] + fresh1 * gi
        vi = b2 * v[i] + fresh2 * (gi * gi)
        m[i] = mi
        v[i] = vi
        over = now1 * gi + share1 * mi
        under = root(now2 * (gi * gi) + share2 * vi)
        p[i] = k * p[i] - lr * over / (under + eps)

RULES["qhadam"] = rule(qhadam, qhadam)
