"""What is done to one block of one parameter."""
from steepest.kernels.contract cimport real
from steepest.kernels.engine.structs cimport Entry, Measures, Operation, Program

cdef void update_range(Entry *e, const Program *program, const Operation *scale, bint late,
                       Py_ssize_t start, Py_ssize_t stop, real *scratch) noexcept nogil
cdef void prepare_range(Entry *e, const Program *program, const Operation *scale, Py_ssize_t start,
                        Py_ssize_t stop, real *scratch) noexcept nogil
cdef double held_norm(Entry *e, const Program *program, const Measures *measures,
                      const Operation *scale, Py_ssize_t start, Py_ssize_t n,
                      real *scratch) noexcept nogil
cdef double agreeing(Entry *e, const Program *program, const Operation *scale, Py_ssize_t start,
                     Py_ssize_t n, real *scratch) noexcept nogil
cdef void reduce_range(Entry *e, const Program *program, int number, const Operation *scale,
                       double *partial, Py_ssize_t start, Py_ssize_t stop,
                       real *scratch) noexcept nogil
cdef void terms_of(Entry *e, const Program *program, int number, const Operation *scale,
                   real *terms, Py_ssize_t start, Py_ssize_t n, real *scratch) noexcept nogil
