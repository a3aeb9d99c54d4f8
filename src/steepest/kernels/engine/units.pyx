"""One unit of a parameter (such as a row of a matrix) at a time: its norm, and what follows from
that. No Python, no threads."""
from libc.float cimport DBL_MAX
from libc.math cimport INFINITY, frexp, isfinite, ldexp, sqrt

from steepest.kernels.contract cimport (
    CHUNK, Operand, larger, measure_double, measure_float, operation_double, operation_float, real,
)
from steepest.kernels.engine.operands cimport decoded, encoded
from steepest.kernels.engine.structs cimport (
    CENTRALIZE, COUNT_ABOVE, GROUP_LASSO, LARGEST, MAKERS, MAXIMUM, SIMPLEX, SQUARES, SUM,
    SUM_ABOVE, UNIT_NORM, Entry, Measures, Operation, Program, UnitOperation, Units,
)


cdef double representable(double x, int exponent) noexcept nogil:
    """x 2^exponent; the largest double where that is finite but larger."""
    cdef double scaled = ldexp(x, exponent)
    return DBL_MAX if isfinite(x) and not isfinite(scaled) else scaled


cdef double measured(const Measures *measures, int what, Operand *x, Py_ssize_t start, Py_ssize_t n,
                     double scale, double order, real *scratch) noexcept nogil:
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


cdef double made_factor(Entry *e, const UnitOperation *s, const Measures *measures, Units *units,
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


cdef bint simplex(const Measures *measures, Operand *x, Py_ssize_t start, Py_ssize_t n, double sum,
                  double *h, real *scratch) noexcept nogil:
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


cdef const Operation *unit_operation(const UnitOperation *s, const Measures *measures, Units *units,
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


cdef void unit_range(Entry *e, const Program *program, const Measures *measures, int which,
                     Py_ssize_t start, Py_ssize_t stop, real *scratch) noexcept nogil:
    """Does a unit operation for the units start to stop."""
    cdef Units *units = &e.units[which]
    cdef const UnitOperation *s = &program.unit[which]
    cdef const Operation *change
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
        change = unit_operation(s, measures, units, first, h, scratch)
        done = 0 if change != NULL else units.length
        while done < units.length:
            n = min(units.length - done, <Py_ssize_t>CHUNK)
            row = decoded(&units.p, first + done, n, scratch)
            if real is float:
                (<operation_float>change.of_float)(row, NULL, NULL, NULL, n, h)
            else:
                (<operation_double>change.of_double)(row, NULL, NULL, NULL, n, h)
            encoded(&units.p, first + done, n, row)
            done += n
        start += 1
