"""The sweeps of row and column reductions."""
from steepest.kernels.contract cimport real
from steepest.kernels.engine.structs cimport Entry, Operation, Program, Tiles

cdef int divide(Tiles *b) except -1
cdef void release(Tiles *b) noexcept
cdef void reduce_tiles(Entry *e, const Program *program, int number, const Operation *scale,
                       Py_ssize_t start, Py_ssize_t stop, real *scratch) noexcept nogil
cdef void finalize_range(Entry *e, const Program *program, int number, Py_ssize_t start,
                         Py_ssize_t stop, real *scratch) noexcept nogil
