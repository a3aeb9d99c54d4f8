"""What is left to do for a rule that Python prepares: see ``Optimizer.prepare``."""
from libc.string cimport memcpy

from steepest.kernels.contract cimport real
from steepest.kernels.rules cimport rule

RULES = {}


cdef void take(real *restrict p, const real *restrict g, real *restrict a, real *restrict point,
               real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
               const double *h) noexcept nogil:
    memcpy(p, point, n * sizeof(real))

RULES["take"] = rule(take, take)
