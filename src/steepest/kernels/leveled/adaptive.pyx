"""Rules with a size of step for each element; see ``rules.pxd`` for what all rules share."""
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from steepest.kernels.contract cimport larger, magnitude, real, root, sign
from steepest.kernels.rules cimport rule

RULES = {}


cdef void adagrad(real *restrict p, const real *restrict g, real *restrict v, real *restrict b,
                  real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
                  const double *h) noexcept nogil:
    # eps is one of the two, as the convention has it; the other is 0.
    cdef real lr = <real>h[0], inside = <real>h[1], outside = <real>h[2], vi
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        vi = v[i] + gi * gi
        v[i] = vi
        p[i] = k * p[i] - lr * gi / (root(vi + inside) + outside)

RULES["adagrad"] = rule(adagrad, adagrad)


cdef void adagrad_or_still(real *restrict p, const real *restrict g, real *restrict v,
                           real *restrict b, real *restrict c, real *restrict d, Py_ssize_t n,
                           double factor, double keep, const double *h) noexcept nogil:
    """Adagrad that leaves an element alone until there is a sum to divide by."""
    cdef real lr = <real>h[0], inside = <real>h[1], outside = <real>h[2], vi, step
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        vi = v[i] + gi * gi
        v[i] = vi
        step = lr * gi / (root(vi + inside) + outside)
        p[i] = k * p[i] - (<real>0 if vi == <real>0 else step)

RULES["adagrad_or_still"] = rule(adagrad_or_still, adagrad_or_still)


cdef void rmsprop(real *restrict p, const real *restrict g, real *restrict v, real *restrict b,
                  real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
                  const double *h) noexcept nogil:
    cdef real lr = <real>h[0], alpha = <real>h[1], fresh = <real>h[2]
    cdef real inside = <real>h[3], outside = <real>h[4], vi
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        vi = alpha * v[i] + fresh * (gi * gi)
        v[i] = vi
        p[i] = k * p[i] - lr * gi / (root(vi + inside) + outside)

RULES["rmsprop"] = rule(rmsprop, rmsprop)


cdef void rmsprop_centered(real *restrict p, const real *restrict g, real *restrict v,
                           real *restrict m, real *restrict c, real *restrict d, Py_ssize_t n,
                           double factor, double keep, const double *h) noexcept nogil:
    cdef real lr = <real>h[0], alpha = <real>h[1], fresh = <real>h[2]
    cdef real inside = <real>h[3], outside = <real>h[4], vi, mi
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        vi = alpha * v[i] + fresh * (gi * gi)
        mi = alpha * m[i] + fresh * gi
        v[i] = vi
        m[i] = mi
        # The variance v - m^2 is not negative; its rounded value may be.
        p[i] = k * p[i] - lr * gi / (root(larger(vi - mi * mi, <real>0) + inside) + outside)

RULES["rmsprop_centered"] = rule(rmsprop_centered, rmsprop_centered)


cdef void rmsprop_momentum(real *restrict p, const real *restrict g, real *restrict v,
                           real *restrict u, real *restrict c, real *restrict d, Py_ssize_t n,
                           double factor, double keep, const double *h) noexcept nogil:
    cdef real lr = <real>h[0], alpha = <real>h[1], fresh = <real>h[2]
    cdef real inside = <real>h[3], outside = <real>h[4], mu = <real>h[5], within = <real>h[6]
    cdef real vi, ui
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        vi = alpha * v[i] + fresh * (gi * gi)
        ui = mu * u[i] + within * gi / (root(vi + inside) + outside)
        v[i] = vi
        u[i] = ui
        p[i] = k * p[i] - lr * ui

RULES["rmsprop_momentum"] = rule(rmsprop_momentum, rmsprop_momentum)


cdef void rmsprop_centered_momentum(real *restrict p, const real *restrict g, real *restrict v,
                                    real *restrict m, real *restrict u, real *restrict d,
                                    Py_ssize_t n, double factor, double keep,
                                    const double *h) noexcept nogil:
    cdef real lr = <real>h[0], alpha = <real>h[1], fresh = <real>h[2]
    cdef real inside = <real>h[3], outside = <real>h[4], mu = <real>h[5], within = <real>h[6]
    cdef real vi, mi, ui
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        vi = alpha * v[i] + fresh * (gi * gi)
        mi = alpha * m[i] + fresh * gi
        ui = mu * u[i] + within * gi / (root(larger(vi - mi * mi, <real>0) + inside) + outside)
        v[i] = vi
        m[i] = mi
        u[i] = ui
        p[i] = k * p[i] - lr * ui

RULES["rmsprop_centered_momentum"] = rule(rmsprop_centered_momentum, rmsprop_centered_momentum)


cdef void adadelta(real *restrict p, const real *restrict g, real *restrict v, real *restrict vd,
                   real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
                   const double *h) noexcept nogil:
    cdef real lr = <real>h[0], rho = <real>h[1], fresh = <real>h[2], eps = <real>h[3], vi, di
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        vi = rho * v[i] + fresh * (gi * gi)
        di = root((vd[i] + eps) / (vi + eps)) * gi
        v[i] = vi
        vd[i] = rho * vd[i] + fresh * (di * di)
        p[i] = k * p[i] - lr * di

RULES["adadelta"] = rule(adadelta, adadelta)


cdef void rprop(real *restrict p, const real *restrict g, real *restrict prev, real *restrict size,
                real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
                const double *h) noexcept nogil:
    cdef real minus = <real>h[0], plus = <real>h[1], least = <real>h[2], most = <real>h[3]
    cdef real first = <real>h[4]
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
        si = size[i]
        si = (first if si == <real>0 else si) * ratio
        si = least if si < least else (most if si > most else si)
        size[i] = si
        prev[i] = gi
        p[i] = k * p[i] - sign(gi) * si

RULES["rprop"] = rule(rprop, rprop)


cdef inline real nearer_root(real y, real eighth) noexcept nogil:
    """Halley's step to the cube root of x, given x / 8: no cube of it overflows."""
    cdef real half = y * <real>0.5
    cdef real cube = half * half * half
    return y - y * ((cube - eighth) / (cube + cube + eighth))


cdef inline real cube_root(real x) noexcept nogil:
    """The cube root of x >= 0, within one unit in the last place but near the subnormals; that of
    infinity and NaN is x. The same bits everywhere, unlike the C library's cbrt.

    A third of the bits of x, by shifts, is a root within 4 %; each of Halley's steps cubes the
    error.
    """
    cdef uint32_t narrow = 0
    cdef uint64_t wide = 0
    cdef real y, eighth = x * <real>0.125
    if real is float:
        memcpy(&narrow, &x, sizeof(x))
        narrow = (narrow >> 2) + (narrow >> 4)
        narrow += narrow >> 4
        narrow += narrow >> 8
        narrow += <uint32_t>0x2A5137A0
        memcpy(&y, &narrow, sizeof(y))
    else:
        memcpy(&wide, &x, sizeof(x))
        wide = (wide >> 2) + (wide >> 4)
        wide += wide >> 4
        wide += wide >> 8
        wide += wide >> 16
        wide += wide >> 32
        wide += <uint64_t>0x2A9F7893782DA1CE
        memcpy(&y, &wide, sizeof(y))
        y = nearer_root(y, eighth)
    y = nearer_root(nearer_root(y, eighth), eighth)
    return y if x > x * <real>0.5 else x


cdef void madgrad(real *restrict p, const real *restrict g, real *restrict v, real *restrict s,
                  real *restrict start, real *restrict d, Py_ssize_t n, double factor, double keep,
                  const double *h) noexcept nogil:
    cdef real rate = <real>h[0], fresh = <real>h[1], eps = <real>h[2], pi, vi, si, zi
    cdef real f = <real>factor, gone = <real>(1.0 - keep), gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        pi = p[i]
        vi = v[i] + rate * (gi * gi)
        si = s[i] + rate * gi
        v[i] = vi
        s[i] = si
        zi = start[i] - si / (cube_root(vi) + eps)
        p[i] = (pi + fresh * (zi - pi)) - gone * pi

RULES["madgrad"] = rule(madgrad, madgrad)


cdef void ftrl(real *restrict p, const real *restrict g, real *restrict v, real *restrict z,
               real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
               const double *h) noexcept nogil:
    cdef real inverse = <real>h[0], beta = <real>h[1], l1 = <real>h[2], l2 = <real>h[3]
    cdef real vi, zi, size, rest, divisor
    cdef real f = <real>factor, k = <real>keep, gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        vi = v[i] + gi * gi
        size = root(vi)
        zi = (z[i] + gi) - (size - root(v[i])) * inverse * (k * p[i])
        v[i] = vi
        z[i] = zi
        rest = larger(magnitude(zi) - l1, <real>0)
        # Without any gradient so far the divisor may be 0 like the rest: 0 it is.
        divisor = <real>1 if rest == <real>0 else (beta + size) * inverse + l2
        p[i] = -(sign(zi) * (rest / divisor))

RULES["ftrl"] = rule(ftrl, ftrl)


cdef void ftrl_still(real *restrict p, const real *restrict g, real *restrict v, real *restrict z,
                     real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
                     const double *h) noexcept nogil:
    cdef real k = <real>keep
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = k * p[i]

RULES["ftrl_still"] = rule(ftrl_still, ftrl_still)
