"""What the engine knows of a parameter, of what to do with it, and of a step as a whole."""
from libc.stdint cimport int64_t, uint64_t

from steepest.kernels.contract cimport (
    BLOCK, CHUNK, COEFFICIENTS, OPERATIONS, REDUCTIONS, SCALARS, SUMS, Matrices, Operand,
)
from steepest.kernels.sources cimport ElementType, Source

cdef enum:
    P = 0                              # operand numbers: the parameter,
    G = 1                              # its gradient,
    FIRST = 2                          # the rule's states and then the operations' arrays
    OPERANDS = 15
    SPARE = OPERANDS - 1               # no array: a row from before the rule to after it
    READING = OPERANDS                 # the gradient again, in C order,
    SOURCE = OPERANDS + 1              # and as Python sees it
    HOME = SOURCE + 1                  # the parameter's strides
    ROWS = OPERANDS + 2                # scratch rows of a thread; the last two for new gradients
    ROW = BLOCK * 8 + 192              # bytes; rows 4096 bytes apart would alias in L1
    LINE = 64                          # bytes of a cache line and of the widest vector
    SCRATCH = ROWS * ROW               # bytes of a thread; no less than a chunk of doubles
    OPERATION_COEFFICIENTS = 4
    UNIT_OPERATIONS = 8                # what a program may do to units
    FORMAT_SETS = 8                    # as stored_loops.SETS has
    LARGE = 1 << 22                    # elements of a step whose arrays caches do not hold


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


cdef struct UnitOperation:
    int kind
    double h[2]


cdef struct Tiles:
    # A parameter as matrices, cut into tiles that are one thread's each: bands of rows of one
    # matrix, or several small matrices; and long rows into panels of columns. See tiles.pyx.
    Matrices table
    Py_ssize_t bands                   # of one matrix
    Py_ssize_t height                  # rows of a band
    Py_ssize_t panels
    Py_ssize_t group                   # matrices of a tile
    Py_ssize_t count
    char *row                          # the factors of rows and columns, in the computing type
    char *column
    void *spread                       # what makes them into rows of a block


cdef struct Entry:
    # What every step looks at stands first and together: there may be thousands of entries.
    Py_ssize_t size
    int64_t *count                     # steps taken
    char *home                         # where the parameter's data lay when it was bound,
    const ElementType *type            # how its elements are stored,
    const Py_ssize_t *steps            # and its strides; its shape is the gradient's
    Source gradient
    Py_ssize_t offset                  # of the gradient's first element in loop order, in bytes
    Py_ssize_t width                   # bytes of an element of all its arrays together
    int group
    int program
    int operands
    int states
    bint in_double                     # whether its blocks are computed in double
    bint active
    double scale                       # of the gradient
    Operand operand[OPERANDS]
    Operand reading                    # the gradient in C order, for the measures
    Operand copy                       # where the parameter goes too; `encode` NULL for nowhere
    void *stream_copy                  # what writes it past the caches, or NULL
    double measured                    # of the gradient times `inverse`, mostly 2^-exponent
    int exponent
    double largest                     # for the orders whose measure is of the gradient over this
    double inverse                     # what the gradient is multiplied with to be measured
    bint again                         # whether the present sweep is to measure this entry
    bint borrowed                      # whether the gradient is read in place, so must be aligned
    int formats                        # the set of formats of its arrays that has loops, or -1
    bint grouped                       # whether a state's elements share scales,
    int squares                        # and the states that are stored as squares, one bit each
    bint random                        # whether an array is rounded stochastically,
    uint64_t seed                      # by this seed,
    int passes                         # and how often the parameter was stored again at this step
    int cuts
    Units *units                       # owned: one for each unit operation
    double h[COEFFICIENTS]             # the rule's, where reductions make them
    double sums[SUMS]
    double *scalars                    # the scalar states, or NULL
    double held                        # by what the gradient is multiplied to hold its norm
    double agreed                      # by what updates that agree with the gradient are scaled
    Tiles *tiles                       # owned, or NULL without row and column reductions
    Py_ssize_t *axes[HOME + 1]         # owned: what the shapes and strides above point into
    Py_ssize_t *copy_axes              # owned


cdef struct Operation:
    void *of_float
    void *of_double
    bint makes_gradient
    int operand
    double h[OPERATION_COEFFICIENTS]


cdef struct Program:
    void *rule_float
    void *rule_double
    void *stored[FORMAT_SETS]          # the same over arrays as they are stored, or NULL;
    int squares                        # the states that they take for squares, one bit each
    double decay                       # the decay factor of the parameter
    int prologue                       # how many operations stand before the rule,
    int epilogue                       # after it,
    int late                           # and after those on units
    int units
    bint streams                       # whether copies are better kept out of the caches
    bint projects                      # whether some of these change the parameter
    int reductions
    int scalars                        # numbers kept of the parameter, or by its domain
    int domain                         # whose sums are taken together and whose numbers these are
    bint together                      # whether sums are those of the whole domain
    bint prepared                      # whether the rule takes what Python has made beforehand
    int holds                          # the operation that holds the norm of its gradient, or -1
    double most                        # that norm
    int agrees                         # the one that takes what agrees with the gradient, or -1
    bint moves                         # whether the prologue may change p or an array of its own
    void *reduction_float[REDUCTIONS]     # NULL where there is only something to finalize
    void *reduction_double[REDUCTIONS]
    void *finalize[REDUCTIONS]            # NULL for row and column reductions, which have these:
    void *axes_float[REDUCTIONS]
    void *axes_double[REDUCTIONS]
    void *combine_float[REDUCTIONS]
    void *combine_double[REDUCTIONS]
    bint largest[REDUCTIONS]              # whether they find the largest instead of adding up,
    bint blind[REDUCTIONS]                # and whether they take no factors
    double kept[SCALARS]               # the domain's numbers before the step
    double h[COEFFICIENTS]
    Operation operation[OPERATIONS]        # the prologue, the epilogue, the late ones
    UnitOperation unit[UNIT_OPERATIONS]  # those that make factors of the gradient stand first


cdef struct Measures:
    # The measures that units need, for float and double, and the operations that follow from them.
    void *of[UNIT_MEASURES][2]
    Operation multiply
    Operation divide
    Operation lower


cdef struct Domain:
    # What a rule keeps or sums up of all parameters of a group, or of all its groups.
    bint taken                         # whether a parameter of it is in this step
    double sums[SUMS]
    double before[SCALARS]             # the numbers kept, as a reduction finds them
    double now[SCALARS]


cdef struct Step:
    # What the sweeps of a step share.
    Entry *entries                     # owned, as all pointers here
    Program *programs
    Domain *domains
    Py_ssize_t number                  # of the first entry among the parameters
    Py_ssize_t count                   # entries
    Py_ssize_t capacity                # entries and domains there is room for
    Py_ssize_t *active                 # the entries with a gradient,
    Py_ssize_t *cost                   # the running cost before each,
    Py_ssize_t *first                  # and its first partial result
    Py_ssize_t actives
    Py_ssize_t low                     # the places in `active` that a sweep goes over
    Py_ssize_t high
    Operation scale
    Measures measures
    void *measure_float                # what the present sweep measures,
    void *measure_double
    double order                       # for the norm of this order
    double *partial                    # one number for each chunk
    double *sums                       # what reductions add up, SUMS numbers for each chunk
    Py_ssize_t partials                # chunks
    Py_ssize_t partial_capacity
    Py_ssize_t sums_capacity
    int unit                           # the unit operation of the present sweep
    int reduction                      # the reduction pass of the present sweep
    # What the programs of this step ask for:
    int reductions                     # as many reduction passes at most
    int projections                    # as many unit operations, if one of them projects
    bint making_factors                # factors of units of the gradient
    bint holding                       # norms of the gradient, to be held
    bint agreeing                      # shares of the update that agree with the gradient
    bint preparing                     # what rules in Python start from
    char *scratch                      # SCRATCH bytes for each thread
    char *scratch_memory
    int scratch_threads


cdef inline Py_ssize_t chunks_of(const Entry *e) noexcept nogil:
    return (e.size + CHUNK - 1) // CHUNK
