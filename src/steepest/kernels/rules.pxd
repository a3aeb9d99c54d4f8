"""What the files of rules (``sgd``, ``adaptive``, ``adam``, ``sign``, ``layerwise``, ...) share.

A rule is one loop over one block. Only plain loops may live there: no Python, no threads, no
dtypes, no clipping, no schedules. The reference of the same name in ``steepest.reference`` fixes
the order of the operations; the optimizer of the same name computes ``h``. Letters are the papers':
parameter p, gradient g, moments m and v. Every rule takes the gradient times `factor` and the
parameter times `keep`, which is how clipping and decoupled decay come without a pass of their own;
both are 1 otherwise, and 1 * x is x to the last bit. Compiled once per instruction-set level.

A rule that goes by sums over a whole parameter, or over all, has a survey for them: a loop like
its own that leaves p alone and comes with a function that settles the coefficients of what follows.
Element i of a block adds its terms, in double, to lane i mod LANES, and ``folded`` adds up lanes;
``reference.measures.total`` reproduces that order. The loop is a function over a row of LANES
elements (fewer for the last row), so that lanes stay in registers, and sums cost no loop of their
own while memory is waited for.
"""
from cpython.pycapsule cimport PyCapsule_New

from steepest.kernels.contract cimport (
    LANES, RULE_DOUBLE, RULE_FLOAT, SETTLE, SURVEY_DOUBLE, SURVEY_FLOAT, TABLE_DOUBLE,
    TABLE_FLOAT, real,
    rule_double, rule_float, settle_function, survey_double, survey_float, table_double,
    table_float, tally_double, tally_float,
)


cdef inline object rule(rule_float of_float, rule_double of_double, tuple surveys=()):
    """An entry of RULES: the rule for each type, as the engine takes it, and its surveys."""
    return (PyCapsule_New(<void *>of_float, RULE_FLOAT, NULL),
            PyCapsule_New(<void *>of_double, RULE_DOUBLE, NULL), surveys)


cdef inline tuple survey(survey_float of_float, survey_double of_double, settle_function settle):
    """A survey of a rule: the loop for each type, and what its sums come to."""
    return (PyCapsule_New(<void *>of_float, SURVEY_FLOAT, NULL),
            PyCapsule_New(<void *>of_double, SURVEY_DOUBLE, NULL),
            PyCapsule_New(<void *>settle, SETTLE, NULL))


cdef inline tuple settlement(settle_function settle):
    """In place of a survey: coefficients that hang on what the rule keeps, and on no sum."""
    return (None, None, PyCapsule_New(<void *>settle, SETTLE, NULL))


cdef inline tuple tally(str fold, tally_float of_float, tally_double of_double,
                        table_float settle_float, table_double settle_double,
                        bint blind=False):
    """A survey by rows and columns: the loop for each type, what becomes of its terms ("squares",
    "largest"), and what follows from that; `blind` if the loop does not look at factors."""
    return (PyCapsule_New(<void *>of_float, SURVEY_FLOAT, NULL),
            PyCapsule_New(<void *>of_double, SURVEY_DOUBLE, NULL), (fold, blind),
            PyCapsule_New(<void *>settle_float, TABLE_FLOAT, NULL),
            PyCapsule_New(<void *>settle_double, TABLE_DOUBLE, NULL))


cdef inline tuple tabled(table_float settle_float, table_double settle_double):
    """In place of a tally: factors that hang on states of rows and columns alone."""
    return (None, None, None, PyCapsule_New(<void *>settle_float, TABLE_FLOAT, NULL),
            PyCapsule_New(<void *>settle_double, TABLE_DOUBLE, NULL))


cdef inline void empty(double *lane) noexcept nogil:
    """Makes LANES lanes 0."""
    cdef Py_ssize_t j
    for j in range(LANES):
        lane[j] = 0


cdef inline double folded(double *lane) noexcept nogil:
    """The sum of LANES lanes, in halves."""
    cdef Py_ssize_t j, width = LANES
    while width > 1:
        width = width // 2
        for j in range(width):
            lane[j] += lane[j + width]
    return lane[0]


cdef inline double squares(const real *x, Py_ssize_t n) noexcept nogil:
    """The sum of the squares of a row of a block."""
    cdef double lane[LANES]
    cdef double term
    cdef Py_ssize_t i, j, whole = n // LANES
    empty(lane)
    for i in range(whole):
        for j in range(LANES):
            term = <double>x[i * LANES + j]
            lane[j] += term * term
    for j in range(n - whole * LANES):
        term = <double>x[whole * LANES + j]
        lane[j] += term * term
    return folded(lane)
