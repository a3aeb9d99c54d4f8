"""Rules that divide each element by a size of its own; see ``rules.pxd`` for what all rules share."""
from steepest.kernels.contract cimport larger, real, root, sign
from steepest.kernels.rules cimport rule

RULES = {}


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

RULES["adagrad"] = rule(adagrad, adagrad)


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

RULES["adagrad_inside"] = rule(adagrad_inside, adagrad_inside)


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

RULES["rmsprop"] = rule(rmsprop, rmsprop)


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

RULES["rmsprop_centered"] = rule(rmsprop_centered, rmsprop_centered)


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

RULES["rmsprop_momentum"] = rule(rmsprop_momentum, rmsprop_momentum)


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

RULES["rmsprop_centered_momentum"] = rule(rmsprop_centered_momentum, rmsprop_centered_momentum)


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

RULES["adadelta"] = rule(adadelta, adadelta)


cdef void rprop(real *restrict p, const real *restrict g, real *restrict prev,
                real *restrict size, real *restrict c, real *restrict d, Py_ssize_t n,
                double factor, double keep, const double *h) noexcept nogil:
    cdef real minus = <real>h[0], plus = <real>h[1], least = <real>h[2], most = <real>h[3]
    cdef real same, ratio, si
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        same = gi * prev[i]
        # A product that is NaN makes the step size NaN.
        ratio = plus if same > <real>0 else (<real>1 if same == <real>0 else same)
        ratio = minus if same < <real>0 else ratio
        gi = <real>0 if same < <real>0 else gi
        si = size[i] * ratio
        si = least if si < least else (most if si > most else si)
        size[i] = si
        prev[i] = gi
        p[i] = k * p[i] - sign(gi) * si

RULES["rprop"] = rule(rprop, rprop)
