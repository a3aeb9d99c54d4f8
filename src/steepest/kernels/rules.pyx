"""Every update rule, as one loop over one block. Compiled once per instruction-set level.

Only plain loops may live here: no Python, no threads, no dtypes, no clipping, no schedules. The
reference of the same name in ``steepest.reference`` fixes the order of the operations; the
optimizer of the same name computes ``h``. Letters are the papers': parameter p, gradient g,
moments m and v. Every rule takes the gradient times `factor` and the parameter times `keep`, which
is how clipping and decoupled decay come without a pass of their own; both are 1 otherwise, and
1 * x is x to the last bit. Families stand in the project's order: gradient descent, adaptive, Adam,
sign.
"""
from cpython.pycapsule cimport PyCapsule_New

from steepest.kernels.contract cimport larger, magnitude, real, root, rule_double, rule_float, sign

RULES = {}


cdef object entry(rule_float of_float, rule_double of_double):
    return (PyCapsule_New(<void *>of_float, "steepest.rule", NULL),
            PyCapsule_New(<void *>of_double, "steepest.rule", NULL))


# Gradient descent

cdef void sgd(real *restrict p, const real *restrict g, real *restrict a, real *restrict b,
              real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
              const double *h) noexcept nogil:
    cdef real lr = <real>h[0]
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        p[i] = k * p[i] - lr * gi

RULES["sgd"] = entry(sgd, sgd)


cdef void momentum(real *restrict p, const real *restrict g, real *restrict v, real *restrict b,
                   real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
                   const double *h) noexcept nogil:
    cdef real lr = <real>h[0], mu = <real>h[1], fresh = <real>h[2], vi
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        vi = mu * v[i] + fresh * gi
        v[i] = vi
        p[i] = k * p[i] - lr * vi

RULES["momentum"] = entry(momentum, momentum)


cdef void nesterov(real *restrict p, const real *restrict g, real *restrict v, real *restrict b,
                   real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
                   const double *h) noexcept nogil:
    cdef real lr = <real>h[0], mu = <real>h[1], fresh = <real>h[2], vi
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        vi = mu * v[i] + fresh * gi
        v[i] = vi
        p[i] = k * p[i] - lr * (gi + mu * vi)

RULES["nesterov"] = entry(nesterov, nesterov)


# Adaptive

cdef void adagrad(real *restrict p, const real *restrict g, real *restrict s, real *restrict b,
                  real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
                  const double *h) noexcept nogil:
    cdef real lr = <real>h[0], eps = <real>h[1], si
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        si = s[i] + gi * gi
        s[i] = si
        p[i] = k * p[i] - lr * gi / (root(si) + eps)

RULES["adagrad"] = entry(adagrad, adagrad)


cdef void adagrad_inside(real *restrict p, const real *restrict g, real *restrict s,
                         real *restrict b, real *restrict c, real *restrict d, Py_ssize_t n,
                         double factor, double keep, const double *h) noexcept nogil:
    cdef real lr = <real>h[0], eps = <real>h[1], si
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        si = s[i] + gi * gi
        s[i] = si
        p[i] = k * p[i] - lr * gi / root(si + eps)

RULES["adagrad_inside"] = entry(adagrad_inside, adagrad_inside)


cdef void rmsprop(real *restrict p, const real *restrict g, real *restrict v, real *restrict b,
                  real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
                  const double *h) noexcept nogil:
    cdef real lr = <real>h[0], alpha = <real>h[1], fresh = <real>h[2], eps = <real>h[3], vi
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        vi = alpha * v[i] + fresh * (gi * gi)
        v[i] = vi
        p[i] = k * p[i] - lr * gi / (root(vi) + eps)

RULES["rmsprop"] = entry(rmsprop, rmsprop)


cdef void rmsprop_centered(real *restrict p, const real *restrict g, real *restrict v,
                           real *restrict m, real *restrict c, real *restrict d, Py_ssize_t n,
                           double factor, double keep, const double *h) noexcept nogil:
    cdef real lr = <real>h[0], alpha = <real>h[1], fresh = <real>h[2], eps = <real>h[3], vi, mi
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        vi = alpha * v[i] + fresh * (gi * gi)
        mi = alpha * m[i] + fresh * gi
        v[i] = vi
        m[i] = mi
        # The variance v - m^2 is not negative; its rounded value may be.
        p[i] = k * p[i] - lr * gi / (root(larger(vi - mi * mi, <real>0)) + eps)

RULES["rmsprop_centered"] = entry(rmsprop_centered, rmsprop_centered)


cdef void rmsprop_momentum(real *restrict p, const real *restrict g, real *restrict v,
                           real *restrict u, real *restrict c, real *restrict d, Py_ssize_t n,
                           double factor, double keep, const double *h) noexcept nogil:
    cdef real lr = <real>h[0], alpha = <real>h[1], fresh = <real>h[2], eps = <real>h[3]
    cdef real mu = <real>h[4], vi, ui
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        vi = alpha * v[i] + fresh * (gi * gi)
        ui = mu * u[i] + gi / (root(vi) + eps)
        v[i] = vi
        u[i] = ui
        p[i] = k * p[i] - lr * ui

RULES["rmsprop_momentum"] = entry(rmsprop_momentum, rmsprop_momentum)


cdef void rmsprop_centered_momentum(real *restrict p, const real *restrict g, real *restrict v,
                                    real *restrict m, real *restrict u, real *restrict d,
                                    Py_ssize_t n, double factor, double keep,
                                    const double *h) noexcept nogil:
    cdef real lr = <real>h[0], alpha = <real>h[1], fresh = <real>h[2], eps = <real>h[3]
    cdef real mu = <real>h[4], vi, mi, ui
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        vi = alpha * v[i] + fresh * (gi * gi)
        mi = alpha * m[i] + fresh * gi
        ui = mu * u[i] + gi / (root(larger(vi - mi * mi, <real>0)) + eps)
        v[i] = vi
        m[i] = mi
        u[i] = ui
        p[i] = k * p[i] - lr * ui

RULES["rmsprop_centered_momentum"] = entry(rmsprop_centered_momentum, rmsprop_centered_momentum)


cdef void adadelta(real *restrict p, const real *restrict g, real *restrict v, real *restrict u,
                   real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
                   const double *h) noexcept nogil:
    cdef real lr = <real>h[0], rho = <real>h[1], fresh = <real>h[2], eps = <real>h[3], vi, di
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        vi = rho * v[i] + fresh * (gi * gi)
        di = root((u[i] + eps) / (vi + eps)) * gi
        v[i] = vi
        u[i] = rho * u[i] + fresh * (di * di)
        p[i] = k * p[i] - lr * di

RULES["adadelta"] = entry(adadelta, adadelta)


# Adam

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

RULES["adam"] = entry(adam, adam)


cdef void amsgrad(real *restrict p, const real *restrict g, real *restrict m, real *restrict v,
                  real *restrict w, real *restrict d, Py_ssize_t n, double factor, double keep,
                  const double *h) noexcept nogil:
    cdef real b1 = <real>h[0], fresh1 = <real>h[1], b2 = <real>h[2], fresh2 = <real>h[3]
    cdef real step = <real>h[4], unbias = <real>h[5], eps = <real>h[6], mi, vi, wi
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        mi = b1 * m[i] + fresh1 * gi
        vi = b2 * v[i] + fresh2 * (gi * gi)
        wi = larger(w[i], vi)
        m[i] = mi
        v[i] = vi
        w[i] = wi
        p[i] = k * p[i] - step * mi / (root(wi) * unbias + eps)

RULES["amsgrad"] = entry(amsgrad, amsgrad)


cdef void adamax(real *restrict p, const real *restrict g, real *restrict m, real *restrict u,
                 real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
                 const double *h) noexcept nogil:
    cdef real b1 = <real>h[0], fresh1 = <real>h[1], b2 = <real>h[2], step = <real>h[3]
    cdef real eps = <real>h[4], mi, ui
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        mi = b1 * m[i] + fresh1 * gi
        ui = larger(b2 * u[i], magnitude(gi) + eps)
        m[i] = mi
        u[i] = ui
        p[i] = k * p[i] - step * mi / ui

RULES["adamax"] = entry(adamax, adamax)


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

RULES["nadam"] = entry(nadam, nadam)


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

RULES["radam"] = entry(radam, radam)


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

RULES["radam_early"] = entry(radam_early, radam_early)


# Sign

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

RULES["lion"] = entry(lion, lion)
