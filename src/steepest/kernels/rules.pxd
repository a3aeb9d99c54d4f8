"""What the files of rules (``sgd``, ``adaptive``, ``adam``, ``sign``, ``layerwise``, ...) share.

A rule is one loop over one block. Only plain loops may live there: no Python, no threads, no
dtypes, no clipping, no schedules. The reference of the same name in ``steepest.reference`` fixes
the order of the operations; the optimizer of the same name computes ``h``. Letters are the papers':
parameter p, gradient g, moments m and v. Every rule takes the gradient times `factor` and the
parameter times `keep`, which is how clipping and decoupled decay come without a pass of their own;
both are 1 otherwise, and 1 * x is x to the last bit. Compiled once per instruction-set level.

A rule that depends on sums over a whole parameter, or over all, has a *reduction* for them: a loop
like its own that leaves p alone and comes with a function that finalizes them: it makes the
coefficients of what follows. The words are those of ``contract.pxd``.
Element i of a block adds its terms, in double, to lane i mod LANES, and ``folded`` adds up lanes;
``reference.measures.total`` reproduces that order. The loop is a function over a row of LANES
elements (fewer for the last row), so that lanes stay in registers, and sums cost no loop of their
own while memory is waited for.
"""
from cpython.pycapsule cimport PyCapsule_New

from steepest.kernels.contract cimport (
    LANES, RULE_DOUBLE, RULE_FLOAT, SETTLE, SURVEY_DOUBLE, SURVEY_FLOAT, TABLE_DOUBLE, TABLE_FLOAT,
    axis_finalize_double, axis_finalize_float, axis_reduction_double, axis_reduction_float,
    finalize_function, real, reduction_double, reduction_float, rule_double, rule_float,
)


cdef inline object rule(rule_float of_float, rule_double of_double, tuple reductions=()):
    """An entry of RULES: the rule for each type, as the engine takes it, and its reductions."""
    return (PyCapsule_New(<void *>of_float, RULE_FLOAT, NULL),
            PyCapsule_New(<void *>of_double, RULE_DOUBLE, NULL), reductions)


cdef inline tuple reduction(reduction_float of_float, reduction_double of_double,
                            finalize_function finalize):
    """A reduction of a rule: the loop for each type, and what its sums come to."""
    return (PyCapsule_New(<void *>of_float, SURVEY_FLOAT, NULL),
            PyCapsule_New(<void *>of_double, SURVEY_DOUBLE, NULL),
            PyCapsule_New(<void *>finalize, SETTLE, NULL))


cdef inline tuple finalizer(finalize_function finalize):
    """In place of a reduction: coefficients that depend on what the rule keeps, and on no sum."""
    return (None, None, PyCapsule_New(<void *>finalize, SETTLE, NULL))


cdef inline tuple axis_reduction(str combine, axis_reduction_float of_float,
                                 axis_reduction_double of_double,
                                 axis_finalize_float finalize_float,
                                 axis_finalize_double finalize_double, bint blind=False):
    """A row and column reduction: the loop for each type, what becomes of its terms ("squares",
    "largest"), and what follows from that; `blind` if the loop does not look at factors."""
    return (PyCapsule_New(<void *>of_float, SURVEY_FLOAT, NULL),
            PyCapsule_New(<void *>of_double, SURVEY_DOUBLE, NULL), (combine, blind),
            PyCapsule_New(<void *>finalize_float, TABLE_FLOAT, NULL),
            PyCapsule_New(<void *>finalize_double, TABLE_DOUBLE, NULL))


cdef inline tuple axis_finalizer(axis_finalize_float finalize_float,
                                 axis_finalize_double finalize_double):
    """In place of one: factors that depend on states of rows and columns alone."""
    return (None, None, None, PyCapsule_New(<void *>finalize_float, TABLE_FLOAT, NULL),
            PyCapsule_New(<void *>finalize_double, TABLE_DOUBLE, NULL))


# The names of these before, for packages that were written then.

cdef inline tuple survey(reduction_float of_float, reduction_double of_double,
                         finalize_function settle):
    return reduction(of_float, of_double, settle)


cdef inline tuple settlement(finalize_function settle):
    return finalizer(settle)


cdef inline tuple tally(str fold, axis_reduction_float of_float, axis_reduction_double of_double,
                        axis_finalize_float settle_float, axis_finalize_double settle_double,
                        bint blind=False):
    return axis_reduction(fold, of_float, of_double, settle_float, settle_double, blind)


cdef inline tuple tabled(axis_finalize_float settle_float, axis_finalize_double settle_double):
    return axis_finalizer(settle_float, settle_double)


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
