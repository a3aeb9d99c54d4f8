"""Reductions of rules, the coefficients that follow from them, and the update after them."""
from steepest.kernels.engine.structs cimport Step

cdef int reserve_sums(Step *s) except -1
cdef void reduce_and_update(Step *s, int update, int threads) noexcept nogil
cdef void hold_norms(Step *s, int threads) noexcept nogil
cdef void scale_agreeing(Step *s, int threads) noexcept nogil
