"""What a sweep knows of a parameter and of what to do with it."""
from libc.stdint cimport int64_t

from steepest.kernels.contract cimport BLOCK, COEFFICIENTS, STAGES, Operand, real
from steepest.kernels.sources cimport Source

cdef enum:
    P = 0                              # operand numbers: the parameter,
    G = 1                              # its gradient,
    FIRST = 2                          # the rule's states and then the stages' arrays
    OPERANDS = 8
    ROWS = OPERANDS + 2                # scratch rows of a thread; the last two for new gradients
    ROW = BLOCK * 8 + 192              # bytes; rows 4096 bytes apart would alias in L1
    LINE = 64                          # bytes of a cache line and of the widest vector
    SCRATCH = ROWS * ROW               # bytes of a thread; no less than a chunk of doubles
    STAGE_COEFFICIENTS = 4


cdef struct Entry:
    Py_ssize_t size
    bint is_double
    bint active
    int operands
    int states
    int group
    int program
    double scale                       # of the gradient
    double measured
    int64_t *count                     # steps taken
    Source source[OPERANDS]
    Operand operand[OPERANDS]
    Py_ssize_t offset[OPERANDS]        # from an array's first element to its first in loop order
    Operand reading                    # the gradient in C order, for the measures
    Py_ssize_t *axes[OPERANDS + 1]     # owned: what the shapes and strides above point into


cdef struct Stage:
    void *of_float
    void *of_double
    bint makes_gradient
    int operand
    double h[STAGE_COEFFICIENTS]


cdef struct Program:
    void *rule_float
    void *rule_double
    int before
    int after
    double h[COEFFICIENTS]
    Stage stage[STAGES]                # those before the rule, then those after it


cdef real *decoded(Operand *x, Py_ssize_t start, Py_ssize_t n, real *row) noexcept nogil
cdef void update_range(Entry *e, const Program *program, const Stage *scale, Py_ssize_t start,
                       Py_ssize_t stop, real *scratch) noexcept nogil
