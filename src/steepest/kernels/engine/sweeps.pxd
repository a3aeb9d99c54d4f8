"""One kind of work on the elements of all parameters of a step, in one parallel region."""
from steepest.kernels.engine.structs cimport Step

cdef enum:                             # what a sweep does
    MEASURE                            # measures gradients,
    AGAIN                              # or those marked so;
    UPDATE                             # runs the rules, with what stands before and after them,
    MEASURE_AND_UPDATE                 # and measures gradients on the way
    FACTORS                            # makes the factors of the gradient's units
    PROJECT                            # projects the parameter's units
    LATE                               # runs the late operations
    REDUCE                             # runs a reduction pass
    FINALIZE_AXES                      # finalizes its row and column reductions
    PREPARE                            # makes what rules in Python start from
    HOLD                               # adds up squares of gradients whose norm is to be held
    AGREE                              # counts elements that agree with their gradient

cdef int reserve(Step *s, int threads) except -1
cdef int reserve_partials(Step *s) except -1
cdef void sweep(Step *s, int what, int threads) noexcept nogil
cdef void boundary(const Step *s, int part, int parts, Py_ssize_t *entry,
                   Py_ssize_t *element) noexcept nogil
