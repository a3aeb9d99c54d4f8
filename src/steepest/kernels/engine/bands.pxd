"""The sweeps of rules that go by rows and columns of matrices."""
from steepest.kernels.contract cimport real
from steepest.kernels.engine.visits cimport Bands, Entry, Program, Stage

cdef int divide(Bands *b) except -1
cdef void release(Bands *b) noexcept
cdef void tally_range(Entry *e, const Program *program, int number, const Stage *scale,
                      Py_ssize_t start, Py_ssize_t stop, real *scratch) noexcept nogil
cdef void table_range(Entry *e, const Program *program, int number, Py_ssize_t start,
                      Py_ssize_t stop, real *scratch) noexcept nogil
