"""What a step does with its parameters, from what Python says of it."""
from steepest.kernels.engine.structs cimport Measures, Operation, Program, Step

cdef int set_operation(Operation *s, tuple functions, int operand, tuple h) except -1
cdef int set_measures(Measures *measures, object kernels) except -1
cdef int set_numbers(Program *program, tuple h, tuple kept) except -1
cdef int set_structure(Program *program, object kernels, str rule, list before, list after,
                       list units, list late) except -1
cdef void note(Step *s, const Program *program) noexcept
