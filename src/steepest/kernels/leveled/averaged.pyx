"""Rules that average the points they pass; see ``rules.pxd`` for what all rules share."""
from libc.math cimport pow

from steepest.kernels.contract cimport real, root
from steepest.kernels.rules cimport finalizer, rule

RULES = {}


cdef void asgd(real *restrict p, const real *restrict g, real *restrict ax, real *restrict b,
               real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
               const double *h) noexcept nogil:
    cdef double mu = h[2]
    cdef real eta = <real>h[0], shrink = <real>h[1], share = <real>mu, pi
    cdef real f = <real>factor, k = <real>keep, gi
    cdef bint restart = mu == 1.0
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        pi = shrink * (k * p[i]) - eta * gi
        ax[i] = pi if restart else ax[i] + share * (pi - ax[i])
        p[i] = pi

RULES["asgd"] = rule(asgd, asgd)


cdef void weighed(const double *sums, double *own, double *h) noexcept nogil:
    """The share of this step in the sum of weights t^r (largest lr)^power, and how far back."""
    cdef double lr = h[0], weight = h[1], power = h[2], beta = h[3], share, back
    own[0] = lr if lr > own[0] else own[0]
    weight = weight * pow(own[0], power)
    own[1] += weight
    share = weight / own[1] if own[1] != 0 else 0
    back = 1.0 - beta * (1.0 - share)
    h[1] = share
    h[2] = back


# The parameter is y, the point of the gradients. What is kept of it says how much decays: decay
# belongs to the step, which moves y and z alike.

cdef void schedulefreesgd(real *restrict p, const real *restrict g, real *restrict z,
                          real *restrict b, real *restrict c, real *restrict d, Py_ssize_t n,
                          double factor, double keep, const double *h) noexcept nogil:
    cdef real lr = <real>h[0], share = <real>h[1], back = <real>h[2], yi, zi, si
    cdef real f = <real>factor, gone = <real>(1.0 - keep), gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        yi = p[i]
        zi = z[i]
        si = lr * gi + gone * yi
        p[i] = (yi + share * (zi - yi)) - back * si
        z[i] = zi - si

RULES["schedulefreesgd"] = rule(schedulefreesgd, schedulefreesgd, (finalizer(weighed),))


cdef void schedulefreeadamw(real *restrict p, const real *restrict g, real *restrict z,
                            real *restrict v, real *restrict c, real *restrict d, Py_ssize_t n,
                            double factor, double keep, const double *h) noexcept nogil:
    cdef real lr = <real>h[0], share = <real>h[1], back = <real>h[2], b2 = <real>h[4]
    cdef real fresh = <real>h[5], unbias = <real>h[6], eps = <real>h[7], yi, zi, vi, si
    cdef real f = <real>factor, gone = <real>(1.0 - keep), gi
    cdef Py_ssize_t i
    for i in range(n):
        gi = f * g[i]
        yi = p[i]
        zi = z[i]
        vi = b2 * v[i] + fresh * (gi * gi)
        v[i] = vi
        si = lr * (gi / (root(vi) * unbias + eps)) + gone * yi
        p[i] = (yi + share * (zi - yi)) - back * si
        z[i] = zi - si

RULES["schedulefreeadamw"] = rule(schedulefreeadamw, schedulefreeadamw, (finalizer(weighed),))
