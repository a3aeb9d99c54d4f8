"""What only copies: the step of a rule that Python prepares (see ``Optimizer.prepare``), and the
way back of parameters that were moved."""
from libc.string cimport memcpy

from steepest.kernels.contract cimport real
from steepest.kernels.rules cimport rule
from steepest.kernels.streams cimport stream_copy

RULES = {}


cdef void take(real *restrict p, const real *restrict g, real *restrict a, real *restrict point,
               real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
               const double *h) noexcept nogil:
    memcpy(p, point, n * sizeof(real))

RULES["take"] = rule(take, take)


cdef void assign(real *restrict p, const real *restrict g, real *restrict a, real *restrict b,
                 real *restrict c, real *restrict d, Py_ssize_t n, double factor, double keep,
                 const double *h) noexcept nogil:
    cdef double past = h[0]  # whether past the caches
    stream_copy(p, g, n * sizeof(real), past != 0.0)

RULES["assign"] = rule(assign, assign)
