"""Norms of gradients."""
from steepest.kernels.engine.structs cimport Step

cdef int measure(Step *s, object kernels, double order, int threads) except -1
cdef int measure_first(Step *s, object kernels) except -1
cdef int measured_first(Step *s, object kernels, int threads) except -1
cdef double joint(const Step *s, list members) except? -1
cdef double joint_of(list found, double order) except? -1
cdef tuple norms(const Step *s)
