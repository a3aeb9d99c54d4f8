"""One block of one parameter at a time: decode, stages, rule, stages, encode. No Python, no
threads.

Rows that are not lent lie in the worker's scratch, one after the other; the last two take turns as
the gradient that a stage makes.
"""
from steepest.kernels.contract cimport (
    BLOCK, STATES, Operand, decode_double, decode_float, encode_double, encode_float, real,
    rule_double, rule_float, stage_double, stage_float,
)
from steepest.kernels.visits cimport FIRST, G, LINE, OPERANDS, P, ROW, Entry, Program, Stage


cdef real *decoded(Operand *x, Py_ssize_t start, Py_ssize_t n, real *row) noexcept nogil:
    """The elements start to start + n of x: lent, or decoded into the row."""
    if x.decode == NULL:
        return <real *>x.data + start
    if real is float:
        (<decode_float>x.decode)(x, start, n, row)
    else:
        (<decode_double>x.decode)(x, start, n, row)
    return row


cdef inline const real *staged(const Stage *s, const double *h, real **row, const real *g,
                               real **spare, Py_ssize_t n) noexcept nogil:
    """Runs one stage on a block; returns the gradient that goes on from it."""
    cdef real *out = spare[0] if s.makes_gradient else NULL
    cdef real *own = row[s.operand] if s.operand else NULL
    if real is float:
        (<stage_float>s.of_float)(row[P], g, out, own, n, h)
    else:
        (<stage_double>s.of_double)(row[P], g, out, own, n, h)
    if out == NULL:
        return g
    spare[0], spare[1] = spare[1], spare[0]
    return out


cdef void visit(Entry *e, const Program *program, const Stage *scale, Py_ssize_t start,
                Py_ssize_t n, real *scratch) noexcept nogil:
    """One block of one parameter: decode, stages, rule, stages, encode."""
    cdef Py_ssize_t width = ROW // sizeof(real)
    cdef real *row[OPERANDS]
    cdef real *spare[2]
    cdef real *state[STATES]
    cdef const real *g
    cdef double factor = e.scale
    cdef int k
    for k in range(e.operands):
        row[k] = decoded(&e.operand[k], start, n, scratch + k * width)
    for k in range(STATES):
        state[k] = row[FIRST + k] if k < e.states else NULL
    spare[0] = scratch + OPERANDS * width
    spare[1] = scratch + (OPERANDS + 1) * width

    g = row[G]
    if e.scale != 1.0 and program.before:  # stages want the gradient as it will be
        g = staged(scale, &e.scale, row, g, spare, n)
        factor = 1.0
    for k in range(program.before):
        g = staged(&program.stage[k], program.stage[k].h, row, g, spare, n)
    if real is float:
        (<rule_float>program.rule_float)(row[P], g, state[0], state[1], state[2], state[3],
                                         n, factor, program.keep, program.h)
    else:
        (<rule_double>program.rule_double)(row[P], g, state[0], state[1], state[2], state[3],
                                           n, factor, program.keep, program.h)
    for k in range(program.before, program.before + program.after):
        staged(&program.stage[k], program.stage[k].h, row, g, spare, n)

    for k in range(e.operands):
        if k != G and e.operand[k].encode != NULL:
            if real is float:
                (<encode_float>e.operand[k].encode)(&e.operand[k], start, n, row[k])
            else:
                (<encode_double>e.operand[k].encode)(&e.operand[k], start, n, row[k])


cdef void update_range(Entry *e, const Program *program, const Stage *scale, Py_ssize_t start,
                       Py_ssize_t stop, real *scratch) noexcept nogil:
    """Visits the elements start to stop; after the first visit, p is at the start of a line."""
    cdef Py_ssize_t skew = <Py_ssize_t>(<size_t>e.operand[P].data % LINE // sizeof(real)), n
    while start < stop:
        n = min(stop - start, BLOCK - (start + skew) % BLOCK)
        visit(e, program, scale, start, n, scratch)
        start += n
