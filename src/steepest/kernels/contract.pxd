"""What rules, operations, codecs and the engine agree on.

The words, here and in the engine:

* A *block* is at most BLOCK consecutive elements of one parameter, few enough for all its rows to
  stay in L1 together; a *chunk* is CHUNK elements, the grain of measures and of shares of work; a
  *unit* is what some operations take whole, such as a row of a matrix; a *tile* is what one thread
  reduces of a matrix.
* A *row*, of a block, is one of its arrays as float or double. It is *borrowed* where the stored
  array is that already, contiguous and aligned; else a *codec* decodes it, and encodes it after.
* *Operations* stand around a rule: those before it are its *prologue*, those after its *epilogue*.
* The *decay factor* ``keep`` is what a rule multiplies its parameter by.
* A *reduction* is a pass over a parameter, or over all, before the update. Its *partial* results,
  one for each chunk, are *combined* in order and *finalized*: they become coefficients. A *row and
  column reduction* has one number for each row and column of matrices instead.
* A *measure* is a reduction of a gradient or a unit that no rule asks for: norms, for clipping.

No two rows passed to one function overlap, hence ``restrict``. Scalars arrive in ``h``, in double,
computed once per step; a function casts each of them to ``real`` once, before its loop.

The only arithmetic allowed here is + - * / sqrt, comparison and conversion: IEEE 754 fixes every
bit of those. (The one exception is the measure of norms other than 1, 2 and infinity.) Every
literal is cast (``<real>1``): Cython makes an untyped one a C double.

Packages of others compile against this file. Whatever makes code compiled against an older one
wrong raises STEEPEST_CONTRACT, which stands in the names of a rule's capsules: the engine takes
those of its own contract only. These names, and others at the end of this file, are older than the
words above: a survey is a reduction, to settle is to finalize.
"""
from libc.math cimport sqrt, sqrtf
from libc.stdint cimport uint32_t

cdef extern from *:
    """
    #ifndef STEEPEST_CONTRACT
    #define STEEPEST_CONTRACT 1
    #define STEEPEST_TEXT(x) #x
    #define STEEPEST_NAME(kind, contract) kind "." STEEPEST_TEXT(contract)
    #define STEEPEST_RULE_FLOAT STEEPEST_NAME("steepest.rule.float", STEEPEST_CONTRACT)
    #define STEEPEST_RULE_DOUBLE STEEPEST_NAME("steepest.rule.double", STEEPEST_CONTRACT)
    #define STEEPEST_SURVEY_FLOAT STEEPEST_NAME("steepest.survey.float", STEEPEST_CONTRACT)
    #define STEEPEST_SURVEY_DOUBLE STEEPEST_NAME("steepest.survey.double", STEEPEST_CONTRACT)
    #define STEEPEST_SETTLE STEEPEST_NAME("steepest.settle", STEEPEST_CONTRACT)
    #define STEEPEST_TABLE_FLOAT STEEPEST_NAME("steepest.table.float", STEEPEST_CONTRACT)
    #define STEEPEST_TABLE_DOUBLE STEEPEST_NAME("steepest.table.double", STEEPEST_CONTRACT)
    #endif
    """
    const char *RULE_FLOAT "STEEPEST_RULE_FLOAT"      # names of the capsules of a rule
    const char *RULE_DOUBLE "STEEPEST_RULE_DOUBLE"
    const char *SURVEY_FLOAT "STEEPEST_SURVEY_FLOAT"  # and of its reductions
    const char *SURVEY_DOUBLE "STEEPEST_SURVEY_DOUBLE"
    const char *SETTLE "STEEPEST_SETTLE"
    const char *TABLE_FLOAT "STEEPEST_TABLE_FLOAT"
    const char *TABLE_DOUBLE "STEEPEST_TABLE_DOUBLE"

ctypedef fused real:
    float
    double

cdef enum:
    BLOCK = 512        # elements of one block; more would push rows out of L1 between operations
    CHUNK = 4096       # elements of one measure, and the grain in which threads share the work
    LANES = 32         # independent accumulators of a reduction, folded in a fixed tree
    STATES = 4         # state arrays of one rule
    OPERATIONS = 32    # operations around a rule
    COEFFICIENTS = 16  # scalars of one rule or operation
    REDUCTIONS = 3     # of one rule, before its update
    SUMS = 4           # numbers that a reduction adds up
    SCALARS = 6        # numbers that a rule keeps of a parameter, or of all
    MAXDIMS = 64       # NumPy's own limit

# A rule: parameter p, gradient g, up to four states, n elements, coefficients. It uses factor * g
# in place of g, and keep * p in place of p. A state whose name begins with v holds squares, which
# are never negative: the class says so too, and formats of 8 bits store their roots.
ctypedef void (*rule_float)(float *restrict p, const float *restrict g, float *restrict a,
                            float *restrict b, float *restrict c, float *restrict d, Py_ssize_t n,
                            double factor, double keep, const double *h) noexcept nogil
ctypedef void (*rule_double)(double *restrict p, const double *restrict g, double *restrict a,
                             double *restrict b, double *restrict c, double *restrict d,
                             Py_ssize_t n, double factor, double keep,
                             const double *h) noexcept nogil

# A reduction: a loop of a rule that depends on sums over a parameter or over all of them. It may
# change states, never p, and adds what it finds in the block to `sums`.
ctypedef void (*reduction_float)(const float *restrict p, const float *restrict g,
                                 float *restrict a, float *restrict b, float *restrict c,
                                 float *restrict d, Py_ssize_t n, double factor, double keep,
                                 const double *h, double *sums) noexcept nogil
ctypedef void (*reduction_double)(const double *restrict p, const double *restrict g,
                                  double *restrict a, double *restrict b, double *restrict c,
                                  double *restrict d, Py_ssize_t n, double factor, double keep,
                                  const double *h, double *sums) noexcept nogil

# After it: the sums of a parameter (or of all) turn into coefficients h of what follows, and into
# the numbers `own` that the rule keeps from step to step.
ctypedef void (*finalize_function)(const double *sums, double *own, double *h) noexcept nogil

# A row and column reduction, of matrices. The loop writes one term for each element of the block,
# whose squares are added up, or whose largest is found, in each row and each column.
ctypedef void (*axis_reduction_float)(const float *restrict p, const float *restrict g,
                                      float *restrict a, float *restrict b, float *restrict c,
                                      float *restrict d, Py_ssize_t n, double factor, double keep,
                                      const double *h, float *restrict terms) noexcept nogil
ctypedef void (*axis_reduction_double)(const double *restrict p, const double *restrict g,
                                       double *restrict a, double *restrict b, double *restrict c,
                                       double *restrict d, Py_ssize_t n, double factor, double keep,
                                       const double *h, double *restrict terms) noexcept nogil

cdef struct Matrices:
    # A parameter as matrices, one after the other in C order, and what is known of their rows and
    # columns. `row` and `column` are what a reduction has found; a matrix's columns begin `step`
    # numbers behind the last one's.
    Py_ssize_t matrices
    Py_ssize_t rows                # of one matrix
    Py_ssize_t columns
    Py_ssize_t step
    double *row
    double *column                 # NULL where only rows are reduced
    int states
    void **state                   # the states by rows and columns, in C order
    Py_ssize_t *length             # their sizes

# After it: what was found turns into new states of the matrices first to last, and into the factors
# of rows and columns that the rule and its reductions get spread over the block, as a and b.
ctypedef void (*axis_finalize_float)(Matrices *x, float *row, float *column, Py_ssize_t first,
                                     Py_ssize_t last, const double *h) noexcept nogil
ctypedef void (*axis_finalize_double)(Matrices *x, double *row, double *column, Py_ssize_t first,
                                      Py_ssize_t last, const double *h) noexcept nogil

# What its terms come to: `rows` rows of n terms, the first of them the `place`-th of its
# matrix, are added to numbers of rows, and of columns if there are any.
ctypedef void (*combine_float)(const float *restrict terms, Py_ssize_t rows, Py_ssize_t n,
                               Py_ssize_t place, Py_ssize_t height, Py_ssize_t step, double *row,
                               double *column) noexcept nogil
ctypedef void (*combine_double)(const double *restrict terms, Py_ssize_t rows, Py_ssize_t n,
                                Py_ssize_t place, Py_ssize_t height, Py_ssize_t step, double *row,
                                double *column) noexcept nogil

# Factors for a block that begins at column j of a matrix's `place`-th row: each element's own. No
# columns: those of its row are borrowed.
ctypedef void (*spread_float)(const float *row, const float *column, Py_ssize_t j, Py_ssize_t n,
                              Py_ssize_t columns, Py_ssize_t place, Py_ssize_t height,
                              float *restrict a, float *restrict b) noexcept nogil
ctypedef void (*spread_double)(const double *row, const double *column, Py_ssize_t j, Py_ssize_t n,
                               Py_ssize_t columns, Py_ssize_t place, Py_ssize_t height,
                               double *restrict a, double *restrict b) noexcept nogil

# An operation either writes `out`, the gradient that goes on to the next one or to the rule, or it
# changes p, or the operation's own array x. It never writes g, which may be the caller's.
ctypedef void (*operation_float)(float *restrict p, const float *restrict g, float *restrict out,
                                 float *restrict x, Py_ssize_t n, const double *h) noexcept nogil
ctypedef void (*operation_double)(double *restrict p, const double *restrict g,
                                  double *restrict out, double *restrict x, Py_ssize_t n,
                                  const double *h) noexcept nogil

# A measure: one double out of a chunk, of its elements times `scale`; `order` is that of the norm.
ctypedef double (*measure_float)(const float *restrict g, Py_ssize_t n, double scale,
                                 double order) noexcept nogil
ctypedef double (*measure_double)(const double *restrict g, Py_ssize_t n, double scale,
                                  double order) noexcept nogil

cdef struct Operand:
    # One stored array, walked along `ndim` loop axes. `decode` NULL: its rows are borrowed.
    char *data
    int ndim
    const Py_ssize_t *shape
    const Py_ssize_t *strides      # in bytes
    void *decode
    void *encode
    char *beside                   # another array, in C order, that the codec stores beside it
    uint32_t noise                 # where this step's random numbers of the array begin

# A codec: n elements of a stored array, from the start-th in loop order, to a row and back.
ctypedef void (*decode_float)(const Operand *x, Py_ssize_t start, Py_ssize_t n,
                              float *row) noexcept nogil
ctypedef void (*decode_double)(const Operand *x, Py_ssize_t start, Py_ssize_t n,
                               double *row) noexcept nogil
ctypedef void (*encode_float)(Operand *x, Py_ssize_t start, Py_ssize_t n,
                              const float *row) noexcept nogil
ctypedef void (*encode_double)(Operand *x, Py_ssize_t start, Py_ssize_t n,
                               const double *row) noexcept nogil


# The names of these before, for packages that were written then.
ctypedef Matrices Table
ctypedef reduction_float survey_float
ctypedef reduction_double survey_double
ctypedef finalize_function settle_function
ctypedef axis_reduction_float tally_float
ctypedef axis_reduction_double tally_double
ctypedef axis_finalize_float table_float
ctypedef axis_finalize_double table_double
ctypedef combine_float fold_float
ctypedef combine_double fold_double
ctypedef operation_float stage_float
ctypedef operation_double stage_double

cdef enum:
    SURVEYS = REDUCTIONS
    STAGES = OPERATIONS


cdef inline real root(real x) noexcept nogil:
    if real is float:
        return sqrtf(x)
    else:
        return sqrt(x)


cdef inline real magnitude(real x) noexcept nogil:
    """|x|; |-0| is 0."""
    return <real>0 - x if x <= <real>0 else x


cdef inline real larger(real x, real y) noexcept nogil:
    """The larger of two; NaN if either is NaN; y where they compare equal."""
    cdef real most = x if x > y else y  # two selections: a loop with an `or` does not vectorise
    return x if x != x else most


cdef inline real sign(real x) noexcept nogil:
    """1, 0 or -1; NaN for NaN."""
    cdef real unit = <real>1 if x > <real>0 else <real>-1
    return unit if x < <real>0 or x > <real>0 else (<real>0 if x == <real>0 else x)
