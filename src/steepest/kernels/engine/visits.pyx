"""One block of one parameter at a time: decode, stages, rule, stages, encode. And one unit of a
parameter at a time: its norm, and what follows from it. No Python, no threads.

Rows that are not lent lie in the worker's scratch, one after the other; the last two take turns as
the gradient that a stage makes.
"""
from libc.float cimport DBL_MAX
from libc.math cimport INFINITY, frexp, isfinite, ldexp, sqrt
from libc.string cimport memcpy

from steepest.kernels.contract cimport (
    BLOCK, CHUNK, STATES, SUMS, Operand, Table, decode_double, decode_float, encode_double,
    encode_float, larger, measure_double, measure_float, real, rule_double, rule_float,
    spread_double, spread_float, stage_double, stage_float, survey_double, survey_float,
    tally_double, tally_float,
)
from steepest.kernels.engine.visits cimport (
    CENTRALIZE, COUNT_ABOVE, FIRST, G, GROUP_LASSO, LARGEST, LINE, MAKERS, MAXIMUM, OPERANDS, P,
    ROW, SIMPLEX, SPARE, SQUARES, STAGE_COEFFICIENTS, SUM, SUM_ABOVE, UNIT_NORM, Bands, Entry,
    Measures, Program, Stage, Units, UnitStage,
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
    row[SPARE] = scratch + SPARE * width
    spare[0] = scratch + OPERANDS * width
    spare[1] = scratch + (OPERANDS + 1) * width


cdef inline const real *before(Entry *e, const Program *program, const Stage *scale, int last,
                               real **row, real **spare, Py_ssize_t n,
                               double *factor) noexcept nogil:
    """The gradient as the first `last` stages make it, and the factor that is left to the rule."""
    cdef const real *g = row[G]
    cdef int k
    factor[0] = e.scale
    if e.scale != 1.0 and last:  # stages want the gradient as it will be
        g = staged(scale, &e.scale, row, g, spare, n)
        factor[0] = 1.0
    for k in range(last):
        g = staged(&program.stage[k],
                   &e.held if k == program.holds else &program.stage[k].h[0], row, g, spare, n)
    return g


cdef inline void ruled(Entry *e, const Program *program, real **row, const real *g, real **state,
                       Py_ssize_t n, double factor) noexcept nogil:
    """The rule itself, on one block."""
    cdef const double *h = &e.h[0] if program.surveys else &program.h[0]
    if real is float:
        (<rule_float>program.rule_float)(row[P], g, state[0], state[1], state[2], state[3],
                                         n, factor, program.keep, h)
    else:
        (<rule_double>program.rule_double)(row[P], g, state[0], state[1], state[2], state[3],
                                           n, factor, program.keep, h)


cdef void visit(Entry *e, const Program *program, const Stage *scale, bint late,
                Py_ssize_t start, Py_ssize_t n, real *scratch) noexcept nogil:
    """One block of one parameter: the stages and the rule, or the late stages alone."""
    cdef real *row[OPERANDS]
    cdef real *spare[2]
    cdef real *state[STATES]
    cdef const real *g
    cdef double h[STAGE_COEFFICIENTS]
    cdef double factor = 1.0
    cdef int k, first = program.before, last = program.before + program.after
    fetched(e, row, state, spare, start, n, False, scratch)
    g = row[G]
    if late:
        first, last = last, last + program.late
    else:
        if not program.prepared or program.moves:
            g = before(e, program, scale, program.before, row, spare, n, &factor)
        ruled(e, program, row, g, state, n, factor)
    for k in range(first, last):
        if k == program.agrees:
            h[0], h[1] = program.stage[k].h[0], e.agreed
            staged(&program.stage[k], h, row, g, spare, n)
        else:
            staged(&program.stage[k], program.stage[k].h, row, g, spare, n)

    for k in range(e.operands):
        if k != G:
            encoded(&e.operand[k], start, n, row[k])


cdef inline void aside(Entry *e, const Program *program, real **row, Py_ssize_t n,
                       real *scratch) noexcept nogil:
    """Takes copies of the rows that stages before the rule may change: the update will do so."""
    cdef Py_ssize_t width = ROW // sizeof(real)
    cdef int k
    if not program.moves:
        return
    for k in range(e.operands):
        if (k == P or k >= FIRST + e.states) and e.operand[k].decode == NULL:
            memcpy(scratch + k * width, row[k], n * sizeof(real))
            row[k] = scratch + k * width


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
        g = before(e, program, scale, program.before, row, spare, n, &factor)
        if real is float:
            (<stage_float>scale.of_float)(NULL, g, state[0], NULL, n, &factor)
            (<stage_float>scale.of_float)(NULL, row[P], state[1], NULL, n, &program.keep)
        else:
            (<stage_double>scale.of_double)(NULL, g, state[0], NULL, n, &factor)
            (<stage_double>scale.of_double)(NULL, row[P], state[1], NULL, n, &program.keep)
        for k in range(2):
            encoded(&e.operand[FIRST + k], start, n, state[k])
        start += n


cdef double held_norm(Entry *e, const Program *program, const Measures *measures,
                      const Stage *scale, Py_ssize_t start, Py_ssize_t n,
                      real *scratch) noexcept nogil:
    """The sum of squares, block by block, of the gradient that the stage which holds its norm
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
        g = before(e, program, scale, program.holds, row, spare, n, &factor)
        if real is float:
            total += (<measure_float>measures.of[SQUARES][0])(g, n, 1.0, 2.0)
        else:
            total += (<measure_double>measures.of[SQUARES][1])(g, n, 1.0, 2.0)
        start += n
    return total


cdef double agreeing(Entry *e, const Program *program, const Stage *scale, Py_ssize_t start,
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
        g = before(e, program, scale, program.before, row, spare, n, &factor)
        ruled(e, program, row, g, state, n, factor)
        for i in range(n):
            count += row[P][i] * g[i] < <real>0
        start += n
    return <double>count


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
    g = before(e, program, scale, program.before, row, spare, n, &factor)
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
    g = before(e, program, scale, program.before, row, spare, n, &factor)
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

cdef double measured(const Measures *measures, int what, Operand *x, Py_ssize_t start,
                     Py_ssize_t n, double scale, double order, real *scratch) noexcept nogil:
    """A measure of n elements of x, chunk by chunk."""
    cdef void *function = measures.of[what][1 if real is double else 0]
    cdef bint most = what == LARGEST or what == MAXIMUM
    cdef double total = -INFINITY if most else 0, part
    cdef Py_ssize_t done = 0, m
    cdef const real *row
    while done < n:
        m = min(n - done, <Py_ssize_t>CHUNK)
        row = decoded(x, start + done, m, scratch)
        if real is float:
            part = (<measure_float>function)(row, m, scale, order)
        else:
            part = (<measure_double>function)(row, m, scale, order)
        if most:
            total = larger(total, part)
        else:
            total += part
        done += m
    return total


cdef double unit_norm(const Measures *measures, Operand *x, Py_ssize_t start, Py_ssize_t n,
                      real *scratch) noexcept nogil:
    """The Euclidean norm of n elements of x, also where squares leave the range of double."""
    cdef double total = measured(measures, SQUARES, x, start, n, 1.0, 2.0, scratch), most
    cdef int exponent = 0
    if real is double:
        if not (1e-280 < total < 1e300):
            most = measured(measures, LARGEST, x, start, n, 1.0, 2.0, scratch)
            if isfinite(most) and most > 0:
                frexp(most, &exponent)
                exponent = max(exponent, -1000)
                total = measured(measures, SQUARES, x, start, n, ldexp(1.0, -exponent), 2.0,
                                 scratch)
    return representable(sqrt(total), exponent)


cdef double made_factor(Entry *e, const UnitStage *s, const Measures *measures, Units *units,
                        Py_ssize_t start, real *scratch) noexcept nogil:
    """What a unit of the gradient is multiplied with, or what is subtracted from it."""
    cdef Py_ssize_t n = units.length
    cdef double p, limit, g
    if s.kind == CENTRALIZE:
        return e.scale * (measured(measures, SUM, &units.g, start, n, 1.0, 1.0, scratch) / n)
    p = unit_norm(measures, &units.p, start, n, scratch)
    limit = s.h[0] * (s.h[1] if p < s.h[1] else p)
    g = unit_norm(measures, &units.g, start, n, scratch)
    g = (-e.scale if e.scale < 0 else e.scale) * g
    return limit / (1e-6 if g < 1e-6 else g) if g > limit else 1.0


cdef bint simplex(const Measures *measures, Operand *x, Py_ssize_t start, Py_ssize_t n,
                  double sum, double *h, real *scratch) noexcept nogil:
    """By how much n elements go down, but no further than 0, for them to have the given sum; in
    two parts: down to a maximum of 0, and the rest. False where an element is not finite.

    Michelot's algorithm. The rest is at least -sum, and -sum plus the elements above it, divided
    by their number, is a better bound; there are fewer above each, or it is the last.
    """
    cdef double top, rest = -sum, better, count, fewer
    if not isfinite(measured(measures, LARGEST, x, start, n, 1.0, 1.0, scratch)):
        return False
    top = measured(measures, MAXIMUM, x, start, n, 1.0, 1.0, scratch)
    count = measured(measures, COUNT_ABOVE, x, start, n, top, rest, scratch)
    while True:
        better = (measured(measures, SUM_ABOVE, x, start, n, top, rest, scratch) - sum) / count
        if not better > rest:
            break
        rest = better
        fewer = measured(measures, COUNT_ABOVE, x, start, n, top, rest, scratch)
        if fewer == count:
            break
        count = fewer
    h[0], h[1] = top, rest
    return True


cdef const Stage *unit_stage(const UnitStage *s, const Measures *measures, Units *units,
                             Py_ssize_t start, double *h, real *scratch) noexcept nogil:
    """What is done to a unit of the parameter, and its coefficients h; NULL for nothing."""
    cdef Py_ssize_t n = units.length
    cdef double norm, limit = s.h[0]
    if s.kind == SIMPLEX:
        return &measures.lower if simplex(measures, &units.p, start, n, limit, h,
                                          scratch) else NULL
    norm = unit_norm(measures, &units.p, start, n, scratch)
    if s.kind == UNIT_NORM:
        h[0] = norm
        return &measures.divide if 0 < norm < INFINITY else NULL
    if s.kind == GROUP_LASSO:
        limit *= sqrt(<double>n)
        if norm != norm:
            return NULL
        h[0] = 0.0 if norm <= limit else 1.0 - limit / norm
    else:
        h[0] = limit / norm if norm > limit else 1.0
    return &measures.multiply if h[0] != 1.0 else NULL


cdef void unit_range(Entry *e, const Program *program, const Measures *measures, int stage,
                     Py_ssize_t start, Py_ssize_t stop, real *scratch) noexcept nogil:
    """Does a unit stage for the units start to stop."""
    cdef Units *units = &e.units[stage]
    cdef const UnitStage *s = &program.unit[stage]
    cdef const Stage *change
    cdef Py_ssize_t first, done, n
    cdef double h[2]
    cdef real *row
    if s.kind < MAKERS:
        if units.factors != NULL:
            for n in range(start, stop):
                (<real *>units.factors)[n] = <real>made_factor(e, s, measures, units,
                                                               n * units.length, scratch)
        return
    while start < stop:
        first = start * units.length
        change = unit_stage(s, measures, units, first, h, scratch)
        done = 0 if change != NULL else units.length
        while done < units.length:
            n = min(units.length - done, <Py_ssize_t>CHUNK)
            row = decoded(&units.p, first + done, n, scratch)
            if real is float:
                (<stage_float>change.of_float)(row, NULL, NULL, NULL, n, h)
            else:
                (<stage_double>change.of_double)(row, NULL, NULL, NULL, n, h)
            encoded(&units.p, first + done, n, row)
            done += n
        start += 1
