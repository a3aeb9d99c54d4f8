"""A parameter's arrays, bound to its entry in a plan."""
from steepest.kernels.contract cimport Operand
from steepest.kernels.engine.structs cimport Entry

cdef int bind(Entry *e, object kernels, tuple arrays, object gradient, object layout) except -1
cdef int bind_copy(Entry *e, object kernels, object array, object walk) except -1
cdef int bind_matrices(Entry *e, object kernels, tuple matrices) except -1
cdef void release(Entry *e) noexcept
cdef void set_noise(Entry *e, Py_ssize_t number) noexcept
cdef void renew_noise(Entry *e, Py_ssize_t number, Operand *p) noexcept nogil
