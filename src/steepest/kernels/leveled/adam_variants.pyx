"""Rules that change what Adam averages or divides by; see ``rules.pxd`` for what all share."""
from steepest.kernels.leveled.arctan cimport arctan2
from steepest.kernels.contract cimport larger, magnitude, real, root, sign
from steepest.kernels.rules cimport rule

RULES = {}


cdef void adabelief(real *restrict p, const real *restrict g, real *restrict m, real *restrict v,
                    real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
                    const double *h) noexcept nogil:
    cdef real b1 = <real>h[0], fresh1 = <real>h[1], b2 = <real>h[2], fresh2 = <real>h[3]
    cdef real step = <real>h[4], unbias = <real>h[5], eps = <real>h[6], mi, ri, vi
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        mi = b1 * m[i] + fresh1 * gi
        ri = gi - mi
        vi = b2 * v[i] + fresh2 * (ri * ri) + eps
        m[i] = mi
        v[i] = vi
        p[i] = k * p[i] - step * mi / (root(vi) * unbias + eps)

RULES["adabelief"] = rule(adabelief, adabelief)


cdef void yogi(real *restrict p, const real *restrict g, real *restrict m, real *restrict v,
               real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
               const double *h) noexcept nogil:
    cdef real b1 = <real>h[0], fresh1 = <real>h[1], fresh2 = <real>h[2]
    cdef real step = <real>h[3], unbias = <real>h[4], eps = <real>h[5], mi, gg, vi
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        gg = gi * gi
        mi = b1 * m[i] + fresh1 * gi
        vi = v[i] - fresh2 * (sign(v[i] - gg) * gg)
        m[i] = mi
        v[i] = vi
        p[i] = k * p[i] - step * mi / (root(vi) * unbias + eps)

RULES["yogi"] = rule(yogi, yogi)


cdef void laprop(real *restrict p, const real *restrict g, real *restrict m, real *restrict v,
                 real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
                 const double *h) noexcept nogil:
    cdef real b1 = <real>h[0], fresh1 = <real>h[1], b2 = <real>h[2], fresh2 = <real>h[3]
    cdef real step = <real>h[4], unbias = <real>h[5], eps = <real>h[6], mi, vi
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        vi = b2 * v[i] + fresh2 * (gi * gi)
        mi = b1 * m[i] + fresh1 * gi / (root(vi) * unbias + eps)
        m[i] = mi
        v[i] = vi
        p[i] = k * p[i] - step * mi

RULES["laprop"] = rule(laprop, laprop)


cdef void adopt(real *restrict p, const real *restrict g, real *restrict m, real *restrict v,
                real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
                const double *h) noexcept nogil:
    cdef real b1 = <real>h[0], fresh1 = <real>h[1], b2 = <real>h[2], fresh2 = <real>h[3]
    cdef real lr = <real>h[4], eps = <real>h[5], limit = <real>h[6], mi, xi
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        xi = gi / larger(root(v[i]), eps)
        xi = limit if xi > limit else xi
        xi = -limit if xi < -limit else xi
        mi = b1 * m[i] + fresh1 * xi
        m[i] = mi
        v[i] = b2 * v[i] + fresh2 * (gi * gi)
        p[i] = k * p[i] - lr * mi

RULES["adopt"] = rule(adopt, adopt)


cdef void adopt_first(real *restrict p, const real *restrict g, real *restrict m, real *restrict v,
                      real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
                      const double *h) noexcept nogil:
    """ADOPT's first step only measures."""
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        v[i] = gi * gi
        p[i] = k * p[i]

RULES["adopt_first"] = rule(adopt_first, adopt_first)


cdef void ademamix(real *restrict p, const real *restrict g, real *restrict m, real *restrict l,
                   real *restrict v, real *restrict d, Py_ssize_t n, double factor, double keep,
                   const double *h) noexcept nogil:
    cdef real b1 = <real>h[0], fresh1 = <real>h[1], b2 = <real>h[2], fresh2 = <real>h[3]
    cdef real b3 = <real>h[4], fresh3 = <real>h[5], step = <real>h[6], slow = <real>h[7]
    cdef real unbias = <real>h[8], eps = <real>h[9], mi, li, vi
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        mi = b1 * m[i] + fresh1 * gi
        li = b3 * l[i] + fresh3 * gi
        vi = b2 * v[i] + fresh2 * (gi * gi)
        m[i] = mi
        l[i] = li
        v[i] = vi
        p[i] = k * p[i] - (step * mi + slow * li) / (root(vi) * unbias + eps)

RULES["ademamix"] = rule(ademamix, ademamix)


cdef void adan(real *restrict p, const real *restrict g, real *restrict m, real *restrict d,
               real *restrict v, real *restrict last, Py_ssize_t n, double factor, double keep,
               const double *h) noexcept nogil:
    cdef real b1 = <real>h[0], fresh1 = <real>h[1], b2 = <real>h[2], fresh2 = <real>h[3]
    cdef real b3 = <real>h[4], fresh3 = <real>h[5], step = <real>h[6], ahead = <real>h[7]
    cdef real unbias = <real>h[8], eps = <real>h[9], later = <real>h[10], weight = <real>h[11]
    cdef real mi, di, vi, change, ui
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        change = gi - last[i]
        change = change if later > <real>0 else <real>0
        ui = gi + weight * change
        mi = b1 * m[i] + fresh1 * gi
        di = b2 * d[i] + fresh2 * change
        vi = b3 * v[i] + fresh3 * (ui * ui)
        m[i] = mi
        d[i] = di
        v[i] = vi
        last[i] = gi
        p[i] = k * p[i] - (step * mi + ahead * di) / (root(vi) * unbias + eps)

RULES["adan"] = rule(adan, adan)


cdef void adamatan2(real *restrict p, const real *restrict g, real *restrict m, real *restrict v,
                    real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
                    const double *h) noexcept nogil:
    cdef real b1 = <real>h[0], fresh1 = <real>h[1], b2 = <real>h[2], fresh2 = <real>h[3]
    cdef real step = <real>h[4], unbias1 = <real>h[5], unbias2 = <real>h[6], mi, vi
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        mi = b1 * m[i] + fresh1 * gi
        vi = b2 * v[i] + fresh2 * (gi * gi)
        m[i] = mi
        v[i] = vi
        p[i] = k * p[i] - step * arctan2(unbias1 * mi, unbias2 * root(vi))

RULES["adamatan2"] = rule(adamatan2, adamatan2)


cdef void sophia(real *restrict p, const real *restrict g, real *restrict m, real *restrict c,
                 real *restrict b, real *restrict d, Py_ssize_t n, double factor, double keep,
                 const double *h) noexcept nogil:
    """The curvature c is as `sophia_hessian` left it."""
    cdef real b1 = <real>h[0], fresh1 = <real>h[1], lr = <real>h[2], rho = <real>h[3]
    cdef real eps = <real>h[4], mi, ui
    cdef real f = <real>factor, k = <real>keep
    cdef Py_ssize_t i
    for i in range(n):
        mi = b1 * m[i] + fresh1 * (f * g[i])
        m[i] = mi
        ui = mi / larger(rho * c[i], eps)
        ui = <real>1 if ui > <real>1 else ui
        ui = <real>-1 if ui < <real>-1 else ui
        p[i] = k * p[i] - lr * ui

RULES["sophia"] = rule(sophia, sophia)


cdef void sophia_hessian(real *restrict p, const real *restrict g, real *restrict a,
                         real *restrict b, real *restrict c, real *restrict d, Py_ssize_t n,
                         double factor, double keep, const double *h) noexcept nogil:
    """Sophia's mean p of estimates g."""
    cdef real b2 = <real>h[0], fresh2 = <real>h[1]
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = b2 * p[i] + fresh2 * g[i]

RULES["sophia_hessian"] = rule(sophia_hessian, sophia_hessian)


cdef void grams(real *restrict p, const real *restrict g, real *restrict m, real *restrict v,
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
        p[i] = k * p[i] - sign(gi) * (step * magnitude(mi) / (root(vi) * unbias + eps))

RULES["grams"] = rule(grams, grams)
