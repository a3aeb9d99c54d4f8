"""What a sweep knows of a parameter and of what to do with it."""
from libc.stdint cimport int64_t

from steepest.kernels.contract cimport (
    BLOCK, COEFFICIENTS, SCALARS, STAGES, SUMS, SURVEYS, Operand, Table, real,
)
from steepest.kernels.sources cimport Source

cdef enum:
    P = 0                              # operand numbers: the parameter,
    G = 1                              # its gradient,
    FIRST = 2                          # the rule's states and then the stages' arrays
    OPERANDS = 15
    SPARE = OPERANDS - 1               # no array: a row from before the rule to after it
    READING = OPERANDS                 # the gradient again, in C order,
    SOURCE = OPERANDS + 1              # and as Python sees it
    HOME = SOURCE + 1                  # the parameter's strides
    ROWS = OPERANDS + 2                # scratch rows of a thread; the last two for new gradients
    ROW = BLOCK * 8 + 192              # bytes; rows 4096 bytes apart would alias in L1
    LINE = 64                          # bytes of a cache line and of the widest vector
    SCRATCH = ROWS * ROW               # bytes of a thread; no less than a chunk of doubles
    STAGE_COEFFICIENTS = 4
    UNIT_STAGES = 8                    # what a program may do to units


cdef struct Units:
    # A parameter and its gradient cut into units (such as the rows of a matrix), one after the
    # other in loop order.
    Py_ssize_t count
    Py_ssize_t length
    Operand p
    Operand g
    char *factors                      # one number per unit for the gradient, or NULL for none
    Py_ssize_t *axes_p                 # owned
    Py_ssize_t *axes_g


cdef enum:                             # what is done to a unit; up to MAKERS, to its gradient
    ADAPTIVE_CLIP, CENTRALIZE, MAKERS, GROUP_LASSO, MAX_NORM, UNIT_NORM, SIMPLEX


cdef enum:                             # what is measured of a unit
    SQUARES, LARGEST, SUM, SUM_ABOVE, COUNT_ABOVE, MAXIMUM, UNIT_MEASURES


cdef struct UnitStage:
    int kind
    double h[2]


cdef struct Bands:
    # A parameter as matrices, cut into items that are one thread's each: bands of rows of one
    # matrix, or several small matrices; and long rows into panels of columns. See bands.pyx.
    Table table
    Py_ssize_t bands                   # of one matrix
    Py_ssize_t height                  # rows of a band
    Py_ssize_t panels
    Py_ssize_t group                   # matrices of an item
    Py_ssize_t items
    char *row                          # the factors of rows and columns, in the parameter's type
    char *column
    void *spread                       # what makes them into rows of a block


cdef struct Entry:
    # What every step looks at stands first and together: there may be thousands of entries.
    Py_ssize_t size
    int64_t *count                     # steps taken
    char *home                         # where the parameter's data lay when it was bound,
    const Py_ssize_t *steps            # and its strides; its shape is the gradient's
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
    double measured                    # of the gradient times `inverse`, mostly 2^-exponent
    int exponent
    double largest                     # for the orders whose measure is of the gradient over this
    double inverse                     # what the gradient is multiplied with to be measured
    bint again                         # whether the present sweep is to measure this entry
    bint lent                          # whether the gradient is read in place, so must be aligned
    int cuts
    Units *units                       # owned: one for each unit stage
    double h[COEFFICIENTS]             # the rule's, where surveys settle them
    double sums[SUMS]
    double *own                        # the scalar states, or NULL
    double held                        # what a stage that holds the gradient's norm multiplies by
    double agreed                      # what updates that agree with the gradient are scaled by
    Bands *bands                       # owned, or NULL for a rule that goes by elements
    Py_ssize_t *axes[HOME + 1]         # owned: what the shapes and strides above point into


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
    int late
    int units
    int surveys
    int scalars                        # numbers kept of the parameter, or by its domain
    int domain                         # whose sums are taken together and whose numbers these are
    bint together                      # whether sums are those of the whole domain
    bint prepared                      # whether the rule takes what Python has made of `stage`
    int holds                          # the stage that holds the norm of what is before it, or -1
    double most                        # that norm
    int agrees                         # the stage that takes what agrees with the gradient, or -1
    bint moves                         # whether a stage before the rule may change p or its array
    void *survey_float[SURVEYS]
    void *survey_double[SURVEYS]
    void *settle[SURVEYS]              # NULL for a tally, which has these:
    void *table_float[SURVEYS]
    void *table_double[SURVEYS]
    void *fold_float[SURVEYS]
    void *fold_double[SURVEYS]
    bint largest[SURVEYS]              # whether they find the largest instead of adding up,
    bint blind[SURVEYS]                # and whether they take no factors
    double kept[SCALARS]               # the domain's numbers before the step
    double h[COEFFICIENTS]
    Stage stage[STAGES]                # those before the rule, after it, and after the units'
    UnitStage unit[UNIT_STAGES]        # those that make factors of the gradient stand first


cdef struct Measures:
    # The measures that units need, for float and double, and the stages that follow from them.
    void *of[UNIT_MEASURES][2]
    Stage multiply
    Stage divide
    Stage lower


cdef double representable(double x, int exponent) noexcept nogil
cdef real *decoded(Operand *x, Py_ssize_t start, Py_ssize_t n, real *row) noexcept nogil
cdef void update_range(Entry *e, const Program *program, const Stage *scale, bint late,
                       Py_ssize_t start, Py_ssize_t stop, real *scratch) noexcept nogil
cdef void stage_range(Entry *e, const Program *program, const Stage *scale, Py_ssize_t start,
                      Py_ssize_t stop, real *scratch) noexcept nogil
cdef double held_norm(Entry *e, const Program *program, const Measures *measures,
                      const Stage *scale, Py_ssize_t start, Py_ssize_t n,
                      real *scratch) noexcept nogil
cdef double agreeing(Entry *e, const Program *program, const Stage *scale, Py_ssize_t start,
                     Py_ssize_t n, real *scratch) noexcept nogil
cdef void survey_range(Entry *e, const Program *program, int number, const Stage *scale,
                       double *partial, Py_ssize_t start, Py_ssize_t stop,
                       real *scratch) noexcept nogil
cdef void tallied(Entry *e, const Program *program, int number, const Stage *scale, real *terms,
                  Py_ssize_t start, Py_ssize_t n, real *scratch) noexcept nogil
cdef void unit_range(Entry *e, const Program *program, const Measures *measures, int stage,
                     Py_ssize_t start, Py_ssize_t stop, real *scratch) noexcept nogil
