"""One block of one parameter at a time: decode, stages, rule, stages, encode. And one unit of a
parameter at a time: its norm, and what follows from it. No Python, no threads.

Rows that are not lent lie in the worker's scratch, one after the other; the last two take turns as
the gradient that a stage makes.
"""
from libc.float cimport DBL_MAX
from libc.math cimport frexp, isfinite, ldexp, sqrt
from libc.string cimport memcpy

from steepest.kernels.contract cimport (
    BLOCK, CHUNK, STATES, SUMS, Operand, Table, decode_double, decode_float, encode_double,
    encode_float, larger, measure_double, measure_float, real, rule_double, rule_float,
    spread_double, spread_float, stage_double, stage_float, survey_double, survey_float,
    tally_double, tally_float,
)
from steepest.kernels.visits cimport (
    ADAPTIVE_CLIP, FIRST, G, GROUP_LASSO, LINE, OPERANDS, P, ROW, Bands, Entry, Measures, Program,
    Stage, Units, UnitStage,
)


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


cdef inline void encoded(Operand *x, Py_ssize_t start, Py_ssize_t n,
                         const real *row) noexcept nogil:
    """Puts a row back where it was not lent."""
    if x.encode != NULL:
        if real is float:
            (<encode_float>x.encode)(x, start, n, row)
        else:
            (<encode_double>x.encode)(x, start, n, row)


cdef inline int spread(Bands *b, real **row, Py_ssize_t start, Py_ssize_t n,
                       real *scratch) noexcept nogil:
    """The factors of rows, and of columns if there are any, for each element of a block; returns
    how many rows these are."""
    cdef Table *x = &b.table
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
    if e.bands != NULL:
        if blind:
            row[FIRST] = row[FIRST + 1] = NULL
            first += 1 if e.bands.column == NULL else 2
        else:
            first += spread(e.bands, &row[FIRST], start, n, scratch + FIRST * width)
    for k in range(FIRST):
        row[k] = decoded(&e.operand[k], start, n, scratch + k * width)
    for k in range(first, e.operands):
        row[k] = decoded(&e.operand[k], start, n, scratch + k * width)
    for k in range(STATES):
        state[k] = row[FIRST + k] if k < e.states else NULL
    spare[0] = scratch + OPERANDS * width
    spare[1] = scratch + (OPERANDS + 1) * width


cdef inline const real *before(Entry *e, const Program *program, const Stage *scale, real **row,
                               real **spare, Py_ssize_t n, double *factor) noexcept nogil:
    """The gradient as the stages before the rule make it, and the factor that is left to it."""
    cdef const real *g = row[G]
    cdef int k
    factor[0] = e.scale
    if e.scale != 1.0 and program.before:  # stages want the gradient as it will be
        g = staged(scale, &e.scale, row, g, spare, n)
        factor[0] = 1.0
    for k in range(program.before):
        g = staged(&program.stage[k], program.stage[k].h, row, g, spare, n)
    return g


cdef void visit(Entry *e, const Program *program, const Stage *scale, bint late,
                Py_ssize_t start, Py_ssize_t n, real *scratch) noexcept nogil:
    """One block of one parameter: the stages and the rule, or the late stages alone."""
    cdef real *row[OPERANDS]
    cdef real *spare[2]
    cdef real *state[STATES]
    cdef const real *g
    cdef const double *h = &e.h[0] if program.surveys else &program.h[0]
    cdef double factor
    cdef int k, first = program.before, last = program.before + program.after
    fetched(e, row, state, spare, start, n, False, scratch)
    g = row[G]
    if late:
        first, last = last, last + program.late
    else:
        factor = e.scale
        if not program.prepared:
            g = before(e, program, scale, row, spare, n, &factor)
        if real is float:
            (<rule_float>program.rule_float)(row[P], g, state[0], state[1], state[2], state[3],
                                             n, factor, program.keep, h)
        else:
            (<rule_double>program.rule_double)(row[P], g, state[0], state[1], state[2], state[3],
                                               n, factor, program.keep, h)
    for k in range(first, last):
        staged(&program.stage[k], program.stage[k].h, row, g, spare, n)

    for k in range(e.operands):
        if k != G:
            encoded(&e.operand[k], start, n, row[k])


cdef inline void aside(Entry *e, const Program *program, real **row, Py_ssize_t n,
                       real *scratch) noexcept nogil:
    """Takes a copy of the parameter's row where stages would change it before the update does."""
    if program.moves and e.operand[P].decode == NULL:
        memcpy(scratch, row[P], n * sizeof(real))
        row[P] = scratch


cdef void stage_range(Entry *e, const Program *program, const Stage *scale, Py_ssize_t start,
                      Py_ssize_t stop, real *scratch) noexcept nogil:
    """Puts the gradient as the rule gets it, and what is kept of the parameter, into the first two
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
        g = before(e, program, scale, row, spare, n, &factor)
        if real is float:
            (<stage_float>scale.of_float)(NULL, g, state[0], NULL, n, &factor)
            (<stage_float>scale.of_float)(NULL, row[P], state[1], NULL, n, &program.keep)
        else:
            (<stage_double>scale.of_double)(NULL, g, state[0], NULL, n, &factor)
            (<stage_double>scale.of_double)(NULL, row[P], state[1], NULL, n, &program.keep)
        for k in range(2):
            encoded(&e.operand[FIRST + k], start, n, state[k])
        start += n


cdef void surveyed(Entry *e, const Program *program, int number, const Stage *scale,
                   double *sums, Py_ssize_t start, Py_ssize_t n, real *scratch) noexcept nogil:
    """One block of one parameter: the stages before the rule, and one of its surveys."""
    cdef real *row[OPERANDS]
    cdef real *spare[2]
    cdef real *state[STATES]
    cdef const real *g
    cdef double factor
    cdef int k
    fetched(e, row, state, spare, start, n, False, scratch)
    aside(e, program, row, n, scratch)
    g = before(e, program, scale, row, spare, n, &factor)
    if real is float:
        (<survey_float>program.survey_float[number])(
            row[P], g, state[0], state[1], state[2], state[3], n, factor, program.keep, e.h, sums)
    else:
        (<survey_double>program.survey_double[number])(
            row[P], g, state[0], state[1], state[2], state[3], n, factor, program.keep, e.h, sums)
    for k in range(e.states):
        encoded(&e.operand[FIRST + k], start, n, state[k])


cdef void survey_range(Entry *e, const Program *program, int number, const Stage *scale,
                       double *partial, Py_ssize_t start, Py_ssize_t stop,
                       real *scratch) noexcept nogil:
    """Surveys the elements start to stop; SUMS numbers for each chunk go to `partial`. Blocks begin
    at multiples of BLOCK wherever the parameter lies, so that sums do not hang on that."""
    cdef Py_ssize_t n
    cdef double *sums
    cdef int k
    while start < stop:
        n = min(stop - start, <Py_ssize_t>BLOCK)
        sums = partial + start // CHUNK * SUMS
        if start % CHUNK == 0:
            for k in range(SUMS):
                sums[k] = 0
        surveyed(e, program, number, scale, sums, start, n, scratch)
        start += n


cdef void tallied(Entry *e, const Program *program, int number, const Stage *scale, real *terms,
                  Py_ssize_t start, Py_ssize_t n, real *scratch) noexcept nogil:
    """One block of one parameter: the stages before the rule, and the terms of one of its
    tallies."""
    cdef real *row[OPERANDS]
    cdef real *spare[2]
    cdef real *state[STATES]
    cdef const real *g
    cdef double factor
    cdef int k
    fetched(e, row, state, spare, start, n, program.blind[number], scratch)
    aside(e, program, row, n, scratch)
    g = before(e, program, scale, row, spare, n, &factor)
    if real is float:
        (<tally_float>program.survey_float[number])(
            row[P], g, state[0], state[1], state[2], state[3], n, factor, program.keep, e.h, terms)
    else:
        (<tally_double>program.survey_double[number])(
            row[P], g, state[0], state[1], state[2], state[3], n, factor, program.keep, e.h, terms)
    for k in range(1 if e.bands.column == NULL else 2, e.states):
        encoded(&e.operand[FIRST + k], start, n, state[k])


cdef void update_range(Entry *e, const Program *program, const Stage *scale, bint late,
                       Py_ssize_t start, Py_ssize_t stop, real *scratch) noexcept nogil:
    """Visits the elements start to stop; after the first visit, p is at the start of a line."""
    cdef Py_ssize_t skew = <Py_ssize_t>(<size_t>e.operand[P].data % LINE // sizeof(real)), n
    while start < stop:
        n = min(stop - start, BLOCK - (start + skew) % BLOCK)
        visit(e, program, scale, late, start, n, scratch)
        start += n


cdef double representable(double x, int exponent) noexcept nogil:
    """x 2^exponent; the largest double where that is finite but larger."""
    cdef double scaled = ldexp(x, exponent)
    return DBL_MAX if isfinite(x) and not isfinite(scaled) else scaled


# Units

cdef double measured(void *function, Operand *x, Py_ssize_t start, Py_ssize_t n, double scale,
                     bint most, real *scratch) noexcept nogil:
    """A measure of n elements of x, chunk by chunk."""
    cdef double total = 0, part
    cdef Py_ssize_t done = 0, m
    cdef const real *row
    while done < n:
        m = min(n - done, <Py_ssize_t>CHUNK)
        row = decoded(x, start + done, m, scratch)
        if real is float:
            part = (<measure_float>function)(row, m, scale, 2.0)
        else:
            part = (<measure_double>function)(row, m, scale, 2.0)
        if most:
            total = larger(total, part)
        else:
            total += part
        done += m
    return total


cdef double unit_norm(const Measures *measures, Operand *x, Py_ssize_t start, Py_ssize_t n,
                      real *scratch) noexcept nogil:
    """The Euclidean norm of n elements of x, also where squares leave the range of double."""
    cdef void *squares = measures.squares_float if real is float else measures.squares_double
    cdef void *largest = measures.largest_float if real is float else measures.largest_double
    cdef double total = measured(squares, x, start, n, 1.0, False, scratch), most
    cdef int exponent = 0
    if real is double:
        if not (1e-280 < total < 1e300):
            most = measured(largest, x, start, n, 1.0, True, scratch)
            if isfinite(most) and most > 0:
                frexp(most, &exponent)
                exponent = max(exponent, -1000)
                total = measured(squares, x, start, n, ldexp(1.0, -exponent), False, scratch)
    return representable(sqrt(total), exponent)


cdef double unit_factor(const UnitStage *s, const Measures *measures, Units *units,
                        Py_ssize_t start, double scale, real *scratch) noexcept nogil:
    """What a unit of the gradient (adaptive clipping) or of the parameter is multiplied with."""
    cdef Py_ssize_t n = units.length
    cdef double p = unit_norm(measures, &units.p, start, n, scratch), limit, g
    if s.kind == ADAPTIVE_CLIP:
        limit = s.h[0] * (s.h[1] if p < s.h[1] else p)
        g = scale * unit_norm(measures, &units.g, start, n, scratch)
        return limit / (1e-6 if g < 1e-6 else g) if g > limit else 1.0
    if s.kind == GROUP_LASSO:
        limit = s.h[0] * sqrt(<double>n)
        if p != p:
            return 1.0
        return 0.0 if p <= limit else 1.0 - limit / p
    return s.h[0] / p if p > s.h[0] else 1.0


cdef void unit_range(Entry *e, const Program *program, const Measures *measures, int stage,
                     Py_ssize_t start, Py_ssize_t stop, real *scratch) noexcept nogil:
    """Does a unit stage for the units start to stop."""
    cdef Units *units = &e.units[stage]
    cdef const UnitStage *s = &program.unit[stage]
    cdef Py_ssize_t first, done, n
    cdef double factor, scale = -e.scale if e.scale < 0 else e.scale
    cdef real *row
    while start < stop:
        first = start * units.length
        factor = unit_factor(s, measures, units, first, scale, scratch)
        if s.kind == ADAPTIVE_CLIP:
            (<real *>units.factors)[start] = <real>factor
        elif factor != 1.0:
            done = 0
            while done < units.length:
                n = min(units.length - done, <Py_ssize_t>CHUNK)
                row = decoded(&units.p, first + done, n, scratch)
                if real is float:
                    (<stage_float>measures.multiply.of_float)(row, NULL, NULL, NULL, n, &factor)
                else:
                    (<stage_double>measures.multiply.of_double)(row, NULL, NULL, NULL, n, &factor)
                encoded(&units.p, first + done, n, row)
                done += n
        start += 1
