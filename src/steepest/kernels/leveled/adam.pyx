"""Adam and its relatives; see ``rules.pxd`` for what all rules share."""
from steepest.kernels.contract cimport larger, magnitude, real, root
from steepest.kernels.rules cimport rule

RULES = {}


cdef void adam(real *restrict p, const real *restrict g, real *restrict m, real *restrict v,
               real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
               const double *h) noexcept nogil:
    cdef real b1 = <real>h[0], fresh1 = <real>h[1], b2 = <real>h[2], fresh2 = <real>h[3]
    cdef real step = <real>h[4], unbias = <real>h[5], eps = <real>h[6], mi, vi
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        mi = b1 * m[i] + fresh1 * gi
        vi = b2 * v[i] + fresh2 * (gi * gi)
        m[i] = mi
        v[i] = vi
        p[i] = k * p[i] - step * mi / (root(vi) * unbias + eps)

RULES["adam"] = rule(adam, adam)


cdef void amsgrad(real *restrict p, const real *restrict g, real *restrict m, real *restrict v,
                  real *restrict vm, real *restrict d, Py_ssize_t n, double factor, double keep,
                  const double *h) noexcept nogil:
    cdef real b1 = <real>h[0], fresh1 = <real>h[1], b2 = <real>h[2], fresh2 = <real>h[3]
    cdef real step = <real>h[4], unbias = <real>h[5], eps = <real>h[6], early = <real>h[7]
    cdef real mi, vi, vmi
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        mi = b1 * m[i] + fresh1 * gi
        vi = b2 * v[i] + fresh2 * (gi * gi)
        vmi = larger(vm[i], early * vi)  # v is unbiased before, or its root after
        m[i] = mi
        v[i] = vi
        vm[i] = vmi
        p[i] = k * p[i] - step * mi / (root(vmi) * unbias + eps)

RULES["amsgrad"] = rule(amsgrad, amsgrad)


cdef void adamax(real *restrict p, const real *restrict g, real *restrict m, real *restrict u,
                 real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
                 const double *h) noexcept nogil:
    cdef real b1 = <real>h[0], fresh1 = <real>h[1], b2 = <real>h[2], step = <real>h[3]
    cdef real inside = <real>h[4], outside = <real>h[5], mi, ui  # eps is one, 0 the other
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        mi = b1 * m[i] + fresh1 * gi
        ui = larger(b2 * u[i], magnitude(gi) + inside)
        m[i] = mi
        u[i] = ui
        p[i] = k * p[i] - step * mi / (ui + outside)

RULES["adamax"] = rule(adamax, adamax)


cdef void nadam(real *restrict p, const real *restrict g, real *restrict m, real *restrict v,
                real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
                const double *h) noexcept nogil:
    cdef real b1 = <real>h[0], fresh1 = <real>h[1], b2 = <real>h[2], fresh2 = <real>h[3]
    cdef real now = <real>h[4], ahead = <real>h[5], unbias = <real>h[6], eps = <real>h[7], mi, vi
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        mi = b1 * m[i] + fresh1 * gi
        vi = b2 * v[i] + fresh2 * (gi * gi)
        m[i] = mi
        v[i] = vi
        p[i] = k * p[i] - (now * gi + ahead * mi) / (root(vi) * unbias + eps)

RULES["nadam"] = rule(nadam, nadam)


cdef void radam(real *restrict p, const real *restrict g, real *restrict m, real *restrict v,
                real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
                const double *h) noexcept nogil:
    cdef real b1 = <real>h[0], fresh1 = <real>h[1], b2 = <real>h[2], fresh2 = <real>h[3]
    cdef real step = <real>h[4], eps = <real>h[5], mi, vi
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        mi = b1 * m[i] + fresh1 * gi
        vi = b2 * v[i] + fresh2 * (gi * gi)
        m[i] = mi
        v[i] = vi
        p[i] = k * p[i] - step * mi / (root(vi) + eps)

RULES["radam"] = rule(radam, radam)


cdef void radam_early(real *restrict p, const real *restrict g, real *restrict m, real *restrict v,
                      real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
                      const double *h) noexcept nogil:
    """RAdam's first steps, while the variance of v is not yet known: v is kept but not used."""
    cdef real b1 = <real>h[0], fresh1 = <real>h[1], b2 = <real>h[2], fresh2 = <real>h[3]
    cdef real step = <real>h[4], mi
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        mi = b1 * m[i] + fresh1 * gi
        m[i] = mi
        v[i] = b2 * v[i] + fresh2 * (gi * gi)
        p[i] = k * p[i] - step * mi

RULES["radam_early"] = rule(radam_early, radam_early)
