"""What is left to do for a rule that Python prepares: see ``Optimizer.prepare``."""
from steepest.kernels.contract cimport real
from steepest.kernels.rules cimport rule

RULES = {}


cdef void take(real *restrict p, const real *restrict g, real *restrict a, real *restrict point,
               real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
               const double *h) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = point[i]

RULES["take"] = rule(take, take)
