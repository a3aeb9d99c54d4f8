"""What is done to units of a parameter."""
from steepest.kernels.contract cimport real
from steepest.kernels.engine.structs cimport Entry, Measures, Program

cdef double representable(double x, int exponent) noexcept nogil
cdef void unit_range(Entry *e, const Program *program, const Measures *measures, int which,
                     Py_ssize_t start, Py_ssize_t stop, real *scratch) noexcept nogil
