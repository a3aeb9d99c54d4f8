"""One block of one parameter at a time: decode, prologue, rule, epilogue, encode. No Python, no
threads.

Rows that are not borrowed lie in the worker's scratch, one after the other; the last two take turns
as the gradient that an operation makes.
"""
from libc.stdint cimport uint32_t
from libc.string cimport memcpy

from steepest.kernels.contract cimport (
    BLOCK, CHUNK, STATES, SUMS, Matrices, Operand, axis_reduction_double, axis_reduction_float,
    encode_float, measure_double, measure_float, operation_double, operation_float, real,
    reduction_double, reduction_float, rule_double, rule_float, spread_double, spread_float,
)
from steepest.kernels.engine.operands cimport decoded, encoded
from steepest.kernels.stored cimport ARRAYS, GROUP, PER_ELEMENT, Stored, stored_loop
from steepest.kernels.engine.structs cimport (
    FIRST, G, LINE, OPERANDS, OPERATION_COEFFICIENTS, P, ROW, SPARE, SQUARES, Entry, Measures,
    Operation, Program, Tiles,
)


cdef enum:
    COPIED = 4 * BLOCK     # elements of a parameter that needs no decoding, before they are copied


cdef inline const real *applied(const Operation *s, const double *h, real **row, const real *g,
                                real **spare, Py_ssize_t n) noexcept nogil:
    """Applies one operation to a block; returns the gradient that goes on from it."""
    cdef real *out = spare[0] if s.makes_gradient else NULL
    cdef real *own = row[s.operand] if s.operand else NULL
    if real is float:
        (<operation_float>s.of_float)(row[P], g, out, own, n, h)
    else:
        (<operation_double>s.of_double)(row[P], g, out, own, n, h)
    if out == NULL:
        return g
    spare[0], spare[1] = spare[1], spare[0]
    return out


cdef inline int spread(Tiles *b, real **row, Py_ssize_t start, Py_ssize_t n,
                       real *scratch) noexcept nogil:
    """The factors of rows, and of columns if there are any, for each element of a block; returns
    how many rows these are."""
    cdef Matrices *x = &b.table
    cdef Py_ssize_t i = start // x.columns, j = start - i * x.columns
    cdef const real *factor = <real *>b.row + i
    cdef real *column = NULL
    row[0] = scratch
    if b.column != NULL:
        column = <real *>b.column + i // x.rows * x.columns
        row[1] = scratch + ROW // sizeof(real)
        if j + n <= x.columns:
            row[1], column = column + j, NULL
    if real is float:
        (<spread_float>b.spread)(factor, column, j, n, x.columns, i % x.rows, x.rows, row[0],
                                 row[1])
    else:
        (<spread_double>b.spread)(factor, column, j, n, x.columns, i % x.rows, x.rows, row[0],
                                  row[1])
    return 1 if b.column == NULL else 2


cdef inline void fetched(Entry *e, real **row, real **state, real **spare, Py_ssize_t start,
                         Py_ssize_t n, bint blind, real *scratch) noexcept nogil:
    """The rows of a block: those of all operands, of the rule's states, and for new gradients."""
    cdef Py_ssize_t width = ROW // sizeof(real)
    cdef int k, first = FIRST
    if e.tiles != NULL:
        if blind:
            row[FIRST] = row[FIRST + 1] = NULL
            first += 1 if e.tiles.column == NULL else 2
        else:
            first += spread(e.tiles, &row[FIRST], start, n, scratch + FIRST * width)
    for k in range(FIRST):
        row[k] = decoded(&e.operand[k], start, n, scratch + k * width)
    for k in range(first, e.operands):
        row[k] = decoded(&e.operand[k], start, n, scratch + k * width)
    for k in range(STATES):
        state[k] = row[FIRST + k] if k < e.states else NULL
    row[SPARE] = scratch + SPARE * width
    spare[0] = scratch + OPERANDS * width
    spare[1] = scratch + (OPERANDS + 1) * width


cdef inline const real *prologue(Entry *e, const Program *program, const Operation *scale, int last,
                                 real **row, real **spare, Py_ssize_t n,
                                 double *factor) noexcept nogil:
    """The gradient as the first `last` operations make it; the factor that is left to the rule."""
    cdef const real *g = row[G]
    cdef int k
    factor[0] = e.scale
    if e.scale != 1.0 and last:  # operations want the gradient as it will be
        g = applied(scale, &e.scale, row, g, spare, n)
        factor[0] = 1.0
    for k in range(last):
        g = applied(&program.operation[k],
                    &e.held if k == program.holds else &program.operation[k].h[0], row, g, spare,
                    n)
    return g


cdef inline void ruled(Entry *e, const Program *program, real **row, const real *g, real **state,
                       Py_ssize_t n, double factor) noexcept nogil:
    """The rule itself, on one block."""
    cdef const double *h = &e.h[0] if program.reductions else &program.h[0]
    if real is float:
        (<rule_float>program.rule_float)(row[P], g, state[0], state[1], state[2], state[3],
                                         n, factor, program.decay, h)
    else:
        (<rule_double>program.rule_double)(row[P], g, state[0], state[1], state[2], state[3],
                                           n, factor, program.decay, h)


cdef inline void copied_out(Entry *e, const Program *program, Py_ssize_t start, Py_ssize_t n,
                            real *scratch) noexcept nogil:
    """Writes the parameter, as it is stored by now, to its copy."""
    cdef const real *row = decoded(&e.operand[P], start, n, scratch)
    if real is float:
        if program.streams and e.stream_copy != NULL:
            (<encode_float>e.stream_copy)(&e.copy, start, n, row)
            return
    encoded(&e.copy, start, n, row)


cdef void update_block(Entry *e, const Program *program, const Operation *scale, bint late,
                       Py_ssize_t start, Py_ssize_t n, real *scratch) noexcept nogil:
    """One block of one parameter: the operations and the rule, or the late operations alone."""
    cdef real *row[OPERANDS]
    cdef real *spare[2]
    cdef real *state[STATES]
    cdef const real *g
    cdef double h[OPERATION_COEFFICIENTS]
    cdef double factor = 1.0
    cdef int k, first = program.prologue, last = program.prologue + program.epilogue
    fetched(e, row, state, spare, start, n, False, scratch)
    g = row[G]
    if late:
        first, last = last, last + program.late
    else:
        if not program.prepared or program.moves:
            g = prologue(e, program, scale, program.prologue, row, spare, n, &factor)
        ruled(e, program, row, g, state, n, factor)
    for k in range(first, last):
        if k == program.agrees:
            h[0], h[1] = program.operation[k].h[0], e.agreed
            applied(&program.operation[k], h, row, g, spare, n)
        else:
            applied(&program.operation[k], program.operation[k].h, row, g, spare, n)

    for k in range(e.operands):
        if k != G and not (late and FIRST <= k < FIRST + e.states):
            encoded(&e.operand[k], start, n, row[k])
    if e.copy.encode != NULL and (late or not program.projects):
        copied_out(e, program, start, n, scratch)


cdef inline void aside(Entry *e, const Program *program, real **row, Py_ssize_t n,
                       real *scratch) noexcept nogil:
    """Takes copies of the rows that the prologue may change: the update will do so."""
    cdef Py_ssize_t width = ROW // sizeof(real)
    cdef int k
    if not program.moves:
        return
    for k in range(e.operands):
        if (k == P or k >= FIRST + e.states) and e.operand[k].decode == NULL:
            memcpy(scratch + k * width, row[k], n * sizeof(real))
            row[k] = scratch + k * width


cdef void prepare_range(Entry *e, const Program *program, const Operation *scale, Py_ssize_t start,
                        Py_ssize_t stop, real *scratch) noexcept nogil:
    """Puts the gradient as the rule gets it, and the decayed parameter, into the first two
    states."""
    cdef real *row[OPERANDS]
    cdef real *spare[2]
    cdef real *state[STATES]
    cdef const real *g
    cdef double factor
    cdef Py_ssize_t n
    cdef int k
    while start < stop:
        n = min(stop - start, <Py_ssize_t>BLOCK)
        fetched(e, row, state, spare, start, n, False, scratch)
        aside(e, program, row, n, scratch)
        g = prologue(e, program, scale, program.prologue, row, spare, n, &factor)
        if real is float:
            (<operation_float>scale.of_float)(NULL, g, state[0], NULL, n, &factor)
            (<operation_float>scale.of_float)(NULL, row[P], state[1], NULL, n, &program.decay)
        else:
            (<operation_double>scale.of_double)(NULL, g, state[0], NULL, n, &factor)
            (<operation_double>scale.of_double)(NULL, row[P], state[1], NULL, n, &program.decay)
        for k in range(2):
            encoded(&e.operand[FIRST + k], start, n, state[k])
        start += n


cdef double held_norm(Entry *e, const Program *program, const Measures *measures,
                      const Operation *scale, Py_ssize_t start, Py_ssize_t n,
                      real *scratch) noexcept nogil:
    """The sum of squares, block by block, of the gradient that the operation which holds its norm
    will get."""
    cdef real *row[OPERANDS]
    cdef real *spare[2]
    cdef real *state[STATES]
    cdef const real *g
    cdef double factor, total = 0
    cdef Py_ssize_t stop = start + n
    while start < stop:
        n = min(stop - start, <Py_ssize_t>BLOCK)
        fetched(e, row, state, spare, start, n, True, scratch)
        aside(e, program, row, n, scratch)
        g = prologue(e, program, scale, program.holds, row, spare, n, &factor)
        if real is float:
            total += (<measure_float>measures.of[SQUARES][0])(g, n, 1.0, 2.0)
        else:
            total += (<measure_double>measures.of[SQUARES][1])(g, n, 1.0, 2.0)
        start += n
    return total


cdef double agreeing(Entry *e, const Program *program, const Operation *scale, Py_ssize_t start,
                     Py_ssize_t n, real *scratch) noexcept nogil:
    """How many elements the rule would move against their gradient, as they are to be."""
    cdef real *row[OPERANDS]
    cdef real *spare[2]
    cdef real *state[STATES]
    cdef const real *g
    cdef double factor
    cdef Py_ssize_t i, count = 0, width = ROW // sizeof(real), stop = start + n
    cdef int k
    while start < stop:
        n = min(stop - start, <Py_ssize_t>BLOCK)
        fetched(e, row, state, spare, start, n, False, scratch)
        aside(e, program, row, n, scratch)
        for k in range(FIRST, FIRST + e.states):  # the update will change them
            if e.operand[k].decode == NULL:
                memcpy(scratch + k * width, row[k], n * sizeof(real))
                state[k - FIRST] = row[k] = scratch + k * width
        g = prologue(e, program, scale, program.prologue, row, spare, n, &factor)
        ruled(e, program, row, g, state, n, factor)
        for i in range(n):
            count += row[P][i] * g[i] < <real>0
        start += n
    return <double>count


cdef void reduce_block(Entry *e, const Program *program, int number, const Operation *scale,
                       double *sums, Py_ssize_t start, Py_ssize_t n, real *scratch) noexcept nogil:
    """One block of one parameter: the prologue, and one of the rule's reductions."""
    cdef real *row[OPERANDS]
    cdef real *spare[2]
    cdef real *state[STATES]
    cdef const real *g
    cdef double factor
    cdef int k
    fetched(e, row, state, spare, start, n, False, scratch)
    aside(e, program, row, n, scratch)
    g = prologue(e, program, scale, program.prologue, row, spare, n, &factor)
    if real is float:
        (<reduction_float>program.reduction_float[number])(
            row[P], g, state[0], state[1], state[2], state[3], n, factor, program.decay, e.h, sums)
    else:
        (<reduction_double>program.reduction_double[number])(
            row[P], g, state[0], state[1], state[2], state[3], n, factor, program.decay, e.h, sums)
    for k in range(e.states):
        encoded(&e.operand[FIRST + k], start, n, state[k])


cdef void reduce_range(Entry *e, const Program *program, int number, const Operation *scale,
                       double *partial, Py_ssize_t start, Py_ssize_t stop,
                       real *scratch) noexcept nogil:
    """Reduces the elements start to stop; SUMS numbers for each chunk go to `partial`. Blocks begin
    at multiples of BLOCK wherever the parameter lies, so that sums do not depend on that."""
    cdef Py_ssize_t n
    cdef double *sums
    cdef int k
    while start < stop:
        n = min(stop - start, <Py_ssize_t>BLOCK)
        sums = partial + start // CHUNK * SUMS
        if start % CHUNK == 0:
            for k in range(SUMS):
                sums[k] = 0
        reduce_block(e, program, number, scale, sums, start, n, scratch)
        start += n


cdef void terms_of(Entry *e, const Program *program, int number, const Operation *scale,
                   real *terms, Py_ssize_t start, Py_ssize_t n, real *scratch) noexcept nogil:
    """One block of one parameter: the prologue, and the terms of one of the
    rule's row and column reductions."""
    cdef real *row[OPERANDS]
    cdef real *spare[2]
    cdef real *state[STATES]
    cdef const real *g
    cdef double factor
    cdef int k
    fetched(e, row, state, spare, start, n, program.blind[number], scratch)
    aside(e, program, row, n, scratch)
    g = prologue(e, program, scale, program.prologue, row, spare, n, &factor)
    if real is float:
        (<axis_reduction_float>program.reduction_float[number])(
            row[P], g, state[0], state[1], state[2], state[3], n, factor, program.decay, e.h, terms)
    else:
        (<axis_reduction_double>program.reduction_double[number])(
            row[P], g, state[0], state[1], state[2], state[3], n, factor, program.decay, e.h, terms)
    for k in range(1 if e.tiles.column == NULL else 2, e.states):
        encoded(&e.operand[FIRST + k], start, n, state[k])


cdef inline bint takes_stored(const Entry *e, const Program *program) noexcept nogil:
    """Whether the rule has a loop over the arrays as they are stored."""
    return (e.formats >= 0 and program.stored[e.formats] != NULL
            and (not e.grouped or e.squares == program.squares))


cdef void update_stored(Entry *e, const Program *program, Py_ssize_t start,
                        Py_ssize_t stop) noexcept nogil:
    """The rule over the elements start to stop of arrays as they are stored."""
    cdef Stored stored
    cdef const Operand *x
    cdef int k
    for k in range(ARRAYS):
        stored.data[k] = stored.beside[k] = NULL
        if k < FIRST + e.states:
            x = &e.operand[k]
            stored.data[k] = x.data + start * x.strides[0]
            stored.noise[k] = x.noise + <uint32_t>start * PER_ELEMENT
            if x.beside != NULL:
                stored.beside[k] = x.beside + (start // GROUP if k >= FIRST else 2 * start)
    (<stored_loop>program.stored[e.formats])(&stored, stop - start, e.scale, program.decay,
                                             program.h)


cdef void update_range(Entry *e, const Program *program, const Operation *scale, bint late,
                       Py_ssize_t start, Py_ssize_t stop, real *scratch) noexcept nogil:
    """Updates the elements start to stop; after the first block, p is at the start of a line."""
    cdef Py_ssize_t n, whole
    cdef Py_ssize_t skew = <Py_ssize_t>(<size_t>e.operand[P].data % LINE // sizeof(real))
    if e.grouped:
        skew = 0  # groups are whole
    if takes_stored(e, program) and not late:
        whole = stop - ((stop - start) % GROUP if e.grouped else 0)
        if e.copy.encode == NULL or program.projects:
            if start < whole:
                update_stored(e, program, start, whole)
            start = whole
        while start < whole:  # the copy is of what is still in L1
            n = min(whole - start, <Py_ssize_t>(COPIED if e.operand[P].decode == NULL else BLOCK))
            update_stored(e, program, start, start + n)
            copied_out(e, program, start, n, scratch)
            start += n
    while start < stop:
        n = min(stop - start, BLOCK - (start + skew) % BLOCK)
        update_block(e, program, scale, late, start, n, scratch)
        start += n
