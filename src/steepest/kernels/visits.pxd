"""What a sweep knows of a parameter and of what to do with it."""
from libc.stdint cimport int64_t

from steepest.kernels.contract cimport BLOCK, COEFFICIENTS, STAGES, Operand, real
from steepest.kernels.sources cimport Source

cdef enum:
    P = 0                              # operand numbers: the parameter,
    G = 1                              # its gradient,
    FIRST = 2                          # the rule's states and then the stages' arrays
    OPERANDS = 8
    READING = OPERANDS                 # the gradient again, in C order,
    SOURCE = OPERANDS + 1              # and as Python sees it
    ROWS = OPERANDS + 2                # scratch rows of a thread; the last two for new gradients
    ROW = BLOCK * 8 + 192              # bytes; rows 4096 bytes apart would alias in L1
    LINE = 64                          # bytes of a cache line and of the widest vector
    SCRATCH = ROWS * ROW               # bytes of a thread; no less than a chunk of doubles
    STAGE_COEFFICIENTS = 4


cdef struct Entry:
    # What every step looks at stands first and together: there may be thousands of entries.
    Py_ssize_t size
    int64_t *count                     # steps taken
    char *home                         # where the parameter's data lay when it was bound
    Source gradient
    Py_ssize_t offset                  # of the gradient's first element in loop order, in bytes
    int group
    int program
    int operands
    int states
    bint is_double
    bint active
    double scale                       # of the gradient
    Operand operand[OPERANDS]
    Operand reading                    # the gradient in C order, for the measures
    double measured
    Py_ssize_t *axes[SOURCE + 1]       # owned: what the shapes and strides above point into


cdef struct Stage:
    void *of_float
    void *of_double
    bint makes_gradient
    int operand
    double h[STAGE_COEFFICIENTS]


cdef struct Program:
    void *rule_float
    void *rule_double
    double keep                        # of the parameter
    int before
    int after
    double h[COEFFICIENTS]
    Stage stage[STAGES]                # those before the rule, then those after it


cdef real *decoded(Operand *x, Py_ssize_t start, Py_ssize_t n, real *row) noexcept nogil
cdef void update_range(Entry *e, const Program *program, const Stage *scale, Py_ssize_t start,
                       Py_ssize_t stop, real *scratch) noexcept nogil
